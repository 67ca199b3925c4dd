//! The archive and its answers: every event for the long term, and what analysts ask of them. Reads `events` only; must never read live objects. The
//! archiver is the only writer; report, export, audit, timeline and trace read over any [`Archive`].

pub mod archiver;
pub mod audit;
mod changed;
#[cfg(test)]
pub(crate) mod contract;
pub mod embedded;
pub mod export;
pub mod fold;
pub mod learning;
pub mod people;
pub mod progress;
mod recall;
mod recent;
pub mod report;
pub mod rollup;
#[cfg(feature = "scylla")]
pub mod scylla;
#[cfg(test)]
pub(crate) mod shop;
pub mod timeline;
pub mod top;
pub mod view;

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::identity::{CheckoutView, Entry, IdentityKey, OrderView, Sale, StepCount, Verdict, has_business_key};
use crate::event::{Channel, Currency, Flags, KeyKind, SiteId, Timestamp};

/// Length of a rollup cell in seconds: 15 minutes UTC.
pub const CELL_SECONDS: i64 = 900;

/// One archived event: a report as it first appeared. Primary key: site, event id, fingerprint, and [`Self::reporting_channel`] (scoped by
/// partition key as identity is).
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// The shop.
    pub site: SiteId,
    /// The event's id.
    pub event_id: String,
    /// Tells contents of one id apart.
    pub fingerprint: u64,
    /// What it was partitioned by.
    pub key_kind: KeyKind,
    /// Its type.
    pub kind: String,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// When it was taken.
    pub received_at: Timestamp,
    /// Where it stands in the log.
    pub partition: u16,
    /// Where it stands in the log.
    pub offset: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// Found at arrival.
    pub flags: Flags,
    /// How it came.
    pub channel: Channel,
    /// Keyed hash of the customer id, where it has one.
    pub customer: Option<[u8; 16]>,
    /// Keyed hash of the anonymous id, where it has one.
    pub visitor: Option<[u8; 16]>,
    /// The products it names, at most the first 64 distinct ones, sorted.
    pub products: Vec<String>,
    /// Names of the objects it touched (kind, name), in order.
    pub objects: Vec<(crate::event::ObjectKind, String)>,
    /// Id of the key the body is sealed with; 0 = not sealed.
    pub body_key: u16,
    /// Canonical JSON.
    pub body: Bytes,
}

impl EventRow {
    /// The channel where it tells reports apart: of events that a business key decides on. None for all others, whose second channel is a repeat.
    pub fn reporting_channel(&self) -> Option<Channel> {
        has_business_key(&self.kind).then_some(self.channel)
    }
}

/// What is counted by cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Metric {
    /// By normalised search term: `counts[0]` searches.
    Searches = 0,
    /// By normalised search term: `counts[0]` searches that found nothing (`results` = 0).
    EmptySearches = 1,
    /// By product: `counts[0]` views.
    Views = 2,
    /// By page path: `counts[0]` views.
    Pages = 3,
    /// By product: `counts[0]` units, `counts[1]` orders, and revenue; net of refunds. No people.
    Sold = 4,
    /// By step: `counts[0]` entered, `counts[1]` completed. No people.
    Steps = 5,
}

impl Metric {
    /// The metric of a number that [`Metric`] gives.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Searches, Self::EmptySearches, Self::Views, Self::Pages, Self::Sold, Self::Steps].into_iter().find(|metric| *metric as u8 == number)
    }
}

/// Names one cell of one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey {
    /// The shop.
    pub site: SiteId,
    /// What is counted.
    pub metric: Metric,
    /// Start of the cell.
    pub cell: Timestamp,
    /// Product, term, path or step.
    pub dim: String,
    /// Crawlers are counted apart.
    pub crawler: bool,
}

/// What a cell holds: an absolute value of its `events` partition, including its log up to the offset stored with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellValue {
    /// See [`Metric`].
    pub counts: [i64; 2],
    /// Money by currency.
    pub revenue: BTreeMap<Currency, i64>,
    /// Who: a mergeable sketch of distinct people.
    pub people: People,
}

/// A mergeable sketch of distinct people, see `rollup`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct People(pub Vec<u8>);

/// What is shown beside a dim: last writer by (min(occurred_at, received_at), event id).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Label {
    /// A product's name.
    ProductName = 0,
    /// A search term as typed.
    Spelling = 1,
    /// A page's title.
    PageTitle = 2,
    /// How many results a term's last search had, decimal.
    Results = 3,
    /// Countries a product is available in, JSON array.
    AvailableIn = 4,
}

impl Label {
    /// The label of a number that [`Label`] gives.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::ProductName, Self::Spelling, Self::PageTitle, Self::Results, Self::AvailableIn].into_iter().find(|label| *label as u8 == number)
    }
}

/// One label's value with what it competes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelValue {
    /// min(occurred_at, received_at).
    pub at: Timestamp,
    /// The event's id.
    pub event_id: String,
    /// The value.
    pub value: String,
}

/// Books of one site and hour of `received_at`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Event and quarantine records read from the log.
    pub appended: u64,
    /// Event rows written.
    pub archived: u64,
    /// Repeats.
    pub duplicate: u64,
    /// Quarantine records, and records that could not be read.
    pub quarantined: u64,
    /// Derived completions, apart.
    pub derived: u64,
    /// Refusals by code, beside the equation.
    pub refused: BTreeMap<String, u64>,
}

/// One record that was not taken as an event.
#[derive(Clone, Debug, PartialEq)]
pub struct QuarantineRow {
    /// The shop; None where the record could not even tell that.
    pub site: Option<SiteId>,
    /// The event id it was given.
    pub event_id: String,
    /// When it was taken.
    pub received_at: Timestamp,
    /// Where it stands in the log.
    pub partition: u16,
    /// Where it stands in the log.
    pub offset: u64,
    /// The refusal's code, or `unreadable_record`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// JSON pointer.
    pub pointer: String,
    /// The event as it came (JSON text), or the record's bytes.
    pub raw: Bytes,
}

/// A record that a store refuses by itself, say for its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it stands in the log.
    pub partition: u16,
    /// Where it stands in the log.
    pub offset: u64,
    /// What the store says.
    pub why: String,
}

/// What one partition's part of a write leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The next offset to read: all below is in the archive.
    pub next: u64,
    /// Greatest `received_at` of what is below.
    pub received_at: Timestamp,
}

/// What the archiver writes at once, from any number of partitions; values are absolute.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    /// New event rows.
    pub events: Vec<EventRow>,
    /// Cells, each as its partition now has it, with the partition.
    pub cells: Vec<(u16, CellKey, CellValue)>,
    /// Orders as they now stand, by site.
    pub orders: Vec<(u16, SiteId, OrderView)>,
    /// Checkouts as they now stand, by site; person already hashed.
    pub checkouts: Vec<(u16, SiteId, CheckoutView)>,
    /// Identity entries that changed.
    pub identities: Vec<(u16, IdentityKey, Entry)>,
    /// Labels that won within the batch; the store keeps the greater of each and what it has.
    pub labels: Vec<(SiteId, Label, String, LabelValue)>,
    /// Links seen of a visitor to a customer (keyed hashes).
    pub links: Vec<(SiteId, [u8; 16], [u8; 16])>,
    /// Books by partition, site and start of the hour, absolute.
    pub books: Vec<(u16, SiteId, Timestamp, Books)>,
    /// Quarantined records.
    pub quarantine: Vec<QuarantineRow>,
    /// Where each partition now is.
    pub cursors: Vec<(u16, Cursor)>,
}

/// Which shoppers are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bots {
    /// People only.
    #[default]
    Exclude,
    /// Everybody.
    Include,
    /// Crawlers only.
    Only,
}

/// A scan of event rows in (occurred_at, partition, offset) order, or its reverse.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// From this occurred_at (inclusive).
    pub from: Option<Timestamp>,
    /// To this occurred_at (exclusive).
    pub to: Option<Timestamp>,
    /// What to look for.
    pub by: ScanBy,
    /// Newest first.
    pub newest_first: bool,
    /// Continue behind this row.
    pub after: Option<(Timestamp, u16, u64)>,
    /// At most so many rows; a page with fewer is the last.
    pub limit: usize,
}

/// What a [`Scan`] looks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ScanBy {
    /// All events.
    #[default]
    All,
    /// Those whose customer or visitor is any of these keyed hashes.
    People(Vec<[u8; 16]>),
    /// Those that name this product.
    Product(String),
    /// Those of type `object_changed` whose object has this SID.
    Object(String),
    /// Those with this event id.
    EventId(String),
}

/// A report that is looked for, see [`Archive::kept`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The event's id.
    pub event_id: String,
    /// The UTC day of its `occurred_at`; None where that may be any: every day is looked at then.
    pub day: Option<i32>,
}

/// A report that a row is kept of: what tells it from others, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The event's id.
    pub event_id: String,
    /// See [`EventRow`].
    pub fingerprint: u64,
    /// See [`EventRow`].
    pub key_kind: KeyKind,
    /// See [`EventRow`].
    pub kind: String,
    /// See [`EventRow`].
    pub channel: Channel,
    /// See [`EventRow`].
    pub occurred_at: Timestamp,
    /// Where it stands in the log.
    pub partition: u16,
    /// Where it stands in the log.
    pub offset: u64,
}

/// The archive. Writers and readers may be different processes on a cluster; one writer per `events` partition. Calls may wait for one another (a cluster takes
/// so many requests at once): whoever begins one polls it to its end, or drops it.
#[async_trait]
pub trait Archive: Send + Sync + 'static {
    /// Where a partition's archiver goes on; the default where it never ran. To be asked by that archiver, before it reads anything else of the partition: the store may
    /// first put in order what the last one left. [`Error::Lost`] where it cannot: the partition is then to stand still. (Everybody else asks [`Archive::cursors`].)
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error>;

    /// The identity entries of a partition known under these keys.
    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error>;

    /// A partition's cells as stored; missing ones left out.
    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error>;

    /// A partition's books as stored; missing ones left out.
    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error>;

    /// Writes a batch. Event rows first, durable before the rest; then all else and the cursors (embedded: in one transaction; elsewhere each step acknowledged
    /// before the next: cells, then identities, orders and checkouts, then the cursors). Repeating a batch, whole or in part, changes nothing.
    /// [`Error::Refused`] names records whose rows cannot be taken, now or later, while others can: nothing is counted yet, and the batch is to be made anew without
    /// them. Where the store takes nothing, that is [`Error::Store`].
    async fn write(&self, batch: WriteBatch) -> Result<(), Error>;

    /// Where every partition is, for watermarks.
    async fn cursors(&self) -> Result<Vec<Cursor>, Error>;

    /// The `events` offsets, by partition, below which everything survives power loss. Call it seldom: retention follows it.
    async fn durable(&self) -> Result<Vec<u64>, Error>;

    /// Sums over the whole cells in `from..to` (both multiples of [`CELL_SECONDS`]) of all partitions, by dim; people merged.
    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error>;

    /// Sales that count at a time in `from..to`, as absolute values: for the partial cells at a report's edges.
    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error>;

    /// Steps that count at a time in `from..to`, likewise.
    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error>;

    /// Checkouts with `last_at` in `from..to`, at most `limit` of them, after (last_at, checkout), in that order; with their person's keyed hash as hex.
    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error>;

    /// Labels of these dims; missing ones left out.
    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error>;

    /// Event rows, see [`Scan`].
    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error>;

    /// The reports that rows are kept of under the ids sought, each once, in (event id, partition, offset) order: those of the day sought, whatever their
    /// content. Sees what was written before the call. Days without rows cost nothing, ids that are not kept little.
    async fn kept(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error>;

    /// Visitors linked to a customer, and customers linked to a visitor (keyed hashes), one step.
    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error>;

    /// Books of a site by hour in `from..to`, summed over partitions.
    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error>;

    /// Quarantined records of a site in (received_at, partition, offset) order after a place.
    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error>;

    /// The sites that have anything archived.
    async fn sites(&self) -> Result<Vec<SiteId>, Error>;

    /// UTC days that hold event rows of any site, oldest first.
    async fn days(&self) -> Result<Vec<i32>, Error>;

    /// Removes, by whole UTC days of `occurred_at`, the rows of each day before `before` of which nothing was taken (`received_at`) on that day or later; what counts at
    /// times of these days; orders and checkouts as far as they count then, and what identity remembers of that. So what was taken lately stays however long ago it
    /// happened, and answers stay what a recount of the rows is. Books and quarantined records go by their own `received_at`. (Elsewhere the store lets each row go
    /// by itself, so long after its `received_at`.)
    ///
    /// To be called by the archiver that owns `partitions`, and between its batches: what it read before must not be written after. Takes what is theirs alone
    /// (embedded, where one archiver owns all there are: everything). Which days go is judged by all partitions; where others take something of such a day
    /// meanwhile, each partition's answers stay what a recount of its own rows is. A call that is dropped leaves a partition as though it was stopped there: to be
    /// gone on with from [`Archive::cursor`].
    async fn retain(&self, before: Timestamp, partitions: &[u16]) -> Result<(), Error>;

    /// Finishes writes and closes.
    async fn close(&self) -> Result<(), Error>;
}

/// Settings of whichever backend a URL names.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Of `scylla://`.
    #[cfg(feature = "scylla")]
    pub scylla: crate::cql::Settings,
    /// Whether it is only read, maybe beside an archiver at work (learning mode).
    pub only_read: bool,
}

/// Opens the archive that `url` names: `embedded`, with its files in `dir` (made if missing; one process at a time), or `scylla://host:port,.../keyspace`, whose tables
/// `contrail migrate` made. `clock` says what is now.
///
/// # Errors
/// [`Error::BadQuestion`] for an unknown URL and for a keyspace that has yet to be migrated, [`Error::Corrupt`] for files of a later version, [`Error::Store`] when the disk
/// refuses or the cluster does not answer.
pub async fn open(url: &str, dir: &std::path::Path, settings: &Settings, clock: crate::event::Clock) -> Result<std::sync::Arc<dyn Archive>, Error> {
    #[cfg(feature = "scylla")]
    if url.starts_with("scylla:") {
        let archive = scylla::Scylla::open(url, &settings.scylla, clock).await?;
        return Ok(std::sync::Arc::new(if settings.only_read { archive.beside_its_archiver() } else { archive }));
    }
    #[cfg(not(feature = "scylla"))]
    drop((settings, clock));
    if url != "embedded" {
        return Err(Error::BadQuestion { parameter: "archive", message: format!("no archive is known by `{url}`; this build has: {KNOWN}") });
    }
    let dir = dir.to_owned();
    match tokio::task::spawn_blocking(move || embedded::Embedded::open(&dir)).await {
        Ok(archive) => Ok(std::sync::Arc::new(archive?)),
        Err(error) => Err(Error::Store(format!("opening the archive stopped: {error}"))),
    }
}

#[cfg(feature = "scylla")]
const KNOWN: &str = "embedded, scylla://host:port,.../keyspace";
#[cfg(not(feature = "scylla"))]
const KNOWN: &str = "embedded";

/// What can go wrong with the archive.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store refused or failed.
    #[error("archive: {0}")]
    Store(String),
    /// The store takes rows of other records, and none of these: see [`Archive::write`].
    #[error("archive: it refuses {} for good, and takes others{}", .0.len(), .0.first().map_or_else(String::new, |first| format!("; of the first it says: {}", first.why)))]
    Refused(Vec<Refused>),
    /// The store lost, in part, what it acknowledged of a partition.
    #[error("archive: {0}")]
    Lost(String),
    /// What is stored cannot be read.
    #[error("archive: {0} cannot be read")]
    Corrupt(String),
    /// The log failed underneath.
    #[error(transparent)]
    Log(#[from] crate::eventlog::Error),
    /// A parameter of a question is off.
    #[error("{parameter}: {message}")]
    BadQuestion {
        /// Which.
        parameter: &'static str,
        /// Why.
        message: String,
    },
    /// The archive is closed.
    #[error("archive is closed")]
    Closed,
}

impl Error {
    /// Whether the same call may succeed later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Log(error) => error.is_retryable(),
            Self::Store(_) | Self::Refused(_) => true,
            Self::Lost(_) | Self::Corrupt(_) | Self::BadQuestion { .. } | Self::Closed => false,
        }
    }
}
