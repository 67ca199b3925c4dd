//! What identity may have forgotten and the archive still knows. Identity remembers an event without business key for seven days; the archive keeps its row, and takes
//! no second one of the same content. So before such an event is judged, the archive is asked, and the answer is added to its identity entry: the fold then
//! calls a repeat a repeat, however late, and sums and rows stay together. Used by the archiver for each batch. Pure: asks nothing itself.
//!
//! What is recalled of a record is what the archive keeps of its event id in its UTC day of `occurred_at`, below the batch's first offset: a row that stands
//! above is that of a write cut short, whose record is about to be judged. So neither batching nor replay shows in a verdict. A new content under an
//! id that is forgotten counts as a new event, as it always did, unless the archive has that id in the very same day: then it is a conflict.
//!
//! The live objects' router does not ask: a resend later than identity's memory counts again there.

use std::collections::{BTreeMap, HashMap};

use super::fold::Taken;
use super::{Cursor, Kept, Sought};
use crate::event::identity::{self, EVENT_MEMORY_SECONDS, Entry, IdentityKey, has_business_key};
use crate::event::{Event, Record, RecordKind, SiteId, Timestamp};

/// Seconds of a UTC day; `occurred_at` is at most so far ahead of `received_at`.
const DAY: i64 = 86_400;

/// What the archive keeps of a batch's events, by site and event id.
#[derive(Debug, Default)]
pub(super) struct Recalled(HashMap<SiteId, HashMap<String, Vec<Kept>>>);

/// What the archive is to be asked before these records are judged, by site; nothing where none of them can have been forgotten.
pub(super) fn sought(taken: &[Taken], entries: &HashMap<IdentityKey, Entry>, cursors: &BTreeMap<u16, Cursor>) -> BTreeMap<SiteId, Vec<Sought>> {
    let mut sought: BTreeMap<SiteId, Vec<Sought>> = BTreeMap::new();
    for (partition, record, event, key) in taken.iter().filter_map(Taken::judged) {
        let until = cursors.get(&partition).copied().unwrap_or_default().received_at.max(record.received_at);
        if can_be_forgotten(event.occurred_at, until) && lacks(entries.get(&key), record, event) {
            let one = Sought { event_id: record.event_id.clone(), day: Some(event.occurred_at.utc_day()) };
            sought.entry(record.site.clone()).or_default().push(one);
        }
    }
    sought
}

/// Whether a first report of the event's day can have been forgotten in a partition whose greatest `received_at` is `until` (or by retention, which goes by
/// the clock that `received_at` is of).
pub(super) fn can_be_forgotten(occurred_at: Timestamp, until: Timestamp) -> bool {
    occurred_at.floor_to_seconds(DAY) < until.plus_seconds(DAY - EVENT_MEMORY_SECONDS)
}

/// Whether it is the event id that decides on a record, and its entry does not hold this content.
fn lacks(entry: Option<&Entry>, record: &Record, event: &Event) -> bool {
    let holds = matches!(entry, Some(Entry::Event(entry)) if entry.fingerprints.contains(&record.fingerprint));
    record.kind == RecordKind::Event && !has_business_key(&event.kind) && !holds
}

impl Recalled {
    /// Takes what a site's archive keeps. What stands at or above a partition's cursor is still to be judged.
    pub(super) fn learn(&mut self, site: SiteId, kept: Vec<Kept>, cursors: &BTreeMap<u16, Cursor>) {
        let by_id = self.0.entry(site).or_default();
        for kept in kept {
            let judged = cursors.get(&kept.partition).is_some_and(|cursor| kept.offset < cursor.next);
            if judged && !has_business_key(&kept.kind) {
                by_id.entry(kept.event_id.clone()).or_default().push(kept);
            }
        }
    }

    /// Adds to a record's entry what is kept of its day; whether that changed the entry.
    pub(super) fn add_to(&self, entry: &mut Option<Entry>, record: &Record, event: &Event) -> bool {
        let Some(kept) = self.0.get(&record.site).and_then(|by_id| by_id.get(&record.event_id)) else { return false };
        if !lacks(entry.as_ref(), record, event) {
            return false;
        }
        let of_day = kept.iter().filter(|kept| kept.occurred_at.utc_day() == event.occurred_at.utc_day());
        of_day.fold(false, |changed, kept| identity::recall(entry, kept.fingerprint, kept.offset) | changed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::archiver::tests::{append, at, record, site, viewed};
    use super::super::fold;
    use super::*;
    use crate::event::identity::Verdict;
    use crate::event::{Channel, KeyKind};
    use crate::eventlog::Stored;

    fn kept(record: &Record, occurred_at: Timestamp, offset: u64) -> Kept {
        let (event_id, fingerprint, partition) = (record.event_id.clone(), record.fingerprint, append(record).partition);
        let (key_kind, kind, channel) = (KeyKind::Event, "product_viewed".into(), Channel::Server);
        Kept { event_id, fingerprint, key_kind, kind, channel, occurred_at, partition, offset }
    }

    /// What is asked for a record where its partition stands at `until`.
    fn asked(record: &Record, entry: Option<Entry>, until: Timestamp) -> usize {
        let partition = append(record).partition;
        let taken: Vec<Taken> = fold::take(partition, vec![Stored { offset: 9, value: record.to_bytes() }]).collect();
        let entries = taken.iter().filter_map(Taken::key).filter_map(|(_, key)| Some((key, entry.clone()?))).collect();
        let cursors = BTreeMap::from([(partition, Cursor { next: 9, received_at: until })]);
        sought(&taken, &entries, &cursors).get(&site()).map_or(0, Vec::len)
    }

    #[test]
    fn only_what_can_be_forgotten_is_asked_for() {
        let view = record("e1", at(1), viewed("p1", "c1", at(0)));
        let week = at(0).plus_seconds(EVENT_MEMORY_SECONDS);
        assert_eq!(asked(&view, None, week), 1);
        assert_eq!(asked(&view, None, at(0).plus_seconds(5 * DAY)), 0, "identity still knows whatever came of that day");
        assert_eq!(asked(&Record { received_at: week, ..view.clone() }, None, at(1)), 1, "however long nothing came");
        let holding = |fingerprint| {
            let mut entry = None;
            identity::recall(&mut entry, fingerprint, 1);
            entry
        };
        assert_eq!(asked(&view, holding(view.fingerprint), week), 0, "what is known need not be asked for");
        assert_eq!(asked(&view, holding(1), week), 1);
        let step = serde_json::json!({"type": "checkout_step", "occurred_at": at(0), "checkout": {"id": "k", "step": "s", "status": "entered"}});
        assert_eq!(asked(&record("e1", at(1), step), None, week), 0, "a business key is never forgotten");
    }

    #[test]
    fn a_record_recalls_what_was_judged_of_its_day() {
        let view = record("e1", at(1), viewed("p1", "c1", at(0)));
        let event = Event::from_body(&view.body).unwrap();
        let cursors = BTreeMap::from([(append(&view).partition, Cursor { next: 9, received_at: at(0) })]);
        let verdict = |kept: Vec<Kept>| {
            let mut recalled = Recalled::default();
            recalled.learn(site(), kept, &cursors);
            let mut entry = None;
            let changed = recalled.add_to(&mut entry, &view, &event);
            assert_eq!(changed, entry.is_some());
            identity::fold(&mut entry, &view, &event, 9).verdict
        };
        let other = Record { fingerprint: 1, ..view.clone() };
        assert_eq!(verdict(vec![]), Verdict::Counted);
        assert_eq!(verdict(vec![kept(&view, at(0), 2)]), Verdict::Duplicate);
        assert_eq!(verdict(vec![kept(&other, at(5), 2)]), Verdict::Conflict);
        assert_eq!(verdict(vec![kept(&other, at(5), 2), kept(&view, at(0), 3)]), Verdict::Duplicate);
        assert_eq!(verdict(vec![kept(&view, at(0), 9)]), Verdict::Counted, "its own row, of a write cut short");
        assert_eq!(verdict(vec![kept(&other, at(0), 10), kept(&view, at(0), 9)]), Verdict::Counted);
        assert_eq!(verdict(vec![kept(&other, at(DAY), 2)]), Verdict::Counted, "another day's");
        assert_eq!(verdict(vec![Kept { kind: "checkout_step".into(), ..kept(&view, at(0), 2) }]), Verdict::Counted, "another entry's");
    }
}
