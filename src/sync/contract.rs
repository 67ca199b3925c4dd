//! The suite every ObjectStore must pass. Run over each backend's `open`; a store is closed and opened again by calling it anew on the same place.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::{Checkpoint, Error, Head, Life, ObjectStore, ObjectWrite, RouterCommit, Row, Seek, naming};
use crate::event::identity::{Entry, EventEntry, IdentityKey};
use crate::event::{ObjectKey, ObjectKind, SiteId, Timestamp};

/// Opens the store under test, always at the same place.
pub(crate) type Open<'a> = &'a (dyn Fn() -> BoxFuture<'static, Arc<dyn ObjectStore>> + Sync);

pub(crate) fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() }
}

pub(crate) fn map(name: &str) -> ObjectKey {
    key(ObjectKind::Map, name)
}

const DAY: i64 = 86_400;

fn day(n: i64) -> Timestamp {
    Timestamp::ZERO.plus_seconds(n * DAY)
}

pub(crate) fn row(item: &str, event_id: u64, state: Option<&str>) -> Row {
    Row { item: item.into(), revision: 1, event_id, updated_at: day(1), life: Life::default(), state: state.map(|s| s.as_bytes().to_vec()) }
}

pub(crate) fn write(key: &ObjectKey, event_id: u64, rows: Vec<Row>) -> ObjectWrite {
    let head =
        Head { event_id, revision: event_id, upto: event_id * 10, created_at: day(1), updated_at: day(2), bucket_millis: 500, ..Head::default() };
    ObjectWrite { key: key.clone(), head, rows, purge: Vec::new(), clear: false, list: true, ended: Vec::new() }
}

/// All partitions: the suite owns each.
const ALL: [u16; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn at(mut write: ObjectWrite, updated_at: Timestamp) -> ObjectWrite {
    write.head.updated_at = updated_at;
    write
}

fn removed(mut write: ObjectWrite) -> ObjectWrite {
    write.head.removed_at = Some(write.head.updated_at);
    write.clear = true;
    write
}

async fn put(store: &dyn ObjectStore, writes: Vec<ObjectWrite>) {
    store.commit_objects(writes, Vec::new()).await.unwrap();
}

async fn items(store: &dyn ObjectStore, key: &ObjectKey) -> Option<(u64, Vec<(String, Option<String>)>)> {
    let found = store.load(std::slice::from_ref(key)).await.unwrap().pop().unwrap()?;
    let text = |state: Vec<u8>| String::from_utf8(state).unwrap();
    Some((found.head.event_id, found.rows.into_iter().map(|row| (row.item, row.state.map(text))).collect()))
}

async fn names(found: Result<Vec<(ObjectKey, Head)>, Error>) -> Vec<String> {
    found.unwrap().into_iter().map(|(key, _)| key.name).collect()
}

/// What is written is what is loaded: rows put, tombstones, purged rows, cleared objects; in the order asked for.
pub(crate) async fn objects_come_back_as_written(open: Open<'_>) {
    let store = open().await;
    let (a, b, document) = (map("a"), map("ab"), key(ObjectKind::Document, "a"));
    let whole = write(&a, 3, vec![row("x", 1, Some("1")), row("", 2, Some("2")), row("é", 3, None)]);
    put(&*store, vec![whole.clone(), write(&document, 9, vec![row("", 9, Some("d"))])]).await;
    let found = store.load(&[b.clone(), document.clone(), a.clone()]).await.unwrap();
    assert_eq!(found[0], None);
    assert_eq!(found[1].as_ref().unwrap().head.event_id, 9);
    let loaded = found[2].clone().unwrap();
    assert_eq!((loaded.key, loaded.head), (a.clone(), whole.head));
    let mut rows = whole.rows;
    rows.sort_by(|x, y| x.item.cmp(&y.item));
    assert_eq!(loaded.rows, rows);

    let mut next = write(&a, 4, vec![row("x", 4, Some("11"))]);
    next.purge = vec!["é".into(), "never was".into()];
    put(&*store, vec![next]).await;
    assert_eq!(items(&*store, &a).await.unwrap(), (4, vec![(String::new(), Some("2".into())), ("x".into(), Some("11".into()))]));

    let mut anew = write(&a, 5, vec![row("y", 5, Some("3"))]);
    anew.clear = true;
    put(&*store, vec![anew]).await;
    assert_eq!(items(&*store, &a).await.unwrap(), (5, vec![("y".into(), Some("3".into()))]));
    assert_eq!(items(&*store, &document).await.unwrap().0, 9, "another kind of the same name is another object");

    // Two writes of one object in one commit: the later one holds.
    put(&*store, vec![write(&b, 1, vec![row("i", 1, Some("1"))]), write(&b, 2, vec![row("i", 2, Some("2"))])]).await;
    assert_eq!(items(&*store, &b).await.unwrap(), (2, vec![("i".into(), Some("2".into()))]));
    store.close().await.unwrap();
}

/// Everything is there after closing and opening again, and nothing is taken once closed.
pub(crate) async fn all_survives_reopening(open: Open<'_>) {
    let store = open().await;
    let checkpoint = Checkpoint { next: 77, seen: vec![None, Some((5, 2))] };
    store.commit_objects(vec![write(&map("a"), 1, vec![row("x", 1, Some("1"))])], vec![(3, checkpoint.clone())]).await.unwrap();
    store
        .commit_router(vec![RouterCommit { partition: 2, next: 9, received_at: day(3), sighted: vec![[7; 16]], ..RouterCommit::default() }])
        .await
        .unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.commit_objects(Vec::new(), Vec::new()).await, Err(Error::Closed)));
    assert!(matches!(store.load(&[map("a")]).await, Err(Error::Closed)));
    drop(store);
    let store = open().await;
    assert_eq!(items(&*store, &map("a")).await.unwrap().0, 1);
    assert_eq!(store.checkpoint(3).await.unwrap(), checkpoint);
    assert_eq!(store.checkpoint(4).await.unwrap(), Checkpoint::default());
    assert_eq!(store.router_next(2).await.unwrap(), 9);
    assert_eq!(store.router_next(3).await.unwrap(), 0);
    let (events, changes) = store.offsets().await.unwrap();
    assert_eq!((events.len(), events[2], events[3], changes[3], changes[4]), (16, 9, 0, 77, 0));
    assert_eq!(store.sighted(2, &[[7; 16], [8; 16]]).await.unwrap(), [[7; 16]]);
    assert_eq!(store.sighted(3, &[[7; 16]]).await.unwrap(), Vec::<[u8; 16]>::new());
    let (events, changes) = store.durable().await.unwrap();
    assert_eq!((events[2], events[3], changes[3], changes[4]), (9, 0, 77, 0));
    store.close().await.unwrap();
}

/// Router state: entries by key, later ones in place of earlier ones.
pub(crate) async fn identities_are_remembered(open: Open<'_>) {
    let store = open().await;
    let entry = |first: u64| Entry::Event(EventEntry { first, fingerprints: vec![first] });
    let keys: Vec<IdentityKey> = (0..50u8).map(|n| IdentityKey([n; 16])).collect();
    let entries: Vec<(IdentityKey, Entry)> = keys.iter().take(40).map(|key| (*key, entry(1))).collect();
    let commit = |next, entries| RouterCommit { partition: 1, next, received_at: day(20_000), entries, sighted: Vec::new() };
    store.commit_router(vec![commit(40, entries)]).await.unwrap();
    store.commit_router(vec![commit(41, vec![(keys[3], entry(2))])]).await.unwrap();
    let mut found = store.identities(1, &keys).await.unwrap();
    found.sort_by_key(|(key, _)| *key);
    assert_eq!(found.len(), 40);
    assert_eq!((&found[3].1, &found[4].1), (&entry(2), &entry(1)));
    assert_eq!(store.router_next(1).await.unwrap(), 41);
    store.close().await.unwrap();
}

/// Listing: living objects of one site and kind, by prefix, in name order, page by page.
pub(crate) async fn listing_is_in_name_order(open: Open<'_>) {
    let store = open().await;
    let mut writes: Vec<ObjectWrite> =
        ["p.b", "p.a", "p", "q.a", "p.c", "p.é"].iter().map(|name| write(&map(name), 1, vec![row("x", 1, Some("1"))])).collect();
    writes.push(write(&key(ObjectKind::List, "p.list"), 1, Vec::new()));
    let mut other = map("p.other");
    other.site = SiteId::parse("demo-2").unwrap();
    writes.push(write(&other, 1, Vec::new()));
    put(&*store, writes).await;
    put(&*store, vec![removed(write(&map("p.c"), 2, Vec::new()))]).await;
    let site = SiteId::parse("demo").unwrap();
    let list = |prefix: &'static str, seek: Seek<&'static str>, limit| {
        let (store, site) = (&store, &site);
        async move { names(store.list(site, ObjectKind::Map, prefix, seek, limit).await).await }
    };
    assert_eq!(list("p.", Seek::First, 10).await, ["p.a", "p.b", "p.é"]);
    assert_eq!(list("p.", Seek::First, 2).await, ["p.a", "p.b"]);
    assert_eq!(list("p.", Seek::After("p.b"), 2).await, ["p.é"]);
    assert_eq!(list("p.", Seek::After("a"), 2).await, ["p.a", "p.b"]);
    assert_eq!(list("", Seek::First, 10).await, ["p", "p.a", "p.b", "p.é", "q.a"]);
    assert_eq!(list("", Seek::After("p.zz"), 10).await, ["p.é", "q.a"]);
    assert_eq!(list("r", Seek::First, 10).await, Vec::<String>::new());
    assert_eq!(list("", Seek::Before("q.a"), 2).await, ["p.é", "p.b"]);
    assert_eq!(list("", Seek::Before("p.zz"), 10).await, ["p.b", "p.a", "p"]);
    assert_eq!(list("p.", Seek::Before("z"), 10).await, ["p.é", "p.b", "p.a"]);
    assert_eq!(list("p.", Seek::Before("p.b"), 10).await, ["p.a"]);
    assert_eq!(list("p.", Seek::Before("p."), 10).await, Vec::<String>::new());
    assert_eq!(list("p.", Seek::Before("a"), 10).await, Vec::<String>::new());

    // So many that each part of what a store looks through has more than a page asks of it, and so few living that it has to look again.
    let name = |n: usize| format!("many.{n:04}");
    put(&*store, (0..1_000).map(|n| write(&map(&name(n)), 1, Vec::new())).collect()).await;
    put(&*store, (0..1_000).filter(|n| n % 20 != 0).map(|n| removed(write(&map(&name(n)), 2, Vec::new()))).collect()).await;
    let mut left: Vec<String> = (0..1_000).step_by(20).map(name).collect();
    for back in [false, true] {
        let (mut seek, mut found) = (if back { Seek::Before("n".to_owned()) } else { Seek::First }, Vec::new());
        loop {
            let page = names(store.list(&site, ObjectKind::Map, "many.", seek.as_deref(), 40).await).await;
            let Some(last) = page.last() else { break };
            seek = if back { Seek::Before(last.clone()) } else { Seek::After(last.clone()) };
            found.extend(page);
        }
        if back {
            left.reverse();
        }
        assert!(found == left, "back {back}: {} of {}", found.len(), left.len());
    }
    store.close().await.unwrap();
}

/// What expiry asks for: by last change, which every write may move; tombstones apart, and only they are purged.
pub(crate) async fn stale_objects_and_tombstones(open: Open<'_>) {
    let store = open().await;
    let put_at = |name: &str, updated_at| at(write(&map(name), 1, vec![row("x", 1, Some("1"))]), updated_at);
    let put_again = |name: &str, updated_at| at(write(&map(name), 2, vec![row("x", 2, Some("2"))]), updated_at);
    put(&*store, vec![put_at("customer.b", day(5)), put_at("customer.a", day(6)), put_at("customer.c", day(1)), put_at("page.x", day(1))]).await;
    assert_eq!(names(store.stale(&ALL, "customer.", day(6), 10).await).await, ["customer.c", "customer.b"], "before is exclusive");
    assert_eq!(names(store.stale(&ALL, "customer.", day(9), 2).await).await, ["customer.c", "customer.b"]);
    assert_eq!(names(store.stale(&ALL, "", day(2), 10).await).await.len(), 2);
    put(&*store, vec![put_again("customer.c", day(8))]).await;
    assert_eq!(names(store.stale(&ALL, "customer.", day(9), 10).await).await, ["customer.b", "customer.a", "customer.c"]);

    put(&*store, vec![removed(put_again("customer.b", day(7)))]).await;
    assert_eq!(names(store.stale(&ALL, "customer.", day(9), 10).await).await, ["customer.a", "customer.c"]);
    assert_eq!(names(store.tombstones(&ALL, day(8), 10).await).await, ["customer.b"]);
    assert_eq!(names(store.tombstones(&ALL, day(7), 10).await).await, Vec::<String>::new());
    // Of the partitions asked for, and no other counts for the limit.
    for name in ["customer.a", "customer.c"] {
        let own = [map(name).partition()];
        assert_eq!(names(store.stale(&own, "customer.", day(9), 1).await).await, [name]);
    }
    assert_eq!(names(store.tombstones(&[map("customer.b").partition()], day(8), 10).await).await, ["customer.b"]);
    assert_eq!(names(store.tombstones(&[(map("customer.b").partition() + 1) % 16], day(8), 10).await).await, Vec::<String>::new());
    store.purge(&[map("customer.a"), map("customer.b"), map("customer.none")]).await.unwrap();
    assert!(items(&*store, &map("customer.a")).await.is_some(), "a living object is not purged");
    assert_eq!(items(&*store, &map("customer.b")).await, None);
    assert_eq!(names(store.tombstones(&ALL, day(9), 10).await).await, Vec::<String>::new());
    // What comes again under a purged name is listed, and looked at, as any other.
    put(&*store, vec![at(write(&map("customer.b"), 3, vec![row("x", 3, Some("3"))]), day(7))]).await;
    assert_eq!(items(&*store, &map("customer.b")).await.unwrap().0, 3);
    assert_eq!(names(store.stale(&ALL, "customer.", day(8), 10).await).await, ["customer.a", "customer.b"]);
    assert!(names(store.list(&map("x").site, ObjectKind::Map, "customer.", Seek::First, 10).await).await.contains(&"customer.b".to_owned()));
    store.close().await.unwrap();
}

/// SIDs find what is listed under them; what has a lifetime is asked for by its end and is among no others.
pub(crate) async fn sids_and_lifetimes(open: Open<'_>) {
    let store = open().await;
    let (site, number) = (map("a").site, |name: &str, life: u64| naming::sid_number(&map(name), life));
    let lives = |name: &str, event_id, incarnation, next_expiry| {
        let mut write = at(write(&map(name), event_id, vec![row("x", event_id, Some("1"))]), day(1));
        (write.head.incarnation, write.head.next_expiry) = (incarnation, next_expiry);
        write
    };
    put(&*store, vec![lives("a", 1, 7, None), lives("b", 1, 7, Some(day(3))), lives("c", 1, 0, Some(day(5)))]).await;
    let found = async |life, name| store.by_sid(&site, ObjectKind::Map, &number(name, life)).await.unwrap().map(|key| key.name);
    assert_eq!((found(7, "a").await, found(7, "b").await, found(0, "c").await), (Some("a".into()), Some("b".into()), Some("c".into())));
    assert_eq!((found(8, "a").await, found(0, "a").await), (None, None));
    assert_eq!(store.by_sid(&site, ObjectKind::List, &number("a", 7)).await.unwrap(), None, "of another kind");
    let other = SiteId::parse("other").unwrap();
    assert_eq!(store.by_sid(&other, ObjectKind::Map, &number("a", 7)).await.unwrap(), None, "of another site");

    assert_eq!(names(store.expiring(&ALL, day(2), 10).await).await, Vec::<String>::new());
    assert_eq!(names(store.expiring(&ALL, day(3), 10).await).await, ["b"], "inclusive");
    assert_eq!(names(store.expiring(&ALL, day(9), 10).await).await, ["b", "c"]);
    assert_eq!(names(store.expiring(&ALL, day(9), 1).await).await, ["b"]);
    assert_eq!(names(store.expiring(&[(map("b").partition() + 1) % 16], day(4), 10).await).await, Vec::<String>::new());
    assert_eq!(names(store.stale(&ALL, "", day(9), 10).await).await, ["a"]);

    // Another life of one, and one that is removed: under its SID it is found until it is purged.
    let mut anew = lives("a", 2, 8, Some(day(4)));
    anew.ended = vec![7];
    put(&*store, vec![anew, removed(lives("b", 2, 7, None))]).await;
    assert_eq!((found(7, "a").await, found(8, "a").await), (None, Some("a".into())));
    assert_eq!(names(store.expiring(&ALL, day(9), 10).await).await, ["a", "c"]);
    assert_eq!(found(7, "b").await, Some("b".into()));
    store.purge(&[map("b")]).await.unwrap();
    assert_eq!(found(7, "b").await, None);
    store.close().await.unwrap();
    drop(store);
    let store = open().await;
    let found = store.by_sid(&site, ObjectKind::Map, &number("a", 8)).await.unwrap();
    assert_eq!(found, Some(map("a")));
    assert_eq!(names(store.expiring(&ALL, day(9), 10).await).await, ["a", "c"]);
    store.close().await.unwrap();
}

/// Commits from many callers at once are all there, and each is visible to its caller when it returns.
pub(crate) async fn commits_are_visible_when_they_return(open: Open<'_>) {
    let store = open().await;
    let one = |n: u64| {
        let store = Arc::clone(&store);
        async move {
            let key = map(&format!("o.{}", n % 7));
            store.commit_objects(vec![write(&key, n, vec![row(&n.to_string(), n, Some("1"))])], vec![]).await.unwrap();
            let (_, rows) = items(&*store, &key).await.unwrap();
            assert!(rows.iter().any(|(item, _)| *item == n.to_string()), "{n} is not visible");
        }
    };
    futures::future::join_all((1..=200).map(one)).await;
    let rows: usize = futures::future::join_all((0..7).map(|n| {
        let store = Arc::clone(&store);
        async move { items(&*store, &map(&format!("o.{n}"))).await.unwrap().1.len() }
    }))
    .await
    .into_iter()
    .sum();
    assert_eq!(rows, 200);
    store.close().await.unwrap();
}
