//! How many different people there were, in at most 384 bytes: exactly up to 40, estimated beyond. Held in object rows by [`super::item`]. Pure.
//!
//! State and estimate are functions of the set of hashes alone, in whatever order they came; that is why this is not the `datasketches`
//! crate, whose HyperLogLog estimates by the history of its updates and so differs with their order. The exact form spares small pages both
//! the error and the bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::event::cardinality;

/// Hashes kept whole before registers take their place.
const EXACT: usize = 40;
/// log2 of the number of registers: a standard error of 1.04 / sqrt(512) = 4.6 %.
const LG_REGISTERS: u32 = 9;
/// Number of registers.
const REGISTERS: usize = 1 << LG_REGISTERS;
/// Bits of a hash behind those that choose the register.
const TAIL_BITS: u32 = 64 - LG_REGISTERS;
/// Bytes of all registers, four to three bytes; never a length of the exact form.
const PACKED: usize = REGISTERS * 6 / 8;

/// A set of 64-bit hashes (which must be evenly spread, as a keyed hash is), counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distinct(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Sorted.
    Exact(Vec<u64>),
    /// HyperLogLog: by the first 9 bits, the greatest position of the first one among the rest.
    Registers(Box<[u8; REGISTERS]>),
}

impl Default for Distinct {
    fn default() -> Self {
        Self(Form::Exact(Vec::new()))
    }
}

impl Distinct {
    /// Adds a hash; one added before changes nothing.
    pub fn add(&mut self, hash: u64) {
        match &mut self.0 {
            Form::Registers(registers) => raise(registers, hash),
            Form::Exact(hashes) => {
                let Err(at) = hashes.binary_search(&hash) else { return };
                hashes.insert(at, hash);
                if hashes.len() > EXACT {
                    let mut registers = Box::new([0; REGISTERS]);
                    hashes.iter().for_each(|hash| raise(&mut registers, *hash));
                    self.0 = Form::Registers(registers);
                }
            }
        }
    }

    /// How many there are, rounded; exact up to 40.
    pub fn estimate(&self) -> u64 {
        match &self.0 {
            Form::Exact(hashes) => hashes.len() as u64,
            Form::Registers(registers) => estimate(registers).round() as u64,
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        match &self.0 {
            Form::Exact(hashes) => hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect(),
            Form::Registers(registers) => {
                registers.as_chunks::<4>().0.iter().flat_map(|[a, b, c, d]| [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d]).collect()
            }
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() == PACKED {
            let mut registers = Box::new([0; REGISTERS]);
            for ([p, q, r], four) in bytes.as_chunks::<3>().0.iter().zip(registers.as_chunks_mut::<4>().0) {
                *four = [p >> 2, (p << 4 | q >> 4) & 63, (q << 2 | r >> 6) & 63, r & 63];
            }
            return Some(Self(Form::Registers(registers)));
        }
        let (hashes, rest) = bytes.as_chunks::<8>();
        (rest.is_empty() && hashes.len() <= EXACT).then(|| Self(Form::Exact(hashes.iter().map(|hash| u64::from_be_bytes(*hash)).collect())))
    }
}

impl Serialize for Distinct {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_bytes(<&[u8]>::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("not a set of people"))
    }
}

fn raise(registers: &mut [u8; REGISTERS], hash: u64) {
    let place = (hash << LG_REGISTERS).leading_zeros().min(TAIL_BITS) + 1;
    if let Some(register) = registers.get_mut((hash >> TAIL_BITS) as usize) {
        *register = (*register).max(place as u8);
    }
}

fn estimate(registers: &[u8; REGISTERS]) -> f64 {
    let mut counts = [0; TAIL_BITS as usize + 2];
    for register in registers {
        if let Some(count) = counts.get_mut(usize::from(*register)) {
            *count += 1;
        }
    }
    cardinality::estimate(&counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ids::{first_u64, sha256};

    fn hash(n: u64) -> u64 {
        first_u64(&sha256(&[&n.to_be_bytes()]))
    }

    #[test]
    fn exact_then_within_the_error() {
        let mut set = Distinct::default();
        let mut worst: f64 = 0.0;
        for n in 1..=100_000_u64 {
            set.add(hash(n));
            if n <= EXACT as u64 {
                set.add(hash(1));
                assert_eq!(set.estimate(), n);
            } else if n.is_power_of_two() || n % 10_000 == 0 {
                worst = worst.max((set.estimate() as f64 / n as f64 - 1.0).abs());
            }
        }
        assert!(worst > 0.0 && worst < 3.0 * 0.046, "{worst}");
    }

    #[test]
    fn bytes_hold_every_form() {
        let mut set = Distinct::default();
        for n in 0..2_000 {
            if [0, 1, 39, 40, 41, 42, 1_999].contains(&n) {
                let bytes = postcard::to_stdvec(&set).unwrap();
                assert!(bytes.len() <= PACKED + 2);
                assert_eq!(postcard::from_bytes::<Distinct>(&bytes), Ok(set.clone()), "{n}");
            }
            set.add(hash(n));
        }
        assert_eq!(Distinct::from_bytes(&[0; 7]), None);
        assert_eq!(Distinct::from_bytes(&[0; 8 * (EXACT + 1)]), None);
    }

    #[test]
    fn extreme_hashes_fit() {
        let mut set = Distinct::default();
        (0..=EXACT as u64 + 1).for_each(|n| set.add(n));
        set.add(u64::MAX);
        assert_eq!(Distinct::from_bytes(&set.to_bytes()), Some(set.clone()));
        assert!(set.estimate() > 0);
    }
}
