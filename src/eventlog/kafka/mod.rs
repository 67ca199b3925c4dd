//! The log on Apache Kafka: the same promises as the embedded one, kept by brokers. `Ok` of an append means acknowledged by all in-sync replicas
//! (`acks=all`, idempotent producer). Opened by the composition root through `eventlog::open`; must never let Kafka's own retention or offset reset
//! decide what a reader sees.
//!
//! * Partition numbers are Contrail's own, fixed at creation; Kafka's partitioner is not asked.
//! * Where reading starts is the reader's own stored offset; Kafka's group offsets serve retention and display alone, but where a reader has no
//!   store ([`Consumer::begin`]).
//! * Kafka removes nothing by itself (`retention.ms=-1`, checked): [`KafkaLog::retain`] deletes what is old and below every group's offset. A group
//!   registers by committing offset 0 when it first subscribes. (A broker forgets the offsets of a group that had no member for
//!   `offsets.retention.minutes`, 7 days by default: set that as long as a reader may be away.)
//! * A topic that was deleted and made anew under its name is another one, however far it has grown. Brokers forget with a topic what groups committed of
//!   it: a reader that goes on at a stored offset while they know of no reading of its group is refused.
//! * One call's records are not one transaction: after a failure, some of them may be there. The caller repeats all of them with the same ids. Of changes,
//!   what is there of a partition's records are the first of them.

mod admin;
mod adopt;
mod broadcast;
mod consumer;
mod member;
mod producer;
mod reach;
mod reads;
mod retention;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod topics;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::join_all;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset as At, TopicPartitionList};

use super::{Append, Bounds, Consumer, Error, EventLog, MAX_RECORD, Offset, Stored, Topic};
use crate::event::{PARTITIONS, Timestamp};
use admin::Admin;
pub use broadcast::{Broadcast, Heard, Tail};
use producer::{LINGER, Late, Producer, ROUND_LINGER};
use reads::Readers;
pub use settings::{KnownGroup, Security, Settings};
use topics::{ASK, Purpose, failed};

/// How long a look at one partition may take: scrapes and answers wait for it.
const LOOK: Duration = Duration::from_secs(3);

/// How long closing waits for members to leave their groups, and forgetting a group for its last one.
const LEAVE: Duration = Duration::from_secs(10);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// Goes with a commit that only registers a group: nobody of it has read yet.
const UNREAD: &str = "unread";

/// The log on Kafka.
pub struct KafkaLog(Arc<Inner>);

struct Inner {
    client: ClientConfig,
    settings: Settings,
    names: [String; 2],
    admin: Arc<Admin>,
    /// Of events: what is late is sent again, with the same ids.
    loose: Producer,
    /// Of changes: whoever reads an object's changes takes one that comes behind a later one for a repeat.
    gapless: Producer,
    members: Mutex<Vec<Subscribed>>,
    readers: Readers,
    closed: AtomicBool,
}

/// A member of a group in this process.
struct Subscribed {
    group: String,
    member: Weak<consumer::Shared>,
    ended: consumer::Ended,
}

/// Runs something that blocks where that is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(error)))
}

/// Logs an error that librdkafka deals with itself. Of brokers that are away it tells in its own log lines, once, and here for each client and try.
fn tell(error: &KafkaError, reason: &str) {
    if lost_connection(error) {
        tracing::debug!(%error, reason, "kafka");
    } else {
        tracing::warn!(%error, reason, "kafka");
    }
}

/// Whether there was no connection to ask by: no broker is known or reached, or the connection broke.
fn lost_connection(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure))
}

/// Ends a client on a thread of its own, once nobody uses it any longer: that blocks.
fn retire<C: Send + Sync + 'static>(client: Arc<C>, first: impl FnOnce(&C) + Send + 'static) {
    let ending = move || {
        first(&client);
        while Arc::strong_count(&client) > 1 {
            std::thread::sleep(PAUSE);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kafka-retired".into()).spawn(ending) {
        tracing::error!(%error, "no thread for a kafka client's end");
    }
}

/// A partition's bounds as its leader tells them; asks again while it has none, as for a moment after its topic was made. Never by a client that reads: there the
/// question waits behind the fetch under way, which the leader holds back for new records. Blocking.
fn bounds_of(admin: &Admin, name: &str, partition: u16) -> Result<Bounds, Error> {
    let asked = Instant::now();
    loop {
        match admin.ask(|client| client.fetch_watermarks(name, i32::from(partition), LOOK)) {
            Ok((start, next)) => return Ok(Bounds { start: u64::try_from(start).map_err(failed)?, next: u64::try_from(next).map_err(failed)? }),
            Err(error) if lacks_leader(&error) && asked.elapsed() < LOOK => {
                // A client that does not read learns of leaders only now and then: one that it once found away is so until it asks.
                drop(admin.ask(|client| client.fetch_metadata(Some(name), LOOK)));
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Whether a partition has no leader, or none that the client knows of (librdkafka then calls the partition unknown).
fn lacks_leader(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable | RDKafkaErrorCode::UnknownPartition)
    )
}

/// Asks again while a group's coordinator is being found, moves or loads: it answers so for a moment after a broker's start. Blocking.
fn of_group<T>(mut ask: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let asked = Instant::now();
    loop {
        match ask() {
            Err(error) if moves(&error) && asked.elapsed() < ASK => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
}

fn moves(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::NotCoordinator | RDKafkaErrorCode::CoordinatorNotAvailable | RDKafkaErrorCode::CoordinatorLoadInProgress)
    )
}

fn check_range(topic: Topic, partition: u16, offset: Offset, Bounds { start, next }: Bounds) -> Result<(), Error> {
    if (start..=next).contains(&offset) { Ok(()) } else { Err(Error::OutOfRange { topic: topic.name(), partition, offset, start, next }) }
}

impl KafkaLog {
    /// Connects, and makes or checks the topics.
    ///
    /// # Errors
    /// [`Error::Format`] for a wrong URL or setting, a login or encryption that the brokers refuse, or for topics that Contrail must not use;
    /// [`Error::Unavailable`] where the brokers do not answer.
    pub async fn open(url: &str, settings: Settings) -> Result<Self, Error> {
        let brokers = settings::brokers(url)?;
        let client = settings::client(&brokers, &settings)?;
        let reached = client.clone();
        blocking(move || reach::reach(&reached)).await?;
        let admin = Arc::new(Admin::new(client.clone())?);
        for name in &names(&settings) {
            topics::ensure(&admin.client(), name, Purpose::Log, &settings).await?;
        }
        Self::over(client, admin, settings)
    }

    /// The log over topics that are as they must be.
    fn over(client: ClientConfig, admin: Arc<Admin>, settings: Settings) -> Result<Self, Error> {
        let names = names(&settings);
        let (loose, gapless) = (Producer::new(&client, LINGER, Late::Dropped)?, Producer::new(&client, ROUND_LINGER, Late::Kept)?);
        let (members, readers) = (Mutex::default(), Readers::default());
        Ok(Self(Arc::new(Inner { client, settings, names, admin, loose, gapless, members, readers, closed: AtomicBool::new(false) })))
    }
}

/// The topics' names at the brokers.
fn names(settings: &Settings) -> [String; 2] {
    Topic::ALL.map(|topic| format!("{}.{}", settings.prefix, topic.name()))
}

impl Inner {
    fn name(&self, topic: Topic) -> &str {
        let [events, changes] = &self.names;
        match topic {
            Topic::Events => events,
            Topic::Changes => changes,
        }
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed("the log was closed".into())) } else { Ok(()) }
    }

    async fn append(&self, producer: &Producer, topic: Topic, records: &[Append]) -> Result<Vec<Offset>, Error> {
        self.check_open()?;
        if let Some(bytes) = records.iter().map(|record| record.value.len()).find(|bytes| *bytes > MAX_RECORD) {
            return Err(Error::TooLarge { bytes });
        }
        producer.append(self.name(topic), records).await
    }

    fn group(&self, topic: Topic, group: &str) -> String {
        format!("{}.{group}", self.name(topic))
    }

    /// All partitions of a topic.
    fn partitions(&self, topic: Topic) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(self.name(topic), 0, i32::from(PARTITIONS) - 1);
        list
    }

    /// A consumer of a group that takes no part in it.
    fn onlooker(&self, group: &str) -> Result<BaseConsumer, Error> {
        self.onlooking(group).create().map_err(failed)
    }

    /// What makes a consumer one.
    fn onlooking(&self, group: &str) -> ClientConfig {
        let mut config = self.client.clone();
        config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "error");
        config
    }

    fn all_bounds(&self, topic: Topic) -> Result<Vec<Bounds>, Error> {
        (0..PARTITIONS).map(|partition| bounds_of(&self.admin, self.name(topic), partition)).collect()
    }

    /// What the brokers have of a group, by partition; None where it never committed.
    fn stored_offsets(&self, topic: Topic, group: &str) -> Result<Vec<Option<Offset>>, Error> {
        let consumer = self.onlooker(group)?;
        let found = of_group(|| consumer.committed_offsets(self.partitions(topic), ASK)).map_err(failed)?;
        let mut offsets = vec![None; usize::from(PARTITIONS)];
        for element in found.elements() {
            element.error().map_err(failed)?;
            if let (At::Offset(offset), Some(slot)) = (element.offset(), usize::try_from(element.partition()).ok().and_then(|at| offsets.get_mut(at)))
            {
                *slot = u64::try_from(offset).ok();
            }
        }
        Ok(offsets)
    }

    /// The same with what members in this process have said since.
    fn offsets(&self, topic: Topic, group: &str) -> Result<Vec<Offset>, Error> {
        let stored = self.stored_offsets(topic, group)?;
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let here: Vec<_> =
            members.iter().filter(|subscribed| subscribed.group == group).filter_map(|subscribed| subscribed.member.upgrade()).collect();
        let said = |partition: u16| here.iter().find_map(|member| member.said(partition));
        Ok((0..PARTITIONS).zip(stored).map(|(partition, stored)| said(partition).or(stored).unwrap_or(0)).collect())
    }

    /// Makes a group known, so that it holds retention back from now on; as one that has read, or that has yet to.
    fn register(&self, topic: Topic, group: &str, has_read: bool) -> Result<(), Error> {
        if self.stored_offsets(topic, group)?.iter().any(Option::is_some) {
            return Ok(());
        }
        let mut list = self.partitions(topic);
        list.set_all_offsets(At::Offset(0)).map_err(failed)?;
        if !has_read {
            list.elements().iter_mut().for_each(|element| element.set_metadata(UNREAD));
        }
        let consumer = self.onlooker(group)?;
        match of_group(|| consumer.commit(&list, CommitMode::Sync)) {
            // It has members already, and one of them registered it.
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::IllegalGeneration)) => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// Two members of one name fence each other: the former one of this process has to be gone first.
    fn wait_for_former(&self, group: &str) -> Result<(), Error> {
        let asked = Instant::now();
        loop {
            let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.retain(|subscribed| subscribed.ended.try_recv() != Err(TryRecvError::Disconnected));
            let Some(former) = members.iter().find(|subscribed| subscribed.group == group) else { return Ok(()) };
            if former.member.upgrade().is_some_and(|member| !member.is_stopped()) {
                return Err(Error::Format(format!("group {group} has a reader in this process already, and kafka.instance lets it have one")));
            }
            drop(members);
            if asked.elapsed() > LEAVE {
                return Err(failed(format!("the former reader of group {group} has not left yet")));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, Error> {
        let producer = match topic {
            Topic::Events => &self.0.loose,
            Topic::Changes => &self.0.gapless,
        };
        self.0.append(producer, topic, &records).await
    }

    async fn subscribe(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, Error> {
        self.0.check_open()?;
        let (inner, group) = (Arc::clone(&self.0), self.0.group(topic, group));
        let member = blocking(move || {
            inner.register(topic, &group, false)?;
            let mut config = inner.client.clone();
            if !inner.settings.instance.is_empty() {
                inner.wait_for_former(&group)?;
                config.set("group.instance.id", &inner.settings.instance);
            }
            let (member, ended) = consumer::start(&config, &inner.admin, (topic, inner.name(topic)), &group, inner.settings.session_timeout)?;
            let mut members = inner.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.retain(|subscribed| subscribed.ended.try_recv() != Err(TryRecvError::Disconnected));
            members.push(Subscribed { group, member: Arc::downgrade(&member), ended });
            Ok(member)
        });
        Ok(Box::new(consumer::Reader(member.await?)))
    }

    async fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.read(topic, partition, from, max_bytes)).await
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.all_bounds(topic)).await
    }

    async fn ends(&self, topic: Topic) -> Vec<Option<Offset>> {
        // At once: a partition whose leader does not answer holds up no other.
        let asked = (0..PARTITIONS).map(|partition| {
            let inner = Arc::clone(&self.0);
            blocking(move || bounds_of(&inner.admin, inner.name(topic), partition))
        });
        join_all(asked).await.into_iter().map(|bounds| Some(bounds.ok()?.next)).collect()
    }

    async fn committed(&self, topic: Topic, group: &str) -> Result<Vec<Offset>, Error> {
        let (inner, group) = (Arc::clone(&self.0), self.0.group(topic, group));
        blocking(move || inner.offsets(topic, &group)).await
    }

    async fn forget_group(&self, topic: Topic, group: &str) -> Result<(), Error> {
        let (name, asked) = (self.0.group(topic, group), Instant::now());
        let inner = Arc::clone(&self.0);
        let group = name.clone();
        // Not asked for one that is not there: librdkafka 2.12 may abort where a coordinator answers that after the request's time. Nor for one that has members
        // and stored nothing: it is forgotten with them.
        if blocking(move || inner.stored_offsets(topic, &group)).await?.iter().all(Option::is_none) {
            return Ok(());
        }
        loop {
            let answers = self.0.admin.client().delete_groups(&[&name], &topics::options()).await.map_err(failed)?;
            match answers.into_iter().next() {
                Some(Err((_, code))) if asked.elapsed() < LEAVE && (code == RDKafkaErrorCode::NonEmptyGroup || moves(&KafkaError::AdminOp(code))) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Some(Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound))) => return Ok(()),
                Some(Err((_, code))) => return Err(failed(format!("group {name}: {code}"))),
                None => return Err(failed("no answer to forgetting a group")),
            }
        }
    }

    async fn retain(&self, now: Timestamp) -> Result<(), Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            inner.readers.close_idle(Instant::now());
            Ok(())
        })
        .await?;
        self.delete_passed(now).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.closed.store(true, Ordering::SeqCst);
        let members = std::mem::take(&mut *self.0.members.lock().unwrap_or_else(PoisonError::into_inner));
        for member in members.iter().filter_map(|subscribed| subscribed.member.upgrade()) {
            member.stop(Error::Closed("the log was closed".into()));
        }
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let until = Instant::now() + LEAVE;
            for Subscribed { group, ended, .. } in members {
                if ended.recv_timeout(until.saturating_duration_since(Instant::now())) == Err(RecvTimeoutError::Timeout) {
                    tracing::warn!(group, "a member of a group did not leave in time");
                }
            }
            inner.readers.close();
            let until = Instant::now() + producer::TIMEOUT;
            let (loose, gapless) = (inner.loose.flush(until), inner.gapless.flush(until));
            loose.and(gapless)
        })
        .await
    }
}
