//! Live reads: `GET /v1/live/{documents,lists,maps,streams}/<name>` and `.../events` (Server-Sent Events). Called by browsers and services; must never
//! wait for one of them on behalf of another, nor show an object before it is committed.
//!
//! A name is the rest of the path, percent-decoded; a name that itself ends in `/events` writes that slash as `%2F`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::Stream;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::event::{Clock, ObjectKey, ObjectKind, SiteId};
use crate::problem::Problem;
use crate::sync::object::{Snapshot, SnapshotItem};
use crate::sync::reader::{Reader, Resumed};
use crate::sync::{Applied, AppliedRow, Error, Feed, Subscription, Update, naming};

/// Decides who may read an object: the site it is read from, or the answer that refuses.
pub type Authorise = Arc<dyn Fn(&Parts, ObjectKind, &str) -> Result<SiteId, Box<Response>> + Send + Sync>;

/// How live reads work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most subscribers at a time; one more gets 503 with `Retry-After`.
    pub max_subscribers: usize,
    /// How often a comment is sent on a quiet stream.
    pub comment_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_subscribers: 10_000, comment_every: Duration::from_secs(15) }
    }
}

/// What live reads need.
#[derive(Clone)]
struct Live {
    reader: Reader,
    feed: Arc<dyn Feed>,
    clock: Clock,
    authorise: Authorise,
    subscribers: Arc<Semaphore>,
    comment_every: Duration,
}

/// How often a stream's credential is looked at while nothing happens; beside that before every message.
const RECHECK: Duration = Duration::from_secs(1);

/// The routes of live reads.
pub fn router(reader: Reader, feed: Arc<dyn Feed>, clock: Clock, authorise: Authorise, settings: &Settings) -> Router {
    let subscribers = Arc::new(Semaphore::new(settings.max_subscribers.min(Semaphore::MAX_PERMITS)));
    let live = Live { reader, feed, clock, authorise, subscribers, comment_every: settings.comment_every };
    Router::new().route("/v1/live/{kind}/{*name}", get(read)).with_state(live)
}

async fn read(State(live): State<Live>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let Some((kind, name, events)) = asked_for(parts.uri.path()) else { return not_found() };
    let site = match (live.authorise)(&parts, kind, &name) {
        Ok(site) => site,
        Err(refusal) => return *refusal,
    };
    let key = ObjectKey { site, kind, name };
    let answer = if events { live.subscribe(key, parts).await } else { live.show(&key).await };
    answer.unwrap_or_else(|refusal| *refusal)
}

/// Kind, name and whether the events are asked for; None where the path names no object.
fn asked_for(path: &str) -> Option<(ObjectKind, String, bool)> {
    let (kind, rest) = path.split_once("/v1/live/")?.1.split_once('/')?;
    let kind = match kind {
        "documents" => ObjectKind::Document,
        "lists" => ObjectKind::List,
        "maps" => ObjectKind::Map,
        "streams" => ObjectKind::Stream,
        _ => return None,
    };
    let (name, events) = rest.strip_suffix("/events").map_or((rest, false), |name| (name, true));
    let name = percent_decode_str(name).decode_utf8().ok()?.into_owned();
    (!name.is_empty() && name.len() <= naming::MAX_NAME).then_some((kind, name, events))
}

/// The event id a client that comes back has seen.
fn last_seen(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

type Refusal = Box<Response>;

impl Live {
    async fn show(&self, key: &ObjectKey) -> Result<Response, Refusal> {
        let snapshot = self.reader.get(key, self.clock.now()).await.map_err(|error| unreadable(&error))?.ok_or_else(|| Box::new(not_found()))?;
        let mut response = Response::new(body_of(&snapshot).into());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// Attaches first, then reads, then drops what the read included.
    async fn subscribe(&self, key: ObjectKey, request: Parts) -> Result<Response, Refusal> {
        let since = last_seen(&request.headers);
        let permit = Arc::clone(&self.subscribers).try_acquire_owned().map_err(|_| {
            let detail = "Too many subscribers are attached; try again later.";
            Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, "too_many_subscribers", detail))
        })?;
        let subscription = self.feed.subscribe(&key).await.map_err(|error| unreadable(&error))?;
        let mut follower = Follower {
            reader: self.reader.clone(),
            clock: self.clock.clone(),
            key,
            subscription,
            seen: 0,
            ready: VecDeque::new(),
            ended: false,
            authorise: Arc::clone(&self.authorise),
            request,
            _permit: permit,
        };
        // A stream's messages are not kept: there is nothing to begin with.
        if follower.key.kind != ObjectKind::Stream && !follower.begin(since).await.map_err(|error| unreadable(&error))? {
            return Err(Box::new(not_found()));
        }
        let comments = KeepAlive::new().interval(self.comment_every);
        let mut response = Sse::new(follower.stream()).keep_alive(comments).into_response();
        // Proxies that gather answers would hold events back.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }
}

/// One subscriber's place in one object. Holds at most the messages of one write beside the feed's bounded queue.
struct Follower {
    reader: Reader,
    clock: Clock,
    key: ObjectKey,
    subscription: Subscription,
    /// The greatest event id shown.
    seen: u64,
    ready: VecDeque<Event>,
    ended: bool,
    authorise: Authorise,
    /// The request as it came, with its credential.
    request: Parts,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// Makes ready what the client starts with; false where the object does not exist.
    async fn begin(&mut self, since: Option<u64>) -> Result<bool, Error> {
        let now = self.clock.now();
        let resumed = match since {
            Some(since) => self.reader.resume(&self.key, since, now).await?,
            None => self.reader.get(&self.key, now).await?.map(Resumed::Snapshot),
        };
        match resumed {
            None => return Ok(false),
            Some(Resumed::Snapshot(snapshot)) => {
                self.seen = snapshot.event_id;
                self.ready.push_back(message("snapshot", Some(snapshot.event_id), body_of(&snapshot)));
            }
            Some(Resumed::Rows { event_id, rows }) => {
                for (at, (id, row)) in rows.iter().enumerate() {
                    let last = rows.get(at + 1).is_none_or(|(next, _)| next != id);
                    self.ready.push_back(row_message(row, last.then_some(*id)));
                }
                self.seen = event_id;
            }
        }
        Ok(true)
    }

    /// The next message; None when the feed has stopped or the object cannot be read any longer.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let update = tokio::time::timeout(RECHECK, self.subscription.next()).await;
            if !self.is_allowed() {
                return None;
            }
            let Ok(update) = update else { continue };
            match update {
                Update::Write(write) if write.event_id <= self.seen => {}
                Update::Write(write) if write.after <= self.seen => self.take(&write),
                // A stream's messages are not kept: what was missed is gone, and there is nothing to begin anew with.
                Update::Lagged if self.key.kind == ObjectKind::Stream => {}
                // It lagged, or a write before this one did not come here.
                Update::Write(_) | Update::Lagged => match self.begin(None).await {
                    Ok(true) => {}
                    Ok(false) => self.ready.push_back(message("removed", None, "{}".to_owned())),
                    Err(error) => {
                        tracing::warn!(%error, site.id = %self.key.site, "a subscriber is let go: its object cannot be read");
                        self.ended = true;
                    }
                },
                Update::Closed => self.ended = true,
            }
        }
    }

    /// Whether the credential that opened this stream still opens the object: a token ends, a key is replaced.
    fn is_allowed(&self) -> bool {
        (self.authorise)(&self.request, self.key.kind, &self.key.name).is_ok_and(|site| site == self.key.site)
    }

    /// Shows a write that follows what was shown.
    fn take(&mut self, write: &Applied) {
        self.seen = write.event_id;
        if write.removed {
            // One message for the whole object, whatever rows it had.
            return self.ready.push_back(message("removed", Some(write.event_id), format!("{{\"revision\":{}}}", write.revision)));
        }
        let rows = write.rows.len();
        for (at, row) in write.rows.iter().enumerate() {
            let last = at + 1 == rows;
            self.ready.push_back(row_message(row, last.then_some(write.event_id)));
        }
    }

    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures::stream::unfold(self, |mut follower| async move { follower.next().await.map(|event| (Ok(event), follower)) })
    }
}

fn row_message(row: &AppliedRow, id: Option<u64>) -> Event {
    /// `data` of `change` and `removed`.
    #[derive(Serialize)]
    struct Changed<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        key: &'a str,
        revision: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
    }
    let name = if row.data.is_some() { "change" } else { "removed" };
    let data = row.data.as_deref().map(raw);
    message(name, id, to_json(&Changed { key: &row.item, revision: row.revision, data }))
}

/// One message. A carriage return can only be blank space between JSON tokens, and would end a line of the stream.
fn message(name: &str, id: Option<u64>, data: String) -> Event {
    let data = if data.contains('\r') { data.replace('\r', " ") } else { data };
    let event = Event::default().event(name).data(data);
    match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    }
}

/// The object as `GET` and `snapshot` show it.
fn body_of(snapshot: &Snapshot) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        kind: ObjectKind,
        name: &'a str,
        sid: String,
        revision: u64,
        event_id: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        items: Option<Items<'a>>,
    }
    let key = &snapshot.key;
    let with_items = matches!(key.kind, ObjectKind::List | ObjectKind::Map);
    to_json(&Body {
        kind: key.kind,
        name: &key.name,
        sid: naming::sid(&key.site, key.kind, &key.name, 0),
        revision: snapshot.revision,
        event_id: snapshot.event_id,
        data: snapshot.data.as_deref().map(raw),
        items: with_items.then_some(Items(&snapshot.items)),
    })
}

/// Items by key, in their order: a list's is that of its indexes.
struct Items<'a>(&'a [SnapshotItem]);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Item<'a> {
            data: &'a RawValue,
            revision: u64,
        }
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for item in self.0 {
            map.serialize_entry(&item.item, &Item { data: raw(&item.data), revision: item.revision })?;
        }
        map.end()
    }
}

/// JSON text as it stands; null where it is none, which the sync room does not render.
fn raw(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap_or(RawValue::NULL)
}

fn to_json(value: &impl Serialize) -> String {
    // Plain data with text keys always serialises.
    serde_json::to_string(value).unwrap_or_default()
}

fn not_found() -> Response {
    refuse(StatusCode::NOT_FOUND, "object_not_found", "There is no such object, or it was removed or has expired.")
}

/// The answer to an object that cannot be read now.
fn unreadable(error: &Error) -> Refusal {
    tracing::error!(%error, "a live read failed");
    Box::new(match error {
        Error::Corrupt { .. } => refuse(StatusCode::SERVICE_UNAVAILABLE, "object_frozen", "The object cannot be read; it has to be rebuilt."),
        Error::Store(_) | Error::Log(_) | Error::Closed => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "Objects cannot be read at present.")
        }
    })
}

fn refuse(status: StatusCode, code: &'static str, detail: &'static str) -> Response {
    let mut response = Problem::new(status, code, detail, detail).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

#[cfg(test)]
mod tests;
