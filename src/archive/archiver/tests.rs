//! The archiver over the embedded log and archive: the whole way of an event, restarts, what cannot be read, what cannot be written.

use std::sync::Mutex;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::*;
use crate::archive::embedded::Embedded;
use crate::archive::{Bots, EventRow, Label, LabelValue, Metric, QuarantineRow, Scan};
use crate::event::identity::{CheckoutView, Sale, StepCount};
use crate::event::ids::{events_partition, fingerprint};
use crate::event::{Channel, Event, Flags, Record, RecordKind, SiteRules};
use crate::eventlog::Append;

pub(crate) fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::parse("2026-11-20T10:00:00Z").unwrap().plus_seconds(seconds)
}

/// A record of a canonical event; `occurred_at` stands in the body.
pub(crate) fn record(event_id: &str, received_at: Timestamp, body: serde_json::Value) -> Record {
    let body = Bytes::from(serde_json::to_vec(&body).unwrap());
    let event = Event::from_body(&body).unwrap();
    let (key_kind, key) = event.partition_key(event_id);
    Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: site(),
        event_id: event_id.into(),
        fingerprint: fingerprint(&body),
        received_at,
        key_kind,
        key: key.to_owned(),
        flags: Flags::default(),
        channel: Channel::Server,
        body,
    }
}

pub(crate) fn append(record: &Record) -> Append {
    Append { partition: events_partition(&record.site, record.key_kind, &record.key), value: record.to_bytes() }
}

pub(crate) fn viewed(product: &str, customer: &str, at: Timestamp) -> serde_json::Value {
    serde_json::json!({"type": "product_viewed", "occurred_at": at, "customer": {"id": customer, "anonymous_id": format!("a-{customer}")},
        "product": {"id": product, "name": format!("The {product}")}})
}

/// A log and an archive in one directory.
struct World {
    dir: TempDir,
    log: Arc<dyn EventLog>,
    archive: Arc<dyn Archive>,
    progress: Arc<Progress>,
    settings: Settings,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = crate::eventlog::open("embedded", &dir.path().join("log"), crate::eventlog::embedded::Settings::default(), Clock::system())
            .await
            .unwrap();
        let archive = Arc::new(Embedded::open(dir.path()).unwrap());
        let settings = Settings { linger: Duration::from_millis(2), top_every: Duration::from_millis(1), ..Settings::default() };
        Self { dir, log, archive, progress: Arc::default(), settings }
    }

    fn archiver(&self) -> Archiver {
        Archiver {
            log: Arc::clone(&self.log),
            archive: Arc::clone(&self.archive),
            rules: Arc::new(|_| Arc::new(SiteRules::default())),
            clock: Clock::system(),
            objects_of: Arc::new(|touching| vec![(crate::event::ObjectKind::Map, format!("test.{}", touching.judged.record.event_id))]),
            progress: Arc::clone(&self.progress),
            settings: self.settings.clone(),
        }
    }

    async fn append(&self, records: &[Record]) {
        self.log.append(Topic::Events, records.iter().map(append).collect()).await.unwrap();
    }

    /// Whether the archive holds all that the log does.
    async fn is_caught_up(&self) -> bool {
        let bounds = self.log.bounds(Topic::Events).await.unwrap();
        let cursors = self.archive.cursors().await.unwrap();
        bounds.iter().zip(cursors).all(|(bounds, cursor)| bounds.next == cursor.next)
    }

    /// Runs an archiver until the archive holds all that the log does.
    async fn catch_up(&self) {
        let stop = CancellationToken::new();
        let running = self.archiver().run(stop.clone());
        let watching = async {
            while !self.is_caught_up().await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, watching);
        ended.unwrap();
    }
}

#[tokio::test]
async fn the_whole_way_of_an_event() {
    let world = World::new().await;
    let order = serde_json::json!({"type": "order_completed", "occurred_at": at(20), "customer": {"id": "c1"},
        "order": {"id": "o1", "items": [{"product_id": "p1", "quantity": 2, "price": {"amount_minor": 500, "currency": "EUR"}}]}});
    world
        .append(&[
            record("e1", at(1), viewed("p1", "c1", at(0))),
            record("e2", at(2), viewed("p1", "c2", at(1))),
            record("e1", at(3), viewed("p1", "c1", at(0))),
            record("e3", at(21), order),
        ])
        .await;
    world.catch_up().await;
    let archive = &world.archive;
    let (from, to) = (at(0), at(900));
    let views = archive.totals(&site(), Metric::Views, from, to, Bots::Exclude).await.unwrap();
    assert_eq!(views.len(), 1);
    assert_eq!((views[0].0.as_str(), views[0].1.counts, views[0].1.people.estimate()), ("p1", [2, 0], 2));
    let sold = archive.totals(&site(), Metric::Sold, from, to, Bots::Exclude).await.unwrap();
    assert_eq!((sold[0].1.counts, sold[0].1.revenue.values().copied().collect::<Vec<_>>()), ([2, 1], vec![1_000]));
    let rows = archive.scan(&site(), &Scan { limit: 10, ..Scan::default() }).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.event_id.as_str()).collect::<Vec<_>>(), ["e1", "e2", "e3"]);
    assert_eq!(rows[0].objects, [(crate::event::ObjectKind::Map, "test.e1".to_owned())]);
    let books = archive.books(&site(), at(0), at(3_600)).await.unwrap();
    assert_eq!((books[0].1.appended, books[0].1.archived, books[0].1.duplicate), (4, 3, 1));
    let names = archive.labels(&site(), Label::ProductName, &["p1".into()]).await.unwrap();
    assert_eq!(names[0].1.value, "The p1");
    assert!(world.progress.is_caught_up());
    assert_eq!(world.log.committed(Topic::Events, GROUP).await.unwrap().iter().sum::<u64>(), 4);
    drop(world.dir);
}

/// A stream with everything in it: browsing, searches, orders reported several times, refunds, checkouts, crawlers, repeats, conflicts, late events,
/// refusals, quarantined events and bytes that are no record.
fn stream(rng: &mut StdRng, length: usize) -> Vec<Append> {
    let mut all: Vec<Append> = Vec::new();
    let mut events: Vec<Record> = Vec::new();
    for n in 0..length {
        let received_at = at(n as i64 * 40);
        let occurred_at = received_at.plus_seconds(-rng.random_range(0..200_000));
        let customer = serde_json::json!({"id": format!("c{}", rng.random_range(0..9)), "anonymous_id": "a1"});
        let product = format!("p{}", rng.random_range(0..5));
        let money = |n: i64| serde_json::json!({"amount_minor": n, "currency": "EUR"});
        let order = format!("o{}", rng.random_range(0..12));
        let checkout = format!("ch{}", rng.random_range(0..12));
        let mut body = match rng.random_range(0..8) {
            0 | 1 => serde_json::json!({"type": "product_viewed", "product": {"id": product, "name": format!("Name {n}")}}),
            2 => serde_json::json!({"type": "page_viewed", "page": {"url": format!("https://shop.example/{product}")}}),
            3 => {
                serde_json::json!({"type": "product_searched", "search": {"query": format!(" Mug{} ", rng.random_range(0..4)), "results": rng.random_range(0..3)}})
            }
            4 => serde_json::json!({"type": "order_completed", "checkout": {"id": checkout}, "order": {"id": order, "items": [
                {"product_id": product, "quantity": 5, "price": money(rng.random_range(1..5) * 100)},
                {"product_id": "p9", "quantity": 100, "price": money(200)}]}}),
            5 => {
                serde_json::json!({"type": "order_refunded", "refund": {"id": format!("r{}", rng.random_range(0..3))}, "order": {"id": order, "items": [
                {"product_id": "p9", "quantity": rng.random_range(1..4), "price": money(200)}]}})
            }
            6 => serde_json::json!({"type": "checkout_step", "checkout": {"id": checkout, "value": money(700),
                "step": (["contact", "payment"][rng.random_range(0..2)]), "status": (["entered", "completed"][rng.random_range(0..2)])}}),
            _ => serde_json::json!({"type": "newsletter_opened"}),
        };
        body["occurred_at"] = serde_json::json!(occurred_at);
        body["customer"] = customer;
        let mut new = record(&format!("e{n}"), received_at, body);
        new.channel = [Channel::Pixel, Channel::Server, Channel::Webhook][rng.random_range(0..3)];
        if rng.random_bool(0.2) {
            new.flags.set(Flags::CRAWLER);
        }
        match rng.random_range(0..20) {
            // A repeat.
            0 | 1 if !events.is_empty() => new = Record { received_at, ..events[rng.random_range(0..events.len())].clone() },
            // Another content under a known id.
            2 if !events.is_empty() => new.event_id = events[rng.random_range(0..events.len())].event_id.clone(),
            3 => new = Record { kind: RecordKind::Refusals, body: Bytes::from_static(b"{\"by_code\":{\"bad\":3}}"), ..new },
            4 => {
                let body = br#"{"code":"bad","message":"no","pointer":"/x","event":{"type":5}}"#;
                new = Record { kind: RecordKind::Quarantine, body: Bytes::from_static(body), ..new };
            }
            5 => {
                all.push(Append { partition: rng.random_range(0..16), value: Bytes::from_static(b"\x01not a record") });
                continue;
            }
            _ => {}
        }
        let event = (new.kind == RecordKind::Event).then(|| Event::from_body(&new.body).unwrap());
        if let Some(event) = &event {
            let (key_kind, key) = event.partition_key(&new.event_id);
            (new.key_kind, new.key) = (key_kind, key.to_owned());
            events.push(new.clone());
        }
        all.push(append(&new));
        if let Some((Some(party), true)) = event.as_ref().map(|event| (event.checkout_party(), event.kind == "order_completed")) {
            let (key_kind, key) = (party.0, party.1.to_owned());
            let event_id = crate::event::ids::completion_id(&new.event_id);
            all.push(append(&Record { kind: RecordKind::Completion, event_id, key_kind, key, ..new }));
        }
    }
    all
}

/// All records of the log, each partition's in offset order.
async fn all_records(log: &dyn EventLog) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (partition, bounds) in (0..PARTITIONS).zip(log.bounds(Topic::Events).await.unwrap()) {
        let mut from = bounds.start;
        while from < bounds.next {
            let records = log.read(Topic::Events, partition, from, 1 << 20).await.unwrap();
            from = records.last().unwrap().offset + 1;
            all.extend(records.into_iter().map(|record| record.value.to_vec()));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_interrupts_it_the_archive_equals_a_recount() {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new().await;
        let stream = stream(&mut rng, 700);
        let garbage = stream.iter().filter(|append| append.value.ends_with(b"not a record")).count() as u64;
        let mut rest = stream.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.random_range(1..=rest.len().min(150)));
            rest = later;
            world.log.append(Topic::Events, now.to_vec()).await.unwrap();
            world.settings.max_events = rng.random_range(1..80);
            let failures = Flaky { inner: Arc::clone(&world.archive), calls: Mutex::new(StdRng::seed_from_u64(rng.random())) };
            let archiver = Archiver { archive: Arc::new(failures), ..world.archiver() };
            let stop = CancellationToken::new();
            let patience = Duration::from_millis(rng.random_range(0..25));
            if rng.random_bool(0.5) {
                // Stopped in good order.
                let (ended, ()) = tokio::join!(archiver.run(stop.clone()), async {
                    tokio::time::sleep(patience).await;
                    stop.cancel();
                });
                // Its last write may have failed: the next one makes it good.
                drop(ended);
            } else {
                // Dropped wherever it is.
                drop(tokio::time::timeout(patience, archiver.run(stop)).await);
            }
            if rng.random_bool(0.3) {
                world.archive.close().await.unwrap();
                world.archive = Arc::new(Embedded::open(world.dir.path()).unwrap());
            }
        }
        world.catch_up().await;
        let expected = recount::recount(&all_records(world.log.as_ref()).await);
        assert!(expected.totals.len() > 20 && expected.books.iter().all(|n| *n > 0), "the stream has everything in it: {expected:?}");
        assert_eq!(recount::as_answered(world.archive.as_ref(), &site()).await, expected, "seed {seed}");
        let cursors = world.archive.cursors().await.unwrap();
        assert_eq!(cursors.iter().map(|cursor| cursor.next).sum::<u64>(), stream.len() as u64);
        assert!(garbage > 0);
    }
}

/// Fails now and then, before or after doing what it was asked: the caller cannot tell which.
struct Flaky {
    inner: Arc<dyn Archive>,
    calls: Mutex<StdRng>,
}

impl Flaky {
    fn fails(&self) -> bool {
        self.calls.lock().unwrap().random_bool(0.1)
    }

    fn maybe<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if self.fails() { Err(Error::Store("no answer".into())) } else { answer }
    }
}

#[async_trait::async_trait]
impl Archive for Flaky {
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error> {
        self.maybe(self.inner.cursor(partition).await)
    }
    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        self.maybe(self.inner.identities(partition, keys).await)
    }
    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        self.maybe(self.inner.cells(partition, keys).await)
    }
    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        self.maybe(self.inner.books_of(partition, keys).await)
    }
    async fn write(&self, mut batch: WriteBatch) -> Result<(), Error> {
        if self.fails() {
            // As far as the event rows, or some of them.
            batch.events.truncate(batch.events.len() / 2 + 1);
            self.inner.write(WriteBatch { events: batch.events, ..WriteBatch::default() }).await?;
            return Err(Error::Store("cut short".into()));
        }
        self.maybe(self.inner.write(batch).await)
    }
    async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        self.inner.cursors().await
    }
    async fn durable(&self) -> Result<Vec<u64>, Error> {
        self.inner.durable().await
    }
    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error> {
        self.inner.totals(site, metric, from, to, bots).await
    }
    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        self.inner.sales(site, from, to).await
    }
    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        self.inner.steps(site, from, to).await
    }
    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        self.inner.checkouts(site, from, to, after, limit).await
    }
    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        self.inner.labels(site, label, dims).await
    }
    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        self.inner.scan(site, scan).await
    }
    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        self.inner.linked(site, person).await
    }
    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        self.inner.books(site, from, to).await
    }
    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        self.inner.quarantine(site, after, limit).await
    }
    async fn sites(&self) -> Result<Vec<SiteId>, Error> {
        self.inner.sites().await
    }
    async fn days(&self) -> Result<Vec<i32>, Error> {
        self.inner.days().await
    }
    async fn retain(&self, before: Timestamp) -> Result<(), Error> {
        self.inner.retain(before).await
    }
    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}
