//! SIGTERM under load: every request that was taken is answered, and everything answered is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{KEY, Server};
use crate::http::Connection;

/// Sends the heads of requests, which are taken; stops the server, which takes no connection any more; and sends the bodies: each is answered with 200. Gives the
/// events' ids.
pub(crate) fn assert_what_was_taken_is_answered(server: Server) -> Vec<String> {
    let bearer = format!("Bearer {KEY}");
    let ids: Vec<String> = (0..4).map(|number| format!("taken-{number}")).collect();
    let bodies: Vec<Vec<u8>> =
        ids.iter().map(|id| json!({"event_id": id, "type": "page_viewed", "page": {"url": "/"}}).to_string().into_bytes()).collect();
    let taken: Vec<Connection> = bodies
        .iter()
        .map(|body| {
            let mut connection = server.connect();
            let length = body.len().to_string();
            let headers = [("authorization", &*bearer), ("content-length", &*length), ("expect", "100-continue")];
            connection.send_head("POST", "/v1/events", &headers).unwrap();
            assert_eq!(connection.head().unwrap().0, 100, "it is taken");
            connection
        })
        .collect();
    let address = server.address.clone();
    let stopping = std::thread::spawn(move || server.stop());
    let asked = Instant::now();
    while Connection::open(&address).is_ok() {
        assert!(asked.elapsed() < Duration::from_secs(60), "it takes connections after the signal");
        std::thread::sleep(Duration::from_millis(5));
    }
    for (mut connection, body) in taken.into_iter().zip(&bodies) {
        connection.send_body(body).unwrap();
        assert_eq!(connection.head().unwrap().0, 200);
    }
    assert!(stopping.join().unwrap().success());
    ids
}

#[test]
fn sigterm_answers_a_request_that_was_taken_before_its_body_came() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let ids = assert_what_was_taken_is_answered(Server::on(&data, &[]));
    assert_kept(&Server::on(&data, &[]), &ids);
}

/// These events are in the archive.
pub(crate) fn assert_kept(server: &Server, ids: &[String]) {
    server.settle();
    let kept = server.get("/v1/export?format=ndjson").text();
    for id in ids {
        assert!(kept.contains(&format!("\"{id}\"")), "{id} was answered with 200 and is not kept");
    }
}

#[test]
fn sigterm_answers_what_it_took_and_keeps_what_it_answered() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    let stopping = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (address, stopping, acknowledged) = (server.address.clone(), Arc::clone(&stopping), Arc::clone(&acknowledged));
            std::thread::spawn(move || {
                let bearer = format!("Bearer {KEY}");
                for number in 0.. {
                    // A new connection each time: refused ones were never taken.
                    let Ok(mut connection) = Connection::open(&address) else { return };
                    let id = format!("d-{sender}-{number}");
                    let body = json!({"event_id": id, "type": "page_viewed", "page": {"url": "/"}}).to_string();
                    let headers = [("authorization", bearer.as_str())];
                    if connection.send("POST", "/v1/events", &headers, body.as_bytes()).is_err() {
                        return;
                    }
                    match connection.head() {
                        Ok((200, _)) => acknowledged.lock().unwrap().push(id),
                        Ok((503, _)) => {}
                        Ok((status, _)) => panic!("status {status}"),
                        // Still in the listener's queue when it closed: never taken. Before the signal that may not be.
                        Err(error) => {
                            assert!(stopping.load(Ordering::SeqCst), "a request was not answered: {error}");
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    let sending = Instant::now();
    while acknowledged.lock().unwrap().len() <= 50 {
        assert!(sending.elapsed() < Duration::from_secs(60), "the load does not get under way");
        std::thread::sleep(Duration::from_millis(5));
    }
    stopping.store(true, Ordering::SeqCst);
    assert!(server.stop().success());
    for sender in senders {
        sender.join().unwrap();
    }
    let acknowledged = Arc::into_inner(acknowledged).unwrap().into_inner().unwrap();
    assert!(acknowledged.len() > 50, "the test sent under load: {}", acknowledged.len());
    let server = Server::on(&data, &[]);
    assert_kept(&server, &acknowledged);
    server.assert_audit();
}
