//! The simulator's own count of what it sent, by DESIGN's words for each report; what Contrail answers is compared with it. Must never use
//! Contrail's fold, mapping or rollups: it would then agree with their mistakes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::SimEvent;
use super::journeys::Told;
use super::shop::STEPS;
use crate::event::{Channel, Currency, Event, Item, Money, StepStatus, Timestamp, kind};

/// Everything counted so far, repeats once. People's answers and crawlers' stand apart; orders, refunds and checkouts are people's.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Events sent, repeats included.
    pub sent: u64,
    /// Different events sent.
    pub distinct: u64,
    /// Different events by type.
    pub by_type: BTreeMap<String, u64>,
    /// What people looked at.
    pub humans: Looks,
    /// What crawlers looked at.
    pub crawlers: Looks,
    orders: HashMap<String, OrderTold>,
    checkouts: BTreeMap<String, CheckoutTold>,
}

/// Searches, products and pages looked at by one kind of visitor.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    searches: HashMap<String, Seen>,
    products: HashMap<String, Seen>,
    pages: HashMap<String, Seen>,
}

/// How often, by whom, and what the last one said.
#[derive(Clone, Debug, Default)]
struct Seen {
    count: u64,
    people: HashSet<u64>,
    last: (Timestamp, String),
    label: String,
    results: u64,
}

/// A row of `top-searches`, `searches-without-results`, `top-viewed` or `top-pages`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookRow {
    /// What is counted: the term in lower case, the product's id, the page's path.
    pub key: String,
    /// Latest spelling (NFC, trimmed, blanks folded), product name or page title.
    pub label: String,
    /// Searches or views.
    pub count: u64,
    /// Distinct customer ids, else anonymous ids.
    pub customers: u64,
    /// Results of the latest search; 0 elsewhere.
    pub results_last: u64,
}

/// A row of `top-sold`, net of refunds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SoldRow {
    /// The product.
    pub product_id: String,
    /// Pieces.
    pub units: i64,
    /// Orders that hold it.
    pub orders: i64,
    /// Money by currency, no zero amounts.
    pub revenue: BTreeMap<Currency, i64>,
}

/// A row of `checkout-funnel`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunnelRow {
    /// The step.
    pub step: String,
    /// Checkouts that entered it.
    pub entered: u64,
    /// Checkouts that completed it.
    pub completed: u64,
    /// Checkouts left there.
    pub abandoned: u64,
    /// What those were worth, by currency.
    pub value_left: BTreeMap<Currency, i64>,
}

/// A row of `unfinished-purchases`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedRow {
    /// The checkout's id, or `session:<id>:<UTC day>`.
    pub checkout: String,
    /// Customer id, else anonymous id, of its latest event.
    pub customer: Option<String>,
    /// Step of its latest event.
    pub last_step: String,
    /// The furthest step entered and not completed, else the one after the last completed.
    pub stopped_at: String,
    /// The cart's worth.
    pub value: Option<Money>,
    /// Its latest event.
    pub last_at: Timestamp,
}

#[derive(Clone, Debug, Default)]
struct OrderTold {
    /// How well it was told, and the lines of the best report.
    best: Option<(Channel, Vec<Item>)>,
    /// Lines by refund; None = the whole order.
    refunds: BTreeMap<String, Option<Vec<Item>>>,
}

#[derive(Clone, Debug, Default)]
struct CheckoutTold {
    steps: BTreeSet<(usize, StepStatus)>,
    bought: bool,
    last: Option<(Timestamp, StepStatus, usize)>,
    value: Option<(Timestamp, Money)>,
    customer: Option<(Timestamp, String)>,
    /// The latest event of an order, where that is later.
    last_at: Option<Timestamp>,
}

impl Tally {
    /// Takes one event as sent.
    pub(super) fn note(&mut self, sent: &SimEvent, told: &Told, person: Option<u64>, crawler: bool) {
        self.sent += 1;
        if sent.repeat {
            return;
        }
        self.distinct += 1;
        let event = &sent.event;
        *self.by_type.entry(event.kind.clone()).or_default() += 1;
        let looks = if crawler { &mut self.crawlers } else { &mut self.humans };
        let stamp = (event.occurred_at, sent.event_id.clone());
        match (event.kind.as_str(), told) {
            (kind::PAGE_VIEWED, Told::Page(path)) => {
                let title = event.page.as_ref().and_then(|page| page.title.as_deref()).unwrap_or_default();
                looks.pages.entry(path.clone()).or_default().look(person, stamp, title, 0);
            }
            (kind::PRODUCT_SEARCHED, Told::Search(term, spelling)) => {
                let results = event.search.as_ref().and_then(|search| search.results).unwrap_or(0);
                looks.searches.entry(term.clone()).or_default().look(person, stamp, spelling, results);
            }
            (kind::PRODUCT_VIEWED, _) => {
                if let Some(product) = &event.product {
                    let name = product.name.as_deref().unwrap_or_default();
                    looks.products.entry(product.id.clone()).or_default().look(person, stamp, name, 0);
                }
            }
            (kind::CHECKOUT_STEP, _) => self.note_step(event),
            (kind::ORDER_COMPLETED, _) => self.note_order(sent),
            (kind::ORDER_REFUNDED, _) => self.note_refund(sent),
            _ => {}
        }
    }

    fn note_step(&mut self, event: &Event) {
        let (Some(checkout), Some(name)) = (&event.checkout, checkout_of(event)) else { return };
        let place = STEPS.iter().position(|step| checkout.step.as_deref() == Some(step));
        let (Some(place), Some(status)) = (place, checkout.status) else { return };
        let told = self.checkouts.entry(name).or_default();
        told.steps.insert((place, status));
        told.last = told.last.max(Some((event.occurred_at, status, place)));
        if let Some(value) = checkout.value
            && told.value.is_none_or(|(at, _)| at <= event.occurred_at)
        {
            told.value = Some((event.occurred_at, value));
        }
        told.heard(event);
    }

    fn note_order(&mut self, sent: &SimEvent) {
        let Some(order) = &sent.event.order else { return };
        let known = self.orders.entry(order.id.clone()).or_default();
        if known.best.as_ref().is_none_or(|(channel, _)| *channel < sent.channel) {
            known.best = Some((sent.channel, order.items.clone().unwrap_or_default()));
        }
        if let Some(name) = checkout_of(&sent.event) {
            let told = self.checkouts.entry(name).or_default();
            told.bought = true;
            told.heard(&sent.event);
        }
    }

    fn note_refund(&mut self, sent: &SimEvent) {
        let Some(order) = &sent.event.order else { return };
        let id = sent.event.refund.as_ref().and_then(|refund| refund.id.as_ref());
        let key = id.map_or_else(|| format!("event {}", sent.event_id), |id| format!("refund {id}"));
        self.orders.entry(order.id.clone()).or_default().refunds.insert(key, order.items.clone());
    }

    /// Rows of `top-sold`, by units, then product.
    pub fn top_sold(&self) -> Vec<SoldRow> {
        let mut rows: BTreeMap<String, SoldRow> = BTreeMap::new();
        for order in self.orders.values() {
            order.add_to(&mut rows);
        }
        let mut rows: Vec<SoldRow> = rows.into_iter().map(|(product_id, row)| SoldRow { product_id, ..row }).collect();
        rows.iter_mut().for_each(|row| row.revenue.retain(|_, amount| *amount != 0));
        rows.retain(|row| row.units != 0 || row.orders != 0 || !row.revenue.is_empty());
        rows.sort_by(|a, b| b.units.cmp(&a.units).then_with(|| a.product_id.cmp(&b.product_id)));
        rows
    }

    /// Rows of `top-sold` by revenue in one currency, then product; those that took none of it left out.
    pub fn top_sold_by_revenue(&self, currency: Currency) -> Vec<SoldRow> {
        let took = |row: &SoldRow| row.revenue.get(&currency).copied();
        let mut rows = self.top_sold();
        rows.retain(|row| took(row).is_some());
        rows.sort_by(|a, b| took(b).cmp(&took(a)).then_with(|| a.product_id.cmp(&b.product_id)));
        rows
    }

    /// Rows of `checkout-funnel` as of a moment, in the checkout's order; left is who did nothing for `patience_seconds`.
    pub fn funnel(&self, as_of: Timestamp, patience_seconds: i64) -> Vec<FunnelRow> {
        let mut rows: Vec<FunnelRow> = STEPS.iter().map(|step| FunnelRow { step: (*step).to_owned(), ..FunnelRow::default() }).collect();
        for told in self.checkouts.values() {
            for (place, status) in &told.steps {
                if let Some(row) = rows.get_mut(*place) {
                    match status {
                        StepStatus::Entered => row.entered += 1,
                        StepStatus::Completed => row.completed += 1,
                    }
                }
            }
            if told.is_left(as_of, patience_seconds)
                && let Some(row) = rows.get_mut(told.stopped_at())
            {
                row.abandoned += 1;
                if let Some((_, value)) = told.value {
                    *row.value_left.entry(value.currency).or_default() += value.amount_minor;
                }
            }
        }
        rows
    }

    /// Rows of `unfinished-purchases` as of a moment, newest first, then by checkout.
    pub fn unfinished(&self, as_of: Timestamp, patience_seconds: i64) -> Vec<UnfinishedRow> {
        let name = |place: usize| STEPS.get(place).copied().unwrap_or_default().to_owned();
        let left = self.checkouts.iter().filter(|(_, told)| told.is_left(as_of, patience_seconds));
        let mut rows: Vec<UnfinishedRow> = left
            .map(|(checkout, told)| UnfinishedRow {
                checkout: checkout.clone(),
                customer: told.customer.clone().map(|(_, id)| id),
                last_step: told.last.map(|(_, _, place)| name(place)).unwrap_or_default(),
                stopped_at: name(told.stopped_at()),
                value: told.value.map(|(_, value)| value),
                last_at: told.last_at.unwrap_or_default(),
            })
            .collect();
        rows.sort_by(|a, b| b.last_at.cmp(&a.last_at).then_with(|| a.checkout.cmp(&b.checkout)));
        rows
    }

    /// Orders reported at least once.
    pub fn orders(&self) -> usize {
        self.orders.values().filter(|order| order.best.is_some()).count()
    }

    /// Checkouts begun.
    pub fn checkouts(&self) -> usize {
        self.checkouts.len()
    }
}

impl Looks {
    /// Rows of `top-searches`.
    pub fn top_searches(&self) -> Vec<LookRow> {
        rows(&self.searches, |_| true)
    }

    /// Rows of `searches-without-results`: a term of this shop either never finds anything or always does.
    pub fn searches_without_results(&self) -> Vec<LookRow> {
        rows(&self.searches, |seen| seen.results == 0)
    }

    /// Rows of `top-viewed`.
    pub fn top_viewed(&self) -> Vec<LookRow> {
        rows(&self.products, |_| true)
    }

    /// Rows of `top-pages`.
    pub fn top_pages(&self) -> Vec<LookRow> {
        rows(&self.pages, |_| true)
    }
}

impl Seen {
    fn look(&mut self, person: Option<u64>, stamp: (Timestamp, String), label: &str, results: u64) {
        self.count += 1;
        self.people.extend(person);
        if stamp >= self.last {
            (self.last, self.label, self.results) = (stamp, label.to_owned(), results);
        }
    }
}

/// By count descending, then key.
fn rows(seen: &HashMap<String, Seen>, wanted: impl Fn(&Seen) -> bool) -> Vec<LookRow> {
    let row = |(key, seen): (&String, &Seen)| LookRow {
        key: key.clone(),
        label: seen.label.clone(),
        count: seen.count,
        customers: seen.people.len() as u64,
        results_last: seen.results,
    };
    let mut rows: Vec<LookRow> = seen.iter().filter(|(_, seen)| wanted(seen)).map(row).collect();
    rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
    rows
}

impl OrderTold {
    /// Adds what is left of the order. One product has one price in one order, so what comes back is pieces times that price, and as
    /// many pieces as were sold at most.
    fn add_to(&self, rows: &mut BTreeMap<String, SoldRow>) {
        let whole = self.refunds.values().any(Option::is_none);
        let mut returned: BTreeMap<&str, (i64, Option<Money>)> = BTreeMap::new();
        for item in self.refunds.values().flatten().flatten() {
            let (units, price) = returned.entry(&item.product_id).or_default();
            *units += item.quantity;
            *price = price.or(item.price);
        }
        let Some((_, lines)) = &self.best else {
            for (product, (units, price)) in returned {
                rows.entry(product.to_owned()).or_default().take(-units, price);
            }
            return;
        };
        for line in lines {
            let back = returned.get(line.product_id.as_str()).map_or(0, |(units, _)| *units);
            let row = rows.entry(line.product_id.clone()).or_default();
            row.orders += 1;
            row.take(if whole { 0 } else { (line.quantity - back).max(0) }, line.price);
        }
    }
}

impl SoldRow {
    fn take(&mut self, units: i64, price: Option<Money>) {
        self.units += units;
        if let Some(price) = price {
            *self.revenue.entry(price.currency).or_default() += units * price.amount_minor;
        }
    }
}

impl CheckoutTold {
    fn heard(&mut self, event: &Event) {
        self.last_at = self.last_at.max(Some(event.occurred_at));
        let customer = event.customer.as_ref().and_then(|customer| customer.id.clone().or_else(|| customer.anonymous_id.clone()));
        if let Some(customer) = customer {
            self.customer = self.customer.take().max(Some((event.occurred_at, customer)));
        }
    }

    fn is_left(&self, as_of: Timestamp, patience_seconds: i64) -> bool {
        !self.bought && self.last_at.is_some_and(|at| at.plus_seconds(patience_seconds) < as_of)
    }

    fn stopped_at(&self) -> usize {
        let open = |place: &usize| self.steps.contains(&(*place, StepStatus::Entered)) && !self.steps.contains(&(*place, StepStatus::Completed));
        let completed = |place: &usize| self.steps.contains(&(*place, StepStatus::Completed));
        let places = 0..STEPS.len();
        places.clone().rev().find(open).or_else(|| places.rev().find(completed).map(|place| place + 1)).unwrap_or(0)
    }
}

/// The name of an event's checkout: its id, else the session's with its day.
fn checkout_of(event: &Event) -> Option<String> {
    let id = event.checkout.as_ref().and_then(|checkout| checkout.id.clone());
    let session = event.customer.as_ref().and_then(|customer| customer.session_id.as_ref());
    id.or_else(|| session.map(|session| format!("session:{session}:{}", event.occurred_at.utc_date())))
}
