//! A follower stepped by hand over objects that changes are folded into.

use serde_json::Value;

use super::*;
use crate::event::change::{Call, Change, Merge, Op, Origin, PutItem, Stamp};
use crate::event::{ObjectKey, SiteId};
use crate::sync::tombstones;
use crate::web::realtime::events::Subject;

/// An object, written after each change as its keeper does.
struct Kept {
    object: Object,
    offset: u64,
}

impl Kept {
    fn new(kind: ObjectKind, name: &str) -> Self {
        let key = ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() };
        Self { object: Object::empty(key), offset: 0 }
    }

    fn change(&mut self, origin: Origin, ops: Vec<Op>) {
        self.offset += 1;
        let (received_at, key) = (Timestamp::ZERO.plus_seconds(self.offset as i64), self.object.key().clone());
        let stamp = Stamp { at: received_at, id: self.offset.to_string() };
        self.object.apply(&Change { key, origin, received_at, stamp, ops }, self.offset, None);
    }

    fn call(&mut self, call: Call) {
        self.change(Origin::Client { request: [0; 16], identity: "alice".into() }, vec![Op::Call(call)]);
    }

    fn put(&mut self, item: &str, data: &str) {
        let item = PutItem::Upsert(item.into(), None);
        self.call(Call::PutItem { item, data: Some(data.into()), ttl: None, collection_ttl: None });
    }

    fn remove(&mut self, item: &str) {
        self.call(Call::RemoveItem { item: item.into(), if_revision: None });
    }

    /// One event that merges into several items.
    fn merge(&mut self, items: &[&str]) {
        let op = |item: &&str| Op::Merge { item: (*item).into(), field: "n".into(), with: Merge::Add(1) };
        let ops = items.iter().map(op).collect();
        self.change(Origin::Event { partition: 0, offset: self.offset, number: 0 }, ops);
    }

    fn write(&mut self) -> Arc<Applied> {
        Arc::new(self.object.take_write(true).1)
    }

    fn create(kind: ObjectKind) -> Self {
        let mut kept = Self::new(kind, "mine");
        kept.call(Call::Create { data: (kind == ObjectKind::Document).then(|| "{}".into()), ttl: None });
        kept.write();
        kept
    }

    fn follow(&self) -> Follow {
        let (kind, head) = (self.object.kind(), self.object.head());
        let of = Of::new(Subject { kind, sid: "XX1".into(), name: "mine".into() });
        Follow::new(of, head.incarnation, head.event_id)
    }

    /// What is made up for: event ids and items.
    fn missed(&self, since: u64, continued: bool) -> Vec<(u64, String, bool)> {
        match begin(&self.object, Some(since), continued) {
            Begun::Rows(rows) => rows.into_iter().map(|row| (row.event_id, row.item, row.data.is_some())).collect(),
            other => panic!("{other:?}"),
        }
    }
}

/// Event type, id and item of all that is told.
fn told(mut told: Told) -> Vec<(String, u64, String)> {
    let urls = Urls::new("http://h", "IS1");
    let mut out = Vec::new();
    while let Some(frame) = told.next(&urls) {
        let text = std::str::from_utf8(&frame).unwrap();
        let body: Value = serde_json::from_str(text.splitn(3, "\r\n").nth(2).unwrap()).unwrap();
        let event = &body["event"];
        let item = event["item_key"].as_str().unwrap_or_default().to_owned();
        out.push((body["event_type"].as_str().unwrap().to_owned(), event["id"].as_u64().unwrap(), item));
    }
    out
}

fn heard(follow: &mut Follow, write: &Arc<Applied>) -> Vec<(String, u64, String)> {
    match follow.take(write) {
        Heard::Told(what) | Heard::Ended(what) => told(what),
        Heard::Nothing => Vec::new(),
        Heard::Reread => panic!("reread"),
    }
}

fn one(kind: &str, id: u64, item: &str) -> (String, u64, String) {
    (kind.into(), id, item.into())
}

#[test]
fn writes_are_told_once_in_the_order_of_their_events() {
    let mut map = Kept::create(ObjectKind::Map);
    let mut follow = map.follow();
    map.put("b", "{}");
    map.put("a", "{}");
    map.put("b", r#"{"n":1}"#);
    let write = map.write();
    assert_eq!(heard(&mut follow, &write), [one("map_item_added", 3, "a"), one("map_item_added", 4, "b")]);
    assert_eq!(heard(&mut follow, &write), []);
    map.put("a", r#"{"n":2}"#);
    map.remove("b");
    assert_eq!(heard(&mut follow, &map.write()), [one("map_item_updated", 5, "a"), one("map_item_removed", 6, "b")]);
    // An item that came anew, in one write with its end.
    map.remove("a");
    map.put("a", "{}");
    assert_eq!(heard(&mut follow, &map.write()), [one("map_item_added", 8, "a")]);
}

#[test]
fn a_write_that_tells_again_tells_what_is_new_alone() {
    let mut map = Kept::create(ObjectKind::Map);
    let mut follow = map.follow();
    map.put("a", "{}");
    let first = map.write();
    map.put("b", "{}");
    let second = map.write();
    heard(&mut follow, &first);
    // As an owner publishes that took over and does not know how far the one before it came.
    let both = Applied { after: first.after, rows: [first.rows.clone(), second.rows.clone()].concat(), ..(*second).clone() };
    assert_eq!(heard(&mut follow, &Arc::new(both)), [one("map_item_added", 3, "b")]);
}

#[test]
fn a_gap_and_changed_rights_are_read_anew() {
    let mut map = Kept::create(ObjectKind::Map);
    let mut follow = map.follow();
    map.put("a", "{}");
    map.write();
    map.put("b", "{}");
    assert!(matches!(follow.take(&map.write()), Heard::Reread));
    assert_eq!(follow.seen, 1, "nothing counts as told");
    map.call(Call::Permit { identity: "bob".into(), rights: crate::event::change::Rights::ALL });
    let write = map.write();
    assert!(write.rights && matches!(map.follow().take(&write), Heard::Reread));
}

#[test]
fn the_end_of_a_life_is_told_whatever_follows() {
    for begins_anew in [false, true] {
        let mut document = Kept::create(ObjectKind::Document);
        let mut follow = document.follow();
        document.call(Call::Remove { if_revision: None });
        if begins_anew {
            document.call(Call::Create { data: Some("{}".into()), ttl: None });
        }
        let write = document.write();
        assert_eq!(write.removed, !begins_anew);
        assert!(matches!(follow.take(&write), Heard::Ended(_)));
    }
}

#[test]
fn a_streams_messages_are_told_even_after_a_gap() {
    let mut stream = Kept::create(ObjectKind::Stream);
    let mut follow = stream.follow();
    let publish = |stream: &mut Kept, sid: &str| stream.call(Call::Publish { sid: sid.into(), data: "{}".into() });
    publish(&mut stream, "TZ1");
    stream.write();
    publish(&mut stream, "TZ2");
    publish(&mut stream, "TZ3");
    assert_eq!(heard(&mut follow, &stream.write()).iter().map(|told| told.1).collect::<Vec<_>>(), [3, 4]);
    assert!(matches!(begin(&stream.object, Some(0), true), Begun::Rows(rows) if rows.is_empty()));
}

#[test]
fn what_was_missed_is_made_up_for_in_order() {
    let mut map = Kept::create(ObjectKind::Map);
    for item in ["a", "b", "c"] {
        map.put(item, "{}");
    }
    map.remove("b");
    map.put("a", r#"{"n":1}"#);
    assert_eq!(map.missed(2, false), [(4, "c".into(), true), (5, "b".into(), false), (6, "a".into(), true)]);
    assert_eq!(map.missed(6, false), []);
    assert!(matches!(begin(&map.object, None, false), Begun::Rows(rows) if rows.is_empty()));
    assert!(matches!(begin(&map.object, Some(7), false), Begun::Ahead));
}

#[test]
fn a_cut_within_one_events_rows_leaves_none_out() {
    let mut map = Kept::new(ObjectKind::Map, "product.x");
    map.merge(&["a", "b"]);
    map.merge(&["a"]);
    map.merge(&["b", "c"]);
    // The client got `b` and was cut.
    assert_eq!(map.missed(3, true), [(3, "b".into(), true), (3, "c".into(), true)]);
    // Who opens an object is not told what it has just read; nor is one told a single row again.
    assert_eq!(map.missed(3, false), []);
    assert_eq!(map.missed(2, true), [(3, "b".into(), true), (3, "c".into(), true)]);
    let mut one = Kept::create(ObjectKind::Map);
    one.put("a", "{}");
    assert_eq!(one.missed(2, true), []);
}

#[test]
fn where_removals_are_forgotten_a_document_is_shown_and_a_map_is_gone() {
    let mut map = Kept::create(ObjectKind::Map);
    map.put("a", "{}");
    map.put("b", "{}");
    map.remove("a");
    map.write();
    map.offset += tombstones::SECONDS as u64 + 1;
    map.put("b", r#"{"n":1}"#);
    map.write();
    assert!(matches!(begin(&map.object, Some(3), true), Begun::Forgotten));
    assert_eq!(map.missed(4, true), [(5, "b".into(), true)]);
    // A mapped document that was removed and began anew under the same SID.
    let mut document = Kept::new(ObjectKind::Document, "activity");
    document.merge(&[""]);
    document.merge(&[""]);
    document.change(Origin::Event { partition: 0, offset: 9, number: 0 }, vec![Op::Remove]);
    document.merge(&[""]);
    assert_eq!(document.missed(2, true), [(4, String::new(), true)]);
}
