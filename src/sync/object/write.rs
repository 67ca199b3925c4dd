//! What of an object is to be written and published, and what of it can be answered then. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{CONTEXT, Done, Living, Object, RIGHTS, Tombstone};
use crate::event::Timestamp;
use crate::sync::batch::Bucket;
use crate::sync::{Answer, Applied, AppliedRow, Life, ObjectWrite, Row};

impl Object {
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
        rows.extend(self.written_context());
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

    /// A new list's context as a row.
    fn written_context(&mut self) -> Option<Row> {
        let changed = std::mem::take(&mut self.changed_context);
        let context = self.context.as_ref().filter(|_| changed)?;
        let (event_id, updated_at) = (self.head.event_id, self.head.updated_at);
        Some(Row { item: CONTEXT.into(), revision: 0, event_id, updated_at, life: Life::default(), state: Some(context.as_bytes().to_vec()) })
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
