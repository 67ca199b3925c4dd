//! A bounded memory of what was looked up lately: two generations, the older dropped whole when the younger is full. Used by the router in front of
//! its store and by the store's writer; must never hold the only copy of anything.

use std::collections::HashMap;
use std::hash::Hash;

/// Keeps between `size` and twice `size` of the entries used last.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    size: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    /// An empty memory.
    pub(super) fn new(size: usize) -> Self {
        Self { size: size.max(1), young: HashMap::new(), old: HashMap::new() }
    }

    /// Remembers a value.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.size {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Takes a value out: the caller changes it and puts it back.
    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        // Also from the older generation, where an outdated value may lie beneath.
        let old = self.old.remove(key);
        self.young.remove(key).or(old)
    }

    /// Whether a value is remembered; counts as a use.
    pub(super) fn contains(&mut self, key: &K) -> bool {
        if self.young.contains_key(key) {
            return true;
        }
        match self.old.remove(key) {
            Some(value) => {
                self.insert(key.clone(), value);
                true
            }
            None => false,
        }
    }

    /// A value; counts as a use.
    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        if self.contains(key) { self.young.get(key) } else { None }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_used_and_stays_bounded() {
        let mut recent = Recent::new(10);
        for n in 0..1_000 {
            recent.insert(n, n);
            assert!(recent.contains(&0), "used each time, lost at {n}");
            assert!(recent.young.len() + recent.old.len() <= 20);
        }
        assert!(!recent.contains(&500));
        assert_eq!(recent.get(&995), Some(&995));
        assert_eq!(recent.get(&1), None);
        recent.insert(0, 7);
        assert_eq!((recent.take(&0), recent.take(&0)), (Some(7), None));
        recent.clear();
        assert!(!recent.contains(&995));
    }
}
