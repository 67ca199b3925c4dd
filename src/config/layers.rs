//! Where settings come from, as tables of TOML: defaults, the configuration file, the environment and flags, added up by key. Used by [`super::Config`], which
//! gives the sum its types; knows no key but those of `defaults.toml`, nor what any means.

use std::path::Path;

use toml::{Table, Value};

use super::{DEFAULTS, Error};

/// Environment variables that are not settings: secrets and the like, read where they are used; and those that tell the tests something.
const NOT_SETTINGS: [&str; 6] = [
    "CONTRAIL_CONFIG",
    "CONTRAIL_BOOTSTRAP_INGEST_KEY",
    "CONTRAIL_BOOTSTRAP_READ_TOKEN",
    "CONTRAIL_SECRET_KEY",
    "CONTRAIL_KAFKA_PASSWORD",
    "CONTRAIL_SCYLLA_PASSWORD",
];
const OF_TESTS: &str = "CONTRAIL_TEST_";

/// Defaults, the file, variables and flags, the later over the earlier, each key checked to be known.
///
/// # Errors
/// [`Error::File`], [`Error::Syntax`], [`Error::UnknownKey`].
pub(super) fn sum(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>, flags: Table) -> Result<Table, Error> {
    let mut all = parse("defaults", DEFAULTS)?;
    let known = keys(&all);
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| Error::File { path: path.to_owned(), error })?;
        let origin = path.display().to_string();
        let table = parse(&origin, &text)?;
        check(&origin, &keys(&table), &known)?;
        merge(&mut all, table);
    }
    for (name, text) in variables {
        if !name.starts_with("CONTRAIL_") || name.starts_with(OF_TESTS) || NOT_SETTINGS.contains(&name.trim_end_matches("_FILE")) {
            continue;
        }
        let key = known.iter().find(|key| variable(key) == name).ok_or_else(|| Error::UnknownKey {
            origin: "environment".into(),
            key: name.clone(),
            nearest: nearest(&name, known.iter().map(|key| variable(key))),
        })?;
        // A value that is TOML (a number, a list, true) is that; anything else is a string.
        let value = text.parse::<Value>().unwrap_or_else(|_| Value::String(text.clone()));
        set(&mut all, key, value);
    }
    check("flags", &keys(&flags), &known)?;
    merge(&mut all, flags);
    Ok(all)
}

/// Reads TOML; `origin` is named where it is none.
pub(super) fn parse(origin: &str, text: &str) -> Result<Table, Error> {
    text.parse().map_err(|error| Error::Syntax { origin: origin.to_owned(), error: Box::new(error) })
}

/// The variable that sets a key: `ingest.max_body` is `CONTRAIL_INGEST_MAX_BODY`.
fn variable(key: &str) -> String {
    format!("CONTRAIL_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Every key of a table, its sections' by `section.key`.
pub(super) fn keys(table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => found.extend(keys(inner).into_iter().map(|rest| format!("{name}.{rest}"))),
            _ => found.push(name.clone()),
        }
    }
    found
}

fn check(origin: &str, written: &[String], known: &[String]) -> Result<(), Error> {
    match written.iter().find(|key| !known.contains(key)) {
        Some(key) => Err(Error::UnknownKey { origin: origin.to_owned(), key: key.clone(), nearest: nearest(key, known.iter().cloned()) }),
        None => Ok(()),
    }
}

fn nearest(key: &str, known: impl Iterator<Item = String>) -> String {
    known.min_by_key(|candidate| strsim::levenshtein(key, candidate)).unwrap_or_default()
}

fn merge(into: &mut Table, from: Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}

/// The value of a key of [`keys`].
pub(super) fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// What a change of a setting takes, as `defaults.toml` says above it.
pub(super) fn takes(key: &str) -> &'static str {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let (mut within, mut said) = ("", "restart");
    for line in DEFAULTS.lines() {
        if let Some(header) = line.strip_prefix('[') {
            within = header.trim_end_matches(']');
        } else if let Some((class, _)) = line.strip_prefix("# [").and_then(|rest| rest.split_once(']')) {
            said = class;
        } else if within == section && line.split(" = ").next() == Some(name) {
            return said;
        }
    }
    said
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(section) {
                set(inner, rest, value);
            }
        }
        None => {
            table.insert(key.to_owned(), value);
        }
    }
}
