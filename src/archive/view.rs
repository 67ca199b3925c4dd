//! An archived event as people and programs are shown it: by timelines, traces and exports. Pure; must never show a body that is sealed.

use serde::Serialize;
use serde_json::value::RawValue;

use super::EventRow;
use super::changed::Changed;
use crate::event::identity::Verdict;
use crate::event::{Channel, Flags, ObjectKind, SiteId, Timestamp};

/// Gives a mapped object's SID; handed in, since this room knows no live objects.
pub type SidOf = dyn Fn(&SiteId, ObjectKind, &str) -> String + Send + Sync;

/// One event.
#[derive(Debug, Serialize)]
pub struct EventView {
    /// Its id.
    pub event_id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// When it was taken.
    pub received_at: Timestamp,
    /// `counted`, `report` (a further one of a known fact) or `conflict` (a known id with other content, not counted).
    pub verdict: &'static str,
    /// How it came.
    pub channel: Channel,
    /// What arrival found, such as `crawler` or `rounded`.
    pub flags: Vec<&'static str>,
    /// Keyed hash of the customer id, hex.
    pub customer: Option<String>,
    /// Keyed hash of the anonymous id, hex.
    pub visitor: Option<String>,
    /// The products it names.
    pub products: Vec<String>,
    /// The live objects it touched; of an `object_changed` event the one that it tells of.
    pub objects: Vec<ObjectView>,
    /// Partition of `events` it stands in.
    pub partition: u16,
    /// Its offset there.
    pub offset: u64,
    /// The canonical event as it was posted; None where it is sealed.
    pub event: Option<Box<RawValue>>,
}

/// One object an event touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectView {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its unique name; None where its creator gave it none.
    pub name: Option<String>,
    /// Its SID.
    pub sid: String,
}

impl EventView {
    /// Shows a row.
    pub fn new(row: EventRow, sids: &SidOf) -> Self {
        let body = || std::str::from_utf8(&row.body).ok().and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let event = if row.body_key == 0 { body() } else { None };
        let changed = Changed::of(&row).map(|Changed { kind, name, sid }| ObjectView { kind, name, sid });
        let site = row.site;
        let mapped = row.objects.into_iter().map(|(kind, name)| ObjectView { sid: sids(&site, kind, &name), kind, name: Some(name) });
        Self {
            event_id: row.event_id,
            kind: row.kind,
            occurred_at: row.occurred_at,
            received_at: row.received_at,
            verdict: verdict_name(row.verdict),
            channel: row.channel,
            flags: flag_names(row.flags),
            customer: row.customer.map(|hash| hex(&hash)),
            visitor: row.visitor.map(|hash| hex(&hash)),
            products: row.products,
            objects: mapped.chain(changed).collect(),
            partition: row.partition,
            offset: row.offset,
            event,
        }
    }
}

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Counted => "counted",
        Verdict::Report => "report",
        Verdict::Duplicate => "duplicate",
        Verdict::Conflict => "conflict",
    }
}

fn flag_names(flags: Flags) -> Vec<&'static str> {
    let names = [
        (Flags::CRAWLER, "crawler"),
        (Flags::CLAMPED, "clamped"),
        (Flags::ROUNDED, "rounded"),
        (Flags::NO_OCCURRED_AT, "no_occurred_at"),
        (Flags::ASSIGNED_ID, "assigned_id"),
    ];
    names.into_iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, name)| name).collect()
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}
