//! The loop over a file: rows in, events and bad lines out, one at a time. Called by `contrail import` on a thread of its own.
//! Must never hold the file.

use std::collections::{HashMap, VecDeque};
use std::io::BufRead;

use super::build::Draft;
use super::csv::next_record;
use super::group::{Groups, Key};
use super::lines::{Line, Lines};
use super::mapping::{Format, Mapping, Rule, nearest};
use super::row::{Cells, Object, Row, elements, object};
use super::{BadLine, Fault, MappedEvent, Reason, StartError, Tally};

/// The events of a file, as an iterator.
pub struct Reading<'m, R> {
    mapping: &'m Mapping,
    lines: Lines<R>,
    /// CSV: the place of each column.
    columns: HashMap<String, usize>,
    groups: Groups,
    ready: VecDeque<Result<MappedEvent, Fault>>,
    ended: bool,
    tally: Tally,
}

/// Begins reading. A CSV file's header is read and checked against the columns the mapping names.
pub fn read<R: BufRead>(mapping: &Mapping, reader: R) -> Result<Reading<'_, R>, StartError> {
    let mut lines = Lines::new(reader);
    let columns = match mapping.format {
        Format::Ndjson => HashMap::new(),
        Format::Csv(delimiter) => match next_record(&mut lines, delimiter) {
            None => HashMap::new(),
            Some(header) => header_columns(mapping, header?.fields)?,
        },
    };
    let (groups, ready) = (Groups::default(), VecDeque::new());
    Ok(Reading { mapping, lines, columns, groups, ready, ended: false, tally: Tally::default() })
}

fn header_columns(mapping: &Mapping, header: Vec<String>) -> Result<HashMap<String, usize>, StartError> {
    let mut columns = HashMap::new();
    for (at, name) in header.into_iter().enumerate() {
        if columns.insert(name.clone(), at).is_some() {
            return Err(StartError::TwoColumns(name));
        }
    }
    if let Some(column) = mapping.columns().find(|column| !columns.contains_key(*column)) {
        let nearest = nearest(column, columns.keys().map(String::as_str)).to_owned();
        return Err(StartError::NoColumn { column: column.to_owned(), nearest });
    }
    Ok(columns)
}

impl<R: BufRead> Iterator for Reading<'_, R> {
    type Item = Result<MappedEvent, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.ended {
                return None;
            }
            self.step();
        }
    }
}

impl<R: BufRead> Reading<'_, R> {
    /// What became of the rows read so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Reads one record or line.
    fn step(&mut self) {
        let read = match self.mapping.format {
            Format::Csv(delimiter) => self.csv_record(delimiter),
            Format::Ndjson => self.json_line(),
        };
        match read {
            Some(Ok(())) => {}
            Some(Err(Fault::Line(bad))) => self.bad(bad),
            Some(Err(Fault::Read(error))) => {
                self.ended = true;
                self.tally.dropped_groups = self.groups.end_all().len() as u64;
                self.ready.push_back(Err(Fault::Read(error)));
            }
            None => {
                self.ended = true;
                self.groups.end_all().into_iter().for_each(|draft| self.finish(draft));
            }
        }
    }

    fn csv_record(&mut self, delimiter: u8) -> Option<Result<(), Fault>> {
        let record = match next_record(&mut self.lines, delimiter)? {
            Ok(record) => record,
            Err(fault) => return Some(Err(fault)),
        };
        if record.fields.len() != self.columns.len() {
            let reason = Reason::Columns { found: record.fields.len(), expected: self.columns.len() };
            return Some(Err(BadLine { line: record.line, reason }.into()));
        }
        let columns = std::mem::take(&mut self.columns);
        self.row(&Row { cells: Cells::Csv(&columns, &record.fields), line: record.line, index: 0 });
        self.columns = columns;
        Some(Ok(()))
    }

    fn json_line(&mut self) -> Option<Result<(), Fault>> {
        let (line, bytes) = match self.lines.next() {
            Ok(None) => return None,
            Ok(Some(Line::Text { number, bytes })) => (number, bytes),
            Ok(Some(Line::TooLong { number })) => return Some(Err(BadLine { line: number, reason: Reason::TooLong }.into())),
            Err(error) => return Some(Err(Fault::Read(error))),
        };
        if bytes.trim_ascii().is_empty() {
            return Some(Ok(()));
        }
        Some(self.json_rows(line, &bytes).map_err(|reason| BadLine { line, reason }.into()))
    }

    fn json_rows(&mut self, line: u64, bytes: &[u8]) -> Result<(), Reason> {
        let whole: Object<'_> = object(std::str::from_utf8(bytes).map_err(|_| Reason::NotUtf8)?)?;
        let Some(column) = &self.mapping.each else {
            self.row(&Row { cells: Cells::Json(None, &whole), line, index: 0 });
            return Ok(());
        };
        for (index, element) in elements(&whole, column)?.into_iter().enumerate() {
            match object(element.get()) {
                Ok(element) => self.row(&Row { cells: Cells::Json(Some(&element), &whole), line, index }),
                Err(_) => self.bad(BadLine { line, reason: Reason::NotAnArray { column: column.clone() } }),
            }
        }
        Ok(())
    }

    /// Takes one row.
    fn row(&mut self, row: &Row<'_>) {
        self.tally.rows += 1;
        self.groups.tick(self.mapping.group_window).into_iter().for_each(|draft| self.finish(draft));
        if let Err(reason) = self.take(row) {
            self.bad(BadLine { line: row.line, reason });
        }
    }

    fn take(&mut self, row: &Row<'_>) -> Result<(), Reason> {
        let mapping = self.mapping;
        for condition in &mapping.skip {
            if condition.holds(row)? {
                self.tally.skipped += 1;
                return Ok(());
            }
        }
        let Some((number, rule)) = matching(mapping, row)? else {
            self.tally.unmatched += 1;
            return Ok(());
        };
        for condition in &rule.skip {
            if condition.holds(row)? {
                self.tally.skipped += 1;
                return Ok(());
            }
        }
        let item = rule.items.as_ref().map(|items| items.item(row)).transpose()?;
        if rule.group_by.is_empty() {
            let mut draft = Draft::new(mapping, rule, row)?;
            item.into_iter().for_each(|item| draft.add(item));
            self.finish(draft);
            return Ok(());
        }
        let key = key_of(number, rule, row)?;
        if !self.groups.is_open(&key) {
            if self.groups.has_ended(&key) {
                return Err(Reason::GroupEnded);
            }
            self.groups.open(key.clone(), Draft::new(mapping, rule, row)?);
        }
        item.into_iter().for_each(|item| self.groups.add(&key, item));
        Ok(())
    }

    fn finish(&mut self, draft: Draft) {
        match draft.finish() {
            Ok(event) => {
                self.tally.events += 1;
                self.ready.push_back(Ok(event));
            }
            Err(bad) => self.bad(bad),
        }
    }

    fn bad(&mut self, bad: BadLine) {
        self.tally.bad += 1;
        self.ready.push_back(Err(bad.into()));
    }
}

/// The first rule that takes a row, and its number.
fn matching<'m>(mapping: &'m Mapping, row: &Row<'_>) -> Result<Option<(usize, &'m Rule)>, Reason> {
    for (number, rule) in mapping.rules.iter().enumerate() {
        let mut all = true;
        for (column, pattern) in &rule.when {
            all = all && pattern.is_match(&row.get(column)?);
        }
        if all {
            return Ok(Some((number, rule)));
        }
    }
    Ok(None)
}

fn key_of(number: usize, rule: &Rule, row: &Row<'_>) -> Result<Key, Reason> {
    let part = |template: &super::template::Template| template.render(row)?.ok_or_else(|| Reason::Empty { field: "group_by".into() });
    Ok((number, rule.group_by.iter().map(part).collect::<Result<_, _>>()?))
}
