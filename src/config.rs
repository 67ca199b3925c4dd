//! Settings: compiled-in defaults < configuration file < environment < flags. Read once at the start by the command line; no room sees it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::telemetry::LogFormat;

/// Every key with its default and a sentence: the manual.
pub const DEFAULTS: &str = include_str!("defaults.toml");

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

/// Why the settings cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Not TOML.
    #[error("{origin}: {error}")]
    Syntax {
        /// File or variable.
        origin: String,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// No such key.
    #[error("{origin}: unknown key `{key}`; the nearest is `{nearest}`")]
    UnknownKey {
        /// File or variable.
        origin: String,
        /// What was written.
        key: String,
        /// What may be meant.
        nearest: String,
    },
    /// A value of the wrong kind or range.
    #[error("settings: {0}")]
    Value(Box<toml::de::Error>),
    /// Roles that this process cannot have alone.
    #[error("settings: {0}")]
    Roles(String),
    /// A time below what holds together.
    #[error("settings: {key} is at least {}: {why}", humantime::format_duration(*.least))]
    TooShort {
        /// The setting.
        key: &'static str,
        /// What it takes at least.
        least: Duration,
        /// What would come apart.
        why: &'static str,
    },
    /// A stage is to learn where nothing runs it.
    #[error("settings: `learning` names {0:?}, and `roles` does not: nothing would run it")]
    NothingLearns(Stage),
}

/// Longer than identity remembers an event's id (7 days), by the day that a file of the archive covers.
const LEAST_RETENTION: Duration = Duration::from_secs(9 * 86_400);

/// A size in bytes, written `"8MiB"`, `"64KiB"`, `"1GiB"` or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let shift = match unit.trim() {
            "" | "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            "TiB" => Some(40),
            _ => None,
        };
        let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_shl(shift));
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a size such as \"8MiB\"")))
    }
}

/// A span of time, written `"250ms"`, `"10s"`, `"7days"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|e| serde::de::Error::custom(format!("`{text}` is not a span of time: {e}")))
    }
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes events.
    Ingest,
    /// Keeps live objects.
    Sync,
    /// Fills the archive.
    Archive,
    /// Answers readers.
    Web,
}

/// A stage that may learn: run in full, with nothing written at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Router and keeper.
    Sync,
    /// The archiver.
    Archive,
}

impl Stage {
    /// The role that runs it.
    const fn role(self) -> Role {
        match self {
            Self::Sync => Role::Sync,
            Self::Archive => Role::Archive,
        }
    }
}

/// All settings. Each field is a key of `defaults.toml`, which says what it means.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "defaults.toml is the manual; a test holds both together")]
pub struct Config {
    pub data: PathBuf,
    pub listen: String,
    pub roles: Vec<Role>,
    pub learning: Vec<Stage>,
    pub learning_bytes: Bytes,
    pub log: String,
    pub store: String,
    pub archive: String,
    pub public_url: String,
    pub region: String,
    pub region_urls: Vec<String>,
    pub server: Server,
    pub eventlog: Eventlog,
    pub kafka: Kafka,
    pub scylla: Scylla,
    pub ingest: Ingest,
    pub sync: Sync,
    pub live: Live,
    pub archiver: Archiver,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Server {
    pub max_connections: usize,
    pub header_timeout: Span,
    pub drain: Span,
    pub worker_threads: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Eventlog {
    pub max_bytes: Bytes,
    pub segment_bytes: Bytes,
    pub retention: Span,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Kafka {
    pub prefix: String,
    pub replication: u16,
    pub allow_single_replica: bool,
    pub tls: bool,
    pub ca_file: String,
    pub mechanism: String,
    pub username: String,
    pub session_timeout: Span,
    pub instance: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Scylla {
    pub replication: String,
    pub datacenter: String,
    pub sites_keyspace: String,
    pub sites_replication: String,
    pub tls: bool,
    pub ca_file: String,
    pub username: String,
    pub safety_window: Span,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Ingest {
    pub in_flight_bytes: Bytes,
    pub key_events_per_second: u32,
    pub address_requests_per_second: u32,
    pub body_timeout: Span,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Sync {
    pub pending_bytes: Bytes,
    pub cache_bytes: Bytes,
    pub expire_customers: Span,
    pub expire_trails: Span,
    pub expire_pages: Span,
    pub webhooks_to_private: bool,
    pub mirror_timeout: Span,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Live {
    pub max_subscribers: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Archiver {
    pub retention: Span,
    pub batch_events: usize,
    pub batch_wait: Span,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see Config")]
pub struct Telemetry {
    pub filter: String,
    pub format: LogFormat,
}

impl Config {
    /// Adds up defaults, the file (where one is given), variables and flags (`key.path = value`), and checks every key.
    ///
    /// # Errors
    /// See [`Error`]; each names where the value came from.
    pub fn load(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>, flags: Table) -> Result<Self, Error> {
        let all = Self::sum(file, variables, flags)?;
        let config: Self = Value::Table(all).try_into().map_err(|error| Error::Value(Box::new(error)))?;
        if config.archiver.retention.0 < LEAST_RETENTION {
            let why = "what the archive no longer holds would be counted again while senders still repeat it";
            return Err(Error::TooShort { key: "archiver.retention", least: LEAST_RETENTION, why });
        }
        if let Some(stage) = config.learning.iter().find(|stage| !config.roles.contains(&stage.role())) {
            return Err(Error::NothingLearns(*stage));
        }
        Ok(config)
    }

    /// Whether a process that serves can do with these roles: what is kept in its own directory, no other process can work on.
    ///
    /// # Errors
    /// [`Error::Roles`], with what to change.
    pub fn check_roles(&self) -> Result<(), Error> {
        let has = |role| self.roles.contains(&role);
        let refuse = |what: &str| Err(Error::Roles(what.to_owned()));
        if self.roles.is_empty() {
            return refuse("`roles` is empty: name any of ingest, sync, archive, web");
        }
        if self.log == "embedded" {
            // One process at a time has the directory: what roles it lacks would do waits in the log for one that has them.
            return Ok(());
        }
        if self.store == "embedded" && has(Role::Sync) != has(Role::Web) {
            return refuse(
                "store = \"embedded\" is this process's alone: roles sync and web go together; to split them, set store = \"scylla://...\"",
            );
        }
        if self.archive == "embedded" && has(Role::Archive) != has(Role::Web) {
            return refuse(
                "archive = \"embedded\" is this process's alone: roles archive and web go together; to split them, set archive = \"scylla://...\"",
            );
        }
        Ok(())
    }

    /// The settings that differ from their defaults, a line each: key, value, default, and what a change of it takes.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn differences(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>, flags: Table) -> Result<Vec<String>, Error> {
        let (all, defaults) = (Self::sum(file, variables, flags)?, parse("defaults", DEFAULTS)?);
        let changed = keys(&defaults).into_iter().filter_map(|key| {
            let (now, default) = (find(&all, &key)?, find(&defaults, &key)?);
            (now != default).then(|| format!("{key} = {now}    # default {default}; a change takes a {}", takes(&key)))
        });
        Ok(changed.collect())
    }

    fn sum(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>, flags: Table) -> Result<Table, Error> {
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
}

fn parse(origin: &str, text: &str) -> Result<Table, Error> {
    text.parse().map_err(|error| Error::Syntax { origin: origin.to_owned(), error: Box::new(error) })
}

/// The variable that sets a key: `ingest.max_body` is `CONTRAIL_INGEST_MAX_BODY`.
fn variable(key: &str) -> String {
    format!("CONTRAIL_{}", key.replace('.', "_").to_ascii_uppercase())
}

fn keys(table: &Table) -> Vec<String> {
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

fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// What a change of a setting takes, as `defaults.toml` says above it.
fn takes(key: &str) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: Option<&Path>, variables: &[(&str, &str)], flags: &str) -> Result<Config, Error> {
        Config::load(file, variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), flags.parse().unwrap())
    }

    #[test]
    fn later_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("contrail.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\n[eventlog]\nretention = \"2days\"\nmax_bytes = \"2GiB\"\n").unwrap();
        let config = load(
            Some(&file),
            &[("CONTRAIL_LISTEN", "127.0.0.1:2"), ("CONTRAIL_EVENTLOG_MAX_BYTES", "3GiB"), ("PATH", "/")],
            "listen = \"127.0.0.1:3\"",
        )
        .unwrap();
        assert_eq!(config.listen, "127.0.0.1:3");
        assert_eq!(config.eventlog.retention.0, Duration::from_secs(2 * 86_400));
        assert_eq!(config.eventlog.max_bytes, Bytes(3 << 30));
        assert_eq!(config.roles.len(), 4, "untouched keys keep their default");
    }

    #[test]
    fn an_archive_that_forgets_before_identity_is_refused() {
        let told = |retention| load(None, &[("CONTRAIL_ARCHIVER_RETENTION", retention)], "").map(|config| config.archiver.retention.0);
        assert_eq!(told("9days").unwrap(), LEAST_RETENTION);
        assert_eq!(
            told("8days").unwrap_err().to_string(),
            "settings: archiver.retention is at least 9days: what the archive no longer holds would be counted again while senders still repeat it"
        );
    }

    #[test]
    fn only_what_runs_can_learn() {
        let told = |flags| load(None, &[], flags).map(|config| config.learning).map_err(|error| error.to_string());
        assert_eq!(told("learning = [\"archive\"]\nroles = [\"archive\"]"), Ok(vec![Stage::Archive]));
        let refused = told("learning = [\"sync\"]\nroles = [\"archive\"]").unwrap_err();
        assert_eq!(refused, "settings: `learning` names Sync, and `roles` does not: nothing would run it");
        assert!(told("learning = [\"ingest\"]").unwrap_err().contains("unknown variant `ingest`"));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let told = |result: Result<Config, Error>| result.unwrap_err().to_string();
        assert_eq!(
            told(load(None, &[("CONTRAIL_LISTENN", "x")], "")),
            "environment: unknown key `CONTRAIL_LISTENN`; the nearest is `CONTRAIL_LISTEN`"
        );
        assert_eq!(
            told(load(None, &[], "[eventlog]\nretension = \"1day\"")),
            "flags: unknown key `eventlog.retension`; the nearest is `eventlog.retention`"
        );
        assert!(told(load(None, &[], "[eventlog]\nmax_bytes = \"lots\"")).contains("`lots` is not a size"));
        assert!(told(load(None, &[], "[server]\ndrain = \"soon\"")).contains("`soon` is not a span of time"));
    }

    #[test]
    fn roles_that_share_a_directory_stay_together() {
        let told = |flags: &str| load(None, &[], flags).unwrap().check_roles().map_err(|error| error.to_string());
        let kafka = "log = \"kafka://k:9092\"\n";
        let scylla = "log = \"kafka://k:9092\"\nstore = \"scylla://s:9042/k\"\narchive = \"scylla://s:9042/k\"\n";
        for (flags, wrong) in [
            (String::new(), None),
            ("roles = []".to_owned(), Some("`roles` is empty")),
            ("roles = [\"ingest\"]".to_owned(), None),
            (format!("{kafka}roles = [\"ingest\"]"), None),
            (format!("{kafka}roles = [\"sync\"]"), Some("store = \"embedded\"")),
            (format!("{kafka}roles = [\"sync\", \"web\"]"), Some("archive = \"embedded\"")),
            (format!("{kafka}roles = [\"archive\", \"sync\", \"web\"]"), None),
            (format!("{scylla}roles = [\"sync\"]"), None),
            (format!("{scylla}roles = [\"web\"]"), None),
        ] {
            let checked = told(&flags);
            match wrong {
                None => assert_eq!(checked, Ok(()), "{flags}"),
                Some(wrong) => assert!(checked.as_ref().is_err_and(|told| told.contains(wrong)), "{flags}: {checked:?}"),
            }
        }
    }

    #[test]
    fn differences_say_what_a_change_takes() {
        let flags = "listen = \"127.0.0.1:9\"\nlog = \"x\"\n[live]\nmax_subscribers = 3".parse().unwrap();
        let told = Config::differences(None, [], flags).unwrap();
        assert_eq!(
            told,
            [
                "listen = \"127.0.0.1:9\"    # default \"127.0.0.1:8080\"; a change takes a restart",
                "live.max_subscribers = 3    # default 10000; a change takes a restart",
                "log = \"x\"    # default \"embedded\"; a change takes a migration",
            ]
        );
    }

    #[test]
    fn every_default_has_its_sentence() {
        let mut sentence = false;
        for line in DEFAULTS.lines() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(sentence, "no comment above: {line}");
            }
            sentence = line.starts_with("# [reload]") || line.starts_with("# [restart]") || line.starts_with("# [migration]");
        }
    }
}
