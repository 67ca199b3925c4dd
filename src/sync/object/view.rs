//! An object as readers see it: whole, item by item, and what of it they missed. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Living, Object, Tombstone};
use crate::event::change::Rights;
use crate::event::{ObjectKey, ObjectKind, Timestamp};
use crate::sync::expiry::expired;
use crate::sync::{AppliedRow, Life};

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
    /// Which life of the name it is ([`crate::sync::Head::incarnation`]).
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

    /// What readers see; None where the object does not exist or was removed. Expiry is the caller's to judge ([`crate::sync::expiry::Expiry::expired`]).
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

    /// A living list's context, JSON text; None where it was created without.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref().filter(|_| self.is_living())
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
}

impl Living {
    pub(super) fn shown(&self, item: &str) -> AppliedRow {
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
    pub(super) fn snapshot(&self, item: &str) -> Option<SnapshotItem> {
        let data = self.state.render()?.into();
        let (revision, event_id, updated_at, life) = (self.revision, self.event_id, self.updated_at, self.life.clone());
        Some(SnapshotItem { item: item.to_owned(), revision, event_id, updated_at, life, data })
    }

    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.life.expires_at.is_some_and(|at| at <= now)
    }
}

impl Tombstone {
    pub(super) fn shown(&self, item: &str) -> AppliedRow {
        let (revision, event_id, updated_at) = (self.revision, self.event_id, self.removed_at);
        AppliedRow { item: item.to_owned(), revision, event_id, updated_at, ..AppliedRow::default() }
    }
}
