//! Read-only connections of the embedded archive, and which days there are. Used by queries on blocking threads; must never write.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::day;
use crate::archive::{Error, EventRow, Kept, Scan, Sought};
use crate::event::{SiteId, Timestamp};
use crate::sqlite;

/// Queries that run at once; further ones wait.
const CONCURRENT: usize = 8;

/// Connections kept open between queries.
const IDLE: usize = 24;

/// The days that have a file with its tables in place.
pub(super) struct Days {
    dir: PathBuf,
    known: Mutex<Known>,
}

/// By day the number of its file: one that is made anew has another.
#[derive(Default)]
struct Known {
    days: BTreeMap<i32, u64>,
    files: u64,
}

impl Known {
    fn add(&mut self, day: i32) {
        if let Entry::Vacant(new) = self.days.entry(day) {
            self.files += 1;
            new.insert(self.files);
        }
    }
}

impl Days {
    /// Looks what is there below `dir`.
    pub(super) fn list(dir: &Path) -> Result<Self, Error> {
        let dir = dir.join("archive");
        let unreadable = |error: std::io::Error| Error::Store(format!("{}: {error}", dir.display()));
        let mut known = Known::default();
        match std::fs::read_dir(&dir) {
            Ok(files) => {
                for file in files {
                    let name = file.map_err(unreadable)?.file_name();
                    let date = name.to_str().and_then(|name| name.strip_suffix(".db"));
                    let day = date.and_then(|date| Timestamp::parse(&format!("{date}T00:00:00Z")).ok()).map(Timestamp::utc_day);
                    day.into_iter().for_each(|day| known.add(day));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(error)),
        }
        Ok(Self { dir, known: Mutex::new(known) })
    }

    /// A day's file.
    pub(super) fn path(&self, day: i32) -> PathBuf {
        self.dir.join(format!("{}.db", Timestamp::ZERO.plus_seconds(i64::from(day) * 86_400).utc_date()))
    }

    /// The directory of the days' files.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// All days, oldest first.
    pub(super) fn all(&self) -> Vec<i32> {
        self.known().days.keys().copied().collect()
    }

    /// A day's file is complete now.
    pub(super) fn add(&self, day: i32) {
        self.known().add(day);
    }

    /// A day's file is about to go.
    pub(super) fn remove(&self, day: i32) {
        self.known().days.remove(&day);
    }

    /// A day's file as it is now.
    fn current(&self, day: i32) -> Option<Of> {
        self.known().days.get(&day).map(|number| Of::Day(day, *number))
    }

    /// Whether that is still what is there.
    fn has(&self, of: Of) -> bool {
        match of {
            Of::Answers => true,
            Of::Day(day, _) => self.current(day) == Some(of),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Answers,
    /// A day's file, by number.
    Day(i32, u64),
}

/// The read side's connections.
pub(super) struct Readers {
    answers: PathBuf,
    days: std::sync::Arc<Days>,
    idle: Mutex<Vec<(Of, Connection)>>,
    permits: Semaphore,
}

impl Readers {
    pub(super) fn new(dir: &Path, days: std::sync::Arc<Days>) -> Self {
        Self { answers: dir.join("answers.db"), days, idle: Mutex::new(Vec::new()), permits: Semaphore::new(CONCURRENT) }
    }

    /// Leave to run one query.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.permits.acquire().await.map_err(|_| Error::Closed)
    }

    /// Which days there are.
    pub(super) fn days(&self) -> &Days {
        &self.days
    }

    /// Runs a query over `answers.db`.
    pub(super) fn answers<T>(&self, query: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        self.with(Of::Answers, &self.answers, query)
    }

    /// Event rows over as many days as the limit needs.
    pub(super) fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        let (low, high) = day::span(scan);
        let (first, last) = (Timestamp::from_micros(low.0).utc_day(), Timestamp::from_micros(high.0).utc_day());
        let mut days = self.days.all();
        days.retain(|day| (first..=last).contains(day));
        if scan.newest_first {
            days.reverse();
        }
        let mut found = Vec::new();
        for day in days {
            if found.len() >= scan.limit {
                break;
            }
            let rest = scan.limit - found.len();
            found.extend(self.of_day(day, |conn| day::scan(conn, site, scan, rest))?);
        }
        Ok(found)
    }

    /// See [`crate::archive::Archive::kept`].
    pub(super) fn kept(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error> {
        let mut by_day: BTreeMap<Option<i32>, BTreeSet<&str>> = BTreeMap::new();
        for Sought { event_id, day } in sought {
            by_day.entry(*day).or_default().insert(event_id);
        }
        let anywhere = by_day.remove(&None).unwrap_or_default();
        let mut found = Vec::new();
        for day in self.days.all() {
            let ids: BTreeSet<&str> = by_day.remove(&Some(day)).into_iter().flatten().chain(anywhere.iter().copied()).collect();
            if !ids.is_empty() {
                found.extend(self.of_day(day, |conn| day::kept(conn, site, &ids))?);
            }
        }
        found.sort_by(|a, b| (&a.event_id, a.partition, a.offset).cmp(&(&b.event_id, b.partition, b.offset)));
        Ok(found)
    }

    /// Asks a day's file; one that retention took meanwhile holds nothing.
    fn of_day<T>(&self, day: i32, query: impl FnOnce(&Connection) -> Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
        let Some(of) = self.days.current(day) else { return Ok(Vec::new()) };
        match self.with(of, &self.days.path(day), query) {
            Err(_) if self.days.current(day) != Some(of) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// Lets go of the files of days that were removed.
    pub(super) fn forget_removed(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _)| self.days.has(*of));
    }

    /// Closes what is idle and refuses further queries.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn with<T>(&self, of: Of, path: &Path, query: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let conn = match self.take(of) {
            Some(conn) => conn,
            None => sqlite::open_readonly(path)?,
        };
        let answer = query(&conn);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Removed meanwhile, it would show what is gone.
        if self.days.has(of) {
            if idle.len() >= IDLE {
                drop(idle.remove(0));
            }
            idle.push((of, conn));
        }
        answer
    }

    fn take(&self, of: Of) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().rposition(|(idle, _)| *idle == of)?;
        Some(idle.remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_to_a_file_that_was_made_anew_meanwhile_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("archive")).unwrap();
        let days = std::sync::Arc::new(Days::list(dir.path()).unwrap());
        let readers = Readers::new(dir.path(), std::sync::Arc::clone(&days));
        let path = days.path(7);
        let make = |row: i64| {
            let conn = Connection::open(&path).unwrap();
            conn.execute_batch(&format!("CREATE TABLE t (n); INSERT INTO t VALUES ({row})")).unwrap();
            days.add(7);
        };
        let row = |meanwhile: &dyn Fn()| {
            let asked = readers.of_day(7, |conn| {
                meanwhile();
                Ok(vec![conn.query_row("SELECT n FROM t", [], |row| row.get::<_, i64>(0))?])
            });
            asked.unwrap()[0]
        };
        let idle = || readers.idle.lock().unwrap().len();
        make(1);
        assert_eq!((row(&|| days.add(7)), idle()), (1, 1), "nothing changed");
        let anew = || {
            days.remove(7);
            std::fs::remove_file(&path).unwrap();
            readers.forget_removed();
            make(2);
        };
        assert_eq!((row(&anew), idle()), (1, 0));
        assert_eq!(row(&|| ()), 2);
    }
}
