//! A real Kafka or Cassandra of one test, brought up by `tests/servers/run`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Server, binary};

/// One server, of the test's own: it is killed and started again at will, and ends with the test.
pub(crate) struct Foreign {
    dir: tempfile::TempDir,
    name: String,
    /// host:port.
    pub(crate) address: String,
}

fn run(arguments: &[&str], dir: &Path) -> String {
    let out = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/run")).args(arguments).arg("--dir").arg(dir).output().unwrap();
    assert!(out.status.success(), "tests/servers/run {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

impl Foreign {
    /// `kafka` or `cassandra`.
    pub(crate) fn up(kind: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = run(&["up", kind, "--own"], dir.path());
        let key = format!("{}=", kind.to_uppercase());
        let address = told.lines().find_map(|line| line.strip_prefix(&key)).unwrap().to_owned();
        Self { dir, name: format!("{kind}-1"), address }
    }

    /// As a process dies, with the last of what it acknowledged where it had not even given that to the kernel.
    pub(crate) fn kill(&self) {
        run(&["stop", &self.name, "--kill"], self.dir.path());
    }

    /// Back on the same directory.
    pub(crate) fn restart(&self) {
        run(&["start", &self.name], self.dir.path());
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        run(&["down", "--kill"], self.dir.path());
    }
}

/// The program with settings of its environment, silent unless its log is asked for.
pub(crate) fn program(settings: &[(&str, &str)]) -> Command {
    let mut command = binary();
    command.envs(settings.iter().copied());
    if std::env::var_os("CONTRAIL_TEST_LOG_OUTPUT").is_none() {
        command.stderr(Stdio::null());
    }
    command
}

/// That program, serving.
pub(crate) fn serve(program: Command, data: &Path) -> Server {
    Server::start(program, data, &[]).unwrap_or_else(|status| panic!("the server ended at its start: {status}"))
}
