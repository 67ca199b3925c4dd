//! How far the archiver is: shared by it with readiness, metrics and the watermark of answers. Holds a lock for a few lines only.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

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
    waiting: Mutex<Option<Waiting>>,
}

/// What the archiver is waiting for at this moment.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    what: &'static str,
    since: Instant,
    /// Waited for so long, it is told.
    longest: Duration,
}

/// For as long as this is there, the archiver waits. Within another such wait it stands in place of that one.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    progress: &'a Progress,
    before: Option<Waiting>,
}

impl Wait<'_> {
    /// Some of what is waited for came.
    pub(super) fn goes_on(&self) {
        if let Some(waiting) = self.progress.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            waiting.since = Instant::now();
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        *self.progress.waiting.lock().unwrap_or_else(PoisonError::into_inner) = self.before;
    }
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

    /// Whether all that was read of the partitions that go on is written.
    pub(super) fn owes_nothing(&self) -> bool {
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        partitions.values().all(|progress| progress.failed.is_some() || progress.cursor.next >= progress.end)
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

    /// Why nothing can be written at present, if so: what failed, and is tried again; or what has been waited for all too long, before it fails.
    pub fn waits(&self) -> Option<String> {
        self.waits_at(Instant::now())
    }

    fn waits_at(&self, now: Instant) -> Option<String> {
        let told = self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.or_else(|| {
            let Waiting { what, since, longest } = (*self.waiting.lock().unwrap_or_else(PoisonError::into_inner))?;
            let waited = now.duration_since(since);
            (waited >= longest).then(|| format!("{what}, for {} s so far", waited.as_secs()))
        })
    }

    /// The archiver waits from now on; beyond `longest`, [`Self::waits`] tells so.
    pub(super) fn wait(&self, what: &'static str, longest: Duration) -> Wait<'_> {
        let waiting = Some(Waiting { what, since: Instant::now(), longest });
        Wait { progress: self, before: std::mem::replace(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner), waiting) }
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
    fn what_is_long_in_coming_is_told_while_it_is_waited_for() {
        let (progress, began, second) = (Progress::default(), Instant::now(), Duration::from_secs(1));
        // So long after what it waits for began.
        let waits = |seconds| {
            let since = progress.waiting.lock().unwrap().as_ref().map_or(began, |waiting| waiting.since);
            progress.waits_at(since + seconds * second)
        };
        let outer = progress.wait("all", 10 * second);
        assert_eq!((waits(9), waits(10).as_deref()), (None, Some("all, for 10 s so far")));
        let inner = progress.wait("some", 20 * second);
        assert_eq!((waits(19), waits(20).as_deref()), (None, Some("some, for 20 s so far")), "what it waits for now");
        progress.stands_still(Some("it failed".into()));
        assert_eq!((waits(0).as_deref(), waits(20).as_deref()), (Some("it failed"), Some("it failed")));
        progress.stands_still(None);
        drop(inner);
        assert_eq!(waits(19).as_deref(), Some("all, for 19 s so far"));
        let since = || progress.waiting.lock().unwrap().unwrap().since;
        let first = since();
        outer.goes_on();
        assert!(since() > first, "it is counted from the last that came");
        drop(outer);
        assert_eq!(waits(99), None);
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
