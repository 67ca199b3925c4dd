//! The suite that every [`EventLog`] must pass. A backend's tests say how its log is opened ([`Subject`]) and run all of it by [`contract_tests`]. What
//! only one backend promises (power loss, damage) is tested beside that backend.

#![expect(clippy::disallowed_methods, reason = "every handle is awaited in the test that spawns it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;

use super::{Append, Bounds, Consumer, Delivery, Error, EventLog, MAX_RECORD, Stored, Topic};
use crate::event::{PARTITIONS, Timestamp};

/// One log under test, empty at first. Opening it again must find what was in it.
#[async_trait]
pub(crate) trait Subject: Send + Sync {
    async fn open(&self) -> Arc<dyn EventLog>;
}

/// Runs every test of the suite as one of the caller's module, over `$subject`, an expression that makes a fresh [`Subject`].
macro_rules! contract_tests {
    ($subject:expr) => {
        crate::eventlog::contract::contract_tests! { $subject;
            offsets_are_dense_and_in_order, concurrent_appenders_keep_their_order, an_oversized_record_appends_nothing, reads_are_bounded,
            out_of_range_is_told, what_was_appended_is_there_after_reopening, nothing_before_seek, a_waiting_reader_is_woken, every_partition_gets_its_turn,
            members_share_the_partitions, groups_are_independent, pause_resume_seek, a_bad_seek_fails_once, a_dropped_next_loses_nothing,
            commits_survive_reopening, a_group_without_a_store_begins_where_it_says, retention_waits_for_every_group, a_closed_log_says_so
        }
    };
    ($subject:expr; $($test:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let subject = $subject;
                let run = crate::eventlog::contract::$test(&subject);
                tokio::time::timeout(std::time::Duration::from_secs(60), run).await.expect("no progress");
            }
        )+
    };
}
pub(crate) use contract_tests;

const TOPIC: Topic = Topic::Events;
const ALL: usize = 1 << 30;

pub(crate) fn record(partition: u16, text: impl Into<String>) -> Append {
    Append { partition, value: Bytes::from(text.into()) }
}

pub(crate) fn text(stored: &Stored) -> &str {
    std::str::from_utf8(&stored.value).unwrap()
}

/// Everything a partition holds, read in pieces; asserts that it is dense.
pub(crate) async fn read_all(log: &dyn EventLog, topic: Topic, partition: u16) -> Result<Vec<Stored>, Error> {
    let mut at = log.bounds(topic).await?[usize::from(partition)].start;
    let mut all = Vec::new();
    loop {
        let some = log.read(topic, partition, at, 10_000).await?;
        if some.is_empty() {
            return Ok(all);
        }
        for stored in some {
            assert_eq!(stored.offset, at, "dense");
            at += 1;
            all.push(stored);
        }
    }
}

async fn next(reader: &mut dyn Consumer) -> Delivery {
    reader.next(ALL).await.unwrap()
}

/// Takes the first assignment and seeks all of it to 0.
async fn assigned(reader: &mut dyn Consumer) -> Vec<u16> {
    let Delivery::Assigned(partitions) = next(reader).await else { panic!("expected an assignment first") };
    for partition in &partitions {
        reader.seek(*partition, 0);
    }
    partitions
}

/// Reads until `count` records have come, asserting order and density from `from` on; gives them by partition.
async fn collect(reader: &mut dyn Consumer, count: usize) -> BTreeMap<u16, Vec<String>> {
    let (mut seen, mut total) = (BTreeMap::<u16, Vec<String>>::new(), 0);
    while total < count {
        match next(reader).await {
            Delivery::Records { partition, records, next } => {
                assert!(!records.is_empty());
                assert!(records.last().unwrap().offset < next);
                let mine = seen.entry(partition).or_default();
                for stored in &records {
                    assert_eq!(stored.offset, mine.len() as u64, "dense from 0");
                    mine.push(text(stored).to_owned());
                }
                total += records.len();
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(total, count);
    seen
}

async fn fill(log: &dyn EventLog, partitions: u16, each: usize) {
    for n in 0..each {
        log.append(TOPIC, (0..partitions).map(|p| record(p, format!("{p}/{n}"))).collect()).await.unwrap();
    }
}

pub(crate) async fn offsets_are_dense_and_in_order(subject: &dyn Subject) {
    let log = subject.open().await;
    assert_eq!(log.append(TOPIC, vec![]).await, Ok(vec![]));
    let first = log.append(TOPIC, vec![record(3, "a"), record(0, ""), record(3, "b"), record(15, "c")]).await.unwrap();
    assert_eq!(first, [0, 0, 1, 0], "in the order given");
    assert_eq!(log.append(TOPIC, vec![record(3, "d")]).await.unwrap(), [2]);
    assert_eq!(log.append(Topic::Changes, vec![record(3, "other topic")]).await.unwrap(), [0]);
    let third: Vec<String> = read_all(&*log, TOPIC, 3).await.unwrap().iter().map(|s| text(s).to_owned()).collect();
    assert_eq!(third, ["a", "b", "d"]);
    let bounds = log.bounds(TOPIC).await.unwrap();
    assert_eq!(bounds.len(), usize::from(PARTITIONS));
    assert_eq!((bounds[3], bounds[0], bounds[1]), (Bounds { start: 0, next: 3 }, Bounds { start: 0, next: 1 }, Bounds { start: 0, next: 0 }));
}

pub(crate) async fn concurrent_appenders_keep_their_order(subject: &dyn Subject) {
    let log = subject.open().await;
    let callers = (0..8u16).map(|caller| {
        let log = Arc::clone(&log);
        tokio::task::spawn(async move {
            let mut given = Vec::new();
            for n in 0..40 {
                let records: Vec<Append> = (0..5u16).map(|k| record((caller + k * n) % 4, format!("{caller:02} {n:04} {k}"))).collect();
                let offsets = log.append(TOPIC, records.clone()).await.unwrap();
                given.extend(records.into_iter().zip(offsets));
            }
            given
        })
    });
    let mut given = BTreeMap::new();
    for caller in futures::future::join_all(callers).await {
        for (record, offset) in caller.unwrap() {
            assert!(given.insert((record.partition, offset), record.value).is_none(), "an offset is given once");
        }
    }
    let mut count = 0;
    for partition in 0..4 {
        let mut last: BTreeMap<String, String> = BTreeMap::new();
        for stored in read_all(&*log, TOPIC, partition).await.unwrap() {
            assert_eq!(given.get(&(partition, stored.offset)), Some(&stored.value), "each offset holds what its caller was told");
            let (caller, place) = text(&stored).split_at(2);
            assert!(last.insert(caller.to_owned(), place.to_owned()).is_none_or(|before| *before < *place), "one caller's records stay in order");
            count += 1;
        }
    }
    assert_eq!(count, 8 * 40 * 5);
}

pub(crate) async fn an_oversized_record_appends_nothing(subject: &dyn Subject) {
    let log = subject.open().await;
    let large = Append { partition: 1, value: Bytes::from(vec![b'x'; MAX_RECORD + 1]) };
    assert_eq!(log.append(TOPIC, vec![record(1, "small"), large]).await, Err(Error::TooLarge { bytes: MAX_RECORD + 1 }));
    assert_eq!(log.bounds(TOPIC).await.unwrap()[1].next, 0);
    let largest = Append { partition: 1, value: Bytes::from(vec![b'x'; MAX_RECORD]) };
    assert_eq!(log.append(TOPIC, vec![largest]).await.unwrap(), [0]);
    assert_eq!(log.read(TOPIC, 1, 0, 1).await.unwrap()[0].value.len(), MAX_RECORD);
}

pub(crate) async fn reads_are_bounded(subject: &dyn Subject) {
    let log = subject.open().await;
    log.append(TOPIC, (0..10).map(|n| record(2, format!("{n:010}"))).collect()).await.unwrap();
    assert_eq!(log.read(TOPIC, 2, 0, 0).await.unwrap().len(), 1, "always at least one");
    assert_eq!(log.read(TOPIC, 2, 0, 35).await.unwrap().len(), 3);
    let rest = log.read(TOPIC, 2, 7, 30).await.unwrap();
    assert_eq!((rest.len(), rest[0].offset), (3, 7));
    assert_eq!(log.read(TOPIC, 2, 10, ALL).await, Ok(vec![]), "empty at the end");
}

pub(crate) async fn out_of_range_is_told(subject: &dyn Subject) {
    let log = subject.open().await;
    log.append(TOPIC, vec![record(2, "a")]).await.unwrap();
    let expected = Error::OutOfRange { topic: "events", partition: 2, offset: 2, start: 0, next: 1 };
    assert_eq!(log.read(TOPIC, 2, 2, ALL).await, Err(expected));
}

pub(crate) async fn what_was_appended_is_there_after_reopening(subject: &dyn Subject) {
    let mut expected = Vec::new();
    for round in 0..4 {
        let log = subject.open().await;
        for n in 0..5 {
            let value = format!("round {round}, record {n}");
            assert_eq!(log.append(TOPIC, vec![record(5, value.clone()), record(6, value.clone())]).await.unwrap(), [expected.len() as u64; 2]);
            expected.push(value);
        }
        // Every other time the log is only dropped.
        if round % 2 == 0 {
            log.close().await.unwrap();
            log.close().await.unwrap();
        }
    }
    let log = subject.open().await;
    for partition in [5, 6] {
        let held: Vec<String> = read_all(&*log, TOPIC, partition).await.unwrap().iter().map(|s| text(s).to_owned()).collect();
        assert_eq!(held, expected);
    }
}

pub(crate) async fn nothing_before_seek(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 2, 3).await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    let Delivery::Assigned(partitions) = next(&mut *reader).await else { panic!("expected an assignment first") };
    assert_eq!(partitions, (0..PARTITIONS).collect::<Vec<u16>>(), "a lone member owns all");
    assert!(reader.next(ALL).now_or_never().is_none(), "nothing is delivered before a seek");
    reader.seek(1, 0);
    let Delivery::Records { partition: 1, records, next: 3 } = next(&mut *reader).await else { panic!("expected partition 1") };
    assert_eq!(records[0].offset, 0);
    reader.seek(1, 1);
    let again = next(&mut *reader).await;
    assert!(matches!(&again, Delivery::Records { partition: 1, records, .. } if records[0].offset == 1), "{again:?}");
}

pub(crate) async fn a_waiting_reader_is_woken(subject: &dyn Subject) {
    let log = subject.open().await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    let waiting = tokio::task::spawn(async move {
        let mut total = 0;
        while total < 200 {
            if let Delivery::Records { records, .. } = next(&mut *reader).await {
                total += records.len();
            }
        }
    });
    for n in 0..200 {
        log.append(TOPIC, vec![record(n % PARTITIONS, "x")]).await.unwrap();
    }
    // The suite's time limit is the assertion: a lost wake-up leaves this waiting.
    waiting.await.unwrap();
}

pub(crate) async fn every_partition_gets_its_turn(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 3, 50).await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    let mut left = [50; 2];
    // Partition 0 never runs out; the suite's time limit is the assertion.
    while left != [0; 2] {
        match reader.next(1).await.unwrap() {
            Delivery::Records { partition: 0, records, .. } => {
                assert_eq!(records.len(), 1);
                log.append(TOPIC, vec![record(0, "more")]).await.unwrap();
            }
            Delivery::Records { partition, .. } => left[usize::from(partition) - 1] -= 1,
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub(crate) async fn members_share_the_partitions(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, PARTITIONS, 2).await;
    let mut one = log.subscribe(TOPIC, "g").await.unwrap();
    assert_eq!(assigned(&mut *one).await.len(), usize::from(PARTITIONS));
    let mut two = log.subscribe(TOPIC, "g").await.unwrap();
    assert!(two.next(ALL).now_or_never().is_none(), "everything is still owned");
    let revoked = loop {
        match next(&mut *one).await {
            Delivery::Revoked(partitions) => break partitions,
            Delivery::Records { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    };
    assert!(!revoked.is_empty() && revoked.len() < usize::from(PARTITIONS));
    assert!(two.next(ALL).now_or_never().is_none(), "not before the first one has dealt with it and asked again");
    // The next call of the first is what frees them; it goes on with its own.
    one.seek(revoked[0], 0);
    let kept: BTreeSet<u16> = (0..PARTITIONS).filter(|p| !revoked.contains(p)).collect();
    for partition in &kept {
        one.seek(*partition, 0);
    }
    let seen: BTreeSet<u16> = collect(&mut *one, kept.len() * 2).await.into_keys().collect();
    assert_eq!(seen, kept, "a revoked partition is not delivered, whatever was sought");
    assert_eq!(assigned(&mut *two).await, revoked, "what one gave up the other got");
    collect(&mut *two, revoked.len() * 2).await;
    drop(two);
    let Delivery::Assigned(back) = next(&mut *one).await else { panic!("expected the rest") };
    assert_eq!(back, revoked, "a member that leaves gives its partitions back");
}

pub(crate) async fn groups_are_independent(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 4, 10).await;
    let mut one = log.subscribe(TOPIC, "one").await.unwrap();
    let mut two = log.subscribe(TOPIC, "two").await.unwrap();
    assigned(&mut *one).await;
    assigned(&mut *two).await;
    assert_eq!(collect(&mut *one, 40).await, collect(&mut *two, 40).await);
    one.commit(1, 5);
    assert_eq!(log.committed(TOPIC, "one").await.unwrap()[1], 5);
    assert_eq!(log.committed(TOPIC, "two").await.unwrap()[1], 0);
}

pub(crate) async fn pause_resume_seek(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 2, 5).await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    reader.pause(0);
    let seen = collect(&mut *reader, 5).await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&1]);
    assert!(reader.next(ALL).now_or_never().is_none(), "a paused partition waits");
    reader.resume(0);
    assert_eq!(collect(&mut *reader, 5).await.keys().collect::<Vec<_>>(), [&0]);
    reader.seek(1, 0);
    assert_eq!(collect(&mut *reader, 5).await[&1].len(), 5, "reading again is allowed");
}

pub(crate) async fn a_bad_seek_fails_once(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 2, 2).await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    collect(&mut *reader, 4).await;
    log.append(TOPIC, vec![record(1, "x"), record(1, "x")]).await.unwrap();
    reader.seek(0, 3);
    let (mut failed, mut records) = (0, 0);
    while failed == 0 || records < 2 {
        match next(&mut *reader).await {
            Delivery::Failed { partition: 0, error: Error::OutOfRange { offset: 3, next: 2, .. } } => failed += 1,
            Delivery::Records { partition: 1, records: some, .. } => records += some.len(),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(reader.next(ALL).now_or_never().is_none(), "told once, and the others went on");
    reader.seek(0, 2);
    log.append(TOPIC, vec![record(0, "on")]).await.unwrap();
    assert!(matches!(next(&mut *reader).await, Delivery::Records { partition: 0, .. }), "the end itself is in range");
}

pub(crate) async fn a_dropped_next_loses_nothing(subject: &dyn Subject) {
    fill(&*subject.open().await, 3, 60).await;
    let log = subject.open().await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    let mut at = [0u64; 3];
    let mut total = 0;
    while total < 180 {
        // Polled once or twice, then dropped, wherever it is.
        let got = tokio::select! {
            biased;
            delivery = reader.next(40) => Some(delivery.unwrap()),
            () = tokio::task::yield_now() => None,
        };
        let Some(Delivery::Records { partition, records, .. }) = got else { continue };
        for stored in records {
            assert_eq!(stored.offset, at[usize::from(partition)]);
            at[usize::from(partition)] += 1;
            total += 1;
        }
    }
}

pub(crate) async fn commits_survive_reopening(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 2, 5).await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    reader.commit(0, 4);
    reader.commit(1, 2);
    drop(reader);
    log.close().await.unwrap();
    drop(log);
    let log = subject.open().await;
    assert_eq!(log.committed(TOPIC, "g").await.unwrap()[..3], [4, 2, 0]);
    assert_eq!(log.committed(TOPIC, "nobody").await.unwrap(), vec![0; usize::from(PARTITIONS)]);
    log.forget_group(TOPIC, "g").await.unwrap();
    assert_eq!(log.committed(TOPIC, "g").await.unwrap()[..2], [0, 0]);
}

pub(crate) async fn a_group_without_a_store_begins_where_it_says(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 2, 5).await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    let Delivery::Assigned(_) = next(&mut *reader).await else { panic!("expected an assignment first") };
    for from in [3, 1] {
        reader.begin(1, from);
        let Delivery::Records { partition: 1, records, .. } = next(&mut *reader).await else { panic!("expected what is there") };
        assert_eq!(records.first().unwrap().offset, from);
        assert_eq!(log.committed(TOPIC, "g").await.unwrap()[..2], [0, from]);
    }
    reader.begin(1, 6);
    assert!(matches!(next(&mut *reader).await, Delivery::Failed { partition: 1, error: Error::OutOfRange { offset: 6, .. } }));
    drop(reader);
    log.close().await.unwrap();
}

pub(crate) async fn retention_waits_for_every_group(subject: &dyn Subject) {
    let log = subject.open().await;
    fill(&*log, 2, 500).await;
    log.retain(Timestamp::MAX).await.unwrap();
    assert_eq!(log.bounds(TOPIC).await.unwrap()[0], Bounds { start: 0, next: 500 }, "readers are still to come");
    let mut reader = log.subscribe(TOPIC, "done").await.unwrap();
    drop(log.subscribe(TOPIC, "slow").await.unwrap());
    assigned(&mut *reader).await;
    reader.commit(0, 500);
    reader.commit(1, 500);
    log.retain(Timestamp::MAX).await.unwrap();
    assert_eq!(log.bounds(TOPIC).await.unwrap()[0], Bounds { start: 0, next: 500 }, "a group that never committed holds everything");
    log.forget_group(TOPIC, "slow").await.unwrap();
    reader.commit(1, 100);
    log.retain(Timestamp::MAX).await.unwrap();
    let bounds = log.bounds(TOPIC).await.unwrap();
    assert!(bounds[1].start <= 100 && bounds[1].next == 500, "{bounds:?}");
    assert_eq!(read_all(&*log, TOPIC, 1).await.unwrap().len() as u64, 500 - bounds[1].start);
}

pub(crate) async fn a_closed_log_says_so(subject: &dyn Subject) {
    let log = subject.open().await;
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assigned(&mut *reader).await;
    let waiting = tokio::task::spawn(async move { reader.next(ALL).await.map(drop) });
    tokio::time::timeout(Duration::from_secs(30), log.close()).await.unwrap().unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(Error::Closed(_))));
    assert!(matches!(log.append(TOPIC, vec![record(0, "late")]).await, Err(Error::Closed(_))));
}
