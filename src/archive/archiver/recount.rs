//! A recount of everything from the list of records alone, by the rules as the design words them and sharing nothing with the archiver but the
//! event types: what the archive must hold whatever happened while it was written. For tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::archive::{Bots, Metric};
use crate::event::{Channel, Event, Flags, Record, RecordKind, StepStatus, Timestamp};

/// counts, revenue in euro cents, distinct people.
type Value = ([i64; 2], i64, usize);

/// Everything counted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Recount {
    /// By metric, whether crawlers, dim.
    pub(super) totals: BTreeMap<(u8, bool, String), Value>,
    /// appended, archived, duplicate, quarantined, derived, refused.
    pub(super) books: [u64; 6],
    /// (event id, fingerprint, channel, verdict) of every row.
    pub(super) rows: BTreeSet<(String, u64, Channel, u8)>,
}

#[derive(Default)]
struct Cell {
    counts: [i64; 2],
    revenue: i64,
    people: BTreeSet<String>,
}

/// A report of a business fact.
struct Report {
    record: Record,
    event: Event,
}

impl Report {
    fn rank(&self) -> (std::cmp::Reverse<Channel>, u64, &str) {
        (std::cmp::Reverse(self.record.channel), self.record.fingerprint, &self.record.event_id)
    }
}

/// Recounts records given in offset order of their partitions.
pub(super) fn recount(records: &[Vec<u8>]) -> Recount {
    let mut all = Recount::default();
    let mut cells: BTreeMap<(u8, bool, String), Cell> = BTreeMap::new();
    let mut ids: HashMap<String, Vec<u64>> = HashMap::new();
    let mut facts: BTreeMap<(u8, String), Vec<Report>> = BTreeMap::new();
    for bytes in records {
        let Ok(record) = Record::decode(&bytes.clone().into()) else { continue };
        let [appended, archived, duplicate, quarantined, derived, refused] = &mut all.books;
        match record.kind {
            RecordKind::Refusals => *refused += 3,
            RecordKind::Quarantine => {
                *appended += 1;
                *quarantined += 1;
            }
            RecordKind::Event | RecordKind::Completion => {
                let event = Event::from_body(&record.body).unwrap();
                let completion = record.kind == RecordKind::Completion;
                let verdict = match fact_of(&record, &event) {
                    Some(fact) => report(facts.entry(fact).or_default(), Report { record: record.clone(), event: event.clone() }),
                    None => first_of_its_id(ids.entry(record.event_id.clone()).or_default(), record.fingerprint),
                };
                match (completion, verdict) {
                    (true, _) => *derived += 1,
                    (false, 2) => *duplicate += 1,
                    (false, _) => *archived += 1,
                }
                *appended += u64::from(!completion);
                if !completion && verdict != 2 {
                    all.rows.insert((record.event_id.clone(), record.fingerprint, record.channel, verdict));
                }
                if verdict == 0 {
                    count_event(&mut cells, &record, &event);
                }
            }
        }
    }
    for ((kind, _), reports) in &facts {
        let best = reports.iter().min_by(|a, b| a.rank().cmp(&b.rank())).unwrap();
        count_fact(&mut cells, *kind, best);
    }
    all.totals = cells
        .into_iter()
        .map(|(key, cell)| (key, (cell.counts, cell.revenue, cell.people.len())))
        .filter(|(_, v)| v.0 != [0, 0] || v.1 != 0)
        .collect();
    all
}

/// Which business fact a record reports: an order (0), a refund (1), a step (2).
fn fact_of(record: &Record, event: &Event) -> Option<(u8, String)> {
    let checkout = event.checkout.as_ref().and_then(|c| c.id.clone());
    match event.kind.as_str() {
        _ if record.kind == RecordKind::Completion => Some((3, checkout?)),
        "order_completed" => Some((0, event.order.as_ref()?.id.clone())),
        "order_refunded" => Some((1, format!("{}/{}", event.order.as_ref()?.id, event.refund.as_ref()?.id.as_ref()?))),
        "checkout_step" => Some((2, format!("{}/{:?}/{:?}", checkout?, event.checkout.as_ref()?.step, event.checkout.as_ref()?.status))),
        _ => None,
    }
}

fn report(known: &mut Vec<Report>, new: Report) -> u8 {
    if known.iter().any(|k| k.rank() == new.rank()) {
        return 2;
    }
    known.push(new);
    u8::from(known.len() > 1)
}

fn first_of_its_id(known: &mut Vec<u64>, fingerprint: u64) -> u8 {
    if known.contains(&fingerprint) {
        return 2;
    }
    known.push(fingerprint);
    if known.len() > 1 { 3 } else { 0 }
}

fn count_event(cells: &mut BTreeMap<(u8, bool, String), Cell>, record: &Record, event: &Event) {
    let mut count = |metric: Metric, dim: &str| {
        let cell = cells.entry((metric as u8, record.flags.has(Flags::CRAWLER), dim.to_owned())).or_default();
        cell.counts[0] += 1;
        let customer = event.customer.as_ref().unwrap();
        cell.people.extend(customer.id.clone().or(customer.anonymous_id.clone()));
    };
    match event.kind.as_str() {
        "product_viewed" => count(Metric::Views, &event.product.as_ref().unwrap().id),
        "page_viewed" => count(Metric::Pages, event.page.as_ref().unwrap().url.strip_prefix("https://shop.example").unwrap()),
        "product_searched" => {
            let search = event.search.as_ref().unwrap();
            let term = search.query.trim().to_lowercase();
            count(Metric::Searches, &term);
            if search.results == Some(0) {
                count(Metric::EmptySearches, &term);
            }
        }
        _ => {}
    }
}

fn count_fact(cells: &mut BTreeMap<(u8, bool, String), Cell>, kind: u8, best: &Report) {
    let crawler = best.record.flags.has(Flags::CRAWLER);
    if kind >= 2 {
        let checkout = best.event.checkout.as_ref().unwrap();
        let (step, status) =
            if kind == 3 { ("(order)", StepStatus::Completed) } else { (checkout.step.as_deref().unwrap(), checkout.status.unwrap()) };
        cells.entry((Metric::Steps as u8, crawler, step.to_owned())).or_default().counts[usize::from(status == StepStatus::Completed)] += 1;
        return;
    }
    let sign = if kind == 0 { 1 } else { -1 };
    let mut products = BTreeSet::new();
    for item in best.event.order.as_ref().unwrap().items.iter().flatten() {
        let cell = cells.entry((Metric::Sold as u8, crawler, item.product_id.clone())).or_default();
        cell.counts[0] += sign * item.quantity;
        cell.revenue += sign * item.quantity * item.price.unwrap().amount_minor;
        if kind == 0 && products.insert(item.product_id.clone()) {
            cell.counts[1] += 1;
        }
    }
}

/// What an archive says, in a recount's terms.
pub(super) async fn as_answered(archive: &dyn crate::archive::Archive, site: &crate::event::SiteId) -> Recount {
    let (from, to) = (Timestamp::ZERO, Timestamp::parse("2100-01-01T00:00:00Z").unwrap());
    let mut all = Recount::default();
    for metric in [Metric::Searches, Metric::EmptySearches, Metric::Views, Metric::Pages, Metric::Sold, Metric::Steps] {
        for (crawler, bots) in [(false, Bots::Exclude), (true, Bots::Only)] {
            for (dim, value) in archive.totals(site, metric, from, to, bots).await.unwrap() {
                let value = (value.counts, value.revenue.values().sum(), value.people.estimate() as usize);
                if value.0 != [0, 0] || value.1 != 0 {
                    all.totals.insert((metric as u8, crawler, dim), value);
                }
            }
        }
    }
    for (_, books) in archive.books(site, from, to).await.unwrap() {
        let refused = books.refused.values().sum();
        let hour = [books.appended, books.archived, books.duplicate, books.quarantined, books.derived, refused];
        assert_eq!(books.appended, books.archived + books.duplicate + books.quarantined, "the books balance");
        all.books.iter_mut().zip(hour).for_each(|(sum, n)| *sum += n);
    }
    let scan = crate::archive::Scan { limit: 1_000_000, ..Default::default() };
    for row in archive.scan(site, &scan).await.unwrap() {
        assert!(all.rows.insert((row.event_id, row.fingerprint, row.channel, row.verdict as u8)), "each row once");
    }
    all
}
