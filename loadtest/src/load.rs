//! Sends prepared requests: open loop, where every request has an intended time and its latency counts from it, or closed loop, as
//! fast as answers come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;

use crate::http::Connection;
use crate::journeys::Pool;

/// One request and how many events it carries.
pub(crate) struct Prepared {
    /// The whole request.
    pub bytes: Vec<u8>,
    /// Events in it.
    pub events: u64,
}

/// What came of a load.
#[derive(Clone)]
pub(crate) struct Outcome {
    /// Requests answered 2xx.
    pub requests: u64,
    /// Events in them.
    pub events: u64,
    /// Answers of the server: accepted events.
    pub accepted: u64,
    /// Answers of the server: repeats it recognised.
    pub duplicates: u64,
    /// Answers of the server: refused events.
    pub rejected: u64,
    /// Requests sent again after 429 or 503.
    pub repeated: u64,
    /// From the first send to the last answer.
    pub took: Duration,
    /// Microseconds from the intended send time to the answer.
    pub latency: Histogram<u64>,
}

/// How fast to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many requests a second, whatever the answers do.
    Open(f64),
    /// As fast as answers come.
    Closed,
}

/// An answer of `POST /v1/events`, as far as the books need it.
#[derive(serde::Deserialize, Default)]
struct Answer {
    #[serde(default)]
    accepted: u64,
    #[serde(default)]
    duplicates: u64,
    #[serde(default)]
    conflicts: u64,
    #[serde(default)]
    rejected: Vec<serde::de::IgnoredAny>,
}

/// Sends all that `source` gives over so many connections. A 429 or 503 is sent again after a pause, as a well-behaved sender does.
pub(crate) async fn send(address: &str, source: Receiver<Prepared>, connections: usize, pace: Pace) -> anyhow::Result<Outcome> {
    let source = Arc::new(Mutex::new(source));
    let number = Arc::new(AtomicUsize::new(0));
    let repeated = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (source, number, repeated, address) = (Arc::clone(&source), Arc::clone(&number), Arc::clone(&repeated), address.to_owned());
        workers.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            let mut sums = [0u64; 5];
            let mut latency = Histogram::<u64>::new(3)?;
            loop {
                let (request, index) = {
                    let mut source = source.lock().await;
                    let Some(request) = source.recv().await else { break };
                    (request, number.fetch_add(1, Ordering::Relaxed))
                };
                let intended = match pace {
                    Pace::Open(rate) => start + Duration::from_secs_f64(index as f64 / rate),
                    Pace::Closed => Instant::now(),
                };
                tokio::time::sleep_until(intended.into()).await;
                let answer = loop {
                    let answer = connection.call(&request.bytes).await?;
                    if !matches!(answer.status, 429 | 503) {
                        break answer;
                    }
                    repeated.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                };
                anyhow::ensure!(answer.status < 300, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
                latency.record(intended.elapsed().as_micros().max(1) as u64)?;
                let told: Answer = if answer.body.is_empty() { Answer::default() } else { serde_json::from_slice(&answer.body)? };
                for (sum, more) in
                    sums.iter_mut().zip([1, request.events, told.accepted, told.duplicates + told.conflicts, told.rejected.len() as u64])
                {
                    *sum += more;
                }
            }
            anyhow::Ok((sums, latency))
        });
    }
    let mut sums = [0u64; 5];
    let mut latency = Histogram::<u64>::new(3)?;
    while let Some(worker) = workers.join_next().await {
        let (more, histogram) = worker.context("a sender panicked")??;
        sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        latency.add(&histogram)?;
    }
    let [requests, events, accepted, duplicates, rejected] = sums;
    let repeated = repeated.load(Ordering::Relaxed);
    Ok(Outcome { requests, events, accepted, duplicates, rejected, repeated, took: start.elapsed(), latency })
}

/// Milliseconds of a quantile.
pub(crate) fn ms(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1000.0
}

/// Sends a pool's events in requests of `batch` as fast as answers come, for so long. Gives how many events were answered 2xx, and the latency.
pub(crate) async fn flood(
    address: &str,
    pool: &Arc<Pool>,
    batch: usize,
    connections: usize,
    lasts: Duration,
) -> anyhow::Result<(u64, Histogram<u64>)> {
    let (pool, mut body) = (Arc::clone(pool), Vec::new());
    let (requests, latency) = hammer(address, connections, lasts, move || pool.request(batch, &mut body)).await?;
    Ok((requests * batch as u64, latency))
}

/// Sends what `next` makes over so many connections, each with a `next` of its own, as fast as answers come, for so long. Gives how many requests were answered
/// 2xx, and the latency.
pub(crate) async fn hammer(
    address: &str,
    connections: usize,
    lasts: Duration,
    next: impl FnMut() -> Vec<u8> + Clone + Send + 'static,
) -> anyhow::Result<(u64, Histogram<u64>)> {
    let until = Instant::now() + lasts;
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (mut next, address) = (next.clone(), address.to_owned());
        workers.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            let (mut requests, mut latency) = (0, Histogram::<u64>::new(3)?);
            while Instant::now() < until {
                let request = next();
                let sent = Instant::now();
                let answer = connection.call(&request).await?;
                anyhow::ensure!(answer.status < 300, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
                latency.record(sent.elapsed().as_micros().max(1) as u64)?;
                requests += 1;
            }
            anyhow::Ok((requests, latency))
        });
    }
    let (mut requests, mut latency) = (0, Histogram::<u64>::new(3)?);
    while let Some(worker) = workers.join_next().await {
        let (more, histogram) = worker.context("a sender panicked")??;
        requests += more;
        latency.add(&histogram)?;
    }
    Ok((requests, latency))
}
