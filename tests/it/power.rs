//! Power lost at any moment under load, log and databases together: the shipped binary runs with every change of its files recorded, and starts again on
//! what a disk may have kept of them at that moment. Nothing acknowledged is lost, nothing counts twice, revisions equal changes, and what is sent again
//! completes the day.

mod disk;
mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};

use self::disk::{Disk, LOSSES, Loss};
use self::record::{Op, Record};
use crate::crash::{Shared, sender};
use crate::harness::{Server, binary};
use crate::{inspect, shop};

const EVENTS: u64 = 3_000;
const BATCH: usize = 6;
const SENDERS: usize = 4;
/// Cuts checked at a time.
const CHECKERS: usize = 3;
/// One in so many is sent the day again.
const COMPLETED: usize = 8;

/// A recorded process: how long it runs, how it ends, and how often power is lost in its life. The second runs long enough that its readers tell the log
/// what they hold durably, and the third lets the log forget that.
struct Life {
    lasts: Duration,
    ends_by: &'static str,
    cuts: usize,
}

const LIVES: [Life; 4] = [
    Life { lasts: Duration::from_secs(3), ends_by: "USR1", cuts: 20 },
    Life { lasts: Duration::from_secs(32), ends_by: "TERM", cuts: 18 },
    Life { lasts: Duration::from_secs(4), ends_by: "USR1", cuts: 10 },
    Life { lasts: Duration::from_secs(2), ends_by: "TERM", cuts: 10 },
];

/// Segments, batches and what retention keeps so small that all of it begins, ends and goes many times.
const SMALL: [(&str, &str); 4] = [
    ("CONTRAIL_EVENTLOG_SEGMENT_BYTES", "32KiB"),
    ("CONTRAIL_EVENTLOG_RETENTION", "2s"),
    ("CONTRAIL_ARCHIVER_BATCH_EVENTS", "1"),
    ("CONTRAIL_ARCHIVER_BATCH_WAIT", "1ms"),
];

/// Where things lie in the test's directory.
struct Places {
    dir: PathBuf,
}

impl Places {
    fn root(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    fn record(&self) -> PathBuf {
        self.dir.join("record")
    }

    fn recorder(&self) -> PathBuf {
        self.dir.join("recorder.so")
    }
}

fn compile_recorder(places: &Places) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/power/recorder.c");
    let told = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(places.recorder()).arg(source).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
}

/// What was acknowledged, and how long the record was afterwards: what the answer rests on lies before that.
type Acknowledged = Vec<(u64, BTreeSet<String>)>;

fn ids(events: &[Value]) -> BTreeSet<String> {
    events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// The server, recorded.
fn recorded(places: &Places) -> Server {
    let log = fs::File::options().create(true).append(true).open(places.dir.join("log.txt")).unwrap();
    let mut command = binary();
    command.envs(SMALL).env("LD_PRELOAD", places.recorder()).stderr(log);
    command.env("RECORDER_ROOT", places.root()).env("RECORDER_TO", places.record());
    Server::start(command, &places.data(), &[]).unwrap_or_else(|status| panic!("{status}: {}", told(places)))
}

fn told(places: &Places) -> String {
    fs::read_to_string(places.dir.join("log.txt")).unwrap()
}

/// Senders do not try for ever what fails.
struct GivenUp<'a>(&'a Shared);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::SeqCst);
    }
}

/// Sends the day to a recorded server through several lives of it. Tells after each of them how long the record is.
fn live(places: &Places, shared: &Shared, total: usize, acknowledged: &Mutex<Acknowledged>, ended: &Sender<u64>) {
    let length = || fs::metadata(places.record()).unwrap().len();
    std::thread::scope(|scope| {
        let mut server = recorded(places);
        server.address.clone_into(&mut shared.address.write().unwrap());
        let _given_up = GivenUp(shared);
        let sending = || sender(shared, |batch| acknowledged.lock().unwrap().push((length(), ids(batch))));
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(sending)).collect();
        let whole: Duration = LIVES.iter().map(|life| life.lasts).sum();
        let mut before = Duration::ZERO;
        for (number, life) in LIVES.iter().enumerate() {
            let began = Instant::now();
            while began.elapsed() < life.lasts {
                let passed = (before + began.elapsed()).as_secs_f64() / whole.as_secs_f64();
                shared.unlocked.store((total as f64 * passed) as usize, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
            before += life.lasts;
            if number + 1 < LIVES.len() {
                server.end_by(life.ends_by);
                assert!(!told(places).contains("recorder:"), "{}", told(places));
                ended.send(length()).unwrap();
                server = recorded(places);
                server.address.clone_into(&mut shared.address.write().unwrap());
            } else {
                shared.unlocked.store(total, Ordering::SeqCst);
                senders.into_iter().for_each(|sender| sender.join().unwrap());
                server.settle();
                assert!(server.stop().success(), "{}", told(places));
                ended.send(length()).unwrap();
                return;
            }
        }
    });
}

/// Where the power goes between two positions of a record: anywhere, and more often than by chance beside a change of each rare kind.
fn cuts(record: &Path, from: u64, to: u64, count: usize, random: &mut StdRng) -> Vec<(u64, Loss)> {
    let (mut record, mut kinds) = (Record::open(record), BTreeMap::<&str, Vec<[u64; 2]>>::new());
    let mut before = 0;
    while record.read < to {
        let op = record.next().unwrap();
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
    let began = Instant::now();
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
    let objects = inspect::assert_revisions_equal_changes(&data);
    assert!(objects > 10 || !cut.completed, "{name}: the day made objects: {objects}");
    println!("{name}: {} acknowledged, {} archived, completed: {}; {:?}", cut.acknowledged.len(), rows.len(), cut.completed, began.elapsed());
    // A site made anew has other keys, and so other hashes of its customers.
    (cut.completed && !cut.acknowledged.is_empty()).then(|| inspect::objects_of(&data, false))
}

/// Loses power in each life of the server as soon as that is over, and has what is left checked. Gives the live objects where the day was completed.
fn lose_power(
    places: &Places,
    day: &shop::Day,
    acknowledged: &Mutex<Acknowledged>,
    ended: &Receiver<u64>,
    random: &mut StdRng,
) -> Vec<(String, Objects)> {
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
        for (life, to) in LIVES.iter().zip(ended) {
            let record = record.get_or_insert_with(|| Record::open(&places.record()));
            for (at, loss) in cuts(&places.record(), from, to, life.cuts, random) {
                while record.read < at {
                    let op = record.next().unwrap();
                    disk.apply(op, record.read);
                }
                let dir = places.dir.join(format!("cut-{number}"));
                disk.after(loss, random, &dir.join("disk"));
                disk.removed("data/log/changes", &dir.join("removed"));
                let known: BTreeSet<String> =
                    acknowledged.lock().unwrap().iter().filter(|(position, _)| *position <= at).flat_map(|(_, ids)| ids.clone()).collect();
                let name = format!("cut {number} at {at}, {loss:?} lost");
                if waiting.send(Cut { name, dir, acknowledged: known, completed: number % COMPLETED == COMPLETED - 1 }).is_err() {
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

/// The record, without a loss of power, gives what really stands in the files, so that it misses nothing; and whatever the server does to its files, it did
/// many times.
fn assert_record_is_complete(places: &Places, random: &mut StdRng) {
    let (mut disk, mut record) = (Disk::new(), Record::open(&places.record()));
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
    println!("{done:#?}");
    let often = ["made data/log/events/.seg", "removed data/log/events/.seg", "made data/log/changes/.seg", "removed data/log/changes/.seg"];
    // A database itself is synced when its WAL is carried into it.
    let databases = ["synced data/objects.db", "synced data/answers.db", "synced data/archive/--.db"];
    for what in often.iter().chain(&databases) {
        assert!(done.get(*what).is_some_and(|times| *times > 3), "{what}: {done:#?}");
    }
    let whole = places.dir.join("whole");
    disk.after(Loss::Nothing, random, &whole);
    let (expected, found) = (files(&places.root()), files(&whole));
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
    let places = Places { dir: dir.path().canonicalize().unwrap() };
    println!("in {}", places.dir.display());
    fs::create_dir(places.root()).unwrap();
    compile_recorder(&places);
    let began = Instant::now();
    let (shared, total) = Shared::batches(&day.events, BATCH, &mut random);
    let acknowledged = Mutex::new(Acknowledged::new());
    let (ended, lives) = mpsc::channel();
    let completed = std::thread::scope(|scope| {
        scope.spawn(|| {
            let ended = ended;
            live(&places, &shared, total, &acknowledged, &ended);
        });
        lose_power(&places, &day, &acknowledged, &lives, &mut random)
    });
    assert_record_is_complete(&places, &mut random);
    let expected = inspect::objects_of(&places.data(), false);
    assert!(completed.len() > 3, "{}", completed.len());
    for (name, objects) in completed {
        assert_eq!(objects.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}: live objects");
        for (object, data) in &expected {
            assert_eq!(objects.get(object), Some(data), "{name}: {object}");
        }
    }
    println!("all {:?}", began.elapsed());
    dir.disable_cleanup(false);
}
