//! The load that power is lost under: the shipped binary, every change of its files recorded, through several lives.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use serde_json::Value;

use crate::crash::{Shared, sender};
use crate::harness::{Server, binary};

/// Most events sent at once.
const BATCH: usize = 6;
const SENDERS: usize = 4;

/// A part of the load: how long it lasts, how it ends, and how often power is lost in it.
pub(crate) struct Part {
    lasts: Duration,
    ends: End,
    pub(crate) cuts: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    GoesOn,
    Killed,
    Stopped,
}

/// The second process lives so long that its readers tell the log what they hold durably, and the log forgets that, which it does once a minute.
pub(crate) const PARTS: [Part; 6] = [
    Part { lasts: Duration::from_secs(3), ends: End::Killed, cuts: 16 },
    Part { lasts: Duration::from_secs(20), ends: End::GoesOn, cuts: 10 },
    Part { lasts: Duration::from_secs(36), ends: End::GoesOn, cuts: 8 },
    Part { lasts: Duration::from_secs(8), ends: End::Stopped, cuts: 12 },
    Part { lasts: Duration::from_secs(1), ends: End::Killed, cuts: 5 },
    Part { lasts: Duration::from_secs(1), ends: End::Stopped, cuts: 5 },
];

/// Segments, batches and what the log keeps so small that all of it begins, ends and goes many times.
const SMALL: [(&str, &str); 4] = [
    ("CONTRAIL_EVENTLOG_SEGMENT_BYTES", "32KiB"),
    ("CONTRAIL_EVENTLOG_RETENTION", "2s"),
    ("CONTRAIL_ARCHIVER_BATCH_EVENTS", "1"),
    ("CONTRAIL_ARCHIVER_BATCH_WAIT", "1ms"),
];

pub(crate) fn ids(events: &[Value]) -> BTreeSet<String> {
    events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// A recorded server under load, and what its senders were told.
pub(crate) struct Load {
    dir: PathBuf,
    shared: Shared,
    batches: usize,
    /// What was acknowledged, and how long the record was afterwards: what the answer rests on lies before that.
    acknowledged: Mutex<Vec<(u64, BTreeSet<String>)>>,
}

/// However a load ends, its senders do not try for ever what fails.
struct GivenUp<'a>(&'a Shared);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::SeqCst);
    }
}

impl Load {
    /// Prepares to send these events; everything is kept in `dir`.
    pub(crate) fn of(events: &[Value], dir: &Path, random: &mut StdRng) -> Self {
        let (shared, batches) = Shared::batches(events, BATCH, random);
        let load = Self { dir: dir.canonicalize().unwrap(), shared, batches, acknowledged: Mutex::default() };
        fs::create_dir(load.root()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/power/recorder.c");
        let told = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(load.recorder()).arg(source).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        load
    }

    /// All of the disk that is recorded. The server's directory is not there yet when it first starts: its making is recorded, too.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("disk")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("record")
    }

    fn recorder(&self) -> PathBuf {
        self.dir.join("recorder.so")
    }

    /// What was acknowledged before the record was so long.
    pub(crate) fn acknowledged(&self, at: u64) -> BTreeSet<String> {
        self.acknowledged.lock().unwrap().iter().filter(|(position, _)| *position <= at).flat_map(|(_, ids)| ids.clone()).collect()
    }

    fn recorded(&self) -> u64 {
        fs::metadata(self.record()).unwrap().len()
    }

    /// What the server said.
    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log.txt")).unwrap()
    }

    fn start(&self) -> Server {
        let log = fs::File::options().create(true).read(true).append(true).open(self.dir.join("log.txt")).unwrap();
        let mut command = binary();
        command.envs(SMALL).env("LD_PRELOAD", self.recorder());
        command.env("RECORDER_ROOT", self.root()).env("RECORDER_TO", self.record());
        let server = Server::logging(command, &self.data(), &[], Some(log)).unwrap_or_else(|status| panic!("{status}: {}", self.log()));
        server.address.clone_into(&mut self.shared.address.write().unwrap());
        server
    }

    /// Ends a part of the load; gives the server of the next one.
    fn end(&self, server: Server, by: End) -> Server {
        if by == End::GoesOn {
            return server;
        }
        // The recorder's own signal kills between two changes.
        let status = server.end_by(if by == End::Killed { "USR1" } else { "TERM" });
        assert!(status.success() == (by == End::Stopped) && !self.log().contains("recorder:"), "{status}: {}", self.log());
        self.start()
    }

    /// Sends everything, evenly spread over the time that the parts last. Tells at the end of each how long the record is.
    pub(crate) fn run(&self, ended: &Sender<u64>) {
        std::thread::scope(|scope| {
            let _given_up = GivenUp(&self.shared);
            let mut server = self.start();
            let send = || sender(&self.shared, |batch| self.acknowledged.lock().unwrap().push((self.recorded(), ids(batch))));
            let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
            let whole: Duration = PARTS.iter().map(|part| part.lasts).sum();
            let mut before = Duration::ZERO;
            for part in &PARTS {
                self.unlock(before, part.lasts, whole);
                before += part.lasts;
                server = self.end(server, part.ends);
                ended.send(self.recorded()).unwrap();
            }
            self.shared.unlocked.store(self.batches, Ordering::SeqCst);
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            server.settle();
            assert!(server.stop().success(), "{}", self.log());
        });
    }

    /// Lets the senders go on for a while.
    fn unlock(&self, before: Duration, lasts: Duration, whole: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasts {
            let passed = (before + began.elapsed()).as_secs_f64() / whole.as_secs_f64();
            self.shared.unlocked.store((self.batches as f64 * passed) as usize, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
