//! Reads outside of groups: for each partition that is read a consumer, kept while its reader goes on, so that a read in pieces connects and logs in once.
//! Used by `KafkaLog`; must never hand out a record that is not the next one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message;
use rdkafka::{Offset as At, TopicPartitionList};

use super::{Inner, bounds_of, check_range, failed, lost_connection};
use crate::eventlog::{Error, Offset, Stored, Topic};

/// How long a read waits for records that are known to be there.
const READ: Duration = Duration::from_secs(30);

/// How long a consumer is kept that nobody reads on with.
const KEEP: Duration = Duration::from_secs(60);

/// Consumers that stand where somebody read last.
#[derive(Default)]
pub(super) struct Readers(Mutex<BTreeMap<(Topic, u16), Reading>>);

/// A consumer of one partition.
pub(super) struct Reading {
    consumer: BaseConsumer,
    /// What the consumer gives next.
    next: Offset,
    /// Taken from it, and too large for the last read.
    held: Option<Stored>,
    used: Instant,
}

impl Reading {
    /// What the next read begins with.
    pub(super) fn at(&self) -> Offset {
        self.held.as_ref().map_or(self.next, |held| held.offset)
    }
}

impl Readers {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<(Topic, u16), Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that stands at an offset; one that stands elsewhere is of no more use.
    fn take(&self, of: (Topic, u16), from: Offset) -> Option<Reading> {
        let kept = self.lock().remove(&of);
        kept.filter(|reading| reading.at() == from)
    }

    fn keep(&self, of: (Topic, u16), reading: Reading) {
        let former = self.lock().insert(of, reading);
        // Closing one takes a moment; not under the lock.
        drop(former);
    }

    /// Closes those that nobody has read with for a while.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut idle = Vec::new();
        {
            let mut readers = self.lock();
            let keys: Vec<_> = readers.iter().filter(|(_, reading)| now.duration_since(reading.used) > KEEP).map(|(of, _)| *of).collect();
            idle.extend(keys.iter().filter_map(|of| readers.remove(of)));
        }
        drop(idle);
    }

    /// Closes all.
    pub(super) fn close(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }
}

impl Inner {
    /// See [`crate::eventlog::EventLog::read`]. Blocking.
    pub(super) fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        let bounds = bounds_of(&self.admin, self.name(topic), partition)?;
        check_range(topic, partition, from, bounds)?;
        if from == bounds.next {
            return Ok(Vec::new());
        }
        let of = (topic, partition);
        let mut reading = match self.readers.take(of, from) {
            Some(reading) => reading,
            None => self.reading_from(topic, partition, from)?,
        };
        let (mut found, mut bytes, asked) = (Vec::<Stored>::new(), 0, Instant::now());
        while from + (found.len() as u64) < bounds.next && (found.is_empty() || bytes < max_bytes) {
            let Some(stored) = next(topic, partition, &mut reading)? else {
                if asked.elapsed() > READ {
                    return Err(failed("a partition's leader does not answer"));
                }
                continue;
            };
            if !found.is_empty() && bytes + stored.value.len() > max_bytes {
                reading.held = Some(stored);
                break;
            }
            bytes += stored.value.len();
            found.push(stored);
        }
        reading.used = Instant::now();
        self.readers.keep(of, reading);
        Ok(found)
    }

    fn reading_from(&self, topic: Topic, partition: u16, from: Offset) -> Result<Reading, Error> {
        let mut config = self.onlooking(&self.group(topic, "reads"));
        // Each holds so much ahead of its reader, and is to ask for more as soon as that is taken.
        config.set("queued.max.messages.kbytes", "1024").set("fetch.queue.backoff.ms", "10");
        let consumer: BaseConsumer = config.create().map_err(failed)?;
        let mut list = TopicPartitionList::new();
        let at = At::Offset(i64::try_from(from).map_err(failed)?);
        list.add_partition_offset(self.name(topic), i32::from(partition), at).map_err(failed)?;
        consumer.assign(&list).map_err(failed)?;
        Ok(Reading { consumer, next: from, held: None, used: Instant::now() })
    }
}

/// The next record; None where none came for a moment.
fn next(topic: Topic, partition: u16, reading: &mut Reading) -> Result<Option<Stored>, Error> {
    if let Some(held) = reading.held.take() {
        return Ok(Some(held));
    }
    let message = match reading.consumer.poll(Duration::from_millis(100)) {
        None => return Ok(None),
        // As where the brokers have closed one that was idle: it connects again by itself, and goes on where it stands.
        Some(Err(error)) if lost_connection(&error) => return Ok(None),
        Some(message) => message.map_err(failed)?,
    };
    let offset = reading.next;
    if u64::try_from(message.offset()) != Ok(offset) {
        let what = format!("the brokers went on at {}", message.offset());
        return Err(Error::Damaged { topic: topic.name(), partition, offset, what });
    }
    reading.next += 1;
    let value = message.payload().map(Bytes::copy_from_slice).unwrap_or_default();
    Ok(Some(Stored { offset, value }))
}
