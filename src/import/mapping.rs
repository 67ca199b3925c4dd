//! Mapping files: TOML in, a checked [`Mapping`] out. Called by `contrail import` before anything is read. Whatever it does
//! not know it refuses, naming the nearest it does. Pure.

use std::collections::HashMap;

use jiff::tz::TimeZone;
use regex::Regex;
use toml::{Table, Value};

use super::condition::Condition;
use super::target::{FIELDS, Kind, TimeFormat, kind_of};
use super::template::Template;
use crate::event::{Currency, kind};

/// Why a mapping file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// Not TOML.
    #[error("the mapping file is not TOML: {0}")]
    Syntax(String),
    /// A key that nothing reads.
    #[error("{place}: unknown key `{key}`; the nearest known is `{nearest}`")]
    UnknownKey {
        /// The table it stands in.
        place: String,
        /// As written.
        key: String,
        /// What was perhaps meant.
        nearest: String,
    },
    /// A value that cannot be taken.
    #[error("{place}: {message}")]
    Value {
        /// The key it stands under.
        place: String,
        /// What is wrong with it.
        message: String,
    },
}

/// How the file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// With a header line; the byte stands between fields.
    Csv(u8),
    /// One JSON object a line.
    Ndjson,
}

/// A checked mapping file.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub(super) format: Format,
    pub(super) time_zone: TimeZone,
    pub(super) time_format: TimeFormat,
    /// NDJSON: the array in each line whose elements are the rows.
    pub(super) each: Option<String>,
    /// A group ends once this many rows came without one of its own.
    pub(super) group_window: u64,
    pub(super) skip: Vec<Condition>,
    pub(super) rules: Vec<Rule>,
}

/// One `[[event]]`: which rows it takes and what it makes of them.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// All must match for a row to be this rule's; the first rule that takes a row has it.
    pub(super) when: Vec<(String, Regex)>,
    pub(super) skip: Vec<Condition>,
    pub(super) kind: String,
    pub(super) event_id: Template,
    pub(super) group_by: Vec<Template>,
    pub(super) set: Vec<(String, Kind, Source)>,
    pub(super) items: Option<Items>,
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) from: Template,
    /// What the rendered text stands for; without an entry the row is refused.
    pub(super) map: Option<HashMap<String, String>>,
}

/// `[event.items]`: what a row adds to its event's lines.
#[derive(Clone, Debug)]
pub(super) struct Items {
    /// The part of the event that holds them: `cart` or `order`.
    pub(super) part: &'static str,
    pub(super) product_id: Source,
    pub(super) name: Option<Source>,
    pub(super) quantity: Source,
    pub(super) price: Option<(Source, Currency)>,
    pub(super) negate_quantity: bool,
    pub(super) negate_price: bool,
}

const FILE_KEYS: &[&str] = &["format", "delimiter", "time_zone", "time_format", "each", "group_by", "group_window", "skip", "event"];
const EVENT_KEYS: &[&str] = &["when", "skip", "type", "event_id", "group_by", "set", "items"];
const ITEM_KEYS: &[&str] = &["product_id", "name", "quantity", "price", "currency", "negate"];
const SOURCE_KEYS: &[&str] = &["from", "map"];
const DEFAULT_GROUP_WINDOW: u64 = 10_000;
const MAX_GROUP_WINDOW: i64 = 1_000_000;

impl Mapping {
    /// Reads and checks a mapping file.
    pub fn parse(text: &str) -> Result<Self, MappingError> {
        let file: Table = toml::from_str(text).map_err(|e| MappingError::Syntax(e.to_string()))?;
        let top = Place { table: &file, name: "the mapping".into() };
        top.knows_only(FILE_KEYS)?;
        let format = match top.text("format")?.as_deref() {
            Some("csv") => Format::Csv(delimiter(&top)?),
            Some("ndjson") => Format::Ndjson,
            _ => return Err(top.wrong("format", "`csv` or `ndjson`")),
        };
        let each = top.text("each")?;
        if each.is_some() && format != Format::Ndjson {
            return Err(top.wrong("each", "only for `ndjson`"));
        }
        let zone = top.text("time_zone")?.unwrap_or_else(|| "UTC".into());
        let time_zone = TimeZone::get(&zone).map_err(|_| top.wrong("time_zone", "the name of a time zone such as `Europe/London`"))?;
        let group_window = match file.get("group_window") {
            None => DEFAULT_GROUP_WINDOW,
            Some(Value::Integer(rows)) if (1..=MAX_GROUP_WINDOW).contains(rows) => rows.unsigned_abs(),
            Some(_) => return Err(top.wrong("group_window", "a number of rows, 1 to 1000000")),
        };
        let group_by = top.group_by()?.unwrap_or_default();
        let rules = top.tables("event")?.iter().map(|event| rule(event, &group_by)).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Err(top.wrong("event", "at least one `[[event]]`"));
        }
        Ok(Self { format, time_zone, time_format: time_format(&top)?, each, group_window, skip: conditions(&top)?, rules })
    }

    /// Every column that the mapping reads, for checking them against a header.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        let skipped = self.skip.iter().map(Condition::column);
        skipped.chain(self.rules.iter().flat_map(Rule::columns))
    }
}

impl Rule {
    fn columns(&self) -> impl Iterator<Item = &str> {
        let items = self.items.iter().flat_map(|items| {
            let optional = items.name.iter().chain(items.price.iter().map(|(source, _)| source));
            [&items.product_id, &items.quantity].into_iter().chain(optional)
        });
        let sources = self.set.iter().map(|(_, _, source)| source).chain(items);
        let templates = sources.map(|source| &source.from).chain([&self.event_id]).chain(&self.group_by);
        let tested = self.when.iter().map(|(column, _)| column.as_str()).chain(self.skip.iter().map(Condition::column));
        tested.chain(templates.flat_map(Template::columns))
    }
}

fn delimiter(top: &Place<'_>) -> Result<u8, MappingError> {
    match top.text("delimiter")?.unwrap_or_else(|| ",".into()).as_bytes() {
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err(top.wrong("delimiter", "one ASCII character, not a quote")),
    }
}

fn time_format(top: &Place<'_>) -> Result<TimeFormat, MappingError> {
    Ok(match top.text("time_format")?.as_deref() {
        None | Some("iso") => TimeFormat::Iso,
        Some("unix") => TimeFormat::Unix,
        Some("unix_ms") => TimeFormat::UnixMillis,
        Some(pattern) if pattern.contains('%') => TimeFormat::Pattern(pattern.to_owned()),
        Some(_) => return Err(top.wrong("time_format", "`iso`, `unix`, `unix_ms` or a pattern such as `%m/%d/%Y %H:%M`")),
    })
}

fn conditions(place: &Place<'_>) -> Result<Vec<Condition>, MappingError> {
    place
        .tables("skip")?
        .iter()
        .map(|entry| {
            entry.knows_only(&["column", "op", "value"])?;
            let value = match entry.table.get("value") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Integer(number)) => number.to_string(),
                _ => return Err(entry.wrong("value", "a text or a whole number")),
            };
            Condition::new(entry.required("column")?, &entry.required("op")?, value).map_err(|message| entry.value("op", message))
        })
        .collect()
}

fn rule(event: &Place<'_>, group_by: &[Template]) -> Result<Rule, MappingError> {
    event.knows_only(EVENT_KEYS)?;
    let mut when = Vec::new();
    for (column, pattern) in event.subtable("when")?.into_iter().flat_map(|when| when.table) {
        let pattern =
            pattern.as_str().and_then(|p| Regex::new(p).ok()).ok_or_else(|| event.wrong(&format!("when.{column}"), "a regular expression"))?;
        when.push((column.clone(), pattern));
    }
    let kind = event.required("type")?;
    if kind.is_empty() {
        return Err(event.wrong("type", "the name of an event type"));
    }
    let mut set = Vec::new();
    if let Some(fields) = event.subtable("set")? {
        for (path, value) in fields.table {
            let Some(kind) = kind_of(path) else { return Err(fields.unknown(path, FIELDS.iter().map(|(name, _)| *name))) };
            set.push((path.clone(), kind, fields.source(path, value)?));
        }
    }
    let items = event.subtable("items")?.map(|place| items(&place, &kind)).transpose()?;
    let own_groups = event.group_by()?;
    if own_groups.is_some() && items.is_none() {
        return Err(event.wrong("group_by", "only for an event with `[event.items]`"));
    }
    Ok(Rule {
        when,
        skip: conditions(event)?,
        event_id: event.template("event_id", &event.required("event_id")?)?,
        // Rows are gathered into the lines of one event; an event without lines is one row's.
        group_by: if items.is_some() { own_groups.unwrap_or_else(|| group_by.to_vec()) } else { Vec::new() },
        kind,
        set,
        items,
    })
}

fn items(place: &Place<'_>, of: &str) -> Result<Items, MappingError> {
    place.knows_only(ITEM_KEYS)?;
    let part = match of {
        kind::CART_UPDATED => "cart",
        kind::ORDER_COMPLETED | kind::ORDER_REFUNDED => "order",
        _ => return Err(place.value("type", format!("`{of}` has no items; `cart_updated`, `order_completed` and `order_refunded` have"))),
    };
    let source = |key: &str| place.table.get(key).map(|value| place.source(key, value)).transpose();
    let missing = |key: &str| place.wrong(key, "a template; it is required");
    let price = match (source("price")?, place.text("currency")?) {
        (None, None) => None,
        (Some(price), Some(code)) => Some((price, Currency::parse(&code).map_err(|e| place.value("currency", e.to_string()))?)),
        _ => return Err(place.wrong("price", "given together with `currency`")),
    };
    let negate = match place.table.get("negate") {
        None => Vec::new(),
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().unwrap_or_default()).collect(),
        Some(_) => return Err(place.wrong("negate", "a list of `quantity` and `price`")),
    };
    if let Some(other) = negate.iter().find(|name| !["quantity", "price"].contains(name)) {
        return Err(place.unknown(other, ["quantity", "price"]));
    }
    Ok(Items {
        part,
        product_id: source("product_id")?.ok_or_else(|| missing("product_id"))?,
        name: source("name")?,
        quantity: source("quantity")?.ok_or_else(|| missing("quantity"))?,
        price,
        negate_quantity: negate.contains(&"quantity"),
        negate_price: negate.contains(&"price"),
    })
}

/// The name most like `word`, its beginning counting most.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> &'k str {
    let likeness = |name: &&str| strsim::jaro_winkler(name, word);
    known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)).then_with(|| b.cmp(a))).unwrap_or_default()
}

/// A table of the file and what to call it in a message.
struct Place<'a> {
    table: &'a Table,
    name: String,
}

impl<'a> Place<'a> {
    fn value(&self, key: &str, message: String) -> MappingError {
        MappingError::Value { place: format!("{}, `{key}`", self.name), message }
    }

    fn wrong(&self, key: &str, expected: &str) -> MappingError {
        self.value(key, format!("expected {expected}"))
    }

    fn unknown<'k>(&self, key: &str, known: impl IntoIterator<Item = &'k str>) -> MappingError {
        MappingError::UnknownKey { place: self.name.clone(), key: key.to_owned(), nearest: nearest(key, known).to_owned() }
    }

    fn knows_only(&self, known: &[&str]) -> Result<(), MappingError> {
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.unknown(key, known.iter().copied())),
            None => Ok(()),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, MappingError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn required(&self, key: &str) -> Result<String, MappingError> {
        self.text(key)?.ok_or_else(|| self.wrong(key, "a text; it is required"))
    }

    fn subtable(&self, key: &str) -> Result<Option<Place<'a>>, MappingError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Place { table, name: format!("{}, `{key}`", self.name) })),
            Some(_) => Err(self.wrong(key, "a table")),
        }
    }

    fn tables(&self, key: &str) -> Result<Vec<Place<'a>>, MappingError> {
        let list = match self.table.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(self.wrong(key, "a list of tables")),
        };
        let named = |(at, value): (usize, &'a Value)| match value {
            Value::Table(table) => Ok(Place { table, name: format!("{}, `{key}` {}", self.name, at + 1) }),
            _ => Err(self.wrong(key, "a list of tables")),
        };
        list.iter().enumerate().map(named).collect()
    }

    fn group_by(&self) -> Result<Option<Vec<Template>>, MappingError> {
        let expected = || self.wrong("group_by", "a column or a list of columns");
        let columns = match self.table.get("group_by") {
            None => return Ok(None),
            Some(Value::String(column)) => vec![column.as_str()],
            Some(Value::Array(columns)) => columns.iter().map(|c| c.as_str().ok_or_else(expected)).collect::<Result<_, _>>()?,
            Some(_) => return Err(expected()),
        };
        Ok(Some(columns.into_iter().map(Template::column).collect()))
    }

    fn template(&self, key: &str, text: &str) -> Result<Template, MappingError> {
        Template::parse(text).map_err(|message| self.value(key, message))
    }

    /// A template, or `{ from = template, map = { text = "text" } }`.
    fn source(&self, key: &str, value: &Value) -> Result<Source, MappingError> {
        let table = match value {
            Value::String(text) => return Ok(Source { from: self.template(key, text)?, map: None }),
            Value::Table(table) => Place { table, name: format!("{}, `{key}`", self.name) },
            _ => return Err(self.wrong(key, "a template")),
        };
        table.knows_only(SOURCE_KEYS)?;
        let map = table.subtable("map")?.map(|map| {
            let pair = |(from, to): (&String, &Value)| match to {
                Value::String(to) => Ok((from.clone(), to.clone())),
                _ => Err(map.wrong(from, "a text")),
            };
            map.table.iter().map(pair).collect::<Result<HashMap<_, _>, _>>()
        });
        Ok(Source { from: table.template("from", &table.required("from")?)?, map: map.transpose()? })
    }
}
