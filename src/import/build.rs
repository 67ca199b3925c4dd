//! What one row says: the head of its event and one line of it. Called by `reading` for each row that a rule takes. Pure.

use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::decimal::{Decimal, negated};
use super::mapping::{Items, Mapping, Rule, Source};
use super::row::Row;
use super::target::{Kind, TimeFormat, integer, put};
use super::{BadLine, MAX_EVENT_BYTES, MappedEvent, Reason};

/// Longest event id that ingest takes, in bytes.
const MAX_EVENT_ID_BYTES: usize = 255;

/// An event in the making: its head is done, its lines may still come.
#[derive(Debug)]
pub(super) struct Draft {
    line: u64,
    event_id: String,
    kind: String,
    head: Map<String, Value>,
    part: Option<&'static str>,
    items: Vec<Value>,
}

impl Draft {
    /// The head of a rule's event, from the first of its rows.
    pub(super) fn new(mapping: &Mapping, rule: &Rule, row: &Row<'_>) -> Result<Self, Reason> {
        let event_id = rule.event_id.render(row)?.ok_or_else(|| empty("event_id"))?;
        if event_id.len() > MAX_EVENT_ID_BYTES {
            return Err(Reason::LongEventId);
        }
        let mut head = Map::new();
        for (path, kind, source) in &rule.set {
            if let Some(text) = source.text(path, row)? {
                put(&mut head, path, kind.value(path, text, &mapping.time_format, &mapping.time_zone)?);
            }
        }
        drop_money_without_amount(&mut head);
        put(&mut head, "event_id", Value::String(event_id.clone()));
        put(&mut head, "type", Value::String(rule.kind.clone()));
        Ok(Self { line: row.line, event_id, kind: rule.kind.clone(), head, part: rule.items.as_ref().map(|items| items.part), items: Vec::new() })
    }

    /// What its first row said.
    pub(super) fn head(&self) -> &Map<String, Value> {
        &self.head
    }

    /// Adds a line.
    pub(super) fn add(&mut self, item: Value) {
        self.items.push(item);
    }

    /// The finished event.
    pub(super) fn finish(mut self) -> Result<MappedEvent, BadLine> {
        if let Some(part) = self.part {
            put(&mut self.head, &format!("{part}.items"), Value::Array(self.items));
        }
        let json = Value::Object(self.head).to_string();
        if json.len() > MAX_EVENT_BYTES {
            return Err(BadLine { line: self.line, reason: Reason::LargeEvent });
        }
        Ok(MappedEvent { line: self.line, event_id: self.event_id, kind: self.kind, json })
    }
}

impl Items {
    /// The line that a row adds to its event.
    pub(super) fn item(&self, row: &Row<'_>) -> Result<Value, Reason> {
        let mut item = Map::new();
        item.insert("product_id".into(), Value::String(self.product_id.text("product_id", row)?.ok_or_else(|| empty("product_id"))?));
        if let Some(name) = self.name.as_ref().map(|name| name.text("name", row)).transpose()?.flatten() {
            item.insert("name".into(), Value::String(name));
        }
        let text = self.quantity.text("quantity", row)?.ok_or_else(|| empty("quantity"))?;
        let quantity = integer("quantity", &if self.negate_quantity { negated(&text) } else { text })?;
        if quantity < 1 {
            return Err(Reason::Quantity);
        }
        item.insert("quantity".into(), Value::from(quantity));
        if let Some((price, currency)) = &self.price
            && let Some(text) = price.text("price", row)?
        {
            let amount = Some(if self.negate_price { negated(&text) } else { text }).filter(|amount| Decimal::parse(amount).is_some());
            put(&mut item, "price.amount", Value::String(amount.ok_or_else(|| Reason::NotADecimal { field: "price".into() })?));
            put(&mut item, "price.currency", Value::String(currency.code().to_owned()));
        }
        Ok(Value::Object(item))
    }
}

impl Source {
    /// Its text for a row, translated by its table; None where a column it needs is empty.
    fn text(&self, field: &str, row: &Row<'_>) -> Result<Option<String>, Reason> {
        let Some(text) = self.from.render(row)? else { return Ok(None) };
        match &self.map {
            None => Ok(Some(text)),
            Some(map) => map.get(&text).cloned().map(Some).ok_or_else(|| Reason::NoEntry { field: field.into() }),
        }
    }
}

impl Kind {
    /// The JSON a text becomes in a field of this kind.
    fn value(self, field: &str, text: String, format: &TimeFormat, zone: &TimeZone) -> Result<Value, Reason> {
        match self {
            Self::Text => Ok(Value::String(text)),
            Self::Time => match format.read(&text, zone) {
                Some(at) => Ok(Value::String(at.to_string())),
                None => Err(Reason::NotATime { field: field.into() }),
            },
            Self::Integer => integer(field, &text).map(Value::from),
            Self::Amount => match Decimal::parse(&text) {
                Some(_) => Ok(Value::String(text)),
                None => Err(Reason::NotADecimal { field: field.into() }),
            },
        }
    }
}

fn empty(field: &str) -> Reason {
    Reason::Empty { field: field.into() }
}

/// A currency alone, its amount's column being empty, says nothing.
fn drop_money_without_amount(head: &mut Map<String, Value>) {
    for (part, money) in [("product", "price"), ("checkout", "value"), ("order", "total")] {
        if let Some(Value::Object(part)) = head.get_mut(part)
            && part.get(money).is_some_and(|money| money.get("amount").is_none())
        {
            part.remove(money);
        }
    }
}
