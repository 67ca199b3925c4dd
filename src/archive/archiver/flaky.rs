//! An archive and a log that fail now and then, for the archiver's tests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, Semaphore};

use crate::archive::{
    Archive, Books, Bots, CellKey, CellValue, Cursor, Error, EventRow, Kept, Label, LabelValue, Metric, QuarantineRow, Refused, Scan, Sought,
    WriteBatch,
};
use crate::event::identity::{CheckoutView, Entry, IdentityKey, Sale, StepCount};
use crate::event::{SiteId, Timestamp};
use crate::eventlog::{self, Append, Bounds, Consumer, EventLog, Offset, Stored, Topic};

/// Fails now and then, before or after doing what it was asked: the caller cannot tell which.
pub(super) struct Flaky {
    inner: Arc<dyn Archive>,
    calls: Mutex<StdRng>,
    /// An event of which it takes no row.
    refused: Option<&'static str>,
    /// Answered instead of a partition's cursor.
    cursor: Option<Box<dyn Fn(u16) -> Option<Error> + Send + Sync>>,
    turns: Option<Turns>,
    /// A call of this name waits for that.
    gate: Option<(&'static str, Arc<Semaphore>)>,
}

/// One call at a time, as a busy cluster takes them; and retention has its turn until somebody asks for a cursor.
struct Turns {
    turn: Semaphore,
    asked: Notify,
}

impl Flaky {
    pub(super) fn new(inner: Arc<dyn Archive>, seed: u64) -> Self {
        Self { inner, calls: Mutex::new(StdRng::seed_from_u64(seed)), refused: None, cursor: None, turns: None, gate: None }
    }

    /// One that answers so where cursors are asked for, and else does as it is told.
    pub(super) fn answering(inner: Arc<dyn Archive>, cursor: impl Fn(u16) -> Option<Error> + Send + Sync + 'static) -> Self {
        Self { cursor: Some(Box::new(cursor)), ..Self::refusing(inner, 0, "") }
    }

    /// The same, where calls of this name are answered only once there is a permit, but for cursors that are answered otherwise.
    pub(super) fn held(self, call: &'static str, gate: &Arc<Semaphore>) -> Self {
        Self { gate: Some((call, Arc::clone(gate))), ..self }
    }

    async fn hold(&self, call: &str) {
        if let Some((_, gate)) = self.gate.as_ref().filter(|(held, _)| *held == call) {
            drop(gate.acquire().await.unwrap());
        }
    }

    /// One whose retention and cursors wait for one another.
    pub(super) fn taking_turns(inner: Arc<dyn Archive>) -> Self {
        Self { turns: Some(Turns { turn: Semaphore::new(1), asked: Notify::new() }), ..Self::refusing(inner, 0, "") }
    }

    /// One that refuses an event for good, and else does as it is told.
    pub(super) fn refusing(inner: Arc<dyn Archive>, seed: u64, event_id: &'static str) -> Self {
        Self { refused: Some(event_id), ..Self::new(inner, seed) }
    }

    fn fails(&self) -> bool {
        self.refused.is_none() && self.calls.lock().unwrap().random_bool(0.1)
    }

    fn maybe<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if self.fails() { Err(Error::Store("no answer".into())) } else { answer }
    }
}

#[async_trait::async_trait]
impl Archive for Flaky {
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error> {
        if let Some(error) = self.cursor.as_ref().and_then(|cursor| cursor(partition)) {
            return Err(error);
        }
        self.hold("cursor").await;
        let _turn = match &self.turns {
            Some(Turns { turn, asked }) => {
                asked.notify_one();
                Some(turn.acquire().await.unwrap())
            }
            None => None,
        };
        self.maybe(self.inner.cursor(partition).await)
    }
    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        self.hold("identities").await;
        self.maybe(self.inner.identities(partition, keys).await)
    }
    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        self.hold("cells").await;
        self.maybe(self.inner.cells(partition, keys).await)
    }
    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        self.maybe(self.inner.books_of(partition, keys).await)
    }
    async fn write(&self, mut batch: WriteBatch) -> Result<(), Error> {
        self.hold("write").await;
        if let Some(row) = batch.events.iter().find(|row| Some(&*row.event_id) == self.refused) {
            return Err(Error::Refused(vec![Refused { partition: row.partition, offset: row.offset, why: "too large".into() }]));
        }
        if self.fails() {
            // As far as the event rows, or some of them.
            batch.events.truncate(batch.events.len() / 2 + 1);
            self.inner.write(WriteBatch { events: batch.events, ..WriteBatch::default() }).await?;
            return Err(Error::Store("cut short".into()));
        }
        self.maybe(self.inner.write(batch).await)
    }
    async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        self.inner.cursors().await
    }
    async fn durable(&self) -> Result<Vec<u64>, Error> {
        self.hold("durable").await;
        self.inner.durable().await
    }
    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error> {
        self.inner.totals(site, metric, from, to, bots).await
    }
    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        self.inner.sales(site, from, to).await
    }
    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        self.inner.steps(site, from, to).await
    }
    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        self.inner.checkouts(site, from, to, after, limit).await
    }
    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        self.inner.labels(site, label, dims).await
    }
    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        self.inner.scan(site, scan).await
    }
    async fn kept(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error> {
        self.maybe(self.inner.kept(site, sought).await)
    }
    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        self.inner.linked(site, person).await
    }
    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        self.inner.books(site, from, to).await
    }
    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        self.inner.quarantine(site, after, limit).await
    }
    async fn sites(&self) -> Result<Vec<SiteId>, Error> {
        self.inner.sites().await
    }
    async fn days(&self) -> Result<Vec<i32>, Error> {
        self.inner.days().await
    }
    async fn retain(&self, before: Timestamp, partitions: &[u16]) -> Result<(), Error> {
        self.hold("retain").await;
        if let Some(Turns { turn, asked }) = &self.turns {
            let _turn = turn.acquire().await.unwrap();
            asked.notified().await;
        }
        self.maybe(self.inner.retain(before, partitions).await)
    }
    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}

/// A log whose groups cannot be joined at first.
pub(super) struct Away {
    pub(super) inner: Arc<dyn EventLog>,
    /// How often not.
    pub(super) refusals: AtomicU32,
}

#[async_trait::async_trait]
impl EventLog for Away {
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, eventlog::Error> {
        self.inner.append(topic, records).await
    }
    async fn subscribe(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, eventlog::Error> {
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(eventlog::Error::Unavailable("no coordinator".into()));
        }
        self.inner.subscribe(topic, group).await
    }
    async fn read(&self, topic: Topic, partition: u16, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, eventlog::Error> {
        self.inner.read(topic, partition, from, max_bytes).await
    }
    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, eventlog::Error> {
        self.inner.bounds(topic).await
    }
    async fn committed(&self, topic: Topic, group: &str) -> Result<Vec<Offset>, eventlog::Error> {
        self.inner.committed(topic, group).await
    }
    async fn forget_group(&self, topic: Topic, group: &str) -> Result<(), eventlog::Error> {
        self.inner.forget_group(topic, group).await
    }
    async fn retain(&self, now: Timestamp) -> Result<(), eventlog::Error> {
        self.inner.retain(now).await
    }
    async fn close(&self) -> Result<(), eventlog::Error> {
        self.inner.close().await
    }
}
