//! The archiver over the embedded log and archive: the whole way of an event, restarts, what cannot be read, what cannot be written.

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::archive::embedded::Embedded;
use crate::archive::{Bots, Label, Metric, Scan};
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
