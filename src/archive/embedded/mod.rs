//! The embedded archive: one SQLite file per UTC day of `occurred_at` with the event rows, and `answers.db` with all that is counted. Opened by
//! the composition root through `archive::open`; one writer thread owns every writing connection, readers have their own read-only ones. Must
//! never be written by two processes (the data directory's lock sees to that), nor commit a cursor before the rows below it are on disk.

mod answers;
mod day;
pub mod dump;
mod read;
mod readers;
mod retention;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use self::readers::{Days, Readers};
use self::writer::Writer;
use super::{
    Archive, Books, Bots, CellKey, CellValue, Cursor, Error, EventRow, Kept, Label, LabelValue, Metric, QuarantineRow, Scan, Sought, WriteBatch,
};
use crate::event::identity::{CheckoutView, Entry, IdentityKey, Sale, StepCount};
use crate::event::{SiteId, Timestamp};

/// Calls that may wait for the writer thread; a further caller waits for a place.
const QUEUE: usize = 8;

type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// The archive in a directory of SQLite files.
pub struct Embedded {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    readers: Arc<Readers>,
}

impl Embedded {
    /// Opens the archive below `dir` (`answers.db`, `archive/<day>.db`), creating what is missing, and starts its writer thread. Blocking.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for files that are no archive or of a later version, [`Error::Store`] otherwise.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let days = Arc::new(Days::list(dir)?);
        let mut writer = Writer::open(dir, Arc::clone(&days))?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("archive-writer".into())
            .spawn(move || {
                crate::background::step_back();
                while let Some(job) = queue.blocking_recv() {
                    job(&mut writer);
                    if writer.is_closed() {
                        break;
                    }
                }
            })
            .map_err(|error| Error::Store(format!("its writer thread does not start: {error}")))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), readers: Arc::new(Readers::new(dir, days)) })
    }

    /// Opens an archive that no process is writing, for reading only. Writes and everything the archiver asks are refused as
    /// [`Error::Closed`]. Blocking.
    ///
    /// # Errors
    /// [`Error::Store`] where there is no archive, [`Error::Corrupt`] for one of a later version, or of an earlier one that [`Self::open`] has yet to
    /// bring to this.
    pub fn open_readonly(dir: &Path) -> Result<Self, Error> {
        let (readers, path) = (Readers::new(dir, Arc::new(Days::list(dir)?)), dir.join("answers.db"));
        let version = readers.answers(|conn| day::check_version(conn, answers::VERSION, &path))?;
        if version < answers::VERSION {
            return Err(Error::Corrupt(format!("{} of version {version}, before it was opened for writing,", path.display())));
        }
        Ok(Self { jobs: Mutex::new(None), readers: Arc::new(readers) })
    }

    /// Runs `job` on the writer thread and gives its answer.
    async fn write_side<T: Send + 'static>(&self, job: impl FnOnce(&mut Writer) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |writer| {
            // A caller that went away no longer needs the answer; what it asked for is done all the same.
            drop(answer.send(job(writer)));
        });
        jobs.send(job).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Runs `query` on a blocking thread with a read-only connection of `answers.db`.
    async fn ask<T: Send + 'static>(&self, query: impl FnOnce(&rusqlite::Connection) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let readers = Arc::clone(&self.readers);
        let _permit = self.readers.permit().await?;
        joined(tokio::task::spawn_blocking(move || readers.answers(query)).await)
    }
}

/// The answer of a blocking task; one that panicked or was cancelled has none.
fn joined<T>(result: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    result.unwrap_or_else(|error| Err(Error::Store(format!("a query did not finish: {error}"))))
}

#[async_trait]
impl Archive for Embedded {
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error> {
        self.write_side(move |writer| read::cursor(writer.answers(), partition)).await
    }

    async fn identities(&self, partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        // Keys include the partition key, so that one memory serves all partitions.
        let _ = partition;
        let keys = keys.to_vec();
        self.write_side(move |writer| writer.identities(&keys)).await
    }

    async fn cells(&self, partition: u16, keys: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        let keys = keys.to_vec();
        self.write_side(move |writer| read::cells(writer.answers(), partition, keys)).await
    }

    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        let keys = keys.to_vec();
        self.write_side(move |writer| read::books_of(writer.answers(), partition, keys)).await
    }

    async fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        self.write_side(move |writer| writer.write(batch)).await
    }

    async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        self.ask(read::cursors).await
    }

    async fn durable(&self) -> Result<Vec<u64>, Error> {
        self.write_side(Writer::durable).await
    }

    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::totals(conn, &site, metric, from, to, bots)).await
    }

    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::sales(conn, &site, from, to)).await
    }

    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::steps(conn, &site, from, to)).await
    }

    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::checkouts(conn, &site, from, to, after, limit)).await
    }

    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        let (site, dims) = (site.clone(), dims.to_vec());
        self.ask(move |conn| read::labels(conn, &site, label, dims)).await
    }

    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        let (site, scan, readers) = (site.clone(), scan.clone(), Arc::clone(&self.readers));
        let _permit = self.readers.permit().await?;
        joined(tokio::task::spawn_blocking(move || readers.scan(&site, &scan)).await)
    }

    async fn kept(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error> {
        let (site, sought, readers) = (site.clone(), sought.to_vec(), Arc::clone(&self.readers));
        let _permit = self.readers.permit().await?;
        joined(tokio::task::spawn_blocking(move || readers.kept(&site, &sought)).await)
    }

    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::linked(conn, &site, person)).await
    }

    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::books(conn, &site, from, to)).await
    }

    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        let site = site.clone();
        self.ask(move |conn| read::quarantine(conn, &site, after, limit)).await
    }

    async fn sites(&self) -> Result<Vec<SiteId>, Error> {
        self.ask(read::sites).await
    }

    async fn days(&self) -> Result<Vec<i32>, Error> {
        Ok(self.readers.days().all())
    }

    async fn retain(&self, before: Timestamp, _: &[u16]) -> Result<(), Error> {
        let readers = Arc::clone(&self.readers);
        self.write_side(move |writer| {
            let removed = writer.retain(before);
            readers.forget_removed();
            removed
        })
        .await
    }

    async fn close(&self) -> Result<(), Error> {
        // Readers first: the last connection to close a file is the one that folds its WAL in, and only a writer can.
        self.readers.close();
        let closed = match self.write_side(Writer::close).await {
            Err(Error::Closed) => Ok(()),
            other => other,
        };
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        closed
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ffi;
        let code = error.sqlite_error().map(|e| (e.code, e.extended_code));
        match code {
            // A page that could not be synced may be gone although a second sync succeeds: only a restart tells what is on disk.
            Some((_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)) => Self::Corrupt(format!("what a failed sync left ({error})")),
            Some((rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase, _)) => Self::Corrupt(error.to_string()),
            _ => Self::Store(error.to_string()),
        }
    }
}

/// Postcard bytes of plain data; serialising into memory cannot fail.
fn pack<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Reads what [`pack`] wrote.
fn unpack<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(|_| Error::Corrupt(what.to_owned()))
}

/// Partition and offset as one number that orders as the pair does.
const fn place(partition: u16, offset: u64) -> i64 {
    ((partition as i64) << 48) | (offset & 0xffff_ffff_ffff) as i64
}

/// What [`place`] packed.
const fn unplace(place: i64) -> (u16, u64) {
    ((place >> 48) as u16, (place & 0xffff_ffff_ffff) as u64)
}
