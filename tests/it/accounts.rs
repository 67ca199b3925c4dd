//! Accounts of the Sync API by the `contrail site` commands: credentials, keys, access tokens, limits.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::{Server, binary};

/// `contrail site ...`: whether it succeeded, its answer, and what else it said.
fn site(server: &Server, arguments: &[&str]) -> (bool, Value, String) {
    let out = binary().arg("site").args(arguments).arg("--data").arg(&server.data).output().unwrap();
    (out.status.success(), serde_json::from_slice(&out.stdout).unwrap_or_default(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn done(server: &Server, arguments: &[&str]) -> Value {
    let (ok, answer, told) = site(server, arguments);
    assert!(ok, "site {arguments:?}: {told}");
    answer
}

fn refused(server: &Server, arguments: &[&str], why: &str) {
    let (ok, answer, told) = site(server, arguments);
    assert!(!ok && told.contains(why), "site {arguments:?}: {answer} {told}");
}

/// What an access token says of itself.
fn claims(token: &Value) -> Value {
    let part = token.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn a_sites_account_is_shown_and_its_secrets_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    let shown = done(&server, &["sync", "demo"]);
    assert_eq!((&shown["limits"], &shown["keys"], shown["services"].as_array().unwrap().len()), (&json!("open"), &json!([]), 1));
    assert_eq!(shown["services"][0]["sid"], shown["service_sid"]);
    assert!(shown["auth_token"].is_null());
    let secret = |answer: &Value| answer["auth_token"].as_str().unwrap().to_owned();
    let token = secret(&done(&server, &["sync", "demo", "--show-secrets"]));
    assert_eq!(token.len(), 32);
    let rotated = secret(&done(&server, &["sync", "demo", "--rotate-auth-token"]));
    assert_ne!(rotated, token);
    let key = done(&server, &["sync", "demo", "--new-key"]);
    let sid = key["sid"].as_str().unwrap();
    assert!(sid.starts_with("SK") && key["secret"].as_str().unwrap().len() == 64);
    let shown = done(&server, &["sync", "demo", "--show-secrets"]);
    assert_eq!((&shown["keys"], secret(&shown)), (&json!([sid]), rotated));
    assert_eq!(done(&server, &["sync", "demo", "--limits", "twilio"])["limits"], "twilio");
    assert_eq!(done(&server, &["sync", "demo", "--remove-key", sid])["keys"], json!([]));
    refused(&server, &["sync", "demo", "--remove-key", sid], "no API key");
    refused(&server, &["sync", "demo", "--remove-key", "../../rotate"], "no API key");
    refused(&server, &["sync", "none"], "no site");
    refused(&server, &["sync", "demo", "--limits", "none"], "possible values");
    refused(&server, &["sync", "demo", "--new-key", "--rotate-auth-token"], "cannot be used with");
    // And it is there after a restart.
    let before = done(&server, &["sync", "demo", "--show-secrets"]);
    assert!(server.stop().success());
    let server = Server::on(&data, &[]);
    assert_eq!(done(&server, &["sync", "demo", "--show-secrets"]), before);
}

#[test]
fn access_tokens_are_minted_for_an_identity_of_the_account() {
    let server = Server::fresh();
    let shown = done(&server, &["sync", "demo"]);
    let (ok, answer, told) = site(&server, &["token", "demo", "--identity", "alice"]);
    let said = claims(&answer["token"]);
    assert!(ok && told.is_empty(), "{told}");
    assert_eq!(said["grants"], json!({"identity": "alice", "data_sync": {"service_sid": shown["service_sid"]}}));
    assert_eq!((&said["sub"], said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap()), (&shown["account_sid"], 3600));
    let (ok, answer, told) = site(&server, &["token", "demo", "--identity", "alice", "--ttl", "1799s", "--service", "default"]);
    assert!(ok && told.contains("below 30 minutes"), "{told}");
    assert_eq!(claims(&answer["token"])["grants"]["data_sync"]["service_sid"], shown["service_sid"]);
    refused(&server, &["token", "demo", "--identity", "alice", "--service", "IS00"], "no service");
    refused(&server, &["token", "demo", "--identity", ""], "1 to 256 characters");
    for ttl in ["25h", "0s"] {
        refused(&server, &["token", "demo", "--identity", "alice", "--ttl", ttl], "24 hours");
    }
    refused(&server, &["token", "none", "--identity", "alice"], "no site");
    for arguments in [&["--object", "x", "--identity", "alice"][..], &["--object", "x", "--service", "default"], &["--service", "default"], &[]] {
        let (ok, _, told) = site(&server, &[&["token", "demo"], arguments].concat());
        assert!(!ok && (told.contains("cannot be used with") || told.contains("required")), "{arguments:?}: {told}");
    }
    // Asked otherwise, the server refuses the same.
    for body in [
        json!({"ttl_seconds": 60}),
        json!({"object": "x", "identity": "a", "ttl_seconds": 60}),
        json!({"object": "x", "service": "default", "ttl_seconds": 60}),
    ] {
        let answer = server.admin("POST", "/admin/sites/demo/tokens", body.to_string().as_bytes());
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("token_for_what")), "{body}");
    }
}
