//! What waits to be told, by service: of one object one after the other, again after a failure, never for longer than it is worth, never more than fits.
//! Owned by the room's loop. Pure: it is told the time.
//!
//! A service that does not answer costs the others nothing: it has a bound of its own, one request under way at a time until one succeeds, and whatever waits
//! for [`Settings::longest`] is given up, tried or not.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::message::Message;
use crate::event::SiteId;

/// Bounds and pauses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Requests of one service under way at once.
    pub in_flight: usize,
    /// Requests of all.
    pub all_in_flight: usize,
    /// Messages of one service that wait.
    pub waiting: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// Bytes of all that wait.
    pub all_bytes: usize,
    /// The pause after a first failure is at most so long; after each further one twice as long at most.
    pub first_pause: Duration,
    /// But never longer than this.
    pub longest_pause: Duration,
    /// How long a message is worth telling.
    pub longest: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_flight: 8,
            all_in_flight: 1_024,
            waiting: 10_000,
            bytes: 16 << 20,
            all_bytes: 128 << 20,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(300),
            longest: Duration::from_secs(900),
        }
    }
}

/// Where a message came from: partition and offset of `events`; None where from no log.
pub(super) type Place = Option<(u16, u64)>;

/// Names a message that waits.
pub(super) type Number = u64;

/// A message to be sent now.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) site: SiteId,
    pub(super) number: Number,
    pub(super) message: Arc<Message>,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was taken.
    Told,
    /// It was refused, and would be again; why.
    Refused(&'static str),
    /// It may be taken later; what was wrong.
    Failed(&'static str),
}

/// A message that nobody waits for any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) site: SiteId,
    pub(super) place: Place,
    /// Why it was given up; None where it was told.
    pub(super) dropped: Option<&'static str>,
}

#[derive(Debug)]
struct Waiting {
    message: Arc<Message>,
    place: Place,
    bytes: usize,
    tries: u32,
    /// When it is given up.
    until: Instant,
    state: State,
}

/// Where a message is in its object's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Behind others.
    Behind,
    /// First, and due then.
    Due(Instant),
    /// Being sent.
    UnderWay,
}

#[derive(Debug, Default)]
struct Service {
    /// In the order of arrival.
    waiting: BTreeMap<Number, Waiting>,
    /// By what they are about.
    lines: HashMap<String, VecDeque<Number>>,
    due: BTreeSet<(Instant, Number)>,
    under_way: usize,
    bytes: usize,
    /// Whether the last attempt failed.
    fails: bool,
}

/// All that waits.
#[derive(Debug)]
pub(super) struct Queue {
    settings: Settings,
    services: HashMap<SiteId, Service>,
    ended: Vec<Ended>,
    next: Number,
    bytes: usize,
    under_way: usize,
}

impl Queue {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, services: HashMap::new(), ended: Vec::new(), next: 0, bytes: 0, under_way: 0 }
    }

    /// Takes a message in, behind those about the same. Where there is no room, the newest that waits of whoever has most of it is given up.
    pub(super) fn push(&mut self, site: &SiteId, message: Message, place: Place, now: Instant) {
        let Settings { waiting, bytes, all_bytes, longest, .. } = self.settings;
        let number = self.next;
        self.next += 1;
        let held = message.bytes();
        let service = self.services.entry(site.clone()).or_default();
        let line = service.lines.entry(message.about.clone()).or_default();
        let state = if line.is_empty() { State::Due(now) } else { State::Behind };
        line.push_back(number);
        if state == State::Due(now) {
            service.due.insert((now, number));
        }
        service.waiting.insert(number, Waiting { message: Arc::new(message), place, bytes: held, tries: 0, until: now + longest, state });
        service.bytes += held;
        self.bytes += held;
        let is_full = service.waiting.len() > waiting || service.bytes > bytes;
        if is_full {
            self.drop_newest(site, now);
        }
        while self.bytes > all_bytes {
            let fattest = self.services.iter().max_by_key(|(_, service)| service.bytes).map(|(site, _)| site.clone());
            if !fattest.is_some_and(|site| self.drop_newest(&site, now)) {
                break;
            }
        }
    }

    /// What is to be sent now.
    pub(super) fn start(&mut self, now: Instant) -> Vec<Attempt> {
        let (mut attempts, most) = (Vec::new(), self.settings.in_flight);
        for (site, service) in &mut self.services {
            while self.under_way < self.settings.all_in_flight
                && service.under_way < service.most(most)
                && let Some((due, number)) = service.due.first().copied()
                && due <= now
            {
                service.due.remove(&(due, number));
                let Some(waiting) = service.waiting.get_mut(&number) else { continue };
                waiting.state = State::UnderWay;
                service.under_way += 1;
                self.under_way += 1;
                attempts.push(Attempt { site: site.clone(), number, message: Arc::clone(&waiting.message) });
            }
        }
        attempts
    }

    /// Notes what an attempt came to. `jitter`, from 0 to 1: how much of the longest pause is waited before the next.
    pub(super) fn tried(&mut self, site: &SiteId, number: Number, outcome: Outcome, now: Instant, jitter: f64) {
        let Settings { first_pause, longest_pause, .. } = self.settings;
        let Some(service) = self.services.get_mut(site) else { return };
        let Some(waiting) = service.waiting.get_mut(&number) else { return };
        service.under_way -= 1;
        self.under_way -= 1;
        service.fails = matches!(outcome, Outcome::Failed(_));
        let dropped = match outcome {
            Outcome::Told => None,
            Outcome::Refused(why) => Some(why),
            Outcome::Failed(_) => {
                let longest = first_pause.saturating_mul(1 << waiting.tries.min(16)).min(longest_pause);
                let due = now + longest.mul_f64(jitter);
                if due < waiting.until {
                    waiting.tries += 1;
                    waiting.state = State::Due(due);
                    service.due.insert((due, number));
                    return;
                }
                Some("late")
            }
        };
        self.end(site, number, dropped, now);
    }

    /// Gives up what has waited for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let late = |service: &Service| -> Vec<Number> {
            let late = service.waiting.iter().take_while(|(_, waiting)| waiting.until <= now);
            late.filter(|(_, waiting)| waiting.state != State::UnderWay).map(|(number, _)| *number).collect()
        };
        let late: Vec<(SiteId, Vec<Number>)> = self.services.iter().map(|(site, service)| (site.clone(), late(service))).collect();
        for (site, numbers) in late {
            for number in numbers {
                self.end(&site, number, Some("late"), now);
            }
        }
    }

    /// When there is something to do next, unless something happens before.
    pub(super) fn wake(&self) -> Option<Instant> {
        let has_room = self.under_way < self.settings.all_in_flight;
        let of = |service: &Service| {
            let due = service.due.first().filter(|_| has_room && service.under_way < service.most(self.settings.in_flight)).map(|(due, _)| *due);
            let late = service.waiting.values().find(|waiting| waiting.state != State::UnderWay).map(|waiting| waiting.until);
            due.into_iter().chain(late).min()
        };
        self.services.values().filter_map(of).min()
    }

    /// Forgets what came from these partitions of the log: it is another's to tell. What is under way goes on, and counts for nothing.
    pub(super) fn forget(&mut self, partitions: &[u16], now: Instant) {
        let is_of = |place: Place| place.is_some_and(|(partition, _)| partitions.contains(&partition));
        let mut gone = Vec::new();
        for (site, service) in &mut self.services {
            for (number, waiting) in service.waiting.iter_mut().filter(|(_, waiting)| is_of(waiting.place)) {
                waiting.place = None;
                if waiting.state != State::UnderWay {
                    gone.push((site.clone(), *number));
                }
            }
        }
        for (site, number) in gone {
            self.take(&site, number, now);
        }
    }

    /// What has ended since this was asked last.
    pub(super) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// How many wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.services.values().map(|service| service.waiting.len()).sum()
    }

    /// Gives up the newest of a service that is not under way; false where there is none.
    fn drop_newest(&mut self, site: &SiteId, now: Instant) -> bool {
        let Some(service) = self.services.get(site) else { return false };
        let newest = service.waiting.iter().rev().find(|(_, waiting)| waiting.state != State::UnderWay);
        let Some(number) = newest.map(|(number, _)| *number) else { return false };
        self.end(site, number, Some("full"), now);
        true
    }

    fn end(&mut self, site: &SiteId, number: Number, dropped: Option<&'static str>, now: Instant) {
        if let Some(waiting) = self.take(site, number, now) {
            self.ended.push(Ended { site: site.clone(), place: waiting.place, dropped });
        }
    }

    /// Takes a message out, and lets the next of its line be first.
    fn take(&mut self, site: &SiteId, number: Number, now: Instant) -> Option<Waiting> {
        let service = self.services.get_mut(site)?;
        let waiting = service.waiting.remove(&number)?;
        service.bytes -= waiting.bytes;
        self.bytes -= waiting.bytes;
        if let State::Due(due) = waiting.state {
            service.due.remove(&(due, number));
        }
        if let Some(line) = service.lines.get_mut(&waiting.message.about) {
            // In most cases it is the first, or the last.
            if line.front() == Some(&number) {
                line.pop_front();
            } else if line.back() == Some(&number) {
                line.pop_back();
            } else {
                line.retain(|other| *other != number);
            }
            match line.front().copied() {
                None => {
                    service.lines.remove(&waiting.message.about);
                }
                Some(first) => {
                    if let Some(next) = service.waiting.get_mut(&first).filter(|next| next.state == State::Behind) {
                        next.state = State::Due(now);
                        service.due.insert((now, first));
                    }
                }
            }
        }
        if service.waiting.is_empty() {
            self.services.remove(site);
        }
        Some(waiting)
    }
}

impl Service {
    /// How many may be under way: until one succeeds, one.
    const fn most(&self, most: usize) -> usize {
        if self.fails { 1 } else { most }
    }
}

#[cfg(test)]
mod tests;
