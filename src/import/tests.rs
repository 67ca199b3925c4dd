//! The engine from file to events: what is made of good rows, what is said about bad ones, and that nothing makes it panic.

use std::io::{self, BufReader, Read};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{BadLine, Fault, Mapping, MappingError, Reason, StartError, Tally, read};

/// What came of a file: the events' JSON, the bad lines, and the tally.
fn import(mapping: &str, file: &[u8]) -> (Vec<Value>, Vec<String>, Tally) {
    let mapping = Mapping::parse(mapping).unwrap();
    let mut reading = read(&mapping, file).unwrap();
    let (mut events, mut bad) = (Vec::new(), Vec::new());
    for result in reading.by_ref() {
        match result {
            Ok(event) => {
                let json: Value = serde_json::from_str(&event.json).unwrap();
                assert_eq!((json["event_id"].as_str(), json["type"].as_str()), (Some(event.event_id.as_str()), Some(event.kind.as_str())));
                events.push(json);
            }
            Err(Fault::Line(line)) => bad.push(line.to_string()),
            Err(Fault::Read(error)) => panic!("{error}"),
        }
    }
    assert_eq!((reading.tally().events, reading.tally().bad), (events.len() as u64, bad.len() as u64));
    (events, bad, reading.tally())
}

/// A mapping of CSV views with more lines for its one event.
fn views(more: &str) -> String {
    format!("format = 'csv'\n[[event]]\ntype = 'product_viewed'\nevent_id = 'v-{{No}}'\n{more}")
}

/// A mapping of CSV orders with more lines before its one event.
fn orders(before: &str, event: &str, items: &str) -> String {
    format!(
        "format = 'csv'\n{before}\n[[event]]\ntype = 'order_completed'\nevent_id = 'o-{{No}}'\nset.'order.id' = '{{No}}'\n{event}\n\
         [event.items]\nproduct_id = '{{P}}'\nquantity = '{{Q}}'\n{items}"
    )
}

/// The mapping files that ship, each with its fixtures.
const SHIPPED: [(&str, &[u8]); 4] = [
    (include_str!("../../mappings/onlineretail.toml"), include_bytes!("../../tests/fixtures/onlineretail.csv")),
    (include_str!("../../mappings/onlineretail.toml"), include_bytes!("../../tests/fixtures/onlineretail_broken.csv")),
    (include_str!("../../mappings/zanbil.toml"), include_bytes!("../../tests/fixtures/zanbil.ndjson")),
    (include_str!("../../mappings/otto.toml"), include_bytes!("../../tests/fixtures/otto.ndjson")),
];

fn expected(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn onlineretail_gives_orders_and_refunds() {
    let (events, bad, tally) = import(SHIPPED[0].0, SHIPPED[0].1);
    assert_eq!(events, expected(include_str!("../../tests/fixtures/onlineretail.events.ndjson")));
    assert_eq!(bad, ["line 15: the quantity is below 1"], "a positive quantity in a refund");
    assert_eq!(tally, Tally { rows: 14, skipped: 2, bad: 1, events: 6, ..Tally::default() });
}

#[test]
fn a_bad_line_leaves_the_rest_of_its_invoice() {
    let (events, bad, _) = import(SHIPPED[1].0, SHIPPED[1].1);
    assert_eq!(
        bad,
        ["line 2: `Quantity` is not a decimal such as 12.99", "line 3: 6 columns where the header has 8", "line 4: text follows a closing quote"]
    );
    assert_eq!(events.len(), 1);
    let price = json!({"amount": "1.015", "currency": "GBP"});
    assert_eq!(events[0]["order"]["items"], json!([{"product_id": "22222A", "name": "SIGN, ENAMEL \"KITCHEN\"", "quantity": 5, "price": price}]));
}

#[test]
fn zanbil_gives_views_searches_and_steps() {
    let (events, bad, tally) = import(SHIPPED[2].0, SHIPPED[2].1);
    assert_eq!(events, expected(include_str!("../../tests/fixtures/zanbil.events.ndjson")));
    assert_eq!(bad, ["line 6: not JSON (column 46)", "line 10: not a JSON object", "line 21: `checkout.step` has no entry in the mapping's table"]);
    assert_eq!((tally.rows, tally.unmatched, tally.skipped), (20, 1, 0));
}

#[test]
fn otto_gives_orders_of_one_millisecond() {
    let (events, bad, _) = import(SHIPPED[3].0, SHIPPED[3].1);
    assert_eq!(events, expected(include_str!("../../tests/fixtures/otto.events.ndjson")));
    assert_eq!(bad, ["line 5: `occurred_at` is not a time in the mapping's format", "line 5: `events` is not an array of objects"]);
}

#[test]
fn importing_again_gives_the_same_bytes() {
    for (mapping, file) in SHIPPED {
        assert_eq!(import(mapping, file), import(mapping, file));
    }
}

#[test]
fn values_by_kind_and_empty_columns() {
    let set = "set.'product.id' = '{P}'\nset.'product.quantity' = '{Q}'\nset.'product.price.amount' = '{Price}'\n\
               set.'product.price.currency' = 'EUR'\nset.'search.results' = '{Q}'\nset.occurred_at = '{At}'\nset.'properties.a.b' = '{No}/{#line}'";
    let file = "No,P,Q,Price,At\n1,p1,7.0,2.550,2026-11-20T10:00:00+01:00\n2,,,,\n,p,1,1,2026-11-20\n4,p,1.5,,\n5,p,,1e3,\n6,p,,,now\n";
    let (events, bad, _) = import(&views(set), file.as_bytes());
    assert_eq!(
        events,
        [
            json!({"event_id": "v-1", "type": "product_viewed", "occurred_at": "2026-11-20T09:00:00Z", "search": {"results": 7}, "properties": {"a": {"b": "1/2"}},
                   "product": {"id": "p1", "quantity": 7, "price": {"amount": "2.550", "currency": "EUR"}}}),
            json!({"event_id": "v-2", "type": "product_viewed", "product": {}, "properties": {"a": {"b": "2/3"}}}),
        ]
    );
    assert_eq!(
        bad,
        [
            "line 4: `event_id` is empty and is required",
            "line 5: `product.quantity` is not a whole number",
            "line 6: `product.price.amount` is not a decimal such as 12.99",
            "line 7: `occurred_at` is not a time in the mapping's format",
        ]
    );
}

#[test]
fn rules_in_order_tables_and_delimiters() {
    let mapping = "format = 'csv'\ndelimiter = ';'\n[[event]]\nwhen = { Kind = '^s' , No = '[0-9]' }\ntype = 'checkout_step'\nevent_id = '{No}'\n\
                   set.'checkout.step' = { from = '{Kind}-{No}', map = { 's-1' = 'contact' } }\n[[event]]\nwhen = { Kind = 'x' }\ntype = 'other'\nevent_id = '{No}'\n";
    let (events, bad, tally) = import(mapping, b"Kind;No\ns;1\ns;2\nsx;x\ny;1\n");
    assert_eq!(
        events,
        [json!({"event_id": "1", "type": "checkout_step", "checkout": {"step": "contact"}}), json!({"event_id": "x", "type": "other"})]
    );
    assert_eq!((bad, tally.unmatched), (vec!["line 3: `checkout.step` has no entry in the mapping's table".to_owned()], 1));
}

#[test]
fn items_change_their_sign_and_need_their_fields() {
    let items = "price = '{E}'\ncurrency = 'JPY'\nnegate = ['quantity', 'price']";
    let (events, bad, _) = import(&orders("", "", items), b"No,P,Q,E\n1,a,-2,-300\n2,a,-1,5\n3,a,1,5\n4,,-1,5\n5,a,,5\n6,a,-1,x\n7,a,-1,\n");
    let item = |quantity: i64, amount: &str| json!([{"product_id": "a", "quantity": quantity, "price": {"amount": amount, "currency": "JPY"}}]);
    let found: Vec<Value> = events.iter().map(|event| event["order"]["items"].clone()).collect();
    assert_eq!(found, [item(2, "300"), item(1, "-5"), json!([{"product_id": "a", "quantity": 1}])]);
    assert_eq!(
        bad,
        [
            "line 4: the quantity is below 1",
            "line 5: `product_id` is empty and is required",
            "line 6: `quantity` is empty and is required",
            "line 7: `price` is not a decimal such as 12.99",
        ]
    );
}

#[test]
fn groups_gather_within_the_window_and_say_when_it_was_too_small() {
    let mapping = orders("group_by = ['No', 'P']\ngroup_window = 2", "", "");
    let (events, bad, _) = import(&mapping, b"No,P,Q\n1,a,1\n2,a,2\n1,a,3\n1,b,4\n9,a,1\n9,b,1\n2,a,5\n,a,1\n");
    let found: Vec<(Value, Value)> = events.iter().map(|e| (e["order"]["id"].clone(), e["order"]["items"].clone())).collect();
    let line = |product: &str, quantity: i64| json!({"product_id": product, "quantity": quantity});
    assert_eq!(
        found,
        [
            (json!("2"), json!([line("a", 2)])),
            (json!("1"), json!([line("a", 1), line("a", 3)])),
            (json!("1"), json!([line("b", 4)])),
            (json!("9"), json!([line("a", 1)])),
            (json!("9"), json!([line("b", 1)])),
        ]
    );
    assert_eq!(
        bad,
        ["line 8: the group it belongs to has ended; `group_window` is too small for this file", "line 9: `group_by` is empty and is required"]
    );
}

/// A reader that fails after its bytes, as a truncated archive does.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self.0.read(to)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        }
    }
}

#[test]
fn a_file_that_breaks_off_gives_no_half_order() {
    let mapping = Mapping::parse(&orders("group_by = 'No'\ngroup_window = 1", "", "")).unwrap();
    let mut reading = read(&mapping, BufReader::new(Failing(b"No,P,Q\n1,a,1\n2,a,1\n2,b,1\n3,"))).unwrap();
    let found: Vec<Result<String, bool>> =
        reading.by_ref().map(|r| r.map(|event| event.event_id).map_err(|fault| matches!(fault, Fault::Read(_)))).collect();
    assert_eq!(found, [Ok("o-1".to_owned()), Err(true)]);
    assert_eq!(reading.tally().dropped_groups, 1);
}

#[test]
fn long_ids_and_large_events_are_refused() {
    let mapping = orders("group_by = 'No'", "", "name = '{N}'");
    let big = "n".repeat(600_000);
    let (events, bad, _) =
        import(&mapping, format!("No,P,Q,N\n1,a,1,{big}\n1,a,1,{big}\n{},a,1,\n2,a,1,{}\n", "9".repeat(254), "n".repeat(1 << 20)).as_bytes());
    assert_eq!(events.len(), 0);
    assert_eq!(
        bad,
        ["line 4: the event id is longer than 255 bytes", "line 5: longer than 1048576 bytes", "line 2: the event is larger than 1048576 bytes"]
    );
}

#[test]
fn a_header_must_have_the_columns() {
    let mapping = Mapping::parse(&views("set.'product.id' = '{StockCode}'")).unwrap();
    let error = |file: &[u8]| read(&mapping, file).err().map(|e| e.to_string());
    assert_eq!(error(b"No,StokCode,X\n"), Some("the file has no column `StockCode`; the nearest is `StokCode`".into()));
    assert_eq!(error(b"No,StockCode,No\n"), Some("the file's header names the column `No` twice".into()));
    assert!(matches!(
        read(&mapping, b"\"No\n".as_slice()).err(),
        Some(StartError::Header(Fault::Line(BadLine { line: 1, reason: Reason::OpenQuote })))
    ));
    assert_eq!(error(b"StockCode,No\n"), None);
    assert_eq!(error(b""), None);
}

#[test]
fn mappings_are_refused_with_the_nearest_known_key() {
    let nearest = |text: &str| match Mapping::parse(text) {
        Err(MappingError::UnknownKey { key, nearest, .. }) => format!("{key} -> {nearest}"),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(nearest(&format!("timezone = 'UTC'\n{}", views(""))), "timezone -> time_zone");
    assert_eq!(nearest(&views("evnt_id = 'x'")), "evnt_id -> event_id");
    assert_eq!(nearest(&views("set.'custmer.id' = 'x'")), "custmer.id -> customer.id");
    assert_eq!(nearest(&views("set.'product.price' = 'x'")), "product.price -> product.price.amount");
    assert_eq!(nearest(&views("set.seq = { form = 'x' }")), "form -> from");
    assert_eq!(nearest(&views("skip = [{ col = 'No', op = '=', value = '' }]")), "col -> column");
    assert_eq!(nearest(&orders("", "", "prize = 'x'")), "prize -> price");
    assert_eq!(nearest(&orders("", "", "negate = ['quantities']")), "quantities -> quantity");
}

#[test]
fn the_manual_shows_a_mapping() {
    let manual = include_str!("../../mappings/README.md");
    let example = manual.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    // `each` stands there beside what is for CSV only.
    assert!(Mapping::parse(example).unwrap_err().to_string().contains("only for `ndjson`"));
    Mapping::parse(&example.replace("each = ", "# each = ")).unwrap();
}

#[test]
fn mappings_with_wrong_values_are_refused_in_words() {
    let refused = |text: &str| Mapping::parse(text).unwrap_err().to_string();
    for (text, part) in [
        ("format = 'csv'".to_owned(), "`event`: expected at least one `[[event]]`"),
        ("format = 'xml'".to_owned(), "`format`: expected `csv` or `ndjson`"),
        ("format = ".to_owned(), "not TOML"),
        (format!("time_zone = 'Europe/Lodnon'\n{}", views("")), "`time_zone`"),
        (format!("time_format = 'european'\n{}", views("")), "`time_format`"),
        (format!("each = 'rows'\n{}", views("")), "only for `ndjson`"),
        (format!("delimiter = '\"'\n{}", views("")), "`delimiter`"),
        (format!("group_window = 0\n{}", views("")), "`group_window`"),
        (format!("group_by = 7\n{}", views("")), "`group_by`"),
        (views("when = { No = '(' }"), "`when.No`: expected a regular expression"),
        (views("skip = [{ column = 'No', op = '~', value = '' }]"), "unknown operator `~`"),
        (views("skip = [{ column = 'No', op = '<', value = 0.5 }]"), "a text or a whole number"),
        (views("set.seq = '{No'"), "does not close it"),
        (views("set.seq = 7"), "expected a template"),
        (views("group_by = 'No'"), "only for an event with `[event.items]`"),
        (views("[event.items]\nproduct_id = 'a'\nquantity = '1'"), "`product_viewed` has no items"),
        (orders("", "", "price = '{E}'"), "given together with `currency`"),
        (orders("", "", "price = '{E}'\ncurrency = 'pound'"), "three upper-case letters"),
        ("format = 'csv'\n[[event]]\ntype = 'a'".to_owned(), "`event_id`: expected a text; it is required"),
        ("format = 'csv'\n[[event]]\ntype = ''\nevent_id = 'a'".to_owned(), "`type`"),
    ] {
        assert!(refused(&text).contains(part), "{text}\n{}", refused(&text));
    }
}

/// Reads to the end without looking at the result.
fn exhaust(mapping: &Mapping, file: &[u8]) -> Tally {
    match read(mapping, file) {
        Ok(mut reading) => {
            reading.by_ref().for_each(drop);
            reading.tally()
        }
        Err(_) => Tally::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), text in "[\\[\\]{}\",:\\\\\n a-z0-9.é-]{0,500}") {
        for (mapping, _) in SHIPPED {
            let mapping = Mapping::parse(mapping).unwrap();
            exhaust(&mapping, &bytes);
            exhaust(&mapping, text.as_bytes());
        }
        drop(Mapping::parse(&String::from_utf8_lossy(&bytes)));
        drop(Mapping::parse(&text));
    }

    #[test]
    fn a_damaged_file_never_panics_and_every_row_is_accounted_for(which in 0..4usize, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let (mapping, file) = SHIPPED[which];
        let mut file = file.to_vec();
        let at = at.index(file.len());
        file[at] = byte;
        if cut {
            file.truncate(at);
        }
        let tally = exhaust(&Mapping::parse(mapping).unwrap(), &file);
        prop_assert!(tally.skipped + tally.unmatched + tally.events <= tally.rows);
    }
}
