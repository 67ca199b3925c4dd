//! From an event to its subscriber and to the reports, under load.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use contrail::archive::report::{Answer, Rows};
use contrail::event::Clock;
use hdrhistogram::Histogram;

use crate::books;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::journeys::Day;
use crate::load::{Pace, ms, send};
use crate::probe::{self, Probe, Probed};
use crate::process::{INGEST_KEY, READ_TOKEN, Server};

const BATCH: usize = 20;

/// How often a report is asked for: more often, that would be the load. So much later than it is there, at most, an event is found in it.
const REPORT_POLL: Duration = Duration::from_millis(100);

/// What is asked of it, in milliseconds.
pub(crate) struct Limits {
    /// From an event to its subscriber, p99.
    pub subscriber_ms: f64,
    /// From an event to its report, the worst.
    pub report_ms: f64,
    /// The process's first time under load, which is told by itself.
    pub settle: Duration,
}

/// Latencies beside so many events a second.
pub(crate) async fn run(contrail: &Path, rate: f64, seconds: u64) -> anyhow::Result<Findings> {
    let mut findings = Findings::new(format!("latency beside {rate:.0} events/s for {seconds} s"));
    measure(contrail, &[], (rate, seconds), &Limits { subscriber_ms: 50.0, report_ms: 2_000.0, settle: Duration::ZERO }, &mut findings).await?;
    Ok(findings)
}

/// The same with settings from the environment.
pub(crate) async fn measure(
    contrail: &Path,
    settings: &[(&str, String)],
    (rate, seconds): (f64, u64),
    limits: &Limits,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let server = Server::start_with(contrail, &[], settings, None).await?;
    let all = limits.settle + Duration::from_secs(seconds);
    let (day, requests) = Day::begin(5, (rate * all.as_secs_f64()) as u64, BATCH);
    let lasts = Duration::from_secs(seconds.saturating_sub(3).max(5));
    let probe = |lasts| Probe { objects: 50, rate: 2.0, lasts };
    let probes = async {
        let start = if limits.settle.is_zero() { None } else { Some(probe::run(&server.address, "start", probe(limits.settle)).await?) };
        let settled = tokio::try_join!(probe::run(&server.address, "latency", probe(lasts)), reports(&server.address, lasts))?;
        anyhow::Ok((start, settled))
    };
    let (sent, (start, (probed, reported))) = tokio::try_join!(send(&server.address, requests, 16, Pace::Open(rate / BATCH as f64)), probes)?;
    findings.note("answers", format!("p50 {:.2} ms, p99 {:.2} ms", ms(&sent.latency, 0.5), ms(&sent.latency, 0.99)));
    findings.note(
        "event to subscriber",
        format!("p50 {:.1} ms, p90 {:.1} ms, max {:.1} ms", ms(&probed.latency, 0.5), ms(&probed.latency, 0.9), ms(&probed.latency, 1.0)),
    );
    findings.at_most(format!("event to subscriber, p99 of {}", probed.latency.len()), ms(&probed.latency, 0.99), limits.subscriber_ms, "ms");
    findings.note("the same by tenths of the time, in ms", course(&probed));
    if let Some(start) = &start {
        findings.note(format!("event to subscriber in the first {} s of the process, by tenths, in ms", limits.settle.as_secs()), course(start));
    }
    findings.note("event to report", format!("p50 {:.0} ms", ms(&reported, 0.5)));
    findings.at_most(format!("event to report, the worst of {}", reported.len()), ms(&reported, 1.0), limits.report_ms, "ms");
    let tally = day.tally()?;
    let probes = probed.events + start.map_or(0, |start| start.events) + reported.len();
    books::close(contrail, &server, &sent, &tally, probes, findings).await?;
    server.stop().await
}

fn course(probed: &Probed) -> String {
    let tenths = |quantile| probed.course.iter().map(|tenth| format!("{:.0}", ms(tenth, quantile))).collect::<Vec<_>>().join(", ");
    format!("p50 {}; p99 {}", tenths(0.5), tenths(0.99))
}

/// Sends an event into a quarter of an hour that has no other, asks for that quarter until it is there, and begins again with the next.
async fn reports(address: &str, lasts: Duration) -> anyhow::Result<Histogram<u64>> {
    let began = Instant::now();
    let mut waited = Histogram::<u64>::new(3)?;
    let mut connection = Connection::open(address).await?;
    let mut cell = Clock::system().now().plus_seconds(-20 * 86_400).floor_to_seconds(900);
    while began.elapsed() < lasts {
        let end = cell.plus_seconds(900);
        let body = format!(r#"{{"type":"product_searched","occurred_at":"{cell}","search":{{"query":"probe","results":1}}}}"#);
        let sent = Instant::now();
        let answer = connection.call(&http::post("/v1/events", INGEST_KEY, body.as_bytes())).await?;
        ensure!(answer.status == 200, "a search was refused: {}", answer.status);
        loop {
            let answer = connection.call(&http::get(&format!("/v1/reports/top-searches?from={cell}&to={end}"), READ_TOKEN)).await?;
            ensure!(answer.status == 200, "a report was refused: {}", String::from_utf8_lossy(&answer.body));
            let Rows::Searches(rows) = Answer::from_json(&answer.body)?.rows else { return Err(anyhow::Error::msg("another report's rows")) };
            if rows.iter().any(|row| row.searches == 1) {
                break;
            }
            ensure!(sent.elapsed() < Duration::from_secs(30), "an event did not reach its report within 30 s");
            tokio::time::sleep(REPORT_POLL).await;
        }
        waited.record(sent.elapsed().as_micros() as u64).context("a wait beyond the histogram")?;
        cell = end;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(waited)
}
