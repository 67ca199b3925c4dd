//! What a webhook says: from an event that archives what an API client did, or from a client that came or went, to the parameters of the form. Called by the
//! room's loop. Pure.

use serde::Deserialize;
use uuid::Uuid;

use crate::event::{Channel, ObjectKind, Record, RecordKind, SiteId, ids};
use crate::site::Service;

/// Who does what comes by REST, and what the server does by itself.
const SYSTEM: &str = "system";
/// How the keeper's events begin, whose keys are sorted. A sender's have no such key: ingest takes an event's id out of its body.
const BEGINNING: &[u8] = b"{\"event_id\":\"";

/// One webhook, but for what follows from the service's settings at the time that it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Names it, the same however often it is sent.
    pub(super) id: String,
    /// What must be told one after the other: an object, or a client.
    pub(super) about: String,
    /// Its place among those.
    pub(super) number: u64,
    /// Who did it.
    pub(super) identity: String,
    /// All parameters but the SIDs of account and service.
    params: Vec<(&'static str, String)>,
}

#[derive(Deserialize)]
struct Archived {
    event_id: String,
    properties: Properties,
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    dialect: String,
}

#[derive(Deserialize)]
struct Properties {
    action: String,
    identity: String,
    object: Object,
    item: Option<Item>,
    data: Option<String>,
}

#[derive(Deserialize)]
struct Object {
    sid: String,
    kind: ObjectKind,
    name: Option<String>,
    event_id: u64,
    revision: u64,
}

#[derive(Deserialize)]
struct Item {
    key: Option<String>,
    index: Option<u64>,
    revision: u64,
    data: String,
}

/// Names of the parameters of one kind of object.
struct Names {
    sid: &'static str,
    name: &'static str,
    revision: Option<&'static str>,
    data: Option<&'static str>,
}

const fn names(kind: ObjectKind) -> Names {
    match kind {
        ObjectKind::Document => {
            Names { sid: "DocumentSid", name: "DocumentUniqueName", revision: Some("DocumentRevision"), data: Some("DocumentData") }
        }
        ObjectKind::List => Names { sid: "ListSid", name: "ListUniqueName", revision: Some("ListRevision"), data: None },
        ObjectKind::Map => Names { sid: "MapSid", name: "MapUniqueName", revision: Some("MapRevision"), data: None },
        ObjectKind::Stream => Names { sid: "StreamSid", name: "StreamUniqueName", revision: None, data: Some("MessageData") },
    }
}

impl Message {
    /// What an event tells, if it archives what an API client did here.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let is_ours = record.kind == RecordKind::Event && record.channel == Channel::Server && record.body.starts_with(BEGINNING);
        let Archived { event_id, properties, source } = if is_ours { serde_json::from_slice(&record.body).ok()? } else { return None };
        if source.dialect != "sync" || event_id != record.event_id {
            return None;
        }
        let Properties { action, identity, object, item, data } = properties;
        let names = names(object.kind);
        let about = format!("{:?} {}", object.kind, object.name.as_ref().unwrap_or(&object.sid));
        let mut params = vec![("EventType", action), ("Identity", identity.clone()), (names.sid, object.sid)];
        params.extend(object.name.map(|name| (names.name, name)));
        params.extend(names.revision.map(|name| (name, object.revision.to_string())));
        params.extend(names.data.zip(data));
        if let Some(item) = item {
            params.push(("EventId", object.event_id.to_string()));
            params.extend(item.key.map(|key| ("ItemKey", key)));
            params.extend(item.index.map(|index| ("ItemIndex", index.to_string())));
            params.extend([("ItemData", item.data), ("ItemRevision", item.revision.to_string())]);
        }
        if identity != SYSTEM {
            params.push(("EndpointId", endpoint_of(&record.site, &identity)));
        }
        Some(Self { id: event_id, about, number: object.event_id, identity, params })
    }

    /// That a client came, or went.
    pub(super) fn reached(what: &'static str, identity: &str, endpoint: &str) -> Self {
        let params = vec![("EventType", what.to_owned()), ("Identity", identity.to_owned()), ("EndpointId", endpoint.to_owned())];
        let about = format!("endpoint {endpoint} {identity}");
        Self { id: Uuid::new_v4().to_string(), about, number: 0, identity: identity.to_owned(), params }
    }

    /// Whether a service wants to hear of it.
    pub(super) fn is_wanted(&self, service: &Service) -> bool {
        service.webhook_url.is_some() && (service.webhooks_from_rest_enabled || self.identity != SYSTEM)
    }

    /// All parameters.
    pub(super) fn params<'a>(&'a self, service: &'a Service) -> Vec<(&'a str, &'a str)> {
        let sids = [("AccountSid", service.account_sid.as_str()), ("ServiceSid", service.sid.as_str())];
        sids.into_iter().chain(self.params.iter().map(|(name, value)| (*name, value.as_str()))).collect()
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let held = self.id.len() + self.about.len() + self.identity.len();
        256 + held + self.params.iter().map(|(name, value)| name.len() + value.len() + 40).sum::<usize>()
    }
}

/// Stands for the clients of an identity: what they change does not say which of them did.
fn endpoint_of(site: &SiteId, identity: &str) -> String {
    Uuid::new_v5(&ids::namespace(), format!("endpoint {site} {identity}").as_bytes()).simple().to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::event::ids::{KeyKind, events_partition};
    use crate::event::{Flags, Timestamp};

    /// A record as the keeper appends it.
    pub(in crate::webhooks) fn archived(site: &str, id: &str, properties: &Value) -> (u16, Record) {
        let body = json!({
            "event_id": id, "occurred_at": "2026-11-20T10:00:00Z", "properties": properties,
            "source": {"channel": "server", "dialect": "sync"}, "type": "object_changed",
        });
        let record = Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse(site).unwrap(),
            event_id: id.into(),
            fingerprint: 0,
            received_at: Timestamp::ZERO,
            key_kind: KeyKind::Event,
            key: id.into(),
            flags: Flags::default(),
            channel: Channel::Server,
            body: body.to_string().into(),
        };
        (events_partition(&record.site, KeyKind::Event, id), record)
    }

    fn told(properties: &Value) -> Vec<(&'static str, String)> {
        let mut params = Message::of(&archived("demo", "e1", properties).1).unwrap().params;
        params.sort();
        params
    }

    fn pairs(wanted: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        wanted.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    #[test]
    fn each_kind_has_its_parameters() {
        let object = |kind: &str, sid: &str| json!({"sid": sid, "kind": kind, "name": "n", "event_id": 7, "revision": 3});
        let did = |action: &str, object: &Value| json!({"action": action, "identity": "system", "object": object});
        let with = |mut properties: Value, key: &str, value: Value| {
            properties[key] = value;
            properties
        };
        let document = did("document_updated", &object("document", "ET1"));
        assert_eq!(
            told(&with(document.clone(), "data", json!("{\"a\":1}"))),
            pairs(&[
                ("DocumentData", "{\"a\":1}"),
                ("DocumentRevision", "3"),
                ("DocumentSid", "ET1"),
                ("DocumentUniqueName", "n"),
                ("EventType", "document_updated"),
                ("Identity", "system"),
            ])
        );
        let mut nameless = document;
        nameless["object"].as_object_mut().unwrap().remove("name");
        assert!(!told(&nameless).iter().any(|(name, _)| matches!(*name, "DocumentUniqueName" | "DocumentData")));
        let item = json!({"index": 0, "revision": 1, "data": "{}"});
        assert_eq!(
            told(&with(did("list_item_added", &object("list", "ES1")), "item", item)),
            pairs(&[
                ("EventId", "7"),
                ("EventType", "list_item_added"),
                ("Identity", "system"),
                ("ItemData", "{}"),
                ("ItemIndex", "0"),
                ("ItemRevision", "1"),
                ("ListRevision", "3"),
                ("ListSid", "ES1"),
                ("ListUniqueName", "n"),
            ])
        );
        let item = json!({"key": "k", "revision": 1, "data": "{}"});
        assert_eq!(
            told(&with(did("map_item_removed", &object("map", "MP1")), "item", item)),
            pairs(&[
                ("EventId", "7"),
                ("EventType", "map_item_removed"),
                ("Identity", "system"),
                ("ItemData", "{}"),
                ("ItemKey", "k"),
                ("ItemRevision", "1"),
                ("MapRevision", "3"),
                ("MapSid", "MP1"),
                ("MapUniqueName", "n"),
            ])
        );
        assert_eq!(
            told(&with(did("stream_message_published", &object("stream", "TO1")), "data", json!("{}"))),
            pairs(&[
                ("EventType", "stream_message_published"),
                ("Identity", "system"),
                ("MessageData", "{}"),
                ("StreamSid", "TO1"),
                ("StreamUniqueName", "n"),
            ])
        );
    }

    #[test]
    fn only_clients_changes_have_an_endpoint_and_one_identity_has_one() {
        let of = |identity: &str| {
            let object = json!({"sid": "ET1", "kind": "document", "event_id": 1, "revision": 0});
            let params = told(&json!({"action": "document_created", "identity": identity, "object": object}));
            params.into_iter().find(|(name, _)| *name == "EndpointId").map(|(_, value)| value)
        };
        assert_eq!(of("system"), None);
        assert!(of("alice").is_some() && of("alice") == of("alice") && of("alice") != of("bob"));
    }

    #[test]
    fn what_a_sender_says_of_objects_is_told_to_nobody() {
        let object = json!({"sid": "ET1", "kind": "document", "event_id": 1, "revision": 0});
        let (_, ours) = archived("demo", "e1", &json!({"action": "document_created", "identity": "alice", "object": object}));
        assert!(Message::of(&ours).is_some());
        let mut body: Value = serde_json::from_slice(&ours.body).unwrap();
        // As ingest writes it: without the id.
        body.as_object_mut().unwrap().remove("event_id");
        assert_eq!(Message::of(&Record { body: body.to_string().into(), ..ours.clone() }), None);
        assert_eq!(Message::of(&Record { event_id: "e2".into(), ..ours.clone() }), None);
        assert_eq!(Message::of(&Record { channel: Channel::Pixel, ..ours.clone() }), None);
        assert_eq!(Message::of(&Record { kind: RecordKind::Quarantine, ..ours.clone() }), None);
        let elsewhere = String::from_utf8_lossy(&ours.body).replace("\"sync\"", "\"twilio_sync\"");
        assert_eq!(Message::of(&Record { body: elsewhere.into(), ..ours }), None);
    }
}
