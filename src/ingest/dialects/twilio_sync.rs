//! The webhooks of Twilio Sync: one form becomes one event in Contrail's own language, with the properties of what API clients do here. Called by
//! `ingest::webhook` once the signature is found right. Pure.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::event::{ids, kind};

/// A form's parameters, in the order in which they came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Form(Vec<(String, String)>);

/// Most parameters of a form: webhooks of Sync have at most a dozen.
const MOST: usize = 100;

/// What a form lacks, or has wrong; for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) &'static str);

impl Form {
    /// Reads `application/x-www-form-urlencoded` text.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let decoded = |text: &[u8]| {
            let text: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
            let text = percent_encoding::percent_decode(&text).decode_utf8().map_err(|_| Unreadable("a parameter is not UTF-8"))?;
            Ok(text.into_owned())
        };
        let pairs = body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        let params: Vec<(String, String)> = pairs
            .take(MOST + 1)
            .map(|pair| {
                let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
                let (name, value) = pair.split_at_checked(at).unwrap_or((pair, b""));
                Ok((decoded(name)?, decoded(value.strip_prefix(b"=").unwrap_or_default())?))
            })
            .collect::<Result<_, _>>()?;
        if params.len() > MOST { Err(Unreadable("the form has more parameters than any webhook of Sync")) } else { Ok(Self(params)) }
    }

    /// All of it, as it is signed.
    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that is there and not empty.
    fn need(&self, name: &'static str) -> Result<&str, Unreadable> {
        self.get(name).filter(|value| !value.is_empty()).ok_or(Unreadable(name))
    }

    fn number(&self, name: &'static str) -> Result<Option<u64>, Unreadable> {
        self.get(name).map(|value| value.parse().map_err(|_| Unreadable(name))).transpose()
    }
}

/// Names of the parameters of one kind of object.
struct Names {
    kind: &'static str,
    sid: &'static str,
    name: &'static str,
    revision: &'static str,
    data: &'static str,
}

/// What can happen, and to what. Of the streams' the names are our own webhooks'; Twilio's documentation does not have them all.
fn names(event_type: &str) -> Option<Names> {
    Some(match event_type {
        "document_created" | "document_updated" | "document_removed" => {
            Names { kind: "document", sid: "DocumentSid", name: "DocumentUniqueName", revision: "DocumentRevision", data: "DocumentData" }
        }
        "list_created" | "list_removed" | "list_item_added" | "list_item_updated" | "list_item_removed" => {
            Names { kind: "list", sid: "ListSid", name: "ListUniqueName", revision: "ListRevision", data: "ListData" }
        }
        "map_created" | "map_removed" | "map_item_added" | "map_item_updated" | "map_item_removed" => {
            Names { kind: "map", sid: "MapSid", name: "MapUniqueName", revision: "MapRevision", data: "MapData" }
        }
        "stream_created" | "stream_removed" | "stream_message_published" => {
            Names { kind: "stream", sid: "StreamSid", name: "StreamUniqueName", revision: "StreamRevision", data: "MessageData" }
        }
        _ => return None,
    })
}

/// The event that a form tells of. `delivery` is what names the request, where the sender said: it names the event where the form has nothing that does.
///
/// The event's id follows from what the form says: told again, it is the same event.
///
/// # Errors
/// [`Unreadable`], with the parameter that is missing or is not what it should be.
pub(crate) fn event(form: &Form, delivery: Option<&str>) -> Result<Value, Unreadable> {
    let action = form.need("EventType")?;
    let service = form.need("ServiceSid")?;
    let mut properties = Map::new();
    properties.insert("action".into(), action.into());
    properties.insert("service_sid".into(), service.into());
    if let Some(identity) = form.get("Identity") {
        properties.insert("identity".into(), identity.into());
    }
    if let Some(endpoint) = form.get("EndpointId") {
        properties.insert("endpoint_id".into(), endpoint.into());
    }
    let id = match (action, names(action)) {
        (_, Some(names)) => happened(form, action, &names, &mut properties)?.map(|what| format!("{service} {what}")),
        ("endpoint_connected" | "endpoint_disconnected", None) => {
            form.need("EndpointId")?;
            None
        }
        _ => return Err(Unreadable("EventType")),
    };
    let mut event = json!({
        "properties": properties,
        "source": {"channel": "webhook", "dialect": "twilio_sync"},
        "type": kind::OBJECT_CHANGED,
    });
    // Without any the event gets an id of its own, and counts each time.
    let named = id.or_else(|| delivery.map(|delivery| format!("{service} {action} {delivery}")));
    if let (Some(named), Some(event)) = (named, event.as_object_mut()) {
        let id = Uuid::new_v5(&ids::namespace(), format!("twilio_sync {named}").as_bytes());
        event.insert("event_id".into(), id.to_string().into());
    }
    Ok(event)
}

/// Adds what happened to which object. Gives what names it, where anything does.
fn happened(form: &Form, action: &str, names: &Names, properties: &mut Map<String, Value>) -> Result<Option<String>, Unreadable> {
    let sid = form.need(names.sid)?;
    let (revision, event_id) = (form.number(names.revision)?, form.number("EventId")?);
    let mut object = Map::new();
    object.insert("sid".into(), sid.into());
    object.insert("kind".into(), names.kind.into());
    for (key, value) in [("event_id", event_id), ("revision", revision)] {
        object.extend(value.map(|value| (key.to_owned(), value.into())));
    }
    object.extend(form.get(names.name).filter(|name| !name.is_empty()).map(|name| ("name".to_owned(), name.into())));
    properties.insert("object".into(), object.into());
    if action.contains("_item_") {
        let mut item = Map::new();
        if names.kind == "list" {
            item.insert("index".into(), form.number("ItemIndex")?.ok_or(Unreadable("ItemIndex"))?.into());
        } else {
            item.insert("key".into(), form.need("ItemKey")?.into());
        }
        item.extend(form.number("ItemRevision")?.map(|revision| ("revision".to_owned(), revision.into())));
        item.extend(form.get("ItemData").map(|data| ("data".to_owned(), data.into())));
        properties.insert("item".into(), item.into());
    }
    properties.extend(form.get(names.data).map(|data| ("data".to_owned(), data.into())));
    let message = form.get("MessageSid");
    properties.extend(message.map(|sid| ("message_sid".to_owned(), sid.into())));
    let which = match (event_id.or(revision), message) {
        (Some(number), _) => number.to_string(),
        (None, Some(message)) => message.to_owned(),
        // An object begins once and ends once.
        (None, None) if action.ends_with("_created") || action.ends_with("_removed") => String::new(),
        (None, None) => return Ok(None),
    };
    Ok(Some(format!("{sid} {action} {which}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(params: &[(&str, &str)]) -> Form {
        let common = [("AccountSid", "AC1"), ("ServiceSid", "IS1"), ("Identity", "alice"), ("EndpointId", "E1")];
        Form(common.iter().chain(params).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn properties(params: &[(&str, &str)]) -> Value {
        let event = event(&form(params), None).unwrap();
        assert_eq!((&event["type"], &event["source"]), (&json!("object_changed"), &json!({"channel": "webhook", "dialect": "twilio_sync"})));
        event["properties"].clone()
    }

    #[test]
    fn every_event_type_becomes_what_api_clients_do_here() {
        let common = json!({"identity": "alice", "endpoint_id": "E1", "service_sid": "IS1"});
        let wanted = |action: &str, rest: Value| {
            let mut wanted = common.clone();
            wanted["action"] = action.into();
            wanted.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            wanted
        };
        for action in ["document_created", "document_updated", "document_removed"] {
            let given =
                [("EventType", action), ("DocumentSid", "ET1"), ("DocumentUniqueName", "d"), ("DocumentRevision", "3"), ("DocumentData", "{}")];
            let object = json!({"sid": "ET1", "kind": "document", "name": "d", "revision": 3});
            assert_eq!(properties(&given), wanted(action, json!({"object": object, "data": "{}"})));
        }
        for (kind, sid, prefix) in [("list", "ES1", "List"), ("map", "MP1", "Map"), ("stream", "TO1", "Stream")] {
            for what in ["created", "removed"] {
                let (action, name) = (format!("{kind}_{what}"), format!("{prefix}Sid"));
                let object = json!({"sid": sid, "kind": kind});
                assert_eq!(properties(&[("EventType", &action), (&name, sid)]), wanted(&action, json!({"object": object})));
            }
        }
        for what in ["added", "updated", "removed"] {
            let item = [("EventId", "7"), ("ItemIndex", "0"), ("ItemKey", "k"), ("ItemRevision", "1"), ("ItemData", "{}")];
            let action = format!("list_item_{what}");
            let given = [&[("EventType", action.as_str()), ("ListSid", "ES1"), ("ListRevision", "2")][..], &item].concat();
            let object = json!({"sid": "ES1", "kind": "list", "event_id": 7, "revision": 2});
            assert_eq!(properties(&given), wanted(&action, json!({"object": object, "item": {"index": 0, "revision": 1, "data": "{}"}})));
            let action = format!("map_item_{what}");
            let given = [&[("EventType", action.as_str()), ("MapSid", "MP1"), ("MapRevision", "2")][..], &item].concat();
            let object = json!({"sid": "MP1", "kind": "map", "event_id": 7, "revision": 2});
            assert_eq!(properties(&given), wanted(&action, json!({"object": object, "item": {"key": "k", "revision": 1, "data": "{}"}})));
        }
        let given = [("EventType", "stream_message_published"), ("StreamSid", "TO1"), ("MessageSid", "TZ1"), ("MessageData", "{}")];
        let object = json!({"sid": "TO1", "kind": "stream"});
        let published = json!({"object": object, "data": "{}", "message_sid": "TZ1"});
        assert_eq!(properties(&given), wanted("stream_message_published", published));
        for action in ["endpoint_connected", "endpoint_disconnected"] {
            assert_eq!(properties(&[("EventType", action)]), wanted(action, json!({})));
        }
    }

    #[test]
    fn told_again_it_is_the_same_event_and_another_is_another() {
        let id = |params: &[(&str, &str)], delivery| event(&form(params), delivery).unwrap()["event_id"].clone();
        let updated = |revision| [("EventType", "document_updated"), ("DocumentSid", "ET1"), ("DocumentRevision", revision)];
        assert_eq!(id(&updated("1"), Some("d1")), id(&updated("1"), Some("d2")));
        assert_ne!(id(&updated("1"), None), id(&updated("2"), None));
        let came = [("EventType", "endpoint_connected")];
        assert_eq!(id(&came, Some("d1")), id(&came, Some("d1")));
        assert_ne!(id(&came, Some("d1")), id(&came, Some("d2")));
        assert!(id(&came, None).is_null());
        let removed = [("EventType", "map_removed"), ("MapSid", "MP1")];
        assert!(!id(&removed, None).is_null());
    }

    #[test]
    fn what_cannot_be_read_says_what_it_is() {
        let refused = |params: &[(&str, &str)]| event(&form(params), None).unwrap_err().0;
        assert_eq!(refused(&[]), "EventType");
        assert_eq!(refused(&[("EventType", "call_completed")]), "EventType");
        assert_eq!(refused(&[("EventType", "document_created")]), "DocumentSid");
        assert_eq!(refused(&[("EventType", "document_created"), ("DocumentSid", "ET1"), ("DocumentRevision", "one")]), "DocumentRevision");
        assert_eq!(refused(&[("EventType", "list_item_added"), ("ListSid", "ES1")]), "ItemIndex");
        assert_eq!(refused(&[("EventType", "map_item_added"), ("MapSid", "MP1"), ("ItemKey", "")]), "ItemKey");
        assert_eq!(event(&Form::default(), None).unwrap_err().0, "EventType");
    }

    #[test]
    fn forms_are_read_as_they_are_written() {
        let read = Form::parse(b"A=1+2%2B&B&C=%C3%A9&&D=%3D").unwrap();
        assert_eq!(read.pairs(), [("A", "1 2+"), ("B", ""), ("C", "\u{e9}"), ("D", "=")]);
        assert!(Form::parse(b"A=%ff").is_err());
        assert!(Form::parse(&b"A=1&".repeat(101)).is_err());
        assert_eq!(Form::parse(b"").unwrap(), Form::default());
    }
}
