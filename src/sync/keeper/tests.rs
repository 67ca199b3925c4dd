//! The keeper's machine, stepped by hand: budgets, checkpoints, restarts at any point, frozen objects, memory.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::state::{Counts, KeeperState};
use super::*;
use crate::event::change::{Merge, Op, Origin, Stamp};
use crate::event::{Change, Timestamp};
use crate::eventlog::Stored;
use crate::eventlog::embedded::{EmbeddedLog, Settings};
use crate::sync::contract::map;
use crate::sync::embedded::EmbeddedStore;
use crate::sync::feed::{self, LocalFeed};
use crate::sync::{Checkpoint, ObjectWrite, StoredObject, Update};

const START: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

fn ms(n: i64) -> Timestamp {
    START.plus_micros(n * 1_000)
}

fn add(key: &ObjectKey, source: u64, number: u16) -> Change {
    let origin = Origin::Event { partition: 0, offset: source, number };
    let ops = vec![Op::Merge { item: "activity".into(), field: "views".into(), with: Merge::Add(1) }];
    Change { key: key.clone(), origin, received_at: START, stamp: Stamp { at: START, id: source.to_string() }, ops }
}

fn stored(offset: u64, change: &Change) -> Stored {
    Stored { offset, value: change.to_bytes() }
}

fn state() -> KeeperState {
    KeeperState::new(Expiry::default(), Duration::from_millis(10), 1 << 20, 1 << 20)
}

/// A store that keeps what is handed to it, in order.
#[derive(Clone, Default)]
struct Shelf {
    objects: BTreeMap<ObjectKey, StoredObject>,
    checkpoints: BTreeMap<u16, Checkpoint>,
    /// When each object was written.
    writes: Vec<(ObjectKey, Timestamp)>,
}

impl Shelf {
    fn put(&mut self, flight: &Flight, now: Timestamp) {
        for write in &flight.writes {
            self.writes.push((write.key.clone(), now));
            self.object(write);
        }
        self.checkpoints.extend(flight.checkpoints.iter().cloned());
    }

    fn object(&mut self, write: &ObjectWrite) {
        let empty = || StoredObject { key: write.key.clone(), head: write.head.clone(), rows: Vec::new() };
        let object = self.objects.entry(write.key.clone()).or_insert_with(empty);
        object.head = write.head.clone();
        object.rows.retain(|row| !write.clear && !write.purge.contains(&row.item) && !write.rows.iter().any(|new| new.item == row.item));
        object.rows.extend(write.rows.iter().cloned());
        object.rows.sort_by(|a, b| a.item.cmp(&b.item));
    }

    fn views(&self, key: &ObjectKey) -> (u64, i64) {
        let object = Object::from_stored(self.objects[key].clone()).unwrap().snapshot().unwrap();
        let data: serde_json::Value = serde_json::from_str(&object.items[0].data).unwrap();
        assert_eq!(object.event_id, object.revision);
        (object.revision, data["views"].as_i64().unwrap())
    }

    /// Loads what a batch needs and folds it in.
    fn read(&self, state: &mut KeeperState, partition: u16, records: &[Stored], now: Timestamp) -> Counts {
        let batch = Batch::decode(partition, records);
        for key in state.missing(std::slice::from_ref(&batch)) {
            state.insert(self.objects.get(&key).map_or_else(|| Object::empty(key), |found| Object::from_stored(found.clone()).unwrap()));
        }
        state.read(vec![batch], now).unwrap()
    }
}

/// Asserts that no object was written more than 200 + 20 t times in any t seconds.
fn assert_budget(writes: &[(ObjectKey, Timestamp)]) {
    let mut by_object: BTreeMap<&ObjectKey, Vec<i64>> = BTreeMap::new();
    for (key, at) in writes {
        by_object.entry(key).or_default().push(at.micros());
    }
    for (key, times) in by_object {
        for from in 0..times.len() {
            for (to, last) in times.iter().enumerate().skip(from + 200) {
                let (count, seconds) = ((to - from + 1) as f64, (last - times[from]) as f64 / 1e6);
                assert!(count <= 200.0 + 20.0 * seconds + 1e-6, "{} written {count} times in {seconds} s", key.name);
            }
        }
    }
}

#[test]
fn a_hot_object_stays_in_budget_and_ends_exact() {
    let (hot, calm) = (map("product.hot"), map("product.calm"));
    let partition = hot.partition();
    let (mut shelf, mut state) = (Shelf::default(), state());
    state.assign(partition, Checkpoint::default());
    state.assign(calm.partition(), Checkpoint::default());
    assert_ne!(partition, calm.partition());
    // 5,000 changes in 20 s, then silence.
    for n in 0..5_000u64 {
        let now = ms(n as i64 * 4);
        shelf.read(&mut state, partition, &[stored(n, &add(&hot, n, 0))], now);
        let flight = state.due(now, usize::MAX, |_| false);
        shelf.put(&flight, now);
        state.written(&flight);
    }
    let written = shelf.writes.len();
    assert!((550..=601).contains(&written), "the whole budget is used: {written} writes");
    // An object beside it is written at once while the hot one waits.
    let now = ms(20_000);
    shelf.read(&mut state, calm.partition(), &[stored(0, &add(&calm, 5_000, 0))], now);
    let flight = state.due(now.plus_micros(10_000), usize::MAX, |_| false);
    assert!(flight.writes.iter().any(|write| write.key == calm));
    shelf.put(&flight, now.plus_micros(10_000));
    state.written(&flight);
    while let Some(due) = state.next_due() {
        let flight = state.due(due, usize::MAX, |_| false);
        shelf.put(&flight, due);
        state.written(&flight);
    }
    assert_eq!(shelf.views(&hot), (5_000, 5_000));
    assert_eq!(shelf.views(&calm), (1, 1));
    assert_eq!(state.pending_bytes(), 0);
    assert_budget(&shelf.writes);
}

/// A keeper dies between commit and publishing; its successor reads the same changes in several pieces.
#[test]
fn what_was_committed_and_not_published_is_published_whole_however_it_is_read_again() {
    let key = map("product.p1");
    let partition = key.partition();
    let change = |n: u64| {
        let mut change = add(&key, n, 0);
        change.ops = vec![Op::Merge { item: format!("item-{n}").into(), field: "views".into(), with: Merge::Add(1) }];
        stored(n, &change)
    };
    let mut shelf = Shelf::default();
    let mut died = state();
    died.assign(partition, Checkpoint::default());
    shelf.read(&mut died, partition, &[change(0), change(1), change(2)], ms(0));
    shelf.put(&died.due(ms(10), usize::MAX, |_| true), ms(10));

    let mut state = state();
    state.assign(partition, Checkpoint::default());
    let (mut seen, mut items) = (0, Vec::new());
    for n in 0..4 {
        shelf.read(&mut state, partition, &[change(n)], ms(20 + n as i64 * 20));
        let flight = state.due(ms(30 + n as i64 * 20), usize::MAX, |_| true);
        for (applied, _) in &flight.applied {
            // As a subscriber does.
            assert!(applied.after <= seen, "it would have to read the object");
            if applied.event_id > seen {
                seen = applied.event_id;
                items.extend(applied.rows.iter().map(|row| row.item.clone()));
            }
        }
        state.written(&flight);
        assert_eq!(flight.writes.len(), usize::from(n == 3), "repeats are not written again");
        assert_eq!(state.checkpoints().is_empty(), n < 2, "a place moves only past what is published");
    }
    assert_eq!(items, ["item-0", "item-1", "item-2", "item-3"]);
}

#[test]
fn a_restart_does_not_refill_the_budget() {
    let hot = map("product.hot");
    let mut shelf = Shelf::default();
    let mut n = 0;
    for life in 0..40 {
        let mut state = state();
        let from = shelf.checkpoints.get(&hot.partition()).cloned().unwrap_or_default();
        n = from.next;
        state.assign(hot.partition(), from);
        for step in 0..30 {
            let now = ms(life * 300 + step * 10);
            shelf.read(&mut state, hot.partition(), &[stored(n, &add(&hot, n, 0))], now);
            n += 1;
            let flight = state.due(now, usize::MAX, |_| false);
            shelf.put(&flight, now);
            state.written(&flight);
        }
    }
    assert!(n > 200 && shelf.writes.len() > 200, "{n} changes, {} writes", shelf.writes.len());
    assert_budget(&shelf.writes);
}

/// Drops the machine at random points, forgets the store's last commits now and then, and repeats records as a router does that begins again: the
/// objects end with each change exactly once.
#[test]
fn restarts_and_repeats_change_nothing() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        // A partition is what it delivers: the machine does not look at names.
        let (partition, keys) = (3, (0..6).map(|n| map(&format!("product.{n}"))).collect::<Vec<ObjectKey>>());
        // The log: sources in order, with a stretch repeated whenever the router began again.
        let (mut log, mut source, mut counted) = (Vec::new(), 0u64, BTreeMap::<ObjectKey, i64>::new());
        let mut sources: Vec<Change> = Vec::new();
        while log.len() < 400 {
            if random.random_bool(0.03) && !sources.is_empty() {
                let back = random.random_range(1..=sources.len().min(30));
                log.extend(sources[sources.len() - back..].iter().cloned());
            }
            let change = add(&keys[random.random_range(0..keys.len())], source, 0);
            source += 1;
            *counted.entry(change.key.clone()).or_default() += 1;
            sources.push(change.clone());
            log.push(change);
        }
        let log: Vec<Stored> = log.iter().enumerate().map(|(offset, change)| stored(offset as u64, change)).collect();
        let (mut shelf, mut now) = (Shelf::default(), 0);
        let mut older = shelf.clone();
        loop {
            let mut state = state();
            let from = shelf.checkpoints.get(&partition).cloned().unwrap_or_default();
            let mut at = usize::try_from(from.next).unwrap();
            state.assign(partition, from);
            let life = random.random_range(1..60);
            for _ in 0..life {
                now += random.random_range(0..30);
                let upto = (at + random.random_range(0..8)).min(log.len());
                shelf.read(&mut state, partition, &log[at..upto], ms(now));
                at = upto;
                let flight = state.due(ms(now), random.random_range(1..4), |_| random_bool(now));
                shelf.put(&flight, ms(now));
                // Dropped between commit and publication at times.
                if random.random_bool(0.9) {
                    state.written(&flight);
                } else {
                    break;
                }
            }
            if at == log.len() && state.next_due().is_none() {
                let checkpoints = state.checkpoints();
                shelf.checkpoints.extend(checkpoints);
                if shelf.checkpoints[&partition].next == log.len() as u64 {
                    break;
                }
            }
            if random.random_bool(0.2) {
                // Power loss: the store is older, the log is not.
                let writes = shelf.writes.clone();
                shelf = Shelf { writes, ..older.clone() };
            }
            if random.random_bool(0.3) {
                older = shelf.clone();
            }
        }
        for (key, count) in &counted {
            assert_eq!(shelf.views(key), (u64::try_from(*count).unwrap(), *count), "seed {seed}, {}", key.name);
        }
    }
}

const fn random_bool(n: i64) -> bool {
    n % 2 == 0
}

#[test]
fn the_checkpoint_waits_for_what_is_not_written() {
    let (slow, quick, partition) = (map("product.slow"), map("product.quick"), 3);
    let (shelf, mut state) = (Shelf::default(), state());
    state.assign(partition, Checkpoint::default());
    shelf.read(&mut state, partition, &[stored(0, &add(&quick, 7, 0)), stored(1, &add(&quick, 8, 1))], ms(0));
    assert_eq!(state.checkpoints(), [], "nothing written yet");
    let first = state.due(ms(10), 1, |_| false);
    assert_eq!(first.writes.len(), 1);
    assert_eq!(first.checkpoints, [], "written but not published");
    shelf.read(&mut state, partition, &[stored(2, &add(&slow, 8, 2))], ms(10));
    state.written(&first);
    let seen = |source| {
        let mut seen = vec![None; 16];
        seen[0] = Some(source);
        seen
    };
    assert_eq!(state.checkpoints(), [(partition, Checkpoint { next: 2, seen: seen((8, 1)) })], "W is that of below C");
    let second = state.due(ms(20), 1, |_| false);
    state.written(&second);
    assert_eq!(state.checkpoints(), [(partition, Checkpoint { next: 3, seen: seen((8, 2)) })]);
    assert_eq!(state.checkpoints(), [], "handed out once");
}

#[test]
fn frozen_and_malformed_changes_do_not_hold_the_checkpoint() {
    let (mut state, key) = (state(), map("product.0"));
    let partition = key.partition();
    state.assign(partition, Checkpoint::default());
    let records = [stored(0, &add(&key, 0, 0)), Stored { offset: 1, value: vec![9, 9].into() }];
    let batch = Batch::decode(partition, &records);
    assert_eq!(state.missing(std::slice::from_ref(&batch)), std::slice::from_ref(&key));
    state.freeze(key);
    let counts = state.read(vec![batch], ms(0)).unwrap();
    assert_eq!(counts, Counts { frozen: 1, malformed: 1, ..Counts::default() });
    assert_eq!(state.missing(&[Batch::decode(partition, &records)]), []);
    assert_eq!(state.checkpoints().first().map(|(_, checkpoint)| checkpoint.next), Some(2));
    assert_eq!(state.next_due(), None);
}

#[test]
fn memory_is_bounded_and_only_clean_objects_leave() {
    let mut shelf = Shelf::default();
    let mut state = KeeperState::new(Expiry::default(), Duration::from_millis(10), 20_000, 20_000);
    state.assign(0, Checkpoint::default());
    let mut offset = 0;
    while !state.is_full() {
        shelf.read(&mut state, 0, &[stored(offset, &add(&map(&format!("product.{offset}")), offset, 0))], ms(0));
        offset += 1;
    }
    assert!(state.cached_bytes() > 20_000, "objects with changes stay whatever the bound");
    let flight = state.due(ms(10), usize::MAX, |_| false);
    assert_eq!(flight.writes.len() as u64, offset);
    shelf.put(&flight, ms(10));
    state.written(&flight);
    assert_eq!(state.pending_bytes(), 0);
    shelf.read(&mut state, 0, &[stored(offset, &add(&map("product.last"), offset, 0))], ms(20));
    assert!(state.cached_bytes() <= 20_000, "{}", state.cached_bytes());
}

/// The cache is full, so that what one batch brings drives clean objects out: not those that a later batch of the same reading needs.
#[test]
fn no_batch_drives_out_what_the_next_one_needs() {
    let mut shelf = Shelf::default();
    let mut state = KeeperState::new(Expiry::default(), Duration::from_millis(10), 1 << 20, 4_000);
    let old = map("product.old");
    (0..2).for_each(|partition| state.assign(partition, Checkpoint::default()));
    shelf.read(&mut state, 1, &[stored(0, &add(&old, 0, 0))], ms(0));
    let flight = state.due(ms(10), usize::MAX, |_| false);
    shelf.put(&flight, ms(10));
    state.written(&flight);
    let crowd: Vec<Stored> = (0..50).map(|n| stored(n, &add(&map(&format!("product.{n}")), n, 0))).collect();
    let batches = vec![Batch::decode(0, &crowd), Batch::decode(1, &[stored(1, &add(&old, 1, 0))])];
    for key in state.missing(&batches) {
        state.insert(Object::empty(key));
    }
    let counts = state.read(batches, ms(20)).unwrap();
    assert_eq!(counts, Counts { applied: 51, ..Counts::default() });
    let flight = state.due(ms(30), usize::MAX, |_| false);
    assert_eq!(flight.writes.iter().find(|write| write.key == old).map(|write| write.head.event_id), Some(2));
    assert!(state.read(vec![Batch::decode(1, &[stored(2, &add(&map("product.unknown"), 2, 0))])], ms(40)).is_err(), "not lost without a word");
}

/// The store refused a write for good while further changes came: they are passed over, so that the checkpoint moves and what waits is freed.
#[test]
fn an_object_frozen_with_changes_waiting_holds_up_nothing() {
    let (bad, good) = (map("product.bad"), map("product.good"));
    let (shelf, mut state) = (Shelf::default(), state());
    state.assign(0, Checkpoint::default());
    shelf.read(&mut state, 0, &[stored(0, &add(&bad, 0, 0)), stored(1, &add(&good, 1, 0))], ms(0));
    let flight = state.due(ms(10), usize::MAX, |_| false);
    assert_eq!(flight.writes.len(), 2);
    shelf.read(&mut state, 0, &[stored(2, &add(&bad, 2, 0))], ms(10));
    state.written(&flight);
    assert_eq!(state.lowest().collect::<Vec<_>>(), [(0, 2)]);
    state.freeze(bad.clone());
    assert_eq!(state.lowest().collect::<Vec<_>>(), [(0, 3)]);
    let counts = shelf.read(&mut state, 0, &[stored(3, &add(&bad, 3, 0)), stored(4, &add(&good, 4, 0))], ms(20));
    assert_eq!(counts, Counts { applied: 1, frozen: 1, ..Counts::default() });
    let flight = state.due(ms(40), usize::MAX, |_| false);
    assert_eq!(flight.writes.iter().map(|write| &write.key).collect::<Vec<_>>(), [&good]);
    state.written(&flight);
    assert_eq!((state.pending_bytes(), state.checkpoints().first().map(|(_, at)| at.next)), (0, Some(5)));
}

/// Who subscribes between the taking of a write and its commit may have read the object as it was before: it is told nevertheless, with data.
#[tokio::test]
async fn a_subscriber_that_comes_late_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.path().join("objects.db"), Duration::ZERO).unwrap());
    let log: Arc<dyn EventLog> = Arc::new(EmbeddedLog::open(&dir.path().join("log"), &Settings::default(), &Clock::system()).unwrap());
    let (feed, key) = (LocalFeed::new(feed::Settings::default()), map("product.0"));
    let mut state = state();
    state.assign(key.partition(), Checkpoint::default());
    Shelf::default().read(&mut state, key.partition(), &[stored(0, &add(&key, 0, 0))], ms(0));
    let flight = state.due(ms(10), 10, |key| feed.wanted(key));
    let mut late = feed.subscribe(&key).await.unwrap();
    assert!(store.load(std::slice::from_ref(&key)).await.unwrap()[0].is_none(), "it reads before the commit");
    let committed = flight::commit(log, Arc::clone(&store), flight).await.unwrap();
    flight::publish(store, Arc::new(feed), vec![committed]).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(10), late.next()).await.expect("told");
    let Update::Write(told) = told else { panic!("nothing told") };
    assert_eq!((told.event_id, told.rows.len()), (1, 1));
    assert_eq!(told.rows[0].data.as_deref(), Some("{\"views\":1}"));
}
