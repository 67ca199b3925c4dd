//! The router: reads `events`, decides by identity what counts, maps it to changes and appends them to `changes`. Run by the composition root, one per
//! process. Must never store an `events` offset before its changes are durable, nor go on after a failed append: it then drops its memory and
//! begins again from what is stored. Partitions that go to another router are given up alone.

mod memory;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use rand::Rng;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::memory::{Memory, Round};
use super::status::Status;
use super::tail::{self, Tail};
use super::{Applied, Error, Feed, ObjectStore};
use crate::background::aside;
use crate::event::{Change, RulesOf};
use crate::eventlog::{self, Append, Consumer, Delivery, EventLog, Stored, Topic};

/// The router's consumer group on `events`.
pub const GROUP: &str = "router";

/// Messages of live tails that may wait to be published.
const SAMPLES: usize = 1_000;

/// How the router works.
#[derive(Clone, Debug)]
pub struct RouterSettings {
    /// Most records of one round: one round is one append, so one sync.
    pub round_records: usize,
    /// Most bytes of events of one round.
    pub round_bytes: usize,
    /// Identity entries and first sights kept in memory in front of the store, each.
    pub remembered: usize,
    /// How often identity and offsets are saved at most. Nobody waits for them: what is unsaved at a crash is routed again, and fewer, larger
    /// transactions touch fewer pages.
    pub save_every: Duration,
    /// How often the store is asked what is durable, so that retention may follow.
    pub commit_every: Duration,
    /// Least and most wait before beginning again after an error.
    pub backoff: (Duration, Duration),
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            round_records: 4_000,
            round_bytes: 4 << 20,
            remembered: 50_000,
            save_every: Duration::from_secs(1),
            commit_every: Duration::from_secs(30),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }
}

/// Reads `events`, writes `changes`.
pub struct Router {
    /// Both topics.
    pub log: Arc<dyn EventLog>,
    /// Where identity, first sights and offsets are kept.
    pub store: Arc<dyn ObjectStore>,
    /// Where the live tail goes.
    pub feed: Arc<dyn Feed>,
    /// The sites' rules.
    pub rules: RulesOf,
    /// How it works.
    pub settings: RouterSettings,
    /// Where it tells how far it is.
    pub status: Arc<Status>,
}

impl Router {
    /// Routes until `stop`, then stores what it has routed. Begins again after an error that may pass.
    ///
    /// # Errors
    /// One that will not pass: the log or the store is closed or unreadable.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let mut wait = self.settings.backoff.0;
        loop {
            let began = Instant::now();
            match self.route(&stop).await {
                Ok(()) => return Ok(()),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => tracing::warn!(%error, "router begins again from its stored offsets"),
            }
            self.status.release_all(Topic::Events);
            metrics::counter!("contrail_router_restarts_total").increment(1);
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

    /// Routes from what is stored until `stop` or the first error; a save under way is always awaited, so that the next start reads whole state.
    async fn route(&self, stop: &CancellationToken) -> Result<(), Error> {
        let consumer = self.log.subscribe(Topic::Events, GROUP).await?;
        let mut run = Run {
            router: self,
            consumer,
            memory: Memory::new(self.settings.remembered),
            saving: None,
            save_at: Instant::now(),
            tail: Tail::default(),
            samples: Vec::new(),
            showing: None,
            refused: HashSet::new(),
        };
        let outcome = run.until(stop).await;
        let saved = run.finish_saving().await;
        outcome?;
        saved?;
        run.save();
        run.finish_saving().await
    }
}

/// The router between one start and the next error.
struct Run<'a> {
    router: &'a Router,
    consumer: Box<dyn Consumer>,
    memory: Memory,
    saving: Option<BoxFuture<'static, Result<(), Error>>>,
    /// Before this no save begins.
    save_at: Instant,
    tail: Tail,
    /// Of the live tails, to be published.
    samples: Vec<Applied>,
    showing: Option<BoxFuture<'static, Result<(), Error>>>,
    /// Partitions of `changes` that the log refuses for damage.
    refused: HashSet<u16>,
}

impl Run<'_> {
    async fn until(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut commit_at = Instant::now() + self.router.settings.commit_every;
        loop {
            // At this many unsaved entries saving is behind: wait for it before reading on.
            let behind = self.memory.unsaved_entries() > self.router.settings.remembered;
            if behind {
                self.save_at = Instant::now();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                saved = running(&mut self.saving) => {
                    self.saving = None;
                    saved?;
                    self.memory.saved();
                }
                shown = running(&mut self.showing) => {
                    self.showing = None;
                    if let Err(error) = shown {
                        tracing::warn!(%error, "a sample of what happened could not be shown");
                    }
                    self.show();
                }
                () = tokio::time::sleep_until(self.save_at), if self.saving.is_none() && self.memory.has_unsaved() => self.save(),
                () = tokio::time::sleep_until(commit_at) => {
                    let (events, _) = self.router.store.durable().await?;
                    for (partition, next) in (0..).zip(events) {
                        self.consumer.commit(partition, next);
                    }
                    commit_at = Instant::now() + self.router.settings.commit_every;
                }
                delivery = self.consumer.next(self.router.settings.round_bytes), if !behind => {
                    let records = self.gather(delivery?).await?;
                    if !records.is_empty() {
                        self.round(records).await?;
                    }
                }
            }
        }
    }

    /// Takes up what else the log has ready, up to a round's bounds.
    async fn gather(&mut self, first: Delivery) -> Result<Vec<(u16, Vec<Stored>)>, Error> {
        let settings = &self.router.settings;
        let (mut records, mut bytes, mut out) = (0, 0, Vec::new());
        let mut next = Some(first);
        while let Some(delivery) = next.take() {
            match delivery {
                Delivery::Assigned(partitions) => self.assigned(partitions).await?,
                Delivery::Revoked(partitions) => {
                    out.retain(|(partition, _)| !partitions.contains(partition));
                    self.revoked(&partitions).await?;
                }
                Delivery::Failed { partition, error } => {
                    tracing::error!(%error, partition, "router stops reading a partition of events");
                    self.router.status.fail(Topic::Events, partition, error.to_string());
                }
                Delivery::Records { partition, records: read, .. } => {
                    records += read.len();
                    bytes += read.iter().map(|record| record.value.len()).sum::<usize>();
                    out.push((partition, read));
                }
            }
            if records < settings.round_records && bytes < settings.round_bytes {
                next = self.consumer.next(settings.round_bytes - bytes).now_or_never().transpose()?;
            }
        }
        Ok(out)
    }

    async fn assigned(&mut self, partitions: Vec<u16>) -> Result<(), Error> {
        let store = &self.router.store;
        let next = try_join_all(partitions.iter().map(|partition| store.router_next(*partition))).await?;
        for (partition, next) in partitions.into_iter().zip(next) {
            self.router.status.set_routed(partition, next);
            self.consumer.seek(partition, next);
        }
        Ok(())
    }

    /// Gives partitions up: saves what is routed, so that their next owner begins behind it, and forgets what of identity only their owner may know.
    async fn revoked(&mut self, partitions: &[u16]) -> Result<(), Error> {
        self.finish_saving().await?;
        self.save();
        self.finish_saving().await?;
        self.memory.revoke();
        for partition in partitions {
            self.router.status.release(Topic::Events, *partition);
        }
        Ok(())
    }

    /// One round: everything read becomes changes in one append; only then is it noted for saving.
    async fn round(&mut self, deliveries: Vec<(u16, Vec<Stored>)>) -> Result<(), Error> {
        let store = &self.router.store;
        let round = Round::parse(deliveries);
        metrics::counter!("contrail_router_records_total").increment(round.read);
        let unknown = self.memory.unknown(&round);
        let found = try_join_all(unknown.iter().map(|(partition, keys)| store.identities(*partition, keys))).await?;
        self.memory.learn(round.hour(), found.into_iter().flatten());
        let mut mapped = self.memory.fold(&round, &self.router.rules);
        if !mapped.fresh.is_empty() {
            let by_partition = mapped.fresh_by_partition();
            let known = try_join_all(by_partition.iter().map(|(partition, hashes)| store.sighted(*partition, hashes))).await?;
            let known = by_partition.keys().zip(known).flat_map(|(partition, hashes)| hashes.into_iter().map(|hash| (*partition, hash))).collect();
            mapped.correct(&round, &known, &self.router.rules);
            self.memory.sighted(&mapped.fresh, &known);
        }
        self.append(&mapped.changes).await?;
        self.sample(&round, &mapped.changes);
        for (verdict, count) in mapped.verdicts {
            metrics::counter!("contrail_router_verdicts_total", "verdict" => verdict).increment(count);
        }
        for (partition, next) in &round.next {
            self.router.status.set_routed(*partition, *next);
        }
        self.memory.routed(&round);
        Ok(())
    }

    /// Takes a sample of what happened for the sites' live tails, where anybody watches. Nothing waits for it: it is kept nowhere, and beyond what may wait it is
    /// dropped.
    fn sample(&mut self, round: &Round, changes: &[Vec<Change>]) {
        let now = std::time::Instant::now();
        let counted = round.events().zip(changes).filter(|(_, changes)| !changes.is_empty()).map(|(event, _)| event);
        let watched = counted.filter(|(record, _)| self.router.feed.wanted(&tail::key(&record.site)));
        let messages: Vec<Applied> = watched.filter_map(|(record, event)| self.tail.sample(record, event, now)).collect();
        let room = SAMPLES.saturating_sub(self.samples.len());
        self.samples.extend(messages.into_iter().take(room));
        self.show();
    }

    /// Begins publishing what was sampled, one call at a time.
    fn show(&mut self) {
        if self.showing.is_none() && !self.samples.is_empty() {
            let (feed, samples) = (Arc::clone(&self.router.feed), std::mem::take(&mut self.samples));
            self.showing = Some(aside(async move { feed.publish(samples).await }));
        }
    }

    /// Appends a round's changes, all in one call. A partition of `changes` that is damaged gets none: its objects wait for a rebuild, the others go on.
    async fn append(&mut self, changes: &[Vec<Change>]) -> Result<(), Error> {
        loop {
            let mut records: Vec<Append> = Vec::with_capacity(changes.iter().map(Vec::len).sum());
            for change in changes.iter().flatten() {
                let partition = change.key.partition();
                if !self.refused.contains(&partition) {
                    records.push(Append { partition, value: change.to_bytes() });
                }
            }
            if records.is_empty() {
                return Ok(());
            }
            match self.router.log.append(Topic::Changes, records).await {
                Ok(offsets) => {
                    metrics::counter!("contrail_router_changes_total").increment(offsets.len() as u64);
                    return Ok(());
                }
                Err(eventlog::Error::Damaged { partition, topic, offset, what }) if self.refused.insert(partition) => {
                    tracing::error!(partition, topic, offset, what, "router leaves out a damaged partition of changes; its objects need a rebuild");
                    self.router.status.fail(Topic::Changes, partition, what);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Begins saving what is unsaved; one save at a time, in order, so that the store never holds an offset without what led to it.
    fn save(&mut self) {
        let commits = self.memory.take_unsaved();
        if !commits.is_empty() {
            let store = Arc::clone(&self.router.store);
            self.save_at = Instant::now() + self.router.settings.save_every;
            self.saving = Some(aside(async move { store.commit_router(commits).await }));
        }
    }

    async fn finish_saving(&mut self) -> Result<(), Error> {
        match self.saving.take() {
            Some(saving) => {
                let saved = saving.await;
                self.memory.saved();
                saved
            }
            None => Ok(()),
        }
    }
}

async fn running(saving: &mut Option<BoxFuture<'static, Result<(), Error>>>) -> Result<(), Error> {
    match saving {
        Some(saving) => saving.await,
        None => std::future::pending().await,
    }
}
