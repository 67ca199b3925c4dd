//! Makes fresh topics go on where another log stands, so that every offset that is stored keeps its meaning. Called by the composition root while
//! nothing else uses the topics.
//!
//! Kafka numbers records from 0 on and gives nobody a say in it. So a partition is filled with empty records up to where the other log begins; these
//! are deleted, and what follows is appended as it is.

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset as At, TopicPartitionList};

use super::{Append, Error, EventLog, KafkaLog, Offset, Topic, blocking, failed, of_group};
use crate::event::PARTITIONS;

/// Empty records of one call.
const FILL: u64 = 50_000;

impl KafkaLog {
    /// Makes each partition of a topic begin at an offset, by partition; `told` hears how many records that took so far. One that goes beyond it is left as it
    /// is: an earlier call was cut short after it. Empty records that are there are taken for such a call's.
    ///
    /// # Errors
    /// As [`EventLog::append`]; may be called again.
    pub async fn begin_at(&self, topic: Topic, starts: &[Offset], told: &(dyn Fn(u64) + Sync)) -> Result<(), Error> {
        let mut filled = 0;
        let bounds = self.bounds(topic).await?;
        let mut list = TopicPartitionList::new();
        for ((partition, start), bounds) in (0..PARTITIONS).zip(starts).zip(bounds) {
            let mut next = bounds.next;
            while next < *start {
                let count = (start - next).min(FILL);
                let records = (0..count).map(|_| Append { partition, value: Bytes::new() }).collect();
                self.append_gapless(topic, records).await?;
                next += count;
                filled += count;
                told(filled);
            }
            if bounds.start < *start {
                let at = At::Offset(i64::try_from(*start).map_err(failed)?);
                list.add_partition_offset(self.0.name(topic), i32::from(partition), at).map_err(failed)?;
            }
        }
        self.delete_below(&list).await
    }

    /// As [`EventLog::append`]. But whatever becomes of this call and of the process, what is there of its records are the first of each partition: whoever
    /// finds some of them may go on behind the last.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    pub async fn append_gapless(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, Error> {
        self.0.append(&self.0.gapless, topic, &records).await
    }

    /// Makes a group known that stands somewhere in the log already, by what its room has stored.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; may be called again.
    pub async fn adopt_group(&self, topic: Topic, group: &str) -> Result<(), Error> {
        let (inner, group) = (Arc::clone(&self.0), self.0.group(topic, group));
        blocking(move || inner.register(topic, &group, true)).await
    }

    /// The same of a group that has no other place than what the log knows of it: by partition where it stands.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; may be called again.
    pub async fn adopt_group_at(&self, topic: Topic, group: &str, places: Vec<Offset>) -> Result<(), Error> {
        let (inner, group) = (Arc::clone(&self.0), self.0.group(topic, group));
        blocking(move || {
            let mut list = TopicPartitionList::new();
            for (partition, place) in (0..PARTITIONS).zip(places) {
                let at = At::Offset(i64::try_from(place).map_err(failed)?);
                list.add_partition_offset(inner.name(topic), i32::from(partition), at).map_err(failed)?;
            }
            let consumer = inner.onlooker(&group)?;
            of_group(|| consumer.commit(&list, CommitMode::Sync)).map_err(failed)
        })
        .await
    }
}
