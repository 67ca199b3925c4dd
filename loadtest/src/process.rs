//! The server under load: a process of our own on loopback, its CPU time and memory as the kernel accounts them.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The ingest key every run uses.
pub(crate) const INGEST_KEY: &str = "ck_demo_loadtest0000000000000000000000000000";
/// The read token every run uses.
pub(crate) const READ_TOKEN: &str = "cr_demo_loadtest0000000000000000000000000000";

/// A started server; killed and its directory removed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub address: String,
    /// Its data directory.
    pub data: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

/// CPU seconds and memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident bytes.
    pub resident: u64,
}

impl Server {
    /// Starts contrail on a free port with a fresh data directory, which goes with it, and waits until it is ready.
    pub(crate) async fn start(contrail: &Path, arguments: &[&str], core: Option<usize>) -> anyhow::Result<Self> {
        Self::start_with(contrail, arguments, &[], core).await
    }

    /// The same with settings from the environment.
    pub(crate) async fn start_with(contrail: &Path, arguments: &[&str], settings: &[(&str, String)], core: Option<usize>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut server = Self::open(contrail, &dir.path().join("data"), arguments, settings, core).await?;
        server._dir = Some(dir);
        Ok(server)
    }

    /// Starts contrail on a data directory of the caller's and waits until it is ready.
    pub(crate) async fn on(contrail: &Path, data: &Path, arguments: &[&str], core: Option<usize>) -> anyhow::Result<Self> {
        Self::open(contrail, data, arguments, &[], core).await
    }

    async fn open(contrail: &Path, data: &Path, arguments: &[&str], settings: &[(&str, String)], core: Option<usize>) -> anyhow::Result<Self> {
        let mut command = pinned(contrail, core);
        command.arg("serve").arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]).args(arguments).stdout(Stdio::null());
        command.env("CONTRAIL_BOOTSTRAP_INGEST_KEY", INGEST_KEY).env("CONTRAIL_BOOTSTRAP_READ_TOKEN", READ_TOKEN);
        command.env("CONTRAIL_TELEMETRY_FILTER", "warn").envs(settings.iter().map(|(name, value)| (name, value)));
        if core.is_some() {
            command.env("CONTRAIL_SERVER_WORKER_THREADS", "1");
        }
        let mut server = Self::spawn(command, data.to_owned())?;
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

    /// Starts a floor server that takes events.
    pub(crate) fn floor(brokers: Option<&str>, spread: bool, core: Option<usize>) -> anyhow::Result<Self> {
        let brokers = brokers.map(|brokers| ["--brokers", brokers]);
        Self::bare(brokers.into_iter().flatten().chain(spread.then_some("--spread")), core)
    }

    /// Starts a floor server that answers everything with what stands in a file.
    pub(crate) fn floor_of(body: &Path, core: Option<usize>) -> anyhow::Result<Self> {
        Self::bare(["--body", body.to_str().context("the body's path")?], core)
    }

    /// Starts a floor server of this very binary; it prints its address first.
    fn bare<'a>(arguments: impl IntoIterator<Item = &'a str>, core: Option<usize>) -> anyhow::Result<Self> {
        let mut command = pinned(&std::env::current_exe()?, core);
        command.arg("floor").args(arguments).stdout(Stdio::piped());
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
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage_at(&self.proc().join("stat"))
    }

    /// CPU time by thread name; threads of one name are summed, ended ones are gone.
    pub(crate) fn threads(&self) -> anyhow::Result<BTreeMap<String, Duration>> {
        let mut threads = BTreeMap::new();
        for entry in std::fs::read_dir(self.proc().join("task"))? {
            let dir = entry?.path();
            // A thread may end between the listing and the reading.
            let (Ok(name), Ok(usage)) = (std::fs::read_to_string(dir.join("comm")), usage_at(&dir.join("stat"))) else { continue };
            *threads.entry(name.trim().to_owned()).or_default() += usage.cpu;
        }
        Ok(threads)
    }

    fn proc(&self) -> PathBuf {
        PathBuf::from("/proc").join(self.child.id().to_string())
    }

    /// Asks it to stop and waits for its exit.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
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

/// A command bound to a core, where `taskset` is at hand.
fn pinned(program: &Path, core: Option<usize>) -> Command {
    match core {
        Some(core) if has_taskset() => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// Whether processes can be bound to cores here.
pub(crate) fn has_taskset() -> bool {
    Command::new("taskset").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Lets this process, and those that it starts, hold as many files open as the machine allows it. Fails where that is less than is needed.
pub(crate) fn open_files(needed: usize) -> anyhow::Result<()> {
    let told = std::fs::read_to_string("/proc/self/limits")?;
    let limits = told.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of open files")?;
    let mut limits = limits.split_whitespace();
    let (soft, hard) = (limits.next().unwrap_or_default(), limits.next().unwrap_or_default());
    if hard != "unlimited" && hard.parse::<usize>()? < needed {
        bail!("{needed} open files are needed, and {hard} are allowed (ulimit -Hn)");
    }
    if soft.parse::<usize>().is_ok_and(|soft| soft < needed) {
        let status = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &format!("--nofile={needed}:{hard}")]).status()?;
        if !status.success() {
            bail!("open files could not be raised from {soft} to {needed}: {status}");
        }
    }
    Ok(())
}

/// Binds this process, with all threads that it has, to a core.
pub(crate) fn pin_self(core: usize) -> anyhow::Result<()> {
    if has_taskset() {
        Command::new("taskset").args(["-apc", &core.to_string(), &std::process::id().to_string()]).stdout(Stdio::null()).status()?;
    }
    Ok(())
}

/// Reads a `stat` file of `/proc`.
fn usage_at(path: &Path) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(path)?;
    // The command's name may hold anything; the numbers begin behind its closing bracket and the state.
    let numbers: Vec<u64> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0)).collect();
    let (Some(user), Some(system), Some(pages)) = (numbers.get(10), numbers.get(11), numbers.get(20)) else { bail!("cannot read /proc stat") };
    Ok(Usage { cpu: Duration::from_millis((user + system) * 10), resident: pages * 4096 })
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
