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
use crate::event::identity::{Entry, Outcome, Verdict};
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
    /// The identity entry after the fold.
    pub entry: Option<&'a Entry>,
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
mod tests {
    use super::*;
    use crate::event::identity::{Effects, Sale, StepCount};
    use crate::event::{Channel, Currency, KeyKind, SiteId};
    use crate::sync::object::Object;

    const RECEIVED: &str = "2026-11-20T10:00:05Z";

    fn time(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn record(id: &str) -> Record {
        Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse("demo").unwrap(),
            event_id: id.into(),
            fingerprint: 1,
            received_at: time(RECEIVED),
            key_kind: KeyKind::Event,
            key: id.into(),
            flags: Flags::default(),
            channel: Channel::Server,
            body: bytes::Bytes::new(),
        }
    }

    fn outcome(verdict: Verdict, effects: Effects) -> Outcome {
        Outcome { verdict, effects }
    }

    fn counted_once() -> Outcome {
        outcome(Verdict::Counted, Effects::default())
    }

    fn event(body: &str) -> Event {
        Event::from_body(body.as_bytes()).unwrap()
    }

    fn mapped(record: &Record, event: &Event, outcome: &Outcome, sight: bool) -> Vec<Change> {
        let rules = SiteRules::default();
        let mut first_sight = |_: &ObjectKey| sight;
        map(&mut Mapped { record, offset: 7, partition: 3, event, outcome, entry: None, rules: &rules, first_sight: &mut first_sight })
    }

    /// The names alone are those of the changes.
    fn assert_names(record: &Record, event: &Event, outcome: &Outcome, changes: &[Change]) {
        let rules = SiteRules::default();
        let mut input = Mapped { record, offset: 7, partition: 3, event, outcome, entry: None, rules: &rules, first_sight: &mut |_| false };
        let wanted: Vec<_> = changes.iter().map(|change| (change.key.kind, change.key.name.clone())).collect();
        assert_eq!(names(&mut input), wanted);
    }

    /// Every object that the changes make, as `name` or `name/item`, with its JSON.
    fn shown(changes: &[Change]) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for change in changes {
            let mut object = Object::empty(change.key.clone());
            object.apply(change, 0, None);
            let snapshot = object.snapshot().unwrap();
            let name = &change.key.name;
            out.extend(snapshot.data.map(|data| (name.clone(), data.to_string())));
            out.extend(snapshot.items.iter().map(|item| (format!("{name}/{}", item.item), item.data.to_string())));
        }
        out
    }

    fn check(body: &str, outcome: &Outcome, want: &[(&str, &str)]) {
        let changes = mapped(&record("e-1"), &event(body), outcome, false);
        assert_names(&record("e-1"), &event(body), outcome, &changes);
        let found = shown(&changes);
        assert_eq!(found.iter().map(|(name, json)| (name.as_str(), json.as_str())).collect::<Vec<_>>(), want);
        for (number, change) in changes.iter().enumerate() {
            assert_eq!(change.origin, Origin::Event { partition: 3, offset: 7, number: number as u16 });
        }
        assert!(changes.is_sorted_by(|a, b| a.key < b.key));
        for (_, json) in found {
            assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&json).is_ok(), "not an object: {json}");
        }
    }

    #[test]
    fn page_viewed() {
        let body = r#"{"type":"page_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{"anonymous_id":"a 1","location":{"country":"DE"}},
            "page":{"url":"https://s.example/caf%C3%A9?utm=1","title":"About","referrer":"https://find.example/q?term=me"}}"#;
        let trail = format!("trail.visitor.a~201/{:016x}", trail_index(time("2026-11-20T10:00:00Z"), "e-1"));
        check(
            body,
            &counted_once(),
            &[
                (
                    "page.:caf~C3~A9",
                    r#"{"last_viewed_at":"2026-11-20T10:00:00Z","referrers":["https://find.example/q"],"title":"About","url":"https://s.example/caf%C3%A9","views":1,"visitors":1}"#,
                ),
                (&trail, r#"{"type":"page_viewed","at":"2026-11-20T10:00:00Z","path":"/café","title":"About"}"#),
                ("visitor.a~201/location", r#"{"country":"DE"}"#),
                ("visitor.a~201/now", r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z","page":"/café"}"#),
            ],
        );
    }

    #[test]
    fn product_viewed_with_both_ids() {
        let body = r#"{"type":"product_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1","anonymous_id":"a1"},
            "product":{"id":"sku-1","name":"Mug","price":{"amount_minor":1299,"currency":"EUR"}},"page":{"url":"/p/sku-1"}}"#;
        let trail = format!("trail.customer.c1/{:016x}", trail_index(time("2026-11-20T10:00:00Z"), "e-1"));
        check(
            body,
            &counted_once(),
            &[
                (&trail, r#"{"type":"product_viewed","at":"2026-11-20T10:00:00Z","path":"/p/sku-1","product_id":"sku-1","name":"Mug"}"#),
                ("customer.c1/interests", r#"{"recent":[{"product_id":"sku-1","name":"Mug","at":"2026-11-20T10:00:00Z"}]}"#),
                ("customer.c1/now", r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z","page":"/p/sku-1"}"#),
                ("customer.c1/visitors", r#"{"recent":["a1"]}"#),
                ("product.sku-1/activity", r#"{"last_at":"2026-11-20T10:00:00Z","views":1}"#),
                ("product.sku-1/name", r#"{"value":"Mug"}"#),
                ("product.sku-1/price", r#"{"amount_minor":1299,"currency":"EUR"}"#),
                ("visitor.a1/link", r#"{"customer":"c1"}"#),
            ],
        );
    }

    #[test]
    fn product_searched() {
        let body = r#"{"type":"product_searched","occurred_at":"2026-11-20T11:00:00Z","customer":{"id":"c1"},"search":{"query":" Blue  MUG ","results":12}}"#;
        // The sender's clock is ahead: what competes is when we received it.
        check(
            body,
            &counted_once(),
            &[
                ("customer.c1/now", r#"{"last_seen_at":"2026-11-20T10:00:05Z","online_until":"2026-11-20T10:01:05Z"}"#),
                ("customer.c1/searches", r#"{"recent":[{"query":"Blue  MUG","results":12,"at":"2026-11-20T10:00:05Z"}]}"#),
            ],
        );
        let changes = mapped(&record("e"), &event(body), &counted_once(), false);
        assert!(matches!(&changes[0].ops[0], Op::Merge { with: Merge::Ring { key, .. }, .. } if key == "blue mug"));
    }

    #[test]
    fn cart_updated() {
        let body = r#"{"type":"cart_updated","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},"cart":{"id":"k1","items":[
            {"product_id":"b","quantity":2,"price":{"amount_minor":150,"currency":"EUR"}},{"product_id":"a","quantity":1},
            {"product_id":"b","quantity":1,"price":{"amount_minor":150,"currency":"EUR"}}]}}"#;
        check(
            body,
            &counted_once(),
            &[
                (
                    "customer.c1/cart",
                    r#"{"id":"k1","items":[{"product_id":"b","quantity":2,"price":{"amount_minor":150,"currency":"EUR"}},{"product_id":"a","quantity":1},{"product_id":"b","quantity":1,"price":{"amount_minor":150,"currency":"EUR"}}],"lines":3,"units":4,"value":{"amount_minor":450,"currency":"EUR"},"at":"2026-11-20T10:00:00Z"}"#,
                ),
                ("customer.c1/now", r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z"}"#),
                ("product.a/activity", r#"{"carts":1,"last_at":"2026-11-20T10:00:00Z"}"#),
                ("product.b/activity", r#"{"carts":1,"last_at":"2026-11-20T10:00:00Z"}"#),
            ],
        );
    }

    const STEP: &str = r#"{"type":"checkout_step","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},
        "checkout":{"id":"ch1","step":"shipping","status":"completed","value":{"amount_minor":2598,"currency":"EUR"}}}"#;

    fn step_counted(count: i64, crawler: bool) -> Effects {
        let step = StepCount { step: "shipping".into(), status: StepStatus::Completed, at: time(RECEIVED), crawler, count };
        Effects { steps: vec![step], checkout_changed: true, ..Effects::default() }
    }

    #[test]
    fn checkout_step() {
        let mut hash = String::new();
        naming::push_lower_hex(&mut hash, &SiteRules::default().person_hash("c1"));
        let step = format!(r#"{{"completed":1,"customers":["{hash}"],"last_at":"2026-11-20T10:00:00Z"}}"#);
        let checkout =
            r#"{"id":"ch1","step":"shipping","status":"completed","value":{"amount_minor":2598,"currency":"EUR"},"at":"2026-11-20T10:00:00Z"}"#;
        let now = r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z"}"#;
        check(
            STEP,
            &outcome(Verdict::Counted, step_counted(1, false)),
            &[("checkout.shipping", &step), ("customer.c1/checkout", checkout), ("customer.c1/now", now)],
        );
    }

    #[test]
    fn a_duplicate_step_moves_last_at_alone() {
        let effects = |checkout_changed| Effects { checkout_changed, ..Effects::default() };
        check(STEP, &outcome(Verdict::Duplicate, effects(true)), &[("checkout.shipping", r#"{"last_at":"2026-11-20T10:00:00Z"}"#)]);
        check(STEP, &outcome(Verdict::Duplicate, effects(false)), &[]);
        check(STEP, &outcome(Verdict::Conflict, effects(true)), &[]);
    }

    #[test]
    fn the_further_step_wins_an_instant() {
        let rules = SiteRules::default();
        let (record, event) = (record("e"), event(STEP));
        let told = Told { record: &record, event: &event, rules: &rules, at: time(RECEIVED) };
        let (entered, completed) = (StepStatus::Entered, StepStatus::Completed);
        let facts = [("unknown", completed), ("contact", entered), ("contact", completed), ("address", entered), ("payment", completed)];
        assert!(facts.map(|(step, status)| told.step_fact("ch1", step, status)).is_sorted());
    }

    fn sale(product: &str, units: i64, minor: i64, crawler: bool) -> Sale {
        let revenue = vec![(Currency::parse("EUR").unwrap(), minor)];
        Sale { product_id: product.into(), at: time(RECEIVED), crawler, units, orders: units.signum(), revenue }
    }

    fn sold(sales: Vec<Sale>) -> Outcome {
        outcome(Verdict::Counted, Effects { sales, order_changed: true, ..Effects::default() })
    }

    const ORDER: &str = r#"{"type":"order_completed","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},"checkout":{"id":"ch1"},"order":{"id":"o1",
        "items":[{"product_id":"a","name":"Mug","quantity":2,"price":{"amount_minor":1299,"currency":"EUR"}}],"total":{"amount_minor":3000,"currency":"EUR"}}}"#;

    #[test]
    fn order_completed() {
        check(
            ORDER,
            &sold(vec![sale("a", 2, 2598, false)]),
            &[
                (
                    "customer.c1/orders",
                    r#"{"recent":[{"order_id":"o1","total":{"amount_minor":3000,"currency":"EUR"},"units":2,"at":"2026-11-20T10:00:00Z"}]}"#,
                ),
                ("product.a/activity", r#"{"last_at":"2026-11-20T10:00:00Z","revenue":[{"currency":"EUR","amount_minor":2598}],"sold":2}"#),
                ("product.a/name", r#"{"value":"Mug"}"#),
            ],
        );
    }

    #[test]
    fn order_refunded() {
        let body = r#"{"type":"order_refunded","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},"refund":{"id":"r1"},
            "order":{"id":"o1","items":[{"product_id":"a","quantity":1,"price":{"amount_minor":1299,"currency":"EUR"}}]}}"#;
        check(
            body,
            &sold(vec![sale("a", -1, -1299, false)]),
            &[
                (
                    "customer.c1/orders",
                    r#"{"refunds":[{"order_id":"o1","refund_id":"r1","amount":{"amount_minor":1299,"currency":"EUR"},"at":"2026-11-20T10:00:00Z"}]}"#,
                ),
                ("product.a/activity", r#"{"revenue":[{"currency":"EUR","amount_minor":-1299}],"sold":-1}"#),
            ],
        );
    }

    #[test]
    fn product_updated() {
        let body = r#"{"type":"product_updated","occurred_at":"2026-11-20T10:00:00Z","product":{"id":"a","name":"Mug","color":"red","category":"kitchen",
            "quantity":40,"size":"0.3 l","supplier":"S1","margin":0.4,"price":{"amount_minor":1299,"currency":"EUR"},"available_in":["DE","AT"]}}"#;
        check(
            body,
            &counted_once(),
            &[
                ("product.a/available_in", r#"{"value":["DE","AT"]}"#),
                ("product.a/category", r#"{"value":"kitchen"}"#),
                ("product.a/color", r#"{"value":"red"}"#),
                ("product.a/margin", r#"{"value":0.4}"#),
                ("product.a/name", r#"{"value":"Mug"}"#),
                ("product.a/price", r#"{"amount_minor":1299,"currency":"EUR"}"#),
                ("product.a/quantity", r#"{"value":40}"#),
                ("product.a/size", r#"{"value":"0.3 l"}"#),
                ("product.a/supplier", r#"{"value":"S1"}"#),
            ],
        );
    }

    #[test]
    fn customer_updated_and_unknown_types() {
        let body =
            |kind: &str| format!(r#"{{"type":"{kind}","occurred_at":"2026-11-20T10:00:00Z","customer":{{"id":"c1","location":{{"city":"Ulm"}}}}}}"#);
        check(&body("customer_updated"), &counted_once(), &[("customer.c1/location", r#"{"city":"Ulm"}"#)]);
        check(&body("wishlist_shared"), &counted_once(), &[]);
        check(&body("object_changed"), &counted_once(), &[]);
    }

    #[test]
    fn crawlers_and_other_records_change_nothing_but_what_identity_corrects() {
        let mut crawler = record("e-1");
        crawler.flags.set(Flags::CRAWLER);
        let correction = sold(vec![sale("a", -2, -2598, false), sale("b", 2, 2598, true)]);
        let found = shown(&mapped(&crawler, &event(ORDER), &correction, true));
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["index.product/a", "product.a/activity"]);
        for body in [STEP, r#"{"type":"product_viewed","occurred_at":"2026-11-20T10:00:00Z","product":{"id":"a"},"customer":{"id":"c"}}"#] {
            assert_eq!(mapped(&crawler, &event(body), &outcome(Verdict::Counted, step_counted(1, true)), true), []);
        }
        for kind in [RecordKind::Completion, RecordKind::Quarantine, RecordKind::Refusals] {
            let record = Record { kind, ..record("e-1") };
            assert_eq!(mapped(&record, &event(STEP), &outcome(Verdict::Counted, step_counted(1, false)), true), []);
        }
    }

    #[test]
    fn indexes_take_what_is_new() {
        let body = r#"{"type":"cart_updated","occurred_at":"2026-11-20T10:00:00Z","cart":{"items":[{"product_id":"a/b","quantity":1},{"product_id":"c","quantity":1}]}}"#;
        let found = shown(&mapped(&record("e"), &event(body), &counted_once(), true));
        assert_eq!(
            found[..2],
            [
                ("index.product/a:b".to_owned(), r#"{"id":"a/b","object":"product.a:b"}"#.to_owned()),
                ("index.product/c".to_owned(), r#"{"id":"c","object":"product.c"}"#.to_owned())
            ]
        );
        let steps = shown(&mapped(&record("e"), &event(STEP), &outcome(Verdict::Counted, step_counted(1, false)), true));
        assert!(steps.contains(&("index.step/shipping".to_owned(), r#"{"id":"shipping","object":"checkout.shipping"}"#.to_owned())));
    }

    #[test]
    fn better_reports_of_an_order_replace_worse_ones_in_any_order() {
        let report = |channel, fingerprint, at: &str, minor: i64| {
            let body = format!(
                r#"{{"type":"order_completed","occurred_at":"{at}","customer":{{"id":"c1"}},"order":{{"id":"o1","total":{{"amount_minor":{minor},"currency":"EUR"}}}}}}"#
            );
            let record = Record { channel, fingerprint, ..record("e") };
            mapped(&record, &event(&body), &outcome(Verdict::Report, Effects::default()), false).remove(0)
        };
        // Webhook before all; of two webhooks the smaller fingerprint.
        let reports = [
            report(Channel::Pixel, 1, "2026-11-20T10:00:03Z", 1),
            report(Channel::Webhook, 8, "2026-11-20T10:00:00Z", 3),
            report(Channel::Webhook, 9, "2026-11-20T10:00:02Z", 2),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let mut object = Object::empty(reports[0].key.clone());
            for (offset, report) in order.iter().enumerate() {
                object.apply(&reports[*report], offset as u64, None);
            }
            let data = object.snapshot().unwrap().items[0].data.to_string();
            assert_eq!(data, r#"{"recent":[{"order_id":"o1","total":{"amount_minor":3,"currency":"EUR"},"units":0,"at":"2026-11-20T10:00:00Z"}]}"#);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(400)).len(), 500);
        assert_eq!(cut(&format!("x{}", "é".repeat(400))).len(), 499);
        let url = format!("/{}", "a".repeat(100_000));
        let body = format!(
            r#"{{"type":"page_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{{"id":"c"}},"page":{{"url":"{url}","title":"{url}"}}}}"#
        );
        let bytes: usize = mapped(&record("e"), &event(&body), &counted_once(), false).iter().map(|change| change.to_bytes().len()).sum();
        assert!(bytes < 5_000, "{bytes}");
    }

    #[test]
    fn trail_indexes_follow_time_and_stay_safe() {
        let early = trail_index(time("2026-11-20T10:00:00Z"), "z");
        assert!(early < trail_index(time("2026-11-20T10:00:00.001Z"), "a"));
        assert!(trail_index(time("2068-12-31T00:00:00Z"), "a") < 1 << 53);
        assert_eq!(trail_index(time("1999-01-01T00:00:00Z"), "a") >> 12, 0);
        assert!(trail_index(Timestamp::MAX, "a") < 1 << 53);
    }
}
