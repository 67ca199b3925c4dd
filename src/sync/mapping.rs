//! Event to changes: the one table that says which objects an event touches and how. Called by the router for each record of `events`. Pure.
//!
//! | event | objects |
//! |---|---|
//! | `page_viewed` | `page.<path>`: url, title, views, visitors, last_viewed_at, referrers; trail; person: `now` |
//! | `product_viewed` | `product.<id>`: what it says of the product, activity views; trail; person: `interests`, `now`. Not a view of its page |
//! | `product_searched` | person: `searches`, `now` |
//! | `cart_updated` | `product.<id>` of each different product in the cart: activity carts + 1; person: `cart`, `now` |
//! | `checkout_step` | `checkout.<step>`: entered and completed as identity counts them, last_at, customers; person: `checkout`, `now` |
//! | `order_completed` | `product.<id>` of each: name, activity sold and revenue as identity counts them, last_at; person: `orders` |
//! | `order_refunded` | `product.<id>` of each: activity sold and revenue, less; person: `orders` |
//! | `product_updated` | `product.<id>`: what it says of the product |
//! | `customer_updated` | person: `location` |
//!
//! The person is `customer.<id>`, without a customer id `visitor.<anonymous_id>`; an event with both links the two. Every event that names a location writes
//! it. `index.product` and `index.step` take what the partition sees for the first time. Other types, other record kinds, conflicts and crawlers map to
//! nothing, duplicates to nothing but a step's last_at; counts that identity takes back or gives are mapped whatever record brings them.
//!
//! Items of maps are JSON objects, as the Sync API wants them: a single value stands under `value`, a ring under `recent`. Free text is cut at
//! 500 bytes, so that an item stays small.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::naming;
use super::shown::{CartShown, CheckoutShown, Indexed, Interest, Ordered, Refunded, Searched, Seen, cut, json, sum, units};
use crate::event::change::{Merge, Op, Origin, Stamp};
use crate::event::identity::{Outcome, Verdict};
use crate::event::ids::{first_u64, sha256};
use crate::event::naming::{counts_page_view, page_path, page_url, search_term};
use crate::event::{
    Change, Checkout, Customer, Event, Flags, ObjectKey, ObjectKind, Order, Page, Product, Record, RecordKind, SiteRules, StepStatus, Timestamp, kind,
};

/// Entries of a ring of plain things.
const RING: u16 = 8;
/// Entries of a ring whose entries are larger.
const SMALL_RING: u16 = 5;
/// Items of a trail.
const TRAIL: u32 = 100;
/// Microseconds a person counts as online after an event.
const ONLINE_MICROS: i64 = 60_000_000;
/// 2000-01-01T00:00:00Z.
const TRAIL_EPOCH: Timestamp = Timestamp::from_micros(946_684_800_000_000);

/// What is mapped, and what the mapping may ask.
pub struct Mapped<'a> {
    /// The event's record.
    pub record: &'a Record,
    /// Its offset in `events`.
    pub offset: u64,
    /// Its partition of `events`.
    pub partition: u16,
    /// The record's body.
    pub event: &'a Event,
    /// What identity made of it.
    pub outcome: &'a Outcome,
    /// The site's rules.
    pub rules: &'a SiteRules,
    /// Whether this partition sees an indexed object for the first time (and remembers that it did). Asked at most once per object and event.
    pub first_sight: &'a mut dyn FnMut(&ObjectKey) -> bool,
}

/// The changes of one event: one per object, in key order, numbered in that order.
pub fn map(input: &mut Mapped<'_>) -> Vec<Change> {
    let &mut Mapped { record, partition, offset, event, .. } = input;
    let stamp = Stamp { at: told_at(record, event), id: record.event_id.clone() };
    let changes = objects(input, false).enumerate().map(|(number, ((kind, name), ops))| Change {
        key: ObjectKey { site: record.site.clone(), kind, name },
        origin: Origin::Event { partition, offset, number: u16::try_from(number).unwrap_or(u16::MAX) },
        received_at: record.received_at,
        stamp: stamp.clone(),
        ops: ops.ops,
    });
    changes.collect()
}

/// The objects that [`map`] has changes of, in its order, at a part of its cost.
pub fn names(input: &mut Mapped<'_>) -> Vec<(ObjectKind, String)> {
    objects(input, true).map(|(name, _)| name).collect()
}

/// The time that what an event tells competes by.
fn told_at(record: &Record, event: &Event) -> Timestamp {
    event.occurred_at.min(record.received_at)
}

/// The objects that something is done to.
fn objects(input: &mut Mapped<'_>, names_only: bool) -> impl Iterator<Item = ((ObjectKind, String), Ops)> + use<> {
    let record = input.record;
    let human = !record.flags.has(Flags::CRAWLER);
    let mut out = Objects { record, first_sight: input.first_sight, names_only, ops: BTreeMap::new() };
    let told = Told { record, event: input.event, rules: input.rules, at: told_at(record, input.event) };
    match input.outcome.verdict {
        _ if record.kind != RecordKind::Event => {}
        Verdict::Conflict => {}
        Verdict::Duplicate if human && input.outcome.effects.checkout_changed => told.step_seen(&mut out),
        Verdict::Duplicate => {}
        Verdict::Counted | Verdict::Report => {
            if human {
                told.all(&mut out);
            }
            counted(input.outcome, &mut out);
        }
    }
    out.ops.into_iter().filter(|(_, ops)| ops.count > 0)
}

/// What identity says a record adds to products and steps, or takes back. Crawlers' parts count for nobody; who reported does not matter.
fn counted(outcome: &Outcome, out: &mut Objects<'_>) {
    for sale in outcome.effects.sales.iter().filter(|sale| !sale.crawler && (sale.units != 0 || !sale.revenue.is_empty())) {
        let product = out.product(&sale.product_id);
        if sale.units != 0 {
            product.merge("activity", "sold", || Merge::Add(sale.units));
        }
        for (currency, amount) in &sale.revenue {
            product.merge("activity", "revenue", || Merge::AddMoney(*currency, *amount));
        }
    }
    for step in outcome.effects.steps.iter().filter(|step| !step.crawler) {
        let field = match step.status {
            StepStatus::Entered => "entered",
            StepStatus::Completed => "completed",
        };
        out.step(&step.step).merge("", field, || Merge::Add(step.count));
    }
}

/// What a person's event tells, apart from what identity counts.
struct Told<'a> {
    record: &'a Record,
    event: &'a Event,
    rules: &'a SiteRules,
    at: Timestamp,
}

/// The names of a person's objects.
struct Person {
    object: String,
    trail: String,
}

impl Told<'_> {
    fn all(&self, out: &mut Objects<'_>) {
        let event = self.event;
        match event.kind.as_str() {
            kind::PAGE_VIEWED => self.page_viewed(out),
            kind::PRODUCT_VIEWED => self.product_viewed(out),
            kind::PRODUCT_SEARCHED => self.searched(out),
            kind::CART_UPDATED => self.cart_updated(out),
            kind::CHECKOUT_STEP => self.checkout_step(out),
            kind::ORDER_COMPLETED => self.ordered(out),
            kind::ORDER_REFUNDED => self.refunded(out),
            kind::PRODUCT_UPDATED => {
                if let Some(product) = &event.product {
                    describe(out.product(&product.id), product);
                }
            }
            kind::CUSTOMER_UPDATED => {}
            _ => return,
        }
        self.person_seen(out);
    }

    /// Location and link: what any event may tell of a person.
    fn person_seen(&self, out: &mut Objects<'_>) {
        let Some(customer) = &self.event.customer else { return };
        let Some(person) = self.person() else { return };
        if let Some(location) = &customer.location {
            out.map(&person.object).merge("location", "", || last(location));
        }
        if let (Some(id), Some(anonymous)) = (given(&customer.id), given(&customer.anonymous_id)) {
            let seen_as = || Merge::Ring { key: anonymous.to_owned(), rank: Vec::new(), value: json(anonymous), cap: RING };
            out.map(&person.object).merge("visitors", "recent", seen_as);
            out.map(&naming::visitor(anonymous)).merge("link", "customer", || last(id));
        }
        let browses = [kind::PAGE_VIEWED, kind::PRODUCT_VIEWED, kind::PRODUCT_SEARCHED, kind::CART_UPDATED, kind::CHECKOUT_STEP];
        if browses.contains(&self.event.kind.as_str()) {
            let object = out.map(&person.object);
            object.merge("now", "last_seen_at", || Merge::Latest(self.at));
            object.merge("now", "online_until", || Merge::Latest(self.at.plus_micros(ONLINE_MICROS)));
            if let Some(page) = &self.event.page {
                object.merge("now", "page", || last(cut(&page_path(&page.url, self.rules))));
            }
        }
    }

    fn page_viewed(&self, out: &mut Objects<'_>) {
        let Some(page) = self.event.page.as_ref().filter(|_| counts_page_view(self.event)) else { return };
        let path = page_path(&page.url, self.rules);
        self.page(out.at(ObjectKind::Document, naming::page(&path)), page);
        let title = page.title.as_deref().map(cut);
        self.trail(out, || json(&Seen { kind: &self.event.kind, at: self.at, path: Some(cut(&path)), title, product_id: None, name: None }));
    }

    fn page(&self, ops: &mut Ops, page: &Page) {
        ops.merge("", "url", || last(cut(&page_url(&page.url, self.rules))));
        if let Some(title) = given(&page.title) {
            ops.merge("", "title", || last(cut(title)));
        }
        ops.merge("", "views", || Merge::Add(1));
        ops.merge("", "last_viewed_at", || Merge::Latest(self.at));
        if let Some(person) = self.event.person() {
            ops.merge("", "visitors", || Merge::Visitor(first_8(&self.rules.person_hash(person))));
        }
        // Without its query: that is where other sites keep what is personal.
        let referrer = page.referrer.as_deref().and_then(|text| text.split(['?', '#']).next()).map(cut).filter(|text| !text.is_empty());
        if let Some(referrer) = referrer {
            ops.merge("", "referrers", || Merge::Ring { key: referrer.to_owned(), rank: Vec::new(), value: json(referrer), cap: SMALL_RING });
        }
    }

    fn product_viewed(&self, out: &mut Objects<'_>) {
        let Some(product) = &self.event.product else { return };
        let object = out.product(&product.id);
        describe(object, product);
        object.merge("activity", "views", || Merge::Add(1));
        object.merge("activity", "last_at", || Merge::Latest(self.at));
        let (id, name) = (product.id.as_str(), product.name.as_deref().map(cut));
        if let Some(person) = self.person() {
            let value = || json(&Interest { product_id: id, name, at: self.at });
            out.map(&person.object).merge("interests", "recent", || Merge::Ring { key: id.to_owned(), rank: Vec::new(), value: value(), cap: RING });
        }
        self.trail(out, || {
            let path = self.path();
            json(&Seen { kind: &self.event.kind, at: self.at, path: path.as_deref().map(cut), title: None, product_id: Some(id), name })
        });
    }

    fn searched(&self, out: &mut Objects<'_>) {
        let (Some(search), Some(person)) = (&self.event.search, self.person()) else { return };
        out.map(&person.object).merge("searches", "recent", || {
            let key = cut(&search_term(&search.query)).to_owned();
            let value = json(&Searched { query: cut(search.query.trim()), results: search.results, at: self.at });
            Merge::Ring { key, rank: Vec::new(), value, cap: RING }
        });
    }

    fn cart_updated(&self, out: &mut Objects<'_>) {
        let Some(cart) = &self.event.cart else { return };
        let products: BTreeSet<&str> = cart.items.iter().map(|item| item.product_id.as_str()).collect();
        for id in products {
            let product = out.product(id);
            product.merge("activity", "carts", || Merge::Add(1));
            product.merge("activity", "last_at", || Merge::Latest(self.at));
        }
        if let Some(person) = self.person() {
            out.map(&person.object).merge("cart", "", || last(&CartShown::of(cart, self.at)));
        }
    }

    fn checkout_step(&self, out: &mut Objects<'_>) {
        let Some(checkout) = &self.event.checkout else { return };
        let (Some(step), Some(status)) = (&checkout.step, checkout.status) else { return };
        self.step_seen(out);
        let name = self.event.checkout_name().unwrap_or_else(|| self.record.event_id.clone());
        if let Some(person) = self.event.person().filter(|_| status == StepStatus::Completed) {
            out.step(step).merge("", "customers", || {
                let mut key = String::with_capacity(16);
                naming::push_lower_hex(&mut key, &first_u64(&sha256(&[name.as_bytes()])).to_be_bytes());
                let mut hash = String::with_capacity(32);
                naming::push_lower_hex(&mut hash, &self.rules.person_hash(person));
                Merge::Ring { key, rank: self.rank(), value: json(&hash), cap: RING }
            });
        }
        if let Some(person) = self.person() {
            out.map(&person.object).merge("checkout", "", || {
                let Checkout { id, value, .. } = checkout;
                let value = json(&CheckoutShown { id: id.as_deref(), step, status, value: *value, at: self.at });
                Merge::LastFact { fact: self.step_fact(&name, step, status), rank: self.rank(), value }
            });
        }
    }

    /// A step's last_at takes every report, duplicates too.
    fn step_seen(&self, out: &mut Objects<'_>) {
        if let Some(step) = self.event.checkout.as_ref().and_then(|checkout| checkout.step.as_ref()) {
            out.step(step).merge("", "last_at", || Merge::Latest(self.at));
        }
    }

    /// The key of a step as a fact. Of steps reached in the same instant the further one is the greater, and completed is greater than entered.
    fn step_fact(&self, checkout: &str, step: &str, status: StepStatus) -> String {
        let place = self.rules.checkout_steps.iter().position(|known| known == step).map_or(0, |at| at + 1);
        format!("{checkout} {place:03} {} {step}", u8::from(status == StepStatus::Completed))
    }

    fn ordered(&self, out: &mut Objects<'_>) {
        let Some(order) = &self.event.order else { return };
        for item in order.items.iter().flatten() {
            let product = out.product(&item.product_id);
            product.merge("activity", "last_at", || Merge::Latest(self.at));
            if let Some(name) = given(&item.name) {
                product.merge("name", "value", || last(cut(name)));
            }
        }
        if let Some(person) = self.person() {
            out.map(&person.object).merge("orders", "recent", || {
                let items = order.items.as_deref().unwrap_or_default();
                let total = order.total.or_else(|| sum(items));
                let value = json(&Ordered { order_id: &order.id, total, units: units(items), at: self.at });
                Merge::Ring { key: order.id.clone(), rank: self.rank(), value, cap: SMALL_RING }
            });
        }
    }

    fn refunded(&self, out: &mut Objects<'_>) {
        let (Some(Order { id, items, .. }), Some(person)) = (&self.event.order, self.person()) else { return };
        out.map(&person.object).merge("orders", "refunds", || {
            let refund = self.event.refund.as_ref().and_then(|refund| given(&refund.id));
            let amount = items.as_deref().and_then(sum);
            let value = json(&Refunded { order_id: id, refund_id: refund, amount, at: self.at });
            let key = format!("{id} {}", refund.unwrap_or(&self.record.event_id));
            Merge::Ring { key, rank: self.rank(), value, cap: SMALL_RING }
        });
    }

    fn trail(&self, out: &mut Objects<'_>, seen: impl FnOnce() -> String) {
        if let Some(person) = self.person() {
            let op = || Op::Append { index: trail_index(self.at, &self.record.event_id), data: seen(), keep: TRAIL };
            out.at(ObjectKind::List, person.trail).push(op);
        }
    }

    fn path(&self) -> Option<String> {
        self.event.page.as_ref().map(|page| page_path(&page.url, self.rules))
    }

    fn person(&self) -> Option<Person> {
        let Customer { id, anonymous_id, .. } = self.event.customer.as_ref()?;
        match (given(id), given(anonymous_id)) {
            (Some(id), _) => Some(Person { object: naming::customer(id), trail: naming::customer_trail(id) }),
            (None, Some(id)) => Some(Person { object: naming::visitor(id), trail: naming::visitor_trail(id) }),
            (None, None) => None,
        }
    }

    /// Which of several reports of one fact is the better, as identity judges them.
    fn rank(&self) -> Vec<u8> {
        let mut rank = vec![self.record.channel as u8];
        rank.extend_from_slice(&(!self.record.fingerprint).to_be_bytes());
        rank
    }
}

/// A trail's index of an event: milliseconds since 2000 and 12 bits of the event id's hash. It depends on the event alone, and stays below 2^53 (what JSON
/// readers can hold) until 2069.
pub fn trail_index(at: Timestamp, event_id: &str) -> u64 {
    let millis = at.micros().saturating_sub(TRAIL_EPOCH.micros()).div_euclid(1_000).clamp(0, (1 << 41) - 1);
    (millis as u64) << 12 | first_u64(&sha256(&[event_id.as_bytes()])) & 0xfff
}

/// The objects an event touches, by kind and name, with what is done to each.
struct Objects<'a> {
    record: &'a Record,
    first_sight: &'a mut dyn FnMut(&ObjectKey) -> bool,
    /// Whether the names alone are asked for.
    names_only: bool,
    ops: BTreeMap<(ObjectKind, String), Ops>,
}

/// What is done to one object.
#[derive(Default)]
struct Ops {
    ops: Vec<Op>,
    /// How many there are, or would be where the names alone are asked for.
    count: usize,
    names_only: bool,
}

impl Ops {
    fn push(&mut self, op: impl FnOnce() -> Op) {
        self.count += 1;
        if !self.names_only {
            self.ops.push(op());
        }
    }

    fn merge(&mut self, item: &str, field: &str, with: impl FnOnce() -> Merge) {
        self.push(|| Op::Merge { item: item.into(), field: field.into(), with: with() });
    }
}

impl Objects<'_> {
    fn at(&mut self, kind: ObjectKind, name: String) -> &mut Ops {
        self.entry((kind, name))
    }

    fn entry(&mut self, key: (ObjectKind, String)) -> &mut Ops {
        let names_only = self.names_only;
        self.ops.entry(key).or_insert_with(|| Ops { names_only, ..Ops::default() })
    }

    fn map(&mut self, name: &str) -> &mut Ops {
        self.at(ObjectKind::Map, name.to_owned())
    }

    fn product(&mut self, id: &str) -> &mut Ops {
        self.indexed(ObjectKind::Map, naming::product(id), naming::INDEX_PRODUCT, id)
    }

    fn step(&mut self, step: &str) -> &mut Ops {
        self.indexed(ObjectKind::Document, naming::step(step), naming::INDEX_STEP, step)
    }

    /// An object that an index lists.
    fn indexed(&mut self, kind: ObjectKind, name: String, index: &str, id: &str) -> &mut Ops {
        let key = (kind, name);
        if !self.ops.contains_key(&key) {
            let object = ObjectKey { site: self.record.site.clone(), kind, name: key.1.clone() };
            if (self.first_sight)(&object) {
                self.map(index).merge(&naming::encode(id), "", || last(&Indexed { id, object: &object.name }));
            }
        }
        self.entry(key)
    }
}

/// Writes what an event says of a product, each attribute into its own item.
fn describe(ops: &mut Ops, product: &Product) {
    let Product { id: _, name, color, category, quantity, size, supplier, margin, price, available_in } = product;
    for (item, text) in [("name", name), ("color", color), ("category", category), ("size", size), ("supplier", supplier)] {
        if let Some(text) = text {
            ops.merge(item, "value", || last(cut(text)));
        }
    }
    if let Some(quantity) = quantity {
        ops.merge("quantity", "value", || last(quantity));
    }
    if let Some(margin) = margin {
        ops.merge("margin", "value", || last(margin));
    }
    if let Some(price) = price {
        ops.merge("price", "", || last(price));
    }
    if let Some(countries) = available_in {
        ops.merge("available_in", "value", || last(countries));
    }
}

fn last<T: Serialize + ?Sized>(value: &T) -> Merge {
    Merge::Last(json(value))
}

/// A text that is there and says something.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn first_8(hash: &[u8; 16]) -> u64 {
    hash.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests;
