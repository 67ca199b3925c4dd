//! The reports over hand-made events, with rows worked by hand, and over random ones against a count of the events themselves.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::shop::{Post, Shop, at, hex, post, site, wait};
use super::*;
use crate::event::Channel;

const NOON: &str = "2026-11-20T12:00:00Z";

fn ask(shop: &Shop, report: &str, parameters: &[(&str, &str)]) -> Answer {
    let parameters: Vec<_> = parameters.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let question = Question::parse(report, site(), &parameters, &shop.rules, at(NOON)).unwrap();
    wait(run(&*shop.archive, &shop.rules, &question, at(NOON), at(NOON))).unwrap()
}

fn rows(shop: &Shop, report: &str, parameters: &[(&str, &str)]) -> Value {
    serde_json::to_value(ask(shop, report, parameters).rows).unwrap()
}

fn view(id: &str, when: &str, person: &str, product: &str) -> Post {
    post(id, when, person, json!({"type": "product_viewed", "product": {"id": product}}))
}

fn search(id: &str, when: &str, person: &str, query: &str, results: u64) -> Post {
    post(id, when, person, json!({"type": "product_searched", "search": {"query": query, "results": results}}))
}

fn step(id: &str, when: &str, checkout: &str, step: &str, status: &str, minor: i64) -> Post {
    let value = json!({"amount_minor": minor, "currency": "EUR"});
    post(id, when, "c1", json!({"type": "checkout_step", "checkout": {"id": checkout, "step": step, "status": status, "value": value}}))
}

fn line(product: &str, quantity: i64, minor: i64, currency: &str) -> Value {
    json!({"product_id": product, "quantity": quantity, "price": {"amount_minor": minor, "currency": currency}})
}

fn order(id: &str, when: &str, items: &[Value]) -> Post {
    post(&format!("e-{id}"), when, "c1", json!({"type": "order_completed", "order": {"id": id, "items": items}}))
}

fn refund(id: &str, when: &str, order: &str, items: &[Value]) -> Post {
    post(id, when, "c1", json!({"type": "order_refunded", "refund": {"id": id}, "order": {"id": order, "items": items}}))
}

#[test]
fn searches_count_terms_however_typed() {
    let shop = Shop::new(&[
        search("1", "2026-11-20T09:00:00Z", "c1", "Mug", 12),
        search("2", "2026-11-20T09:01:00Z", "c2", " mug ", 0),
        search("3", "2026-11-20T09:20:00Z", "c1", "MUG", 7),
        search("4", "2026-11-20T09:21:00Z", "c1", "گوشی", 3),
        search("5", "2026-11-20T09:22:00Z", "c1", "bowl", 0),
        search("5", "2026-11-20T09:22:00Z", "c1", "bowl", 0),
    ]);
    assert_eq!(
        rows(&shop, "top-searches", &[]),
        json!([
            {"query": "MUG", "searches": 3, "customers": 2, "results_last": 7},
            {"query": "bowl", "searches": 1, "customers": 1, "results_last": 0},
            {"query": "گوشی", "searches": 1, "customers": 1, "results_last": 3},
        ])
    );
    assert_eq!(
        rows(&shop, "searches-without-results", &[]),
        json!([
            {"query": "bowl", "searches": 1, "customers": 1, "results_last": 0},
            {"query": "MUG", "searches": 1, "customers": 1, "results_last": 7},
        ])
    );
    assert_eq!(rows(&shop, "top-searches", &[("limit", "1"), ("from", "2026-11-20T09:21:00Z")])[0]["query"], "bowl");
}

#[test]
fn edges_cut_cells_exactly() {
    let shop = Shop::new(&[
        view("1", "2026-11-20T09:07:59.999999Z", "c1", "a"),
        view("2", "2026-11-20T09:08:00Z", "c1", "a"),
        view("3", "2026-11-20T09:14:59Z", "c2", "a"),
        view("4", "2026-11-20T09:15:00Z", "c2", "b"),
        view("5", "2026-11-20T09:44:59.999999Z", "c3", "b"),
        view("6", "2026-11-20T09:45:00Z", "c3", "c"),
        view("7", "2026-11-20T09:50:00Z", "c3", "c"),
        view("8", "2026-11-20T09:50:00.000001Z", "c3", "c"),
    ]);
    let counts = |from: &str, to: &str| -> Vec<(String, i64)> {
        match ask(&shop, "top-viewed", &[("from", from), ("to", to)]).rows {
            Rows::Viewed(rows) => rows.into_iter().map(|row| (row.product_id, row.views)).collect(),
            other => panic!("{other:?}"),
        }
    };
    let expect = |list: &[(&str, i64)]| list.iter().map(|(p, n)| ((*p).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(counts("2026-11-20T09:08:00Z", "2026-11-20T09:50:00Z"), expect(&[("a", 2), ("b", 2), ("c", 1)]));
    assert_eq!(counts("2026-11-20T09:15:00Z", "2026-11-20T09:45:00Z"), expect(&[("b", 2)]));
    assert_eq!(counts("2026-11-20T09:46:00Z", "2026-11-20T09:50:00.000001Z"), expect(&[("c", 1)]));
    assert_eq!(counts("2026-11-20T09:14:00Z", "2026-11-20T09:16:00Z"), expect(&[("a", 1), ("b", 1)]));
}

#[test]
fn crawlers_are_left_out_in_or_alone() {
    let shop = Shop::new(&[
        view("1", "2026-11-20T09:00:00Z", "c1", "a"),
        view("2", "2026-11-20T09:01:00Z", "", "a").crawler(),
        view("3", "2026-11-20T11:59:00Z", "", "a").crawler(),
        view("4", "2026-11-20T11:59:30Z", "", "b").crawler(),
        step("5", "2026-11-20T09:01:00Z", "k", "contact", "entered", 100).crawler(),
    ]);
    let views = |bots: &str| rows(&shop, "top-viewed", &[("bots", bots), ("from", "2026-11-20"), ("to", "2026-11-20T11:59:59Z")]);
    assert_eq!(views("exclude"), json!([{"product_id": "a", "name": null, "views": 1, "customers": 1}]));
    assert_eq!(views("include").as_array().unwrap().iter().map(|r| r["views"].as_i64().unwrap()).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(views("only").as_array().unwrap().iter().map(|r| r["views"].as_i64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(rows(&shop, "unfinished-purchases", &[]), json!([]));
    assert_eq!(rows(&shop, "unfinished-purchases", &[("bots", "only")])[0]["checkout_id"], "k");
}

#[test]
fn what_does_not_count_does_not_count_at_edges_either() {
    let shop = Shop::new(&[
        view("1", "2026-11-20T09:01:00Z", "c1", "a"),
        view("1", "2026-11-20T09:01:00Z", "c1", "a"),
        view("1", "2026-11-20T09:02:00Z", "c1", "other"),
        search("2", "2026-11-20T09:03:00Z", "c1", "  ", 0),
        post("3", "2026-11-20T09:04:00Z", "c1", json!({"type": "wish_list", "product": {"id": "a"}})),
    ]);
    let edge = [("from", "2026-11-20T09:00:30Z"), ("to", "2026-11-20T09:05:00Z")];
    assert_eq!(rows(&shop, "top-viewed", &edge), json!([{"product_id": "a", "name": null, "views": 1, "customers": 1}]));
    assert_eq!(rows(&shop, "top-searches", &edge), json!([]));
}

#[test]
fn pages_go_by_path_and_latest_title() {
    let page =
        |id: &str, when: &str, url: &str, title: &str| post(id, when, "c1", json!({"type": "page_viewed", "page": {"url": url, "title": title}}));
    let shop = Shop::new(&[
        page("1", "2026-11-20T09:00:00Z", "https://s.example/%D9%81?x=1", "Old"),
        page("2", "2026-11-20T10:00:00Z", "https://s.example/ف#top", "New"),
        page("3", "2026-11-20T08:00:00Z", "/ف", "Oldest"),
        post("4", "2026-11-20T08:00:00Z", "c9", json!({"type": "product_viewed", "product": {"id": "a"}, "page": {"url": "/ف"}})),
    ]);
    assert_eq!(rows(&shop, "top-pages", &[]), json!([{"path": "/ف", "title": "New", "views": 3, "customers": 1}]));
}

#[test]
fn sales_are_net_of_refunds_each_on_its_own_day() {
    let shop = Shop::new(&[
        order("o1", "2026-11-18T10:00:00Z", &[line("a", 3, 1000, "EUR"), line("b", 1, 500, "EUR")]),
        refund("r1", "2026-11-19T10:07:00Z", "o1", &[line("a", 1, 1000, "EUR")]),
        order("o2", "2026-11-18T10:01:00Z", &[line("a", 1, 1200, "USD")]),
        order("o3", "2026-11-18T10:02:00Z", &[line("c", 4, 100, "EUR")]),
    ]);
    let sold = |day: &str, next: &str, more: &[(&str, &str)]| rows(&shop, "top-sold", &[&[("from", day), ("to", next)], more].concat());
    let both_days = [("from", "2026-11-18"), ("to", "2026-11-20")];
    let a_first_day = json!({"product_id": "a", "name": null, "units": 4, "orders": 2,
        "revenue": [{"currency": "EUR", "amount_minor": 3000}, {"currency": "USD", "amount_minor": 1200}]});
    let b = json!({"product_id": "b", "name": null, "units": 1, "orders": 1, "revenue": [{"currency": "EUR", "amount_minor": 500}]});
    let c = json!({"product_id": "c", "name": null, "units": 4, "orders": 1, "revenue": [{"currency": "EUR", "amount_minor": 400}]});
    assert_eq!(sold("2026-11-18", "2026-11-19", &[]), json!([a_first_day, c, b]), "ties by key");
    let given_back = json!([{"product_id": "a", "name": null, "units": -1, "orders": 0, "revenue": [{"currency": "EUR", "amount_minor": -1000}]}]);
    assert_eq!(sold("2026-11-19", "2026-11-20", &[]), given_back);
    assert_eq!(sold("2026-11-19T10:07:00Z", "2026-11-19T10:07:01Z", &[]), given_back, "at an edge");
    assert_eq!(sold("2026-11-19T10:07:01Z", "2026-11-20", &[]), json!([]));
    let products = |parameters: &[(&str, &str)]| -> Vec<String> {
        let rows = rows(&shop, "top-sold", &[&both_days, parameters].concat());
        rows.as_array().unwrap().iter().map(|row| row["product_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(products(&[]), ["c", "a", "b"]);
    assert_eq!(products(&[("by", "revenue")]), ["a", "b", "c"]);
    assert_eq!(products(&[("by", "revenue"), ("currency", "USD")]), ["a", "b", "c"]);
    assert_eq!(ask(&shop, "top-sold", &[&both_days[..], &[("by", "revenue")]].concat()).currency, Some(Currency::parse("EUR").unwrap()));
}

#[test]
fn one_sale_reported_thrice_counts_once_by_the_best() {
    let report = |id: &str, channel, quantity| Post { channel, ..post(id, "2026-11-20T09:00:00Z", "c1", order_of(quantity)) };
    let order_of_three = [("p", Channel::Pixel, 9), ("w", Channel::Webhook, 2), ("s", Channel::Server, 5)];
    let shop = Shop::new(&order_of_three.map(|(id, channel, quantity)| report(id, channel, quantity)));
    assert_eq!(rows(&shop, "top-sold", &[])[0]["units"], 2);
    assert_eq!(rows(&shop, "top-sold", &[("from", "2026-11-20T08:59:00Z"), ("to", "2026-11-20T09:01:00Z")])[0]["units"], 2);
}

fn order_of(quantity: i64) -> Value {
    json!({"type": "order_completed", "order": {"id": "o", "items": [line("a", quantity, 100, "EUR")]}})
}

#[test]
fn available_in_takes_the_latest_word() {
    let update = |id: &str, when: &str, product: &str, countries: &[&str]| {
        post(id, when, "", json!({"type": "product_updated", "product": {"id": product, "name": product.to_uppercase(), "available_in": countries}}))
    };
    let shop = Shop::new(&[
        update("1", "2026-11-01T09:00:00Z", "a", &["DE", "AT"]),
        update("2", "2026-11-02T09:00:00Z", "b", &["DE"]),
        update("3", "2026-11-03T09:00:00Z", "b", &["FR"]),
        view("4", "2026-11-20T09:00:00Z", "c1", "a"),
        view("5", "2026-11-20T09:00:00Z", "c1", "b"),
        view("6", "2026-11-20T09:00:00Z", "c2", "b"),
        view("7", "2026-11-20T09:00:00Z", "c1", "never-said"),
    ]);
    let names = |country: &str| -> Vec<Value> {
        let rows = rows(&shop, "top-viewed", &[("available_in", country), ("limit", "1")]);
        rows.as_array().unwrap().iter().map(|row| row["name"].clone()).collect()
    };
    assert_eq!(names("DE"), ["A"]);
    assert_eq!(names("fr"), ["B"]);
    assert_eq!(names("US"), Vec::<Value>::new());
}

#[test]
fn the_funnel_says_where_checkouts_stopped() {
    let shop = Shop::new(&[
        // k1 goes all the way; its order completes it.
        step("1", "2026-11-20T09:00:00Z", "k1", "contact", "entered", 100),
        step("2", "2026-11-20T09:01:00Z", "k1", "contact", "completed", 100),
        step("3", "2026-11-20T09:02:00Z", "k1", "payment", "completed", 100),
        post("4", "2026-11-20T09:03:00Z", "c1", json!({"type": "order_completed", "checkout": {"id": "k1"}, "order": {"id": "o1"}})),
        // k2 stops within shipping, though it had completed contact.
        step("5", "2026-11-20T09:00:00Z", "k2", "contact", "completed", 250),
        step("6", "2026-11-20T09:05:00Z", "k2", "shipping", "entered", 300),
        // k3 completed contact and left: at address.
        step("7", "2026-11-20T09:06:00Z", "k3", "contact", "completed", 500),
        // k4 completed payment without an order: at the order itself.
        step("8", "2026-11-20T09:07:00Z", "k4", "payment", "completed", 700),
        // k5 is in a step the shop does not know.
        step("9", "2026-11-20T09:08:00Z", "k5", "gift-wrap", "entered", 50),
        // k6 is young.
        step("10", "2026-11-20T11:45:00Z", "k6", "contact", "entered", 900),
    ]);
    let expected = json!([
        {"step": "contact", "entered": 2, "completed": 3, "abandoned": 0, "value_left": []},
        {"step": "address", "entered": 0, "completed": 0, "abandoned": 1, "value_left": [{"currency": "EUR", "amount_minor": 500}]},
        {"step": "shipping", "entered": 1, "completed": 0, "abandoned": 1, "value_left": [{"currency": "EUR", "amount_minor": 300}]},
        {"step": "payment", "entered": 0, "completed": 2, "abandoned": 0, "value_left": []},
        {"step": "gift-wrap", "entered": 1, "completed": 0, "abandoned": 1, "value_left": [{"currency": "EUR", "amount_minor": 50}]},
        {"step": "(order)", "entered": 0, "completed": 1, "abandoned": 1, "value_left": [{"currency": "EUR", "amount_minor": 700}]},
    ]);
    assert_eq!(rows(&shop, "checkout-funnel", &[]), expected);
    assert_eq!(rows(&shop, "checkout-funnel", &[("from", "2026-11-20T08:59:00Z"), ("to", "2026-11-20T11:59:00Z")]), expected, "from edges");
    let later = rows(&shop, "checkout-funnel", &[("as_of", "2026-11-20T12:15:00.000001Z")]);
    assert_eq!(later[0]["abandoned"], 1, "30 minutes are over");
    assert_eq!(rows(&shop, "checkout-funnel", &[("as_of", "2026-11-20T12:15:00Z")])[0]["abandoned"], 0, "not yet");
}

#[test]
fn a_completion_counts_by_its_order_whoever_else_the_checkout_was() {
    let completion = |id: &str, when: &str, checkout: &str| {
        post(id, when, "c1", json!({"type": "order_completed", "checkout": {"id": checkout}, "order": {"id": id}}))
    };
    // Each checkout is seen once more after its order, by the other sort of shopper.
    let shop = Shop::new(&[
        completion("o1", "2026-11-20T09:03:00Z", "k1"),
        step("1", "2026-11-20T09:04:00Z", "k1", "contact", "entered", 100).crawler(),
        completion("o2", "2026-11-20T09:23:00Z", "k2").crawler(),
        step("2", "2026-11-20T09:24:00Z", "k2", "contact", "entered", 100),
    ]);
    let reached = |from: &str, to: &str, bots: &str| -> Vec<(String, i64, i64)> {
        let rows = rows(&shop, "checkout-funnel", &[("from", from), ("to", to), ("bots", bots)]);
        let reached = rows.as_array().unwrap().iter().filter(|row| row["entered"] != 0 || row["completed"] != 0);
        reached.map(|row| (row["step"].as_str().unwrap().into(), row["entered"].as_i64().unwrap(), row["completed"].as_i64().unwrap())).collect()
    };
    let (entered, ordered) = ([("contact".to_owned(), 1, 0)], [("(order)".to_owned(), 0, 1)]);
    let (first, second) = (("2026-11-20T09:00:00Z", "2026-11-20T09:15:00Z"), ("2026-11-20T09:15:00Z", "2026-11-20T09:30:00Z"));
    for (from, to) in [first, ("2026-11-20T09:00:00Z", "2026-11-20T09:14:00Z"), ("2026-11-20T09:02:00Z", "2026-11-20T09:05:00Z")] {
        assert_eq!((reached(from, to, "exclude"), reached(from, to, "only")), (ordered.to_vec(), entered.to_vec()), "{from} to {to}");
    }
    for (from, to) in [second, ("2026-11-20T09:15:00Z", "2026-11-20T09:29:00Z"), ("2026-11-20T09:22:00Z", "2026-11-20T09:25:00Z")] {
        assert_eq!((reached(from, to, "exclude"), reached(from, to, "only")), (entered.to_vec(), ordered.to_vec()), "{from} to {to}");
    }
}

#[test]
fn unfinished_purchases_are_newest_first_and_taken_back_by_a_later_step() {
    let mut posts = vec![
        step("1", "2026-11-20T09:00:00Z", "kb", "contact", "entered", 100),
        step("2", "2026-11-20T09:00:00Z", "ka", "contact", "entered", 200),
        step("3", "2026-11-20T10:00:00Z", "kc", "address", "completed", 300),
    ];
    let customer = hex(&SiteRules::default().person_hash("c1"));
    let row = |id: &str, last_step: &str, minor: i64, last_at: &str, age: i64| {
        json!({"checkout_id": id, "customer": customer, "last_step": last_step, "value": {"amount_minor": minor, "currency": "EUR"},
            "last_at": last_at, "age_seconds": age})
    };
    let shop = Shop::new(&posts);
    let (kc, ka) = (row("kc", "address", 300, "2026-11-20T10:00:00Z", 7200), row("ka", "contact", 200, "2026-11-20T09:00:00Z", 10_800));
    assert_eq!(rows(&shop, "unfinished-purchases", &[("limit", "2")]), json!([kc, ka]), "ties by key");
    assert_eq!(rows(&shop, "unfinished-purchases", &[("to", "2026-11-20T10:00:00Z"), ("limit", "1")]), json!([ka]));
    posts.push(step("4", "2026-11-20T11:40:00Z", "kc", "address", "entered", 300));
    posts.push(post("5", "2026-11-20T09:10:00Z", "c1", json!({"type": "order_completed", "checkout": {"id": "ka"}, "order": {"id": "o"}})));
    let rows = rows(&Shop::new(&posts), "unfinished-purchases", &[]);
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(rows[0]["checkout_id"], "kb");
}

#[test]
fn an_answer_says_how_fresh_it_is() {
    let shop = Shop::new(&[view("1", "2026-11-20T09:00:00Z", "c1", "a")]);
    let question = Question::new(ReportName::TopViewed, site(), at(NOON));
    let answer = |watermark| wait(run(&*shop.archive, &shop.rules, &question, at(NOON), watermark)).unwrap();
    let fresh = answer(at(NOON));
    assert_eq!((fresh.watermark, fresh.lag_seconds, fresh.exact, fresh.estimates), (at(NOON), 0, true, ["customers"].as_slice()));
    let behind = answer(at("2026-11-20T09:00:01Z"));
    assert_eq!((behind.watermark, behind.lag_seconds), (at("2026-11-20T09:00:01Z"), 3 * 3600 - 1));
}

#[test]
fn an_unreadable_row_at_an_edge_is_said() {
    let mut shop = Shop::new(&[]);
    let mut batch = shop.batch(&[view("1", "2026-11-20T09:01:00Z", "c1", "a")]);
    batch.events[0].body_key = 3;
    shop.write(batch);
    assert!(!ask(&shop, "top-viewed", &[("from", "2026-11-20T09:00:30Z")]).exact);
    assert!(ask(&shop, "top-viewed", &[("from", "2026-11-20T09:00:00Z")]).exact, "the whole cell holds it");
}

#[test]
fn answers_serialise_as_documented_and_flatten_to_csv() {
    let shop = Shop::new(&[
        post("1", "2026-11-20T09:00:00Z", "c1", json!({"type": "product_updated", "product": {"id": "a,1", "name": "A \"big\"\nmug"}})),
        order("o1", "2026-11-20T10:00:00Z", &[line("a,1", 3, 1005, "EUR"), line("b", 1, 500, "JPY")]),
        refund("r1", "2026-11-19T13:00:00Z", "o0", &[line("c", 1, 5, "EUR")]),
    ]);
    let answer = ask(&shop, "top-sold", &[]);
    assert_eq!(
        serde_json::to_value(&answer).unwrap(),
        json!({"report": "top-sold", "site": "demo", "from": "2026-11-19T12:00:00Z", "to": "2026-11-20T12:00:00Z", "watermark": NOON, "lag_seconds": 0,
            "exact": true, "estimates": [], "rows": answer.rows})
    );
    let csv = String::from_utf8(answer.csv().unwrap()).unwrap();
    let lines =
        "product_id,name,units,orders,revenue_EUR,revenue_JPY\r\n\"a,1\",\"A \"\"big\"\"\nmug\",3,1,30.15,\r\nb,,1,1,,500\r\nc,,-1,0,-0.05,\r\n";
    assert_eq!(csv, lines);
}

/// One random event: (kind, minute of the day, person, product, crawler).
fn random_posts() -> impl Strategy<Value = Vec<(u8, i64, u8, u8, bool)>> {
    proptest::collection::vec((0u8..3, 0i64..180 * 60, 0u8..4, 0u8..4, any::<bool>()), 0..60)
}

/// Facts of checkouts, each once: by (checkout, entered | completed | ordered), its second and whether a crawler did it.
fn random_facts() -> impl Strategy<Value = BTreeMap<(u8, u8), (i64, bool)>> {
    proptest::collection::btree_map((0u8..8, 0u8..3), (0i64..180 * 60, any::<bool>()), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_range_of_the_funnel_equals_a_count_of_the_facts(facts in random_facts(), from in 0i64..180 * 60, length in 1i64..180 * 60) {
        let start = at("2026-11-20T03:00:00Z");
        let made = facts.iter().map(|((checkout, fact), (second, crawler))| {
            let (when, checkout) = (start.plus_seconds(*second).to_string(), format!("k{checkout}"));
            let made = match fact {
                0 => step(&format!("e-{checkout}"), &when, &checkout, "contact", "entered", 1),
                1 => step(&format!("c-{checkout}"), &when, &checkout, "contact", "completed", 1),
                _ => post(&checkout, &when, "c1", json!({"type": "order_completed", "order": {"id": checkout}, "checkout": {"id": checkout}})),
            };
            Post { crawler: *crawler, ..made }
        });
        let shop = Shop::new(&made.collect::<Vec<_>>());
        for (bots, admitted) in [("exclude", [false, false]), ("include", [false, true]), ("only", [true, true])] {
            let inside = |second: i64, crawler: bool| from <= second && second < from + length && admitted.contains(&crawler);
            let count = |of| facts.iter().filter(|((_, fact), (second, crawler))| *fact == of && inside(*second, *crawler)).count() as i64;
            let (from, to) = (start.plus_seconds(from).to_string(), start.plus_seconds(from + length).to_string());
            let Rows::Funnel(found) = ask(&shop, "checkout-funnel", &[("from", &from), ("to", &to), ("bots", bots)]).rows else { panic!() };
            let found = |step: &str| found.iter().find(|row| row.step == step).map_or([0, 0], |row| [row.entered, row.completed]);
            prop_assert_eq!([found("contact"), found("(order)")], [[count(0), count(1)], [0, count(2)]], "{}", bots);
        }
    }

    #[test]
    fn any_range_equals_a_count_of_the_events(events in random_posts(), from in 0i64..180 * 60, length in 1i64..180 * 60, bots in 0usize..3) {
        let start = at("2026-11-20T03:00:00Z");
        let mut posts = Vec::new();
        let mut views: BTreeMap<String, (i64, BTreeSet<u8>)> = BTreeMap::new();
        let mut units: BTreeMap<String, i64> = BTreeMap::new();
        for (n, (kind, second, person, product, crawler)) in events.into_iter().enumerate() {
            let when = start.plus_seconds(second).to_string();
            let (who, what) = (format!("c{person}"), format!("p{product}"));
            let inside = from <= second && second < from + length && [!crawler, true, crawler][bots];
            let made = match kind {
                0 | 1 => view(&format!("v{n}"), &when, &who, &what),
                _ => order(&format!("o{n}"), &when, &[line(&what, i64::from(person) + 1, 10, "EUR")]),
            };
            if inside && kind < 2 {
                let seen = views.entry(what).or_default();
                seen.0 += 1;
                seen.1.insert(person);
            } else if inside {
                *units.entry(what).or_default() += i64::from(person) + 1;
            }
            posts.push(Post { crawler, ..made });
        }
        let shop = Shop::new(&posts);
        let (from, to) = (start.plus_seconds(from).to_string(), start.plus_seconds(from + length).to_string());
        let parameters = [("from", from.as_str()), ("to", to.as_str()), ("bots", ["exclude", "include", "only"][bots])];
        let Rows::Viewed(found) = ask(&shop, "top-viewed", &parameters).rows else { panic!() };
        let mut expected: Vec<_> = views.into_iter().map(|(p, (n, who))| (-n, p, who.len() as u64)).collect();
        expected.sort();
        prop_assert_eq!(found.into_iter().map(|r| (-r.views, r.product_id, r.customers)).collect::<Vec<_>>(), expected);
        let Rows::Sold(found) = ask(&shop, "top-sold", &parameters).rows else { panic!() };
        let mut expected: Vec<_> = units.into_iter().map(|(p, n)| (-n, p)).collect();
        expected.sort();
        prop_assert_eq!(found.into_iter().map(|r| (-r.units, r.product_id)).collect::<Vec<_>>(), expected);
    }
}
