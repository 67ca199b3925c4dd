//! Import: a file of a shop's past and a mapping file in, canonical events out, in the dialect of `POST /v1/events`. Called by
//! `contrail import`. Reads one row at a time and holds open groups within fixed bounds; it never posts, never touches a
//! log or an archive, and gives the same events for the same bytes every time.
//!
//! The way of a row: [`lines`](lines::MAX_LINE_BYTES) numbers it, `csv` or `row` splits it, `condition` may skip it, the first
//! rule of the [`Mapping`] whose `when` matches takes it, `build` fills the rule's templates, `group` gathers the rows of one
//! event (an invoice's lines) until it ends.

mod build;
mod condition;
mod csv;
mod decimal;
mod group;
mod lines;
mod mapping;
mod reading;
#[cfg(test)]
mod recount;
mod row;
mod target;
mod template;
#[cfg(test)]
mod tests;

use std::io;

pub use lines::{MAX_LINE_BYTES, decompressed};
pub use mapping::{Mapping, MappingError};
pub use reading::{Reading, read};

/// Largest event made, in bytes of JSON: what ingest takes.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// An event ready to be posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedEvent {
    /// The line of its first row, counted from 1.
    pub line: u64,
    /// Built from the row's columns, so that importing again names the same event.
    pub event_id: String,
    /// Its type.
    pub kind: String,
    /// The event itself: one JSON object.
    pub json: String,
}

/// A line that gave nothing, and why. Never holds the line's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// Counted from 1; of a record over several lines its first.
    pub line: u64,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What can be wrong with a line. Names columns and fields, never their values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Reason {
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("not UTF-8")]
    NotUtf8,
    #[error("a quote is opened and not closed")]
    OpenQuote,
    #[error("text follows a closing quote")]
    TextAfterQuote,
    #[error("{found} columns where the header has {expected}")]
    Columns { found: usize, expected: usize },
    #[error("not JSON (column {column})")]
    NotJson { column: usize },
    #[error("not a JSON object")]
    NotAnObject,
    #[error("`{column}` is an object or an array where one value is needed")]
    NotOneValue { column: String },
    #[error("`{column}` is not an array of objects")]
    NotAnArray { column: String },
    #[error("`{field}` is not a decimal such as 12.99")]
    NotADecimal { field: String },
    #[error("`{field}` is not a whole number")]
    NotAnInteger { field: String },
    #[error("`{field}` is not a time in the mapping's format")]
    NotATime { field: String },
    #[error("`{field}` is empty and is required")]
    Empty { field: String },
    #[error("`{field}` has no entry in the mapping's table")]
    NoEntry { field: String },
    #[error("the quantity is below 1")]
    Quantity,
    #[error("the event id is longer than 255 bytes")]
    LongEventId,
    #[error("the event is larger than {MAX_EVENT_BYTES} bytes")]
    LargeEvent,
    #[error("the group it belongs to has ended; `group_window` is too small for this file")]
    GroupEnded,
}

/// Why [`Reading`] gave no event.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// One line is bad; the rest goes on.
    #[error(transparent)]
    Line(#[from] BadLine),
    /// The file cannot be read further (a truncated archive, a failing disk). Nothing follows; groups not yet ended are dropped,
    /// since their remaining lines are unknown.
    #[error("the file cannot be read further: {0}")]
    Read(io::Error),
}

/// Why reading cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file's first line is no CSV header.
    #[error("the CSV header cannot be read: {0}")]
    Header(#[from] Fault),
    /// The mapping names a column that the header does not.
    #[error("the file has no column `{column}`; the nearest is `{nearest}`")]
    NoColumn {
        /// As the mapping names it.
        column: String,
        /// A column of the file.
        nearest: String,
    },
    /// A column's name stands in the header twice.
    #[error("the file's header names the column `{0}` twice")]
    TwoColumns(String),
}

/// How many rows came and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows read: CSV records, NDJSON lines or, with `each`, elements.
    pub rows: u64,
    /// Passed over by a `skip` condition.
    pub skipped: u64,
    /// Taken by no `[[event]]`.
    pub unmatched: u64,
    /// Bad lines.
    pub bad: u64,
    /// Events made.
    pub events: u64,
    /// Groups dropped since the file could not be read to its end.
    pub dropped_groups: u64,
}
