//! CSV records (RFC 4180) out of numbered lines. Called by the mapping engine. Unlike a general reader it is strict about
//! quotes and bounded: an unclosed quote costs its own line, not the rest of the file. Must never hold more than one record.

use std::io::BufRead;

use super::lines::{Line, Lines, MAX_LINE_BYTES};
use super::{BadLine, Fault, Reason};

/// How many lines one record with line breaks in quotes may span.
const MAX_RECORD_LINES: usize = 100;

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The line it begins on, counted from 1.
    pub(super) line: u64,
    /// Its fields, unquoted.
    pub(super) fields: Vec<String>,
}

/// Reads the next record; None at the end. Empty lines are passed over.
pub(super) fn next_record<R: BufRead>(lines: &mut Lines<R>, delimiter: u8) -> Option<Result<Record, Fault>> {
    let (line, mut bytes) = loop {
        match lines.next() {
            Ok(None) => return None,
            Ok(Some(Line::TooLong { number })) => return Some(Err(BadLine { line: number, reason: Reason::TooLong }.into())),
            Ok(Some(Line::Text { bytes, .. })) if bytes.is_empty() || bytes == b"\r" => {}
            Ok(Some(Line::Text { number, bytes })) => break (number, bytes),
            Err(error) => return Some(Err(Fault::Read(error))),
        }
    };
    let mut further: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        let broken = match parse(&bytes, delimiter) {
            Ok(Parsed::Whole(fields)) => return Some(Ok(Record { line, fields })),
            Ok(Parsed::OpenQuote) => Reason::OpenQuote,
            Err(reason) => reason,
        };
        let room = further.len() < MAX_RECORD_LINES && bytes.len() < MAX_LINE_BYTES;
        let next = if matches!(broken, Reason::OpenQuote) && room { lines.next() } else { Ok(None) };
        match next {
            Ok(Some(Line::Text { number, bytes: more })) => {
                bytes.push(b'\n');
                bytes.extend_from_slice(&more);
                further.push((number, more));
            }
            Err(error) => return Some(Err(Fault::Read(error))),
            // What followed was not part of this record: it is read again as lines of its own.
            Ok(None | Some(Line::TooLong { .. })) => {
                lines.push_back(further);
                return Some(Err(BadLine { line, reason: broken }.into()));
            }
        }
    }
}

/// What a run of bytes holds.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Whole(Vec<String>),
    OpenQuote,
}

/// Splits one record. A quote inside a field that does not begin with one stands for itself.
fn parse(bytes: &[u8], delimiter: u8) -> Result<Parsed, Reason> {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let mut fields = Vec::new();
    let mut rest = bytes;
    loop {
        let (field, after) = match rest.strip_prefix(b"\"") {
            Some(quoted) => match unquote(quoted) {
                Some(parts) => parts,
                None => return Ok(Parsed::OpenQuote),
            },
            None => {
                let (field, after) = rest.split_at(rest.iter().position(|b| *b == delimiter).unwrap_or(rest.len()));
                (field.to_vec(), after)
            }
        };
        fields.push(String::from_utf8(field).map_err(|_| Reason::NotUtf8)?);
        rest = match after.split_first() {
            None => return Ok(Parsed::Whole(fields)),
            Some((byte, after)) if *byte == delimiter => after,
            Some(_) => return Err(Reason::TextAfterQuote),
        };
    }
}

/// The text up to the closing quote, `""` as one quote, and what follows it; None if it does not close.
fn unquote(quoted: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut field = Vec::new();
    let mut rest = quoted;
    loop {
        let (part, from_quote) = rest.split_at(rest.iter().position(|b| *b == b'"')?);
        field.extend_from_slice(part);
        match from_quote {
            [b'"', b'"', after @ ..] => {
                field.push(b'"');
                rest = after;
            }
            [b'"', after @ ..] => return Some((field, after)),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Vec<Result<Vec<String>, (u64, Reason)>> {
        let mut lines = Lines::new(bytes);
        std::iter::from_fn(|| next_record(&mut lines, b','))
            .map(|r| match r {
                Ok(record) => Ok(record.fields),
                Err(Fault::Line(bad)) => Err((bad.line, bad.reason)),
                Err(Fault::Read(error)) => panic!("{error}"),
            })
            .collect()
    }

    fn fields(of: &[&str]) -> Result<Vec<String>, (u64, Reason)> {
        Ok(of.iter().map(|f| (*f).to_owned()).collect())
    }

    #[test]
    fn quotes_line_breaks_and_empty_fields() {
        assert_eq!(
            all(b"a,b\r\n\r\n\"x, \"\"y\"\"\",\n\"two\r\nlines\",7\" single\n,\n\"\"\n"),
            [fields(&["a", "b"]), fields(&["x, \"y\"", ""]), fields(&["two\r\nlines", "7\" single"]), fields(&["", ""]), fields(&[""])]
        );
    }

    #[test]
    fn a_broken_line_costs_itself_alone() {
        assert_eq!(all(b"1,\"open\n2,b\n3,c\n"), [Err((1, Reason::OpenQuote)), fields(&["2", "b"]), fields(&["3", "c"])]);
        assert_eq!(all(b"1,\"open\n2,\"b\"\n3,c\n"), [Err((1, Reason::TextAfterQuote)), fields(&["2", "b"]), fields(&["3", "c"])]);
        assert_eq!(all(b"1,\"a\"b\n2,b\n"), [Err((1, Reason::TextAfterQuote)), fields(&["2", "b"])]);
        assert_eq!(all(b"1,\xff\n2,b\n"), [Err((1, Reason::NotUtf8)), fields(&["2", "b"])]);
        let many = format!("\"{}\nend\n", "x\n".repeat(MAX_RECORD_LINES + 50));
        let found = all(many.as_bytes());
        assert_eq!((found.len(), &found[0]), (MAX_RECORD_LINES + 51, &Err((1, Reason::OpenQuote))));
    }

    proptest! {
        #[test]
        fn reads_what_the_csv_crate_writes(rows in prop::collection::vec(prop::collection::vec("[ -~\n\"é]{0,12}", 2..4), 0..12)) {
            let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
            rows.iter().for_each(|row| writer.write_record(row).unwrap());
            let found: Vec<_> = all(&writer.into_inner().unwrap()).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(found, rows);
        }
    }
}
