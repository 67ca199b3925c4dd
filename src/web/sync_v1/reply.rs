//! Answers as they go out: status, headers, and the body of a refusal. Called by the handler for every request.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::render;
use crate::event::ids::fresh_uuid;
use crate::web::sync::Fault;

/// The headers that let pages of every origin ask: a request carries its credentials itself, no browser adds them.
const SHARED: [(HeaderName, &str); 5] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE, OPTIONS"),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "Accept, Authorization, Content-Type, If-Match, If-Modified-Since, If-None-Match, If-Unmodified-Since, Idempotency-Key",
    ),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "ETag"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
];
const REQUEST_ID: HeaderName = HeaderName::from_static("twilio-request-id");
const DURATION: HeaderName = HeaderName::from_static("twilio-request-duration");
const CONCURRENT: HeaderName = HeaderName::from_static("twilio-concurrent-requests");

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    status: StatusCode,
    /// As clients see it.
    revision: Option<String>,
    /// JSON; None for an answer without a body.
    body: Option<String>,
}

#[derive(Serialize)]
struct Refused<'a> {
    code: u32,
    message: &'a str,
    more_info: String,
    status: u16,
}

impl Reply {
    /// What is asked for.
    pub(super) const fn ok(body: String) -> Self {
        Self { status: StatusCode::OK, revision: None, body: Some(body) }
    }

    /// What was made.
    pub(super) const fn created(body: String) -> Self {
        Self { status: StatusCode::CREATED, revision: None, body: Some(body) }
    }

    /// Done, and nothing to show for it.
    pub(super) const fn done() -> Self {
        Self { status: StatusCode::NO_CONTENT, revision: None, body: None }
    }

    /// With the revision of what it shows, as objects count.
    #[must_use]
    pub(super) fn of_revision(self, revision: u64) -> Self {
        Self { revision: Some(render::revision(revision)), ..self }
    }

    /// The answer that goes out.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = respond(self.status, self.body);
        if let Some(tag) = self.revision.and_then(|revision| HeaderValue::try_from(format!("\"{revision}\"")).ok()) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// The answer that refuses what was asked of a path.
pub(super) fn refuse(fault: &Fault, path: &str) -> Response<Body> {
    let told = fault.told_by_rest(path.strip_prefix("/v1").unwrap_or(path));
    let more_info = format!("https://www.twilio.com/docs/errors/{}", told.code);
    let body = render::json(&Refused { code: told.code, message: &told.message, more_info, status: told.status });
    let mut response = respond(StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Some(body));
    let headers = response.headers_mut();
    match fault {
        Fault::Unauthorized => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Twilio API\""))),
        Fault::Method(allowed) => drop(headers.insert(header::ALLOW, HeaderValue::from_static(allowed))),
        _ if matches!(told.status, 429 | 503) => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
        _ => {}
    }
    response
}

/// Adds what every answer has. `running` counts the account's requests under way, this one among them.
pub(super) fn finish(headers: &mut HeaderMap, seconds: f64, running: usize) {
    for (name, value) in SHARED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let made = [(REQUEST_ID, format!("RQ{}", fresh_uuid().simple())), (DURATION, format!("{seconds:.3}")), (CONCURRENT, running.to_string())];
    for (name, value) in made {
        // Digits, letters and points are always legal.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

fn respond(status: StatusCode, body: Option<String>) -> Response<Body> {
    let has_body = body.is_some();
    let mut response = Response::new(body.map_or_else(Body::empty, Body::from));
    *response.status_mut() = status;
    if has_body {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8"));
    }
    response
}
