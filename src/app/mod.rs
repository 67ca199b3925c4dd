//! The composition root: opens the backends, builds the rooms, names their tasks and owns the order in which they stop. The one place that knows
//! every room; called by the command line and by tests.

mod access;
mod accounts;
mod admin;
mod backends;
pub mod data;
mod faces;
mod health;
mod known;
mod learning;
#[cfg(all(feature = "kafka", feature = "scylla"))]
mod moving;
mod roles;
mod webhooks;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::archive::archiver::{self, Archiver};
use crate::archive::fold::Touching;
use crate::archive::progress::Progress;
use crate::archive::rollup::Judged;
use crate::archive::{self, Archive};
use crate::config::{Config, Role};
use crate::event::{Clock, ObjectKind, RulesOf};
use crate::eventlog::EventLog;
use crate::ingest::{self, Ingest};
use crate::mirror::{self, Mirroring};
use crate::outbound::Client;
use crate::server;
use crate::shutdown::{DrainError, Failure, Tasks};
use crate::site::{Bootstrap, NewKeys, Sites};
use crate::sync::expiry::Expiry;
use crate::sync::keeper::{Keeper, KeeperSettings};
use crate::sync::mapping::{Mapped, names};
use crate::sync::reader::Reader;
use crate::sync::status::Status;
use crate::sync::{self, Feed, ObjectStore};
use crate::telemetry;
use crate::web;

pub use backends::migrate;
#[cfg(all(feature = "kafka", feature = "scylla"))]
pub use moving::{Moved, Told, migrate_data};

/// As `kafka.instance`: no lasting name.
const NO_INSTANCE: &str = "none";

/// What could not be started or stopped, and where.
#[derive(Debug, thiserror::Error)]
#[error("{stage}")]
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
    /// Keys of the first site; made where none are given.
    pub bootstrap: Bootstrap,
    /// Where `received_at` comes from.
    pub clock: Clock,
}

impl Options {
    /// Takes the bootstrap keys from `CONTRAIL_BOOTSTRAP_*`, or from the files that `CONTRAIL_BOOTSTRAP_*_FILE` name.
    ///
    /// # Errors
    /// When such a file cannot be read.
    pub fn from_environment() -> Result<Self, Error> {
        let bootstrap = Bootstrap {
            ingest_key: backends::secret("CONTRAIL_BOOTSTRAP_INGEST_KEY")?,
            read_token: backends::secret("CONTRAIL_BOOTSTRAP_READ_TOKEN")?,
        };
        Ok(Self { bootstrap, clock: Clock::system() })
    }
}

/// A running process.
pub struct Running {
    address: SocketAddr,
    public_url: String,
    admin_token: String,
    first_keys: Option<NewKeys>,
    http: Tasks,
    rooms: Tasks,
    ready: health::Readiness,
    learning: Arc<learning::Learning>,
    stores: Stores,
    feed: Arc<dyn Feed>,
    realtime: faces::Realtime,
    drain: Duration,
    /// Held until everything is closed.
    _data: data::DataDir,
}

/// What is closed last, in this order.
struct Stores {
    log: Arc<dyn EventLog>,
    objects: Option<Arc<dyn ObjectStore>>,
    archive: Option<Arc<dyn Archive>>,
}

/// What the rooms are built from.
struct Parts {
    config: Config,
    clock: Clock,
    log: Arc<dyn EventLog>,
    /// What no role of this process needs is not opened.
    objects: Option<Arc<dyn ObjectStore>>,
    archive: Option<Arc<dyn Archive>>,
    sites: Arc<Sites>,
    rules: RulesOf,
    feed: Arc<dyn Feed>,
    status: Arc<Status>,
    progress: Arc<Progress>,
    learning: Arc<learning::Learning>,
    /// The URL that people reach this process by.
    public_url: String,
}

/// Starts everything that the settings name and returns once it serves.
///
/// # Errors
/// Names the stage that failed; what was started before it is stopped by dropping.
pub async fn start(mut config: Config, options: Options) -> Result<Running, Error> {
    let metrics = telemetry::start_metrics().at("starting metrics")?;
    let listen: SocketAddr = config.listen.parse().at("reading the listen address")?;
    let mut dir = data::DataDir::take(&config.data).at("taking the data directory")?;
    match config.kafka.instance.as_str() {
        "" if config.log != "embedded" => config.kafka.instance = dir.instance().at("naming the data directory")?,
        NO_INSTANCE => config.kafka.instance.clear(),
        _ => {}
    }
    let sites = Arc::new(backends::sites(&config, options.clock.clone()).await?);
    check_given(&options.bootstrap, &sites, listen)?;
    let listener = TcpListener::bind(listen).await.at("listening")?;
    let address = listener.local_addr().at("listening")?;
    let public_url = if config.public_url.is_empty() { format!("http://{address}") } else { config.public_url.clone() };
    let parts = open(config, options.clock, sites, public_url.clone()).await?;
    let admin_token = dir.announce(address).at("announcing the address")?;
    // After everything that can fail: the keys of a site made by a start that fails would be shown to nobody.
    // Keys that were given are known already, and standard output may be somebody's log.
    let given = options.bootstrap.ingest_key.is_some();
    let first_keys = parts.sites.bootstrap(&options.bootstrap).await.at("making the first site")?.filter(|_| !given);
    let (mut http, mut rooms) = (Tasks::default(), Tasks::default());
    let ready = health::Readiness::default();
    parts.sites.set_admin(&admin_token);
    let access = access::Access::new(Arc::clone(&parts.sites));
    let realtime = faces::Realtime::default();
    let router = build(&parts, access, ready.clone(), metrics, &realtime, &mut rooms);
    let settings = server::Settings {
        max_connections: parts.config.server.max_connections,
        header_timeout: parts.config.server.header_timeout.0,
        drain: parts.config.server.drain.0,
    };
    let stop = http.stop_token();
    http.spawn("http", async move { server::serve(listener, router, introduce, settings, stop).await });
    ready.set(true);
    let drain = parts.config.server.drain.0;
    let stores = Stores { log: parts.log, objects: parts.objects, archive: parts.archive };
    let (learning, feed) = (parts.learning, parts.feed);
    Ok(Running { address, public_url, admin_token, first_keys, http, rooms, ready, learning, stores, feed, realtime, drain, _data: dir })
}

/// Refuses half of the given keys, and a first start that others can reach without given keys.
fn check_given(given: &Bootstrap, sites: &Sites, listen: SocketAddr) -> Result<(), Error> {
    if sites.list().is_empty() && !listen.ip().is_loopback() && (given.ingest_key.is_none() || given.read_token.is_none()) {
        let told = "beyond loopback the first start takes its keys from CONTRAIL_BOOTSTRAP_INGEST_KEY and CONTRAIL_BOOTSTRAP_READ_TOKEN";
        return Err(Error { stage: "checking the listen address", source: told.into() });
    }
    if given.ingest_key.is_some() != given.read_token.is_some() {
        let told = "give both CONTRAIL_BOOTSTRAP_INGEST_KEY and CONTRAIL_BOOTSTRAP_READ_TOKEN, or neither";
        return Err(Error { stage: "making the first site", source: told.into() });
    }
    Ok(())
}

async fn open(config: Config, clock: Clock, sites: Arc<Sites>, public_url: String) -> Result<Parts, Error> {
    let log = backends::log(&config, clock.clone()).await?;
    let has = |role| config.roles.contains(&role);
    let objects = if has(Role::Sync) || has(Role::Web) { Some(backends::objects(&config, clock.clone()).await?) } else { None };
    let archive = if has(Role::Archive) || has(Role::Web) { Some(backends::archive(&config, clock.clone()).await?) } else { None };
    let learning = Arc::new(learning::Learning::open(&config, &log, objects.as_ref(), archive.as_ref()).await?);
    let rules = sites.rules_of();
    let feed = backends::feed(&config).await?;
    let (status, progress) = (Arc::new(Status::default()), Arc::new(Progress::default()));
    Ok(Parts { config, clock, log, objects, archive, sites, rules, feed, status, progress, learning, public_url })
}

/// Builds the rooms of this process's roles, spawns their tasks and joins their routes.
fn build(
    parts: &Parts,
    access: access::Access,
    ready: health::Readiness,
    metrics: PrometheusHandle,
    realtime: &faces::Realtime,
    rooms: &mut Tasks,
) -> Router {
    let has = |role| parts.config.roles.contains(&role);
    let health = parts.health(ready, metrics);
    let (following, stop) = (Arc::clone(&parts.sites), rooms.stop_token());
    rooms.spawn("sites", async move {
        following.follow(stop).await;
        Ok(())
    });
    let mut router = health.router().merge(parts.admin(access.clone()).router());
    router = router.merge(learning::router(Arc::clone(&parts.learning), Arc::clone(&parts.log), access.clone()));
    if has(Role::Ingest) {
        let ingest = parts.ingest();
        if let Some(archive) = &parts.archive {
            let known = known::Known { access: access.clone(), ingest: ingest.clone(), archive: Arc::clone(archive) };
            router = router.merge(known.router());
        }
        router = router.merge(ingest.router());
        let stop = rooms.stop_token();
        rooms.spawn("ingest", async move {
            ingest.run(stop).await;
            Ok(())
        });
    }
    if let Some(objects) = parts.objects.as_ref().filter(|_| has(Role::Sync)) {
        let (stop, routing, keeping) = (rooms.stop_token(), parts.router(objects), parts.keeper(objects));
        let stopping = stop.clone();
        if parts.learning.sync.is_none() {
            let (stop, mirroring) = (stop.clone(), parts.mirroring(objects));
            rooms.spawn("mirror", async move { mirroring.run(stop).await.map_err(Into::into) });
        }
        rooms.spawn("router", async move { routing.run(stopping).await.map_err(Into::into) });
        rooms.spawn("keeper", async move { keeping.run(stop).await.map_err(Into::into) });
    }
    let webhooks = parts.webhooks();
    let presence = webhooks::presence(&webhooks);
    if has(Role::Sync) || has(Role::Web) {
        // A stage that learns tells nobody.
        let (stop, reads) = (rooms.stop_token(), has(Role::Sync) && parts.learning.sync.is_none());
        rooms.spawn("webhooks", async move { webhooks.run(reads, stop).await.map_err(Into::into) });
    }
    if let Some(archive) = parts.archive.as_ref().filter(|_| has(Role::Archive)) {
        let (stop, archiver) = (rooms.stop_token(), parts.archiver(archive));
        rooms.spawn("archiver", async move { archiver.run(stop).await.map_err(Into::into) });
    }
    if let (Some(objects), Some(archive), true) = (&parts.objects, &parts.archive, has(Role::Web)) {
        router = router.merge(parts.live(objects, access.clone())).merge(parts.reports(archive, access));
        let (faces, sweeping) = parts.faces(objects, realtime, presence, rooms.stop_token());
        router = router.merge(faces);
        rooms.spawn("admission", sweeping);
    }
    if !parts.learning.stages().is_empty() {
        let (stop, learning) = (rooms.stop_token(), Arc::clone(&parts.learning));
        rooms.spawn("learning", learning.run(stop));
    }
    rooms.spawn("retention", retain(Arc::clone(&parts.log), parts.clock.clone(), rooms.stop_token()));
    let roles = parts.config.roles.clone();
    router.fallback(move |request: Request| async move { roles::unknown_path(request.uri().path(), &roles) })
}

/// Lets pages of the origins that any site allows read live objects; what a page may read, its token says.
async fn share(State(sites): State<Arc<Sites>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = next.run(request).await;
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin.filter(|origin| origin.to_str().is_ok_and(|origin| sites.any_allows_origin(origin))) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

/// Tells ingest whom a request comes from.
fn introduce(peer: SocketAddr, request: &mut Extensions) {
    request.insert(ingest::PeerAddress(peer.ip()));
}

/// Lets the log forget, once a minute, what is old and passed by every reader. (What is old in the archive, its archiver removes.)
async fn retain(log: Arc<dyn EventLog>, clock: Clock, stop: CancellationToken) -> Result<(), Failure> {
    loop {
        if let Err(error) = log.retain(clock.now()).await {
            tracing::warn!(%error, "old segments could not be removed; tried again in a minute");
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
    }
}

/// The objects an event touches, for its archive row: the same mapping that the router follows. First sights are the router's own business.
fn touched(touching: &Touching<'_>) -> Vec<(ObjectKind, String)> {
    let Judged { partition, record, event, outcome, rules } = touching.judged;
    let mut mapped = Mapped { record, offset: touching.offset, partition, event, outcome, rules, first_sight: &mut |_| false };
    names(&mut mapped)
}

impl Parts {
    fn health(&self, ready: health::Readiness, metrics: PrometheusHandle) -> health::Health {
        let single_replica = self.config.log != "embedded" && self.config.kafka.allow_single_replica;
        health::Health {
            ready,
            metrics,
            log: Arc::clone(&self.log),
            sites: Arc::clone(&self.sites),
            status: Arc::clone(&self.status),
            progress: Arc::clone(&self.progress),
            single_replica,
            roles: self.config.roles.clone(),
            learning: self.learning.stages(),
        }
    }

    fn expiry(&self) -> Expiry {
        let sync = &self.config.sync;
        Expiry { people: sync.expire_customers.0, trails: sync.expire_trails.0, pages: sync.expire_pages.0 }
    }

    fn ingest(&self) -> Ingest {
        let given = &self.config.ingest;
        let defaults = ingest::Settings::default();
        let settings = ingest::Settings {
            max_in_flight_bytes: given.in_flight_bytes.0 as usize,
            body_timeout: given.body_timeout.0,
            key_events_per_second: NonZeroU32::new(given.key_events_per_second).unwrap_or(defaults.key_events_per_second),
            address_requests_per_second: NonZeroU32::new(given.address_requests_per_second).unwrap_or(defaults.address_requests_per_second),
            public_url: self.public_url.clone(),
            ..defaults
        };
        Ingest::new(ingest::Deps { log: Arc::clone(&self.log), sites: Arc::clone(&self.sites), clock: self.clock.clone(), settings })
    }

    /// What router and keeper work on.
    fn sync(&self, objects: &Arc<dyn ObjectStore>) -> (Arc<dyn EventLog>, Arc<dyn ObjectStore>, Arc<dyn Feed>) {
        match &self.learning.sync {
            Some(learning) => (Arc::clone(&learning.log) as _, Arc::clone(&learning.store) as _, Arc::new(learning.feed.clone())),
            None => (Arc::clone(&self.log), Arc::clone(objects), Arc::clone(&self.feed)),
        }
    }

    fn router(&self, objects: &Arc<dyn ObjectStore>) -> sync::router::Router {
        let (log, store, feed) = self.sync(objects);
        sync::router::Router {
            log,
            store,
            feed,
            rules: Arc::clone(&self.rules),
            settings: sync::router::RouterSettings::default(),
            status: Arc::clone(&self.status),
        }
    }

    fn keeper(&self, objects: &Arc<dyn ObjectStore>) -> Keeper {
        let settings = KeeperSettings {
            max_pending_bytes: self.config.sync.pending_bytes.0 as usize,
            max_cached_bytes: self.config.sync.cache_bytes.0 as usize,
            expiry: self.expiry(),
            ..KeeperSettings::default()
        };
        // What the keeper has passed makes room for what the router makes next.
        let settings = if self.learning.sync.is_some() { KeeperSettings { commit_every: Duration::from_secs(1), ..settings } } else { settings };
        let (log, store, feed) = self.sync(objects);
        Keeper { log, store, feed, clock: self.clock.clone(), settings, status: Arc::clone(&self.status) }
    }

    /// Mirrors to where operators say: any address there is.
    fn mirroring(&self, objects: &Arc<dyn ObjectStore>) -> Mirroring {
        Mirroring {
            log: Arc::clone(&self.log),
            store: Arc::clone(objects),
            expiry: self.expiry(),
            sites: Arc::clone(&self.sites),
            client: Client::new(true),
            clock: self.clock.clone(),
            settings: mirror::Settings {
                timeout: self.config.sync.mirror_timeout.0,
                settle: self.config.sync.mirror_timeout.0,
                ..mirror::Settings::default()
            },
        }
    }

    fn archiver(&self, archive: &Arc<dyn Archive>) -> Archiver {
        let given = &self.config.archiver;
        let settings = archiver::Settings {
            max_events: given.batch_events,
            longest: given.batch_wait.0,
            retention: given.retention.0,
            ..archiver::Settings::default()
        };
        let (log, archive): (Arc<dyn EventLog>, Arc<dyn Archive>) = match &self.learning.archive {
            Some(learning) => (Arc::clone(&learning.log) as _, Arc::clone(&learning.archive) as _),
            None => (Arc::clone(&self.log), Arc::clone(archive)),
        };
        Archiver {
            log,
            archive,
            rules: Arc::clone(&self.rules),
            clock: self.clock.clone(),
            objects_of: Arc::new(touched),
            progress: Arc::clone(&self.progress),
            settings,
        }
    }

    fn live(&self, objects: &Arc<dyn ObjectStore>, access: access::Access) -> Router {
        let reader = Reader::new(Arc::clone(objects), self.expiry());
        let settings = web::live::Settings { max_subscribers: self.config.live.max_subscribers, ..web::live::Settings::default() };
        let authorise: web::live::Authorise =
            Arc::new(move |parts, _, name| access.object_reader(parts, name).map_err(|problem| Box::new(problem.into_response())));
        let routes = web::live::router(reader, Arc::clone(&self.feed), self.clock.clone(), authorise, &settings);
        routes.layer(axum::middleware::from_fn_with_state(Arc::clone(&self.sites), share))
    }

    fn reports(&self, archive: &Arc<dyn Archive>, access: access::Access) -> Router {
        let (log, read) = (Arc::clone(&self.log), Arc::clone(archive));
        let deps = web::reports::Deps {
            archive: Arc::clone(archive),
            rules: Arc::clone(&self.rules),
            clock: self.clock.clone(),
            freshness: Arc::new(move |now| {
                let (log, archive) = (Arc::clone(&log), Arc::clone(&read));
                Box::pin(async move { archive::report::fresh_to(&*archive, &*log, now).await })
            }),
            authorise: Arc::new(move |parts| access.reader(parts)),
            sids: Arc::new(|site, kind, name| sync::naming::sid(site, kind, name, 0)),
        };
        web::reports::router(deps.clone()).merge(web::export::router(deps))
    }

    fn admin(&self, access: access::Access) -> admin::Admin {
        admin::Admin {
            access,
            sites: Arc::clone(&self.sites),
            log: Arc::clone(&self.log),
            objects: self.objects.clone(),
            archive: self.archive.clone(),
            rules: Arc::clone(&self.rules),
            clock: self.clock.clone(),
        }
    }
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL that people reach it by.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    /// The token that opens it to commands on this machine.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// The keys of the first site, if this start made it.
    pub fn first_keys(&self) -> Option<&NewKeys> {
        self.first_keys.as_ref()
    }

    /// Waits until a part ends although nobody asked it to, and says which.
    pub async fn failed(&mut self) -> DrainError {
        tokio::select! {
            failed = self.http.first_end() => failed,
            failed = self.rooms.first_end() => failed,
        }
    }

    /// Stops in order: no longer ready; realtime clients are sent elsewhere; no new connections, running requests finish; readers stop and store how far they are; the log is sealed;
    /// the stores are closed. Every step is taken even where one before it failed.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.ready.set(false);
        self.realtime.offload(self.drain).await;
        self.feed.close();
        let http = self.http.drain(self.drain + Duration::from_secs(5)).await.at("finishing requests");
        let rooms = self.rooms.drain(self.drain).await.at("stopping the rooms");
        let learning = self.learning.close().await.at("closing what was learned");
        let log = self.stores.log.close().await.at("sealing the log");
        let objects = match &self.stores.objects {
            Some(objects) => objects.close().await.at("closing the objects"),
            None => Ok(()),
        };
        let archive = match &self.stores.archive {
            Some(archive) => archive.close().await.at("closing the archive"),
            None => Ok(()),
        };
        http.and(rooms).and(learning).and(log).and(objects).and(archive)
    }
}
