//! What librdkafka tells a member of its group while it is polled: partitions given and taken, statistics, what became of commits. Called by librdkafka within
//! polls of [`super::run`]; must never give a partition back before its reader has dealt with that, or had its time.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Offset as At, Statistics, TopicPartitionList};

use super::{Shared, commit};

/// Receives what librdkafka tells of the group.
pub(super) struct Group(pub(super) Arc<Shared>);

impl ClientContext for Group {
    fn error(&self, error: KafkaError, reason: &str) {
        super::super::tell(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let mut member = self.0.member();
        if let Some(group) = &statistics.cgrp {
            // See `rd_kafka_cgrp_state_names`.
            member.heard_group(group.state == "up", Instant::now());
        }
        let Some(topic) = statistics.topics.get(&self.0.name) else { return };
        for (partition, told) in &topic.partitions {
            let Ok(partition) = u16::try_from(*partition) else { continue };
            if let Ok(end) = u64::try_from(told.hi_offset) {
                member.heard_end(partition, end);
            }
            member.heard_fetched(partition, told.fetch_state != "none");
        }
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: Code, list: &mut TopicPartitionList) {
        let partitions: Vec<u16> = list.elements().iter().filter_map(|element| u16::try_from(element.partition()).ok()).collect();
        let done = if code == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, list, partitions)
        } else {
            self.revoke(consumer, list, partitions)
        };
        if let Err(error) = done {
            tracing::error!(%error, topic = self.0.name, "kafka rebalance");
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, topic = self.0.name, "kafka commit; it is tried again");
            self.0.member().unsaid = true;
        }
    }
}

impl Group {
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList, partitions: Vec<u16>) -> Result<(), KafkaError> {
        // Where reading starts is the reader's to say; until then nothing is fetched.
        list.set_all_offsets(At::Beginning)?;
        consumer.incremental_assign(list)?;
        consumer.pause(list)?;
        if !partitions.is_empty() {
            self.0.member().assigned(partitions);
            self.0.wake.notify_one();
        }
        Ok(())
    }

    /// Gives partitions back once the reader has dealt with it, or has had its time.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList, partitions: Vec<u16>) -> Result<(), KafkaError> {
        let lost = consumer.assignment_lost();
        self.0.member().revoked(partitions.clone());
        self.0.wake.notify_one();
        if !lost {
            let (member, waited) = self
                .0
                .reader
                .wait_timeout_while(self.0.member(), self.0.drain, |member| !member.is_revoked())
                .unwrap_or_else(PoisonError::into_inner);
            drop(member);
            if waited.timed_out() {
                tracing::warn!(topic = self.0.name, ?partitions, "a reader did not come back in time; its partitions go to others all the same");
            }
            commit(consumer, &self.0, CommitMode::Sync);
        }
        self.0.member().said.retain(|partition, _| !partitions.contains(partition));
        consumer.incremental_unassign(list)
    }
}
