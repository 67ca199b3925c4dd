//! Writes and answers as they travel between processes. Pure.
//!
//! Version 3 is a version byte, then postcard of [`Wire`]: a write; or only that an object was written, where its rows were shed because the brokers take no
//! record of that size, and whoever watches the object reads it; or an answer. Versions 1 and 2 knew no answers, and less of a row; version 1 did not say after
//! which event id a write tells all. What another version means, this build cannot tell.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::ObjectKey;
use crate::event::Timestamp;
use crate::sync::{Answer, Applied, AppliedRow};

/// Version byte that opens every record this build writes.
const VERSION: u8 = 3;

/// What version 1 has.
#[derive(Serialize, Deserialize)]
struct Wire1 {
    key: ObjectKey,
    event_id: u64,
    revision: u64,
    removed: bool,
    rows: Option<Vec<WireRow>>,
}

/// What version 2 has.
#[derive(Serialize, Deserialize)]
struct Wire2 {
    first: Wire1,
    after: u64,
}

#[derive(Serialize, Deserialize)]
enum Wire {
    Write(WireWrite),
    Changed(ObjectKey),
    Answer(Answer),
}

#[derive(Serialize, Deserialize)]
struct WireWrite {
    key: ObjectKey,
    after: u64,
    event_id: u64,
    revision: u64,
    rows: Vec<AppliedRow>,
    removed: bool,
    incarnation: u64,
    updated_at: Timestamp,
    expires_at: Option<Timestamp>,
    rights: bool,
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
    /// Somebody's answer.
    Answer(Answer),
}

/// A write with its rows.
pub(super) fn whole(write: &Applied) -> Bytes {
    let Applied { key, after, event_id, revision, rows, removed, incarnation, updated_at, expires_at, rights } = write.clone();
    encode(&Wire::Write(WireWrite { key, after, event_id, revision, rows, removed, incarnation, updated_at, expires_at, rights }))
}

/// A write without its rows.
pub(super) fn shed(write: &Applied) -> Bytes {
    encode(&Wire::Changed(write.key.clone()))
}

/// An answer.
pub(super) fn answer(answer: &Answer) -> Bytes {
    encode(&Wire::Answer(answer.clone()))
}

fn encode(wire: &Wire) -> Bytes {
    // Plain data always serialises; were it not so, readers would take the record for one of another version.
    postcard::to_extend(wire, vec![VERSION]).unwrap_or_default().into()
}

/// Reads a record; None where this build cannot.
pub(super) fn decode(bytes: &[u8]) -> Option<Told> {
    let (version, body) = bytes.split_first()?;
    Some(match *version {
        1 => of_old(postcard::from_bytes(body).ok()?, 0),
        2 => {
            let Wire2 { first, after } = postcard::from_bytes(body).ok()?;
            of_old(first, after)
        }
        VERSION => match postcard::from_bytes(body).ok()? {
            Wire::Write(WireWrite { key, after, event_id, revision, rows, removed, incarnation, updated_at, expires_at, rights }) => {
                Told::Write(Applied { key, after, event_id, revision, rows, removed, incarnation, updated_at, expires_at, rights })
            }
            Wire::Changed(key) => Told::Changed(key),
            Wire::Answer(answer) => Told::Answer(answer),
        },
        _ => return None,
    })
}

/// What an earlier version tells. When a row changed and came it does not say: with the write, as far as anybody can tell.
fn of_old(Wire1 { key, event_id, revision, removed, rows }: Wire1, after: u64) -> Told {
    let Some(rows) = rows else { return Told::Changed(key) };
    let row = |WireRow { item, revision, data }| AppliedRow { item, revision, event_id, data, ..AppliedRow::default() };
    let rows = rows.into_iter().map(row).collect();
    let (incarnation, updated_at, expires_at, rights) = (0, Timestamp::ZERO, None, false);
    Told::Write(Applied { key, after, event_id, revision, rows, removed, incarnation, updated_at, expires_at, rights })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ObjectKind, SiteId};

    fn key() -> ObjectKey {
        ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "product.p1".into() }
    }

    fn write() -> Applied {
        let at = Timestamp::from_micros(64);
        let row = |item: &str, data: Option<&str>| AppliedRow {
            item: item.into(),
            revision: 3,
            event_id: 299,
            began: 7,
            updated_at: at,
            expires_at: Some(at),
            data: data.map(Into::into),
            before: data.is_none().then(|| "1".into()),
        };
        let rows = vec![row("price", Some("{\"a\":1}")), row("size", None)];
        let (incarnation, updated_at, expires_at) = (5, at, Some(at));
        Applied { key: key(), after: 298, event_id: 300, revision: 7, rows, removed: false, incarnation, updated_at, expires_at, rights: true }
    }

    /// As earlier versions tell it.
    fn old(after: u64) -> Applied {
        let row = |row: AppliedRow| AppliedRow { item: row.item, revision: 3, event_id: 300, data: row.data, ..AppliedRow::default() };
        let rows = write().rows.into_iter().map(row).collect();
        Applied { after, rows, incarnation: 0, updated_at: Timestamp::ZERO, expires_at: None, rights: false, ..write() }
    }

    /// What the versions are on the wire: never to change.
    const WHOLE_1: &str = "010464656d6f020a70726f647563742e7031ac02070001020570726963650301077b2261223a317d0473697a650300";
    const SHED_1: &str = "010464656d6f020a70726f647563742e7031ac02070000";
    const WHOLE_2: &str = "020464656d6f020a70726f647563742e7031ac02070001020570726963650301077b2261223a317d0473697a650300aa02";
    const SHED_2: &str = "020464656d6f020a70726f647563742e7031ac02070000aa02";
    const WHOLE: &str = "03000464656d6f020a70726f647563742e7031aa02ac02070205707269636503ab0207800101800101077b2261223a317d000473697a6503ab02078001018001000101310005800101800101";
    const SHED: &str = "03010464656d6f020a70726f647563742e7031";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_versions_stay_as_they_are() {
        assert_eq!(decode(&bytes(WHOLE_1)), Some(Told::Write(old(0))));
        assert_eq!(decode(&bytes(SHED_1)), Some(Told::Changed(key())));
        assert_eq!(decode(&bytes(WHOLE_2)), Some(Told::Write(old(298))));
        assert_eq!(decode(&bytes(SHED_2)), Some(Told::Changed(key())));
        assert_eq!(hex(&whole(&write())), WHOLE);
        assert_eq!(hex(&shed(&write())), SHED);
        assert_eq!(decode(&whole(&write())), Some(Told::Write(write())));
        assert_eq!(decode(&shed(&write())), Some(Told::Changed(key())));
    }

    #[test]
    fn an_answer_comes_back() {
        use crate::sync::{Refusal, Verdict};
        let verdicts = vec![Verdict::Refused(Refusal::Revision), Verdict::Done { added: true, item: None }];
        let told = Answer { request: [3; 16], partition: 4, verdicts, object: None };
        assert_eq!(decode(&answer(&told)), Some(Told::Answer(told)));
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
