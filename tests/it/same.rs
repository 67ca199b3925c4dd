//! The same data, whatever the way it came: twice, shuffled, in other batches, replayed from the first offset, or with stores older than the log.

use std::fs;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde_json::{Map, Value};

use crate::harness::Server;
use crate::{inspect, shop};

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Report rows and object data of a server that is then stopped.
pub(crate) fn told(server: Server, day: &shop::Day, revisions: bool) -> (Value, Map<String, Value>) {
    told_from(server, "embedded", day, revisions)
}

/// The same of one that keeps its objects elsewhere.
pub(crate) fn told_from(server: Server, store: &str, day: &shop::Day, revisions: bool) -> (Value, Map<String, Value>) {
    server.settle();
    let reports = shop::reports(&server, day);
    server.assert_audit();
    let data = server.data.clone();
    assert!(server.stop().success());
    (reports, inspect::objects_of(&data, store, revisions))
}

pub(crate) fn assert_same(left: &(Value, Map<String, Value>), right: &(Value, Map<String, Value>), what: &str) {
    assert_eq!(left.0, right.0, "{what}: reports");
    assert_eq!(left.1.keys().collect::<Vec<_>>(), right.1.keys().collect::<Vec<_>>(), "{what}: objects");
    for (name, object) in &left.1 {
        assert_eq!(Some(object), right.1.get(name), "{what}: {name}");
    }
}

#[test]
fn slow_twice_shuffled_and_in_other_batches_gives_the_same_data() {
    let day = shop::day(11, 6_000);
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let server = Server::on(&first, &[]);
    assert!(server.stop().success());
    // Both have the same site, and so the same keyed hashes.
    copy(&first, &second);
    let server = Server::on(&first, &[]);
    server.accept(&day.events);
    let once = told(server, &day, false);

    let server = Server::on(&second, &[]);
    let mut twice: Vec<Value> = day.events.iter().chain(&day.events).cloned().collect();
    twice.shuffle(&mut rand::rngs::StdRng::seed_from_u64(5));
    for batch in twice.chunks(37) {
        server.accept(batch);
    }
    let other = told(server, &day, false);
    assert_same(&once, &other, "twice and shuffled");
}

#[test]
fn slow_replayed_from_the_first_offset_gives_the_same_data_and_revisions() {
    let day = shop::day(12, 6_000);
    let dir = tempfile::tempdir().unwrap();
    let (live, replayed) = (dir.path().join("live"), dir.path().join("replayed"));
    let server = Server::on(&live, &[]);
    server.accept(&day.events);
    let before = told(server, &day, true);
    // Only the log and the sites: router, keeper and archiver begin at offset 0, and read the router's changes of both runs.
    fs::create_dir_all(&replayed).unwrap();
    copy(&live.join("log"), &replayed.join("log"));
    fs::copy(live.join("sites.db"), replayed.join("sites.db")).unwrap();
    let after = told(Server::on(&replayed, &[]), &day, true);
    assert_same(&before, &after, "replayed");
}

#[test]
fn slow_stores_older_than_the_log_catch_up_to_the_same_data() {
    // Power loss takes the last commits of databases that are synced seldom; the log keeps all it acknowledged.
    let day = shop::day(13, 6_000);
    let dir = tempfile::tempdir().unwrap();
    let (live, lost) = (dir.path().join("live"), dir.path().join("lost"));
    let server = Server::on(&live, &[]);
    let (early, late) = day.events.split_at(day.events.len() / 2);
    server.accept(early);
    server.settle();
    assert!(server.stop().success());
    copy(&live, &lost);
    let server = Server::on(&live, &[]);
    server.accept(late);
    let whole = told(server, &day, true);
    for (what, older) in
        [("objects", &["objects.db"][..]), ("answers", &["answers.db", "archive"][..]), ("both", &["objects.db", "answers.db", "archive"][..])]
    {
        let mixed = dir.path().join(what);
        copy(&live, &mixed);
        for entry in fs::read_dir(&mixed).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if older.iter().any(|prefix| name.starts_with(prefix)) {
                if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
            }
        }
        for entry in fs::read_dir(&lost).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if older.iter().any(|prefix| name.starts_with(prefix)) {
                if entry.path().is_dir() {
                    copy(&entry.path(), &mixed.join(&name))
                } else {
                    fs::copy(entry.path(), mixed.join(&name)).map(drop).unwrap()
                }
            }
        }
        assert_same(&whole, &told(Server::on(&mixed, &[]), &day, true), what);
    }
}
