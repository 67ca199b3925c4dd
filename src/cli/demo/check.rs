//! An answer against the simulator's tally, row by row. Called by `contrail demo` and by load tests. Estimates are not compared. Pure.

use std::fmt::Debug;

use crate::archive::report::{Amount, Answer, MAX_LIMIT, ReportName, Rows};
use crate::event::Currency;
use crate::event::identity::ORDER_STEP;
use crate::simulate::{LookRow, Tally};

/// Seconds after which a checkout of the default rules counts as abandoned.
const PATIENCE: i64 = 30 * 60;

/// What differs, at most one line a report: the first row that does.
pub fn differences(answer: &Answer, tally: &Tally) -> Option<String> {
    let looks = &tally.humans;
    let as_of = answer.watermark;
    let found = match (&answer.rows, answer.report) {
        (Rows::Searches(rows), report) => {
            let told = if report == ReportName::TopSearches { looks.top_searches() } else { looks.searches_without_results() };
            first(rows.iter().map(|row| (row.query.clone(), row.searches)), told.iter().map(labelled))
        }
        (Rows::Viewed(rows), _) => first(rows.iter().map(|row| (row.product_id.clone(), row.views)), looks.top_viewed().iter().map(keyed)),
        (Rows::Pages(rows), _) => first(rows.iter().map(|row| (row.path.clone(), row.views)), looks.top_pages().iter().map(keyed)),
        (Rows::Sold(rows), _) => first(
            rows.iter().map(|row| (row.product_id.clone(), row.units, row.orders, amounts(&row.revenue))),
            tally.top_sold().into_iter().map(|row| (row.product_id, row.units, row.orders, row.revenue.into_iter().collect())),
        ),
        (Rows::Funnel(rows), _) => first(
            // The simulator tells of the shop's own steps.
            rows.iter()
                .filter(|row| row.step != ORDER_STEP)
                .map(|row| (row.step.clone(), row.entered, row.completed, row.abandoned, amounts(&row.value_left))),
            tally
                .funnel(as_of, PATIENCE)
                .into_iter()
                .map(|row| (row.step, row.entered as i64, row.completed as i64, row.abandoned as i64, row.value_left.into_iter().collect())),
        ),
        (Rows::Unfinished(rows), _) => first(
            rows.iter().map(|row| (row.checkout_id.clone(), row.last_step.clone(), row.value, row.last_at)),
            tally.unfinished(as_of, PATIENCE).into_iter().map(|row| (row.checkout, Some(row.last_step), row.value, row.last_at)),
        ),
    };
    found.map(|found| format!("{}: {found}", answer.report.name()))
}

fn labelled(row: &LookRow) -> (String, i64) {
    (row.label.clone(), row.count as i64)
}

fn keyed(row: &LookRow) -> (String, i64) {
    (row.key.clone(), row.count as i64)
}

fn amounts(money: &[Amount]) -> Vec<(Currency, i64)> {
    money.iter().map(|amount| (amount.currency, amount.amount_minor)).collect()
}

/// The first place where two lists differ.
fn first<T: PartialEq + Debug>(answered: impl Iterator<Item = T>, told: impl Iterator<Item = T>) -> Option<String> {
    let (mut answered, mut told) = (answered, told.take(MAX_LIMIT));
    for row in 1.. {
        match (answered.next(), told.next()) {
            (None, None) => return None,
            (answer, tally) if answer != tally => return Some(format!("row {row} is {answer:?}, the simulator counted {tally:?}")),
            _ => {}
        }
    }
    None
}
