//! The ranked reports: search terms, products viewed and sold, pages. Called by [`super::run`] only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::super::{Archive, CellValue, Error, Label, LabelValue, Metric};
use super::count::count;
use super::question::{By, Question, ReportName};
use super::{Amount, Body, PageRow, Rows, SearchRow, SoldRow, ViewedRow};
use crate::event::{Currency, SiteId, SiteRules};

/// Labels asked for at once.
const LABELS_AT_ONCE: usize = 1_000;

/// One dim with its counts.
type Ranked = (String, CellValue);

/// `top-searches` and `searches-without-results`.
pub(super) async fn searches(archive: &dyn Archive, rules: &SiteRules, question: &Question) -> Result<Body, Error> {
    let metric = if question.report == ReportName::SearchesWithoutResults { Metric::EmptySearches } else { Metric::Searches };
    let counted = count(archive, rules, question, metric).await?;
    let top = first(archive, question, rank(counted.dims, first_count)).await?;
    let spelling = labels(archive, &question.site, Label::Spelling, &top).await?;
    let results = labels(archive, &question.site, Label::Results, &top).await?;
    let rows = top.into_iter().map(|(dim, value)| SearchRow {
        searches: first_count(&value),
        customers: value.people.estimate(),
        results_last: results.get(&dim).and_then(|last| last.value.parse().ok()),
        query: spelling.get(&dim).map_or_else(|| dim.clone(), |label| label.value.clone()),
    });
    Ok(Body { rows: Rows::Searches(rows.collect()), exact: counted.exact, currency: None })
}

/// `top-viewed`.
pub(super) async fn viewed(archive: &dyn Archive, rules: &SiteRules, question: &Question) -> Result<Body, Error> {
    let counted = count(archive, rules, question, Metric::Views).await?;
    let top = first(archive, question, rank(counted.dims, first_count)).await?;
    let mut names = labels(archive, &question.site, Label::ProductName, &top).await?;
    let rows = top.into_iter().map(|(product_id, value)| ViewedRow {
        name: names.remove(&product_id).map(|label| label.value),
        views: first_count(&value),
        customers: value.people.estimate(),
        product_id,
    });
    Ok(Body { rows: Rows::Viewed(rows.collect()), exact: counted.exact, currency: None })
}

/// `top-pages`.
pub(super) async fn pages(archive: &dyn Archive, rules: &SiteRules, question: &Question) -> Result<Body, Error> {
    let counted = count(archive, rules, question, Metric::Pages).await?;
    let top = first(archive, question, rank(counted.dims, first_count)).await?;
    let mut titles = labels(archive, &question.site, Label::PageTitle, &top).await?;
    let rows = top.into_iter().map(|(path, value)| PageRow {
        title: titles.remove(&path).map(|label| label.value),
        views: first_count(&value),
        customers: value.people.estimate(),
        path,
    });
    Ok(Body { rows: Rows::Pages(rows.collect()), exact: counted.exact, currency: None })
}

/// `top-sold`. By revenue a product without money in the ranking currency counts as zero of it.
pub(super) async fn sold(archive: &dyn Archive, rules: &SiteRules, question: &Question) -> Result<Body, Error> {
    let counted = count(archive, rules, question, Metric::Sold).await?;
    let currency = match question.by {
        By::Units => None,
        By::Revenue => question.currency.or_else(|| most_frequent(&counted.dims)),
    };
    let ranked = match (question.by, currency) {
        (By::Revenue, Some(currency)) => rank(counted.dims, |value| value.revenue.get(&currency).copied().unwrap_or(0)),
        (By::Revenue, None) => rank(counted.dims, |_| 0),
        (By::Units, _) => rank(counted.dims, first_count),
    };
    let top = first(archive, question, ranked).await?;
    let mut names = labels(archive, &question.site, Label::ProductName, &top).await?;
    let rows = top.into_iter().map(|(product_id, value)| {
        let [units, orders] = value.counts;
        SoldRow { name: names.remove(&product_id).map(|label| label.value), product_id, units, orders, revenue: amounts(&value.revenue) }
    });
    Ok(Body { rows: Rows::Sold(rows.collect()), exact: counted.exact, currency })
}

/// Amounts by code, without those that came to nothing.
pub(super) fn amounts(revenue: &BTreeMap<Currency, i64>) -> Vec<Amount> {
    revenue.iter().filter(|(_, amount)| **amount != 0).map(|(currency, amount)| Amount { currency: *currency, amount_minor: *amount }).collect()
}

const fn first_count(value: &CellValue) -> i64 {
    let [first, _] = value.counts;
    first
}

/// The currency that most dims have money in; the first by code among equals.
fn most_frequent(dims: &HashMap<String, CellValue>) -> Option<Currency> {
    let mut frequency: BTreeMap<Currency, usize> = BTreeMap::new();
    for currency in dims.values().flat_map(|value| amounts(&value.revenue)) {
        *frequency.entry(currency.currency).or_default() += 1;
    }
    frequency.into_iter().min_by_key(|(_, dims)| Reverse(*dims)).map(|(currency, _)| currency)
}

/// Dims by measure descending, then key bytes; those that came to nothing at all left out.
fn rank(dims: HashMap<String, CellValue>, measure: impl Fn(&CellValue) -> i64) -> Vec<Ranked> {
    let something = |value: &CellValue| value.counts != [0, 0] || value.revenue.values().any(|amount| *amount != 0);
    let mut ranked: Vec<Ranked> = dims.into_iter().filter(|(_, value)| something(value)).collect();
    ranked.sort_unstable_by(|(a_dim, a), (b_dim, b)| (Reverse(measure(a)), a_dim).cmp(&(Reverse(measure(b)), b_dim)));
    ranked
}

/// The first `limit` that the question admits: where it asks for a country, only products whose latest `available_in` names it.
async fn first(archive: &dyn Archive, question: &Question, mut ranked: Vec<Ranked>) -> Result<Vec<Ranked>, Error> {
    let Some(country) = &question.available_in else {
        ranked.truncate(question.limit);
        return Ok(ranked);
    };
    let mut kept = Vec::new();
    for chunk in ranked.chunks(LABELS_AT_ONCE) {
        let available = labels(archive, &question.site, Label::AvailableIn, chunk).await?;
        let there = |(dim, _): &&Ranked| available.get(dim).is_some_and(|label| names_country(&label.value, country));
        kept.extend(chunk.iter().filter(there).take(question.limit - kept.len()).cloned());
        if kept.len() >= question.limit {
            break;
        }
    }
    Ok(kept)
}

fn names_country(json: &str, country: &str) -> bool {
    serde_json::from_str::<Vec<String>>(json).is_ok_and(|countries| countries.iter().any(|known| known.eq_ignore_ascii_case(country)))
}

async fn labels(archive: &dyn Archive, site: &SiteId, label: Label, dims: &[Ranked]) -> Result<HashMap<String, LabelValue>, Error> {
    let mut found = HashMap::with_capacity(dims.len());
    for chunk in dims.chunks(LABELS_AT_ONCE) {
        let names: Vec<String> = chunk.iter().map(|(dim, _)| dim.clone()).collect();
        found.extend(archive.labels(site, label, &names).await?);
    }
    Ok(found)
}
