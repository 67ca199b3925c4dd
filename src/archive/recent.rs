//! What was written lately, kept so as not to be read again: clean copies only, bounded by weight. Owned by the archiver; after a failed write it is
//! emptied, never trusted.

use std::collections::HashMap;
use std::hash::Hash;

/// Two generations of entries: when the young one is full it becomes the old one, and what the old one held is forgotten.
pub(super) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    weight: usize,
    most: usize,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// Keeps entries of together at most twice `most` bytes by the callers' reckoning.
    pub(super) fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), weight: 0, most }
    }

    /// Takes an entry out.
    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        let young = self.young.remove(key);
        let old = self.old.remove(key);
        young.or(old)
    }

    /// Puts an entry of so many bytes in.
    pub(super) fn put(&mut self, key: K, value: V, bytes: usize) {
        if self.weight.saturating_add(bytes) > self.most {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += bytes;
        self.young.insert(key, value);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_latest_and_at_most_two_generations() {
        let mut recent = Recent::new(30);
        for n in 0..10 {
            recent.put(n, n, 10);
        }
        let kept: Vec<i32> = (0..8).filter(|n| recent.take(n).is_some()).collect();
        assert_eq!(kept, [6, 7]);
        recent.put(8, 80, 10);
        assert_eq!((recent.take(&8), recent.take(&8), recent.take(&9)), (Some(80), None, Some(9)));
        recent.put(1, 1, 10);
        recent.clear();
        assert_eq!(recent.take(&1), None);
    }
}
