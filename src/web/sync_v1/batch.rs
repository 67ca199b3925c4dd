//! Many writes by one request, which Twilio's API has not. Called by the handler.
//!
//! `POST .../Maps/{M}/Batch` with JSON `{"items": [{"key", "data", "ttl"?, "if_match"?}, ...]}` adds or replaces items of one map, in their order;
//! `POST .../Services/{S}/Batch` with `{"documents": [{"unique_name", "data", "ttl"?}, ...]}` creates or replaces documents, in any order. `data` is a JSON object as
//! it stands, `ttl` a lifetime in seconds, `if_match` what the header of that name takes. At most 1,000 entries in 4 MiB.
//!
//! The answer is 200 with a verdict for each entry, in their order: `{"key", "status", "revision"}` (201 = was not there, 200 = was), or
//! `{"key", "status", "code", "message"}` as the entry alone would have been refused. Each is charged to its budget and decided for itself; where several
//! entries are of one item, the later ones find what the earlier ones left.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use serde_json::value::RawValue;

use super::condition::Condition;
use super::form;
use super::render::Object as Facts;
use super::reply::Reply;
use super::{Asked, Outcome, render};
use crate::event::ObjectKind;
use crate::event::change::{Call, PutItem};
use crate::web::sync::{Fault, MAX_DATA, MAX_TTL, Made, check_item_key};

/// Most entries of a batch.
const MOST: usize = 1_000;
/// Bytes of data after which a further change is begun: a change is one record of the log, and is answered by one message.
const CHANGE_BYTES: usize = 256 << 10;
/// Documents that are written at once.
const WRITTEN_AT_ONCE: usize = 32;
/// 2^64.
const TOO_LARGE: f64 = 18_446_744_073_709_551_616.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Items<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Documents<'a> {
    #[serde(borrow)]
    documents: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    key: String,
    #[serde(borrow)]
    data: &'a RawValue,
    ttl: Option<Number>,
    if_match: Option<Demand>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    unique_name: String,
    #[serde(borrow)]
    data: &'a RawValue,
    ttl: Option<Number>,
}

/// Data as it is stored, and a lifetime.
type Content = (String, Option<u32>);

/// A revision as text or as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Demand {
    Text(String),
    Number(Number),
}

/// What became of an entry. One that cannot be read has no name.
#[derive(Default, Serialize)]
struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Asked<'_> {
    /// Adds or replaces items of a map.
    pub(super) async fn put_items(&self, map: &str, body: &[u8]) -> Outcome {
        let Items { items } = read(body)?;
        check_number(items.len())?;
        let object = self.desk().find(&self.caller, ObjectKind::Map, map).await?;
        let mut told: Vec<Told> = Vec::with_capacity(items.len());
        let mut rest = items.as_slice();
        let mut gave_up = false;
        while !rest.is_empty() {
            let before = rest.iter().scan(0usize, |sum, item| Some(std::mem::replace(sum, *sum + item.get().len())));
            let (change, others) = rest.split_at_checked(before.take_while(|before| *before < CHANGE_BYTES).count()).unwrap_or((rest, &[]));
            rest = others;
            let read: Vec<(Option<String>, Result<Call, Fault>)> = change.iter().map(|item| put_of(item)).collect();
            let calls: Vec<Call> = read.iter().filter(|_| !gave_up).filter_map(|(_, call)| call.as_ref().ok().cloned()).collect();
            let made = if calls.is_empty() { Ok(Vec::new()) } else { self.desk().change_many(&self.caller, &object, calls).await };
            // What comes after a change that was not answered is not tried: each would wait as long.
            let failed = made.as_ref().err().cloned().unwrap_or(Fault::Unavailable);
            gave_up |= made.is_err();
            let mut made = made.unwrap_or_default().into_iter();
            told.extend(read.into_iter().map(|(key, call)| {
                let outcome = call.and_then(|_| made.next().unwrap_or_else(|| Err(failed.clone())));
                Told { key, ..self.told(outcome) }
            }));
        }
        Ok(Reply::ok(format!("{{\"items\":{}}}", render::json(&told))))
    }

    /// Creates or replaces documents.
    pub(super) async fn put_documents(&self, body: &[u8]) -> Outcome {
        let Documents { documents } = read(body)?;
        check_number(documents.len())?;
        let gave_up = AtomicBool::new(false);
        let read: Vec<_> = documents.into_iter().map(document_of).collect();
        let puts = read.into_iter().map(|(unique_name, read)| {
            let gave_up = &gave_up;
            async move {
                let outcome = match (read, &unique_name) {
                    (Ok(_), _) if gave_up.load(Ordering::Relaxed) => Err(Fault::Unavailable),
                    (Ok((data, ttl)), Some(name)) => self.desk().put_document(&self.caller, name, data, ttl).await,
                    (Ok(_), None) => Err(Fault::UniqueName),
                    (Err(fault), _) => Err(fault),
                };
                gave_up.fetch_or(matches!(outcome, Err(Fault::Unavailable | Fault::Unanswered)), Ordering::Relaxed);
                Told { unique_name, ..self.told(outcome) }
            }
        });
        let told: Vec<Told> = futures::stream::iter(puts).buffered(WRITTEN_AT_ONCE).collect().await;
        Ok(Reply::ok(format!("{{\"documents\":{}}}", render::json(&told))))
    }

    fn told(&self, outcome: Result<Made, Fault>) -> Told {
        match outcome {
            Ok(made) => {
                let document = made.object.as_ref().filter(|object| object.key.kind == ObjectKind::Document);
                let revision = made.item.as_ref().map(|item| item.revision).or(document.map(|document| document.revision));
                let sid = document.map(|document| Facts::from(document).sid());
                Told { sid, status: if made.added { 201 } else { 200 }, revision: revision.map(render::revision), ..Told::default() }
            }
            Err(fault) => {
                let path = self.parts.uri.path();
                let told = fault.told_by_rest(path.strip_prefix("/v1").unwrap_or(path));
                Told { status: told.status, code: Some(told.code), message: Some(told.message.into_owned()), ..Told::default() }
            }
        }
    }
}

/// The key of an item, where it can be read, and the call that puts it.
fn put_of(item: &RawValue) -> (Option<String>, Result<Call, Fault>) {
    let Ok(Item { key, data, ttl, if_match }) = serde_json::from_str(item.get()) else { return (None, Err(unreadable())) };
    let call = || {
        check_item_key(&key)?;
        let condition = match if_match {
            None => Condition::Any,
            Some(Demand::Text(text)) => Condition::parse(&text)?,
            Some(Demand::Number(shown)) => Condition::parse(&whole(&shown).ok_or(Fault::IfMatch)?.to_string())?,
        };
        let item = match condition {
            Condition::Exists => PutItem::Set(key.clone(), None),
            Condition::Any | Condition::Revision(_) => PutItem::Upsert(key.clone(), condition.revision()),
        };
        let (data, ttl) = (form::data(data.get(), ObjectKind::Map, MAX_DATA)?, ttl_of(ttl)?);
        Ok(Call::PutItem { item, data: Some(data), ttl, collection_ttl: None })
    };
    let call = call();
    (Some(key), call)
}

/// The name of a document, where it can be read, and its data and lifetime.
fn document_of(document: &RawValue) -> (Option<String>, Result<Content, Fault>) {
    let Ok(Document { unique_name, data, ttl }) = serde_json::from_str(document.get()) else { return (None, Err(unreadable())) };
    let read = form::data(data.get(), ObjectKind::Document, MAX_DATA).and_then(|data| Ok((data, ttl_of(ttl)?)));
    (Some(unique_name), read)
}

fn ttl_of(given: Option<Number>) -> Result<Option<u32>, Fault> {
    let ttl = |given: &Number| whole(given).and_then(|ttl| u32::try_from(ttl).ok()).filter(|ttl| *ttl <= MAX_TTL);
    given.map(|given| ttl(&given).ok_or(Fault::Ttl)).transpose()
}

/// A number without a fraction, from 0 on. JSON has no integers: `5.0` and `5` are one number, and there are writers of either.
fn whole(number: &Number) -> Option<u64> {
    let is_whole = |number: &f64| (0.0..TOO_LARGE).contains(number) && number.fract() == 0.0;
    // Nothing is cut off of such a one.
    number.as_u64().or_else(|| number.as_f64().filter(is_whole).map(|number| number as u64))
}

fn unreadable() -> Fault {
    Fault::Parameter("The entry has not the fields that it has to have, or has others".into())
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|_| Fault::NotJson)
}

fn check_number(entries: usize) -> Result<(), Fault> {
    if (1..=MOST).contains(&entries) { Ok(()) } else { Err(Fault::Parameter(format!("A batch has 1 to {MOST} entries").into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn entries_are_read_each_for_itself() {
        let upsert = |revision| Call::PutItem {
            item: PutItem::Upsert("a".into(), revision),
            data: Some("{\"n\":1.0}".into()),
            ttl: None,
            collection_ttl: None,
        };
        for (text, wanted) in [
            (r#"{"key":"a","data":{"n":1.0}}"#, Ok(upsert(None))),
            (r#"{"key":"a","data":{"n":1.0},"if_match":"0"}"#, Ok(upsert(Some(1)))),
            (r#"{"key":"a","data":{"n":1.0},"if_match":4}"#, Ok(upsert(Some(5)))),
            (r#"{"key":"a","data":{"n":1.0},"if_match":"x"}"#, Err(Fault::IfMatch)),
            (r#"{"key":"a","data":null}"#, Err(Fault::NoData(ObjectKind::Map))),
            (r#"{"key":"a","data":"{}"}"#, Err(Fault::NotJson)),
            (r#"{"key":"a","data":{},"ttl":-1}"#, Err(Fault::Ttl)),
            (r#"{"key":"a","data":{},"ttl":1.5}"#, Err(Fault::Ttl)),
            (r#"{"key":"a","data":{},"if_match":-1}"#, Err(Fault::IfMatch)),
            (r#"{"key":"a","data":{},"if_match":0.5}"#, Err(Fault::IfMatch)),
            (r#"{"key":"a","data":{},"if_match":18446744073709551616}"#, Err(Fault::IfMatch)),
            (r#"{"key":"a","data":{"n":1.0},"if_match":4.0}"#, Ok(upsert(Some(5)))),
            (r#"{"key":"a","data":{"n":1.0},"ttl":null,"if_match":null}"#, Ok(upsert(None))),
        ] {
            assert_eq!(put_of(raw(text)), (Some("a".into()), wanted), "{text}");
        }
        assert_eq!(put_of(raw(r#"{"key":"","data":{}}"#)), (Some(String::new()), Err(Fault::ItemKey)));
        for text in [r#"{"key":"a"}"#, r#"{"data":{}}"#, r#"{"key":"a","data":{},"ifMatch":"0"}"#, "1", r#"{"key":"a","data":{},"ttl":"5"}"#] {
            assert!(matches!(put_of(raw(text)), (None, Err(Fault::Parameter(_)))), "{text}");
        }
        assert_eq!(document_of(raw(r#"{"unique_name":"a","data":{},"ttl":5}"#)), (Some("a".into()), Ok(("{}".into(), Some(5)))));
        assert_eq!(document_of(raw(r#"{"unique_name":"a","data":{},"ttl":5.0}"#)), (Some("a".into()), Ok(("{}".into(), Some(5)))));
        assert_eq!(document_of(raw(r#"{"unique_name":"a","data":{},"ttl":31536001}"#)), (Some("a".into()), Err(Fault::Ttl)));
    }
}
