//! The embedded log: one sequence of segment files per topic, written by one thread each, one `fdatasync` per group of appends. Opened through
//! [`super::open`]; nothing outside names this backend but for its [`Settings`] and [`Stats`]. Must never answer an append before its sync, nor show a
//! reader what is not synced.
//!
//! `format` has the bytes, `recovery` opens them, `writer` adds to them, `topic` is what writer and readers share, `chunk` and `consumer` read, `groups`
//! and `retention` decide what may be forgotten, `disk` is the file system under it all.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;

mod chunk;
mod consumer;
mod disk;
mod format;
mod groups;
mod offsets;
mod recovery;
mod retention;
mod topic;
mod writer;

#[cfg(test)]
mod tests;

use self::consumer::GroupReader;
use self::disk::{Disk, RealDisk};
use self::groups::{Group, Kept};
use self::topic::{Health, TopicLog};
use self::writer::{Queue, Writer};
use super::{Append, Bounds, Consumer, Error, EventLog, MAX_RECORD, Offset, Stored, Topic};
use crate::event::{Clock, PARTITIONS, Timestamp};

/// Bounds of the embedded log. All are read at the start alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of both topics on disk at which appends are refused. The last eighth is kept for [`Topic::Changes`], so that a full disk stops the
    /// senders while what they sent is still worked off.
    pub max_bytes: u64,
    /// Bytes at which a new segment file is begun; also begun when it holds an eighth of `retention`. What retention removes is whole segments.
    pub segment_bytes: u64,
    /// Age from which on a segment is removed, once every group has passed it.
    pub retention: Duration,
    /// Bytes of appends waiting for the disk, per topic, at which further ones are refused. One call alone is taken whatever its size.
    pub queue_bytes: usize,
    /// Records waiting for the disk, per topic, at which further appends are refused.
    pub queue_records: usize,
    /// Bytes of the newest groups that stay in memory for readers, per topic.
    pub tail_bytes: usize,
    /// Without an append for this long the log writes down what it has synced.
    pub seal_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_bytes: 50 << 30,
            segment_bytes: 64 << 20,
            retention: Duration::from_secs(7 * 86_400),
            queue_bytes: 64 << 20,
            queue_records: 100_000,
            tail_bytes: 4 << 20,
            seal_after: Duration::from_millis(100),
        }
    }
}

impl Settings {
    const fn max_bytes_of(&self, topic: Topic) -> u64 {
        match topic {
            Topic::Events => self.max_bytes - self.max_bytes / 8,
            Topic::Changes => self.max_bytes,
        }
    }
}

/// What the metrics show of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of both topics' segments on disk.
    pub disk_bytes: u64,
    /// Data syncs since the start, by topic in [`Topic::ALL`]'s order.
    pub syncs: [u64; 2],
    /// Segment files, by topic.
    pub segments: [u64; 2],
    /// What each partition holds, by topic, then partition number.
    pub bounds: [Vec<Bounds>; 2],
}

/// A call's frames together may not pass this, so that a group's lengths fit its header.
const MAX_CALL: usize = 1 << 30;

/// A topic with its writer.
struct Part {
    log: Arc<TopicLog>,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The embedded [`EventLog`]. Dropping it finishes what was queued, seals and waits for its threads.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    members: AtomicU64,
}

/// What outlives a dropped call: blocking work holds it.
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    health: Arc<Health>,
    events: Part,
    changes: Part,
    /// Held while the `groups` file is written or segments are removed: one at a time.
    housekeeping: Mutex<()>,
}

impl EmbeddedLog {
    /// Opens the log in `dir`, making it when there is none. Blocks: recovery reads group headers. The caller sees to it that only one process does.
    ///
    /// # Errors
    /// [`Error::Format`] for files of a later version, [`Error::Unavailable`] when the disk refuses.
    pub fn open(dir: &Path, settings: &Settings, clock: &Clock) -> Result<Self, Error> {
        Self::open_on(Arc::new(RealDisk), dir, settings, clock)
    }

    fn open_on(disk: Arc<dyn Disk>, dir: &Path, settings: &Settings, clock: &Clock) -> Result<Self, Error> {
        disk.create_dir(dir).map_err(|error| Error::Unavailable(format!("the log's directory cannot be made: {error}")))?;
        let kept = groups::load(&*disk, dir)?;
        let (health, disk_bytes) = (Arc::new(Health::default()), Arc::new(AtomicU64::new(0)));
        let part = |topic: Topic| -> Result<Part, Error> {
            let place = dir.join(topic.name());
            let found = recovery::recover(&*disk, &place, topic, clock.now())?;
            let log = TopicLog::new(topic, (Arc::clone(&disk), place), settings.clone(), (Arc::clone(&health), Arc::clone(&disk_bytes)), found.state);
            for group in kept.iter().filter(|group| group.topic == topic) {
                log.state().groups.insert(group.name.clone(), Group::kept(group.committed));
            }
            let (log, queue) = (Arc::new(log), Arc::new(Queue::new()));
            let thread = match found.tail {
                None => None,
                Some(tail) => {
                    let writer = Writer { log: Arc::clone(&log), queue: Arc::clone(&queue), tail, clock: clock.clone() };
                    let named = std::thread::Builder::new().name(format!("log-{}", topic.name()));
                    Some(named.spawn(|| writer.run()).map_err(|error| Error::Unavailable(format!("no thread for the log: {error}")))?)
                }
            };
            Ok(Part { log, queue, thread: Mutex::new(thread) })
        };
        let (events, changes) = (part(Topic::Events)?, part(Topic::Changes)?);
        let shared = Shared { disk, dir: dir.to_owned(), health, events, changes, housekeeping: Mutex::new(()) };
        Ok(Self { shared: Arc::new(shared), members: AtomicU64::new(0) })
    }

    /// What the metrics show.
    pub fn stats(&self) -> Stats {
        let parts = Topic::ALL.map(|topic| self.shared.part(topic));
        Stats {
            disk_bytes: self.shared.events.log.disk_bytes.load(Ordering::Relaxed),
            syncs: parts.map(|part| part.log.syncs.load(Ordering::Relaxed)),
            segments: parts.map(|part| part.log.state().segments.len() as u64),
            bounds: parts.map(|part| part.bounds()),
        }
    }

    async fn blocking(&self, work: impl FnOnce(&Shared) -> io::Result<()> + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::Unavailable(format!("the log's files could not be changed: {error}"))),
            Err(error) => Err(Error::Unavailable(format!("the log's housekeeping stopped: {error}"))),
        }
    }
}

impl Part {
    fn bounds(&self) -> Vec<Bounds> {
        let state = self.log.state();
        (0..PARTITIONS).map(|partition| state.bounds(partition)).collect()
    }

    /// Lets the writer finish what is queued and waits for it.
    fn finish(&self) {
        self.queue.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in it has stopped the log already.
            thread.join().ok();
        }
    }
}

impl Shared {
    const fn part(&self, topic: Topic) -> &Part {
        match topic {
            Topic::Events => &self.events,
            Topic::Changes => &self.changes,
        }
    }

    /// Brings the `groups` file up to date, if it is behind.
    fn save_groups(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        let mut changed = false;
        for topic in Topic::ALL {
            let mut state = self.part(topic).log.state();
            changed |= std::mem::take(&mut state.groups_changed);
            let holding = state.groups.iter().filter(|(_, group)| group.holds);
            kept.extend(holding.map(|(name, group)| Kept { topic, name: name.clone(), committed: group.committed }));
        }
        let saved = if changed { groups::save(&*self.disk, &self.dir, &kept) } else { Ok(()) };
        if saved.is_err() {
            self.events.log.state().groups_changed = true;
        }
        saved
    }

    fn housekeeping(&self) -> std::sync::MutexGuard<'_, ()> {
        self.housekeeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        for topic in Topic::ALL {
            self.shared.part(topic).finish();
        }
        self.shared.health.stop("it was closed".to_owned());
    }
}

/// Refuses what the log cannot take, before anything of it is queued.
fn check_call(log: &TopicLog, records: &[Append]) -> Result<(), Error> {
    let mut bytes = 0usize;
    for record in records {
        if record.value.len() > MAX_RECORD {
            return Err(Error::TooLarge { bytes: record.value.len() });
        }
        if record.partition >= PARTITIONS {
            return Err(Error::Format(format!("{} has no partition {}", log.topic.name(), record.partition)));
        }
        bytes += record.value.len() + format::FRAME_HEADER;
    }
    if bytes > MAX_CALL {
        return Err(Error::TooLarge { bytes });
    }
    let state = log.state();
    if state.damage.is_empty() {
        return Ok(());
    }
    let hit = records.iter().find_map(|record| Some((record.partition, state.damage.get(&record.partition)?)));
    hit.map_or(Ok(()), |(partition, damage)| Err(damage.error(log.topic, partition)))
}

fn check_partition(topic: Topic, partition: u16) -> Result<(), Error> {
    if partition < PARTITIONS { Ok(()) } else { Err(Error::Format(format!("{} has no partition {partition}", topic.name()))) }
}

#[async_trait]
impl EventLog for EmbeddedLog {
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, Error> {
        let part = self.shared.part(topic);
        check_call(&part.log, &records)?;
        if records.is_empty() {
            return self.shared.health.check().map(|()| Vec::new());
        }
        let answered = part.queue.push(&part.log, records)?;
        answered.await.unwrap_or_else(|_| Err(Error::Closed("its writer has ended; the outcome of this append is unknown".to_owned())))
    }

    async fn subscribe(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, Error> {
        self.shared.health.check()?;
        if group.is_empty() || group.len() > 255 {
            return Err(Error::Format("a group's name has 1 to 255 bytes".to_owned()));
        }
        let log = Arc::clone(&self.shared.part(topic).log);
        {
            let mut state = log.state();
            let known = state.groups.entry(group.to_owned()).or_default();
            let is_new = !std::mem::replace(&mut known.holds, true);
            state.groups_changed |= is_new;
        }
        // Before anything is read: a group that was once subscribed holds retention back, whatever happens next.
        self.blocking(|shared| {
            let _one_at_a_time = shared.housekeeping();
            shared.save_groups()
        })
        .await?;
        let member = self.members.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(GroupReader::join(log, group, member)))
    }

    async fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        self.shared.health.check()?;
        check_partition(topic, partition)?;
        Ok(self.shared.part(topic).log.read(partition, from, max_bytes).await?.0)
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, Error> {
        self.shared.health.check()?;
        Ok(self.shared.part(topic).bounds())
    }

    async fn committed(&self, topic: Topic, group: &str) -> Result<Vec<Offset>, Error> {
        self.shared.health.check()?;
        let state = self.shared.part(topic).log.state();
        Ok(state.groups.get(group).map(|group| group.committed).unwrap_or_default().to_vec())
    }

    async fn forget_group(&self, topic: Topic, group: &str) -> Result<(), Error> {
        self.shared.health.check()?;
        {
            let mut state = self.shared.part(topic).log.state();
            let Some(known) = state.groups.get_mut(group) else { return Ok(()) };
            known.holds = false;
            known.committed = offsets::Offsets::default();
            if known.is_empty() {
                state.groups.remove(group);
            }
            state.groups_changed = true;
        }
        self.blocking(|shared| {
            let _one_at_a_time = shared.housekeeping();
            shared.save_groups()
        })
        .await
    }

    async fn retain(&self, now: Timestamp) -> Result<(), Error> {
        self.shared.health.check()?;
        self.blocking(move |shared| {
            let _one_at_a_time = shared.housekeeping();
            // What is removed must not be newer than what the file says was passed.
            shared.save_groups()?;
            Topic::ALL.into_iter().try_for_each(|topic| retention::retain(&shared.part(topic).log, now))
        })
        .await
    }

    async fn close(&self) -> Result<(), Error> {
        self.blocking(|shared| {
            let _one_at_a_time = shared.housekeeping();
            for topic in Topic::ALL {
                shared.part(topic).finish();
            }
            let saved = shared.save_groups();
            shared.health.stop("it was closed".to_owned());
            saved
        })
        .await
    }
}
