//! One product and one checkout step changed far beyond their write budget: writes stay within it, counts stay exact, others do not feel it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;

use crate::books;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::load::{Outcome, Pace, Prepared, ms, send};
use crate::probe::{self, Probe, Probed};
use crate::process::{INGEST_KEY, READ_TOKEN, Server};

const BATCH: u64 = 100;
/// Writes that an object may take at once, and a second.
const BURST: f64 = 200.0;
const REFILL: f64 = 20.0;

/// The others: 500 events a second.
fn others(seconds: u64) -> Probe {
    Probe { objects: 100, rate: 5.0, lasts: Duration::from_secs(seconds) }
}

/// So many changes a second on each of both objects.
pub(crate) async fn run(contrail: &Path, rate: u64, seconds: u64) -> anyhow::Result<Findings> {
    let mut findings = Findings::new(format!("hot: {rate} changes/s on one product and on one checkout step for {seconds} s beside 500/s of others"));
    let quiet = Server::start(contrail, &[], None).await?;
    let without = probe::run(&quiet.address, "quiet", others(seconds)).await?;
    quiet.stop().await?;

    let server = Server::start(contrail, &[], None).await?;
    let mut connection = Connection::open(&server.address).await?;
    for number in [u64::MAX, u64::MAX - 1] {
        let first = event(number);
        ensure!(connection.call(&http::post("/v1/events", INGEST_KEY, first.as_bytes())).await?.status == 200, "a first event was refused");
    }
    let done = Arc::new(Notify::new());
    let mut watching = JoinSet::new();
    for object in ["maps/product.hot", "documents/checkout.hot"] {
        let watch = probe::subscribe(&server.address, object).await?;
        let done = Arc::clone(&done);
        watching.spawn(async move { (object, writes(watch, &done).await) });
    }
    let total = 2 * rate * seconds;
    let sending = send(&server.address, requests(total), 8, Pace::Open(2.0 * rate as f64 / BATCH as f64));
    let (sent, with) = tokio::try_join!(sending, probe::run(&server.address, "hot", others(seconds)))?;
    books::settle(&server, &books::ALL).await?;
    done.notify_waiters();
    while let Some(watched) = watching.join_next().await {
        let (object, times) = watched.context("a watcher panicked")?;
        let times = times?;
        findings.note(format!("{object}: writes seen"), times.len().to_string());
        findings.at_most(format!("{object}: most writes over the budget in any span"), over_budget(&times), 0.0, "writes");
    }
    counts(&mut connection, total, &sent, &mut findings).await?;
    compare(&with, &without, &mut findings);
    books::audit(contrail, &server, &mut findings)?;
    findings.exactly("archived rows", books::exported(contrail, &server)?, total + 2 + with.events);
    server.stop().await?;
    Ok(findings)
}

/// Views of the product and entries into the step, in turn; every entry is of its own checkout.
fn event(number: u64) -> String {
    if number.is_multiple_of(2) {
        format!(r#"{{"event_id":"hot-{number}","type":"product_viewed","product":{{"id":"hot","name":"Hot"}}}}"#)
    } else {
        format!(r#"{{"event_id":"hot-{number}","type":"checkout_step","checkout":{{"id":"c{number}","step":"hot","status":"entered"}}}}"#)
    }
}

fn requests(total: u64) -> Receiver<Prepared> {
    let (sender, receiver) = channel(64);
    std::thread::spawn(move || {
        for first in (0..total).step_by(BATCH as usize) {
            let events: Vec<String> = (first..(first + BATCH).min(total)).map(event).collect();
            let body = format!("[{}]", events.join(","));
            let request = Prepared { bytes: http::post("/v1/events", INGEST_KEY, body.as_bytes()), events: events.len() as u64 };
            if sender.blocking_send(request).is_err() {
                return;
            }
        }
    });
    receiver
}

/// When each write was seen, until told that all is done. Items of one write share its id, which only its last message carries.
async fn writes(mut watch: crate::watch::Watch, done: &Notify) -> anyhow::Result<Vec<Instant>> {
    let mut times = Vec::new();
    loop {
        tokio::select! {
            message = watch.next() => {
                let message = message?;
                if message.event != "snapshot" && message.id.is_some() {
                    times.push(message.at);
                }
            }
            () = done.notified() => return Ok(times),
        }
    }
}

/// How far the writes of the fullest span pass the budget; negative where none does. A token bucket finds it in one pass; a write more is granted for
/// the time a message takes to get here.
fn over_budget(times: &[Instant]) -> f64 {
    let (mut level, mut worst, mut last) = (0.0f64, f64::NEG_INFINITY, None);
    for at in times {
        let since = last.map_or(0.0, |last: Instant| at.duration_since(last).as_secs_f64());
        level = (level - since * REFILL).max(0.0) + 1.0;
        worst = worst.max(level - BURST - 1.0);
        last = Some(*at);
    }
    worst
}

async fn counts(connection: &mut Connection, total: u64, sent: &Outcome, findings: &mut Findings) -> anyhow::Result<()> {
    findings.exactly("acknowledged", sent.accepted, total);
    let mut read = async |object: &str| -> anyhow::Result<Value> {
        let answer = connection.call(&http::get(&format!("/v1/live/{object}"), READ_TOKEN)).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    };
    // One event of either kind made the objects.
    let product = read("maps/product.hot").await?;
    let views = product.get("items").and_then(|i| i.get("activity")?.get("data")?.get("views")?.as_u64());
    findings.exactly("views of the product", views.unwrap_or(0), total / 2 + 1);
    findings.exactly("event id of the product", product.get("event_id").and_then(Value::as_u64).unwrap_or(0), total / 2 + 1);
    let step = read("documents/checkout.hot").await?;
    findings.exactly("entries into the step", step.get("data").and_then(|d| d.get("entered")?.as_u64()).unwrap_or(0), total / 2 + 1);
    Ok(())
}

fn compare(with: &Probed, without: &Probed, findings: &mut Findings) {
    let spread = |probed: &Probed| [0.5, 0.9, 0.99].map(|quantile| format!("{:.1}", ms(&probed.latency, quantile))).join(", ");
    findings.note("others' p50, p90, p99 in ms without; with", format!("{}; {}", spread(without), spread(with)));
    let (with, without) = (ms(&with.latency, 0.99), ms(&without.latency, 0.99));
    findings.at_most("others' p99, with over without", with / without.max(0.001), 1.5, "x");
}
