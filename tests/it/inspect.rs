//! Looks into a stopped server's files through the library: what the log holds against what the stores made of it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use contrail::archive::embedded::Embedded;
use contrail::archive::{Archive, Books};
use contrail::event::change::Origin;
use contrail::event::{Change, Clock, ObjectKey, ObjectKind, PARTITIONS, SiteId, Timestamp};
use contrail::eventlog::{self, EventLog, Topic};
use contrail::sync::embedded::EmbeddedStore;
use contrail::sync::object::Object;
use contrail::sync::scylla::Scylla;
use contrail::sync::{ObjectStore, Seek};
use serde_json::{Map, Value};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

/// Where a server keeps its objects: in its data directory, or on a cluster.
pub(crate) async fn store_of(data: &Path, url: &str) -> Box<dyn ObjectStore> {
    if url == "embedded" {
        return Box::new(EmbeddedStore::open(&data.join("objects.db"), Duration::ZERO).unwrap());
    }
    Box::new(Scylla::open(url, &contrail::cql::Settings::default(), Clock::system()).await.unwrap())
}

async fn objects(data: &Path, url: &str) -> Vec<Object> {
    let store = store_of(data, url).await;
    let site = SiteId::parse("demo").unwrap();
    let mut found = Vec::new();
    for kind in [ObjectKind::Document, ObjectKind::List, ObjectKind::Map] {
        let mut seek = Seek::First;
        loop {
            let page = store.list(&site, kind, "", seek.as_deref(), 1000).await.unwrap();
            let keys: Vec<ObjectKey> = page.into_iter().map(|(key, _)| key).collect();
            let Some(last) = keys.last() else { break };
            seek = Seek::After(last.name.clone());
            let stored = store.load(&keys).await.unwrap();
            found.extend(stored.into_iter().map(|object| Object::from_stored(object.unwrap()).unwrap()));
        }
    }
    store.close().await.unwrap();
    found
}

/// Where a log is.
#[derive(Clone, Copy)]
pub(crate) enum LogPlace<'a> {
    /// In this data directory.
    Embedded(&'a Path),
    /// In topics of this prefix.
    Kafka { url: &'a str, prefix: &'a str },
}

impl LogPlace<'_> {
    /// The log, as one of the tests' own brokers has it.
    pub(crate) async fn open(self) -> Arc<dyn EventLog> {
        let (url, dir, prefix) = match self {
            LogPlace::Embedded(data) => ("embedded", data.join("log"), "contrail"),
            LogPlace::Kafka { url, prefix } => (url, PathBuf::new(), prefix),
        };
        let kafka = eventlog::kafka::Settings { prefix: prefix.into(), replication: 1, allow_single_replica: true, ..Default::default() };
        let settings = eventlog::Settings { kafka, ..eventlog::Settings::default() };
        eventlog::open(url, &dir, settings, Clock::system()).await.unwrap()
    }
}

/// Every object's event id is the number of distinct changes the log holds for it. Gives how many objects there are.
pub(crate) fn assert_revisions_equal_changes(data: &Path, log: LogPlace<'_>, store: &str) -> usize {
    block_on(async {
        let log = log.open().await;
        let mut changes = HashMap::<ObjectKey, u64>::new();
        let mut versions = HashMap::<ObjectKey, u64>::new();
        for (partition, bounds) in (0..PARTITIONS).zip(log.bounds(Topic::Changes).await.unwrap()) {
            let mut seen = BTreeMap::<u16, (u64, u16)>::new();
            let mut at = bounds.start;
            while at < bounds.next {
                for record in log.read(Topic::Changes, partition, at, 1 << 20).await.unwrap() {
                    at = record.offset + 1;
                    let change = Change::decode(&record.value).unwrap();
                    let fresh = match change.origin {
                        Origin::Event { partition, offset, number } => {
                            let last = seen.get(&partition);
                            let fresh = last.is_none_or(|last| (offset, number) > *last);
                            if fresh {
                                seen.insert(partition, (offset, number));
                            }
                            fresh
                        }
                        Origin::Archive { version } => {
                            let last = versions.entry(change.key.clone()).or_default();
                            let fresh = version > *last;
                            *last = version.max(*last);
                            fresh
                        }
                        Origin::Expiry { .. } | Origin::Client { .. } => panic!("nothing expires in this test, and no client writes"),
                    };
                    *changes.entry(change.key).or_default() += u64::from(fresh);
                }
            }
        }
        log.close().await.unwrap();
        drop(log);
        let objects = objects(data, store).await;
        for object in &objects {
            assert_eq!(Some(&object.head().event_id), changes.get(object.key()), "{:?}", object.key());
            assert_eq!(object.head().revision, object.head().event_id, "{:?}: one incarnation", object.key());
        }
        assert_eq!(objects.len(), changes.len(), "every object that was changed is there");
        objects.len()
    })
}

/// The books of all time of an embedded archive: event rows, repeats, derived completions, records in quarantine.
pub(crate) fn booked(data: &Path) -> [u64; 4] {
    let archive = Embedded::open_readonly(data).unwrap();
    let site = SiteId::parse("demo").unwrap();
    let books = block_on(archive.books(&site, Timestamp::ZERO, Timestamp::MAX)).unwrap();
    let add = |sum: [u64; 4], of: &Books| [sum[0] + of.archived, sum[1] + of.duplicate, sum[2] + of.derived, sum[3] + of.quarantined];
    books.iter().fold([0; 4], |sum, (_, of)| add(sum, of))
}

/// The event id of every living object by kind and name: how many changes were folded into it.
pub(crate) fn event_ids(data: &Path) -> BTreeMap<(&'static str, String), u64> {
    let kind = |kind| match kind {
        ObjectKind::Document => "document",
        ObjectKind::List => "list",
        ObjectKind::Map => "map",
        ObjectKind::Stream => "stream",
    };
    block_on(objects(data, "embedded")).iter().map(|object| ((kind(object.key().kind), object.key().name.clone()), object.head().event_id)).collect()
}

/// The data of every object, without the archiver's own documents; with revisions where asked.
pub(crate) fn objects_of(data: &Path, store: &str, revisions: bool) -> Map<String, Value> {
    let objects = block_on(objects(data, store));
    let mut all = Map::new();
    for object in objects {
        let name = &object.key().name;
        if name.starts_with("top.") || name == "funnel" {
            continue;
        }
        let snapshot = object.snapshot().unwrap();
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let mut told = Map::new();
        if let Some(data) = &snapshot.data {
            told.insert("data".into(), parse(data));
        }
        for item in &snapshot.items {
            told.insert(format!("item {}", item.item), parse(&item.data));
        }
        if revisions {
            told.insert("revision".into(), snapshot.revision.into());
        }
        all.insert(format!("{:?} {name}", object.kind()), told.into());
    }
    all
}
