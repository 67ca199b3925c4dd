//! Carries the WAL of `objects.db` into the database beside the writer, so that no commit waits for it. Owned by the writer's thread, which stops it before
//! its own last checkpoint. Must never write a row, nor say what is durable: [`super::writer`] does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

use crate::sqlite::{self, Durability};

/// How often it looks whether anything was committed. What a page takes in between is written back once.
const EVERY: Duration = Duration::from_secs(1);

/// The running thread; dropping it waits for the checkpoint under way.
pub(super) struct Checkpointer {
    committed: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts it on a database that exists. Blocking.
    pub(super) fn start(path: &Path) -> Result<Self, super::Error> {
        let conn = sqlite::open(path, Durability::Replayable).map_err(super::failed)?;
        let (committed, (stop, stopped)) = (Arc::new(AtomicBool::new(false)), channel());
        let looked = Arc::clone(&committed);
        let named = std::thread::Builder::new().name("objects-wal".into());
        let thread = named.spawn(move || run(&conn, &looked, &stopped)).map_err(|error| super::Error::Store(error.to_string()))?;
        Ok(Self { committed, stop: Some(stop), thread: Some(thread) })
    }

    /// Notes that there is something to carry.
    pub(super) fn committed(&self) {
        self.committed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Checkpoints now and then until told to stop. Passive: it waits for nobody, and takes as much as readers let it.
fn run(conn: &Connection, committed: &AtomicBool, stopped: &Receiver<()>) {
    crate::background::step_back();
    while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        if committed.swap(false, Ordering::Relaxed)
            && let Err(error) = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        {
            tracing::warn!(%error, "the objects' WAL could not be carried into the database; the writer does it when it is long");
        }
    }
}
