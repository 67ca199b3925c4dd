//! What holds of every request: who may ask, what every answer has, which paths and methods there are, how bodies are read.

use axum::body::Body;
use serde_json::json;

use super::super::testing::{PUBLIC, Server, basic};
use crate::site::Regions;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_asks_by_its_token_or_by_a_key() {
    let server = Server::start().await;
    let key = server.sites.add_sync_key(&super::super::testing::demo()).await.unwrap();
    let get = async |login: Option<&str>| {
        let headers: Vec<(&str, &str)> = login.map(|login| ("authorization", login)).into_iter().collect();
        server.send("GET", "/v1/Services/default", &headers, Body::empty()).await
    };
    for login in [server.credentials.clone(), format!("{}:{}", key.sid, key.secret)] {
        assert_eq!(get(Some(&basic(&login))).await.of(200)["account_sid"], server.account_sid);
    }
    let wrong = [
        None,
        Some(basic(&format!("{}:wrong", server.account_sid))),
        Some(basic(&format!("{}:", server.account_sid))),
        Some(basic(&server.account_sid)),
        Some(basic(&format!("{}:{}", key.sid, server.credentials.split_once(':').unwrap().1))),
        Some(format!("Bearer {}", server.credentials)),
        Some("Basic !".to_owned()),
    ];
    for login in wrong {
        let answer = get(login.as_deref()).await;
        answer.refused(401, 20003);
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"Twilio API\"");
    }
    server.sites.remove_sync_key(&super::super::testing::demo(), &key.sid).await.unwrap();
    get(Some(&basic(&format!("{}:{}", key.sid, key.secret)))).await.refused(401, 20003);
    // Whoever may not ask is not told what is there, nor that a path is none.
    server.send("GET", "/v1/Services/default/Nothing", &[], Body::empty()).await.refused(401, 20003);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_its_headers() {
    let server = Server::start().await;
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    let answers = [
        server.get("/Documents/d").await,
        server.get("/Documents/none").await,
        server.send("GET", "/v1/Services", &[], Body::empty()).await,
        server.serve("OPTIONS", "/v1/Services/default/Documents/d", &[], Body::empty()).await,
        server.delete("/Documents/d").await,
    ];
    assert_eq!(answers.each_ref().map(|answer| answer.status), [200, 404, 401, 204, 204]);
    let mut ids = Vec::new();
    for answer in &answers {
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-methods", "GET, POST, PUT, DELETE, OPTIONS"),
            ("access-control-expose-headers", "ETag"),
            ("access-control-allow-credentials", "true"),
            ("twilio-concurrent-requests", "1"),
        ] {
            assert_eq!(answer.header(name), value);
        }
        assert!(answer.header("access-control-allow-headers").contains("If-Match"));
        let id = answer.header("twilio-request-id").strip_prefix("RQ").unwrap();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        ids.push(id);
        assert!(answer.header("twilio-request-duration").parse::<f64>().unwrap() < 60.0);
        assert_eq!(answer.header("content-type"), if answer.status == 204 { "" } else { "application/json;charset=utf-8" });
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), answers.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_told() {
    let server = Server::start().await;
    let all = futures::future::join_all((0..20).map(|n| async move { n }).map(async |n| {
        let name = n.await.to_string();
        server.post("/Documents", &[("UniqueName", &name)]).await
    }))
    .await;
    let most = all.iter().map(|answer| answer.header("twilio-concurrent-requests").parse::<usize>().unwrap()).max();
    assert!(most.unwrap() > 1, "{most:?}");
    assert_eq!(server.get("/Documents/0").await.header("twilio-concurrent-requests"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_paths_and_methods_are_refused() {
    let server = Server::start().await;
    for path in
        ["/v1/Services/", "/v1/Services/default/", "/v1/Services/default/Queries", "/v1/Services/none/Documents", "/v1/Services/default/Maps/m/"]
    {
        let answer = server.get(path).await;
        answer.refused(404, 20404);
        assert_eq!(answer.json["message"], format!("The requested resource {} was not found", &path[3..]));
    }
    for (method, path, allowed) in [
        ("PUT", "/v1/Services", "GET, POST, OPTIONS"),
        ("PATCH", "/v1/Services/default", "GET, POST, DELETE, OPTIONS"),
        ("DELETE", "/v1/Services/default/Documents", "GET, POST, OPTIONS"),
        ("PUT", "/v1/Services/default/Documents/d", "GET, POST, DELETE, OPTIONS"),
        ("DELETE", "/v1/Services/default/Maps/m/Items", "GET, POST, OPTIONS"),
        ("PUT", "/v1/Services/default/Lists/l/Items/0", "GET, POST, DELETE, OPTIONS"),
        ("PATCH", "/v1/Services/default/Maps/m/Items/k", "GET, POST, PUT, DELETE, OPTIONS"),
        ("GET", "/v1/Services/default/Streams/s/Messages", "POST, OPTIONS"),
        ("POST", "/v1/Services/default/Maps/m/Permissions", "GET, OPTIONS"),
        ("GET", "/v1/Services/default/Maps/m/Batch", "POST, OPTIONS"),
    ] {
        let answer = server.ask(method, path, &[]).await;
        answer.refused(405, 20004);
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    let head = basic(&server.credentials);
    let head = server.serve("HEAD", "/v1/Services/default/Documents", &[("authorization", &head)], Body::empty()).await;
    assert_eq!(head.status, 200);
    let described = server.serve("GET", "/v1/openapi.json", &[], Body::empty()).await;
    assert_eq!((described.status, &described.json["servers"][0]["url"]), (200, &json!(PUBLIC)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_forms_of_bounded_size() {
    let server = Server::start().await;
    let login = basic(&server.credentials);
    let send = async |kind: &str, body: Body| {
        server.send("POST", "/v1/Services/default/Documents", &[("authorization", &login), ("content-type", kind)], body).await
    };
    let form = "application/x-www-form-urlencoded";
    send("Application/X-WWW-Form-Urlencoded; charset=utf-8", "UniqueName=a&Data=%7B%7D".into()).await.of(201);
    server.send("POST", "/v1/Services/default/Documents", &[("authorization", &login)], "UniqueName=b".into()).await.of(201);
    send("application/json", Body::empty()).await.of(201);
    send("application/json", "{\"UniqueName\":\"c\"}".into()).await.refused(400, 20001);
    send(form, "UniqueName=%FF".into()).await.refused(400, 20001);
    send(form, "UniqueName=c&UniqueName=d".into()).await.refused(400, 20001);
    send(form, format!("Data={}", "x".repeat(128 << 10)).into()).await.refused(413, 54006);
    server.get("/Documents/c").await.refused(404, 20404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_another_account_or_region_is_served() {
    let server = Server::start_in(Regions::new("eu", &["us=https://us.example".to_owned()]).unwrap()).await;
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    let far = basic(&server.add_elsewhere().await);
    let get = async |path: &str| server.send("GET", path, &[("authorization", &far)], Body::empty()).await;
    get(&format!("/v1/Services/{}/Documents/d", server.service_sid)).await.refused(404, 20404);
    let elsewhere = get("/v1/Services/default/Documents").await;
    elsewhere.refused(421, 20001);
    assert!(elsewhere.json["message"].as_str().unwrap().contains("https://us.example"));
    let listed = get("/v1/Services").await.of(200);
    assert_eq!(listed["services"].as_array().unwrap().len(), 1);
    assert_ne!(listed["services"][0]["sid"], json!(server.service_sid));
    assert!(listed["meta"]["url"].as_str().unwrap().starts_with(PUBLIC));
}
