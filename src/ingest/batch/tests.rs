//! Batches from hostile bodies: nothing panics, and every event of a readable body is accounted for once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::event::{Record, RecordKind, SiteId, Timestamp};

fn sender() -> Sender {
    let site = SiteId::parse("demo").unwrap();
    Sender { site, received_at: Timestamp::from_micros(1_790_000_000_000_000), browser: false, agent: None, delivery: Some("d".into()) }
}

fn read(body: &[u8]) -> Result<Batch, Unreadable> {
    Batch::read(body, &sender(), &Crawlers::default())
}

#[test]
fn hostile_bodies_are_told_what_is_wrong() {
    let deep = |open: &str, close: &str| {
        format!("{{\"type\":\"x\",\"a\":{}1{}}}", open.repeat(3_000_000 / open.len()), close.repeat(3_000_000 / open.len()))
    };
    let keys: String = (0..100_000).map(|n| format!(",\"k{n}\":{n}")).collect();
    for (body, code) in [
        (format!("[{}]", deep("[", "]")), Some("event_too_large")),
        (format!("{{\"type\":\"x\",\"a\":{}1{}}}", "[".repeat(400_000), "]".repeat(400_000)), Some("nested_too_deep")),
        (format!("{{\"type\":\"x\",\"a\":{}1{}}}", "{\"b\":".repeat(64), "}".repeat(64)), Some("nested_too_deep")),
        (format!("{{\"type\":\"x\",\"a\":{}1{}}}", "{\"b\":".repeat(63), "}".repeat(63)), None),
        (format!("{{\"type\":\"x\"{keys}}}"), Some("event_too_large")),
        (format!("{{\"type\":\"x\"{}}}", keys.get(..keys.find(",\"k50000").unwrap()).unwrap()), None),
        (format!("{{\"type\":\"x\",\"a\":\"{}\"}}", "y".repeat(1 << 20)), Some("event_too_large")),
        ("{\"type\":\"x\",\"a\":\"\\u0000\"}".into(), None),
        ("{\"type\":\"x\",\"type\":3}".into(), Some("type_wrong")),
        ("{\"type\":3,\"type\":\"x\"}".into(), None),
        (format!("{{\"type\":\"x\",\"a\":{}}}", "9".repeat(500)), Some("number_too_large")),
        (format!("{{\"type\":\"x\",\"a\":0.{}}}", "9".repeat(5_000)), None),
        ("{\"type\":\"x\",\"a\":\"\\udfff\"}".into(), Some("lone_surrogate")),
    ] {
        let begin = body.get(..60.min(body.len())).unwrap().to_owned();
        let batch = read(body.as_bytes()).unwrap_or_else(|e| panic!("{begin}: {e:?}"));
        assert_eq!(batch.rejected.first().map(|rejected| rejected.code), code, "{begin}");
        assert_eq!(batch.events(), 1);
    }
    assert_eq!(read(b"{\"type\":\"x\0\"}").unwrap_err(), Unreadable::Syntax("no bare control character in a string", 10));
    assert_eq!(read("[".repeat(8 << 20).as_bytes()).map(|_| ()), Err(Unreadable::Syntax("a value", 8 << 20)));
}

proptest! {
    #[test]
    fn every_event_is_accounted_for_once(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{\"type\":\"x\"}", "{\"type\":\"\"}", "{\"type\":\"x\",\"a\":1e999}", "7", "null", "{}", "\"\\ud800\"", "[[]]",
            "{\"type\":\"order_completed\",\"order\":{\"id\":\"o\"},\"checkout\":{\"id\":\"c\"}}",
        ]), 1..12),
        lines in any::<bool>(),
    ) {
        let body = if lines { format!("{{}}\n{}", pieces.join("\n")) } else { format!("[{}]", pieces.join(",")) };
        let expected = pieces.len() + usize::from(lines);
        match read(body.as_bytes()) {
            Ok(mut batch) => {
                prop_assert_eq!(batch.events(), expected);
                let records: Vec<Record> = batch.take_appends().iter().map(|append| Record::decode(&append.value).unwrap()).collect();
                let count = |kind| records.iter().filter(|record| record.kind == kind).count();
                prop_assert_eq!(count(RecordKind::Event), batch.marks.len());
                prop_assert_eq!(count(RecordKind::Quarantine) + batch.lost.len(), batch.rejected.len());
                prop_assert_eq!(batch.assigned.len(), count(RecordKind::Event) + count(RecordKind::Quarantine));
                let refused: Vec<usize> = batch.rejected.iter().map(|rejected| rejected.index).collect();
                let ids: BTreeMap<usize, String> = batch.assigned.iter().map(|assigned| (assigned.index, assigned.event_id.clone())).collect();
                let taken = read(body.as_bytes()).unwrap().into_events();
                prop_assert!(taken.iter().map(|(index, _)| *index).eq((0..expected).filter(|index| !refused.contains(index))));
                prop_assert!(taken.iter().all(|(index, record)| ids[index] == record.event_id), "{:?}", taken);
            }
            Err(why) => prop_assert!(false, "{:?}", why),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\",:\\\\ \nu0-9a-e.]{0,60}") {
        for body in [&bytes[..], text.as_bytes()] {
            drop(read(body));
        }
    }
}
