//! WEBHOOKS: tells services of the Sync API what API clients did to their objects, and who connects and disconnects, at the URL that each has set. Reads
//! `events`, where the keeper archives what clients did; run by the composition root, one per process. Must never pass what is neither told nor given up, nor
//! let a service that does not answer hold up the others or the log.
//!
//! ```text
//! events ─► message ─► gather ─► queue ─► delivery ─► a service's URL
//!                                  ▲         └─► places ─► committed
//!                  endpoints ──────┘
//! ```
//!
//! How far it is, its group of the log says: what is read again after a crash is told again. What is told of one object comes in the order in which it happened,
//! as far as one process reads the log alone; where several share it, receivers go by revisions and event ids.

mod delivery;
mod endpoints;
mod gather;
mod message;
mod queue;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::delivery::Delivery;
use self::gather::{Gather, Held};
use self::message::Message;
use self::queue::{Number, Outcome, Queue};
use crate::event::{Record, SiteId};
use crate::eventlog::places::Places;
use crate::eventlog::{Consumer, Delivery as Delivered, Error, EventLog, Offset, Stored, Topic};
use crate::outbound::Client;
use crate::site::Sites;

pub use endpoints::Endpoints;
pub use queue::Settings as QueueSettings;

/// The room's consumer group of `events`.
pub const GROUP: &str = "webhooks";

/// How the room works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a service may take to answer.
    pub timeout: Duration,
    /// Bounds and pauses of what waits.
    pub queue: QueueSettings,
    /// Bytes that wait for what came before them.
    pub gathered: usize,
    /// Bytes read of the log at once.
    pub read: usize,
    /// How often it is committed how far the room is.
    pub commit_every: Duration,
    /// The pause before a partition that cannot be read is tried again, and the log where it does not answer.
    pub again_after: Duration,
    /// How long requests under way may take once the room stops.
    pub finish_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            queue: QueueSettings::default(),
            gathered: 16 << 20,
            read: 1 << 20,
            commit_every: Duration::from_secs(1),
            again_after: Duration::from_secs(30),
            finish_within: Duration::from_secs(5),
        }
    }
}

/// The room with all it works on.
pub struct Webhooks {
    log: Arc<dyn EventLog>,
    delivery: Delivery,
    endpoints: Endpoints,
    settings: Settings,
}

impl Webhooks {
    /// Tells the services of `sites` what `log` holds, by `client`.
    pub fn new(log: Arc<dyn EventLog>, sites: Arc<Sites>, client: Client, settings: Settings) -> Self {
        let endpoints = Endpoints::new(Arc::clone(&sites));
        Self { log, delivery: Delivery { client, sites, timeout: settings.timeout }, endpoints, settings }
    }

    /// To be told of clients that come and go.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.clone()
    }

    /// Tells until `stop`; where it `reads`, as a member of [`GROUP`], else of clients alone. Then lets what is under way end, and commits.
    ///
    /// # Errors
    /// When the log is closed.
    pub async fn run(self, reads: bool, stop: CancellationToken) -> Result<(), Error> {
        let mut run = Run {
            queue: Queue::new(self.settings.queue),
            gather: Gather::default(),
            places: Places::default(),
            attempts: JoinSet::new(),
            consumer: None,
            subscribe_at: reads.then(Instant::now),
            seek_at: None,
            commit_at: Instant::now() + self.settings.commit_every,
            asking: None,
            unsought: Vec::new(),
            complained: HashMap::new(),
            job: self,
        };
        let outcome = run.until(&stop).await;
        run.finish().await;
        outcome
    }
}

/// The room at work.
struct Run {
    job: Webhooks,
    queue: Queue,
    gather: Gather,
    places: Places,
    attempts: JoinSet<(SiteId, Number, Outcome)>,
    /// None where nothing is read, or the log did not answer.
    consumer: Option<Box<dyn Consumer>>,
    /// When the log is asked (again).
    subscribe_at: Option<Instant>,
    /// Owned partitions that are not read yet, and when that is tried.
    unsought: Vec<u16>,
    seek_at: Option<Instant>,
    commit_at: Instant,
    /// Where the log ends.
    asking: Option<BoxFuture<'static, Vec<Option<Offset>>>>,
    /// When it was last said of a site that something was given up.
    complained: HashMap<SiteId, Instant>,
}

/// What happened.
enum Event {
    Stop,
    Tried(SiteId, Number, Outcome),
    Ends(Vec<Option<Offset>>),
    Read(Result<Delivered, Error>),
    /// Somebody came or went, or it is time for something.
    Tick,
}

impl Run {
    async fn until(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            let wake = self.wake();
            match self.next(stop, wake).await {
                Event::Stop => return Ok(()),
                Event::Tried(site, number, outcome) => self.queue.tried(&site, number, outcome, Instant::now(), rand::random_range(0.0..1.0)),
                Event::Ends(ends) => {
                    self.asking = None;
                    self.gather.ends(ends);
                }
                Event::Read(Ok(delivery)) => self.take(delivery),
                Event::Read(Err(error)) if error.is_retryable() => self.start_over(&error),
                Event::Read(Err(error)) => return Err(error),
                Event::Tick => {}
            }
            let now = Instant::now();
            if self.subscribe_at.is_some_and(|at| at <= now) {
                self.subscribe().await?;
            }
            if self.seek_at.is_some_and(|at| at <= now) {
                self.seek().await;
            }
            self.push(now);
            self.queue.expire(now);
            self.start(now);
            self.settle(now);
        }
    }

    async fn next(&mut self, stop: &CancellationToken, wake: Instant) -> Event {
        let Self { attempts, asking, consumer, job, .. } = self;
        let read = async {
            match consumer {
                Some(consumer) => consumer.next(job.settings.read).await,
                None => std::future::pending().await,
            }
        };
        let ends = async {
            match asking {
                Some(asking) => asking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(tried) = attempts.join_next() => match tried {
                Ok((site, number, outcome)) => Event::Tried(site, number, outcome),
                // None is aborted while this goes on: it panicked, and what it was to tell would wait for ever.
                Err(error) => Event::Read(Err(Error::Closed(format!("telling a service: {error}")))),
            },
            ends = ends => Event::Ends(ends),
            () = job.endpoints.changed() => Event::Tick,
            () = tokio::time::sleep_until(wake) => Event::Tick,
            read = read => Event::Read(read),
        }
    }

    /// When there is something to do, unless something happens before.
    fn wake(&self) -> Instant {
        let times = [self.queue.wake(), self.job.endpoints.wake(), self.subscribe_at, self.seek_at];
        times.into_iter().flatten().fold(self.commit_at, Instant::min)
    }

    async fn subscribe(&mut self) -> Result<(), Error> {
        match self.job.log.subscribe(Topic::Events, GROUP).await {
            Ok(consumer) => {
                self.subscribe_at = None;
                self.consumer = Some(consumer);
            }
            Err(error) if error.is_retryable() => self.start_over(&error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Forgets what was read, and reads it again later.
    fn start_over(&mut self, error: &Error) {
        tracing::warn!(%error, "webhooks cannot read the log at present; they go on from what is committed");
        metrics::counter!("contrail_webhooks_restarts_total").increment(1);
        self.consumer = None;
        self.forget(&self.places.all());
        self.unsought.clear();
        (self.seek_at, self.subscribe_at) = (None, Some(Instant::now() + self.job.settings.again_after));
    }

    fn take(&mut self, delivery: Delivered) {
        match delivery {
            Delivered::Assigned(partitions) => {
                self.unsought.extend(partitions);
                self.seek_at = Some(Instant::now());
            }
            Delivered::Revoked(partitions) => {
                self.unsought.retain(|partition| !partitions.contains(partition));
                self.forget(&partitions);
            }
            Delivered::Failed { partition, error } => {
                tracing::error!(partition, %error, "webhooks stop reading a partition of events; it is tried again");
                // What was read of it is still told, but its place is lost: it is sought anew.
                self.gather.forget(&[partition]);
                self.unsought.push(partition);
                self.seek_at = Some(Instant::now() + self.job.settings.again_after);
            }
            Delivered::Records { partition, records, .. } => self.read(partition, records),
        }
    }

    /// Has partitions read from what is committed, or from the log's beginning where it no longer holds that.
    async fn seek(&mut self) {
        let log = Arc::clone(&self.job.log);
        let asked = futures::future::try_join(log.committed(Topic::Events, GROUP), log.bounds(Topic::Events)).await;
        let (committed, bounds) = match asked {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "webhooks cannot be told where they stand; asked again");
                self.seek_at = Some(Instant::now() + self.job.settings.again_after);
                return;
            }
        };
        self.seek_at = None;
        let Some(consumer) = &mut self.consumer else { return };
        for partition in std::mem::take(&mut self.unsought) {
            let at = usize::from(partition);
            let (Some(committed), Some(bounds)) = (committed.get(at).copied(), bounds.get(at)) else { continue };
            let from = if (bounds.start..=bounds.next).contains(&committed) { committed } else { bounds.start };
            if from != committed {
                tracing::warn!(partition, committed, from, "the log does not hold what webhooks were to read next; they go on from its beginning");
            }
            self.queue.forget(&[partition], Instant::now());
            self.places.begin(partition, from);
            self.gather.begin(partition, from);
            consumer.begin(partition, from);
        }
    }

    fn read(&mut self, partition: u16, records: Vec<Stored>) {
        for Stored { offset, value } in records {
            // What was under way when the reader was sent elsewhere.
            if self.places.read(partition) != Some(offset) {
                continue;
            }
            self.places.read_to(partition, offset + 1);
            self.gather.read_to(partition, offset + 1);
            let Ok(record) = Record::decode(&value) else { continue };
            let Some(message) = Message::of(&record) else { continue };
            if self.job.delivery.sites.get(&record.site).is_some_and(|site| message.is_wanted(&site.service)) {
                self.places.open((partition, offset));
                self.gather.hold(Held { site: record.site, message, place: (partition, offset) });
            }
        }
    }

    /// Puts what may be told now into the queue.
    fn push(&mut self, now: Instant) {
        if self.asking.is_none() && self.gather.mark() {
            let log = Arc::clone(&self.job.log);
            self.asking = Some(async move { log.ends(Topic::Events).await }.boxed());
        }
        for Held { site, message, place } in self.gather.release(self.job.settings.gathered) {
            self.queue.push(&site, message, Some(place), now);
        }
        for (site, message) in self.job.endpoints.take(now) {
            self.queue.push(&site, message, None, now);
        }
    }

    /// Begins what is due.
    fn start(&mut self, now: Instant) {
        for attempt in self.queue.start(now) {
            let delivery = self.job.delivery.clone();
            self.attempts.spawn(async move {
                let outcome = delivery.attempt(&attempt.site, &attempt.message).await;
                if let Outcome::Failed(reason) = outcome {
                    metrics::counter!("contrail_webhooks_failed_attempts_total", "reason" => reason).increment(1);
                }
                (attempt.site, attempt.number, outcome)
            });
        }
    }

    /// Notes what ended, and says how far the room is.
    fn settle(&mut self, now: Instant) {
        for ended in self.queue.take_ended() {
            if let Some(place) = ended.place {
                self.places.close(place);
            }
            match ended.dropped {
                None => metrics::counter!("contrail_webhooks_told_total").increment(1),
                Some(reason) => self.complain(ended.site, reason, now),
            }
        }
        metrics::gauge!("contrail_webhooks_waiting").set(self.queue.len() as f64);
        if self.commit_at <= now {
            self.commit();
            self.commit_at = now + self.job.settings.commit_every;
        }
    }

    /// Counts what was given up; says so once a minute of one site.
    fn complain(&mut self, site: SiteId, reason: &'static str, now: Instant) {
        metrics::counter!("contrail_webhooks_dropped_total", "reason" => reason).increment(1);
        self.complained.retain(|_, at| now.duration_since(*at) < Duration::from_secs(60));
        if let Entry::Vacant(first) = self.complained.entry(site) {
            tracing::warn!(site.id = %first.key(), reason, "a service was not told of a change, and will not be; contrail_webhooks_dropped_total counts them");
            first.insert(now);
        }
    }

    fn commit(&mut self) {
        let Some(consumer) = &mut self.consumer else { return };
        for (partition, upto) in self.places.commits() {
            consumer.commit(partition, upto);
        }
    }

    fn forget(&mut self, partitions: &[u16]) {
        self.places.forget(partitions);
        self.gather.forget(partitions);
        self.queue.forget(partitions, Instant::now());
    }

    /// Lets what is under way end, for a moment: what is cut off is told again.
    async fn finish(&mut self) {
        let ending = async {
            while let Some(tried) = self.attempts.join_next().await {
                if let Ok((site, number, outcome)) = tried {
                    self.queue.tried(&site, number, outcome, Instant::now(), 1.0);
                }
            }
        };
        tokio::time::timeout(self.job.settings.finish_within, ending).await.unwrap_or_default();
        self.settle(Instant::now());
        self.commit();
    }
}

#[cfg(test)]
mod tests;
