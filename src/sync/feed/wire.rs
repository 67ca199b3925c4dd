//! A write as it travels between processes. Pure.
//!
//! Version 2 is a version byte, then postcard of [`Wire`]: object, event id, revision, whether the object was removed, the rows, and after which event id they
//! tell all; or no rows, where they were shed because the brokers take no record of that size: whoever watches the object reads it. Version 1 did not say after
//! which event id. What another version means, this build cannot tell.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::ObjectKey;
use crate::sync::{Applied, AppliedRow};

/// Version byte that opens every record this build writes.
const VERSION: u8 = 2;

/// What version 1 has.
#[derive(Serialize, Deserialize)]
struct Wire1 {
    key: ObjectKey,
    event_id: u64,
    revision: u64,
    removed: bool,
    rows: Option<Vec<WireRow>>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    first: Wire1,
    after: u64,
}

#[derive(Serialize, Deserialize)]
struct WireRow {
    item: String,
    revision: u64,
    data: Option<Arc<str>>,
}

/// What a record tells.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// A write.
    Write(Applied),
    /// An object was written; its rows were shed.
    Changed(ObjectKey),
}

/// A write with its rows.
pub(super) fn whole(write: &Applied) -> Bytes {
    let row = |row: &AppliedRow| WireRow { item: row.item.clone(), revision: row.revision, data: row.data.clone() };
    encode(write, Some(write.rows.iter().map(row).collect()))
}

/// A write without its rows.
pub(super) fn shed(write: &Applied) -> Bytes {
    encode(write, None)
}

fn encode(write: &Applied, rows: Option<Vec<WireRow>>) -> Bytes {
    let Applied { key, event_id, revision, removed, .. } = write;
    let first = Wire1 { key: key.clone(), event_id: *event_id, revision: *revision, removed: *removed, rows };
    let wire = Wire { first, after: write.after };
    // Plain data always serialises; were it not so, readers would take the record for one of another version.
    postcard::to_extend(&wire, vec![VERSION]).unwrap_or_default().into()
}

/// Reads a record; None where this build cannot.
pub(super) fn decode(bytes: &[u8]) -> Option<Told> {
    let (version, body) = bytes.split_first()?;
    let Wire { first, after } = match *version {
        1 => Wire { first: postcard::from_bytes(body).ok()?, after: 0 },
        VERSION => postcard::from_bytes(body).ok()?,
        _ => return None,
    };
    let Wire1 { key, event_id, revision, removed, rows } = first;
    Some(match rows {
        Some(rows) => {
            let rows = rows.into_iter().map(|WireRow { item, revision, data }| AppliedRow { item, revision, data }).collect();
            Told::Write(Applied { key, after, event_id, revision, rows, removed })
        }
        None => Told::Changed(key),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ObjectKind, SiteId};

    fn write() -> Applied {
        let key = ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "product.p1".into() };
        let row = |item: &str, data: Option<&str>| AppliedRow { item: item.into(), revision: 3, data: data.map(Into::into) };
        Applied { key, after: 298, event_id: 300, revision: 7, rows: vec![row("price", Some("{\"a\":1}")), row("size", None)], removed: false }
    }

    /// What the versions are on the wire: never to change.
    const WHOLE_1: &str = "010464656d6f020a70726f647563742e7031ac02070001020570726963650301077b2261223a317d0473697a650300";
    const SHED_1: &str = "010464656d6f020a70726f647563742e7031ac02070000";
    const WHOLE: &str = "020464656d6f020a70726f647563742e7031ac02070001020570726963650301077b2261223a317d0473697a650300aa02";
    const SHED: &str = "020464656d6f020a70726f647563742e7031ac02070000aa02";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_versions_stay_as_they_are() {
        assert_eq!(decode(&bytes(WHOLE_1)), Some(Told::Write(Applied { after: 0, ..write() })));
        assert_eq!(decode(&bytes(SHED_1)), Some(Told::Changed(write().key)));
        assert_eq!(hex(&whole(&write())), WHOLE);
        assert_eq!(hex(&shed(&write())), SHED);
        assert_eq!(decode(&whole(&write())), Some(Told::Write(write())));
        assert_eq!(decode(&shed(&write())), Some(Told::Changed(write().key)));
    }

    #[test]
    fn what_this_build_cannot_read_is_told_and_no_crash() {
        let mut later = whole(&write()).to_vec();
        later[0] = VERSION + 1;
        assert_eq!(decode(&later), None);
        let known = whole(&write());
        for end in 0..known.len() {
            assert_eq!(decode(&known[..end]), None, "cut at {end}");
        }
    }
}
