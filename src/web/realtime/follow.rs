//! One object as one client follows it: what it was told, what a write adds to that, and what is made up for when it comes back. Stepped by
//! [`super::subscriptions`]; pure.
//!
//! Nothing is skipped and nothing told twice: a write that begins beyond what was told, or that says rights changed, makes the object be read anew, from the
//! last event id told. Where the object no longer knows all that it lost since an id (removals are remembered for a day, and up to a number), a document is
//! told as it is, and a list or map as removed: a client forgets all it holds of it then, and reads it anew; nothing else makes it forget an item.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::events::{self, Changed, Fate, Of};
use super::shown::Urls;
use crate::event::{ObjectKind, Timestamp};
use crate::sync::object::Object;
use crate::sync::{Applied, AppliedRow};

/// A client's place in an object.
#[derive(Debug)]
pub(super) struct Follow {
    /// The object.
    pub(super) of: Of,
    incarnation: u64,
    /// The event id up to which the client is told.
    pub(super) seen: u64,
}

/// What a write comes to.
#[derive(Debug)]
pub(super) enum Heard {
    /// Nothing that the client does not know.
    Nothing,
    /// Rows to tell.
    Told(Told),
    /// The object is gone: the last that is told of it.
    Ended(Told),
    /// The object is to be read anew.
    Reread,
}

/// How an object begins to be followed.
#[derive(Debug)]
pub(super) enum Begun {
    /// From these rows on.
    Rows(VecDeque<AppliedRow>),
    /// What the client holds cannot be brought up to date.
    Forgotten,
    /// The client knows more than is there: this node may be behind, or the store has begun anew.
    Ahead,
}

/// Something to tell, rendered frame by frame.
#[derive(Debug)]
pub(super) enum Told {
    /// Rows that were missed.
    Rows {
        /// Of which object.
        of: Of,
        /// In order.
        rows: VecDeque<AppliedRow>,
        /// Of the object.
        revision: u64,
        /// What the client was told before.
        since: u64,
        /// The batch that asked; None where nobody did.
        replayed_for: Option<u64>,
    },
    /// Rows of a write, in this order.
    Write {
        /// Of which object.
        of: Of,
        /// The write.
        write: Arc<Applied>,
        /// Which rows, the next one last.
        rows: Vec<usize>,
        /// What the client was told before.
        since: u64,
    },
    /// The object is gone.
    Removed {
        /// Which.
        of: Of,
        /// Its last event.
        event_id: u64,
        /// When that was.
        at: Timestamp,
    },
    /// How the subscription fares.
    Fate {
        /// The object, as the client named it.
        sid: String,
        /// Its kind, likewise.
        object_type: String,
        /// How.
        fate: Fate,
        /// The batch that asked; None where nobody did.
        correlation_id: Option<u64>,
    },
}

impl Told {
    /// The next frame; None when all is told.
    pub(super) fn next(&mut self, urls: &Urls) -> Option<Bytes> {
        match self {
            Self::Rows { of, rows, revision, since, replayed_for } => {
                let row = rows.pop_front()?;
                Some(events::changed(urls, of, Changed { row: &row, revision: *revision, since: *since, replayed_for: *replayed_for }))
            }
            Self::Write { of, write, rows, since } => {
                let row = write.rows.get(rows.pop()?)?;
                Some(events::changed(urls, of, Changed { row, revision: write.revision, since: *since, replayed_for: None }))
            }
            // Told once: what is left tells nothing.
            Self::Removed { of, event_id, at } => {
                let frame = events::removed(of, *event_id, *at);
                *self = Self::nothing(Arc::clone(of));
                Some(frame)
            }
            Self::Fate { sid, object_type, fate, correlation_id } => {
                let frame = (!sid.is_empty()).then(|| events::fate(sid, object_type, fate, *correlation_id));
                sid.clear();
                frame
            }
        }
    }

    const fn nothing(of: Of) -> Self {
        Self::Rows { of, rows: VecDeque::new(), revision: 0, since: 0, replayed_for: None }
    }
}

impl Follow {
    /// A place in an object as it was read, after it was attached to.
    pub(super) const fn new(of: Of, incarnation: u64, event_id: u64) -> Self {
        Self { of, incarnation, seen: event_id }
    }

    /// Takes a write.
    pub(super) fn take(&mut self, write: &Arc<Applied>) -> Heard {
        if write.rights {
            return Heard::Reread;
        }
        if write.event_id <= self.seen {
            return Heard::Nothing;
        }
        if write.incarnation != self.incarnation || write.removed {
            // Told as the end of the life that was followed.
            return Heard::Ended(self.removed(write.event_id, write.updated_at));
        }
        // A stream's messages are not kept: what was missed is gone.
        if write.after > self.seen && self.of.kind != ObjectKind::Stream {
            return Heard::Reread;
        }
        let since = std::mem::replace(&mut self.seen, write.event_id);
        let mut rows: Vec<usize> = (0..write.rows.len()).collect();
        let id = |row: &usize| write.rows.get(*row).map_or(0, |row| row.event_id);
        rows.retain(|row| id(row) > since);
        rows.sort_by_key(|row| std::cmp::Reverse((id(row), *row)));
        Heard::Told(Told::Write { of: Arc::clone(&self.of), write: Arc::clone(write), rows, since })
    }

    /// That the object is gone.
    pub(super) fn removed(&self, event_id: u64, at: Timestamp) -> Told {
        Told::Removed { of: Arc::clone(&self.of), event_id, at }
    }
}

/// What a client missed of an object that it knows up to an event id; nothing where it names none. One that goes on from a connection that was cut may have
/// got some of one event's rows only: all of that event are told again, where there were several.
pub(super) fn begin(object: &Object, since: Option<u64>, continued: bool) -> Begun {
    let head = object.head();
    let Some(since) = since.filter(|_| object.kind() != ObjectKind::Stream) else { return Begun::Rows(VecDeque::new()) };
    if since > head.event_id {
        return Begun::Ahead;
    }
    let Some(missed) = object.since(since) else {
        let document = object.bare_snapshot().filter(|_| object.kind() == ObjectKind::Document);
        return document.map_or(Begun::Forgotten, |document| {
            let (revision, event_id, updated_at) = (document.revision, document.event_id, document.updated_at);
            let row = AppliedRow { revision, event_id, updated_at, data: document.data, ..AppliedRow::default() };
            Begun::Rows(VecDeque::from([row]))
        });
    };
    let mut rows: VecDeque<AppliedRow> = VecDeque::new();
    if continued && since > 0 {
        let last = object.since(since - 1).unwrap_or_default().into_iter().filter(|(id, _)| *id == since).map(|(_, row)| row);
        rows.extend(last);
        if rows.len() < 2 {
            rows.clear();
        }
    }
    rows.extend(missed.into_iter().map(|(_, row)| row));
    Begun::Rows(rows)
}

#[cfg(test)]
mod tests;
