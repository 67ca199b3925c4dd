//! Starts, asks, stops and kills the shipped binary.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Answer, Connection, again};

pub(crate) const KEY: &str = "ck_demo_00000000000000000000000000000000test";
pub(crate) const READ: &str = "cr_demo_00000000000000000000000000000000test";

/// A running server. Dropped, it is stopped by SIGTERM and must end cleanly.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    pub(crate) data: PathBuf,
    /// What it logs, unless that is shown.
    log: Option<File>,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) fn binary() -> Command {
    binary_at(env!("CARGO_BIN_EXE_contrail").as_ref())
}

/// The same of another build.
pub(crate) fn binary_at(program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.env("CONTRAIL_BOOTSTRAP_INGEST_KEY", KEY).env("CONTRAIL_BOOTSTRAP_READ_TOKEN", READ);
    command
}

impl Server {
    /// On a fresh directory that goes with the server.
    pub(crate) fn fresh() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self::on(&dir.path().join("data"), &[]);
        server._dir = Some(dir);
        server
    }

    /// On a directory that stays.
    pub(crate) fn on(data: &Path, arguments: &[&str]) -> Self {
        Self::try_on(data, arguments).unwrap_or_else(|status| panic!("the server ended at its start: {status}"))
    }

    /// The exit status where it ends at its start.
    pub(crate) fn try_on(data: &Path, arguments: &[&str]) -> Result<Self, ExitStatus> {
        Self::start(binary(), data, arguments)
    }

    /// Runs `command`, which is [`binary`] with whatever else it is given, on a directory that stays.
    pub(crate) fn start(command: Command, data: &Path, arguments: &[&str]) -> Result<Self, ExitStatus> {
        let log = std::env::var_os("CONTRAIL_TEST_LOG_OUTPUT").is_none().then(|| tempfile::tempfile().unwrap());
        Self::logging(command, data, arguments, log)
    }

    /// The same with its log going to a file that can be read again; None shows it.
    pub(crate) fn logging(mut command: Command, data: &Path, arguments: &[&str], log: Option<File>) -> Result<Self, ExitStatus> {
        // A former process's announcement must not be taken for this one's.
        drop(std::fs::remove_file(data.join("admin.token")));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(arguments);
        command.stderr(log.as_ref().map_or_else(Stdio::inherit, |log| log.try_clone().unwrap().into()));
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let asked = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Err(status);
            }
            let told = std::fs::read_to_string(data.join("contrail.lock")).unwrap_or_default();
            if let Some((pid, address)) = told.trim().split_once(' ')
                && pid == child.id().to_string()
                && let Ok(mut connection) = Connection::open(address)
                && connection.call("GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200)
            {
                return Ok(Self { child, address: address.to_owned(), data: data.to_owned(), log, _dir: None });
            }
            assert!(asked.elapsed() < Duration::from_secs(180), "not ready after 180 s");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Prints the last of what it logged: why a test fails.
    fn show_log(&mut self) {
        let mut text = Vec::new();
        if let Some(log) = &mut self.log
            && log.seek(SeekFrom::Start(0)).and_then(|_| log.read_to_end(&mut text)).is_ok()
        {
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!(
                "process {} ({:?}) logged last:\n{}",
                self.child.id(),
                self.child.try_wait(),
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.address).unwrap()
    }

    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.connect().call(method, path, headers, body).unwrap()
    }

    /// POST /v1/events with the server key.
    pub(crate) fn post(&self, body: &[u8]) -> Answer {
        self.call("POST", "/v1/events", &[("authorization", &format!("Bearer {KEY}")), ("content-type", "application/json")], body)
    }

    /// Events that must all be accepted.
    pub(crate) fn accept(&self, events: &[Value]) {
        for chunk in events.chunks(1000) {
            let answer = again(|| self.post(&serde_json::to_vec(chunk).unwrap()));
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["rejected"], Value::Array(vec![]), "{}", answer.text());
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[("authorization", &format!("Bearer {READ}"))], b"")
    }

    /// GET that must succeed.
    pub(crate) fn read(&self, path: &str) -> Value {
        let answer = again(|| self.get(path));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub(crate) fn admin(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let token = std::fs::read_to_string(self.data.join("admin.token")).unwrap();
        self.call(method, path, &[("authorization", &format!("Bearer {token}")), ("content-type", "application/json")], body)
    }

    /// Waits until router, keeper and archiver have passed all that was accepted before this call.
    pub(crate) fn settle(&self) {
        let asked = Instant::now();
        loop {
            let progress = again(|| self.admin("GET", "/admin/progress", b""));
            assert_eq!(progress.status, 200, "{}", progress.text());
            if progress.json()["caught_up"] == Value::Bool(true) {
                return;
            }
            assert!(asked.elapsed() < Duration::from_secs(300), "not settled after 300 s: {} {}", progress.text(), self.get("/readyz").text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs the audit and gives its exit status and output.
    pub(crate) fn audit(&self) -> (bool, String) {
        let out = binary().args(["audit", "--data"]).arg(&self.data).output().unwrap();
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    }

    pub(crate) fn assert_audit(&self) {
        let (clean, told) = self.audit();
        assert!(clean, "{told}");
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit status.
    pub(crate) fn stop(self) -> ExitStatus {
        self.end_by("TERM")
    }

    /// Another signal that ends it; the exit status.
    pub(crate) fn end_by(mut self, signal: &str) -> ExitStatus {
        self.signal(signal)
    }

    fn signal(&mut self, signal: &str) -> ExitStatus {
        Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status().unwrap();
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(asked.elapsed() < Duration::from_secs(120), "not stopped after 120 s");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            if std::thread::panicking() {
                drop(self.child.kill());
                drop(self.child.wait());
            } else {
                let status = self.signal("TERM");
                assert!(status.success(), "the server must end cleanly: {status}");
            }
        }
    }
}

/// Waits for what must come. Of a look that takes long it counts when it began.
pub(crate) fn wait_for(what: &str, longest: Duration, mut there: impl FnMut() -> bool) {
    let waiting = Instant::now();
    loop {
        let waited = waiting.elapsed();
        if there() {
            return;
        }
        assert!(waited < longest, "{what}: not within {longest:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
