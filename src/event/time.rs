//! Points in time, as every room stores and compares them; used by all of `event`. Must never read the machine's clock
//! outside [`Clock`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since 1970-01-01T00:00:00Z. In JSON an RFC 3339 string in UTC with as many fraction digits as needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 date-time with an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 date-time with an offset, such as 2026-11-20T10:00:00Z")]
pub struct NotATimestamp;

impl Timestamp {
    /// The epoch itself.
    pub const ZERO: Self = Self(0);
    /// Later than any real event.
    pub const MAX: Self = Self(i64::MAX);

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From milliseconds since the epoch, saturating.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// This time moved by so many microseconds, saturating.
    pub const fn plus_micros(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// This time moved by so many seconds, saturating.
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }

    /// Start of the span of `seconds` since the epoch that this time lies in.
    pub const fn floor_to_seconds(self, seconds: i64) -> Self {
        let span = seconds.saturating_mul(1_000_000);
        Self(self.0.div_euclid(span).saturating_mul(span))
    }

    /// Days since the epoch, UTC.
    pub const fn utc_day(self) -> i32 {
        self.0.div_euclid(86_400_000_000) as i32
    }

    /// `YYYY-MM-DD` of the UTC day.
    pub fn utc_date(self) -> String {
        self.to_string().chars().take(10).collect()
    }

    /// Parses RFC 3339 with a mandatory offset (`Z` or `+hh:mm`); years 0001 to 9999.
    pub fn parse(text: &str) -> Result<Self, NotATimestamp> {
        if let Some(quick) = parse_utc_seconds(text.as_bytes()) {
            return Ok(quick);
        }
        let shape = text.as_bytes();
        if !matches!(shape.get(10), Some(b'T' | b't' | b' ')) || shape.first().is_none_or(|b| !b.is_ascii_digit()) {
            return Err(NotATimestamp);
        }
        text.parse::<jiff::Timestamp>().map(|t| Self(t.as_microsecond())).map_err(|_| NotATimestamp)
    }
}

/// The common shape `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, without the general parser: it stands in every event.
fn parse_utc_seconds(b: &[u8]) -> Option<Timestamp> {
    let (fixed, rest) = b.split_at_checked(19)?;
    let digits = |from: usize, len: usize| -> Option<i64> {
        fixed.get(from..from + len)?.iter().try_fold(0i64, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
    };
    let separators: [(usize, u8); 5] = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, want)| fixed.get(*at) != Some(want)) {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    let micros = match rest {
        b"Z" => 0,
        [b'.', fraction @ .., b'Z'] if (1..=6).contains(&fraction.len()) => {
            let n = fraction.iter().try_fold(0i64, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))?;
            n * 10i64.pow(6 - fraction.len() as u32)
        }
        _ => return None,
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year == 0 || !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days from civil, Howard Hinnant's algorithm.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(Timestamp((days * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000 + micros))
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => f.write_str(if self.0 < 0 { "0001-01-01T00:00:00Z" } else { "9999-12-30T22:00:00Z" }),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_i64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return i64::deserialize(deserializer).map(Self);
        }
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 date-time")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                Timestamp::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Where `now` comes from: the machine, or a test's hand. Cheap to clone; clones share the hand.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands at `at` until [`Clock::set`].
    pub fn fixed(at: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(at.0))))
    }

    /// Moves a fixed clock; without effect on the machine's.
    pub fn set(&self, to: Timestamp) {
        if let Some(hand) = &self.0 {
            hand.store(to.0, Ordering::SeqCst);
        }
    }

    /// The present time.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Some(hand) => Timestamp(hand.load(Ordering::SeqCst)),
            None => Timestamp(jiff::Timestamp::now().as_microsecond()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_and_general_parser_agree() {
        for text in ["2026-11-20T10:00:00Z", "1970-01-01T00:00:00Z", "2000-02-29T23:59:59.5Z", "1969-12-31T23:59:59.999999Z", "2100-03-01T00:00:00Z"]
        {
            let general: jiff::Timestamp = text.parse().unwrap();
            assert_eq!(Timestamp::parse(text).unwrap().micros(), general.as_microsecond(), "{text}");
            assert_eq!(Timestamp::parse(&Timestamp::parse(text).unwrap().to_string()), Timestamp::parse(text));
        }
        assert_eq!(Timestamp::parse("2026-11-20T11:00:00+01:00"), Timestamp::parse("2026-11-20T10:00:00Z"));
        for bad in [
            "",
            "2026",
            "2026-02-30T00:00:00Z",
            "2026-11-20T10:00:00",
            "2026-11-20",
            "20261120T100000Z",
            "2026-13-01T00:00:00Z",
            "é026-11-20T10:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(bad), Err(NotATimestamp), "{bad}");
        }
    }

    #[test]
    fn floors_below_the_epoch_too() {
        assert_eq!(Timestamp::from_micros(-1).floor_to_seconds(900), Timestamp::from_micros(-900_000_000));
        assert_eq!(Timestamp::from_micros(-1).utc_day(), -1);
        assert_eq!(Timestamp::parse("2026-11-20T10:14:59.9Z").unwrap().floor_to_seconds(900), Timestamp::parse("2026-11-20T10:00:00Z").unwrap());
    }
}
