//! Appends to Kafka: one idempotent producer for all callers, one completion for each call. Used by `KafkaLog::append` alone; must never tell a
//! caller that nothing was appended where something may have been.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

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

/// The producer. A fatal error (the brokers lost track of its sequence) replaces it; what was on its way then is unknown to its callers.
pub(super) struct Producer {
    config: ClientConfig,
    current: RwLock<Arc<ThreadedProducer<Reports>>>,
    waiting: Arc<Waiting>,
}

/// What is queued or on its way.
#[derive(Default)]
struct Waiting {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// Receives what became of each record.
struct Reports;

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        super::tell(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Place>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<Place>) {
        place.settle(match result {
            Ok(message) => u64::try_from(message.offset()).map_err(|_| Error::Unavailable("a broker acknowledged without an offset".into())),
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
        Ok(Self { config, current: RwLock::new(Arc::new(first)), waiting: Arc::default() })
    }

    /// Appends records of one topic; see [`crate::eventlog::EventLog::append`]. Every record is within [`MAX_RECORD`].
    pub(super) async fn append(&self, topic: &str, records: &[Append]) -> Result<Vec<Offset>, Error> {
        let settled = self.append_each(topic, records).await?;
        // What one record was refused for says nothing of the call's others: they may be there.
        settled.into_iter().map(|one| one.map_err(|error| Error::Unavailable(error.to_string()))).collect()
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
        // Last of what may fail: its records give the room back.
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

    /// The producer to use; a new one where the last failed for good. [`Error::Unavailable`] where none can be made at present: the next call tries again.
    fn current(&self) -> Result<Arc<ThreadedProducer<Reports>>, Error> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let Some((code, reason)) = current.client().fatal_error() else { return Ok(current) };
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&slot, &current) {
            tracing::error!(%code, reason, "the kafka producer failed for good; a new one takes over");
            metrics::counter!("contrail_kafka_producers_replaced_total").increment(1);
            *slot = Arc::new(create(&self.config).map_err(|error| Error::Unavailable(error.to_string()))?);
        }
        Ok(Arc::clone(&slot))
    }

    /// Waits until what was queued is settled, at most as long as a record may take. Blocking.
    pub(super) fn flush(&self) -> Result<(), Error> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        match current.flush(TIMEOUT) {
            Err(error) if error.rdkafka_error_code() != Some(RDKafkaErrorCode::Fatal) => Err(unknown(&error)),
            _ => Ok(()),
        }
    }
}

fn create(config: &ClientConfig) -> Result<ThreadedProducer<Reports>, Error> {
    config.create_with_context(Reports).map_err(|error| Error::Format(format!("kafka: {error}")))
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
