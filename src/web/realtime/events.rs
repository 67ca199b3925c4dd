//! What subscribers are told, as frames: data events of what changed, and how their subscriptions fare. Called by [`super::subscriptions`]; pure.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::frame::{Outgoing, encode, fresh_id};
use super::shown::{Date, Revision, Urls, index_of, json, raw};
use crate::event::{ObjectKind, Timestamp};
use crate::sync::{AppliedRow, naming};
use crate::web::sync::fault::Told;

/// Type of notifications that are made up for, and of all that is told of streams and subscriptions.
const ANY: &str = "twilio.sync.event";
/// Version of the events.
const VERSION: u32 = 4;

/// What is told of.
#[derive(Debug)]
pub(super) struct Subject {
    /// Its kind.
    pub(super) kind: ObjectKind,
    /// Its SID.
    pub(super) sid: String,
    /// Its name, as the sync room has it.
    pub(super) name: String,
}

/// A row in its object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed<'a> {
    /// The row.
    pub(super) row: &'a AppliedRow,
    /// The object's revision.
    pub(super) revision: u64,
    /// The event id up to which the client was told before: an item that began after it is new to it.
    pub(super) since: u64,
    /// The batch that it is made up for with; None where it happens now.
    pub(super) replayed_for: Option<u64>,
}

#[derive(Serialize)]
struct Message<'a, E> {
    event_type: &'a str,
    event_protocol_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<u64>,
    event: E,
}

#[derive(Default, Serialize)]
struct Event<'a> {
    id: u64,
    date_created: Option<Date>,
    date_expires: Option<Date>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_unique_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_revision: Option<Revision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map_revision: Option<Revision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list_revision: Option<Revision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_revision: Option<Revision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_data: Option<&'a RawValue>,
}

/// The data event of a changed row. A document has no row that is removed, nor has a stream.
pub(super) fn changed(urls: &Urls, subject: &Subject, changed: Changed<'_>) -> Bytes {
    let Changed { row, revision, since, replayed_for } = changed;
    let sid = Some(subject.sid.as_str());
    let (id, date_created, date_expires) = (row.event_id, Some(Date(row.updated_at)), row.expires_at.map(Date));
    let data = row.data.as_deref();
    let base = Event { id, date_created, date_expires, ..Event::default() };
    let of_tail;
    let (event_type, event) = match subject.kind {
        ObjectKind::Document => {
            let document_unique_name = naming::unique_name(&subject.name);
            let document_data = Some(data.map_or_else(|| raw("{}"), raw));
            let event = Event { document_sid: sid, document_unique_name, document_revision: Some(Revision(revision)), document_data, ..base };
            ("document_updated", event)
        }
        ObjectKind::Stream => {
            // What the live tail publishes has no SIDs of its own.
            let message_sid = if row.item.is_empty() {
                of_tail = format!("TZ{id:032x}");
                &of_tail
            } else {
                &row.item
            };
            let event = Event { stream_sid: sid, message_sid: Some(message_sid), message_data: Some(data.map_or(RawValue::NULL, raw)), ..base };
            ("stream_message_published", event)
        }
        kind @ (ObjectKind::List | ObjectKind::Map) => {
            let (is_list, revision) = (kind == ObjectKind::List, Some(Revision(revision)));
            let event = Event {
                map_sid: sid.filter(|_| !is_list),
                map_revision: revision.filter(|_| !is_list),
                list_sid: sid.filter(|_| is_list),
                list_revision: revision.filter(|_| is_list),
                item_key: Some(row.item.as_str()).filter(|_| !is_list),
                item_index: is_list.then(|| index_of(&row.item)),
                item_revision: Some(Revision(row.revision)),
                item_data: data.or(row.before.as_deref()).map(raw),
                item_url: data.map(|_| urls.item(kind, &subject.sid, &row.item)),
                ..base
            };
            let event_type = match (is_list, data.is_some(), row.began > since) {
                (false, true, true) => "map_item_added",
                (false, true, false) => "map_item_updated",
                (false, false, _) => "map_item_removed",
                (true, true, true) => "list_item_added",
                (true, true, false) => "list_item_updated",
                (true, false, _) => "list_item_removed",
            };
            (event_type, event)
        }
    };
    data_event(subject.kind, event_type, event, replayed_for)
}

/// The data event of a removed object.
pub(super) fn removed(subject: &Subject, event_id: u64, at: Timestamp) -> Bytes {
    let (sid, kind) = (Some(subject.sid.as_str()), subject.kind);
    let base = Event { id: event_id, date_created: Some(Date(at)), ..Event::default() };
    let (event_type, event) = match kind {
        ObjectKind::Document => ("document_removed", Event { document_sid: sid, ..base }),
        ObjectKind::List => ("list_removed", Event { list_sid: sid, ..base }),
        ObjectKind::Map => ("map_removed", Event { map_sid: sid, ..base }),
        ObjectKind::Stream => ("stream_removed", Event { stream_sid: sid, ..base }),
    };
    data_event(kind, event_type, event, None)
}

fn data_event(kind: ObjectKind, event_type: &str, event: Event<'_>, replayed_for: Option<u64>) -> Bytes {
    let message_type = match kind {
        // What is of this type, clients know to be in order.
        _ if replayed_for.is_some() => ANY,
        ObjectKind::Document => "com.twilio.rtd.cds.document",
        ObjectKind::List => "com.twilio.rtd.cds.list",
        ObjectKind::Map => "com.twilio.rtd.cds.map",
        ObjectKind::Stream => ANY,
    };
    metrics::counter!("contrail_realtime_events_total", "kind" => name_of(kind)).increment(1);
    let message = Message { event_type, event_protocol_version: VERSION, correlation_id: replayed_for, event };
    notification(message_type, &json(&message))
}

/// An object's kind in words.
pub(super) const fn name_of(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "document",
        ObjectKind::List => "list",
        ObjectKind::Map => "map",
        ObjectKind::Stream => "stream",
    }
}

/// How a subscription fares.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    /// All that was to be made up for is told, up to this event id.
    Established(u64),
    /// It could not be; the client is to ask again.
    Interrupted(u64),
    /// It cannot be.
    Failed(Told),
    /// It is no more.
    Canceled,
}

/// What a subscription is told of itself: by the batch that asked, or unasked.
pub(super) fn fate(sid: &str, object_type: &str, fate: &Fate, correlation_id: Option<u64>) -> Bytes {
    #[derive(Serialize)]
    struct Fates<'a> {
        event_type: &'a str,
        event_protocol_version: u32,
        // Null where the server speaks first: one client takes nothing else for that, another takes null for none.
        correlation_id: Option<u64>,
        events: [One<'a>; 1],
    }
    #[derive(Serialize)]
    struct One<'a> {
        object_sid: &'a str,
        object_type: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        replay_status: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_event_id: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Error<'a>>,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        status: u16,
        code: u32,
        message: &'a str,
    }
    let one = One { object_sid: sid, object_type, replay_status: None, last_event_id: None, error: None };
    let (event_type, one) = match fate {
        Fate::Established(id) => ("subscription_established", One { replay_status: Some("completed"), last_event_id: Some(*id), ..one }),
        Fate::Interrupted(id) => ("subscription_established", One { replay_status: Some("interrupted"), last_event_id: Some(*id), ..one }),
        Fate::Failed(Told { status, code, message }) => {
            ("subscription_failed", One { error: Some(Error { status: *status, code: *code, message }), ..one })
        }
        Fate::Canceled => ("subscription_canceled", one),
    };
    notification(ANY, &json(&Fates { event_type, event_protocol_version: VERSION, correlation_id, events: [one] }))
}

fn notification(message_type: &str, payload: &str) -> Bytes {
    encode(Outgoing { method: "notification", id: &fresh_id(), message_type: Some(message_type), ..Outgoing::default() }, payload)
}

/// Shared by all that is told of one object.
pub(super) type Of = Arc<Subject>;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::web::realtime::frame::decode;
    use crate::web::sync::Fault;

    fn urls() -> Urls {
        Urls::new("http://h", "IS1")
    }

    fn subject(kind: ObjectKind) -> Subject {
        Subject { kind, sid: "XX1".into(), name: "n".into() }
    }

    fn row(item: &str, data: Option<&str>) -> AppliedRow {
        let (began, at) = (5, Timestamp::from_micros(1_671_354_423_443_000));
        AppliedRow { item: item.into(), revision: 2, event_id: 7, began, updated_at: at, data: data.map(Into::into), ..AppliedRow::default() }
    }

    fn told(kind: ObjectKind, row: &AppliedRow, since: u64, replayed_for: Option<u64>) -> (String, Value) {
        read(&changed(&urls(), &subject(kind), Changed { row, revision: 4, since, replayed_for }))
    }

    fn read(frame: &Bytes) -> (String, Value) {
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let header: Value = serde_json::from_str(text.split("\r\n").nth(1).unwrap()).unwrap();
        (header["message_type"].as_str().unwrap().to_owned(), serde_json::from_slice(&decode(frame).unwrap().payload).unwrap())
    }

    #[test]
    fn items_are_added_updated_and_removed() {
        let added = told(ObjectKind::Map, &row("a/b", Some("{}")), 4, None);
        assert_eq!(added.0, "com.twilio.rtd.cds.map");
        let event = json!({"id": 7, "date_created": "2022-12-18T09:07:03.443Z", "date_expires": null, "map_sid": "XX1", "map_revision": "3", "item_key": "a/b",
            "item_revision": "1", "item_data": {}, "item_url": "http://h/v3/Services/IS1/Maps/XX1/Items/a%2Fb"});
        assert_eq!(added.1, json!({"event_type": "map_item_added", "event_protocol_version": 4, "event": event}));
        assert_eq!(told(ObjectKind::Map, &row("a", Some("{}")), 5, None).1["event_type"], "map_item_updated");
        let removed = told(ObjectKind::List, &AppliedRow { before: Some(r#"{"x":1}"#.into()), ..row("000000000000000a", None) }, 5, Some(8));
        assert_eq!((removed.0.as_str(), &removed.1["event_type"], &removed.1["correlation_id"]), (ANY, &json!("list_item_removed"), &json!(8)));
        assert_eq!((&removed.1["event"]["item_index"], &removed.1["event"]["item_data"]["x"]), (&json!(10), &json!(1)));
    }

    #[test]
    fn documents_and_messages() {
        let (kind, event) = told(ObjectKind::Document, &row("", Some(r#"{"n":1}"#)), 0, None);
        assert_eq!((kind.as_str(), &event["event_type"]), ("com.twilio.rtd.cds.document", &json!("document_updated")));
        let event = &event["event"];
        assert_eq!(
            (&event["document_data"]["n"], &event["document_revision"], &event["document_unique_name"]),
            (&json!(1), &json!("3"), &json!("n"))
        );
        let (kind, event) = told(ObjectKind::Stream, &row("TZ9", Some("{}")), 0, None);
        assert_eq!((kind.as_str(), &event["event"]["message_sid"]), (ANY, &json!("TZ9")));
        let (_, event) = told(ObjectKind::Stream, &row("", Some("{}")), 0, None);
        assert_eq!(event["event"]["message_sid"], "TZ00000000000000000000000000000007");
        let (_, gone) = read(&removed(&subject(ObjectKind::Stream), 9, Timestamp::ZERO));
        assert_eq!((&gone["event_type"], &gone["event"]["stream_sid"], &gone["event"]["id"]), (&json!("stream_removed"), &json!("XX1"), &json!(9)));
    }

    #[test]
    fn fates() {
        let told = |what: Fate, correlation| read(&fate("ET1", "document", &what, correlation)).1;
        let one = json!({"object_sid": "ET1", "object_type": "document", "replay_status": "completed", "last_event_id": 9});
        let established = json!({"event_type": "subscription_established", "event_protocol_version": 4, "correlation_id": 5, "events": [one]});
        assert_eq!(told(Fate::Established(9), Some(5)), established);
        assert_eq!(told(Fate::Interrupted(9), Some(5))["events"][0]["replay_status"], "interrupted");
        let failed = told(Fate::Failed(Fault::NoObject(ObjectKind::Document).told()), Some(5));
        assert_eq!(failed["events"][0]["error"], json!({"status": 404, "code": 54100, "message": "Document not found"}));
        let canceled = told(Fate::Canceled, None);
        assert_eq!((&canceled["event_type"], canceled.get("correlation_id")), (&json!("subscription_canceled"), Some(&Value::Null)));
    }
}
