//! Counts of a question's range by dim: whole cells from the rollups, the partial cells at its edges from the rows beneath. Called by the reports only.

use std::collections::HashMap;

use super::super::rollup::dim_of;
use super::super::{Archive, Bots, CELL_SECONDS, CellValue, Error, EventRow, Metric, Scan, ScanBy};
use super::question::Question;
use crate::event::identity::{Sale, StepCount, Verdict};
use crate::event::{Event, Flags, SiteRules, StepStatus, Timestamp, kind};

/// Rows taken from a scan at once: bounds what an edge holds in memory.
const PAGE: usize = 2_000;

/// Counts by dim.
pub(super) struct Counted {
    /// Each dim's sum.
    pub(super) dims: HashMap<String, CellValue>,
    /// Whether every row at the edges could be read.
    pub(super) exact: bool,
}

/// A range as whole cells and what is left at its edges.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    whole: Option<(Timestamp, Timestamp)>,
    edges: Vec<(Timestamp, Timestamp)>,
}

impl Span {
    fn new(from: Timestamp, to: Timestamp) -> Self {
        let first = from.plus_micros(CELL_SECONDS * 1_000_000 - 1).floor_to_seconds(CELL_SECONDS);
        let last = to.floor_to_seconds(CELL_SECONDS);
        if first >= last {
            // No whole cell: one edge, or two that meet at a cell's border.
            return Self { whole: None, edges: vec![(from, to)] };
        }
        let edges = [(from, first), (last, to)].into_iter().filter(|(from, to)| from < to).collect();
        Self { whole: Some((first, last)), edges }
    }
}

/// Whether a question takes a count of such a shopper.
pub(super) const fn admits(bots: Bots, crawler: bool) -> bool {
    match bots {
        Bots::Exclude => !crawler,
        Bots::Include => true,
        Bots::Only => crawler,
    }
}

/// Counts one metric over a question's range.
pub(super) async fn count(archive: &dyn Archive, rules: &SiteRules, question: &Question, metric: Metric) -> Result<Counted, Error> {
    let span = Span::new(question.from, question.to);
    let mut counted = Counted { dims: HashMap::new(), exact: true };
    if let Some((from, to)) = span.whole {
        counted.dims.extend(archive.totals(&question.site, metric, from, to, question.bots).await?);
    }
    for (from, to) in span.edges {
        match metric {
            Metric::Sold => archive.sales(&question.site, from, to).await?.iter().for_each(|sale| counted.add_sale(sale, question.bots)),
            Metric::Steps => archive.steps(&question.site, from, to).await?.iter().for_each(|step| counted.add_step(step, question.bots)),
            Metric::Searches | Metric::EmptySearches | Metric::Views | Metric::Pages => {
                counted.add_rows(archive, rules, question, metric, (from, to)).await?;
            }
        }
    }
    Ok(counted)
}

impl Counted {
    fn add_sale(&mut self, sale: &Sale, bots: Bots) {
        if !admits(bots, sale.crawler) {
            return;
        }
        let value = self.dims.entry(sale.product_id.clone()).or_default();
        let [units, orders] = &mut value.counts;
        *units += sale.units;
        *orders += sale.orders;
        for (currency, amount) in &sale.revenue {
            *value.revenue.entry(*currency).or_default() += amount;
        }
    }

    fn add_step(&mut self, step: &StepCount, bots: Bots) {
        if !admits(bots, step.crawler) {
            return;
        }
        let [entered, completed] = &mut self.dims.entry(step.step.clone()).or_default().counts;
        match step.status {
            StepStatus::Entered => *entered += step.count,
            StepStatus::Completed => *completed += step.count,
        }
    }

    async fn add_rows(
        &mut self,
        archive: &dyn Archive,
        rules: &SiteRules,
        question: &Question,
        metric: Metric,
        (from, to): (Timestamp, Timestamp),
    ) -> Result<(), Error> {
        let mut scan = Scan { from: Some(from), to: Some(to), by: ScanBy::All, limit: PAGE, ..Scan::default() };
        loop {
            let rows = archive.scan(&question.site, &scan).await?;
            rows.iter().for_each(|row| self.add_row(rules, question.bots, metric, row));
            match rows.last() {
                Some(last) if rows.len() >= PAGE => scan.after = Some((last.occurred_at, last.partition, last.offset)),
                _ => return Ok(()),
            }
        }
    }

    fn add_row(&mut self, rules: &SiteRules, bots: Bots, metric: Metric, row: &EventRow) {
        if row.verdict != Verdict::Counted || row.kind != kind_of(metric) || !admits(bots, row.flags.has(Flags::CRAWLER)) {
            return;
        }
        let event = match row.body_key {
            0 => Event::from_body(&row.body),
            _ => {
                self.exact = false;
                return;
            }
        };
        let Ok(event) = event else {
            self.exact = false;
            return;
        };
        let Some(dim) = dim_of(metric, &event, rules) else { return };
        let value = self.dims.entry(dim).or_default();
        let [count, _] = &mut value.counts;
        *count += 1;
        if let Some(person) = row.customer.or(row.visitor) {
            value.people.add(&person);
        }
    }
}

/// The type of event that a metric of events counts.
const fn kind_of(metric: Metric) -> &'static str {
    match metric {
        Metric::Searches | Metric::EmptySearches => kind::PRODUCT_SEARCHED,
        Metric::Views => kind::PRODUCT_VIEWED,
        Metric::Pages => kind::PAGE_VIEWED,
        Metric::Sold => kind::ORDER_COMPLETED,
        Metric::Steps => kind::CHECKOUT_STEP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_whole_cells_and_its_edges() {
        let at = |s: i64| Timestamp::from_micros(s * 1_000_000);
        assert_eq!(Span::new(at(900), at(2700)), Span { whole: Some((at(900), at(2700))), edges: vec![] });
        assert_eq!(Span::new(at(899), at(2701)), Span { whole: Some((at(900), at(2700))), edges: vec![(at(899), at(900)), (at(2700), at(2701))] });
        assert_eq!(Span::new(at(10), at(20)), Span { whole: None, edges: vec![(at(10), at(20))] });
        assert_eq!(Span::new(at(899), at(901)), Span { whole: None, edges: vec![(at(899), at(901))] });
        assert_eq!(Span::new(at(901), at(2700)), Span { whole: Some((at(1800), at(2700))), edges: vec![(at(901), at(1800))] });
        let last = at(900).plus_micros(1);
        assert_eq!(Span::new(at(0), last), Span { whole: Some((at(0), at(900))), edges: vec![(at(900), last)] });
    }
}
