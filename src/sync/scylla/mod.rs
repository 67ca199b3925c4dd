//! Live objects on ScyllaDB or Apache Cassandra, in the tables of `schemas/objects.cql`. Opened by the composition root. Must never store a place in the log
//! before all that it stands for is acknowledged by a quorum.
//!
//! * **Late writes lose.** All that is written is a function of the log up to an offset, and written as of that offset (`stamp`). A keeper that writes late, after
//!   another took its partition over, loses row by row to what includes more of the log. Where its write includes more than the other's has come to, it holds: it
//!   has every row that changed since what both began with, so the object is then whole as of that offset; what the other writes up to there loses or is the
//!   same, and what it writes beyond holds.
//! * **A write is whole or not there** (`object`), and so is what is left of a partition after a crash: one as of some offset. Objects skip what they have, so
//!   reading the log again from anywhere before changes nothing.
//! * **Lost acknowledgements.** A replica syncs what it acknowledged within seconds; where all replicas of something die at once, the last of it is gone.
//!   [`Settings::safety_window`] is longer than that: so long [`ObjectStore::durable`] stays behind, and so far readers go back who find that a node began anew
//!   (`place`). It is noticed before the next write builds on what may be lost: by when its process began, and a call fails at the first connection that breaks.
//!   What is listed by name and hour is put again for each object loaded after that.
//! * **Refused for good.** A write of an object that the cluster refuses marks the object as unreadable: it is frozen, and the others go on. Where the mark is
//!   refused too it is not the object's fault, and the call fails.

mod filing;
mod listing;
mod object;
mod place;
mod stamp;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::filing::Hour;
use self::place::{Place, Places, Reader};
use super::recent::Recent;
use super::stored::{Filing, Shelf, filing_of, hour_of};
use super::{Checkpoint, Error, Head, ObjectStore, ObjectWrite, RouterCommit, Seek, StoredObject};
use crate::cql::{self, Address, Cluster, Settings, Write};
use crate::event::identity::{EVENT_MEMORY_SECONDS, Entry, IdentityKey};
use crate::event::{Clock, ObjectKey, ObjectKind, SiteId, Timestamp};

const GET_IDENTITY: &str = "SELECT key, entry, seen FROM router_identity WHERE key = ?";
const GET_IDENTITIES: &str = "SELECT key, entry, seen FROM router_identity WHERE key IN ?";
const PUT_IDENTITY: &str = "INSERT INTO router_identity (key, entry, seen) VALUES (?, ?, ?) USING TIMESTAMP ? AND TTL ?";
const GET_SIGHT: &str = "SELECT hash FROM sighted WHERE part = ? AND hash = ?";
const PUT_SIGHT: &str = "INSERT INTO sighted (part, hash) VALUES (?, ?) USING TIMESTAMP 1";

/// How much longer than identity's memory an event's entry lives, in seconds: the store counts from the write, identity from the partition's latest
/// `received_at`, which stands still while the router does.
const AWAY: i64 = 30 * 86_400;
/// Most keys of one load.
const MAX_KEYS: usize = 10_000;
/// Objects whose lists are remembered; up to twice as many.
const FILED: usize = 50_000;
/// Hours remembered to be listed; beyond, it starts anew.
const HOURS: usize = 10_000;

/// Objects on a cluster.
pub struct Scylla {
    cluster: Cluster,
    clock: Clock,
    safety_window: Duration,
    /// Where objects are listed, as acknowledged or found, and by which write of theirs.
    filed: Mutex<Recent<ObjectKey, (Filing, u64)>>,
    /// Fresh hours that are in the list of hours.
    hours: Mutex<HashSet<Hour>>,
    /// Objects with a large write that was not finished.
    unfinished: Mutex<HashSet<ObjectKey>>,
    places: Places,
    /// The greatest `received_at` of partitions of `events`.
    received: Mutex<HashMap<u16, Timestamp>>,
    /// Restarts of nodes that are known here.
    restarts: AtomicU64,
    /// Whether lists may have been lost: objects that are loaded are then listed again.
    relist: AtomicBool,
    closed: AtomicBool,
}

/// What a router's place has beside its offset.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Routed {
    received_at: Timestamp,
}

impl Scylla {
    /// Connects to the cluster that a URL `scylla://host:port,host/keyspace` names. `clock` says what is now, for lists of hours.
    ///
    /// # Errors
    /// [`Error::Store`] for a URL or settings that cannot be meant so, for a keyspace that `contrail migrate` has yet to make or change, and where the cluster
    /// does not answer.
    pub async fn open(url: &str, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        let cluster = Cluster::connect(&Address::parse(url)?, settings).await?;
        Ok(Self {
            cluster,
            clock,
            safety_window: settings.safety_window,
            filed: Mutex::new(Recent::new(FILED)),
            hours: Mutex::default(),
            unfinished: Mutex::default(),
            places: Places::default(),
            received: Mutex::default(),
            restarts: AtomicU64::new(0),
            relist: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// To be called once all objects and identity were carried here from elsewhere, with where their readers are: from there these go on, whatever begins anew.
    ///
    /// # Errors
    /// Those of the store; safe to repeat.
    pub async fn adopted(&self) -> Result<(), Error> {
        self.check_open()?;
        for reader in [Reader::Router, Reader::Keeper] {
            self.base_on_latest(reader).await?;
        }
        Ok(())
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }

    fn filed(&self) -> MutexGuard<'_, Recent<ObjectKey, (Filing, u64)>> {
        self.filed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unfinished(&self) -> MutexGuard<'_, HashSet<ObjectKey>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a router's partition has reached.
    fn received(&self, part: u16, at: Timestamp) -> Timestamp {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let known = received.entry(part).or_default();
        *known = at.max(*known);
        *known
    }

    /// Writes objects, no two of them the same.
    async fn put_objects(&self, objects: Vec<ObjectWrite>) -> Result<Vec<(ObjectKey, Error)>, Error> {
        let heads: Vec<(ObjectKey, Head)> = objects.iter().map(|write| (write.key.clone(), write.head.clone())).collect();
        let mut moves = Moves::default();
        {
            let mut filed = self.filed();
            for write in &objects {
                let before = filed.get(&write.key).map(|(filing, _)| *filing);
                moves.add(&write.key, &write.head, before, write.list)?;
                for incarnation in &write.ended {
                    moves.then.push(listing::take_sid(&write.key, *incarnation, stamp::before(write.head.upto)?));
                }
            }
        }
        // Before the objects, so that none is there and not listed.
        let Moves { first, hours, then } = moves;
        self.cluster.write(first).await?;
        let listed = self.list_hours(hours, then);
        let ((), refused) = futures::future::try_join(listed, self.put_all(objects)).await?;
        heads.iter().for_each(|(key, head)| self.note_filed(key, head));
        Ok(refused)
    }

    /// Puts hours whose lines are acknowledged in the list of hours, and writes what may go with that.
    async fn list_hours(&self, hours: BTreeSet<Hour>, mut with: Vec<Write>) -> Result<(), Error> {
        let now = self.clock.now();
        let known = |hour: &Hour| self.hours.lock().unwrap_or_else(PoisonError::into_inner).contains(hour);
        let fresh: Vec<Hour> = hours.into_iter().filter(|hour| !known(hour)).collect();
        with.extend(fresh.iter().map(|hour| hour.put_hour(now)));
        self.cluster.write(with).await?;
        let mut known = self.hours.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > HOURS {
            known.clear();
        }
        known.extend(fresh.into_iter().filter(|hour| hour.is_fresh(now)));
        Ok(())
    }

    /// Remembers where an object is listed, as of its latest write.
    fn note_filed(&self, key: &ObjectKey, head: &Head) {
        let mut filed = self.filed();
        if filed.get(key).is_none_or(|(_, upto)| *upto <= head.upto) {
            filed.take(key);
            filed.insert(key.clone(), (filing_of(head), head.upto));
        }
    }

    /// Remembers where objects that were found are listed, by whichever process; lists them again where that may be lost.
    async fn found(&self, found: &[Option<StoredObject>]) -> Result<(), Error> {
        if self.relist.load(Ordering::SeqCst) {
            let mut moves = Moves::default();
            for StoredObject { key, head, .. } in found.iter().flatten() {
                if !self.filed().contains(key) {
                    moves.add(key, head, None, true)?;
                }
            }
            self.cluster.write(moves.first).await?;
            self.list_hours(moves.hours, moves.then).await?;
        }
        found.iter().flatten().for_each(|StoredObject { key, head, .. }| self.note_filed(key, head));
        Ok(())
    }
}

/// What changes in the lists with objects that are written.
#[derive(Default)]
struct Moves {
    /// To be acknowledged before the objects are written.
    first: Vec<Write>,
    /// Hours to be listed once that is.
    hours: BTreeSet<Hour>,
    /// To be written with the objects.
    then: Vec<Write>,
}

impl Moves {
    /// An object that was last listed at `before`, as far as it is known; `list` says that its SID is new.
    fn add(&mut self, key: &ObjectKey, head: &Head, before: Option<Filing>, list: bool) -> Result<(), Error> {
        let now = filing_of(head);
        if list || before.is_none_or(|(shelf, _)| shelf == Shelf::Removed) {
            self.first.push(listing::put_sid(key, head.incarnation, stamp::at(head.upto)?));
        }
        if before == Some(now) {
            return Ok(());
        }
        // One that was removed may be purged meanwhile, and its name with it.
        if before.is_none_or(|(shelf, _)| shelf == Shelf::Removed) {
            self.first.push(listing::put(key, stamp::at(head.upto)?));
        }
        let hour = Hour::of(key, now);
        self.first.push(hour.put(key, head.upto)?);
        self.hours.insert(hour);
        if let Some(before) = before {
            self.then.push(Hour::of(key, before).take(key, stamp::before(head.upto)?));
        }
        Ok(())
    }
}

/// The writes in rounds, so that each object is in a round once, and its writes are in order.
fn rounds(objects: Vec<ObjectWrite>) -> Vec<Vec<ObjectWrite>> {
    let mut times: HashMap<ObjectKey, usize> = HashMap::with_capacity(objects.len());
    let mut rounds: Vec<Vec<ObjectWrite>> = Vec::new();
    for write in objects {
        let time = times.entry(write.key.clone()).or_default();
        if rounds.len() <= *time {
            rounds.push(Vec::new());
        }
        if let Some(round) = rounds.get_mut(*time) {
            round.push(write);
        }
        *time += 1;
    }
    rounds
}

#[async_trait]
impl ObjectStore for Scylla {
    async fn router_next(&self, partition: u16) -> Result<u64, Error> {
        self.check_open()?;
        let place = self.take_over(Reader::Router, partition).await?;
        let routed: Routed = postcard::from_bytes(&place.value).unwrap_or_default();
        self.received(partition, routed.received_at);
        Ok(place.next)
    }

    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        self.check_open()?;
        let oldest = hour_of(self.received(partition, Timestamp::ZERO).plus_seconds(-EVENT_MEMORY_SECONDS));
        let rows: Vec<(Vec<u8>, Vec<u8>, i64)> = self.cluster.rows_of(GET_IDENTITY, GET_IDENTITIES, keys.iter().map(|key| key.0.to_vec())).await?;
        let mut found = Vec::with_capacity(rows.len());
        for (key, bytes, seen) in rows {
            let known = key.try_into().ok().map(IdentityKey).zip(Entry::from_bytes(&bytes));
            let (key, entry) = known.ok_or_else(|| Error::Store("an entry of identity is malformed, or of a later version".into()))?;
            if !matches!(entry, Entry::Event(_)) || hour_of(Timestamp::from_micros(seen)) >= oldest {
                found.push((key, entry));
            }
        }
        Ok(found)
    }

    async fn sighted(&self, partition: u16, hashes: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Error> {
        self.check_open()?;
        let calls = hashes.iter().map(|hash| async move {
            let rows: Vec<(Vec<u8>,)> = self.cluster.rows(GET_SIGHT, (partition as i16, &hash[..])).await?;
            Ok::<_, Error>((!rows.is_empty()).then_some(*hash))
        });
        Ok(Cluster::gather(calls.collect()).await?.into_iter().flatten().collect())
    }

    async fn commit_router(&self, commits: Vec<RouterCommit>) -> Result<(), Error> {
        self.check_open()?;
        let boots = self.check_nodes(Reader::Router, commits.iter().map(|commit| commit.partition)).await?;
        let (mut writes, mut places) = (Vec::new(), Vec::new());
        for RouterCommit { partition, next, received_at, entries, sighted } in commits {
            let seen = self.received(partition, received_at);
            let at = stamp::at(next)?;
            for (key, entry) in entries {
                let ttl = if matches!(entry, Entry::Event(_)) { (EVENT_MEMORY_SECONDS + AWAY) as i32 } else { 0 };
                writes.push(Write::new(PUT_IDENTITY, (key.0.to_vec(), entry.to_bytes(), seen.micros(), at, ttl)));
            }
            writes.extend(sighted.into_iter().map(|hash| Write::new(PUT_SIGHT, (partition as i16, hash.to_vec()))));
            let value = postcard::to_stdvec(&Routed { received_at: seen }).unwrap_or_default();
            places.push((partition, Place { next, value }));
        }
        self.cluster.write(writes).await?;
        self.put_places(Reader::Router, places, &boots).await
    }

    async fn checkpoint(&self, partition: u16) -> Result<Checkpoint, Error> {
        self.check_open()?;
        let place = self.take_over(Reader::Keeper, partition).await?;
        if place.value.is_empty() {
            return Ok(Checkpoint::default());
        }
        let malformed = || Error::Store(format!("the checkpoint of changes partition {partition} is malformed"));
        postcard::from_bytes(&place.value).map_err(|_| malformed())
    }

    async fn offsets(&self) -> Result<(Vec<u64>, Vec<u64>), Error> {
        self.check_open()?;
        Ok((self.stored_offsets(Reader::Router).await?, self.stored_offsets(Reader::Keeper).await?))
    }

    async fn load(&self, keys: &[ObjectKey]) -> Result<Vec<Option<StoredObject>>, Error> {
        self.check_open()?;
        if keys.len() > MAX_KEYS {
            return Err(Error::Store(format!("{} keys in one load, at most {MAX_KEYS}", keys.len())));
        }
        let found = Cluster::gather(keys.iter().map(|key| self.load_one(key)).collect()).await?;
        self.found(&found).await?;
        for (key, _) in keys.iter().zip(&found).filter(|(_, object)| object.is_none()) {
            // Whoever removed it for good took it out of the lists, too.
            self.filed().take(key);
        }
        Ok(found)
    }

    async fn commit_objects(&self, objects: Vec<ObjectWrite>, checkpoints: Vec<(u16, Checkpoint)>) -> Result<Vec<(ObjectKey, Error)>, Error> {
        self.check_open()?;
        let began = tokio::time::Instant::now();
        let parts: BTreeSet<u16> = objects.iter().map(|write| write.key.partition()).chain(checkpoints.iter().map(|(part, _)| *part)).collect();
        let boots = self.check_nodes(Reader::Keeper, parts.into_iter()).await?;
        let (written, mut refused) = (objects.len(), Vec::new());
        for round in rounds(objects) {
            refused.extend(self.put_objects(round).await?);
        }
        let place = |(part, at): (u16, Checkpoint)| (part, Place { next: at.next, value: postcard::to_stdvec(&at).unwrap_or_default() });
        self.put_places(Reader::Keeper, checkpoints.into_iter().map(place).collect(), &boots).await?;
        metrics::histogram!("contrail_objects_commit_seconds").record(began.elapsed().as_secs_f64());
        metrics::counter!("contrail_objects_written_total").increment(written as u64);
        Ok(refused)
    }

    async fn list(&self, site: &SiteId, kind: ObjectKind, prefix: &str, seek: Seek<&str>, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.check_open()?;
        self.listed(site, kind, prefix, seek, limit).await
    }

    async fn by_sid(&self, site: &SiteId, kind: ObjectKind, number: &[u8; 16]) -> Result<Option<ObjectKey>, Error> {
        self.check_open()?;
        Ok(self.name_of_sid(site, kind, number).await?.map(|name| ObjectKey { site: site.clone(), kind, name }))
    }

    async fn expiring(&self, partitions: &[u16], now: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.check_open()?;
        self.expiring_of(partitions, now, limit).await
    }

    async fn stale(&self, partitions: &[u16], prefix: &str, before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.check_open()?;
        self.stale_of(partitions, prefix, before, limit).await
    }

    async fn tombstones(&self, partitions: &[u16], before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.check_open()?;
        self.tombstones_of(partitions, before, limit).await
    }

    async fn purge(&self, keys: &[ObjectKey]) -> Result<(), Error> {
        self.check_open()?;
        let heads = Cluster::gather(keys.iter().map(|key| self.head(key)).collect()).await?;
        let (mut first, mut then) = (Vec::new(), Vec::new());
        for (key, head) in keys.iter().zip(heads) {
            let Some(head) = head.filter(|head| head.removed_at.is_some()) else { continue };
            let after = stamp::after(head.upto)?;
            let (site, kind, name) = object::columns(key);
            first.push(Write::new(object::TAKE_ALL, (after, site, kind, name)));
            first.push(listing::take(key, after));
            first.push(listing::take_sid(key, head.incarnation, after));
            then.push(Hour::of(key, filing_of(&head)).take(key, after));
        }
        // What finds it goes last.
        self.cluster.write(first).await?;
        Ok(self.cluster.write(then).await?)
    }

    async fn durable(&self) -> Result<(Vec<u64>, Vec<u64>), Error> {
        self.check_open()?;
        Ok((self.durable_offsets(Reader::Router).await?, self.durable_offsets(Reader::Keeper).await?))
    }

    async fn close(&self) -> Result<(), Error> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl From<cql::Error> for Error {
    fn from(error: cql::Error) -> Self {
        // Also what is refused for good may be so by a guardrail that somebody lifts: readers wait and say so, and pass over nothing.
        Self::Store(error.to_string())
    }
}
