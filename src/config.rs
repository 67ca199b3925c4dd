//! Settings: compiled-in defaults < configuration file < environment < flags. Read once at the start by the command line; no room sees it.

mod layers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::telemetry::LogFormat;

/// Every key with its default and a sentence: the manual.
pub const DEFAULTS: &str = include_str!("defaults.toml");

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
        let all = layers::sum(file, variables, flags)?;
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
        let (all, defaults) = (layers::sum(file, variables, flags)?, layers::parse("defaults", DEFAULTS)?);
        let changed = layers::keys(&defaults).into_iter().filter_map(|key| {
            let (now, default) = (layers::find(&all, &key)?, layers::find(&defaults, &key)?);
            (now != default).then(|| format!("{key} = {now}    # default {default}; a change takes a {}", layers::takes(&key)))
        });
        Ok(changed.collect())
    }
}

#[cfg(test)]
mod tests;
