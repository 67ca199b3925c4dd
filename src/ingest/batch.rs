//! A whole request's events made ready in memory: split, validated, identified and wire-encoded into one buffer. Called by the handler, for large
//! bodies on a blocking thread. Pure but for the ids made on the way; must never append nor answer.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;

use super::canonical::{self, Ready, Scratch, Sender, Sink};
use super::crawler::Crawlers;
use super::dialects::native::{self, Piece, Unreadable};
use super::json::{Node, Parser};
use super::reject::{Code, Invalid, Scope};
use super::seen::Mark;
use super::validate::{self, Facts};
use crate::event::{Envelope, PARTITIONS, Record, RecordKind};
use crate::eventlog::Append;

/// An event that was not taken, as the answer lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its place among the request's events, from 0.
    pub index: usize,
    /// See [`Code`].
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// JSON pointer into the event.
    pub pointer: String,
    /// Byte offset into the decoded body, for syntax errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<usize>,
}

/// An id made at the edge, as the answer lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Assigned {
    /// The event's place among the request's events, from 0.
    pub index: usize,
    /// Its id from now on: to be sent with it when it is sent again.
    pub event_id: String,
}

/// A request's events, ready to be appended.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Events that were not taken.
    pub(crate) rejected: Vec<Rejected>,
    /// Ids made at the edge, of kept events and of quarantined ones.
    pub(crate) assigned: Vec<Assigned>,
    /// Of each valid event, what recognises it again.
    pub(crate) marks: Vec<Mark>,
    /// Of each refused event that is not kept, why.
    pub(crate) lost: Vec<Code>,
    wire: Wire,
}

/// Records' bytes in one buffer.
#[derive(Debug, Default)]
struct Wire {
    bytes: Vec<u8>,
    /// Partition, and where the record ends.
    cuts: Vec<(u16, usize)>,
}

impl Sink for Wire {
    fn record(&mut self, key_hash: u64, envelope: &Envelope<'_>, body: &[u8]) {
        envelope.encode(body, &mut self.bytes);
        self.cuts.push(((key_hash % u64::from(PARTITIONS)) as u16, self.bytes.len()));
    }
}

impl Batch {
    /// Reads a decoded body.
    ///
    /// # Errors
    /// When nothing of it can be taken.
    pub(crate) fn read(body: &[u8], sender: &Sender, crawlers: &Crawlers) -> Result<Self, Unreadable> {
        let mut batch = Self::default();
        batch.wire.bytes.reserve(body.len() + body.len() / 4 + 256);
        let mut scratch = Scratch::sized(body.len().min(4 << 10));
        native::events(body, super::MAX_EVENTS, |piece| batch.take(piece, sender, crawlers, &mut scratch))?;
        Ok(batch)
    }

    /// Makes the one event ready that a webhook was translated into. It is not held against what senders may say: it may be of a type that Contrail alone writes.
    /// None where it is larger, or nested deeper, than an event may be.
    pub(crate) fn translated(event: &str, sender: &Sender, crawlers: &Crawlers) -> Option<Self> {
        let mut parser = Parser::new(event);
        let Ok(Node::Object(event)) = parser.value(super::MAX_EVENT_BYTES) else { return None };
        let (mut batch, mut scratch) = (Self::default(), Scratch::default());
        let facts = Facts { occurred_at: None, rounded: false };
        let ready = canonical::event(event, facts, 0, sender, crawlers, &mut scratch, &mut batch.wire);
        batch.marks.push(Mark::new(ready.key_hash, &ready.event_id, ready.fingerprint, ready.business));
        batch.note_id(0, ready);
        Some(batch)
    }

    /// How many events the body held.
    pub(crate) const fn events(&self) -> usize {
        self.marks.len() + self.rejected.len()
    }

    /// What to append, once: all slices of one buffer, in the events' order.
    pub(crate) fn take_appends(&mut self) -> Vec<Append> {
        let wire = std::mem::take(&mut self.wire);
        let mut rest = Bytes::from(wire.bytes);
        let mut from = 0;
        let cut = |(partition, end): (u16, usize)| {
            let value = rest.split_to(end - from);
            from = end;
            Append { partition, value }
        };
        wire.cuts.into_iter().map(cut).collect()
    }

    /// The records of the valid events, each with its place in the body.
    pub(crate) fn into_events(mut self) -> Vec<(usize, Record)> {
        // Every event is either among the refused or has one record of this kind, in the body's order.
        let refused: BTreeSet<usize> = self.rejected.iter().map(|rejected| rejected.index).collect();
        let taken = (0..self.events()).filter(|index| !refused.contains(index));
        let records = self.take_appends().into_iter().filter_map(|append| Record::decode(&append.value).ok());
        taken.zip(records.filter(|record| record.kind == RecordKind::Event)).collect()
    }

    fn take(&mut self, piece: Piece<'_>, sender: &Sender, crawlers: &Crawlers, scratch: &mut Scratch) {
        let Piece { index, raw, parsed } = piece;
        let mut event = match parsed {
            Ok(event) => event,
            Err(why) => return self.refuse(index, raw, None, why, sender, scratch),
        };
        match validate::event(&mut event) {
            Ok(facts) => {
                let ready = canonical::event(event, facts, index, sender, crawlers, scratch, &mut self.wire);
                self.marks.push(Mark::new(ready.key_hash, &ready.event_id, ready.fingerprint, ready.business));
                self.note_id(index, ready);
            }
            Err(why) => self.refuse(index, raw, Some(event), why, sender, scratch),
        }
    }

    fn refuse(&mut self, index: usize, raw: &str, event: Option<super::json::Object<'_>>, why: Invalid, sender: &Sender, scratch: &mut Scratch) {
        if why.code.row().scope == Scope::Kept && raw.len() <= super::MAX_EVENT_BYTES {
            let ready = canonical::quarantine(raw, event, &why, index, sender, scratch, &mut self.wire);
            self.note_id(index, ready);
        } else {
            self.lost.push(why.code);
        }
        let Invalid { code, message, pointer, offset } = why;
        self.rejected.push(Rejected { index, code: code.name(), message: message.into_owned(), pointer, offset });
    }

    fn note_id(&mut self, index: usize, ready: Ready<'_>) {
        if ready.assigned {
            self.assigned.push(Assigned { index, event_id: ready.event_id.to_string() });
        }
    }
}

#[cfg(test)]
mod tests;
