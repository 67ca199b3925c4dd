//! Plans for objects that differ, carried out on a model of the other service.

use proptest::prelude::*;

use super::*;

fn item(text: &str) -> Option<Item> {
    Some((text.into(), digest(text)))
}

fn local(kind: ObjectKind, items: &[(&str, &str)]) -> Local {
    Local { kind, items: items.iter().map(|(name, data)| ((*name).to_owned(), item(data))).collect(), is_whole: true }
}

#[test]
fn equal_values_have_equal_digests_however_they_are_written() {
    assert_eq!(digest("{\"a\":1,\"b\":[1.50,\"x\"]}"), digest(" { \"b\" : [ 1.5, \"\\u0078\" ], \"a\" : 1.0 } "));
    assert_eq!((digest("1e2"), digest("-0.0")), (digest("100"), digest("-0")));
    for (one, other) in
        [("1", "\"1\""), ("[1,2]", "[12]"), ("[[1],2]", "[[1,2]]"), ("{\"a\":null}", "{}"), ("0.1", "0.2"), ("{\"a\":{}}", "{\"a\":[]}")]
    {
        assert_ne!(digest(one), digest(other), "{one} {other}");
    }
    assert_eq!(digest("nothing"), digest("nothing"));
}

#[test]
fn an_object_is_made_first_and_a_document_with_its_data() {
    let document = local(ObjectKind::Document, &[("", "{\"n\":1}")]);
    assert_eq!(Remote::Missing.steps(Some(&document), 9), [Step::Create(item("{\"n\":1}"))]);
    let map = local(ObjectKind::Map, &[("a", "1")]);
    let mut there = Remote::Missing;
    assert_eq!(there.steps(Some(&map), 9), [Step::Create(None)]);
    there.note(&Step::Create(None), ObjectKind::Map, None);
    let put = Step::PutItem { key: "a".into(), data: "1".into(), digest: digest("1"), known: false };
    assert_eq!(there.steps(Some(&map), 9), std::slice::from_ref(&put));
    there.note(&put, ObjectKind::Map, None);
    assert_eq!((there.steps(Some(&map), 9), there.steps(None, 9)), (vec![], vec![Step::Remove]));
    there.note(&Step::Remove, ObjectKind::Map, None);
    assert_eq!((&there, there.steps(None, 9)), (&Remote::Missing, vec![]));
}

#[test]
fn what_changed_alone_is_put_and_what_is_not_named_is_left() {
    let map = local(ObjectKind::Map, &[("a", "1"), ("b", "2")]);
    let there = Remote::Named([("a", "1"), ("b", "0"), ("c", "3")].map(|(key, data)| (key.to_owned(), digest(data))).into());
    let put = Step::PutItem { key: "b".into(), data: "2".into(), digest: digest("2"), known: true };
    assert_eq!(there.steps(Some(&map), 9), [Step::RemoveItem { key: "c".into() }, put.clone()]);
    assert_eq!(there.steps(Some(&Local { is_whole: false, ..map }), 9), [put], "of c nothing is said");
    let removed = Local { kind: ObjectKind::Map, items: [("a".to_owned(), None), ("d".to_owned(), None)].into(), is_whole: false };
    assert_eq!(there.steps(Some(&removed), 9), [Step::RemoveItem { key: "a".into() }]);
}

/// What was appended before, by whomever, is not appended again.
#[test]
fn a_list_is_matched_by_its_data_from_the_first_on() {
    let here = local(ObjectKind::List, &[("00", "1"), ("01", "1"), ("02", "2"), ("03", "4")]);
    let there = Remote::list([(5, "1"), (7, "2"), (8, "3"), (9, "1")].map(|(index, data)| (index, digest(data))).into(), Some(&here));
    let append = Step::Append { item: "03".into(), data: "4".into(), digest: digest("4") };
    assert_eq!(there.steps(Some(&here), 9), [Step::RemoveIndex { index: 8 }, append]);
    let changed = Local { kind: ObjectKind::List, items: [("01".to_owned(), item("9"))].into(), is_whole: false };
    let update = Step::UpdateIndex { item: "01".into(), index: 9, data: "9".into(), digest: digest("9") };
    assert_eq!(there.steps(Some(&changed), 9), [Step::RemoveIndex { index: 8 }, update]);
}

#[test]
fn what_was_refused_is_tried_again_once_its_data_changes() {
    let here = local(ObjectKind::List, &[("00", "1")]);
    let mut there = Remote::list(Vec::new(), Some(&here));
    let steps = there.steps(Some(&here), 9);
    there.note(&steps[0], ObjectKind::List, None);
    assert_eq!(there.steps(Some(&here), 9), []);
    let changed = local(ObjectKind::List, &[("00", "2")]);
    assert!(matches!(&there.steps(Some(&changed), 9)[..], [Step::Append { .. }]));
    assert_eq!(there.steps(Some(&local(ObjectKind::List, &[])), 9), [], "it is not there");
}

/// The other service: maps and lists as they are there.
#[derive(Default)]
struct Model {
    named: BTreeMap<String, String>,
    list: BTreeMap<u64, String>,
    next: u64,
}

impl Model {
    fn carry_out(&mut self, step: &Step) -> Option<u64> {
        match step {
            Step::PutItem { key, data, .. } => drop(self.named.insert(key.clone(), data.to_string())),
            Step::RemoveItem { key } => assert!(self.named.remove(key).is_some(), "{key}"),
            Step::Append { data, .. } => {
                self.next += 1;
                self.list.insert(self.next, data.to_string());
                return Some(self.next);
            }
            Step::UpdateIndex { index, data, .. } => *self.list.get_mut(index).unwrap() = data.to_string(),
            Step::RemoveIndex { index } => assert!(self.list.remove(index).is_some(), "{index}"),
            Step::Create(_) | Step::Remove | Step::PutDocument(..) => {}
        }
        None
    }

    fn learn(&self, kind: ObjectKind, here: &Local) -> Remote {
        if kind == ObjectKind::List {
            Remote::list(self.list.iter().map(|(index, data)| (*index, digest(data))).collect(), Some(here))
        } else {
            Remote::Named(self.named.iter().map(|(key, data)| (key.clone(), digest(data))).collect())
        }
    }
}

/// Items by name, and what happens before they are mirrored: how many steps are carried out, and whether what is known is then lost, the answer to the
/// last one with it.
type Turn = (BTreeMap<u8, u8>, usize, bool);

proptest! {
    /// Whatever is cut off and forgotten in between: at the end the other side has each item once.
    #[test]
    fn the_other_side_comes_to_the_same(is_list in any::<bool>(), turns in prop::collection::vec(
        (prop::collection::btree_map(0..8_u8, 0..4_u8, 0..8), 0..6_usize, any::<bool>()), 1..12,
    )) {
        let turns: Vec<Turn> = turns;
        let kind = if is_list { ObjectKind::List } else { ObjectKind::Map };
        let mut model = Model::default();
        let mut there = None;
        let last = turns.len() - 1;
        for (turn, (items, cut, forgets)) in turns.into_iter().enumerate() {
            let items = items.into_iter().map(|(name, data)| (format!("{name:02}"), item(&data.to_string()))).collect();
            let here = Local { kind, items, is_whole: true };
            let known: &mut Remote = there.get_or_insert_with(|| model.learn(kind, &here));
            let cut = if turn == last { usize::MAX } else { cut };
            for step in known.steps(Some(&here), cut) {
                let index = model.carry_out(&step);
                known.note(&step, kind, index);
            }
            if forgets && turn < last {
                there = None;
                continue;
            }
            if turn == last {
                let mut wanted: Vec<String> = here.living().map(|(_, (data, _))| data.to_string()).collect();
                let mut found: Vec<String> = if is_list { model.list.values().cloned().collect() } else { model.named.values().cloned().collect() };
                wanted.sort();
                found.sort();
                prop_assert_eq!(wanted, found);
            }
        }
    }
}
