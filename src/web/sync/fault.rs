//! What the Sync API refuses, in one table: code, status and message. Used by both faces; the public one (v1) shows every "not found" as 20404, the SDKs' one
//! by what was not found. Codes are Twilio's (<https://www.twilio.com/docs/api/errors>).

use std::borrow::Cow;

use crate::event::ObjectKind;
use crate::sync::{self, Refusal, api::CallError};

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No such path, or no such page.
    NoPath,
    /// A method that the path does not know; says which it does, as the header `Allow` does.
    Method(&'static str),
    /// No such service.
    NoService,
    /// The service that an account has by itself is to be deleted.
    OwnService,
    /// No object of this SID.
    NoObject(ObjectKind),
    /// No object of this unique name.
    NoName,
    /// No such item of a list or map.
    NoItem(ObjectKind),
    /// Nobody gave this identity rights.
    NoPermission,
    /// A parameter is unknown, or not what it may be; says which.
    Parameter(Cow<'static, str>),
    /// No credentials, or ones that open nothing.
    Unauthorized,
    /// The identity has not the right.
    Forbidden,
    /// The object is written by the mapping of events alone.
    Reserved,
    /// `If-Match` names no revision.
    IfMatch,
    /// Data of more bytes than may be.
    TooLarge,
    /// Data is no JSON, or not what it may be.
    NotJson,
    /// Too much at once; names what was limited.
    RateLimited(String),
    /// An update of nothing.
    NothingToUpdate,
    /// A lifetime out of its range.
    Ttl,
    /// A webhook's address that is none.
    WebhookUrl,
    /// A name for people that is too long or empty.
    FriendlyName,
    /// Data is missing: of an object, or of an item of it.
    NoData(ObjectKind),
    /// The document has another revision.
    ObjectRevision,
    /// The item has another revision.
    ItemRevision(ObjectKind),
    /// The item exists.
    ItemExists,
    /// A key that no item may have.
    ItemKey,
    /// The unique name is taken.
    NameExists,
    /// A unique name that no object may have.
    UniqueName,
    /// An identity that nobody may have.
    Identity,
    /// `Order` is neither.
    Order,
    /// `Bounds` is neither.
    Bounds,
    /// A page's token that was not given out.
    PageToken,
    /// A page's size that is no number.
    PageSize,
    /// A list's index that is none.
    Index,
    /// More subscriptions than one connection may have.
    Subscriptions,
    /// Live queries are not served.
    LiveQuery,
    /// The object can have no more.
    Full,
    /// The site is of another region.
    Elsewhere(Cow<'static, str>),
    /// Overload, or something underneath does not answer: nothing was done.
    Unavailable,
    /// No answer came in time: it may have been done.
    Unanswered,
    /// What is stored of it cannot be read.
    Unreadable,
}

/// How a refusal is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The HTTP status.
    pub status: u16,
    /// Twilio's code.
    pub code: u32,
    /// For people.
    pub message: Cow<'static, str>,
}

impl Fault {
    /// As the SDKs' face tells it.
    pub fn told(&self) -> Told {
        let (status, code, message): (u16, u32, Cow<'static, str>) = match self {
            Self::NoPath => (404, 20404, "The requested resource was not found".into()),
            Self::Method(_) => (405, 20004, "Method not allowed".into()),
            Self::NoService => (404, 54050, "Service not found".into()),
            Self::OwnService => (403, 54056, "The service that an account has by itself cannot be deleted".into()),
            Self::NoObject(kind) => (404, of_kind(*kind, 54100, 54150, 54200, 54250), format!("{} not found", name_of(*kind)).into()),
            Self::NoName => (404, 54300, "Unique name not found".into()),
            Self::NoItem(ObjectKind::List) => (404, 54151, "Item not found".into()),
            Self::NoItem(_) => (404, 54201, "Item not found".into()),
            Self::NoPermission => (404, 54354, "Permission not found".into()),
            Self::Parameter(what) => (400, 20001, what.clone()),
            Self::Unauthorized => (401, 20003, "Authenticate".into()),
            Self::Forbidden => (403, 54007, "The identity has not the permission to do this".into()),
            Self::Reserved => {
                (403, 54007, "The object is kept by the events of the shop; a client may remove it, and add items of its own to a map".into())
            }
            Self::IfMatch => (400, 54003, "Malformed If-Match header: expected a revision".into()),
            Self::TooLarge => (413, 54006, "Request entity too large".into()),
            Self::NotJson => (400, 54008, "Invalid request body: the type of one of the attributes is invalid".into()),
            Self::RateLimited(what) => (429, 54009, format!("Rate limit exceeded for {what}").into()),
            Self::NothingToUpdate => (400, 54010, "Invalid update: none of the parameters that can be changed is given".into()),
            Self::Ttl => (400, 54011, "Invalid TTL: expected 0 to 31536000 seconds".into()),
            Self::WebhookUrl => (400, 54051, "Invalid webhook URL".into()),
            Self::FriendlyName => (400, 54053, "Invalid friendly name. Expected a string with length 1-255".into()),
            Self::NoData(kind) => (400, of_kind(*kind, 54101, 54156, 54206, 54251), "Data is missing".into()),
            Self::ObjectRevision => (412, 54103, "The revision of the Document does not match the expected revision".into()),
            Self::ItemRevision(ObjectKind::List) => (412, 54155, "The revision of the List Item does not match the expected revision".into()),
            Self::ItemRevision(_) => (412, 54205, "The revision of the Map Item does not match the expected revision".into()),
            Self::ItemExists => (409, 54208, "An Item with given key already exists in the Map".into()),
            Self::ItemKey => (400, 54209, "Invalid map item key. Expected a string with length 1-320".into()),
            Self::NameExists => (409, 54301, "Unique name already exists".into()),
            Self::UniqueName => {
                (400, 54302, "Invalid unique name. Expected a string with length 1-320 not matching the SID pattern [A-Z]{2}[a-f0-9]{32}".into())
            }
            Self::Identity => (400, 54351, "Invalid identity. Expected a string with length 1-256".into()),
            Self::Order => (400, 54451, "Invalid Order: expected asc or desc".into()),
            Self::Bounds => (400, 54452, "Invalid Bounds: expected inclusive or exclusive".into()),
            Self::PageToken => (400, 54453, "Invalid PageToken".into()),
            Self::PageSize => (400, 54454, "Invalid PageSize: expected a number".into()),
            Self::Index => (400, 54458, "Invalid list item index".into()),
            Self::Subscriptions => (429, 54419, "Too many subscriptions on one connection".into()),
            Self::LiveQuery => (404, 54502, "Live queries are not served here".into()),
            Self::Full => (400, 20001, "The object can have no more items".into()),
            Self::Elsewhere(place) => (421, 20001, place.clone()),
            Self::Unavailable => (503, 20503, "Not done: try again later".into()),
            Self::Unanswered => (503, 20503, "No answer came in time; it may have been applied".into()),
            Self::Unreadable => (500, 20500, "What is stored of the object cannot be read; an operator has to rebuild it".into()),
        };
        Told { status, code, message }
    }

    /// As the public face tells it: there nothing says what was not found.
    pub fn told_by_rest(&self, path: &str) -> Told {
        let told = self.told();
        if told.status == 404 {
            return Told { status: 404, code: 20404, message: format!("The requested resource {path} was not found").into() };
        }
        told
    }

    /// What a refused call means, of an object or of an item of it.
    pub fn of_refusal(refusal: Refusal, kind: ObjectKind, of_item: bool) -> Self {
        match refusal {
            Refusal::NoObject => Self::NoObject(kind),
            Refusal::NoItem => Self::NoItem(kind),
            Refusal::Exists => Self::NameExists,
            Refusal::ItemExists => Self::ItemExists,
            Refusal::Revision if of_item => Self::ItemRevision(kind),
            Refusal::Revision => Self::ObjectRevision,
            Refusal::Full => Self::Full,
            Refusal::Kind => Self::NoPath,
        }
    }
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Busy => Self::Unavailable,
            CallError::Unanswered => Self::Unanswered,
            CallError::Log(error) => {
                tracing::warn!(%error, "a call of an API client is not taken");
                Self::Unanswered
            }
            CallError::Feed(error) => {
                tracing::warn!(%error, "a call of an API client is not made");
                Self::Unavailable
            }
        }
    }
}

impl From<sync::Error> for Fault {
    fn from(error: sync::Error) -> Self {
        tracing::warn!(%error, "an object cannot be read");
        if error.is_retryable() || matches!(error, sync::Error::Closed) { Self::Unavailable } else { Self::Unreadable }
    }
}

const fn of_kind(kind: ObjectKind, document: u32, list: u32, map: u32, stream: u32) -> u32 {
    match kind {
        ObjectKind::Document => document,
        ObjectKind::List => list,
        ObjectKind::Map => map,
        ObjectKind::Stream => stream,
    }
}

const fn name_of(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Document => "Document",
        ObjectKind::List => "List",
        ObjectKind::Map => "Map",
        ObjectKind::Stream => "Stream",
    }
}
