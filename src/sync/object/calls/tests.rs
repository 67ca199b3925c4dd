//! What API clients ask of one object, step by step.

use super::*;
use crate::event::change::{Origin, Stamp};
use crate::event::{ObjectKey, SiteId};
use crate::sync::StoredObject;

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() }
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_790_000_000_000_000).plus_seconds(seconds)
}

/// An object, and the place in the log of its next change.
struct Driven {
    object: Object,
    offset: u64,
    now: i64,
}

impl Driven {
    fn new(kind: ObjectKind, name: &str) -> Self {
        Self { object: Object::empty(key(kind, name)), offset: 0, now: 0 }
    }

    fn change(&self, calls: &[Call]) -> Change {
        let origin = Origin::Client { request: [1; 16], identity: "alice".into() };
        let at = time(self.now);
        let ops = calls.iter().cloned().map(Op::Call).collect();
        Change { key: self.object.key().clone(), origin, received_at: at, stamp: Stamp { at, id: String::new() }, ops }
    }

    fn call_all(&mut self, calls: &[Call]) -> Answer {
        let change = self.change(calls);
        self.offset += 1;
        self.object.apply(&change, self.offset, None);
        self.object.take_answers().pop().unwrap()
    }

    fn call(&mut self, call: Call) -> Result<(bool, Option<SnapshotItem>), Refusal> {
        match self.call_all(&[call]).verdicts.pop().unwrap() {
            Verdict::Done { added, item } => Ok((added, item)),
            Verdict::Refused(refusal) => Err(refusal),
        }
    }

    /// Event id and revision.
    fn at(&self) -> (u64, u64) {
        (self.object.head().event_id, self.object.head().revision)
    }

    /// Stores it and reads it back, as another owner does.
    fn move_house(&mut self) {
        let (write, _) = self.object.take_write(false);
        let rows = write.rows.into_iter().filter(|row| !write.purge.contains(&row.item)).collect();
        self.object = Object::from_stored(StoredObject { key: write.key, head: write.head, rows }).unwrap();
    }
}

fn create() -> Call {
    Call::Create { data: None, ttl: None }
}

fn put(item: PutItem, data: &str) -> Call {
    Call::PutItem { item, data: Some(data.into()), ttl: None, collection_ttl: None }
}

fn remove(item: &str) -> Call {
    Call::RemoveItem { item: item.into(), if_revision: None }
}

fn document(if_revision: Option<u64>, data: &str) -> Call {
    Call::Update { if_revision, data: Some(data.into()), ttl: None }
}

#[test]
fn a_document_is_created_once_and_changed_by_revision() {
    let mut it = Driven::new(ObjectKind::Document, "d");
    assert_eq!(it.call(document(None, "{}")), Err(Refusal::NoObject));
    assert_eq!(it.at(), (0, 0));
    let answer = it.call_all(&[Call::Create { data: Some("{\"n\":0}".into()), ttl: None }]);
    let made = answer.object.unwrap();
    assert_eq!((made.revision, made.event_id, made.data.as_deref(), made.created_by.as_str()), (1, 1, Some("{\"n\":0}"), "alice"));
    assert_eq!(made.incarnation, time(0).micros() as u64);
    assert_eq!(it.call(create()), Err(Refusal::Exists));
    assert_eq!(it.call(document(Some(1), "{\"n\":1}")), Ok((false, None)));
    assert_eq!(it.call(document(Some(1), "{\"n\":2}")), Err(Refusal::Revision));
    assert_eq!(it.at(), (2, 2));
    assert_eq!(it.object.snapshot().unwrap().data.as_deref(), Some("{\"n\":1}"));
    assert_eq!(it.call(put(PutItem::Add("k".into()), "{}")), Err(Refusal::Kind));
    assert_eq!(it.call(Call::Remove { if_revision: Some(1) }), Err(Refusal::Revision));
    it.now = 5;
    let answer = it.call_all(&[Call::Remove { if_revision: None }]);
    assert_eq!(answer.object, None);
    assert_eq!(it.call(document(None, "{}")), Err(Refusal::NoObject));
    let before = it.object.head().incarnation;
    it.move_house();
    assert_eq!(it.call(create()).map(|(added, _)| added), Ok(true));
    assert_eq!(it.at(), (4, 1), "event ids go on, revisions begin anew");
    assert!(it.object.head().incarnation > before);
    assert_eq!(it.object.take_write(true).0.ended, [before]);
}

#[test]
fn a_maps_items_are_added_put_and_removed_as_asked() {
    let mut it = Driven::new(ObjectKind::Map, "m");
    it.call(create()).unwrap();
    let add = |data: &str| put(PutItem::Add("k".into()), data);
    let (added, item) = it.call(add("{\"n\":1}")).unwrap();
    let item = item.unwrap();
    assert_eq!((added, item.revision, item.event_id, item.life.began, item.life.created_by.as_str()), (true, 1, 2, 2, "alice"));
    assert_eq!(it.call(add("{}")), Err(Refusal::ItemExists));
    let set = |key: &str, if_revision| put(PutItem::Set(key.into(), if_revision), "{\"n\":2}");
    assert_eq!(it.call(set("other", None)), Err(Refusal::NoItem));
    assert_eq!(it.call(set("k", Some(2))), Err(Refusal::Revision));
    assert_eq!(it.call(set("k", Some(1))).unwrap().1.unwrap().revision, 2);
    let upsert = |key: &str, if_revision| put(PutItem::Upsert(key.into(), if_revision), "{\"n\":3}");
    assert!(!it.call(upsert("k", None)).unwrap().0);
    assert_eq!(it.call(upsert("l", Some(1))), Err(Refusal::Revision));
    assert!(it.call(upsert("l", None)).unwrap().0);
    assert_eq!(it.call(put(PutItem::Append, "{}")), Err(Refusal::Kind));
    assert_eq!(it.at(), (5, 5));
    assert_eq!(it.call(Call::RemoveItem { item: "k".into(), if_revision: Some(9) }), Err(Refusal::Revision));
    let (_, gone) = it.call(remove("k")).unwrap();
    assert_eq!(gone.map(|item| (item.event_id, item.data.to_string())), Some((6, "{\"n\":3}".into())));
    assert_eq!(it.call(remove("k")), Err(Refusal::NoItem));
    let (_, applied) = it.object.take_write(true);
    let told: Vec<_> = applied.rows.iter().map(|row| (row.item.as_str(), row.event_id, row.data.as_deref())).collect();
    assert_eq!(told, [("k", 6, None), ("l", 5, Some("{\"n\":3}"))]);
    assert_eq!(applied.rows[0].before.as_deref(), Some("{\"n\":3}"));
    // Added again, it begins anew.
    assert_eq!(it.call(add("{}")).unwrap().1.map(|item| (item.revision, item.life.began)), Some((1, 7)));
}

#[test]
fn a_lists_indexes_never_come_again() {
    let mut it = Driven::new(ObjectKind::List, "l");
    it.call(create()).unwrap();
    let append = |it: &mut Driven| it.call(put(PutItem::Append, "{}")).unwrap().1.unwrap().item;
    let made: Vec<String> = (0..3).map(|_| append(&mut it)).collect();
    assert_eq!(made, [0, 1, 2].map(index_name));
    it.call(remove(&index_name(1))).unwrap();
    // As seen on Twilio: the index counts the list's changes.
    assert_eq!(append(&mut it), index_name(4));
    it.move_house();
    assert_eq!(append(&mut it), index_name(5));
    let both = it.call_all(&[put(PutItem::Append, "{}"), put(PutItem::Append, "{}")]);
    let items: Vec<String> = both.verdicts.iter().map(|verdict| format!("{verdict:?}")).collect();
    assert!(items[0].contains(&index_name(6)) && items[1].contains(&index_name(7)), "{items:?}");
    assert_eq!(it.call(put(PutItem::Set(index_name(1), None), "{}")), Err(Refusal::NoItem));
    assert_eq!(it.call(put(PutItem::Add("x".into()), "{}")), Err(Refusal::Kind));
}

#[test]
fn calls_of_one_change_are_decided_each_for_itself() {
    let mut it = Driven::new(ObjectKind::Map, "m");
    let answer = it.call_all(&[create(), put(PutItem::Add("a".into()), "{}"), put(PutItem::Add("a".into()), "{}"), remove("b"), create()]);
    let refused: Vec<Option<Refusal>> = answer
        .verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Done { .. } => None,
            Verdict::Refused(refusal) => Some(*refusal),
        })
        .collect();
    assert_eq!(refused, [None, None, Some(Refusal::ItemExists), Some(Refusal::NoItem), Some(Refusal::Exists)]);
    assert_eq!(it.at(), (2, 2));
    let done: Vec<(u16, &str)> = it.object.take_done().iter().map(|done| (done.number, done.what)).collect();
    assert_eq!(done, [(0, "map_created"), (1, "map_item_added")]);
}

#[test]
fn what_is_past_its_lifetime_is_not_there() {
    let mut it = Driven::new(ObjectKind::Map, "m");
    it.call(Call::Create { data: None, ttl: Some(100) }).unwrap();
    let lives = |key: &str, ttl| Call::PutItem { item: PutItem::Add(key.into()), data: Some("{}".into()), ttl: Some(ttl), collection_ttl: None };
    it.call(lives("a", 10)).unwrap();
    it.call(lives("b", 20)).unwrap();
    assert_eq!(it.object.head().next_expiry, Some(time(10)));
    let shown = |it: &Driven| it.object.items(None, true, false, 9, time(it.now)).into_iter().map(|item| item.item).collect::<Vec<_>>();
    it.now = 9;
    assert_eq!(shown(&it), ["a", "b"]);
    it.now = 10;
    assert_eq!(shown(&it), ["b"], "ends at its end");
    assert_eq!(it.call(put(PutItem::Set("a".into(), None), "{}")), Err(Refusal::NoItem));
    // A new one in its place: the old one's removal and the new one are two changes.
    assert_eq!(it.call(lives("a", 30)).unwrap().1.map(|item| (item.revision, item.life.began)), Some((1, 5)));
    it.move_house();
    it.now = 25;
    let expire = |it: &mut Driven| {
        let change = Change { origin: Origin::Client { request: [0; 16], identity: "system".into() }, ..it.change(&[Call::Expire]) };
        it.offset += 1;
        it.object.apply(&change, it.offset, None)
    };
    assert_eq!(expire(&mut it), Fold::Applied);
    assert_eq!(it.object.take_done().iter().map(|done| done.what).collect::<Vec<_>>(), ["map_item_removed"]);
    assert_eq!((shown(&it), it.object.head().next_expiry), (vec!["a".to_owned()], Some(time(40))));
    assert_eq!(expire(&mut it), Fold::Refused, "nothing is over");
    assert!(it.object.take_answers().is_empty(), "nobody asked");
    // A new lifetime alone changes no revision and tells nobody.
    let before = it.at();
    it.object.take_write(true);
    it.call(Call::PutItem { item: PutItem::Set("a".into(), None), data: None, ttl: Some(0), collection_ttl: Some(50) }).unwrap();
    assert_eq!((it.at(), it.object.head().next_expiry), (before, Some(time(75))));
    let (write, applied) = it.object.take_write(true);
    assert_eq!((write.rows.len(), applied.rows.len()), (1, 0));
    it.now = 75;
    assert!(it.object.is_over(time(75), None) && !it.object.is_over(time(74), None));
    assert_eq!(it.call(put(PutItem::Upsert("c".into(), None), "{}")), Err(Refusal::NoObject));
    assert_eq!(expire(&mut it), Fold::Applied);
    assert_eq!((it.object.snapshot(), it.object.head().next_expiry), (None, None));
}

#[test]
fn rights_are_kept_beside_the_items_and_go_with_the_object() {
    let mut it = Driven::new(ObjectKind::Map, "m");
    let permit = |rights| Call::Permit { identity: "bob".into(), rights };
    let read = Rights { read: true, ..Rights::NONE };
    assert_eq!(it.call(permit(read)), Err(Refusal::NoObject));
    it.call(create()).unwrap();
    assert_eq!(it.call(permit(Rights::NONE)), Err(Refusal::NoItem));
    assert_eq!(it.call(permit(read)), Ok((true, None)));
    assert_eq!(it.at(), (1, 1), "nothing that anybody reads is changed");
    let (write, applied) = it.object.clone().take_write(true);
    assert_eq!((write.rows.len(), applied.rows.len(), applied.rights), (1, 0, true));
    it.move_house();
    assert_eq!((it.object.rights_of("bob"), it.object.rights_of("eve")), (Some(read), None));
    assert!(it.object.snapshot().unwrap().items.is_empty() && it.object.since(0).unwrap().is_empty());
    assert_eq!(it.call(permit(Rights::NONE)), Ok((false, None)));
    let (write, _) = it.object.take_write(true);
    assert_eq!((write.rows.len(), write.purge.len()), (0, 1));
    it.call(permit(Rights::ALL)).unwrap();
    it.call(Call::Remove { if_revision: None }).unwrap();
    it.call(create()).unwrap();
    assert_eq!(it.object.rights_of("bob"), None);
}

#[test]
fn a_lists_context_is_kept_beside_the_items_and_goes_with_the_list() {
    let mut it = Driven::new(ObjectKind::List, "l");
    it.call(Call::Create { data: Some("{\"of\":1}".into()), ttl: None }).unwrap();
    it.call(put(PutItem::Append, "{}")).unwrap();
    it.move_house();
    assert_eq!(it.object.context(), Some("{\"of\":1}"));
    let items = it.object.snapshot().unwrap().items;
    assert_eq!((items.len(), it.object.since(0).unwrap().len()), (1, 1), "it is no item");
    it.call(Call::Remove { if_revision: None }).unwrap();
    assert_eq!(it.object.context(), None);
    it.call(create()).unwrap();
    let (write, _) = it.object.take_write(false);
    assert!(write.clear && write.rows.is_empty());
    assert_eq!(it.object.context(), None);
}

#[test]
fn a_streams_messages_are_told_and_not_kept() {
    let mut it = Driven::new(ObjectKind::Stream, "s");
    it.call(create()).unwrap();
    it.object.take_write(true);
    for n in 1..=2 {
        it.call(Call::Publish { sid: format!("TZ{n}"), data: format!("{{\"n\":{n}}}") }).unwrap();
    }
    let (write, applied) = it.object.take_write(true);
    assert!(write.rows.is_empty());
    let told: Vec<_> = applied.rows.iter().map(|row| (row.item.as_str(), row.event_id, row.data.as_deref())).collect();
    assert_eq!(told, [("TZ1", 2, Some("{\"n\":1}")), ("TZ2", 3, Some("{\"n\":2}"))]);
    assert!(it.object.take_write(true).1.rows.is_empty(), "told once");
    assert_eq!(Driven::new(ObjectKind::Map, "m").call(Call::Publish { sid: "TZ".into(), data: "{}".into() }), Err(Refusal::NoObject));
}

#[test]
fn what_is_read_again_is_told_again_and_answered_no_more() {
    let mut it = Driven::new(ObjectKind::List, "l");
    it.call(create()).unwrap();
    let change = it.change(&[put(PutItem::Append, "{\"n\":1}")]);
    it.object.apply(&change, 2, None);
    it.move_house();
    assert_eq!(it.object.apply(&change, 2, None), Fold::Repeat);
    assert!(it.object.take_answers().is_empty() && it.object.take_done().is_empty());
    let (_, applied) = it.object.take_write(true);
    assert_eq!((applied.after, applied.event_id), (1, 2));
    assert_eq!(applied.rows.iter().map(|row| (row.event_id, row.data.as_deref())).collect::<Vec<_>>(), [(2, Some("{\"n\":1}"))]);
}

#[test]
fn a_mapped_object_stays_under_its_sid_when_a_client_removes_it() {
    let mut it = Driven::new(ObjectKind::Map, "product.a");
    let event = |it: &mut Driven| {
        let with = crate::event::change::Merge::Add(1);
        let ops = vec![Op::Merge { item: "activity".into(), field: "views".into(), with }];
        let origin = Origin::Event { partition: 0, offset: it.offset, number: 0 };
        let change = Change { origin, ops, ..it.change(&[]) };
        it.offset += 1;
        it.object.apply(&change, it.offset, None)
    };
    assert_eq!(event(&mut it), Fold::Applied);
    it.call(put(PutItem::Add("note".into()), "{}")).unwrap();
    it.call(Call::Remove { if_revision: None }).unwrap();
    it.object.take_write(true);
    assert_eq!(event(&mut it), Fold::Applied);
    let (write, _) = it.object.take_write(true);
    assert_eq!((write.head.incarnation, write.head.revision, write.ended.len()), (0, 1, 0));
}
