//! A simulated shop day for `contrail demo`, `loadtest` and tests: customers who browse, search, fill carts, go through the checkout, buy or
//! stop; crawlers; retries, late events, refunds. Seeded and pure: reads no clock, does no I/O, uses nothing of the pipeline but the
//! event's types, and keeps its own [`Tally`] of what the answers must be.
//!
//! A day is made as it is consumed: memory grows with the tally, not with what is still to be sent.

mod dice;
mod journeys;
mod shop;
mod tally;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Serialize, Serializer};

use crate::event::{Channel, Event, Timestamp};
use dice::{Dice, sums};
use journeys::{Draft, Journey, Told};
use shop::Shop;

pub use tally::{FunnelRow, LookRow, Looks, SoldRow, Tally, UnfinishedRow};

/// Which day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Same seed, events and start: same day, byte for byte.
    pub seed: u64,
    /// How many events are sent, repeats included.
    pub events: u64,
    /// The day's first moment. Where answers are to be compared, at least 24 hours ago: no event may be from the future.
    pub start: Timestamp,
}

impl Settings {
    /// A day of 100,000 events.
    pub fn new(seed: u64, start: Timestamp) -> Self {
        Self { seed, events: 100_000, start }
    }

    /// The day's end: every event occurs and is sent before it.
    pub fn end(&self) -> Timestamp {
        self.start.plus_seconds(86_400)
    }
}

/// An event as a sender posts it. Serialises to one canonical event with its own id, `sent_at` and `source.channel`, which a server key may state.
#[derive(Clone, Debug, PartialEq)]
pub struct SimEvent {
    /// When it is sent.
    pub send_at: Timestamp,
    /// The sender's id.
    pub event_id: String,
    /// Who reports it.
    pub channel: Channel,
    /// Whether it was sent before: same id, same content.
    pub repeat: bool,
    /// What happened.
    pub event: Event,
}

impl Serialize for SimEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Source {
            channel: Channel,
        }
        #[derive(Serialize)]
        struct Sent<'a> {
            event_id: &'a str,
            sent_at: Timestamp,
            source: Source,
            #[serde(flatten)]
            event: &'a Event,
        }
        let source = Source { channel: self.channel };
        Sent { event_id: &self.event_id, sent_at: self.send_at, source, event: &self.event }.serialize(serializer)
    }
}

/// The day, in sending order. Gives exactly [`Settings::events`] events.
#[derive(Debug)]
pub struct Simulation {
    settings: Settings,
    dice: Dice,
    shop: Shop,
    prefix: String,
    /// How busy the shop is up to each minute.
    busy: Vec<u64>,
    planned: u64,
    drafts: u64,
    journeys: u64,
    queue: BinaryHeap<Reverse<Planned>>,
    tally: Tally,
}

#[derive(Debug)]
struct Planned {
    /// Sending order.
    place: (Timestamp, u64),
    sent: SimEvent,
    told: Told,
    person: Option<u64>,
    crawler: bool,
}

/// Journeys begin in the first 23 hours, so that they end within the day.
const MINUTES: usize = 23 * 60;

/// How busy each hour is, from the day's start.
const HOURS: [u64; 24] = [3, 2, 1, 1, 1, 2, 4, 7, 9, 10, 10, 11, 12, 10, 9, 9, 10, 11, 13, 15, 16, 13, 8, 5];

/// Minutes of bursts, and how many times busier they are.
const BURSTS: [(std::ops::Range<usize>, u64); 3] = [(570..575, 8), (735..738, 15), (1_200..1_210, 6)];

impl Simulation {
    /// The day as set.
    pub fn new(settings: Settings) -> Self {
        let mut dice = Dice::new(settings.seed);
        let shop = Shop::new(settings.events, &mut dice);
        let busy = (0..MINUTES).map(|minute| {
            let burst = BURSTS.iter().find(|(minutes, _)| minutes.contains(&minute)).map_or(1, |(_, times)| *times);
            HOURS.get(minute / 60).copied().unwrap_or(1) * burst
        });
        let prefix = format!("{:x}-{:x}-{:x}-", settings.seed, settings.events, settings.start.micros() / 1_000_000);
        let busy = sums(busy);
        Self { settings, dice, shop, prefix, busy, planned: 0, drafts: 0, journeys: 0, queue: BinaryHeap::new(), tally: Tally::default() }
    }

    /// What was sent so far, counted. Right at every point, whole once the day is through.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The moment by which as great a part of the day's business is begun as of its events is planned.
    fn next_start(&self) -> Timestamp {
        let whole = u128::from(self.busy.last().copied().unwrap_or(1));
        let events = u128::from(self.settings.events.max(1));
        // In millionths of the curve's unit, to place a start within its minute.
        let target = whole * 1_000_000 * u128::from(self.planned) / events;
        let minute = self.busy.partition_point(|sum| u128::from(*sum) * 1_000_000 <= target);
        let before = minute.checked_sub(1).and_then(|at| self.busy.get(at)).copied().unwrap_or(0);
        let width = self.busy.get(minute).map_or(1, |sum| sum - before).max(1);
        let within = (target - u128::from(before) * 1_000_000) * 60 / u128::from(width);
        self.settings.start.plus_micros(minute as i64 * 60_000_000 + within as i64)
    }

    /// Plans one more journey: as many events as the day has room for.
    fn plan(&mut self) {
        let (start, end) = (self.next_start(), self.settings.end());
        let room = self.settings.events - self.planned;
        let number = self.journeys;
        self.journeys += 1;
        let visitors = (self.settings.events / 12).max(20);
        // A third of the visits are by the tenth of the visitors that comes again and again.
        let visitor = if self.dice.chance(330) { self.dice.below(visitors / 10 + 1) } else { self.dice.below(visitors) };
        let kind = self.dice.below(100);
        let journey = Journey::new(&self.shop, &mut self.dice, &self.prefix, start, end, number, visitor);
        let drafts = match kind {
            // The catalogue comes first, then what changes in it.
            _ if (number as usize) < self.shop.products.len() / 4 => journey.restock(number as usize),
            0..=4 => journey.restock(number as usize),
            5 => journey.refund_of_old(),
            6..=10 => journey.crawl(),
            _ => journey.shop(),
        };
        let drafts = if drafts.len() as u64 > room {
            Journey::new(&self.shop, &mut self.dice, &self.prefix, start, end, number, visitor).leaf_through(room)
        } else {
            drafts
        };
        self.planned += drafts.len() as u64;
        for draft in drafts {
            self.send(draft);
        }
    }

    /// Decides when a draft is sent, and whether it is sent again.
    fn send(&mut self, draft: Draft) {
        let Draft { event, channel, told, person, crawler } = draft;
        let last = self.settings.end().plus_micros(-1);
        let late = self.dice.chance(10);
        let delay = if late { self.dice.between(3_600, 8 * 3_600) * 1_000_000 } else { self.dice.between(20_000, 900_000) };
        let left = last.micros() - event.occurred_at.micros();
        let send_at = event.occurred_at.plus_micros(if delay > left { self.dice.between(0, left) } else { delay });
        self.drafts += 1;
        let sent = SimEvent { send_at, event_id: format!("{}e{}", self.prefix, self.drafts), channel, repeat: false, event };
        let planned = Planned { place: (send_at, self.drafts * 2), sent, told, person, crawler };
        if self.planned < self.settings.events && self.dice.chance(15) {
            let wait = if self.dice.chance(200) { 7_200 } else { 1 + self.dice.below(600) as i64 };
            let again = send_at.plus_seconds(wait).min(last);
            let repeat = SimEvent { send_at: again, repeat: true, ..planned.sent.clone() };
            self.queue.push(Reverse(Planned { place: (again, self.drafts * 2 + 1), sent: repeat, told: Told::Plainly, person: None, crawler }));
            self.planned += 1;
        }
        self.queue.push(Reverse(planned));
    }
}

impl Iterator for Simulation {
    type Item = SimEvent;

    fn next(&mut self) -> Option<SimEvent> {
        while self.planned < self.settings.events && self.queue.peek().is_none_or(|Reverse(head)| head.place.0 >= self.next_start()) {
            self.plan();
        }
        let Reverse(planned) = self.queue.pop()?;
        self.tally.note(&planned.sent, &planned.told, planned.person, planned.crawler);
        Some(planned.sent)
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place.cmp(&other.place)
    }
}
