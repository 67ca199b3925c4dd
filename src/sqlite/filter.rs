//! A set that may answer "perhaps" for what it does not hold, but never "no" for what it does: a blocked Bloom filter that grows. Used by the
//! identity tables, so that an unknown id costs no look-up. Lives in memory only.

use crate::event::identity::IdentityKey;

/// Keys of the first segment.
const FIRST: usize = 4_096;

/// Each further segment takes so many times the keys of the one before.
const GROWTH: usize = 4;

/// Bits by key when full; one in about a thousand unknown keys is then a "perhaps".
const BITS_PER_KEY: usize = 16;

/// 512 bits: one line of the processor's cache.
type Block = [u64; 8];

/// The filter. Removes nothing; is dropped whole.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// The last one takes new keys.
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    blocks: Vec<Block>,
    room: usize,
}

impl Filter {
    /// A filter of one segment with room for `keys`.
    pub(super) fn with_capacity(keys: usize) -> Self {
        if keys == 0 { Self::default() } else { Self { segments: vec![Segment::new(keys.max(FIRST))] } }
    }

    /// Takes a key; one that it may hold already costs no room.
    pub(super) fn insert(&mut self, key: &IdentityKey) {
        if self.may_hold(key) {
            return;
        }
        let (place, mask) = place_and_mask(key);
        if self.segments.last().is_none_or(|segment| segment.room == 0) {
            let keys = self.segments.last().map_or(FIRST, |full| full.blocks.len() * (512 / BITS_PER_KEY) * GROWTH);
            self.segments.push(Segment::new(keys));
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
    pub(super) fn may_hold(&self, key: &IdentityKey) -> bool {
        let (place, mask) = place_and_mask(key);
        self.segments.iter().any(|segment| {
            let block = segment.blocks.get(segment.index(place));
            block.is_some_and(|block| block.iter().zip(mask).all(|(word, bits)| word & bits == bits))
        })
    }
}

impl Segment {
    fn new(keys: usize) -> Self {
        let blocks = (keys * BITS_PER_KEY).div_ceil(512);
        Self { blocks: vec![[0; 8]; blocks], room: keys }
    }

    /// The block for a uniform 64-bit number.
    fn index(&self, place: u64) -> usize {
        ((u128::from(place) * self.blocks.len() as u128) >> 64) as usize
    }
}

/// A key is a hash already: its first half chooses the block, seven times nine bits of its second half the bits in it.
fn place_and_mask(key: &IdentityKey) -> (u64, Block) {
    let whole = u128::from_be_bytes(key.0);
    let (place, mut rest) = ((whole >> 64) as u64, whole as u64);
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

    fn key(n: u64) -> IdentityKey {
        IdentityKey(first_16(&sha256(&[&n.to_be_bytes()])))
    }

    #[test]
    fn forgets_nothing_and_seldom_errs() {
        for mut filter in [Filter::default(), Filter::with_capacity(100_000)] {
            (0..100_000).for_each(|n| filter.insert(&key(n)));
            assert!((0..100_000).all(|n| filter.may_hold(&key(n))));
            let wrong = (100_000..200_000).filter(|n| filter.may_hold(&key(*n))).count();
            assert!(wrong < 400, "{wrong} of 100,000 unknown keys pass");
            (0..100_000).for_each(|n| filter.insert(&key(n)));
            assert!(filter.segments.len() <= 4, "repeats take no room");
        }
        assert!(!Filter::default().may_hold(&key(1)));
    }
}
