//! How far router and keeper are and what stands still: written by them, read by readiness and by whoever waits for the sync side to catch up.
//! Must never decide anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::event::PARTITIONS;
use crate::eventlog::Topic;

/// Stands for the place of a partition that this process does not own.
pub const ELSEWHERE: u64 = u64::MAX;

/// Shared by router, keeper and their observers.
#[derive(Debug)]
pub struct Status {
    routed: Vec<AtomicU64>,
    kept: Vec<AtomicU64>,
    frozen: AtomicU64,
    failed: Mutex<BTreeMap<(&'static str, u16), String>>,
}

impl Default for Status {
    fn default() -> Self {
        let none = || (0..PARTITIONS).map(|_| AtomicU64::new(ELSEWHERE)).collect();
        Self { routed: none(), kept: none(), frozen: AtomicU64::new(0), failed: Mutex::default() }
    }
}

impl Status {
    /// By `events` partition the offset below which all is in durable `changes` records; [`ELSEWHERE`] where another process has it.
    pub fn routed(&self) -> Vec<u64> {
        self.routed.iter().map(|at| at.load(Ordering::Acquire)).collect()
    }

    /// By `changes` partition the offset below which all is written and published (C); [`ELSEWHERE`] where another process has it.
    pub fn kept(&self) -> Vec<u64> {
        self.kept.iter().map(|at| at.load(Ordering::Acquire)).collect()
    }

    /// Objects frozen since the start because they could not be read.
    pub fn frozen(&self) -> u64 {
        self.frozen.load(Ordering::Relaxed)
    }

    /// Partitions that stand still, with the reason, by (topic, partition).
    pub fn failed(&self) -> Vec<(&'static str, u16, String)> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().map(|((topic, partition), why)| (*topic, *partition, why.clone())).collect()
    }

    pub(super) fn set_routed(&self, partition: u16, next: u64) {
        if let Some(at) = self.routed.get(usize::from(partition)) {
            at.store(next, Ordering::Release);
        }
    }

    pub(super) fn set_kept(&self, partition: u16, next: u64) {
        if let Some(at) = self.kept.get(usize::from(partition)) {
            at.store(next, Ordering::Release);
        }
    }

    /// Another process has the partition, or this one begins anew with it.
    pub(super) fn release(&self, topic: Topic, partition: u16) {
        let places = match topic {
            Topic::Events => &self.routed,
            Topic::Changes => &self.kept,
        };
        if let Some(at) = places.get(usize::from(partition)) {
            at.store(ELSEWHERE, Ordering::Release);
        }
        if self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(topic.name(), partition)).is_some() {
            metrics::gauge!("contrail_sync_partition_failed", "topic" => topic.name(), "partition" => partition.to_string()).set(0.0);
        }
    }

    /// This process owns no partition of the topic until it is given some: it begins anew, and others may have them meanwhile.
    pub(super) fn release_all(&self, topic: Topic) {
        (0..PARTITIONS).for_each(|partition| self.release(topic, partition));
    }

    pub(super) fn froze(&self) {
        self.frozen.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("contrail_keeper_frozen_total").increment(1);
    }

    pub(super) fn fail(&self, topic: Topic, partition: u16, why: String) {
        metrics::gauge!("contrail_sync_partition_failed", "topic" => topic.name(), "partition" => partition.to_string()).set(1.0);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert((topic.name(), partition), why);
    }
}
