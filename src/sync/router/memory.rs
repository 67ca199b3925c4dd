//! What the router holds in memory: the round under way, and what of identity and first sights the store does not hold yet or was asked lately. Used
//! by the router's loop alone. Pure: asks no store and no clock; must never be kept after an append failed.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::event::identity::{self, Entry, IdentityKey, Outcome, Verdict};
use crate::event::ids::{first_16, sha256};
use crate::event::{Change, Event, ObjectKey, Record, RecordKind, RulesOf, Timestamp};
use crate::eventlog::Stored;
use crate::sync::RouterCommit;
use crate::sync::mapping::{Mapped, map};
use crate::sync::recent::Recent;

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
pub(super) struct Round {
    events: Vec<Parsed>,
    /// By partition the offset after the last one read.
    pub(super) next: BTreeMap<u16, u64>,
    /// By partition the greatest `received_at` read.
    received_at: BTreeMap<u16, Timestamp>,
    /// How many records, of whatever kind.
    pub(super) read: u64,
}

impl Round {
    /// A record that is no event this build reads is counted and passed over: the archiver keeps it in quarantine.
    pub(super) fn parse(deliveries: Vec<(u16, Vec<Stored>)>) -> Self {
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

    /// The records in the order they are mapped in.
    pub(super) fn events(&self) -> impl Iterator<Item = (&Record, &Event)> {
        self.events.iter().map(|parsed| (&parsed.record, &parsed.event))
    }

    pub(super) fn hour(&self) -> i64 {
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
pub(super) struct Memory {
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
    pub(super) fn new(size: usize) -> Self {
        Self { recent: Recent::new(size), sights: Recent::new(size), hour: 0, unsaved: Unsaved::default(), in_save: Unsaved::default() }
    }

    /// Identity entries that the store does not hold yet and that are in no save.
    pub(super) fn unsaved_entries(&self) -> usize {
        self.unsaved.entries.len()
    }

    /// Whether anything routed is not in the store and in no save.
    pub(super) fn has_unsaved(&self) -> bool {
        !self.unsaved.next.is_empty()
    }

    /// The keys of a round that only the store can tell of, by partition.
    pub(super) fn unknown(&mut self, round: &Round) -> BTreeMap<u16, Vec<IdentityKey>> {
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

    pub(super) fn learn(&mut self, hour: i64, found: impl Iterator<Item = (IdentityKey, Entry)>) {
        if hour == self.hour {
            found.for_each(|(key, entry)| self.recent.insert(key, entry));
        }
    }

    /// Folds a round in offset order and maps what counts.
    pub(super) fn fold(&mut self, round: &Round, rules: &RulesOf) -> MappedRound {
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
            let changes = map_one(parsed, &outcome, rules, &mut first_sight);
            *out.verdicts.entry(verdict_name(outcome.verdict)).or_default() += 1;
            if !asked.is_empty() {
                out.uncertain.push(Uncertain { at, outcome: outcome.clone() });
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
    pub(super) fn sighted(&mut self, fresh: &HashMap<(u16, [u8; 16]), usize>, known: &HashSet<(u16, [u8; 16])>) {
        for sight in fresh.keys() {
            if known.contains(sight) {
                self.sights.insert(*sight, ());
            } else {
                self.unsaved.sighted.insert(*sight);
            }
        }
    }

    /// Notes that a round's changes are durable.
    pub(super) fn routed(&mut self, round: &Round) {
        for (partition, next) in &round.next {
            let received_at = round.received_at.get(partition).copied().unwrap_or_default();
            let known = self.in_save.next.get(partition).map_or(Timestamp::ZERO, |(_, at)| *at);
            let slot = self.unsaved.next.entry(*partition).or_insert((*next, known));
            *slot = (*next, slot.1.max(received_at));
        }
    }

    /// Everything unsaved as commits; it stays readable in `in_save` until [`Memory::saved`].
    pub(super) fn take_unsaved(&mut self) -> Vec<RouterCommit> {
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

    /// Partitions went to another owner, and all was saved: what is remembered in front of the store may be outdated when they come back.
    pub(super) fn revoke(&mut self) {
        self.recent.clear();
    }

    /// The save under way has ended; what it held is now in the store, and remembered lately.
    pub(super) fn saved(&mut self) {
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

fn map_one(parsed: &Parsed, outcome: &Outcome, rules: &RulesOf, first_sight: &mut dyn FnMut(&ObjectKey) -> bool) -> Vec<Change> {
    let rules = rules(&parsed.record.site);
    let Parsed { partition, offset, record, event, .. } = parsed;
    map(&mut Mapped { record, offset: *offset, partition: *partition, event, outcome, rules: &rules, first_sight })
}

/// A round's changes by event, and the first sights they suppose.
#[derive(Default)]
pub(super) struct MappedRound {
    /// By event.
    pub(super) changes: Vec<Vec<Change>>,
    /// Objects this memory does not know of, with the event that was told it saw them first.
    pub(super) fresh: HashMap<(u16, [u8; 16]), usize>,
    /// Those events, to be mapped again where the store does know.
    uncertain: Vec<Uncertain>,
    /// How many records got which verdict.
    pub(super) verdicts: BTreeMap<&'static str, u64>,
}

struct Uncertain {
    at: usize,
    outcome: Outcome,
}

impl MappedRound {
    pub(super) fn fresh_by_partition(&self) -> BTreeMap<u16, Vec<[u8; 16]>> {
        let mut out: BTreeMap<u16, Vec<[u8; 16]>> = BTreeMap::new();
        for (partition, hash) in self.fresh.keys() {
            out.entry(*partition).or_default().push(*hash);
        }
        out
    }

    /// Maps again the events that were told of a first sight the store knows better about.
    pub(super) fn correct(&mut self, round: &Round, known: &HashSet<(u16, [u8; 16])>, rules: &RulesOf) {
        if known.is_empty() {
            return;
        }
        for Uncertain { at, outcome } in &self.uncertain {
            let (Some(parsed), Some(changes)) = (round.events.get(*at), self.changes.get_mut(*at)) else { continue };
            let mut first_sight = |object: &ObjectKey| {
                let sight = (parsed.partition, sight_of(object));
                !known.contains(&sight) && self.fresh.get(&sight) == Some(at)
            };
            *changes = map_one(parsed, outcome, rules, &mut first_sight);
        }
    }
}
