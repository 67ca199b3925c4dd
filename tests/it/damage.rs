//! Damaged and cut files: a flipped bit in synced data stops its partition with a clear error while the others serve; a torn tail is cut silently.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::harness::{Server, wait_for};

fn segments(data: &Path, topic: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(data.join("log").join(topic)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn pages(from: usize, to: usize) -> Vec<serde_json::Value> {
    (from..to).map(|n| json!({"event_id": format!("p-{n}"), "type": "page_viewed", "page": {"url": format!("/{n}")}})).collect()
}

#[test]
fn a_flipped_bit_stops_its_partition_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    for n in 0..50 {
        server.accept(&pages(n * 10, n * 10 + 10));
    }
    server.settle();
    assert!(server.stop().success());
    // As if restored from a backup: the readers must read everything again, and meet the damage.
    for entry in fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("objects.db") || name.starts_with("answers.db") {
            fs::remove_file(&path).unwrap();
        } else if name == "archive" {
            fs::remove_dir_all(&path).unwrap();
        }
    }
    let segment = segments(&data, "events").remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    let needle = b"\"p-123\"";
    let at = bytes.windows(5).position(|w| w == &needle[1..6]).expect("the event stands in the segment");
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let server = Server::on(&data, &[]);
    let stopped = || server.get("/readyz").json()["stopped_partitions"].as_array().unwrap().clone();
    // The log knows of it once a reader has met it.
    wait_for("router and archiver say that they stopped there", Duration::from_secs(120), || stopped().len() >= 2);
    let answers: Vec<u16> = (1000..1100).map(|n| server.post(&serde_json::to_vec(&pages(n, n + 1)).unwrap()).status).collect();
    let refused = answers.iter().filter(|status| **status == 503).count();
    let taken = answers.iter().filter(|status| **status == 200).count();
    assert!(refused > 0 && taken > 50 && refused + taken == 100, "one partition of sixteen refuses: {refused} refused, {taken} taken");
    let stopped = stopped();
    assert!(stopped.iter().all(|one| one["partition"] == stopped[0]["partition"] && one["why"].as_str().unwrap().contains("damaged")), "{stopped:?}");
}

#[test]
fn a_torn_tail_is_cut_silently() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    server.accept(&pages(0, 100));
    server.settle();
    server.kill();
    let segment = segments(&data, "events").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes.extend_from_slice(b"half a group that was never synced");
    fs::write(&segment, bytes).unwrap();
    let server = Server::on(&data, &[]);
    server.accept(&pages(100, 120));
    server.settle();
    assert_eq!(server.get("/v1/export?format=ndjson").text().lines().count(), 120);
    server.assert_audit();
}
