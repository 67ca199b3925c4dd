//! The router: reads `events`, decides by identity what counts, maps it to changes and appends them to `changes`. Run by the composition root, one per
//! process. Must never store an `events` offset before its changes are durable, nor go on after a failed append: it then drops its memory and
//! begins again from what is stored.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use rand::Rng;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::mapping::{Mapped, map};
use super::recent::Recent;
use super::status::Status;
use super::{Error, ObjectStore, RouterCommit};
use crate::event::identity::{self, Entry, IdentityKey, Outcome, Verdict};
use crate::event::ids::{first_16, sha256};
use crate::event::{Change, Event, ObjectKey, Record, RecordKind, RulesOf, Timestamp};
use crate::eventlog::{self, Append, Consumer, Delivery, EventLog, Stored, Topic};

/// The router's consumer group on `events`.
pub const GROUP: &str = "router";

/// How the router works.
#[derive(Clone, Debug)]
pub struct RouterSettings {
    /// Most records of one round: one round is one append, so one sync.
    pub round_records: usize,
    /// Most bytes of events of one round.
    pub round_bytes: usize,
    /// Identity entries and first sights kept in memory in front of the store, each.
    pub remembered: usize,
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
        let mut run = Run { router: self, consumer, memory: Memory::new(self.settings.remembered), saving: None, refused: HashSet::new() };
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
    /// Partitions of `changes` that the log refuses for damage.
    refused: HashSet<u16>,
}

impl Run<'_> {
    async fn until(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut commit_at = Instant::now() + self.router.settings.commit_every;
        loop {
            // At this many unsaved entries saving is behind: wait for it before reading on.
            let behind = self.memory.unsaved.entries.len() > self.router.settings.remembered;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                saved = saving(&mut self.saving) => {
                    self.saving = None;
                    saved?;
                    self.memory.saved();
                    self.save();
                }
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
                        if self.saving.is_none() {
                            self.save();
                        }
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
                    // What is unsaved of them must not be stored over what their next owner stores: begin again.
                    return Err(Error::Log(eventlog::Error::Unavailable(format!("partitions {partitions:?} went to another reader"))));
                }
                Delivery::Failed { partition, error } => {
                    tracing::error!(%error, partition, "router stops reading a partition of events");
                    self.router.status.fail(Topic::Events, partition, error.to_string());
                }
                Delivery::Records { partition, records: read, next } => {
                    records += read.len();
                    bytes += read.iter().map(|record| record.value.len()).sum::<usize>();
                    if let Some(last) = read.last() {
                        lag(partition, next.saturating_sub(last.offset + 1));
                    }
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
        for partition in partitions {
            let next = self.router.store.router_next(partition).await?;
            self.router.status.set_routed(partition, next);
            self.consumer.seek(partition, next);
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
        self.append(mapped.changes).await?;
        for (verdict, count) in mapped.verdicts {
            metrics::counter!("contrail_router_verdicts_total", "verdict" => verdict).increment(count);
        }
        for (partition, next) in &round.next {
            self.router.status.set_routed(*partition, *next);
        }
        self.memory.routed(&round);
        Ok(())
    }

    /// Appends a round's changes, all in one call. A partition of `changes` that is damaged gets none: its objects wait for a rebuild, the others go on.
    async fn append(&mut self, changes: Vec<Vec<Change>>) -> Result<(), Error> {
        let mut records: Vec<Append> = Vec::with_capacity(changes.iter().map(Vec::len).sum());
        for change in changes.iter().flatten() {
            records.push(Append { partition: change.key.partition(), value: change.to_bytes() });
        }
        loop {
            records.retain(|record| !self.refused.contains(&record.partition));
            if records.is_empty() {
                return Ok(());
            }
            match self.router.log.append(Topic::Changes, records.clone()).await {
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
        let commits = self.memory.to_save();
        if !commits.is_empty() {
            let store = Arc::clone(&self.router.store);
            self.saving = Some(Box::pin(async move { store.commit_router(commits).await }));
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

async fn saving(saving: &mut Option<BoxFuture<'static, Result<(), Error>>>) -> Result<(), Error> {
    match saving {
        Some(saving) => saving.await,
        None => std::future::pending().await,
    }
}

fn lag(partition: u16, behind: u64) {
    metrics::gauge!("contrail_router_lag_records", "partition" => partition.to_string()).set(behind as f64);
}

/// A record as the router uses it.
struct Parsed {
    partition: u16,
    offset: u64,
    record: Record,
    event: Event,
    key: IdentityKey,
}

/// The records of one round, parsed, each partition's in offset order.
#[derive(Default)]
struct Round {
    events: Vec<Parsed>,
    /// By partition the offset after the last one read.
    next: BTreeMap<u16, u64>,
    /// By partition the greatest `received_at` read.
    received_at: BTreeMap<u16, Timestamp>,
    read: u64,
}

impl Round {
    /// A record that is no event this build reads is counted and passed over: the archiver keeps it in quarantine.
    fn parse(deliveries: Vec<(u16, Vec<Stored>)>) -> Self {
        let mut round = Self::default();
        for (partition, records) in deliveries {
            for Stored { offset, value } in records {
                round.read += 1;
                round.next.insert(partition, offset + 1);
                let record = match Record::decode(&value) {
                    Ok(record) => record,
                    Err(error) => {
                        malformed(partition, offset, &error);
                        continue;
                    }
                };
                let latest = round.received_at.entry(partition).or_default();
                *latest = record.received_at.max(*latest);
                if !matches!(record.kind, RecordKind::Event | RecordKind::Completion) {
                    continue;
                }
                match Event::from_body(&record.body) {
                    Ok(event) => {
                        let key = identity::key_of(&record, &event);
                        round.events.push(Parsed { partition, offset, record, event, key });
                    }
                    Err(error) => malformed(partition, offset, &error),
                }
            }
        }
        round
    }

    fn hour(&self) -> i64 {
        self.received_at.values().max().map_or(0, |at| at.micros().div_euclid(3_600_000_000))
    }
}

fn malformed(partition: u16, offset: u64, error: &dyn std::fmt::Display) {
    metrics::counter!("contrail_router_malformed_total").increment(1);
    tracing::error!(partition, offset, %error, "router passes over a malformed record of events");
}

/// The hash that stands for an indexed object in a partition's memory of first sights.
fn sight_of(key: &ObjectKey) -> [u8; 16] {
    first_16(&sha256(&[key.site.as_str().as_bytes(), &[key.kind as u8], key.name.as_bytes()]))
}

/// What is known of identities and first sights beyond what the store holds or in front of it.
struct Memory {
    recent: Recent<IdentityKey, Entry>,
    sights: Recent<(u16, [u8; 16]), ()>,
    hour: i64,
    unsaved: Unsaved,
    /// What a save under way holds: the store may not show it yet.
    in_save: Unsaved,
}

/// What the store does not hold yet.
#[derive(Default)]
struct Unsaved {
    entries: HashMap<IdentityKey, (u16, Entry)>,
    sighted: HashSet<(u16, [u8; 16])>,
    /// By partition the next offset and the greatest `received_at` of the routed.
    next: BTreeMap<u16, (u64, Timestamp)>,
}

impl Memory {
    fn new(size: usize) -> Self {
        Self { recent: Recent::new(size), sights: Recent::new(size), hour: 0, unsaved: Unsaved::default(), in_save: Unsaved::default() }
    }

    /// The keys of a round that only the store can tell of, by partition.
    fn unknown(&mut self, round: &Round) -> BTreeMap<u16, Vec<IdentityKey>> {
        if round.hour() != self.hour {
            // The store forgets by the hour; what is remembered in front of it must not outlive that.
            self.hour = round.hour();
            self.recent.clear();
        }
        let mut out: BTreeMap<u16, Vec<IdentityKey>> = BTreeMap::new();
        for Parsed { partition, key, .. } in &round.events {
            if !self.unsaved.entries.contains_key(key) && !self.in_save.entries.contains_key(key) && !self.recent.contains(key) {
                out.entry(*partition).or_default().push(*key);
            }
        }
        out
    }

    fn learn(&mut self, hour: i64, found: impl Iterator<Item = (IdentityKey, Entry)>) {
        if hour == self.hour {
            found.for_each(|(key, entry)| self.recent.insert(key, entry));
        }
    }

    /// Folds a round in offset order and maps what counts.
    fn fold(&mut self, round: &Round, rules: &RulesOf) -> MappedRound {
        let mut out = MappedRound::default();
        for (at, parsed) in round.events.iter().enumerate() {
            let Parsed { partition, offset, record, event, key } = parsed;
            let unsaved = self.unsaved.entries.remove(key).map(|(_, entry)| entry);
            let changed_before = unsaved.is_some();
            let mut entry = unsaved.or_else(|| self.in_save.entries.get(key).map(|(_, entry)| entry.clone())).or_else(|| self.recent.take(key));
            let outcome = identity::fold(&mut entry, record, event, *offset);
            let mut asked = Vec::new();
            let mut first_sight = |object: &ObjectKey| {
                let sight = (*partition, sight_of(object));
                let known = self.sights.contains(&sight) || self.unsaved.sighted.contains(&sight) || self.in_save.sighted.contains(&sight);
                if known || out.fresh.contains_key(&sight) {
                    return false;
                }
                asked.push(sight);
                true
            };
            let changes = map_one(parsed, &outcome, entry.as_ref(), rules, &mut first_sight);
            *out.verdicts.entry(verdict_name(outcome.verdict)).or_default() += 1;
            if !asked.is_empty() {
                out.uncertain.push(Uncertain { at, outcome: outcome.clone(), entry: entry.clone() });
            }
            out.fresh.extend(asked.into_iter().map(|sight| (sight, at)));
            out.changes.push(changes);
            if let Some(entry) = entry {
                if changed_before || changes_memory(&outcome) {
                    self.unsaved.entries.insert(*key, (*partition, entry));
                } else {
                    self.recent.insert(*key, entry);
                }
            }
        }
        out
    }

    /// Notes what was seen for the first time, and what only this memory did not know.
    fn sighted(&mut self, fresh: &HashMap<(u16, [u8; 16]), usize>, known: &HashSet<(u16, [u8; 16])>) {
        for sight in fresh.keys() {
            if known.contains(sight) {
                self.sights.insert(*sight, ());
            } else {
                self.unsaved.sighted.insert(*sight);
            }
        }
    }

    /// Notes that a round's changes are durable.
    fn routed(&mut self, round: &Round) {
        for (partition, next) in &round.next {
            let received_at = round.received_at.get(partition).copied().unwrap_or_default();
            let known = self.in_save.next.get(partition).map_or(Timestamp::ZERO, |(_, at)| *at);
            let slot = self.unsaved.next.entry(*partition).or_insert((*next, known));
            *slot = (*next, slot.1.max(received_at));
        }
    }

    /// Everything unsaved as commits; it stays readable in `in_save` until [`Memory::saved`].
    fn to_save(&mut self) -> Vec<RouterCommit> {
        if self.unsaved.next.is_empty() {
            return Vec::new();
        }
        self.in_save = std::mem::take(&mut self.unsaved);
        let mut commits: BTreeMap<u16, RouterCommit> = BTreeMap::new();
        for (partition, (next, received_at)) in &self.in_save.next {
            let (partition, next, received_at) = (*partition, *next, *received_at);
            commits.insert(partition, RouterCommit { partition, next, received_at, ..RouterCommit::default() });
        }
        for (key, (partition, entry)) in &self.in_save.entries {
            if let Some(commit) = commits.get_mut(partition) {
                commit.entries.push((*key, entry.clone()));
            }
        }
        for (partition, hash) in &self.in_save.sighted {
            if let Some(commit) = commits.get_mut(partition) {
                commit.sighted.push(*hash);
            }
        }
        commits.into_values().collect()
    }

    /// The save under way has ended; what it held is now in the store, and remembered lately.
    fn saved(&mut self) {
        let Unsaved { entries, sighted, .. } = std::mem::take(&mut self.in_save);
        for (key, (_, entry)) in entries {
            if !self.unsaved.entries.contains_key(&key) {
                self.recent.insert(key, entry);
            }
        }
        sighted.into_iter().for_each(|sight| self.sights.insert(sight, ()));
    }
}

/// Whether a fold may have changed the entry.
const fn changes_memory(outcome: &Outcome) -> bool {
    !matches!(outcome.verdict, Verdict::Duplicate) || outcome.effects.order_changed || outcome.effects.checkout_changed
}

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Counted => "counted",
        Verdict::Report => "report",
        Verdict::Duplicate => "duplicate",
        Verdict::Conflict => "conflict",
    }
}

fn map_one(
    parsed: &Parsed,
    outcome: &Outcome,
    entry: Option<&Entry>,
    rules: &RulesOf,
    first_sight: &mut dyn FnMut(&ObjectKey) -> bool,
) -> Vec<Change> {
    let rules = rules(&parsed.record.site);
    let Parsed { partition, offset, record, event, .. } = parsed;
    map(&mut Mapped { record, offset: *offset, partition: *partition, event, outcome, entry, rules: &rules, first_sight })
}

/// A round's changes by event, and the first sights they suppose.
#[derive(Default)]
struct MappedRound {
    changes: Vec<Vec<Change>>,
    /// Objects this memory does not know of, with the event that was told it saw them first.
    fresh: HashMap<(u16, [u8; 16]), usize>,
    /// Those events, to be mapped again where the store does know.
    uncertain: Vec<Uncertain>,
    verdicts: BTreeMap<&'static str, u64>,
}

struct Uncertain {
    at: usize,
    outcome: Outcome,
    entry: Option<Entry>,
}

impl MappedRound {
    fn fresh_by_partition(&self) -> BTreeMap<u16, Vec<[u8; 16]>> {
        let mut out: BTreeMap<u16, Vec<[u8; 16]>> = BTreeMap::new();
        for (partition, hash) in self.fresh.keys() {
            out.entry(*partition).or_default().push(*hash);
        }
        out
    }

    /// Maps again the events that were told of a first sight the store knows better about.
    fn correct(&mut self, round: &Round, known: &HashSet<(u16, [u8; 16])>, rules: &RulesOf) {
        if known.is_empty() {
            return;
        }
        for Uncertain { at, outcome, entry } in &self.uncertain {
            let (Some(parsed), Some(changes)) = (round.events.get(*at), self.changes.get_mut(*at)) else { continue };
            let mut first_sight = |object: &ObjectKey| {
                let sight = (parsed.partition, sight_of(object));
                !known.contains(&sight) && self.fresh.get(&sight) == Some(at)
            };
            *changes = map_one(parsed, outcome, entry.as_ref(), rules, &mut first_sight);
        }
    }
}
