//! Changed and missing bytes: damage is told, hurts only what it must and is never taken for a shorter log; an unfinished end is cut without a word.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::super::format::{self, GroupHeader, SEGMENT_HEADER, SegmentHeader};
use super::super::topic::segment_name;
use super::super::{EmbeddedLog, Settings};
use super::sim::SimDisk;
use super::{noon, small};
use crate::eventlog::contract::{read_all, record, text};
use crate::eventlog::{Append, Delivery, Error, EventLog, Stored, Topic};

const TOPIC: Topic = Topic::Events;
const PARTITIONS: u16 = 3;

fn open(disk: &SimDisk) -> Result<EmbeddedLog, Error> {
    let settings = Settings { segment_bytes: 1500, ..small() };
    EmbeddedLog::open_on(Arc::new(disk.clone()), Path::new("log"), &settings, &noon())
}

fn segment(seq: u64) -> PathBuf {
    Path::new("log/events").join(segment_name(seq))
}

fn call(n: usize) -> Vec<Append> {
    (0..PARTITIONS).map(|p| record(p, format!("{p} {n} some text"))).collect()
}

/// A closed log of three segments, and how many records each partition has.
async fn written() -> (SimDisk, usize) {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let mut calls = 0;
    while log.stats().segments[0] < 3 {
        log.append(TOPIC, call(calls)).await.unwrap();
        calls += 1;
    }
    log.append(TOPIC, call(calls)).await.unwrap();
    log.close().await.unwrap();
    (disk, calls + 1)
}

/// What a partition gives, and the damage it ends with.
async fn read(log: &EmbeddedLog, partition: u16) -> (Vec<Stored>, Option<Error>) {
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        match log.read(TOPIC, partition, at, 1000).await {
            Ok(some) if some.is_empty() => return (all, None),
            Ok(some) => {
                at += some.len() as u64;
                all.extend(some);
            }
            Err(error) => return (all, Some(error)),
        }
    }
}

/// Asserts that every partition is whole or says where it is not; gives the partitions that do.
async fn hurt(log: &EmbeddedLog, calls: usize, what: &str) -> Vec<u16> {
    let mut hurt = Vec::new();
    for partition in 0..PARTITIONS {
        let (records, error) = read(log, partition).await;
        for (n, stored) in records.iter().enumerate() {
            assert_eq!(
                (stored.offset, text(stored)),
                (n as u64, format!("{partition} {n} some text").as_str()),
                "{what}: a changed record was handed out"
            );
        }
        match error {
            None => assert_eq!(records.len(), calls, "{what}: silently shorter"),
            Some(Error::Damaged { offset, .. }) => {
                assert!(offset <= records.len() as u64, "{what}");
                let refused = log.append(TOPIC, vec![record(partition, "on")]).await;
                assert!(matches!(refused, Err(Error::Damaged { .. })), "{what}: a damaged partition takes nothing");
                hurt.push(partition);
            }
            Some(other) => panic!("{what}: {other}"),
        }
    }
    hurt
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_told() {
    let (disk, calls) = written().await;
    let mut outcomes = [0; 4];
    for seq in 0..3 {
        let len = disk.edit(&segment(seq), |bytes| bytes.len());
        for at in 0..len {
            let changed = disk.copy();
            changed.edit(&segment(seq), |bytes| bytes[at] ^= 1 << (at % 8));
            let log = open(&changed).unwrap();
            let what = format!("segment {seq}, byte {at}");
            let hurt = hurt(&log, calls, &what).await;
            assert!([0, 1, 3].contains(&hurt.len()), "{what}: {hurt:?}");
            let is_seal = seq == 2 && at >= len - format::GROUP_HEADER;
            assert_eq!(hurt.is_empty(), is_seal, "{what}: only the last seal can be missed");
            if let [one] = hurt[..] {
                let other = (one + 1) % PARTITIONS;
                assert_eq!(log.append(TOPIC, vec![record(other, "on")]).await, Ok(vec![calls as u64]), "{what}: the others serve");
            }
            outcomes[hurt.len()] += 1;
        }
    }
    assert!(outcomes[1] > 1000 && outcomes[3] > 1000, "{outcomes:?}");
}

#[tokio::test]
async fn a_reader_is_told_of_damage_once_and_goes_on() {
    let (disk, calls) = written().await;
    let at = disk.edit(&segment(0), |bytes| bytes.windows(5).position(|w| w == b"1 3 s").unwrap());
    disk.edit(&segment(0), |bytes| bytes[at] ^= 4);
    let log = open(&disk).unwrap();
    let mut reader = log.subscribe(TOPIC, "g").await.unwrap();
    let (mut got, mut failed) = ([0; PARTITIONS as usize], 0);
    while got != [calls, 3, calls] || failed == 0 {
        let delivery = tokio::time::timeout(Duration::from_secs(30), reader.next(100)).await.expect("nothing is told");
        match delivery.unwrap() {
            Delivery::Assigned(partitions) => partitions.into_iter().for_each(|partition| reader.seek(partition, 0)),
            Delivery::Records { partition, records, .. } => got[usize::from(partition)] += records.len(),
            Delivery::Failed { partition: 1, error: Error::Damaged { offset: 3, .. } } => failed += 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(failed, 1);
}

#[tokio::test]
async fn any_cut_of_the_last_segment_recovers_a_prefix() {
    let (disk, calls) = written().await;
    let (mut shortest, mut longest) = (calls, 0);
    for len in 0..disk.edit(&segment(2), |bytes| bytes.len()) {
        let cut = disk.copy();
        cut.edit(&segment(2), |bytes| bytes.truncate(len));
        let log = open(&cut).unwrap();
        let held = read_all(&log, TOPIC, 0).await.unwrap().len();
        for partition in 0..PARTITIONS {
            let records = read_all(&log, TOPIC, partition).await.unwrap();
            assert_eq!(records.len(), held, "cut to {len}: whole calls");
            assert!(records.iter().enumerate().all(|(n, stored)| text(stored) == format!("{partition} {n} some text")));
        }
        assert_eq!(log.append(TOPIC, call(held)).await.unwrap(), [held as u64; PARTITIONS as usize], "and goes on");
        (shortest, longest) = (shortest.min(held), longest.max(held));
    }
    assert!(shortest < calls - 1 && longest == calls, "{shortest} {longest} of {calls}");
}

#[tokio::test]
async fn a_cut_or_missing_earlier_segment_is_told() {
    let (disk, calls) = written().await;
    for len in 0..disk.edit(&segment(1), |bytes| bytes.len()) {
        let cut = disk.copy();
        cut.edit(&segment(1), |bytes| bytes.truncate(len));
        let log = open(&cut).unwrap();
        assert_eq!(hurt(&log, calls, &format!("cut to {len}")).await.len(), 3);
    }
    super::super::disk::Disk::remove(&disk, &segment(1)).unwrap();
    assert_eq!(hurt(&open(&disk).unwrap(), calls, "missing").await.len(), 3);
}

#[tokio::test]
async fn an_unfinished_end_is_cut_whatever_a_sender_put_into_it() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    log.append(TOPIC, call(0)).await.unwrap();
    // A record full of group headers that claim a later position, as one could who knows the format but not the segment's salt.
    let from = disk.edit(&segment(0), |bytes| bytes.len());
    let seal = |at: usize| GroupHeader { synced: at as u64, written_at: noon().now(), runs: vec![] }.encode(0);
    let value = from + format::GROUP_HEADER + format::RUN_ENTRY + format::FRAME_HEADER;
    let forged: Vec<u8> = (0..8).flat_map(|n| seal(value + n * format::GROUP_HEADER)).collect();
    log.append(TOPIC, vec![Append { partition: 0, value: forged.into() }]).await.unwrap();
    let torn = disk.copy();
    torn.edit(&segment(0), |bytes| bytes[from + 10] ^= 1);
    let log = open(&torn).unwrap();
    assert_eq!(hurt(&log, 1, "torn header").await, [] as [u16; 0]);
    // The same bytes with a true seal behind them are damage.
    let salt = disk.edit(&segment(0), |bytes| SegmentHeader::decode(bytes).unwrap().salt);
    disk.edit(&segment(0), |bytes| {
        bytes[from + 10] ^= 1;
        let seal = GroupHeader { synced: bytes.len() as u64, written_at: noon().now(), runs: vec![] }.encode(salt);
        bytes.extend(seal);
    });
    assert_eq!(hurt(&open(&disk.copy()).unwrap(), 2, "sealed").await.len(), 3);
}

#[tokio::test]
async fn golden_segment_opens_as_a_log() {
    let hex = include_str!("../golden/segment_v1.hex").trim();
    let golden: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let path = Path::new("log/changes").join(segment_name(7));
    let disk = SimDisk::new(1);
    disk.put(&path, golden.clone());
    let log = open(&disk).unwrap();
    let third = read_all(&log, Topic::Changes, 3).await.unwrap();
    assert_eq!(third.iter().map(|stored| (stored.offset, text(stored))).collect::<Vec<_>>(), [(30, "third"), (31, "third again")]);
    let bounds = log.bounds(Topic::Changes).await.unwrap();
    assert_eq!((bounds[0].start, bounds[0].next, bounds[15].start, bounds[15].next), (0, 1, 150, 150), "the start is in the first segment left");
    drop(log);

    let newer = SimDisk::new(1);
    newer.put(&path, golden);
    newer.edit(&path, |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER - 4]).to_le_bytes();
        bytes[SEGMENT_HEADER - 4..SEGMENT_HEADER].copy_from_slice(&crc);
    });
    assert!(matches!(open(&newer).err(), Some(Error::Format(what)) if what.contains("version 2")));
}
