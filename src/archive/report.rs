//! The reports: what analysts ask of the archive, answered from whole cells and, where a question's edges cut a cell, from the rows beneath, so that any `from` and
//! `to` give exact counts. Called by the web's reports, `contrail report` and `contrail demo` over any [`Archive`]; must never read live objects or the log.

mod checkouts;
mod count;
mod question;
mod render;
#[cfg(test)]
mod tests;
mod top;

use serde::{Deserialize, Serialize};

use super::progress::watermark;
use super::{Archive, Error};
use crate::event::{Currency, Money, SiteId, SiteRules, Timestamp};
use crate::eventlog::{EventLog, Topic};

pub use question::{By, DEFAULT_LIMIT, MAX_LIMIT, Question, ReportName, limit, time};
pub use render::{Column, Table, decimal};

/// What an analyst gets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Which report.
    pub report: ReportName,
    /// Whose.
    pub site: SiteId,
    /// From this `occurred_at` (inclusive).
    pub from: Timestamp,
    /// To this `occurred_at` (exclusive).
    pub to: Timestamp,
    /// Everything received before this is in the answer.
    pub watermark: Timestamp,
    /// Whole seconds from the watermark to now.
    pub lag_seconds: i64,
    /// Whether every count and amount equals a recount of the archive. False only where a row at an edge of the question could not be read. The columns
    /// named in `estimates` are never meant by it.
    pub exact: bool,
    /// The columns that are estimates (distinct customers).
    pub estimates: &'static [&'static str],
    /// The currency that `top-sold` by revenue is ranked by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<Currency>,
    /// The rows, in the report's order.
    pub rows: Rows,
}

/// An answer's rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Rows {
    /// `top-searches`, `searches-without-results`.
    Searches(Vec<SearchRow>),
    /// `top-viewed`.
    Viewed(Vec<ViewedRow>),
    /// `top-sold`.
    Sold(Vec<SoldRow>),
    /// `top-pages`.
    Pages(Vec<PageRow>),
    /// `checkout-funnel`.
    Funnel(Vec<FunnelRow>),
    /// `unfinished-purchases`.
    Unfinished(Vec<UnfinishedRow>),
}

impl Rows {
    /// The columns that are estimates.
    const fn estimates(&self) -> &'static [&'static str] {
        match self {
            Self::Searches(_) | Self::Viewed(_) | Self::Pages(_) => &["customers"],
            Self::Sold(_) | Self::Funnel(_) | Self::Unfinished(_) => &[],
        }
    }
}

/// An answer's JSON before its rows are known for what they are.
#[derive(Deserialize)]
struct Read {
    report: ReportName,
    site: SiteId,
    from: Timestamp,
    to: Timestamp,
    watermark: Timestamp,
    lag_seconds: i64,
    exact: bool,
    currency: Option<Currency>,
    rows: Box<serde_json::value::RawValue>,
}

impl Answer {
    /// Reads the JSON of an answer, as the HTTP face gives it.
    ///
    /// # Errors
    /// Where it is none.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        let Read { report, site, from, to, watermark, lag_seconds, exact, currency, rows } = serde_json::from_slice(json)?;
        let rows = rows.get();
        let rows = match report {
            ReportName::TopSearches | ReportName::SearchesWithoutResults => Rows::Searches(serde_json::from_str(rows)?),
            ReportName::TopViewed => Rows::Viewed(serde_json::from_str(rows)?),
            ReportName::TopSold => Rows::Sold(serde_json::from_str(rows)?),
            ReportName::TopPages => Rows::Pages(serde_json::from_str(rows)?),
            ReportName::CheckoutFunnel => Rows::Funnel(serde_json::from_str(rows)?),
            ReportName::UnfinishedPurchases => Rows::Unfinished(serde_json::from_str(rows)?),
        };
        Ok(Self { report, site, from, to, watermark, lag_seconds, exact, estimates: rows.estimates(), currency, rows })
    }
}

/// One search term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchRow {
    /// As last typed.
    pub query: String,
    /// How often; for `searches-without-results` those that found nothing.
    pub searches: i64,
    /// By how many people, an estimate.
    pub customers: u64,
    /// Results of its last search, whenever that was; None where no search said.
    pub results_last: Option<u64>,
}

/// One product looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewedRow {
    /// The product.
    pub product_id: String,
    /// Its latest name, where it has one.
    pub name: Option<String>,
    /// Times viewed.
    pub views: i64,
    /// By how many people, an estimate.
    pub customers: u64,
}

/// One product sold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoldRow {
    /// The product.
    pub product_id: String,
    /// Its latest name, where it has one.
    pub name: Option<String>,
    /// Pieces, net of refunds; negative where only refunds fall into the range.
    pub units: i64,
    /// Orders that hold it.
    pub orders: i64,
    /// Money by currency, net of refunds, by code.
    pub revenue: Vec<Amount>,
}

/// One page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRow {
    /// Its path.
    pub path: String,
    /// Its latest title, where it has one.
    pub title: Option<String>,
    /// Times viewed.
    pub views: i64,
    /// By how many people, an estimate.
    pub customers: u64,
}

/// One step of the checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunnelRow {
    /// The step; `(order)` stands for the order itself.
    pub step: String,
    /// Checkouts that entered it.
    pub entered: i64,
    /// Checkouts that completed it.
    pub completed: i64,
    /// Checkouts abandoned at it.
    pub abandoned: i64,
    /// What those were worth, by code.
    pub value_left: Vec<Amount>,
}

/// One abandoned checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedRow {
    /// The checkout.
    pub checkout_id: String,
    /// Keyed hash of the person, hex.
    pub customer: Option<String>,
    /// The step it last reported.
    pub last_step: Option<String>,
    /// What it was worth.
    pub value: Option<Money>,
    /// When it last reported anything.
    pub last_at: Timestamp,
    /// Whole seconds from then to `as_of`.
    pub age_seconds: i64,
}

/// An amount in one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// The currency.
    pub currency: Currency,
    /// Minor units.
    pub amount_minor: i64,
}

/// What a report hands back, before the answer's head is put on.
struct Body {
    rows: Rows,
    exact: bool,
    currency: Option<Currency>,
}

/// Answers a question. `watermark` is what [`fresh_to`] gave just before, so that what is archived meanwhile may be counted beyond it, but nothing before it
/// is missed.
///
/// # Errors
/// Those of the archive.
pub async fn run(archive: &dyn Archive, rules: &SiteRules, question: &Question, now: Timestamp, watermark: Timestamp) -> Result<Answer, Error> {
    let as_of = question.as_of.unwrap_or(watermark);
    let body = match question.report {
        ReportName::TopSearches | ReportName::SearchesWithoutResults => top::searches(archive, rules, question).await?,
        ReportName::TopViewed => top::viewed(archive, rules, question).await?,
        ReportName::TopSold => top::sold(archive, rules, question).await?,
        ReportName::TopPages => top::pages(archive, rules, question).await?,
        ReportName::CheckoutFunnel => checkouts::funnel(archive, rules, question, as_of).await?,
        ReportName::UnfinishedPurchases => checkouts::unfinished(archive, rules, question, as_of).await?,
    };
    Ok(Answer {
        report: question.report,
        site: question.site.clone(),
        from: question.from,
        to: question.to,
        watermark,
        lag_seconds: seconds_between(watermark, now),
        exact: body.exact,
        estimates: body.rows.estimates(),
        currency: body.currency,
        rows: body.rows,
    })
}

/// The watermark of an answer given now: `now` when every partition is read to its end, else the least last `received_at` of those that are not.
///
/// # Errors
/// Those of log and archive.
pub async fn fresh_to(archive: &dyn Archive, log: &dyn EventLog, now: Timestamp) -> Result<Timestamp, Error> {
    let bounds = log.bounds(Topic::Events).await?;
    Ok(watermark(&archive.cursors().await?, &bounds, now))
}

fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.micros().saturating_sub(from.micros()).div_euclid(1_000_000).max(0)
}
