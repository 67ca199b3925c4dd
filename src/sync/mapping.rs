//! Event to changes: the one table that says which objects an event touches and how. Called by the router for each event that counts. Pure.

use crate::event::identity::{Entry, Outcome};
use crate::event::{Change, Event, ObjectKey, Record, SiteRules};

/// What is mapped, and what the mapping may ask.
pub struct Mapped<'a> {
    /// The event's record.
    pub record: &'a Record,
    /// Its offset in `events`.
    pub offset: u64,
    /// Its partition of `events`.
    pub partition: u16,
    /// The record's body.
    pub event: &'a Event,
    /// What identity made of it.
    pub outcome: &'a Outcome,
    /// The identity entry after the fold.
    pub entry: Option<&'a Entry>,
    /// The site's rules.
    pub rules: &'a SiteRules,
    /// Whether this partition sees an indexed object for the first time (and remembers that it did). Asked at most once per object.
    pub first_sight: &'a mut dyn FnMut(&ObjectKey) -> bool,
}

/// The changes of one event: one per object, in key order, numbered in that order.
pub fn map(input: &mut Mapped<'_>) -> Vec<Change> {
    let _ = input;
    Vec::new()
}
