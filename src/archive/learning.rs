//! An archive for a learning archiver: reads through to what is there, keeps what the archiver writes (but for the events' own bodies) in a scratch archive,
//! where its later reads find it, and counts it. Opened by the composition root. Must never write to the archive underneath.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use super::{
    Archive, Books, Bots, CellKey, CellValue, Cursor, Error, EventRow, Kept, Label, LabelValue, Metric, QuarantineRow, Scan, Sought, WriteBatch,
};
use crate::event::identity::{CheckoutView, Entry, IdentityKey, Sale, StepCount, Verdict};
use crate::event::{SiteId, Timestamp};

/// Whether the scratch archive may grow further.
pub type HasRoom = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a learning archiver would have written. Only what ends in `_writes` depends on how batches were cut in time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Learned {
    /// Records of `events` that it passed.
    pub records: u64,
    /// Event rows by verdict.
    pub events: BTreeMap<&'static str, u64>,
    /// Repeats: no row.
    pub duplicates: u64,
    /// Records put into quarantine.
    pub quarantined: u64,
    /// Completions derived from orders.
    pub derived: u64,
    /// Different cells by what they count.
    pub cells: BTreeMap<&'static str, u64>,
    /// Writes of cells.
    pub cell_writes: u64,
    /// Writes of orders.
    pub order_writes: u64,
    /// Writes of checkouts.
    pub checkout_writes: u64,
}

/// The archive.
pub struct LearningArchive {
    live: Arc<dyn Archive>,
    scratch: Arc<dyn Archive>,
    has_room: HasRoom,
    counted: Mutex<Counted>,
}

/// What is written, and how far that goes. Changed together: nobody sees a cursor whose records are not counted.
struct Counted {
    learned: Learned,
    cursors: Vec<Cursor>,
}

impl LearningArchive {
    /// Over `live`, from its cursors on, with an empty `scratch`.
    ///
    /// # Errors
    /// When either archive fails.
    pub async fn open(live: Arc<dyn Archive>, scratch: Arc<dyn Archive>, has_room: HasRoom) -> Result<Self, Error> {
        // Not each partition's own, by which a store may begin to put things in order.
        let cursors = live.cursors().await?;
        scratch.write(WriteBatch { cursors: (0..).zip(cursors.iter().copied()).collect(), ..WriteBatch::default() }).await?;
        Ok(Self { live, scratch, has_room, counted: Mutex::new(Counted { learned: Learned::default(), cursors }) })
    }

    /// What the archiver would have written by now: at least all that the cursors have passed.
    pub fn learned(&self) -> Learned {
        self.counted().learned.clone()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cells of a batch that the stage has not written before.
    async fn new_cells(&self, batch: &WriteBatch) -> Result<BTreeMap<&'static str, u64>, Error> {
        let mut by_partition: BTreeMap<u16, Vec<CellKey>> = BTreeMap::new();
        for (partition, key, _) in &batch.cells {
            by_partition.entry(*partition).or_default().push(key.clone());
        }
        let mut new = BTreeMap::new();
        for (partition, keys) in by_partition {
            let known: BTreeSet<CellKey> = self.scratch.cells(partition, &keys).await?.into_iter().map(|(key, _)| key).collect();
            for key in keys.iter().collect::<BTreeSet<_>>().into_iter().filter(|key| !known.contains(*key)) {
                *new.entry(name_of(key.metric)).or_default() += 1;
            }
        }
        Ok(new)
    }

    /// What a batch adds to the books, which it has as absolute values.
    async fn added(&self, batch: &WriteBatch) -> Result<Books, Error> {
        let mut added = Books::default();
        for (partition, site, hour, books) in &batch.books {
            let before = self.books_of(*partition, &[(site.clone(), *hour)]).await?.pop().map(|(.., books)| books).unwrap_or_default();
            added.duplicate += books.duplicate.saturating_sub(before.duplicate);
            added.quarantined += books.quarantined.saturating_sub(before.quarantined);
            added.derived += books.derived.saturating_sub(before.derived);
        }
        Ok(added)
    }

    /// Counts a batch before it is written.
    async fn count(&self, batch: &WriteBatch) -> Result<Learned, Error> {
        let (cells, books) = (self.new_cells(batch).await?, self.added(batch).await?);
        let before = self.counted().cursors.clone();
        let at = |partition: u16| before.get(usize::from(partition)).map_or(0, |cursor| cursor.next);
        let mut found = Learned {
            records: batch.cursors.iter().map(|(partition, cursor)| cursor.next.saturating_sub(at(*partition))).sum(),
            duplicates: books.duplicate,
            quarantined: books.quarantined,
            derived: books.derived,
            cells,
            cell_writes: batch.cells.len() as u64,
            order_writes: batch.orders.len() as u64,
            checkout_writes: batch.checkouts.len() as u64,
            ..Learned::default()
        };
        for row in &batch.events {
            *found.events.entry(verdict(row.verdict)).or_default() += 1;
        }
        Ok(found)
    }
}

impl Learned {
    fn add(&mut self, more: Self) {
        self.records += more.records;
        self.duplicates += more.duplicates;
        self.quarantined += more.quarantined;
        self.derived += more.derived;
        self.cell_writes += more.cell_writes;
        self.order_writes += more.order_writes;
        self.checkout_writes += more.checkout_writes;
        metrics::counter!("contrail_learning_events_total", "verdict" => "duplicate").increment(more.duplicates);
        for (verdict, count) in more.events {
            *self.events.entry(verdict).or_default() += count;
            metrics::counter!("contrail_learning_events_total", "verdict" => verdict).increment(count);
        }
        for (metric, count) in more.cells {
            *self.cells.entry(metric).or_default() += count;
            metrics::counter!("contrail_learning_cells_total", "metric" => metric).increment(count);
        }
    }
}

const fn name_of(metric: Metric) -> &'static str {
    match metric {
        Metric::Searches => "searches",
        Metric::EmptySearches => "empty_searches",
        Metric::Views => "views",
        Metric::Pages => "pages",
        Metric::Sold => "sold",
        Metric::Steps => "steps",
    }
}

const fn verdict(of: Verdict) -> &'static str {
    match of {
        Verdict::Counted => "counted",
        Verdict::Report => "report",
        Verdict::Duplicate => "duplicate",
        Verdict::Conflict => "conflict",
    }
}

#[async_trait]
impl Archive for LearningArchive {
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error> {
        self.scratch.cursor(partition).await
    }

    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        let mut found = self.scratch.identities(partition, keys).await?;
        let known: BTreeSet<IdentityKey> = found.iter().map(|(key, _)| *key).collect();
        let missing: Vec<IdentityKey> = keys.iter().filter(|key| !known.contains(*key)).copied().collect();
        found.extend(self.live.identities(partition, &missing).await?);
        Ok(found)
    }

    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        let mut found = self.scratch.cells(partition, keys).await?;
        let known: BTreeSet<&CellKey> = found.iter().map(|(key, _)| key).collect();
        let missing: Vec<CellKey> = keys.iter().filter(|key| !known.contains(*key)).cloned().collect();
        found.extend(self.live.cells(partition, &missing).await?);
        Ok(found)
    }

    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        let mut found = self.scratch.books_of(partition, keys).await?;
        let is_known = |(site, hour): &&(SiteId, Timestamp)| found.iter().any(|(known, at, _)| known == site && at == hour);
        let missing: Vec<(SiteId, Timestamp)> = keys.iter().filter(|key| !is_known(key)).cloned().collect();
        found.extend(self.live.books_of(partition, &missing).await?);
        Ok(found)
    }

    async fn write(&self, mut batch: WriteBatch) -> Result<(), Error> {
        if !(self.has_room)() {
            return Err(Error::Store("learning has filled its scratch space; restart it to begin anew".into()));
        }
        let found = self.count(&batch).await?;
        batch.events.iter_mut().for_each(|row| row.body = Bytes::new());
        batch.quarantine.clear();
        let passed = batch.cursors.clone();
        self.scratch.write(batch).await?;
        let mut counted = self.counted();
        counted.learned.add(found);
        for (partition, cursor) in passed {
            if let Some(at) = counted.cursors.get_mut(usize::from(partition)) {
                *at = cursor;
            }
        }
        Ok(())
    }

    async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        Ok(self.counted().cursors.clone())
    }

    async fn durable(&self) -> Result<Vec<u64>, Error> {
        self.scratch.durable().await
    }

    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error> {
        self.live.totals(site, metric, from, to, bots).await
    }

    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        self.live.sales(site, from, to).await
    }

    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        self.live.steps(site, from, to).await
    }

    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        self.live.checkouts(site, from, to, after, limit).await
    }

    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        self.live.labels(site, label, dims).await
    }

    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        self.live.scan(site, scan).await
    }

    async fn kept(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error> {
        let mut found = self.live.kept(site, sought).await?;
        found.extend(self.scratch.kept(site, sought).await?);
        // A live archiver may meanwhile have written what the stage has.
        found.sort_by(|a, b| (&a.event_id, a.partition, a.offset).cmp(&(&b.event_id, b.partition, b.offset)));
        found.dedup_by(|a, b| (a.partition, a.offset) == (b.partition, b.offset));
        Ok(found)
    }

    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        self.live.linked(site, person).await
    }

    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        self.live.books(site, from, to).await
    }

    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        self.live.quarantine(site, after, limit).await
    }

    async fn sites(&self) -> Result<Vec<SiteId>, Error> {
        self.live.sites().await
    }

    async fn days(&self) -> Result<Vec<i32>, Error> {
        self.live.days().await
    }

    async fn retain(&self, before: Timestamp, partitions: &[u16]) -> Result<(), Error> {
        self.scratch.retain(before, partitions).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.scratch.close().await
    }
}
