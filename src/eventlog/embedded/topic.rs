//! What readers and the writer of one topic share: the list of segments, the newest groups in memory, the durable ends, the damage found so far and the
//! consumer groups. The writer publishes here only what is synced; every reader looks its records up here. One short mutex, never held over file work.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use super::Settings;
use super::chunk::{Chunk, Taken};
use super::disk::{Disk, Mode, read_range};
use super::format::SEGMENT_HEADER;
use super::groups::Group;
use super::offsets::Offsets;
use crate::event::Timestamp;
use crate::eventlog::{Bounds, Error, Offset, Stored, Topic};

/// Bytes of a segment between two entries of its index, at least; also what a reader reads at once. Large enough for sequential reading to be cheap,
/// small enough that 50 GiB of log need under 30 MB of index.
pub(super) const BLOCK: u64 = 256 << 10;

/// Why the whole log has stopped, once it has.
#[derive(Debug, Default)]
pub(super) struct Health {
    why: OnceLock<String>,
    /// The readers of both topics.
    wakes: [watch::Sender<()>; 2],
}

impl Health {
    /// Stops the log and wakes all its readers; the first reason stays.
    pub(super) fn stop(&self, why: String) {
        if self.why.set(why.clone()).is_ok() {
            tracing::info!(log.reason = why, "the log has stopped");
        }
        for wake in &self.wakes {
            wake.send_replace(());
        }
    }

    /// [`Error::Closed`] once the log has stopped.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.why.get().map_or(Ok(()), |why| Err(Error::Closed(why.clone())))
    }

    fn wake_of(&self, topic: Topic) -> watch::Sender<()> {
        let [events, changes] = &self.wakes;
        match topic {
            Topic::Events => events.clone(),
            Topic::Changes => changes.clone(),
        }
    }
}

/// Where a block begins, and with which offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockStart {
    /// Position in the segment.
    pub(super) at: u64,
    /// The next offset of every partition there.
    pub(super) starts: Offsets,
}

/// A segment as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its place in the sequence.
    pub(super) seq: u64,
    /// Of its groups' checksums.
    pub(super) salt: u64,
    /// First offset of every partition.
    pub(super) base: Offsets,
    /// Its synced length.
    pub(super) end: u64,
    /// When its newest group was written.
    pub(super) newest: Timestamp,
    /// Its sparse index.
    pub(super) blocks: Vec<BlockStart>,
}

impl Segment {
    /// One without groups.
    pub(super) const fn empty(seq: u64, salt: u64, base: Offsets, created: Timestamp) -> Self {
        Self { seq, salt, base, end: SEGMENT_HEADER as u64, newest: created, blocks: Vec::new() }
    }

    /// Takes in a group at its end, of `len` bytes; `starts` are the offsets before it.
    pub(super) fn extend(&mut self, len: u64, written_at: Timestamp, starts: Offsets) {
        if self.blocks.last().is_none_or(|block| self.end - block.at >= BLOCK) {
            self.blocks.push(BlockStart { at: self.end, starts });
        }
        self.end += len;
        self.newest = self.newest.max(written_at);
    }

    fn block_of(&self, partition: u16, offset: Offset) -> Option<Block> {
        let after = self.blocks.partition_point(|block| block.starts.of(partition) <= offset);
        let start = self.blocks.get(after.checked_sub(1)?)?;
        let end = self.blocks.get(after).map_or(self.end, |next| next.at);
        Some(Block { seq: self.seq, salt: self.salt, start: *start, end })
    }
}

/// A block to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    seq: u64,
    salt: u64,
    start: BlockStart,
    end: u64,
}

/// From where on a partition refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The first offset that cannot be read.
    pub(super) from: Offset,
    /// What was found.
    pub(super) what: String,
}

/// Where the record at some offset is.
pub(super) enum Place {
    /// Not there yet.
    End,
    /// In memory.
    Chunk(Arc<Chunk>),
    /// In a file.
    Block(Block),
}

/// The shared state proper.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Oldest first; the last is being written.
    pub(super) segments: VecDeque<Segment>,
    /// Sequence numbers of segments already out of the list whose files are still to be removed, in order.
    pub(super) doomed: VecDeque<u64>,
    /// The durable end of every partition.
    pub(super) next: Offsets,
    /// By partition number.
    pub(super) damage: BTreeMap<u16, Damage>,
    /// By name.
    pub(super) groups: BTreeMap<String, Group>,
    /// Whether the `groups` file is behind.
    pub(super) groups_changed: bool,
    /// The newest groups, without gaps up to `next`.
    tail: VecDeque<Arc<Chunk>>,
    tail_bytes: usize,
    /// The offsets at the start of `tail`.
    tail_from: Offsets,
    /// Blocks read lately, newest last.
    blocks: VecDeque<(Block, Arc<Chunk>)>,
}

/// How many blocks of a topic stay in memory: readers of all its partitions go over the same ones.
const BLOCKS_KEPT: usize = 8;

impl State {
    /// Of a recovered log.
    pub(super) fn recovered(segments: VecDeque<Segment>, next: Offsets, damage: BTreeMap<u16, Damage>) -> Self {
        Self { segments, next, damage, tail_from: next, ..Self::default() }
    }

    /// What a partition holds.
    pub(super) fn bounds(&self, partition: u16) -> Bounds {
        let next = self.next.of(partition);
        Bounds { start: self.segments.front().map_or(next, |segment| segment.base.of(partition)), next }
    }

    /// Whether `offset` may be read or waited for.
    pub(super) fn admit(&self, topic: Topic, partition: u16, offset: Offset) -> Result<(), Error> {
        if let Some(damage) = self.damage.get(&partition).filter(|damage| damage.from <= offset) {
            return Err(damage.error(topic, partition));
        }
        let Bounds { start, next } = self.bounds(partition);
        if (start..=next).contains(&offset) { Ok(()) } else { Err(Error::OutOfRange { topic: topic.name(), partition, offset, start, next }) }
    }

    /// Where the record at an admitted `offset` is.
    fn place(&self, partition: u16, offset: Offset) -> Option<Place> {
        if offset >= self.next.of(partition) {
            return Some(Place::End);
        }
        if offset >= self.tail_from.of(partition) {
            let at = self.tail.partition_point(|chunk| chunk.ends().of(partition) <= offset);
            return self.tail.get(at).cloned().map(Place::Chunk);
        }
        let after = self.segments.partition_point(|segment| segment.base.of(partition) <= offset);
        let block = self.segments.get(after.checked_sub(1)?)?.block_of(partition, offset)?;
        let kept = self.blocks.iter().rev().find(|(key, _)| *key == block);
        Some(kept.map_or(Place::Block(block), |(_, chunk)| Place::Chunk(Arc::clone(chunk))))
    }

    fn keep_block(&mut self, block: Block, chunk: &Arc<Chunk>) {
        if self.blocks.len() >= BLOCKS_KEPT {
            self.blocks.pop_front();
        }
        self.blocks.push_back((block, Arc::clone(chunk)));
    }

    fn refuse(&mut self, topic: Topic, partition: u16, from: Offset, what: &str) -> Error {
        let damage = self.damage.entry(partition).or_insert_with(|| {
            tracing::error!(log.topic = topic.name(), log.partition = partition, log.offset = from, "synced data of the log changed on disk: {what}");
            Damage { from, what: what.to_owned() }
        });
        damage.from = damage.from.min(from);
        damage.error(topic, partition)
    }
}

impl Damage {
    /// As callers see it.
    pub(super) fn error(&self, topic: Topic, partition: u16) -> Error {
        Error::Damaged { topic: topic.name(), partition, offset: self.from, what: self.what.clone() }
    }
}

/// One topic of the log.
pub(super) struct TopicLog {
    /// Which.
    pub(super) topic: Topic,
    /// Where its segments are.
    pub(super) dir: PathBuf,
    /// On what.
    pub(super) disk: Arc<dyn Disk>,
    /// Bounds of the log.
    pub(super) settings: Settings,
    /// Shared by both topics.
    pub(super) health: Arc<Health>,
    /// Bytes of both topics' segments on disk.
    pub(super) disk_bytes: Arc<AtomicU64>,
    /// Syncs of data since the start.
    pub(super) syncs: AtomicU64,
    /// Woken at every publication, rebalance and stop; readers look again after each, so none is lost.
    pub(super) wake: watch::Sender<()>,
    state: Mutex<State>,
}

impl TopicLog {
    /// Over what recovery found.
    pub(super) fn new(
        topic: Topic,
        place: (Arc<dyn Disk>, PathBuf),
        settings: Settings,
        shared: (Arc<Health>, Arc<AtomicU64>),
        state: State,
    ) -> Self {
        let ((disk, dir), (health, disk_bytes)) = (place, shared);
        disk_bytes.fetch_add(state.segments.iter().map(|segment| segment.end).sum(), Ordering::Relaxed);
        let wake = health.wake_of(topic);
        Self { topic, dir, disk, settings, health, disk_bytes, syncs: AtomicU64::new(0), wake, state: Mutex::new(state) }
    }

    /// The state, for a few lines. A panic while it was held leaves it usable: no step leaves it half changed.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a synced group visible. `ends` are the offsets behind it, `len` its bytes on disk, `opened` its segment if it is the first there.
    pub(super) fn publish(&self, opened: Option<Segment>, chunk: Option<Chunk>, len: u64, written_at: Timestamp) {
        let mut state = self.state();
        let new_bytes = len + opened.as_ref().map_or(0, |segment| segment.end);
        state.segments.extend(opened);
        let starts = state.next;
        if let Some(segment) = state.segments.back_mut() {
            segment.extend(len, written_at, starts);
        }
        if let Some(chunk) = chunk {
            state.next = *chunk.ends();
            state.tail_bytes += chunk.len();
            state.tail.push_back(Arc::new(chunk));
            while state.tail_bytes > self.settings.tail_bytes {
                let Some(oldest) = state.tail.pop_front() else { break };
                state.tail_bytes -= oldest.len();
                state.tail_from = *oldest.ends();
            }
        }
        drop(state);
        self.disk_bytes.fetch_add(new_bytes, Ordering::Relaxed);
        self.show_disk_bytes();
        self.wake.send_replace(());
    }

    /// Tells the metrics how large the log is.
    pub(super) fn show_disk_bytes(&self) {
        metrics::gauge!("contrail_log_disk_bytes").set(self.disk_bytes.load(Ordering::Relaxed) as f64);
        // At which events are refused.
        metrics::gauge!("contrail_log_max_bytes").set(self.settings.max_bytes_of(Topic::Events) as f64);
    }

    /// Durable records of a partition from `from` on, and its durable end: from memory, and at most one block from the file.
    pub(super) async fn read(self: &Arc<Self>, partition: u16, from: Offset, max_bytes: usize) -> Result<(Vec<Stored>, Offset), Error> {
        let (mut taken, mut at) = (Taken::default(), from);
        loop {
            let (place, next) = {
                let mut state = self.state();
                match state.admit(self.topic, partition, at) {
                    Ok(()) => {}
                    Err(_) if !taken.records.is_empty() => return Ok((taken.records, state.next.of(partition))),
                    Err(error) => return Err(error),
                }
                let place = state.place(partition, at);
                (place.ok_or_else(|| state.refuse(self.topic, partition, at, "no group holds this offset"))?, state.next.of(partition))
            };
            let chunk = match place {
                Place::End => return Ok((taken.records, next)),
                Place::Block(_) if !taken.records.is_empty() => return Ok((taken.records, next)),
                Place::Block(block) => {
                    self.health.check()?;
                    let Some(chunk) = self.load(block).await? else { continue };
                    chunk
                }
                Place::Chunk(chunk) => chunk,
            };
            let full = chunk.take(partition, at, max_bytes, &mut taken);
            let reached = from + taken.records.len() as u64;
            match full {
                Err(bad) => drop(self.state().refuse(self.topic, partition, bad, "a frame does not verify")),
                Ok(true) => return Ok((taken.records, next)),
                Ok(false) if reached == at => drop(self.state().refuse(self.topic, partition, at, "its block ends before this offset")),
                Ok(false) => {}
            }
            at = reached;
        }
    }

    /// Reads a block on the blocking pool: a few hundred KiB that are nearly always in the page cache, once for all readers near it. The file is opened
    /// for each block: beside reading and verifying 256 KiB that is nothing, and no file stays open per segment. `None`: retention took the segment.
    async fn load(self: &Arc<Self>, block: Block) -> Result<Option<Arc<Chunk>>, Error> {
        let log = Arc::clone(self);
        match tokio::task::spawn_blocking(move || log.load_blocking(block)).await {
            Ok(Ok(chunk)) => Ok(Some(chunk)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound && self.oldest_segment() > Some(block.seq) => Ok(None),
            Ok(Err(error)) => Err(Error::Unavailable(format!("a segment of {} cannot be read: {error}", self.topic.name()))),
            Err(error) => Err(Error::Unavailable(format!("reading a segment stopped: {error}"))),
        }
    }

    /// Reads, checks and keeps a block, so that even a reader that was dropped meanwhile finds it the next time.
    fn load_blocking(&self, block: Block) -> io::Result<Arc<Chunk>> {
        let file = self.disk.open(&self.dir.join(segment_name(block.seq)), Mode::Read)?;
        let len = (block.end - block.start.at) as usize;
        let bytes = read_range(&*file, block.start.at, len)?;
        let short = bytes.len() < len;
        let (chunk, whole) = Chunk::of_block(bytes, block.salt, block.start.starts);
        let mut state = self.state();
        if short || !whole {
            for (partition, offset) in chunk.ends().iter() {
                drop(state.refuse(self.topic, partition, offset, "a group header does not verify"));
            }
        }
        let chunk = Arc::new(chunk);
        state.keep_block(block, &chunk);
        Ok(chunk)
    }

    fn oldest_segment(&self) -> Option<u64> {
        self.state().segments.front().map(|segment| segment.seq)
    }
}

/// The file name of a segment.
pub(super) fn segment_name(seq: u64) -> String {
    format!("{seq:020}.seg")
}
