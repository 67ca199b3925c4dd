//! The fields of the canonical event that a mapping may set, and what each takes. Called while a mapping is read and for
//! every value it writes. Pure.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::Reason;
use super::decimal::Decimal;
use crate::event::Timestamp;

/// What a field of the canonical event takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// A point in time.
    Time,
    /// A whole number.
    Integer,
    /// A decimal that stays a text: the amount of a money.
    Amount,
}

/// Every settable field; `properties.` and a name of one's own may be set beside them.
pub(super) const FIELDS: &[(&str, Kind)] = &[
    ("occurred_at", Kind::Time),
    ("sent_at", Kind::Time),
    ("seq", Kind::Integer),
    ("customer.id", Kind::Text),
    ("customer.anonymous_id", Kind::Text),
    ("customer.session_id", Kind::Text),
    ("customer.location.country", Kind::Text),
    ("customer.location.region", Kind::Text),
    ("customer.location.city", Kind::Text),
    ("client.user_agent", Kind::Text),
    ("client.ip", Kind::Text),
    ("client.locale", Kind::Text),
    ("page.url", Kind::Text),
    ("page.title", Kind::Text),
    ("page.referrer", Kind::Text),
    ("product.id", Kind::Text),
    ("product.name", Kind::Text),
    ("product.color", Kind::Text),
    ("product.category", Kind::Text),
    ("product.quantity", Kind::Integer),
    ("product.size", Kind::Text),
    ("product.supplier", Kind::Text),
    ("product.price.amount", Kind::Amount),
    ("product.price.currency", Kind::Text),
    ("search.query", Kind::Text),
    ("search.results", Kind::Integer),
    ("cart.id", Kind::Text),
    ("checkout.id", Kind::Text),
    ("checkout.step", Kind::Text),
    ("checkout.status", Kind::Text),
    ("checkout.value.amount", Kind::Amount),
    ("checkout.value.currency", Kind::Text),
    ("order.id", Kind::Text),
    ("order.total.amount", Kind::Amount),
    ("order.total.currency", Kind::Text),
    ("refund.id", Kind::Text),
    ("source.channel", Kind::Text),
    ("source.library", Kind::Text),
];

/// What `path` takes; None if no such field is known.
pub(super) fn kind_of(path: &str) -> Option<Kind> {
    let own = path.strip_prefix("properties.").is_some_and(|name| !name.is_empty() && !name.split('.').any(str::is_empty));
    if own { Some(Kind::Text) } else { FIELDS.iter().find(|(name, _)| *name == path).map(|(_, kind)| *kind) }
}

/// How times are written in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TimeFormat {
    /// ISO 8601; without an offset it is read in the mapping's time zone.
    Iso,
    /// Seconds since 1970.
    Unix,
    /// Milliseconds since 1970.
    UnixMillis,
    /// A `strptime` pattern; without an offset it is read in the mapping's time zone.
    Pattern(String),
}

impl TimeFormat {
    /// Reads a time. A local time that the clocks pass twice is the first of the two; one that they leave out is moved
    /// forward by the gap.
    pub(super) fn read(&self, text: &str, zone: &TimeZone) -> Option<Timestamp> {
        let local = |at: DateTime| zone.to_timestamp(at).ok().map(|t| Timestamp::from_micros(t.as_microsecond()));
        let count = |text: &str| Decimal::parse(text)?.integer();
        match self {
            Self::Iso => Timestamp::parse(text).ok().or_else(|| local(text.parse().ok()?)),
            Self::Unix => count(text)?.checked_mul(1_000_000).map(Timestamp::from_micros),
            Self::UnixMillis => count(text)?.checked_mul(1_000).map(Timestamp::from_micros),
            Self::Pattern(pattern) => {
                let parsed = jiff::fmt::strtime::parse(pattern, text).ok()?;
                match parsed.to_timestamp() {
                    Ok(at) => Some(Timestamp::from_micros(at.as_microsecond())),
                    Err(_) => local(parsed.to_datetime().ok()?),
                }
            }
        }
        .filter(|at| jiff::Timestamp::from_microsecond(at.micros()).is_ok())
    }
}

/// Reads a whole number for a field.
pub(super) fn integer(field: &str, text: &str) -> Result<i64, Reason> {
    Decimal::parse(text).and_then(|d| d.integer()).ok_or_else(|| Reason::NotAnInteger { field: field.into() })
}

/// Writes `value` at a dotted path, making the objects on the way.
pub(super) fn put(event: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(event.insert(path.to_owned(), value)),
        Some((first, rest)) => {
            if let Value::Object(inner) = event.entry(first).or_insert_with(|| Value::Object(Map::new())) {
                put(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_every_format() {
        let london = TimeZone::get("Europe/London").unwrap();
        for (format, text, want) in [
            (TimeFormat::Iso, "2010-12-01T08:26:00", Some("2010-12-01T08:26:00Z")),
            (TimeFormat::Iso, "2011-06-01 08:26", Some("2011-06-01T07:26:00Z")),
            (TimeFormat::Iso, "2011-03-27T01:30:00", Some("2011-03-27T01:30:00Z")),
            (TimeFormat::Iso, "2010-10-31T01:30:00", Some("2010-10-31T00:30:00Z")),
            (TimeFormat::Iso, "2011-06-01T08:26:00+02:00", Some("2011-06-01T06:26:00Z")),
            (TimeFormat::Iso, "2011-06-01", Some("2011-05-31T23:00:00Z")),
            (TimeFormat::Iso, "yesterday", None),
            (TimeFormat::Unix, "1659304800", Some("2022-07-31T22:00:00Z")),
            (TimeFormat::UnixMillis, "1659304800025", Some("2022-07-31T22:00:00.025Z")),
            (TimeFormat::UnixMillis, "1659304800.5", None),
            (TimeFormat::UnixMillis, "9223372036854775807", None),
            (TimeFormat::Unix, "999999999999", None),
            (TimeFormat::Pattern("%m/%d/%Y %H:%M".into()), "6/1/2011 8:26", Some("2011-06-01T07:26:00Z")),
            (TimeFormat::Pattern("%d.%m.%Y %H:%M %z".into()), "01.06.2011 08:26 +0200", Some("2011-06-01T06:26:00Z")),
            (TimeFormat::Pattern("%m/%d/%Y %H:%M".into()), "13/13/2011 8:26", None),
        ] {
            assert_eq!(format.read(text, &london).map(|t| t.to_string()).as_deref(), want, "{format:?} {text}");
        }
    }

    #[test]
    fn known_fields_and_own_properties() {
        assert_eq!(kind_of("product.price.amount"), Some(Kind::Amount));
        assert_eq!(kind_of("properties.a.b"), Some(Kind::Text));
        for unknown in ["properties", "properties.", "properties.a..b", "customer", "custmer.id", "type", "event_id", "site"] {
            assert_eq!(kind_of(unknown), None, "{unknown}");
        }
    }
}
