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
pub struct Progress {
    partitions: Mutex<BTreeMap<u16, PartitionProgress>>,
    waits: Mutex<Option<String>>,
}

impl Progress {
    /// Every owned partition's.
    pub fn all(&self) -> BTreeMap<u16, PartitionProgress> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Partitions that stopped, with the reason: readiness shows them.
    pub fn failed(&self) -> Vec<(u16, String)> {
        self.all().into_iter().filter_map(|(partition, progress)| Some((partition, progress.failed?))).collect()
    }

    /// Whether all that stood in the log at its last reading is written.
    pub fn is_caught_up(&self) -> bool {
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .all(|progress| progress.failed.is_none() && progress.cursor.next >= progress.end)
    }

    /// Records read into no batch yet, as far as known: what `/metrics` shows as lag.
    pub fn lag(&self) -> u64 {
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(|progress| progress.end.saturating_sub(progress.cursor.next))
            .sum()
    }

    /// Why nothing can be written at present, if so: it is tried again.
    pub fn waits(&self) -> Option<String> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says why nothing can be written at present; None once something was.
    pub(super) fn stands_still(&self, why: Option<String>) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Changes one partition's.
    pub(super) fn update(&self, partition: u16, change: impl FnOnce(&mut PartitionProgress)) {
        change(self.partitions.lock().unwrap_or_else(PoisonError::into_inner).entry(partition).or_default());
    }

    /// A partition is no longer owned.
    pub(super) fn forget(&self, partition: u16) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }
}

/// The watermark of an answer: `now` when every partition's cursor has reached its end, else the least `received_at` of those that have not. Take
/// `now`, then the log's bounds, then the archive's cursors, then the answer.
pub fn watermark(cursors: &[Cursor], bounds: &[Bounds], now: Timestamp) -> Timestamp {
    let behind = cursors.iter().zip(bounds).filter(|(cursor, bounds)| cursor.next < bounds.next);
    behind.map(|(cursor, _)| cursor.received_at).min().unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_is_now_only_where_all_is_read() {
        let cursor = |next, at| Cursor { next, received_at: Timestamp::from_micros(at) };
        let bounds = |next| Bounds { start: 0, next };
        let now = Timestamp::from_micros(100);
        assert_eq!(watermark(&[cursor(5, 50), cursor(0, 0)], &[bounds(5), bounds(0)], now), now);
        assert_eq!(watermark(&[cursor(5, 50), cursor(3, 40)], &[bounds(6), bounds(4)], now), Timestamp::from_micros(40));
        assert_eq!(
            watermark(&[cursor(5, 30), cursor(3, 40)], &[bounds(5), bounds(4)], now),
            Timestamp::from_micros(40),
            "what is read to its end holds nothing back"
        );
    }

    #[test]
    fn a_failed_partition_is_not_caught_up() {
        let progress = Progress::default();
        progress.update(3, |p| (p.cursor.next, p.end) = (7, 9));
        assert_eq!((progress.lag(), progress.is_caught_up()), (2, false));
        progress.update(3, |p| p.cursor.next = 9);
        assert!(progress.is_caught_up());
        progress.update(3, |p| p.failed = Some("damaged".into()));
        assert_eq!((progress.is_caught_up(), progress.failed()), (false, vec![(3, "damaged".into())]));
        progress.forget(3);
        assert!(progress.all().is_empty());
    }
}
