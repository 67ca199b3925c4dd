//! Calls over the embedded log and store, with a running keeper.

use std::time::Duration;

use super::*;
use crate::event::change::PutItem;
use crate::event::{Event, ObjectKind, PARTITIONS, Timestamp};
use crate::sync::keeper::KeeperSettings;
use crate::sync::tests::{SyncSide, site, start_time};
use crate::sync::{Refusal, Update, Verdict};

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { site: site(), kind, name: name.into() }
}

fn api_of(side: &SyncSide, clock: &Clock, settings: Settings) -> Api {
    Api::new(Arc::clone(&side.log), Arc::new(side.feed.clone()), clock.clone(), settings)
}

fn create() -> Call {
    Call::Create { data: Some("{\"n\":0}".into()), ttl: None }
}

fn update(if_revision: Option<u64>, n: u32) -> Call {
    Call::Update { if_revision, data: Some(format!("{{\"n\":{n}}}")), ttl: None }
}

/// What `events` holds, decoded.
async fn events(side: &SyncSide) -> Vec<(Record, Event)> {
    let mut found = Vec::new();
    for partition in 0..PARTITIONS {
        for stored in side.log.read(Topic::Events, partition, 0, 1 << 20).await.unwrap() {
            let record = Record::decode(&stored.value).unwrap();
            let event: Event = serde_json::from_slice(&record.body).unwrap();
            found.push((record, event));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_committed_told_and_archived_before_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(start_time());
    let side = SyncSide::open(dir.path(), &clock);
    let (api, key) = (api_of(&side, &clock, Settings::default()), key(ObjectKind::Document, "d"));
    let mut told = side.feed.subscribe(&key).await.unwrap();
    for n in 0..5_u32 {
        let call = if n == 0 { create() } else { update(Some(u64::from(n)), n) };
        let answer = api.call(&key, "alice", vec![call]).await.unwrap();
        assert!(matches!(answer.verdicts[..], [Verdict::Done { .. }]), "{answer:?}");
        let object = answer.object.unwrap();
        assert_eq!((object.revision, object.data.as_deref()), (u64::from(n) + 1, Some(&*format!("{{\"n\":{n}}}"))));
        let read = side.get(ObjectKind::Document, "d").await.unwrap();
        assert_eq!((read.revision, read.data.clone()), (object.revision, object.data), "who was answered reads what was written");
        let Update::Write(write) = told.next().await else { panic!("nothing told") };
        assert_eq!((write.event_id, write.rows[0].data.clone()), (read.event_id, read.data));
        assert_eq!(events(&side).await.len(), n as usize + 1);
    }
    let answer = api.call(&key, "bob", vec![update(Some(2), 9)]).await.unwrap();
    assert_eq!(answer.verdicts, [Verdict::Refused(Refusal::Revision)]);
    assert_eq!(answer.object.map(|object| object.revision), Some(5), "what it is told to try again with");
    let archived = events(&side).await;
    assert_eq!(archived.len(), 5, "a refused call is none");
    let (record, event) = archived.iter().find(|(record, _)| String::from_utf8_lossy(&record.body).contains("document_created")).unwrap();
    assert_eq!((record.event_id.as_str(), event.kind.as_str()), (record.key.as_str(), OBJECT_CHANGED));
    let body: Value = serde_json::from_slice(&record.body).unwrap();
    let incarnation = start_time().micros() as u64;
    assert_eq!(
        body["properties"],
        json!({
            "action": "document_created",
            "identity": "alice",
            "data": "{\"n\":0}",
            "object": {"event_id": 1, "kind": "document", "name": "d", "revision": 0, "sid": naming::sid(&site(), ObjectKind::Document, "d", incarnation)},
        })
    );
    side.stop().await;
}

/// Copies are never behind what was answered, and are made anew only after a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_answered_reads_what_was_written_from_copies_too() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(start_time());
    let side = SyncSide::open(dir.path(), &clock);
    let reader = side.reader.clone().with_copies(Arc::new(side.feed.clone()));
    let (api, key) = (api_of(&side, &clock, Settings::default()), key(ObjectKind::Document, "d"));
    assert!(reader.object(&key, clock.now()).await.unwrap().is_none());
    api.call(&key, "system", vec![create()]).await.unwrap();
    for n in 1..=50 {
        let read = async || reader.object(&key, clock.now()).await.unwrap().unwrap();
        assert_eq!(read().await.head().revision, n);
        assert!(Arc::ptr_eq(&read().await, &read().await), "nothing changed between");
        api.call(&key, "system", vec![update(Some(n), 1)]).await.unwrap();
    }
    api.call(&key, "system", vec![Call::Permit { identity: "bob".into(), rights: crate::event::change::Rights::ALL }]).await.unwrap();
    assert!(reader.object(&key, clock.now()).await.unwrap().unwrap().rights_of("bob").is_some(), "rights are told too");
    api.call(&key, "system", vec![Call::Remove { if_revision: None }]).await.unwrap();
    assert!(reader.object(&key, clock.now()).await.unwrap().is_none());
    side.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_each_revision_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let side = SyncSide::open(dir.path(), &clock);
    let (api, key) = (api_of(&side, &clock, Settings::default()), key(ObjectKind::Document, "d"));
    api.call(&key, "system", vec![create()]).await.unwrap();
    let mutate = |_| {
        let (api, key) = (api.clone(), key.clone());
        async move {
            let mut revision = 1;
            loop {
                let answer = api.call(&key, "system", vec![update(Some(revision), 0)]).await.unwrap();
                match answer.verdicts[0] {
                    Verdict::Done { .. } => return revision,
                    _ => revision = answer.object.unwrap().revision,
                }
            }
        }
    };
    let mut taken = futures::future::join_all((0..20).map(mutate)).await;
    taken.sort_unstable();
    assert_eq!(taken, (1..=20).collect::<Vec<u64>>());
    side.stop().await;
}

fn action_of(record: &Record) -> String {
    let body: Value = serde_json::from_slice(&record.body).unwrap();
    body["properties"]["action"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifetimes_end_with_a_removal_that_is_told_and_archived() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(start_time());
    let settings = KeeperSettings { sweep_every: Duration::from_millis(10), ..KeeperSettings::default() };
    let side = SyncSide::open_with(dir.path(), &clock, settings);
    let (api, map) = (api_of(&side, &clock, Settings::default()), key(ObjectKind::Map, "m"));
    let item = Call::PutItem { item: PutItem::Add("k".into()), data: Some("{}".into()), ttl: Some(60), collection_ttl: Some(3_600) };
    api.call(&map, "system", vec![Call::Create { data: None, ttl: None }, item]).await.unwrap();
    let shown = async |now: Timestamp| side.reader.get(&map, now).await.unwrap().map(|map| map.items.len());
    assert_eq!(shown(start_time().plus_seconds(59)).await, Some(1));
    assert_eq!(shown(start_time().plus_seconds(60)).await, Some(0), "it reads as gone at once");
    let mut told = side.feed.subscribe(&map).await.unwrap();
    clock.set(start_time().plus_seconds(61));
    let Update::Write(write) = told.next().await else { panic!("nothing told") };
    assert_eq!((write.rows[0].item.as_str(), write.rows[0].data.clone(), write.removed), ("k", None, false));
    assert_eq!(shown(start_time().plus_seconds(3_600)).await, None);
    clock.set(start_time().plus_seconds(3_601));
    let Update::Write(write) = told.next().await else { panic!("nothing told") };
    assert!(write.removed);
    side.caught_up().await;
    let mut actions: Vec<String> = events(&side).await.iter().map(|(record, _)| action_of(record)).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["map_created", "map_item_added", "map_item_removed", "map_removed"]);
    side.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sid_finds_its_object_until_another_life_begins() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(start_time());
    let side = SyncSide::open(dir.path(), &clock);
    let (api, key) = (api_of(&side, &clock, Settings::default()), key(ObjectKind::List, "l"));
    let made = api.call(&key, "system", vec![Call::Create { data: None, ttl: None }]).await.unwrap().object.unwrap();
    let first = naming::sid_number(&key, made.incarnation);
    let found = async |number: [u8; 16]| {
        side.reader.by_sid(&site(), ObjectKind::List, &number, clock.now()).await.unwrap().map(|object| object.key().clone())
    };
    assert_eq!(found(first).await, Some(key.clone()));
    api.call(&key, "system", vec![Call::Remove { if_revision: None }]).await.unwrap();
    assert_eq!(found(first).await, None);
    let made = api.call(&key, "system", vec![Call::Create { data: None, ttl: None }]).await.unwrap().object.unwrap();
    assert_eq!(found(first).await, None);
    assert_eq!(found(naming::sid_number(&key, made.incarnation)).await, Some(key));
    side.stop().await;
}

#[tokio::test]
async fn without_an_owner_a_call_is_told_to_be_open_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let log = crate::eventlog::embedded::EmbeddedLog::open(dir.path(), &Default::default(), &clock).unwrap();
    let feed = Arc::new(crate::sync::feed::LocalFeed::new(Default::default()));
    let api = Api::new(Arc::new(log), feed, clock, Settings { patience: Duration::from_millis(50), max_waiting: 1 });
    let key = key(ObjectKind::Document, "d");
    let (first, second) = tokio::join!(api.call(&key, "system", vec![create()]), api.call(&key, "system", vec![create()]));
    assert!(matches!(first, Err(CallError::Unanswered)), "{first:?}");
    assert!(matches!(second, Err(CallError::Busy)), "{second:?}");
}
