//! Appends to Kafka: idempotent producers, one completion for each call. Used by `KafkaLog` and `Broadcast`; must never tell a caller that nothing was
//! appended where something may have been.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::timeout_at;

use crate::eventlog::{Append, Error, MAX_RECORD, Offset};

/// Records, and bytes of them, that may wait for the brokers. Below librdkafka's own bounds, so that a call is refused before any of it is queued.
const MAX_WAITING_RECORDS: usize = 200_000;
const MAX_WAITING_BYTES: usize = 128 << 20;

/// How long the brokers may take for a record. Beyond it the outcome is unknown.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// How much longer a record may take that is given up then: librdkafka 2.12 may forget to, where metadata left its brokers out while it was sent.
const GRACE: Duration = Duration::from_secs(5);

/// How long a record of the log waits for others to go with.
pub(super) const LINGER: Duration = Duration::from_millis(5);

/// The same of callers that append a whole round at once and wait for it: nothing else comes meanwhile.
pub(super) const ROUND_LINGER: Duration = Duration::from_millis(1);

/// The setting by which librdkafka, after a record that the brokers refuse for good, fails instead of sending what is behind it. It calls that experimental.
const GAPLESS: &str = "enable.gapless.guarantee";

/// Largest request to a broker: a record with its frame.
pub(super) const MAX_MESSAGE: usize = MAX_RECORD + (64 << 10);

/// What becomes of a record that the brokers have not taken within [`TIMEOUT`]. Its caller is told soon after, either way, that its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// It is given up. A later record of its partition may be appended all the same.
    Dropped,
    /// It stays, and all behind it: what is ever appended of a partition's records is the first of them, without a gap. Until it is settled, calls wait that
    /// are made after its own has waited in vain.
    Kept,
}

/// The least age of a producer that keeps what is late, and is replaced as its brokers have not taken it for [`TIMEOUT`].
const LONG: Duration = Duration::from_secs(60);

/// The least time between two producers: where brokers refuse every one of them, calls are refused too and none is made for each.
const APART: Duration = Duration::from_secs(1);

/// The producer. One that failed for good (the brokers lost track of its sequence), that gave records up, or that tells nothing of a call for long, is replaced;
/// what was on its way then is unknown to its callers. What is kept has no gap by that either: of a partition brokers take no record of a producer before the one that it sent earlier.
pub(super) struct Producer {
    config: ClientConfig,
    late: Late,
    /// [`TIMEOUT`].
    timeout: Duration,
    current: RwLock<Current>,
    waiting: Arc<Waiting>,
    /// Calls that were told that the outcome is unknown, and whose records are kept.
    overdue: tokio::sync::Mutex<Vec<Answer>>,
}

/// Comes when all records of a call are settled.
type Answer = oneshot::Receiver<Vec<Result<Offset, Error>>>;

type Client = Arc<ThreadedProducer<Reports>>;

struct Current {
    client: Client,
    since: Instant,
}

/// What is queued or on its way.
#[derive(Default)]
struct Waiting {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// Receives what became of each record.
#[derive(Default)]
struct Reports {
    /// After a record that has no offset: its partition, and what librdkafka numbers the next one of its batch with.
    unplaced: Mutex<Option<(i32, i64)>>,
    /// Whether records were not taken in their time: after a pause of the brokers librdkafka may send nothing ever again, while others get through.
    gave_up: AtomicBool,
    /// A call that is not settled, and when it was made, whoever still waits for it: the next one is watched once it is, and one that waited in vain for its
    /// whole time in its place. One that is stuck, and what is stuck behind it, is found so without a list of all.
    watched: Mutex<Option<(Instant, Weak<Call>)>>,
}

impl Reports {
    fn watch(&self, call: &Arc<Call>, began: Instant) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.as_ref().is_none_or(|(_, call)| call.strong_count() == 0) {
            *watched = Some((began, Arc::downgrade(call)));
        }
    }

    /// A call waited for its whole time.
    fn is_late(&self, call: Weak<Call>, began: Instant) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some((began, call));
    }

    /// How long the watched call has not been settled.
    fn silent_for(&self) -> Duration {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.as_ref().filter(|(_, call)| call.strong_count() > 0).map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Where an acknowledged record is; None where that is not known. Brokers that took a batch before and forgot where (DUPLICATE_SEQUENCE_NUMBER) tell -1 of
    /// it, from which librdkafka counts on.
    fn place(&self, partition: i32, offset: i64) -> Option<Offset> {
        let mut unplaced = self.unplaced.lock().unwrap_or_else(PoisonError::into_inner);
        let known = u64::try_from(offset).ok().filter(|_| *unplaced != Some((partition, offset)));
        *unplaced = known.is_none().then_some((partition, offset + 1));
        known
    }
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        super::tell(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        // Of what is chosen knowingly, nobody need be warned at each start.
        let chosen = fac == "CONFWARN" && message.contains(GAPLESS);
        DefaultClientContext.log(if chosen { RDKafkaLogLevel::Debug } else { level }, fac, message);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Place>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<Place>) {
        place.settle(match result {
            Ok(message) => {
                self.place(message.partition(), message.offset()).ok_or_else(|| Error::Unavailable("a broker acknowledged without an offset".into()))
            }
            Err((error, message)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut) {
                    self.gave_up.store(true, Ordering::Relaxed);
                }
                Err(refused(error, message.payload().map_or(0, <[u8]>::len)))
            }
        });
    }
}

/// One record's place in its call.
struct Place {
    call: Arc<Call>,
    index: usize,
    bytes: usize,
    waiting: Arc<Waiting>,
}

impl Place {
    fn settle(self, result: Result<Offset, Error>) {
        self.waiting.records.fetch_sub(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.call.settle(self.index, result);
    }
}

/// A call that waits for all of its records.
struct Call(Mutex<Open>);

struct Open {
    left: usize,
    settled: Vec<Result<Offset, Error>>,
    answer: Option<oneshot::Sender<Vec<Result<Offset, Error>>>>,
}

impl Call {
    fn new(records: usize) -> (Arc<Self>, Answer) {
        let (answer, answered) = oneshot::channel();
        let open = Open { left: records, settled: vec![Ok(0); records], answer: Some(answer) };
        (Arc::new(Self(Mutex::new(open))), answered)
    }

    fn settle(&self, index: usize, result: Result<Offset, Error>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.left -= 1;
        open.settled.get_mut(index).into_iter().for_each(|slot| *slot = result.clone());
        if open.left == 0
            && let Some(answer) = open.answer.take()
        {
            // A caller that went away no longer needs the answer.
            drop(answer.send(std::mem::take(&mut open.settled)));
        }
    }
}

/// What became of it is not known.
fn unknown(error: &KafkaError) -> Error {
    Error::Unavailable(format!("kafka: {error}"))
}

/// The same, but where the brokers take no such record: it was not appended.
fn refused(error: &KafkaError, bytes: usize) -> Error {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => Error::TooLarge { bytes },
        _ => unknown(error),
    }
}

impl Producer {
    /// `linger` is how long a record waits for others to go with.
    pub(super) fn new(client: &ClientConfig, linger: Duration, late: Late) -> Result<Self, Error> {
        let mut config = client.clone();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", linger.as_millis().to_string())
            .set("compression.type", "lz4")
            .set("message.max.bytes", MAX_MESSAGE.to_string())
            .set("queue.buffering.max.messages", (2 * MAX_WAITING_RECORDS).to_string())
            .set("queue.buffering.max.kbytes", (2 * (MAX_WAITING_BYTES >> 10)).to_string());
        match late {
            Late::Dropped => config.set("message.timeout.ms", TIMEOUT.as_millis().to_string()),
            // Never. And where the brokers refuse a record for good, the producer fails before it sends one behind it.
            Late::Kept => config.set("message.timeout.ms", "0").set(GAPLESS, "true"),
        };
        let first = create(&config)?;
        let (current, overdue) = (RwLock::new(first), tokio::sync::Mutex::default());
        Ok(Self { config, late, timeout: TIMEOUT, current, waiting: Arc::default(), overdue })
    }

    /// Appends records of one topic; see [`crate::eventlog::EventLog::append`]. Every record is within [`MAX_RECORD`].
    pub(super) async fn append(&self, topic: &str, records: &[Append]) -> Result<Vec<Offset>, Error> {
        let settled = self.append_each(topic, records).await?;
        // What one record was refused for says nothing of the call's others: they may be there.
        let unknown = |error| if let Error::Unavailable(_) = error { error } else { Error::Unavailable(error.to_string()) };
        settled.into_iter().map(|one| one.map_err(unknown)).collect()
    }

    /// The same, and tells of each record, in the order given, what became of it: [`Error::TooLarge`] was not appended, of all else that is unknown.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was appended. [`Error::Unavailable`]: of all records that is unknown.
    pub(super) async fn append_each(&self, topic: &str, records: &[Append]) -> Result<Vec<Result<Offset, Error>>, Error> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: usize = records.iter().map(|record| record.value.len()).sum();
        let until = tokio::time::Instant::now() + self.timeout;
        if self.late == Late::Kept {
            self.wait_for_overdue(until).await?;
        }
        let producer = self.current()?;
        // Last of what may fail: its records give the room back.
        self.take_room(records.len(), bytes)?;
        let (call, mut answered) = Call::new(records.len());
        let (reports, watched, began) = (Arc::clone(producer.context()), Arc::downgrade(&call), Instant::now());
        reports.watch(&call, began);
        let mut stopped = None;
        for (index, record) in records.iter().enumerate() {
            let place = Place { call: Arc::clone(&call), index, bytes: record.value.len(), waiting: Arc::clone(&self.waiting) };
            if let Some(error) = &stopped {
                place.settle(Err(unknown(error)));
                continue;
            }
            let message =
                BaseRecord::<(), [u8], _>::with_opaque_to(topic, Box::new(place)).partition(i32::from(record.partition)).payload(&record.value);
            if let Err((error, message)) = producer.send(message) {
                message.delivery_opaque.settle(Err(refused(&error, record.value.len())));
                // What lacks one must not go on behind it.
                stopped = Some(error).filter(|_| self.late == Late::Kept);
            }
        }
        // One that was replaced ends on a thread of its own, not here.
        drop((producer, call));
        let patience = if self.late == Late::Kept { until } else { (began + self.timeout + GRACE).into() };
        if let Ok(answer) = timeout_at(patience, &mut answered).await {
            return answer.map_err(|_| Error::Unavailable("kafka: the producer ended".into()));
        }
        reports.is_late(watched, began);
        if self.late == Late::Kept {
            self.overdue.lock().await.push(answered);
            return Err(Error::Unavailable("kafka: the brokers do not answer; what was to be appended is still on its way".into()));
        }
        Err(Error::Unavailable("kafka: the producer tells nothing of what was to be appended; it may be on its way".into()))
    }

    /// Waits until what calls that gave up have left is settled: repeats must not pile up behind it.
    async fn wait_for_overdue(&self, until: tokio::time::Instant) -> Result<(), Error> {
        // A producer that failed for good settles what it has left when it is replaced.
        drop(self.current()?);
        let settled = async {
            let mut overdue = self.overdue.lock().await;
            while let Some(answer) = overdue.last_mut() {
                drop(answer.await);
                overdue.pop();
            }
        };
        let Err(_) = timeout_at(until, settled).await else { return Ok(()) };
        Err(Error::Unavailable("kafka: the brokers do not answer; what an earlier call left is still on its way".into()))
    }

    /// Whether the brokers have not answered for [`TIMEOUT`].
    fn is_overdue(&self) -> bool {
        // Who holds it waits for them.
        let Ok(mut overdue) = self.overdue.try_lock() else { return true };
        overdue.retain_mut(|answer| answer.try_recv() == Err(TryRecvError::Empty));
        !overdue.is_empty()
    }

    /// Takes room for a call, or refuses it before any of it is queued.
    fn take_room(&self, records: usize, bytes: usize) -> Result<(), Error> {
        let (before, bytes_before) =
            (self.waiting.records.fetch_add(records, Ordering::Relaxed), self.waiting.bytes.fetch_add(bytes, Ordering::Relaxed));
        // A call larger than the whole queue goes alone.
        if before > 0 && (before + records > MAX_WAITING_RECORDS || bytes_before + bytes > MAX_WAITING_BYTES) {
            self.waiting.records.fetch_sub(records, Ordering::Relaxed);
            self.waiting.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::Full("the queue to the brokers is full"));
        }
        Ok(())
    }

    /// The producer to use; a new one where the last failed. [`Error::Unavailable`] where none can be made at present: the next call tries again.
    fn current(&self) -> Result<Client, Error> {
        let (current, is_silent) = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&current.client), self.is_silent(&current))
        };
        let why = match current.client().fatal_error() {
            Some((code, reason)) => format!("{code}: {reason}"),
            None if current.context().gave_up.load(Ordering::Relaxed) => "it gave records up".into(),
            None if is_silent => "it tells nothing of what was to be appended".into(),
            None => return Ok(current),
        };
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&slot.client, &current) {
            if slot.since.elapsed() < APART {
                return Err(Error::Unavailable(format!("kafka: the producer failed: {why}")));
            }
            tracing::error!(why, "the kafka producer failed; a new one takes over");
            metrics::counter!("contrail_kafka_producers_replaced_total").increment(1);
            let made = create(&self.config).map_err(|error| Error::Unavailable(error.to_string()))?;
            let former = std::mem::replace(&mut *slot, made);
            if self.late == Late::Kept || is_silent {
                // It sends no more, and what it has has no time limit, or has had its time.
                give_up(&former.client);
            }
            // It hears what becomes of what is on its way.
            super::retire(former.client, |client| drop(client.flush(TIMEOUT)));
        }
        Ok(Arc::clone(&slot.client))
    }

    /// Whether it has told nothing of a call for longer than that may take.
    fn is_silent(&self, current: &Current) -> bool {
        let silent_for = current.client.context().silent_for();
        match self.late {
            Late::Dropped => silent_for >= self.timeout + GRACE,
            Late::Kept => silent_for >= self.timeout && current.since.elapsed() > LONG,
        }
    }

    /// Waits until what was queued is settled, at most until `until`, and not for what is overdue already; gives up what is left then. Blocking.
    pub(super) fn flush(&self, until: Instant) -> Result<(), Error> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).client);
        let overdue = self.is_overdue();
        let patience = if overdue { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
        match current.flush(patience) {
            Ok(()) => Ok(()),
            Err(error) => {
                give_up(&current);
                let told = overdue || error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal);
                if told { Ok(()) } else { Err(unknown(&error)) }
            }
        }
    }
}

/// Settles all that a producer holds; it is sent no more, though what is on the wire may arrive.
fn give_up(producer: &ThreadedProducer<Reports>) {
    producer.purge(PurgeConfig::default().queue().inflight());
}

fn create(config: &ClientConfig) -> Result<Current, Error> {
    let client = config.create_with_context(Reports::default()).map_err(|error| Error::Format(format!("kafka: {error}")))?;
    Ok(Current { client: Arc::new(client), since: Instant::now() })
}

#[cfg(test)]
mod tests;
