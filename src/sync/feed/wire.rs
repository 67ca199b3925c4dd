//! A write as it travels between processes. Pure.
//!
//! Version 1 is a version byte, then postcard of [`Wire`]: object, event id, revision, whether the object was removed, and the rows; or no rows, where they
//! were shed because the brokers take no record of that size: whoever watches the object reads it. What another version means, this build cannot tell.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::ObjectKey;
use crate::sync::{Applied, AppliedRow};

/// Version byte that opens every record this build writes.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Wire {
    key: ObjectKey,
    event_id: u64,
    revision: u64,
    removed: bool,
    rows: Option<Vec<WireRow>>,
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
    let wire = Wire { key: key.clone(), event_id: *event_id, revision: *revision, removed: *removed, rows };
    // Plain data always serialises; were it not so, readers would take the record for one of another version.
    postcard::to_extend(&wire, vec![VERSION]).unwrap_or_default().into()
}

/// Reads a record; None where this build cannot.
pub(super) fn decode(bytes: &[u8]) -> Option<Told> {
    let (version, body) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let Wire { key, event_id, revision, removed, rows } = postcard::from_bytes(body).ok()?;
    Some(match rows {
        Some(rows) => {
            let rows = rows.into_iter().map(|WireRow { item, revision, data }| AppliedRow { item, revision, data }).collect();
            Told::Write(Applied { key, event_id, revision, rows, removed })
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
        Applied { key, event_id: 300, revision: 7, rows: vec![row("price", Some("{\"a\":1}")), row("size", None)], removed: false }
    }

    /// What version 1 is on the wire: never to change.
    const WHOLE: &str = "010464656d6f020a70726f647563742e7031ac02070001020570726963650301077b2261223a317d0473697a650300";
    const SHED: &str = "010464656d6f020a70726f647563742e7031ac02070000";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn version_1_stays_as_it_is() {
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
