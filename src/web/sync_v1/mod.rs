//! The public REST face of the Sync API, `/v1/Services/...`, as Twilio's own libraries ask for it
//! (<https://www.twilio.com/docs/sync/api>): services, documents, lists, maps, streams, and permissions. Put together by the composition root. Must never answer
//! a write before it is committed and durable, nor show a field that the API's own description does not have.
//!
//! A request is an account's (`auth`), names a place (`route`), and is answered by the file of what it names: `services`, `objects`, `items`, `streams`,
//! `permissions`. What objects may be asked to do, [`Desk`] knows.
//!
//! **Beyond Twilio**, for which its libraries have no call:
//! - `PUT .../Maps/{M}/Items/{key}` with `Data`, `ItemTtl`, `CollectionTtl`: the item is added (201) or replaced (200); `If-Match` demands a revision, or with
//!   `*` that it is there.
//! - `POST .../Maps/{M}/Batch` and `POST .../Services/{S}/Batch`: many items of a map, many documents; see `batch`.
//! - Keys and identities may have slashes, and deletes of objects and lifetimes of collections heed `If-Match`.
//! - `GET /v1/openapi.json`: all of it, described.

mod auth;
mod batch;
mod body;
mod condition;
mod form;
mod items;
mod objects;
mod openapi;
mod paging;
mod permissions;
mod render;
mod reply;
mod route;
mod services;
mod streams;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use axum::routing::{any, get};
use tokio::time::Instant;

use self::auth::Running;
use self::body::{Bodies, Held, MAX_BATCH, MAX_FORM};
use self::condition::Condition;
use self::form::Params;
use self::paging::{Edge, Page};
use self::render::Shown;
use self::reply::Reply;
use self::route::{At, Place, ROOT};
use crate::site::{Account, Elsewhere, Limits, Site, Sites};
use crate::web::sync::{Caller, Desk, Fault};

/// What the face needs.
#[derive(Clone)]
pub struct Deps {
    /// Reads and changes objects.
    pub desk: Desk,
    /// Knows accounts and their services.
    pub sites: Arc<Sites>,
    /// Where clients reach this server, without a slash at its end: addresses in answers begin so.
    pub public_url: String,
}

/// The face. Clones share everything.
#[derive(Clone)]
struct Face(Arc<Room>);

struct Room {
    deps: Deps,
    bodies: Bodies,
    running: Running,
}

/// A request about a service or something of it, by an account that has it.
struct Asked<'a> {
    deps: &'a Deps,
    service: Arc<Site>,
    caller: Caller,
    parts: &'a Parts,
    form: Params,
}

/// What a request comes to.
type Outcome = Result<Reply, Fault>;

/// The routes of the face.
pub fn router(deps: Deps) -> Router {
    let face = Face(Arc::new(Room { deps, bodies: Bodies::default(), running: Running::default() }));
    let rest = format!("{ROOT}/{{*rest}}");
    let router = Router::new().route(ROOT, any(serve)).route(&format!("{ROOT}/"), any(serve)).route(&rest, any(serve));
    router.route("/v1/openapi.json", get(describe)).with_state(face)
}

/// The face's own description, for everybody.
async fn describe(State(face): State<Face>) -> Response {
    let mut response = Reply::ok(openapi::document(&face.0.deps.public_url).to_string()).into_response();
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

async fn serve(State(face): State<Face>, request: Request) -> Response {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let (outcome, running) = match auth::account(&face.0.deps.sites, &parts.headers) {
        // A preflight has no credentials.
        _ if parts.method == Method::OPTIONS => (Ok(Reply::done()), 1),
        Err(fault) => (Err(fault), 1),
        Ok(account) => {
            let run = face.0.running.begin(account.site.hash);
            (face.0.answer(&account, &parts, body).await, run.count)
        }
    };
    let mut response = outcome.map_or_else(|fault| reply::refuse(&fault, parts.uri.path()), Reply::into_response);
    reply::finish(response.headers_mut(), began.elapsed().as_secs_f64(), running);
    response
}

impl Room {
    async fn answer(&self, account: &Account, parts: &Parts, body: Body) -> Outcome {
        let place = Place::of(parts.uri.path()).ok_or(Fault::NoPath)?;
        // Without its body, which the server leaves out.
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
        if !place.methods().split(", ").any(|known| known == method.as_str()) {
            return Err(Fault::Method(place.methods()));
        }
        let sends = matches!(method, Method::POST | Method::PUT);
        let service = match &place {
            Place::Services => None,
            Place::Of(service, _) => Some(self.service(account, service)?),
        };
        let most = if place.is_batch() { MAX_BATCH } else { MAX_FORM };
        // Held until it is answered.
        let held = if sends { Some(self.bodies.read(body, most).await?) } else { None };
        let form = match &held {
            Some(held) if !place.is_batch() => form_of(parts, held)?,
            _ => Params::default(),
        };
        let Some(service) = service else { return services::of_account(&self.deps, account, parts, &form, &method).await };
        let caller = Caller {
            site: service.id.clone(),
            identity: None,
            acl: service.service.acl_enabled,
            limited: service.service.limits == Limits::Twilio,
            mapped: service.rules.takes_events,
        };
        let asked = Asked { deps: &self.deps, service, caller, parts, form };
        let Place::Of(_, at) = place else { return Err(Fault::NoPath) };
        Box::pin(asked.answer(&method, &at, held.as_ref())).await
    }

    /// A service of the account that is served here.
    fn service(&self, account: &Account, sid_or_name: &str) -> Result<Arc<Site>, Fault> {
        let service = self.deps.sites.service(account, sid_or_name).ok_or(Fault::NoService)?;
        match self.deps.sites.elsewhere(&service) {
            None => Ok(service),
            Some(elsewhere) => Err(elsewhere_of(&elsewhere)),
        }
    }
}

/// The refusal of what another region serves.
fn elsewhere_of(elsewhere: &Elsewhere) -> Fault {
    let place = elsewhere.url.as_deref().map(|url| format!(": {url}")).unwrap_or_default();
    Fault::Elsewhere(format!("The service is pinned to region {}. Ask there{place}; nothing was done here.", elsewhere.region).into())
}

/// The parameters in a body.
fn form_of(parts: &Parts, held: &Held) -> Result<Params, Fault> {
    let stated = parts.headers.get(header::CONTENT_TYPE).map_or(Some("application/x-www-form-urlencoded"), |value| value.to_str().ok());
    let is_form = stated
        .and_then(|stated| stated.split(';').next())
        .is_some_and(|stated| stated.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    if is_form || held.bytes.is_empty() {
        return Params::parse(&held.bytes);
    }
    Err(Fault::Parameter("The body has to be application/x-www-form-urlencoded".into()))
}

impl Asked<'_> {
    async fn answer(&self, method: &Method, at: &At, held: Option<&Held>) -> Outcome {
        let body = held.map_or(&[][..], |held| &held.bytes);
        match (method.as_str(), at) {
            ("GET", At::Service) => Ok(Reply::ok(self.shown().service())),
            ("POST", At::Service) => self.set_service().await,
            (_, At::Service) => self.remove_service().await,
            (_, At::Batch) => self.put_documents(body).await,
            ("GET", At::Objects(kind)) => self.list_objects(*kind).await,
            (_, At::Objects(kind)) => self.create_object(*kind).await,
            ("GET", At::Object(kind, object)) => self.read_object(*kind, object).await,
            ("POST", At::Object(kind, object)) => self.update_object(*kind, object).await,
            (_, At::Object(kind, object)) => self.remove_object(*kind, object).await,
            ("GET", At::Items(kind, object)) => self.list_items(*kind, object).await,
            (_, At::Items(kind, object)) => self.add_item(*kind, object).await,
            ("GET", At::Item(kind, object, item)) => self.read_item(*kind, object, item).await,
            ("POST", At::Item(kind, object, item)) => self.update_item(*kind, object, item).await,
            ("PUT", At::Item(kind, object, item)) => self.put_item(*kind, object, item).await,
            (_, At::Item(kind, object, item)) => self.remove_item(*kind, object, item).await,
            (_, At::MapBatch(map)) => self.put_items(map, body).await,
            (_, At::Messages(stream)) => self.publish(stream).await,
            (_, At::Permissions(kind, object)) => self.list_permissions(*kind, object).await,
            ("GET", At::Permission(kind, object, identity)) => self.read_permission(*kind, object, identity).await,
            ("POST", At::Permission(kind, object, identity)) => self.set_permission(*kind, object, identity).await,
            (_, At::Permission(kind, object, identity)) => self.remove_permission(*kind, object, identity).await,
        }
    }

    fn desk(&self) -> &Desk {
        &self.deps.desk
    }

    fn shown(&self) -> Shown<'_> {
        Shown::new(&self.deps.public_url, &self.service.service)
    }

    fn condition(&self) -> Result<Condition, Fault> {
        Condition::of(&self.parts.headers)
    }

    fn query(&self) -> Result<Params, Fault> {
        query_of(self.parts)
    }

    /// A page of a listing of `key`.
    fn page(&self, page: &Page, filters: &str, key: &str, entries: &[String], (previous, next): (Option<&Edge>, Option<&Edge>)) -> Outcome {
        Ok(Reply::ok(page_of(self.deps, self.parts, page, filters, key, entries, (previous, next))))
    }
}

fn query_of(parts: &Parts) -> Result<Params, Fault> {
    Params::parse(parts.uri.query().unwrap_or_default().as_bytes())
}

/// A page as JSON text, of entries that are such.
fn page_of(
    deps: &Deps,
    parts: &Parts,
    page: &Page,
    filters: &str,
    key: &str,
    entries: &[String],
    (previous, next): (Option<&Edge>, Option<&Edge>),
) -> String {
    let address = format!("{}{}", deps.public_url, parts.uri.path());
    let meta = render::json(&page.meta(&address, filters, key, previous, next));
    format!("{{\"{key}\":[{}],\"meta\":{meta}}}", entries.join(","))
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
