//! API clients' writes: asked of any node that has `web`, decided by whichever keeper owns the object.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Cluster;
use crate::harness::Server;
use crate::http::{Answer, again};
use crate::mirror::{Elsewhere, assert_same, objects};
use crate::rest::Client;

/// The documents that are written to: enough that each of two keepers comes to own some.
const DOCUMENTS: usize = 24;

fn ask(node: &Server, account: &str, method: &str, path: &str, if_match: Option<u64>, form: &str) -> (u16, Value) {
    let (answer, _) = ask_again(node, account, method, path, if_match, form);
    (answer.status, answer.json())
}

/// The same, and how often it was asked until an answer came.
fn ask_again(node: &Server, account: &str, method: &str, path: &str, if_match: Option<u64>, form: &str) -> (Answer, usize) {
    let revision = if_match.map(|revision| revision.to_string());
    let mut headers = vec![("authorization", account), ("content-type", "application/x-www-form-urlencoded")];
    headers.extend(revision.as_deref().map(|revision| ("if-match", revision)));
    let mut tries = 0;
    let answer = again(|| {
        tries += 1;
        node.call(method, &format!("/v1/Services/default/Documents{path}"), &headers, form.as_bytes())
    });
    (answer, tries)
}

/// Writes a document with what is to be answered; gives it as it then is, and how often it was asked for. Where a request came to no known end, its repeat may
/// find it done.
fn write(node: &Server, account: &str, name: &str, (path, if_match): (&str, Option<u64>), (form, done): (&str, u16)) -> (Value, usize) {
    let (answer, tries) = ask_again(node, account, "POST", path, if_match, form);
    if tries > 1 && matches!(answer.status, 409 | 412) {
        return (ask(node, account, "GET", &format!("/{name}"), None, "").1, tries);
    }
    assert_eq!(answer.status, done, "{}", answer.text());
    (answer.json(), tries)
}

#[test]
fn slow_cluster_a_clients_write_on_any_node_is_answered_by_its_owner() {
    let cluster = Cluster::up();
    let webs = [cluster.lasting("web-a", "web"), cluster.lasting("web-b", "web")];
    let mut keepers = vec![cluster.lasting("keeping-c", "sync")];
    let client = Client::of_demo(&webs[0]);
    let account = client.basic();
    for n in 0..DOCUMENTS {
        let form = format!("UniqueName=d{n}&Data=%7B%22n%22%3A0%7D");
        let (made, _) = write(&webs[n % 2], account, &format!("d{n}"), ("", None), (&form, 201));
        assert_eq!((&made["revision"], &made["data"]), (&json!("0"), &json!({"n": 0})), "{made}");
    }
    // From now on all of it is mirrored elsewhere, by whichever keeper's process is there.
    let elsewhere = Elsewhere::new();
    let mirror = json!({"to": elsewhere.url(), "objects": ["d*"]}).to_string();
    assert_eq!(webs[0].admin("PUT", "/admin/sites/demo/mirror", mirror.as_bytes()).status, 200);
    for round in 0..3_u64 {
        for n in 0..DOCUMENTS {
            let (here, there) = (&webs[n % 2], &webs[(n + 1) % 2]);
            let form = format!("Data=%7B%22n%22%3A{}%7D", round + 1);
            let (set, _) = write(here, account, &format!("d{n}"), (&format!("/d{n}"), Some(round)), (&form, 200));
            assert_eq!((&set["revision"], &set["data"]["n"]), (&json!((round + 1).to_string()), &json!(round + 1)), "{set}");
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
    let mut changes = 0;
    for n in 0..DOCUMENTS {
        let (set, tries) = write(&webs[0], account, &format!("d{n}"), (&format!("/d{n}"), None), ("Data=%7B%22n%22%3A4%7D", 200));
        assert_eq!(set["data"], json!({"n": 4}), "{set}");
        // Each request that was repeated may have been done.
        let made = 1 + set["revision"].as_str().unwrap().parse::<usize>().unwrap();
        assert!((5..5 + tries).contains(&made), "{made} of {tries}: {set}");
        changes += made;
    }
    assert_same(|| objects(&client, "/default"), &elsewhere, Duration::from_secs(60));
    // What was written is archived.
    let archiving = cluster.lasting("archiving", "archive");
    webs[0].settle();
    let asked = Instant::now();
    let changed = |report: &str| report.lines().filter(|line| line.contains("object_changed")).count();
    loop {
        let exported = webs[1].get("/v1/export").text();
        if changed(&exported) == changes {
            break;
        }
        assert!(asked.elapsed() < Duration::from_secs(30), "{} of {changes} archived", changed(&exported));
        std::thread::sleep(Duration::from_millis(200));
    }
    for node in webs.into_iter().chain(keepers).chain([archiving]) {
        assert!(node.stop().success());
    }
}
