//! The answers' side of an audit: folds all event rows through identity anew, entry by entry in (partition, offset) order, sums what they count for, and compares
//! cells, sales, steps, checkouts and verdicts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Archive, Audit, Cursor, Error, FIRST, LAST, each_row, metric_name};
use crate::archive::rollup::{OF_EVENTS, add_money, dim_of};
use crate::archive::{Bots, CELL_SECONDS, CellValue, EventRow, Metric};
use crate::event::identity::{self, CheckoutView, Completion, EVENT_MEMORY_SECONDS, Entry, IdentityKey, Sale, StepCount, Verdict};
use crate::event::ids::completion_id;
use crate::event::{Currency, Event, Flags, Record, RecordKind, SiteId, SiteRules, StepStatus, Timestamp, kind};

/// Bodies held at once.
const PART_BYTES: usize = 64 << 20;

/// Seconds of a UTC day.
const DAY: i64 = 86_400;

/// Tells completions' places from those of rows: their own are not known, only their orders'.
const COMPLETIONS: u64 = 1 << 62;

const METRICS: [Metric; 6] = [Metric::Searches, Metric::EmptySearches, Metric::Views, Metric::Pages, Metric::Sold, Metric::Steps];

/// (metric, start of the cell, dim, crawler).
type Place = (Metric, Timestamp, String, bool);

/// One record to be folded.
struct Report {
    offset: u64,
    record: Record,
    event: Event,
    stored: Option<Verdict>,
}

/// Everything recounted of a site.
#[derive(Default)]
struct Recount {
    cells: BTreeMap<Place, CellValue>,
    sales: BTreeMap<(Timestamp, String, bool), Sold>,
    steps: BTreeMap<Reached, i64>,
    checkouts: BTreeMap<String, CheckoutView>,
}

/// A step as it counts: when, which, how far, and whether by a crawler.
type Reached = (Timestamp, String, StepStatus, bool);

/// Units, orders, money.
type Sold = (i64, i64, BTreeMap<Currency, i64>);

/// Recounts a site, whose bodies have so many bytes, and compares.
pub(super) async fn check(
    archive: &dyn Archive,
    rules: &SiteRules,
    site: &SiteId,
    cursors: &[Cursor],
    bytes: usize,
    audit: &mut Audit,
) -> Result<(), Error> {
    let mut recount = Recount::default();
    let parts = (bytes / PART_BYTES + 1) as u64;
    for part in 0..parts {
        let mut entries: HashMap<IdentityKey, Vec<Report>> = HashMap::new();
        let mut unreadable = 0u64;
        each_row(archive, site, cursors, |row| match reports(row) {
            Some(reports) => {
                for report in reports {
                    let key = identity::key_of(&report.record, &report.event);
                    if share(key, parts) == part {
                        entries.entry(key).or_default().push(report);
                    }
                }
            }
            None => unreadable += 1,
        })
        .await?;
        if unreadable > 0 && part == 0 {
            audit.note(site, "event rows".into(), "bodies", format!("{unreadable} that cannot be read"));
        }
        entries.into_values().for_each(|reports| recount.fold(rules, site, reports, audit));
    }
    recount.compare_cells(archive, site, audit).await?;
    recount.compare_rows(archive, site, audit).await
}

/// Which of `parts` an entry is folded in.
fn share(key: IdentityKey, parts: u64) -> u64 {
    let IdentityKey([a, b, c, d, ..]) = key;
    u64::from(u32::from_be_bytes([a, b, c, d])) % parts
}

/// The records that a row stands for: its own, and the completion of a checkout that an order names.
fn reports(row: EventRow) -> Option<Vec<Report>> {
    let event = if row.body_key == 0 { Event::from_body(&row.body).ok()? } else { return None };
    let (key_kind, key) = event.partition_key(&row.event_id);
    let record = Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: row.site,
        fingerprint: row.fingerprint,
        received_at: row.received_at,
        key_kind,
        key: key.to_owned(),
        flags: row.flags,
        channel: row.channel,
        event_id: row.event_id,
        body: bytes::Bytes::new(),
    };
    let party = event.checkout_party().filter(|_| event.kind == kind::ORDER_COMPLETED);
    let completion = party.map(|(key_kind, key)| Report {
        offset: COMPLETIONS | u64::from(row.partition) << 48 | row.offset,
        record: Record { kind: RecordKind::Completion, event_id: completion_id(&record.event_id), key_kind, key: key.to_owned(), ..record.clone() },
        event: event.clone(),
        stored: None,
    });
    let own = Report { offset: row.offset, record, event, stored: Some(row.verdict) };
    Some([own].into_iter().chain(completion).collect())
}

impl Recount {
    /// Folds all reports of one entry.
    fn fold(&mut self, rules: &SiteRules, site: &SiteId, mut reports: Vec<Report>, audit: &mut Audit) {
        // Completions have no row that tells their place: they come last, as they were received. That matters only past `MAX_REPORTS` of one checkout.
        let place = |report: &Report| match report.record.kind {
            RecordKind::Completion => (true, report.record.received_at, report.offset),
            _ => (false, Timestamp::ZERO, report.offset),
        };
        reports.sort_unstable_by_key(place);
        let mut entry: Option<Entry> = None;
        let (mut first, mut days) = (None, BTreeSet::new());
        for Report { offset, record, event, stored } in &reports {
            // An event id that is forgotten begins anew, but not in a day of which the archive knew it.
            let since = *first.get_or_insert(record.received_at);
            let new_day = days.insert(event.occurred_at.utc_day());
            let forgotten = new_day && record.received_at > since.plus_seconds(EVENT_MEMORY_SECONDS) && *stored == Some(Verdict::Counted);
            if forgotten && matches!(entry, Some(Entry::Event(_))) {
                (entry, first) = (None, Some(record.received_at));
            }
            if entry.is_none() && *stored == Some(Verdict::Conflict) && !identity::has_business_key(&event.kind) {
                // What it was in conflict with went with its day.
                identity::recall(&mut entry, !record.fingerprint, u64::MAX);
            }
            let outcome = identity::fold(&mut entry, record, event, *offset);
            let went_first = |stored: Verdict| stored == Verdict::Report && outcome.verdict == Verdict::Counted;
            if let Some(stored) = stored.filter(|stored| *stored != outcome.verdict && !went_first(*stored)) {
                audit.note(site, format!("the verdict on event {}", record.event_id), name(stored), name(outcome.verdict));
            }
            if outcome.verdict == Verdict::Counted && record.kind == RecordKind::Event {
                self.count_event(rules, record, event);
            }
            outcome.effects.sales.iter().for_each(|sale| self.count_sale(sale));
            outcome.effects.steps.iter().for_each(|step| self.count_step(step));
        }
        let Some(entry) = entry else { return };
        for sale in entry.order().into_iter().flat_map(|order| order.sales) {
            let sold = self.sales.entry((sale.at, sale.product_id, sale.crawler)).or_default();
            (sold.0, sold.1) = (sold.0 + sale.units, sold.1 + sale.orders);
            sale.revenue.iter().for_each(|(currency, amount)| add_money(&mut sold.2, *currency, *amount));
        }
        if let Some(checkout) = entry.checkout() {
            for step in &checkout.steps {
                *self.steps.entry((step.at, step.step.clone(), step.status, step.crawler)).or_default() += step.count;
            }
            if let Some(Completion { at, crawler }) = checkout.completed {
                *self.steps.entry((at, identity::ORDER_STEP.to_owned(), StepStatus::Completed, crawler)).or_default() += 1;
            }
            self.checkouts.insert(checkout.checkout.clone(), checkout);
        }
    }

    fn cell(&mut self, metric: Metric, at: Timestamp, dim: String, crawler: bool) -> &mut CellValue {
        self.cells.entry((metric, at.floor_to_seconds(CELL_SECONDS), dim, crawler)).or_default()
    }

    fn count_event(&mut self, rules: &SiteRules, record: &Record, event: &Event) {
        let person = event.person().map(|id| rules.person_hash(id));
        for metric in OF_EVENTS {
            let Some(dim) = dim_of(metric, event, rules) else { continue };
            let value = self.cell(metric, event.occurred_at, dim, record.flags.has(Flags::CRAWLER));
            add(&mut value.counts, [1, 0]);
            person.iter().for_each(|person| value.people.add(person));
        }
    }

    fn count_sale(&mut self, sale: &Sale) {
        let value = self.cell(Metric::Sold, sale.at, sale.product_id.clone(), sale.crawler);
        add(&mut value.counts, [sale.units, sale.orders]);
        sale.revenue.iter().for_each(|(currency, amount)| add_money(&mut value.revenue, *currency, *amount));
    }

    fn count_step(&mut self, step: &StepCount) {
        let value = self.cell(Metric::Steps, step.at, step.step.clone(), step.crawler);
        add(&mut value.counts, if step.status == StepStatus::Entered { [step.count, 0] } else { [0, step.count] });
    }

    /// Every cell of every day that has rows, and the sum of everything, so that cells elsewhere show too.
    async fn compare_cells(&self, archive: &dyn Archive, site: &SiteId, audit: &mut Audit) -> Result<(), Error> {
        for metric in METRICS {
            for (crawler, bots) in [(false, Bots::Exclude), (true, Bots::Only)] {
                let mut all: BTreeMap<Timestamp, BTreeMap<&str, &CellValue>> = BTreeMap::new();
                for ((_, cell, dim, _), value) in self.cells.iter().filter(|((of, _, _, c), _)| *of == metric && *c == crawler) {
                    all.entry(*cell).or_default().insert(dim, value);
                }
                let mut sums: BTreeMap<String, CellValue> = BTreeMap::new();
                all.values().flatten().for_each(|(dim, value)| sums.entry((*dim).to_owned()).or_default().merge(value));
                let who = by(crawler);
                let at = |cell: Timestamp, dim: &str| format!("{} of {dim:?} in {cell}{who}", metric_name(metric));
                for day in archive.days().await?.into_iter().map(|day| Timestamp::ZERO.plus_seconds(i64::from(day) * DAY)) {
                    let next = day.plus_seconds(DAY);
                    if all.range(day..next).next().is_none() && archive.totals(site, metric, day, next, bots).await?.is_empty() {
                        continue;
                    }
                    for cell in (0..DAY / CELL_SECONDS).map(|n| day.plus_seconds(n * CELL_SECONDS)) {
                        let found = all.remove(&cell).unwrap_or_default();
                        let stated = archive.totals(site, metric, cell, cell.plus_seconds(CELL_SECONDS), bots).await?;
                        audit.cells += stated.len() as u64;
                        compare(site, audit, &|dim| at(cell, dim), stated, found);
                    }
                }
                let stated = archive.totals(site, metric, FIRST, LAST, bots).await?;
                let found = sums.iter().map(|(dim, value)| (dim.as_str(), value)).collect();
                compare(site, audit, &|dim| format!("all {} of {dim:?}{who}", metric_name(metric)), stated, found);
            }
        }
        Ok(())
    }

    /// Orders' sales, checkouts' steps and the checkouts themselves, as the archive keeps them for partial cells and abandonment.
    async fn compare_rows(&mut self, archive: &dyn Archive, site: &SiteId, audit: &mut Audit) -> Result<(), Error> {
        let mut sales: BTreeMap<(Timestamp, String, bool), Sold> = BTreeMap::new();
        for sale in archive.sales(site, FIRST, LAST).await? {
            let sold = sales.entry((sale.at, sale.product_id, sale.crawler)).or_default();
            (sold.0, sold.1) = (sold.0 + sale.units, sold.1 + sale.orders);
            sale.revenue.iter().for_each(|(currency, amount)| add_money(&mut sold.2, *currency, *amount));
        }
        differ(site, audit, sales, std::mem::take(&mut self.sales), |(at, product, _)| format!("orders' sales of {product:?} at {at}"));
        let mut steps: BTreeMap<Reached, i64> = BTreeMap::new();
        for step in archive.steps(site, FIRST, LAST).await? {
            *steps.entry((step.at, step.step, step.status, step.crawler)).or_default() += step.count;
        }
        let what = |(at, step, status, crawler): &Reached| format!("checkouts' {step:?} {status:?} at {at}{}", by(*crawler));
        differ(site, audit, steps, std::mem::take(&mut self.steps), what);
        self.compare_checkouts(archive, site, audit).await
    }

    async fn compare_checkouts(&mut self, archive: &dyn Archive, site: &SiteId, audit: &mut Audit) -> Result<(), Error> {
        let mut after = None;
        loop {
            let page = archive.checkouts(site, FIRST, LAST, after, super::PAGE).await?;
            after = page.last().map(|last| (last.last_at, last.checkout.clone()));
            let more = page.len() >= super::PAGE;
            for stated in page {
                let found = self.checkouts.remove(&stated.checkout);
                // A repeat without a time of its own leaves no row, only a later sign of life.
                let agrees = found.as_ref().is_some_and(|found| found.completed == stated.completed && found.last_at <= stated.last_at);
                if !agrees {
                    audit.note(site, format!("checkout {:?}", stated.checkout), ends(Some(&stated)), ends(found.as_ref()));
                }
            }
            if !more {
                break;
            }
        }
        for checkout in std::mem::take(&mut self.checkouts).into_values() {
            audit.note(site, format!("checkout {:?}", checkout.checkout), "nothing", ends(Some(&checkout)));
        }
        Ok(())
    }
}

fn add(counts: &mut [i64; 2], more: [i64; 2]) {
    counts.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
}

const fn by(crawler: bool) -> &'static str {
    if crawler { " by crawlers" } else { "" }
}

fn ends(checkout: Option<&CheckoutView>) -> String {
    match checkout {
        Some(CheckoutView { completed: Some(Completion { at, crawler }), .. }) => format!("completed at {at}{}", by(*crawler)),
        Some(open) => format!("open, last seen {}", open.last_at),
        None => "nothing".into(),
    }
}

const fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Counted => "counted",
        Verdict::Report => "a further report",
        Verdict::Duplicate => "a duplicate",
        Verdict::Conflict => "a conflict",
    }
}

fn compare(site: &SiteId, audit: &mut Audit, what: &dyn Fn(&str) -> String, stated: Vec<(String, CellValue)>, mut found: BTreeMap<&str, &CellValue>) {
    let empty = CellValue::default();
    for (dim, stated) in stated {
        let found = found.remove(dim.as_str()).unwrap_or(&empty);
        if figures(&stated) != figures(found) {
            audit.note(site, what(&dim), text(&stated), text(found));
        }
    }
    for (dim, found) in found.into_iter().filter(|(_, found)| figures(found) != figures(&empty)) {
        audit.note(site, what(dim), "nothing", text(found));
    }
}

fn figures(value: &CellValue) -> ([i64; 2], BTreeMap<Currency, i64>, u64) {
    let money = value.revenue.iter().filter(|(_, amount)| **amount != 0).map(|(currency, amount)| (*currency, *amount));
    (value.counts, money.collect(), value.people.estimate())
}

fn text(value: &CellValue) -> String {
    let [first, second] = value.counts;
    let money: String = value.revenue.iter().map(|(currency, amount)| format!(", {amount} {currency} minor")).collect();
    format!("{first}/{second}{money}, ~{} people", value.people.estimate())
}

fn differ<K: Ord, V: PartialEq + std::fmt::Debug>(
    site: &SiteId,
    audit: &mut Audit,
    stated: BTreeMap<K, V>,
    mut found: BTreeMap<K, V>,
    what: impl Fn(&K) -> String,
) {
    for (key, stated) in stated {
        match found.remove(&key) {
            Some(found) if found == stated => {}
            other => audit.note(site, what(&key), format!("{stated:?}"), other.map_or_else(|| "nothing".into(), |found| format!("{found:?}"))),
        }
    }
    for (key, found) in found {
        audit.note(site, what(&key), "nothing", format!("{found:?}"));
    }
}
