//! The archive on ScyllaDB or Apache Cassandra, in the tables of `schemas/archive.cql`. Opened by the composition root through `archive::open`.
//! Must never write a cursor before all that it stands for is acknowledged by a quorum.
//!
//! A batch is written in steps, each acknowledged before the next: event rows and all else that is only ever inserted; the journal, a piece for
//! each partition of `events`; cells, books and lists; identity, orders and checkouts; cursors. Every write is a function of the log alone, with a
//! write timestamp that makes the later state win (`stamp`), so that a batch written again, or late by an archiver that lost the partition
//! meanwhile, changes nothing.
//!
//! * **Lost acknowledgements.** A replica syncs what it acknowledged within seconds. Where all replicas of something lose power at once, the last
//!   of it is gone, from some moment on. [`Settings::safety_window`] is longer than that: so long [`Archive::durable`] stays behind, so that the
//!   log has the records still, and so long the journal's pieces stay, which the next archiver writes again from the first to the last that is
//!   left; there the partition goes on. A partition whose cursor was kept while its latest piece was lost is refused: nothing could tell what else
//!   is missing.
//! * **A node that begins anew** beside a running archiver is noticed before the next batch builds on what it may have lost (by when its process
//!   began, and a batch fails at the first connection that breaks): the archiver goes back to the cursors that are left. A node that loses power
//!   and is back before a request to it times out may still take the last batch's steps in two lives.
//! * **Archivers** own partitions, and write, correct and remove what is of these alone. Rows that are of no partition (labels, links, sites) are only ever
//!   inserted, and say themselves which of two wins.

mod adopt;
mod events;
mod journal;
mod known;
mod label;
mod listing;
mod merge;
mod read;
mod retention;
mod rows;
mod scan;
mod stamp;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::journal::Part;
use self::known::Known;
use self::listing::Listing;
use super::{
    Archive, Books, Bots, CellKey, CellValue, Cursor, Error, EventRow, Kept, Label, LabelValue, Metric, QuarantineRow, Scan, Sought, WriteBatch,
};
use crate::cql::{self, Address, Cluster, Settings};
use crate::event::identity::{CheckoutView, EVENT_MEMORY_SECONDS, Entry, IdentityKey, Sale, StepCount};
use crate::event::{Clock, PARTITIONS, SiteId, Timestamp};

/// How often pieces of the journal are removed, at most.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Why nothing is built on what this process knows to be written.
const BEGAN_ANEW: &str = "a node of the cluster began anew: what it acknowledged last may be lost";
/// Keys looked for at once.
const LOOKED_FOR: usize = 2_000;

/// The archive on a cluster.
pub struct Scylla {
    cluster: Cluster,
    clock: Clock,
    listing: Listing,
    remembered: events::Remembered,
    parts: Mutex<Vec<Known>>,
    safety_window: Duration,
    /// Restarts of nodes that were made good.
    restarts: AtomicU64,
    /// Whether another process archives meanwhile, and this one reads.
    beside: bool,
    closed: AtomicBool,
}

impl Scylla {
    /// Connects to the cluster that a URL `scylla://host:port,host/keyspace` names. `clock` says what is now, for write timestamps.
    ///
    /// # Errors
    /// [`Error::BadQuestion`] for a URL or settings that cannot be meant so, and for a keyspace that `contrail migrate` has yet to make or change;
    /// [`Error::Store`] where the cluster does not answer.
    pub async fn open(url: &str, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        let cluster = Cluster::connect(&Address::parse(url)?, settings).await?;
        Ok(Self {
            cluster,
            clock,
            listing: Listing::new(),
            remembered: events::Remembered::default(),
            parts: Mutex::new(vec![Known::default(); usize::from(PARTITIONS)]),
            safety_window: settings.safety_window,
            restarts: AtomicU64::new(0),
            beside: false,
            closed: AtomicBool::new(false),
        })
    }

    /// For reading beside an archiver that goes further meanwhile: what it wrote is answered, not refused. Nothing may be written by this one.
    #[must_use]
    pub fn beside_its_archiver(self) -> Self {
        Self { beside: true, ..self }
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Looks at or changes what is known of a partition.
    fn known<T>(&self, part: u16, look: impl FnOnce(&mut Known) -> T) -> Result<T, Error> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = parts.get_mut(usize::from(part)).ok_or_else(|| Error::Store(format!("there is no partition {part}")))?;
        Ok(look(known))
    }

    /// Where a partition is, as far as this process knows.
    async fn known_cursor(&self, part: u16) -> Result<Cursor, Error> {
        if let Some(cursor) = self.known(part, |known| known.cursor)? {
            return Ok(cursor);
        }
        let cursor = self.stored_cursor(part).await?;
        let stamp = stamp::of(stamp::GENERATION, cursor.next)?;
        self.known(part, |known| {
            known.stamp = known.stamp.max(stamp);
            *known.cursor.get_or_insert(cursor)
        })
    }

    /// Whether a node began anew since this was asked last. Nothing that this process knows to be written is known any more then: all that is left
    /// of the journal is to be done again, and the log to be read from there.
    async fn is_doubtful(&self) -> bool {
        let restarts = self.cluster.restarts().await;
        if self.restarts.swap(restarts, Ordering::SeqCst) == restarts {
            return false;
        }
        self.listing.forget();
        self.remembered.forget();
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(Known::doubt);
        true
    }

    /// Refuses to build on what may be lost.
    async fn check_nodes(&self, parts: impl Iterator<Item = u16> + Send) -> Result<(), Error> {
        let now = self.is_doubtful().await;
        let mut before = false;
        for part in parts {
            before |= self.known(part, |known| known.doubtful)?;
        }
        if now || before {
            return Err(Error::Store(BEGAN_ANEW.into()));
        }
        Ok(())
    }

    /// Does again what the journal of a partition has: at the first call all that is left of it, then what lies behind the cursor. Gives where the
    /// partition then is.
    ///
    /// A piece that was whole before anything of it was written can be done again whenever, and as often: what is newer has greater write timestamps.
    async fn recover(&self, part: u16) -> Result<Cursor, Error> {
        self.is_doubtful().await;
        let restarts = self.restarts.load(Ordering::SeqCst);
        let stored = self.stored_cursor(part).await?;
        let recovered = self.known(part, |known| known.recovered)?;
        let behind = if recovered { stored.next as i64 - 1 } else { -1 };
        let pieces = self.journaled(part, behind).await?;
        let last = pieces.iter().map(|(next, _)| *next).max().unwrap_or(0);
        if last < stored.next {
            let lost =
                format!("partition {part} stands at {}, and its journal ends at {last}: what the store acknowledged is lost in part", stored.next);
            metrics::counter!("contrail_archive_lost_acknowledgements_total").increment(1);
            return Err(Error::Lost(lost));
        }
        for (_, piece) in pieces {
            // Read one by one: all of the safety window's may be large.
            self.apply(&BTreeMap::from([(part, Part::read(&piece)?)]), &BTreeMap::new()).await?;
        }
        // A line that was removed since may have been put behind its removal just now.
        self.listing.forget();
        let cursor = self.stored_cursor(part).await?;
        let stamp = stamp::of(stamp::GENERATION, cursor.next)?;
        let is_done = self.known(part, |known| {
            // What was done again before a node began anew, as another partition's recovery may have found, may be lost with it.
            let is_done = self.restarts.load(Ordering::SeqCst) == restarts;
            if is_done {
                known.recover(Instant::now(), cursor, stamp, self.safety_window);
            }
            is_done
        })?;
        if is_done { Ok(cursor) } else { Err(Error::Store(BEGAN_ANEW.into())) }
    }

    /// What an archiver may build on: values written no later than its cursor. Of anything newer it says so, and the archiver begins anew, where the
    /// journal has it that another went further, or lost something.
    async fn ours(&self, part: u16) -> Result<impl Fn(i64) -> Result<(), Error> + Send + Sync + use<>, Error> {
        let latest = match self.beside {
            true => i64::MAX,
            false => stamp::whole(stamp::of(stamp::GENERATION, self.known_cursor(part).await?.next)?),
        };
        Ok(move |written: i64| match written <= latest {
            true => Ok(()),
            false => {
                Err(Error::Store(format!("partition {part} was written further than its archiver is: another one has it, or its cursor is lost")))
            }
        })
    }

    /// The parts of a batch, each with its write timestamp.
    async fn stamped(&self, batch: WriteBatch) -> Result<BTreeMap<u16, Part>, Error> {
        let mut parts = journal::parts(batch);
        for (part, of) in &mut parts {
            let known = self.known_cursor(*part).await?;
            let stamp = match of.cursor() {
                Some(cursor) => stamp::of(stamp::GENERATION, cursor.next)?,
                None => self.known(*part, |known| known.stamp)? + 1,
            };
            self.known(*part, |known| known.stamp = known.stamp.max(stamp))?;
            of.complete(stamp, known);
        }
        Ok(parts)
    }

    /// Removes pieces of the journal that no one will need, now and then: of all these partitions at once, as a cluster that does nothing is to be waited for
    /// once, not for each. One that stays is only in the way.
    async fn forget_pieces(&self, parts: impl Iterator<Item = u16> + Send) -> Result<(), Error> {
        let (now, window) = (Instant::now(), self.safety_window);
        let mut writes = Vec::new();
        for part in parts {
            let below = self.known(part, |known| {
                let due = known.forgotten.is_none_or(|at| now.duration_since(at) >= FORGET_EVERY);
                let below = known.durable(now, window).filter(|below| due && *below > 0);
                known.forgotten = below.map(|_| now).or(known.forgotten);
                below
            })?;
            if let Some(below) = below {
                writes.push(journal::forget(part, below)?);
            }
        }
        Ok(self.cluster.write(writes).await?)
    }
}

#[async_trait]
impl Archive for Scylla {
    /// Does first what the journal says was begun, or may have been lost.
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error> {
        self.check_open()?;
        self.recover(partition).await
    }

    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        self.check_open()?;
        let hour = |at: Timestamp| at.micros().div_euclid(3_600_000_000);
        let oldest = hour(self.known_cursor(partition).await?.received_at.plus_seconds(-EVENT_MEMORY_SECONDS));
        let ours = self.ours(partition).await?;
        let mut found = Vec::new();
        for keys in keys.chunks(LOOKED_FOR) {
            for (key, entry, seen, written) in self.stored_identities(keys).await? {
                ours(written)?;
                if !matches!(entry, Entry::Event(_)) || hour(seen) >= oldest {
                    found.push((key, entry));
                }
            }
        }
        Ok(found)
    }

    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        self.check_open()?;
        let ours = self.ours(partition).await?;
        let mut found = Vec::new();
        for keys in keys.chunks(LOOKED_FOR) {
            let cells = Cluster::gather(keys.iter().map(|key| self.stored_cell(partition, key)).collect()).await?;
            cells.iter().flatten().try_for_each(|cell| ours(cell.written))?;
            found.extend(keys.iter().zip(cells).filter_map(|(key, cell)| Some((key.clone(), cell?.value))));
        }
        Ok(found)
    }

    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        self.check_open()?;
        let ours = self.ours(partition).await?;
        let books = Cluster::gather(keys.iter().map(|(site, hour)| self.stored_books(partition, site, *hour)).collect()).await?;
        books.iter().flatten().try_for_each(|(_, written)| ours(*written))?;
        Ok(keys.iter().zip(books).filter_map(|((site, hour), books)| Some((site.clone(), *hour, books?.0))).collect())
    }

    async fn write(&self, mut batch: WriteBatch) -> Result<(), Error> {
        self.check_open()?;
        let cursors = batch.cursors.clone();
        self.check_nodes(cursors.iter().map(|(part, _)| *part)).await?;
        self.insert(&mut batch).await?;
        let parts = self.stamped(batch).await?;
        let journaled: BTreeMap<u16, u64> = parts.iter().filter_map(|(part, of)| Some((*part, of.cursor()?.next))).collect();
        self.apply(&parts, &journaled).await?;
        for (part, of) in &parts {
            let Some(cursor) = of.cursor() else { continue };
            self.known(*part, |known| {
                known.cursor = Some(cursor);
                known.acknowledge(Instant::now(), cursor.next, self.safety_window);
            })?;
        }
        if let Err(error) = self.forget_pieces(journaled.into_keys()).await {
            tracing::warn!(%error, "pieces of the archive's journal stay for now");
        }
        Ok(())
    }

    async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        self.check_open()?;
        self.stored_cursors().await
    }

    /// What was acknowledged longer than the safety window ago. Of a partition that this process has not written, only what stood there so long ago
    /// that it saw it.
    async fn durable(&self) -> Result<Vec<u64>, Error> {
        self.check_open()?;
        self.check_nodes(std::iter::empty()).await?;
        let stored = self.stored_cursors().await?;
        let (now, window) = (Instant::now(), self.safety_window);
        let durable = (0..PARTITIONS).zip(stored).map(|(part, cursor)| {
            self.known(part, |known| {
                known.acknowledge(now, cursor.next, window);
                known.durable(now, window).unwrap_or(0)
            })
        });
        durable.collect()
    }

    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error> {
        self.check_open()?;
        self.sum(site, metric, from, to, bots).await
    }

    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        self.check_open()?;
        self.sales_between(site, from, to).await
    }

    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        self.check_open()?;
        self.steps_between(site, from, to).await
    }

    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        self.check_open()?;
        self.checkouts_between(site, from, to, after, limit).await
    }

    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        self.check_open()?;
        self.labels_of(site, label, dims).await
    }

    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        self.check_open()?;
        self.scan_rows(site, scan).await
    }

    async fn kept(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error> {
        self.check_open()?;
        self.kept_rows(site, sought).await
    }

    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        self.check_open()?;
        self.linked_to(site, person).await
    }

    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        self.check_open()?;
        self.books_between(site, from, to).await
    }

    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        self.check_open()?;
        self.quarantined(site, after, limit).await
    }

    async fn sites(&self) -> Result<Vec<SiteId>, Error> {
        self.check_open()?;
        self.all_sites().await
    }

    async fn days(&self) -> Result<Vec<i32>, Error> {
        self.check_open()?;
        Ok(self.all_days().await?.into_keys().collect())
    }

    async fn retain(&self, before: Timestamp, partitions: &[u16]) -> Result<(), Error> {
        self.check_open()?;
        if partitions.is_empty() {
            return Ok(());
        }
        self.check_nodes(partitions.iter().copied()).await?;
        let taken = self.take_before(before, partitions).await;
        self.listing.forget();
        taken
    }

    async fn close(&self) -> Result<(), Error> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl From<cql::Error> for Error {
    fn from(error: cql::Error) -> Self {
        match error {
            cql::Error::Settings(_) | cql::Error::Schema(_) => Self::BadQuestion { parameter: "archive", message: error.to_string() },
            cql::Error::Form(what) => Self::Corrupt(what),
            // What is refused for good may be so by a guardrail that somebody lifts: the archiver waits and says so, and passes over nothing.
            cql::Error::Unavailable(_) | cql::Error::Refused(_) => Self::Store(error.to_string()),
        }
    }
}
