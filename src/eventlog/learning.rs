//! The log as a learning stage is given it: what others logged is read outside of every group, so that nothing waits for the stage and no partition
//! moves to it, and what the stage appends is kept here alone. Opened by the composition root. Must never write to the log underneath.
//!
//! Where `changes` are kept, they follow the records that stood there when learning began: the stage's keeper reads these, then what the stage's router
//! made. What others append to `changes` meanwhile is not read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Append, Bounds, Consumer, Delivery, Error, EventLog, Offset, Stored, Topic};
use crate::event::PARTITIONS;

/// Bytes of changes kept that the stage's keeper has not passed; beyond, appending waits.
const KEPT_BYTES: usize = 64 << 20;
/// How long it waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the log's ends are looked at while nothing is left to read.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A log that is read and not written.
pub struct LearningLog {
    log: Arc<dyn EventLog>,
    changes: Option<Arc<Tail>>,
    appended: AtomicU64,
}

impl LearningLog {
    /// Over `log`. Where `keeps_changes`, what is appended to `changes` is read by who subscribes here; otherwise it is counted and dropped.
    ///
    /// # Errors
    /// When the log cannot tell where `changes` ends.
    pub async fn open(log: Arc<dyn EventLog>, keeps_changes: bool) -> Result<Self, Error> {
        let ends = log.bounds(Topic::Changes).await?.into_iter().map(|bounds| bounds.next).collect();
        let changes = keeps_changes.then(|| Arc::new(Tail::after(ends, PATIENCE)));
        Ok(Self { log, changes, appended: AtomicU64::new(0) })
    }

    /// Records that would have been appended to `changes` by now.
    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    fn tail(&self, topic: Topic) -> Option<&Arc<Tail>> {
        self.changes.as_ref().filter(|_| topic == Topic::Changes)
    }
}

#[async_trait]
impl EventLog for LearningLog {
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, Error> {
        let count = records.len();
        let offsets = match self.tail(topic) {
            Some(tail) => tail.append(records).await?,
            None => vec![0; count],
        };
        if topic == Topic::Changes {
            self.appended.fetch_add(count as u64, Ordering::Relaxed);
            metrics::counter!("contrail_learning_changes_total").increment(count as u64);
        }
        Ok(offsets)
    }

    /// All partitions are this reader's, whatever the group: a learning stage shares with nobody.
    async fn subscribe(&self, topic: Topic, _group: &str) -> Result<Box<dyn Consumer>, Error> {
        let tail = self.tail(topic).cloned();
        let ends = match &tail {
            Some(tail) => tail.from.clone(),
            None => vec![0; usize::from(PARTITIONS)],
        };
        let (log, look_at) = (Arc::clone(&self.log), Instant::now());
        Ok(Box::new(Reader { log, topic, tail, ends, look_at, places: BTreeMap::new(), reading: None, served: PARTITIONS - 1 }))
    }

    async fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        self.log.read(topic, partition, from, max_bytes).await
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, Error> {
        let mut bounds = self.log.bounds(topic).await?;
        if let Some(tail) = self.tail(topic) {
            let kept = tail.kept();
            bounds.iter_mut().zip(&kept.parts).for_each(|(bounds, part)| bounds.next = part.next);
        }
        Ok(bounds)
    }

    async fn committed(&self, _topic: Topic, _group: &str) -> Result<Vec<Offset>, Error> {
        Ok(vec![0; usize::from(PARTITIONS)])
    }

    async fn forget_group(&self, _topic: Topic, _group: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn retain(&self, _now: crate::event::Timestamp) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Changes that the stage made, behind those that stood in the log.
struct Tail {
    /// By partition where the log's own records end.
    from: Vec<Offset>,
    kept: Mutex<Kept>,
    grown: Notify,
    freed: Notify,
    /// How long an append waits for room.
    patience: Duration,
}

struct Kept {
    parts: Vec<Part>,
    bytes: usize,
}

#[derive(Default)]
struct Part {
    records: VecDeque<Stored>,
    next: Offset,
}

impl Tail {
    fn after(from: Vec<Offset>, patience: Duration) -> Self {
        let parts = from.iter().map(|next| Part { records: VecDeque::new(), next: *next }).collect();
        Self { from, kept: Mutex::new(Kept { parts, bytes: 0 }), grown: Notify::new(), freed: Notify::new(), patience }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while too much is kept.
    async fn append(&self, records: Vec<Append>) -> Result<Vec<Offset>, Error> {
        let until = Instant::now() + self.patience;
        loop {
            let freed = self.freed.notified();
            if self.kept().bytes < KEPT_BYTES {
                let offsets = self.kept().push(records);
                self.grown.notify_waiters();
                return Ok(offsets);
            }
            tokio::select! {
                biased;
                () = freed => {}
                () = sleep_until(until) => return Err(Error::Unavailable("the learning keeper is too far behind the learning router".into())),
            }
        }
    }

    fn read(&self, partition: u16, from: Offset, max_bytes: usize) -> Result<(Vec<Stored>, Offset), Error> {
        let kept = self.kept();
        let Some(part) = kept.parts.get(usize::from(partition)) else { return Ok((Vec::new(), from)) };
        let start = part.next - part.records.len() as u64;
        if from < start || from > part.next {
            return Err(Error::OutOfRange { topic: Topic::Changes.name(), partition, offset: from, start, next: part.next });
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for record in part.records.iter().skip((from - start) as usize) {
            bytes += record.value.len();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(record.clone());
        }
        Ok((found, part.next))
    }

    /// Forgets what the keeper has passed.
    fn free(&self, partition: u16, below: Offset) {
        let mut kept = self.kept();
        let Some(part) = kept.parts.get_mut(usize::from(partition)) else { return };
        let mut freed = 0;
        while part.records.front().is_some_and(|record| record.offset < below) {
            freed += part.records.pop_front().map_or(0, |record| record.value.len());
        }
        kept.bytes -= freed;
        drop(kept);
        self.freed.notify_waiters();
    }
}

impl Kept {
    fn push(&mut self, records: Vec<Append>) -> Vec<Offset> {
        let mut offsets = Vec::with_capacity(records.len());
        for Append { partition, value } in records {
            let Some(part) = self.parts.get_mut(usize::from(partition)) else { continue };
            self.bytes += value.len();
            offsets.push(part.next);
            part.records.push_back(Stored { offset: part.next, value });
            part.next += 1;
        }
        offsets
    }
}

/// Where the reader is in a partition.
#[derive(Clone, Copy, Default)]
struct Place {
    at: Option<Offset>,
    paused: bool,
    failed: bool,
}

type Read = Result<Vec<Stored>, Error>;

/// Reads all partitions of a topic.
struct Reader {
    log: Arc<dyn EventLog>,
    topic: Topic,
    tail: Option<Arc<Tail>>,
    /// By partition up to where the log is read, as far as known.
    ends: Vec<Offset>,
    /// Empty until the partitions are assigned.
    places: BTreeMap<u16, Place>,
    look_at: Instant,
    /// The read under way, which a dropped call to `next` leaves to the next one.
    reading: Option<(u16, Offset, BoxFuture<'static, Read>)>,
    /// The partition served last; the next one's turn is behind it.
    served: u16,
}

impl Reader {
    fn end(&self, partition: u16) -> Offset {
        self.ends.get(usize::from(partition)).copied().unwrap_or(0)
    }

    /// What the stage itself made and has not been given, or else the beginning of a read of the log. False: there is nothing to do at present.
    fn turn(&mut self, max_bytes: usize) -> Option<Option<Delivery>> {
        for partition in (1..=PARTITIONS).map(|turn| (self.served + turn) % PARTITIONS) {
            let Some(place) = self.places.get_mut(&partition).filter(|place| !place.paused && !place.failed) else { continue };
            let Some(from) = place.at else { continue };
            let end = self.ends.get(usize::from(partition)).copied().unwrap_or(0);
            match &self.tail {
                Some(tail) if from >= end => match tail.read(partition, from, max_bytes) {
                    Ok((records, next)) => {
                        let Some(last) = records.last() else { continue };
                        place.at = Some(last.offset + 1);
                        self.served = partition;
                        return Some(Some(Delivery::Records { partition, records, next }));
                    }
                    Err(error) => {
                        place.failed = true;
                        return Some(Some(Delivery::Failed { partition, error }));
                    }
                },
                // Beyond the end, as last heard, the log itself says what that means.
                _ if from != end => {
                    let (log, topic) = (Arc::clone(&self.log), self.topic);
                    let read = async move { log.read(topic, partition, from, max_bytes).await };
                    self.reading = Some((partition, from, Box::pin(read)));
                    return Some(None);
                }
                _ => {}
            }
        }
        None
    }

    /// Awaits the read under way. None: there is none, or nobody wants it any more.
    async fn finish(&mut self) -> Result<Option<Delivery>, Error> {
        let Some((partition, from, reading)) = &mut self.reading else { return Ok(None) };
        let (partition, from, read) = (*partition, *from, reading.await);
        self.reading = None;
        self.served = partition;
        let (end, kept) = (self.end(partition), self.tail.is_some());
        let Some(place) = self.places.get_mut(&partition).filter(|place| place.at == Some(from) && !place.paused) else { return Ok(None) };
        match read {
            Ok(mut records) => {
                records.retain(|record| !kept || record.offset < end);
                let Some(last) = records.last() else {
                    // Looked at again with the other ends.
                    self.ends.get_mut(usize::from(partition)).into_iter().for_each(|end| *end = from);
                    return Ok(None);
                };
                let at = last.offset + 1;
                place.at = Some(at);
                let next = self.tail.as_ref().and_then(|tail| Some(tail.kept().parts.get(usize::from(partition))?.next)).unwrap_or(end);
                Ok(Some(Delivery::Records { partition, records, next: next.max(at) }))
            }
            Err(error @ (Error::Damaged { .. } | Error::OutOfRange { .. })) => {
                place.failed = true;
                Ok(Some(Delivery::Failed { partition, error }))
            }
            Err(error) => Err(error),
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        if self.tail.is_none() {
            self.ends = self.log.bounds(self.topic).await?.into_iter().map(|bounds| bounds.next).collect();
        }
        self.look_at = Instant::now() + LOOK_EVERY;
        Ok(())
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self, max_bytes: usize) -> Result<Delivery, Error> {
        if self.places.is_empty() {
            self.places = (0..PARTITIONS).map(|partition| (partition, Place::default())).collect();
            return Ok(Delivery::Assigned((0..PARTITIONS).collect()));
        }
        let tail = self.tail.clone();
        loop {
            // Before looking, so that what is appended after the look wakes the wait.
            let grown = tail.as_ref().map(|tail| tail.grown.notified());
            if let Some(delivery) = self.finish().await? {
                return Ok(delivery);
            }
            match self.turn(max_bytes) {
                Some(Some(delivery)) => return Ok(delivery),
                Some(None) => {}
                None if self.look_at <= Instant::now() => self.look().await?,
                None => {
                    tokio::select! {
                        () = sleep_until(self.look_at) => {}
                        () = async { if let Some(grown) = grown { grown.await } else { std::future::pending().await } } => {}
                    }
                }
            }
        }
    }

    fn seek(&mut self, partition: u16, offset: Offset) {
        if let Some(place) = self.places.get_mut(&partition) {
            *place = Place { at: Some(offset), failed: false, ..*place };
        }
    }

    fn pause(&mut self, partition: u16) {
        self.places.get_mut(&partition).into_iter().for_each(|place| place.paused = true);
    }

    fn resume(&mut self, partition: u16) {
        self.places.get_mut(&partition).into_iter().for_each(|place| place.paused = false);
    }

    /// Tells the log nothing; frees what was kept.
    fn commit(&mut self, partition: u16, offset: Offset) {
        if let Some(tail) = &self.tail {
            tail.free(partition, offset);
        }
    }
}

#[cfg(test)]
mod tests;
