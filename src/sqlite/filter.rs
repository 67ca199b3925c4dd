//! A set that may answer "perhaps" for what it does not hold, but never "no" for what it does: a blocked Bloom filter that grows. Used by the
//! identity tables and the archive's day files, so that an unknown id costs no look-up. Keys are uniform 128-bit hashes. Lives in memory only.

/// Keys of the first segment.
const FIRST: usize = 4_096;

/// Each further segment takes so many times the keys of the one before.
const GROWTH: usize = 4;

/// How often a full filter says "perhaps" to an unknown key, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    /// One in about a thousand, at 16 bits by key.
    Fine,
    /// One in about thirty, at 8 bits by key: for what a fine one lets through.
    Coarse,
}

impl Grade {
    const fn bits_per_key(self) -> usize {
        match self {
            Self::Fine => 16,
            Self::Coarse => 8,
        }
    }
}

/// 512 bits: one line of the processor's cache.
type Block = [u64; 8];

/// The filter. Removes nothing; is dropped whole.
#[derive(Debug)]
pub(crate) struct Filter {
    grade: Grade,
    /// The last one takes new keys.
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    blocks: Vec<Block>,
    room: usize,
}

impl Filter {
    /// An empty filter.
    pub(crate) const fn new(grade: Grade) -> Self {
        Self { grade, segments: Vec::new() }
    }

    /// A filter of one segment with room for `keys`.
    pub(crate) fn with_capacity(grade: Grade, keys: usize) -> Self {
        let segments = if keys == 0 { Vec::new() } else { vec![Segment::new(grade, keys.max(FIRST))] };
        Self { grade, segments }
    }

    /// Takes a key; one that it may hold already costs no room.
    pub(crate) fn insert(&mut self, key: u128) {
        if self.may_hold(key) {
            return;
        }
        let (place, mask) = place_and_mask(key);
        if self.segments.last().is_none_or(|segment| segment.room == 0) {
            let keys = self.segments.last().map_or(FIRST, |full| full.blocks.len() * (512 / self.grade.bits_per_key()) * GROWTH);
            self.segments.push(Segment::new(self.grade, keys));
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.room -= 1;
            let at = segment.index(place);
            if let Some(block) = segment.blocks.get_mut(at) {
                block.iter_mut().zip(mask).for_each(|(word, bits)| *word |= bits);
            }
        }
    }

    /// False only if the key was never taken.
    pub(crate) fn may_hold(&self, key: u128) -> bool {
        let (place, mask) = place_and_mask(key);
        self.segments.iter().any(|segment| {
            let block = segment.blocks.get(segment.index(place));
            block.is_some_and(|block| block.iter().zip(mask).all(|(word, bits)| word & bits == bits))
        })
    }
}

impl Segment {
    fn new(grade: Grade, keys: usize) -> Self {
        let blocks = (keys * grade.bits_per_key()).div_ceil(512);
        Self { blocks: vec![[0; 8]; blocks], room: keys }
    }

    /// The block for a uniform 64-bit number.
    fn index(&self, place: u64) -> usize {
        ((u128::from(place) * self.blocks.len() as u128) >> 64) as usize
    }
}

/// A key is a hash already: its first half chooses the block, seven times nine bits of its second half the bits in it.
fn place_and_mask(key: u128) -> (u64, Block) {
    let (place, mut rest) = ((key >> 64) as u64, key as u64);
    let mut mask = [0; 8];
    for _ in 0..7 {
        if let Some(word) = mask.get_mut((rest >> 6 & 7) as usize) {
            *word |= 1 << (rest & 63);
        }
        rest >>= 9;
    }
    (place, mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ids::{first_16, sha256};

    fn key(n: u64) -> u128 {
        u128::from_be_bytes(first_16(&sha256(&[&n.to_be_bytes()])))
    }

    #[test]
    fn forgets_nothing_and_seldom_errs() {
        for (grade, most) in [(Grade::Fine, 400), (Grade::Coarse, 8_000)] {
            for mut filter in [Filter::new(grade), Filter::with_capacity(grade, 100_000)] {
                (0..100_000).for_each(|n| filter.insert(key(n)));
                assert!((0..100_000).all(|n| filter.may_hold(key(n))));
                let wrong = (100_000..200_000).filter(|n| filter.may_hold(key(*n))).count();
                assert!(wrong < most, "{wrong} of 100,000 unknown keys pass");
                (0..100_000).for_each(|n| filter.insert(key(n)));
                assert!(filter.segments.len() <= 4, "repeats take no room");
            }
            assert!(!Filter::new(grade).may_hold(key(1)));
        }
    }
}
