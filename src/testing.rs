//! Real servers for library tests, brought up by `tests/servers/run`. Used by the `testing` files of the rooms that talk to them; they end with this process.

use std::process::{Command, Output};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/run");

/// Servers that were brought up together, and what was told of them. Dropped, they go at once.
pub(crate) struct Servers {
    dir: tempfile::TempDir,
    told: String,
}

impl Servers {
    /// `arguments` are those of `tests/servers/run up`.
    pub(crate) fn up(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let up = run(&[&["up"], arguments].concat(), &dir);
        assert!(up.status.success(), "nothing to test with: {}", String::from_utf8_lossy(&up.stderr));
        Self { dir, told: String::from_utf8(up.stdout).unwrap() }
    }

    /// What was told under this name: an address, a login, a file.
    pub(crate) fn told(&self, name: &str) -> &str {
        self.told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(run(&["down", "--kill"], &self.dir));
    }
}

fn run(arguments: &[&str], dir: &tempfile::TempDir) -> Output {
    Command::new(SCRIPT).args(arguments).arg("--dir").arg(dir.path()).output().unwrap()
}
