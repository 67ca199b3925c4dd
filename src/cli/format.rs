//! Answers as tables for terminals. Called by `contrail report` and `contrail demo`; must never cut or reorder rows.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent};

use crate::archive::report::Answer;

/// Widest text of a cell, in characters; longer ones end in an ellipsis.
const WIDEST: usize = 60;

/// An answer as people read it: a line of what it is, its rows with numbers to the right, and how fresh it is.
pub fn answer(answer: &Answer) -> String {
    let flat = answer.table();
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.remove_style(TableComponent::HorizontalLines).remove_style(TableComponent::MiddleIntersections);
    table.set_header(flat.columns.iter().map(|column| {
        let estimated = answer.estimates.contains(&column.name.as_str());
        format!("{}{}", if estimated { "~" } else { "" }, column.name.replace('_', " "))
    }));
    for row in &flat.rows {
        table.add_row(row.iter().map(|text| one_line(text)));
    }
    for (column, flat) in table.column_iter_mut().zip(&flat.columns) {
        column.set_cell_alignment(if flat.numeric { CellAlignment::Right } else { CellAlignment::Left });
    }
    let rows = if flat.rows.is_empty() { "(nothing in this range)".to_owned() } else { table.trim_fmt() };
    let by = answer.currency.map_or_else(String::new, |currency| format!(", by revenue in {currency}"));
    format!("{}, {} to {}{by}\n{rows}\n{}\n", answer.report.name(), answer.from, answer.to, freshness(answer))
}

fn freshness(answer: &Answer) -> String {
    let fresh = match answer.lag_seconds {
        0 => "up to date".to_owned(),
        lag => format!("complete up to {}, {lag} s ago", answer.watermark),
    };
    let exact = if answer.exact { "counts are exact" } else { "some rows could not be read" };
    let estimates = if answer.estimates.is_empty() { "" } else { ", ~ marks an estimate" };
    format!("{fresh}; {exact}{estimates}")
}

/// Text from outside made harmless to a terminal: no control characters and no marks that turn the direction of what follows, and not too long.
fn one_line(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut clean = text.chars().filter(|c| !turns(*c)).map(|c| if c.is_control() { ' ' } else { c });
    let mut out: String = clean.by_ref().take(WIDEST).collect();
    if clean.next().is_some() {
        out.pop();
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::report::{Amount, ReportName, Rows, SearchRow, SoldRow};
    use crate::event::{Currency, SiteId, Timestamp};

    fn example(rows: Rows) -> Answer {
        let at = |text| Timestamp::parse(text).unwrap();
        Answer {
            report: ReportName::TopSold,
            site: SiteId::parse("demo").unwrap(),
            from: at("2026-11-20T00:00:00Z"),
            to: at("2026-11-21T00:00:00Z"),
            watermark: at("2026-11-21T00:00:00Z"),
            lag_seconds: 0,
            exact: true,
            estimates: &[],
            currency: None,
            rows,
        }
    }

    #[test]
    fn numbers_stand_to_the_right_and_money_is_decimal() {
        let eur = |amount_minor| vec![Amount { currency: Currency::parse("EUR").unwrap(), amount_minor }];
        let row = |id: &str, units, minor| SoldRow { product_id: id.into(), name: None, units, orders: 1, revenue: eur(minor) };
        let text = answer(&example(Rows::Sold(vec![row("sku-1", 12_345, 1_234_560), row("b", -1, -5)])));
        let expected = "\
top-sold, 2026-11-20T00:00:00Z to 2026-11-21T00:00:00Z
──────────────────────────────────────────────────
 product id   name   units   orders   revenue EUR
══════════════════════════════════════════════════
 sku-1               12345        1      12345.60
 b                      -1        1         -0.05
──────────────────────────────────────────────────
up to date; counts are exact
";
        assert_eq!(text, expected);
    }

    #[test]
    fn foreign_scripts_keep_their_columns_and_terminals_their_state() {
        let row = |query: &str| SearchRow { query: query.into(), searches: 7, customers: 2, results_last: None };
        let answer_of = |query: &str| answer(&Answer { estimates: &["customers"], ..example(Rows::Searches(vec![row(query)])) });
        assert!(answer_of("گوشی موبایل").contains(" گوشی موبایل          7"), "{}", answer_of("گوشی موبایل"));
        assert!(answer_of("a\u{1b}[31m\u{202e}\nb").contains(" a [31m b "));
        assert!(answer_of(&"x".repeat(100)).contains(&format!(" {}… ", "x".repeat(59))));
        assert!(answer_of("x").contains("~customers"));
        assert!(answer(&example(Rows::Searches(vec![]))).contains("(nothing in this range)"));
    }
}
