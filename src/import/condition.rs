//! `skip` conditions: a column, an operator, a value. Called by the mapping engine for every row. Pure.

use std::cmp::Ordering;

use regex::Regex;

use super::Reason;
use super::decimal::Decimal;
use super::row::Row;

/// A condition that a row meets or not.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    column: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    /// The text, byte by byte.
    Text { equal: bool, value: String },
    /// The decimal value; `accepts` are the orders of column to value that meet it.
    Number { accepts: &'static [Ordering], value: String },
    /// Found anywhere in the text.
    Matches(Regex),
}

const OPERATORS: [&str; 7] = ["=", "!=", "<", "<=", ">", ">=", "matches"];

impl Condition {
    /// Checks operator and value.
    pub(super) fn new(column: String, op: &str, value: String) -> Result<Self, String> {
        let accepts: &'static [Ordering] = match op {
            "=" | "!=" => return Ok(Self { column, test: Test::Text { equal: op == "=", value } }),
            "matches" => {
                let pattern = Regex::new(&value).map_err(|_| "`matches` expects a regular expression".to_owned())?;
                return Ok(Self { column, test: Test::Matches(pattern) });
            }
            "<" => &[Ordering::Less],
            "<=" => &[Ordering::Less, Ordering::Equal],
            ">" => &[Ordering::Greater],
            ">=" => &[Ordering::Greater, Ordering::Equal],
            other => return Err(format!("unknown operator `{other}`; known are {}", OPERATORS.map(|op| format!("`{op}`")).join(" "))),
        };
        match Decimal::parse(&value) {
            Some(_) => Ok(Self { column, test: Test::Number { accepts, value } }),
            None => Err(format!("`{op}` compares numbers; the value is not one")),
        }
    }

    /// The column it looks at.
    pub(super) fn column(&self) -> &str {
        &self.column
    }

    /// Whether a row meets it. A column that should be a number and is none makes the row a bad one.
    pub(super) fn holds(&self, row: &Row<'_>) -> Result<bool, Reason> {
        let text = row.get(&self.column)?;
        match &self.test {
            Test::Text { equal, value } => Ok((text == value.as_str()) == *equal),
            Test::Matches(pattern) => Ok(pattern.is_match(&text)),
            Test::Number { accepts, value } => match (Decimal::parse(&text), Decimal::parse(value)) {
                (Some(found), Some(bound)) => Ok(accepts.contains(&found.compare(&bound))),
                _ => Err(Reason::NotADecimal { field: self.column.as_str().into() }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Cells;
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_operator() {
        let places = HashMap::from([("Q".to_owned(), 0)]);
        let holds = |text: &str, op: &str, value: &str| {
            let fields = [text.to_owned()];
            Condition::new("Q".into(), op, value.into()).unwrap().holds(&Row { cells: Cells::Csv(&places, &fields), line: 1, index: 0 })
        };
        for (text, op, value, want) in [
            ("-1", "<=", "0", true),
            ("0.0", "<=", "0", true),
            ("0.001", "<=", "0", false),
            ("10", "<", "9", false),
            ("10", ">", "9", true),
            ("9", ">=", "9", true),
            ("09", "=", "9", false),
            ("9", "=", "9", true),
            ("", "=", "", true),
            ("x", "!=", "", true),
            ("A563", "matches", "^A", true),
            ("536A", "matches", "^A", false),
        ] {
            assert_eq!(holds(text, op, value), Ok(want), "{text} {op} {value}");
        }
        assert_eq!(holds("many", "<", "1"), Err(Reason::NotADecimal { field: "Q".into() }));
        assert_eq!(holds("", "<", "1"), Err(Reason::NotADecimal { field: "Q".into() }));
        for (op, value) in [("<>", "1"), ("<", "x"), ("matches", "(")] {
            assert!(Condition::new("Q".into(), op, value.into()).is_err(), "{op} {value}");
        }
    }
}
