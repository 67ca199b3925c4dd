//! The composition root: opens the backends, builds the rooms, names their tasks and owns the order in which they stop. The one place that knows
//! every room; called by the command line and by tests.

mod access;
mod admin;
pub mod data;
mod health;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::archive::archiver::{Archiver, ArchiverSettings};
use crate::archive::progress::Progress;
use crate::archive::{self, Archive};
use crate::config::{Config, Role};
use crate::event::{Clock, ObjectKind, RulesOf};
use crate::eventlog::{self, EventLog};
use crate::ingest;
use crate::server;
use crate::shutdown::{DrainError, Failure, Tasks};
use crate::site::{FirstKeys, Sites};
use crate::sync::embedded::EmbeddedStore;
use crate::sync::feed::LocalFeed;
use crate::sync::status::Status;
use crate::sync::{self, ObjectStore};
use crate::telemetry;
use crate::web;

/// What could not be started or stopped, and where.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {source}")]
pub struct Error {
    stage: &'static str,
    source: Failure,
}

/// Says which stage an error belongs to.
trait At<T> {
    fn at(self, stage: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<Failure>> At<T> for Result<T, E> {
    fn at(self, stage: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error { stage, source: source.into() })
    }
}

/// What is not a setting.
#[derive(Clone, Default)]
pub struct Options {
    /// The key of the first site; made where none is given.
    pub ingest_key: Option<String>,
    /// The read token of the first site; made where none is given.
    pub read_token: Option<String>,
    /// Where `received_at` comes from.
    pub clock: Clock,
}

impl Options {
    /// Takes the bootstrap keys from `CONTRAIL_BOOTSTRAP_*`, or from the files that `CONTRAIL_BOOTSTRAP_*_FILE` name.
    ///
    /// # Errors
    /// When such a file cannot be read.
    pub fn from_environment() -> Result<Self, Error> {
        Ok(Self { ingest_key: secret("CONTRAIL_BOOTSTRAP_INGEST_KEY")?, read_token: secret("CONTRAIL_BOOTSTRAP_READ_TOKEN")?, clock: Clock::system() })
    }
}

fn secret(name: &str) -> Result<Option<String>, Error> {
    if let Ok(value) = std::env::var(name) {
        return Ok(Some(value));
    }
    match std::env::var(format!("{name}_FILE")) {
        Ok(path) => std::fs::read_to_string(&path).map(|text| Some(text.trim().to_owned())).at("reading a secret's file"),
        Err(_) => Ok(None),
    }
}

/// A running process.
pub struct Running {
    address: SocketAddr,
    public_url: String,
    admin_token: String,
    first_keys: Option<FirstKeys>,
    http: Tasks,
    rooms: Tasks,
    ready: health::Readiness,
    stores: Stores,
    drain: Duration,
    /// Held until everything is closed.
    _data: data::DataDir,
}

/// What is closed last, in this order.
struct Stores {
    log: Arc<dyn EventLog>,
    objects: Arc<dyn ObjectStore>,
    archive: Arc<dyn Archive>,
}

/// What the rooms are built from.
struct Parts {
    config: Config,
    clock: Clock,
    log: Arc<dyn EventLog>,
    objects: Arc<dyn ObjectStore>,
    archive: Arc<dyn Archive>,
    sites: Arc<Sites>,
    rules: RulesOf,
    feed: Arc<LocalFeed>,
    status: Arc<Status>,
    progress: Arc<Progress>,
}

/// Starts everything that the settings name and returns once it serves.
///
/// # Errors
/// Names the stage that failed; what was started before it is stopped by dropping.
pub async fn start(config: Config, options: Options) -> Result<Running, Error> {
    let metrics = telemetry::start_metrics().at("starting metrics")?;
    let listen: SocketAddr = config.listen.parse().at("reading the listen address")?;
    let mut dir = data::DataDir::take(&config.data).at("taking the data directory")?;
    let sites = Arc::new(Sites::open(&config.data.join("sites.db")).at("opening the sites")?);
    if sites.is_empty() && !listen.ip().is_loopback() && (options.ingest_key.is_none() || options.read_token.is_none()) {
        let told = "beyond loopback the first start takes its keys from CONTRAIL_BOOTSTRAP_INGEST_KEY and CONTRAIL_BOOTSTRAP_READ_TOKEN";
        return Err(Error { stage: "checking the listen address", source: told.into() });
    }
    let first_keys = sites.bootstrap(options.ingest_key, options.read_token).at("making the first site")?;
    let parts = open(config, options.clock, sites).await?;
    let listener = TcpListener::bind(listen).await.at("listening")?;
    let address = listener.local_addr().at("listening")?;
    let admin_token = dir.announce(address).at("announcing the address")?;
    let public_url = if parts.config.public_url.is_empty() { format!("http://{address}") } else { parts.config.public_url.clone() };

    let (mut http, mut rooms) = (Tasks::default(), Tasks::default());
    let ready = health::Readiness::default();
    let access = access::Access::new(Arc::clone(&parts.sites), admin_token.clone(), parts.clock.clone());
    let router = build(&parts, access, ready.clone(), metrics, &mut rooms);
    let settings = server::Settings {
        max_connections: parts.config.server.max_connections,
        header_timeout: parts.config.server.header_timeout.0,
        drain: parts.config.server.drain.0,
    };
    let stop = http.stop_token();
    http.spawn("http", async move { server::serve(listener, router, settings, stop).await });
    ready.set(true);
    let drain = parts.config.server.drain.0;
    let stores = Stores { log: parts.log, objects: parts.objects, archive: parts.archive };
    Ok(Running { address, public_url, admin_token, first_keys, http, rooms, ready, stores, drain, _data: dir })
}

async fn open(config: Config, clock: Clock, sites: Arc<Sites>) -> Result<Parts, Error> {
    let settings = eventlog::embedded::Settings {
        max_bytes: config.eventlog.max_bytes.0,
        segment_bytes: config.eventlog.segment_bytes.0,
        retention: config.eventlog.retention.0,
        ..eventlog::embedded::Settings::default()
    };
    let log = eventlog::open(&config.log, &config.data.join("log"), settings, clock.clone()).await.at("opening the log")?;
    let objects = open_objects(&config.store, &config.data)?;
    let archive = archive::open(&config.archive, &config.data.join("archive")).await.at("opening the archive")?;
    let rules = sites.rules_of();
    let feed = Arc::new(LocalFeed::new(sync::feed::Settings { max_subscribers: config.live.max_subscribers, ..Default::default() }));
    let (status, progress) = (Arc::new(Status::default()), Arc::new(Progress::default()));
    Ok(Parts { config, clock, log, objects, archive, sites, rules, feed, status, progress })
}

fn open_objects(url: &str, data: &Path) -> Result<Arc<dyn ObjectStore>, Error> {
    match url {
        "embedded" => Ok(Arc::new(EmbeddedStore::open(&data.join("objects.db"), Duration::from_millis(10)).at("opening the objects")?)),
        other => Err(Error { stage: "opening the objects", source: format!("`{other}` is no object store this build knows; known: embedded").into() }),
    }
}
