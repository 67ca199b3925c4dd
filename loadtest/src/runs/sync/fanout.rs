//! One object's changes to all its subscribers: how long each takes from when it was to be sent to each of them, and whether each of them is told of each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::task::JoinSet;

use super::{Plan, text};
use crate::account::Account;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::load::ms;
use crate::process::{Server, open_files};
use crate::twilsock::Client;

/// Clients that connect at once.
const CONNECTING: usize = 100;
/// Longest wait for the next change.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Updated {
    document_data: Data,
}

/// The data of the object: how many changes it has had.
#[derive(Deserialize)]
struct Data {
    n: u64,
}

/// Changes a document at the rate asked for before all its subscribers.
pub(super) async fn measure(contrail: &Path, plan: &Plan, findings: &mut Findings) -> anyhow::Result<()> {
    open_files(plan.subscribers + 500)?;
    let server = Server::start(contrail, &[], None).await?;
    let Account { basic, token } = Account::of(contrail, &server)?;
    let mut connection = Connection::open(&server.address).await?;
    let made = connection.call(&http::sync("POST", "/Documents", &basic, &[("UniqueName", "board"), ("Data", r#"{"n":0}"#)])).await?;
    ensure!(made.status == 201, "the object was refused: {}", made.status);
    let sid = text(&made.body, "sid")?;
    let count = ((plan.changes * plan.seconds as f64) as u64).max(1);
    let connecting = (0..plan.subscribers).map(|_| async {
        let mut client = Client::open(&server.address, &token).await?;
        client.subscribe("document", &[(sid.clone(), None)]).await?;
        anyhow::Ok(client)
    });
    let mut connecting = futures::stream::iter(connecting).buffer_unordered(CONNECTING);
    let mut subscribers = JoinSet::new();
    while let Some(client) = connecting.next().await {
        subscribers.spawn(follow(client?, count));
    }
    drop(connecting);
    let before = server.usage()?.cpu;
    let start = Instant::now() + Duration::from_millis(500);
    let intended = |n: u64| start + Duration::from_secs_f64((n - 1) as f64 / plan.changes);
    let mut answers = Histogram::<u64>::new(3)?;
    for n in 1..=count {
        tokio::time::sleep_until(intended(n).into()).await;
        let answer = connection.call(&http::sync("POST", "/Documents/board", &basic, &[("Data", &format!(r#"{{"n":{n}}}"#))])).await?;
        ensure!(answer.status == 200, "a change was refused: {}", answer.status);
        answers.record(intended(n).elapsed().as_micros().max(1) as u64)?;
    }
    let (mut latency, mut missed, mut again) = (Histogram::<u64>::new(3)?, 0, 0);
    while let Some(seen) = subscribers.join_next().await {
        let seen = seen.context("a subscriber panicked")??;
        for (n, at) in &seen {
            latency.record(at.saturating_duration_since(intended(*n)).as_micros().max(1) as u64)?;
        }
        let told = seen.len() as u64;
        let mut distinct: Vec<u64> = seen.into_iter().map(|(n, _)| n).collect();
        distinct.sort_unstable();
        distinct.dedup();
        missed += count - distinct.len() as u64;
        again += told - distinct.len() as u64;
    }
    let cpu = (server.usage()?.cpu - before).as_secs_f64() * 1e6 / latency.len().max(1) as f64;
    findings.note(
        format!("fan-out: {count} changes at {:.0}/s to {} subscribers", plan.changes, plan.subscribers),
        format!("p50 {:.1} ms, p90 {:.1} ms, max {:.1} ms; {cpu:.1} us of CPU each", ms(&latency, 0.5), ms(&latency, 0.9), ms(&latency, 1.0)),
    );
    findings.note("fan-out: answers to the changes", format!("p50 {:.1} ms, p99 {:.1} ms", ms(&answers, 0.5), ms(&answers, 0.99)));
    findings.at_most("fan-out: change to subscriber, p99", ms(&latency, 0.99), 100.0, "ms");
    findings.exactly("fan-out: revisions missed by any subscriber", missed, 0);
    findings.exactly("fan-out: revisions told twice", again, 0);
    server.stop().await
}

/// Each change that a subscriber is told of, and when, up to the last one.
async fn follow(mut client: Client, last: u64) -> anyhow::Result<Vec<(u64, Instant)>> {
    let mut seen = Vec::with_capacity(last as usize);
    loop {
        let told = tokio::time::timeout(PATIENCE, client.next()).await.context("no change within 30 s")??;
        ensure!(told.event_type == "document_updated", "told of {}", told.event_type);
        let event: Updated = serde_json::from_str(told.event.as_deref().context("no event")?.get())?;
        seen.push((event.document_data.n, told.at));
        if event.document_data.n == last {
            return Ok(seen);
        }
    }
}
