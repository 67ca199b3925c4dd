//! The run that ends `tests/run`: a minute of everything, with the books closed at its end.

use std::path::Path;
use std::time::Duration;

use crate::books;
use crate::findings::Findings;
use crate::journeys::Day;
use crate::load::{Pace, ms, send};
use crate::probe::{self, Probe};
use crate::process::Server;

const BATCH: usize = 100;
const RATE: f64 = 1_500.0;

/// Sends for two thirds of the time; catching up, audit, export and reports take the rest.
pub(crate) async fn run(contrail: &Path, seconds: u64) -> anyhow::Result<Findings> {
    let mut findings = Findings::new(format!("smoke: {RATE:.0} events/s beside probes, then the books"));
    let lasts = Duration::from_secs((seconds * 2 / 3).max(5));
    let events = (RATE * lasts.as_secs_f64()) as u64;
    let server = Server::start(contrail, &[], None).await?;
    let (day, requests) = Day::begin(11, events, BATCH);
    let probe = Probe { objects: 10, rate: 2.0, lasts: lasts - Duration::from_secs(2) };
    let (sent, probed) =
        tokio::try_join!(send(&server.address, requests, 16, Pace::Open(RATE / BATCH as f64)), probe::run(&server.address, "smoke", probe))?;
    findings.note("events sent", format!("{} in {:.1} s", sent.events, sent.took.as_secs_f64()));
    findings.note("answers", format!("p50 {:.2} ms, p99 {:.2} ms", ms(&sent.latency, 0.5), ms(&sent.latency, 0.99)));
    findings.note(
        "event to subscriber",
        format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(&probed.latency, 0.5), ms(&probed.latency, 0.99), ms(&probed.latency, 1.0)),
    );
    let (from, to) = (day.settings.start.to_string(), day.end().to_string());
    let tally = day.tally()?;
    books::close(contrail, &server, &sent, &tally, probed.events, &mut findings).await?;
    books::reports(&server, &tally, &from, &to, &mut findings).await?;
    findings.note("resident memory", format!("{:.0} MB", server.usage()?.resident as f64 / 1e6));
    server.stop().await?;
    Ok(findings)
}
