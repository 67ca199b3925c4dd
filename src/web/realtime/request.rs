//! What an upstream request asks of the Sync API: its `http_request` header, as both dialects write it, and its body become one typed [`Ask`]. Called by
//! [`super::calls`]; pure. Must never read the body of a `DELETE`: clients send what is none.

use std::borrow::Cow;
use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::ObjectKind;
use crate::web::sync::{Fault, MAX_DATA, MAX_MESSAGE, MAX_TTL, check_data, check_item_key};

/// The `http_request` header. Values of parameters and headers are texts or lists of texts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HttpRequest {
    path: String,
    method: String,
    params: HashMap<String, Texts>,
    headers: HashMap<String, Texts>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
    /// A number, or nothing.
    Other(serde_json::Value),
}

impl Texts {
    fn first(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::One(text) => Some(text.into()),
            Self::Many(texts) => texts.first().map(Into::into),
            Self::Other(serde_json::Value::Null) => None,
            Self::Other(other) => Some(other.to_string().into()),
        }
    }
}

/// What is asked.
#[derive(Debug, PartialEq)]
pub(super) enum Ask {
    /// Where everything is.
    Configuration,
    /// To be told of objects' changes, or no longer.
    Subscriptions(Box<Poke>),
    /// Something of one object, or a new one.
    Object(ObjectKind, OfObject),
    /// A live query.
    LiveQuery,
}

/// What is asked of objects. Revisions are those of [`crate::sync`], the first of which is 1.
#[derive(Debug, PartialEq)]
pub(super) enum OfObject {
    /// Creates one.
    Create(New),
    /// Reads one; a map with its first items, if so asked.
    Get { id: String, with_items: bool },
    /// Changes a document's data, or a lifetime.
    Update { id: String, if_match: IfMatch, put: Put },
    /// Removes it.
    Remove { id: String, if_match: IfMatch },
    /// Reads items.
    Items { id: String, page: PageAsked },
    /// Reads one item.
    Item { id: String, item: String },
    /// A new item.
    Add { id: String, key: Option<String>, put: Put },
    /// An item, be it there or not.
    Upsert { id: String, item: String, if_match: IfMatch, put: Put },
    /// An item that is there.
    Set { id: String, item: String, if_match: IfMatch, put: Put },
    /// Removes an item.
    RemoveItem { id: String, item: String, if_match: IfMatch },
    /// A message.
    Publish { id: String, data: String },
    /// A list's context.
    Context { id: String },
}

/// A new object.
#[derive(Debug, PartialEq)]
pub(super) struct New {
    /// Its unique name.
    pub(super) name: Option<String>,
    /// A document's data, or a list's context.
    pub(super) data: Option<String>,
    /// Its lifetime.
    pub(super) ttl: Option<u32>,
}

/// What is put.
#[derive(Debug, PartialEq)]
pub(super) struct Put {
    /// JSON text.
    pub(super) data: Option<String>,
    /// The lifetime.
    pub(super) ttl: Option<u32>,
    /// Of an item: that of its object.
    pub(super) collection_ttl: Option<u32>,
}

/// The condition of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// None.
    Any,
    /// It is not there yet.
    Absent,
    /// It has this revision.
    Revision(u64),
}

impl IfMatch {
    /// The revision it names.
    pub(super) const fn revision(self) -> Option<u64> {
        match self {
            Self::Any => None,
            // None that exists has it.
            Self::Absent => Some(0),
            Self::Revision(revision) => Some(revision),
        }
    }
}

/// A page of items, as it was asked for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PageAsked {
    pub(super) key: Option<String>,
    pub(super) from: Option<String>,
    pub(super) token: Option<String>,
    pub(super) size: Option<String>,
    pub(super) order: Option<String>,
    pub(super) bounds: Option<String>,
}

/// A batch of subscriptions to establish or to cancel.
#[derive(Debug, Deserialize, PartialEq)]
pub(super) struct Poke {
    /// Which of both.
    pub(super) action: Action,
    /// Comes back with all that is told of the batch.
    #[serde(default)]
    pub(super) correlation_id: u64,
    /// Of which objects.
    #[serde(default)]
    pub(super) requests: Vec<Wanted>,
}

/// What a batch does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    /// To be told from now on.
    Establish,
    /// To be told no longer.
    Cancel,
}

/// One object of a batch.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Wanted {
    /// Its SID.
    pub(super) object_sid: String,
    /// `document`, `list`, `map`, `stream`, `live_query`.
    #[serde(default)]
    pub(super) object_type: String,
    /// The event id up to which the client knows it; None: it wants nothing made up for.
    #[serde(default)]
    pub(super) last_event_id: Option<u64>,
}

/// Most objects of a batch.
pub(super) const MAX_BATCH: usize = 1_000;

/// Bodies of all kinds. `null` is as good as nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    unique_name: Option<String>,
    key: Option<String>,
    data: Option<Box<RawValue>>,
    context: Option<Box<RawValue>>,
    ttl: Option<serde_json::Value>,
    collection_ttl: Option<serde_json::Value>,
}

/// Reads a request to `service`.
///
/// # Errors
/// [`Fault::NoPath`], [`Fault::NoService`], and what is wrong with parameters, headers and body.
pub(super) fn read(request: &RawValue, payload: &[u8], service: &str) -> Result<Ask, Fault> {
    let request: HttpRequest = serde_json::from_str(request.get()).map_err(|_| Fault::Parameter("Malformed http_request".into()))?;
    // A public URL may have a path before ours.
    let (version, path) = ["/v3/", "/v4/"]
        .into_iter()
        .filter_map(|version| Some((version, request.path.find(version)?)))
        .min_by_key(|(_, at)| *at)
        .and_then(|(version, at)| Some((version, request.path.get(at + version.len()..)?)))
        .ok_or(Fault::NoPath)?;
    let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
    let decoded = |part: &str| percent_decode_str(part).decode_utf8().map(Cow::into_owned).map_err(|_| Fault::NoPath);
    let parts: Vec<String> = path.split('/').map(decoded).collect::<Result<_, _>>()?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let parts = match parts.as_slice() {
        ["Services", named, rest @ ..] if *named == service || *named == "default" => rest,
        ["Services", _, ..] => return Err(Fault::NoService),
        all => all,
    };
    let asking = Asking { request: &request, payload };
    match (version, request.method.as_str(), parts) {
        ("/v3/", "GET", ["Configuration"]) => Ok(Ask::Configuration),
        ("/v4/", "POST", ["Subscriptions"]) => asking.poke(),
        ("/v3/", _, ["Insights", ..]) => Ok(Ask::LiveQuery),
        ("/v3/", method, [kind, rest @ ..]) => {
            let kind = match *kind {
                "Documents" => ObjectKind::Document,
                "Lists" => ObjectKind::List,
                "Maps" => ObjectKind::Map,
                "Streams" => ObjectKind::Stream,
                _ => return Err(Fault::NoPath),
            };
            Ok(Ask::Object(kind, asking.of_object(kind, method, rest)?))
        }
        _ => Err(Fault::NoPath),
    }
}

struct Asking<'a> {
    request: &'a HttpRequest,
    payload: &'a [u8],
}

impl Asking<'_> {
    fn poke(&self) -> Result<Ask, Fault> {
        let poke: Poke = serde_json::from_slice(self.payload).map_err(|_| Fault::NotJson)?;
        if poke.requests.len() > MAX_BATCH {
            return Err(Fault::Parameter("Too many requests in one batch".into()));
        }
        Ok(Ask::Subscriptions(Box::new(poke)))
    }

    fn of_object(&self, kind: ObjectKind, method: &str, path: &[&str]) -> Result<OfObject, Fault> {
        let holds_items = matches!(kind, ObjectKind::List | ObjectKind::Map);
        let id_of = |id: &&str| (*id).to_owned();
        match (method, path) {
            ("POST", []) => self.new_object(kind).map(OfObject::Create),
            ("GET", [id]) => {
                let include = self.param("Include").is_some_and(|include| include.split(',').any(|part| part.eq_ignore_ascii_case("items")));
                Ok(OfObject::Get { id: id_of(id), with_items: include && kind == ObjectKind::Map })
            }
            ("POST", [id]) => {
                let put = self.put(kind == ObjectKind::Document)?;
                if put.data.is_none() && put.ttl.is_none() {
                    return Err(Fault::NothingToUpdate);
                }
                Ok(OfObject::Update { id: id_of(id), if_match: self.if_match()?, put })
            }
            ("DELETE", [id]) => Ok(OfObject::Remove { id: id_of(id), if_match: self.if_match()? }),
            ("GET", [id, "Items"]) if holds_items => self.page(kind).map(|page| OfObject::Items { id: id_of(id), page }),
            ("POST", [id, "Items"]) if holds_items => {
                let (key, put) = self.new_item(kind)?;
                Ok(OfObject::Add { id: id_of(id), key, put })
            }
            ("GET", [id, "Items", item]) if holds_items => Ok(OfObject::Item { id: id_of(id), item: row_name(kind, item)? }),
            ("PUT", [id, "Items", item]) if kind == ObjectKind::Map => {
                check_item_key(item)?;
                let put = self.put(true)?;
                Ok(OfObject::Upsert { id: id_of(id), item: id_of(item), if_match: self.if_match()?, put })
            }
            ("POST" | "PUT", [id, "Items", item]) if holds_items => {
                let put = self.put(true)?;
                if put.data.is_none() && put.ttl.is_none() && put.collection_ttl.is_none() {
                    return Err(Fault::NothingToUpdate);
                }
                Ok(OfObject::Set { id: id_of(id), item: row_name(kind, item)?, if_match: self.if_match()?, put })
            }
            ("DELETE", [id, "Items", item]) if holds_items => {
                Ok(OfObject::RemoveItem { id: id_of(id), item: row_name(kind, item)?, if_match: self.if_match()? })
            }
            ("POST", [id, "Messages"]) if kind == ObjectKind::Stream => {
                let body = self.body()?;
                let data = body.data.ok_or(Fault::NoData(kind))?;
                Ok(OfObject::Publish { id: id_of(id), data: check_data(data.get(), MAX_MESSAGE)? })
            }
            ("GET", [id, "Context"]) if kind == ObjectKind::List => Ok(OfObject::Context { id: id_of(id) }),
            _ => Err(Fault::NoPath),
        }
    }

    fn body(&self) -> Result<Body, Fault> {
        if self.payload.is_empty() { Ok(Body::default()) } else { serde_json::from_slice(self.payload).map_err(|_| Fault::NotJson) }
    }

    fn new_object(&self, kind: ObjectKind) -> Result<New, Fault> {
        let body = self.body()?;
        let data = match kind {
            ObjectKind::Document => body.data,
            ObjectKind::List => body.context,
            ObjectKind::Map | ObjectKind::Stream => None,
        };
        let data = data.map(|data| check_data(data.get(), MAX_DATA)).transpose()?;
        // An empty name is none.
        Ok(New { name: body.unique_name.filter(|name| !name.is_empty()), data, ttl: ttl_of(body.ttl.or(body.collection_ttl))? })
    }

    fn new_item(&self, kind: ObjectKind) -> Result<(Option<String>, Put), Fault> {
        let body = self.body()?;
        let key = match (kind, body.key) {
            (ObjectKind::Map, Some(key)) => {
                check_item_key(&key)?;
                Some(key)
            }
            (ObjectKind::Map, None) => return Err(Fault::ItemKey),
            _ => None,
        };
        let data = body.data.ok_or(Fault::NoData(kind))?;
        let data = Some(check_data(data.get(), MAX_DATA)?);
        Ok((key, Put { data, ttl: ttl_of(body.ttl)?, collection_ttl: ttl_of(body.collection_ttl)? }))
    }

    fn put(&self, with_data: bool) -> Result<Put, Fault> {
        let body = self.body()?;
        let data = body.data.filter(|_| with_data).map(|data| check_data(data.get(), MAX_DATA)).transpose()?;
        Ok(Put { data, ttl: ttl_of(body.ttl)?, collection_ttl: ttl_of(body.collection_ttl)? })
    }

    fn page(&self, kind: ObjectKind) -> Result<PageAsked, Fault> {
        let id = |name: &str| self.param(name).map(|id| if kind == ObjectKind::List { row_name(kind, &id) } else { Ok(id) }).transpose();
        Ok(PageAsked {
            key: id(if kind == ObjectKind::List { "Index" } else { "Key" })?,
            from: id("From")?,
            token: self.param("PageToken"),
            size: self.param("PageSize"),
            order: self.param("Order"),
            bounds: self.param("Bounds"),
        })
    }

    /// A parameter's first value, percent-decoded: clients send it as it stands in a URL.
    fn param(&self, name: &str) -> Option<String> {
        let value = self.request.params.get(name)?.first()?;
        Some(percent_decode_str(&value).decode_utf8_lossy().into_owned())
    }

    fn if_match(&self) -> Result<IfMatch, Fault> {
        let found = self.request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("if-match"));
        let Some(given) = found.and_then(|(_, value)| value.first()) else { return Ok(IfMatch::Any) };
        let given = given.trim().trim_start_matches("W/").trim_matches('"');
        match given {
            "*" | "" => Ok(IfMatch::Any),
            "-1" => Ok(IfMatch::Absent),
            // A revision that was never given out matches none.
            given => {
                let legal = given.len() <= 19 && given.bytes().all(|digit| digit.is_ascii_digit());
                let shown: u64 = given.parse().ok().filter(|_| legal).ok_or(Fault::IfMatch)?;
                Ok(IfMatch::Revision(shown.saturating_add(1)))
            }
        }
    }
}

/// The name of an item's row: a map's key, or a list's index as the sync room writes it.
fn row_name(kind: ObjectKind, item: &str) -> Result<String, Fault> {
    match kind {
        ObjectKind::List if item.bytes().all(|digit| digit.is_ascii_digit()) => {
            item.parse().map(crate::sync::object::index_name).map_err(|_| Fault::Index)
        }
        ObjectKind::List => Err(Fault::Index),
        _ => Ok(item.to_owned()),
    }
}

fn ttl_of(given: Option<serde_json::Value>) -> Result<Option<u32>, Fault> {
    let Some(given) = given else { return Ok(None) };
    let seconds = given.as_u64().or_else(|| given.as_str()?.parse().ok());
    seconds.and_then(|seconds| u32::try_from(seconds).ok()).filter(|seconds| *seconds <= MAX_TTL).map(Some).ok_or(Fault::Ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(request: &str, payload: &str) -> Result<Ask, Fault> {
        read(&RawValue::from_string(request.into()).unwrap(), payload.as_bytes(), "IS1")
    }

    fn of(kind: ObjectKind, what: OfObject) -> Result<Ask, Fault> {
        Ok(Ask::Object(kind, what))
    }

    #[test]
    fn both_dialects_are_read() {
        let javascript = r#"{"host":"h:1","path":"/v3/Maps/MP1/Items","method":"GET","params":{"PageSize":"10","Order":"asc","From":"a%2Fb"},"headers":{"Content-Type":"application/json"}}"#;
        let page = PageAsked { size: Some("10".into()), order: Some("asc".into()), from: Some("a/b".into()), ..PageAsked::default() };
        assert_eq!(asked(javascript, ""), of(ObjectKind::Map, OfObject::Items { id: "MP1".into(), page }));
        let kotlin = r#"{"host":"h","path":"/v3/Services/IS1/Lists/ES1/Items/10","method":"POST","params":{},"headers":{"If-Match":["3"]}}"#;
        let put = Put { data: Some(r#"{"a":1}"#.into()), ttl: Some(5), collection_ttl: None };
        let set = OfObject::Set { id: "ES1".into(), item: "000000000000000a".into(), if_match: IfMatch::Revision(4), put };
        assert_eq!(asked(kotlin, r#"{"data":{"a":1},"ttl":5}"#), of(ObjectKind::List, set));
    }

    #[test]
    fn paths_are_decoded_part_by_part_and_may_have_a_prefix() {
        let item = r#"{"path":"/shop/v3/Maps/a%20b/Items/x%2Fy","method":"PUT","headers":{"if-match":"-1"}}"#;
        let put = Put { data: Some("{}".into()), ttl: None, collection_ttl: None };
        let upsert = OfObject::Upsert { id: "a b".into(), item: "x/y".into(), if_match: IfMatch::Absent, put };
        assert_eq!(asked(item, r#"{"data":{}}"#), of(ObjectKind::Map, upsert));
        assert_eq!(asked(r#"{"path":"/v3/Services/IS2/Maps/a","method":"GET"}"#, ""), Err(Fault::NoService));
        assert_eq!(asked(r#"{"path":"/v3/Insights/tr/Items","method":"POST"}"#, "{}"), Ok(Ask::LiveQuery));
        for path in ["", "/", "/v3", "/v3/", "/v3/Nothing", "/v3/Streams/a/Items", "/v4/Maps/a", "/v3/Documents/a/Items/b", "/v3/Maps/%FF"] {
            assert_eq!(asked(&format!(r#"{{"path":"{path}","method":"GET"}}"#), ""), Err(Fault::NoPath), "{path}");
        }
    }

    #[test]
    fn a_removal_has_no_body() {
        let remove = r#"{"path":"/v3/Maps/m/Items/k","method":"DELETE"}"#;
        let ask = OfObject::RemoveItem { id: "m".into(), item: "k".into(), if_match: IfMatch::Any };
        assert_eq!(asked(remove, "data_sync"), of(ObjectKind::Map, ask));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let post = |path: &str, body: &str| asked(&format!(r#"{{"path":"/v3/{path}","method":"POST"}}"#), body).unwrap_err();
        assert_eq!(post("Documents", "{"), Fault::NotJson);
        assert_eq!(post("Documents", r#"{"data":5}"#), Fault::NotJson);
        assert_eq!(post("Documents", r#"{"ttl":-1}"#), Fault::Ttl);
        assert_eq!(post("Documents", r#"{"ttl":31536001}"#), Fault::Ttl);
        assert_eq!(post("Documents/d", "{}"), Fault::NothingToUpdate);
        assert_eq!(post("Maps/m/Items", r#"{"data":{}}"#), Fault::ItemKey);
        assert_eq!(post("Maps/m/Items", r#"{"key":"k"}"#), Fault::NoData(ObjectKind::Map));
        assert_eq!(post("Lists/l/Items/x", r#"{"data":{}}"#), Fault::Index);
        assert_eq!(post("Streams/s/Messages", "{}"), Fault::NoData(ObjectKind::Stream));
        assert_eq!(post("Streams/s/Messages", &format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(4 << 10))), Fault::TooLarge);
        let revision = r#"{"path":"/v3/Documents/d","method":"POST","headers":{"If-Match":"x"}}"#;
        assert_eq!(asked(revision, r#"{"ttl":1}"#), Err(Fault::IfMatch));
        assert_eq!(asked("5", ""), Err(Fault::Parameter("Malformed http_request".into())));
    }

    #[test]
    fn a_poke_is_read() {
        let poke = r#"{"event_protocol_version":4,"action":"establish","correlation_id":1795193349232,"retried_requests":0,"ttl_in_s":-1,
            "requests":[{"object_sid":"ET1","object_type":"document","last_event_id":7},{"object_sid":"TO1","object_type":"stream","last_event_id":null}]}"#;
        let Ok(Ask::Subscriptions(read)) = asked(r#"{"path":"/v4/Subscriptions","method":"POST"}"#, poke) else { panic!() };
        assert_eq!((read.action, read.correlation_id, read.requests.len()), (Action::Establish, 1_795_193_349_232, 2));
        assert_eq!((read.requests[0].last_event_id, read.requests[1].last_event_id), (Some(7), None));
    }
}
