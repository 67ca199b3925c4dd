//! Latency from an event's intended send time to the subscribers of what it changes: products of our own, each changed well within its write
//! budget, each with one subscriber that waits for exactly that change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::http::{self, Connection};
use crate::process::{INGEST_KEY, READ_TOKEN};
use crate::watch::Watch;

/// How to probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// Products.
    pub objects: usize,
    /// Events a second on each.
    pub rate: f64,
    /// How long.
    pub lasts: Duration,
}

/// What came of it.
pub(crate) struct Probed {
    /// Microseconds from the intended send time to the subscriber.
    pub latency: Histogram<u64>,
    /// The same by when it was to be sent: one for each tenth of the time.
    pub course: Vec<Histogram<u64>>,
    /// Events sent, those that made the objects included.
    pub events: u64,
}

/// Runs until every probe's change was seen. Each round of probes has its own `name`.
pub(crate) async fn run(address: &str, name: &str, probe: Probe) -> anyhow::Result<Probed> {
    let mut probes = JoinSet::new();
    let start = Instant::now() + Duration::from_secs(1);
    for index in 0..probe.objects {
        let (address, product) = (address.to_owned(), format!("probe-{name}-{index}"));
        // Spread over the period, so that probes measure the server and not each other.
        let first = start + Duration::from_secs_f64(index as f64 / probe.objects.max(1) as f64 / probe.rate);
        probes.spawn(async move { one(&address, &product, first, probe).await });
    }
    let (mut course, mut events) = (tenths()?, 0);
    while let Some(done) = probes.join_next().await {
        let done = done.context("a probe panicked")??;
        for (all, one) in course.iter_mut().zip(&done.course) {
            all.add(one)?;
        }
        events += done.events;
    }
    Probed::new(course, events)
}

impl Probed {
    fn new(course: Vec<Histogram<u64>>, events: u64) -> anyhow::Result<Self> {
        let mut latency = Histogram::new(3)?;
        for tenth in &course {
            latency.add(tenth)?;
        }
        Ok(Self { latency, course, events })
    }
}

fn tenths() -> anyhow::Result<Vec<Histogram<u64>>> {
    (0..10).map(|_| Ok(Histogram::new(3)?)).collect()
}

/// The request that views a product once.
pub(crate) fn view(product: &str) -> Vec<u8> {
    http::post("/v1/events", INGEST_KEY, format!(r#"{{"type":"product_viewed","product":{{"id":"{product}","name":"Probe"}}}}"#).as_bytes())
}

/// Subscribes to an object as soon as it is there.
pub(crate) async fn subscribe(address: &str, object: &str) -> anyhow::Result<Watch> {
    let asked = Instant::now();
    loop {
        match Watch::open(address, object, READ_TOKEN).await {
            Ok(watch) => return Ok(watch),
            Err(error) if asked.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn one(address: &str, product: &str, first: Instant, probe: Probe) -> anyhow::Result<Probed> {
    let mut connection = Connection::open(address).await?;
    let request = view(product);
    anyhow::ensure!(connection.call(&request).await?.status == 200, "the first view of a probe was refused");
    let mut watch = subscribe(address, &format!("maps/product.{product}")).await?;
    let count = (probe.lasts.as_secs_f64() * probe.rate) as u64;
    let intended = move |number: u64| first + Duration::from_secs_f64(number as f64 / probe.rate);
    let waited = Arc::new(Mutex::new(tenths()?));
    let seen = Arc::clone(&waited);
    let mut reader = JoinSet::new();
    reader.spawn(async move {
        // The first view made the object; of the views counted in a message, all up to it were seen by it.
        let mut next = 0;
        while next < count {
            let message = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.context("a change was not seen within 30 s")??;
            let views = views(&message).unwrap_or(0);
            let mut seen = seen.lock().await;
            while next < count && next + 1 < views {
                let tenth = seen.get_mut((next * 10 / count) as usize).context("a tenth of the time")?;
                tenth.record(message.at.saturating_duration_since(intended(next)).as_micros().max(1) as u64)?;
                next += 1;
            }
        }
        anyhow::Ok(())
    });
    for number in 0..count {
        tokio::time::sleep_until(intended(number).into()).await;
        let answer = connection.call(&request).await?;
        anyhow::ensure!(answer.status == 200, "a probe was refused: {}", answer.status);
    }
    while let Some(read) = reader.join_next().await {
        read.context("a subscriber panicked")??;
    }
    let course = waited.lock().await.clone();
    Probed::new(course, count + 1)
}

/// The views that a message of a product tells.
pub(crate) fn views(message: &crate::watch::Message) -> Option<u64> {
    let data = &message.data;
    let activity = if message.event == "snapshot" { data.get("items")?.get("activity")?.get("data")? } else { data.get("data")? };
    activity.get("views")?.as_u64()
}
