//! One business fact (an order, a refund, a step of a checkout) and the reports of it: which were seen, and what the best one says. Used by
//! orders and checkouts; knows neither. The best is the least under a total order over reports, so it is the same in whatever order they arrive;
//! a report speaks by its first appearance alone, so it is the same however often they arrive.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::super::ids::{first_u64, sha256};
use super::super::record::{Channel, Flags, Record};
use super::super::{Event, Timestamp};
use super::{MAX_REPORTS, Verdict};

/// A fact of which at least one report is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Fact<T> {
    /// Every (event id, fingerprint, channel) seen, in the order of arrival, at most [`MAX_REPORTS`].
    seen: Vec<Seen>,
    /// What the best report says.
    pub(super) best: Appearance<T>,
}

/// A known report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    /// First 8 bytes of SHA-256 over (event id, fingerprint, channel).
    #[serde(with = "postcard::fixint::le")]
    report: u64,
    /// Offset of its first appearance.
    first: u64,
}

/// A report as it appears in one record. Appearances of one report differ at most in what arrival filled in: `at` and `crawler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Appearance<T> {
    channel: Channel,
    #[serde(with = "postcard::fixint::le")]
    fingerprint: u64,
    event_id: String,
    /// When the fact counts, if this is the best.
    pub(super) at: Timestamp,
    /// Whether a crawler did it.
    pub(super) crawler: bool,
    /// What it says.
    pub(super) says: T,
}

/// What a report changes in its fact.
pub(super) enum Word<T> {
    /// It is not the best, or says what the best said.
    NoNews,
    /// It is the best, and says something else.
    Different(Appearance<T>),
}

impl<T: PartialEq> Appearance<T> {
    pub(super) fn new(record: &Record, event: &Event, says: T) -> Self {
        Self {
            channel: record.channel,
            fingerprint: record.fingerprint,
            event_id: record.event_id.clone(),
            at: event.occurred_at,
            crawler: record.flags.has(Flags::CRAWLER),
            says,
        }
    }

    /// Less is better: channel webhook, server, pixel; then the smaller fingerprint; then the smaller event id. No two reports rank alike.
    fn rank(&self) -> (Reverse<Channel>, u64, &str) {
        (Reverse(self.channel), self.fingerprint, &self.event_id)
    }

    /// Whether both count for the same, whoever reported it.
    fn agrees_with(&self, other: &Self) -> bool {
        (self.at, self.crawler) == (other.at, other.crawler) && self.says == other.says
    }
}

impl<T: PartialEq> Fact<T> {
    /// A fact by its first report.
    pub(super) fn new(first: Appearance<T>, offset: u64) -> Self {
        Self { seen: vec![Seen { report: first.report(), first: offset }], best: first }
    }

    /// Takes `appearance` at `offset`: what it is to this fact, and what became of its word. A report at the offset it was first seen at is
    /// itself, replayed; at any other it is a repeat. The caller puts a different word into `best`, once it has looked at what counted before.
    pub(super) fn note(&mut self, appearance: Appearance<T>, offset: u64) -> (Verdict, Word<T>) {
        let report = appearance.report();
        let verdict = match self.seen.iter().enumerate().find(|(_, seen)| seen.report == report) {
            Some((0, seen)) if seen.first == offset => Verdict::Counted,
            Some((_, seen)) if seen.first == offset => Verdict::Report,
            Some(_) => Verdict::Duplicate,
            None if self.seen.len() >= MAX_REPORTS => Verdict::Conflict,
            None => {
                self.seen.push(Seen { report, first: offset });
                return (Verdict::Report, self.hear(appearance));
            }
        };
        (verdict, Word::NoNews)
    }

    /// What a new report changes. One that is better and says the same takes its place at once.
    fn hear(&mut self, new: Appearance<T>) -> Word<T> {
        if new.rank() >= self.best.rank() {
            return Word::NoNews;
        }
        if !self.best.agrees_with(&new) {
            return Word::Different(new);
        }
        self.best = new;
        Word::NoNews
    }
}

impl<T> Appearance<T> {
    fn report(&self) -> u64 {
        first_u64(&sha256(&[self.event_id.as_bytes(), &self.fingerprint.to_be_bytes(), &[self.channel as u8]]))
    }
}
