//! Templates: text with `{column}` in it. Called by the mapping engine for every value it writes. No expressions. Pure.

use super::Reason;
use super::row::Row;

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
    Line,
    Index,
}

impl Template {
    /// Reads `inv-{InvoiceNo}`; `{#line}` is the line's number, `{#index}` the row's place in the array `each` names.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, from)) = rest.split_once('{') {
            let (name, after) = from.split_once('}').ok_or_else(|| format!("`{text}` opens a brace and does not close it"))?;
            if before.contains('}') || name.contains('{') {
                return Err(format!("`{text}` has braces that do not pair"));
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(match name {
                "" => return Err(format!("`{text}` names no column between its braces")),
                "#line" => Part::Line,
                "#index" => Part::Index,
                _ if name.starts_with('#') => return Err(format!("`{text}`: only {{#line}} and {{#index}} are known beside columns")),
                column => Part::Column(column.to_owned()),
            });
            rest = after;
        }
        if rest.contains('}') {
            return Err(format!("`{text}` has braces that do not pair"));
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// A template that is one column.
    pub(super) fn column(name: &str) -> Self {
        Self(vec![Part::Column(name.to_owned())])
    }

    /// The columns it names.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| if let Part::Column(name) = part { Some(name.as_str()) } else { None })
    }

    /// The text for a row; None if any column it names is empty there, or the whole is.
    pub(super) fn render(&self, row: &Row<'_>) -> Result<Option<String>, Reason> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Line => out.push_str(&row.line.to_string()),
                Part::Index => out.push_str(&row.index.to_string()),
                Part::Column(name) => match row.get(name)? {
                    empty if empty.is_empty() => return Ok(None),
                    text => out.push_str(&text),
                },
            }
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Cells;
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn renders_columns_and_leaves_empty_ones_out() {
        let places = HashMap::from([("No".to_owned(), 0), ("Who".to_owned(), 1)]);
        let fields = ["7".to_owned(), String::new()];
        let row = Row { cells: Cells::Csv(&places, &fields), line: 12, index: 3 };
        for (template, want) in [
            ("inv-{No}", Some("inv-7")),
            ("{No}{No}", Some("77")),
            ("{No}/{#line}/{#index}", Some("7/12/3")),
            ("GBP", Some("GBP")),
            ("{Who}", None),
            ("who-{Who}", None),
            ("", None),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&row).unwrap().as_deref(), want, "{template}");
        }
        for bad in ["{", "}", "a{b", "a}b", "{}", "{a{b}}", "{#row}", "{a}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
