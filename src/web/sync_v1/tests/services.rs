//! Services of an account.

use serde_json::json;

use super::super::testing::{PUBLIC, Server};
use crate::sync::Seek;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives() {
    let server = Server::start().await;
    let own = server.get("/v1/Services/default").await.of(200);
    assert_eq!((&own["sid"], &own["unique_name"]), (&json!(server.service_sid), &json!("default")));
    assert_eq!(server.get(&format!("/v1/Services/{}", server.service_sid)).await.of(200), own);
    let made =
        server.post("/v1/Services", &[("FriendlyName", "Second"), ("AclEnabled", "true"), ("ReachabilityDebouncingWindow", "1000")]).await.of(201);
    let sid = made["sid"].as_str().unwrap();
    let url = format!("{PUBLIC}/v1/Services/{sid}");
    let wanted = json!({
        "sid": sid,
        "unique_name": null,
        "account_sid": server.account_sid,
        "friendly_name": "Second",
        "date_created": "2026-11-20T10:00:00Z",
        "date_updated": "2026-11-20T10:00:00Z",
        "url": url,
        "webhook_url": null,
        "webhooks_from_rest_enabled": false,
        "reachability_webhooks_enabled": false,
        "acl_enabled": true,
        "reachability_debouncing_enabled": false,
        "reachability_debouncing_window": 1_000,
        "links": {"documents": format!("{url}/Documents"), "lists": format!("{url}/Lists"), "maps": format!("{url}/Maps"), "streams": format!("{url}/Streams")},
    });
    assert_eq!(made, wanted);
    let at = format!("/v1/Services/{sid}");
    let changes = [
        ("WebhookUrl", "https://shop.example/hook"),
        ("WebhooksFromRestEnabled", "true"),
        ("ReachabilityWebhooksEnabled", "true"),
        ("ReachabilityDebouncingEnabled", "true"),
        ("AclEnabled", "false"),
    ];
    let changed = server.post(&at, &changes).await.of(200);
    assert_eq!(changed["webhook_url"], "https://shop.example/hook");
    for field in ["webhooks_from_rest_enabled", "reachability_webhooks_enabled", "reachability_debouncing_enabled"] {
        assert_eq!(changed[field], json!(true), "{field}");
    }
    assert_eq!((&changed["acl_enabled"], &changed["friendly_name"]), (&json!(false), &json!("Second")));
    assert_eq!(server.post(&at, &[("WebhookUrl", "")]).await.of(200)["webhook_url"], json!(null));

    for path in ["/v1/Services", &at] {
        server.post(path, &[("WebhookUrl", "ftp://shop.example")]).await.refused(400, 54051);
        server.post(path, &[("FriendlyName", "")]).await.refused(400, 54053);
        server.post(path, &[("FriendlyName", &"a".repeat(256))]).await.refused(400, 54053);
        server.post(path, &[("AclEnabled", "yes")]).await.refused(400, 20001);
        server.post(path, &[("ReachabilityDebouncingWindow", "999")]).await.refused(400, 20001);
        server.post(path, &[("ReachabilityDebouncingWindow", "x")]).await.refused(400, 20001);
    }
    server.post(&at, &[]).await.refused(400, 54010);
    server.post("/v1/Services/none", &[("AclEnabled", "true")]).await.refused(404, 20404);
    server.delete("/v1/Services/default").await.refused(403, 54056);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_listed_forth_and_back() {
    let server = Server::start().await;
    let mut sids = vec![server.service_sid.clone()];
    for n in 0..4 {
        server.clock.set(server.clock.now().plus_seconds(1));
        let made = server.post("/v1/Services", &[("FriendlyName", &n.to_string())]).await.of(201);
        sids.push(made["sid"].as_str().unwrap().to_owned());
    }
    let sids_of = |page: &serde_json::Value| -> Vec<String> {
        page["services"].as_array().unwrap().iter().map(|service| service["sid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(sids_of(&server.get("/v1/Services").await.of(200)), sids);
    let first = server.get("/v1/Services?PageSize=2").await.of(200);
    let next = first["meta"]["next_page_url"].as_str().unwrap();
    assert!(next.starts_with(&format!("{PUBLIC}/v1/Services?PageSize=2&PageToken=PT")) && next.ends_with("&Page=1"), "{next}");
    let second = server.get(next.strip_prefix(PUBLIC).unwrap()).await.of(200);
    assert_eq!((sids_of(&first), sids_of(&second)), (sids[..2].to_vec(), sids[2..4].to_vec()));
    let back = server.get(second["meta"]["previous_page_url"].as_str().unwrap().strip_prefix(PUBLIC).unwrap()).await.of(200);
    assert_eq!(sids_of(&back), sids[..2]);
    // A service that is no more cannot be gone on behind.
    server.delete(&format!("/v1/Services/{}", sids[1])).await.of(204);
    server.get(next.strip_prefix(PUBLIC).unwrap()).await.refused(400, 54453);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_service_takes_its_objects_with_it() {
    let server = Server::start().await;
    let made = server.post("/v1/Services", &[]).await.of(201);
    let at = format!("/v1/Services/{}", made["sid"].as_str().unwrap());
    for collection in ["Documents", "Lists", "Maps", "Streams"] {
        server.post(&format!("{at}/{collection}"), &[("UniqueName", "o")]).await.of(201);
        server.post(&format!("{at}/{collection}"), &[]).await.of(201);
        server.post(&format!("/{collection}"), &[("UniqueName", "o")]).await.of(201);
    }
    server.post(&format!("{at}/Maps/o/Items"), &[("Key", "k"), ("Data", "{}")]).await.of(201);
    let site = {
        let account = server.sites.account_of(&super::super::testing::demo()).unwrap();
        server.sites.service(&account, made["sid"].as_str().unwrap()).unwrap().id.clone()
    };
    server.delete(&at).await.of(204);
    server.get(&at).await.refused(404, 20404);
    server.get(&format!("{at}/Maps/o")).await.refused(404, 20404);
    server.delete(&at).await.refused(404, 20404);
    for kind in [crate::event::ObjectKind::Document, crate::event::ObjectKind::List, crate::event::ObjectKind::Map, crate::event::ObjectKind::Stream]
    {
        let left = server.desk.reader.list((&site, kind), "", Seek::First, 10, server.clock.now()).await.unwrap().0;
        assert!(left.is_empty(), "{left:?}");
    }
    server.get("/Maps/o").await.of(200);
}
