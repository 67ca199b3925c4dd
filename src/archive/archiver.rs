//! The archive's only writer: reads `events`, folds what it read into one batch of absolute values, writes it, and moves on from there; now and then
//! removes what is past its age. Run by the composition root. Must never commit an offset before the write that reflects it, nor pass over a record:
//! one that the archive cannot keep goes to quarantine, with its place.
//!
//! Transactions grow with the backlog: whatever arrived while the last batch was written becomes the next one, up to
//! [`Settings::max_events`] records, [`Settings::max_bytes`] or [`Settings::longest`].

mod batch;
mod seek;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::batch::Known;
use super::fold::ObjectsOf;
use super::progress::Progress;
use super::top::{self, Touched};
use super::{Archive, Cursor, Error};
use crate::background::{Worker, aside};
use crate::event::{Clock, PARTITIONS, RulesOf};
use crate::eventlog::{Consumer, Delivery, EventLog, Stored, Topic};

/// The archiver's consumer group of `events`.
pub const GROUP: &str = "archiver";

/// When retention that failed is tried again.
const RETAIN_AGAIN: Duration = Duration::from_secs(60);

/// What it waits for, in [`Progress::waits`]'s words.
const ANSWER: &str = "an answer of the archive";
const REMOVAL: &str = "the removal of old events";

/// Records that the archive refuses, by partition and offset, with why.
type Aside = BTreeMap<(u16, u64), String>;

/// How the archiver gathers and remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Records at which a batch is written.
    pub max_events: usize,
    /// Bytes of records at which a batch is written.
    pub max_bytes: usize,
    /// Age at which a batch is written.
    pub longest: Duration,
    /// How long a batch waits for a further delivery.
    pub linger: Duration,
    /// How often written offsets are made durable and committed to the log, which may then forget what is below.
    pub durable_every: Duration,
    /// First pause after a failed write; doubles up to a hundred times it.
    pub backoff: Duration,
    /// How long the archive may take for anything before [`Progress::waits`] tells that it is waited for: above what one in health takes, and long before
    /// one that does nothing is given up.
    pub told_after: Duration,
    /// Bytes of cells, and of orders and checkouts, kept in memory (each, at most twice as much).
    pub cache_bytes: usize,
    /// How long the dashboard documents rest after each publication, at least.
    pub top_every: Duration,
    /// How long what was taken is kept.
    pub retention: Duration,
    /// How often what is older is removed: at the start, and then so often.
    pub retain_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_events: 20_000,
            max_bytes: 16 << 20,
            longest: Duration::from_secs(1),
            linger: Duration::from_millis(20),
            durable_every: Duration::from_secs(10),
            backoff: Duration::from_millis(100),
            told_after: Duration::from_secs(10),
            cache_bytes: 12 << 20,
            top_every: Duration::from_secs(1),
            retention: Duration::from_secs(400 * 86_400),
            retain_every: Duration::from_secs(3_600),
        }
    }
}

impl Settings {
    /// How long to wait after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let longest = self.backoff * (1 << failures.min(7)).min(100);
        longest.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

/// The archiver with all it works on.
pub struct Archiver {
    /// Read from (`events`) and written to (`changes`: the dashboard documents).
    pub log: Arc<dyn EventLog>,
    /// Written to.
    pub archive: Arc<dyn Archive>,
    /// The sites' rules.
    pub rules: RulesOf,
    /// For the dashboards' day, and for how old things are.
    pub clock: Clock,
    /// Names of the objects an event touches.
    pub objects_of: ObjectsOf,
    /// Where it tells how far it is.
    pub progress: Arc<Progress>,
    /// How it works.
    pub settings: Settings,
}

impl Archiver {
    /// Archives until `stop`; then writes what it has gathered, commits, and returns.
    ///
    /// # Errors
    /// What trying again does not mend. A partition that cannot be read on is none: it stops alone, see [`Progress::failed`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let touched = Arc::new(Touched::default());
        let publisher = top::Publisher {
            log: Arc::clone(&self.log),
            archive: Arc::clone(&self.archive),
            rules: Arc::clone(&self.rules),
            clock: self.clock.clone(),
            touched: Arc::clone(&touched),
            every: self.settings.top_every,
        };
        let mut children = tokio::task::JoinSet::new();
        let publishing = stop.child_token();
        children.spawn(publisher.run(publishing.clone()));
        let computing = Worker::start("archive-fold").map_err(|error| Error::Store(format!("no thread to fold batches: {error}")))?;
        let archived = match self.subscribe(&stop).await {
            Ok(Some(consumer)) => Run::new(self, touched, consumer, computing).run(&stop).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        publishing.cancel();
        while let Some(ended) = children.join_next().await {
            ended.map_err(|error| Error::Store(format!("the dashboards' publisher stopped: {error}")))?;
        }
        archived
    }

    /// What the archive answers. Where that is long in coming, it is told meanwhile.
    async fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let _wait = self.progress.wait(ANSWER, self.settings.told_after);
        answer.await
    }

    /// Joins its group, however long the log takes to answer; None where it is stopped before.
    async fn subscribe(&self, stop: &CancellationToken) -> Result<Option<Box<dyn Consumer>>, Error> {
        let mut failures = 0;
        loop {
            let error = match self.log.subscribe(Topic::Events, GROUP).await {
                Ok(consumer) => {
                    self.progress.stands_still(None);
                    return Ok(Some(consumer));
                }
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error.into()),
            };
            failures += 1;
            let pause = self.settings.pause(failures);
            tracing::warn!(%error, failures, pause_ms = pause.as_millis() as u64, "the archiver cannot join its group at present; trying again");
            metrics::counter!("contrail_archiver_retries_total").increment(1);
            self.progress.stands_still(Some(error.to_string()));
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// What a running archiver holds.
struct Run {
    job: Archiver,
    touched: Arc<Touched>,
    consumer: Box<dyn Consumer>,
    /// Owned partitions that can be read: where the next record must stand.
    owned: BTreeMap<u16, Owned>,
    /// The others: the archive did not say where they go on. Nothing of them is read, committed or removed.
    unsought: BTreeSet<u16>,
    /// When it is asked again, where that may help.
    seek_at: Option<Instant>,
    pending: Pending,
    recent: Known,
    /// Where batches are folded.
    computing: Worker,
    /// When offsets are next made durable; None while all that is written is committed.
    commit_at: Option<Instant>,
    /// When what is past its age is removed next.
    retain_at: Instant,
    /// Whether partitions went while that was under way.
    retain_lost: bool,
    /// To be quarantined instead of archived.
    aside: Arc<Aside>,
    failures: u32,
}

/// An owned partition.
#[derive(Debug)]
struct Owned {
    /// What is written.
    written: Cursor,
    /// The next offset to be delivered; the greatest there is where nothing is to be taken.
    expected: u64,
}

/// What was delivered and not yet written.
#[derive(Default)]
struct Pending {
    records: Vec<(u16, Vec<Stored>)>,
    count: usize,
    bytes: usize,
}

impl Run {
    fn new(job: Archiver, touched: Arc<Touched>, consumer: Box<dyn Consumer>, computing: Worker) -> Self {
        let recent = Known::new(job.settings.cache_bytes);
        let retain_at = Instant::now();
        Self {
            job,
            touched,
            consumer,
            owned: BTreeMap::new(),
            unsought: BTreeSet::new(),
            seek_at: None,
            pending: Pending::default(),
            recent,
            computing,
            commit_at: None,
            retain_at,
            retain_lost: false,
            aside: Arc::default(),
            failures: 0,
        }
    }

    async fn run(mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            match self.step(stop).await {
                // What failed to be written may not have been delivered again yet.
                Ok(has_written) if self.seek_at.is_none() && (has_written || self.job.progress.owes_nothing()) => {
                    self.failures = 0;
                    self.goes_on();
                }
                Ok(_) => {}
                Err(error) if error.is_retryable() && !stop.is_cancelled() => self.start_over(error, stop).await?,
                Err(error) => return Err(error),
            }
            if stop.is_cancelled() {
                return self.commit().await;
            }
        }
    }

    /// Gathers a batch and writes it; or, where nothing comes, makes durable what was written. Before that, when it is time to, asks again where partitions
    /// stand, and removes what is past its age. True where something was written.
    async fn step(&mut self, stop: &CancellationToken) -> Result<bool, Error> {
        if self.seek_at.is_some_and(|at| at <= Instant::now()) {
            self.seek().await?;
            self.goes_on();
        }
        if self.retain_at <= Instant::now() {
            self.retain(stop).await?;
        }
        self.gather(stop).await?;
        let is_to_write = self.pending.count > 0;
        if is_to_write {
            self.write().await?;
            // Told before what was written is durable, which may take longer.
            self.goes_on();
            self.commit_at.get_or_insert_with(|| Instant::now() + self.job.settings.durable_every);
        }
        if self.commit_at.is_some_and(|at| at <= Instant::now()) {
            self.commit().await?;
        }
        Ok(is_to_write)
    }

    /// Nothing stands still any longer, but for partitions that are still sought.
    fn goes_on(&self) {
        if self.seek_at.is_none() {
            self.job.progress.stands_still(None);
        }
    }

    /// Takes deliveries until the batch is full, old enough, or none comes for a moment.
    async fn gather(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let Settings { max_events, max_bytes, longest, linger, .. } = self.job.settings;
        let mut full_at = None;
        loop {
            let room = max_bytes.saturating_sub(self.pending.bytes);
            if room == 0 || self.pending.count >= max_events {
                return Ok(());
            }
            // After a failure it is soon told where nothing is there to be done again.
            let told_at = (self.failures > 0).then(|| Instant::now() + longest);
            let mut until = [self.commit_at, self.seek_at, told_at].into_iter().flatten().fold(self.retain_at, Instant::min);
            // Also what came before, while old events were removed.
            if self.pending.count > 0 {
                let now = Instant::now();
                let full_at = *full_at.get_or_insert(now + longest);
                if now >= full_at {
                    return Ok(());
                }
                until = full_at.min(now + linger);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                delivery = self.consumer.next(room.min(max_bytes / 4)) => self.take(delivery?).await?,
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    async fn take(&mut self, delivery: Delivery) -> Result<(), Error> {
        match delivery {
            Delivery::Assigned(partitions) => {
                self.unsought.extend(partitions);
                self.seek().await?;
            }
            Delivery::Revoked(partitions) => {
                self.pending.forget(&partitions);
                for partition in partitions {
                    self.owned.remove(&partition);
                    self.unsought.remove(&partition);
                    self.job.progress.forget(partition);
                    self.touched.own(partition, false);
                }
                self.retain_lost = true;
                // A partition that comes back may have been written by another meanwhile.
                self.recent.clear();
            }
            Delivery::Records { partition, records, next } => self.take_records(partition, records, next),
            Delivery::Failed { partition, error } if error.is_retryable() => {
                tracing::warn!(partition, %error, "a partition of events cannot be read at present; trying again");
                return Err(error.into());
            }
            Delivery::Failed { partition, error } => self.fail(partition, &error.to_string()),
        }
        Ok(())
    }

    fn take_records(&mut self, partition: u16, mut records: Vec<Stored>, next: u64) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        // What was under way when the reader was sent back.
        records.retain(|record| record.offset >= owned.expected);
        let gap = records.iter().zip(owned.expected..).find(|(record, expected)| record.offset != *expected);
        if let Some((record, expected)) = gap {
            let gap = format!("offset {} was delivered where {expected} was due", record.offset);
            return self.fail(partition, &gap);
        }
        self.job.progress.update(partition, |progress| progress.end = next);
        if let Some(last) = records.last() {
            owned.expected = last.offset + 1;
            self.pending.push(partition, records);
        }
    }

    /// Removes what is past its age, between two batches, and forgets what it remembered of it: neither may bring back what is gone. Listens meanwhile, and
    /// stops where partitions go: what is begun of the others is then gone on with from their cursors.
    async fn retain(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        self.recent.clear();
        self.retain_lost = false;
        let age = i64::try_from(self.job.settings.retention.as_secs()).unwrap_or(i64::MAX);
        let (archive, before) = (Arc::clone(&self.job.archive), self.job.clock.now().plus_seconds(-age));
        let owned: Vec<u16> = self.owned.keys().copied().collect();
        let mut retaining = aside(async move { archive.retain(before, &owned).await });
        let progress = Arc::clone(&self.job.progress);
        let _wait = progress.wait(REMOVAL, self.job.settings.told_after);
        let max_bytes = self.job.settings.max_bytes;
        let retained = loop {
            let room = max_bytes.saturating_sub(self.pending.bytes);
            tokio::select! {
                biased;
                retained = &mut retaining => break retained,
                () = stop.cancelled() => {
                    // What is begun is gone on with from the cursors; nothing may be written before.
                    self.pending = Pending::default();
                    return Ok(());
                }
                delivery = self.consumer.next(room.min(max_bytes / 4)), if room > 0 => {
                    self.take(delivery?).await?;
                    if self.retain_lost {
                        self.retain_at = Instant::now() + RETAIN_AGAIN;
                        return Err(Error::Store("partitions went to another archiver while old events were being removed".into()));
                    }
                }
            }
        };
        let every = self.job.settings.retain_every;
        let Err(error) = retained else {
            self.retain_at = Instant::now() + every;
            return Ok(());
        };
        tracing::warn!(%error, "old events could not be removed; tried again soon");
        self.retain_at = Instant::now() + every.min(RETAIN_AGAIN);
        // It may be half done: nothing is written before that is made whole.
        if error.is_retryable() { Err(error) } else { Ok(()) }
    }

    /// Makes what is written durable and lets the log forget it.
    async fn commit(&mut self) -> Result<(), Error> {
        let durable = self.job.wait(self.job.archive.durable()).await?;
        for (partition, next) in (0..PARTITIONS).zip(durable) {
            if self.owned.contains_key(&partition) {
                self.consumer.commit(partition, next);
            }
        }
        self.commit_at = None;
        Ok(())
    }
}

impl Pending {
    fn push(&mut self, partition: u16, records: Vec<Stored>) {
        self.count += records.len();
        self.bytes += records.iter().map(|record| record.value.len()).sum::<usize>();
        self.records.push((partition, records));
    }

    fn forget(&mut self, partitions: &[u16]) {
        let kept = std::mem::take(&mut self.records).into_iter().filter(|(partition, _)| !partitions.contains(partition));
        *self = kept.fold(Self::default(), |mut all, (partition, records)| {
            all.push(partition, records);
            all
        });
    }
}

#[cfg(test)]
mod flaky;
#[cfg(test)]
mod recount;
#[cfg(test)]
mod retention;
#[cfg(test)]
pub(super) mod tests;
