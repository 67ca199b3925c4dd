//! API clients' writes: asked of any node that has `web`, decided by whichever keeper owns the object.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Cluster;
use crate::harness::Server;
use crate::mirror::{Elsewhere, assert_same, objects};
use crate::rest::Client;

/// The documents that are written to: enough that each of two keepers comes to own some.
const DOCUMENTS: usize = 24;

fn ask(node: &Server, account: &str, method: &str, path: &str, if_match: Option<u64>, form: &str) -> (u16, Value) {
    let revision = if_match.map(|revision| revision.to_string());
    let mut headers = vec![("authorization", account), ("content-type", "application/x-www-form-urlencoded")];
    headers.extend(revision.as_deref().map(|revision| ("if-match", revision)));
    let answer = node.call(method, &format!("/v1/Services/default/Documents{path}"), &headers, form.as_bytes());
    (answer.status, answer.json())
}

#[test]
fn slow_cluster_a_clients_write_on_any_node_is_answered_by_its_owner() {
    let cluster = Cluster::up();
    let webs = [cluster.lasting("web-a", "web"), cluster.lasting("web-b", "web")];
    let mut keepers = vec![cluster.lasting("keeping-c", "sync")];
    let client = Client::of_demo(&webs[0]);
    let account = client.basic();
    // All of it is mirrored elsewhere, by whichever keeper's process is there.
    let elsewhere = Elsewhere::new();
    let mirror = json!({"to": elsewhere.url(), "objects": ["d*"]}).to_string();
    assert_eq!(webs[0].admin("PUT", "/admin/sites/demo/mirror", mirror.as_bytes()).status, 200);
    for n in 0..DOCUMENTS {
        let (status, made) = ask(&webs[n % 2], account, "POST", "", None, &format!("UniqueName=d{n}&Data=%7B%22n%22%3A0%7D"));
        assert_eq!((status, &made["revision"], &made["data"]), (201, &json!("0"), &json!({"n": 0})), "{made}");
    }
    for round in 0..3_u64 {
        for n in 0..DOCUMENTS {
            let (here, there) = (&webs[n % 2], &webs[(n + 1) % 2]);
            let form = format!("Data=%7B%22n%22%3A{}%7D", round + 1);
            let (status, set) = ask(here, account, "POST", &format!("/d{n}"), Some(round), &form);
            assert_eq!((status, &set["revision"]), (200, &json!((round + 1).to_string())), "{set}");
            let (status, read) = ask(here, account, "GET", &format!("/d{n}"), None, "");
            assert_eq!((status, &read["data"]["n"]), (200, &json!(round + 1)), "who was answered reads what it wrote: {read}");
            let (status, refused) = ask(there, account, "POST", &format!("/d{n}"), Some(round), &form);
            assert_eq!((status, &refused["code"]), (412, &json!(54103)), "one order holds, whichever node is asked: {refused}");
        }
        // Half of the objects go to another owner.
        if round == 0 {
            keepers.push(cluster.lasting("keeping-d", "sync"));
        }
    }
    keepers.remove(0).kill();
    for n in 0..DOCUMENTS {
        let (status, set) = ask(&webs[0], account, "POST", &format!("/d{n}"), None, "Data=%7B%22n%22%3A4%7D");
        assert_eq!((status, &set["data"]), (200, &json!({"n": 4})), "{set}");
    }
    assert_same(|| objects(&client, "/default"), &elsewhere, Duration::from_secs(60));
    // What was written is archived.
    let archiving = cluster.lasting("archiving", "archive");
    webs[0].settle();
    let asked = Instant::now();
    let changed = |report: &str| report.lines().filter(|line| line.contains("object_changed")).count();
    loop {
        let exported = webs[1].get("/v1/export").text();
        if changed(&exported) == DOCUMENTS * 5 {
            break;
        }
        assert!(asked.elapsed() < Duration::from_secs(30), "{} of {} archived", changed(&exported), DOCUMENTS * 5);
        std::thread::sleep(Duration::from_millis(200));
    }
    for node in webs.into_iter().chain(keepers).chain([archiving]) {
        assert!(node.stop().success());
    }
}
