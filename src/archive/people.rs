//! How many distinct people: a mergeable sketch in few bytes. Used by rollups, reports and audits. What it holds is a function of the set of people
//! alone, in whatever order and grouping they were added; pure.
//!
//! Up to 512 people it lists their hashes (8 bytes each, sorted) and is exact; beyond, it is a HyperLogLog of 4,096 one-byte registers
//! (standard error 1.04 / sqrt(4096) = 1.6 %), which is never larger than the list it replaces. Counted by Ertl's improved estimator (arXiv
//! 1702.01284), which needs no tables and has no bias at any size.

use super::People;
use crate::event::cardinality;

/// Most people that are listed.
const LISTED: usize = REGISTERS / 8;
/// Bits of a hash that choose its register.
const INDEX_BITS: u32 = 12;
const REGISTERS: usize = 1 << INDEX_BITS;
/// Greatest value of a register: one more than the bits left of a hash.
const GREATEST: usize = 64 - INDEX_BITS as usize + 1;

/// First byte of a sketch that lists its people: hashes of 8 bytes, big-endian, ascending. No bytes at all: nobody.
const LIST: u8 = 1;
/// First byte of a sketch of registers.
const DENSE: u8 = 2;

impl People {
    /// Adds the person with this keyed hash.
    pub fn add(&mut self, person: &[u8; 16]) {
        let mut hash = [0; 8];
        hash.iter_mut().zip(person).for_each(|(to, from)| *to = *from);
        self.add_hash(u64::from_be_bytes(hash));
    }

    /// Adds everybody of another sketch, given as its bytes. Bytes that are no sketch add nobody.
    pub fn merge(&mut self, other: &[u8]) {
        match other.split_first() {
            Some((&LIST, _)) if self.0.is_empty() => self.0 = other.to_vec(),
            Some((&LIST, hashes)) => hashes.as_chunks().0.iter().for_each(|hash| self.add_hash(u64::from_be_bytes(*hash))),
            Some((&DENSE, registers)) if registers.len() == REGISTERS => {
                self.make_dense();
                self.0.iter_mut().skip(1).zip(registers).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
            }
            _ => {}
        }
    }

    /// About how many people; exact while [`Self::is_exact`].
    pub fn estimate(&self) -> u64 {
        match self.0.split_first() {
            Some((&LIST, hashes)) => (hashes.len() / 8) as u64,
            Some((&DENSE, registers)) => estimate(registers),
            _ => 0,
        }
    }

    /// Whether everybody is listed.
    pub fn is_exact(&self) -> bool {
        self.0.first() != Some(&DENSE)
    }

    fn add_hash(&mut self, hash: u64) {
        match self.0.first() {
            None => self.0.push(LIST),
            Some(&DENSE) => return self.raise(hash),
            Some(_) => {}
        }
        let bytes = hash.to_be_bytes();
        let hashes = self.0.get(1..).unwrap_or_default().as_chunks::<8>().0;
        let Err(at) = hashes.binary_search(&bytes) else { return };
        if hashes.len() < LISTED {
            let at = 1 + at * 8;
            self.0.splice(at..at, bytes);
        } else {
            self.make_dense();
            self.raise(hash);
        }
    }

    /// Turns a list into registers.
    fn make_dense(&mut self) {
        if self.0.first() == Some(&DENSE) {
            return;
        }
        let mut registers = vec![0; 1 + REGISTERS];
        registers.iter_mut().take(1).for_each(|kind| *kind = DENSE);
        let list = std::mem::replace(&mut self.0, registers);
        list.get(1..).unwrap_or_default().as_chunks().0.iter().for_each(|hash| self.raise(u64::from_be_bytes(*hash)));
    }

    /// Raises the register of a hash to the place of the first one among its other bits.
    fn raise(&mut self, hash: u64) {
        let index = (hash >> (64 - INDEX_BITS)) as usize;
        let rank = ((hash << INDEX_BITS) | 1 << (INDEX_BITS - 1)).leading_zeros() + 1;
        if let Some(register) = self.0.get_mut(1 + index) {
            *register = (*register).max(rank as u8);
        }
    }
}

fn estimate(registers: &[u8]) -> u64 {
    let mut counts = [0; GREATEST + 1];
    for register in registers {
        if let Some(count) = counts.get_mut(usize::from(*register)) {
            *count += 1;
        }
    }
    cardinality::estimate(&counts).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SiteRules;

    fn people(range: std::ops::Range<u32>) -> Vec<[u8; 16]> {
        let rules = SiteRules::default();
        range.map(|n| rules.person_hash(&n.to_string())).collect()
    }

    fn sketch(of: &[[u8; 16]]) -> People {
        let mut sketch = People::default();
        of.iter().for_each(|person| sketch.add(person));
        sketch
    }

    #[test]
    fn exact_to_512_and_then_within_five_standard_errors() {
        let all = people(0..40_000);
        for n in [0usize, 1, 2, 511, 512] {
            let found = sketch(&all[..n]);
            assert_eq!((found.estimate(), found.is_exact()), (n as u64, true));
        }
        assert_eq!(sketch(&all[..512]).0.len(), 1 + REGISTERS);
        for n in [513usize, 600, 2_000, 10_000, 40_000] {
            let found = sketch(&all[..n]);
            assert!(!found.is_exact());
            let off = (found.estimate() as f64 / n as f64 - 1.0).abs();
            assert!(off < 5.0 * 1.04 / 64.0, "{n} people read as {}", found.estimate());
        }
    }

    #[test]
    fn the_same_whatever_the_order_and_the_grouping() {
        let all = people(0..900);
        for n in [3usize, 400, 512, 513, 900] {
            let whole = sketch(&all[..n]);
            let mut backwards = all[..n].to_vec();
            backwards.reverse();
            backwards.extend(&all[..n / 2]);
            assert_eq!(sketch(&backwards), whole);
            for parts in [2, 3, 7] {
                let mut merged = People::default();
                for part in 0..parts {
                    // Groups overlap.
                    let group: Vec<_> = all[..n].iter().enumerate().filter(|(i, _)| i % parts == part || i % 5 == 0).map(|(_, p)| *p).collect();
                    merged.merge(&sketch(&group).0);
                }
                assert_eq!(merged, whole, "{n} people in {parts} parts");
            }
        }
    }

    #[test]
    fn what_is_no_sketch_adds_nobody() {
        let mut one = sketch(&people(0..1));
        for bytes in [&[][..], &[9, 1, 2], &[DENSE, 1, 2]] {
            one.merge(bytes);
        }
        assert_eq!(one.estimate(), 1);
    }
}
