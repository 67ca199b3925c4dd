//! The log: the only source of truth, and the only place where write side and read sides meet. Ingest and the router append,
//! router, keeper and archiver read. Must never hand out a record that is not durable, nor skip one silently.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::event::PARTITIONS;

pub mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod learning;
pub mod places;

#[cfg(test)]
pub(crate) mod contract;

/// Position of a record in one partition of one topic: dense, from 0.
pub type Offset = u64;

/// The two topics. Each has [`crate::event::PARTITIONS`] partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Events as ingest took them.
    Events,
    /// What events and API clients do to objects.
    Changes,
}

impl Topic {
    /// Both, in the data's order.
    pub const ALL: [Self; 2] = [Self::Events, Self::Changes];

    /// Its name on disk, on the wire and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Changes => "changes",
        }
    }
}

/// One record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Its partition.
    pub partition: u16,
    /// Its bytes, at most [`MAX_RECORD`].
    pub value: Bytes,
}

/// Largest record the log takes, in bytes: an event of 1 MiB with its envelope, or what it does to one object.
pub const MAX_RECORD: usize = 2 << 20;

/// One durable record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in its partition.
    pub offset: Offset,
    /// Its bytes.
    pub value: Bytes,
}

/// What one partition holds now: offsets `start..next`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Lowest offset still kept (inclusive).
    pub start: Offset,
    /// The offset the next durable record will get (exclusive end).
    pub next: Offset,
}

/// What a [`Consumer`] hands its room.
#[derive(Debug)]
pub enum Delivery {
    /// This reader owns these partitions from now on. Nothing of them is delivered before [`Consumer::seek`] was called for each.
    Assigned(Vec<u16>),
    /// This reader no longer owns these; what it holds of them unstored must be dropped, its successor reads it again.
    Revoked(Vec<u16>),
    /// The next records of one partition, in offset order without gaps, all durable. Never empty.
    Records {
        /// Where they are from.
        partition: u16,
        /// The records.
        records: Vec<Stored>,
        /// The partition's durable end as last heard, at least the end of these records (embedded: when they were read; Kafka: at most about a second
        /// old). For progress and lag; what must be exact asks [`EventLog::bounds`].
        next: Offset,
    },
    /// This partition cannot be read on (damage, an offset outside the log); the others go on. Delivered once per seek.
    Failed {
        /// Which.
        partition: u16,
        /// Why.
        error: Error,
    },
}

/// A member of a consumer group of one topic. Dropping it leaves the group.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next delivery; at most `max_bytes` of records in it, though always at least one record. Fair: no partition waits
    /// for ever while others have records. Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// [`Error::Closed`] when the log stops, [`Error::Unavailable`] when nothing can be told at present (try again).
    async fn next(&mut self, max_bytes: usize) -> Result<Delivery, Error>;

    /// Reads a partition from `offset` (inclusive) on, from the next delivery. An offset outside the partition's bounds (`start..=next`)
    /// is answered by [`Delivery::Failed`] with [`Error::OutOfRange`]: never a silent skip. Ignored for a partition not owned.
    fn seek(&mut self, partition: u16, offset: Offset);

    /// Stops deliveries of a partition until [`Consumer::resume`]: backpressure. The log is the buffer.
    fn pause(&mut self, partition: u16);

    /// Takes a paused partition up again where it stopped.
    fn resume(&mut self, partition: u16);

    /// Says that everything below `offset` is durably reflected in this group's own store. The log uses it for retention
    /// and display only: where reading starts is the room's own stored offset, given to [`Consumer::seek`]. It may be ignored of a partition
    /// that is not read.
    fn commit(&mut self, partition: u16, offset: Offset);

    /// [`Consumer::seek`] and [`Consumer::commit`] in one, of a group that has no store of its own: the offset that the log knows of it is its place, and it may set
    /// that anew. An offset outside the bounds is answered as a seek's is, and the log knows it all the same.
    fn begin(&mut self, partition: u16, offset: Offset) {
        self.seek(partition, offset);
        self.commit(partition, offset);
    }
}

/// An append-only log of two topics.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Appends records; `Ok` means each is durable (embedded: written and `fdatasync`ed; Kafka: acknowledged by all in-sync
    /// replicas), and gives their offsets in the order given. Embedded, the records of one call are recovered whole or not at all.
    /// Records of one call to one partition get ascending, not necessarily adjacent offsets. Calls of one caller that do not
    /// overlap keep their order.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::TooLarge`], [`Error::Damaged`] (of a partition named): nothing was appended, nothing will be.
    /// [`Error::Unavailable`]: any part of it may have been or may yet be appended; repeat all with the same ids.
    /// [`Error::Closed`]: the log has stopped (or a sync failed, which stops it for good).
    ///
    /// Dropping the future does not undo the append.
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, Error>;

    /// Joins `group` as a reader of `topic`. Every partition is owned by exactly one live member of a group. A group that has ever
    /// subscribed holds retention back until it commits; [`EventLog::forget_group`] ends that.
    async fn subscribe(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, Error>;

    /// Reads one partition from `from` on, outside any group, for audits and rebuilds: durable records, at most `max_bytes` of them
    /// (at least one), empty at the end. [`Error::OutOfRange`] outside the bounds, [`Error::Damaged`] at a bad frame.
    async fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, Error>;

    /// The bounds of every partition of a topic, by partition number.
    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, Error>;

    /// Where every partition of a topic ends, by partition number; None where that cannot be told at present. For metrics, which show what is known.
    async fn ends(&self, topic: Topic) -> Vec<Option<Offset>> {
        match self.bounds(topic).await {
            Ok(bounds) => bounds.iter().map(|bounds| Some(bounds.next)).collect(),
            Err(_) => vec![None; usize::from(PARTITIONS)],
        }
    }

    /// The offset `group` last committed of every partition of a topic, by partition number; 0 where none.
    async fn committed(&self, topic: Topic, group: &str) -> Result<Vec<Offset>, Error>;

    /// Forgets a group, so that it no longer holds retention back.
    async fn forget_group(&self, topic: Topic, group: &str) -> Result<(), Error>;

    /// Removes what is older than the retention age and below every group's committed offset; nothing of a topic that no group ever subscribed to. Called on a
    /// timer by the log's owner.
    async fn retain(&self, now: crate::event::Timestamp) -> Result<(), Error>;

    /// Stops taking appends, makes everything accepted durable, seals the log. Idempotent.
    async fn close(&self) -> Result<(), Error>;
}

/// Settings of whichever backend a URL names.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Of `embedded`.
    pub embedded: embedded::Settings,
    /// Of `kafka://`.
    #[cfg(feature = "kafka")]
    pub kafka: kafka::Settings,
}

/// Opens the log that `url` names: `embedded`, with its files in `dir` (made if missing; one process at a time), or `kafka://host:port,...`.
///
/// # Errors
/// [`Error::Format`] for an unknown URL, files of a later version, or topics that must not be used; [`Error::Unavailable`] when the disk refuses or the
/// brokers do not answer. Damage is no error here: its partitions refuse, the others serve.
pub async fn open(url: &str, dir: &Path, settings: Settings, clock: crate::event::Clock) -> Result<Arc<dyn EventLog>, Error> {
    if url == "embedded" {
        let dir = dir.to_owned();
        let opening = tokio::task::spawn_blocking(move || embedded::EmbeddedLog::open(&dir, &settings.embedded, &clock));
        return match opening.await {
            Ok(log) => Ok(Arc::new(log?)),
            Err(error) => Err(Error::Unavailable(format!("opening the log stopped: {error}"))),
        };
    }
    #[cfg(feature = "kafka")]
    if url.starts_with("kafka:") {
        return Ok(Arc::new(kafka::KafkaLog::open(url, settings.kafka).await?));
    }
    Err(Error::Format(format!("no log is known by `{url}`; this build has: {KNOWN}")))
}

#[cfg(feature = "kafka")]
const KNOWN: &str = "embedded, kafka://host:port,...";
#[cfg(not(feature = "kafka"))]
const KNOWN: &str = "embedded";

/// What can go wrong with the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The disk bound or the bounded queue is reached.
    #[error("the log is full: {0}")]
    Full(&'static str),
    /// A record over [`MAX_RECORD`].
    #[error("record of {bytes} bytes is larger than the log takes ({MAX_RECORD})")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Synced data changed on disk: this partition refuses, others serve.
    #[error("{topic} partition {partition} is damaged at offset {offset}: {what}")]
    Damaged {
        /// The topic's name.
        topic: &'static str,
        /// Which partition.
        partition: u16,
        /// The first offset that cannot be read.
        offset: Offset,
        /// What was found.
        what: String,
    },
    /// An offset outside what the log holds.
    #[error(
        "{topic} partition {partition}: offset {offset} is outside {start}..={next}; its reader's store and this log do not belong together, or the log was cut"
    )]
    OutOfRange {
        /// The topic's name.
        topic: &'static str,
        /// Which partition.
        partition: u16,
        /// What was asked for.
        offset: Offset,
        /// Lowest kept.
        start: Offset,
        /// The end.
        next: Offset,
    },
    /// Try again; an append's outcome is unknown.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The log has stopped.
    #[error("the log is closed: {0}")]
    Closed(String),
    /// A file of a later version, or one that is no log.
    #[error("{0}")]
    Format(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Unavailable(_))
    }
}
