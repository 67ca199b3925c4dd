//! What a keeper knows, as a pure machine: records in, objects to load, writes due, checkpoints that follow. Stepped by the keeper's loop and by tests;
//! must never wait, read a clock or touch a store.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::event::change::{ChangeError, Origin};
use crate::event::{Change, ObjectKey, PARTITIONS, Timestamp};
use crate::eventlog::Stored;
use crate::sync::batch::{Due, Scheduler};
use crate::sync::expiry::Expiry;
use crate::sync::object::{Done, Fold, Object};
use crate::sync::{Answer, Applied, Checkpoint, Error, ObjectWrite};

/// Bytes an object in memory is reckoned to take beside its rows.
const OBJECT_OVERHEAD: usize = 512;

/// A partition's records, decoded.
#[derive(Debug)]
pub struct Batch {
    partition: u16,
    /// By offset; a record that is no change this build reads has none.
    changes: Vec<(u64, usize, Result<Change, ChangeError>)>,
}

impl Batch {
    /// The partition it was read of.
    pub const fn partition(&self) -> u16 {
        self.partition
    }

    /// Decodes what was read of a partition.
    pub fn decode(partition: u16, records: &[Stored]) -> Self {
        let decode = |record: &Stored| (record.offset, record.value.len(), Change::decode(&record.value));
        Self { partition, changes: records.iter().map(decode).collect() }
    }
}

/// What one write does: given out by [`KeeperState::due`], handed back to [`KeeperState::written`] once it is committed and published.
#[derive(Debug, Default)]
pub struct Flight {
    /// Objects to commit.
    pub writes: Vec<ObjectWrite>,
    /// Checkpoints to commit with them.
    pub checkpoints: Vec<(u16, Checkpoint)>,
    /// What API clients did, to be appended to `events` before the objects are committed: read again after a crash, the same calls come to the same only
    /// while the objects do not have them.
    pub done: Vec<(ObjectKey, Vec<Done>)>,
    /// What subscribers are told afterwards, and whether it carries data.
    pub applied: Vec<(Applied, bool)>,
    /// What API clients are told afterwards.
    pub answers: Vec<Answer>,
    /// Objects that the store refused for good when this was committed: to be frozen.
    pub refused: Vec<(ObjectKey, Error)>,
    objects: Vec<(Due, u16, u64)>,
}

impl Flight {
    /// One that writes no object.
    pub fn of_checkpoints(checkpoints: Vec<(u16, Checkpoint)>) -> Self {
        Self { checkpoints, ..Self::default() }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.checkpoints.is_empty() && self.applied.is_empty() && self.answers.is_empty()
    }
}

/// What became of the changes of one [`KeeperState::read`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Folded in.
    pub applied: u64,
    /// Read before.
    pub repeats: u64,
    /// Refused, by their guard or as calls of API clients.
    pub refused: u64,
    /// Of frozen objects.
    pub frozen: u64,
    /// No changes this build reads.
    pub malformed: u64,
}

/// A change of an object that is neither in memory nor frozen: to pass over it would lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object of changes partition {partition}, offset {offset} is not loaded")]
pub struct NotLoaded {
    partition: u16,
    offset: u64,
}

/// One keeper's objects and places.
#[derive(Debug)]
pub struct KeeperState {
    expiry: Expiry,
    max_cached: usize,
    partitions: HashMap<u16, Place>,
    objects: HashMap<Arc<ObjectKey>, Slot>,
    /// Objects in the order in which they are looked at for eviction.
    order: VecDeque<Arc<ObjectKey>>,
    cached: usize,
    frozen: HashSet<ObjectKey>,
    scheduler: Scheduler,
}

/// An object in memory.
#[derive(Debug)]
struct Slot {
    object: Object,
    bytes: usize,
    /// The partition its changes come from.
    partition: u16,
    /// Offset of its first change that is in no write yet.
    first: Option<u64>,
    /// Writes under way; it is evicted only at 0.
    flying: u32,
    /// Whether it was used since it was last looked at for eviction.
    used: bool,
}

/// A place in `events`: (offset, object number).
type Source = (u64, u16);

/// How far one partition of `changes` is.
#[derive(Debug)]
struct Place {
    /// The next offset to read.
    next: u64,
    /// W at `next`.
    seen: Vec<Option<Source>>,
    /// W at C.
    seen_at_c: Vec<Option<Source>>,
    /// What W takes between C and `next`: (changes offset, events partition, place there).
    trail: VecDeque<(u64, u16, Source)>,
    /// First offsets of objects not yet written and published.
    pending: BTreeSet<u64>,
    /// C as last handed out in a checkpoint.
    stored: u64,
}

impl Place {
    fn new(mut from: Checkpoint) -> Self {
        from.seen.resize(usize::from(PARTITIONS), None);
        let Checkpoint { next, seen } = from;
        Self { next, seen_at_c: seen.clone(), seen, trail: VecDeque::new(), pending: BTreeSet::new(), stored: next }
    }

    /// C.
    fn lowest(&self) -> u64 {
        self.pending.first().copied().unwrap_or(self.next)
    }

    /// Takes the record's place among its sources; false where it was read before.
    fn advance(&mut self, offset: u64, origin: &Origin) -> bool {
        let Origin::Event { partition, offset: source, number } = *origin else { return true };
        let at = usize::from(partition);
        if at >= self.seen.len() {
            self.seen.resize(at + 1, None);
        }
        let Some(seen) = self.seen.get_mut(at) else { return true };
        if seen.is_some_and(|last| (source, number) <= last) {
            return false;
        }
        *seen = Some((source, number));
        self.trail.push_back((offset, partition, (source, number)));
        true
    }

    /// W at C, C.
    fn checkpoint(&mut self) -> Checkpoint {
        let next = self.lowest();
        while let Some((offset, partition, source)) = self.trail.front().copied()
            && offset < next
        {
            self.trail.pop_front();
            let at = usize::from(partition);
            if at >= self.seen_at_c.len() {
                self.seen_at_c.resize(at + 1, None);
            }
            if let Some(seen) = self.seen_at_c.get_mut(at) {
                *seen = Some(source);
            }
        }
        Checkpoint { next, seen: self.seen_at_c.clone() }
    }
}

impl KeeperState {
    /// Knows nothing yet. A first change waits `gather` for others; about `max_cached` bytes of objects stay in memory.
    pub fn new(expiry: Expiry, gather: Duration, max_pending: usize, max_cached: usize) -> Self {
        Self {
            expiry,
            max_cached,
            partitions: HashMap::new(),
            objects: HashMap::new(),
            order: VecDeque::new(),
            cached: 0,
            frozen: HashSet::new(),
            scheduler: Scheduler::new(gather, max_pending),
        }
    }

    /// Owns a partition from its stored checkpoint on.
    pub fn assign(&mut self, partition: u16, from: Checkpoint) {
        self.partitions.insert(partition, Place::new(from));
    }

    /// Owns these partitions no longer, nor anything of them. No write of them may be under way.
    pub fn revoke(&mut self, partitions: &[u16]) {
        let gone: HashSet<Arc<ObjectKey>> = self.objects.keys().filter(|key| partitions.contains(&key.partition())).cloned().collect();
        for partition in partitions {
            self.partitions.remove(partition);
        }
        self.scheduler.forget(|key| gone.contains(key));
        self.frozen.retain(|key| !partitions.contains(&key.partition()));
        self.order.retain(|key| !gone.contains(key));
        for slot in gone.iter().filter_map(|key| self.objects.remove(key)) {
            self.cached = self.cached.saturating_sub(slot.bytes);
        }
    }

    /// The partitions owned.
    pub fn owned(&self) -> Vec<u16> {
        self.partitions.keys().copied().collect()
    }

    /// The objects batches need that are not in memory.
    pub fn missing(&self, batches: &[Batch]) -> Vec<ObjectKey> {
        let keys = batches.iter().flat_map(|batch| &batch.changes).filter_map(|(_, _, change)| Some(&change.as_ref().ok()?.key));
        let missing: HashSet<&ObjectKey> = keys.filter(|key| !self.objects.contains_key(*key) && !self.frozen.contains(*key)).collect();
        missing.into_iter().cloned().collect()
    }

    /// Takes an object into memory.
    pub fn insert(&mut self, object: Object) {
        let key = Arc::new(object.key().clone());
        let bytes = weight(&object);
        if self.objects.insert(Arc::clone(&key), Slot { object, bytes, partition: 0, first: None, flying: 0, used: true }).is_none() {
            self.order.push_back(key);
            self.cached += bytes;
        }
    }

    /// Leaves an object alone from now on: its changes are passed over, those in no write yet too, so that C moves.
    pub fn freeze(&mut self, key: ObjectKey) {
        if let Some(slot) = self.objects.remove(&key) {
            self.cached = self.cached.saturating_sub(slot.bytes);
            if let Some((place, first)) = self.partitions.get_mut(&slot.partition).zip(slot.first) {
                place.pending.remove(&first);
            }
        }
        self.frozen.insert(key);
    }

    /// Folds batches in, in their order. Every object that [`KeeperState::missing`] named of them must have been inserted or frozen; none leaves memory
    /// before all are folded.
    ///
    /// # Errors
    /// [`NotLoaded`], and then this state is to be dropped: its places have passed a change that no object took.
    pub fn read(&mut self, batches: Vec<Batch>, now: Timestamp) -> Result<Counts, NotLoaded> {
        let mut counts = Counts::default();
        for batch in batches {
            self.fold(batch, now, &mut counts)?;
        }
        self.evict();
        Ok(counts)
    }

    fn fold(&mut self, batch: Batch, now: Timestamp, counts: &mut Counts) -> Result<(), NotLoaded> {
        let Some(place) = self.partitions.get_mut(&batch.partition) else { return Ok(()) };
        for (offset, bytes, change) in batch.changes {
            if offset < place.next {
                continue;
            }
            place.next = offset + 1;
            let change = match change {
                Ok(change) => change,
                Err(error) => {
                    counts.malformed += 1;
                    tracing::error!(partition = batch.partition, offset, %error, "keeper passes over a malformed record of changes");
                    continue;
                }
            };
            if !place.advance(offset, &change.origin) {
                counts.repeats += 1;
                continue;
            }
            let Some(slot) = self.objects.get_mut(&change.key) else {
                if !self.frozen.contains(&change.key) {
                    return Err(NotLoaded { partition: batch.partition, offset });
                }
                counts.frozen += 1;
                continue;
            };
            slot.used = true;
            let fold = slot.object.apply(&change, offset, self.expiry.ttl_of(&change.key.name));
            match fold {
                Fold::Applied => counts.applied += 1,
                Fold::Repeat => counts.repeats += 1,
                Fold::Answered => counts.refused += 1,
                Fold::Refused => {
                    counts.refused += 1;
                    continue;
                }
            }
            let heavier = weight(&slot.object);
            self.cached = (self.cached + heavier).saturating_sub(slot.bytes);
            slot.bytes = heavier;
            if slot.first.is_none() {
                slot.first = Some(offset);
                slot.partition = batch.partition;
                place.pending.insert(offset);
            }
            if matches!(change.origin, Origin::Client { .. }) && fold != Fold::Repeat {
                self.scheduler.touch_now(&change.key, bytes, now);
                continue;
            }
            // What is published again bears the object's present event id, and a subscriber takes it for all that led there: so it waits for the last repeat.
            if fold == Fold::Applied || offset == slot.object.head().upto {
                self.scheduler.touch(&change.key, bytes, now);
            }
        }
        Ok(())
    }

    /// The writes due at `now` of at most `limit` objects whose budget allows them, with the checkpoints that hold already. `wanted` says whether an
    /// object has subscribers. Flights are committed, and then published, in the order given.
    pub fn due(&mut self, now: Timestamp, limit: usize, wanted: impl Fn(&ObjectKey) -> bool) -> Flight {
        let mut flight = Flight::default();
        for due in self.scheduler.due(now, limit) {
            self.take(due, now, &wanted, &mut flight);
        }
        if !flight.writes.is_empty() {
            flight.checkpoints = self.checkpoints();
        }
        flight
    }

    fn take(&mut self, due: Due, now: Timestamp, wanted: &impl Fn(&ObjectKey) -> bool, flight: &mut Flight) {
        let Some(slot) = self.objects.get_mut(&due.key) else {
            self.scheduler.written(&due);
            return;
        };
        let writes = slot.object.needs_write();
        if writes && let Err(next) = slot.object.try_take_token(now) {
            self.scheduler.defer(due, next);
            return;
        }
        let Some(first) = slot.first.take() else {
            self.scheduler.written(&due);
            return;
        };
        slot.flying += 1;
        flight.answers.extend(slot.object.take_answers());
        let done = slot.object.take_done();
        if !done.is_empty() {
            flight.done.push(((*due.key).clone(), done));
        }
        if slot.object.needs_publish() {
            let render = wanted(&due.key);
            let (write, applied) = slot.object.take_write(render);
            if writes {
                flight.writes.push(write);
            }
            flight.applied.push((applied, render));
        }
        flight.objects.push((due, slot.partition, first));
    }

    /// Notes that a flight is committed and published.
    pub fn written(&mut self, flight: &Flight) {
        for (due, partition, first) in &flight.objects {
            self.scheduler.written(due);
            if let Some(place) = self.partitions.get_mut(partition) {
                place.pending.remove(first);
            }
            if let Some(slot) = self.objects.get_mut(&due.key) {
                slot.flying = slot.flying.saturating_sub(1);
            }
        }
    }

    /// The checkpoints that moved since they were last handed out.
    pub fn checkpoints(&mut self) -> Vec<(u16, Checkpoint)> {
        let mut out = Vec::new();
        for (partition, place) in &mut self.partitions {
            if place.lowest() > place.stored {
                place.stored = place.lowest();
                out.push((*partition, place.checkpoint()));
            }
        }
        out.sort_by_key(|(partition, _)| *partition);
        out
    }

    /// By owned partition, C.
    pub fn lowest(&self) -> impl Iterator<Item = (u16, u64)> {
        self.partitions.iter().map(|(partition, place)| (*partition, place.lowest()))
    }

    /// When a write is due next.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.scheduler.next_due()
    }

    /// Whether somebody waits for what came since [`KeeperState::due`] was last asked.
    pub const fn is_awaited(&self) -> bool {
        self.scheduler.is_awaited()
    }

    /// Whether no more may be read until something is written.
    pub const fn is_full(&self) -> bool {
        self.scheduler.is_full()
    }

    /// Bytes of changes in no write yet.
    pub const fn pending_bytes(&self) -> usize {
        self.scheduler.bytes()
    }

    /// Bytes of objects in memory.
    pub const fn cached_bytes(&self) -> usize {
        self.cached
    }

    /// Drops clean objects not used lately while there are too many; those with changes stay.
    fn evict(&mut self) {
        let mut looks = self.order.len().saturating_mul(2);
        while self.cached > self.max_cached && looks > 0 {
            looks -= 1;
            let Some(key) = self.order.pop_front() else { return };
            let Some(slot) = self.objects.get_mut(&key) else { continue };
            if slot.used || slot.first.is_some() || slot.flying > 0 {
                slot.used = false;
                self.order.push_back(key);
            } else if let Some(slot) = self.objects.remove(&key) {
                self.cached = self.cached.saturating_sub(slot.bytes);
            }
        }
    }
}

fn weight(object: &Object) -> usize {
    // Merge state in memory is a few times its encoded size.
    OBJECT_OVERHEAD + object.key().name.len() + usize::try_from(object.head().bytes).unwrap_or(usize::MAX).saturating_mul(3)
}
