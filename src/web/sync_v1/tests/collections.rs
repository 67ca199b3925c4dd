//! Lists, maps and streams, and what is in them.

use serde_json::{Value, json};

use super::super::testing::{PUBLIC, Server};
use crate::event::{ObjectKey, ObjectKind};
use crate::sync::{Feed, Update};

fn keys(page: &Value, field: &str) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| item[field].to_string().trim_matches('"').to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_maps_and_streams_live() {
    let server = Server::start().await;
    for (collection, prefix) in [("Lists", "ES"), ("Maps", "MP"), ("Streams", "TO")] {
        let at = format!("/{collection}");
        let has_revision = collection != "Streams";
        let created = server.post(&at, &[("UniqueName", "o"), ("Ttl", "60")]).await;
        assert_eq!(created.header("etag"), if has_revision { "\"0\"" } else { "" });
        let created = created.of(201);
        let sid = created["sid"].as_str().unwrap();
        assert!(sid.starts_with(prefix));
        let url = format!("{PUBLIC}/v1/Services/{}/{collection}/{sid}", server.service_sid);
        let mut wanted = json!({
            "sid": sid,
            "unique_name": "o",
            "account_sid": server.account_sid,
            "service_sid": server.service_sid,
            "url": url,
            "links": {"items": format!("{url}/Items"), "permissions": format!("{url}/Permissions")},
            "revision": "0",
            "date_expires": "2026-11-20T10:01:00Z",
            "date_created": "2026-11-20T10:00:00Z",
            "date_updated": "2026-11-20T10:00:00Z",
            "created_by": "system",
        });
        if !has_revision {
            wanted.as_object_mut().unwrap().remove("revision");
            wanted["links"] = json!({"messages": format!("{url}/Messages")});
        }
        assert_eq!(created, wanted);
        assert_eq!(server.get(&format!("{at}/o")).await.of(200), wanted);
        assert_eq!(server.get(&at).await.of(200)[collection.to_lowercase()], json!([wanted]));
        server.post(&at, &[("UniqueName", "o")]).await.refused(409, 54301);
        wanted["date_expires"] = json!(null);
        let (ttl, other) = if has_revision { ("CollectionTtl", "Ttl") } else { ("Ttl", "CollectionTtl") };
        let updated = server.post(&format!("{at}/{sid}"), &[(ttl, "0"), (other, "x")]).await.of(200);
        assert_eq!(updated, wanted, "the alias is not looked at, and a lifetime is no change of data");
        server.post(&format!("{at}/o"), &[]).await.refused(400, 54010);
        server.post(&format!("{at}/o"), &[("Data", "{}")]).await.refused(400, 54010);
        server.post(&format!("{at}/o"), &[("Ttl", "x")]).await.refused(400, 54011);
        server.post(&at, &[("UniqueName", "top.sold")]).await.refused(403, 54007);
        if has_revision {
            server.ask_if("DELETE", &format!("{at}/o"), &[], Some("7")).await.refused(412, 54103);
        }
        server.delete(&format!("{at}/o")).await.of(204);
        for answer in [
            server.get(&format!("{at}/{sid}")).await,
            server.delete(&format!("{at}/o")).await,
            server.post(&format!("{at}/o"), &[("Ttl", "1")]).await,
        ] {
            answer.refused(404, 20404);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_counts_its_indexes_and_never_gives_one_twice() {
    let server = Server::start().await;
    let sid = server.post("/Lists", &[("UniqueName", "l")]).await.of(201)["sid"].as_str().unwrap().to_owned();
    for index in 0..3 {
        let added = server.post("/Lists/l/Items", &[("Data", &format!("{{\"n\":{index}}}")), ("ItemTtl", "60"), ("Ttl", "x")]).await;
        assert_eq!(added.header("etag"), "\"0\"");
        assert_eq!(
            added.of(201),
            json!({
                "index": index,
                "account_sid": server.account_sid,
                "service_sid": server.service_sid,
                "list_sid": sid,
                "url": format!("{PUBLIC}/v1/Services/{}/Lists/{sid}/Items/{index}", server.service_sid),
                "revision": "0",
                "data": {"n": index},
                "date_expires": "2026-11-20T10:01:00Z",
                "date_created": "2026-11-20T10:00:00Z",
                "date_updated": "2026-11-20T10:00:00Z",
                "created_by": "system",
            })
        );
    }
    server.delete("/Lists/l/Items/1").await.of(204);
    let next = server.post(&format!("/Lists/{sid}/Items"), &[("Data", "{}")]).await.of(201);
    assert_eq!((&next["index"], &next["date_expires"]), (&json!(4), &json!(null)), "as Sync counts: the list's changes, not its items");
    let updated = server.ask_if("POST", "/Lists/l/Items/0", &[("Data", "{\"n\":9}"), ("CollectionTtl", "3600")], Some("0")).await.of(200);
    assert_eq!((&updated["revision"], &updated["data"]), (&json!("1"), &json!({"n": 9})));
    assert_eq!(server.get("/Lists/l").await.of(200)["date_expires"], "2026-11-20T11:00:00Z");
    let read = server.get("/Lists/l/Items/0").await;
    assert_eq!((read.header("etag"), &read.json), ("\"1\"", &updated));
    server.ask_if("POST", "/Lists/l/Items/0", &[("Data", "{}")], Some("0")).await.refused(412, 54155);
    server.ask_if("DELETE", "/Lists/l/Items/0", &[], Some("0")).await.refused(412, 54155);
    server.ask_if("DELETE", "/Lists/l/Items/0", &[], Some("x")).await.refused(400, 54003);
    assert_eq!(server.post("/Lists/l/Items/0", &[("Ttl", "5")]).await.of(200)["revision"], "1", "a lifetime is no change of data");
    server.ask_if("DELETE", "/Lists/l/Items/0", &[], Some("1")).await.of(204);
    for answer in
        [server.get("/Lists/l/Items/0").await, server.post("/Lists/l/Items/0", &[("Data", "{}")]).await, server.delete("/Lists/l/Items/0").await]
    {
        answer.refused(404, 20404);
    }
    for index in ["x", "-1", "1.5", "18446744073709551615", "99999999999999999999"] {
        server.get(&format!("/Lists/l/Items/{index}")).await.refused(400, 54458);
        server.post(&format!("/Lists/l/Items/{index}"), &[("Data", "{}")]).await.refused(400, 54458);
        server.delete(&format!("/Lists/l/Items/{index}")).await.refused(400, 54458);
    }
    server.post("/Lists/l/Items", &[]).await.refused(400, 54156);
    server.post("/Lists/l/Items", &[("Data", "null")]).await.refused(400, 54156);
    server.post("/Lists/l/Items", &[("Data", "1")]).await.refused(400, 54008);
    server.post("/Lists/l/Items", &[("Data", "{}"), ("CollectionTtl", "-1")]).await.refused(400, 54011);
    server.post("/Lists/l/Items/2", &[]).await.refused(400, 54010);
    server.post("/Lists/l/Items/2", &[("CollectionTtl", "5")]).await.refused(400, 54010);
    server.post("/Lists/none/Items", &[("Data", "{}")]).await.refused(404, 20404);
    server.get("/Lists/none/Items").await.refused(404, 20404);
    server.get("/Lists/none/Items/0").await.refused(404, 20404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maps_items_live_by_key() {
    let server = Server::start().await;
    let sid = server.post("/Maps", &[("UniqueName", "m")]).await.of(201)["sid"].as_str().unwrap().to_owned();
    let added = server.post("/Maps/m/Items", &[("Key", "x/y \u{e9}"), ("Data", "{\"n\":1}")]).await;
    assert_eq!(added.header("etag"), "\"0\"");
    let added = added.of(201);
    assert_eq!(
        added,
        json!({
            "key": "x/y \u{e9}",
            "account_sid": server.account_sid,
            "service_sid": server.service_sid,
            "map_sid": sid,
            "url": format!("{PUBLIC}/v1/Services/{}/Maps/{sid}/Items/x%2Fy%20%C3%A9", server.service_sid),
            "revision": "0",
            "data": {"n": 1},
            "date_expires": null,
            "date_created": "2026-11-20T10:00:00Z",
            "date_updated": "2026-11-20T10:00:00Z",
            "created_by": "system",
        })
    );
    for path in ["/Maps/m/Items/x/y%20%C3%A9".to_owned(), format!("/Maps/{sid}/Items/x%2Fy%20%C3%A9")] {
        assert_eq!(server.get(&path).await.of(200), added, "{path}");
    }
    server.post("/Maps/m/Items", &[("Key", "x/y \u{e9}"), ("Data", "{}")]).await.refused(409, 54208);
    let at = "/Maps/m/Items/x/y%20%C3%A9";
    server.ask_if("POST", at, &[("Data", "{}")], Some("1")).await.refused(412, 54205);
    assert_eq!(server.ask_if("POST", at, &[("Data", "{}")], Some("\"0\"")).await.of(200)["revision"], "1");
    server.ask_if("POST", at, &[("Data", "{}")], Some("a")).await.refused(400, 54003);
    server.ask_if("DELETE", at, &[], Some("0")).await.refused(412, 54205);
    assert_eq!(server.post(at, &[("ItemTtl", "60")]).await.of(200)["date_expires"], "2026-11-20T10:01:00Z");
    assert_eq!(server.get("/Maps/m").await.of(200)["revision"], "2", "its items' changes are the map's");
    server.clock.set(server.clock.now().plus_seconds(60));
    server.get(at).await.refused(404, 20404);
    server.post(at, &[("Data", "{}")]).await.refused(404, 20404);
    server.delete(at).await.refused(404, 20404);
    server.post("/Maps/m/Items", &[("Key", "x/y \u{e9}"), ("Data", "{}")]).await.of(201);
    server.delete(at).await.of(204);

    let (longest, long) = ("\u{e9}".repeat(320), "a".repeat(321));
    server.post("/Maps/m/Items", &[("Key", &longest), ("Data", "{}")]).await.of(201);
    for params in [&[("Data", "{}")][..], &[("Key", ""), ("Data", "{}")], &[("Key", &long), ("Data", "{}")], &[("Key", "a\u{2}"), ("Data", "{}")]] {
        server.post("/Maps/m/Items", params).await.refused(400, 54209);
    }
    server.get(&format!("/Maps/m/Items/{long}")).await.refused(400, 54209);
    server.post("/Maps/m/Items", &[("Key", "a")]).await.refused(400, 54206);
    server.post("/Maps/m/Items", &[("Key", "a"), ("Data", "null")]).await.refused(400, 54206);
    server.post("/Maps/m/Items", &[("Key", "a"), ("Data", "{}"), ("ItemTtl", "x")]).await.refused(400, 54011);
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(16 << 10));
    server.post("/Maps/m/Items", &[("Key", "a"), ("Data", &large)]).await.refused(413, 54006);
    server.post("/Maps/none/Items", &[("Key", "a"), ("Data", "{}")]).await.refused(404, 20404);
    server.post("/Maps/m/Items/a", &[("Data", "{}")]).await.refused(404, 20404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_put_whether_it_is_there_or_not() {
    let server = Server::start().await;
    server.post("/Maps", &[("UniqueName", "m")]).await.of(201);
    let put = async |demand: Option<&str>, params: &[(&str, &str)]| server.ask_if("PUT", "/Maps/m/Items/a/b", params, demand).await;
    put(Some("*"), &[("Data", "{}")]).await.refused(412, 54205);
    put(Some("0"), &[("Data", "{}")]).await.refused(412, 54205);
    let added = put(None, &[("Data", "{\"n\":1}"), ("ItemTtl", "60"), ("CollectionTtl", "120")]).await;
    assert_eq!(added.header("etag"), "\"0\"");
    let added = added.of(201);
    assert_eq!((&added["key"], &added["date_expires"]), (&json!("a/b"), &json!("2026-11-20T10:01:00Z")));
    assert_eq!(server.get("/Maps/m").await.of(200)["date_expires"], "2026-11-20T10:02:00Z");
    assert_eq!(put(None, &[("Data", "{\"n\":2}")]).await.of(200)["revision"], "1");
    assert_eq!(put(Some("1"), &[("Data", "{}")]).await.of(200)["revision"], "2");
    assert_eq!(put(Some("*"), &[("Data", "{}")]).await.of(200)["revision"], "3");
    put(Some("1"), &[("Data", "{}")]).await.refused(412, 54205);
    put(None, &[("Ttl", "5")]).await.refused(400, 54206);
    put(None, &[("Data", "[]")]).await.refused(400, 54008);
    server.ask("PUT", "/Maps/none/Items/a", &[("Data", "{}")]).await.refused(404, 20404);
    server.ask("PUT", "/Lists/none/Items/0", &[("Data", "{}")]).await.refused(405, 20004);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_listed_from_either_end_and_from_any_place() {
    let server = Server::start().await;
    server.post("/Maps", &[("UniqueName", "m")]).await.of(201);
    server.post("/Lists", &[("UniqueName", "l")]).await.of(201);
    let items: Vec<Value> = ["a", "b", "c", "d", "e", "f", "g"].iter().map(|key| json!({"key": key, "data": {}})).collect();
    server.batch("/Maps/m/Batch", &json!({"items": items})).await.of(200);
    for _ in 0..12 {
        server.post("/Lists/l/Items", &[("Data", "{}")]).await.of(201);
    }
    let listed = async |params: &[(&str, &str)]| keys(&server.ask("GET", "/Maps/m/Items", params).await.of(200), "key").concat();
    for (params, wanted) in [
        (&[][..], "abcdefg"),
        (&[("Order", "desc")], "gfedcba"),
        (&[("From", "e")], "efg"),
        (&[("From", "e"), ("Bounds", "exclusive")], "fg"),
        (&[("From", "cc")], "defg"),
        (&[("From", "c"), ("Order", "desc")], "cba"),
        (&[("From", "c"), ("Order", "desc"), ("Bounds", "exclusive")], "ba"),
        (&[("From", "cc"), ("Order", "desc")], "cba"),
        (&[("From", "x")], ""),
        (&[("PageSize", "2")], "ab"),
        (&[("PageSize", "0")], "a"),
    ] {
        assert_eq!(listed(params).await, wanted, "{params:?}");
    }
    for order in ["asc", "desc"] {
        let (mut path, mut forth) = (format!("/v1/Services/default/Maps/m/Items?PageSize=2&From=d&Order={order}"), Vec::new());
        let last = loop {
            let page = server.get(&path).await.of(200);
            forth.push(keys(&page, "key").concat());
            let next = page["meta"]["next_page_url"].as_str().map(|next| next.strip_prefix(PUBLIC).unwrap().to_owned());
            match next {
                Some(next) => path = next,
                None => break page,
            }
        };
        assert_eq!(forth, if order == "asc" { ["de", "fg"] } else { ["dc", "ba"] });
        let back = server.get(last["meta"]["previous_page_url"].as_str().unwrap().strip_prefix(PUBLIC).unwrap()).await.of(200);
        assert_eq!(keys(&back, "key").concat(), forth[0]);
        assert_eq!(back["meta"]["previous_page_url"], Value::Null, "never past where the listing begins");
        assert!(back["meta"]["first_page_url"].as_str().unwrap().ends_with(&format!("?From=d&Bounds=inclusive&Order={order}&PageSize=2&Page=0")));
    }
    let list = async |params: &[(&str, &str)]| keys(&server.ask("GET", "/Lists/l/Items", params).await.of(200), "index").join(" ");
    assert_eq!(list(&[("PageSize", "3"), ("From", "8")]).await, "8 9 10", "by number");
    assert_eq!(list(&[("PageSize", "3"), ("Order", "desc")]).await, "11 10 9");
    for (name, value, code) in [
        ("Order", "up", 54451),
        ("Bounds", "all", 54452),
        ("From", "a", 54458),
        ("PageToken", "x", 54453),
        ("PageSize", "x", 54454),
        ("Page", "-1", 20001),
    ] {
        server.ask("GET", "/Lists/l/Items", &[(name, value)]).await.refused(400, code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_told_and_not_kept() {
    let server = Server::start().await;
    server.post("/Streams", &[("UniqueName", "s")]).await.of(201);
    let key = ObjectKey { site: super::super::testing::demo(), kind: ObjectKind::Stream, name: "s".into() };
    let mut told = server.feed.subscribe(&key).await.unwrap();
    let sent = server.post("/Streams/s/Messages", &[("Data", "{\"a\": 1}")]).await;
    assert_eq!(sent.header("etag"), "");
    let sent = sent.of(201);
    let sid = sent["sid"].as_str().unwrap();
    assert_eq!(sent, json!({"sid": sid, "data": {"a": 1}}));
    assert!(sid.len() == 34 && sid.starts_with("TZ") && sid[2..].bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    let Update::Write(write) = told.next().await else { panic!("nothing told") };
    assert_eq!((write.rows[0].item.as_str(), write.rows[0].data.as_deref()), (sid, Some("{\"a\": 1}")));
    assert_ne!(server.post("/Streams/s/Messages", &[("Data", "{}")]).await.of(201)["sid"], sid);
    server.get("/Streams/s/Messages").await.refused(405, 20004);
    server.post("/Streams/s/Messages", &[]).await.refused(400, 54251);
    server.post("/Streams/s/Messages", &[("Data", "null")]).await.refused(400, 54251);
    server.post("/Streams/s/Messages", &[("Data", "x")]).await.refused(400, 54008);
    let (large, largest) = (format!("{{\"a\":\"{}\"}}", "x".repeat(4_089)), format!("{{\"a\":\"{}\"}}", "x".repeat(4_088)));
    server.post("/Streams/s/Messages", &[("Data", &large)]).await.refused(413, 54006);
    server.post("/Streams/s/Messages", &[("Data", &largest)]).await.of(201);
    server.post("/Streams/none/Messages", &[("Data", "{}")]).await.refused(404, 20404);
    server.get("/Streams/s/Permissions").await.refused(404, 20404);
}
