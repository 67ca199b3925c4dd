//! What an order and its refunds count for, as a function of the reports known: absolute sales first, a record's effect as the difference of
//! two of them. Called by the fold alone.
//!
//! Refunds never exceed the order. Those with items are taken in (`occurred_at`, refund key) order, each product's pieces and money up to what the
//! order still holds of them; then whole refunds, in the same order, take what is left. While the order is unknown, refunds with items
//! count as they stand and whole ones not at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::{Currency, Event, Money, Record, Timestamp, kind};
use super::reports::{Appearance, Fact, Word};
use super::{Effects, MAX_FACTS, OrderView, Outcome, Sale, Verdict};

/// Memory of an order and its refunds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderEntry {
    order_id: String,
    order: Option<Fact<Sold>>,
    /// By refund id, else by event id; sorted.
    refunds: BTreeMap<RefundKey, Fact<Returned>>,
}

/// What makes two reports the same refund. A refund id and an event id that read alike are still two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum RefundKey {
    Id(String),
    Event(String),
}

/// What a report says of its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sold {
    person: Option<String>,
    total: Option<Money>,
    lines: Vec<Line>,
}

/// What a report says of a refund: its lines, or None for the whole order. (An empty list gives back no product: a refund of postage.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Returned(Option<Vec<Line>>);

/// The pieces of one product at prices of one currency, or at none stated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    product_id: String,
    units: i64,
    revenue: Option<Money>,
}

/// Pieces and money of one product.
#[derive(Clone, Debug, Default)]
struct Holding {
    units: i64,
    revenue: BTreeMap<Currency, i64>,
}

/// Sales by (product, time, crawler).
#[derive(Default)]
struct Ledger<'a>(BTreeMap<(&'a str, Timestamp, bool), (Holding, i64)>);

impl OrderEntry {
    /// Folds a report of the order or of a refund of it.
    pub(super) fn fold(&mut self, record: &Record, event: &Event, offset: u64) -> Outcome {
        if self.order_id.is_empty() {
            self.order_id = event.order.as_ref().map_or(record.key.as_str(), |order| &order.id).to_owned();
        }
        if event.kind == kind::ORDER_REFUNDED { self.fold_refund(record, event, offset) } else { self.fold_order(record, event, offset) }
    }

    fn fold_order(&mut self, record: &Record, event: &Event, offset: u64) -> Outcome {
        let appearance = Appearance::new(record, event, Sold::of(event));
        let Some(fact) = &mut self.order else {
            let before = self.sales();
            self.order = Some(Fact::new(appearance, offset));
            return self.changed(Verdict::Counted, &before);
        };
        let (verdict, word) = fact.note(appearance, offset);
        let Word::Different(appearance) = word else { return Outcome { verdict, effects: Effects::default() } };
        let before = self.sales();
        if let Some(fact) = &mut self.order {
            fact.best = appearance;
        }
        self.changed(verdict, &before)
    }

    fn fold_refund(&mut self, record: &Record, event: &Event, offset: u64) -> Outcome {
        let appearance = Appearance::new(record, event, Returned::of(event));
        let key = match event.refund.as_ref().and_then(|refund| refund.id.clone()) {
            Some(id) => RefundKey::Id(id),
            None => RefundKey::Event(record.event_id.clone()),
        };
        let Some(fact) = self.refunds.get_mut(&key) else {
            if self.refunds.len() >= MAX_FACTS {
                return Outcome { verdict: Verdict::Conflict, effects: Effects::default() };
            }
            let before = self.sales();
            self.refunds.insert(key, Fact::new(appearance, offset));
            return self.changed(Verdict::Counted, &before);
        };
        let (verdict, word) = fact.note(appearance, offset);
        let Word::Different(appearance) = word else { return Outcome { verdict, effects: Effects::default() } };
        let before = self.sales();
        self.refunds.entry(key).and_modify(|fact| fact.best = appearance);
        self.changed(verdict, &before)
    }

    /// See [`super::forget`]. A refund whose order is gone counts as it stands. Whether anything is left, and the difference at the times that stay.
    pub(super) fn forget(&mut self, gone: &dyn Fn(Timestamp) -> bool) -> (bool, Vec<Sale>) {
        let mut before = self.sales();
        before.retain(|sale| !gone(sale.at));
        self.order = self.order.take().filter(|fact| !gone(fact.best.at));
        self.refunds.retain(|_, fact| !gone(fact.best.at));
        (self.order.is_some() || !self.refunds.is_empty(), self.changed(Verdict::Report, &before).effects.sales)
    }

    /// The outcome of a record that replaced what the order, or a refund, says.
    fn changed(&self, verdict: Verdict, before: &[Sale]) -> Outcome {
        let after = self.sales();
        let mut ledger = Ledger::default();
        before.iter().for_each(|sale| ledger.add_sale(sale, -1));
        after.iter().for_each(|sale| ledger.add_sale(sale, 1));
        Outcome { verdict, effects: Effects { sales: ledger.into_sales(), order_changed: true, ..Effects::default() } }
    }

    /// All that counts now, by (product, at, crawler).
    fn sales(&self) -> Vec<Sale> {
        self.standing().0.into_sales()
    }

    /// The ledger, and the money given back.
    fn standing(&self) -> (Ledger<'_>, BTreeMap<Currency, i64>) {
        let mut ledger = Ledger::default();
        let mut refunded = BTreeMap::new();
        let sold = self.order.as_ref().map(|fact| holdings(&fact.best.says.lines));
        if let (Some(fact), Some(sold)) = (&self.order, &sold) {
            for (product, holding) in sold {
                ledger.add(product, fact.best.at, fact.best.crawler, 1, holding, 1);
            }
        }
        let mut left = sold.clone();
        let mut refunds: Vec<_> = self.refunds.iter().map(|(key, fact)| (&fact.best, key)).collect();
        refunds.sort_by_key(|(best, key)| (best.says.0.is_none(), best.at, *key));
        for (best, _) in refunds {
            let taken = match (&best.says.0, &sold, &mut left) {
                (Some(lines), Some(sold), Some(left)) => take_lines(lines, sold, left),
                (Some(lines), _, _) => holdings(lines),
                (None, _, Some(left)) => std::mem::take(left),
                (None, _, None) => BTreeMap::new(),
            };
            for (product, holding) in &taken {
                ledger.add(product, best.at, best.crawler, -1, holding, 0);
                for (currency, amount) in &holding.revenue {
                    add(refunded.entry(*currency).or_default(), *amount);
                }
            }
        }
        refunded.retain(|_, amount| *amount != 0);
        (ledger, refunded)
    }

    /// The order as it stands.
    pub(super) fn view(&self) -> OrderView {
        let (ledger, refunded) = self.standing();
        let mut sales = ledger.into_sales();
        sales.sort_by(|a, b| (a.at, &a.product_id, a.crawler).cmp(&(b.at, &b.product_id, b.crawler)));
        let best = self.order.as_ref().map(|fact| &fact.best);
        OrderView {
            order_id: self.order_id.clone(),
            at: best.map(|best| best.at),
            person: best.and_then(|best| best.says.person.clone()),
            total: best.and_then(|best| best.says.total),
            units: best.map_or(0, |best| best.says.lines.iter().fold(0, |sum: i64, line| sum.saturating_add(line.units))),
            refunded: refunded.into_iter().collect(),
            sales,
        }
    }
}

impl Sold {
    fn of(event: &Event) -> Self {
        let order = event.order.as_ref();
        let items = order.and_then(|order| order.items.as_deref()).unwrap_or_default();
        let stated = order.and_then(|order| order.total);
        let first = items.iter().find_map(|item| item.price).map(|price| price.currency);
        let sum = first.map(|currency| {
            let amounts = items.iter().filter_map(|item| item.price.filter(|p| p.currency == currency).map(|p| (p.amount_minor, item.quantity)));
            Money { amount_minor: amounts.fold(0i64, |sum, (price, quantity)| sum.saturating_add(price.saturating_mul(quantity))), currency }
        });
        Self { person: event.person().map(str::to_owned), total: stated.or(sum), lines: lines_of(items) }
    }
}

impl Returned {
    fn of(event: &Event) -> Self {
        Self(event.order.as_ref().and_then(|order| order.items.as_deref()).map(lines_of))
    }
}

/// Items aggregated by (product, currency of the price), in that order.
fn lines_of(items: &[super::super::Item]) -> Vec<Line> {
    let mut lines: BTreeMap<(&str, Option<Currency>), (i64, i64)> = BTreeMap::new();
    for item in items {
        let (units, amount) = lines.entry((&item.product_id, item.price.map(|price| price.currency))).or_default();
        add(units, item.quantity);
        add(amount, item.price.map_or(0, |price| price.amount_minor.saturating_mul(item.quantity)));
    }
    let line = |((product, currency), (units, amount_minor)): ((&str, Option<Currency>), (i64, i64))| Line {
        product_id: product.to_owned(),
        units,
        revenue: currency.map(|currency| Money { amount_minor, currency }),
    };
    lines.into_iter().map(line).collect()
}

/// Lines by product.
fn holdings(lines: &[Line]) -> BTreeMap<&str, Holding> {
    let mut holdings: BTreeMap<&str, Holding> = BTreeMap::new();
    for line in lines {
        let holding = holdings.entry(&line.product_id).or_default();
        add(&mut holding.units, line.units);
        if let Some(money) = line.revenue {
            add(holding.revenue.entry(money.currency).or_default(), money.amount_minor);
        }
    }
    holdings
}

/// Takes a refund's lines out of what is `left` of what was `sold`, and says what could be taken. A line without a price takes the order's
/// average price of the product.
fn take_lines<'a>(lines: &'a [Line], sold: &BTreeMap<&'a str, Holding>, left: &mut BTreeMap<&'a str, Holding>) -> BTreeMap<&'a str, Holding> {
    let mut taken: BTreeMap<&str, Holding> = BTreeMap::new();
    for line in lines {
        let product = line.product_id.as_str();
        let (Some(sold), Some(left)) = (sold.get(product), left.get_mut(product)) else { continue };
        let units = within(line.units, left.units);
        left.units -= units;
        let taken = taken.entry(product).or_default();
        add(&mut taken.units, units);
        for (currency, left) in &mut left.revenue {
            let wanted = match line.revenue {
                Some(money) if money.currency == *currency => money.amount_minor,
                Some(_) => 0,
                None => share(sold.revenue.get(currency).copied().unwrap_or(0), units, sold.units),
            };
            let amount = within(wanted, *left);
            *left -= amount;
            add(taken.revenue.entry(*currency).or_default(), amount);
        }
    }
    taken
}

/// `wanted`, but not past `limit` nor to the other side of zero.
fn within(wanted: i64, limit: i64) -> i64 {
    wanted.clamp(limit.min(0), limit.max(0))
}

/// `amount` x `part` / `whole`, half-even; 0 of nothing.
pub(super) fn share(amount: i64, part: i64, whole: i64) -> i64 {
    if whole == 0 {
        return 0;
    }
    let (product, whole) = (i128::from(amount) * i128::from(part), i128::from(whole));
    let (floor, rest) = (product.div_euclid(whole), product.rem_euclid(whole));
    let up = match (rest * 2).cmp(&whole.abs()) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => floor % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    i64::try_from(floor + i128::from(up)).unwrap_or(if product < 0 { i64::MIN } else { i64::MAX })
}

fn add(to: &mut i64, amount: i64) {
    *to = to.saturating_add(amount);
}

impl<'a> Ledger<'a> {
    fn add(&mut self, product: &'a str, at: Timestamp, crawler: bool, sign: i64, holding: &Holding, orders: i64) {
        let (sum, order_count) = self.0.entry((product, at, crawler)).or_default();
        add(&mut sum.units, holding.units.saturating_mul(sign));
        add(order_count, orders);
        for (currency, amount) in &holding.revenue {
            add(sum.revenue.entry(*currency).or_default(), amount.saturating_mul(sign));
        }
    }

    fn add_sale(&mut self, sale: &'a Sale, sign: i64) {
        let holding = Holding { units: sale.units, revenue: sale.revenue.iter().copied().collect() };
        self.add(&sale.product_id, sale.at, sale.crawler, sign, &holding, sale.orders.saturating_mul(sign));
    }

    /// Rows by (product, at, crawler), without those that add nothing.
    fn into_sales(self) -> Vec<Sale> {
        let sale = |((product, at, crawler), (sum, orders)): ((&str, Timestamp, bool), (Holding, i64))| Sale {
            product_id: product.to_owned(),
            at,
            crawler,
            units: sum.units,
            orders,
            revenue: sum.revenue.into_iter().filter(|(_, amount)| *amount != 0).collect(),
        };
        self.0.into_iter().map(sale).filter(|sale| sale.units != 0 || sale.orders != 0 || !sale.revenue.is_empty()).collect()
    }
}
