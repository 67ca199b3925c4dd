//! One row as the mapping sees it: columns by name, each a text. Called by templates and conditions. JSON numbers keep the
//! digits they were written with. Pure.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::Reason;

/// The members of a JSON object, unread.
pub(super) type Object<'a> = HashMap<String, &'a RawValue>;

/// One row of a file.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) cells: Cells<'a>,
    /// The line it begins on, counted from 1: `{#line}`.
    pub(super) line: u64,
    /// Its place in the array that `each` names, counted from 0: `{#index}`.
    pub(super) index: usize,
}

/// Where a row's columns are.
#[derive(Clone, Copy)]
pub(super) enum Cells<'a> {
    /// A CSV record: places by column name, and the fields.
    Csv(&'a HashMap<String, usize>, &'a [String]),
    /// An NDJSON line: the element of the array that `each` names, then the line itself, which it falls back to.
    Json(Option<&'a Object<'a>>, &'a Object<'a>),
}

impl<'a> Row<'a> {
    /// A column's text; empty where the row has none. NDJSON: `a.b` is member `a.b`, else member `b` of object `a`; true,
    /// false and numbers as written, null as empty.
    pub(super) fn get(&self, column: &str) -> Result<Cow<'a, str>, Reason> {
        let raw = match self.cells {
            Cells::Csv(places, fields) => {
                return Ok(Cow::Borrowed(places.get(column).and_then(|at| fields.get(*at)).map_or("", String::as_str)));
            }
            Cells::Json(element, line) => match element.map(|of| member(of, column)) {
                Some(Ok(Some(raw))) => Some(raw),
                Some(Err(reason)) => return Err(reason),
                Some(Ok(None)) | None => member(line, column)?,
            },
        };
        raw.map_or(Ok(Cow::Borrowed("")), |raw| scalar(raw, column))
    }
}

/// The members of an object.
pub(super) fn object(text: &str) -> Result<Object<'_>, Reason> {
    serde_json::from_str(text).map_err(|error| if error.is_data() { Reason::NotAnObject } else { Reason::NotJson { column: error.column() } })
}

/// The objects of the array at `column` of a line; none where there is no such member.
pub(super) fn elements<'a>(line: &Object<'a>, column: &str) -> Result<Vec<&'a RawValue>, Reason> {
    match member(line, column)? {
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_| Reason::NotAnArray { column: column.into() }),
        None => Ok(Vec::new()),
    }
}

fn member<'a>(of: &Object<'a>, path: &str) -> Result<Option<&'a RawValue>, Reason> {
    if let Some(raw) = of.get(path) {
        return Ok(Some(*raw));
    }
    let Some((first, rest)) = path.split_once('.') else { return Ok(None) };
    match of.get(first) {
        Some(raw) if raw.get().starts_with('{') => member(&object(raw.get())?, rest),
        _ => Ok(None),
    }
}

fn scalar<'a>(raw: &'a RawValue, column: &str) -> Result<Cow<'a, str>, Reason> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(text).map(Cow::Owned).map_err(|_| Reason::NotUtf8),
        Some(b'{' | b'[') => Err(Reason::NotOneValue { column: column.into() }),
        _ if text == "null" => Ok(Cow::Borrowed("")),
        _ => Ok(Cow::Borrowed(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, column: &str) -> Result<String, Reason> {
        let line = object(text)?;
        Row { cells: Cells::Json(None, &line), line: 1, index: 0 }.get(column).map(Cow::into_owned)
    }

    #[test]
    fn json_values_keep_their_digits() {
        let text = r#"{"n":0.10000000000000000001,"big":123456789012345678901234567890,"t":true,"z":null,"s":"\u06cc\"x","a":{"b":{"c":"deep"},"x.y":1},"a.b":"flat","l":[1]}"#;
        for (column, want) in [
            ("n", "0.10000000000000000001"),
            ("big", "123456789012345678901234567890"),
            ("t", "true"),
            ("z", ""),
            ("missing", ""),
            ("s", "ی\"x"),
            ("a.b", "flat"),
            ("a.b.c", "deep"),
            ("a.x.y", "1"),
            ("s.t", ""),
        ] {
            assert_eq!(get(text, column).as_deref(), Ok(want), "{column}");
        }
        assert_eq!(get(text, "l"), Err(Reason::NotOneValue { column: "l".into() }));
        assert_eq!(get(text, "a"), Err(Reason::NotOneValue { column: "a".into() }));
        assert_eq!(get(r#"{"s":"\ud800"}"#, "s"), Err(Reason::NotUtf8));
        assert_eq!(get("[1]", "s"), Err(Reason::NotAnObject));
        assert!(matches!(get(r#"{"s":1"#, "s"), Err(Reason::NotJson { .. })));
    }
}
