//! A steady rate for minutes: lag stays bounded, memory stays flat.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::books;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::journeys::Day;
use crate::load::{Pace, ms, send};
use crate::process::Server;

const BATCH: usize = 100;
const EVERY: Duration = Duration::from_secs(5);
const READERS: [&str; 3] = ["router", "keeper", "archiver"];

/// One look at the server.
struct Sample {
    at: Duration,
    /// Records behind, in the readers' order.
    lag: [f64; 3],
    resident: f64,
}

/// Sends so many events a second for so long.
pub(crate) async fn run(contrail: &Path, rate: f64, seconds: u64) -> anyhow::Result<Findings> {
    let mut findings = Findings::new(format!("sustained: {rate:.0} events/s for {seconds} s"));
    let server = Server::start(contrail, &[], None).await?;
    let (day, requests) = Day::begin(9, (rate * seconds as f64) as u64, BATCH);
    let (mut samples, began, mut ticks) = (Vec::new(), Instant::now(), interval(EVERY));
    let sent = {
        let sending = send(&server.address, requests, 32, Pace::Open(rate / BATCH as f64));
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => break sent?,
                _ = ticks.tick() => samples.push(sample(&server, began).await?),
            }
        }
    };
    let cpu = server.usage()?.cpu.as_secs_f64() * 1e6 / sent.events.max(1) as f64;
    tell(&samples, rate, &mut findings);
    findings.at_least("events a second, answered", sent.events as f64 / sent.took.as_secs_f64(), rate * 0.99, "");
    findings.note(
        "answers",
        format!("p50 {:.1} ms, p99 {:.1} ms, max {:.0} ms", ms(&sent.latency, 0.5), ms(&sent.latency, 0.99), ms(&sent.latency, 1.0)),
    );
    findings.note("CPU", format!("{cpu:.1} us/event"));
    let tally = day.tally()?;
    books::close(contrail, &server, &sent, &tally, 0, &mut findings).await?;
    server.stop().await?;
    Ok(findings)
}

async fn sample(server: &Server, began: Instant) -> anyhow::Result<Sample> {
    let answer = Connection::open(&server.address).await?.call(&http::get("/metrics", "")).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let gauge = |reader: &str| {
        let name = format!("contrail_{reader}_lag_records ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok()).unwrap_or(0.0)
    };
    Ok(Sample { at: began.elapsed(), lag: READERS.map(gauge), resident: server.usage()?.resident as f64 / 1e6 })
}

/// Lag is bounded where no reader is ever ten seconds of events behind and none is further behind at the end than it was midway, by more than two
/// seconds' worth; memory is flat where the last quarter is at most 15 % above the second.
fn tell(samples: &[Sample], rate: f64, findings: &mut Findings) {
    let quarter = samples.len() / 4;
    let second = samples.get(quarter..quarter * 2).unwrap_or_default();
    let last = samples.get(samples.len() - quarter..).unwrap_or_default();
    let greatest = |part: &[Sample], of: &dyn Fn(&Sample) -> f64| part.iter().map(of).fold(0.0, f64::max);
    for (place, reader) in READERS.iter().enumerate() {
        let lag = |sample: &Sample| sample.lag.get(place).copied().unwrap_or(0.0);
        let scale = if *reader == "keeper" { 3.0 } else { 1.0 };
        findings.at_most(format!("{reader}: greatest lag"), greatest(samples, &lag), rate * 10.0 * scale, "records");
        findings.at_most(
            format!("{reader}: greatest lag, last quarter over second"),
            greatest(last, &lag) - greatest(second, &lag),
            rate * 2.0 * scale,
            "records",
        );
    }
    let resident = |sample: &Sample| sample.resident;
    let (early, late) = (greatest(second, &resident), greatest(last, &resident));
    findings.note("resident memory: second quarter, last quarter", format!("{early:.0} MB, {late:.0} MB"));
    findings.at_most("resident memory: last quarter over second", late / early.max(1.0), 1.15, "x");
    let step = (samples.len() / 10).max(1);
    let course: Vec<String> =
        samples.iter().step_by(step).map(|s| format!("{:.0} s: {:?} {:.0} MB", s.at.as_secs_f64(), s.lag, s.resident)).collect();
    findings.note("course: [router, keeper, archiver] lag, memory", course.join("; "));
}
