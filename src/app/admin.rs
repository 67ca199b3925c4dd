//! `/admin/...`: what commands on this machine ask of the running server (`/admin/known` has a file of its own). Every route wants the admin token of the
//! data directory.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Access;
use super::accounts;
use super::roles;
use crate::archive::{self, Archive, audit};
use crate::event::{Clock, RulesOf, SiteId, SiteRules};
use crate::eventlog::{self, Bounds, EventLog, Topic};
use crate::problem::Problem;
use crate::site::{self, Kind, Region, Site, Sites};
use crate::sync::{self, ObjectStore};

/// Seconds that an object token works for at most.
const LONGEST_TOKEN: u64 = 86_400;

/// What the routes work on.
#[derive(Clone)]
pub(super) struct Admin {
    pub(super) access: Access,
    pub(super) sites: Arc<Sites>,
    pub(super) log: Arc<dyn EventLog>,
    /// None where no role of this process needs them.
    pub(super) objects: Option<Arc<dyn ObjectStore>>,
    pub(super) archive: Option<Arc<dyn Archive>>,
    pub(super) rules: RulesOf,
    pub(super) clock: Clock,
}

impl Admin {
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/admin/sites", get(list).post(add))
            .route("/admin/sites/{site}", patch(set))
            .route("/admin/sites/{site}/rotate", post(rotate))
            .route("/admin/sites/{site}/tokens", post(token))
            .merge(accounts::routes())
            .route("/admin/progress", get(progress))
            .route("/admin/audit", get(audited))
            .layer(middleware::from_fn_with_state(self.access.clone(), guard))
            .with_state(self)
    }
}

/// Lets through what carries the admin token.
pub(super) async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match access.admin(&parts) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(problem) => problem.into_response(),
    }
}

/// The problem that stands in an answer's place.
pub(super) struct Refused(Box<Problem>);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

pub(super) type Answer = Result<Json<Value>, Refused>;

pub(super) fn refuse(status: StatusCode, code: &'static str, title: &'static str, detail: impl std::fmt::Display) -> Refused {
    Refused(Box::new(Problem::new(status, code, title, detail.to_string())))
}

pub(super) fn failed(error: impl std::fmt::Display) -> Refused {
    tracing::error!(%error, "an admin request failed");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "failed", "The server could not do that", error)
}

/// An error of the log or a store, which may pass.
pub(super) trait Passing: std::fmt::Display {
    /// Whether it may.
    fn may_pass(&self) -> bool;
}

impl Passing for eventlog::Error {
    fn may_pass(&self) -> bool {
        self.is_retryable()
    }
}

impl Passing for archive::Error {
    fn may_pass(&self) -> bool {
        self.is_retryable()
    }
}

impl Passing for sync::Error {
    fn may_pass(&self) -> bool {
        self.is_retryable()
    }
}

/// What cannot be answered now: to be asked again where that may help.
pub(super) fn unanswered(error: impl Passing) -> Refused {
    if !error.may_pass() {
        return failed(error);
    }
    tracing::warn!(%error, "an admin request was not answered");
    refuse(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "The log or a store does not answer", error)
}

pub(super) fn of_site(error: site::Error) -> Refused {
    match error {
        site::Error::Exists(_) => refuse(StatusCode::CONFLICT, "site_exists", "There is such a site", error),
        site::Error::Unknown(_) => refuse(StatusCode::NOT_FOUND, "site_unknown", "There is no such site", error),
        site::Error::ObjectName => refuse(StatusCode::BAD_REQUEST, "object_name_invalid", "No object can have that name", error),
        site::Error::Origin(_) => refuse(StatusCode::BAD_REQUEST, "origin_invalid", "No page has that origin", error),
        site::Error::RegionName(_) | site::Error::RegionUnknown(_) => {
            refuse(StatusCode::BAD_REQUEST, "region_unknown", "There is no such region", error)
        }
        site::Error::NoRegions => refuse(StatusCode::CONFLICT, "regions_unset", "There are no regions", error),
        site::Error::LeavesData(_) => refuse(StatusCode::CONFLICT, "region_has_data", "A site's data does not move with it", error),
        site::Error::Unavailable(_) => {
            tracing::warn!(%error, "a change of the sites came to no known end");
            refuse(StatusCode::SERVICE_UNAVAILABLE, "sites_unavailable", "The sites' store does not answer", error)
        }
        site::Error::Service(_) | site::Error::Mirror(_) | site::Error::Identity | site::Error::Lifetime => {
            refuse(StatusCode::BAD_REQUEST, "sync_invalid", "The Sync API does not allow that", error)
        }
        site::Error::IsService(_) | site::Error::OwnService(_) | site::Error::TooManyServices | site::Error::TooManyKeys => {
            refuse(StatusCode::CONFLICT, "sync_conflict", "The account does not allow that", error)
        }
        site::Error::KeyUnknown(_) => refuse(StatusCode::NOT_FOUND, "sync_key_unknown", "There is no such API key", error),
        other @ (site::Error::Store(_) | site::Error::File(_) | site::Error::Refused(_) | site::Error::Malformed(_)) => failed(other),
        other @ (site::Error::Weak | site::Error::RegionUrl(_) | site::Error::SecretKey | site::Error::Sealed(_)) => failed(other),
    }
}

pub(super) fn named(site: &str) -> Result<SiteId, Refused> {
    SiteId::parse(site).map_err(|error| refuse(StatusCode::BAD_REQUEST, "site_name_invalid", "No site can have that name", error))
}

async fn list(State(admin): State<Admin>) -> Json<Value> {
    let sites = admin.sites.list();
    Json(json!({"sites": sites.iter().map(|site| told(site)).collect::<Vec<_>>()}))
}

/// A site as commands are shown it.
fn told(site: &Site) -> Value {
    json!({"site": site.id, "origins": site.origins, "time_zone": site.rules.time_zone, "region": site.region.as_ref().map(Region::as_str)})
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSite {
    site: String,
    #[serde(default = "utc")]
    time_zone: String,
    #[serde(default)]
    origins: Vec<String>,
    region: Option<String>,
}

fn utc() -> String {
    "UTC".into()
}

async fn add(State(admin): State<Admin>, Json(asked): Json<NewSite>) -> Answer {
    let id = named(&asked.site)?;
    known_zone(&asked.time_zone)?;
    let rules = SiteRules { time_zone: asked.time_zone, ..SiteRules::default() };
    let region = asked.region.as_deref().map(Region::parse).transpose().map_err(of_site)?;
    let keys = admin.sites.add(&id, site::NewSite { origins: asked.origins, rules, region }).await.map_err(of_site)?;
    Ok(Json(json!({"site": keys.site, "ingest_key": keys.ingest, "browser_key": keys.browser, "read_token": keys.read})))
}

fn known_zone(name: &str) -> Result<(), Refused> {
    let unknown = |error| refuse(StatusCode::BAD_REQUEST, "time_zone_unknown", "There is no such time zone", error);
    jiff::tz::TimeZone::get(name).map(drop).map_err(unknown)
}

/// What is left out stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    origins: Option<Vec<String>>,
    time_zone: Option<String>,
    /// Empty: of every region.
    region: Option<String>,
    #[serde(default)]
    leave_data: bool,
}

async fn set(State(admin): State<Admin>, Path(site): Path<String>, Json(asked): Json<Changed>) -> Answer {
    let id = named(&site)?;
    asked.time_zone.as_deref().map_or(Ok(()), known_zone)?;
    let region = asked.region.map(|name| if name.is_empty() { Ok(None) } else { Region::parse(&name).map(Some) }).transpose().map_err(of_site)?;
    let change = site::Change { origins: asked.origins, time_zone: asked.time_zone, region, leave_data: asked.leave_data };
    let site = admin.sites.set(&id, change).await.map_err(of_site)?;
    Ok(Json(told(&site)))
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Key {
    Ingest,
    Browser,
    Read,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    key: Key,
}

async fn rotate(State(admin): State<Admin>, Path(site): Path<String>, Json(asked): Json<Rotation>) -> Answer {
    let id = named(&site)?;
    let kind = match asked.key {
        Key::Ingest => Kind::Server,
        Key::Browser => Kind::Browser,
        Key::Read => Kind::Read,
    };
    let now = admin.clock.now();
    let key = admin.sites.rotate(&id, kind, now).await.map_err(of_site)?;
    Ok(Json(json!({"site": site, "key": key})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Opens this object alone.
    object: Option<String>,
    /// Opens the Sync API to somebody.
    identity: Option<String>,
    /// Which service of the account, by its SID; without, the account's own.
    service: Option<String>,
    ttl_seconds: u64,
}

async fn token(State(admin): State<Admin>, Path(site): Path<String>, Json(asked): Json<NewToken>) -> Answer {
    let id = named(&site)?;
    if !(1..=LONGEST_TOKEN).contains(&asked.ttl_seconds) {
        let detail = format!("a token works for 1 second to 24 hours; {} seconds were asked for", asked.ttl_seconds);
        return Err(refuse(StatusCode::BAD_REQUEST, "ttl_invalid", "No token can work for that long", detail));
    }
    let (token, until) = match (asked.object, asked.identity) {
        (Some(object), None) if asked.service.is_none() => {
            let until = admin.clock.now().plus_seconds(asked.ttl_seconds as i64);
            (admin.sites.object_token(&id, &object, until).map_err(of_site)?, until)
        }
        (None, Some(identity)) => accounts::access_token(&admin.sites, &id, &identity, asked.service.as_deref(), asked.ttl_seconds)?,
        _ => {
            let detail = "give either `object`, or `identity` and, for another service than the account's own, `service`";
            return Err(refuse(StatusCode::BAD_REQUEST, "token_for_what", "A token opens one object, or the Sync API to somebody", detail));
        }
    };
    Ok(Json(json!({"site": site, "token": token, "until": until})))
}

/// How far every reader is in the log, by what the stores hold, whichever process they run in; null where this process does not know the store.
async fn progress(State(admin): State<Admin>) -> Answer {
    // Bounds first: what is appended meanwhile is not asked for. Changes after the router, since what it has stored has its changes in the log.
    let ends = |bounds: Vec<Bounds>| bounds.iter().map(|bounds| bounds.next).collect::<Vec<u64>>();
    let events = ends(admin.log.bounds(Topic::Events).await.map_err(unanswered)?);
    let (mut routed, mut archived, mut kept, mut changes) = (None, None, None, None);
    if let Some(archive) = &admin.archive {
        archived = Some(archive.cursors().await.map_err(unanswered)?.iter().map(|cursor| cursor.next).collect::<Vec<_>>());
    }
    if let Some(objects) = &admin.objects {
        let (routers, keepers) = objects.offsets().await.map_err(unanswered)?;
        changes = Some(ends(admin.log.bounds(Topic::Changes).await.map_err(unanswered)?));
        (routed, kept) = (Some(routers), Some(keepers));
    }
    let behind = |ends: &[u64], reached: &Vec<u64>| ends.iter().zip(reached).map(|(end, at)| end.saturating_sub(*at)).sum::<u64>();
    let lag = |reached: &Option<Vec<u64>>, ends: &[u64]| reached.as_ref().map(|reached| behind(ends, reached));
    let lags = [lag(&routed, &events), lag(&kept, changes.as_deref().unwrap_or_default()), lag(&archived, &events)];
    let [router, keeper, archiver] = lags;
    Ok(Json(json!({
        "caught_up": lags == [Some(0); 3],
        "behind": {"router": router, "keeper": keeper, "archiver": archiver},
        "reached": {"router": routed, "keeper": kept, "archiver": archived},
        "ends": {"events": events, "changes": changes},
    })))
}

async fn audited(State(admin): State<Admin>) -> Answer {
    let Some(archive) = &admin.archive else { return Err(Refused(Box::new(roles::missing("archive or web")))) };
    let found = audit::audit(&**archive, Some(&*admin.log), &admin.rules).await.map_err(unanswered)?;
    Ok(Json(json!({"clean": found.is_clean(), "audit": found})))
}
