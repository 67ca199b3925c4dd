//! Identity: the pure fold that decides what a record counts for. Router and archiver both run it over each partition of
//! `events`, each with its own memory kept beside its own offset, and so reach the same verdicts. Reads no clock and no store.
//!
//! Scope of an identity is (site, partition key kind, partition key, its own key), so that one partition decides alone:
//!
//! * **Event** entries (every event without a business key). The first report of an event id counts. An id's whole set of
//!   fingerprints is remembered; a repeat of any of them is a duplicate; a new one under a known id is kept as an event row,
//!   flagged `conflict`, and not counted. The entry stores the offset of its first report, so that the record at that very offset,
//!   replayed, is the report itself. Kept 7 days of the partition's greatest `received_at`.
//! * **Order** entries (one per order id, its refunds within) and **Checkout** entries (one per checkout, see
//!   [`Event::checkout_name`]; every step, and the completion, within) have the business key decide instead, and are kept as long
//!   as the archive: each (event id, fingerprint) is one report; what a record adds = f(reports up to it) - f(reports before it), where f
//!   takes the best report of each fact. Best: channel webhook, then server, then pixel; then the smaller fingerprint; then
//!   the smaller event id. Arrival order therefore does not matter, and a replay gives the same verdict.

use serde::{Deserialize, Serialize};

use super::ids::{KeyKind, first_16, sha256};
use super::record::{Channel, Record, RecordKind};
use super::{Currency, Event, Timestamp, kind};

/// 16 bytes that name an entry of a partition's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityKey(pub [u8; 16]);
