//! What this process knows of a partition of `events`: where it is, and since when that is acknowledged. Kept by the archive on a cluster. Must never call
//! durable what a node that began anew may have lost.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::Cursor;

/// One partition's.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) cursor: Option<Cursor>,
    /// The greatest write timestamp used.
    pub(super) stamp: i64,
    /// Cursors by when they were acknowledged; the first is the latest that is older than the safety window, once there is such.
    acknowledged: VecDeque<(Instant, u64)>,
    /// Whether all of the journal was done again.
    pub(super) recovered: bool,
    /// Whether it must be, before anything more is written: a node may have lost what was written last.
    pub(super) doubtful: bool,
    pub(super) forgotten: Option<Instant>,
}

impl Known {
    /// A node began anew, nobody knows when: what was acknowledged before then may be lost, however long ago that now is.
    pub(super) fn doubt(&mut self) {
        self.cursor = None;
        (self.recovered, self.doubtful) = (false, true);
        self.acknowledged.clear();
    }

    /// It was found to stand here, all of its journal done again.
    pub(super) fn recover(&mut self, now: Instant, cursor: Cursor, stamp: i64, window: Duration) {
        self.cursor = Some(cursor);
        self.stamp = stamp;
        (self.recovered, self.doubtful) = (true, false);
        self.acknowledged.retain(|(_, next)| *next <= cursor.next);
        self.acknowledge(now, cursor.next, window);
    }

    /// All up to `next` is acknowledged.
    pub(super) fn acknowledge(&mut self, now: Instant, next: u64, window: Duration) {
        if self.acknowledged.back().is_none_or(|(_, last)| *last < next) {
            self.acknowledged.push_back((now, next));
        }
        // Only the latest of those that are old enough is ever asked for.
        while self.acknowledged.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= window) {
            self.acknowledged.pop_front();
        }
    }

    /// The greatest cursor acknowledged so long before `now`.
    pub(super) fn durable(&self, now: Instant, window: Duration) -> Option<u64> {
        self.acknowledged.iter().rev().find(|(at, _)| now.duration_since(*at) >= window).map(|(_, next)| *next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    const WINDOW: Duration = Duration::from_secs(60);

    fn at(next: u64) -> Cursor {
        Cursor { next, received_at: Timestamp::ZERO }
    }

    #[test]
    fn what_a_node_may_have_lost_is_not_durable_however_late_that_is_noticed() {
        let (mut known, mut now) = (Known::default(), Instant::now());
        known.acknowledge(now, 10, WINDOW);
        now += WINDOW;
        known.acknowledge(now, 20, WINDOW);
        assert_eq!(known.durable(now, WINDOW), Some(10));
        // The node died just now, took 20 with it, and is back later than the window is long.
        now += WINDOW * 2;
        assert_eq!(known.durable(now, WINDOW), Some(20));
        known.doubt();
        assert_eq!(known.durable(now, WINDOW), None);
        known.recover(now, at(15), 15, WINDOW);
        assert_eq!(known.durable(now, WINDOW), None);
        now += WINDOW;
        known.acknowledge(now, 16, WINDOW);
        assert_eq!(known.durable(now, WINDOW), Some(15));
    }

    #[test]
    fn a_partition_that_is_found_further_back_is_durable_no_further() {
        let (mut known, mut now) = (Known::default(), Instant::now());
        [10, 20].into_iter().for_each(|next| known.acknowledge(now, next, WINDOW));
        known.recover(now, at(15), 15, WINDOW);
        now += WINDOW;
        assert_eq!(known.durable(now, WINDOW), Some(15));
    }
}
