//! An object store for a learning stage: reads through to what is there, keeps what the stage writes in a scratch store of its own, where its later reads
//! find it, and counts it. Opened by the composition root. Must never write to the store underneath.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::Serialize;

use super::{Checkpoint, Error, Head, ObjectStore, ObjectWrite, RouterCommit, Seek, StoredObject};
use crate::event::identity::{Entry, IdentityKey};
use crate::event::{ObjectKey, ObjectKind, PARTITIONS, SiteId, Timestamp};

/// Most keys of one load.
const LOAD: usize = 10_000;

/// Whether the scratch store may grow further.
pub type HasRoom = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a learning sync stage would have written of one kind of object. Only `writes` and `rows` depend on how changes were gathered in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Different objects.
    pub objects: u64,
    /// Changes folded into them.
    pub changes: u64,
    /// Writes of them.
    pub writes: u64,
    /// Rows of these writes, heads apart.
    pub rows: u64,
    /// Objects removed.
    pub removed: u64,
}

/// What a learning sync stage would have stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Learned {
    /// Records of `events` that the router passed.
    pub records: u64,
    /// Objects by kind.
    pub objects: BTreeMap<&'static str, Written>,
}

/// The store.
pub struct LearningStore {
    live: Arc<dyn ObjectStore>,
    scratch: Arc<dyn ObjectStore>,
    has_room: HasRoom,
    /// By partition where `changes` ended when learning began.
    ends: Vec<u64>,
    routed: Mutex<Vec<u64>>,
    learned: Mutex<Learned>,
    removed: AtomicUsize,
}

impl LearningStore {
    /// Over `live`, from where its router and keeper stand, with an empty `scratch`. `ends`: by partition where `changes` ends.
    ///
    /// # Errors
    /// When either store fails.
    pub async fn open(live: Arc<dyn ObjectStore>, scratch: Arc<dyn ObjectStore>, ends: Vec<u64>, has_room: HasRoom) -> Result<Self, Error> {
        let (mut commits, mut checkpoints, mut routed) = (Vec::new(), Vec::new(), Vec::new());
        for partition in 0..PARTITIONS {
            let next = live.router_next(partition).await?;
            routed.push(next);
            commits.push(RouterCommit { partition, next, ..RouterCommit::default() });
            checkpoints.push((partition, live.checkpoint(partition).await?));
        }
        scratch.commit_router(commits).await?;
        scratch.commit_objects(Vec::new(), checkpoints).await.map(drop)?;
        let (routed, learned) = (Mutex::new(routed), Mutex::default());
        Ok(Self { live, scratch, has_room, ends, routed, learned, removed: AtomicUsize::new(0) })
    }

    /// What the stage would have stored by now.
    pub fn learned(&self) -> Learned {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check_room(&self) -> Result<(), Error> {
        if (self.has_room)() { Ok(()) } else { Err(Error::Store("learning has filled its scratch space; restart it to begin anew".into())) }
    }

    /// Objects as they are below what the stage writes. One that a live keeper has changed since learning began reads as if it included no change made
    /// later, so that the stage's own are folded in.
    async fn below(&self, keys: &[ObjectKey]) -> Result<Vec<Option<StoredObject>>, Error> {
        let mut found = self.live.load(keys).await?;
        for object in found.iter_mut().flatten() {
            let end = self.ends.get(usize::from(object.key.partition())).copied().unwrap_or(0);
            object.head.upto = object.head.upto.min(end.saturating_sub(1));
        }
        Ok(found)
    }

    /// Counts the records that are passed; once, however often that is tried.
    fn pass(&self, commits: &[RouterCommit]) {
        let mut routed = self.routed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passed = 0;
        for RouterCommit { partition, next, .. } in commits {
            if let Some(at) = routed.get_mut(usize::from(*partition)) {
                passed += next.saturating_sub(*at);
                *at = (*next).max(*at);
            }
        }
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).records += passed;
    }

    /// Counts a write over what it replaces.
    fn count(&self, write: &ObjectWrite, before: Option<&Head>, is_first: bool) {
        let kind = name_of(write.key.kind);
        let (rows, removed) = (write.rows.len() as u64, u64::from(write.head.removed_at.is_some()));
        let changes = write.head.event_id.saturating_sub(before.map_or(0, |head| head.event_id));
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let written = learned.objects.entry(kind).or_default();
        written.objects += u64::from(is_first);
        written.changes += changes;
        written.writes += 1;
        written.rows += rows;
        written.removed += removed;
        drop(learned);
        metrics::counter!("contrail_learning_objects_total", "kind" => kind).increment(u64::from(is_first));
        metrics::counter!("contrail_learning_object_writes_total", "kind" => kind).increment(1);
        metrics::counter!("contrail_learning_rows_total", "kind" => kind).increment(rows);
        self.removed.fetch_add(usize::from(removed == 1), Ordering::Relaxed);
    }
}

const fn name_of(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "document",
        ObjectKind::List => "list",
        ObjectKind::Map => "map",
        ObjectKind::Stream => "stream",
    }
}

/// An object's copy for the scratch store, whose later writes name only the rows that they change.
fn copy_of(object: StoredObject) -> ObjectWrite {
    ObjectWrite { key: object.key, head: object.head, rows: object.rows, purge: Vec::new(), clear: false, list: false, ended: Vec::new() }
}

#[async_trait]
impl ObjectStore for LearningStore {
    async fn router_next(&self, partition: u16) -> Result<u64, Error> {
        self.scratch.router_next(partition).await
    }

    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        let mut found = self.scratch.identities(partition, keys).await?;
        let missing: Vec<IdentityKey> = keys.iter().filter(|key| !found.iter().any(|(known, _)| known == *key)).copied().collect();
        found.extend(self.live.identities(partition, &missing).await?);
        Ok(found)
    }

    async fn sighted(&self, partition: u16, hashes: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Error> {
        let mut found = self.scratch.sighted(partition, hashes).await?;
        let missing: Vec<[u8; 16]> = hashes.iter().filter(|hash| !found.contains(hash)).copied().collect();
        found.extend(self.live.sighted(partition, &missing).await?);
        Ok(found)
    }

    async fn commit_router(&self, commits: Vec<RouterCommit>) -> Result<(), Error> {
        self.check_room()?;
        // Before it can be seen that they were passed.
        self.pass(&commits);
        self.scratch.commit_router(commits).await
    }

    async fn checkpoint(&self, partition: u16) -> Result<Checkpoint, Error> {
        self.scratch.checkpoint(partition).await
    }

    async fn offsets(&self) -> Result<(Vec<u64>, Vec<u64>), Error> {
        self.scratch.offsets().await
    }

    async fn load(&self, keys: &[ObjectKey]) -> Result<Vec<Option<StoredObject>>, Error> {
        let mut found = self.scratch.load(keys).await?;
        let missing: Vec<ObjectKey> = keys.iter().zip(&found).filter(|(_, object)| object.is_none()).map(|(key, _)| key.clone()).collect();
        let mut below = self.below(&missing).await?.into_iter();
        for object in found.iter_mut().filter(|object| object.is_none()) {
            *object = below.next().flatten();
        }
        Ok(found)
    }

    async fn commit_objects(&self, objects: Vec<ObjectWrite>, checkpoints: Vec<(u16, Checkpoint)>) -> Result<Vec<(ObjectKey, Error)>, Error> {
        self.check_room()?;
        let mut keys: Vec<ObjectKey> = objects.iter().map(|write| write.key.clone()).collect();
        keys.sort_unstable();
        keys.dedup();
        let (mut before, mut writes) = (HashMap::new(), Vec::with_capacity(objects.len()));
        for keys in keys.chunks(LOAD) {
            let kept = self.scratch.load(keys).await?;
            let first: Vec<ObjectKey> = keys.iter().zip(&kept).filter(|(_, object)| object.is_none()).map(|(key, _)| key.clone()).collect();
            before.extend(kept.into_iter().flatten().map(|object| (object.key, (Some(object.head), false))));
            for (key, object) in first.iter().zip(self.below(&first).await?) {
                before.insert(key.clone(), (object.as_ref().map(|object| object.head.clone()), true));
                writes.extend(object.map(copy_of));
            }
        }
        for write in &objects {
            if let Some((head, is_first)) = before.get_mut(&write.key) {
                self.count(write, head.as_ref(), std::mem::take(is_first));
                *head = Some(write.head.clone());
            }
        }
        writes.extend(objects);
        self.scratch.commit_objects(writes, checkpoints).await
    }

    async fn list(&self, site: &SiteId, kind: ObjectKind, prefix: &str, seek: Seek<&str>, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.live.list(site, kind, prefix, seek, limit).await
    }

    async fn by_sid(&self, site: &SiteId, kind: ObjectKind, number: &[u8; 16]) -> Result<Option<ObjectKey>, Error> {
        self.live.by_sid(site, kind, number).await
    }

    /// What API clients gave a lifetime is removed by the live keeper, whose removals this one reads.
    async fn expiring(&self, _partitions: &[u16], _now: Timestamp, _limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        Ok(Vec::new())
    }

    async fn stale(&self, partitions: &[u16], prefix: &str, before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let mut found = self.scratch.stale(partitions, prefix, before, limit).await?;
        // What the stage has removed is still there below.
        let below = self.live.stale(partitions, prefix, before, limit.saturating_add(self.removed.load(Ordering::Relaxed))).await?;
        for page in below.chunks(LOAD) {
            let keys: Vec<ObjectKey> = page.iter().map(|(key, _)| key.clone()).collect();
            let known = self.scratch.load(&keys).await?;
            found.extend(page.iter().zip(known).filter(|(_, known)| known.is_none()).map(|(found, _)| found.clone()));
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Removing tombstones for good is not rehearsed.
    async fn tombstones(&self, _partitions: &[u16], _before: Timestamp, _limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        Ok(Vec::new())
    }

    async fn purge(&self, _keys: &[ObjectKey]) -> Result<(), Error> {
        Ok(())
    }

    async fn durable(&self) -> Result<(Vec<u64>, Vec<u64>), Error> {
        self.scratch.durable().await
    }

    async fn close(&self) -> Result<(), Error> {
        self.scratch.close().await
    }
}

#[cfg(test)]
mod tests;
