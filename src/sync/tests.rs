//! The sync side as a whole, over the embedded log and store: events into the log, objects out of the reader.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
use super::{Error, ObjectStore};
use crate::event::ids::{events_partition, fingerprint};
use crate::event::{Channel, Clock, Flags, KeyKind, ObjectKey, ObjectKind, Record, RecordKind, RulesOf, SiteId, Timestamp};
use crate::eventlog::embedded::{EmbeddedLog, Settings};
use crate::eventlog::{Append, EventLog, Topic};

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

pub(crate) fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

pub(crate) fn start_time() -> Timestamp {
    Timestamp::parse("2026-11-20T10:00:00Z").unwrap()
}

impl SyncSide {
    pub(crate) fn open(dir: &Path, clock: &Clock) -> Self {
        Self::open_with(dir, clock, KeeperSettings { checkpoint_every: Duration::from_millis(20), ..KeeperSettings::default() })
    }

    pub(crate) fn open_with(dir: &Path, clock: &Clock, settings: KeeperSettings) -> Self {
        let log: Arc<dyn EventLog> = Arc::new(EmbeddedLog::open(&dir.join("log"), &Settings::default(), clock).unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.join("objects.db"), Duration::from_millis(20)).unwrap());
        let feed = LocalFeed::new(feed::Settings::default());
        let (status, stop) = (Arc::new(Status::default()), CancellationToken::new());
        let rules: RulesOf = Arc::new(|_| Arc::default());
        let reader = Reader::new(Arc::clone(&store), settings.expiry);
        let router =
            Router { log: Arc::clone(&log), store: Arc::clone(&store), rules, settings: RouterSettings::default(), status: Arc::clone(&status) };
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

    /// Drops everything where it stands.
    async fn crash(mut self) {
        self.tasks.shutdown().await;
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
