//! Appends to Kafka: one idempotent producer for all callers, one completion for each call. Used by `KafkaLog::append` alone; must never tell a
//! caller that nothing was appended where something may have been.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::oneshot;

use crate::eventlog::{Append, Error, MAX_RECORD, Offset};

/// Records, and bytes of them, that may wait for the brokers. Below librdkafka's own bounds, so that a call is refused before any of it is queued.
const MAX_WAITING_RECORDS: usize = 200_000;
const MAX_WAITING_BYTES: usize = 128 << 20;

/// How long the brokers may take for a record. Beyond it the outcome is unknown.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long a record of the log waits for others to go with.
pub(super) const LINGER: Duration = Duration::from_millis(5);

/// Largest request to a broker: a record with its frame.
pub(super) const MAX_MESSAGE: usize = MAX_RECORD + (64 << 10);

/// The least time between two producers: where brokers refuse every one of them, calls are refused too and none is made for each.
const APART: Duration = Duration::from_secs(1);

/// The producer. A fatal error (the brokers lost track of its sequence) replaces it; what was on its way then is unknown to its callers.
pub(super) struct Producer {
    config: ClientConfig,
    current: RwLock<Current>,
    waiting: Arc<Waiting>,
}

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
}

impl Reports {
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
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Place>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<Place>) {
        place.settle(match result {
            Ok(message) => {
                self.place(message.partition(), message.offset()).ok_or_else(|| Error::Unavailable("a broker acknowledged without an offset".into()))
            }
            Err((error, message)) => Err(refused(error, message.payload().map_or(0, <[u8]>::len))),
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
    fn new(records: usize) -> (Arc<Self>, oneshot::Receiver<Vec<Result<Offset, Error>>>) {
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
    pub(super) fn new(client: &ClientConfig, linger: Duration) -> Result<Self, Error> {
        let mut config = client.clone();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", linger.as_millis().to_string())
            .set("compression.type", "lz4")
            .set("message.max.bytes", MAX_MESSAGE.to_string())
            .set("message.timeout.ms", TIMEOUT.as_millis().to_string())
            .set("queue.buffering.max.messages", (2 * MAX_WAITING_RECORDS).to_string())
            .set("queue.buffering.max.kbytes", (2 * (MAX_WAITING_BYTES >> 10)).to_string());
        let first = create(&config)?;
        Ok(Self { config, current: RwLock::new(first), waiting: Arc::default() })
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
    /// Where nothing was appended.
    pub(super) async fn append_each(&self, topic: &str, records: &[Append]) -> Result<Vec<Result<Offset, Error>>, Error> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: usize = records.iter().map(|record| record.value.len()).sum();
        let producer = self.current()?;
        self.take_room(records.len(), bytes)?;
        let (call, answered) = Call::new(records.len());
        for (index, record) in records.iter().enumerate() {
            let place = Place { call: Arc::clone(&call), index, bytes: record.value.len(), waiting: Arc::clone(&self.waiting) };
            let message =
                BaseRecord::<(), [u8], _>::with_opaque_to(topic, Box::new(place)).partition(i32::from(record.partition)).payload(&record.value);
            if let Err((error, message)) = producer.send(message) {
                message.delivery_opaque.settle(Err(refused(&error, record.value.len())));
            }
        }
        // One that was replaced ends on a thread of its own, not here.
        drop(producer);
        answered.await.map_err(|_| Error::Unavailable("kafka: the producer ended".into()))
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

    /// The producer to use; a new one where the last failed for good.
    fn current(&self) -> Result<Client, Error> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).client);
        let Some((code, reason)) = current.client().fatal_error() else { return Ok(current) };
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&slot.client, &current) {
            if slot.since.elapsed() < APART {
                return Err(Error::Unavailable(format!("kafka: the producer failed for good: {code}: {reason}")));
            }
            tracing::error!(%code, reason, "the kafka producer failed for good; a new one takes over");
            metrics::counter!("contrail_kafka_producers_replaced_total").increment(1);
            let former = std::mem::replace(&mut *slot, create(&self.config)?);
            retire(former.client);
        }
        Ok(Arc::clone(&slot.client))
    }

    /// Waits until what was queued is settled, at most as long as a record may take. Blocking.
    pub(super) fn flush(&self) -> Result<(), Error> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).client);
        match current.flush(TIMEOUT) {
            Err(error) if error.rdkafka_error_code() != Some(RDKafkaErrorCode::Fatal) => Err(unknown(&error)),
            _ => Ok(()),
        }
    }
}

fn create(config: &ClientConfig) -> Result<Current, Error> {
    let client = config.create_with_context(Reports::default()).map_err(|error| Error::Format(format!("kafka: {error}")))?;
    Ok(Current { client: Arc::new(client), since: Instant::now() })
}

/// Lets a producer that failed for good hear what became of what is on its way, and ends it: that blocks.
fn retire(producer: Client) {
    let ending = move || {
        drop(producer.flush(TIMEOUT));
        while Arc::strong_count(&producer) > 1 {
            std::thread::sleep(super::PAUSE);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kafka-retired".into()).spawn(ending) {
        tracing::error!(%error, "no thread for a producer's end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_answered_once_when_all_its_records_are_settled() {
        let (call, mut answered) = Call::new(3);
        call.settle(2, Ok(9));
        call.settle(0, Ok(7));
        assert!(answered.try_recv().is_err());
        call.settle(1, Ok(8));
        assert_eq!(answered.await.unwrap(), [Ok(7), Ok(8), Ok(9)]);

        let (call, answered) = Call::new(2);
        call.settle(0, Err(Error::Unavailable("lost".into())));
        call.settle(1, Ok(1));
        assert_eq!(answered.await.unwrap(), [Err(Error::Unavailable("lost".into())), Ok(1)]);
    }

    #[test]
    fn numbers_that_are_no_offsets_are_not_told() {
        let reports = Reports::default();
        let told: Vec<_> = [(3, 7), (3, -1), (3, 0), (3, 1), (3, 8), (4, 0), (3, -1001), (3, -1001), (3, 9), (3, -1), (4, 0)]
            .into_iter()
            .map(|(partition, offset)| reports.place(partition, offset))
            .collect();
        assert_eq!(told, [Some(7), None, None, None, Some(8), Some(0), None, None, Some(9), None, Some(0)]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_frees_its_room() {
        // Nobody listens there: what is queued stays queued until its time is over.
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1");
        let producer = Arc::new(Producer::new(&config, LINGER).unwrap());
        let records = |count: usize| vec![Append { partition: 0, value: bytes::Bytes::from_static(b"x") }; count];
        let waiting = {
            let (producer, many) = (Arc::clone(&producer), records(MAX_WAITING_RECORDS));
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move { producer.append("t", &many).await });
            tasks
        };
        while producer.waiting.records.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(producer.append("t", &records(1)).await, Err(Error::Full("the queue to the brokers is full")));
        assert_eq!(producer.waiting.records.load(Ordering::Relaxed), MAX_WAITING_RECORDS, "what was refused takes no room");
        drop(waiting);
    }
}
