//! Where what is told of several objects comes together for one reader. Filled by [`super::LocalFeed`], which waits for no reader; emptied by who attached it. An
//! object of which nothing waits costs nothing here, so that a connection may follow many.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Settings;
use crate::sync::{Applied, Update};

/// One reader's end: what its objects are told, each object's updates in order, the objects in turns.
#[derive(Default)]
pub struct Inbox(Arc<Shared>);

/// Where in an inbox an object's updates go.
#[derive(Clone)]
pub struct Address {
    inbox: Arc<Shared>,
    tag: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    /// By tag; of what is held back, and of what has something waiting.
    queues: HashMap<u32, Queue>,
    /// Tags of which something may be taken, in turns.
    turns: VecDeque<u32>,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    writes: VecDeque<Arc<Applied>>,
    bytes: usize,
    lagged: bool,
    /// Not to be taken yet.
    held: bool,
}

impl Inbox {
    /// An address in it. Tags tell objects apart; one is not to be used again while anything is attached to it.
    pub fn address(&self, tag: u32) -> Address {
        Address { inbox: Arc::clone(&self.0), tag }
    }

    /// Whether anything is to be taken.
    pub fn is_told(&self) -> bool {
        let state = self.0.lock();
        state.closed || !state.turns.is_empty()
    }

    /// The next update, and the tag of what it is of; once the feed has stopped, [`Update::Closed`] of tag 0 for ever. Of what was detached meanwhile, one may
    /// still come. Cancel-safe.
    pub async fn next(&mut self) -> (u32, Update) {
        loop {
            if let Some(told) = self.0.lock().take() {
                return told;
            }
            // `notify_one` leaves a permit where nobody waits, so that nothing put in between is slept through.
            self.0.arrived.notified().await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Address {
    /// Keeps what comes from being taken until [`Address::release`].
    pub(super) fn hold(&self) {
        self.inbox.lock().queues.insert(self.tag, Queue { held: true, ..Queue::default() });
    }

    /// Lets what was held back be taken.
    pub(super) fn release(&self) {
        let mut state = self.inbox.lock();
        let Some(queue) = state.queues.get_mut(&self.tag) else { return };
        queue.held = false;
        if queue.is_empty() {
            state.remove(self.tag);
        } else {
            state.turns.push_back(self.tag);
            drop(state);
            self.inbox.arrived.notify_one();
        }
    }

    /// Drops what waits.
    pub(super) fn forget(&self) {
        self.inbox.lock().remove(self.tag);
    }

    /// What waits is dropped, and the reader told so.
    pub(super) fn lag(&self) {
        self.fill(Queue::lag);
    }

    /// Puts a write in the queue; past the bounds all that waits of the object is dropped and the reader told so.
    pub(super) fn put(&self, write: &Arc<Applied>, bytes: usize, settings: &Settings) {
        self.fill(|queue| {
            if queue.writes.len() >= settings.max_writes || (!queue.writes.is_empty() && queue.bytes + bytes > settings.max_bytes) {
                queue.lag();
            }
            if !queue.lagged {
                queue.writes.push_back(Arc::clone(write));
                queue.bytes += bytes;
            }
        });
    }

    /// Tells the reader that the feed has stopped.
    pub(super) fn close(&self) {
        self.inbox.lock().closed = true;
        self.inbox.arrived.notify_one();
    }

    /// Whether it is the same place.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inbox, &other.inbox) && self.tag == other.tag
    }

    fn fill(&self, fill: impl FnOnce(&mut Queue)) {
        let mut state = self.inbox.lock();
        let queue = state.queues.entry(self.tag).or_default();
        let begins = queue.is_empty() && !queue.held;
        fill(queue);
        if begins {
            state.turns.push_back(self.tag);
            drop(state);
            self.inbox.arrived.notify_one();
        }
    }
}

impl State {
    fn take(&mut self) -> Option<(u32, Update)> {
        if self.closed {
            return Some((0, Update::Closed));
        }
        loop {
            let tag = self.turns.pop_front()?;
            // What was detached has no queue any longer.
            let Some(queue) = self.queues.get_mut(&tag) else { continue };
            let Some(update) = queue.take() else { continue };
            if queue.is_empty() {
                self.remove(tag);
            } else {
                self.turns.push_back(tag);
            }
            return Some((tag, update));
        }
    }

    fn remove(&mut self, tag: u32) {
        self.queues.remove(&tag);
        if self.queues.is_empty() {
            // Idle ones are many: room that was needed once is not kept.
            (self.queues, self.turns) = Default::default();
        }
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.writes.is_empty() && !self.lagged
    }

    fn take(&mut self) -> Option<Update> {
        if std::mem::take(&mut self.lagged) {
            return Some(Update::Lagged);
        }
        let write = self.writes.pop_front()?;
        self.bytes = self.bytes.saturating_sub(super::weight(&write));
        Some(Update::Write(write))
    }

    /// Drops all that waits.
    fn lag(&mut self) {
        self.writes.clear();
        self.bytes = 0;
        self.lagged = true;
        metrics::counter!("contrail_feed_lagged_total").increment(1);
    }
}
