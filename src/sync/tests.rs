//! The sync side as a whole, over the embedded log and store: events into the log, objects out of the reader.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::embedded::EmbeddedStore;
use super::expiry::Expiry;
use super::feed::{self, LocalFeed};
use super::keeper::{Keeper, KeeperSettings};
use super::object::Snapshot;
use super::reader::Reader;
use super::router::{Router, RouterSettings};
use super::status::Status;
use super::{Error, Feed, ObjectStore, Seek, Update};
use crate::event::ids::{events_partition, fingerprint};
use crate::event::{Channel, Clock, Flags, ObjectKey, ObjectKind, Record, RecordKind, RulesOf, SiteId, Timestamp};
use crate::eventlog::embedded::{EmbeddedLog, Settings};
use crate::eventlog::{self, Append, Bounds, Consumer, EventLog, Offset, Stored, Topic};

/// Router, keeper and what they work on, in one directory.
pub(crate) struct SyncSide {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) feed: LocalFeed,
    pub(crate) reader: Reader,
    pub(crate) status: Arc<Status>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

fn router_settings() -> RouterSettings {
    RouterSettings { backoff: (Duration::from_millis(1), Duration::from_millis(5)), round_records: 40, ..RouterSettings::default() }
}

pub(crate) fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

pub(crate) fn start_time() -> Timestamp {
    Timestamp::parse("2026-11-20T10:00:00Z").unwrap()
}

/// How an append fails.
#[derive(Clone, Debug)]
enum Failure {
    /// Nothing was appended.
    Before,
    /// All was appended, and nobody was told.
    After,
    /// A partition refuses.
    Damaged(u16),
}

/// The embedded log, whose appends to `changes` fail by a script.
struct Flaky {
    log: EmbeddedLog,
    script: Mutex<VecDeque<Option<Failure>>>,
    damaged: Mutex<Option<u16>>,
}

#[async_trait]
impl EventLog for Flaky {
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, eventlog::Error> {
        if topic == Topic::Events {
            return self.log.append(topic, records).await;
        }
        let unavailable = || Err(eventlog::Error::Unavailable("by the script".into()));
        let next = self.script.lock().unwrap().pop_front().flatten();
        match next {
            Some(Failure::Before) => return unavailable(),
            Some(Failure::After) => {
                self.log.append(topic, records).await?;
                return unavailable();
            }
            Some(Failure::Damaged(partition)) => *self.damaged.lock().unwrap() = Some(partition),
            None => {}
        }
        let damaged = *self.damaged.lock().unwrap();
        match damaged {
            Some(partition) if records.iter().any(|record| record.partition == partition) => {
                Err(eventlog::Error::Damaged { topic: topic.name(), partition, offset: 0, what: "by the script".into() })
            }
            _ => self.log.append(topic, records).await,
        }
    }

    async fn subscribe(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, eventlog::Error> {
        self.log.subscribe(topic, group).await
    }

    async fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, eventlog::Error> {
        self.log.read(topic, partition, from, max_bytes).await
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, eventlog::Error> {
        self.log.bounds(topic).await
    }

    async fn committed(&self, topic: Topic, group: &str) -> Result<Vec<Offset>, eventlog::Error> {
        self.log.committed(topic, group).await
    }

    async fn forget_group(&self, topic: Topic, group: &str) -> Result<(), eventlog::Error> {
        self.log.forget_group(topic, group).await
    }

    async fn retain(&self, now: Timestamp) -> Result<(), eventlog::Error> {
        self.log.retain(now).await
    }

    async fn close(&self) -> Result<(), eventlog::Error> {
        self.log.close().await
    }
}

impl SyncSide {
    pub(crate) fn open(dir: &Path, clock: &Clock) -> Self {
        Self::open_with(dir, clock, KeeperSettings { checkpoint_every: Duration::from_millis(20), ..KeeperSettings::default() })
    }

    pub(crate) fn open_with(dir: &Path, clock: &Clock, settings: KeeperSettings) -> Self {
        let log = EmbeddedLog::open(&dir.join("log"), &Settings::default(), clock).unwrap();
        Self::open_over(Arc::new(log), dir, clock, settings)
    }

    fn open_over(log: Arc<dyn EventLog>, dir: &Path, clock: &Clock, settings: KeeperSettings) -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.join("objects.db"), Duration::from_millis(20)).unwrap());
        let feed = LocalFeed::new(feed::Settings::default());
        let (status, stop) = (Arc::new(Status::default()), CancellationToken::new());
        let rules: RulesOf = Arc::new(|_| Arc::default());
        let reader = Reader::new(Arc::clone(&store), settings.expiry);
        let router = Router {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            feed: Arc::new(LocalFeed::new(Default::default())),
            rules,
            settings: router_settings(),
            status: Arc::clone(&status),
        };
        let keeper = Keeper {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            feed: Arc::new(feed.clone()),
            clock: clock.clone(),
            settings,
            status: Arc::clone(&status),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(router.run(stop.clone()));
        tasks.spawn(keeper.run(stop.clone()));
        Self { log, store, feed, reader, status, stop, tasks }
    }

    /// Waits until all that the log holds is in objects.
    pub(crate) async fn caught_up(&self) {
        let caught_up = async {
            loop {
                let ends = |bounds: Vec<crate::eventlog::Bounds>| bounds.into_iter().map(|b| b.next).collect::<Vec<u64>>();
                let events = ends(self.log.bounds(Topic::Events).await.unwrap());
                if self.status.routed() == events {
                    let changes = ends(self.log.bounds(Topic::Changes).await.unwrap());
                    if self.status.kept() == changes {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), caught_up).await.is_err() {
            panic!("not caught up: routed {:?}, kept {:?}, failed {:?}", self.status.routed(), self.status.kept(), self.status.failed());
        }
    }

    /// Stops as SIGTERM does.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
        self.store.close().await.unwrap();
        self.log.close().await.unwrap();
    }

    /// Drops everything where it stands. What tasks had begun beside them ends a moment later, and holds log and store till then.
    async fn crash(mut self) {
        self.tasks.shutdown().await;
        let Self { log, store, reader, .. } = self;
        drop(reader);
        let gone = async {
            while Arc::strong_count(&log) > 1 || Arc::strong_count(&store) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("nobody holds log and store any more");
    }

    pub(crate) async fn get(&self, kind: ObjectKind, name: &str) -> Option<Snapshot> {
        self.reader.get(&ObjectKey { site: site(), kind, name: name.into() }, start_time()).await.unwrap()
    }
}

/// A record as ingest appends it.
pub(crate) fn event(id: &str, received_at: Timestamp, body: serde_json::Value) -> Append {
    let mut body = body;
    body["occurred_at"] = received_at.to_string().into();
    let bytes = serde_json::to_vec(&body).unwrap();
    let parsed = crate::event::Event::from_body(&bytes).unwrap();
    let (key_kind, key) = parsed.partition_key(id);
    let record = Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: site(),
        event_id: id.into(),
        fingerprint: fingerprint(&bytes),
        received_at,
        key_kind,
        key: key.into(),
        flags: Flags::default(),
        channel: Channel::Server,
        body: bytes.into(),
    };
    Append { partition: events_partition(&record.site, key_kind, &record.key), value: record.to_bytes() }
}

pub(crate) fn view(id: &str, product: &str, customer: &str, received_at: Timestamp) -> Append {
    let body = serde_json::json!({"type": "product_viewed", "customer": {"id": customer}, "product": {"id": product, "name": "Mug"}});
    event(id, received_at, body)
}

fn item(snapshot: &Snapshot, name: &str) -> (u64, serde_json::Value) {
    let item = snapshot.items.iter().find(|item| item.item == name).unwrap_or_else(|| panic!("no item {name}: {snapshot:?}"));
    (item.revision, serde_json::from_str(&item.data).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_become_objects_once() {
    let dir = tempfile::tempdir().unwrap();
    let side = SyncSide::open(dir.path(), &Clock::system());
    let views: Vec<Append> = (0..300).map(|n| view(&format!("e{n}"), &format!("sku-{}", n % 3), &format!("c{}", n % 50), start_time())).collect();
    side.log.append(Topic::Events, views.clone()).await.unwrap();
    side.log.append(Topic::Events, views).await.unwrap();
    side.caught_up().await;
    let product = side.get(ObjectKind::Map, "product.sku-1").await.unwrap();
    assert_eq!((product.revision, product.event_id), (100, 100));
    let (revision, activity) = item(&product, "activity");
    assert_eq!((revision, &activity["views"]), (100, &100.into()));
    let index = side.get(ObjectKind::Map, "index.product").await.unwrap();
    assert_eq!(index.items.len(), 3, "{index:?}");
    side.stop().await;
}

/// What readers see of everything, in a form that does not depend on the order in which partitions were read.
async fn all(side: &SyncSide) -> Vec<String> {
    let mut out = Vec::new();
    for kind in [ObjectKind::Document, ObjectKind::List, ObjectKind::Map] {
        let (found, _) = side.reader.list((&site(), kind), "", Seek::First, 1_000, start_time()).await.unwrap();
        for (key, head) in found {
            let snapshot = side.get(kind, &key.name).await.unwrap();
            let items: Vec<_> = snapshot.items.iter().map(|item| (&item.item, item.revision, &item.data)).collect();
            out.push(format!("{} {} {} {:?} {items:?}", key.name, head.revision, head.event_id, snapshot.data));
        }
    }
    out
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["objects.db", "objects.db-wal"] {
        std::fs::remove_file(to.join(name)).ok();
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
    std::fs::remove_file(to.join("objects.db-shm")).ok();
}

/// Dropped at random moments, at times with an older `objects.db` put back as power loss would, the same events give the same objects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_and_an_older_store_change_nothing() {
    let mut random = StdRng::seed_from_u64(7);
    let body = |n: usize| match n % 4 {
        0 => {
            serde_json::json!({"type": "page_viewed", "customer": {"id": format!("c{}", n % 9)}, "page": {"url": format!("https://shop.example/p{}", n % 5)}})
        }
        1 => serde_json::json!({"type": "order_completed", "customer": {"id": format!("c{}", n % 9)},
            "order": {"id": format!("o{}", n % 40), "items": [{"product_id": format!("sku-{}", n % 7), "quantity": 1 + n % 3}]}}),
        _ => serde_json::json!({"type": "product_viewed", "customer": {"id": format!("c{}", n % 9)}, "product": {"id": format!("sku-{}", n % 7)}}),
    };
    let events: Vec<Append> = (0..600).map(|n| event(&format!("e{n}"), start_time().plus_seconds(n as i64 % 50), body(n))).collect();

    let calm = tempfile::tempdir().unwrap();
    let side = SyncSide::open(calm.path(), &Clock::system());
    for batch in events.chunks(30) {
        side.log.append(Topic::Events, batch.to_vec()).await.unwrap();
    }
    side.caught_up().await;
    let expected = all(&side).await;
    assert!(expected.len() > 20, "{expected:?}");
    side.stop().await;

    let (stormy, older) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (round, batch) in events.chunks(30).enumerate() {
        let side = SyncSide::open(stormy.path(), &Clock::system());
        side.log.append(Topic::Events, batch.to_vec()).await.unwrap();
        // Anywhere between nothing done and everything done.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        side.crash().await;
        match round % 5 {
            1 => copy_files(stormy.path(), older.path()),
            3 => copy_files(older.path(), stormy.path()),
            _ => {}
        }
    }
    let side = SyncSide::open(stormy.path(), &Clock::system());
    side.caught_up().await;
    let found = all(&side).await;
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    side.stop().await;
    // And once more from what a clean stop left.
    let side = SyncSide::open(stormy.path(), &Clock::system());
    side.caught_up().await;
    assert_eq!(all(&side).await, expected);
    side.stop().await;
}

/// An object that cannot be read is frozen: it answers an error, the others go on, and the partition's checkpoint passes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_is_frozen_alone() {
    let dir = tempfile::tempdir().unwrap();
    let side = SyncSide::open(dir.path(), &Clock::system());
    side.log.append(Topic::Events, vec![view("e1", "sku-1", "c1", start_time()), view("e2", "sku-2", "c1", start_time())]).await.unwrap();
    side.caught_up().await;
    side.stop().await;
    let conn = rusqlite::Connection::open(dir.path().join("objects.db")).unwrap();
    let damaged = conn.execute("UPDATE rows SET value = x'01' WHERE object = ?1", [b"demo\0\x02product.sku-1".as_slice()]).unwrap();
    assert!(damaged > 1);
    drop(conn);
    let side = SyncSide::open(dir.path(), &Clock::system());
    side.log.append(Topic::Events, vec![view("e3", "sku-1", "c1", start_time()), view("e4", "sku-2", "c1", start_time())]).await.unwrap();
    side.caught_up().await;
    let key = |name: &str| ObjectKey { site: site(), kind: ObjectKind::Map, name: name.into() };
    assert!(matches!(side.reader.get(&key("product.sku-1"), start_time()).await, Err(Error::Corrupt { .. })));
    assert_eq!(side.get(ObjectKind::Map, "product.sku-2").await.unwrap().revision, 2);
    assert_eq!(side.status.frozen(), 1);
    side.stop().await;
}

/// What expired reads as not found at once, is removed by a change of its own, and begins anew with the next change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_objects_are_removed_by_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let later = start_time().plus_seconds(31 * 86_400);
    let clock = Clock::fixed(later);
    let settings = KeeperSettings {
        sweep_every: Duration::from_millis(20),
        gather: Duration::ZERO,
        checkpoint_every: Duration::from_millis(20),
        expiry: Expiry::default(),
        ..KeeperSettings::default()
    };
    let side = SyncSide::open_with(dir.path(), &clock, settings);
    let key = ObjectKey { site: site(), kind: ObjectKind::Map, name: "customer.c1".into() };
    let mut subscription = side.feed.subscribe(&key).await.unwrap();
    side.log.append(Topic::Events, vec![view("e1", "sku-1", "c1", start_time())]).await.unwrap();
    let mut removed = None;
    while removed.is_none() {
        match tokio::time::timeout(Duration::from_secs(30), subscription.next()).await.expect("the sweep removes it") {
            Update::Write(write) if write.removed => removed = Some(write.event_id),
            Update::Write(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(removed, Some(2));
    assert_eq!(side.reader.get(&key, later).await.unwrap(), None);
    let product = side.get(ObjectKind::Map, "product.sku-1").await;
    assert!(product.is_some(), "products never expire");
    side.log.append(Topic::Events, vec![view("e2", "sku-1", "c1", later)]).await.unwrap();
    side.caught_up().await;
    let anew = side.reader.get(&key, later).await.unwrap().unwrap();
    assert_eq!((anew.revision, anew.event_id), (1, 3));
    side.stop().await;
}

fn flaky(dir: &Path, script: impl IntoIterator<Item = Option<Failure>>) -> Arc<Flaky> {
    let log = EmbeddedLog::open(&dir.join("log"), &Settings::default(), &Clock::system()).unwrap();
    Arc::new(Flaky { log, script: Mutex::new(script.into_iter().collect()), damaged: Mutex::default() })
}

/// While a router waits to begin again, others may have its partitions: their lags are not its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_waits_to_begin_again_tells_of_no_partition() {
    let dir = tempfile::tempdir().unwrap();
    let log = flaky(dir.path(), [Some(Failure::Before)]);
    let (status, stop) = (Arc::new(Status::default()), CancellationToken::new());
    let hour = Duration::from_secs(3_600);
    let router = Router {
        log: Arc::clone(&log) as _,
        store: Arc::new(EmbeddedStore::open(&dir.path().join("objects.db"), Duration::ZERO).unwrap()),
        feed: Arc::new(LocalFeed::new(Default::default())),
        rules: Arc::new(|_| Arc::default()),
        settings: RouterSettings { backoff: (hour, hour), ..router_settings() },
        status: Arc::clone(&status),
    };
    let mut routing = JoinSet::new();
    routing.spawn(router.run(stop.clone()));
    let reach = async |owned: usize| {
        while status.routed().iter().filter(|at| **at != super::status::ELSEWHERE).count() != owned {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reach(16)).await.expect("it owns them all");
    log.append(Topic::Events, vec![view("e1", "sku-1", "c1", start_time())]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), reach(0)).await.expect("it waits, and owns none");
    stop.cancel();
    routing.join_next().await.unwrap().unwrap().unwrap();
}

/// An append that failed, or whose answer was lost, is made again from the stored offset and counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_begins_again_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let script = (0..60).map(|n| match n % 5 {
        0 => None,
        1 | 3 => Some(Failure::After),
        _ => Some(Failure::Before),
    });
    let log = flaky(dir.path(), script);
    let settings = KeeperSettings { checkpoint_every: Duration::from_millis(20), ..KeeperSettings::default() };
    let side = SyncSide::open_over(Arc::clone(&log) as _, dir.path(), &Clock::system(), settings);
    for batch in 0..20 {
        let views = (0..50).map(|n| view(&format!("e{batch}-{n}"), &format!("sku-{}", n % 2), "c1", start_time())).collect();
        side.log.append(Topic::Events, views).await.unwrap();
    }
    side.caught_up().await;
    assert!(log.script.lock().unwrap().is_empty(), "the script was played");
    for name in ["product.sku-0", "product.sku-1"] {
        let product = side.get(ObjectKind::Map, name).await.unwrap();
        assert_eq!((product.revision, &item(&product, "activity").1["views"]), (500, &500.into()), "{name}");
    }
    assert_eq!(side.get(ObjectKind::Map, "index.product").await.unwrap().items.len(), 2);
    side.stop().await;
}

/// A damaged partition of `changes` stops its own objects, with a flag; all others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_partition_of_changes_stops_alone() {
    let dir = tempfile::tempdir().unwrap();
    let key = |n: usize| ObjectKey { site: site(), kind: ObjectKind::Map, name: format!("product.sku-{n}") };
    let bad = key(0).partition();
    let side = SyncSide::open_over(flaky(dir.path(), [Some(Failure::Damaged(bad))]), dir.path(), &Clock::system(), KeeperSettings::default());
    let views: Vec<Append> = (0..40).map(|n| view(&format!("e{n}"), &format!("sku-{n}"), "c1", start_time())).collect();
    side.log.append(Topic::Events, views).await.unwrap();
    side.caught_up().await;
    for n in 0..40 {
        let found = side.get(ObjectKind::Map, &key(n).name).await;
        assert_eq!(found.is_some(), key(n).partition() != bad, "{n}");
    }
    assert!(side.status.failed().iter().any(|(topic, partition, _)| (*topic, *partition) == ("changes", bad)));
    side.stop().await;
}

/// Bytes that are no event are passed over with an error; what stands around them counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_records_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let side = SyncSide::open(dir.path(), &Clock::system());
    let good = view("e1", "sku-1", "c1", start_time());
    let bad = |value: &'static [u8]| Append { partition: good.partition, value: value.into() };
    side.log.append(Topic::Events, vec![bad(b"\x09"), good.clone(), bad(b"\x01"), view("e2", "sku-1", "c1", start_time())]).await.unwrap();
    side.log.append(Topic::Changes, vec![Append { partition: 3, value: b"\x07".as_slice().into() }]).await.unwrap();
    side.caught_up().await;
    assert_eq!(side.get(ObjectKind::Map, "product.sku-1").await.unwrap().revision, 2);
    side.stop().await;
}

/// A router and a keeper beside others, over the same log and store.
struct Member {
    status: Arc<Status>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

impl Member {
    fn join(side: &SyncSide, clock: &Clock) -> Self {
        let (status, stop) = (Arc::new(Status::default()), CancellationToken::new());
        let (log, store): (_, Arc<dyn ObjectStore>) = (Arc::clone(&side.log), Arc::clone(&side.store));
        let router = Router {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            feed: Arc::new(side.feed.clone()),
            rules: Arc::new(|_| Arc::default()),
            settings: router_settings(),
            status: Arc::clone(&status),
        };
        let keeper = Keeper {
            log,
            store,
            feed: Arc::new(side.feed.clone()),
            clock: clock.clone(),
            settings: KeeperSettings { checkpoint_every: Duration::from_millis(20), ..KeeperSettings::default() },
            status: Arc::clone(&status),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(router.run(stop.clone()));
        tasks.spawn(keeper.run(stop.clone()));
        Self { status, stop, tasks }
    }

    async fn leave(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_change_hands_under_load_and_nothing_is_lost_or_done_twice() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let side = SyncSide::open(dir.path(), &clock);
    let mut watching = side.feed.subscribe(&ObjectKey { site: site(), kind: ObjectKind::Map, name: "product.sku-0".into() }).await.unwrap();
    let (mut members, mut rng) = (Vec::new(), StdRng::seed_from_u64(7));
    let (rounds, of_a_round) = (60, 40);
    for round in 0..rounds {
        let of = |n: usize| view(&format!("e{round}-{n}"), &format!("sku-{}", n % 5), &format!("c{}", n % 13), start_time());
        side.log.append(Topic::Events, (0..of_a_round).map(of).collect()).await.unwrap();
        if members.len() < 3 && rng.random_bool(0.5) {
            members.push(Member::join(&side, &clock));
        } else if !members.is_empty() {
            let leaving: Member = members.swap_remove(rng.random_range(0..members.len()));
            leaving.leave().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shared = Member::join(&side, &clock);
    let owned = async |status: &Status| {
        let count = |at: Vec<u64>| at.into_iter().filter(|at| *at != super::status::ELSEWHERE).count();
        (count(status.routed()), count(status.kept()))
    };
    let balanced = async {
        while !matches!(owned(&shared.status).await, (1..16, 1..16)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), balanced).await.expect("each has its part, and says so of no other's");
    for member in members {
        member.leave().await;
    }
    shared.leave().await;
    side.caught_up().await;
    let mut total = 0;
    for sku in 0..5 {
        let product = side.get(ObjectKind::Map, &format!("product.sku-{sku}")).await.unwrap();
        total += item(&product, "activity").1["views"].as_u64().unwrap();
    }
    assert_eq!(total, (rounds * of_a_round) as u64);
    let product = side.get(ObjectKind::Map, "product.sku-0").await.unwrap();
    let last = async {
        let mut seen = 0;
        while seen < product.event_id {
            match watching.next().await {
                Update::Write(write) => seen = write.event_id.max(seen),
                Update::Lagged => seen = seen.max(side.get(ObjectKind::Map, "product.sku-0").await.unwrap().event_id),
                Update::Closed => panic!("closed"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), last).await.expect("a subscriber sees the last write, whoever made it");
    // Every change once, whoever had the partition: the revision tells.
    let views = item(&product, "activity").1["views"].as_u64().unwrap();
    assert_eq!(product.revision, views);
    side.stop().await;
}
