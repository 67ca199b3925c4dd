//! Documents: life, conditions, lifetimes, listing, rights.

use serde_json::json;

use super::super::testing::{PUBLIC, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_lives() {
    let server = Server::start().await;
    let created = server.post("/Documents", &[("UniqueName", "d"), ("Data", "{\"a\": 1}"), ("Ttl", "60")]).await;
    assert_eq!(created.header("etag"), "\"0\"");
    assert_eq!(created.header("content-type"), "application/json;charset=utf-8");
    let created = created.of(201);
    let sid = created["sid"].as_str().unwrap();
    let url = format!("{PUBLIC}/v1/Services/{}/Documents/{sid}", server.service_sid);
    assert_eq!(
        created,
        json!({
            "sid": sid,
            "unique_name": "d",
            "account_sid": server.account_sid,
            "service_sid": server.service_sid,
            "url": url,
            "links": {"permissions": format!("{url}/Permissions")},
            "revision": "0",
            "data": {"a": 1},
            "date_expires": "2026-11-20T10:01:00Z",
            "date_created": "2026-11-20T10:00:00Z",
            "date_updated": "2026-11-20T10:00:00Z",
            "created_by": "system",
        })
    );
    let read = server.get("/Documents/d").await;
    assert_eq!((read.header("etag"), &read.json), ("\"0\"", &created));
    assert_eq!(server.get(&format!("/Documents/{sid}")).await.of(200), created);
    let by_service_sid = format!("/v1/Services/{}/Documents/{sid}", server.service_sid);
    assert_eq!(server.get(&by_service_sid).await.of(200), created);

    server.clock.set(server.clock.now().plus_seconds(5));
    let updated = server.post(&by_service_sid, &[("Data", "{}"), ("Ttl", "0")]).await;
    assert_eq!(updated.header("etag"), "\"1\"");
    let updated = updated.of(200);
    let mut wanted = created.clone();
    (wanted["revision"], wanted["data"], wanted["date_expires"], wanted["date_updated"]) =
        ("1".into(), json!({}), json!(null), "2026-11-20T10:00:05Z".into());
    assert_eq!(updated, wanted);

    server.delete("/Documents/d").await.of(204);
    for path in ["/Documents/d".to_owned(), format!("/Documents/{sid}")] {
        for answer in [server.get(&path).await, server.post(&path, &[("Data", "{}")]).await, server.delete(&path).await] {
            answer.refused(404, 20404);
            assert_eq!(answer.json["message"], format!("The requested resource /Services/default{path} was not found"));
        }
    }
    let again = server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    assert_ne!(again["sid"], created["sid"], "another life has another SID");
    assert_eq!((&again["data"], &again["revision"], &again["date_expires"]), (&json!({}), &json!("0"), &json!(null)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_are_demanded_in_every_way_that_clients_write_them() {
    let server = Server::start().await;
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    let data = [("Data", "{}")];
    for (demand, revision) in [("0", "1"), ("\"1\"", "2"), ("W/\"2\"", "3"), ("*", "4")] {
        let updated = server.ask_if("POST", "/Documents/d", &data, Some(demand)).await;
        assert_eq!(updated.of(200)["revision"], revision, "{demand}");
    }
    let refused = server.ask_if("POST", "/Documents/d", &data, Some("3")).await;
    refused.refused(412, 54103);
    assert_eq!(refused.json["message"], "The revision of the Document does not match the expected revision");
    for demand in ["x", "-1", "\"0\", \"4\"", ""] {
        server.ask_if("POST", "/Documents/d", &data, Some(demand)).await.refused(400, 54003);
    }
    server.ask_if("DELETE", "/Documents/d", &[], Some("3")).await.refused(412, 54103);
    assert_eq!(server.get("/Documents/d").await.of(200)["revision"], "4", "a refused one changes nothing");
    server.ask_if("POST", "/Documents/none", &data, Some("0")).await.refused(404, 20404);
    server.ask_if("DELETE", "/Documents/d", &[], Some("4")).await.of(204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_document_can_be_is_refused() {
    let server = Server::start().await;
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(16 << 10));
    let largest = format!("{{\"a\":\"{}\"}}", "x".repeat((16 << 10) - 8));
    let (fits, too_long) = ("\u{e9}".repeat(320), "a".repeat(321));
    server.post("/Documents", &[("UniqueName", &fits), ("Data", &largest)]).await.of(201);
    server.post("/Documents", &[("UniqueName", &fits)]).await.refused(409, 54301);
    for (params, status, code) in [
        ([("UniqueName", ""), ("Data", "{}")], 400, 54302),
        ([("UniqueName", too_long.as_str()), ("Data", "{}")], 400, 54302),
        ([("UniqueName", "ET00000000000000000000000000000000"), ("Data", "{}")], 400, 54302),
        ([("UniqueName", "product.sku-1"), ("Data", "{}")], 403, 54007),
        ([("UniqueName", "a"), ("Data", "x")], 400, 54008),
        ([("UniqueName", "a"), ("Data", "[]")], 400, 54008),
        ([("UniqueName", "a"), ("Data", "null")], 400, 54101),
        ([("UniqueName", "a"), ("Data", large.as_str())], 413, 54006),
        ([("UniqueName", "a"), ("Ttl", "31536001")], 400, 54011),
        ([("UniqueName", "a"), ("Ttl", "soon")], 400, 54011),
        ([("UniqueName", "a"), ("Ttl", "-1")], 400, 54011),
    ] {
        server.post("/Documents", &params).await.refused(status, code);
    }
    server.get("/Documents/a").await.refused(404, 20404);
    server.post("/Documents", &[("UniqueName", "a")]).await.of(201);
    server.post("/Documents/a", &[]).await.refused(400, 54010);
    server.post("/Documents/a", &[("Unknown", "1")]).await.refused(400, 54010);
    server.post("/Documents/a", &[("Data", "x")]).await.refused(400, 54008);
    server.post("/Documents/a", &[("Data", "null")]).await.refused(400, 54101);
    server.post("/Documents/a", &[("Ttl", "x")]).await.refused(400, 54011);
    assert_eq!(server.get("/Documents/a").await.of(200)["revision"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_past_its_lifetime_is_not_there() {
    let server = Server::start().await;
    server.post("/Documents", &[("UniqueName", "d"), ("Ttl", "60")]).await.of(201);
    server.post("/Documents/d", &[("Data", "{\"a\":1}")]).await.of(200);
    server.clock.set(server.clock.now().plus_seconds(59));
    assert_eq!(server.get("/Documents/d").await.of(200)["date_expires"], "2026-11-20T10:01:00Z", "a write moves no lifetime");
    server.clock.set(server.clock.now().plus_seconds(1));
    server.get("/Documents/d").await.refused(404, 20404);
    server.post("/Documents/d", &[("Data", "{}")]).await.refused(404, 20404);
    assert_eq!(server.get("/Documents").await.of(200)["documents"], json!([]));
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_listed_with_their_data_page_by_page() {
    let server = Server::start().await;
    for name in ["b", "a", "c", "e", "d"] {
        server.post("/Documents", &[("UniqueName", name), ("Data", &format!("{{\"is\":\"{name}\"}}"))]).await.of(201);
    }
    let unnamed = server.post("/Documents", &[]).await.of(201);
    assert_eq!(unnamed["unique_name"], json!(null));
    let first = server.ask("GET", "/Documents", &[("PageSize", "4")]).await.of(200);
    assert_eq!(first["documents"][0], unnamed);
    assert_eq!(first["documents"][1]["data"], json!({"is": "a"}));
    let at = format!("{PUBLIC}/v1/Services/default/Documents?PageSize=4");
    let next = first["meta"]["next_page_url"].as_str().unwrap().to_owned();
    assert_eq!(
        first["meta"],
        json!({
            "page": 0,
            "page_size": 4,
            "first_page_url": format!("{at}&Page=0"),
            "previous_page_url": null,
            "url": format!("{at}&Page=0"),
            "next_page_url": next,
            "key": "documents",
        })
    );
    let second = server.get(next.strip_prefix(PUBLIC).unwrap()).await.of(200);
    let names: Vec<&str> = second["documents"].as_array().unwrap().iter().map(|document| document["unique_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["d", "e"]);
    let meta = &second["meta"];
    assert_eq!((&meta["page"], &meta["next_page_url"], &meta["url"]), (&json!(1), &json!(null), &json!(next)));
    let back = server.get(meta["previous_page_url"].as_str().unwrap().strip_prefix(PUBLIC).unwrap()).await.of(200);
    assert_eq!(back["documents"], first["documents"]);
    assert_eq!(back["meta"]["previous_page_url"], json!(null), "it is the first one");
    assert_eq!(server.ask("GET", "/Documents", &[("PageSize", "100000")]).await.of(200)["meta"]["page_size"], 100);
    assert_eq!(server.get("/Documents").await.of(200)["meta"]["page_size"], 50);
    for (name, value, code) in [("PageToken", "PTx", 54453), ("PageToken", "", 54453), ("PageSize", "x", 54454), ("Page", "x", 20001)] {
        server.ask("GET", "/Documents", &[(name, value)]).await.refused(400, code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_documents_make_small_pages_and_none_is_left_out() {
    let server = Server::start().await;
    let data = format!("{{\"a\":\"{}\"}}", "x".repeat(16_000));
    let documents: Vec<_> = (0..150).map(|n| json!({"unique_name": format!("d{n:03}"), "data": {"a": "x".repeat(16_000)}})).collect();
    assert!(data.len() > 16_000);
    server.batch("/Batch", &json!({"documents": documents})).await.of(200);
    // Follows the pages one way; gives the last one's address too.
    let follow = async |mut path: String, direction: &str| {
        let mut pages: Vec<Vec<String>> = vec![];
        loop {
            let page = server.get(&path).await.of(200);
            pages.push(page["documents"].as_array().unwrap().iter().map(|document| document["unique_name"].as_str().unwrap().to_owned()).collect());
            match page["meta"][direction].as_str() {
                Some(next) => path = next.strip_prefix(PUBLIC).unwrap().to_owned(),
                None => return (pages, path),
            }
        }
    };
    let (pages, last) = follow("/v1/Services/default/Documents?PageSize=1000".to_owned(), "next_page_url").await;
    let all: Vec<String> = (0..150).map(|n| format!("d{n:03}")).collect();
    assert_eq!(pages.concat(), all);
    assert!(pages.len() == 3 && pages[0].len() < 70, "{pages:?}");
    let (mut back, _) = follow(last, "previous_page_url").await;
    back.reverse();
    assert_eq!(back.concat(), all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_identities_may_do_is_said_read_and_taken_back() {
    let server = Server::start().await;
    for (collection, field) in [("Documents", "document_sid"), ("Lists", "list_sid"), ("Maps", "map_sid")] {
        let sid = server.post(&format!("/{collection}"), &[("UniqueName", "o")]).await.of(201)["sid"].as_str().unwrap().to_owned();
        let at = format!("/{collection}/o/Permissions");
        let rights = [("Read", "true"), ("Write", "false"), ("Manage", "true")];
        let said = server.post(&format!("{at}/bob%40x/y"), &rights).await.of(200);
        let mut wanted = json!({
            "account_sid": server.account_sid,
            "service_sid": server.service_sid,
            "identity": "bob@x/y",
            "read": true,
            "write": false,
            "manage": true,
            "url": format!("{PUBLIC}/v1/Services/{}/{collection}/{sid}/Permissions/bob%40x%2Fy", server.service_sid),
        });
        wanted[field] = sid.as_str().into();
        assert_eq!(said, wanted);
        assert_eq!(server.get(&format!("/{collection}/{sid}/Permissions/bob%40x%2Fy")).await.of(200), wanted);
        server.post(&format!("{at}/alice"), &[("Read", "true"), ("Write", "true"), ("Manage", "true")]).await.of(200);
        let listed = server.ask("GET", &at, &[("PageSize", "1")]).await.of(200);
        assert_eq!((&listed["permissions"][0]["identity"], &listed["meta"]["key"]), (&json!("alice"), &json!("permissions")));
        let next = listed["meta"]["next_page_url"].as_str().unwrap();
        assert!(next.contains("/v1/Services/default/"), "the names asked by are given back: {next}");
        let second = server.get(next.strip_prefix(PUBLIC).unwrap()).await.of(200);
        assert_eq!((&second["permissions"], &second["meta"]["next_page_url"]), (&json!([wanted]), &json!(null)));
        let back = second["meta"]["previous_page_url"].as_str().unwrap();
        assert_eq!(server.get(back.strip_prefix(PUBLIC).unwrap()).await.of(200)["permissions"], listed["permissions"]);
        let changed = server.post(&format!("{at}/alice"), &[("Read", "false"), ("Write", "true"), ("Manage", "false")]).await.of(200);
        assert_eq!((&changed["read"], &changed["write"]), (&json!(false), &json!(true)));
        server.delete(&format!("{at}/alice")).await.of(204);
        server.delete(&format!("{at}/alice")).await.refused(404, 20404);
        server.get(&format!("{at}/alice")).await.refused(404, 20404);
        let nothing = [("Read", "false"), ("Write", "false"), ("Manage", "false")];
        assert_eq!(server.post(&format!("{at}/nobody"), &nothing).await.of(200)["read"], json!(false));
        server.get(&format!("{at}/nobody")).await.refused(404, 20404);

        let (long, longest) = ("a".repeat(257), "a".repeat(256));
        server.post(&format!("{at}/{longest}"), &rights).await.of(200);
        for answer in [
            server.get(&format!("{at}/{long}")).await,
            server.post(&format!("{at}/{long}"), &rights).await,
            server.delete(&format!("{at}/{long}")).await,
        ] {
            answer.refused(400, 54351);
        }
        server.post(&format!("{at}/bob"), &[("Read", "true"), ("Write", "true")]).await.refused(400, 20001);
        server.post(&format!("{at}/bob"), &[("Read", "1"), ("Write", "true"), ("Manage", "true")]).await.refused(400, 20001);
        server.post(&format!("/{collection}/none/Permissions/bob"), &rights).await.refused(404, 20404);
        server.post(&format!("/{collection}/none/Permissions/bob"), &nothing).await.refused(404, 20404);
        server.get(&format!("/{collection}/none/Permissions")).await.refused(404, 20404);
        assert_eq!(server.get(&format!("/{collection}/o")).await.of(200)["revision"], "0", "rights are no change of data");
    }
}
