//! Bounds, stops and housekeeping of the embedded log.

#![expect(clippy::disallowed_methods, reason = "every handle is awaited in the test that spawns it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::super::format::{GROUP_HEADER, GroupHeader, SegmentHeader};
use super::super::{EmbeddedLog, Settings};
use super::sim::SimDisk;
use super::{InTemp, noon, small};
use crate::event::{Clock, Timestamp};
use crate::eventlog::contract::{read_all, record};
use crate::eventlog::{Consumer, Delivery, Error, EventLog, Topic};

const TOPIC: Topic = Topic::Events;

fn open(disk: &SimDisk, settings: &Settings, clock: &Clock) -> EmbeddedLog {
    EmbeddedLog::open_on(Arc::new(disk.clone()), Path::new("log"), settings, clock).unwrap()
}

/// Queues single records while the disk is stuck, until refused; says how many went in.
fn queue_until_refused(disk: &SimDisk, log: &EmbeddedLog) -> (usize, Error) {
    disk.while_stuck(|| {
        for queued in 0.. {
            if let Some(answer) = log.append(TOPIC, vec![record(1, "x".repeat(100))]).now_or_never() {
                return (queued, answer.unwrap_err());
            }
        }
        unreachable!("the queue is bounded")
    })
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_keeps_what_it_took() {
    for settings in [Settings { queue_records: 50, ..small() }, Settings { queue_bytes: 50 * 472, ..small() }] {
        let disk = SimDisk::new(1);
        let log = open(&disk, &settings, &noon());
        let (queued, error) = queue_until_refused(&disk, &log);
        assert_eq!((queued, error), (50, Error::Full("too many appends wait for the disk")), "one being written counts, too");
        // The callers are gone; their records are written all the same. Few syncs carry them all.
        log.close().await.unwrap();
        assert!(log.stats().syncs[0] < 20, "{:?}", log.stats().syncs);
        drop(log);
        assert_eq!(read_all(&open(&disk, &settings, &noon()), TOPIC, 1).await.unwrap().len(), queued);
    }
}

#[tokio::test]
async fn the_disk_bound_stops_events_before_changes() {
    let disk = SimDisk::new(1);
    let log = open(&disk, &Settings { max_bytes: 20_000, ..small() }, &noon());
    let fill = async |topic| loop {
        if let Err(error) = log.append(topic, vec![record(0, "x".repeat(100))]).await {
            return (error, log.stats().disk_bytes);
        }
    };
    let full = Error::Full("the log has reached its disk bound");
    let (error, events) = fill(TOPIC).await;
    assert_eq!(error, full);
    let (error, all) = fill(Topic::Changes).await;
    assert_eq!(error, full);
    assert!(events <= 17_500 && events > 16_000 && all <= 20_000 && all > 19_000, "{events} {all}");
    let on_disk: usize = ["events", "changes"].into_iter().flat_map(|topic| disk.lengths(&Path::new("log").join(topic))).sum();
    assert_eq!(on_disk as u64, all, "the figure is the files' size");
}

#[tokio::test]
async fn a_failed_write_stops_the_whole_log() {
    for changes in 0..3 {
        let disk = SimDisk::new(1);
        let log = open(&disk, &small(), &noon());
        let mut waiting = log.subscribe(Topic::Changes, "g").await.unwrap();
        assert!(matches!(waiting.next(1).await, Ok(Delivery::Assigned(_))));
        let waiting = tokio::task::spawn(async move { waiting.next(1).await.map(drop) });
        disk.power_goes_after(changes);
        let outcome = loop {
            let answer = log.append(TOPIC, vec![record(0, "x")]).await;
            if answer.is_err() {
                break answer;
            }
        };
        assert!(matches!(outcome, Err(Error::Closed(_))), "{outcome:?}");
        assert!(matches!(log.append(Topic::Changes, vec![record(0, "x")]).await, Err(Error::Closed(_))));
        assert!(matches!(log.read(TOPIC, 0, 0, 1).await, Err(Error::Closed(_))));
        assert!(matches!(waiting.await.unwrap(), Err(Error::Closed(_))), "readers of the other topic hear of it");
    }
}

async fn assign(reader: &mut dyn Consumer) {
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
}

#[tokio::test]
async fn retention_removes_whole_segments_by_age_and_commit() {
    let (disk, clock) = (SimDisk::new(1), noon());
    let settings = Settings { retention: Duration::from_secs(3600), ..small() };
    let log = open(&disk, &settings, &clock);
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assign(&mut *reader).await;
    for n in 0..100 {
        log.append(TOPIC, vec![record(0, "x".repeat(100)), record(1, "x".repeat(100))]).await.unwrap();
        if n == 49 {
            clock.set(clock.now().plus_seconds(1800));
        }
    }
    let segments = log.stats().segments[0];
    reader.commit(0, 100);
    reader.commit(1, 90);
    log.retain(clock.now()).await.unwrap();
    assert_eq!(log.stats().segments[0], segments, "nothing is old enough");
    log.retain(clock.now().plus_seconds(1800)).await.unwrap();
    let by_age = log.bounds(TOPIC).await.unwrap()[1].start;
    assert!(by_age > 20 && by_age <= 50, "the first half, whole segments of it: {by_age}");
    log.retain(clock.now().plus_seconds(3600)).await.unwrap();
    let by_commit = log.bounds(TOPIC).await.unwrap();
    assert!(by_commit[1].start > 70 && by_commit[1].start <= 90, "{:?}", by_commit[1]);
    let lengths: usize = disk.lengths(Path::new("log/events")).into_iter().chain(disk.lengths(Path::new("log/changes"))).sum();
    assert_eq!(log.stats().disk_bytes, lengths as u64);
    let early = log.read(TOPIC, 0, 0, 1).await;
    assert!(matches!(early, Err(Error::OutOfRange { start, .. }) if start == by_commit[0].start));
    reader.commit(1, 100);
    log.retain(clock.now().plus_seconds(36_000)).await.unwrap();
    assert_eq!(log.stats().segments[0], 1, "the segment being written stays");
    let before = log.bounds(TOPIC).await.unwrap();
    drop((reader, log));
    let log = open(&disk, &settings, &clock);
    assert_eq!(log.bounds(TOPIC).await.unwrap(), before, "the start outlives a restart");
}

/// A small shop's log fills no segment for months, and yet forgets after days.
#[tokio::test]
async fn a_quiet_log_forgets_in_time() {
    let clock = noon();
    let log = open(&SimDisk::new(1), &Settings::default(), &clock);
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    assign(&mut *reader).await;
    for _ in 0..20 {
        log.append(TOPIC, vec![record(0, "x")]).await.unwrap();
        clock.set(clock.now().plus_seconds(86_400));
    }
    reader.commit(0, 20);
    log.retain(clock.now()).await.unwrap();
    let start = log.bounds(TOPIC).await.unwrap()[0].start;
    assert!((12..=14).contains(&start), "about the last seven of twenty days remain: {start}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_keeps_everything() {
    let (disk, clock) = (SimDisk::new(1), noon());
    let log = open(&disk, &small(), &clock);
    for _ in 0..100 {
        log.append(TOPIC, vec![record(0, "x".repeat(100))]).await.unwrap();
    }
    log.retain(Timestamp::MAX).await.unwrap();
    assert_eq!(read_all(&log, TOPIC, 0).await.unwrap().len(), 100);
}

/// The newest stay in memory, the older come from the file, and a log still being written serves both without a seam.
#[tokio::test]
async fn memory_and_file_meet_without_a_seam() {
    let log = open(&SimDisk::new(1), &Settings { segment_bytes: 1 << 20, tail_bytes: 3000, ..small() }, &noon());
    for n in 0..2000u64 {
        log.append(TOPIC, vec![record((n % 3) as u16, "x".repeat(400))]).await.unwrap();
        if n % 250 == 0 {
            for partition in 0..3 {
                let held = read_all(&log, TOPIC, partition).await.unwrap().len() as u64;
                assert_eq!(held, n / 3 + u64::from(n % 3 >= u64::from(partition)));
            }
        }
    }
}

#[tokio::test]
async fn an_idle_log_seals_itself_and_a_closed_one_is_sealed() {
    for seal_after in [Duration::from_millis(1), Duration::from_secs(3600)] {
        let temp = InTemp::new(Settings { seal_after, ..small() });
        let log = temp.open_embedded();
        log.append(TOPIC, vec![record(0, "x")]).await.unwrap();
        if seal_after < Duration::from_secs(1) {
            while log.stats().syncs[0] < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } else {
            log.close().await.unwrap();
        }
        let bytes = std::fs::read(&temp.segments()[0]).unwrap();
        let (before, end) = bytes.split_at(bytes.len() - GROUP_HEADER);
        let seal = GroupHeader::decode(end, SegmentHeader::decode(&bytes).unwrap().salt).unwrap();
        assert_eq!((seal.synced, seal.runs.len()), (before.len() as u64, 0));
    }
}

#[tokio::test]
async fn what_no_topic_has_is_refused() {
    let log = open(&SimDisk::new(1), &small(), &noon());
    assert!(matches!(log.append(TOPIC, vec![record(16, "x")]).await, Err(Error::Format(_))));
    assert!(matches!(log.read(TOPIC, 16, 0, 1).await, Err(Error::Format(_))));
    assert!(matches!(log.subscribe(TOPIC, "").await.err(), Some(Error::Format(_))));
}
