//! What an event adds to what is counted: cells, labels, links. The one table of it, followed by the archiver, and by reports and audits that count event
//! rows themselves. Pure.

use std::collections::{BTreeMap, HashMap};

use super::fold::hex;
use super::{Books, CELL_SECONDS, CellKey, CellValue, Label, LabelValue, Metric};
use crate::event::identity::{Completion, ORDER_STEP, Outcome, Sale, StepCount, Verdict};
use crate::event::ids::{first_16, sha256};
use crate::event::naming::{counts_page_view, page_path, search_spelling, search_term};
use crate::event::{Currency, Event, Flags, Item, Record, SiteId, SiteRules, StepStatus, Timestamp, kind};

/// The metrics that count events themselves. (Sales and steps count what identity says.)
pub const OF_EVENTS: [Metric; 4] = [Metric::Searches, Metric::EmptySearches, Metric::Views, Metric::Pages];

/// Bytes of the longest dim: those of the longest id. Terms and paths have no bound of their own, and stores bound what they find a row by.
const MAX_DIM: usize = 4_096;

/// What an event counts under in a metric of [`OF_EVENTS`]; None where it does not count. A term or path of more than 4,096 bytes keeps its beginning, and ends
/// with a hash of the whole.
pub fn dim_of(metric: Metric, event: &Event, rules: &SiteRules) -> Option<String> {
    match metric {
        Metric::Searches if event.kind == kind::PRODUCT_SEARCHED => {
            event.search.as_ref().map(|search| bounded(search_term(&search.query))).filter(|term| !term.is_empty())
        }
        Metric::EmptySearches if event.search.as_ref().is_some_and(|search| search.results == Some(0)) => dim_of(Metric::Searches, event, rules),
        Metric::Views if event.kind == kind::PRODUCT_VIEWED => event.product.as_ref().map(|product| product.id.clone()),
        Metric::Pages if counts_page_view(event) => event.page.as_ref().map(|page| bounded(page_path(&page.url, rules))),
        _ => None,
    }
}

fn bounded(mut dim: String) -> String {
    if dim.len() > MAX_DIM {
        let hash = hex(&first_16(&sha256(&[dim.as_bytes()])));
        cut(&mut dim, MAX_DIM - "~h".len() - hash.len());
        dim.push_str("~h");
        dim.push_str(&hash);
    }
    dim
}

/// Takes whole characters from the end until so many bytes are left, at most.
fn cut(text: &mut String, most: usize) {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// A number that orders cells as their starts do: what stores keep of a cell's start.
pub(super) const fn cell_number(cell: Timestamp) -> i64 {
    cell.micros().div_euclid(CELL_SECONDS * 1_000_000)
}

/// The start of the cell that [`cell_number`] numbered.
pub(super) fn cell_start(number: i64) -> Timestamp {
    Timestamp::ZERO.plus_seconds(number.saturating_mul(CELL_SECONDS))
}

/// The steps of a checkout that count, its completion by an order among them.
pub(super) fn counted_steps(mut steps: Vec<StepCount>, completed: Option<Completion>) -> Vec<StepCount> {
    let status = StepStatus::Completed;
    steps.extend(completed.map(|Completion { at, crawler }| StepCount { step: ORDER_STEP.into(), status, at, crawler, count: 1 }));
    steps
}

/// What is to be added to cells, by partition.
#[derive(Debug, Default)]
pub struct Additions(HashMap<(u16, CellKey), Addition>);

/// What is to be added to one cell.
#[derive(Debug, Default)]
pub struct Addition {
    counts: [i64; 2],
    revenue: BTreeMap<Currency, i64>,
    people: Vec<[u8; 16]>,
}

/// A record as identity judged it.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Its partition.
    pub partition: u16,
    /// The record, of kind event or completion.
    pub record: &'a Record,
    /// Its body.
    pub event: &'a Event,
    /// What identity made of it.
    pub outcome: &'a Outcome,
    /// The site's rules.
    pub rules: &'a SiteRules,
}

impl Additions {
    /// Adds what a record adds. `person` is the keyed hash of customer or anonymous id.
    pub fn count(&mut self, judged: Judged<'_>, person: Option<&[u8; 16]>) {
        let Judged { partition, record, event, outcome, rules } = judged;
        if outcome.verdict == Verdict::Counted && record.kind == crate::event::RecordKind::Event {
            let crawler = record.flags.has(Flags::CRAWLER);
            for metric in OF_EVENTS {
                let Some(dim) = dim_of(metric, event, rules) else { continue };
                let cell = self.cell(partition, &record.site, metric, event.occurred_at, dim, crawler);
                cell.add([1, 0]);
                cell.people.extend(person);
            }
        }
        outcome.effects.sales.iter().for_each(|sale| self.sell(partition, &record.site, sale));
        for step in &outcome.effects.steps {
            let cell = self.cell(partition, &record.site, Metric::Steps, step.at, step.step.clone(), step.crawler);
            cell.add(match step.status {
                StepStatus::Entered => [step.count, 0],
                StepStatus::Completed => [0, step.count],
            });
        }
    }

    /// Adds a change of sales.
    pub fn sell(&mut self, partition: u16, site: &SiteId, sale: &Sale) {
        let cell = self.cell(partition, site, Metric::Sold, sale.at, sale.product_id.clone(), sale.crawler);
        cell.add([sale.units, sale.orders]);
        for (currency, amount) in &sale.revenue {
            add_money(&mut cell.revenue, *currency, *amount);
        }
    }

    /// The cells that something is added to.
    pub fn keys(&self) -> impl Iterator<Item = &(u16, CellKey)> {
        self.0.keys()
    }

    /// Each cell as it is with its addition, `known` saying what it was before.
    pub fn apply(self, mut known: impl FnMut(&(u16, CellKey)) -> Option<CellValue>) -> Vec<(u16, CellKey, CellValue)> {
        let all = self.0.into_iter().map(|(key, addition)| {
            let mut value = known(&key).unwrap_or_default();
            addition.apply(&mut value);
            (key.0, key.1, value)
        });
        all.collect()
    }

    fn cell(&mut self, partition: u16, site: &SiteId, metric: Metric, at: Timestamp, dim: String, crawler: bool) -> &mut Addition {
        let key = CellKey { site: site.clone(), metric, cell: at.floor_to_seconds(CELL_SECONDS), dim, crawler };
        self.0.entry((partition, key)).or_default()
    }
}

impl Addition {
    fn add(&mut self, counts: [i64; 2]) {
        self.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }

    fn apply(self, value: &mut CellValue) {
        value.counts.iter_mut().zip(self.counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
        self.revenue.into_iter().for_each(|(currency, amount)| add_money(&mut value.revenue, currency, amount));
        self.people.iter().for_each(|person| value.people.add(person));
    }
}

impl CellValue {
    /// Adds another cell's counts, money and people.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
        other.revenue.iter().for_each(|(currency, amount)| add_money(&mut self.revenue, *currency, *amount));
        self.people.merge(&other.people.0);
    }
}

/// Adds an amount; a currency whose amounts cancel out is left out.
pub fn add_money(sums: &mut BTreeMap<Currency, i64>, currency: Currency, amount: i64) {
    let sum = sums.entry(currency).or_default();
    *sum = sum.saturating_add(amount);
    if *sum == 0 {
        sums.remove(&currency);
    }
}

impl Books {
    /// Adds other books.
    pub fn add(&mut self, other: &Self) {
        self.appended += other.appended;
        self.archived += other.archived;
        self.duplicate += other.duplicate;
        self.quarantined += other.quarantined;
        self.derived += other.derived;
        for (code, count) in &other.refused {
            *self.refused.entry(code.clone()).or_default() += count;
        }
    }
}

/// Start of the hour that a record's books are kept under.
pub const fn hour_of(received_at: Timestamp) -> Timestamp {
    received_at.floor_to_seconds(3_600)
}

/// What an event says about how dims are shown: (label, dim, value), each competing by (min(occurred_at, received_at), event id). Taken from every report of an event that is
/// not a repeat or a conflict.
pub fn labels_of(event: &Event, rules: &SiteRules) -> Vec<(Label, String, String)> {
    let mut labels = Vec::new();
    if let Some(product) = &event.product {
        labels.extend(product.name.as_ref().map(|name| (Label::ProductName, product.id.clone(), name.clone())));
        let countries = product.available_in.as_ref().and_then(|countries| serde_json::to_string(countries).ok());
        labels.extend(countries.map(|countries| (Label::AvailableIn, product.id.clone(), countries)));
    }
    let cart = event.cart.iter().flat_map(|cart| &cart.items);
    let order = event.order.iter().filter_map(|order| order.items.as_ref()).flatten();
    labels.extend(cart.chain(order).filter_map(|Item { product_id, name, .. }| Some((Label::ProductName, product_id.clone(), name.clone()?))));
    if let (Some(term), Some(search)) = (dim_of(Metric::Searches, event, rules), &event.search) {
        labels.extend(search.results.map(|results| (Label::Results, term.clone(), results.to_string())));
        let mut spelling = search_spelling(&search.query);
        // Of a term that is cut, reports show as much.
        cut(&mut spelling, MAX_DIM);
        labels.push((Label::Spelling, term, spelling));
    }
    if let (Some(path), Some(page)) = (dim_of(Metric::Pages, event, rules), &event.page) {
        labels.extend(page.title.as_ref().map(|title| (Label::PageTitle, path, title.clone())));
    }
    labels
}

/// Whether an event's labels, links and objects are taken.
pub const fn is_taken(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Counted | Verdict::Report)
}

/// The best label of each dim seen so far.
#[derive(Debug, Default)]
pub struct Labels(HashMap<(SiteId, Label, String), LabelValue>);

impl Labels {
    /// Lets an event's labels compete.
    pub fn take(&mut self, record: &Record, event: &Event, rules: &SiteRules) {
        for (label, dim, value) in labels_of(event, rules) {
            let value = LabelValue { at: event.occurred_at.min(record.received_at), event_id: record.event_id.clone(), value };
            self.0
                .entry((record.site.clone(), label, dim))
                .and_modify(|known| {
                    if (known.at, &known.event_id, &known.value) < (value.at, &value.event_id, &value.value) {
                        known.clone_from(&value);
                    }
                })
                .or_insert(value);
        }
    }

    /// All of them.
    pub fn into_rows(self) -> Vec<(SiteId, Label, String, LabelValue)> {
        self.0.into_iter().map(|((site, label, dim), value)| (site, label, dim, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Channel, KeyKind, RecordKind};

    fn judge(body: &str, verdict: Verdict, flags: u16) -> Vec<(Metric, String, bool, CellValue)> {
        let event = Event::from_body(body.as_bytes()).unwrap();
        let record = record("e1", 0);
        let record = Record { flags: Flags(flags), ..record };
        let outcome = Outcome { verdict, effects: crate::event::identity::Effects::default() };
        let mut additions = Additions::default();
        let judged = Judged { partition: 1, record: &record, event: &event, outcome: &outcome, rules: &SiteRules::default() };
        additions.count(judged, Some(&[7; 16]));
        let mut all: Vec<_> = additions.apply(|_| None).into_iter().map(|(_, key, value)| (key.metric, key.dim, key.crawler, value)).collect();
        all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        all
    }

    fn record(event_id: &str, received: i64) -> Record {
        Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse("demo").unwrap(),
            event_id: event_id.into(),
            fingerprint: 1,
            received_at: Timestamp::from_micros(received),
            key_kind: KeyKind::Event,
            key: event_id.into(),
            flags: Flags::default(),
            channel: Channel::Server,
            body: bytes::Bytes::new(),
        }
    }

    #[test]
    fn what_each_type_counts_under() {
        let names = |body: &str| judge(body, Verdict::Counted, 0).into_iter().map(|(metric, dim, ..)| (metric, dim)).collect::<Vec<_>>();
        let at = "\"occurred_at\":\"2026-11-20T10:00:00Z\"";
        let page = "\"page\":{\"url\":\"https://shop.example/p%20q?x=1\"}";
        assert_eq!(names(&format!("{{\"type\":\"page_viewed\",{at},{page}}}")), [(Metric::Pages, "/p q".to_owned())]);
        assert_eq!(names(&format!("{{\"type\":\"product_viewed\",{at},{page},\"product\":{{\"id\":\"p1\"}}}}")), [(Metric::Views, "p1".to_owned())]);
        let search = |rest: &str| names(&format!("{{\"type\":\"product_searched\",{at},\"search\":{{\"query\":\"  Red\\tMUG \"{rest}}}}}"));
        assert_eq!(search(""), [(Metric::Searches, "red mug".to_owned())]);
        assert_eq!(search(",\"results\":2"), [(Metric::Searches, "red mug".to_owned())]);
        assert_eq!(search(",\"results\":0"), [(Metric::Searches, "red mug".to_owned()), (Metric::EmptySearches, "red mug".to_owned())]);
        assert!(names(&format!("{{\"type\":\"product_searched\",{at},\"search\":{{\"query\":\" \",\"results\":0}}}}")).is_empty());
        assert!(names(&format!("{{\"type\":\"cart_updated\",{at},{page},\"product\":{{\"id\":\"p1\"}}}}")).is_empty());
    }

    #[test]
    fn a_term_or_path_of_any_length_has_one_bounded_name() {
        let of = |metric, body: serde_json::Value| {
            let event = Event::from_body(body.to_string().as_bytes()).unwrap();
            (dim_of(metric, &event, &SiteRules::default()).unwrap(), labels_of(&event, &SiteRules::default()))
        };
        let at = "2026-11-20T10:00:00Z";
        let search = |query: &str| {
            of(Metric::Searches, serde_json::json!({"type": "product_searched", "occurred_at": at, "search": {"query": query, "results": 0}}))
        };
        let visit = |url: &str| {
            of(Metric::Pages, serde_json::json!({"type": "page_viewed", "occurred_at": at, "page": {"url": format!("/{url}"), "title": "T"}}))
        };
        let longest = "a".repeat(MAX_DIM);
        assert_eq!((search(&longest).0, visit(&longest[1..]).0), (longest.clone(), format!("/{}", &longest[1..])), "as long as an id may be");
        // By sha256sum, of the length as 4 bytes and the term.
        assert_eq!(search(&format!("{longest}A")).0, format!("{}~h3bf934317e7f9f0ce49d5c04c4fdbf15", "a".repeat(MAX_DIM - 34)));
        for long in ["\u{e9}".repeat(300_000), "x".repeat(70_000), "\u{1f600}".repeat(50_000)] {
            for (dim, labels) in [search(&long), visit(&long)] {
                assert!((MAX_DIM - 3..=MAX_DIM).contains(&dim.len()), "{}", dim.len());
                assert!(!labels.is_empty() && labels.iter().all(|(_, of, value)| *of == dim && value.len() <= MAX_DIM));
            }
            assert_ne!(search(&long).0, search(&format!("{long}x")).0);
        }
    }

    #[test]
    fn only_what_counts_is_counted_and_crawlers_apart() {
        let body = "{\"type\":\"product_viewed\",\"occurred_at\":\"2026-11-20T10:00:00Z\",\"product\":{\"id\":\"p1\"}}";
        for verdict in [Verdict::Report, Verdict::Duplicate, Verdict::Conflict] {
            assert!(judge(body, verdict, 0).is_empty());
        }
        let counted = judge(body, Verdict::Counted, Flags::CRAWLER);
        assert_eq!((counted.len(), counted[0].2, counted[0].3.counts, counted[0].3.people.estimate()), (1, true, [1, 0], 1));
    }

    #[test]
    fn the_later_label_wins_in_any_order() {
        let said = |at: &str, name: &str| {
            let body = format!("{{\"type\":\"x\",\"occurred_at\":\"{at}\",\"product\":{{\"id\":\"p\",\"name\":\"{name}\"}}}}");
            Event::from_body(body.as_bytes()).unwrap()
        };
        let late = Timestamp::parse("2026-11-20T12:00:00Z").unwrap().micros();
        // The second claims to be from the future; what it was received at stands.
        let mut all = [
            (record("e1", late), said("2026-11-20T11:00:00Z", "older")),
            (record("e2", late - 3_600_000_001), said("2026-11-21T00:00:00Z", "claims")),
            (record("e3", late), said("2026-11-20T11:00:00Z", "same time, greater id")),
        ];
        for _ in 0..3 {
            all.rotate_left(1);
            let mut labels = Labels::default();
            all.iter().for_each(|(record, event)| labels.take(record, event, &SiteRules::default()));
            let rows = labels.into_rows();
            assert_eq!((rows.len(), rows[0].3.value.as_str()), (1, "same time, greater id"));
        }
    }

    #[test]
    fn amounts_that_cancel_out_leave_nothing() {
        let (mut sums, eur) = (BTreeMap::new(), Currency::parse("EUR").unwrap());
        add_money(&mut sums, eur, 5);
        add_money(&mut sums, eur, -5);
        assert!(sums.is_empty());
    }
}
