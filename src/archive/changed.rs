//! Which object an `object_changed` event tells of, read from its body. Called for what such a row is found by and for how it is shown. Pure.
//!
//! Only the body knows: the object may be another service's, and one that was removed and made anew has another SID under the same name.

use serde::Deserialize;

use super::EventRow;
use crate::event::{ObjectKind, kind};

/// Length of every SID.
const SID: usize = 34;

/// The object that an API client did something to.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Changed {
    /// Its kind.
    pub(super) kind: ObjectKind,
    /// Its unique name; None where its creator gave it none.
    pub(super) name: Option<String>,
    /// Its SID.
    pub(super) sid: String,
}

#[derive(Deserialize)]
struct Body {
    properties: Properties,
}

#[derive(Deserialize)]
struct Properties {
    object: Changed,
}

impl Changed {
    /// None for every other type of event, and where the body is sealed or names no object.
    pub(super) fn of(row: &EventRow) -> Option<Self> {
        if row.kind != kind::OBJECT_CHANGED || row.body_key != 0 {
            return None;
        }
        let changed = serde_json::from_slice::<Body>(&row.body).ok()?.properties.object;
        (changed.sid.len() == SID).then_some(changed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::super::contract::sample;
    use super::*;

    #[test]
    fn the_object_is_told_of_events_of_its_type_alone_and_of_whole_sids() {
        let sid = "ET0123456789abcdef0123456789abcdef";
        let row = |kind: &str, object: serde_json::Value| EventRow {
            kind: kind.into(),
            body_key: 0,
            body: Bytes::from(json!({"properties": {"object": object, "action": "document_created"}, "type": kind}).to_string()),
            ..sample().events[0].clone()
        };
        let object = json!({"sid": sid, "kind": "document", "name": "d", "revision": 3});
        let changed = row("object_changed", object.clone());
        let expected = Changed { kind: ObjectKind::Document, name: Some("d".into()), sid: sid.into() };
        assert_eq!(Changed::of(&changed), Some(expected));
        assert_eq!(Changed::of(&row("object_changed", json!({"sid": sid, "kind": "stream"}))).unwrap().name, None);
        assert_eq!(Changed::of(&EventRow { body_key: 1, ..changed }), None);
        for other in
            [row("page_viewed", object), row("object_changed", json!({"sid": "ET01", "kind": "document"})), row("object_changed", json!("d"))]
        {
            assert_eq!(Changed::of(&other), None, "{other:?}");
        }
    }
}
