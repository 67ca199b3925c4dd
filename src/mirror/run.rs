//! The room at work: reads the log, follows what is set, begins rounds and copies, notes what they come to, commits how far all of it is. Run by the room's task
//! alone; what is to be decided without waiting is in `queue`, `plan`, `copy` and `places`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::copy::{Copies, Page};
use super::queue::{Outcome, Queue};
use super::remote::Remote;
use super::round::{self, Known, Round};
use super::{GROUP, Mirroring};
use crate::event::{Change, ObjectKey, SiteId};
use crate::eventlog::places::Places;
use crate::eventlog::{Consumer, Delivery, Error, Stored, Topic};
use crate::site::{Mirror, Sites};

/// A mirror at work.
struct Target {
    mirror: Arc<Mirror>,
    remote: Remote,
    budget: Arc<Budget>,
}

/// Whether the log knows of the room's group, which then holds what it did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Unknown,
    Member,
    Forgotten,
}

/// When something is to be done.
struct Times {
    /// Look for mirrors that were set, commit, let go of what waits too long.
    look: Instant,
    /// Ask the log (again).
    subscribe: Option<Instant>,
    /// Read partitions that are not read yet.
    seek: Option<Instant>,
}

/// The room at work.
pub(super) struct Run {
    job: Mirroring,
    queue: Queue,
    places: Places,
    copies: Copies,
    targets: HashMap<SiteId, Target>,
    known: Known,
    /// Another with every change of who mirrors what: what was known before is not relied on.
    epoch: Arc<AtomicU64>,
    settled_at: Instant,
    /// Objects of which something may still be under way there, and until when.
    unsettled: HashMap<ObjectKey, Instant>,
    /// The partitions that copies and rates go by.
    owned: Vec<u16>,
    /// The log forgetting the group; whether it did.
    leaving: JoinSet<bool>,
    rounds: JoinSet<(ObjectKey, (Outcome, bool))>,
    consumer: Option<Box<dyn Consumer>>,
    group: Group,
    unsought: Vec<u16>,
    at: Times,
    /// A part of a copy, one at a time.
    working: JoinSet<Page>,
    /// When it was last said of a site that something was wrong.
    complained: HashMap<SiteId, Instant>,
}

/// What happened.
enum Event {
    Stop,
    Ended(ObjectKey, (Outcome, bool)),
    Copied(Page),
    Read(Result<Delivery, Error>),
    Tick,
}

impl Run {
    pub(super) fn new(job: Mirroring) -> Self {
        let now = Instant::now();
        Self {
            queue: Queue::new(job.settings.queue),
            places: Places::default(),
            copies: Copies::default(),
            targets: HashMap::new(),
            known: round::nothing_known(),
            epoch: Arc::default(),
            settled_at: now + job.settings.settle,
            unsettled: HashMap::new(),
            owned: Vec::new(),
            leaving: JoinSet::new(),
            rounds: JoinSet::new(),
            consumer: None,
            group: Group::Unknown,
            unsought: Vec::new(),
            at: Times { look: now, subscribe: None, seek: None },
            working: JoinSet::new(),
            complained: HashMap::new(),
            job,
        }
    }

    /// Mirrors until `stop`.
    ///
    /// # Errors
    /// When the log is closed.
    pub(super) async fn until(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            match self.next(stop).await {
                Event::Stop => return Ok(()),
                Event::Ended(key, ended) => self.ended(&key, ended),
                Event::Copied(page) => self.copied(page),
                Event::Read(Ok(delivery)) => self.take(delivery),
                Event::Read(Err(error)) if error.is_retryable() => self.start_over(&error),
                Event::Read(Err(error)) => return Err(error),
                Event::Tick => {}
            }
            let now = Instant::now();
            if self.at.look <= now {
                self.at.look = now + self.job.settings.commit_every;
                self.look().await;
            }
            if self.at.subscribe.is_some_and(|at| at <= now) {
                self.subscribe().await?;
            }
            if self.at.seek.is_some_and(|at| at <= now) {
                self.seek().await;
            }
            self.copy_on();
            self.start(Instant::now());
        }
    }

    async fn next(&mut self, stop: &CancellationToken) -> Event {
        let times = [self.queue.wake(), self.at.subscribe, self.at.seek];
        let wake = times.into_iter().flatten().fold(self.at.look, Instant::min);
        // Without room for more the log holds it.
        let has_room = self.queue.full().is_empty();
        let Self { rounds, working, consumer, job, .. } = self;
        let read = async {
            match consumer {
                Some(consumer) if has_room => consumer.next(job.settings.read).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(ended) = rounds.join_next() => match ended {
                Ok((key, ended)) => Event::Ended(key, ended),
                // None is aborted while this goes on: it panicked, and its object would wait for ever.
                Err(error) => Event::Read(Err(Error::Closed(format!("mirroring an object: {error}")))),
            },
            Some(Ok(page)) = working.join_next() => Event::Copied(page),
            () = tokio::time::sleep_until(wake) => Event::Tick,
            read = read => Event::Read(read),
        }
    }

    /// Follows what is set, and says how far the room is.
    async fn look(&mut self) {
        self.follow().await;
        let now = Instant::now();
        self.unsettled.retain(|_, until| *until > now);
        let late = now.checked_sub(self.job.settings.longest).map(|before| self.queue.late(before)).unwrap_or_default();
        for site in self.queue.full().into_iter().chain(late) {
            self.let_go(&site).await;
        }
        let (waiting, since) = self.queue.lag();
        let lag = since.map_or(0, |since| (self.job.clock.now().micros() - since.micros()).max(0));
        metrics::gauge!("contrail_mirror_waiting_objects").set(waiting as f64);
        metrics::gauge!("contrail_mirror_lag_seconds").set(lag as f64 / 1e6);
        self.targets.values().for_each(|target| target.budget.sweep());
        self.commit();
    }

    /// Takes up mirrors that were set and lets go of those that are none any longer; is a member of the group while there are any.
    async fn follow(&mut self) {
        let mirrors: HashMap<SiteId, Arc<Mirror>> = self.job.sites.mirrors().into_iter().collect();
        let gone = |(site, target): (&SiteId, &Target)| mirrors.get(site).is_none_or(|mirror| mirror.id != target.mirror.id).then(|| site.clone());
        let gone: Vec<SiteId> = self.targets.iter().filter_map(gone).collect();
        for site in &gone {
            self.targets.remove(site);
            self.copies.forget(site);
            let closed = self.queue.forget(|key| key.site == *site);
            closed.into_iter().for_each(|place| self.places.close(place));
        }
        if !gone.is_empty() {
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
        for (site, mirror) in mirrors {
            match self.targets.get_mut(&site) {
                Some(target) => target.mirror = mirror,
                None => {
                    let remote = Remote { client: self.job.client.clone(), target: mirror.target.clone(), timeout: self.job.settings.timeout };
                    self.targets.insert(site, Target { mirror, remote, budget: Arc::new(Budget::new(self.places.all().len())) });
                }
            }
        }
        if self.targets.is_empty() {
            self.leave().await;
        } else if self.consumer.is_none() && self.at.subscribe.is_none() {
            self.at.subscribe = Some(Instant::now());
        }
    }

    /// Leaves the group, so that the log holds nothing for it.
    async fn leave(&mut self) {
        if self.consumer.take().is_some() {
            self.disown(&self.places.all());
        }
        (self.at.subscribe, self.at.seek) = (None, None);
        self.unsought.clear();
        if self.group == Group::Forgotten {
            return;
        }
        // Another process may not have left it yet, and the log not answer: asked again.
        match self.leaving.try_join_next() {
            Some(Ok(true)) => self.group = Group::Forgotten,
            None if !self.leaving.is_empty() => {}
            _ => {
                let log = Arc::clone(&self.job.log);
                self.leaving.spawn(async move { log.forget_group(Topic::Changes, GROUP).await.is_ok() });
            }
        }
    }

    async fn subscribe(&mut self) -> Result<(), Error> {
        // What is on its way to forget the group would take it from under its member.
        while self.leaving.join_next().await.is_some() {}
        match self.job.log.subscribe(Topic::Changes, GROUP).await {
            Ok(consumer) => {
                self.at.subscribe = None;
                self.consumer = Some(consumer);
                self.group = Group::Member;
            }
            Err(error) if error.is_retryable() => self.start_over(&error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Forgets what was read, and reads it again later.
    fn start_over(&mut self, error: &Error) {
        tracing::warn!(%error, "mirrors cannot read the log at present; they go on from what is committed");
        self.consumer = None;
        self.disown(&self.places.all());
        self.unsought.clear();
        (self.at.seek, self.at.subscribe) = (None, Some(Instant::now() + self.job.settings.again_after));
    }

    fn take(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Assigned(partitions) => {
                self.unsought.extend(partitions);
                self.at.seek = Some(Instant::now());
            }
            Delivery::Revoked(partitions) => {
                self.unsought.retain(|partition| !partitions.contains(partition));
                self.disown(&partitions);
            }
            Delivery::Failed { partition, error } => {
                tracing::error!(partition, %error, "mirrors stop reading a partition of changes; it is tried again");
                self.unsought.push(partition);
                self.at.seek = Some(Instant::now() + self.job.settings.again_after);
            }
            Delivery::Records { partition, records, .. } => self.read(partition, records),
        }
    }

    /// Has partitions read from what is committed; from their ends where all that is mirrored of them is yet to be copied.
    async fn seek(&mut self) {
        let log = Arc::clone(&self.job.log);
        let asked = futures::future::try_join(log.committed(Topic::Changes, GROUP), log.bounds(Topic::Changes)).await;
        let (committed, bounds) = match asked {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "mirrors cannot be told where they stand; asked again");
                self.at.seek = Some(Instant::now() + self.job.settings.again_after);
                return;
            }
        };
        self.at.seek = None;
        let is_held = |partition: &u16| {
            let at = usize::from(*partition);
            committed.get(at).zip(bounds.get(at)).is_some_and(|(committed, bounds)| (bounds.start..=bounds.next).contains(committed))
        };
        let mirrors = self.job.sites.mirrors();
        let is_followed = |partition: &u16| mirrors.iter().any(|(_, mirror)| mirror.copied.contains(partition)) && is_held(partition);
        let passed_over: Vec<u16> = self.unsought.iter().filter(|partition| !is_followed(partition)).copied().collect();
        self.finish_work().await;
        for (site, mirror) in mirrors.iter().filter(|_| !passed_over.is_empty()) {
            // Whatever this process knows of what others noted.
            if !uncopied(&self.job.sites, site, mirror.id, &passed_over).await {
                self.at.seek = Some(Instant::now() + self.job.settings.again_after);
                return;
            }
            passed_over.iter().for_each(|partition| self.copies.skip(site, *partition));
        }
        for partition in std::mem::take(&mut self.unsought) {
            let at = usize::from(partition);
            let (Some(committed), Some(bounds)) = (committed.get(at).copied(), bounds.get(at)) else { continue };
            let from = if passed_over.contains(&partition) { bounds.next } else { committed };
            // Where it is read again.
            self.queue.forget(|key| key.partition() == partition);
            self.places.begin(partition, from);
            if let Some(consumer) = &mut self.consumer {
                consumer.begin(partition, from);
            }
        }
        self.owned();
    }

    /// Waits for the part of a copy under way: what it notes must not come after what is noted next.
    async fn finish_work(&mut self) {
        while let Some(Ok(page)) = self.working.join_next().await {
            self.copied(page);
        }
    }

    /// These partitions are another's, or read anew.
    fn disown(&mut self, partitions: &[u16]) {
        self.places.forget(partitions);
        self.queue.forget(|key| partitions.contains(&key.partition()));
        self.owned();
    }

    /// What follows from a change of the partitions.
    fn owned(&mut self) {
        let owned = self.places.all();
        if owned == self.owned {
            return;
        }
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.settled_at = Instant::now() + self.job.settings.settle;
        self.copies.start_over();
        self.targets.values_mut().for_each(|target| target.budget = Arc::new(target.budget.with_partitions(owned.len())));
        self.owned = owned;
    }

    fn read(&mut self, partition: u16, records: Vec<Stored>) {
        let now = Instant::now();
        for Stored { offset, value } in records {
            // What was under way when the reader was sent elsewhere.
            if self.places.read(partition) != Some(offset) {
                continue;
            }
            self.places.read_to(partition, offset + 1);
            // The keeper tells of what cannot be read.
            let Ok(change) = Change::decode(&value) else { continue };
            let is_mirrored = self.targets.get(&change.key.site).is_some_and(|target| target.mirror.mirrors(&change.key));
            if is_mirrored && self.queue.changed(&change.key, offset, change.received_at, now) {
                self.places.open((partition, offset));
            }
        }
    }

    /// Goes on with a copy, one page at a time.
    fn copy_on(&mut self) {
        if !self.working.is_empty() {
            return;
        }
        for (site, target) in &self.targets {
            let owned: Vec<(u16, u64)> =
                self.places.all().into_iter().filter_map(|partition| Some((partition, self.places.read(partition)?))).collect();
            let step = self.copies.next(site, &target.mirror, &owned, self.queue.len(site), Instant::now());
            if let Some(step) = step {
                self.working.spawn(step.run(Arc::clone(&self.job.store), Arc::clone(&self.job.sites)));
                return;
            }
        }
    }

    fn copied(&mut self, page: Page) {
        let now = Instant::now();
        for key in self.copies.take(page, now) {
            if self.targets.get(&key.site).is_some_and(|target| target.mirror.mirrors(&key)) {
                self.queue.copy(&key, now);
            }
        }
    }

    /// Begins what is due.
    fn start(&mut self, now: Instant) {
        for job in self.queue.start(now) {
            let Some(target) = self.targets.get(&job.key.site) else {
                self.ended(&job.key, (Outcome::Done, false));
                continue;
            };
            let round = Round {
                store: Arc::clone(&self.job.store),
                expiry: self.job.expiry,
                clock: self.job.clock.clone(),
                remote: target.remote.clone(),
                budget: Arc::clone(&target.budget),
                known: self.known.clone(),
                epoch: self.epoch.load(Ordering::Relaxed),
                current: Arc::clone(&self.epoch),
                settled_at: self.settled_at,
                unsettled_until: self.unsettled.get(&job.key).copied(),
                settle: self.job.settings.settle,
            };
            self.rounds.spawn(async move {
                let ended = round.run(&job).await;
                (job.key, ended)
            });
        }
    }

    fn ended(&mut self, key: &ObjectKey, (outcome, moved): (Outcome, bool)) {
        if matches!(outcome, Outcome::Failed { .. } | Outcome::Denied) {
            self.complain(key, outcome);
        }
        if matches!(outcome, Outcome::Failed { pending: true, .. }) {
            self.unsettled.insert(key.clone(), Instant::now() + self.job.settings.settle);
        }
        for offset in self.queue.ended(key, (outcome, moved), Instant::now(), rand::random_range(0.0..1.0)) {
            self.places.close((key.partition(), offset));
        }
    }

    /// Says once a minute that a site's other service does not do as asked.
    fn complain(&mut self, key: &ObjectKey, outcome: Outcome) {
        let now = Instant::now();
        self.complained.retain(|_, at| now.duration_since(*at) < Duration::from_secs(60));
        if self.complained.contains_key(&key.site) {
            return;
        }
        self.complained.insert(key.site.clone(), now);
        if outcome == Outcome::Denied {
            tracing::error!(site.id = %key.site, "a mirror's credentials are refused, or there is no such service; tried again");
        } else {
            tracing::warn!(site.id = %key.site, "a mirror's service does not do as asked; tried again, contrail_mirror_failures_total counts why");
        }
    }

    /// Lets go of what waits of a site, which is copied anew instead.
    async fn let_go(&mut self, site: &SiteId) {
        let Some(mirror) = self.targets.get(site).map(|target| target.mirror.id) else { return };
        self.finish_work().await;
        if !uncopied(&self.job.sites, site, mirror, &self.places.all()).await {
            return;
        }
        tracing::warn!(site.id = %site, "a mirror fell behind for too long: all its objects are copied anew");
        metrics::counter!("contrail_mirror_left_behind_total").increment(1);
        let closed = self.queue.forget(|key| key.site == *site);
        closed.into_iter().for_each(|place| self.places.close(place));
        self.copies.forget(site);
    }

    fn commit(&mut self) {
        let Some(consumer) = &mut self.consumer else { return };
        for (partition, upto) in self.places.commits() {
            consumer.commit(partition, upto);
        }
    }

    /// Lets what is under way end, for a moment: what is cut off is looked at again.
    pub(super) async fn finish(&mut self) {
        let ending = async {
            while let Some(ended) = self.rounds.join_next().await {
                if let Ok((key, ended)) = ended {
                    for offset in self.queue.ended(&key, ended, Instant::now(), 1.0) {
                        self.places.close((key.partition(), offset));
                    }
                }
            }
        };
        tokio::time::timeout(self.job.settings.finish_within, ending).await.unwrap_or_default();
        self.commit();
    }
}

/// Notes for good that objects are to be copied; false where that did not succeed.
async fn uncopied(sites: &Sites, site: &SiteId, mirror: u64, partitions: &[u16]) -> bool {
    let noted = sites.mirror_copied(site, mirror, partitions, false).await;
    noted.inspect_err(|error| tracing::warn!(%error, site.id = %site, "that a mirror fell behind cannot be noted at present")).is_ok()
}
