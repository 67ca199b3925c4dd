//! One number per partition, used all over the embedded log where a plain array would need indexing. Pure.

use crate::event::PARTITIONS;
use crate::eventlog::Offset;

/// How many partitions, as a length.
pub(super) const COUNT: usize = PARTITIONS as usize;

/// An offset for every partition of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets([Offset; COUNT]);

impl Offsets {
    /// One partition's; 0 for a partition that does not exist (callers check the number where it comes in).
    pub(super) fn of(&self, partition: u16) -> Offset {
        self.0.get(usize::from(partition)).copied().unwrap_or(0)
    }

    /// Sets one partition's; nothing for a partition that does not exist.
    pub(super) fn set(&mut self, partition: u16, offset: Offset) {
        if let Some(slot) = self.0.get_mut(usize::from(partition)) {
            *slot = offset;
        }
    }

    /// Every partition with its offset, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, Offset)> + '_ {
        (0..PARTITIONS).zip(self.0.iter().copied())
    }

    /// In partition order.
    pub(super) fn to_vec(self) -> Vec<Offset> {
        self.0.to_vec()
    }

    /// The lower of both, partition by partition.
    pub(super) fn min(&self, other: &Self) -> Self {
        let mut lower = *self;
        for (a, b) in lower.0.iter_mut().zip(other.0.iter()) {
            *a = (*a).min(*b);
        }
        lower
    }
}

impl FromIterator<Offset> for Offsets {
    fn from_iter<I: IntoIterator<Item = Offset>>(offsets: I) -> Self {
        let mut all = Self::default();
        for (slot, offset) in all.0.iter_mut().zip(offsets) {
            *slot = offset;
        }
        all
    }
}
