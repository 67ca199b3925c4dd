//! An archive that fails now and then, for the archiver's tests.

use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::archive::{
    Archive, Books, Bots, CellKey, CellValue, Cursor, Error, EventRow, Kept, Label, LabelValue, Metric, QuarantineRow, Refused, Scan, Sought,
    WriteBatch,
};
use crate::event::identity::{CheckoutView, Entry, IdentityKey, Sale, StepCount};
use crate::event::{SiteId, Timestamp};

/// Fails now and then, before or after doing what it was asked: the caller cannot tell which.
pub(super) struct Flaky {
    inner: Arc<dyn Archive>,
    calls: Mutex<StdRng>,
    /// An event of which it takes no row.
    refused: Option<&'static str>,
}

impl Flaky {
    pub(super) fn new(inner: Arc<dyn Archive>, seed: u64) -> Self {
        Self { inner, calls: Mutex::new(StdRng::seed_from_u64(seed)), refused: None }
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
        self.maybe(self.inner.cursor(partition).await)
    }
    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        self.maybe(self.inner.identities(partition, keys).await)
    }
    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        self.maybe(self.inner.cells(partition, keys).await)
    }
    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        self.maybe(self.inner.books_of(partition, keys).await)
    }
    async fn write(&self, mut batch: WriteBatch) -> Result<(), Error> {
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
        self.maybe(self.inner.retain(before, partitions).await)
    }
    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}
