//! The archiver where its archive or its log does not answer, or not for a partition: the others go on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::super::flaky::{Away, Flaky};
use super::super::tests::{World, append, at, record, site, viewed};
use super::*;
use crate::archive::{Bots, Metric};
use crate::event::{PARTITIONS, Record};
use crate::eventlog::Topic;

/// Far beyond what any of these takes.
const LONG: Duration = Duration::from_secs(60);

/// Views, some in every partition.
async fn fill(world: &World) {
    let records: Vec<Record> = (0..200).map(|n| record(&format!("e{n}"), at(n), viewed("p1", "c1", at(n)))).collect();
    assert_eq!(records.iter().map(|record| append(record).partition).collect::<BTreeSet<_>>().len(), usize::from(PARTITIONS));
    world.append(&records).await;
}

async fn views(world: &World) -> i64 {
    let total = world.archive.totals(&site(), Metric::Views, at(0), at(900), Bots::Include).await.unwrap();
    total.first().map_or(0, |(_, value)| value.counts[0])
}

/// The partitions whose log is written whole.
async fn whole(world: &World) -> BTreeSet<u16> {
    let bounds = world.log.bounds(Topic::Events).await.unwrap();
    let cursors = world.archive.cursors().await.unwrap();
    (0..).zip(bounds.iter().zip(&cursors)).filter(|(_, (bounds, cursor))| bounds.next == cursor.next).map(|(partition, _)| partition).collect()
}

#[tokio::test]
async fn a_partition_that_the_archive_lost_in_part_stops_alone() {
    let mut world = World::new().await;
    fill(&world).await;
    let inner = Arc::clone(&world.archive);
    world.settings.durable_every = Duration::from_millis(1);
    world.archive = Arc::new(Flaky::answering(inner, |partition| (partition == 5).then(|| Error::Lost("lost in part".into()))));
    let stop = CancellationToken::new();
    let watching = async {
        // All others are written, and committed.
        let others: BTreeSet<u16> = (0..PARTITIONS).filter(|partition| *partition != 5).collect();
        let bounds = world.log.bounds(Topic::Events).await.unwrap();
        while whole(&world).await != others || world.log.committed(Topic::Events, crate::archive::archiver::GROUP).await.unwrap()[6] < bounds[6].next
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
    };
    let (ended, ()) =
        tokio::time::timeout(LONG, async { tokio::join!(world.archiver().run(stop.clone()), watching) }).await.expect("the others go on");
    ended.unwrap();
    assert_eq!(world.progress.failed().iter().map(|(partition, why)| (*partition, why.contains("lost in part"))).collect::<Vec<_>>(), [(5, true)]);
    assert_eq!(world.progress.waits(), None, "nothing is tried again");
    let committed = world.log.committed(Topic::Events, crate::archive::archiver::GROUP).await.unwrap();
    assert_eq!(committed[5], 0, "the log keeps what may be needed");
}

#[tokio::test]
async fn partitions_are_read_while_the_archive_does_not_answer_for_another() {
    let mut world = World::new().await;
    fill(&world).await;
    world.settings.backoff = Duration::from_millis(1);
    let (inner, away) = (Arc::clone(&world.archive), Arc::new(AtomicBool::new(true)));
    let is_away = Arc::clone(&away);
    let flaky =
        Flaky::answering(inner, move |partition| (partition == 5 && is_away.load(Ordering::SeqCst)).then(|| Error::Store("a node is down".into())));
    world.archive = Arc::new(flaky);
    let stop = CancellationToken::new();
    let watching = async {
        while whole(&world).await.len() < usize::from(PARTITIONS) - 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(world.progress.waits().unwrap().contains("a node is down"));
        assert!(world.progress.failed().is_empty());
        away.store(false, Ordering::SeqCst);
        while !world.is_caught_up().await || world.progress.waits().is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::time::timeout(LONG, async { tokio::join!(world.archiver().run(stop.clone()), watching) }).await.expect("all goes on");
    ended.unwrap();
    assert_eq!(views(&world).await, 200);
    assert_eq!(world.progress.waits(), None);
}

#[tokio::test]
async fn an_archive_that_does_not_answer_is_told_before_all_partitions_were_asked_for() {
    let mut world = World::new().await;
    fill(&world).await;
    world.settings.backoff = Duration::from_millis(1);
    let (inner, away) = (Arc::clone(&world.archive), Arc::new(AtomicBool::new(true)));
    let (is_away, gate) = (Arc::clone(&away), Arc::new(Semaphore::new(0)));
    let flaky = Flaky::answering(inner, move |partition| (partition == 0 && is_away.load(Ordering::SeqCst)).then(|| Error::Store("away".into())));
    world.archive = Arc::new(flaky.held("cursor", &gate));
    let stop = CancellationToken::new();
    let watching = async {
        while world.progress.waits().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        away.store(false, Ordering::SeqCst);
        gate.add_permits(1);
        while !world.is_caught_up().await || world.progress.waits().is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::time::timeout(LONG, async { tokio::join!(world.archiver().run(stop.clone()), watching) }).await.expect("it is told");
    ended.unwrap();
    assert_eq!((views(&world).await, world.progress.waits()), (200, None));
}

#[tokio::test]
async fn whatever_the_archive_does_not_answer_is_told_while_it_is_waited_for() {
    let calls = ["cursor", "identities", "cells", "write", "durable", "retain"];
    futures::future::join_all(calls.map(told_while_it_is_waited_for)).await;
}

async fn told_while_it_is_waited_for(call: &'static str) {
    let mut world = World::new().await;
    fill(&world).await;
    // Longer than anything takes that is not held.
    world.settings.told_after = Duration::from_secs(10);
    world.settings.durable_every = Duration::from_millis(1);
    let gate = Arc::new(Semaphore::new(0));
    world.archive = Arc::new(Flaky::answering(Arc::clone(&world.archive), |_| None).held(call, &gate));
    let stop = CancellationToken::new();
    let watching = async {
        let told = if call == "retain" { "the removal of old events" } else { "an answer of the archive" };
        let first = loop {
            if let Some(first) = world.progress.waits() {
                break first;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert!(first.starts_with(told), "{call}: {first}");
        gate.add_permits(1);
        while !world.is_caught_up().await || world.progress.waits().is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::time::timeout(LONG, async { tokio::join!(world.archiver().run(stop.clone()), watching) }).await.expect(call);
    ended.unwrap();
    assert_eq!((views(&world).await, world.progress.waits()), (200, None), "{call}");
}

#[tokio::test]
async fn a_closed_archive_ends_the_archiver() {
    let mut world = World::new().await;
    world.archive = Arc::new(Flaky::answering(Arc::clone(&world.archive), |_| Some(Error::Closed)));
    let ended = tokio::time::timeout(LONG, world.archiver().run(CancellationToken::new())).await.expect("it ends");
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
}

#[tokio::test]
async fn retention_and_partitions_that_come_do_not_wait_for_one_another() {
    let mut world = World::new().await;
    fill(&world).await;
    world.archive = Arc::new(Flaky::taking_turns(Arc::clone(&world.archive)));
    tokio::time::timeout(LONG, world.catch_up()).await.expect("whoever has the turn goes on while the other one waits");
    assert_eq!(views(&world).await, 200);
}

#[tokio::test]
async fn a_group_that_cannot_be_joined_yet_is_joined_later() {
    let mut world = World::new().await;
    fill(&world).await;
    world.settings.backoff = Duration::from_millis(1);
    world.log = Arc::new(Away { inner: Arc::clone(&world.log), refusals: AtomicU32::new(3) });
    tokio::time::timeout(LONG, world.catch_up()).await.expect("it is tried again");
    assert_eq!((views(&world).await, world.progress.waits()), (200, None));
    world.log = Arc::new(Away { inner: Arc::clone(&world.log), refusals: AtomicU32::new(u32::MAX) });
    let stop = CancellationToken::new();
    stop.cancel();
    tokio::time::timeout(LONG, world.archiver().run(stop)).await.expect("it stops where it waits").unwrap();
}
