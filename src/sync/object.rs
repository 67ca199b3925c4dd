//! One sync object in memory: folds changes in, says what to write, publish and show. Called by the keeper, its only writer, and by readers of
//! stored objects. What API clients ask of it is in `calls`. Pure.

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batch::Bucket;
use super::expiry::expired;
use super::item::{ItemState, compare};
use super::tombstones::{Tombstone, Tombstones};
use super::{Answer, Applied, AppliedRow, Error, Head, Life, ObjectWrite, Row, StoredObject};
use crate::event::change::{Call, Op, Origin, Rights};
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
    /// All its calls were refused, and somebody waits to be told: nothing to write.
    Answered,
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
    /// Rows of an incarnation that ended since the last write.
    gone: BTreeSet<String>,
    /// Whether stored rows are to be deleted first.
    clear: bool,
    needs_write: bool,
    needs_publish: bool,
    /// By identity, what it may do. As rows these have names of their own ([`RIGHTS`]) that no reader sees.
    rights: BTreeMap<String, Rights>,
    /// Identities whose rights are to be written.
    changed_rights: BTreeSet<String>,
    /// Items by the ends of their lifetimes.
    lifetimes: BTreeSet<(Timestamp, String)>,
    /// What removed items last were, until that is published.
    before: BTreeMap<String, Arc<str>>,
    /// A stream's messages to publish.
    messages: Vec<AppliedRow>,
    /// Answers to give once what they tell of is written.
    answers: Vec<Answer>,
    /// What API clients did since the last write, to be archived before it.
    done: Vec<Done>,
    /// Incarnations that ended since the last write.
    ended: Vec<u64>,
    /// The event id up to which the writes taken before tell, and how many of the changes up to there were read again since: nobody knows whether they were
    /// published.
    told: u64,
    repeats: u64,
    /// Whether there are changes of rights among those.
    repeated_rights: bool,
}

#[derive(Clone, Debug)]
struct Living {
    revision: u64,
    event_id: u64,
    updated_at: Timestamp,
    life: Life,
    state: ItemState,
    /// Whether it is among the changed rows.
    changed: bool,
    /// The state's bytes where it was encoded since it last changed.
    encoded: Option<Vec<u8>>,
    /// Bytes of the row that `Head::bytes` counts.
    counted: u64,
}

/// What the names of rows begin with that hold an identity's rights. No item's name begins so.
const RIGHTS: char = '\u{2}';

/// What an API client did to an object, for the archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The record in `changes` that asked for it.
    pub offset: u64,
    /// Which of the record's calls it was.
    pub number: u16,
    /// When it was received.
    pub received_at: Timestamp,
    /// Who asked.
    pub identity: String,
    /// What was done, in the words of Sync's webhooks, such as `map_item_added`.
    pub what: &'static str,
    /// The object's event id, revision and incarnation then.
    pub object: (u64, u64, u64),
    /// The item, where it is one that was changed.
    pub item: Option<SnapshotItem>,
    /// JSON text of a document's data, or of a message.
    pub data: Option<Arc<str>>,
}

/// An object as readers see it at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Which life of the name it is ([`Head::incarnation`]).
    pub incarnation: u64,
    /// Who created it; empty where no API client did.
    pub created_by: String,
    /// When its own lifetime ends.
    pub expires_at: Option<Timestamp>,
    /// A document's data (JSON text of an object); None for other kinds.
    pub data: Option<Arc<str>>,
    /// Items of a map by key, of a list by index; empty for other kinds.
    pub items: Vec<SnapshotItem>,
}

/// One item of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotItem {
    /// Key of a map's item; a list's index as 16 hexadecimal digits.
    pub item: String,
    /// The item's revision.
    pub revision: u64,
    /// The object's event id after the item's last change.
    pub event_id: u64,
    /// When that was.
    pub updated_at: Timestamp,
    /// How it came, and how long it stays.
    pub life: Life,
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
            gone: BTreeSet::new(),
            clear: false,
            needs_write: false,
            needs_publish: false,
            rights: BTreeMap::new(),
            changed_rights: BTreeSet::new(),
            lifetimes: BTreeSet::new(),
            before: BTreeMap::new(),
            messages: Vec::new(),
            answers: Vec::new(),
            done: Vec::new(),
            ended: Vec::new(),
            told: 0,
            repeats: 0,
            repeated_rights: false,
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
            let corrupt = |what| Error::Corrupt { kind: object.key.kind, name: object.key.name.clone(), what };
            if let Some(identity) = row.item.strip_prefix(RIGHTS) {
                let rights = postcard::from_bytes(&bytes).map_err(|_| corrupt("an identity's rights are malformed".into()))?;
                object.rights.insert(identity.to_owned(), rights);
                continue;
            }
            let state = ItemState::decode(&bytes).map_err(corrupt)?;
            let counted = (row.item.len() + bytes.len()) as u64;
            if let Some(at) = row.life.expires_at {
                object.lifetimes.insert((at, row.item.clone()));
            }
            let Row { revision, event_id, updated_at, life, .. } = row;
            let living = Living { revision, event_id, updated_at, life, state, changed: false, encoded: None, counted };
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
        if let Origin::Client { request, identity } = &change.origin {
            return self.call_all(change, (*request, identity), offset, ttl);
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
            self.begin(change.received_at, 0);
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
        let (mut purge, purged) = self.tombstones.purge(self.head.updated_at);
        self.head.purged = self.head.purged.max(purged);
        let repeats = std::mem::take(&mut self.repeats);
        let mut after = self.told.saturating_sub(repeats);
        let again = if repeats > 0 { self.since(after) } else { Some(Vec::new()) };
        if again.is_none() {
            // What went since then is not known row by row: who has not seen all of it begins with a snapshot.
            after = self.head.event_id;
        }
        let rows = if render { self.published(after, again.unwrap_or_default()) } else { Vec::new() };
        let applied = Applied {
            key: self.key.clone(),
            after,
            event_id: self.head.event_id,
            revision: self.head.revision,
            rows,
            removed: self.head.removed_at.is_some(),
            incarnation: self.head.incarnation,
            updated_at: self.head.updated_at,
            expires_at: self.head.expires_at,
            rights: std::mem::take(&mut self.repeated_rights) || !self.changed_rights.is_empty(),
        };
        self.told = self.head.event_id;
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let mut rows: Vec<Row> = changed.into_iter().filter_map(|item| self.written(item)).collect();
        self.written_rights(&mut rows, &mut purge);
        self.before.clear();
        self.messages.clear();
        self.gone.clear();
        self.needs_write = false;
        self.needs_publish = false;
        let (clear, ended) = (std::mem::take(&mut self.clear), std::mem::take(&mut self.ended));
        let list = !std::mem::replace(&mut self.head.listed, true);
        (ObjectWrite { key: self.key.clone(), head: self.head.clone(), rows, purge, clear, list, ended }, applied)
    }

    /// The answers to API clients that what was taken, and what was before it, allows to be given.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// What API clients did since this was last asked.
    pub fn take_done(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    /// What an identity may do; None where nothing was ever said of it.
    pub fn rights_of(&self, identity: &str) -> Option<Rights> {
        self.rights.get(identity).copied()
    }

    /// By identity, what it may do.
    pub const fn rights(&self) -> &BTreeMap<String, Rights> {
        &self.rights
    }

    /// Whether its own lifetime is over at `now`, or that of its name.
    pub fn is_over(&self, now: Timestamp, ttl: Option<Duration>) -> bool {
        self.head.expires_at.is_some_and(|at| at <= now) || ttl.is_some_and(|ttl| expired(self.head.updated_at, ttl, now))
    }

    /// What readers see; None where the object does not exist or was removed. Expiry is the caller's to judge ([`super::expiry::Expiry::expired`]).
    pub fn snapshot(&self) -> Option<Snapshot> {
        if !self.is_living() {
            return None;
        }
        let document = self.key.kind == ObjectKind::Document;
        let items = self.rows.iter().filter(|_| !document).filter_map(|(item, row)| row.snapshot(item)).collect();
        self.bare_snapshot().map(|bare| Snapshot { items, ..bare })
    }

    /// The same without its items.
    pub fn bare_snapshot(&self) -> Option<Snapshot> {
        if !self.is_living() {
            return None;
        }
        let document = self.key.kind == ObjectKind::Document;
        let data = document.then(|| self.rows.get("").and_then(|row| row.state.render()).unwrap_or_else(|| "{}".into()).into());
        Some(Snapshot {
            key: self.key.clone(),
            revision: self.head.revision,
            event_id: self.head.event_id,
            created_at: self.head.created_at,
            updated_at: self.head.updated_at,
            incarnation: self.head.incarnation,
            created_by: self.head.created_by.clone(),
            expires_at: self.head.expires_at,
            data,
            items: Vec::new(),
        })
    }

    /// One item of a living object; None where it is not there or past its lifetime.
    pub fn item(&self, item: &str, now: Timestamp) -> Option<SnapshotItem> {
        let row = self.rows.get(item).filter(|row| self.is_living() && !row.is_over(now))?;
        row.snapshot(item)
    }

    /// The items from `from` on (past it unless `inclusive`), in their order or backwards, without those past their lifetime, at most `limit`.
    pub fn items(&self, from: Option<&str>, inclusive: bool, descending: bool, limit: usize, now: Timestamp) -> Vec<SnapshotItem> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        if !self.is_living() || self.key.kind == ObjectKind::Document {
            return Vec::new();
        }
        let bound = from.map_or(Unbounded, |from| if inclusive { Included(from) } else { Excluded(from) });
        let shown = |(item, row): (&String, &Living)| if row.is_over(now) { None } else { row.snapshot(item) };
        if descending {
            self.rows.range::<str, _>((Unbounded, bound)).rev().filter_map(shown).take(limit).collect()
        } else {
            self.rows.range::<str, _>((bound, Unbounded)).filter_map(shown).take(limit).collect()
        }
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
            // Each call for itself.
            Origin::Client { .. } => false,
        }
    }

    /// Counts a change that the object holds already; all that came with it and after it is published again, removals too.
    fn repeat(&mut self, change: &Change) {
        self.needs_publish = true;
        self.repeats += 1;
        self.repeated_rights |= change.ops.iter().any(|op| matches!(op, Op::Call(Call::Permit { .. })));
    }

    /// Ends the present incarnation and begins one that has no change yet.
    fn begin(&mut self, at: Timestamp, incarnation: u64) {
        self.drop_rows();
        if self.head.incarnation != incarnation {
            self.ended.push(self.head.incarnation);
            self.head.listed = false;
        }
        self.head.incarnation = incarnation;
        self.head.revision = 0;
        self.head.next_index = 0;
        self.head.created_by.clear();
        self.head.removed_at = None;
        self.head.created_at = at;
        self.head.updated_at = at;
    }

    fn drop_rows(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        self.clear |= !rows.is_empty() || !self.tombstones.is_empty();
        self.gone.extend(rows.into_keys());
        self.tombstones.clear();
        // Those among them that were removed before this are told nowhere else.
        self.gone.extend(std::mem::take(&mut self.changed));
        self.clear |= !self.rights.is_empty();
        self.changed_rights.extend(std::mem::take(&mut self.rights).into_keys());
        self.lifetimes.clear();
        self.head.expires_at = None;
        self.head.next_expiry = None;
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
            // Calls come in changes of their own.
            [Op::Call(_), ..] | [] => {}
        }
    }

    /// Changes a row's state, making the row where it is missing, and counts the change once.
    fn touch(&mut self, item: &str, at: Timestamp, merge: impl FnOnce(&mut ItemState)) {
        let row = match self.rows.get_mut(item) {
            Some(row) => row,
            None => {
                self.tombstones.remove(item);
                let (state, life) = (ItemState::default(), Life { began: self.head.event_id, created_at: at, ..Life::default() });
                let row = Living { revision: 0, event_id: 0, updated_at: at, life, state, changed: false, encoded: None, counted: 0 };
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
            row.life.created_at = row.life.created_at.min(at);
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
            self.bury(least, &row, at);
        }
    }

    /// Remembers a row that was taken out by the present change.
    fn bury(&mut self, item: String, row: &Living, at: Timestamp) {
        self.head.bytes = self.head.bytes.saturating_sub(row.counted);
        if let Some(expires_at) = row.life.expires_at {
            self.lifetimes.remove(&(expires_at, item.clone()));
        }
        if let Some(before) = row.state.render() {
            self.before.insert(item.clone(), before.into());
        }
        self.tombstones.insert(item.clone(), Tombstone { revision: row.revision + 1, event_id: self.head.event_id, removed_at: at });
        self.changed.push(item);
    }

    /// Rows that changed after that event id or vanished, and messages, as subscribers see them; `again` are those of changes that were read again.
    fn published(&self, after: u64, again: Vec<(u64, AppliedRow)>) -> Vec<AppliedRow> {
        let again: BTreeMap<String, AppliedRow> = again.into_iter().map(|(_, row)| (row.item.clone(), row)).collect();
        let names: BTreeSet<&String> = self.changed.iter().chain(&self.gone).filter(|item| !again.contains_key(*item)).collect();
        let shown = names.into_iter().filter_map(|item| match (self.rows.get(item), self.tombstones.get(item)) {
            // A new lifetime alone is written and not told.
            (Some(row), _) => (row.event_id > after).then(|| row.shown(item)),
            (None, Some(stone)) => Some(AppliedRow { before: self.before.get(item).cloned(), ..stone.shown(item) }),
            (None, None) => {
                let event_id = self.head.event_id;
                self.gone.contains(item).then(|| AppliedRow { item: item.clone(), event_id, ..AppliedRow::default() })
            }
        });
        let shown: Vec<AppliedRow> = shown.chain(self.messages.iter().cloned()).collect();
        again.into_values().chain(shown).collect()
    }

    /// Changed rights as rows to put, and to delete where an identity has none any more.
    fn written_rights(&mut self, rows: &mut Vec<Row>, purge: &mut Vec<String>) {
        for identity in std::mem::take(&mut self.changed_rights) {
            let item = format!("{RIGHTS}{identity}");
            let Some(rights) = self.rights.get(&identity) else {
                purge.push(item);
                continue;
            };
            let (event_id, updated_at) = (self.head.event_id, self.head.updated_at);
            let state = Some(postcard::to_extend(rights, Vec::new()).unwrap_or_default());
            rows.push(Row { item, revision: 0, event_id, updated_at, life: Life::default(), state });
        }
    }

    /// A changed row as it is stored; None where neither the row nor its tombstone is left.
    fn written(&mut self, item: String) -> Option<Row> {
        if let Some(row) = self.rows.get_mut(&item) {
            row.changed = false;
            let state = row.encoded.take().unwrap_or_else(|| row.state.encode());
            let bytes = (item.len() + state.len()) as u64;
            self.head.bytes = self.head.bytes.saturating_sub(row.counted) + bytes;
            row.counted = bytes;
            let Living { revision, event_id, updated_at, ref life, .. } = *row;
            return Some(Row { item, revision, event_id, updated_at, life: life.clone(), state: Some(state) });
        }
        let stone = self.tombstones.get(&item)?;
        let Tombstone { revision, event_id, removed_at } = *stone;
        Some(Row { item, revision, event_id, updated_at: removed_at, life: Life::default(), state: None })
    }
}

impl Living {
    fn shown(&self, item: &str) -> AppliedRow {
        AppliedRow {
            item: item.to_owned(),
            revision: self.revision,
            event_id: self.event_id,
            began: self.life.began,
            updated_at: self.updated_at,
            expires_at: self.life.expires_at,
            data: self.state.render().map(Into::into),
            before: None,
        }
    }

    /// None where its data is null.
    fn snapshot(&self, item: &str) -> Option<SnapshotItem> {
        let data = self.state.render()?.into();
        let (revision, event_id, updated_at, life) = (self.revision, self.event_id, self.updated_at, self.life.clone());
        Some(SnapshotItem { item: item.to_owned(), revision, event_id, updated_at, life, data })
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.life.expires_at.is_some_and(|at| at <= now)
    }
}

impl Tombstone {
    fn shown(&self, item: &str) -> AppliedRow {
        let (revision, event_id, updated_at) = (self.revision, self.event_id, self.removed_at);
        AppliedRow { item: item.to_owned(), revision, event_id, updated_at, ..AppliedRow::default() }
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
