//! What API clients do to an object: each call is taken or refused as it finds the object at its place in the log, whoever owns the object. Called by
//! [`Object::apply`]. Pure.
//!
//! A call that changes data counts as one change: one event id, one revision. A new lifetime alone counts as none, nor do rights.

use super::{ItemState, Object};
use crate::event::change::{Call, Op, PutItem, RequestId, Rights};
use crate::event::{Change, ObjectKind, Timestamp};
use crate::sync::object::{Done, Fold, SnapshotItem, index_name};
use crate::sync::{Answer, AppliedRow, Refusal, Verdict, naming};

/// Most items of one object.
const MAX_ITEMS: usize = 1_000_000;
/// Most bytes of an object's rows: it is one unit in memory.
const MAX_BYTES: u64 = 64 << 20;

/// Where in the log a call stands, and whose it is.
struct Place<'a> {
    offset: u64,
    number: u16,
    at: Timestamp,
    identity: &'a str,
}

/// What one call came to.
type Outcome = Result<(bool, Option<SnapshotItem>), Refusal>;

impl Object {
    /// Takes a change's calls one after the other.
    pub(super) fn call_all(
        &mut self,
        change: &Change,
        (request, identity): (RequestId, &str),
        offset: u64,
        ttl: Option<std::time::Duration>,
    ) -> Fold {
        let at = change.received_at;
        let mut verdicts = Vec::with_capacity(change.ops.len());
        for (number, op) in (0..).zip(&change.ops) {
            let Op::Call(call) = op else { continue };
            let place = Place { offset, number, at, identity };
            // An object past its lifetime is not there.
            let is_there = self.is_living() && !self.is_over(at, ttl);
            verdicts.push(match self.call(call, &place, is_there) {
                Ok((added, item)) => Verdict::Done { added, item },
                Err(refusal) => Verdict::Refused(refusal),
            });
        }
        let applied = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Done { .. }));
        if applied {
            self.head.upto = offset;
            self.head.next_expiry = self.next_expiry();
            self.needs_write = true;
            self.needs_publish = true;
        }
        let awaited = request != RequestId::default();
        if awaited {
            let object = self.bare_snapshot().filter(|_| !self.is_over(at, ttl));
            self.answers.push(Answer { request, partition: self.key.partition(), verdicts, object });
        }
        match (applied, awaited) {
            (true, _) => Fold::Applied,
            (false, true) => Fold::Answered,
            (false, false) => Fold::Refused,
        }
    }

    fn call(&mut self, call: &Call, place: &Place<'_>, is_there: bool) -> Outcome {
        match call {
            Call::Create { data, ttl } if !is_there => Ok(self.create(data.as_deref(), *ttl, place)),
            Call::Create { .. } => Err(Refusal::Exists),
            Call::Expire => self.expire(place),
            _ if !is_there => Err(Refusal::NoObject),
            Call::Update { if_revision, data, ttl } => self.update(*if_revision, data.as_deref(), *ttl, place),
            Call::Remove { if_revision } => {
                self.check(*if_revision)?;
                self.remove(place);
                Ok((false, None))
            }
            Call::PutItem { item, data, ttl, collection_ttl } => {
                let put = self.put_item(item, data.as_deref(), *ttl, place)?;
                self.live_for(*collection_ttl, place.at);
                Ok(put)
            }
            Call::RemoveItem { item, if_revision } => self.remove_item(item, *if_revision, place),
            Call::Publish { sid, data } => self.publish(sid, data, place),
            Call::Permit { identity, rights } => {
                let (known, is_none) = (self.rights.get(identity).copied(), *rights == Rights::NONE);
                if is_none {
                    self.rights.remove(identity).ok_or(Refusal::NoItem)?;
                } else {
                    self.rights.insert(identity.clone(), *rights);
                }
                self.changed_rights.insert(identity.clone());
                Ok((known.is_none(), None))
            }
        }
    }

    fn create(&mut self, data: Option<&str>, ttl: Option<u32>, place: &Place<'_>) -> (bool, Option<SnapshotItem>) {
        // The microsecond in which it begins: never that of a life before it.
        let own = u64::try_from(place.at.micros()).unwrap_or(0).max(self.head.incarnation + 1);
        let incarnation = if naming::is_mapped(&self.key.name) { 0 } else { own };
        self.head.event_id += 1;
        self.begin(place.at, incarnation);
        self.head.revision = 1;
        place.identity.clone_into(&mut self.head.created_by);
        self.live_for(ttl, place.at);
        match data {
            Some(data) if self.key.kind == ObjectKind::Document => self.touch("", place.at, |state| *state = ItemState::whole(data.to_owned())),
            Some(data) if self.key.kind == ObjectKind::List => (self.context, self.changed_context) = (Some(data.into()), true),
            _ => {}
        }
        let what = match self.key.kind {
            ObjectKind::Document => "document_created",
            ObjectKind::List => "list_created",
            ObjectKind::Map => "map_created",
            ObjectKind::Stream => "stream_created",
        };
        self.note(what, place, None, data);
        (true, None)
    }

    fn update(&mut self, if_revision: Option<u64>, data: Option<&str>, ttl: Option<u32>, place: &Place<'_>) -> Outcome {
        self.check(if_revision)?;
        if let Some(data) = data {
            if self.key.kind != ObjectKind::Document {
                return Err(Refusal::Kind);
            }
            self.count(place.at);
            self.touch("", place.at, |state| *state = ItemState::whole(data.to_owned()));
            self.note("document_updated", place, None, Some(data));
        }
        self.live_for(ttl, place.at);
        Ok((false, None))
    }

    fn remove(&mut self, place: &Place<'_>) {
        self.count(place.at);
        let what = match self.key.kind {
            ObjectKind::Document => "document_removed",
            ObjectKind::List => "list_removed",
            ObjectKind::Map => "map_removed",
            ObjectKind::Stream => "stream_removed",
        };
        self.note(what, place, None, None);
        self.drop_rows();
        self.head.removed_at = Some(place.at);
    }

    fn put_item(&mut self, put: &PutItem, data: Option<&str>, ttl: Option<u32>, place: &Place<'_>) -> Outcome {
        let (key, if_revision) = match (self.key.kind, put) {
            (ObjectKind::List, PutItem::Append) => (None, None),
            (ObjectKind::List | ObjectKind::Map, PutItem::Set(key, if_revision)) | (ObjectKind::Map, PutItem::Upsert(key, if_revision)) => {
                (Some(key), *if_revision)
            }
            (ObjectKind::Map, PutItem::Add(key)) => (Some(key), None),
            _ => return Err(Refusal::Kind),
        };
        let found = key.and_then(|key| Some(self.rows.get(key).filter(|row| !row.is_over(place.at))?.revision));
        match (put, found) {
            (PutItem::Add(_), Some(_)) => return Err(Refusal::ItemExists),
            (PutItem::Set(..), None) => return Err(Refusal::NoItem),
            (PutItem::Set(..) | PutItem::Upsert(..), found) if if_revision.is_some_and(|wanted| found != Some(wanted)) => {
                return Err(Refusal::Revision);
            }
            (_, None) if self.rows.len() >= MAX_ITEMS || self.head.bytes >= MAX_BYTES => return Err(Refusal::Full),
            _ => {}
        }
        // What is past its lifetime was removed before this.
        if let Some(key) = key.filter(|key| found.is_none() && self.rows.contains_key(*key)) {
            self.take_item(key, place);
        }
        if data.is_some() || found.is_none() {
            self.count(place.at);
        }
        let item = key.map_or_else(|| index_name(self.take_index()), Clone::clone);
        if let Some(data) = data.or(found.is_none().then_some("{}")) {
            self.touch(&item, place.at, |state| *state = ItemState::whole(data.to_owned()));
        }
        let Some(row) = self.rows.get_mut(&item) else { return Err(Refusal::NoItem) };
        if found.is_none() {
            place.identity.clone_into(&mut row.life.created_by);
        }
        if let Some(ttl) = ttl {
            if let Some(before) = row.life.expires_at.take() {
                self.lifetimes.remove(&(before, item.clone()));
            }
            row.life.expires_at = end_of(ttl, place.at);
            if let Some(end) = row.life.expires_at {
                self.lifetimes.insert((end, item.clone()));
            }
            if !row.changed {
                row.changed = true;
                self.changed.push(item.clone());
            }
        }
        let shown = row.snapshot(&item);
        if data.is_some() || found.is_none() {
            let what = match (self.key.kind, found) {
                (ObjectKind::List, None) => "list_item_added",
                (ObjectKind::List, Some(_)) => "list_item_updated",
                (_, None) => "map_item_added",
                (_, Some(_)) => "map_item_updated",
            };
            self.note(what, place, shown.clone(), None);
        }
        Ok((found.is_none(), shown))
    }

    fn remove_item(&mut self, item: &str, if_revision: Option<u64>, place: &Place<'_>) -> Outcome {
        let row = self.rows.get(item).filter(|row| !row.is_over(place.at) && self.key.kind != ObjectKind::Document).ok_or(Refusal::NoItem)?;
        if if_revision.is_some_and(|wanted| wanted != row.revision) {
            return Err(Refusal::Revision);
        }
        Ok((false, self.take_item(item, place)))
    }

    /// Takes an item out, as one change; gives it as it was, with that change's event id.
    fn take_item(&mut self, item: &str, place: &Place<'_>) -> Option<SnapshotItem> {
        let row = self.rows.remove(item)?;
        self.count(place.at);
        self.bury(item.to_owned(), &row, place.at);
        let shown = SnapshotItem { event_id: self.head.event_id, updated_at: place.at, ..row.snapshot(item)? };
        let what = if self.key.kind == ObjectKind::List { "list_item_removed" } else { "map_item_removed" };
        self.note(what, place, Some(shown.clone()), None);
        Some(shown)
    }

    fn publish(&mut self, sid: &str, data: &str, place: &Place<'_>) -> Outcome {
        if self.key.kind != ObjectKind::Stream {
            return Err(Refusal::Kind);
        }
        self.count(place.at);
        let event_id = self.head.event_id;
        let (item, data_shown) = (sid.to_owned(), Some(data.into()));
        self.messages.push(AppliedRow { item, event_id, began: event_id, updated_at: place.at, data: data_shown, ..AppliedRow::default() });
        self.note("stream_message_published", place, None, Some(data));
        Ok((true, None))
    }

    /// Removes what is past its lifetime: the object, or else items.
    fn expire(&mut self, place: &Place<'_>) -> Outcome {
        if self.is_living() && self.head.expires_at.is_some_and(|at| at <= place.at) {
            self.remove(place);
            return Ok((false, None));
        }
        let mut any = false;
        while let Some((end, item)) = self.lifetimes.first().cloned()
            && end <= place.at
        {
            self.lifetimes.pop_first();
            any |= self.take_item(&item, place).is_some();
        }
        if any { Ok((false, None)) } else { Err(Refusal::NoItem) }
    }

    fn check(&self, if_revision: Option<u64>) -> Result<(), Refusal> {
        if if_revision.is_some_and(|wanted| wanted != self.head.revision) { Err(Refusal::Revision) } else { Ok(()) }
    }

    /// Counts one change.
    fn count(&mut self, at: Timestamp) {
        self.head.event_id += 1;
        self.head.revision += 1;
        self.head.updated_at = self.head.updated_at.max(at);
    }

    /// The index of a list's next item: as many as the list has had changes since it began, as Sync counts, and never one it had before.
    fn take_index(&mut self) -> u64 {
        let index = self.head.revision.saturating_sub(2).max(self.head.next_index);
        self.head.next_index = index + 1;
        index
    }

    fn live_for(&mut self, ttl: Option<u32>, at: Timestamp) {
        if let Some(ttl) = ttl {
            self.head.expires_at = end_of(ttl, at);
        }
    }

    fn next_expiry(&self) -> Option<Timestamp> {
        let items = self.lifetimes.first().map(|(at, _)| *at);
        if self.is_living() { self.head.expires_at.into_iter().chain(items).min() } else { None }
    }

    fn note(&mut self, what: &'static str, place: &Place<'_>, item: Option<SnapshotItem>, data: Option<&str>) {
        let object = (self.head.event_id, self.head.revision, self.head.incarnation);
        let (identity, data) = (place.identity.to_owned(), data.map(Into::into));
        let (offset, number, received_at) = (place.offset, place.number, place.at);
        self.done.push(Done { offset, number, received_at, identity, what, object, item, data });
    }
}

/// When a lifetime ends that begins now; None where it never does.
fn end_of(ttl: u32, now: Timestamp) -> Option<Timestamp> {
    (ttl > 0).then(|| now.plus_seconds(i64::from(ttl)))
}

#[cfg(test)]
mod tests;
