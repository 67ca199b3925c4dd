//! All roles at saturation: a day sent as fast as answers come, until everything is routed, kept and archived; then the stages one at a time over the
//! same log, which tells what each costs.

use std::path::Path;
use std::time::Instant;

use crate::books;
use crate::findings::Findings;
use crate::journeys::Day;
use crate::load::{Pace, ms, send};
use crate::process::Server;

/// Events of one request.
const BATCH: usize = 100;

/// CPU per event, whole and by stage.
pub(crate) async fn run(contrail: &Path, events: u64) -> anyhow::Result<Findings> {
    let mut findings = Findings::new(format!("all roles at saturation: {events} events, {BATCH} per request"));
    let server = Server::start(contrail, &[], None).await?;
    let began = Instant::now();
    let before = server.usage()?.cpu;
    let (day, requests) = Day::begin(3, events, BATCH);
    let sent = send(&server.address, requests, 8, Pace::Closed).await?;
    books::settle(&server, &books::ALL).await?;
    let (took, usage) = (began.elapsed(), server.usage()?);
    let each = |cpu: std::time::Duration| cpu.as_secs_f64() * 1e6 / events as f64;
    findings.at_most("CPU, caught up", each(usage.cpu - before), 80.0, "us/event");
    findings.note("events a second, caught up", format!("{:.0}", events as f64 / took.as_secs_f64()));
    findings.note("answers", format!("p50 {:.1} ms, p99 {:.1} ms", ms(&sent.latency, 0.5), ms(&sent.latency, 0.99)));
    findings.note("resident memory at the end", format!("{:.0} MB", usage.resident as f64 / 1e6));
    for (name, cpu) in server.threads()? {
        findings.note(format!("of it threads `{name}`"), format!("{:.1} us/event", each(cpu)));
    }
    let tally = day.tally()?;
    books::close(contrail, &server, &sent, &tally, 0, &mut findings).await?;
    server.stop().await?;
    stages(contrail, events, &mut findings).await?;
    Ok(findings)
}

/// The same day through one stage after another, each a process of its own on one directory.
async fn stages(contrail: &Path, events: u64, findings: &mut Findings) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    for (roles, readers) in [("ingest", &[][..]), ("sync", &["router", "keeper"][..]), ("archive", &["archiver"][..])] {
        let server = Server::on(contrail, &data, &["--roles", roles], None).await?;
        let began = Instant::now();
        if roles == "ingest" {
            let (day, requests) = Day::begin(3, events, BATCH);
            send(&server.address, requests, 8, Pace::Closed).await?;
            day.tally()?;
        }
        books::settle(&server, readers).await?;
        let usage = server.usage()?;
        let figure =
            format!("{:.1} us/event, {:.0} events/s", usage.cpu.as_secs_f64() * 1e6 / events as f64, events as f64 / began.elapsed().as_secs_f64());
        findings.note(format!("stage `{roles}` alone: CPU"), figure);
        server.stop().await?;
    }
    Ok(())
}
