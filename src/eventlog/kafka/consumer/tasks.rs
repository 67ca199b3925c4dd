//! What a member's thread does for its reader at the brokers: seeks, pauses, reads on, looks. Called by [`super::run`] between polls; each may take some
//! seconds, and is tried again.

use std::time::{Duration, Instant};

use rdkafka::Offset as At;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::TopicPartitionListElem;

use super::super::member::Task;
use super::super::topics::failed;
use super::super::{LOOK, UNREAD, check_range, lost_connection};
use super::{Group, Shared};
use crate::eventlog::{Bounds, Error, Offset};

/// How often it is asked whether a commit has arrived.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// False where it is to be tried again.
pub(super) fn perform(consumer: &BaseConsumer<Group>, shared: &Shared, task: Task) -> bool {
    let done = match task {
        Task::Pause(partition) => consumer.pause(&shared.list([partition])).map_err(failed),
        Task::ReadOn(partition, offset) => read_from(consumer, shared, partition, offset),
        Task::Seek(partition, offset) => seek(consumer, shared, partition, offset),
        Task::Begin(partition, offset) => begin(consumer, shared, partition, offset),
        Task::Look(partition, offset) => look(consumer, shared, partition, offset),
    };
    match done {
        Ok(()) => true,
        Err(error @ (Error::OutOfRange { .. } | Error::Format(_))) => {
            shared.member().fail(task.partition(), error);
            shared.wake.notify_one();
            true
        }
        Err(error) => {
            // An assignment under way, or a broker that does not answer.
            tracing::debug!(%error, ?task, topic = shared.name, "kafka; it is tried again");
            false
        }
    }
}

/// Checks a sought offset, and has the partition read from there.
fn seek(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, offset: Offset) -> Result<(), Error> {
    let bounds = shared.bounds(partition)?;
    if let Err(outside) = check_range(shared.topic, partition, offset, bounds) {
        disown(consumer, shared, partition, bounds)?;
        return Err(outside);
    }
    if let Err(another) = check_topic(consumer, shared, partition, offset) {
        if let Error::Format(_) = another {
            shared.member().disown(partition);
        }
        return Err(another);
    }
    read_sought(consumer, shared, partition, offset, bounds)
}

/// The same of a place that the group sets anew.
fn begin(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, offset: Offset) -> Result<(), Error> {
    let bounds = shared.bounds(partition)?;
    check_range(shared.topic, partition, offset, bounds)?;
    read_sought(consumer, shared, partition, offset, bounds)
}

fn read_sought(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, offset: Offset, bounds: Bounds) -> Result<(), Error> {
    read_from(consumer, shared, partition, offset)?;
    shared.member().sought(partition, offset, bounds.next);
    Ok(())
}

/// What the group committed may be of a topic that was made anew while it read: where it lies outside this one, the brokers are told so, before this one has
/// grown past it.
pub(super) fn disown(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, bounds: Bounds) -> Result<(), Error> {
    let found = consumer.committed_offsets(shared.list([partition]), LOOK).map_err(failed)?;
    found.elements().iter().try_for_each(TopicPartitionListElem::error).map_err(failed)?;
    for element in found.elements() {
        let At::Offset(committed) = element.offset() else { continue };
        if !u64::try_from(committed).is_ok_and(|committed| (bounds.start..=bounds.next).contains(&committed)) {
            shared.member().disown(partition);
        }
    }
    Ok(())
}

/// Has the member's own client ask for the partitions' leaders, which it may not do by itself. True where it finds no broker to ask, while another client was
/// just answered (see [`super::super::admin`]).
fn ask_for_leaders(consumer: &BaseConsumer<Group>, shared: &Shared) -> bool {
    consumer.fetch_metadata(Some(&shared.name), LOOK).is_err_and(|error| lost_connection(&error))
}

/// Looks why the group was not reached for long. Where the brokers answer another client, this one is to be replaced: at once if it finds none of them, else once
/// it was waited for in vain.
pub(super) fn look_for_group(consumer: &BaseConsumer<Group>, shared: &Shared) {
    let others = shared.admin.ask(|client| client.fetch_metadata(Some(&shared.name), LOOK));
    if others.is_ok_and(|metadata| !metadata.brokers().is_empty()) {
        let finds_none = ask_for_leaders(consumer, shared);
        let mut member = shared.member();
        member.wedged |= member.count_astray() || finds_none;
    }
}

/// Reads on where a partition that nothing came of is not at its end.
fn look(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, offset: Offset) -> Result<(), Error> {
    let end = shared.bounds(partition)?.next;
    if end > offset {
        tracing::warn!(topic = shared.name, partition, offset, end, "a partition had records and none came; it is read on");
        let finds_none = ask_for_leaders(consumer, shared);
        let mut member = shared.member();
        member.heard_end(partition, end);
        member.wedged |= member.count_stall(partition) || finds_none;
        drop(member);
        read_from(consumer, shared, partition, offset)?;
    }
    Ok(())
}

/// Whether a sought offset is one of this topic: from the start on it is, and the brokers are told so; later, they must know that the group read here. With a
/// topic they forget what groups committed of it.
fn check_topic(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, offset: Offset) -> Result<(), Error> {
    if has_read(consumer, shared, partition)? {
        return Ok(());
    }
    if offset == 0 {
        let mut list = shared.list([partition]);
        list.set_all_offsets(At::Offset(0)).map_err(failed)?;
        // One that is waited for has no bound of its own.
        consumer.commit(&list, CommitMode::Async).map_err(failed)?;
        let committed = Instant::now();
        while committed.elapsed() < LOOK && !shared.is_stopped() {
            if has_read(consumer, shared, partition)? {
                return Ok(());
            }
            std::thread::sleep(ASK_AGAIN);
        }
        return Err(failed("the brokers do not yet know where reading began"));
    }
    let Shared { name, group, .. } = shared;
    Err(Error::Format(format!(
        "kafka topic `{name}` partition {partition}: its reader stands at {offset}, and the brokers know nothing of what group `{group}` read. Either the topic \
         was deleted and made anew, and the stores belong to the former one; or the group was away for longer than `offsets.retention.minutes`. Only if it \
         is the same topic: stop every process of that role, run `kafka-consumer-groups.sh --bootstrap-server HOST:PORT --group {group} --topic {name} \
         --reset-offsets --to-earliest --execute` (with `--command-config FILE` where the brokers want TLS or a login), and start them again"
    )))
}

/// Whether the brokers know that the group read a partition.
fn has_read(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16) -> Result<bool, Error> {
    let found = consumer.committed_offsets(shared.list([partition]), LOOK).map_err(failed)?;
    found.elements().iter().try_for_each(TopicPartitionListElem::error).map_err(failed)?;
    Ok(found.elements().iter().any(|element| matches!(element.offset(), At::Offset(_)) && element.metadata() != UNREAD))
}

fn read_from(consumer: &BaseConsumer<Group>, shared: &Shared, partition: u16, offset: Offset) -> Result<(), Error> {
    let mut list = shared.list([partition]);
    list.set_all_offsets(At::Offset(i64::try_from(offset).map_err(failed)?)).map_err(failed)?;
    consumer.resume(&list).map_err(failed)?;
    let sought = consumer.seek_partitions(list.clone(), LOOK).map_err(failed)?;
    match sought.elements().iter().try_for_each(TopicPartitionListElem::error) {
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::State) => {
            // It is not fetched at all: librdkafka gave it up where its leader once called the offset outside the log.
            tracing::warn!(topic = shared.name, partition, offset, "a partition was no longer fetched; it is read anew");
            drop(consumer.incremental_unassign(&list));
            consumer.incremental_assign(&list).map_err(failed)
        }
        done => done.map_err(failed),
    }
}
