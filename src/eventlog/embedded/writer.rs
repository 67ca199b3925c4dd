//! The one writer of a topic: takes waiting appends off a bounded queue, lays them out as one group, writes and syncs it, publishes it to the readers and
//! answers. Runs on its own thread, since it blocks in the disk. Must never answer before the sync, nor go on after a failed one.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::chunk::Chunk;
use super::disk::DiskFile;
use super::format::{self, FRAME_HEADER, GROUP_HEADER_MAX, GroupHeader, SEGMENT_HEADER, SegmentHeader};
use super::offsets::Offsets;
use super::recovery;
use super::topic::{Segment, TopicLog};
use crate::event::{Clock, Timestamp};
use crate::eventlog::{Append, Error, Offset};

/// Where a topic is written on.
pub(super) struct Tail {
    /// The last segment.
    pub(super) file: Box<dyn DiskFile>,
    /// Its place in the sequence.
    pub(super) seq: u64,
    /// Of its groups' checksums.
    pub(super) salt: u64,
    /// When it was made.
    pub(super) created: Timestamp,
    /// Its synced length.
    pub(super) end: u64,
    /// The next offsets.
    pub(super) next: Offsets,
    /// Whether the file itself says that everything in it is synced.
    pub(super) sealed: bool,
}

/// One append call waiting.
struct Call {
    records: Vec<Append>,
    bytes: usize,
    answer: oneshot::Sender<Result<Vec<Offset>, Error>>,
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    /// Of the calls waiting and of those being written.
    records: usize,
    bytes: usize,
    stop: bool,
    /// The writer looks again by itself soon: a further call need not wake it.
    gathering: bool,
}

/// The calls that wait for the writer, bounded by records and bytes.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

/// Bytes the writer puts in one group at most, unless one call alone is larger: bounds memory and the wait of the first call in it.
const GROUP_BYTES: usize = 8 << 20;

/// While many callers append at once, a group is held open as long as calls come with pauses shorter than this: twice the calls in a group halve what a
/// sync costs each of them. A pause ends it, so that nobody waits for callers that are not there.
const GATHER_PAUSE: Duration = Duration::from_micros(200);

/// How long a group is held open at most.
const GATHER_MOST: Duration = Duration::from_millis(2);

/// What the writer finds to do.
enum Work {
    Group(Vec<Call>),
    Seal,
    Stop,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), filled: Condvar::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a call whole, or refuses it at once.
    ///
    /// # Errors
    /// [`Error::Full`] when the queue or the disk bound has no room, [`Error::Closed`] once stopping.
    pub(super) fn push(&self, log: &TopicLog, records: Vec<Append>) -> Result<oneshot::Receiver<Result<Vec<Offset>, Error>>, Error> {
        let bytes = records.iter().map(|record| record.value.len() + FRAME_HEADER).sum::<usize>() + GROUP_HEADER_MAX;
        let settings = &log.settings;
        let mut waiting = self.waiting();
        log.health.check()?;
        if waiting.stop {
            return Err(Error::Closed("it is being closed".to_owned()));
        }
        let idle = waiting.records == 0;
        if !idle && (waiting.records + records.len() > settings.queue_records || waiting.bytes + bytes > settings.queue_bytes) {
            return Err(Error::Full("too many appends wait for the disk"));
        }
        let on_disk = log.disk_bytes.load(Ordering::Relaxed);
        if on_disk.saturating_add((waiting.bytes + bytes) as u64) > settings.max_bytes_of(log.topic) {
            return Err(Error::Full("the log has reached its disk bound"));
        }
        let (answer, answered) = oneshot::channel();
        waiting.records += records.len();
        waiting.bytes += bytes;
        waiting.calls.push_back(Call { records, bytes, answer });
        // It sleeps only while nothing waits.
        let wakes = waiting.calls.len() == 1 && !waiting.gathering;
        drop(waiting);
        if wakes {
            self.filled.notify_one();
        }
        Ok(answered)
    }

    /// Takes no more calls; the writer finishes those waiting, seals and ends.
    pub(super) fn stop(&self) {
        self.waiting().stop = true;
        self.filled.notify_one();
    }

    /// Waits for calls, at most `patience`; `crowded`: the last group had several.
    fn take(&self, patience: Option<Duration>, crowded: bool) -> Work {
        let idle = |waiting: &mut Waiting| waiting.calls.is_empty() && !waiting.stop;
        let mut waiting = match patience {
            None => self.filled.wait_while(self.waiting(), idle).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => self.filled.wait_timeout_while(self.waiting(), patience, idle).unwrap_or_else(PoisonError::into_inner).0,
        };
        if crowded || waiting.calls.len() > 1 {
            waiting = self.gather(waiting);
        }
        let mut bytes = 0;
        let fitting = waiting.calls.iter().take_while(|call| {
            bytes += call.bytes;
            bytes <= GROUP_BYTES
        });
        let count = fitting.count().max(1).min(waiting.calls.len());
        if count > 0 {
            return Work::Group(waiting.calls.drain(..count).collect());
        }
        if waiting.stop { Work::Stop } else { Work::Seal }
    }

    /// Lets further calls come in until none comes for a moment.
    fn gather<'q>(&'q self, mut waiting: MutexGuard<'q, Waiting>) -> MutexGuard<'q, Waiting> {
        let until = Instant::now() + GATHER_MOST;
        let mut seen = 0;
        while waiting.calls.len() > seen && waiting.bytes < GROUP_BYTES && !waiting.stop && Instant::now() < until {
            seen = waiting.calls.len();
            waiting.gathering = true;
            waiting = self.filled.wait_timeout(waiting, GATHER_PAUSE).unwrap_or_else(PoisonError::into_inner).0;
            waiting.gathering = false;
        }
        waiting
    }

    /// Gives the room of written calls back.
    fn done(&self, records: usize, bytes: usize) {
        let mut waiting = self.waiting();
        waiting.records -= records;
        waiting.bytes -= bytes;
    }

    /// Answers everything that waits with an error.
    fn fail(&self, error: &Error) {
        for call in self.waiting().calls.drain(..) {
            call.answer.send(Err(error.clone())).ok();
        }
    }
}

/// The writer itself.
pub(super) struct Writer {
    /// What it publishes to.
    pub(super) log: Arc<TopicLog>,
    /// What it writes for.
    pub(super) queue: Arc<Queue>,
    /// Where.
    pub(super) tail: Tail,
    /// Stamps the groups.
    pub(super) clock: Clock,
}

impl Drop for Writer {
    /// However the thread ends, nobody waits for it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.log.health.stop("its writer panicked".to_owned());
        }
        self.queue.stop();
        self.queue.fail(&Error::Closed("its writer has ended".to_owned()));
    }
}

impl Writer {
    /// Writes until the queue is stopped or the disk fails.
    pub(super) fn run(mut self) {
        let mut last_group = Instant::now();
        let mut crowded = false;
        loop {
            let patience = (!self.tail.sealed).then(|| self.log.settings.seal_after.saturating_sub(last_group.elapsed()));
            match self.queue.take(patience, crowded) {
                Work::Group(calls) => {
                    crowded = calls.len() > 1;
                    if self.commit(calls).is_err() {
                        return;
                    }
                    last_group = Instant::now();
                }
                Work::Seal => {
                    if let Err(error) = self.seal() {
                        return self.poison(&error);
                    }
                }
                Work::Stop => {
                    return self.seal().unwrap_or_else(|error| self.poison(&error));
                }
            }
        }
    }

    /// After a failed write or sync nobody knows what the disk holds: the whole log stops, a restart looks.
    fn poison(&self, error: &io::Error) {
        tracing::error!(log.topic = self.log.topic.name(), "the log could not be written and stops: {error}");
        self.log.health.stop(format!("{} could not be written: {error}", self.log.topic.name()));
    }

    fn commit(&mut self, calls: Vec<Call>) -> io::Result<()> {
        let bytes = calls.iter().map(|call| call.bytes).sum();
        let records = calls.iter().map(|call| call.records.len()).sum();
        let batch: Vec<&[Append]> = calls.iter().map(|call| call.records.as_slice()).collect();
        let offsets = self.write_group(&batch, bytes);
        // The room is free before the answers are out: whoever hears of an append may append again.
        self.queue.done(records, bytes);
        match offsets {
            Ok(offsets) => {
                for (call, given) in calls.into_iter().zip(offsets) {
                    call.answer.send(Ok(given)).ok();
                }
                Ok(())
            }
            Err(error) => {
                self.poison(&error);
                for call in calls {
                    call.answer.send(Err(Error::Closed(format!("its outcome is unknown: {error}")))).ok();
                }
                Err(error)
            }
        }
    }

    /// Makes one group durable and visible; `bytes` is an upper bound of its size.
    fn write_group(&mut self, calls: &[&[Append]], bytes: usize) -> io::Result<Vec<Vec<Offset>>> {
        let now = self.clock.now();
        let opened = if self.is_done(bytes as u64, now) { Some(self.roll()?) } else { None };
        let tail = &mut self.tail;
        let group = format::encode_group(tail.salt, tail.end, now, &mut tail.next, calls)?;
        tail.file.write_at(&group.bytes, tail.end)?;
        let len = group.bytes.len() as u64;
        tail.end += len;
        tail.sealed = false;
        let ends = tail.next;
        self.sync()?;
        let chunk = Chunk::of_group(&group.header, group.bytes.into(), ends);
        self.log.publish(opened, Some(chunk), len, now);
        Ok(group.offsets)
    }

    /// Whether the segment should take no group of so many bytes any more: it is full, or holds an eighth of the retention age, so that a quiet log
    /// forgets in time, too.
    fn is_done(&self, bytes: u64, now: Timestamp) -> bool {
        let (tail, settings) = (&self.tail, &self.log.settings);
        let span = i64::try_from(settings.retention.as_micros() / 8).unwrap_or(i64::MAX);
        tail.end > SEGMENT_HEADER as u64 && (tail.end + bytes > settings.segment_bytes || now > tail.created.plus_micros(span))
    }

    fn sync(&self) -> io::Result<()> {
        let began = Instant::now();
        self.tail.file.sync_data()?;
        self.log.syncs.fetch_add(1, Ordering::Relaxed);
        metrics::histogram!("contrail_log_sync_seconds", "topic" => self.log.topic.name()).record(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Opens the next segment, durably, after everything in this one.
    fn roll(&mut self) -> io::Result<Segment> {
        let (tail, now) = (&mut self.tail, self.clock.now());
        let header =
            SegmentHeader { topic: self.log.topic, seq: tail.seq + 1, salt: rand::random(), previous_end: tail.end, created: now, base: tail.next };
        tail.file = recovery::create_segment(&*self.log.disk, &self.log.dir, &header)?;
        (tail.seq, tail.salt, tail.created, tail.end) = (header.seq, header.salt, now, SEGMENT_HEADER as u64);
        Ok(Segment::empty(header.seq, header.salt, header.base, now))
    }

    /// Writes down that everything so far is synced, so that a later change of it is known for damage.
    fn seal(&mut self) -> io::Result<()> {
        if self.tail.sealed {
            return Ok(());
        }
        let now = self.clock.now();
        let seal = GroupHeader { synced: self.tail.end, written_at: now, runs: Vec::new() }.encode(self.tail.salt);
        self.tail.file.write_at(&seal, self.tail.end)?;
        self.tail.end += seal.len() as u64;
        self.sync()?;
        self.tail.sealed = true;
        self.log.publish(None, None, seal.len() as u64, now);
        Ok(())
    }
}
