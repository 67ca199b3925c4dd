//! What power losses may and may not do: every acknowledged append is there, whole and in order; none is there in part; nothing unfinished passes for
//! damage; and the log goes on.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::super::EmbeddedLog;
use super::sim::SimDisk;
use super::{noon, small};
use crate::event::Timestamp;
use crate::eventlog::contract::{read_all, record, text};
use crate::eventlog::{Append, EventLog, Topic};

const TOPIC: Topic = Topic::Events;

/// One append call as its caller saw it.
struct Sent {
    number: usize,
    partitions: Vec<u16>,
    /// Whether it was acknowledged, or seen by a reader after a restart, which is as good.
    settled: bool,
}

fn call(random: &mut StdRng, number: usize) -> (Sent, Vec<Append>) {
    let count = *[1, 1, 2, 5, 30].choose(random).unwrap();
    let partitions: Vec<u16> = (0..count).map(|_| random.random_range(0..6)).collect();
    let records = partitions.iter().enumerate().map(|(place, partition)| {
        let padding = "x".repeat(random.random_range(0..200));
        record(*partition, format!("{number} {place} {padding}"))
    });
    let records = records.collect();
    (Sent { number, partitions, settled: false }, records)
}

/// Appends until the power goes, by up to four callers at once.
async fn append_until_dark(log: &EmbeddedLog, random: &mut StdRng, sent: &mut Vec<Sent>) {
    let mut dark = false;
    while !dark {
        let calls: Vec<(Sent, Vec<Append>)> = (0..random.random_range(1..=4)).map(|n| call(random, sent.len() + n)).collect();
        let (mut told, records): (Vec<Sent>, Vec<Vec<Append>>) = calls.into_iter().unzip();
        let answers = futures::future::join_all(records.into_iter().map(|records| log.append(TOPIC, records))).await;
        for (call, answer) in told.iter_mut().zip(answers) {
            call.settled = answer.is_ok();
            dark |= answer.is_err();
        }
        sent.extend(told);
    }
}

/// Compares the whole log with what was sent: dense (asserted by reading), whole calls or none of them, none lost, nothing twice, and each partition in
/// the order of its calls.
async fn check(log: &EmbeddedLog, sent: &mut [Sent], seed: u64) {
    let mut found = vec![Vec::new(); sent.len()];
    for partition in 0..6 {
        for stored in read_all(log, TOPIC, partition).await.unwrap_or_else(|error| panic!("seed {seed}: {error}")) {
            let mut words = text(&stored).split(' ');
            let mut number = || words.next().unwrap().parse::<usize>().unwrap();
            let (call, place) = (number(), number());
            found[call].push((place, partition, stored.offset));
        }
    }
    for call in sent {
        let found = &mut found[call.number];
        found.sort_unstable();
        assert!(found.is_empty() || found.len() == call.partitions.len(), "seed {seed}: call {} is there in part", call.number);
        assert!(!call.settled || !found.is_empty(), "seed {seed}: call {} was acknowledged and is lost", call.number);
        for ((place, partition, _), (expected, meant)) in found.iter().zip(call.partitions.iter().enumerate()) {
            assert_eq!((*place, *partition), (expected, *meant), "seed {seed}");
        }
        for partition in 0..6 {
            let offsets: Vec<u64> = found.iter().filter(|(_, p, _)| *p == partition).map(|(_, _, offset)| *offset).collect();
            assert!(offsets.is_sorted(), "seed {seed}: records of one call to one partition ascend");
        }
        call.settled = !found.is_empty();
        // What was lost unacknowledged stays lost: a later find would be a resurrection.
        if found.is_empty() {
            call.partitions.clear();
        }
    }
}

async fn one_life(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = SimDisk::new(seed);
    let mut sent = Vec::new();
    for _ in 0..random.random_range(2..6) {
        disk.power_goes_after(random.random_range(0..40));
        // The power may go during the recovery, too.
        if let Ok(log) = EmbeddedLog::open_on(Arc::new(disk.clone()), Path::new("log"), &small(), &noon()) {
            append_until_dark(&log, &mut random, &mut sent).await;
        }
        if random.random_bool(0.5) {
            disk.power_cycle();
        } else {
            disk.kill();
        }
        let log = EmbeddedLog::open_on(Arc::new(disk.clone()), Path::new("log"), &small(), &noon()).unwrap();
        check(&log, &mut sent, seed).await;
        // What a reader has seen once is durable: it outlives another loss right away.
        disk.power_goes_after(0);
        drop(log);
        disk.power_cycle();
        let log = EmbeddedLog::open_on(Arc::new(disk.clone()), Path::new("log"), &small(), &noon()).unwrap();
        check(&log, &mut sent, seed).await;
        log.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_append_is_lost_and_none_is_halved() {
    for seed in 0..400 {
        one_life(seed).await;
    }
}

/// Retention under power losses: whatever was removed, what remains is dense up to the end and begins at or below every commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_leaves_no_gap() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        let open = || EmbeddedLog::open_on(Arc::new(disk.clone()), Path::new("log"), &small(), &noon()).unwrap();
        let log = open();
        let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
        reader.next(1).await.unwrap();
        for n in 0..60 {
            log.append(TOPIC, (0..4).map(|p| record(p, format!("{n} {}", "x".repeat(150)))).collect()).await.unwrap();
        }
        let passed = random.random_range(0..=60);
        for partition in 0..4 {
            reader.commit(partition, passed);
        }
        disk.power_goes_after(random.random_range(0..25));
        // It may fail halfway.
        log.retain(Timestamp::MAX).await.ok();
        drop(reader);
        drop(log);
        disk.power_cycle();
        let log = open();
        for partition in 0..4 {
            let held = read_all(&log, TOPIC, partition).await.unwrap();
            assert!(held.first().is_none_or(|first| first.offset <= passed), "seed {seed}: what was not passed is gone");
            assert_eq!(log.bounds(TOPIC).await.unwrap()[usize::from(partition)].next, 60, "seed {seed}");
        }
        let committed = log.committed(TOPIC, "g").await.unwrap()[0];
        assert!(committed == 0 || committed == passed, "seed {seed}: the groups file is the old or the new one");
    }
}
