//! What a new user meets: the first start, its keys and its curl line, and the refusals that keep data safe.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Server, binary};

#[test]
fn the_first_start_prints_keys_once_and_a_curl_line_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let started = |last: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_contrail"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&data).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut told = Vec::new();
        // Nobody reads on after this: the server does not mind.
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            told.push(line);
            if told.last().is_some_and(|line| line.contains(last)) {
                break;
            }
        }
        (child, told)
    };
    let (mut child, told) = started("/v1/reports/");
    let text = told.join("\n");
    assert!(text.contains("ingest key   ck_"), "{text}");
    let from = text.find("curl ").unwrap();
    let line: String = text[from..].split("\n\n").next().unwrap().to_owned();
    let out = Command::new("sh").args(["-c", &format!("{line} -sS")]).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    assert_eq!(answer["accepted"], 1, "{answer}");
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success());
    let (mut child, told) = started("serves on");
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!told.join("\n").contains("ck_"), "keys are shown once");
}

/// Runs a command without given keys to its end: whether it succeeded, its standard output and its standard error.
fn keyless(arguments: &[&str], data: &Path) -> (bool, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_contrail")).args(arguments).arg("--data").arg(data).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_start_that_fails_leaves_no_site_whose_keys_nobody_saw() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (served, _, told) = keyless(&["serve", "--listen", &taken.local_addr().unwrap().to_string()], &data);
    assert!(!served && told.contains("listening"), "{told}");
    std::fs::create_dir(data.join("objects.db")).unwrap();
    let (served, _, told) = keyless(&["serve", "--listen", "127.0.0.1:0"], &data);
    assert!(!served && told.contains("opening the objects"), "{told}");
    std::fs::remove_dir(data.join("objects.db")).unwrap();
    let (listed, out, told) = keyless(&["site", "list"], &data);
    assert!(listed && out.contains("demo"), "{told}");
    for key in ["ingest key   ck_demo_", "browser key  cb_demo_", "read token   cr_demo_"] {
        assert!(told.contains(key), "the command made the site and shows its keys: {told}");
    }
    let (listed, _, told) = keyless(&["site", "list"], &data);
    assert!(listed && told.is_empty(), "keys are shown once: {told}");
}

#[test]
fn only_commands_that_write_make_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for arguments in [&["site", "list"][..], &["site", "rotate", "demo"], &["site", "token", "demo", "--object", "product.p1"], &["audit"]] {
        let (done, _, told) = keyless(arguments, &data);
        assert!(!done && told.contains("no such data directory"), "{arguments:?}: {told}");
        assert!(!data.exists(), "{arguments:?}");
    }
    let (added, out, told) = keyless(&["site", "add", "shop"], &data);
    assert!(added && out.contains("ck_shop_") && told.contains("ck_demo_"), "{told}");
}

#[test]
fn a_site_is_changed_by_command_in_the_running_server_and_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    let allowed = |server: &Server| {
        let answer = server.call("GET", "/v1/live/maps/product.p1", &[("origin", "https://shop.example")], b"");
        answer.header("access-control-allow-origin").is_some()
    };
    let set = |arguments: &[&str]| keyless(&[&["site", "set", "demo"], arguments].concat(), &data);
    assert!(!allowed(&server));
    let (done, _, told) = set(&["--origin", "HTTPS://Shop.example:443/"]);
    assert!(done && allowed(&server), "{told}");
    let (done, out, told) = set(&["--time-zone", "Europe/Berlin"]);
    assert!(done && out.contains("https://shop.example") && out.contains("Europe/Berlin"), "what is not given stays: {out}{told}");
    let (done, _, told) = set(&["--origin", "shop.example"]);
    assert!(!done && told.contains("`shop.example`"), "{told}");
    let (done, _, told) = set(&["--time-zone", "Europe/Lodnon"]);
    assert!(!done && told.contains("Lodnon"), "{told}");
    assert!(!set(&[]).0, "a change of nothing is a slip");
    assert!(server.stop().success());
    let server = Server::on(&data, &[]);
    assert!(allowed(&server));
    let (done, out, told) = set(&["--no-origins"]);
    assert!(done && !allowed(&server) && out.contains("Europe/Berlin"), "{out}{told}");
}

#[test]
fn a_token_lasts_as_long_as_asked_or_is_refused() {
    let server = Server::fresh();
    for (ttl, works) in [("0s", false), ("25h", false), ("1500ms", false), ("1s", true), ("24h", true)] {
        let (done, _, told) = keyless(&["site", "token", "demo", "--object", "product.p1", "--ttl", ttl], &server.data);
        assert_eq!((done, told.contains("second")), (works, !works), "{ttl}: {told}");
    }
}

#[test]
fn beyond_loopback_it_wants_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_contrail"));
    let out = command.args(["serve", "--listen", "0.0.0.0:0", "--data"]).arg(dir.path().join("data")).output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("CONTRAIL_BOOTSTRAP_INGEST_KEY"), "{out:?}");
}

#[test]
fn a_second_process_is_refused_and_commands_find_the_first() {
    let server = Server::fresh();
    let out = binary().args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&server.data).output().unwrap();
    assert!(!out.status.success());
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(told.contains(&format!("process {}", server.pid())), "{told}");
    server.accept(&[json!({"type": "product_viewed", "event_id": "e1", "product": {"id": "p1", "name": "Mug"}, "customer": {"id": "c1"}})]);
    server.settle();
    let run = |arguments: &[&str]| {
        let out = binary().args(arguments).arg("--data").arg(&server.data).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(run(&["report", "top-viewed"]).contains("Mug"));
    assert!(run(&["trace", "e1"]).contains("product.p1"));
    assert!(run(&["export", "--format", "csv"]).contains("e1"));
    assert!(run(&["audit"]).contains("\"clean\": true"));
    let added: serde_json::Value = serde_json::from_str(&run(&["site", "add", "second-shop"])).unwrap();
    assert_eq!(added["site"], "second-shop");
    assert!(run(&["site", "list"]).contains("second-shop"));
    assert!(run(&["site", "rotate", "second-shop"]).contains("ck_second-shop_"));
}

#[test]
fn reading_commands_work_when_nothing_runs() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    server.accept(&[json!({"type": "product_searched", "event_id": "s1", "search": {"query": "Mug", "results": 2}, "customer": {"id": "c1"}})]);
    server.settle();
    assert!(server.stop().success());
    let out = binary().args(["report", "top-searches", "--data"]).arg(&data).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("Mug"), "{out:?}");
    let out = binary().args(["audit", "--data"]).arg(&data).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

#[test]
fn an_unknown_setting_stops_the_start_and_names_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let out = binary().env("CONTRAIL_LISTENN", "x").args(["serve", "--data"]).arg(dir.path()).output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("nearest is `CONTRAIL_LISTEN`"), "{out:?}");
}
