//! A session stepped by hand: no socket, no waiting.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::web::realtime::crowd::{AccountLimits, Crowd};
use crate::web::realtime::testing::token;

const NOW: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

fn at(seconds: i64) -> Timestamp {
    NOW.plus_seconds(seconds)
}

/// Tokens are `identity:lifetime`, from [`NOW`] on; `+` asks for rights.
fn open(raw: &str) -> Result<Token, TokenFault> {
    let (identity, lifetime) = raw.split_once(':').ok_or(TokenFault::Invalid)?;
    let lifetime: i64 = lifetime.parse().map_err(|_| TokenFault::Invalid)?;
    let plain = token("AC1", false);
    Ok(Token {
        caller: Caller { identity: Some(identity.into()), acl: identity.ends_with('+'), ..plain.caller },
        identity: identity.into(),
        expires_at: at(lifetime),
        lifetime: Duration::from_secs(u64::try_from(lifetime).unwrap_or(0)),
        ..plain
    })
}

/// How tokens are opened, and whether there is room for anybody.
struct Door {
    open: fn(&str) -> Result<Token, TokenFault>,
    has_room: bool,
}

const DOOR: Door = Door { open, has_room: true };
const FULL: Door = Door { open, has_room: false };

impl Gate for Door {
    fn open(&self, raw: &str) -> Result<Token, TokenFault> {
        (self.open)(raw)
    }

    fn enter(&self, token: &Token) -> Option<Place> {
        self.has_room.then(|| Arc::new(Crowd::new(AccountLimits::TWILIO)).enter(token))?
    }

    fn admits_request(&self, _: &Token) -> bool {
        self.has_room
    }
}

fn frame(header: &Value, payload: &str) -> Bytes {
    let mut header = header.clone();
    header["payload_size"] = payload.len().into();
    let header = header.to_string();
    format!("TWILSOCK V3.0 {}\r\n{header}\r\n{payload}", header.len()).into()
}

/// The header and payload of what a step sends.
fn sent(step: &Step) -> (Value, Value) {
    let Step::Send(bytes) = step else { panic!("{step:?}") };
    let text = std::str::from_utf8(bytes).unwrap();
    let mut parts = text.splitn(3, "\r\n").skip(1);
    let header: Value = serde_json::from_str(parts.next().unwrap()).unwrap();
    (header, serde_json::from_str(parts.next().unwrap()).unwrap_or(Value::Null))
}

fn init(token: &str) -> Bytes {
    let registrations = json!([{"product": "data_sync", "type": "ers", "message_types": ["twilio.sync.event"], "notification_protocol_version": 0}]);
    frame(&json!({"method": "init", "id": "TM1", "token": token, "continuation_token": null, "registrations": registrations, "tweaks": {}}), "")
}

fn opened(token: &str) -> Session {
    let mut session = Session::new(NOW);
    let steps = session.take(&init(token), NOW, &DOOR);
    assert_eq!((steps.len(), &sent(&steps[0]).0["status"]["code"]), (1, &json!(200)));
    session
}

fn status(steps: &[Step]) -> (Value, Value) {
    let (header, _) = sent(&steps[0]);
    (header["status"]["code"].clone(), header["status"]["errorCode"].clone())
}

#[test]
fn init_is_answered_with_what_both_sdks_need() {
    let mut session = Session::new(NOW);
    assert!(session.caller().is_none());
    let steps = session.take(&init("alice:3600"), NOW, &DOOR);
    let (header, _) = sent(&steps[0]);
    assert_eq!((&header["method"], &header["id"], &header["status"]), (&json!("reply"), &json!("TM1"), &json!({"code": 200, "status": "OK"})));
    let account = json!({"account_sid": "AC1", "instance_sids": {"data_sync": "IS1"}, "identity": "alice"});
    assert_eq!(header["account_descriptor"], account);
    assert_eq!(header["init_registrations"][0]["product"], "data_sync");
    assert!(header["init_registrations"][0]["notification_ctx_id"].is_string());
    assert!(!header["continuation_token"].as_str().unwrap().is_empty());
    assert_eq!((header.get("offline_storage"), &header["capabilities"]), (None, &json!(["client_update"])));
    assert_eq!((session.caller().unwrap().identity(), session.is_continued()), ("alice", false));
    // Who comes back keeps its continuation.
    let mut again = Session::new(NOW);
    let back = frame(&json!({"method": "init", "id": "TM2", "token": "alice:3600", "continuation_token": "abc"}), "");
    let steps = again.take(&back, NOW, &DOOR);
    assert_eq!((&sent(&steps[0]).0["continuation_token"], again.is_continued()), (&json!("abc"), true));
}

#[test]
fn tokens_that_open_nothing_end_the_session() {
    for (token, code) in [("nobody", 20101), ("alice:0", 20104), ("alice:-5", 20104)] {
        let mut session = Session::new(NOW);
        let steps = session.take(&init(token), NOW, &DOOR);
        assert_eq!(status(&steps), (401.into(), code.into()), "{token}");
        assert!(matches!(steps[1], Step::End("401")) && session.caller().is_none());
    }
    let mut session = Session::new(NOW);
    let steps = session.take(&frame(&json!({"method": "message", "id": "TM1", "http_request": {}}), ""), NOW, &DOOR);
    assert_eq!((status(&steps).0, matches!(steps[1], Step::End("uninitialised"))), (401.into(), true));
}

#[test]
fn a_token_is_renewed_for_the_same_bearer_only() {
    let mut session = opened("alice:3600");
    let update = |token: &str| frame(&json!({"method": "update", "id": "TM2", "token": token}), "");
    assert_eq!(status(&session.take(&update("bob:3600"), at(1), &DOOR)), (401.into(), 51215.into()));
    assert_eq!(status(&session.take(&update("alice:1"), at(1), &DOOR)), (401.into(), 20104.into()));
    assert_eq!(status(&session.take(&update("x"), at(1), &DOOR)), (401.into(), 20101.into()));
    assert_eq!(status(&session.take(&update("alice:7200"), at(1), &DOOR)).0, 200);
    let mut time = 1;
    while time < 3_700 {
        session.take(&frame(&json!({"method": "reply", "id": "TM9"}), ""), at(time), &DOOR);
        assert!(session.tick(at(time), &DOOR).iter().all(|step| sent(step).0["method"] == "ping"), "the old token's end is nothing at {time}");
        time += 10;
    }
}

#[test]
fn a_token_that_ends_is_told_before_and_ends_the_session() {
    let mut session = opened("alice:3600");
    let alive = frame(&json!({"method": "reply", "id": "TM9", "status": {"code": 200}}), "");
    let mut told = Vec::new();
    for second in 1..=3_600 {
        assert!(session.take(&alive, at(second), &DOOR).is_empty());
        for step in session.tick(at(second), &DOOR) {
            let (header, _) = sent(&step);
            if header["method"] != "ping" {
                told.push((second, header));
            }
        }
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((told[0].0, &told[0].1["client_update_type"]), (3_420, &json!("token_about_to_expire")));
    let status = json!({"code": 410, "status": "TOKEN_EXPIRED", "errorCode": 51207, "description": "Token expired"});
    assert_eq!((told[1].0, &told[1].1["method"], &told[1].1["status"]), (3_600, &json!("close"), &status));
    assert!(session.is_leaving() && session.caller().is_none());
    // The client's answer, or the time it has for that, ends it.
    let answer = frame(&json!({"method": "reply", "id": told[1].1["id"]}), "");
    assert!(matches!(session.take(&answer, at(3_601), &DOOR)[..], [Step::End("410")]));
    assert!(matches!(session.tick(at(3_600 + LEAVE_WITHIN), &DOOR)[..], [Step::End("410")]));
}

#[test]
fn a_short_lived_token_is_not_told_of_at_once() {
    let mut session = opened("alice:60");
    assert!(session.tick(at(19), &DOOR).is_empty());
    let warned: Vec<Step> = (20..=31).flat_map(|second| session.tick(at(second), &DOOR)).collect();
    assert_eq!(warned.iter().filter(|step| sent(step).0["method"] == "client_update").count(), 1);
}

#[test]
fn a_token_is_looked_at_again() {
    let mut session = opened("alice:3600");
    let strict = Door { open: |raw| open(raw).map(|token| Token { caller: Caller { acl: true, ..token.caller }, ..token }), ..DOOR };
    assert!(session.tick(at(19), &strict).is_empty());
    assert!(matches!(session.tick(at(20), &strict)[0], Step::CheckRights));
    assert!(session.caller().unwrap().acl);
    let steps = session.tick(at(40), &Door { open: |_| Err(TokenFault::Invalid), ..DOOR });
    assert_eq!(status(&steps), (401.into(), 20101.into()));
    assert_eq!((sent(&steps[0]).0["method"].clone(), session.is_leaving()), (json!("close"), true));
}

#[test]
fn silence_is_pinged_and_then_ends() {
    let mut session = opened("alice:3600");
    let pings = (1..75).flat_map(|second| session.tick(at(second), &DOOR)).filter(|step| sent(step).0["method"] == "ping").count();
    assert_eq!(pings, 3);
    assert!(matches!(session.tick(at(75), &DOOR)[..], [Step::End("silent")]));
    let mut new = Session::new(NOW);
    assert!(new.tick(at(29), &DOOR).is_empty());
    assert!(matches!(new.tick(at(30), &DOOR)[..], [Step::End("uninitialised")]));
}

#[test]
fn the_next_tick_is_when_something_is_due() {
    let mut session = opened("alice:3600");
    let mut time = NOW;
    for _ in 0..1_000 {
        time = session.next_tick();
        if !session.tick(time, &DOOR).is_empty() && time >= at(3_600) {
            break;
        }
        session.take(&frame(&json!({"method": "reply", "id": "x"}), ""), time, &DOOR);
    }
    assert_eq!((time, session.is_leaving()), (at(3_600), true));
}

#[test]
fn offload_says_when_to_come_back() {
    let mut session = opened("alice:3600");
    let (header, payload) = sent(&session.offload(NOW)[0]);
    assert_eq!((&header["method"], &header["status"]["code"]), (&json!("close"), &json!(308)));
    assert!((250..3_000).contains(&payload["backoff_policy"]["reconnect_min_ms"].as_u64().unwrap()));
    assert!(session.take(&frame(&json!({"method": "message", "id": "TM3", "http_request": {}}), ""), NOW, &DOOR).is_empty());
    let steps = session.take(&frame(&json!({"method": "close", "id": "TM4"}), ""), NOW, &DOOR);
    assert!(matches!(steps[..], [Step::Send(_), Step::End("client")]));
}

#[test]
fn old_clients_and_unknown_methods_are_answered() {
    let mut session = opened("alice:3600");
    for (method, code) in [("put_notification_ctx", 200), ("delete_notification_ctx", 200), ("dance", 400), ("message", 400)] {
        let steps =
            session.take(&frame(&json!({"method": method, "id": "TM5", "notification_ctx_id": "x"}), r#"{"product_id":"data_sync"}"#), NOW, &DOOR);
        assert_eq!(status(&steps).0, code, "{method}");
    }
    let steps = session.take(&Bytes::from_static(b"nonsense"), NOW, &DOOR);
    assert_eq!((status(&steps).0, session.is_leaving()), (406.into(), true));
    assert!(session.garbled(NOW).is_empty());
}

#[test]
fn requests_are_limited() {
    let mut session = opened("alice:3600");
    let message = frame(&json!({"method": "message", "id": "TM6", "http_request": {"path": "/v3/Maps/a", "method": "GET"}}), "");
    let asked = |session: &mut Session, at| (0..2_000).filter(|_| matches!(session.take(&message, at, &DOOR)[0], Step::Ask { .. })).count();
    assert_eq!(asked(&mut session, NOW), 500);
    let (header, payload) = sent(&session.take(&message, NOW, &DOOR)[0]);
    assert_eq!((&header["status"]["code"], &header["http_status"]["code"], &payload["code"]), (&json!(200), &json!(429), &json!(51202)));
    assert_eq!(payload["backoff_policy"]["reconnect_min_ms"], 1_000);
    assert_eq!(asked(&mut session, NOW.plus_micros(100_000)), 50);
    assert_eq!(asked(&mut session, at(9)), 500);
    // What its account has asked for elsewhere counts too.
    let (_, payload) = sent(&session.take(&message, at(20), &FULL)[0]);
    assert_eq!(payload["code"], 51202);
}

#[test]
fn a_client_of_an_account_with_too_many_is_told_to_come_back() {
    let mut session = Session::new(NOW);
    let steps = session.take(&init("alice:3600"), NOW, &FULL);
    let (header, payload) = sent(&steps[0]);
    let status = json!({"code": 429, "status": "TOO_MANY_REQUESTS", "errorCode": 51202, "description": "Too many requests"});
    assert_eq!((&header["method"], &header["status"]), (&json!("reply"), &status));
    let least = payload["backoff_policy"]["reconnect_min_ms"].as_u64().unwrap();
    assert!((1_000..3_000).contains(&least), "{least}");
    assert!(matches!(steps[1], Step::End("429")) && session.caller().is_none());
}
