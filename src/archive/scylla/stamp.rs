//! Write timestamps and numbers of partitions of tables: what makes every write repeatable and every table's partitions bounded. Pure.
//!
//! What changes (cells, orders, checkouts, identity, books, cursors) is written with (generation, offset, correction) as one number: the value that
//! includes more of the log is right, whoever wrote it, so that what an archiver writes late, after another took its partition over, loses. The
//! offset is the batch's cursor. Retention corrects values between two batches: the low bits are for that.
//!
//! ScyllaDB refuses timestamps of more than three days ahead of now, in microseconds. All of this stays below 2^50 (2005 in microseconds), and so
//! below what is written with a time.

use crate::archive::Error;
use crate::cql::{self, STAMP_LOW_BITS};
use crate::event::Timestamp;

/// The generation of the log that is archived. There is one so far.
pub(super) const GENERATION: u64 = 0;

/// Offsets in one bucket of event rows.
const EVENTS_IN_BUCKET: u64 = 10_000;
/// Offsets in one bucket of a look-up.
const LOOKUPS_IN_BUCKET: u64 = 100_000;

/// When a value is written that includes all below the offset `next`.
///
/// # Errors
/// [`Error::Store`] for an offset or a generation that there is no number for.
pub(super) fn of(generation: u64, next: u64) -> Result<i64, Error> {
    Ok(cql::stamp(generation, next)?)
}

/// The first number after `written` that corrects what includes all below the offset that `batch` stands for, and not the next batch.
///
/// # Errors
/// [`Error::Store`] where there were too many corrections since the batch.
pub(super) fn correcting(batch: i64, written: i64) -> Result<i64, Error> {
    let next = written.max(batch) + 1;
    if next >= whole(batch) {
        return Err(Error::Store("too many corrections since a partition's last batch; the next batch makes room".into()));
    }
    Ok(next)
}

/// The last number before the next batch: a removal of all that there is.
pub(super) const fn whole(batch: i64) -> i64 {
    batch | ((1 << STAMP_LOW_BITS) - 1)
}

/// When a row is written that is never changed: when it was taken, and never far ahead of now, whatever a clock said then.
pub(super) fn taken(received_at: Timestamp, now: Timestamp) -> i64 {
    received_at.min(now.plus_seconds(86_400)).micros()
}

/// The bucket of event rows or quarantined records that an offset belongs to.
pub(super) const fn bucket(offset: u64) -> i64 {
    (offset / EVENTS_IN_BUCKET) as i64
}

/// The bucket of a look-up that an offset belongs to.
pub(super) const fn lookup_bucket(offset: u64) -> i64 {
    (offset / LOOKUPS_IN_BUCKET) as i64
}

/// Hours since the epoch.
pub(super) fn hour(at: Timestamp) -> i32 {
    at.micros().div_euclid(3_600_000_000).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_batches_come_after_every_correction_of_earlier_ones() {
        let (ninth, tenth) = (of(0, 9).unwrap(), of(0, 10).unwrap());
        let mut last = ninth;
        let mut corrections = 0;
        while let Ok(next) = correcting(ninth, last) {
            assert!(last < next && next < whole(ninth));
            last = next;
            corrections += 1;
        }
        assert_eq!(corrections, 62);
        assert!(whole(ninth) < tenth);
        assert_eq!(correcting(tenth, last).unwrap(), tenth + 1, "a batch makes room");
    }

    #[test]
    fn times_are_never_what_scylladb_refuses() {
        let now = Timestamp::parse("2026-11-20T00:00:00Z").unwrap();
        assert_eq!(taken(now.plus_seconds(-5), now), now.plus_seconds(-5).micros());
        assert_eq!(taken(now.plus_seconds(4 * 86_400), now), now.plus_seconds(86_400).micros(), "never what ScyllaDB refuses");
    }

    #[test]
    fn buckets_hold_so_many_offsets() {
        assert_eq!([0, 9_999, 10_000, 123_456].map(bucket), [0, 0, 1, 12]);
        assert_eq!([0, 99_999, 100_000].map(lookup_bucket), [0, 0, 1]);
        assert_eq!((hour(Timestamp::from_micros(-1)), hour(Timestamp::from_micros(3_600_000_000))), (-1, 1));
    }
}
