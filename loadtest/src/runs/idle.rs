//! Memory of a server that does nothing.

use std::path::Path;
use std::time::Duration;

use crate::findings::Findings;
use crate::process::Server;

/// Resident memory ten seconds after the start.
pub(crate) async fn run(contrail: &Path) -> anyhow::Result<Findings> {
    let mut findings = Findings::new("idle: 10 s after the start");
    let server = Server::start(contrail, &[], None).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let usage = server.usage()?;
    findings.at_most("resident memory", usage.resident as f64 / 1e6, 60.0, "MB");
    findings.note("CPU since the start", format!("{} ms", usage.cpu.as_millis()));
    server.stop().await?;
    Ok(findings)
}
