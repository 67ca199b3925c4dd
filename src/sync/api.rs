//! What API clients write: a call becomes a record of `changes` like any other, is decided by the object's owner at its place there, and is answered over the
//! feed once it is committed, on whichever node asked. Called by the web's Sync faces; must never touch a store, nor decide anything itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::object::{Done, SnapshotItem};
use super::{Answer, Error, Feed, naming};
use crate::event::change::{Call, Op, Origin, Stamp};
use crate::event::ids::{self, KeyKind};
use crate::event::{Change, Channel, Clock, Flags, ObjectKey, ObjectKind, Record, RecordKind};
use crate::eventlog::{self, Append, EventLog, Topic};

/// Type of the events that archive what API clients did.
pub const OBJECT_CHANGED: &str = "object_changed";

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Most calls that wait at once.
    pub max_waiting: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { patience: Duration::from_secs(10), max_waiting: 10_000 }
    }
}

/// Makes API clients' calls. Clones share everything.
#[derive(Clone)]
pub struct Api {
    log: Arc<dyn EventLog>,
    feed: Arc<dyn Feed>,
    clock: Clock,
    patience: Duration,
    waiting: Arc<Semaphore>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Too many wait already. Nothing was done.
    #[error("too many calls wait for their answers")]
    Busy,
    /// The log did not take it, or did not say so: where [`eventlog::Error::is_retryable`] says so it may be done all the same.
    #[error(transparent)]
    Log(#[from] eventlog::Error),
    /// It is in the log, and will be done; no answer came in time.
    #[error("the call is taken, but was not answered in time")]
    Unanswered,
    /// This process hears no answers.
    #[error(transparent)]
    Feed(Error),
}

impl Api {
    /// Appends to `log`, hears answers by `feed`.
    pub fn new(log: Arc<dyn EventLog>, feed: Arc<dyn Feed>, clock: Clock, settings: Settings) -> Self {
        let waiting = Arc::new(Semaphore::new(settings.max_waiting.min(Semaphore::MAX_PERMITS)));
        Self { log, feed, clock, patience: settings.patience, waiting }
    }

    /// Makes calls on one object in one change: one verdict each, in their order. When it returns, what was done is committed and durable. Dropping the
    /// future does not undo what was appended.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, key: &ObjectKey, identity: &str, calls: Vec<Call>) -> Result<Answer, CallError> {
        let Ok(_permit) = self.waiting.try_acquire() else { return Err(CallError::Busy) };
        let request = ids::fresh_uuid().into_bytes();
        let mut expected = self.feed.expect(request).map_err(CallError::Feed)?;
        let now = self.clock.now();
        let change = Change {
            key: key.clone(),
            origin: Origin::Client { request, identity: identity.to_owned() },
            received_at: now,
            stamp: Stamp { at: now, id: String::new() },
            ops: calls.into_iter().map(Op::Call).collect(),
        };
        let append = Append { partition: key.partition(), value: change.to_bytes() };
        let asked = async {
            self.log.append(Topic::Changes, vec![append]).await?;
            expected.answer().await.ok_or(CallError::Unanswered)
        };
        tokio::time::timeout(self.patience, asked).await.unwrap_or(Err(CallError::Unanswered))
    }
}

/// The event that archives what an API client did. Its id says which call of which record of `changes` it was.
pub fn archived(key: &ObjectKey, done: &Done) -> Append {
    let (partition, Done { offset, number, .. }) = (key.partition(), done);
    let event_id = Uuid::new_v5(&ids::namespace(), format!("object_changed {partition} {offset} {number}").as_bytes()).to_string();
    // Plain data always serialises; keys are sorted, and there are no nulls.
    let body = Bytes::from(serde_json::to_vec(&body_of(key, done, &event_id)).unwrap_or_default());
    let record = Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: key.site.clone(),
        fingerprint: ids::fingerprint(&body),
        received_at: done.received_at,
        key_kind: KeyKind::Event,
        key: event_id.clone(),
        event_id,
        flags: Flags::default(),
        channel: Channel::Server,
        body,
    };
    Append { partition: ids::events_partition(&key.site, KeyKind::Event, &record.key), value: record.to_bytes() }
}

/// The event's body. Clients' data stands in it as JSON text: canonical events have no nulls, data may.
fn body_of(key: &ObjectKey, done: &Done, event_id: &str) -> Value {
    let (object_event_id, revision, incarnation) = done.object;
    let mut properties = Map::new();
    properties.insert("action".into(), done.what.into());
    properties.insert("identity".into(), done.identity.as_str().into());
    let sid = naming::sid(&key.site, key.kind, &key.name, incarnation);
    let mut object = json!({"sid": sid, "kind": key.kind, "event_id": object_event_id, "revision": revision.saturating_sub(1)});
    if let (Some(object), Some(name)) = (object.as_object_mut(), naming::unique_name(&key.name)) {
        object.insert("name".into(), name.into());
    }
    properties.insert("object".into(), object);
    if let Some(item) = &done.item {
        properties.insert("item".into(), item_of(key.kind, item));
    }
    if let Some(data) = &done.data {
        properties.insert("data".into(), data.as_ref().into());
    }
    json!({
        "event_id": event_id,
        "occurred_at": done.received_at,
        "properties": properties,
        "source": {"channel": "server", "dialect": "sync"},
        "type": OBJECT_CHANGED,
    })
}

fn item_of(kind: ObjectKind, item: &SnapshotItem) -> Value {
    let mut out = json!({"revision": item.revision.saturating_sub(1), "data": item.data.as_ref()});
    if let Some(fields) = out.as_object_mut() {
        match kind {
            ObjectKind::List => fields.insert("index".into(), u64::from_str_radix(&item.item, 16).unwrap_or_default().into()),
            _ => fields.insert("key".into(), item.item.as_str().into()),
        };
    }
    out
}

#[cfg(test)]
mod tests;
