//! Which objects are to be mirrored: by site, each object once however often it changed, one round of each at a time, again after a failure. Owned by the room's
//! loop. Pure: it is told the time.
//!
//! A service that does not answer costs the others nothing: it has a bound of its own and one request under way until one succeeds.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::event::{ObjectKey, SiteId, Timestamp};
use crate::eventlog::Offset;

/// Bounds and pauses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Objects of one site under way at once.
    pub in_flight: usize,
    /// Objects of one site that wait.
    pub waiting: usize,
    /// The pause after a first failure is at most so long; after each further one twice as long at most.
    pub first_pause: Duration,
    /// But never longer than this.
    pub longest_pause: Duration,
    /// The pause of a site whose credentials are refused.
    pub denied_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_flight: 8,
            waiting: 50_000,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            denied_pause: Duration::from_secs(60),
        }
    }
}

/// The pause before it is looked again whether a change that was read is applied; doubled with each time, up to 32 times this.
const FIRST_UNAPPLIED: Duration = Duration::from_millis(50);

/// An object to be brought up to date there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Job {
    pub(super) key: ObjectKey,
    /// What is here must include this offset of `changes`, if that changed anything; None where whatever is here will do.
    pub(super) upto: Option<Offset>,
}

/// What a round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There it is as it was here when the round began, or what of it is refused there will be refused again.
    Done,
    /// It goes on then: its rate does not allow more now.
    Later(Duration),
    /// What it is to be here, it is not yet.
    Unapplied,
    /// The other service did not answer, or not in the affirmative; it goes on after a pause.
    Failed {
        /// How long that is at least, where the service said so.
        pause: Option<Duration>,
        /// Whether what was asked for may still be under way.
        pending: bool,
    },
    /// The other service refuses whatever is asked.
    Denied,
}

#[derive(Debug)]
struct Waiting {
    upto: Option<Offset>,
    /// The offset of its first change that no round took yet, and of the round's.
    first: Option<Offset>,
    flying: Option<Offset>,
    /// Since when what no round took yet waits, and the round's.
    since: Option<Since>,
    flying_since: Option<Since>,
    tries: u32,
    /// How often in a row it was not yet what it is to be.
    unapplied: u32,
    /// When it is due; None while it is under way.
    due: Option<Instant>,
    /// Whether it changed while it is under way.
    again: bool,
    /// Whether it is here for a copy of all.
    copied: bool,
    /// Whether it is another's by now.
    forgotten: bool,
}

/// Since when something waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Since {
    received_at: Timestamp,
    here: Instant,
}

impl Since {
    fn earlier(self, other: Self) -> Self {
        Self { received_at: self.received_at.min(other.received_at), here: self.here.min(other.here) }
    }
}

/// The earlier of two that may not be.
fn earlier(one: Option<Since>, other: Option<Since>) -> Option<Since> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.earlier(other)),
        (one, other) => one.or(other),
    }
}

#[derive(Debug, Default)]
struct Mirrored {
    waiting: HashMap<ObjectKey, Waiting>,
    due: BTreeSet<(Instant, ObjectKey)>,
    under_way: usize,
    copied: usize,
    /// Failures in a row, of whatever object.
    failures: u32,
    paused_until: Option<Instant>,
}

/// All that waits.
#[derive(Debug)]
pub(super) struct Queue {
    settings: Settings,
    sites: HashMap<SiteId, Mirrored>,
}

impl Queue {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, sites: HashMap::new() }
    }

    /// Takes an object in that changed at this offset. Whether that is the first change that waits: only below it everything is done.
    pub(super) fn changed(&mut self, key: &ObjectKey, offset: Offset, at: Timestamp, now: Instant) -> bool {
        let waiting = self.wait(key, now);
        waiting.upto = waiting.upto.max(Some(offset));
        waiting.since = earlier(waiting.since, Some(Since { received_at: at, here: now }));
        let is_first = waiting.first.is_none();
        if is_first {
            waiting.first = Some(offset);
        }
        is_first
    }

    /// Takes an object in that is to be mirrored as it is.
    pub(super) fn copy(&mut self, key: &ObjectKey, now: Instant) {
        let waiting = self.wait(key, now);
        if !std::mem::replace(&mut waiting.copied, true)
            && let Some(site) = self.sites.get_mut(&key.site)
        {
            site.copied += 1;
        }
    }

    fn wait(&mut self, key: &ObjectKey, now: Instant) -> &mut Waiting {
        let site = self.sites.entry(key.site.clone()).or_default();
        let due = &mut site.due;
        let waiting = site.waiting.entry(key.clone()).or_insert_with(|| {
            due.insert((now, key.clone()));
            Waiting {
                upto: None,
                first: None,
                flying: None,
                since: None,
                flying_since: None,
                tries: 0,
                unapplied: 0,
                due: Some(now),
                again: false,
                copied: false,
                forgotten: false,
            }
        });
        waiting.again = waiting.due.is_none();
        waiting
    }

    /// What is to be begun now.
    pub(super) fn start(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        for site in self.sites.values_mut() {
            if site.paused_until.is_some_and(|until| until > now) {
                continue;
            }
            let most = site.most(self.settings.in_flight);
            while site.under_way < most
                && let Some((due, key)) = site.due.first().filter(|(due, _)| *due <= now).cloned()
            {
                site.due.remove(&(due, key.clone()));
                let Some(waiting) = site.waiting.get_mut(&key) else { continue };
                waiting.due = None;
                waiting.flying = waiting.first.take();
                waiting.flying_since = waiting.since.take();
                site.under_way += 1;
                jobs.push(Job { key, upto: waiting.upto });
            }
        }
        jobs
    }

    /// Notes what a round came to, and whether anything was done in it, which ends a row of failures; gives offsets of changes that are done. `jitter`, from 0
    /// to 1: how much of the longest pause is waited.
    pub(super) fn ended(&mut self, key: &ObjectKey, (outcome, moved): (Outcome, bool), now: Instant, jitter: f64) -> Vec<Offset> {
        let Settings { first_pause, longest_pause, denied_pause, .. } = self.settings;
        let Some(site) = self.sites.get_mut(&key.site) else { return Vec::new() };
        let Some(waiting) = site.waiting.get_mut(key) else { return Vec::new() };
        site.under_way -= 1;
        let (flying, flying_since) = (waiting.flying.take(), waiting.flying_since.take());
        let again = std::mem::take(&mut waiting.again);
        if moved {
            (waiting.tries, site.failures) = (0, 0);
        }
        let mut done = Vec::new();
        let pause = match outcome {
            Outcome::Done => {
                done.extend(flying);
                site.failures = 0;
                (waiting.tries, waiting.unapplied) = (0, 0);
                Duration::ZERO
            }
            Outcome::Later(pause) => {
                waiting.unapplied = 0;
                pause
            }
            Outcome::Unapplied => {
                let pause = FIRST_UNAPPLIED.saturating_mul(1 << waiting.unapplied.min(5));
                waiting.unapplied += 1;
                pause
            }
            Outcome::Failed { pause, .. } => {
                let longest = |tries: u32| first_pause.saturating_mul(1 << tries.min(16)).min(longest_pause).mul_f64(jitter);
                let own = pause.unwrap_or_default().max(longest(waiting.tries));
                // One object that fails holds nobody; a second failure in a row says that it is the service.
                if let Some(tries) = site.failures.checked_sub(1) {
                    site.paused_until = Some(now + pause.unwrap_or_default().max(longest(tries)));
                }
                waiting.tries += 1;
                site.failures = site.failures.saturating_add(1);
                own
            }
            Outcome::Denied => {
                site.failures = site.failures.saturating_add(1);
                site.paused_until = Some(now + denied_pause);
                denied_pause
            }
        };
        if outcome != Outcome::Done {
            // The round's change waits again, in place of those that came meanwhile.
            if flying.is_some() {
                done.extend(std::mem::replace(&mut waiting.first, flying));
            }
            // What is being done is not late, however long it takes.
            let flying_since = flying_since.map(|since| Since { here: if moved { now } else { since.here }, ..since });
            waiting.since = earlier(waiting.since, flying_since);
        } else if waiting.copied && !again {
            waiting.copied = false;
            site.copied -= 1;
        }
        let forgotten = std::mem::take(&mut waiting.forgotten);
        if !again && (forgotten || outcome == Outcome::Done) {
            let left = site.waiting.remove(key);
            if left.is_some_and(|left| left.copied) {
                site.copied -= 1;
            }
            return done;
        }
        let due = now + pause;
        waiting.due = Some(due);
        site.due.insert((due, key.clone()));
        done
    }

    /// When there is something to do next, unless something happens before.
    pub(super) fn wake(&self) -> Option<Instant> {
        let of = |site: &Mirrored| {
            let most = site.most(self.settings.in_flight);
            let (due, _) = site.due.first().filter(|_| site.under_way < most)?;
            Some(site.paused_until.map_or(*due, |until| until.max(*due)))
        };
        self.sites.values().filter_map(of).min()
    }

    /// Forgets objects that `is` names: they are another's to mirror, or nobody's. What is under way goes on, and counts for nothing.
    pub(super) fn forget(&mut self, is: impl Fn(&ObjectKey) -> bool) -> Vec<(u16, Offset)> {
        let mut closed = Vec::new();
        for site in self.sites.values_mut() {
            let Mirrored { waiting, due, copied, .. } = site;
            waiting.retain(|key, entry| {
                if !is(key) {
                    return true;
                }
                let partition = key.partition();
                closed.extend(entry.first.take().into_iter().chain(entry.flying.take()).map(|offset| (partition, offset)));
                *copied -= usize::from(std::mem::take(&mut entry.copied));
                entry.forgotten = true;
                (entry.since, entry.flying_since) = (None, None);
                let Some(at) = entry.due else { return true };
                due.remove(&(at, key.clone()));
                false
            });
        }
        self.sites.retain(|_, site| !site.waiting.is_empty());
        closed
    }

    /// Sites that have no room for more.
    pub(super) fn full(&self) -> Vec<SiteId> {
        self.sites.iter().filter(|(_, site)| site.waiting.len() >= self.settings.waiting).map(|(id, _)| id.clone()).collect()
    }

    /// Sites of which something has waited here since before that.
    pub(super) fn late(&self, before: Instant) -> Vec<SiteId> {
        let is_late = |site: &Mirrored| site.waiting.values().any(|waiting| waiting.since().is_some_and(|since| since.here < before));
        self.sites.iter().filter(|(_, site)| is_late(site)).map(|(id, _)| id.clone()).collect()
    }

    /// Objects of a site that wait or are under way, and those of them that are there for a copy of all.
    pub(super) fn len(&self, site: &SiteId) -> (usize, usize) {
        self.sites.get(site).map_or((0, 0), |site| (site.waiting.len(), site.copied))
    }

    /// All that wait or are under way, and when what waits longest was received.
    pub(super) fn lag(&self) -> (usize, Option<Timestamp>) {
        let waiting = self.sites.values().flat_map(|site| site.waiting.values());
        (self.sites.values().map(|site| site.waiting.len()).sum(), waiting.filter_map(|waiting| Some(waiting.since()?.received_at)).min())
    }
}

impl Waiting {
    fn since(&self) -> Option<Since> {
        earlier(self.since, self.flying_since)
    }
}

impl Mirrored {
    /// How many may be under way: until one succeeds, one.
    const fn most(&self, most: usize) -> usize {
        if self.failures > 0 { 1 } else { most }
    }
}

#[cfg(test)]
mod tests;
