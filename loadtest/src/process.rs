//! The server under load: a process of our own on loopback, its CPU time and memory as the kernel accounts them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The ingest key every run uses.
pub const INGEST_KEY: &str = "ck_demo_loadtest0000000000000000000000000000";
/// The read token every run uses.
pub const READ_TOKEN: &str = "cr_demo_loadtest0000000000000000000000000000";

/// A started server; killed and its directory removed when dropped.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: String,
    /// Its data directory.
    pub data: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

/// CPU seconds and memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident bytes.
    pub resident: u64,
}

impl Server {
    /// Starts contrail on a free port with a fresh data directory and waits until it is ready.
    pub async fn start(contrail: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let data = dir.path().join("data");
        let mut command = Command::new(contrail);
        command.arg("serve").arg("--data").arg(&data).args(["--listen", "127.0.0.1:0"]).args(arguments);
        command.env("CONTRAIL_BOOTSTRAP_INGEST_KEY", INGEST_KEY).env("CONTRAIL_BOOTSTRAP_READ_TOKEN", READ_TOKEN);
        let mut server = Self::spawn(command, data)?;
        server._dir = Some(dir);
        let lock = server.data.join("contrail.lock");
        let asked = Instant::now();
        loop {
            let told = std::fs::read_to_string(&lock).unwrap_or_default();
            if let Some((_, address)) = told.trim().split_once(' ') {
                server.address = address.to_owned();
                if let Ok(mut connection) = super::http::Connection::open(address).await
                    && connection.call(&super::http::get("/readyz", "")).await.is_ok_and(|a| a.status == 200)
                {
                    return Ok(server);
                }
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended at its start: {status}");
            }
            if asked.elapsed() > Duration::from_secs(30) {
                bail!("the server is not ready after 30 s");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts a floor server of this very binary; it prints its address first.
    pub fn floor() -> anyhow::Result<Self> {
        use std::io::BufRead;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor").stdout(Stdio::piped());
        let mut server = Self::spawn(command, PathBuf::new())?;
        let out = server.child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        std::io::BufReader::new(out).read_line(&mut line)?;
        server.address = line.trim().to_owned();
        Ok(server)
    }

    fn spawn(mut command: Command, data: PathBuf) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, address: String::new(), data, _dir: None })
    }

    /// What the process has used so far.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let dir = PathBuf::from("/proc").join(self.child.id().to_string());
        let stat = std::fs::read_to_string(dir.join("stat"))?;
        // The command's name may hold anything; the numbers begin behind its closing bracket.
        let numbers: Vec<u64> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0)).collect();
        let (user, system, pages) = match numbers.as_slice() {
            [.., _] if numbers.len() > 20 => (numbers.get(10), numbers.get(11), numbers.get(20)),
            _ => bail!("cannot read /proc stat"),
        };
        let ticks = user.zip(system).map(|(u, s)| u + s).unwrap_or_default();
        Ok(Usage { cpu: Duration::from_millis(ticks * 10), resident: pages.copied().unwrap_or_default() * 4096 })
    }

    /// Asks it to stop and waits for its exit.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("the server stopped with {status}");
                }
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the server did not stop within 60 s")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
