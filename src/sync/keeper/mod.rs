//! The keeper: owns the objects of its partitions of `changes`, folds changes in, writes objects within their budget and hands the writes to the feed.
//! Run by the composition root, one per process. Must never store a checkpoint above what is written and published, nor write an object more often
//! than its budget allows.
//!
//! [`state`] is the pure machine; this file is its loop: read, load what is missing, fold, write what is due (one commit at a time, while reading goes
//! on), publish (`flight`; the next commit does not wait for it, checkpoints do), and now and then sweep what has expired (`sweep`). Partitions that go
//! to another keeper are given up alone: what is on its way of them is seen through, what waits of them is dropped.

mod flight;
pub mod state;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::state::{Batch, Flight, KeeperState};
use super::expiry::Expiry;
use super::object::Object;
use super::status::Status;
use super::{Error, Feed, ObjectStore, naming};
use crate::background::aside;
use crate::event::{Clock, ObjectKey};
use crate::eventlog::{Consumer, Delivery, EventLog, Topic};

/// The keeper's consumer group on `changes`.
pub const GROUP: &str = "keeper";

/// Records behind, in one partition, from which writes are gathered for longer: throughput before latency.
const BACKLOG: u64 = 1_000;
/// How soon the next sweep follows one that found as much as it may take.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);
/// Most keys of one load.
const LOAD: usize = 2_000;

/// How a keeper works.
#[derive(Clone, Debug)]
pub struct KeeperSettings {
    /// How long a first change waits for others of its object.
    pub gather: Duration,
    /// How long writes are gathered that somebody waits for, while `changes` has no backlog.
    pub gather_awaited: Duration,
    /// How long writes are gathered at most while `changes` has a backlog.
    pub gather_most: Duration,
    /// Bytes of changes not yet written at which reading stops.
    pub max_pending_bytes: usize,
    /// Bytes of objects kept in memory.
    pub max_cached_bytes: usize,
    /// Bytes of changes read at a time.
    pub read_bytes: usize,
    /// Most objects of one write.
    pub write_objects: usize,
    /// After how long objects expire.
    pub expiry: Expiry,
    /// How often expired objects and old tombstones are looked for.
    pub sweep_every: Duration,
    /// How long a removed object's tombstone is kept at least.
    pub tombstones: Duration,
    /// How often the store is asked what is durable, so that retention may follow.
    pub commit_every: Duration,
    /// How long a checkpoint alone waits for a write to go with.
    pub checkpoint_every: Duration,
    /// Least and most wait before beginning again after an error.
    pub backoff: (Duration, Duration),
}

impl Default for KeeperSettings {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(10),
            gather_awaited: Duration::from_millis(3),
            gather_most: Duration::from_millis(250),
            max_pending_bytes: 32 << 20,
            max_cached_bytes: 64 << 20,
            read_bytes: 1 << 20,
            write_objects: 20_000,
            expiry: Expiry::default(),
            sweep_every: Duration::from_secs(60),
            tombstones: Duration::from_secs(30 * 86_400),
            commit_every: Duration::from_secs(30),
            checkpoint_every: Duration::from_secs(1),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }
}

/// Reads `changes`, writes objects.
pub struct Keeper {
    /// Both topics: `changes` is read, and removals of expired objects are appended to it.
    pub log: Arc<dyn EventLog>,
    /// Where objects and checkpoints are kept.
    pub store: Arc<dyn ObjectStore>,
    /// Where writes are told.
    pub feed: Arc<dyn Feed>,
    /// Judges budget and expiry.
    pub clock: Clock,
    /// How it works.
    pub settings: KeeperSettings,
    /// Where it tells how far it is.
    pub status: Arc<Status>,
}

impl Keeper {
    /// Keeps objects until `stop`, then writes what the budgets allow; the rest stays in the log for the next start. Begins again after an error that
    /// may pass.
    ///
    /// # Errors
    /// One that will not pass: the log or the store is closed or unreadable.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let mut wait = self.settings.backoff.0;
        loop {
            let began = Instant::now();
            match self.keep(&stop).await {
                Ok(()) => return Ok(()),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => tracing::warn!(%error, "keeper begins again from its stored checkpoints"),
            }
            self.status.release_all(Topic::Changes);
            metrics::counter!("contrail_keeper_restarts_total").increment(1);
            if began.elapsed() > Duration::from_secs(60) {
                wait = self.settings.backoff.0;
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(wait.mul_f64(jitter)) => {}
            }
            wait = (wait * 2).min(self.settings.backoff.1);
        }
    }

    async fn keep(&self, stop: &CancellationToken) -> Result<(), Error> {
        let settings = &self.settings;
        let consumer = self.log.subscribe(Topic::Changes, GROUP).await?;
        let state = KeeperState::new(settings.expiry, settings.gather, settings.max_pending_bytes, settings.max_cached_bytes);
        let mut run = Run {
            keeper: self,
            consumer,
            state,
            flight: None,
            committed: Vec::new(),
            publishing: None,
            sweep: None,
            paused: false,
            window: settings.gather,
            pace: (Duration::ZERO, Instant::now()),
            departed: Instant::now(),
            rested: Instant::now(),
        };
        let outcome = run.until(stop).await;
        match outcome {
            Ok(()) => run.drain().await,
            // A commit under way is awaited, so that the next start reads whole state.
            Err(error) => {
                if let Some(flight) = run.flight.take() {
                    flight.await.ok();
                }
                Err(error)
            }
        }
    }
}

/// The keeper between one start and the next error.
struct Run<'a> {
    keeper: &'a Keeper,
    consumer: Box<dyn Consumer>,
    state: KeeperState,
    flight: Option<BoxFuture<'static, Result<Flight, Error>>>,
    /// Committed, and waiting to be published.
    committed: Vec<Flight>,
    publishing: Option<BoxFuture<'static, Result<Vec<Flight>, Error>>>,
    sweep: Option<BoxFuture<'static, Result<bool, Error>>>,
    paused: bool,
    /// How long writes are gathered now: longer while there is a backlog.
    window: Duration,
    /// How long a write takes lately, and when the one under way began.
    pace: (Duration, Instant),
    /// When the last write began.
    departed: Instant,
    /// Before this no write begins: the store rests as long as it worked.
    rested: Instant,
}

impl Run<'_> {
    async fn until(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let settings = &self.keeper.settings;
        let (mut commit_at, mut sweep_at) = (Instant::now() + settings.commit_every, Instant::now() + settings.sweep_every);
        let mut checkpoint_at = Instant::now() + settings.checkpoint_every;
        loop {
            let write_at = self.write_at();
            let idle = self.flight.is_none();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                flown = running(&mut self.flight) => {
                    self.flight = None;
                    self.committed(flown?);
                }
                published = running(&mut self.publishing) => {
                    self.publishing = None;
                    self.published(&published?);
                }
                swept = running(&mut self.sweep) => {
                    self.sweep = None;
                    match swept {
                        Ok(false) => {}
                        // Once what was found is removed: until then it would be found again.
                        Ok(true) => sweep_at = sweep_at.min(Instant::now() + SWEEP_AGAIN),
                        Err(error) => tracing::warn!(%error, "keeper's sweep of expired objects failed"),
                    }
                }
                () = sleep_until(write_at.unwrap_or_else(Instant::now)), if idle && write_at.is_some() => {
                    self.depart();
                    checkpoint_at = Instant::now() + settings.checkpoint_every;
                }
                () = sleep_until(checkpoint_at), if idle => {
                    let checkpoints = self.state.checkpoints();
                    self.fly(Flight::of_checkpoints(checkpoints));
                    checkpoint_at = Instant::now() + settings.checkpoint_every;
                }
                () = sleep_until(commit_at) => {
                    let (_, changes) = self.keeper.store.durable().await?;
                    for (partition, next) in (0..).zip(changes) {
                        self.consumer.commit(partition, next);
                    }
                    commit_at = Instant::now() + settings.commit_every;
                }
                () = sleep_until(sweep_at) => {
                    if self.sweep.is_none() {
                        self.sweep = Some(aside(sweep::once(self.keeper, self.state.owned())));
                    }
                    sweep_at = Instant::now() + settings.sweep_every;
                }
                delivery = self.consumer.next(settings.read_bytes), if !self.paused => self.gather(delivery?).await?,
            }
        }
    }

    /// When the next write may begin; None where nothing waits.
    fn write_at(&self) -> Option<Instant> {
        let due = self.state.next_due()?;
        let wait = due.micros().saturating_sub(self.keeper.clock.now().micros());
        let at = Instant::now() + Duration::from_micros(u64::try_from(wait).unwrap_or(0));
        let settings = &self.keeper.settings;
        let hurries = self.state.is_awaited() && self.window <= settings.gather;
        let window = if hurries { settings.gather_awaited.min(self.window) } else { self.window };
        Some(at.max(self.departed + window).max(self.rested))
    }

    /// Takes a delivery and what else the log has ready, up to the bytes of one reading: records of several partitions are then loaded for at once.
    async fn gather(&mut self, first: Delivery) -> Result<(), Error> {
        let settings = &self.keeper.settings;
        let (mut batches, mut bytes, mut behind) = (Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(delivery) = next.take() {
            match delivery {
                Delivery::Records { partition, records, next } => {
                    behind = behind.max(records.last().map_or(0, |last| next.saturating_sub(last.offset + 1)));
                    bytes += records.iter().map(|record| record.value.len()).sum::<usize>();
                    batches.push(Batch::decode(partition, &records));
                }
                Delivery::Assigned(partitions) => self.assigned(partitions).await?,
                Delivery::Revoked(partitions) => {
                    batches.retain(|batch: &Batch| !partitions.contains(&batch.partition()));
                    self.revoked(&partitions).await?;
                }
                Delivery::Failed { partition, error } => {
                    tracing::error!(%error, partition, "keeper stops reading a partition of changes");
                    self.keeper.status.fail(Topic::Changes, partition, error.to_string());
                }
            }
            if bytes < settings.read_bytes {
                next = self.consumer.next(settings.read_bytes - bytes).now_or_never().transpose()?;
            }
        }
        if batches.is_empty() {
            return Ok(());
        }
        // A few records behind are only what came while the last were folded.
        self.window = if behind > BACKLOG { (self.window * 2).min(settings.gather_most) } else { (self.window / 2).max(settings.gather) };
        self.fold(batches).await
    }

    async fn assigned(&mut self, partitions: Vec<u16>) -> Result<(), Error> {
        let store = &self.keeper.store;
        let from = try_join_all(partitions.iter().map(|partition| store.checkpoint(*partition))).await?;
        for (partition, from) in partitions.into_iter().zip(from) {
            self.keeper.status.set_kept(partition, from.next);
            self.consumer.seek(partition, from.next);
            self.state.assign(partition, from);
        }
        Ok(())
    }

    /// Gives partitions up: sees through what is on its way, so that their next owner begins behind it, and drops what waits of them: it stands in the log.
    async fn revoked(&mut self, partitions: &[u16]) -> Result<(), Error> {
        self.land().await?;
        // Those of the partitions that stay too: they are handed out once.
        self.keeper.store.commit_objects(Vec::new(), self.state.checkpoints()).await?;
        self.state.revoke(partitions);
        for partition in partitions {
            self.keeper.status.release(Topic::Changes, *partition);
        }
        self.pace();
        Ok(())
    }

    /// Loads what batches need and folds them in, in their order.
    async fn fold(&mut self, batches: Vec<Batch>) -> Result<(), Error> {
        let missing = self.state.missing(&batches);
        for keys in missing.chunks(LOAD) {
            for (key, found) in flight::load(self.keeper.store.as_ref(), keys).await? {
                let object = found.and_then(|stored| stored.map_or_else(|| Ok(Object::empty(key.clone())), Object::from_stored));
                match object {
                    Ok(object) => self.state.insert(object),
                    Err(error) => self.freeze(key, &error),
                }
            }
        }
        // Retryable: the keeper then begins again from its stored checkpoints.
        let counts = self.state.read(batches, self.keeper.clock.now()).map_err(|error| Error::Store(error.to_string()))?;
        metrics::counter!("contrail_keeper_changes_total", "result" => "applied").increment(counts.applied);
        metrics::counter!("contrail_keeper_changes_total", "result" => "repeat").increment(counts.repeats);
        metrics::counter!("contrail_keeper_changes_total", "result" => "refused").increment(counts.refused);
        metrics::counter!("contrail_keeper_changes_total", "result" => "frozen").increment(counts.frozen);
        metrics::counter!("contrail_keeper_changes_total", "result" => "malformed").increment(counts.malformed);
        self.pace();
        Ok(())
    }

    fn freeze(&mut self, key: ObjectKey, error: &Error) {
        tracing::error!(%error, sid = naming::sid(&key.site, key.kind, &key.name, 0), site.id = %key.site, "keeper freezes an object that cannot be read or written; rebuild it");
        self.keeper.status.froze();
        self.state.freeze(key);
    }

    /// Stops reading while too much waits to be written, and takes it up again at half of that.
    fn pace(&mut self) {
        let pending = self.state.pending_bytes();
        metrics::gauge!("contrail_keeper_pending_bytes").set(pending as f64);
        metrics::gauge!("contrail_keeper_cached_bytes").set(self.state.cached_bytes() as f64);
        self.paused = self.state.is_full() || (self.paused && pending > self.keeper.settings.max_pending_bytes / 2);
    }

    /// Begins writing what is due.
    fn depart(&mut self) {
        let feed = &self.keeper.feed;
        let flight = self.state.due(self.keeper.clock.now(), self.keeper.settings.write_objects, |key| feed.wanted(key));
        self.departed = Instant::now();
        self.fly(flight);
    }

    fn fly(&mut self, flight: Flight) {
        if !flight.is_empty() {
            metrics::counter!("contrail_keeper_writes_total").increment(flight.writes.len() as u64);
            self.pace.1 = Instant::now();
            self.flight = Some(aside(flight::commit(Arc::clone(&self.keeper.log), Arc::clone(&self.keeper.store), flight)));
        }
    }

    fn committed(&mut self, flight: Flight) {
        // Gathering as long as writing takes leaves half of the store's thread free, and keeps transactions in proportion to the load.
        let (lately, began) = self.pace;
        self.pace.0 = (lately * 7 + began.elapsed()) / 8;
        self.rested = Instant::now() + self.pace.0.min(self.keeper.settings.gather_most);
        self.committed.push(flight);
        self.publish();
    }

    /// Begins publishing all that is committed: one call at a time, in the order of commits.
    fn publish(&mut self) {
        if self.publishing.is_none() && !self.committed.is_empty() {
            let flights = std::mem::take(&mut self.committed);
            self.publishing = Some(aside(flight::publish(Arc::clone(&self.keeper.store), Arc::clone(&self.keeper.feed), flights)));
        }
    }

    fn published(&mut self, flights: &[Flight]) {
        for flight in flights {
            self.state.written(flight);
            flight.refused.iter().for_each(|(key, error)| self.freeze(key.clone(), error));
        }
        for (partition, next) in self.state.lowest() {
            self.keeper.status.set_kept(partition, next);
        }
        self.pace();
        self.publish();
    }

    /// Waits until what is on its way is written and published.
    async fn land(&mut self) -> Result<(), Error> {
        if let Some(flight) = self.flight.take() {
            let flown = flight.await?;
            self.committed(flown);
        }
        while let Some(publishing) = self.publishing.take() {
            let published = publishing.await?;
            self.published(&published);
        }
        Ok(())
    }

    /// Writes what the budgets allow now and the checkpoints that follow. The rest stays in the log.
    async fn drain(&mut self) -> Result<(), Error> {
        self.land().await?;
        let feed = &self.keeper.feed;
        let last = self.keeper.clock.now().plus_micros(i64::try_from(self.keeper.settings.gather.as_micros()).unwrap_or(0));
        let flight = self.state.due(last, usize::MAX, |key| feed.wanted(key));
        self.fly(flight);
        self.land().await?;
        self.keeper.store.commit_objects(Vec::new(), self.state.checkpoints()).await.map(drop)
    }
}

async fn running<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
