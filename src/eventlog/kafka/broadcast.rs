//! A topic that every process reads whole, as it is written: no group, no stored offsets, Kafka's own retention. Carries the feed (`sync::feed`). A reader
//! loses nothing silently: what it may have missed, it tells.

mod place;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, ClientContext, Offset as At, Statistics, TopicPartitionList};

use self::place::{Looks, Place, Step, TICK, VAIN, concerns_places};
use super::admin::Admin;
use super::producer::{Late, Producer};
use super::settings::{self, Settings};
use super::topics::{self, Purpose, failed};
use super::{LOOK, bounds_of, lost_connection};
use crate::event::PARTITIONS;
use crate::eventlog::{Append, Bounds, Error, Offset};

/// How long a poll waits.
const POLL: Duration = Duration::from_millis(50);

/// How long a record waits for others to go with: somebody watches.
const LINGER: Duration = Duration::from_millis(1);

/// A topic beside the log's. It has a producer of its own, so that neither waits for the other.
pub struct Broadcast {
    name: String,
    client: ClientConfig,
    admin: Arc<Admin>,
    producer: Producer,
}

/// What a [`Tail`] tells.
#[derive(Debug)]
pub enum Heard {
    /// The next record of a partition, in the order they were sent.
    Record {
        /// Its partition.
        partition: u16,
        /// Its bytes.
        value: Bytes,
    },
    /// Records of a partition were missed; later ones follow.
    Missed(u16),
    /// Nothing. Told about once a second.
    Tick,
}

/// A running reader. Dropping it ends its thread.
pub struct Tail(Arc<AtomicBool>);

impl Broadcast {
    /// Connects, and makes or checks the topic `<prefix>.<name>`.
    ///
    /// # Errors
    /// As [`super::KafkaLog::open`].
    pub async fn open(url: &str, settings: &Settings, name: &str) -> Result<Self, Error> {
        let client = settings::client(&settings::brokers(url)?, settings)?;
        let admin = Arc::new(Admin::new(client.clone())?);
        let name = format!("{}.{name}", settings.prefix);
        topics::ensure(&admin.client(), &name, Purpose::Feed, settings).await?;
        let producer = Producer::new(&client, LINGER, Late::Dropped)?;
        Ok(Self { name, client, admin, producer })
    }

    /// Sends records: each is acknowledged by all in-sync replicas, or says why not, in the order given. [`Error::TooLarge`]: the brokers take no such
    /// record, nor will they; of any other error what became of the record is unknown. Of one partition the records keep the order of calls.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was sent. [`Error::Unavailable`]: of all records that is unknown.
    pub async fn send(&self, records: &[Append]) -> Result<Vec<Result<Offset, Error>>, Error> {
        self.producer.append_each(&self.name, records).await
    }

    /// Reads all that is sent after this returns, on a thread of its own, and hands it to `hear`, which must not wait.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the brokers do not tell where the topic ends now.
    pub async fn tail(&self, hear: impl FnMut(Heard) + Send + 'static) -> Result<Tail, Error> {
        let (client, admin, name) = (self.client.clone(), Arc::clone(&self.admin), self.name.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        super::blocking(move || {
            let consumer = consumer(&client, &name)?;
            let bounds = settled_bounds(&admin, &name)?;
            let places = bounds.iter().map(|bounds| Place::at(bounds.next)).collect();
            let mut reading = Reading { name, client, admin, places, consumer, hear, looks: Looks::new(Instant::now()) };
            reading.assign()?;
            let work = move || reading.run(&stopped);
            std::thread::Builder::new().name("kafka-feed".into()).spawn(work).map_err(failed)?;
            Ok(Tail(stop))
        })
        .await
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn consumer(client: &ClientConfig, name: &str) -> Result<BaseConsumer<Ends>, Error> {
    let mut config = client.clone();
    config
        .set("group.id", format!("{name}.reads"))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("fetch.queue.backoff.ms", "50")
        .set("fetch.error.backoff.ms", "100")
        .set("queued.max.messages.kbytes", "16384")
        .set("socket.timeout.ms", "10000")
        .set("statistics.interval.ms", TICK.as_millis().to_string());
    config.create_with_context(Ends::new(name)).map_err(|error| Error::Format(format!("kafka: {error}")))
}

fn bounds(admin: &Admin, name: &str) -> Result<Vec<Bounds>, Error> {
    (0..PARTITIONS).map(|partition| bounds_of(admin, name, partition)).collect()
}

/// The same, asked again while the leaders of a topic that was just made do not know of it yet.
fn settled_bounds(admin: &Admin, name: &str) -> Result<Vec<Bounds>, Error> {
    let asked = Instant::now();
    loop {
        match bounds(admin, name) {
            Err(error) if asked.elapsed() < topics::SETTLE => {
                tracing::debug!(%error, topic = name, "where the feed ends is not known yet; asked again");
                std::thread::sleep(super::PAUSE);
            }
            answer => return answer,
        }
    }
}

/// Hears where partitions end.
struct Ends {
    name: String,
    ends: Mutex<Vec<Offset>>,
}

impl Ends {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ends: Mutex::new(vec![0; usize::from(PARTITIONS)]) }
    }

    fn all(&self) -> Vec<Offset> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Ends {
    fn error(&self, error: KafkaError, reason: &str) {
        super::tell(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.name) else { return };
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, told) in &topic.partitions {
            if let (Ok(partition), Ok(end)) = (usize::try_from(*partition), u64::try_from(told.hi_offset)) {
                ends.get_mut(partition).into_iter().for_each(|slot| *slot = end);
            }
        }
    }
}

impl ConsumerContext for Ends {}

/// The thread's own.
struct Reading<H> {
    name: String,
    client: ClientConfig,
    admin: Arc<Admin>,
    consumer: BaseConsumer<Ends>,
    places: Vec<Place>,
    hear: H,
    looks: Looks,
}

impl<H: FnMut(Heard)> Reading<H> {
    fn run(&mut self, stop: &AtomicBool) {
        let mut ticked = Instant::now();
        while !stop.load(Ordering::SeqCst) {
            match self.consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let value = message.payload().map(Bytes::copy_from_slice).unwrap_or_default();
                    drop(message);
                    self.take(partition, offset, value);
                }
                Some(Err(error)) => self.complain(&error),
            }
            if ticked.elapsed() >= TICK {
                self.look();
                (self.hear)(Heard::Tick);
                // From here on: what looks need is not taken from reading.
                ticked = Instant::now();
            }
        }
    }

    fn take(&mut self, partition: i32, offset: i64, value: Bytes) {
        let (Ok(partition), Ok(offset)) = (u16::try_from(partition), u64::try_from(offset)) else { return };
        let Some(place) = self.places.get_mut(usize::from(partition)) else { return };
        match place.take(offset) {
            Step::Had => return,
            Step::Next => {}
            Step::After => self.missed(partition, "records were deleted before they were read"),
        }
        (self.hear)(Heard::Record { partition, value });
    }

    fn missed(&mut self, partition: u16, why: &str) {
        tracing::warn!(topic = self.name, partition, why, "records of the feed were missed; subscribers are sent to a fresh snapshot");
        metrics::counter!("contrail_feed_missed_total").increment(1);
        (self.hear)(Heard::Missed(partition));
    }

    /// What a poll told instead of a record.
    fn complain(&mut self, error: &KafkaError) {
        metrics::counter!("contrail_feed_read_errors_total").increment(1);
        super::tell(error, "a poll of the feed");
        if concerns_places(error) {
            self.looks.doubt(Instant::now());
        }
    }

    /// Tells how far behind it is, and now and then mends what does not go on.
    fn look(&mut self) {
        let ends = self.consumer.context().all();
        let behind: u64 = ends.iter().zip(&self.places).map(|(end, place)| end.saturating_sub(place.next)).sum();
        metrics::gauge!("contrail_feed_lag_records").set(behind as f64);
        let began = Instant::now();
        if began < self.looks.due {
            return;
        }
        match self.mend() {
            Ok(()) => self.looks.done(Instant::now()),
            Err(error) => {
                tracing::debug!(%error, topic = self.name, "the feed cannot be looked at; tried again");
                self.looks.failed(began, Instant::now());
            }
        }
    }

    /// Has partitions that do not go on read anew, by another client where that is in vain: from where they stand, or from their end where that is no longer to
    /// be had. Of these, and of all in doubt, something may have been missed.
    fn mend(&mut self) -> Result<(), Error> {
        let all = bounds(&self.admin, &self.name)?;
        let mut missed = Vec::new();
        for ((partition, bounds), place) in (0u16..).zip(all).zip(&mut self.places) {
            missed.extend(place.look(bounds, self.looks.doubtful).map(|why| (partition, why)));
        }
        if missed.is_empty() {
            return Ok(());
        }
        // Before what may fail: their places are where they go on.
        missed.into_iter().for_each(|(partition, why)| self.missed(partition, why));
        let in_vain = self.places.iter().any(|place| place.stalls >= VAIN);
        // It may know of no broker any longer, while another client does (see [`super::admin`]).
        if in_vain || self.consumer.fetch_metadata(Some(&self.name), LOOK).is_err_and(|error| lost_connection(&error)) {
            tracing::error!(topic = self.name, in_vain, "the brokers answer, and this client gets nothing of them; another one reads");
            self.places.iter_mut().for_each(|place| place.stalls = 0);
            self.consumer = consumer(&self.client, &self.name)?;
            metrics::counter!("contrail_kafka_consumers_replaced_total").increment(1);
        } else {
            // Not sought: a partition that the brokers refuse may not come back to that.
            self.consumer.unassign().map_err(failed)?;
        }
        self.assign()
    }

    /// Has every partition read from its place on.
    fn assign(&self) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        for (partition, place) in (0i32..).zip(&self.places) {
            let at = At::Offset(i64::try_from(place.next).map_err(failed)?);
            list.add_partition_offset(&self.name, partition, at).map_err(failed)?;
        }
        self.consumer.assign(&list).map_err(failed)
    }
}
