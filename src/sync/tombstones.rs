//! The items an object no longer has, remembered for readers that resume: 24 hours, at most 10,000. Held by [`super::object`]. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::event::Timestamp;

/// Most tombstones of one object.
pub const MAX: usize = 10_000;
/// Seconds a tombstone is kept, counted back from the object's last change.
pub const SECONDS: i64 = 24 * 3_600;

/// What is remembered of a removed item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The item's revision with its removal.
    pub revision: u64,
    /// The object's event id of the removal.
    pub event_id: u64,
    /// When it was removed.
    pub removed_at: Timestamp,
}

/// Tombstones by item, and in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Tombstones {
    by_item: HashMap<String, Tombstone>,
    by_age: BTreeSet<(u64, String)>,
}

impl Tombstones {
    /// Remembers a removal.
    pub fn insert(&mut self, item: String, stone: Tombstone) {
        self.remove(&item);
        self.by_age.insert((stone.event_id, item.clone()));
        self.by_item.insert(item, stone);
    }

    /// Forgets an item that is there again.
    pub fn remove(&mut self, item: &str) {
        if let Some(stone) = self.by_item.remove(item) {
            self.by_age.remove(&(stone.event_id, item.to_owned()));
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.by_item.clear();
        self.by_age.clear();
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.by_item.is_empty()
    }

    /// What is remembered of an item.
    pub fn get(&self, item: &str) -> Option<&Tombstone> {
        self.by_item.get(item)
    }

    /// Removals after `event_id`, in order.
    pub fn since(&self, event_id: u64) -> impl Iterator<Item = (&str, &Tombstone)> {
        self.by_age.range((event_id.saturating_add(1), String::new())..).filter_map(|(_, item)| Some((item.as_str(), self.by_item.get(item)?)))
    }

    /// Takes out the oldest that are too old or too many at `now`; gives their items and the greatest of their event ids (0 where none).
    pub fn purge(&mut self, now: Timestamp) -> (Vec<String>, u64) {
        let oldest = now.plus_micros(-SECONDS * 1_000_000);
        let (mut items, mut greatest) = (Vec::new(), 0);
        while let Some((event_id, item)) = self.by_age.first() {
            let stale = self.by_item.get(item).is_none_or(|stone| stone.removed_at < oldest);
            if !stale && self.by_item.len() <= MAX {
                break;
            }
            greatest = *event_id;
            let item = item.clone();
            self.remove(&item);
            items.push(item);
        }
        (items, greatest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stone(event_id: u64, seconds: i64) -> Tombstone {
        Tombstone { revision: 2, event_id, removed_at: Timestamp::ZERO.plus_seconds(seconds) }
    }

    #[test]
    fn the_old_and_the_many_go_oldest_first() {
        let mut stones = Tombstones::default();
        stones.insert("a".into(), stone(1, 0));
        stones.insert("b".into(), stone(2, 10));
        assert_eq!(stones.purge(Timestamp::ZERO.plus_seconds(SECONDS)), (vec![], 0));
        assert_eq!(stones.purge(Timestamp::ZERO.plus_seconds(SECONDS + 1)), (vec!["a".into()], 1));
        for n in 0..MAX as u64 {
            stones.insert(format!("{n:05}"), stone(3 + n, 11));
        }
        assert_eq!(stones.purge(Timestamp::ZERO.plus_seconds(11)), (vec!["b".into()], 2));
        assert_eq!(stones.since(MAX as u64 + 1).map(|(item, _)| item).collect::<Vec<_>>(), ["09999"]);
    }

    #[test]
    fn an_item_that_returns_has_none() {
        let mut stones = Tombstones::default();
        stones.insert("a".into(), stone(1, 0));
        stones.insert("a".into(), stone(5, 0));
        assert_eq!(stones.since(0).collect::<Vec<_>>(), [("a", &stone(5, 0))]);
        stones.remove("a");
        assert_eq!((stones.get("a"), stones.since(0).count()), (None, 0));
    }
}
