//! One sync object in memory: folds changes in, says what to write, publish and show. Called by the keeper, its only writer, and by readers of
//! stored objects. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::{Applied, AppliedRow, Error, Head, ObjectWrite, StoredObject};
use crate::event::{Change, ObjectKey, ObjectKind, Timestamp};

/// After how long without a change objects expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// `customer.` and `visitor.`
    pub people: Duration,
    /// `trail.`
    pub trails: Duration,
    /// `page.`
    pub pages: Duration,
}

impl Default for Expiry {
    fn default() -> Self {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        Self { people: days(30), trails: days(7), pages: days(90) }
    }
}

impl Expiry {
    /// How long an object of this name lives after its last change; None = for ever.
    pub fn ttl_of(&self, name: &str) -> Option<Duration> {
        let starts = |prefix: &str| name.starts_with(prefix);
        match () {
            () if starts("customer.") || starts("visitor.") => Some(self.people),
            () if starts("trail.") => Some(self.trails),
            () if starts("page.") => Some(self.pages),
            () => None,
        }
    }

    /// Whether an object last changed at `updated_at` has expired at `now`.
    pub fn expired(&self, name: &str, updated_at: Timestamp, now: Timestamp) -> bool {
        self.ttl_of(name).is_some_and(|ttl| expired(updated_at, ttl, now))
    }
}

fn expired(updated_at: Timestamp, ttl: Duration, now: Timestamp) -> bool {
    now > updated_at.plus_micros(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX))
}

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

/// One sync object.
#[derive(Clone, Debug)]
pub struct Object {
    key: ObjectKey,
    head: Head,
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
        Self { key, head: Head::default() }
    }

    /// An object as it was stored. Fails where a row's state cannot be read: the keeper freezes such an object.
    pub fn from_stored(stored: StoredObject) -> Result<Self, Error> {
        Ok(Self { key: stored.key, head: stored.head })
    }

    /// Which object it is.
    pub const fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Its head as it stands.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Folds a change in whose `changes` offset is `offset`. `ttl` judges expiry by the change's `received_at`.
    pub fn apply(&mut self, change: &Change, offset: u64, ttl: Option<Duration>) -> Fold {
        let _ = (change, offset, ttl);
        Fold::Refused
    }

    /// Whether something was applied since the last [`Object::take_write`].
    pub fn needs_write(&self) -> bool {
        false
    }

    /// Whether something is to be published: what needs writing, and what repeats touched.
    pub fn needs_publish(&self) -> bool {
        false
    }

    /// Takes a token for writing what changed, by its size; Err says when there will be one. The next [`Object::take_write`] carries the bucket.
    pub fn try_take_token(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        let _ = now;
        Ok(())
    }

    /// All that changed since the last call, to be written, and the same as subscribers see it (without data unless `render`). After repeats alone the
    /// write has no rows and need not be made.
    pub fn take_write(&mut self, render: bool) -> (ObjectWrite, Applied) {
        let _ = render;
        let write = ObjectWrite { key: self.key.clone(), head: self.head.clone(), rows: Vec::new(), purge: Vec::new(), clear: false };
        let applied = Applied { key: self.key.clone(), event_id: 0, revision: 0, rows: Vec::new(), removed: false };
        (write, applied)
    }

    /// What readers see; None where the object does not exist or was removed. Expiry is the caller's to judge ([`Expiry::expired`]).
    pub fn snapshot(&self) -> Option<Snapshot> {
        None
    }

    /// What a reader that has seen `event_id` missed: rows (removed ones without data) with their event ids, in order. None where a fresh snapshot is needed.
    pub fn since(&self, event_id: u64) -> Option<Vec<(u64, AppliedRow)>> {
        let _ = event_id;
        None
    }

    /// Whether it is a document, list, map or stream.
    pub const fn kind(&self) -> ObjectKind {
        self.key.kind
    }
}
