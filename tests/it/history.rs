//! What API clients did to an object, told from the archive after the object itself is gone.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::rest::Client;

/// The actions of a page, and its `next`.
fn actions(page: &Value) -> (Vec<String>, Option<String>) {
    let action = |event: &Value| event["event"]["properties"]["action"].as_str().unwrap().to_owned();
    (page["events"].as_array().unwrap().iter().map(action).collect(), page["next"].as_str().map(str::to_owned))
}

#[test]
fn what_clients_did_to_an_object_is_told_by_its_sid_after_it_is_gone() {
    let server = Server::fresh();
    let client = Client::of_demo(&server);
    let made = client.call("POST", "/default/Documents", &[("UniqueName", "board"), ("Data", r#"{"n":0}"#)], 201);
    let sid = made["sid"].as_str().unwrap().to_owned();
    client.call("POST", "/default/Documents/board", &[("Data", r#"{"n":1}"#)], 200);
    client.call("DELETE", "/default/Documents/board", &[], 204);
    let anew = client.call("POST", "/default/Documents", &[("UniqueName", "board")], 201);
    let map = client.call("POST", "/default/Maps", &[], 201);
    let map = map["sid"].as_str().unwrap().to_owned();
    client.call("POST", &format!("/default/Maps/{map}/Items"), &[("Key", "a/b"), ("Data", "{}")], 201);
    server.settle();

    let history = server.read(&format!("/v1/objects/{sid}/history"));
    assert_eq!(actions(&history), (["document_removed", "document_updated", "document_created"].map(str::to_owned).to_vec(), None));
    let updated = &history["events"][1];
    assert_eq!((&updated["type"], &updated["event"]["properties"]["data"]), (&json!("object_changed"), &json!(r#"{"n":1}"#)));
    assert_eq!(updated["objects"], json!([{"kind": "document", "name": "board", "sid": sid}]));
    let traced = server.read(&format!("/v1/events/{}", updated["event_id"].as_str().unwrap()));
    assert_eq!(traced["events"][0]["objects"], updated["objects"]);
    let (mut paged, mut next) = actions(&server.read(&format!("/v1/objects/{sid}/history?limit=2")));
    assert_eq!(paged.len(), 2);
    while let Some(cursor) = next {
        let (more, then) = actions(&server.read(&format!("/v1/objects/{sid}/history?limit=2&cursor={cursor}")));
        paged.extend(more);
        next = then;
    }
    assert_eq!(paged, actions(&history).0);

    // Another one under the same name has a history of its own; one without a name has none to show.
    let of_anew = server.read(&format!("/v1/objects/{}/history", anew["sid"].as_str().unwrap()));
    assert_eq!(actions(&of_anew).0, ["document_created"]);
    let of_map = server.read(&format!("/v1/objects/{map}/history"));
    assert_eq!(actions(&of_map).0, ["map_item_added", "map_created"]);
    assert_eq!(of_map["events"][0]["objects"], json!([{"kind": "map", "name": null, "sid": map}]));
    assert_eq!(server.read("/v1/objects/ET01/history"), json!({"events": [], "next": null}));
    assert_eq!(server.call("GET", &format!("/v1/objects/{sid}/history"), &[], b"").status, 401);
    assert_eq!(server.call("GET", &format!("/v1/objects/{sid}/history"), &[("authorization", client.basic())], b"").status, 401);
    server.assert_audit();
}

#[test]
fn the_history_of_a_further_services_objects_is_read_by_naming_the_service() {
    let server = Server::fresh();
    let client = Client::of_demo(&server);
    let service = client.call("POST", "", &[("FriendlyName", "second")], 201);
    let service = service["sid"].as_str().unwrap().to_owned();
    let made = client.call("POST", &format!("/{service}/Documents"), &[("UniqueName", "board")], 201);
    let path = format!("/v1/objects/{}/history", made["sid"].as_str().unwrap());
    server.settle();
    assert!(actions(&server.read(&path)).0.is_empty(), "it is another service's");
    assert!(actions(&server.read(&format!("{path}?service=default"))).0.is_empty());
    assert_eq!(actions(&server.read(&format!("{path}?limit=5&service={service}"))).0, ["document_created"]);
    let unknown = server.get(&format!("{path}?service=IS{}", "0".repeat(32)));
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("service_unknown")));
    assert_eq!(server.call("GET", &format!("{path}?service={service}"), &[], b"").status, 401);
}
