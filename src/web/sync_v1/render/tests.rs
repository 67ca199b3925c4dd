//! What is shown, field by field and in full, against what the API's own description has.

use serde_json::{Value, json};

use super::*;
use crate::event::SiteId;
use crate::site::Limits;
use crate::sync::Life;

const ACCOUNT: &str = "AC11111111111111111111111111111111";
const SERVICE: &str = "IS22222222222222222222222222222222";
const HOME: &str = "https://contrail.example/v1/Services/IS22222222222222222222222222222222";

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn service() -> Service {
    Service {
        sid: SERVICE.into(),
        account_sid: ACCOUNT.into(),
        unique_name: Some("default".into()),
        friendly_name: None,
        webhook_url: Some("https://shop.example/hook".into()),
        webhooks_from_rest_enabled: true,
        reachability_webhooks_enabled: false,
        acl_enabled: true,
        reachability_debouncing_enabled: false,
        reachability_debouncing_window: 5_000,
        created_at: at("2026-11-20T10:00:00.999Z"),
        updated_at: at("2026-11-20T10:00:01Z"),
        limits: Limits::Open,
    }
}

fn snapshot(kind: ObjectKind, name: &str) -> Snapshot {
    Snapshot {
        key: ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() },
        revision: 3,
        event_id: 9,
        created_at: at("2026-11-20T10:00:00.123456Z"),
        updated_at: at("2026-11-20T10:01:00Z"),
        incarnation: 5,
        created_by: String::new(),
        expires_at: None,
        data: (kind == ObjectKind::Document).then(|| "{\"a\": 1.0}".into()),
        items: Vec::new(),
    }
}

fn shown(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn object(snapshot: &Snapshot) -> (String, Value) {
    let (service, facts) = (service(), Object::from(snapshot));
    (facts.sid(), shown(&Shown::new("https://contrail.example", &service).object(&facts)))
}

#[test]
fn services() {
    let service = service();
    assert_eq!(
        shown(&Shown::new("https://contrail.example", &service).service()),
        json!({
            "sid": SERVICE,
            "unique_name": "default",
            "account_sid": ACCOUNT,
            "friendly_name": null,
            "date_created": "2026-11-20T10:00:00Z",
            "date_updated": "2026-11-20T10:00:01Z",
            "url": HOME,
            "webhook_url": "https://shop.example/hook",
            "webhooks_from_rest_enabled": true,
            "reachability_webhooks_enabled": false,
            "acl_enabled": true,
            "reachability_debouncing_enabled": false,
            "reachability_debouncing_window": 5_000,
            "links": {
                "documents": format!("{HOME}/Documents"),
                "lists": format!("{HOME}/Lists"),
                "maps": format!("{HOME}/Maps"),
                "streams": format!("{HOME}/Streams"),
            },
        })
    );
}

#[test]
fn documents() {
    let with = Snapshot { expires_at: Some(at("2026-11-21T10:00:00.5Z")), created_by: "alice".into(), ..snapshot(ObjectKind::Document, "a/b") };
    let (sid, value) = object(&with);
    assert_eq!(
        value,
        json!({
            "sid": sid,
            "unique_name": "a/b",
            "account_sid": ACCOUNT,
            "service_sid": SERVICE,
            "url": format!("{HOME}/Documents/{sid}"),
            "links": {"permissions": format!("{HOME}/Documents/{sid}/Permissions")},
            "revision": "2",
            "data": {"a": 1.0},
            "date_expires": "2026-11-21T10:00:00Z",
            "date_created": "2026-11-20T10:00:00Z",
            "date_updated": "2026-11-20T10:01:00Z",
            "created_by": "alice",
        })
    );
    assert!(sid.starts_with("ET"));
    let text = Shown::new("", &service()).object(&Object::from(&with));
    assert!(text.contains("{\"a\": 1.0}"), "data goes out as it came: {text}");
}

#[test]
fn lists_maps_and_streams() {
    for (kind, prefix, plural) in [(ObjectKind::List, "ES", "Lists"), (ObjectKind::Map, "MP", "Maps"), (ObjectKind::Stream, "TO", "Streams")] {
        let name = naming::unnamed(&[1; 16]);
        let (sid, value) = object(&snapshot(kind, &name));
        assert!(sid.starts_with(prefix));
        let url = format!("{HOME}/{plural}/{sid}");
        let mut wanted = json!({
            "sid": sid,
            "unique_name": null,
            "account_sid": ACCOUNT,
            "service_sid": SERVICE,
            "url": url,
            "links": {"items": format!("{url}/Items"), "permissions": format!("{url}/Permissions")},
            "revision": "2",
            "date_expires": null,
            "date_created": "2026-11-20T10:00:00Z",
            "date_updated": "2026-11-20T10:01:00Z",
            "created_by": "system",
        });
        if kind == ObjectKind::Stream {
            wanted["links"] = json!({"messages": format!("{url}/Messages")});
            wanted.as_object_mut().unwrap().remove("revision");
        }
        assert_eq!(value, wanted);
    }
}

#[test]
fn an_object_is_shown_alike_by_snapshot_and_by_head() {
    let of = snapshot(ObjectKind::Map, "m");
    let head = Head {
        revision: of.revision,
        created_at: of.created_at,
        updated_at: of.updated_at,
        incarnation: of.incarnation,
        created_by: "bob".into(),
        expires_at: Some(at("2026-11-21T10:00:00Z")),
        ..Head::default()
    };
    let by_snapshot = Snapshot { created_by: "bob".into(), expires_at: head.expires_at, ..of.clone() };
    let service = service();
    let face = Shown::new("https://contrail.example", &service);
    assert_eq!(face.object(&Object::from(&(of.key, head))), face.object(&Object::from(&by_snapshot)));
}

#[test]
fn items() {
    let item = |name: &str| SnapshotItem {
        item: name.into(),
        revision: 1,
        event_id: 4,
        updated_at: at("2026-11-20T10:01:00.5Z"),
        life: Life { began: 4, created_at: at("2026-11-20T10:00:00Z"), created_by: "alice".into(), expires_at: None },
        data: "{}".into(),
    };
    let service = service();
    let face = Shown::new("https://contrail.example", &service);
    let common = json!({
        "account_sid": ACCOUNT,
        "service_sid": SERVICE,
        "revision": "0",
        "data": {},
        "date_expires": null,
        "date_created": "2026-11-20T10:00:00Z",
        "date_updated": "2026-11-20T10:01:00Z",
        "created_by": "alice",
    });
    let with = |more: Value| {
        let mut fields = common.as_object().unwrap().clone();
        fields.extend(more.as_object().unwrap().clone());
        Value::Object(fields)
    };
    let listed = shown(&face.item(ObjectKind::List, "ES1", &item("000000000000001f")));
    assert_eq!(listed, with(json!({"index": 31, "list_sid": "ES1", "url": format!("{HOME}/Lists/ES1/Items/31")})));
    let mapped = shown(&face.item(ObjectKind::Map, "MP1", &item("a/b \u{e9}.~")));
    assert_eq!(mapped, with(json!({"key": "a/b \u{e9}.~", "map_sid": "MP1", "url": format!("{HOME}/Maps/MP1/Items/a%2Fb%20%C3%A9.~")})));
}

#[test]
fn permissions_and_messages() {
    let service = service();
    let face = Shown::new("https://contrail.example", &service);
    let rights = Rights { read: true, write: false, manage: true };
    for (kind, field, plural) in
        [(ObjectKind::Document, "document_sid", "Documents"), (ObjectKind::List, "list_sid", "Lists"), (ObjectKind::Map, "map_sid", "Maps")]
    {
        let mut wanted = json!({
            "account_sid": ACCOUNT,
            "service_sid": SERVICE,
            "identity": "bob@shop",
            "read": true,
            "write": false,
            "manage": true,
            "url": format!("{HOME}/{plural}/XX1/Permissions/bob%40shop"),
        });
        wanted[field] = "XX1".into();
        assert_eq!(shown(&face.permission(kind, "XX1", "bob@shop", rights)), wanted);
    }
    assert_eq!(message("TZ1", "{\"a\":1}"), "{\"sid\":\"TZ1\",\"data\":{\"a\":1}}");
}
