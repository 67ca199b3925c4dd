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
        }
    }

    /// An object as it was stored. Fails where a row's state cannot be read: the keeper freezes such an object.
    pub fn from_stored(stored: StoredObject) -> Result<Self, Error> {
        let mut object = Self::empty(stored.key);
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
            event_id: self.head.event_id,
            revision: self.head.revision,
            rows,
            removed: self.head.removed_at.is_some(),
        };
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::SiteId;
    use crate::event::change::{Merge, Stamp};

    const DAY: i64 = 86_400;

    fn key(kind: ObjectKind) -> ObjectKey {
        ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: "x".into() }
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_790_000_000_000_000).plus_seconds(seconds)
    }

    fn change(kind: ObjectKind, seconds: i64, ops: Vec<Op>) -> Change {
        let stamp = Stamp { at: time(seconds), id: "e".into() };
        Change { key: key(kind), origin: Origin::Event { partition: 0, offset: 0, number: 0 }, received_at: time(seconds), stamp, ops }
    }

    fn add(item: &str, field: &str) -> Op {
        Op::Merge { item: item.into(), field: field.into(), with: Merge::Add(1) }
    }

    fn append(index: u64, keep: u32) -> Op {
        Op::Append { index, data: index.to_string(), keep }
    }

    fn ttl(days: u64) -> Option<Duration> {
        Some(Duration::from_secs(days * DAY as u64))
    }

    fn data(object: &Object) -> String {
        let snapshot = object.snapshot().unwrap();
        let items: Vec<String> = snapshot.items.iter().map(|i| format!("{}@{}={}", i.item, i.revision, i.data)).collect();
        format!("r{} e{} {} {}", snapshot.revision, snapshot.event_id, snapshot.data.as_deref().unwrap_or("-"), items.join(" "))
    }

    fn rows(applied: &Applied) -> Vec<(&str, u64, Option<&str>)> {
        applied.rows.iter().map(|row| (row.item.as_str(), row.revision, row.data.as_deref())).collect()
    }

    /// An object store of one object, as its contract says.
    #[derive(Default)]
    struct Store {
        head: Head,
        rows: BTreeMap<String, Row>,
    }

    impl Store {
        fn put(&mut self, write: ObjectWrite) {
            if write.clear {
                self.rows.clear();
            }
            write.purge.iter().for_each(|item| drop(self.rows.remove(item)));
            write.rows.into_iter().for_each(|row| drop(self.rows.insert(row.item.clone(), row)));
            self.head = write.head;
        }

        fn load(&self, kind: ObjectKind) -> Object {
            Object::from_stored(StoredObject { key: key(kind), head: self.head.clone(), rows: self.rows.values().cloned().collect() }).unwrap()
        }
    }

    #[test]
    fn revisions_count_changes_of_the_object_and_of_the_item() {
        let mut object = Object::empty(key(ObjectKind::Map));
        assert_eq!(object.snapshot(), None);
        assert_eq!(object.apply(&change(ObjectKind::Map, 1, vec![add("a", "n"), add("a", "m"), add("b", "n")]), 0, None), Fold::Applied);
        assert_eq!(object.apply(&change(ObjectKind::Map, 2, vec![add("a", "n")]), 7, None), Fold::Applied);
        assert_eq!(data(&object), "r2 e2 - a@2={\"m\":1,\"n\":2} b@1={\"n\":1}");
        let (write, applied) = object.take_write(true);
        assert_eq!(rows(&applied), [("a", 2, Some("{\"m\":1,\"n\":2}")), ("b", 1, Some("{\"n\":1}"))]);
        assert_eq!((applied.event_id, applied.revision, applied.removed), (2, 2, false));
        assert_eq!((write.head.upto, write.clear, write.rows.len()), (7, false, 2));
        assert_eq!(write.head.bytes, write.rows.iter().map(|r| (r.item.len() + r.state.as_ref().unwrap().len()) as u64).sum::<u64>());
        assert_eq!((write.head.created_at, write.head.updated_at), (time(1), time(2)));
        assert!(!object.needs_write() && !object.needs_publish());
    }

    #[test]
    fn a_repeat_is_published_and_not_counted() {
        let mut object = Object::empty(key(ObjectKind::Document));
        let views = change(ObjectKind::Document, 1, vec![add("", "views")]);
        object.apply(&views, 5, None);
        object.take_write(false);
        for offset in [5, 4, 0] {
            assert_eq!(object.apply(&views, offset, None), Fold::Repeat);
        }
        assert!(!object.needs_write() && object.needs_publish());
        let (write, applied) = object.take_write(true);
        assert_eq!((rows(&applied), applied.event_id, write.rows), (vec![("", 1, Some("{\"views\":1}"))], 1, vec![]));
    }

    #[test]
    fn a_list_keeps_its_greatest_and_remembers_what_went() {
        let mut object = Object::empty(key(ObjectKind::List));
        for (offset, index) in [5, 9, 7, 3, 11].into_iter().enumerate() {
            object.apply(&change(ObjectKind::List, 1, vec![append(index, 3)]), offset as u64, None);
        }
        assert_eq!(data(&object), format!("r5 e5 - {:016x}@1=7 {:016x}@1=9 {:016x}@1=11", 7, 9, 11));
        let (write, applied) = object.take_write(true);
        assert_eq!(applied.rows.iter().filter(|row| row.data.is_none()).map(|row| row.item.clone()).collect::<Vec<_>>(), [index_name(5)]);
        assert_eq!(write.rows.iter().filter(|row| row.state.is_none()).count(), 1);
        let missed = object.since(3).unwrap();
        assert_eq!(
            missed.iter().map(|(id, row)| (*id, row.item.clone(), row.data.is_some())).collect::<Vec<_>>(),
            [(5, index_name(5), false), (5, index_name(11), true)]
        );
        assert_eq!((object.since(5), object.since(6)), (Some(vec![]), None));
        // A day later the tombstone goes, and who has not seen the removal needs a snapshot.
        object.apply(&change(ObjectKind::List, DAY + 2, vec![append(12, 4)]), 9, None);
        let (write, _) = object.take_write(true);
        assert_eq!((write.purge, write.head.purged), (vec![index_name(5)], 5));
        assert_eq!((object.since(4), object.since(5).map(|rows| rows.len())), (None, Some(1)));
    }

    #[test]
    fn an_expired_object_begins_anew() {
        let mut object = Object::empty(key(ObjectKind::Map));
        object.apply(&change(ObjectKind::Map, 0, vec![add("a", "n"), add("b", "n")]), 1, ttl(30));
        object.take_write(true);
        object.apply(&change(ObjectKind::Map, 30 * DAY, vec![add("a", "n")]), 2, ttl(30));
        assert_eq!(object.head().revision, 2);
        object.apply(&change(ObjectKind::Map, 60 * DAY + 1, vec![add("a", "n")]), 3, ttl(30));
        assert_eq!(data(&object), "r1 e3 - a@1={\"n\":1}");
        assert_eq!(object.head().created_at, time(60 * DAY + 1));
        let (write, applied) = object.take_write(true);
        assert_eq!((write.clear, write.rows.len(), applied.removed), (true, 1, false));
        assert_eq!(rows(&applied), [("a", 1, Some("{\"n\":1}")), ("b", 0, None)]);
        assert_eq!((object.since(2), object.since(3)), (None, Some(vec![])));
    }

    #[test]
    fn an_expiry_removes_only_what_has_not_changed() {
        let mut object = Object::empty(key(ObjectKind::Map));
        object.apply(&change(ObjectKind::Map, 0, vec![add("a", "n")]), 1, ttl(30));
        let expire = |unchanged_since| Change { origin: Origin::Expiry { unchanged_since }, ..change(ObjectKind::Map, 40 * DAY, vec![Op::Remove]) };
        assert_eq!(object.apply(&expire(0), 5, ttl(30)), Fold::Refused);
        assert_eq!(object.apply(&expire(1), 6, ttl(30)), Fold::Applied);
        assert_eq!((object.snapshot(), object.head().event_id, object.head().removed_at), (None, 2, Some(time(40 * DAY))));
        let (write, applied) = object.take_write(true);
        assert_eq!((write.clear, write.rows, applied.removed, rows(&applied)), (true, vec![], true, vec![("a", 0, None)]));
        assert_eq!(object.apply(&expire(6), 7, ttl(30)), Fold::Refused);
        let mut object = Object::from_stored(StoredObject { key: write.key, head: write.head, rows: vec![] }).unwrap();
        object.apply(&change(ObjectKind::Map, 1, vec![add("c", "n")]), 8, ttl(30));
        assert_eq!(data(&object), "r1 e3 - c@1={\"n\":1}");
    }

    #[test]
    fn a_dashboard_takes_only_a_greater_version() {
        let mut object = Object::empty(key(ObjectKind::Document));
        let put = |version: u64| Change {
            origin: Origin::Archive { version },
            ..change(ObjectKind::Document, 0, vec![Op::Replace { data: format!("{{\"v\":{version}}}") }])
        };
        let folds = [3, 3, 2, 7].into_iter().enumerate().map(|(offset, version)| object.apply(&put(version), offset as u64, None));
        assert_eq!(folds.collect::<Vec<_>>(), [Fold::Applied, Fold::Refused, Fold::Refused, Fold::Applied]);
        assert_eq!(data(&object), "r2 e2 {\"v\":7} ");
    }

    #[test]
    fn damaged_state_freezes_the_object() {
        let row = Row { item: "a".into(), revision: 1, event_id: 1, updated_at: time(0), state: Some(vec![9]) };
        let stored = StoredObject { key: key(ObjectKind::Map), head: Head::default(), rows: vec![row] };
        assert!(matches!(Object::from_stored(stored), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn tokens_are_taken_from_the_head() {
        let mut object = Object::empty(key(ObjectKind::Map));
        object.apply(&change(ObjectKind::Map, 0, vec![add("a", "n")]), 1, None);
        let taken = (0..500).filter(|_| object.try_take_token(time(0)).is_ok()).count();
        assert_eq!(taken, 200);
        let (write, _) = object.take_write(false);
        assert_eq!((write.head.bucket_millis, write.head.bucket_at), (0, time(0)));
    }

    fn ops(kind: ObjectKind) -> BoxedStrategy<Vec<Op>> {
        let with = prop_oneof![
            (-5..5_i64).prop_map(Merge::Add),
            (0..9_u8).prop_map(|n| Merge::Last(n.to_string())),
            (0..30_u8).prop_map(|n| Merge::Ring { key: n.to_string(), rank: vec![], value: n.to_string(), cap: 4 }),
        ];
        let merge = |item: BoxedStrategy<String>| {
            (item, with.clone()).prop_map(|(item, with)| {
                let field = match &with {
                    Merge::Add(_) => "add",
                    Merge::Last(_) => "last",
                    _ => "ring",
                };
                Op::Merge { item: item.into(), field: field.into(), with }
            })
        };
        match kind {
            ObjectKind::List => prop::collection::vec((0..40_u64).prop_map(|index| append(index, 5)), 1..3).boxed(),
            ObjectKind::Document => prop::collection::vec(merge(Just(String::new()).boxed()), 1..4).boxed(),
            _ => prop::collection::vec(merge("[abc]".boxed()), 1..4).boxed(),
        }
    }

    type History = (ObjectKind, Vec<Change>, Vec<Change>, Vec<(bool, bool, bool)>);

    /// Changes, the same in another order, and for each of the latter whether it is repeated, whether a write is taken after it, and whether
    /// another owner goes on from what is stored.
    fn histories() -> impl Strategy<Value = History> {
        let kinds = prop::sample::select(vec![ObjectKind::Document, ObjectKind::List, ObjectKind::Map]);
        kinds.prop_flat_map(|kind| {
            let one = (0..100_i64, "[a-e]", ops(kind)).prop_map(move |(seconds, id, ops)| {
                let mut change = change(kind, seconds, ops);
                change.stamp.id = id;
                change
            });
            prop::collection::vec(one, 1..60).prop_flat_map(move |changes| {
                let turns = prop::collection::vec(any::<(bool, bool, bool)>(), changes.len());
                (Just(kind), Just(changes.clone()), Just(changes).prop_shuffle(), turns)
            })
        })
    }

    proptest! {
        #[test]
        fn order_batching_and_repetition_do_not_show((kind, changes, shuffled, turns) in histories()) {
            let mut plain = Object::empty(key(kind));
            for (offset, change) in changes.iter().enumerate() {
                prop_assert_eq!(plain.apply(change, offset as u64, None), Fold::Applied);
            }
            let (mut store, mut object) = (Store::default(), Object::empty(key(kind)));
            for (offset, (change, (repeat, write, hand_over))) in shuffled.iter().zip(&turns).enumerate() {
                object.apply(change, offset as u64, None);
                if *hand_over {
                    // Weighed for a write that the budget then refused: what comes after must still be in the next.
                    object.weigh();
                }
                if *repeat {
                    prop_assert_eq!(object.apply(change, offset as u64, None), Fold::Repeat);
                }
                if *write {
                    object.weigh();
                    store.put(object.take_write(*repeat).0);
                    let stored = store.load(kind);
                    prop_assert_eq!(stored.snapshot(), object.snapshot());
                    if *hand_over {
                        object = stored;
                    }
                }
            }
            store.put(object.take_write(true).0);
            let bytes = |rows: &BTreeMap<String, Row>| -> u64 {
                rows.values().filter_map(|row| row.state.as_ref().map(|state| (row.item.len() + state.len()) as u64)).sum()
            };
            prop_assert_eq!(store.head.bytes, bytes(&store.rows));
            prop_assert_eq!(object.head().revision, changes.len() as u64);
            prop_assert_eq!(object.head().event_id, changes.len() as u64);
            prop_assert_eq!(data(&store.load(kind)), data(&plain));
        }
    }
}
