//! Services, objects, items and permissions as the Sync API's documents describe them: those fields and no others, addresses absolute and by SID, times in
//! whole seconds, revisions as texts from 0 on. Called by the handlers. Pure.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::route::ROOT;
use crate::event::change::Rights;
use crate::event::{ObjectKey, ObjectKind, Timestamp};
use crate::site::Service;
use crate::sync::object::{Snapshot, SnapshotItem};
use crate::sync::{Head, naming};
use crate::web::sync::SYSTEM;

/// What stands in a path as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a service's resources are shown with.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    public_url: &'a str,
    service: &'a Service,
}

/// An object by what is told of it wherever it stands.
pub(super) struct Object<'a> {
    pub(super) key: &'a ObjectKey,
    pub(super) incarnation: u64,
    pub(super) revision: u64,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) created_by: &'a str,
    /// Of a document.
    pub(super) data: Option<&'a str>,
}

#[derive(Serialize)]
struct ServiceBody<'a> {
    sid: &'a str,
    unique_name: Option<&'a str>,
    account_sid: &'a str,
    friendly_name: Option<&'a str>,
    date_created: String,
    date_updated: String,
    url: &'a str,
    webhook_url: Option<&'a str>,
    webhooks_from_rest_enabled: bool,
    reachability_webhooks_enabled: bool,
    acl_enabled: bool,
    reachability_debouncing_enabled: bool,
    reachability_debouncing_window: u32,
    links: ServiceLinks,
}

#[derive(Serialize)]
struct ServiceLinks {
    documents: String,
    lists: String,
    maps: String,
    streams: String,
}

#[derive(Serialize)]
struct ObjectBody<'a> {
    sid: String,
    unique_name: Option<&'a str>,
    account_sid: &'a str,
    service_sid: &'a str,
    url: &'a str,
    links: ObjectLinks,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    date_expires: Option<String>,
    date_created: String,
    date_updated: String,
    created_by: &'a str,
}

#[derive(Serialize)]
struct ObjectLinks {
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<String>,
}

#[derive(Serialize)]
struct ItemBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    account_sid: &'a str,
    service_sid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    list_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map_sid: Option<&'a str>,
    url: String,
    revision: String,
    data: &'a RawValue,
    date_expires: Option<String>,
    date_created: String,
    date_updated: String,
    created_by: &'a str,
}

#[derive(Serialize)]
struct PermissionBody<'a> {
    account_sid: &'a str,
    service_sid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list_sid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map_sid: Option<&'a str>,
    identity: &'a str,
    read: bool,
    write: bool,
    manage: bool,
    url: String,
}

#[derive(Serialize)]
struct MessageBody<'a> {
    sid: &'a str,
    data: &'a RawValue,
}

impl<'a> From<&'a Snapshot> for Object<'a> {
    fn from(shown: &'a Snapshot) -> Self {
        Self {
            key: &shown.key,
            incarnation: shown.incarnation,
            revision: shown.revision,
            created_at: shown.created_at,
            updated_at: shown.updated_at,
            expires_at: shown.expires_at,
            created_by: &shown.created_by,
            data: shown.data.as_deref(),
        }
    }
}

impl<'a> From<&'a (ObjectKey, Head)> for Object<'a> {
    fn from((key, head): &'a (ObjectKey, Head)) -> Self {
        Self {
            key,
            incarnation: head.incarnation,
            revision: head.revision,
            created_at: head.created_at,
            updated_at: head.updated_at,
            expires_at: head.expires_at,
            created_by: &head.created_by,
            data: None,
        }
    }
}

impl Object<'_> {
    /// Its SID.
    pub(super) fn sid(&self) -> String {
        naming::sid(&self.key.site, self.key.kind, &self.key.name, self.incarnation)
    }
}

impl<'a> Shown<'a> {
    /// `public_url` is where clients reach this server, without a slash at its end.
    pub(super) const fn new(public_url: &'a str, service: &'a Service) -> Self {
        Self { public_url, service }
    }

    /// The service itself.
    pub(super) fn service(&self) -> String {
        let (service, url) = (self.service, self.url());
        let of = |kind| format!("{url}/{}", collection(kind));
        json(&ServiceBody {
            sid: &service.sid,
            unique_name: service.unique_name.as_deref(),
            account_sid: &service.account_sid,
            friendly_name: service.friendly_name.as_deref(),
            date_created: date(service.created_at),
            date_updated: date(service.updated_at),
            url: &url,
            webhook_url: service.webhook_url.as_deref(),
            webhooks_from_rest_enabled: service.webhooks_from_rest_enabled,
            reachability_webhooks_enabled: service.reachability_webhooks_enabled,
            acl_enabled: service.acl_enabled,
            reachability_debouncing_enabled: service.reachability_debouncing_enabled,
            reachability_debouncing_window: service.reachability_debouncing_window,
            links: ServiceLinks {
                documents: of(ObjectKind::Document),
                lists: of(ObjectKind::List),
                maps: of(ObjectKind::Map),
                streams: of(ObjectKind::Stream),
            },
        })
    }

    /// An object of the service.
    pub(super) fn object(&self, object: &Object<'_>) -> String {
        let (sid, kind) = (object.sid(), object.key.kind);
        let url = self.url_of(kind, &sid);
        let link = |is: bool, to: &str| is.then(|| format!("{url}/{to}"));
        let links = ObjectLinks {
            items: link(matches!(kind, ObjectKind::List | ObjectKind::Map), "Items"),
            messages: link(kind == ObjectKind::Stream, "Messages"),
            permissions: link(kind != ObjectKind::Stream, "Permissions"),
        };
        json(&ObjectBody {
            unique_name: naming::unique_name(&object.key.name),
            account_sid: &self.service.account_sid,
            service_sid: &self.service.sid,
            url: &url,
            links,
            revision: (kind != ObjectKind::Stream).then(|| revision(object.revision)),
            data: (kind == ObjectKind::Document).then(|| raw(object.data.unwrap_or("{}"))),
            date_expires: object.expires_at.map(date),
            date_created: date(object.created_at),
            date_updated: date(object.updated_at),
            created_by: creator(object.created_by),
            sid,
        })
    }

    /// An item of a list or map of this SID.
    pub(super) fn item(&self, kind: ObjectKind, sid: &str, item: &SnapshotItem) -> String {
        let index = (kind == ObjectKind::List).then(|| index_of(&item.item));
        let name: Cow<'_, str> = index.map_or_else(|| utf8_percent_encode(&item.item, SEGMENT).into(), |index| index.to_string().into());
        json(&ItemBody {
            index,
            key: (kind == ObjectKind::Map).then_some(&item.item),
            account_sid: &self.service.account_sid,
            service_sid: &self.service.sid,
            list_sid: (kind == ObjectKind::List).then_some(sid),
            map_sid: (kind == ObjectKind::Map).then_some(sid),
            url: format!("{}/Items/{name}", self.url_of(kind, sid)),
            revision: revision(item.revision),
            data: raw(&item.data),
            date_expires: item.life.expires_at.map(date),
            date_created: date(item.life.created_at),
            date_updated: date(item.updated_at),
            created_by: creator(&item.life.created_by),
        })
    }

    /// What an identity may do with an object of this SID.
    pub(super) fn permission(&self, kind: ObjectKind, sid: &str, identity: &str, rights: Rights) -> String {
        let of = |wanted| (kind == wanted).then_some(sid);
        json(&PermissionBody {
            account_sid: &self.service.account_sid,
            service_sid: &self.service.sid,
            document_sid: of(ObjectKind::Document),
            list_sid: of(ObjectKind::List),
            map_sid: of(ObjectKind::Map),
            identity,
            read: rights.read,
            write: rights.write,
            manage: rights.manage,
            url: format!("{}/Permissions/{}", self.url_of(kind, sid), utf8_percent_encode(identity, SEGMENT)),
        })
    }

    fn url(&self) -> String {
        format!("{}{ROOT}/{}", self.public_url, self.service.sid)
    }

    fn url_of(&self, kind: ObjectKind, sid: &str) -> String {
        format!("{}{ROOT}/{}/{}/{sid}", self.public_url, self.service.sid, collection(kind))
    }
}

/// A stream's message.
pub(super) fn message(sid: &str, data: &str) -> String {
    json(&MessageBody { sid, data: raw(data) })
}

/// A revision as clients see it.
pub(super) fn revision(revision: u64) -> String {
    revision.saturating_sub(1).to_string()
}

/// A kind's objects as a path names them.
pub(super) const fn collection(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "Documents",
        ObjectKind::List => "Lists",
        ObjectKind::Map => "Maps",
        ObjectKind::Stream => "Streams",
    }
}

/// A kind's objects as a page names them.
pub(super) const fn plural(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "documents",
        ObjectKind::List => "lists",
        ObjectKind::Map => "maps",
        ObjectKind::Stream => "streams",
    }
}

/// A value as JSON text.
pub(super) fn json(value: &impl Serialize) -> String {
    // Plain data with text keys always serialises.
    serde_json::to_string(value).unwrap_or_default()
}

/// Whole seconds: official clients read no others.
fn date(at: Timestamp) -> String {
    at.floor_to_seconds(1).to_string()
}

/// What no API client made, the account did.
fn creator(created_by: &str) -> &str {
    if created_by.is_empty() { SYSTEM } else { created_by }
}

/// The index of a list's item by its name.
fn index_of(item: &str) -> u64 {
    u64::from_str_radix(item, 16).unwrap_or_default()
}

/// JSON text as it stands; null where it is none, which the sync room does not render.
fn raw(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap_or(RawValue::NULL)
}

#[cfg(test)]
mod tests;
