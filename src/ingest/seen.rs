//! What was appended here of late, so that an answer can call a repeat a duplicate. A courtesy, never a decision: a table of fixed size in which
//! newer marks overwrite older ones; identity downstream decides. Called by the handler after each append.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Channel;

/// Marks held: 8 bytes each.
const SLOTS: usize = 1 << 16;

/// Not to be guessed from outside, or a sender could aim at another's slots.
static KEYED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What recognises an event again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    name: u64,
    fingerprint: u64,
    business: bool,
}

impl Mark {
    /// `key_hash` stands for site and partition key; `business`: see `canonical::Ready`.
    pub(crate) fn new(key_hash: u64, event_id: &str, fingerprint: u64, business: Option<Channel>) -> Self {
        Self { name: KEYED.hash_one((key_hash, event_id, business)), fingerprint, business: business.is_some() }
    }
}

/// What an event looks like beside what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Not seen of late.
    New,
    /// The same report again.
    Duplicate,
    /// A known id with other content (never of orders, refunds and steps: there it is a further report, and so is the same content by another
    /// channel).
    Conflict,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Seen(Box<[AtomicU64]>);

impl Default for Seen {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Seen {
    /// Looks an event up and remembers it. Each slot holds 32 bits of the name and 32 of the fingerprint.
    pub(crate) fn note(&self, mark: Mark) -> Sight {
        let Some(slot) = self.0.get(mark.name as usize % SLOTS) else { return Sight::New };
        let tag = mark.name >> 32;
        let entry = tag << 32 | (mark.fingerprint >> 32);
        let before = slot.swap(entry, Ordering::Relaxed);
        if before == entry {
            Sight::Duplicate
        } else if before >> 32 == tag && before != 0 && !mark.business {
            Sight::Conflict
        } else {
            Sight::New
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_recognised_by_key_id_and_fingerprint() {
        let seen = Seen::default();
        let mark = |id, fingerprint: u64, business| Mark::new(1, id, fingerprint << 32, business);
        assert_eq!(seen.note(mark("e-1", 1, None)), Sight::New);
        assert_eq!(seen.note(mark("e-1", 1, None)), Sight::Duplicate);
        assert_eq!(seen.note(mark("e-1", 2, None)), Sight::Conflict);
        assert_eq!(seen.note(Mark::new(2, "e-1", 2 << 32, None)), Sight::New, "another partition key is another event");
        let (server, webhook) = (Some(Channel::Server), Some(Channel::Webhook));
        // One whose reports do not overwrite each other.
        let slot = |id, channel| mark(id, 0, channel).name as usize % SLOTS;
        let order = ["o-1", "o-2", "o-3"].into_iter().find(|id| slot(id, server) != slot(id, webhook)).unwrap();
        assert_eq!(seen.note(mark(order, 1, server)), Sight::New);
        assert_eq!(seen.note(mark(order, 1, server)), Sight::Duplicate);
        assert_eq!(seen.note(mark(order, 1, webhook)), Sight::New, "the same by another channel is a further report");
        assert_eq!(seen.note(mark(order, 1, server)), Sight::Duplicate);
        assert_eq!(seen.note(mark(order, 2, server)), Sight::New, "a further report of an order is no conflict");
    }
}
