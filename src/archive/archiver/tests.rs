//! The archiver over the embedded log and archive: the whole way of an event, restarts, what cannot be read, what cannot be written.

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::flaky::Flaky;
use super::*;
use crate::archive::embedded::Embedded;
use crate::archive::{Bots, Label, Metric, Scan, WriteBatch};
use crate::event::ids::{events_partition, fingerprint};
use crate::event::{Channel, Event, Flags, Record, RecordKind, SiteId, SiteRules, Timestamp};
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
pub(super) struct World {
    dir: TempDir,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) archive: Arc<dyn Archive>,
    pub(super) progress: Arc<Progress>,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = crate::eventlog::open("embedded", &dir.path().join("log"), crate::eventlog::Settings::default(), Clock::system()).await.unwrap();
        let archive = Arc::new(Embedded::open(dir.path()).unwrap());
        let settings = Settings { linger: Duration::from_millis(2), top_every: Duration::from_millis(1), ..Settings::default() };
        Self { dir, log, archive, progress: Arc::default(), clock: Clock::fixed(at(0)), settings }
    }

    pub(super) fn archiver(&self) -> Archiver {
        Archiver {
            log: Arc::clone(&self.log),
            archive: Arc::clone(&self.archive),
            rules: Arc::new(|_| Arc::new(SiteRules::default())),
            clock: self.clock.clone(),
            objects_of: Arc::new(|touching| vec![(crate::event::ObjectKind::Map, format!("test.{}", touching.judged.record.event_id))]),
            progress: Arc::clone(&self.progress),
            settings: self.settings.clone(),
        }
    }

    pub(super) async fn append(&self, records: &[Record]) {
        self.log.append(Topic::Events, records.iter().map(append).collect()).await.unwrap();
    }

    /// Whether the archive holds all that the log does.
    pub(super) async fn is_caught_up(&self) -> bool {
        let bounds = self.log.bounds(Topic::Events).await.unwrap();
        let cursors = self.archive.cursors().await.unwrap();
        bounds.iter().zip(cursors).all(|(bounds, cursor)| bounds.next == cursor.next)
    }

    /// Runs an archiver until the archive holds all that the log does.
    pub(super) async fn catch_up(&self) {
        let stop = CancellationToken::new();
        let mut running = Box::pin(self.archiver().run(stop.clone()));
        let watching = async {
            while !self.is_caught_up().await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            ended = &mut running => panic!("the archiver ended: {ended:?}"),
            () = watching => stop.cancel(),
        }
        running.await.unwrap();
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
/// refusals, quarantined events and bytes that are no record; one record `apart` seconds after the other.
fn stream(rng: &mut StdRng, length: usize, apart: i64) -> Vec<Append> {
    let mut all: Vec<Append> = Vec::new();
    let mut events: Vec<Record> = Vec::new();
    for n in 0..length {
        let received_at = at(n as i64 * apart);
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
            // A repeat, in which arrival may have found another shopper's agent.
            0 | 1 if !events.is_empty() => {
                new = Record { received_at, ..events[rng.random_range(0..events.len())].clone() };
                new.flags = Flags(if rng.random_bool(0.5) { Flags::CRAWLER } else { 0 });
            }
            // The same by another channel, maybe.
            6 | 7 if !events.is_empty() => {
                let told = events[rng.random_range(0..events.len())].clone();
                new = Record { received_at, channel: new.channel, flags: new.flags, ..told };
            }
            // Another content under an id of the last two days; under one that is forgotten it would count.
            2 if n > 0 => new.event_id = format!("e{}", rng.random_range(n - n.min(170_000 / apart as usize)..n)),
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
        // Every other stream goes on for weeks, past what identity remembers.
        let stream = stream(&mut rng, 700, if seed % 2 == 0 { 40 } else { 3_000 });
        let garbage = stream.iter().filter(|append| append.value.ends_with(b"not a record")).count() as u64;
        let mut rest = stream.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.random_range(1..=rest.len().min(150)));
            rest = later;
            world.log.append(Topic::Events, now.to_vec()).await.unwrap();
            world.settings.max_events = rng.random_range(1..80);
            let failures = Flaky::new(Arc::clone(&world.archive), rng.random());
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
            if rng.random_bool(0.5) {
                // Only where all partitions go on does any forget.
                world.catch_up().await;
            }
        }
        world.catch_up().await;
        let expected = recount::recount(&all_records(world.log.as_ref()).await);
        assert!(expected.totals.len() > 20 && expected.books.iter().all(|n| *n > 0), "the stream has everything in it: {expected:?}");
        assert_eq!(recount::as_answered(world.archive.as_ref(), &site()).await, expected, "seed {seed}");
        let cursors = world.archive.cursors().await.unwrap();
        assert_eq!(cursors.iter().map(|cursor| cursor.next).sum::<u64>(), stream.len() as u64);
        assert!(garbage > 0);
        assert_clean(&world).await;
    }
}

/// An audit with log and archive finds nothing.
pub(super) async fn assert_clean(world: &World) {
    let rules: RulesOf = Arc::new(|_| Arc::new(SiteRules::default()));
    let audit = crate::archive::audit::audit(world.archive.as_ref(), Some(world.log.as_ref()), &rules).await.unwrap();
    assert!(audit.is_clean(), "{:#?}", audit.differences);
}

pub(super) const DAY: i64 = 86_400;

/// Appends records received at `received_at` until every partition has some, and archives them: what was received more than seven days before is
/// forgotten then.
async fn time_passes(world: &World, received_at: Timestamp) {
    let records: Vec<Record> = (0..200).map(|n| record(&format!("{received_at}-{n}"), received_at, viewed("passing", "c9", received_at))).collect();
    assert_eq!(records.iter().map(|record| append(record).partition).collect::<std::collections::BTreeSet<_>>().len(), usize::from(PARTITIONS));
    world.append(&records).await;
    world.catch_up().await;
}

#[tokio::test]
async fn what_comes_again_after_identity_forgot_it_is_told_by_the_archive() {
    let world = World::new().await;
    let again = |received_at: Timestamp, record: &Record| Record { received_at, ..record.clone() };
    let first = record("e1", at(1), viewed("p1", "c1", at(0)));
    let conflict = record("e1", at(2), viewed("p2", "c1", at(0)));
    let other_day = record("e1", at(3), viewed("p3", "c1", at(-DAY)));
    world.append(&[first.clone(), conflict.clone(), other_day.clone()]).await;
    world.catch_up().await;
    time_passes(&world, at(8 * DAY)).await;
    // A new content of a day on which the archive knows the id; then all that it has, in another order, in one batch and in several.
    let later = at(8 * DAY + 5);
    let new_content = record("e1", later, viewed("p4", "c1", at(10)));
    world.append(&[again(later, &other_day), again(later, &first), new_content.clone(), again(later, &conflict)]).await;
    world.catch_up().await;
    time_passes(&world, at(16 * DAY)).await;
    for record in [&conflict, &first, &new_content, &other_day] {
        world.append(&[again(at(16 * DAY + 5), record)]).await;
        world.catch_up().await;
    }
    let views = world.archive.totals(&site(), Metric::Views, at(-9 * DAY - 36_000), at(9 * DAY - 36_000), Bots::Exclude).await.unwrap();
    let views: Vec<_> = views.iter().map(|(product, value)| (product.as_str(), value.counts[0])).collect();
    assert_eq!(views, [("p1", 1), ("passing", 200)]);
    let of_id = Scan { by: crate::archive::ScanBy::EventId("e1".into()), limit: 10, ..Scan::default() };
    assert_eq!(world.archive.scan(&site(), &of_id).await.unwrap().len(), 4);
    let books = world.archive.books(&site(), at(-DAY).floor_to_seconds(3_600), at(20 * DAY).floor_to_seconds(3_600)).await.unwrap();
    assert_eq!(books.iter().map(|(_, books)| books.duplicate).sum::<u64>(), 7);
    assert_clean(&world).await;
}

#[tokio::test]
async fn the_dashboard_documents_follow_the_archive() {
    let mut world = World::new().await;
    let clock = Clock::fixed(at(60));
    world.settings.durable_every = Duration::from_millis(1);
    let search =
        |query: &str| serde_json::json!({"type": "product_searched", "occurred_at": at(0), "search": {"query": query}, "customer": {"id": "c"}});
    world.append(&[record("e1", at(1), viewed("p1", "c1", at(0))), record("s1", at(1), search(" Red  Mug "))]).await;
    let stop = CancellationToken::new();
    let archiver = Archiver { clock: clock.clone(), ..world.archiver() };
    let watching = async {
        let mut seen = BTreeMap::new();
        let mut version = 0;
        // Wait until a document says so, whatever was published before.
        let asked = std::time::Instant::now();
        let mut wait_for = async |name: &str, row: serde_json::Value| loop {
            assert!(asked.elapsed() < Duration::from_secs(300), "no {name} with {row}: {:?}", seen.get(name));
            for (name, (of, data)) in documents(world.log.as_ref()).await {
                version = version.max(of);
                seen.insert(name, data);
            }
            if seen.get(name).is_some_and(|data: &serde_json::Value| data["rows"][0] == row) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        wait_for("top.viewed", serde_json::json!({"product_id": "p1", "name": "The p1", "views": 1, "customers": 1})).await;
        wait_for("top.searches", serde_json::json!({"query": "Red Mug", "searches": 1, "customers": 1})).await;
        world.append(&[record("e2", at(2), viewed("p1", "c2", at(1)))]).await;
        wait_for("top.viewed", serde_json::json!({"product_id": "p1", "name": "The p1", "views": 2, "customers": 2})).await;
        assert_eq!(version, 3, "the sum of the offsets included");
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(archiver.run(stop.clone()), watching);
    ended.unwrap();
}

/// The last of each dashboard document in the log, with its version.
async fn documents(log: &dyn EventLog) -> BTreeMap<String, (u64, serde_json::Value)> {
    let mut all = BTreeMap::new();
    for partition in 0..PARTITIONS {
        for stored in log.read(Topic::Changes, partition, 0, 1 << 20).await.unwrap() {
            let change = crate::event::Change::decode(&stored.value).unwrap();
            let crate::event::change::Origin::Archive { version } = change.origin else { panic!("{change:?}") };
            let [crate::event::change::Op::Replace { data }] = change.ops.as_slice() else { panic!("{change:?}") };
            assert_eq!(change.key.partition(), partition);
            all.insert(change.key.name, (version, serde_json::from_str(data).unwrap()));
        }
    }
    all
}

#[tokio::test]
async fn what_cannot_be_read_is_quarantined_and_the_partition_goes_on() {
    let world = World::new().await;
    let good = record("e1", at(5), viewed("p1", "c1", at(0)));
    let partition = append(&good).partition;
    let bad_body = Record { body: Bytes::from_static(b"{\"type\":7}"), ..good.clone() };
    let raw = |value: Bytes| Append { partition, value };
    let records = vec![raw(bad_body.to_bytes()), raw(Bytes::from_static(b"\x09later version")), raw(good.to_bytes())];
    world.log.append(Topic::Events, records).await.unwrap();
    world.catch_up().await;
    let kept = world.archive.quarantine(&site(), None, 10).await.unwrap();
    assert_eq!(kept.len(), 1, "the other tells no site");
    assert_eq!((kept[0].code.as_str(), kept[0].offset, kept[0].raw.as_ref()), ("unreadable_record", 0, &b"{\"type\":7}"[..]));
    let books = world.archive.books(&site(), at(0), at(3_600)).await.unwrap();
    assert_eq!((books[0].1.appended, books[0].1.archived, books[0].1.quarantined), (2, 1, 1));
    assert!(world.progress.failed().is_empty());
    assert_clean(&world).await;
}

#[tokio::test]
async fn what_the_store_refuses_by_itself_is_quarantined_and_the_books_balance() {
    let mut world = World::new().await;
    let inner = Arc::clone(&world.archive);
    world.archive = Arc::new(Flaky::refusing(Arc::clone(&inner), 5, "e3"));
    let records: Vec<Record> = (0..40).map(|n| record(&format!("e{n}"), at(n), viewed("p1", "c1", at(n)))).collect();
    world.append(&records).await;
    // A repeat of what was not taken is not taken either.
    world.append(&records[3..4]).await;
    world.catch_up().await;
    world.archive = inner;
    let kept = world.archive.quarantine(&site(), None, 10).await.unwrap();
    assert_eq!(kept.iter().map(|row| (&*row.event_id, &*row.code, &*row.message)).collect::<Vec<_>>(), [("e3", "refused_by_store", "too large"); 2]);
    assert_eq!(kept[0].raw, records[3].body);
    let total = world.archive.totals(&site(), Metric::Views, at(0), at(900), Bots::Include).await.unwrap();
    assert_eq!(total[0].1.counts[0], 39);
    assert_eq!(world.progress.waits(), None);
    assert_clean(&world).await;
}

#[tokio::test]
async fn a_cursor_outside_the_log_stops_its_partition_alone() {
    let world = World::new().await;
    let records: Vec<Record> = (0..40).map(|n| record(&format!("e{n}"), at(n), viewed("p1", "c1", at(n)))).collect();
    world.append(&records).await;
    let lost = append(&records[0]).partition;
    world.archive.write(WriteBatch { cursors: vec![(lost, Cursor { next: 1_000, received_at: at(0) })], ..WriteBatch::default() }).await.unwrap();
    let stop = CancellationToken::new();
    let watching = async {
        let others = || async {
            let bounds = world.log.bounds(Topic::Events).await.unwrap();
            let cursors = world.archive.cursors().await.unwrap();
            let mut all = (0..PARTITIONS).zip(bounds.into_iter().zip(cursors)).filter(|(partition, _)| *partition != lost);
            all.all(|(_, (bounds, cursor))| bounds.next == cursor.next)
        };
        while world.progress.failed().is_empty() || !others().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(world.archiver().run(stop.clone()), watching);
    ended.unwrap();
    let failed = world.progress.failed();
    assert_eq!(failed.iter().map(|(partition, _)| *partition).collect::<Vec<_>>(), [lost]);
    assert!(failed[0].1.contains("outside"), "{}", failed[0].1);
    assert!(!world.progress.is_caught_up());
    assert_eq!(world.archive.cursor(lost).await.unwrap().next, 1_000, "never a silent skip");
}
