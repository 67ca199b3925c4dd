//! How far the archiver is: shared by it with readiness, metrics and the watermark of answers. Holds a lock for a few lines only.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Cursor;
use crate::event::Timestamp;
use crate::eventlog::Bounds;

/// Where one owned partition is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionProgress {
    /// All below is written.
    pub cursor: Cursor,
    /// The partition's end when it was last read.
    pub end: u64,
    /// Why it stopped, if it did; the others go on.
    pub failed: Option<String>,
}

/// Progress of all partitions this archiver owns.
#[derive(Debug, Default)]
pub struct Progress(Mutex<BTreeMap<u16, PartitionProgress>>);

impl Progress {
    /// Every owned partition's.
    pub fn all(&self) -> BTreeMap<u16, PartitionProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Partitions that stopped, with the reason: readiness shows them.
    pub fn failed(&self) -> Vec<(u16, String)> {
        self.all().into_iter().filter_map(|(partition, progress)| Some((partition, progress.failed?))).collect()
    }

    /// Whether all that stood in the log at its last reading is written.
    pub fn is_caught_up(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .all(|progress| progress.failed.is_none() && progress.cursor.next >= progress.end)
    }

    /// Changes one partition's.
    pub(super) fn update(&self, partition: u16, change: impl FnOnce(&mut PartitionProgress)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(partition).or_default());
    }

    /// A partition is no longer owned.
    pub(super) fn forget(&self, partition: u16) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }
}

/// The watermark of an answer: `now` when every partition's cursor has reached its end, else the least `received_at` of those that have not. Take
/// `now`, then the log's bounds, then the archive's cursors, then the answer.
pub fn watermark(cursors: &[Cursor], bounds: &[Bounds], now: Timestamp) -> Timestamp {
    let behind = cursors.iter().zip(bounds).filter(|(cursor, bounds)| cursor.next < bounds.next);
    behind.map(|(cursor, _)| cursor.received_at).min().unwrap_or(now)
}
