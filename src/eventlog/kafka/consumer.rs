//! A member of a Kafka consumer group. One thread polls, for as long as the member lives; the reader meets it at [`Member`]. (Streams over partition
//! queues can lose a wake-up and leave a partition behind for ever: librdkafka's wrappers #638, #665, #840.) Group protocol: classic, cooperative-sticky.

mod group;
mod tasks;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset as At, TopicPartitionList};
use tokio::sync::Notify;

use self::group::Group;
use self::tasks::perform;
use super::UNREAD;
use super::admin::Admin;
use super::member::{Member, Said, Task};
use super::topics::failed;
use crate::eventlog::{Bounds, Consumer, Delivery, Error, Offset, Stored, Topic};

/// How long a poll waits; also how long a reader's wish may.
const POLL: Duration = Duration::from_millis(50);

/// How long it may work for its reader before it polls again.
const SERVE: Duration = Duration::from_secs(1);

/// How long the thread leaves records with librdkafka while enough is read ahead, before it asks the brokers for no more.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// How long a fenced member waits before it joins anew: at first, and at most.
const REJOIN: Duration = Duration::from_secs(1);
const LONGEST_REJOIN: Duration = Duration::from_secs(60);

/// A member as its thread and its reader share it.
pub(super) struct Shared {
    pub(super) topic: Topic,
    /// The topic's name at the brokers.
    name: String,
    /// The group's name at the brokers.
    group: String,
    /// Asks leaders in place of the member's own client: there, a question waits behind the fetch under way, which the leader holds back for new records.
    admin: Arc<Admin>,
    member: Mutex<Member>,
    /// Wakes the reader.
    wake: Notify,
    /// Wakes the thread where it waits for the reader.
    reader: Condvar,
    /// How long a revocation waits for the reader.
    drain: Duration,
}

impl Shared {
    fn member(&self) -> MutexGuard<'_, Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its reader has said of a partition, known to the brokers or not.
    pub(super) fn said(&self, partition: u16) -> Option<Offset> {
        self.member().said.get(&partition).map(|said| said.end())
    }

    /// Whether it was ended.
    pub(super) fn is_stopped(&self) -> bool {
        self.member().stopped.is_some()
    }

    /// Ends it; its reader is told why.
    pub(super) fn stop(&self, why: Error) {
        self.member().stopped.get_or_insert(why);
        self.wake.notify_one();
        self.reader.notify_all();
    }

    /// All its partitions are another's.
    fn lose(&self) {
        let mut member = self.member();
        member.said.clear();
        member.lost();
        drop(member);
        self.wake.notify_one();
    }

    /// What the partition's leader tells. Blocking.
    fn bounds(&self, partition: u16) -> Result<Bounds, Error> {
        super::bounds_of(&self.admin, &self.name, partition)
    }

    fn list(&self, partitions: impl IntoIterator<Item = u16>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.name, i32::from(partition));
        }
        list
    }
}

/// The reader's end.
pub(super) struct Reader(pub(super) Arc<Shared>);

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self, max_bytes: usize) -> Result<Delivery, Error> {
        loop {
            let woken = self.0.wake.notified();
            let delivery = self.0.member().deliver(max_bytes);
            // Room was made, or a revocation dealt with.
            self.0.reader.notify_all();
            if let Some(delivery) = delivery {
                return delivery;
            }
            woken.await;
        }
    }

    fn seek(&mut self, partition: u16, offset: Offset) {
        self.0.member().seek(partition, offset);
    }

    fn pause(&mut self, partition: u16) {
        self.0.member().pause(partition);
    }

    fn resume(&mut self, partition: u16) {
        self.0.member().resume(partition);
    }

    fn commit(&mut self, partition: u16, offset: Offset) {
        self.0.member().commit(partition, offset);
    }

    fn begin(&mut self, partition: u16, offset: Offset) {
        self.0.member().begin(partition, offset);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.stop(Error::Closed("its reader left".into()));
    }
}

/// Ends when a member's thread has: nothing is ever sent.
pub(super) type Ended = mpsc::Receiver<std::convert::Infallible>;

/// Joins a group of a topic and starts the thread.
pub(super) fn start(
    config: &ClientConfig,
    admin: &Arc<Admin>,
    (topic, name): (Topic, &str),
    group: &str,
    session: Duration,
) -> Result<(Arc<Shared>, Ended), Error> {
    let shared = Arc::new(Shared {
        topic,
        name: name.to_owned(),
        group: group.to_owned(),
        admin: Arc::clone(admin),
        member: Mutex::default(),
        wake: Notify::new(),
        reader: Condvar::new(),
        drain: session / 3,
    });
    let mut config = config.clone();
    config
        .set("group.id", group)
        .set("group.protocol", "classic")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session.as_millis().to_string())
        .set("heartbeat.interval.ms", (session.as_millis() / 15).max(1).to_string())
        .set("max.poll.interval.ms", (session * 6).as_millis().to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("fetch.queue.backoff.ms", "50")
        // Also how long leaving waits for brokers that do not answer.
        .set("socket.timeout.ms", "10000")
        .set("queued.max.messages.kbytes", "16384")
        // As the brokers hold it, compressed: it is several times as much here.
        .set("fetch.max.bytes", "2097152")
        .set("max.partition.fetch.bytes", "262144")
        .set("statistics.interval.ms", "1000");
    let consumer = join(&config, &shared)?;
    let (ending, ended) = mpsc::channel();
    let held = Arc::clone(&shared);
    let work = move || {
        stay(consumer, &config, &held);
        drop(ending);
    };
    std::thread::Builder::new().name(format!("kafka-{}", topic.name())).spawn(work).map_err(failed)?;
    Ok((shared, ended))
}

fn join(config: &ClientConfig, shared: &Arc<Shared>) -> Result<BaseConsumer<Group>, Error> {
    let consumer: BaseConsumer<Group> =
        config.create_with_context(Group(Arc::clone(shared))).map_err(|error| Error::Format(format!("kafka: {error}")))?;
    consumer.subscribe(&[&shared.name]).map_err(failed)?;
    Ok(consumer)
}

/// The thread: until the member is stopped, and has left its group.
///
/// A client that gives no records although they are there, whatever it is told, or does not reach its group, is replaced: after a pause of the brokers librdkafka
/// may ask nothing ever again.
///
/// A member that is fenced joins anew: the brokers may take its own second try at joining, after an answer that came too late, for another process of its
/// name. Where there is one, both go on fencing each other, less and less often, and say so.
fn stay(mut consumer: BaseConsumer<Group>, config: &ClientConfig, shared: &Arc<Shared>) {
    let mut pause = REJOIN;
    loop {
        let joined = Instant::now();
        let why = run(&consumer, shared);
        if why == Kept::Stopped {
            return;
        }
        shared.lose();
        drop(consumer);
        if joined.elapsed() > LONGEST_REJOIN {
            pause = REJOIN;
        }
        if why == Kept::Fenced {
            tracing::error!(
                topic = shared.name,
                "fenced: another process may have the same kafka.instance (a copy of the data directory); joining anew"
            );
            metrics::counter!("contrail_kafka_fenced_total").increment(1);
        } else {
            tracing::error!(topic = shared.name, "the brokers answer, and this client gets nothing of them for long; joining anew by another one");
            metrics::counter!("contrail_kafka_consumers_replaced_total").increment(1);
        }
        drop(shared.reader.wait_timeout_while(shared.member(), pause, |member| member.stopped.is_none()));
        pause = (pause * 2).min(LONGEST_REJOIN);
        consumer = match join(config, shared) {
            Ok(consumer) => consumer,
            Err(error) => return shared.stop(error),
        };
    }
}

/// Why a member no longer polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It was stopped.
    Stopped,
    /// Another one of its name took its place; its partitions are given up.
    Fenced,
    /// It gets no records that are there, or does not reach its group.
    Wedged,
}

fn run(consumer: &BaseConsumer<Group>, shared: &Shared) -> Kept {
    let (mut committed, mut full_since) = (Instant::now(), None);
    while shared.member().stopped.is_none() {
        let polled = Instant::now();
        let mut tasks = VecDeque::from(shared.member().tasks(polled));
        while let Some(task) = tasks.pop_front() {
            let began = Instant::now();
            if !perform(consumer, shared, task) {
                // The group must be served meanwhile, and the other partitions: the rest comes after what polls have to give.
                shared.member().put_off(task, tasks, (began, Instant::now()));
                break;
            }
            shared.member().done(task);
            if polled.elapsed() > SERVE {
                // The group must be served by then, and the rest comes after what polls have to give.
                shared.member().put_behind(tasks.drain(..), (polled, Instant::now()));
            }
        }
        let is_astray = shared.member().is_astray(Instant::now());
        if is_astray {
            tasks::look_for_group(consumer, shared);
        }
        if std::mem::take(&mut shared.member().wedged) {
            return Kept::Wedged;
        }
        if committed.elapsed() >= COMMIT_EVERY {
            committed = Instant::now();
            commit(consumer, shared, CommitMode::Async);
        }
        if !has_room(consumer, shared, &mut full_since) {
            shared.member().drained();
            continue;
        }
        match consumer.poll(POLL) {
            None => shared.member().drained(),
            Some(Ok(message)) => take(shared, &message),
            Some(Err(error)) => complain(consumer, shared, &error),
        }
        if let Some((code, reason)) = consumer.client().fatal_error() {
            if code == RDKafkaErrorCode::FencedInstanceId {
                return Kept::Fenced;
            }
            shared.stop(Error::Closed(format!("kafka: {code}: {reason}")));
        }
    }
    commit(consumer, shared, CommitMode::Sync);
    Kept::Stopped
}

/// Waits a moment while enough is read ahead. True: poll. Where that lasts, the brokers are asked for no more, and polls serve the group alone.
fn has_room(consumer: &BaseConsumer<Group>, shared: &Shared, full_since: &mut Option<Instant>) -> bool {
    let member = shared.member();
    if !member.is_full() {
        drop(member);
        if full_since.take().is_some_and(|since| since.elapsed() > PATIENCE) {
            let mut member = shared.member();
            let reading = member.reading();
            reading.into_iter().for_each(|(partition, offset)| member.again(Task::ReadOn(partition, offset)));
        }
        return true;
    }
    let since = *full_since.get_or_insert_with(Instant::now);
    if since.elapsed() > PATIENCE {
        let reading = member.reading();
        drop(member);
        drop(consumer.pause(&shared.list(reading.into_iter().map(|(partition, _)| partition))));
        return true;
    }
    drop(shared.reader.wait_timeout_while(member, POLL, |member| member.is_full() && member.stopped.is_none()));
    false
}

fn take(shared: &Shared, message: &impl Message) {
    let (Ok(partition), Ok(offset)) = (u16::try_from(message.partition()), u64::try_from(message.offset())) else { return };
    let value = message.payload().map(Bytes::copy_from_slice).unwrap_or_default();
    shared.member().take(shared.topic.name(), partition, Stored { offset, value }, Instant::now());
    shared.wake.notify_one();
}

/// What a poll told instead of a record.
fn complain(consumer: &BaseConsumer<Group>, shared: &Shared, error: &KafkaError) {
    match error {
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::AutoOffsetReset
            | RDKafkaErrorCode::OffsetOutOfRange
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic,
        ) => {
            // It does not tell which partition: one whose next offset the brokers no longer have, or did not have for a moment.
            let reading = shared.member().reading();
            for (partition, offset) in reading {
                let Ok(bounds) = shared.bounds(partition) else { continue };
                if let Err(error) = super::check_range(shared.topic, partition, offset, bounds) {
                    // Where the brokers do not answer now, the next seek tells them.
                    drop(tasks::disown(consumer, shared, partition, bounds));
                    shared.member().fail(partition, error);
                }
            }
            shared.wake.notify_one();
        }
        error => super::tell(error, "a poll"),
    }
}

/// Commits what the reader said since.
fn commit(consumer: &BaseConsumer<Group>, shared: &Shared, mode: CommitMode) {
    let said = {
        let mut member = shared.member();
        if !std::mem::take(&mut member.unsaid) {
            return;
        }
        member.said.clone()
    };
    let mut list = TopicPartitionList::new();
    for (partition, said) in said {
        let at = At::Offset(i64::try_from(said.end()).unwrap_or(i64::MAX));
        let mut element = list.add_partition(&shared.name, i32::from(partition));
        drop(element.set_offset(at));
        if said == Said::Nothing {
            element.set_metadata(UNREAD);
        }
    }
    if let Err(error) = consumer.commit(&list, mode) {
        tracing::debug!(%error, topic = shared.name, "kafka commit; it is tried again");
        shared.member().unsaid = true;
    }
}
