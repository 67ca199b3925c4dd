//! What an analyst asks: the parameters of a report, read from text. Called by the web's reports and by `contrail report`; must never guess at what it
//! does not know: an unknown parameter or value is refused by name.

use jiff::civil;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::super::{Bots, Error};
use crate::event::{Currency, SiteId, SiteRules, Timestamp};

/// Rows of an answer where nothing else is asked for.
pub const DEFAULT_LIMIT: usize = 50;

/// Most rows an answer has.
pub const MAX_LIMIT: usize = 10_000;

/// How far a question reaches back where it does not say.
const DEFAULT_SPAN_SECONDS: i64 = 86_400;

/// The reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportName {
    /// Search terms by searches.
    TopSearches,
    /// Search terms by searches that found nothing.
    SearchesWithoutResults,
    /// Products by views.
    TopViewed,
    /// Products by units or revenue, net of refunds.
    TopSold,
    /// Pages by views.
    TopPages,
    /// Checkout steps in their order.
    CheckoutFunnel,
    /// Abandoned checkouts, newest first.
    UnfinishedPurchases,
}

impl ReportName {
    /// All of them, in the order they are listed to people.
    pub const ALL: [Self; 7] = [
        Self::TopSearches,
        Self::SearchesWithoutResults,
        Self::TopViewed,
        Self::TopSold,
        Self::TopPages,
        Self::CheckoutFunnel,
        Self::UnfinishedPurchases,
    ];

    /// Its name in paths, on the command line and in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TopSearches => "top-searches",
            Self::SearchesWithoutResults => "searches-without-results",
            Self::TopViewed => "top-viewed",
            Self::TopSold => "top-sold",
            Self::TopPages => "top-pages",
            Self::CheckoutFunnel => "checkout-funnel",
            Self::UnfinishedPurchases => "unfinished-purchases",
        }
    }

    /// The report of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|report| report.name() == name)
    }

    /// The parameters it takes.
    pub const fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::TopSearches | Self::SearchesWithoutResults | Self::TopPages => &["from", "to", "limit", "bots"],
            Self::TopViewed => &["from", "to", "limit", "bots", "available_in"],
            Self::TopSold => &["from", "to", "limit", "bots", "available_in", "by", "currency"],
            Self::CheckoutFunnel | Self::UnfinishedPurchases => &["from", "to", "limit", "bots", "as_of"],
        }
    }
}

/// What `top-sold` ranks by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum By {
    /// Pieces.
    #[default]
    Units,
    /// Money of one currency, see [`Question::currency`].
    Revenue,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which report.
    pub report: ReportName,
    /// Whose.
    pub site: SiteId,
    /// From this `occurred_at` (inclusive).
    pub from: Timestamp,
    /// To this `occurred_at` (exclusive).
    pub to: Timestamp,
    /// At most so many rows.
    pub limit: usize,
    /// Whether crawlers count.
    pub bots: Bots,
    /// Only products that can be bought in this country, by their latest `available_in`; a product that never said is in none.
    pub available_in: Option<String>,
    /// What `top-sold` ranks by.
    pub by: By,
    /// The currency `by=revenue` ranks by; None = the one most products in range have revenue in, the first by code among equals.
    pub currency: Option<Currency>,
    /// When abandonment is judged; None = the watermark.
    pub as_of: Option<Timestamp>,
}

impl Question {
    /// The question with nothing but defaults: the 24 h before `now`.
    pub fn new(report: ReportName, site: SiteId, now: Timestamp) -> Self {
        Self {
            report,
            site,
            from: now.plus_seconds(-DEFAULT_SPAN_SECONDS),
            to: now,
            limit: DEFAULT_LIMIT,
            bots: Bots::Exclude,
            available_in: None,
            by: By::Units,
            currency: None,
            as_of: None,
        }
    }

    /// Reads a question. `from`, `to` and `as_of` are RFC 3339 or a date, which means the start of that day in the site's time zone; without
    /// `from` the question reaches 24 h back from `to`, without `to` up to `now`.
    ///
    /// # Errors
    /// [`Error::BadQuestion`] for an unknown report or parameter, one given twice, or a value out of its range.
    pub fn parse(report: &str, site: SiteId, parameters: &[(String, String)], rules: &SiteRules, now: Timestamp) -> Result<Self, Error> {
        let report = ReportName::parse(report).ok_or_else(|| unknown_report(report))?;
        let mut question = Self::new(report, site, now);
        let (mut from, mut seen) = (None, Vec::new());
        for (name, value) in parameters {
            let Some(known) = report.parameters().iter().find(|known| *known == name) else {
                let known = report.parameters().join(", ");
                return Err(bad("parameters", format!("{} does not take {name:?}, only {known}", report.name())));
            };
            if seen.contains(known) {
                return Err(bad(known, "is given twice".into()));
            }
            seen.push(*known);
            match *known {
                "from" => from = Some(time("from", value, rules)?),
                "to" => question.to = time("to", value, rules)?,
                "as_of" => question.as_of = Some(time("as_of", value, rules)?),
                "limit" => question.limit = limit(value, MAX_LIMIT)?,
                "bots" => question.bots = bots(value)?,
                "available_in" => question.available_in = Some(country(value)?),
                "by" => question.by = by(value)?,
                _ => question.currency = Some(Currency::parse(value).map_err(|e| bad("currency", e.to_string()))?),
            }
        }
        if question.currency.is_some() && question.by == By::Units {
            return Err(bad("currency", "is taken with by=revenue only".into()));
        }
        question.from = from.unwrap_or_else(|| question.to.plus_seconds(-DEFAULT_SPAN_SECONDS));
        if question.from >= question.to {
            return Err(bad("from", format!("is {}, not before to, {}", question.from, question.to)));
        }
        Ok(question)
    }
}

fn bad(parameter: &'static str, message: String) -> Error {
    Error::BadQuestion { parameter, message }
}

fn unknown_report(name: &str) -> Error {
    bad("report", format!("there is no {name:?}, only {}", ReportName::ALL.map(ReportName::name).join(", ")))
}

/// Reads a time: RFC 3339, or a date meaning the start of that day in the site's time zone.
///
/// # Errors
/// [`Error::BadQuestion`] naming `parameter`.
pub fn time(parameter: &'static str, text: &str, rules: &SiteRules) -> Result<Timestamp, Error> {
    // A plus sign that a query string turned into a blank is meant as one.
    if let Ok(time) = Timestamp::parse(text).or_else(|_| Timestamp::parse(&text.replace(' ', "+"))) {
        return Ok(time);
    }
    let date: civil::Date = match text.len() {
        10 => text.parse().map_err(|_| not_a_time(parameter, text))?,
        _ => return Err(not_a_time(parameter, text)),
    };
    let zone = TimeZone::get(&rules.time_zone)
        .map_err(|_| bad(parameter, format!("the site's time zone {:?} is not known here; give a time with an offset", rules.time_zone)))?;
    let start = date.to_zoned(zone).and_then(|day| day.start_of_day()).map_err(|_| not_a_time(parameter, text))?;
    Ok(Timestamp::from_micros(start.timestamp().as_microsecond()))
}

fn not_a_time(parameter: &'static str, text: &str) -> Error {
    bad(parameter, format!("{text:?} is neither RFC 3339, such as 2026-11-20T10:00:00Z, nor a date, such as 2026-11-20"))
}

/// Reads a number of rows.
///
/// # Errors
/// [`Error::BadQuestion`] unless it is 1 to `most`.
pub fn limit(text: &str, most: usize) -> Result<usize, Error> {
    match text.parse() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(bad("limit", format!("{text:?} is not a number from 1 to {most}"))),
    }
}

fn bots(text: &str) -> Result<Bots, Error> {
    match text {
        "exclude" => Ok(Bots::Exclude),
        "include" => Ok(Bots::Include),
        "only" => Ok(Bots::Only),
        _ => Err(bad("bots", format!("{text:?} is none of exclude, include, only"))),
    }
}

fn by(text: &str) -> Result<By, Error> {
    match text {
        "units" => Ok(By::Units),
        "revenue" => Ok(By::Revenue),
        _ => Err(bad("by", format!("{text:?} is neither units nor revenue"))),
    }
}

fn country(text: &str) -> Result<String, Error> {
    match text.len() {
        1..=64 => Ok(text.to_owned()),
        _ => Err(bad("available_in", "is a country such as DE".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse("2026-11-20T10:00:00Z").unwrap()
    }

    fn ask_in(zone: &str, report: &str, parameters: &[(&str, &str)]) -> Result<Question, Error> {
        let rules = SiteRules { time_zone: zone.into(), ..SiteRules::default() };
        let parameters: Vec<_> = parameters.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Question::parse(report, SiteId::parse("demo").unwrap(), &parameters, &rules, now())
    }

    fn refused(report: &str, parameters: &[(&str, &str)]) -> (&'static str, String) {
        match ask_in("UTC", report, parameters) {
            Err(Error::BadQuestion { parameter, message }) => (parameter, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_last_24_hours() {
        let plain = ask_in("UTC", "top-viewed", &[]).unwrap();
        assert_eq!((plain.from, plain.to), (now().plus_seconds(-86_400), now()));
        assert_eq!((plain.limit, plain.bots, plain.by), (50, Bots::Exclude, By::Units));
        let back = ask_in("UTC", "top-viewed", &[("to", "2026-01-02")]).unwrap();
        assert_eq!(back.from, Timestamp::parse("2026-01-01T00:00:00Z").unwrap());
    }

    #[test]
    fn dates_are_days_of_the_site() {
        // Berlin's clocks go back on 2026-10-25: that day has 25 hours.
        let day = ask_in("Europe/Berlin", "top-viewed", &[("from", "2026-10-25"), ("to", "2026-10-26")]).unwrap();
        assert_eq!(day.from, Timestamp::parse("2026-10-24T22:00:00Z").unwrap());
        assert_eq!(day.to, Timestamp::parse("2026-10-25T23:00:00Z").unwrap());
        // Santiago's go forward at midnight: 2026-09-06 begins at 01:00 (-03:00).
        let spring = ask_in("America/Santiago", "top-viewed", &[("from", "2026-09-06")]).unwrap();
        assert_eq!(spring.from, Timestamp::parse("2026-09-06T04:00:00Z").unwrap());
        for from in ["2026-11-20T09:00:00 01:00", "2026-11-20T09:00:00+01:00", "2026-11-20 08:00:00Z"] {
            let offset = ask_in("UTC", "top-viewed", &[("from", from)]).unwrap();
            assert_eq!(offset.from, Timestamp::parse("2026-11-20T08:00:00Z").unwrap());
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        assert_eq!(refused("top-sellers", &[]).0, "report");
        assert!(refused("top-searches", &[("form", "2026-11-20")]).1.contains("\"form\""));
        assert!(refused("top-searches", &[("available_in", "DE")]).1.contains("\"available_in\""));
        assert_eq!(refused("top-sold", &[("by", "orders")]).0, "by");
        assert_eq!(refused("top-sold", &[("by", "revenue"), ("currency", "eur")]).0, "currency");
        assert_eq!(refused("top-sold", &[("currency", "EUR")]).0, "currency");
        assert_eq!(refused("top-sold", &[("bots", "yes")]).0, "bots");
        assert_eq!(refused("top-sold", &[("available_in", "")]).0, "available_in");
        for limit in ["0", "10001", "-1", "", "1e3", "99999999999999999999"] {
            assert_eq!(refused("top-sold", &[("limit", limit)]).0, "limit", "{limit}");
        }
        for from in ["", "yesterday", "2026-11-31", "2026-11-19T10:00:00", "20261119", "2026-11-1é"] {
            assert_eq!(refused("top-sold", &[("from", from)]).0, "from", "{from}");
        }
        assert_eq!(refused("top-sold", &[("from", "2026-11-20"), ("to", "2026-11-20")]).0, "from");
        assert_eq!(refused("top-sold", &[("limit", "1"), ("limit", "2")]), ("limit", "is given twice".into()));
        assert_eq!(refused("checkout-funnel", &[("as_of", "soon")]).0, "as_of");
    }
}
