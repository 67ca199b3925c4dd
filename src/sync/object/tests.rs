//! One object under changes in any order, split, repeated and removed.

use proptest::prelude::*;

use super::*;
use crate::event::SiteId;
use crate::event::change::{Merge, Stamp};
use crate::sync::{Applied, ObjectWrite};

const DAY: i64 = 86_400;

fn key(kind: ObjectKind) -> ObjectKey {
    ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: "x".into() }
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_790_000_000_000_000).plus_seconds(seconds)
}

fn change(kind: ObjectKind, seconds: i64, ops: Vec<Op>) -> Change {
    let stamp = Stamp { at: time(seconds), id: "e".into() };
    Change { key: key(kind), origin: Origin::Event { partition: 0, offset: 0, number: 0 }, received_at: time(seconds), stamp, ops }
}

fn add(item: &str, field: &str) -> Op {
    Op::Merge { item: item.into(), field: field.into(), with: Merge::Add(1) }
}

fn append(index: u64, keep: u32) -> Op {
    Op::Append { index, data: index.to_string(), keep }
}

fn ttl(days: u64) -> Option<Duration> {
    Some(Duration::from_secs(days * DAY as u64))
}

fn data(object: &Object) -> String {
    let snapshot = object.snapshot().unwrap();
    let items: Vec<String> = snapshot.items.iter().map(|i| format!("{}@{}={}", i.item, i.revision, i.data)).collect();
    format!("r{} e{} {} {}", snapshot.revision, snapshot.event_id, snapshot.data.as_deref().unwrap_or("-"), items.join(" "))
}

fn rows(applied: &Applied) -> Vec<(&str, u64, Option<&str>)> {
    applied.rows.iter().map(|row| (row.item.as_str(), row.revision, row.data.as_deref())).collect()
}

/// An object store of one object, as its contract says.
#[derive(Default)]
struct Store {
    head: Head,
    rows: BTreeMap<String, Row>,
}

impl Store {
    fn put(&mut self, write: ObjectWrite) {
        if write.clear {
            self.rows.clear();
        }
        write.purge.iter().for_each(|item| drop(self.rows.remove(item)));
        write.rows.into_iter().for_each(|row| drop(self.rows.insert(row.item.clone(), row)));
        self.head = write.head;
    }

    fn load(&self, kind: ObjectKind) -> Object {
        Object::from_stored(StoredObject { key: key(kind), head: self.head.clone(), rows: self.rows.values().cloned().collect() }).unwrap()
    }
}

#[test]
fn revisions_count_changes_of_the_object_and_of_the_item() {
    let mut object = Object::empty(key(ObjectKind::Map));
    assert_eq!(object.snapshot(), None);
    assert_eq!(object.apply(&change(ObjectKind::Map, 1, vec![add("a", "n"), add("a", "m"), add("b", "n")]), 0, None), Fold::Applied);
    assert_eq!(object.apply(&change(ObjectKind::Map, 2, vec![add("a", "n")]), 7, None), Fold::Applied);
    assert_eq!(data(&object), "r2 e2 - a@2={\"m\":1,\"n\":2} b@1={\"n\":1}");
    let (write, applied) = object.take_write(true);
    assert_eq!(rows(&applied), [("a", 2, Some("{\"m\":1,\"n\":2}")), ("b", 1, Some("{\"n\":1}"))]);
    assert_eq!((applied.event_id, applied.revision, applied.removed), (2, 2, false));
    assert_eq!((write.head.upto, write.clear, write.rows.len()), (7, false, 2));
    assert_eq!(write.head.bytes, write.rows.iter().map(|r| (r.item.len() + r.state.as_ref().unwrap().len()) as u64).sum::<u64>());
    assert_eq!((write.head.created_at, write.head.updated_at), (time(1), time(2)));
    assert!(!object.needs_write() && !object.needs_publish());
}

#[test]
fn a_repeat_is_published_and_not_counted() {
    let mut object = Object::empty(key(ObjectKind::Document));
    let views = change(ObjectKind::Document, 1, vec![add("", "views")]);
    object.apply(&views, 5, None);
    object.take_write(false);
    for offset in [5, 4, 0] {
        assert_eq!(object.apply(&views, offset, None), Fold::Repeat);
    }
    assert!(!object.needs_write() && object.needs_publish());
    let (write, applied) = object.take_write(true);
    assert_eq!((rows(&applied), applied.event_id, write.rows), (vec![("", 1, Some("{\"views\":1}"))], 1, vec![]));
}

#[test]
fn a_list_keeps_its_greatest_and_remembers_what_went() {
    let mut object = Object::empty(key(ObjectKind::List));
    for (offset, index) in [5, 9, 7, 3, 11].into_iter().enumerate() {
        object.apply(&change(ObjectKind::List, 1, vec![append(index, 3)]), offset as u64, None);
    }
    assert_eq!(data(&object), format!("r5 e5 - {:016x}@1=7 {:016x}@1=9 {:016x}@1=11", 7, 9, 11));
    let (write, applied) = object.take_write(true);
    assert_eq!(applied.rows.iter().filter(|row| row.data.is_none()).map(|row| row.item.clone()).collect::<Vec<_>>(), [index_name(5)]);
    assert_eq!(write.rows.iter().filter(|row| row.state.is_none()).count(), 1);
    let missed = object.since(3).unwrap();
    assert_eq!(
        missed.iter().map(|(id, row)| (*id, row.item.clone(), row.data.is_some())).collect::<Vec<_>>(),
        [(5, index_name(5), false), (5, index_name(11), true)]
    );
    assert_eq!((object.since(5), object.since(6)), (Some(vec![]), None));
    // A day later the tombstone goes, and who has not seen the removal needs a snapshot.
    object.apply(&change(ObjectKind::List, DAY + 2, vec![append(12, 4)]), 9, None);
    let (write, _) = object.take_write(true);
    assert_eq!((write.purge, write.head.purged), (vec![index_name(5)], 5));
    assert_eq!((object.since(4), object.since(5).map(|rows| rows.len())), (None, Some(1)));
}

#[test]
fn an_expired_object_begins_anew() {
    let mut object = Object::empty(key(ObjectKind::Map));
    object.apply(&change(ObjectKind::Map, 0, vec![add("a", "n"), add("b", "n")]), 1, ttl(30));
    object.take_write(true);
    object.apply(&change(ObjectKind::Map, 30 * DAY, vec![add("a", "n")]), 2, ttl(30));
    assert_eq!(object.head().revision, 2);
    object.apply(&change(ObjectKind::Map, 60 * DAY + 1, vec![add("a", "n")]), 3, ttl(30));
    assert_eq!(data(&object), "r1 e3 - a@1={\"n\":1}");
    assert_eq!(object.head().created_at, time(60 * DAY + 1));
    let (write, applied) = object.take_write(true);
    assert_eq!((write.clear, write.rows.len(), applied.removed), (true, 1, false));
    assert_eq!(rows(&applied), [("a", 1, Some("{\"n\":1}")), ("b", 0, None)]);
    assert_eq!((object.since(2), object.since(3)), (None, Some(vec![])));
}

#[test]
fn an_expiry_removes_only_what_has_not_changed() {
    let mut object = Object::empty(key(ObjectKind::Map));
    object.apply(&change(ObjectKind::Map, 0, vec![add("a", "n")]), 1, ttl(30));
    let expire = |unchanged_since| Change { origin: Origin::Expiry { unchanged_since }, ..change(ObjectKind::Map, 40 * DAY, vec![Op::Remove]) };
    assert_eq!(object.apply(&expire(0), 5, ttl(30)), Fold::Refused);
    assert_eq!(object.apply(&expire(1), 6, ttl(30)), Fold::Applied);
    assert_eq!((object.snapshot(), object.head().event_id, object.head().removed_at), (None, 2, Some(time(40 * DAY))));
    let (write, applied) = object.take_write(true);
    assert_eq!((write.clear, write.rows, applied.removed, rows(&applied)), (true, vec![], true, vec![("a", 0, None)]));
    assert_eq!(object.apply(&expire(6), 7, ttl(30)), Fold::Refused);
    let mut object = Object::from_stored(StoredObject { key: write.key, head: write.head, rows: vec![] }).unwrap();
    object.apply(&change(ObjectKind::Map, 1, vec![add("c", "n")]), 8, ttl(30));
    assert_eq!(data(&object), "r1 e3 - c@1={\"n\":1}");
}

#[test]
fn a_dashboard_takes_only_a_greater_version() {
    let mut object = Object::empty(key(ObjectKind::Document));
    let put = |version: u64| Change {
        origin: Origin::Archive { version },
        ..change(ObjectKind::Document, 0, vec![Op::Replace { data: format!("{{\"v\":{version}}}") }])
    };
    let folds = [3, 3, 2, 7].into_iter().enumerate().map(|(offset, version)| object.apply(&put(version), offset as u64, None));
    assert_eq!(folds.collect::<Vec<_>>(), [Fold::Applied, Fold::Refused, Fold::Refused, Fold::Applied]);
    assert_eq!(data(&object), "r2 e2 {\"v\":7} ");
}

#[test]
fn damaged_state_freezes_the_object() {
    let row = Row { item: "a".into(), revision: 1, event_id: 1, updated_at: time(0), life: Life::default(), state: Some(vec![9]) };
    let stored = StoredObject { key: key(ObjectKind::Map), head: Head::default(), rows: vec![row] };
    assert!(matches!(Object::from_stored(stored), Err(Error::Corrupt { .. })));
}

#[test]
fn tokens_are_taken_from_the_head() {
    let mut object = Object::empty(key(ObjectKind::Map));
    object.apply(&change(ObjectKind::Map, 0, vec![add("a", "n")]), 1, None);
    let taken = (0..500).filter(|_| object.try_take_token(time(0)).is_ok()).count();
    assert_eq!(taken, 200);
    let (write, _) = object.take_write(false);
    assert_eq!((write.head.bucket_millis, write.head.bucket_at), (0, time(0)));
}

fn ops(kind: ObjectKind) -> BoxedStrategy<Vec<Op>> {
    let with = prop_oneof![
        (-5..5_i64).prop_map(Merge::Add),
        (0..9_u8).prop_map(|n| Merge::Last(n.to_string())),
        (0..30_u8).prop_map(|n| Merge::Ring { key: n.to_string(), rank: vec![], value: n.to_string(), cap: 4 }),
    ];
    let merge = |item: BoxedStrategy<String>| {
        (item, with.clone()).prop_map(|(item, with)| {
            let field = match &with {
                Merge::Add(_) => "add",
                Merge::Last(_) => "last",
                _ => "ring",
            };
            Op::Merge { item: item.into(), field: field.into(), with }
        })
    };
    match kind {
        ObjectKind::List => prop::collection::vec((0..40_u64).prop_map(|index| append(index, 5)), 1..3).boxed(),
        ObjectKind::Document => prop::collection::vec(merge(Just(String::new()).boxed()), 1..4).boxed(),
        _ => prop::collection::vec(merge("[abc]".boxed()), 1..4).boxed(),
    }
}

type History = (ObjectKind, Vec<Change>, Vec<Change>, Vec<(bool, bool, bool)>);

/// Changes, the same in another order, and for each of the latter whether it is repeated, whether a write is taken after it, and whether
/// another owner goes on from what is stored.
fn histories() -> impl Strategy<Value = History> {
    let kinds = prop::sample::select(vec![ObjectKind::Document, ObjectKind::List, ObjectKind::Map]);
    kinds.prop_flat_map(|kind| {
        let one = (0..100_i64, "[a-e]", ops(kind)).prop_map(move |(seconds, id, ops)| {
            let mut change = change(kind, seconds, ops);
            change.stamp.id = id;
            change
        });
        prop::collection::vec(one, 1..60).prop_flat_map(move |changes| {
            let turns = prop::collection::vec(any::<(bool, bool, bool)>(), changes.len());
            (Just(kind), Just(changes.clone()), Just(changes).prop_shuffle(), turns)
        })
    })
}

proptest! {
    #[test]
    fn order_batching_and_repetition_do_not_show((kind, changes, shuffled, turns) in histories()) {
        let mut plain = Object::empty(key(kind));
        for (offset, change) in changes.iter().enumerate() {
            prop_assert_eq!(plain.apply(change, offset as u64, None), Fold::Applied);
        }
        let (mut store, mut object) = (Store::default(), Object::empty(key(kind)));
        for (offset, (change, (repeat, write, hand_over))) in shuffled.iter().zip(&turns).enumerate() {
            object.apply(change, offset as u64, None);
            if *hand_over {
                // Weighed for a write that the budget then refused: what comes after must still be in the next.
                object.weigh();
            }
            if *repeat {
                prop_assert_eq!(object.apply(change, offset as u64, None), Fold::Repeat);
            }
            if *write {
                object.weigh();
                store.put(object.take_write(*repeat).0);
                let stored = store.load(kind);
                prop_assert_eq!(stored.snapshot(), object.snapshot());
                if *hand_over {
                    object = stored;
                }
            }
        }
        store.put(object.take_write(true).0);
        let bytes = |rows: &BTreeMap<String, Row>| -> u64 {
            rows.values().filter_map(|row| row.state.as_ref().map(|state| (row.item.len() + state.len()) as u64)).sum()
        };
        prop_assert_eq!(store.head.bytes, bytes(&store.rows));
        prop_assert_eq!(object.head().revision, changes.len() as u64);
        prop_assert_eq!(object.head().event_id, changes.len() as u64);
        prop_assert_eq!(data(&store.load(kind)), data(&plain));
    }
}

/// Who follows an object, as the web does for a client.
#[derive(Default)]
struct Subscriber {
    seen: u64,
    items: BTreeMap<String, Arc<str>>,
}

impl Subscriber {
    fn take(&mut self, applied: &Applied, stored: &Object) {
        if applied.event_id <= self.seen {
            return;
        }
        if applied.after > self.seen {
            self.items = items(stored);
        } else if applied.removed {
            self.items.clear();
        } else {
            for AppliedRow { item, data, .. } in &applied.rows {
                match data {
                    Some(data) => drop(self.items.insert(item.clone(), Arc::clone(data))),
                    None => drop(self.items.remove(item)),
                }
            }
        }
        self.seen = applied.event_id;
    }
}

/// A document's data or an object's items; nothing where it does not exist.
fn items(object: &Object) -> BTreeMap<String, Arc<str>> {
    let Some(snapshot) = object.snapshot() else { return BTreeMap::new() };
    let document = snapshot.data.map(|data| (String::new(), data));
    document.into_iter().chain(snapshot.items.into_iter().map(|item| (item.item, item.data))).collect()
}

proptest! {
    /// Each write is committed, then published; a keeper may die between, and the next reads again from the first change that was not published.
    #[test]
    fn what_a_dead_keeper_did_not_publish_the_next_one_does(
        (kind, changes, _, turns) in histories(),
        removals in prop::collection::btree_set(0..60_usize, 0..4),
    ) {
        let change_at = |at: usize| match removals.contains(&at) {
            true => Change { ops: vec![Op::Remove], ..changes[at].clone() },
            false => changes[at].clone(),
        };
        let (mut store, mut object, mut subscriber) = (Store::default(), Object::empty(key(kind)), Subscriber::default());
        let (mut published, mut next) = (0, 0);
        for (write, dies, _) in turns {
            object.apply(&change_at(next), next as u64, None);
            next += 1;
            if !write || !object.needs_publish() {
                continue;
            }
            let (write, applied) = object.take_write(true);
            store.put(write);
            if !dies {
                subscriber.take(&applied, &store.load(kind));
                published = next;
                continue;
            }
            // The next owner's first publication comes after the last change that it reads again.
            object = store.load(kind);
            for at in published..next {
                object.apply(&change_at(at), at as u64, None);
            }
        }
        let (write, applied) = object.take_write(true);
        store.put(write);
        subscriber.take(&applied, &store.load(kind));
        prop_assert_eq!(subscriber.items, items(&store.load(kind)));
    }
}

#[test]
fn a_list_items_removal_that_was_not_published_is_when_it_is_read_again() {
    let mut object = Object::empty(key(ObjectKind::List));
    object.apply(&change(ObjectKind::List, 1, vec![append(1, 1)]), 0, None);
    object.take_write(true);
    let second = change(ObjectKind::List, 2, vec![append(2, 1)]);
    object.apply(&second, 1, None);
    let mut store = Store::default();
    store.put(object.take_write(true).0);
    let mut heir = store.load(ObjectKind::List);
    assert_eq!(heir.apply(&second, 1, None), Fold::Repeat);
    let (_, applied) = heir.take_write(true);
    let told: Vec<_> = applied.rows.iter().map(|row| (row.item.clone(), row.data.is_some())).collect();
    assert_eq!((applied.after, told), (1, vec![(index_name(1), false), (index_name(2), true)]));
}
