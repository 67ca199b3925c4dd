//! Which backends the settings name: opens log, feed, object store and archive, migrates what has tables, reads the secrets of all. Called by the composition root
//! alone; the one place that knows both settings and backends.

use std::sync::Arc;
use std::time::Duration;

use super::{At, Error};
use crate::archive::{self, Archive};
use crate::config::Config;
#[cfg(feature = "kafka")]
use crate::config::Role;
#[cfg(feature = "scylla")]
use crate::cql;
use crate::event::Clock;
use crate::eventlog::{self, EventLog};
use crate::sync::embedded::EmbeddedStore;
#[cfg(feature = "kafka")]
use crate::sync::feed::kafka::KafkaFeed;
use crate::sync::{Feed, ObjectStore, feed};

/// Opens the log that the settings name.
pub(super) async fn log(config: &Config, clock: Clock) -> Result<Arc<dyn EventLog>, Error> {
    let embedded = eventlog::embedded::Settings {
        max_bytes: config.eventlog.max_bytes.0,
        segment_bytes: config.eventlog.segment_bytes.0,
        retention: config.eventlog.retention.0,
        ..eventlog::embedded::Settings::default()
    };
    let settings = eventlog::Settings {
        embedded,
        #[cfg(feature = "kafka")]
        kafka: kafka_settings(config)?,
    };
    eventlog::open(&config.log, &config.data.join("log"), settings, clock).await.at("opening the log")
}

#[cfg(feature = "kafka")]
fn kafka_settings(config: &Config) -> Result<eventlog::kafka::Settings, Error> {
    let kafka = &config.kafka;
    let security = eventlog::kafka::Security {
        tls: kafka.tls,
        ca_file: kafka.ca_file.clone(),
        mechanism: kafka.mechanism.clone(),
        username: kafka.username.clone(),
        password: secret("CONTRAIL_KAFKA_PASSWORD")?.unwrap_or_default(),
    };
    Ok(eventlog::kafka::Settings {
        prefix: kafka.prefix.clone(),
        replication: kafka.replication,
        allow_single_replica: kafka.allow_single_replica,
        security,
        session_timeout: kafka.session_timeout.0,
        instance: kafka.instance.clone(),
        retention: config.eventlog.retention.0,
    })
}

/// Opens the object store that the settings name.
pub(super) fn objects(config: &Config) -> Result<Arc<dyn ObjectStore>, Error> {
    match config.store.as_str() {
        "embedded" => Ok(Arc::new(EmbeddedStore::open(&config.data.join("objects.db"), Duration::from_millis(10)).at("opening the objects")?)),
        other => {
            Err(Error { stage: "opening the objects", source: format!("`{other}` is no object store this build knows; known: embedded").into() })
        }
    }
}

/// Opens the feed that goes with the log: of one process, or of all that share the log.
pub(super) async fn feed(config: &Config) -> Result<Arc<dyn Feed>, Error> {
    #[cfg(feature = "kafka")]
    {
        let has = |role| config.roles.contains(&role);
        let (publishes, reads) = (has(Role::Sync), has(Role::Web));
        if config.log.starts_with("kafka:") && (publishes || reads) {
            let settings = kafka_settings(config)?;
            let feed = match reads {
                true => KafkaFeed::open(&config.log, &settings, feed::Settings::default()).await,
                false => KafkaFeed::publishing(&config.log, &settings).await,
            };
            return Ok(Arc::new(feed.at("opening the feed")?));
        }
    }
    #[cfg(not(feature = "kafka"))]
    let Config { .. } = config;
    Ok(Arc::new(feed::LocalFeed::new(feed::Settings::default())))
}

/// Opens the archive that the settings name.
pub(super) async fn archive(config: &Config, clock: Clock) -> Result<Arc<dyn Archive>, Error> {
    let settings = archive::Settings {
        #[cfg(feature = "scylla")]
        scylla: scylla_settings(config)?,
    };
    archive::open(&config.archive, &config.data, &settings, clock).await.at("opening the archive")
}

#[cfg(feature = "scylla")]
fn scylla_settings(config: &Config) -> Result<cql::Settings, Error> {
    let scylla = &config.scylla;
    Ok(cql::Settings {
        username: scylla.username.clone(),
        password: secret("CONTRAIL_SCYLLA_PASSWORD")?.unwrap_or_default(),
        tls: scylla.tls,
        ca_file: scylla.ca_file.clone(),
        datacenter: scylla.datacenter.clone(),
        replication: scylla.replication.clone(),
        retention: config.archiver.retention.0,
        safety_window: scylla.safety_window.0,
        ..cql::Settings::default()
    })
}

/// Makes or changes the tables of the clusters that the settings name; says of each what was done. Nothing else may be running on a fresh cluster meanwhile.
///
/// # Errors
/// Where nothing that the settings name has tables, and what the cluster says.
pub async fn migrate(config: &Config) -> Result<Vec<String>, Error> {
    #[cfg(feature = "scylla")]
    if config.archive.starts_with("scylla:") {
        let address = cql::Address::parse(&config.archive).at("reading the archive's address")?;
        return Ok(vec![cql::migrate(&address, &scylla_settings(config)?).await.at("migrating the archive")?]);
    }
    let told = format!("`archive` is `{}`: only scylla://... has tables to be made", config.archive);
    Err(Error { stage: "migrating", source: told.into() })
}

/// A secret from the environment variable of this name, or from the file that `<name>_FILE` names.
pub(super) fn secret(name: &str) -> Result<Option<String>, Error> {
    if let Ok(value) = std::env::var(name) {
        return Ok(Some(value));
    }
    match std::env::var(format!("{name}_FILE")) {
        Ok(path) => std::fs::read_to_string(&path).map(|text| Some(text.trim().to_owned())).at("reading a secret's file"),
        Err(_) => Ok(None),
    }
}
