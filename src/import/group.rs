//! Events whose lines stand in several rows: gathered until no row of theirs came for a while. Called by `reading`. Bounded:
//! a group ends after `group_window` rows without one of its own, or as the longest untouched when too much is held.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::build::Draft;

/// What all open groups may hold together, in bytes (estimated).
const MAX_HELD_BYTES: usize = 64 << 20;
/// How many ended groups are remembered, to notice a row that comes too late.
const MAX_ENDED: usize = 1 << 20;

/// A rule's number and the values of its `group_by` columns.
pub(super) type Key = (usize, Vec<String>);

struct Open {
    draft: Draft,
    touched: u64,
    held: usize,
}

/// The groups not yet ended.
pub(super) struct Groups {
    max_held: usize,
    max_ended: usize,
    open: HashMap<Key, Open>,
    by_touch: BTreeMap<u64, Key>,
    row: u64,
    held: usize,
    ended: HashSet<u64>,
    ended_in_order: VecDeque<u64>,
}

impl Default for Groups {
    fn default() -> Self {
        Self::bounded(MAX_HELD_BYTES, MAX_ENDED)
    }
}

impl Groups {
    fn bounded(max_held: usize, max_ended: usize) -> Self {
        let (open, by_touch, ended, ended_in_order) = Default::default();
        Self { max_held, max_ended, open, by_touch, row: 0, held: 0, ended, ended_in_order }
    }

    /// A row came; gives the groups that end by it.
    pub(super) fn tick(&mut self, window: u64) -> Vec<Draft> {
        self.row += 1;
        let mut done = Vec::new();
        while let Some((touched, _)) = self.by_touch.first_key_value()
            && (touched.saturating_add(window) < self.row || self.held > self.max_held)
            && let Some((_, key)) = self.by_touch.pop_first()
        {
            done.extend(self.end(&key));
        }
        done
    }

    /// Whether a group of this key is open.
    pub(super) fn is_open(&self, key: &Key) -> bool {
        self.open.contains_key(key)
    }

    /// Whether a group of this key has already ended (as far as remembered).
    pub(super) fn has_ended(&self, key: &Key) -> bool {
        self.ended.contains(&hash(key))
    }

    /// Opens a group with its head; at most one row between two [`Groups::tick`]s adds to it.
    pub(super) fn open(&mut self, key: Key, draft: Draft) {
        let held = draft.head().iter().map(|(name, value)| name.len() + estimate(value)).sum();
        self.held += held;
        self.by_touch.insert(self.row, key.clone());
        self.open.insert(key, Open { draft, touched: self.row, held });
    }

    /// Adds a line to an open group.
    pub(super) fn add(&mut self, key: &Key, item: Value) {
        let Some(group) = self.open.get_mut(key) else { return };
        self.by_touch.remove(&group.touched);
        group.touched = self.row;
        self.by_touch.insert(self.row, key.clone());
        let size = estimate(&item);
        group.held += size;
        self.held += size;
        group.draft.add(item);
    }

    /// Ends all groups, in the order of their last rows.
    pub(super) fn end_all(&mut self) -> Vec<Draft> {
        let keys: Vec<Key> = std::mem::take(&mut self.by_touch).into_values().collect();
        keys.iter().filter_map(|key| self.end(key)).collect()
    }

    fn end(&mut self, key: &Key) -> Option<Draft> {
        let group = self.open.remove(key)?;
        self.held = self.held.saturating_sub(group.held);
        let hash = hash(key);
        if self.ended.insert(hash) {
            self.ended_in_order.push_back(hash);
        }
        if self.ended_in_order.len() > self.max_ended
            && let Some(oldest) = self.ended_in_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        Some(group.draft)
    }
}

fn hash(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// What an item takes in memory, roughly: its texts and the tree around them.
fn estimate(item: &Value) -> usize {
    match item {
        Value::String(text) => 32 + text.len(),
        Value::Object(members) => members.iter().map(|(name, value)| 64 + name.len() + estimate(value)).sum(),
        _ => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::row::{Cells, Row};
    use crate::import::{Mapping, Reason};
    use serde_json::json;
    use std::collections::HashMap;

    fn draft(id: &str) -> Result<Draft, Reason> {
        let mapping =
            Mapping::parse("format = 'csv'\n[[event]]\ntype = 'cart_updated'\nevent_id = '{No}'\n[event.items]\nproduct_id = 'a'\nquantity = '1'")
                .unwrap();
        let (places, fields) = (HashMap::from([("No".to_owned(), 0)]), [id.to_owned()]);
        Draft::new(&mapping, &mapping.rules[0], &Row { cells: Cells::Csv(&places, &fields), line: 1, index: 0 })
    }

    #[test]
    fn what_is_held_and_remembered_is_bounded() {
        let mut groups = Groups::bounded(10_000, 2);
        let key = |n: usize| (0, vec![n.to_string()]);
        let mut ended = Vec::new();
        for n in 0..5 {
            ended.extend(groups.tick(1000).into_iter().map(|draft| draft.finish().unwrap().event_id));
            groups.open(key(n), draft(&n.to_string()).unwrap());
            groups.add(&key(n), json!({"name": "x".repeat(4000)}));
            assert!(groups.held <= 15_000);
        }
        assert_eq!(ended, ["0", "1"], "the longest untouched end first");
        assert_eq!(groups.end_all().len(), 3);
        assert_eq!((groups.held, groups.ended.len()), (0, 2));
        assert_eq!([groups.has_ended(&key(0)), groups.has_ended(&key(4))], [false, true]);
    }
}
