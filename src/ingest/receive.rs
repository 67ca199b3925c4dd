//! RECEIVE: the handler of `POST /v1/events`, in order: limit, verify, read, decode, translate, validate, identify, append, answer.
//! Called by the router. Must never log bodies, keys or ids.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Serialize;

use super::admission::Share;
use super::batch::{Assigned, Batch, Rejected};
use super::canonical::Sender;
use super::decode::{self, Encoding, Undecodable};
use super::dialects::native::Unreadable;
use super::reject::{Code, Level};
use super::seen::Sight;
use super::{Ingest, MAX_BODY_BYTES, PeerAddress, Room, sender};
use crate::event::{Record, SiteId};
use crate::eventlog::{Error as LogError, Topic};
use crate::problem::{self, Problem};
use crate::site::{Elsewhere, Grant, Sites};

/// Bytes of a body over the limit that are still read, so that its sender gets the answer.
const DISCARD_BYTES: usize = 4 * MAX_BODY_BYTES;
/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Bodies longer than this are worked on by a blocking thread, so that they hold no other request up.
const OFFLOAD_BYTES: usize = 256 << 10;

/// What ingest counts. Labels come from [`Code`] alone.
pub(super) struct Meters {
    accepted: metrics::Counter,
    body_bytes: metrics::Counter,
    in_flight: metrics::Gauge,
    append_seconds: metrics::Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            accepted: metrics::counter!("contrail_ingest_events_appended_total"),
            body_bytes: metrics::counter!("contrail_ingest_body_bytes_total"),
            in_flight: metrics::gauge!("contrail_ingest_requests_in_flight"),
            append_seconds: metrics::histogram!("contrail_ingest_append_seconds"),
        }
    }
}

/// The answer when every valid event is durable.
#[derive(Debug, Default, Serialize)]
pub struct Answer {
    /// Valid events appended that looked new.
    pub accepted: usize,
    /// Valid events appended that were appended of late already.
    pub duplicates: usize,
    /// Valid events appended whose id was appended of late with other content.
    pub conflicts: usize,
    /// Events not taken.
    pub rejected: Vec<Rejected>,
    /// Ids made here.
    pub assigned: Vec<Assigned>,
}

/// Why a whole request was not taken.
#[derive(Debug)]
pub struct Refused {
    /// Which row of the table.
    pub code: Code,
    /// About this request; never holds its content.
    pub detail: Cow<'static, str>,
    /// Byte offset into the decoded body, for syntax errors.
    pub offset: Option<usize>,
    /// Ids its events got before it failed; to be sent with the repetition.
    pub assigned: Vec<Assigned>,
    /// The region to ask instead.
    pub elsewhere: Option<Elsewhere>,
}

impl From<Code> for Refused {
    fn from(code: Code) -> Self {
        Self { code, detail: code.row().title.into(), offset: None, assigned: Vec::new(), elsewhere: None }
    }
}

/// A problem with the ids that the repetition should carry.
#[derive(Serialize)]
struct ProblemWithIds {
    #[serde(flatten)]
    problem: Problem,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    assigned: Vec<Assigned>,
}

/// `POST /v1/events`.
pub(super) async fn receive(State(ingest): State<Ingest>, request: Request<Body>) -> Response<Body> {
    let room = &*ingest.0;
    let origin = request.headers().get(header::ORIGIN).cloned();
    let _guard = InFlight::new(room);
    let mut response = match room.take(&ingest, request).await {
        Ok(answer) => ok(&answer),
        Err(refused) => {
            let unread = refused.code.leaves_body_unread();
            let mut response = refused.into_response();
            if unread {
                // The body is still to come, and nobody will take it: the sender learns that this connection ends.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    if let Some(origin) = origin {
        allow_origin(&room.deps.sites, &origin, response.headers_mut());
    }
    response
}

/// Counts a request in flight; down again also when the sender goes away and its future is dropped.
pub(super) struct InFlight<'a>(&'a metrics::Gauge);

impl<'a> InFlight<'a> {
    pub(super) fn new(room: &'a Room) -> Self {
        room.meters.in_flight.increment(1.0);
        Self(&room.meters.in_flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// `OPTIONS /v1/events`: a preflight carries no key, so it is told what any site allows; the request itself is held to its own site's list.
pub(super) async fn preflight(State(ingest): State<Ingest>, headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    answer.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    if headers.get(header::ORIGIN).is_some_and(|origin| allow_origin(&ingest.0.deps.sites, origin, answer)) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        let allowed = "authorization, content-type, content-encoding, x-write-key, idempotency-key, webhook-id";
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    }
    response
}

/// Any other method.
pub(super) async fn other_method(method: Method) -> Response<Body> {
    tracing::debug!(%method, "events are sent by POST");
    let mut response = Refused::from(Code::MethodNotAllowed).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    response
}

/// Lets the page read the answer, if any site allows its origin.
fn allow_origin(sites: &Sites, origin: &HeaderValue, headers: &mut HeaderMap) -> bool {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let allowed = origin.to_str().is_ok_and(|origin| sites.any_allows_origin(origin));
    if allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
    }
    allowed
}

pub(super) fn ok(answer: &Answer) -> Response<Body> {
    // Plain data always serialises.
    let mut response = Response::new(Body::from(serde_json::to_vec(answer).unwrap_or_default()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Refused {
    pub(crate) fn into_response(self) -> Response<Body> {
        let row = self.code.row();
        let mut problem = match &self.elsewhere {
            Some(Elsewhere { region, url }) => Problem::elsewhere(region.as_str(), url.as_deref()),
            None => Problem::new(row.status, row.code, row.title, self.detail),
        };
        problem.offset = self.offset;
        let mut response = problem::respond(row.status.as_u16(), &ProblemWithIds { problem, assigned: self.assigned });
        if let Some(seconds) = row.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if row.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"contrail\""));
        }
        response
    }
}

impl Ingest {
    /// Takes a body from within the process as a request of the site's own server (not compressed, past rates and the byte budget): import,
    /// and replay of quarantine. Durable when it returns `Ok`.
    ///
    /// # Errors
    /// As over HTTP; `code` says whether to repeat.
    pub async fn submit(&self, site: &SiteId, body: Bytes) -> Result<Answer, Refused> {
        self.0.append(self.read_own(site, body).await?, site).await
    }

    /// What [`Self::submit`] would append of a body's valid events, each with its place in the body. Nothing is kept.
    ///
    /// # Errors
    /// When nothing of the body can be taken.
    pub async fn rehearse(&self, site: &SiteId, body: Bytes) -> Result<Vec<(usize, Record)>, Refused> {
        Ok(self.read_own(site, body).await?.into_events())
    }

    /// Reads a body from within the process.
    async fn read_own(&self, site: &SiteId, body: Bytes) -> Result<Batch, Refused> {
        if body.len() > MAX_BODY_BYTES {
            return Err(Code::BodyTooLarge.into());
        }
        let sender = Sender { site: site.clone(), received_at: self.0.deps.clock.now(), browser: false, agent: None, delivery: None };
        read_batch(self, body, sender).await
    }
}

impl Room {
    /// Limit and verify; what fails from here on counts as its site's refusal.
    async fn take(&self, ingest: &Ingest, request: Request<Body>) -> Result<Answer, Refused> {
        let (head, body) = request.into_parts();
        let verified = match head.extensions.get::<PeerAddress>() {
            Some(PeerAddress(address)) => self.rates.request(*address),
            None => Ok(()),
        };
        let grant = verified.and_then(|()| sender::authenticate(&head.headers, &self.deps.sites)).map_err(Refused::from);
        // A site of another region is not this one's to count refusals of: that would be stored.
        let grant = grant.and_then(|grant| self.of_this_region(grant)).inspect_err(|refused| count_refused(refused.code))?;
        let site = &grant.site.id;
        let taken = async {
            let sender = sender::of_request(&head.headers, &grant, self.deps.clock.now())?;
            let dry_run = sender::dry_run(&head.uri)?;
            let mut share = self.budget.share();
            let body = self.read(&head.headers, body, &mut share).await?;
            let batch = read_batch(ingest, body, sender).await?;
            self.rates.events(grant.key, grant.site.hash, batch.events())?;
            if dry_run { Ok(Answer::of(batch)) } else { self.append(batch, site).await }
        };
        taken.await.inspect_err(|refused: &Refused| {
            count_refused(refused.code);
            self.refusals.count(site, refused.code);
        })
    }

    /// Lets through who sends for a site that is taken here.
    fn of_this_region(&self, grant: Arc<Grant>) -> Result<Arc<Grant>, Refused> {
        match self.deps.sites.elsewhere(&grant.site) {
            None => Ok(grant),
            elsewhere => Err(Refused { elsewhere, ..Code::RegionElsewhere.into() }),
        }
    }

    /// Reads and decodes the body, holding a share of the budget for it, its decoded form and the records made of that.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body, share: &mut Share) -> Result<Bytes, Refused> {
        let encoding = match headers.get(header::CONTENT_ENCODING) {
            None => Encoding::Identity,
            Some(value) => value.to_str().ok().and_then(Encoding::parse).ok_or(Code::EncodingUnsupported)?,
        };
        let body = within(self.deps.settings.body_timeout, read_body(body, share)).await.ok_or(Code::BodyTimeout)??;
        self.meters.body_bytes.increment(body.len() as u64);
        let sent = body.len();
        match decode::decode(encoding, body, MAX_BODY_BYTES, |decoded| share.grow_to(2 * (sent + decoded)))? {
            Ok(body) => Ok(body),
            Err(Undecodable::TooLarge) => Err(Code::DecodedTooLarge.into()),
            Err(Undecodable::Corrupt) => Err(Code::EncodingCorrupt.into()),
        }
    }

    /// Appends and says what was taken.
    pub(super) async fn append(&self, mut batch: Batch, site: &SiteId) -> Result<Answer, Refused> {
        let appends = batch.take_appends();
        if !appends.is_empty() {
            let records = appends.len();
            let started = Instant::now();
            let appended = tokio::time::timeout(self.deps.settings.append_timeout, self.deps.log.append(Topic::Events, appends)).await;
            self.meters.append_seconds.record(started.elapsed().as_secs_f64());
            let failed = match appended {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(not_appended(&error)),
                Err(_) => Some(Code::LogUnavailable),
            };
            if let Some(code) = failed {
                return Err(Refused { assigned: batch.assigned, ..code.into() });
            }
            self.meters.accepted.increment(records as u64);
        }
        for code in &batch.lost {
            self.refusals.count(site, *code);
        }
        for rejected in &batch.rejected {
            metrics::counter!("contrail_ingest_events_rejected_total", "code" => rejected.code).increment(1);
        }
        let sights: Vec<Sight> = batch.marks.iter().map(|mark| self.seen.note(*mark)).collect();
        let count = |sight| sights.iter().filter(|s| **s == sight).count();
        let (duplicates, conflicts) = (count(Sight::Duplicate), count(Sight::Conflict));
        let answer = Answer::of(batch);
        Ok(Answer { accepted: answer.accepted - duplicates - conflicts, duplicates, conflicts, ..answer })
    }
}

impl Answer {
    fn of(batch: Batch) -> Self {
        Self { accepted: batch.marks.len(), duplicates: 0, conflicts: 0, rejected: batch.rejected, assigned: batch.assigned }
    }
}

pub(super) fn count_refused(code: Code) {
    let row = code.row();
    metrics::counter!("contrail_ingest_requests_refused_total", "code" => row.code).increment(1);
    match row.level {
        Level::Debug => tracing::debug!(code = row.code, "refused a request"),
        Level::Warn => tracing::warn!(code = row.code, "refused a request"),
    }
}

fn not_appended(error: &LogError) -> Code {
    tracing::warn!(%error, "an append failed");
    match error {
        LogError::Full(_) => Code::LogFull,
        LogError::Damaged { .. } => Code::LogDamaged,
        LogError::Unavailable(_) => Code::LogUnavailable,
        LogError::Closed(_) | LogError::TooLarge { .. } | LogError::OutOfRange { .. } | LogError::Format(_) => Code::LogClosed,
    }
}

async fn read_batch(ingest: &Ingest, body: Bytes, sender: Sender) -> Result<Batch, Refused> {
    let read = if body.len() <= OFFLOAD_BYTES {
        Batch::read(&body, &sender, &ingest.0.crawlers)
    } else {
        let crawlers = Arc::clone(&ingest.0.crawlers);
        // The closure owns all it needs; it fails only by a panic, or when the runtime stops.
        let read = tokio::task::spawn_blocking(move || Batch::read(&body, &sender, &crawlers)).await;
        read.map_err(|_| Code::Overloaded)?
    };
    read.map_err(|unreadable| match unreadable {
        Unreadable::Empty => Code::BodyEmpty.into(),
        Unreadable::TooMany => Code::TooManyEvents.into(),
        Unreadable::Utf8(at) => Refused { offset: Some(at), ..Code::BodyNotUtf8.into() },
        Unreadable::Syntax(wanted, at) => Refused { offset: Some(at), detail: format!("expected {wanted}").into(), ..Code::BodyNotJson.into() },
    })
}

/// What `work` gives, if it ends in time. Most bodies are there with their heads: those need no timer.
async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    match std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        Poll::Ready(done) => Some(done),
        Poll::Pending => tokio::time::timeout(time, work).await.ok(),
    }
}

/// The whole body as sent. A body in one piece is not copied.
async fn read_body(mut body: Body, share: &mut Share) -> Result<Bytes, Code> {
    let stated = body.size_hint();
    if stated.lower() > MAX_BODY_BYTES as u64 {
        discard(body).await;
        return Err(Code::BodyTooLarge);
    }
    // The body and the records made of it.
    share.grow_to(2 * stated.lower() as usize)?;
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Code::BodyIncomplete)?.into_data() else { continue };
        let held = first.len() + more.len() + data.len();
        if held > MAX_BODY_BYTES {
            discard(body).await;
            return Err(Code::BodyTooLarge);
        }
        share.grow_to(2 * held)?;
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.reserve((stated.lower() as usize).max(held));
                more.extend_from_slice(&std::mem::take(&mut first));
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

/// Reads on for a moment what is thrown away: a connection closed on a sender that is still sending is reset, and the answer lost with it.
async fn discard(mut body: Body) {
    let mut left = DISCARD_BYTES;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Out of time, the sender may see a reset instead of the answer.
    tokio::time::timeout(DISCARD_TIME, reading).await.unwrap_or_default();
}

#[cfg(test)]
mod tests;
