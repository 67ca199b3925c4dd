//! The objects on a real Cassandra against the suite, and what is their own.

mod faults;

use std::sync::Arc;

use super::object::Encoded;
use super::*;
use crate::cql::testing::{Keyspace, settings};
use crate::event::identity::EventEntry;
use crate::sync::Row;
use crate::sync::contract::{self, map, row, write};
use crate::sync::stored::Shelf;

async fn open(keyspace: &Keyspace) -> Scylla {
    Scylla::open(&keyspace.0, &settings(), Clock::system()).await.unwrap()
}

macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let keyspace = Keyspace::fresh().await;
            let url = keyspace.0.clone();
            contract::$name(&|| {
                let url = url.clone();
                Box::pin(async move { Arc::new(Scylla::open(&url, &settings(), Clock::system()).await.unwrap()) as Arc<dyn ObjectStore> })
            })
            .await;
        })+
    };
}

contract!(
    objects_come_back_as_written,
    all_survives_reopening,
    identities_are_remembered,
    listing_is_in_name_order,
    stale_objects_and_tombstones,
    sids_and_lifetimes,
    commits_are_visible_when_they_return,
);

async fn put(store: &Scylla, writes: Vec<ObjectWrite>) {
    assert_eq!(store.commit_objects(writes, Vec::new()).await.unwrap().len(), 0);
}

/// An object's event id and rows.
async fn stored(store: &Scylla, name: &str) -> (u64, Vec<(String, String)>) {
    let found = store.load(&[map(name)]).await.unwrap().remove(0).unwrap();
    let rows = found.rows.into_iter().map(|row| (row.item, String::from_utf8(row.state.unwrap()).unwrap()));
    (found.head.event_id, rows.collect())
}

fn rows(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(item, state)| ((*item).to_owned(), (*state).to_owned())).collect()
}

/// A write of map `name` that includes `n` changes.
fn nth(name: &str, n: u64, of: &[(&str, &str)]) -> ObjectWrite {
    write(&map(name), n, of.iter().map(|(item, state)| row(item, n, Some(state))).collect())
}

fn cleared(mut write: ObjectWrite) -> ObjectWrite {
    write.clear = true;
    write
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_owner_writes_late_loses() {
    let keyspace = Keyspace::fresh().await;
    let (former, owner) = (open(&keyspace).await, open(&keyspace).await);
    put(&former, vec![nth("a", 1, &[("x", "1"), ("y", "1")]), nth("b", 1, &[("x", "1")]), nth("c", 1, &[("x", "1")])]).await;
    // The owner is beyond what the former one writes late: with a row, with all rows taken away, with nothing of that row.
    put(&owner, vec![nth("a", 3, &[("x", "3"), ("y", "2")]), cleared(nth("b", 3, &[("z", "3")]))]).await;
    put(&former, vec![nth("a", 2, &[("y", "2")]), nth("b", 2, &[("x", "2"), ("y", "2")])]).await;
    // The former one is beyond the owner, which has not come to there: its write is whole, and what the owner then writes on the way changes nothing.
    put(&former, vec![nth("c", 4, &[("x", "4"), ("y", "3")])]).await;
    put(&owner, vec![nth("c", 2, &[("x", "2")])]).await;
    for store in [&former, &owner, &open(&keyspace).await] {
        assert_eq!(stored(store, "a").await, (3, rows(&[("x", "3"), ("y", "2")])));
        assert_eq!(stored(store, "b").await, (3, rows(&[("z", "3")])));
        assert_eq!(stored(store, "c").await, (4, rows(&[("x", "4"), ("y", "3")])));
    }
    put(&owner, vec![nth("c", 5, &[("z", "5")])]).await;
    assert_eq!(stored(&owner, "c").await, (5, rows(&[("x", "4"), ("y", "3"), ("z", "5")])));

    let at = |next| (3, Checkpoint { next, seen: vec![Some((next, 0))] });
    owner.commit_objects(Vec::new(), vec![at(30)]).await.unwrap();
    former.commit_objects(Vec::new(), vec![at(20)]).await.unwrap();
    let known = IdentityKey([7; 16]);
    let routed = |next| {
        let entries = vec![(known, Entry::Event(EventEntry { first: 1, fingerprints: vec![next] }))];
        RouterCommit { partition: 3, next, entries, ..RouterCommit::default() }
    };
    owner.commit_router(vec![routed(30)]).await.unwrap();
    former.commit_router(vec![routed(20)]).await.unwrap();
    for store in [&former, &owner, &open(&keyspace).await] {
        assert_eq!(store.checkpoint(3).await.unwrap(), at(30).1);
        assert_eq!(store.router_next(3).await.unwrap(), 30);
        let entry = store.identities(3, &[known]).await.unwrap().remove(0).1;
        assert_eq!(entry, Entry::Event(EventEntry { first: 1, fingerprints: vec![30] }));
    }
}

/// A write of so many rows of 10 KiB, beyond what one mutation takes from 26 on.
fn large(n: u64, count: usize) -> ObjectWrite {
    let state = n.to_string().repeat(10 << 10);
    let rows: Vec<Row> = (0..count).map(|item| row(&format!("{item:04}"), n, Some(&state))).collect();
    write(&map("large"), n, rows)
}

/// Writes of it only what a keeper that dies gets to: so many chunks, then so many rows.
async fn die_after(store: &Scylla, write: &ObjectWrite, chunks: usize, rows: usize) {
    let (key, encoded) = (&write.key, Encoded::of(write));
    let mut all = encoded.chunks(key).unwrap();
    assert!(all.len() > 2, "several chunks");
    all.truncate(chunks);
    store.cluster.write(all).await.unwrap();
    store.cluster.write(encoded.body(key).unwrap().into_iter().map(|(_, piece)| piece).take(rows).collect()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_writes_are_whole_or_not_there() {
    let keyspace = Keyspace::fresh().await;
    let store = open(&keyspace).await;
    // As one mutation, far beyond Cassandra's limit of batches, 50 KiB; then as several, read in several pages.
    for (n, count) in [(1, 20), (2, 900)] {
        put(&store, vec![large(n, count)]).await;
        let found = store.load(&[map("large")]).await.unwrap().remove(0).unwrap();
        assert_eq!(found.rows, large(n, count).rows);
        assert_eq!(found.head.event_id, n);
    }
    const CHUNKS: &str = "SELECT item FROM object WHERE site = 'demo' AND kind = 2 AND name = 'large' AND item >= 0x02";
    let left: Vec<(Vec<u8>,)> = store.cluster.rows(CHUNKS, ()).await.unwrap();
    assert_eq!(left.len(), 0, "no chunk stays");
    assert_eq!(stored(&store, "large").await.1.len(), 900);

    // One that lacks a chunk was not begun.
    die_after(&store, &large(3, 80), 2, 0).await;
    let store = open(&keyspace).await;
    assert_eq!(stored(&store, "large").await.0, 2);
    // One that is whole is read as such, whatever is there of its rows, and no later write leaves the rest of it behind.
    for (n, rows_there) in [(4, 0), (6, 40), (8, 80)] {
        die_after(&store, &cleared(large(n, 80)), usize::MAX, rows_there).await;
        for store in [&store, &open(&keyspace).await] {
            let found = store.load(&[map("large")]).await.unwrap().remove(0).unwrap();
            assert_eq!((found.head.event_id, found.rows), (n, large(n, 80).rows));
        }
        let store = open(&keyspace).await;
        store.load(&[map("large")]).await.unwrap();
        put(&store, vec![nth("large", n + 1, &[("0000", "small")])]).await;
        let (event_id, rows) = stored(&open(&keyspace).await, "large").await;
        let state = n.to_string().repeat(10 << 10);
        assert_eq!((event_id, rows.len(), &*rows[0].1), (n + 1, 80, "small"));
        assert!(rows.iter().skip(1).all(|(_, of)| *of == state));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_refused_for_good_is_frozen_alone() {
    let keyspace = Keyspace::fresh().await;
    let store = open(&keyspace).await;
    put(&store, vec![nth("long", 1, &[("x", "1")]), nth("wide", 1, &[("x", "1")])]).await;
    // What the server refuses, and what it would only say it cannot do just now.
    let long = nth("long", 2, &[("x", "2"), (&"n".repeat(70_000), "2")]);
    let wide = nth("wide", 2, &[("x", &"2".repeat(9 << 20))]);
    let checkpoint = Checkpoint { next: 9, seen: Vec::new() };
    let refused = store.commit_objects(vec![long, wide, nth("well", 2, &[("x", "2")])], vec![(1, checkpoint.clone())]).await.unwrap();
    let names: BTreeSet<&str> = refused.iter().map(|(key, _)| key.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["long", "wide"]));
    assert!(refused.iter().all(|(_, error)| !error.is_retryable()));
    // So it stays, also where a later write goes through.
    put(&store, vec![nth("long", 3, &[("y", "3")])]).await;
    for store in [&store, &open(&keyspace).await] {
        for name in ["long", "wide"] {
            let error = store.load(&[map(name)]).await.unwrap_err();
            assert!(matches!(&error, Error::Corrupt { what, .. } if what.contains("refused")), "{error}");
        }
        assert_eq!(stored(store, "well").await, (2, rows(&[("x", "2")])));
        assert_eq!(store.checkpoint(1).await.unwrap(), checkpoint);
    }
}

/// Long enough for some reads and writes on a busy machine.
const WINDOW: Duration = Duration::from_secs(6);

/// Opens with a window that can be waited for.
async fn open_within(keyspace: &Keyspace) -> Scylla {
    Scylla::open(&keyspace.0, &cql::Settings { safety_window: WINDOW, ..settings() }, Clock::system()).await.unwrap()
}

/// Goes to an offset of partition 3, by router and keeper.
async fn go(store: &Scylla, next: u64) {
    store.commit_objects(Vec::new(), vec![(3, Checkpoint { next, seen: vec![Some((next, 1))] })]).await.unwrap();
    store.commit_router(vec![RouterCommit { partition: 3, next, ..RouterCommit::default() }]).await.unwrap();
}

async fn begin(store: &Scylla) -> (u64, u64) {
    let checkpoint = store.checkpoint(3).await.unwrap();
    assert!(checkpoint.next == 0 || checkpoint.seen == [Some((checkpoint.next, 1))]);
    (store.router_next(3).await.unwrap(), checkpoint.next)
}

async fn durable(store: &Scylla) -> (u64, u64) {
    let (routers, keepers) = store.durable().await.unwrap();
    (routers[3], keepers[3])
}

/// Makes what is stored look as if a node had begun anew since.
async fn forge_restart(store: &Scylla) {
    for reader in [Reader::Router, Reader::Keeper] {
        let place = store.take_over(reader, 3).await.unwrap();
        let other = store.cluster.boots().unwrap().into_iter().map(|(host, generation)| (host, generation - 1)).collect();
        // As of a greater number: the same offset decides by bytes.
        let place = Place { next: place.next + 1, ..place };
        store.put_places(reader, vec![(3, place)], &Some(other)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_node_began_anew_readers_go_back_beyond_the_window() {
    let keyspace = Keyspace::fresh().await;
    let store = open_within(&keyspace).await;
    assert_eq!(begin(&store).await, (0, 0));
    go(&store, 10).await;
    assert_eq!(begin(&open_within(&keyspace).await).await, (10, 10), "where no node began anew, nothing is read again");
    tokio::time::sleep(WINDOW).await;
    go(&store, 20).await;
    put(&store, vec![nth("product.a", 1, &[("x", "1")])]).await;
    forge_restart(&store).await;

    let next = open_within(&keyspace).await;
    assert_eq!(begin(&next).await, (10, 10));
    assert_eq!(begin(&next).await, (10, 10), "in its new life");
    // The former life is over, whatever is written of it.
    go(&store, 25).await;
    assert_eq!(next.offsets().await.unwrap().0[3], 10);
    // What was stored before the node began anew is no longer begun at, however old it gets.
    tokio::time::sleep(WINDOW).await;
    go(&next, 15).await;
    forge_restart(&next).await;
    let again = open_within(&keyspace).await;
    assert_eq!(begin(&again).await, (10, 10), "15 was too young, and 20 of another life");
    go(&again, 18).await;
    assert_eq!(begin(&open_within(&keyspace).await).await, (18, 18));

    // The lists that may be lost are put again for what is loaded.
    for table in ["object_name", "object_hour", "listed_hour"] {
        let truncate: &'static str = format!("TRUNCATE {table}").leak();
        again.cluster.write(vec![Write::new(truncate, ())]).await.unwrap();
    }
    let listed = async || again.list(&map("").site, ObjectKind::Map, "", Seek::First, 9).await.unwrap().len();
    let stale = async || again.stale(&[map("product.a").partition()], "product.", Timestamp::MAX, 9).await.unwrap().len();
    assert_eq!((listed().await, stale().await), (0, 0));
    again.load(&[map("product.a")]).await.unwrap();
    assert_eq!((listed().await, stale().await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_whose_places_were_carried_here_go_back_no_further() {
    let keyspace = Keyspace::fresh().await;
    let store = open_within(&keyspace).await;
    go(&store, 40).await;
    store.adopted().await.unwrap();
    forge_restart(&store).await;
    assert_eq!(begin(&open_within(&keyspace).await).await, (40, 40), "the log that was carried with them begins there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_another_process_removed_is_listed_anew_when_it_comes_back() {
    for purged in [false, true] {
        let keyspace = Keyspace::fresh().await;
        let (one, other) = (open(&keyspace).await, open(&keyspace).await);
        let living = |n| nth("visitor.v", n, &[("x", "1")]);
        let mut removed = cleared(write(&map("visitor.v"), 2, Vec::new()));
        removed.head.removed_at = Some(removed.head.updated_at);
        put(&one, vec![living(1)]).await;
        other.load(&[map("visitor.v")]).await.unwrap();
        put(&other, vec![removed]).await;
        if purged {
            other.purge(&[map("visitor.v")]).await.unwrap();
        }
        assert_eq!(one.load(&[map("visitor.v")]).await.unwrap()[0].is_none(), purged);
        put(&one, vec![living(3)]).await;
        let stale = one.stale(&[map("visitor.v").partition()], "visitor.", Timestamp::MAX, 9).await.unwrap();
        assert_eq!(stale.len(), 1, "else it would never expire");
        assert_eq!(one.list(&map("").site, ObjectKind::Map, "", Seek::First, 9).await.unwrap().len(), 1, "purged: {purged}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_is_what_the_base_has_been_for_a_window() {
    let keyspace = Keyspace::fresh().await;
    let store = open_within(&keyspace).await;
    go(&store, 10).await;
    assert_eq!(durable(&store).await, (0, 0));
    tokio::time::sleep(WINDOW).await;
    // 10 becomes the base now, though no reader moves.
    assert_eq!(durable(&store).await, (0, 0));
    go(&store, 20).await;
    tokio::time::sleep(WINDOW).await;
    assert_eq!(durable(&store).await, (10, 10));
    assert_eq!(durable(&open_within(&keyspace).await).await, (0, 0), "a process that begins does not know how long what it finds has stood");
    tokio::time::sleep(WINDOW).await;
    assert_eq!(durable(&store).await, (20, 20));
    forge_restart(&store).await;
    assert_eq!(begin(&open_within(&keyspace).await).await, (20, 20), "never behind what was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_forgets_events_as_its_partition_moves_on() {
    let keyspace = Keyspace::fresh().await;
    let store = open(&keyspace).await;
    let start = Timestamp::parse("2026-11-20T00:00:00Z").unwrap();
    let known = IdentityKey([7; 16]);
    let entries = vec![(known, Entry::Event(EventEntry { first: 1, fingerprints: vec![1] }))];
    store.commit_router(vec![RouterCommit { partition: 3, next: 1, received_at: start, entries, sighted: Vec::new() }]).await.unwrap();
    for (next, after, there) in [(2, EVENT_MEMORY_SECONDS, 1), (3, EVENT_MEMORY_SECONDS + 3_600, 0)] {
        let received_at = start.plus_seconds(after);
        store.commit_router(vec![RouterCommit { partition: 3, next, received_at, ..RouterCommit::default() }]).await.unwrap();
        let fresh = open(&keyspace).await;
        fresh.router_next(3).await.unwrap();
        for store in [&store, &fresh] {
            assert_eq!(store.identities(3, &[known]).await.unwrap().len(), there);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_no_longer_true_go() {
    let keyspace = Keyspace::fresh().await;
    let count = async |store: &Scylla, cql: &'static str| store.cluster.rows::<(i64,)>(cql, ()).await.unwrap()[0].0;
    const LINES: &str = "SELECT count(*) FROM object_hour";
    const HOURS: &str = "SELECT count(*) FROM listed_hour";
    let at = |n: u64, hour: i64| {
        let mut write = nth("customer.a", n, &[("x", "1")]);
        write.head.updated_at = Timestamp::ZERO.plus_seconds(hour * 3_600);
        write
    };
    let part = [map("customer.a").partition()];
    // A process that knows where it was listed moves it.
    let store = open(&keyspace).await;
    put(&store, vec![at(1, 1)]).await;
    put(&store, vec![at(2, 2)]).await;
    assert_eq!((count(&store, LINES).await, count(&store, HOURS).await), (1, 2));
    // One that does not leaves the line, until somebody looks at it.
    let store = open(&keyspace).await;
    put(&store, vec![at(3, 3)]).await;
    assert_eq!((count(&store, LINES).await, count(&store, HOURS).await), (2, 3));
    let stale = async |hour: i64| store.stale(&part, "customer.", Timestamp::ZERO.plus_seconds(hour * 3_600), 9).await.unwrap().len();
    assert_eq!(stale(3).await, 0);
    assert_eq!((count(&store, LINES).await, count(&store, HOURS).await), (1, 1));
    assert_eq!(stale(4).await, 1);
    // A line made for a write that has not come yet stays.
    let early = Hour::of(&map("customer.a"), (Shelf::Living, 1));
    store.cluster.write(vec![early.put(&map("customer.a"), 50).unwrap(), early.put_hour(Timestamp::ZERO)]).await.unwrap();
    assert_eq!(stale(4).await, 1);
    assert_eq!(count(&store, LINES).await, 2);
}
