//! What the log deletes, as Kafka itself deletes nothing: what is older than the retention and was passed by every group. Used by `KafkaLog`; must never delete what a
//! group that ever subscribed has not passed.

use std::sync::Arc;

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset as At, TopicPartitionList};

use super::topics::{self, ASK, failed};
use super::{Inner, KafkaLog, blocking};
use crate::event::{PARTITIONS, Timestamp};
use crate::eventlog::{Bounds, Error, Offset, Topic};

impl KafkaLog {
    /// Deletes it from both topics.
    pub(super) async fn delete_passed(&self, now: Timestamp) -> Result<(), Error> {
        for topic in Topic::ALL {
            let inner = Arc::clone(&self.0);
            let deletable = blocking(move || inner.deletable(topic, now, &inner.listed_groups(topic)?)).await?;
            let mut list = TopicPartitionList::new();
            for (partition, offset) in deletable {
                let at = At::Offset(i64::try_from(offset).map_err(failed)?);
                list.add_partition_offset(self.0.name(topic), i32::from(partition), at).map_err(failed)?;
            }
            self.delete_below(&list).await?;
        }
        Ok(())
    }

    /// Deletes what lies below an offset, by partition.
    pub(super) async fn delete_below(&self, list: &TopicPartitionList) -> Result<(), Error> {
        if list.count() == 0 {
            return Ok(());
        }
        let deleted = self.0.admin.client().delete_records(list, &topics::options()).await.map_err(failed)?;
        deleted.elements().iter().try_for_each(|element| element.error().map_err(failed))
    }
}

impl Inner {
    /// The groups that ever subscribed to a topic, by their full names, as the brokers list them. Each lists those that it coordinates, and of a list that lacks a
    /// broker's librdkafka 2.12 may say that it is whole (`rd_kafka_ListGroups_resp_cb` keeps what the last of them answered).
    fn listed_groups(&self, topic: Topic) -> Result<Vec<String>, Error> {
        let all = self.admin.ask(|client| client.fetch_group_list(None, ASK)).map_err(failed)?;
        let prefix = self.group(topic, "");
        Ok(all.groups().iter().map(|group| group.name().to_owned()).filter(|name| name.starts_with(&prefix)).collect())
    }

    /// By partition the offset below which everything is older than `now` less the retention.
    fn aged(&self, topic: Topic, now: Timestamp) -> Result<Vec<Offset>, Error> {
        let age = i64::try_from(self.settings.retention.as_micros()).unwrap_or(i64::MAX);
        let before = now.micros().saturating_sub(age).div_euclid(1_000);
        let mut list = self.partitions(topic);
        list.set_all_offsets(At::Offset(before.max(0))).map_err(failed)?;
        let found = self.onlooker(&self.group(topic, "reads"))?.offsets_for_times(list, ASK).map_err(failed)?;
        let mut aged = vec![0; usize::from(PARTITIONS)];
        for element in found.elements() {
            let Some(slot) = usize::try_from(element.partition()).ok().and_then(|at| aged.get_mut(at)) else { continue };
            *slot = match element.offset() {
                At::Offset(offset) => u64::try_from(offset).unwrap_or(0),
                // No record is younger.
                At::End => Offset::MAX,
                _ => 0,
            };
        }
        Ok(aged)
    }

    /// Up to which offset each partition may be deleted: old, and passed by every group, those of [`super::Settings::groups`] even where they are not
    /// listed; nothing while brokers know nothing of one that is needed.
    pub(super) fn deletable(&self, topic: Topic, now: Timestamp, listed: &[String]) -> Result<Vec<(u16, Offset)>, Error> {
        // Before anything else is asked for: what is appended meanwhile is not old, though no younger record was found.
        let bounds = self.all_bounds(topic)?;
        let (mut groups, mut unknown) = (listed.to_vec(), None);
        for known in self.settings.groups.iter().filter(|known| known.topic == topic) {
            let group = self.group(topic, known.name);
            // Its own coordinator tells, or fails. Brokers may list one, too, whose offsets they forgot.
            if self.stored_offsets(topic, &group)?.iter().any(Option::is_some) {
                groups.extend(Some(group).filter(|group| !listed.contains(group)));
            } else if known.needed {
                unknown = Some(group);
            }
        }
        let mut least = self.aged(topic, now)?;
        if let Some(group) = unknown {
            if least.iter().zip(&bounds).any(|(aged, bounds)| bounds.next > bounds.start && *aged > bounds.start) {
                tracing::warn!(group, "nothing is deleted of its topic, though there is what is old: brokers know nothing of what this group read");
            }
            return Ok(Vec::new());
        }
        if groups.is_empty() {
            // A topic that nobody reads yet keeps everything: its readers are still to come.
            return Ok(Vec::new());
        }
        for group in groups {
            for (least, offset) in least.iter_mut().zip(self.offsets(topic, &group)?) {
                *least = offset.min(*least);
            }
        }
        let below = |((partition, least), bounds): ((u16, Offset), Bounds)| {
            (least.min(bounds.next) > bounds.start).then(|| (partition, least.min(bounds.next)))
        };
        Ok((0..PARTITIONS).zip(least).zip(bounds).filter_map(below).collect())
    }
}
