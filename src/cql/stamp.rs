//! Write timestamps that are places in a log: the value that includes more of the log is right, whoever wrote it and when. Used by the stores that keep what is a
//! function of a log. Pure.

use super::Error;

/// Bits below an offset, for several writes of one.
pub const STAMP_LOW_BITS: u32 = 6;
/// Bits for the offset: 2.7e11 records of one partition.
const OFFSET_BITS: u32 = 38;
/// Generations there can be.
const GENERATIONS: u64 = 1 << 6;

/// The least write timestamp of an offset in a generation of its log. All are below 2^50 (2005 in microseconds), and so below what is written with a time, and
/// what ScyllaDB refuses as too far ahead.
///
/// # Errors
/// [`Error::Refused`] for an offset or a generation that there is no number for.
pub fn stamp(generation: u64, offset: u64) -> Result<i64, Error> {
    if offset >> OFFSET_BITS != 0 || generation >= GENERATIONS {
        return Err(Error::Refused(format!("offset {offset} of generation {generation} is beyond what write timestamps can tell apart")));
    }
    Ok((generation << (OFFSET_BITS + STAMP_LOW_BITS) | offset << STAMP_LOW_BITS) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_in_order_below_any_time_and_within_bounds() {
        let greatest = stamp(GENERATIONS - 1, (1 << OFFSET_BITS) - 1).unwrap();
        // 2020 in microseconds.
        assert!(greatest + (1 << STAMP_LOW_BITS) < 1_577_836_800_000_000);
        assert!(stamp(0, 9).unwrap() + (1 << STAMP_LOW_BITS) <= stamp(0, 10).unwrap());
        assert!(stamp(0, (1 << OFFSET_BITS) - 1).unwrap() < stamp(1, 0).unwrap());
        assert!(stamp(0, 1 << OFFSET_BITS).is_err() && stamp(GENERATIONS, 0).is_err());
    }
}
