//! One sync object in memory: folds changes in, says what to write, publish and show. Called by the keeper, its only writer, and by readers of
//! stored objects. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::batch::Bucket;
use super::expiry::expired;
use super::item::{ItemState, compare};
use super::tombstones::{Tombstone, Tombstones};
use super::{Applied, AppliedRow, Error, Head, ObjectWrite, Row, StoredObject};
use crate::event::change::{Op, Origin};
use crate::event::{Change, ObjectKey, ObjectKind, Timestamp};

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// It is folded in: the object is to be written.
    Applied,
    /// The object holds it already (offset at or below `upto`): nothing to write, but its rows are to be published again.
    Repeat,
    /// Its guard refused it (an older dashboard version, an expiry that came too late): as if it had not been.
    Refused,
}

/// One sync object, and what of it is still to be written and published.
#[derive(Clone, Debug)]
pub struct Object {
    key: ObjectKey,
    head: Head,
    rows: BTreeMap<String, Living>,
    tombstones: Tombstones,
    /// Rows to write and publish; a name may stand twice.
    changed: Vec<String>,
    /// Rows to publish again.
    repeated: BTreeSet<String>,
    /// Rows of an incarnation that ended since the last write.
    gone: BTreeSet<String>,
    /// Whether stored rows are to be deleted first.
    clear: bool,
    needs_write: bool,
    needs_publish: bool,
    /// The event id up to which the writes taken before tell, and how many of the changes up to there were read again since.
    told: u64,
    repeats: u64,
}

#[derive(Clone, Debug)]
struct Living {
    revision: u64,
    event_id: u64,
    updated_at: Timestamp,
    state: ItemState,
    /// Whether it is among the changed rows.
    changed: bool,
    /// The state's bytes where it was encoded since it last changed.
    encoded: Option<Vec<u8>>,
    /// Bytes of the row that `Head::bytes` counts.
    counted: u64,
}

/// An object as readers see it at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Which.
    pub key: ObjectKey,
    /// Its revision.
    pub revision: u64,
    /// Its event id: what is published at or below it is included.
    pub event_id: u64,
    /// When this incarnation began.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// A document's data (JSON text of an object); None for other kinds.
    pub data: Option<Arc<str>>,
    /// Items of a map by key, of a list by index; empty for other kinds.
    pub items: Vec<SnapshotItem>,
}

/// One item of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotItem {
    /// Key of a map's item; a list's index as 16 hexadecimal digits.
    pub item: String,
    /// The item's revision.
    pub revision: u64,
    /// The object's event id after the item's last change.
    pub event_id: u64,
    /// When that was.
    pub updated_at: Timestamp,
    /// JSON text.
    pub data: Arc<str>,
}

impl Object {
    /// An object that never was.
    pub fn empty(key: ObjectKey) -> Self {
        Self {
            key,
            head: Head::default(),
            rows: BTreeMap::new(),
            tombstones: Tombstones::default(),
            changed: Vec::new(),
            repeated: BTreeSet::new(),
            gone: BTreeSet::new(),
            clear: false,
            needs_write: false,
            needs_publish: false,
            told: 0,
            repeats: 0,
        }
    }

    /// An object as it was stored. Fails where a row's state cannot be read: the keeper freezes such an object.
    pub fn from_stored(stored: StoredObject) -> Result<Self, Error> {
        let mut object = Self::empty(stored.key);
        object.told = stored.head.event_id;
        object.head = stored.head;
        for row in stored.rows {
            let Some(bytes) = row.state else {
                object.tombstones.insert(row.item, Tombstone { revision: row.revision, event_id: row.event_id, removed_at: row.updated_at });
                continue;
            };
            let state = ItemState::decode(&bytes).map_err(|what| Error::Corrupt { kind: object.key.kind, name: object.key.name.clone(), what })?;
            let counted = (row.item.len() + bytes.len()) as u64;
            let living =
                Living { revision: row.revision, event_id: row.event_id, updated_at: row.updated_at, state, changed: false, encoded: None, counted };
            object.rows.insert(row.item, living);
        }
        Ok(object)
    }

    /// Which object it is.
    pub const fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Whether it is a document, list, map or stream.
    pub const fn kind(&self) -> ObjectKind {
        self.key.kind
    }

    /// Its head as it stands.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Whether it exists, removed objects aside. Expiry is judged apart.
    pub const fn is_living(&self) -> bool {
        self.head.event_id > 0 && self.head.removed_at.is_none()
    }

    /// Folds in a change whose `changes` offset is `offset`. `ttl` judges expiry by the change's `received_at`: a change that comes after it first
    /// removes what was there, then begins anew; event ids go on, the revision starts again.
    pub fn apply(&mut self, change: &Change, offset: u64, ttl: Option<Duration>) -> Fold {
        if self.head.event_id > 0 && offset <= self.head.upto {
            self.repeat(change);
            return Fold::Repeat;
        }
        let removes = change.ops.iter().any(|op| matches!(op, Op::Remove));
        if !self.admits(change, removes) {
            return Fold::Refused;
        }
        let over = ttl.is_some_and(|ttl| expired(self.head.updated_at, ttl, change.received_at));
        let anew = !self.is_living() || (over && !removes);
        self.head.event_id += 1;
        self.head.upto = offset;
        if anew {
            self.begin(change.received_at);
        }
        self.head.revision += 1;
        self.head.created_at = self.head.created_at.min(change.received_at);
        self.head.updated_at = self.head.updated_at.max(change.received_at);
        if let Origin::Archive { version } = change.origin {
            self.head.version = version;
        }
        for ops in change.ops.chunk_by(same_row) {
            self.fold(ops, change);
        }
        self.needs_write = true;
        self.needs_publish = true;
        Fold::Applied
    }

    /// Whether something was applied since the last [`Object::take_write`].
    pub const fn needs_write(&self) -> bool {
        self.needs_write
    }

    /// Whether something is to be published: what needs writing, and what repeats touched.
    pub const fn needs_publish(&self) -> bool {
        self.needs_publish
    }

    /// Bytes of the rows that the next write carries. Encodes them; the write reuses that.
    pub fn weigh(&mut self) -> usize {
        self.changed.sort_unstable();
        self.changed.dedup();
        let mut bytes = 0;
        for item in &self.changed {
            bytes += item.len();
            if let Some(row) = self.rows.get_mut(item) {
                bytes += row.encoded.get_or_insert_with(|| row.state.encode()).len();
            }
        }
        bytes
    }

    /// Takes a token for writing what changed, by its size; Err says when there will be one. The next [`Object::take_write`] carries the bucket.
    pub fn try_take_token(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        let size = self.weigh();
        let mut bucket = Bucket::of(&self.head);
        let taken = bucket.try_take(now, size);
        bucket.store(&mut self.head);
        taken
    }

    /// All that changed since the last call, to be written, and the same as subscribers see it; the latter without rows unless `render`, and then not
    /// to be published. After repeats alone ([`Object::needs_write`] says no) the write need not be made.
    pub fn take_write(&mut self, render: bool) -> (ObjectWrite, Applied) {
        let (purge, purged) = self.tombstones.purge(self.head.updated_at);
        self.head.purged = self.head.purged.max(purged);
        let rows = if render { self.published() } else { Vec::new() };
        let applied = Applied {
            key: self.key.clone(),
            after: self.told.saturating_sub(std::mem::take(&mut self.repeats)),
            event_id: self.head.event_id,
            revision: self.head.revision,
            rows,
            removed: self.head.removed_at.is_some(),
        };
        self.told = self.head.event_id;
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let rows = changed.into_iter().filter_map(|item| self.written(item)).collect();
        self.repeated.clear();
        self.gone.clear();
        self.needs_write = false;
        self.needs_publish = false;
        let clear = std::mem::take(&mut self.clear);
        (ObjectWrite { key: self.key.clone(), head: self.head.clone(), rows, purge, clear }, applied)
    }

    /// What readers see; None where the object does not exist or was removed. Expiry is the caller's to judge ([`super::expiry::Expiry::expired`]).
    pub fn snapshot(&self) -> Option<Snapshot> {
        if !self.is_living() {
            return None;
        }
        let document = self.key.kind == ObjectKind::Document;
        let data = document.then(|| self.rows.get("").and_then(|row| row.state.render()).unwrap_or_else(|| "{}".into()).into());
        let items = self.rows.iter().filter(|_| !document).filter_map(|(item, row)| {
            let data = row.state.render()?.into();
            Some(SnapshotItem { item: item.clone(), revision: row.revision, event_id: row.event_id, updated_at: row.updated_at, data })
        });
        Some(Snapshot {
            key: self.key.clone(),
            revision: self.head.revision,
            event_id: self.head.event_id,
            created_at: self.head.created_at,
            updated_at: self.head.updated_at,
            data,
            items: items.collect(),
        })
    }

    /// What a reader that has seen `event_id` missed: rows (removed ones without data) with their event ids, in order. None where only a fresh
    /// snapshot will do: removals since then are forgotten, the object is gone, or the id is not one of this object's.
    pub fn since(&self, event_id: u64) -> Option<Vec<(u64, AppliedRow)>> {
        if !self.is_living() || event_id < self.head.purged || event_id > self.head.event_id {
            return None;
        }
        let living = self.rows.iter().filter(|(_, row)| row.event_id > event_id).map(|(item, row)| (row.event_id, row.shown(item)));
        let removed = self.tombstones.since(event_id).map(|(item, stone)| (stone.event_id, stone.shown(item)));
        let mut out: Vec<(u64, AppliedRow)> = living.chain(removed).collect();
        out.sort_by(|a, b| (a.0, &a.1.item).cmp(&(b.0, &b.1.item)));
        Some(out)
    }

    /// Whether a change's guard lets it in.
    fn admits(&self, change: &Change, removes: bool) -> bool {
        match change.origin {
            Origin::Event { .. } => !removes || self.is_living(),
            Origin::Archive { version } => self.head.event_id == 0 || version > self.head.version,
            Origin::Expiry { unchanged_since } => self.is_living() && self.head.upto == unchanged_since,
        }
    }

    /// Marks for publishing what a change touched that the object holds already.
    fn repeat(&mut self, change: &Change) {
        self.needs_publish = true;
        self.repeats += 1;
        for op in &change.ops {
            match op {
                Op::Merge { item, .. } => drop(self.repeated.insert(item.to_string())),
                Op::Append { index, .. } => drop(self.repeated.insert(index_name(*index))),
                Op::Replace { .. } => drop(self.repeated.insert(String::new())),
                Op::Remove => {}
            }
        }
    }

    /// Ends the present incarnation and begins one that has no change yet.
    fn begin(&mut self, at: Timestamp) {
        self.drop_rows();
        self.head.revision = 0;
        self.head.removed_at = None;
        self.head.created_at = at;
        self.head.updated_at = at;
    }

    fn drop_rows(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        self.clear |= !rows.is_empty() || !self.tombstones.is_empty();
        self.gone.extend(rows.into_keys());
        self.tombstones.clear();
        self.changed.clear();
        self.head.bytes = 0;
        // A reader that has seen this object before, but not this very change, cannot be told row by row what it removed.
        self.head.purged = if self.head.event_id > 1 { self.head.event_id } else { 0 };
    }

    /// Folds in operations that, if there are several, all merge into one row.
    fn fold(&mut self, ops: &[Op], change: &Change) {
        match ops {
            [Op::Merge { item, .. }, ..] => self.touch(item, change.received_at, |state| {
                for op in ops {
                    if let Op::Merge { field, with, .. } = op {
                        state.merge(field, with, &change.stamp);
                    }
                }
            }),
            [Op::Append { index, data, keep }, ..] => self.append(*index, data, *keep as usize, change.received_at),
            [Op::Replace { data }, ..] => self.touch("", change.received_at, |state| *state = ItemState::whole(data.clone())),
            [Op::Remove, ..] => {
                self.drop_rows();
                self.head.removed_at = Some(change.received_at);
            }
            [] => {}
        }
    }

    /// Changes a row's state, making the row where it is missing, and counts the change once.
    fn touch(&mut self, item: &str, at: Timestamp, merge: impl FnOnce(&mut ItemState)) {
        let row = match self.rows.get_mut(item) {
            Some(row) => row,
            None => {
                self.tombstones.remove(item);
                let state = ItemState::default();
                let row = Living { revision: 0, event_id: 0, updated_at: at, state, changed: false, encoded: None, counted: 0 };
                self.rows.entry(item.to_owned()).or_insert(row)
            }
        };
        if !row.changed {
            row.changed = true;
            self.changed.push(item.to_owned());
        }
        if row.event_id != self.head.event_id {
            row.revision += 1;
            row.event_id = self.head.event_id;
            row.updated_at = row.updated_at.max(at);
        }
        row.encoded = None;
        merge(&mut row.state);
    }

    /// Puts a list item at its index and removes the least where there are more than `keep`; an item below all of a full list is not taken at all.
    fn append(&mut self, index: u64, data: &str, keep: usize, at: Timestamp) {
        let item = index_name(index);
        let full = self.rows.len() >= keep;
        if full && self.rows.first_key_value().is_none_or(|(least, _)| item < *least) {
            return;
        }
        self.touch(&item, at, |state| state.merge_whole(data));
        while self.rows.len() > keep
            && let Some((least, row)) = self.rows.pop_first()
        {
            self.head.bytes = self.head.bytes.saturating_sub(row.counted);
            self.tombstones.insert(least.clone(), Tombstone { revision: row.revision + 1, event_id: self.head.event_id, removed_at: at });
            self.changed.push(least);
        }
    }

    /// Rows that changed, were touched by repeats or vanished, as subscribers see them.
    fn published(&self) -> Vec<AppliedRow> {
        let names: BTreeSet<&String> = self.changed.iter().chain(&self.repeated).chain(&self.gone).collect();
        let shown = names.into_iter().filter_map(|item| match (self.rows.get(item), self.tombstones.get(item)) {
            (Some(row), _) => Some(row.shown(item)),
            (None, Some(stone)) => Some(stone.shown(item)),
            (None, None) => self.gone.contains(item).then(|| AppliedRow { item: item.clone(), revision: 0, data: None }),
        });
        shown.collect()
    }

    /// A changed row as it is stored; None where neither the row nor its tombstone is left.
    fn written(&mut self, item: String) -> Option<Row> {
        if let Some(row) = self.rows.get_mut(&item) {
            row.changed = false;
            let state = row.encoded.take().unwrap_or_else(|| row.state.encode());
            let bytes = (item.len() + state.len()) as u64;
            self.head.bytes = self.head.bytes.saturating_sub(row.counted) + bytes;
            row.counted = bytes;
            return Some(Row { item, revision: row.revision, event_id: row.event_id, updated_at: row.updated_at, state: Some(state) });
        }
        let stone = self.tombstones.get(&item)?;
        Some(Row { revision: stone.revision, event_id: stone.event_id, updated_at: stone.removed_at, state: None, item })
    }
}

impl Living {
    fn shown(&self, item: &str) -> AppliedRow {
        AppliedRow { item: item.to_owned(), revision: self.revision, data: self.state.render().map(Into::into) }
    }
}

impl Tombstone {
    fn shown(&self, item: &str) -> AppliedRow {
        AppliedRow { item: item.to_owned(), revision: self.revision, data: None }
    }
}

/// Whether two operations merge into the same row, so that it need be looked up once.
fn same_row(a: &Op, b: &Op) -> bool {
    matches!((a, b), (Op::Merge { item: a, .. }, Op::Merge { item: b, .. }) if compare(a, b).is_eq())
}

/// A list index as the name of its row, so that text order is index order.
pub fn index_name(index: u64) -> String {
    format!("{index:016x}")
}

#[cfg(test)]
mod tests;
