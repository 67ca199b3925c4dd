//! An answer as a flat table, for CSV and terminals. Called by the web's reports and the command line; must never lose a row or a currency.

use std::collections::BTreeSet;

use super::super::Error;
use super::{Amount, Answer, Rows};
use crate::event::{Currency, Money};

/// One column of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name; of money the field's name and the currency's code, such as `revenue_EUR`.
    pub name: String,
    /// Whether it holds numbers.
    pub numeric: bool,
}

/// An answer's rows as text. Money has one column for each currency that occurs, by code, in decimal major units; what is not known is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Left to right.
    pub columns: Vec<Column>,
    /// Each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

impl Answer {
    /// The rows as a flat table.
    pub fn table(&self) -> Table {
        match &self.rows {
            Rows::Searches(rows) => Table::build(
                &[("query", false), ("searches", true), ("customers", true), ("results_last", true)],
                "",
                rows.iter().map(|r| (vec![r.query.clone(), r.searches.to_string(), r.customers.to_string(), text(r.results_last)], vec![])),
            ),
            Rows::Viewed(rows) => Table::build(
                &[("product_id", false), ("name", false), ("views", true), ("customers", true)],
                "",
                rows.iter().map(|r| (vec![r.product_id.clone(), text(r.name.as_ref()), r.views.to_string(), r.customers.to_string()], vec![])),
            ),
            Rows::Sold(rows) => Table::build(
                &[("product_id", false), ("name", false), ("units", true), ("orders", true)],
                "revenue",
                rows.iter()
                    .map(|r| (vec![r.product_id.clone(), text(r.name.as_ref()), r.units.to_string(), r.orders.to_string()], r.revenue.clone())),
            ),
            Rows::Pages(rows) => Table::build(
                &[("path", false), ("title", false), ("views", true), ("customers", true)],
                "",
                rows.iter().map(|r| (vec![r.path.clone(), text(r.title.as_ref()), r.views.to_string(), r.customers.to_string()], vec![])),
            ),
            Rows::Funnel(rows) => Table::build(
                &[("step", false), ("entered", true), ("completed", true), ("abandoned", true)],
                "value_left",
                rows.iter()
                    .map(|r| (vec![r.step.clone(), r.entered.to_string(), r.completed.to_string(), r.abandoned.to_string()], r.value_left.clone())),
            ),
            Rows::Unfinished(rows) => Table::build(
                &[("checkout_id", false), ("customer", false), ("last_step", false), ("last_at", false), ("age_seconds", true)],
                "value",
                rows.iter().map(|r| {
                    let fixed = vec![
                        r.checkout_id.clone(),
                        text(r.customer.as_ref()),
                        text(r.last_step.as_ref()),
                        r.last_at.to_string(),
                        r.age_seconds.to_string(),
                    ];
                    (fixed, r.value.iter().map(|v| Amount { currency: v.currency, amount_minor: v.amount_minor }).collect())
                }),
            ),
        }
    }

    /// The rows as CSV (RFC 4180) with a header line. What the answer says about itself (watermark, exactness) is not in it.
    ///
    /// # Errors
    /// [`Error::Store`] should the writer fail, which memory does not.
    pub fn csv(&self) -> Result<Vec<u8>, Error> {
        let table = self.table();
        let mut out = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
        let failed = |e: csv::Error| Error::Store(format!("CSV: {e}"));
        out.write_record(table.columns.iter().map(|column| &column.name)).map_err(failed)?;
        for row in &table.rows {
            out.write_record(row).map_err(failed)?;
        }
        out.into_inner().map_err(|e| Error::Store(format!("CSV: {e}")))
    }
}

impl Table {
    /// Puts fixed columns and one money column for each currency side by side.
    fn build(fixed: &[(&str, bool)], money: &str, rows: impl Iterator<Item = (Vec<String>, Vec<Amount>)>) -> Self {
        let rows: Vec<_> = rows.collect();
        let currencies: BTreeSet<Currency> = rows.iter().flat_map(|(_, amounts)| amounts).map(|amount| amount.currency).collect();
        let named = fixed.iter().map(|(name, numeric)| Column { name: (*name).to_owned(), numeric: *numeric });
        let columns = named.chain(currencies.iter().map(|currency| Column { name: format!("{money}_{currency}"), numeric: true })).collect();
        let rows = rows.into_iter().map(|(mut cells, amounts)| {
            cells.extend(currencies.iter().map(|currency| {
                let amount = amounts.iter().find(|amount| amount.currency == *currency);
                amount.map_or_else(String::new, |a| decimal(Money { amount_minor: a.amount_minor, currency: a.currency }))
            }));
            cells
        });
        Self { rows: rows.collect(), columns }
    }
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// Money in major units with all digits of its currency, such as `12.90`, `-0.05`, or `500` for yen.
pub fn decimal(money: Money) -> String {
    let exponent = money.currency.exponent() as usize;
    let digits = format!("{:0>width$}", money.amount_minor.unsigned_abs(), width = exponent + 1);
    let (whole, fraction) = digits.split_at(digits.len() - exponent);
    let sign = if money.amount_minor < 0 { "-" } else { "" };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}
