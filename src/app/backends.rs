//! Which backends the settings name: opens log, feed, object store and archive, migrates what has tables, reads the secrets of all. Called by the composition root
//! alone; the one place that knows both settings and backends.

use std::sync::Arc;
use std::time::Duration;

use super::{At, Error};
#[cfg(feature = "kafka")]
use crate::archive::archiver;
use crate::archive::{self, Archive};
#[cfg(feature = "kafka")]
use crate::config::Role;
use crate::config::{Config, Stage};
#[cfg(feature = "scylla")]
use crate::cql;
use crate::event::Clock;
#[cfg(feature = "kafka")]
use crate::eventlog::Topic;
#[cfg(feature = "kafka")]
use crate::eventlog::kafka::KnownGroup;
use crate::eventlog::{self, EventLog};
use crate::site::{self, Regions, Seal, Sites};
use crate::sync::embedded::EmbeddedStore;
#[cfg(feature = "kafka")]
use crate::sync::feed::kafka::KafkaFeed;
use crate::sync::{Feed, ObjectStore, feed};
#[cfg(feature = "kafka")]
use crate::{
    mirror,
    sync::{keeper, router},
    webhooks,
};

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
pub(super) fn kafka_settings(config: &Config) -> Result<eventlog::kafka::Settings, Error> {
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
        groups: &GROUPS,
    })
}

/// Who reads the log.
#[cfg(feature = "kafka")]
const GROUPS: [KnownGroup; 5] = [
    KnownGroup { topic: Topic::Events, name: router::GROUP, needed: true },
    KnownGroup { topic: Topic::Events, name: archiver::GROUP, needed: true },
    KnownGroup { topic: Topic::Events, name: webhooks::GROUP, needed: false },
    KnownGroup { topic: Topic::Changes, name: keeper::GROUP, needed: true },
    KnownGroup { topic: Topic::Changes, name: mirror::GROUP, needed: false },
];

/// Opens the object store that the settings name.
pub(super) async fn objects(config: &Config, clock: Clock) -> Result<Arc<dyn ObjectStore>, Error> {
    const STAGE: &str = "opening the objects";
    #[cfg(not(feature = "scylla"))]
    drop(clock);
    match config.store.as_str() {
        "embedded" => Ok(Arc::new(EmbeddedStore::open(&config.data.join("objects.db"), Duration::from_millis(10)).at(STAGE)?)),
        #[cfg(feature = "scylla")]
        url if url.starts_with("scylla:") => Ok(Arc::new(crate::sync::scylla::Scylla::open(url, &scylla_settings(config)?, clock).await.at(STAGE)?)),
        other => Err(Error { stage: STAGE, source: format!("`{other}` is no object store this build knows; known: {STORES}").into() }),
    }
}

#[cfg(feature = "scylla")]
const STORES: &str = "embedded, scylla://host:port,.../keyspace";
#[cfg(not(feature = "scylla"))]
const STORES: &str = "embedded";

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

/// Opens the sites, which are kept beside the objects.
pub(super) async fn sites(config: &Config, clock: Clock) -> Result<Sites, Error> {
    let regions = Regions::new(&config.region, &config.region_urls).at("reading the regions")?;
    let store = site::open(&config.store, &config.data, &site_settings(config)?).await.at("opening the sites")?;
    let seal = Seal::new(secret("CONTRAIL_SECRET_KEY")?.as_deref()).at("reading the secret key")?;
    Sites::sealed(store, regions, clock, seal).await.at("reading the sites")
}

pub(super) fn site_settings(config: &Config) -> Result<site::Settings, Error> {
    Ok(site::Settings {
        #[cfg(feature = "scylla")]
        scylla: {
            let settings = scylla_settings(config)?;
            let own = &config.scylla.sites_replication;
            if own.is_empty() { settings } else { cql::Settings { replication: own.clone(), ..settings } }
        },
        keyspace: config.scylla.sites_keyspace.clone(),
    })
}

/// Opens the archive that the settings name.
pub(super) async fn archive(config: &Config, clock: Clock) -> Result<Arc<dyn Archive>, Error> {
    let settings = archive::Settings {
        #[cfg(feature = "scylla")]
        scylla: scylla_settings(config)?,
        only_read: config.learning.contains(&Stage::Archive),
    };
    archive::open(&config.archive, &config.data, &settings, clock).await.at("opening the archive")
}

#[cfg(feature = "scylla")]
pub(super) fn scylla_settings(config: &Config) -> Result<cql::Settings, Error> {
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
    #[cfg_attr(not(feature = "scylla"), expect(unused_mut, reason = "nothing else has tables"))]
    let mut done = Vec::new();
    #[cfg(feature = "scylla")]
    {
        let mut urls: Vec<&String> = [&config.store, &config.archive].into_iter().filter(|url| url.starts_with("scylla:")).collect();
        // In most cases both name one keyspace, which has the tables of both.
        urls.dedup();
        for url in urls {
            let address = cql::Address::parse(url).at("reading a cluster's address")?;
            done.push(cql::migrate(&address, &scylla_settings(config)?).await.at("migrating")?);
        }
        done.extend(site::migrate(&config.store, &site_settings(config)?).await.at("migrating the sites")?);
    }
    if done.is_empty() {
        let told = format!("`store` is `{}` and `archive` is `{}`: only scylla://... has tables to be made", config.store, config.archive);
        return Err(Error { stage: "migrating", source: told.into() });
    }
    Ok(done)
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
