//! One client's session as a state machine: what comes and what time it is in, what is to be sent and done out. Stepped by a connection, which alone
//! knows sockets; pure but for the gate that it is given, which looks at tokens and counts who comes.

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::crowd::Place;
use super::frame::{self, Header, Outgoing, Registration, Status, encode, fresh_id};
use super::{Token, TokenFault};
use crate::event::Timestamp;
use crate::web::sync::Caller;

/// Seconds a client has to open its session.
const INIT_WITHIN: i64 = 30;
/// Seconds without anything sent after which a ping is: a client gives up after 45 without anything received.
const PING_AFTER: i64 = 20;
/// Seconds without anything received after which a client is taken to be gone: it answers pings.
const GONE_AFTER: i64 = 75;
/// Seconds before its end that a token's holder is told.
const WARN_BEFORE: i64 = 180;
/// How often a token is looked at again, in seconds: its key may be gone, or its service ask for rights now.
const LOOK_EVERY: i64 = 20;
/// Seconds a client has to leave once it is told to.
const LEAVE_WITHIN: i64 = 4;
/// Upstream requests a second, and how many may come at once.
const REQUESTS_PER_SECOND: i64 = 500;
/// Most bytes of a continuation token that is taken.
const LONGEST_CONTINUATION: usize = 128;

/// What a session asks of the outside, to be answered at once.
pub(super) trait Gate {
    /// Opens an access token.
    fn open(&self, raw: &str) -> Result<Token, TokenFault>;

    /// A place for one more connection of the token's account, until it is dropped; None where there is none now.
    fn enter(&self, token: &Token) -> Option<Place>;

    /// Whether the token's account may ask one thing more now.
    fn admits_request(&self, token: &Token) -> bool;
}

/// What a session wants done.
#[derive(Debug)]
pub(super) enum Step {
    /// Sends a frame.
    Send(Bytes),
    /// Asks the Sync API, and replies to the frame so named.
    Ask {
        /// The frame to reply to.
        id: String,
        /// What is asked.
        request: Box<RawValue>,
        /// Its body.
        payload: Bytes,
    },
    /// Looks at the rights of all that is subscribed to: the caller is another now.
    CheckRights,
    /// Ends the connection once what is to be sent is sent. Says why, for the count.
    End(&'static str),
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    stage: Stage,
    sent: Timestamp,
    heard: Timestamp,
    /// Requests that may come now, in millionths, at `allowed_at`.
    allowed: i64,
    allowed_at: Timestamp,
    continued: bool,
    /// Names the client over its connections; empty before the session is open.
    continuation: Box<str>,
    /// Among its account's connections, once the session is open.
    place: Option<Place>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing came yet.
    New { until: Timestamp },
    /// Open.
    Open(Box<Held>),
    /// The client is told to leave.
    Leaving { until: Timestamp, close: String, why: &'static str },
}

#[derive(Debug)]
struct Held {
    raw: Box<str>,
    token: Token,
    /// When its holder is to be told that it ends; None once that is done.
    warn_at: Option<Timestamp>,
    look_at: Timestamp,
}

impl Held {
    fn new(raw: &str, token: Token, now: Timestamp) -> Self {
        // Of one that lives shorter than the warning comes before its end: at half its time, or its successor would be asked for at once.
        let half = i64::try_from(token.lifetime.as_micros()).unwrap_or(i64::MAX) / 2;
        let warn_at = token.expires_at.plus_seconds(-WARN_BEFORE).max(token.expires_at.plus_micros(-half));
        Self { raw: raw.into(), token, warn_at: Some(warn_at), look_at: now.plus_seconds(LOOK_EVERY) }
    }
}

impl Held {
    /// Opens the token again: its service may have changed. Gives what follows for what is subscribed to.
    fn look(&mut self, now: Timestamp, gate: &dyn Gate) -> Result<Option<Step>, TokenFault> {
        self.look_at = now.plus_seconds(LOOK_EVERY);
        let token = gate.open(&self.raw)?;
        let other = token.caller.acl && !self.token.caller.acl;
        self.token = token;
        Ok(other.then_some(Step::CheckRights))
    }
}

impl Session {
    /// A client that has connected.
    pub(super) fn new(now: Timestamp) -> Self {
        let (allowed, until) = (REQUESTS_PER_SECOND * 1_000_000, now.plus_seconds(INIT_WITHIN));
        Self {
            stage: Stage::New { until },
            sent: now,
            heard: now,
            allowed,
            allowed_at: now,
            continued: false,
            continuation: Box::default(),
            place: None,
        }
    }

    /// Who asks; None before the session is open, and once it ends.
    pub(super) fn caller(&self) -> Option<&Caller> {
        if let Stage::Open(held) = &self.stage { Some(&held.token.caller) } else { None }
    }

    /// The service, as the client's token names it.
    pub(super) fn service(&self) -> Option<&str> {
        if let Stage::Open(held) = &self.stage { Some(&held.token.service_sid) } else { None }
    }

    /// Which of its identity's clients it is: as its token says, else from its first connection to its last one.
    pub(super) fn endpoint(&self) -> Option<String> {
        let Stage::Open(held) = &self.stage else { return None };
        let of_its_own = || Uuid::new_v5(&Uuid::NAMESPACE_OID, self.continuation.as_bytes()).simple().to_string();
        Some(held.token.endpoint.clone().unwrap_or_else(of_its_own))
    }

    /// Whether the client goes on from an earlier connection.
    pub(super) const fn is_continued(&self) -> bool {
        self.continued
    }

    /// Whether the client is told to leave.
    pub(super) const fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving { .. })
    }

    /// Notes that something else was sent.
    pub(super) const fn has_sent(&mut self, now: Timestamp) {
        self.sent = now;
    }

    /// Takes what came.
    pub(super) fn take(&mut self, bytes: &Bytes, now: Timestamp, gate: &dyn Gate) -> Vec<Step> {
        self.heard = now;
        let Ok(frame) = frame::decode(bytes) else { return self.garbled(now) };
        let steps = match (frame.header.method.as_str(), &self.stage) {
            ("close", _) => vec![reply(&frame.header.id, Status::OK), Step::End("client")],
            ("reply", Stage::Leaving { close, why, .. }) if *close == frame.header.id => vec![Step::End(why)],
            ("reply", _) | (_, Stage::Leaving { .. }) => Vec::new(),
            ("init", Stage::New { .. }) => self.init(frame.header, now, gate),
            (_, Stage::New { .. }) => vec![reply(&frame.header.id, unauthorized(20101, "Invalid Access Token")), Step::End("uninitialised")],
            ("update", Stage::Open(_)) => self.update(&frame.header, now, gate),
            ("message", Stage::Open(_)) => self.ask(frame, now, gate),
            ("put_notification_ctx" | "delete_notification_ctx" | "ping" | "telemetry.v1", Stage::Open(_)) => {
                vec![reply(&frame.header.id, Status::OK)]
            }
            (_, Stage::Open(_)) => vec![reply(&frame.header.id, Status { code: 400, status: "BAD_REQUEST", error: None, description: None })],
        };
        self.note(&steps, now);
        steps
    }

    /// Something came that is no frame.
    pub(super) fn garbled(&mut self, now: Timestamp) -> Vec<Step> {
        if self.is_leaving() {
            return Vec::new();
        }
        let status = Status { code: 406, status: "NOT_ACCEPTABLE", error: None, description: Some("Not a frame of Twilsock 3") };
        self.leave(now, status, "", "406")
    }

    /// What is due by now.
    pub(super) fn tick(&mut self, now: Timestamp, gate: &dyn Gate) -> Vec<Step> {
        if self.heard.plus_seconds(GONE_AFTER) <= now {
            return vec![Step::End("silent")];
        }
        let mut steps = match &mut self.stage {
            Stage::New { until } if *until <= now => vec![Step::End("uninitialised")],
            Stage::Leaving { until, why, .. } if *until <= now => vec![Step::End(why)],
            Stage::New { .. } | Stage::Leaving { .. } => Vec::new(),
            Stage::Open(held) => {
                let mut steps = Vec::new();
                if held.token.expires_at <= now {
                    return self.expire(now);
                }
                if held.look_at <= now {
                    match held.look(now, gate) {
                        Ok(checks) => steps.extend(checks),
                        Err(fault) => return self.lose(fault, now),
                    }
                }
                if held.warn_at.is_some_and(|at| at <= now) {
                    held.warn_at = None;
                    let (method, client_update_type) = ("client_update", Some("token_about_to_expire"));
                    steps.push(Step::Send(encode(Outgoing { method, id: &fresh_id(), client_update_type, ..Outgoing::default() }, "")));
                }
                steps
            }
        };
        if self.sent.plus_seconds(PING_AFTER) <= now && matches!(self.stage, Stage::Open(_)) {
            steps.push(Step::Send(encode(Outgoing { method: "ping", id: &fresh_id(), ..Outgoing::default() }, "")));
        }
        self.note(&steps, now);
        steps
    }

    /// When [`Session::tick`] has something to do next, should nothing happen until then.
    pub(super) fn next_tick(&self) -> Timestamp {
        let gone = self.heard.plus_seconds(GONE_AFTER);
        match &self.stage {
            Stage::New { until } | Stage::Leaving { until, .. } => gone.min(*until),
            Stage::Open(held) => {
                let warn = held.warn_at.unwrap_or(Timestamp::MAX);
                gone.min(self.sent.plus_seconds(PING_AFTER)).min(held.look_at).min(warn).min(held.token.expires_at)
            }
        }
    }

    /// Sends the client to another node.
    pub(super) fn offload(&mut self, now: Timestamp) -> Vec<Step> {
        let status = Status { code: 308, status: "PERMANENT_REDIRECT", error: None, description: Some("Offload") };
        self.leave(now, status, &backoff(250), "308")
    }

    fn expire(&mut self, now: Timestamp) -> Vec<Step> {
        let status = Status { code: 410, status: "TOKEN_EXPIRED", error: Some(51207), description: Some("Token expired") };
        self.leave(now, status, "", "410")
    }

    fn leave(&mut self, now: Timestamp, status: Status<'_>, payload: &str, why: &'static str) -> Vec<Step> {
        let close = fresh_id();
        let frame = encode(Outgoing { method: "close", id: &close, status: Some(status), ..Outgoing::default() }, payload);
        self.stage = Stage::Leaving { until: now.plus_seconds(LEAVE_WITHIN), close, why };
        self.sent = now;
        vec![Step::Send(frame)]
    }

    fn note(&mut self, steps: &[Step], now: Timestamp) {
        if steps.iter().any(|step| matches!(step, Step::Send(_))) {
            self.sent = now;
        }
    }

    fn init(&mut self, header: Header, now: Timestamp, gate: &dyn Gate) -> Vec<Step> {
        let raw = header.token.unwrap_or_default();
        let token = match gate.open(&raw) {
            Ok(token) if token.expires_at > now => token,
            Ok(_) | Err(TokenFault::Expired) => return refuse_init(&header.id, EXPIRED),
            Err(TokenFault::Invalid) => return refuse_init(&header.id, INVALID),
        };
        self.place = gate.enter(&token);
        if self.place.is_none() {
            return vec![Step::Send(too_many_connections(&header.id)), Step::End("429")];
        }
        let legal = |given: &String| (1..=LONGEST_CONTINUATION).contains(&given.len()) && given.bytes().all(|b| b.is_ascii_graphic());
        let continuation = header.continuation_token.filter(legal);
        self.continued = continuation.is_some();
        let continuation = continuation.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
        let opened = opened(&token, &continuation, &header.registrations.unwrap_or_default());
        self.stage = Stage::Open(Box::new(Held::new(&raw, token, now)));
        self.continuation = continuation.into();
        let header = Outgoing { method: "reply", id: &header.id, status: Some(Status::OK), opened: Some(&opened), ..Outgoing::default() };
        vec![Step::Send(encode(header, ""))]
    }

    fn update(&mut self, header: &Header, now: Timestamp, gate: &dyn Gate) -> Vec<Step> {
        let Stage::Open(held) = &mut self.stage else { return Vec::new() };
        let raw = header.token.as_deref().unwrap_or_default();
        let token = match gate.open(raw) {
            Ok(token) if token.expires_at > now => token,
            Ok(_) | Err(TokenFault::Expired) => return vec![reply(&header.id, unauthorized(EXPIRED.0, EXPIRED.1))],
            Err(TokenFault::Invalid) => return vec![reply(&header.id, unauthorized(INVALID.0, INVALID.1))],
        };
        let (old, new) = (&held.token, &token);
        if (&old.account_sid, &old.caller.site, &old.identity) != (&new.account_sid, &new.caller.site, &new.identity) {
            let told = "Can't update token, new token was issued for other identity/instance/product.";
            return vec![reply(&header.id, unauthorized(51215, told))];
        }
        let other = token.caller.acl && !held.token.caller.acl;
        **held = Held::new(raw, token, now);
        let mut steps = vec![reply(&header.id, Status::OK)];
        steps.extend(other.then_some(Step::CheckRights));
        steps
    }

    fn ask(&mut self, frame: frame::Frame, now: Timestamp, gate: &dyn Gate) -> Vec<Step> {
        let Stage::Open(held) = &mut self.stage else { return Vec::new() };
        // What is asked is judged by the service as it is now.
        let mut steps = match held.look(now, gate) {
            Ok(checks) => Vec::from_iter(checks),
            Err(fault) => return self.lose(fault, now),
        };
        let id = frame.header.id;
        let Some(request) = frame.header.http_request else {
            let status = Status { code: 400, status: "BAD_REQUEST", error: None, description: Some("No http_request") };
            steps.push(reply(&id, status));
            return steps;
        };
        let passed = now.micros().saturating_sub(self.allowed_at.micros()).clamp(0, 1_000_000);
        self.allowed = (self.allowed + passed * REQUESTS_PER_SECOND).min(REQUESTS_PER_SECOND * 1_000_000);
        self.allowed_at = now;
        if self.allowed < 1_000_000 || !gate.admits_request(&held.token) {
            steps.push(Step::Send(too_many(&id)));
            return steps;
        }
        self.allowed -= 1_000_000;
        steps.push(Step::Ask { id, request, payload: frame.payload });
        steps
    }

    /// The token opens nothing any longer.
    fn lose(&mut self, fault: TokenFault, now: Timestamp) -> Vec<Step> {
        match fault {
            TokenFault::Expired => self.expire(now),
            TokenFault::Invalid => self.leave(now, unauthorized(20101, "Invalid Access Token"), "", "401"),
        }
    }
}

const INVALID: (u32, &str) = (20101, "Invalid Access Token");
const EXPIRED: (u32, &str) = (20104, "Access Token expired or expiration date invalid");

/// All that the reply to `init` says. Without `offline_storage`: a browser would keep what objects were between pages, and go on from event ids of days
/// ago, where removals may be forgotten and SIDs have ended: it would tell its page that objects are removed which are there. Without it, it reads them.
fn opened(token: &Token, continuation: &str, registrations: &[Registration]) -> Map<String, Value> {
    let registered = |registration: &Registration| {
        let Registration { product, kind, message_types } = registration;
        json!({"notification_ctx_id": Uuid::new_v4().to_string(), "product": product, "type": kind, "message_types": message_types})
    };
    let mut out = Map::new();
    out.insert("continuation_token".into(), continuation.into());
    let status = json!({"reissued": false, "reissue_reason": "", "reissue_message": ""});
    out.insert("continuation_token_status".into(), status);
    out.insert("capabilities".into(), json!(["client_update"]));
    out.insert("init_registrations".into(), registrations.iter().map(registered).collect());
    let account = json!({"account_sid": token.account_sid, "instance_sids": {"data_sync": token.service_sid}, "identity": token.identity});
    out.insert("account_descriptor".into(), account);
    out
}

fn refuse_init(id: &str, (code, told): (u32, &'static str)) -> Vec<Step> {
    vec![reply(id, unauthorized(code, told)), Step::End("401")]
}

const fn unauthorized(code: u32, told: &str) -> Status<'_> {
    Status { code: 401, status: "UNAUTHORIZED", error: Some(code), description: Some(told) }
}

fn reply(id: &str, status: Status<'_>) -> Step {
    Step::Send(encode(Outgoing { method: "reply", id, status: Some(status), ..Outgoing::default() }, ""))
}

/// What an account's connections beyond its limits are told at `init`; they try again by themselves.
fn too_many_connections(id: &str) -> Bytes {
    let status = Status { code: 429, status: "TOO_MANY_REQUESTS", error: Some(51202), description: Some("Too many requests") };
    encode(Outgoing { method: "reply", id, status: Some(status), ..Outgoing::default() }, &backoff(1_000))
}

/// When a client comes back, so many milliseconds from now at the earliest: not all at once.
fn backoff(earliest: u32) -> String {
    let least: u32 = rand::random_range(earliest..3_000);
    json!({"backoff_policy": {"reconnect_min_ms": least, "reconnect_max_ms": least + 7_000}}).to_string()
}

/// Told as the Sync API tells it, not as the transport does: clients try again what the Sync API refuses so.
fn too_many(id: &str) -> Bytes {
    let body = json!({
        "code": 51202,
        "message": "Too many requests",
        "status": 429,
        "backoff_policy": {"reconnect_min_ms": 1_000, "reconnect_max_ms": 5_000},
    });
    let http_status = Some(Status { code: 429, status: "TOO_MANY_REQUESTS", error: None, description: None });
    encode(Outgoing { method: "reply", id, status: Some(Status::OK), http_status, ..Outgoing::default() }, &body.to_string())
}

#[cfg(test)]
mod tests;
