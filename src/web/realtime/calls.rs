//! Does what an upstream request asks, and says what came of it: status and body. Called by a connection; everything goes by the desk, which knows who may do
//! what.

use axum::http::StatusCode;
use bytes::Bytes;
use uuid::Uuid;

use super::frame::{Outgoing, Status, encode};
use super::paging::{self, MAX_SIZE};
use super::request::{Ask, IfMatch, OfObject, Put};
use super::shown::{self, Urls, raw, sid_of};
use super::tail;
use crate::event::ObjectKind;
use crate::event::change::{Call, PutItem};
use crate::sync::object::Object;
use crate::web::sync::{Caller, Desk, Fault, Made};

/// An answer of the Sync API.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    status: u16,
    body: String,
}

/// Answers a refusal.
impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        let told = fault.told();
        let (status, code, message) = (told.status, told.code, told.message);
        let more_info = format!("https://www.twilio.com/docs/errors/{code}");
        Self { status, body: shown::json(&serde_json::json!({"status": status, "code": code, "message": message, "more_info": more_info})) }
    }
}

impl Answer {
    fn new(status: u16, body: String) -> Self {
        Self { status, body }
    }

    /// That a batch of subscriptions is taken. Clients ask again for what they hear nothing of in the time told.
    pub(super) fn poked() -> Self {
        let body = serde_json::json!({"max_batch_size": super::request::MAX_BATCH, "estimated_delivery_in_ms": 10_000, "ttl_in_s": 3_600});
        Self::new(200, body.to_string())
    }

    /// As the reply to the frame that asked.
    pub(super) fn reply(&self, id: &str) -> Bytes {
        let name = StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
        metrics::counter!("contrail_realtime_requests_total", "status" => self.status.to_string()).increment(1);
        let http_status = Some(Status { code: self.status, status: name, error: None, description: None });
        let http_headers = Some(raw(r#"{"content-type":"application/json"}"#));
        encode(Outgoing { method: "reply", id, status: Some(Status::OK), http_status, http_headers, ..Outgoing::default() }, &self.body)
    }
}

/// Does what is asked, subscriptions aside, which are their connection's.
pub(super) async fn answer(desk: &Desk, caller: &Caller, urls: &Urls, ask: Ask) -> Answer {
    let answer = match ask {
        Ask::Configuration => Ok(Answer::new(200, shown::configuration(urls))),
        Ask::LiveQuery => Err(Fault::LiveQuery),
        Ask::Subscriptions(_) => Err(Fault::NoPath),
        Ask::Object(kind, ask) => of_object(desk, caller, urls, kind, ask).await,
    };
    answer.unwrap_or_else(Answer::from)
}

async fn of_object(desk: &Desk, caller: &Caller, urls: &Urls, kind: ObjectKind, ask: OfObject) -> Result<Answer, Fault> {
    match ask {
        OfObject::Create(new) => {
            let made = desk.create(caller, kind, new.name.as_deref(), new.data, new.ttl).await?;
            Ok(Answer::new(201, shown::root(urls, &made, false, None)))
        }
        OfObject::Get { id, with_items } => {
            if let Some(key) = tail::key_of(caller, kind, &id)? {
                return Ok(Answer::new(200, shown::root(urls, &tail::snapshot(key), true, None)));
            }
            let object = desk.read(caller, kind, &id).await?;
            let items = with_items.then(|| object.items(None, true, false, MAX_SIZE, desk.now()));
            let snapshot = object.bare_snapshot().ok_or(Fault::NoObject(kind))?;
            Ok(Answer::new(200, shown::root(urls, &snapshot, true, items.as_deref())))
        }
        OfObject::Items { id, page } => {
            let object = desk.read(caller, kind, &id).await?;
            let page = paging::page(&object, &page, desk.now())?;
            Ok(Answer::new(200, shown::page(urls, kind, &sid(&object), &page)))
        }
        OfObject::Item { id, item } => {
            let object = desk.read(caller, kind, &id).await?;
            let item = object.item(&item, desk.now()).ok_or(Fault::NoItem(kind))?;
            Ok(Answer::new(200, shown::json(&shown::item(urls, kind, &sid(&object), &item, true))))
        }
        OfObject::Context { id } => {
            let object = desk.read(caller, kind, &id).await?;
            Ok(Answer::new(200, shown::context(&sid(&object), object.context(), object.head().event_id)))
        }
        OfObject::Update { id, .. } | OfObject::Remove { id, .. } | OfObject::Publish { id, .. } if tail::key_of(caller, kind, &id)?.is_some() => {
            Err(Fault::Reserved)
        }
        OfObject::Update { id, if_match, put: Put { data, ttl, .. } } => {
            let object = desk.find(caller, kind, &id).await?;
            let made = desk.change(caller, &object, Call::Update { if_revision: if_match.revision(), data, ttl }).await?;
            let snapshot = made.object.ok_or(Fault::NoObject(kind))?;
            Ok(Answer::new(200, shown::root(urls, &snapshot, false, None)))
        }
        OfObject::Remove { id, if_match } => {
            let object = desk.find(caller, kind, &id).await?;
            desk.change(caller, &object, Call::Remove { if_revision: if_match.revision() }).await?;
            Ok(Answer::new(204, String::new()))
        }
        OfObject::Publish { id, data } => {
            let object = desk.find(caller, kind, &id).await?;
            let message = format!("TZ{}", Uuid::new_v4().simple());
            desk.change(caller, &object, Call::Publish { sid: message.clone(), data }).await?;
            Ok(Answer::new(201, shown::json(&serde_json::json!({"sid": message}))))
        }
        OfObject::Add { .. } | OfObject::Upsert { .. } | OfObject::Set { .. } | OfObject::RemoveItem { .. } => {
            of_item(desk, caller, urls, kind, ask).await
        }
    }
}

async fn of_item(desk: &Desk, caller: &Caller, urls: &Urls, kind: ObjectKind, ask: OfObject) -> Result<Answer, Fault> {
    let put = |item: PutItem, Put { data, ttl, collection_ttl }| Call::PutItem { item, data, ttl, collection_ttl };
    let (id, call, if_absent) = match ask {
        OfObject::Add { id, key, put: with } => (id, put(key.map_or(PutItem::Append, PutItem::Add), with), false),
        OfObject::Upsert { put: Put { data: None, .. }, .. } => return Err(Fault::NoData(kind)),
        OfObject::Upsert { id, item, if_match: IfMatch::Absent, put: with } => (id, put(PutItem::Add(item), with), true),
        OfObject::Upsert { id, item, if_match, put: with } => (id, put(PutItem::Upsert(item, if_match.revision()), with), false),
        OfObject::Set { id, item, if_match, put: with } => (id, put(PutItem::Set(item, if_match.revision()), with), false),
        OfObject::RemoveItem { id, item, if_match } => (id, Call::RemoveItem { item, if_revision: if_match.revision() }, false),
        _ => return Err(Fault::NoPath),
    };
    let object = desk.find(caller, kind, &id).await?;
    let Made { added, item, .. } = match desk.change(caller, &object, call).await {
        // Its condition was that there is none.
        Err(Fault::ItemExists) if if_absent => return Err(Fault::ItemRevision(kind)),
        made => made?,
    };
    let item = item.ok_or(Fault::NoItem(kind))?;
    let status = if added { 201 } else { 200 };
    Ok(Answer::new(status, shown::json(&shown::item(urls, kind, &sid(&object), &item, false))))
}

fn sid(object: &Object) -> String {
    sid_of(object.key(), object.head().incarnation)
}
