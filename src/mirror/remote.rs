//! The other Sync service: what is asked of it by Twilio's REST API v1 (<https://www.twilio.com/docs/sync/api>), and what its answers mean. Called by `round`. Must
//! never log what is sent, nor send a credential anywhere but to the host that it is for.

use std::time::Duration;

use hyper::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::plan::{Digest, digest_of};
use crate::event::ObjectKind;
use crate::outbound::{Client, Error, Request};
use crate::site::Target;

/// Items of a page.
const PAGE: &str = "100";
/// Bytes of an answer: a page of items of 16 KiB each, and as much again.
const ANSWER: usize = 4 << 20;
/// The code of what is forbidden with one object.
const FORBIDDEN_HERE: u64 = 54_007;
/// A longer `Retry-After` is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Why something was not done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It was not, as there was too much: to be asked again, after so long where that was said.
    Busy(Option<Duration>),
    /// It may have been or not: to be found out before it is asked again, where that would make a difference.
    Unknown(&'static str),
    /// It was not, and may be later: nobody was there.
    Away(&'static str),
    /// It was not, and would not be again.
    Refused(&'static str),
    /// Nothing is done for whom we are, or there is no such service.
    Denied,
}

impl Fault {
    /// Whether what was asked for may still be under way.
    pub(super) fn is_pending(self) -> bool {
        matches!(self, Self::Unknown(reason) if reason != "status")
    }
}

/// What was said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// It is done; what of.
    Done(Value),
    /// There is no such thing.
    Missing,
    /// There is such a thing already.
    Exists,
}

/// A service there.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) client: Client,
    pub(super) target: Target,
    pub(super) timeout: Duration,
}

/// The collection that objects of a kind are in.
const fn collection(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "Documents",
        ObjectKind::List => "Lists",
        ObjectKind::Map => "Maps",
        ObjectKind::Stream => "Streams",
    }
}

/// A page of items as it is shown.
#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    index: Option<u64>,
    data: Value,
}

#[derive(Deserialize)]
struct Meta {
    next_page_url: Option<String>,
}

/// What a page holds: items by key or index, and what asks for the next.
pub(super) struct Shown {
    pub(super) keyed: Vec<(String, Digest)>,
    pub(super) indexed: Vec<(u64, Digest)>,
    pub(super) next: Option<String>,
}

impl Remote {
    /// Makes an object, a document with its data.
    pub(super) async fn create(&self, kind: ObjectKind, name: &str, data: Option<&str>) -> Result<Said, Fault> {
        let form: Vec<(&str, &str)> = [("UniqueName", name)].into_iter().chain(data.map(|data| ("Data", data))).collect();
        match self.ask(Method::POST, &[collection(kind)], None, &form).await? {
            // The collection itself is not there.
            Said::Missing => Err(Fault::Denied),
            said => Ok(said),
        }
    }

    /// Removes an object.
    pub(super) async fn remove(&self, kind: ObjectKind, name: &str) -> Result<Said, Fault> {
        self.ask(Method::DELETE, &[collection(kind), name], None, &[]).await
    }

    /// A document.
    pub(super) async fn document(&self, name: &str) -> Result<Option<Digest>, Fault> {
        match self.ask(Method::GET, &[collection(ObjectKind::Document), name], None, &[]).await? {
            Said::Done(document) => Ok(Some(digest_of(document.get("data").unwrap_or(&Value::Null)))),
            Said::Missing | Said::Exists => Ok(None),
        }
    }

    /// Puts a document's data.
    pub(super) async fn put_document(&self, name: &str, data: &str) -> Result<Said, Fault> {
        self.ask(Method::POST, &[collection(ObjectKind::Document), name], None, &[("Data", data)]).await
    }

    /// A page of an object's items; None where there is no such object.
    pub(super) async fn items(&self, kind: ObjectKind, name: &str, page: Option<&str>) -> Result<Option<Shown>, Fault> {
        let query = page.map_or_else(|| format!("PageSize={PAGE}"), ToOwned::to_owned);
        let Said::Done(page) = self.ask(Method::GET, &[collection(kind), name, "Items"], Some(&query), &[]).await? else { return Ok(None) };
        let page: Page = serde_json::from_value(page).map_err(|_| Fault::Away("malformed"))?;
        let (mut keyed, mut indexed) = (Vec::new(), Vec::new());
        for Item { key, index, data } in page.items {
            let digest = digest_of(&data);
            keyed.extend(key.map(|key| (key, digest)));
            indexed.extend(index.map(|index| (index, digest)));
        }
        // Only what it asks for: whatever host it names, this is the one that is asked.
        let next = page.meta.next_page_url.and_then(|url| Url::parse(&url).ok()?.query().map(ToOwned::to_owned));
        Ok(Some(Shown { keyed, indexed, next }))
    }

    /// Adds an item: to a map under its key, which must be free, to a list at its end.
    pub(super) async fn add_item(&self, kind: ObjectKind, name: &str, key: Option<&str>, data: &str) -> Result<Said, Fault> {
        let form: Vec<(&str, &str)> = key.map(|key| ("Key", key)).into_iter().chain([("Data", data)]).collect();
        self.ask(Method::POST, &[collection(kind), name, "Items"], None, &form).await
    }

    /// Replaces the data of an item.
    pub(super) async fn put_item(&self, kind: ObjectKind, name: &str, item: &str, data: &str) -> Result<Said, Fault> {
        self.ask(Method::POST, &[collection(kind), name, "Items", item], None, &[("Data", data)]).await
    }

    /// Removes an item.
    pub(super) async fn remove_item(&self, kind: ObjectKind, name: &str, item: &str) -> Result<Said, Fault> {
        self.ask(Method::DELETE, &[collection(kind), name, "Items", item], None, &[]).await
    }

    async fn ask(&self, method: Method, path: &[&str], query: Option<&str>, form: &[(&str, &str)]) -> Result<Said, Fault> {
        let mut url = self.target.base.clone();
        // What a URL would read as another place.
        if path.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(Fault::Refused("name"));
        }
        url.path_segments_mut().map_err(|()| Fault::Refused("name"))?.extend(path);
        url.set_query(query);
        let headers: [(HeaderName, HeaderValue); 2] =
            [(ACCEPT, HeaderValue::from_static("application/json")), (USER_AGENT, HeaderValue::from_static("Contrail"))];
        let basic = Some((self.target.user.as_str(), self.target.secret.as_str()));
        let request = Request { method, url: &url, headers: &headers, basic, form, timeout: self.timeout, max_body: ANSWER };
        let answer = self.client.send(&request).await.map_err(|error| match error {
            Error::Url => Fault::Refused("name"),
            Error::Private => Fault::Denied,
            Error::Connect(_) => Fault::Away("connect"),
            Error::Broken(_) => Fault::Unknown("broken"),
            Error::Timeout => Fault::Unknown("timeout"),
        })?;
        of_answer(answer.status, &answer.headers, &answer.body)
    }
}

/// Twilio's code of an error.
fn code_of(body: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(body).ok()?.get("code")?.as_u64()
}

/// What an answer means.
fn of_answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Said, Fault> {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
    match status {
        StatusCode::NO_CONTENT => Ok(Said::Done(Value::Null)),
        _ if status.is_success() => serde_json::from_slice(body).map(Said::Done).map_err(|_| Fault::Unknown("malformed")),
        StatusCode::NOT_FOUND => Ok(Said::Missing),
        StatusCode::CONFLICT => Ok(Said::Exists),
        StatusCode::FORBIDDEN if code_of(body) == Some(FORBIDDEN_HERE) => Err(Fault::Refused("forbidden")),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Fault::Denied),
        StatusCode::TOO_MANY_REQUESTS => Err(Fault::Busy(seconds.map(|wait| wait.min(LONGEST_WAIT)))),
        StatusCode::REQUEST_TIMEOUT => Err(Fault::Unknown("timeout")),
        StatusCode::PAYLOAD_TOO_LARGE => Err(Fault::Refused("too_large")),
        // Whoever answers there does so for another, who may yet do it.
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Err(Fault::Unknown("gateway")),
        _ if status.is_server_error() => Err(Fault::Unknown("status")),
        _ => Err(Fault::Refused("refused")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_answer_means() {
        let of = |status: u16, body: &str| of_answer(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes());
        assert_eq!(of(201, "{\"index\":3}"), Ok(Said::Done(json!({"index": 3}))));
        assert_eq!((of(204, ""), of(404, "{}"), of(409, "{}")), (Ok(Said::Done(Value::Null)), Ok(Said::Missing), Ok(Said::Exists)));
        assert_eq!(of(200, "<html>"), Err(Fault::Unknown("malformed")), "it may have been done all the same");
        assert_eq!((of(401, "{}"), of(403, "{}")), (Err(Fault::Denied), Err(Fault::Denied)));
        assert_eq!(of(403, "{\"code\":54007}"), Err(Fault::Refused("forbidden")), "this object alone");
        assert_eq!(
            (of(413, "{}"), of(400, "{}"), of(301, "")),
            (Err(Fault::Refused("too_large")), Err(Fault::Refused("refused")), Err(Fault::Refused("refused")))
        );
        assert_eq!(
            (of(500, ""), of(503, ""), of(408, "")),
            (Err(Fault::Unknown("status")), Err(Fault::Unknown("status")), Err(Fault::Unknown("timeout")))
        );
        assert_eq!((of(502, ""), of(504, "")), (Err(Fault::Unknown("gateway")), Err(Fault::Unknown("gateway"))));
        let busy = |value: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            of_answer(StatusCode::TOO_MANY_REQUESTS, &headers, b"")
        };
        assert_eq!(busy("7"), Err(Fault::Busy(Some(Duration::from_secs(7)))));
        assert_eq!(busy("86400"), Err(Fault::Busy(Some(LONGEST_WAIT))));
        assert_eq!(busy("soon"), Err(Fault::Busy(None)));
    }
}
