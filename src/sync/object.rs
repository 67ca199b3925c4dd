//! One sync object in memory: folds changes in, says what to write, publish and show. Called by the keeper, its only writer, and by readers of
//! stored objects. What API clients ask of it is in `calls`, what is written and published in `write`, what readers see in `view`. Pure.

mod calls;
mod view;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use self::view::{Snapshot, SnapshotItem};
use super::expiry::expired;
use super::item::{ItemState, compare};
use super::tombstones::{Tombstone, Tombstones};
use super::{Answer, AppliedRow, Error, Head, Life, Row, StoredObject};
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
    /// A list's context, JSON text: what it was created with beside its items. As a row it has a name of its own ([`CONTEXT`]), too.
    context: Option<Arc<str>>,
    /// Whether that is to be written.
    changed_context: bool,
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

/// The name of the row that holds a list's context. A list's items are called by their index.
const CONTEXT: &str = "\u{3}";

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
            context: None,
            changed_context: false,
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
            if row.item == CONTEXT && object.key.kind == ObjectKind::List {
                let context = String::from_utf8(bytes).map_err(|_| corrupt("a list's context is no text".into()))?;
                object.context = Some(context.into());
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
        self.clear |= !self.rights.is_empty() || self.context.is_some();
        self.context = None;
        self.changed_context = false;
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
