//! Objects and items as the SDKs are shown them: roots, items, pages, URLs, dates with milliseconds, revisions that begin at 0. Called by [`super::calls`]
//! and [`super::events`]; pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::paging::Page;
use crate::event::{ObjectKey, ObjectKind, Timestamp};
use crate::sync::naming;
use crate::sync::object::{Snapshot, SnapshotItem};

/// What stands for itself in a URL's path.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as one part of a path.
pub(super) fn part(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, UNRESERVED)
}

/// A time, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date(pub(super) Timestamp);

impl Serialize for Date {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match jiff::Timestamp::from_microsecond(self.0.micros()) {
            Ok(at) => serializer.collect_str(&format_args!("{at:.3}")),
            Err(_) => serializer.serialize_none(),
        }
    }
}

/// A revision of the sync room's, which begin at 1, as a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Revision(pub(super) u64);

impl Serialize for Revision {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.saturating_sub(1))
    }
}

/// Where a service is.
#[derive(Clone, Debug)]
pub(super) struct Urls {
    /// The server, without a slash at its end.
    public: String,
    /// The service.
    service: String,
}

/// An object's kind in a path.
pub(super) const fn collection(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "Documents",
        ObjectKind::List => "Lists",
        ObjectKind::Map => "Maps",
        ObjectKind::Stream => "Streams",
    }
}

impl Urls {
    /// Of a service, by the name that its token has for it.
    pub(super) fn new(public: &str, service: &str) -> Self {
        Self { public: public.trim_end_matches('/').to_owned(), service: service.to_owned() }
    }

    /// An object's URL.
    pub(super) fn object(&self, kind: ObjectKind, sid: &str) -> String {
        format!("{}/v3/Services/{}/{}/{sid}", self.public, self.service, collection(kind))
    }

    /// An item's URL, of its object's.
    pub(super) fn item(&self, kind: ObjectKind, sid: &str, item: &str) -> String {
        let root = self.object(kind, sid);
        if kind == ObjectKind::List { format!("{root}/Items/{}", index_of(item)) } else { format!("{root}/Items/{}", part(item)) }
    }
}

/// A list's index, of its row's name.
pub(super) fn index_of(item: &str) -> u64 {
    u64::from_str_radix(item, 16).unwrap_or_default()
}

/// Data as it stands; null where it is none, which the sync room does not render.
pub(super) fn raw(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap_or(RawValue::NULL)
}

/// JSON of plain data, which always serialises.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// An object's SID.
pub(super) fn sid_of(key: &ObjectKey, incarnation: u64) -> String {
    naming::sid(&key.site, key.kind, &key.name, incarnation)
}

/// An object without its items, as `GET` and changes of it answer.
#[derive(Serialize)]
pub(super) struct Root<'a> {
    sid: &'a str,
    unique_name: Option<&'a str>,
    url: &'a str,
    links: Links,
    revision: Revision,
    last_event_id: u64,
    date_created: Date,
    date_updated: Date,
    date_expires: Option<Date>,
    created_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<Vec<Item<'a>>>,
}

#[derive(Serialize)]
struct Links {
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<String>,
}

/// An object's answer; its data only where it was asked for, and items where they were.
pub(super) fn root(urls: &Urls, snapshot: &Snapshot, with_data: bool, items: Option<&[SnapshotItem]>) -> String {
    let key = &snapshot.key;
    let sid = sid_of(key, snapshot.incarnation);
    let url = urls.object(key.kind, &sid);
    let link = |has: bool, name: &str| has.then(|| format!("{url}/{name}"));
    let links = Links {
        items: link(matches!(key.kind, ObjectKind::List | ObjectKind::Map), "Items"),
        permissions: link(key.kind != ObjectKind::Stream, "Permissions"),
        context: link(key.kind == ObjectKind::List, "Context"),
        messages: link(key.kind == ObjectKind::Stream, "Messages"),
    };
    json(&Root {
        sid: &sid,
        unique_name: naming::unique_name(&key.name),
        url: &url,
        links,
        revision: Revision(snapshot.revision),
        last_event_id: snapshot.event_id,
        date_created: Date(snapshot.created_at),
        date_updated: Date(snapshot.updated_at),
        date_expires: snapshot.expires_at.map(Date),
        created_by: creator(&snapshot.created_by),
        data: snapshot.data.as_deref().filter(|_| with_data).map(raw),
        items: items.map(|items| items.iter().map(|shown| item(urls, key.kind, &sid, shown, true)).collect()),
    })
}

/// What no API client made, the shop's events did: on behalf of the account.
fn creator(created_by: &str) -> &str {
    if created_by.is_empty() { crate::web::sync::SYSTEM } else { created_by }
}

/// An item, as `GET` and changes of it answer.
#[derive(Serialize)]
pub(super) struct Item<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list_sid: Option<&'a str>,
    url: String,
    revision: Revision,
    last_event_id: u64,
    date_created: Date,
    date_updated: Date,
    date_expires: Option<Date>,
    created_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

/// An item's answer. Answers to changes come without data: clients have it.
pub(super) fn item<'a>(urls: &Urls, kind: ObjectKind, sid: &'a str, shown: &'a SnapshotItem, with_data: bool) -> Item<'a> {
    let list = kind == ObjectKind::List;
    Item {
        key: (!list).then_some(&shown.item),
        index: list.then(|| index_of(&shown.item)),
        map_sid: (!list).then_some(sid),
        list_sid: list.then_some(sid),
        url: urls.item(kind, sid, &shown.item),
        revision: Revision(shown.revision),
        last_event_id: shown.event_id,
        date_created: Date(shown.life.created_at),
        date_updated: Date(shown.updated_at),
        date_expires: shown.life.expires_at.map(Date),
        created_by: creator(&shown.life.created_by),
        data: with_data.then(|| raw(&shown.data)),
    }
}

/// A list's context.
pub(super) fn context(sid: &str, context: Option<&str>, event_id: u64) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        list_sid: &'a str,
        data: &'a RawValue,
        last_event_id: u64,
    }
    json(&Body { list_sid: sid, data: raw(context.unwrap_or("{}")), last_event_id: event_id })
}

/// A page of items.
pub(super) fn page(urls: &Urls, kind: ObjectKind, sid: &str, page: &Page) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        items: Vec<Item<'a>>,
        meta: Meta<'a>,
    }
    #[derive(Serialize)]
    struct Meta<'a> {
        key: &'static str,
        previous_token: Option<&'a str>,
        next_token: Option<&'a str>,
    }
    let items = page.items.iter().map(|shown| item(urls, kind, sid, shown, true)).collect();
    let meta = Meta { key: "items", previous_token: page.previous.as_deref(), next_token: page.next.as_deref() };
    json(&Body { items, meta })
}

/// Where everything is, with places for what is to be put in.
pub(super) fn configuration(urls: &Urls) -> String {
    let Urls { public, service } = urls;
    let of_service = format!("{public}/v3/Services/{service}");
    json(&serde_json::json!({"links": {
        "subscriptions": format!("{public}/v4/Subscriptions"),
        "documents": format!("{public}/v3/Documents"),
        "document": format!("{of_service}/Documents/{{documentId}}"),
        "lists": format!("{public}/v3/Lists"),
        "list": format!("{of_service}/Lists/{{listId}}"),
        "list_items": format!("{of_service}/Lists/{{listId}}/Items"),
        "list_item": format!("{of_service}/Lists/{{listId}}/Items/{{itemId}}"),
        "maps": format!("{public}/v3/Maps"),
        "map": format!("{of_service}/Maps/{{mapId}}"),
        "map_items": format!("{of_service}/Maps/{{mapId}}/Items"),
        "map_item": format!("{of_service}/Maps/{{mapId}}/Items/{{itemId}}"),
        "streams": format!("{public}/v3/Streams"),
        "stream": format!("{of_service}/Streams/{{streamId}}"),
        "stream_messages": format!("{of_service}/Streams/{{streamId}}/Messages"),
        "insights_items": format!("{public}/v3/Insights/{{indexName}}/Items"),
    }}))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::event::SiteId;
    use crate::sync::Life;

    const AT: Timestamp = Timestamp::from_micros(1_671_354_423_443_999);

    fn snapshot(kind: ObjectKind, name: &str) -> Snapshot {
        Snapshot {
            key: ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() },
            revision: 3,
            event_id: 9,
            created_at: AT,
            updated_at: AT,
            incarnation: 0,
            created_by: "alice".into(),
            expires_at: None,
            data: (kind == ObjectKind::Document).then(|| r#"{"n":1.10}"#.into()),
            items: Vec::new(),
        }
    }

    fn shown_item(item: &str) -> SnapshotItem {
        let life = Life { began: 1, created_at: AT, created_by: String::new(), expires_at: Some(AT) };
        SnapshotItem { item: item.into(), revision: 1, event_id: 7, updated_at: AT, life, data: r#"{"a":1}"#.into() }
    }

    fn urls() -> Urls {
        Urls::new("https://shop.example/x/", "IS1")
    }

    #[test]
    fn a_document_is_shown_whole_when_read_and_without_data_when_changed() {
        let read: Value = serde_json::from_str(&root(&urls(), &snapshot(ObjectKind::Document, "a"), true, None)).unwrap();
        assert_eq!(read["sid"], "ETb8a4c911d465e2fc96ad862771e7e803");
        assert_eq!(read["url"], "https://shop.example/x/v3/Services/IS1/Documents/ETb8a4c911d465e2fc96ad862771e7e803");
        assert_eq!((&read["revision"], &read["last_event_id"], &read["date_created"]), (&"2".into(), &9.into(), &"2022-12-18T09:07:03.443Z".into()));
        assert_eq!((&read["unique_name"], &read["created_by"], &read["date_expires"]), (&"a".into(), &"alice".into(), &Value::Null));
        let text = root(&urls(), &snapshot(ObjectKind::Document, "a"), true, None);
        assert!(text.contains(r#""data":{"n":1.10}"#), "{text}");
        assert!(!root(&urls(), &snapshot(ObjectKind::Document, "a"), false, None).contains("data\""));
        let unnamed: Value = serde_json::from_str(&root(&urls(), &snapshot(ObjectKind::List, &naming::unnamed(&[1; 16])), true, None)).unwrap();
        assert_eq!(unnamed["unique_name"], Value::Null);
        assert!(unnamed["links"]["context"].is_string() && unnamed["links"]["messages"].is_null());
    }

    #[test]
    fn items_have_their_url_and_their_objects_sid() {
        let urls = urls();
        let shown = shown_item("a b/ü");
        let map = serde_json::to_value(item(&urls, ObjectKind::Map, "MP1", &shown, false)).unwrap();
        assert_eq!(map["url"], "https://shop.example/x/v3/Services/IS1/Maps/MP1/Items/a%20b%2F%C3%BC");
        assert_eq!((&map["key"], &map["map_sid"], &map["revision"], &map["last_event_id"]), (&"a b/ü".into(), &"MP1".into(), &"0".into(), &7.into()));
        assert_eq!((&map["date_expires"], map.get("data"), map.get("index")), (&"2022-12-18T09:07:03.443Z".into(), None, None));
        let list = serde_json::to_value(item(&urls, ObjectKind::List, "ES1", &shown_item("000000000000000a"), true)).unwrap();
        assert_eq!((&list["index"], &list["list_sid"], &list["data"]["a"]), (&10.into(), &"ES1".into(), &1.into()));
        assert!(list["url"].as_str().unwrap().ends_with("/Lists/ES1/Items/10"));
    }

    #[test]
    fn the_configuration_leads_to_the_service() {
        let told: Value = serde_json::from_str(&configuration(&urls())).unwrap();
        assert_eq!(told["links"]["map_item"], "https://shop.example/x/v3/Services/IS1/Maps/{mapId}/Items/{itemId}");
        assert_eq!(told["links"]["subscriptions"], "https://shop.example/x/v4/Subscriptions");
    }
}
