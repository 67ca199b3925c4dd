//! Live objects: events become changes (mapping, router), changes become objects (keeper, object, batch), objects reach subscribers (feed).
//! Reads `events`, writes and reads `changes`; must never read the archive.

pub mod api;
pub mod batch;
pub mod distinct;
pub mod embedded;
pub mod expiry;
pub mod feed;
pub mod item;
pub mod keeper;
pub mod learning;
pub mod mapping;
pub mod naming;
pub mod object;
pub mod reader;
mod recent;
pub mod router;
#[cfg(feature = "scylla")]
pub mod scylla;
mod shown;
pub mod status;
mod stored;
mod tail;
pub mod tombstones;

use std::sync::Arc;

pub use feed::{Address, Attached, Expected, Inbox, Subscription};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::event::change::RequestId;
use crate::event::identity::{Entry, IdentityKey};
use crate::event::{ObjectKey, ObjectKind, SiteId, Timestamp};

/// What a router saves of one `events` partition in one transaction.
#[derive(Clone, Debug, Default)]
pub struct RouterCommit {
    /// The partition.
    pub partition: u16,
    /// The next offset to read: all below is reflected in durable `changes` records.
    pub next: u64,
    /// Greatest `received_at` read of the partition; expires identity entries.
    pub received_at: Timestamp,
    /// Identity entries that changed.
    pub entries: Vec<(IdentityKey, Entry)>,
    /// Hashes of (site, kind, name) of indexed objects this partition has seen for the first time.
    pub sighted: Vec<[u8; 16]>,
}

/// How far a keeper is in one `changes` partition: replay starts at `next` with `seen`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// C: lowest offset not yet written and published.
    pub next: u64,
    /// W: by `events` partition the last (source offset, object number) read before C; None where none.
    pub seen: Vec<Option<(u64, u16)>>,
}

/// An object's head row: everything but its items' data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Number of changes folded in, over all incarnations: the object's last event id.
    pub event_id: u64,
    /// Number of changes folded into this incarnation: its revision.
    pub revision: u64,
    /// The `changes` offset it includes; changes at or below are skipped.
    pub upto: u64,
    /// Greatest `Origin::Archive` version taken.
    pub version: u64,
    /// Least `received_at` of this incarnation's changes.
    pub created_at: Timestamp,
    /// Greatest `received_at` of this incarnation's changes; judges expiry.
    pub updated_at: Timestamp,
    /// When it was removed, or None while it lives. A removed object's head is its tombstone.
    pub removed_at: Option<Timestamp>,
    /// Greatest event id of a change whose removals are no longer among the rows: a reader that has seen less needs a fresh snapshot.
    pub purged: u64,
    /// Write budget: tokens left at `bucket_at`, in thousandths of a write.
    pub bucket_millis: i64,
    /// See `bucket_millis`.
    pub bucket_at: Timestamp,
    /// Bytes of all rows, for limits.
    pub bytes: u64,
    /// Tells this life of the name from those before it, and goes into the SID: 0 for every mapped object, else the microseconds of its creation.
    pub incarnation: u64,
    /// Who created it; empty where no API client did.
    pub created_by: String,
    /// When the object's own lifetime ends.
    pub expires_at: Option<Timestamp>,
    /// The least end of a lifetime, of the object or of an item: what it is filed under for expiry.
    pub next_expiry: Option<Timestamp>,
    /// Index of a list's next item, where that is greater than what its revision says.
    pub next_index: u64,
    /// Whether the object can be found by its SID.
    pub listed: bool,
}

/// One row of an object: a map item, a list item (its index as 16 hex digits, so that text order is index order), or a document's data (empty name).
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Item name.
    pub item: String,
    /// Number of changes folded into the item; the REST face shows the first as 0.
    pub revision: u64,
    /// The object's event id after the last change of this item.
    pub event_id: u64,
    /// Greatest `received_at` of the item's changes; of a tombstone, that of the removal.
    pub updated_at: Timestamp,
    /// What it has beside its data.
    pub life: Life,
    /// Merge state as `sync::object` encodes it; None = the item was removed (a tombstone).
    pub state: Option<Vec<u8>>,
}

/// How an item came and how long it stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The object's event id of the change that made it.
    pub began: u64,
    /// Least `received_at` of its changes.
    pub created_at: Timestamp,
    /// Who made it; empty where no API client did.
    pub created_by: String,
    /// When its lifetime ends.
    pub expires_at: Option<Timestamp>,
}

/// One object to write: head and the rows that changed.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectWrite {
    /// Which.
    pub key: ObjectKey,
    /// Its new head.
    pub head: Head,
    /// Rows to put, tombstones included.
    pub rows: Vec<Row>,
    /// Rows to delete for good: tombstones past their age or number.
    pub purge: Vec<String>,
    /// Whether all rows not in `rows` are deleted first (a new incarnation, a removal).
    pub clear: bool,
    /// Whether it is to be found by its SID from now on.
    pub list: bool,
    /// Incarnations that it had before, to be found no longer.
    pub ended: Vec<u64>,
}

/// One object as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredObject {
    /// Which.
    pub key: ObjectKey,
    /// Its head.
    pub head: Head,
    /// Its rows in item order, tombstones included.
    pub rows: Vec<Row>,
}

/// Where a listing goes on, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek<N> {
    /// From the least name on.
    First,
    /// With names greater than this, in name order.
    After(N),
    /// With names less than this, the greatest first.
    Before(N),
}

impl Seek<&str> {
    /// The same, owned.
    pub fn to_owned(self) -> Seek<String> {
        match self {
            Self::First => Seek::First,
            Self::After(name) => Seek::After(name.into()),
            Self::Before(name) => Seek::Before(name.into()),
        }
    }
}

impl Seek<String> {
    /// The same, borrowed.
    pub fn as_deref(&self) -> Seek<&str> {
        match self {
            Self::First => Seek::First,
            Self::After(name) => Seek::After(name),
            Self::Before(name) => Seek::Before(name),
        }
    }
}

/// Objects, with the state of router and keeper beside them. Whatever is written is a function of the log, so that commits may be lost to power loss as
/// long as they are lost in order; [`ObjectStore::durable`] says what can no longer be. Calls may wait for one another: whoever begins one polls it to its end.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Where a router begins that takes a partition of `events` over; 0 where none ever ran. Not where the last one stopped, if the store may have lost what
    /// it acknowledged then: called once by each router that takes it over, before it commits anything of it.
    async fn router_next(&self, partition: u16) -> Result<u64, Error>;

    /// The identity entries of a partition known under these keys.
    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error>;

    /// Which of these hashes a partition has sighted before.
    async fn sighted(&self, partition: u16, hashes: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Error>;

    /// Saves several partitions' router state. Entries may be saved before the offset that covers them, never after it: a memory newer than the offset it
    /// is read with knows the records it has seen by their offsets (`event::identity`, "Replay").
    async fn commit_router(&self, commits: Vec<RouterCommit>) -> Result<(), Error>;

    /// Where a keeper begins that takes a partition of `changes` over, as [`ObjectStore::router_next`] says of routers; the default where none ever ran.
    async fn checkpoint(&self, partition: u16) -> Result<Checkpoint, Error>;

    /// The offsets stored now: by `events` partition the router's next, by `changes` partition the keeper's. For display.
    async fn offsets(&self) -> Result<(Vec<u64>, Vec<u64>), Error>;

    /// Objects by key, in the order asked for; None where none is (a tombstone is one). At most 10,000 keys a call.
    async fn load(&self, keys: &[ObjectKey]) -> Result<Vec<Option<StoredObject>>, Error>;

    /// Writes objects and the checkpoints that follow from them. No checkpoint is stored before the objects written in the same call.
    /// Visible to [`ObjectStore::load`] when it returns. `upto` grows from one write of an object to the next; of two that come late or at once, a store may let
    /// the greater one hold.
    ///
    /// Gives the objects it refuses for good, too large ones say: nothing of such a write holds, and the object cannot be read from then on ([`Error::Corrupt`]),
    /// as later changes would be folded into what lacks this one. All else is written.
    async fn commit_objects(&self, objects: Vec<ObjectWrite>, checkpoints: Vec<(u16, Checkpoint)>) -> Result<Vec<(ObjectKey, Error)>, Error>;

    /// Living objects of a site and kind whose name starts with `prefix`, from where `seek` says and in its order, heads only.
    async fn list(&self, site: &SiteId, kind: ObjectKind, prefix: &str, seek: Seek<&str>, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error>;

    /// The object, living or not, that was last listed under this SID's number (its 32 hexadecimal digits) among those of its kind and site. Its head tells
    /// whether it is still of that incarnation.
    async fn by_sid(&self, site: &SiteId, kind: ObjectKind, number: &[u8; 16]) -> Result<Option<ObjectKey>, Error>;

    /// Objects of these `changes` partitions that have a lifetime that ends at or before `now` ([`Head::next_expiry`]), to the hour oldest first. Asked by
    /// the partitions' owner.
    async fn expiring(&self, partitions: &[u16], now: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error>;

    /// Living objects of these `changes` partitions last changed before `before`, oldest first (where there are more than `limit`, to the hour), whose name starts
    /// with `prefix`: what expiry looks at; those that
    /// [`ObjectStore::expiring`] gives are not among them. Asked by the partitions' owner.
    async fn stale(&self, partitions: &[u16], prefix: &str, before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error>;

    /// Tombstones of these `changes` partitions last changed before `before`, oldest first as for [`ObjectStore::stale`]: what [`ObjectStore::purge`] may be asked
    /// to delete. Asked by the partitions' owner.
    async fn tombstones(&self, partitions: &[u16], before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error>;

    /// Deletes tombstones for good; objects that live are left alone. Asked by their owner.
    async fn purge(&self, keys: &[ObjectKey]) -> Result<(), Error>;

    /// The offsets that survive power loss now: by `events` partition the router's next, by `changes` partition the keeper's. Makes
    /// what is committed durable first where that is cheap (a WAL checkpoint), so call it seldom: retention follows it.
    async fn durable(&self) -> Result<(Vec<u64>, Vec<u64>), Error>;

    /// Finishes writes and closes.
    async fn close(&self) -> Result<(), Error>;
}

/// A write as subscribers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object.
    pub key: ObjectKey,
    /// Its event id before the first change that this write tells of: whoever has seen less missed something. 0 where nothing is ever made up for (streams).
    pub after: u64,
    /// Its event id after the write.
    pub event_id: u64,
    /// Its revision after the write.
    pub revision: u64,
    /// Rows that changed, or a stream's messages; data is None for a removed item.
    pub rows: Vec<AppliedRow>,
    /// Whether the object itself was removed.
    pub removed: bool,
    /// Which life of the name this is ([`Head::incarnation`]).
    pub incarnation: u64,
    /// When its last change was received.
    pub updated_at: Timestamp,
    /// When the object's lifetime ends.
    pub expires_at: Option<Timestamp>,
    /// Whether somebody's rights changed: who subscribes is to be asked for them again.
    pub rights: bool,
}

impl Applied {
    /// A write of an object that leads to that event id, and as many changes after the object began; without rows yet.
    pub const fn new(key: ObjectKey, after: u64, event_id: u64) -> Self {
        Self {
            key,
            after,
            event_id,
            revision: event_id,
            rows: Vec::new(),
            removed: false,
            incarnation: 0,
            updated_at: Timestamp::ZERO,
            expires_at: None,
            rights: false,
        }
    }
}

/// One changed row of [`Applied`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AppliedRow {
    /// Item name; empty for a document; of a stream's message its SID.
    pub item: String,
    /// The item's revision.
    pub revision: u64,
    /// The object's event id after the item's last change.
    pub event_id: u64,
    /// The object's event id when the item came.
    pub began: u64,
    /// When its last change was received.
    pub updated_at: Timestamp,
    /// When its lifetime ends.
    pub expires_at: Option<Timestamp>,
    /// Rendered JSON text, or None where the item was removed.
    pub data: Option<Arc<str>>,
    /// What a removed item last was, where that is still known.
    pub before: Option<Arc<str>>,
}

/// What became of an API client's request ([`crate::event::change::Origin::Client`]): one verdict a call, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Whose.
    pub request: RequestId,
    /// The partition of `changes` that the object is of.
    pub partition: u16,
    /// What became of each call.
    pub verdicts: Vec<Verdict>,
    /// The object afterwards, without its items; None where there is none.
    pub object: Option<object::Snapshot>,
}

/// What became of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is done: committed where the answer is given.
    Done {
        /// Whether it made something that was not there.
        added: bool,
        /// The item concerned as it is now, or as it was when it was removed (with the event id of that).
        item: Option<object::SnapshotItem>,
    },
    /// As it found the object, it changed nothing.
    Refused(Refusal),
}

/// Why a call changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is no such object, or its lifetime is over.
    #[error("there is no such object")]
    NoObject,
    /// There is no such item, or its lifetime is over.
    #[error("there is no such item")]
    NoItem,
    /// The object exists.
    #[error("the object exists")]
    Exists,
    /// The item exists.
    #[error("the item exists")]
    ItemExists,
    /// It is of another revision than asked for.
    #[error("it is of another revision")]
    Revision,
    /// The object can have no more items, or bytes.
    #[error("the object is full")]
    Full,
    /// Objects of this kind know no such call.
    #[error("objects of this kind know no such call")]
    Kind,
}

/// Carries applied changes to every node's subscribers, in order per object. Loses nothing it accepted, but a subscriber that lags is told so instead of served.
#[async_trait]
pub trait Feed: Send + Sync + 'static {
    /// Whether anybody may be subscribed to the object, so that rendering for nobody is spared. May say true wrongly, never false.
    fn wanted(&self, key: &ObjectKey) -> bool;

    /// Hands writes to the subscribers, of one object in the order of calls that do not overlap. Never waits for a subscriber. When it returns, every
    /// subscriber on any node will get them, or be told that it lagged.
    ///
    /// # Errors
    /// Those that may pass ([`Error::is_retryable`]): what of it was handed on is unknown. To be repeated; event ids make that harmless.
    async fn publish(&self, writes: Vec<Applied>) -> Result<(), Error>;

    /// Attaches an object to an inbox: everything published after this returns is delivered there, to be taken once [`Attached::listen`] is called, until what
    /// is returned is dropped. Attach first, then read the snapshot, then drop event ids at or below it. A write that tells only from beyond what was seen
    /// ([`Applied::after`]) is as good as [`Update::Lagged`].
    ///
    /// # Errors
    /// [`Error::Closed`] where this process has no subscribers.
    async fn attach(&self, key: &ObjectKey, to: Address) -> Result<Attached, Error>;

    /// The same with an inbox for this object alone.
    ///
    /// # Errors
    /// As [`Feed::attach`].
    async fn subscribe(&self, key: &ObjectKey) -> Result<Subscription, Error> {
        Subscription::of(self, key).await
    }

    /// Hands answers to those who wait for them, on whichever node, behind what was published of the same objects before. When it returns, each has it or will, unless that node is gone or cannot read.
    ///
    /// # Errors
    /// As [`Feed::publish`].
    async fn answer(&self, answers: Vec<Answer>) -> Result<(), Error>;

    /// Waits for the answer to a request. To be called before the request is appended.
    ///
    /// # Errors
    /// [`Error::Closed`] where this process is told nothing.
    fn expect(&self, request: RequestId) -> Result<Expected, Error>;

    /// Ends every subscription of this process with [`Update::Closed`], now and later ones. Publishing goes on.
    fn close(&self);
}

/// What a subscriber gets.
#[derive(Clone, Debug)]
pub enum Update {
    /// The next write, in order.
    Write(Arc<Applied>),
    /// Writes were missed, because this subscriber was slow or the feed lost its place: read a fresh snapshot. Later writes follow.
    Lagged,
    /// The feed has stopped.
    Closed,
}

/// What can go wrong with objects.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store refused or failed.
    #[error("object store: {0}")]
    Store(String),
    /// What is stored cannot be read. It does not show the name: a customer's id may be part of it.
    #[error("a {kind:?} cannot be read: {what}")]
    Corrupt {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's name.
        name: String,
        /// What was found.
        what: String,
    },
    /// The log failed underneath.
    #[error(transparent)]
    Log(#[from] crate::eventlog::Error),
    /// The store is closed.
    #[error("object store is closed")]
    Closed,
}

impl Error {
    /// Whether the same call may succeed later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Log(error) => error.is_retryable(),
            Self::Store(_) => true,
            Self::Corrupt { .. } | Self::Closed => false,
        }
    }
}

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod tests;
