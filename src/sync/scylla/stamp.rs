//! Write timestamps of what is a function of the log: of an object by the `changes` offset it includes, of places by the offset they name. Pure.
//!
//! One write of an object has three: removals that make room for its rows (`clear`, purged items), the rows, and what comes after all of it.

use crate::cql;
use crate::sync::Error;

/// The generation of the log whose changes these objects are. There is one so far.
const GENERATION: u64 = 0;

/// When removals are written that the rows of the same write come after.
///
/// # Errors
/// [`Error::Store`] for an offset that there is no number for; so for the others.
pub(super) fn before(upto: u64) -> Result<i64, Error> {
    Ok(cql::stamp(GENERATION, upto)?)
}

/// When rows are written.
pub(super) fn at(upto: u64) -> Result<i64, Error> {
    Ok(before(upto)? + 1)
}

/// When all that was written up to this offset is removed, and nothing after.
pub(super) fn after(upto: u64) -> Result<i64, Error> {
    Ok(before(upto)? + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_comes_after_its_removals_and_before_the_next_one() {
        let all: Vec<i64> = [0, 1, 77].into_iter().flat_map(|upto| [before(upto), at(upto), after(upto)]).map(Result::unwrap).collect();
        assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        assert!(before(u64::MAX).is_err());
    }
}
