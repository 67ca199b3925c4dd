//! `loadtest all`: every run as a process of its own, so that one's threads and memory are not the next one's, gathered into `BASELINE.md`.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use contrail::event::Clock;

/// Runs everything and writes the file. A missed target is told in the file and in the exit status.
pub(crate) async fn run(contrail: &Path, out: &Path, sustain_seconds: u64, beside: &str) -> anyhow::Result<ExitCode> {
    let sustain = sustain_seconds.to_string();
    let runs: [&[&str]; 8] =
        [&["idle"], &["ingest"], &["saturate"], &["latency"], &["hot"], &["sync"], &["smoke"], &["sustain", "--seconds", &sustain]];
    let mut text = format!(
        "# Baseline\n\nWritten by `loadtest all` on {}. Ratios are the targets; absolute figures move with the machine.\n\n",
        Clock::system().now()
    );
    text.push_str(&format!("Machine: {}. Beside it ran: {beside}.\n\n", machine()));
    let mut held = true;
    for arguments in runs {
        println!("running {}", arguments.join(" "));
        let own = std::env::current_exe()?;
        let told = Command::new(own).args(arguments).arg("--contrail").arg(contrail).stdout(Stdio::piped()).output().context("a run")?;
        held &= told.status.success();
        let table = String::from_utf8_lossy(&told.stdout).into_owned();
        println!("{table}");
        text.push_str(&format!("{table}\n`loadtest {}`{}\n\n", arguments.join(" "), if told.status.success() { "" } else { " (missed)" }));
        if table.is_empty() {
            text.push_str(&format!("The run broke off: {}\n\n", String::from_utf8_lossy(&told.stderr).trim()));
        }
    }
    std::fs::write(out, text).with_context(|| format!("writing {}", out.display()))?;
    Ok(super::verdict(held))
}

/// Processor, cores, memory, kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{}, {cores} cores, {} memory, Linux {}",
        after(&cpu, "model name"),
        after(&memory, "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}
