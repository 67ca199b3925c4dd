//! Power lost at any moment under load, log and databases together: the shipped binary runs with every change of its files recorded, and starts
//! again on what a disk may have kept of them at that moment. Nothing acknowledged is lost, nothing counts twice, revisions equal changes, and what
//! is sent again completes the day.

mod disk;
mod load;
mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, mpsc};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};

use self::disk::{Disk, LOSSES, Loss};
use self::load::{Load, PARTS, ids};
use self::record::{Op, Record};
use crate::harness::Server;
use crate::{inspect, shop};

const EVENTS: u64 = 3_000;
/// Cuts checked at a time.
const CHECKERS: usize = 3;
/// One in so many is sent the day again.
const COMPLETED: usize = 8;

/// Where the power goes between two positions of a record: anywhere, and more often than by chance beside a change of each rare kind.
fn cuts(record: &Path, from: u64, to: u64, count: usize, random: &mut StdRng) -> Vec<(u64, Loss)> {
    let (mut record, mut kinds) = (Record::open(record), BTreeMap::<&str, Vec<[u64; 2]>>::new());
    let mut before = 0;
    while record.read < to
        && let Some(op) = record.next()
    {
        let kind = match op {
            Op::Root { .. } => "processes",
            Op::Create { .. } => "files made",
            Op::Write { .. } => "writes",
            Op::Resize { .. } => "lengths set",
            Op::Sync { .. } => "syncs",
            Op::MakeDir { .. } => "directories made",
            Op::Rename { .. } => "renames",
            Op::Remove { .. } => "removals",
        };
        if before >= from {
            kinds.entry(kind).or_default().push([before, record.read]);
        }
        before = record.read;
    }
    println!("to {to}: {:?}", kinds.iter().map(|(kind, ops)| (*kind, ops.len())).collect::<Vec<_>>());
    let (rare, all): (Vec<&Vec<[u64; 2]>>, Vec<&[u64; 2]>) = (kinds.values().collect(), kinds.values().flatten().collect());
    let cut = |number: usize| {
        let op = if number.is_multiple_of(2) { *all.choose(random).unwrap() } else { rare.choose(random).unwrap().choose(random).unwrap() };
        (*op.choose(random).unwrap(), *LOSSES.choose(random).unwrap())
    };
    let mut cuts: Vec<(u64, Loss)> = (0..count).map(cut).collect();
    cuts.sort_by_key(|(at, _)| *at);
    cuts
}

/// A disk after its power went, and what was acknowledged before.
struct Cut {
    /// For messages.
    name: String,
    dir: PathBuf,
    acknowledged: BTreeSet<String>,
    /// Whether the day is sent again.
    completed: bool,
}

/// Live objects by their names.
type Objects = Map<String, Value>;

/// Starts on what is left, and compares; where asked sends the day again, compares, and gives the live objects.
fn check(cut: &Cut, day: &shop::Day) -> Option<Objects> {
    let (name, data) = (&cut.name, cut.dir.join("disk/data"));
    println!("{name}: {} acknowledged, to be completed: {}", cut.acknowledged.len(), cut.completed);
    let server = Server::on(&data, &[]);
    server.settle();
    let rows = shop::archived(&server, day);
    let lost: Vec<&String> = cut.acknowledged.iter().filter(|id| !rows.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{name}: {} of {} acknowledged events are lost: {lost:?}", lost.len(), cut.acknowledged.len());
    let twice: Vec<_> = rows.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{name}: archived more than once: {twice:?}");
    let assert_audit = || {
        let (clean, told) = server.audit();
        assert!(clean, "{name}: {told}");
    };
    assert_audit();
    if cut.completed {
        server.accept(&day.events);
        server.settle();
        assert_eq!(shop::archived(&server, day).len(), ids(&day.events).len(), "{name}: with what was sent again the day is whole");
        shop::assert_reports_equal_tally(&server, day);
        assert_audit();
    }
    assert!(server.stop().success(), "{name}");
    for path in databases(&data) {
        let database = rusqlite::Connection::open(&path).unwrap();
        let found: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(found, "ok", "{name}: {}", path.display());
    }
    // What retention took is counted, too.
    for (segment, path) in files(&cut.dir.join("removed")) {
        let place = data.join("log/changes").join(segment);
        if !place.exists() {
            fs::rename(path, place).unwrap();
        }
    }
    let objects = inspect::assert_revisions_equal_changes(&data, inspect::LogPlace::Embedded(&data), "embedded");
    assert!(objects > 10 || !cut.completed, "{name}: the day made objects: {objects}");
    // A site made anew has other keys, and so other hashes of its customers.
    (cut.completed && !cut.acknowledged.is_empty()).then(|| inspect::objects_of(&data, "embedded", false))
}

/// Loses power in each part of the load as soon as that is over, and has what is left checked. Gives the live objects where the day was completed.
fn lose_power(load: &Load, day: &shop::Day, ended: &Receiver<u64>, random: &mut StdRng) -> Vec<(String, Objects)> {
    let completed = Mutex::new(Vec::new());
    let (waiting, next) = mpsc::sync_channel::<Cut>(0);
    let next = Arc::new(Mutex::new(next));
    std::thread::scope(|scope| {
        for _ in 0..CHECKERS {
            let (next, completed) = (Arc::clone(&next), &completed);
            scope.spawn(move || {
                loop {
                    let taken = next.lock().unwrap().recv();
                    let Ok(cut) = taken else { return };
                    let objects = check(&cut, day);
                    completed.lock().unwrap().extend(objects.map(|objects| (cut.name, objects)));
                    fs::remove_dir_all(cut.dir).unwrap();
                }
            });
        }
        // With the last checker gone, nobody waits for it.
        drop(next);
        let (mut disk, mut record) = (Disk::new(), None);
        let (mut from, mut number) = (0, 0);
        for (part, to) in PARTS.iter().zip(ended) {
            let record = record.get_or_insert_with(|| Record::open(&load.record()));
            for (at, loss) in cuts(&load.record(), from, to, part.cuts, random) {
                while record.read < at {
                    let op = record.next().unwrap();
                    disk.apply(op, record.read);
                }
                let dir = load.root().with_file_name(format!("cut-{number}"));
                disk.after(loss, random, &dir.join("disk"));
                disk.removed("data/log/changes", &dir.join("removed"));
                let (name, completed) = (format!("cut {number} at {at}, {loss:?} lost"), number % COMPLETED == COMPLETED - 1);
                if waiting.send(Cut { name, dir, acknowledged: load.acknowledged(at), completed }).is_err() {
                    return;
                }
                number += 1;
            }
            from = to;
        }
        drop(waiting);
    });
    completed.into_inner().unwrap()
}

/// The files below a directory, by their paths inside it, but those that SQLite makes anew.
fn files(dir: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inside, path)| (name.join(inside), path)));
        } else if path.extension().is_none_or(|extension| extension != "db-shm") {
            found.insert(name, path);
        }
    }
    found
}

fn databases(data: &Path) -> Vec<PathBuf> {
    files(data).into_values().filter(|path| path.extension().is_some_and(|extension| extension == "db")).collect()
}

/// The record, without a loss of power, gives what really stands in the files, so that it misses nothing; and whatever the server does to its
/// files, it did several times.
fn assert_record_is_complete(load: &Load, random: &mut StdRng) {
    let (mut disk, mut record) = (Disk::new(), Record::open(&load.record()));
    let (mut paths, mut done) = (HashMap::new(), BTreeMap::<String, usize>::new());
    while let Some(op) = record.next() {
        let told = match &op {
            Op::Create { ino, path } => {
                let kind: String = path.chars().filter(|c| !c.is_ascii_digit()).collect();
                paths.insert(*ino, kind.clone());
                format!("made {kind}")
            }
            Op::Sync { ino, .. } => paths.get(ino).map_or_else(|| "synced a directory".to_owned(), |kind| format!("synced {kind}")),
            Op::Remove { path } => format!("removed {}", path.chars().filter(|c| !c.is_ascii_digit()).collect::<String>()),
            _ => String::new(),
        };
        *done.entry(told).or_default() += 1;
        disk.apply(op, record.read);
    }
    assert_eq!(record.read, fs::metadata(load.record()).unwrap().len(), "the record ends with a whole change");
    let often = ["made data/log/events/.seg", "removed data/log/events/.seg", "made data/log/changes/.seg", "removed data/log/changes/.seg"];
    // A database itself is synced when its WAL is carried into it.
    let databases = ["synced data/objects.db", "synced data/answers.db", "synced data/archive/--.db"];
    for what in often.iter().chain(&databases) {
        assert!(done.get(*what).is_some_and(|times| *times > 3), "{what}: {done:#?}");
    }
    let whole = load.root().with_file_name("whole");
    disk.after(Loss::Nothing, random, &whole);
    let (expected, found) = (files(&load.root()), files(&whole));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, path) in expected {
        assert!(fs::read(path).unwrap() == fs::read(&found[&name]).unwrap(), "{} is not as recorded", name.display());
    }
    fs::remove_dir_all(whole).unwrap();
}

#[test]
fn slow_power_lost_at_any_moment_loses_nothing_acknowledged_and_counts_nothing_twice() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let day = shop::day(seed, EVENTS);
    let mut dir = tempfile::tempdir().unwrap();
    // Kept where the test fails.
    dir.disable_cleanup(true);
    println!("in {}", dir.path().display());
    let load = Load::of(&day.events, dir.path(), &mut random);
    let (ended, lives) = mpsc::channel();
    let completed = std::thread::scope(|scope| {
        let load = &load;
        scope.spawn(move || load.run(&ended));
        lose_power(load, &day, &lives, &mut random)
    });
    assert_record_is_complete(&load, &mut random);
    let expected = inspect::objects_of(&load.data(), "embedded", false);
    assert!(completed.len() > 3, "{}", completed.len());
    for (name, objects) in completed {
        assert_eq!(objects.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}: live objects");
        for (object, data) in &expected {
            assert_eq!(objects.get(object), Some(data), "{name}: {object}");
        }
    }
    dir.disable_cleanup(false);
}
