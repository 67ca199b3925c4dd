//! Reads objects as everybody but the keeper sees them: what is committed, expired ones as if they were not. Called by the web. Must never write.

mod cache;

use std::sync::Arc;

use self::cache::Copies;

use super::expiry::Expiry;
use super::object::{Object, Snapshot, SnapshotItem};
use super::{AppliedRow, Error, Feed, Head, ObjectStore, Seek, naming};
use crate::event::{ObjectKey, ObjectKind, SiteId, Timestamp};

/// Most objects of one listing.
pub const MAX_LISTED: usize = 1_000;

/// Read side of the sync room. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    store: Arc<dyn ObjectStore>,
    expiry: Expiry,
    copies: Option<Copies>,
}

/// What a reader that comes back is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Resumed {
    /// What it missed, with event ids, in order; nothing where it missed nothing.
    Rows {
        /// The object's event id: what is published at or below it is included.
        event_id: u64,
        /// Rows with the event id of their last change; data is None for removed items.
        rows: Vec<(u64, AppliedRow)>,
    },
    /// Too much has passed: everything anew.
    Snapshot(Snapshot),
}

impl Reader {
    /// Reads `store`; `expiry` must be the keeper's.
    pub fn new(store: Arc<dyn ObjectStore>, expiry: Expiry) -> Self {
        Self { store, expiry, copies: None }
    }

    /// The same with clean copies of what is read often, which `feed` says are so: it must be the one that tells of all writes of the store.
    #[must_use]
    pub fn with_copies(self, feed: Arc<dyn Feed>) -> Self {
        Self { copies: Some(Copies::new(feed)), ..self }
    }

    /// The object as committed; None where it does not exist, was removed or has expired.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the object cannot be read: the keeper has frozen it or will.
    pub async fn get(&self, key: &ObjectKey, now: Timestamp) -> Result<Option<Snapshot>, Error> {
        Ok(self.object(key, now).await?.and_then(|object| shown(&object, now)))
    }

    /// The object whole; None as in [`Reader::get`]. Its items may be past their lifetime: [`Object::item`] and [`Object::items`] judge that.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub async fn object(&self, key: &ObjectKey, now: Timestamp) -> Result<Option<Arc<Object>>, Error> {
        let object = match &self.copies {
            Some(copies) => copies.load(self.store.as_ref(), key).await?,
            None => load(self.store.as_ref(), key).await?,
        };
        Ok(object.filter(|object| object.is_living() && !object.is_over(now, self.expiry.ttl_of(&key.name))))
    }

    /// The object that has this SID; None as in [`Reader::get`], and for a SID that another life of its name had.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub async fn by_sid(&self, site: &SiteId, kind: ObjectKind, number: &[u8; 16], now: Timestamp) -> Result<Option<Arc<Object>>, Error> {
        let Some(key) = self.store.by_sid(site, kind, number).await? else { return Ok(None) };
        let object = self.object(&key, now).await?;
        Ok(object.filter(|object| naming::sid_number(&key, object.head().incarnation) == *number))
    }

    /// What a reader that has seen `since` missed; None as in [`Reader::get`].
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub async fn resume(&self, key: &ObjectKey, since: u64, now: Timestamp) -> Result<Option<Resumed>, Error> {
        let Some(object) = self.object(key, now).await? else { return Ok(None) };
        let Some(snapshot) = shown(&object, now) else { return Ok(None) };
        let event_id = object.head().event_id;
        if since > event_id {
            // An id of another life of the store.
            return Ok(Some(Resumed::Snapshot(snapshot)));
        }
        Ok(Some(object.since(since).map_or(Resumed::Snapshot(snapshot), |rows| Resumed::Rows { event_id, rows })))
    }

    /// Living objects of a site and kind whose name starts with `prefix`, from where `seek` says and in its order, at most [`MAX_LISTED`]. A full
    /// page may be followed by more; an emptied one (all expired) too: go on from the last name, which is returned beside them.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(
        &self,
        (site, kind): (&SiteId, ObjectKind),
        prefix: &str,
        seek: Seek<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Result<(Vec<(ObjectKey, Head)>, Option<String>), Error> {
        let limit = limit.min(MAX_LISTED);
        let mut found = self.store.list(site, kind, prefix, seek, limit).await?;
        let more = (found.len() == limit).then(|| found.last().map(|(key, _)| key.name.clone())).flatten();
        let ends = |head: &Head| head.expires_at.is_some_and(|at| at <= now);
        found.retain(|(key, head)| !ends(head) && !self.expiry.expired(&key.name, head.updated_at, now));
        Ok((found, more))
    }
}

/// An object as stored, removed or not.
async fn load(store: &dyn ObjectStore, key: &ObjectKey) -> Result<Option<Arc<Object>>, Error> {
    let stored = store.load(std::slice::from_ref(key)).await?.pop().flatten();
    stored.map(|stored| Object::from_stored(stored).map(Arc::new)).transpose()
}

/// What readers see at `now`.
fn shown(object: &Object, now: Timestamp) -> Option<Snapshot> {
    let lives = |item: &SnapshotItem| item.life.expires_at.is_none_or(|at| at > now);
    let snapshot = object.snapshot()?;
    Some(Snapshot { items: snapshot.items.into_iter().filter(lives).collect(), ..snapshot })
}
