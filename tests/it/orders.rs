//! Business facts over HTTP: one sale told by several channels counts once by the rule, refunds add up, checkouts come back.

use serde_json::{Value, json};

use crate::harness::Server;

const FROM: &str = "2026-03-01T00:00:00Z";
const TO: &str = "2026-03-02T00:00:00Z";

fn sale(channel: &str, units: i64, total: i64) -> Value {
    json!({
        "type": "order_completed", "event_id": format!("o1-{channel}"), "occurred_at": "2026-03-01T10:00:00Z", "source": {"channel": channel},
        "customer": {"id": "c1"}, "checkout": {"id": "ch1"},
        "order": {"id": "o1", "total": {"amount_minor": total, "currency": "EUR"},
                  "items": [{"product_id": "p1", "name": "Mug", "quantity": units, "price": {"amount_minor": 100, "currency": "EUR"}}]}
    })
}

fn refund(id: &str, units: i64) -> Value {
    json!({
        "type": "order_refunded", "event_id": format!("r-{id}"), "occurred_at": "2026-03-01T12:00:00Z", "refund": {"id": id},
        "order": {"id": "o1", "items": [{"product_id": "p1", "quantity": units, "price": {"amount_minor": 100, "currency": "EUR"}}]}
    })
}

fn sold(server: &Server) -> Value {
    server.read(&format!("/v1/reports/top-sold?from={FROM}&to={TO}"))["rows"].clone()
}

/// A server that was told three reports in each order, and then all of them again. Its audit is clean.
fn in_any_order(reports: &[Value; 3], check: impl Fn(&Server, [usize; 3])) {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let server = Server::fresh();
        for index in order {
            server.accept(&[reports[index].clone()]);
        }
        server.accept(reports);
        server.settle();
        check(&server, order);
        server.assert_audit();
    }
}

#[test]
fn one_sale_told_by_three_channels_counts_once_in_any_order() {
    // The webhook's report wins whatever comes first: 3 units, 300.
    let reports = [sale("pixel", 1, 100), sale("server", 2, 200), sale("webhook", 3, 300)];
    in_any_order(&reports, |server, order| {
        let rows = sold(server);
        assert_eq!(rows.as_array().unwrap().len(), 1, "{order:?}: {rows}");
        assert_eq!((&rows[0]["units"], &rows[0]["orders"]), (&json!(3), &json!(1)), "{order:?}: {rows}");
        assert_eq!(rows[0]["revenue"], json!([{"currency": "EUR", "amount_minor": 300}]), "{order:?}");
        let activity = &server.read("/v1/live/maps/product.p1")["items"]["activity"]["data"];
        assert_eq!(activity["sold"], 3, "{order:?}: {activity}");
        assert_eq!(activity["revenue"], json!([{"currency": "EUR", "amount_minor": 300}]), "{order:?}");
    });
}

#[test]
fn a_sale_told_again_by_a_better_channel_counts_for_what_it_says() {
    // The same id and content by pixel and by webhook, and a server's other word between them.
    let reports = [("o1", "pixel", 1), ("o1-server", "server", 2), ("o1", "webhook", 1)].map(|(id, channel, units)| {
        let mut report = sale(channel, units, 100 * units);
        report["event_id"] = id.into();
        report
    });
    in_any_order(&reports, |server, order| {
        let rows = sold(server);
        assert_eq!((&rows[0]["units"], &rows[0]["orders"]), (&json!(1), &json!(1)), "{order:?}: {rows}");
        let activity = &server.read("/v1/live/maps/product.p1")["items"]["activity"]["data"];
        assert_eq!((&activity["sold"], &activity["revenue"]), (&json!(1), &json!([{"currency": "EUR", "amount_minor": 100}])), "{order:?}");
        let orders = &server.read("/v1/live/maps/customer.c1")["items"]["orders"]["data"]["recent"];
        assert_eq!((orders.as_array().unwrap().len(), &orders[0]["units"]), (1, &json!(1)), "{order:?}: {orders}");
        let traced = server.read("/v1/events/o1");
        let mut channels: Vec<&str> = traced["events"].as_array().unwrap().iter().map(|event| event["channel"].as_str().unwrap()).collect();
        channels.sort_unstable();
        assert_eq!(channels, ["pixel", "webhook"], "{order:?}: {traced}");
    });
}

#[test]
fn two_partial_refunds_both_count_and_never_exceed_the_order() {
    let server = Server::fresh();
    server.accept(&[refund("r1", 1), sale("webhook", 3, 300), refund("r2", 1), refund("r2", 1)]);
    server.settle();
    assert_eq!((&sold(&server)[0]["units"], &sold(&server)[0]["orders"]), (&json!(1), &json!(1)));
    server.accept(&[
        json!({"type": "order_refunded", "event_id": "whole", "occurred_at": "2026-03-01T13:00:00Z", "refund": {"id": "r3"}, "order": {"id": "o1"}}),
    ]);
    server.settle();
    assert_eq!(sold(&server)[0]["units"], 0, "a whole refund takes what the others left");
    server.assert_audit();
}

#[test]
fn a_later_step_takes_abandonment_back() {
    let server = Server::fresh();
    let step = |id: &str, checkout: &str, at: &str, step: &str, status: &str| {
        json!({"type": "checkout_step", "event_id": id, "occurred_at": at, "customer": {"id": "c1"},
               "checkout": {"id": checkout, "step": step, "status": status, "value": {"amount_minor": 500, "currency": "EUR"}}})
    };
    server.accept(&[
        step("1", "left", "2026-03-01T10:00:00Z", "contact", "completed"),
        step("2", "left", "2026-03-01T10:01:00Z", "address", "entered"),
        step("3", "bought", "2026-03-01T10:00:00Z", "payment", "entered"),
        json!({"type": "order_completed", "event_id": "4", "occurred_at": "2026-03-01T10:05:00Z", "checkout": {"id": "bought"},
               "order": {"id": "o9", "items": [{"product_id": "p", "quantity": 1}]}}),
    ]);
    server.settle();
    let funnel = server.read(&format!("/v1/reports/checkout-funnel?from={FROM}&to={TO}"));
    let row = |name: &str| funnel["rows"].as_array().unwrap().iter().find(|row| row["step"] == name).cloned().unwrap_or_default();
    assert_eq!((&row("address")["abandoned"], &row("payment")["abandoned"]), (&json!(1), &json!(0)), "{funnel}");
    assert_eq!(row("address")["value_left"], json!([{"currency": "EUR", "amount_minor": 500}]));
    let unfinished = server.read(&format!("/v1/reports/unfinished-purchases?from={FROM}&to={TO}"));
    assert_eq!(unfinished["rows"].as_array().unwrap().len(), 1, "{unfinished}");
    assert_eq!((&unfinished["rows"][0]["checkout_id"], &unfinished["rows"][0]["last_step"]), (&json!("left"), &json!("address")));
    let judged_early = server.read(&format!("/v1/reports/unfinished-purchases?from={FROM}&to={TO}&as_of=2026-03-01T10:20:00Z"));
    assert_eq!(judged_early["rows"], json!([]), "not yet abandoned then");
    let now = jiff::Timestamp::from_microsecond(contrail::event::Clock::system().now().micros()).unwrap();
    server.accept(&[step("5", "left", &now.to_string(), "address", "completed")]);
    server.settle();
    let after = server.read(&format!("/v1/reports/unfinished-purchases?from={FROM}&to={TO}"));
    assert_eq!(after["rows"], json!([]), "taken back");
    server.assert_audit();
}
