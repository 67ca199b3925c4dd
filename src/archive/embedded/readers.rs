//! Read-only connections of the embedded archive, and which days there are. Used by queries on blocking threads; must never write.

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

#[derive(Default)]
struct Known {
    days: BTreeSet<i32>,
    /// How often days came or went.
    changes: u64,
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
                    known.days.extend(date.and_then(|date| Timestamp::parse(&format!("{date}T00:00:00Z")).ok()).map(Timestamp::utc_day));
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
        self.known().days.iter().copied().collect()
    }

    /// A day's file is complete now.
    pub(super) fn add(&self, day: i32) {
        let mut known = self.known();
        known.changes += u64::from(known.days.insert(day));
    }

    /// A day's file is about to go.
    pub(super) fn remove(&self, day: i32) {
        let mut known = self.known();
        known.changes += u64::from(known.days.remove(&day));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The read side's connections.
pub(super) struct Readers {
    answers: PathBuf,
    days: std::sync::Arc<Days>,
    idle: Mutex<Vec<(PathBuf, Connection)>>,
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
        self.with(&self.answers, query)
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
        match self.with(&self.days.path(day), query) {
            Err(_) if !self.days.all().contains(&day) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// Lets go of the files of days that were removed.
    pub(super) fn forget_removed(&self) {
        let kept: BTreeSet<PathBuf> = self.days.all().into_iter().map(|day| self.days.path(day)).collect();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|(path, _)| *path == self.answers || kept.contains(path));
    }

    /// Closes what is idle and refuses further queries.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn with<T>(&self, path: &Path, query: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let changes = self.days.known().changes;
        let conn = match self.take(path) {
            Some(conn) => conn,
            None => sqlite::open_readonly(path)?,
        };
        let answer = query(&conn);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // A file removed meanwhile may be made anew, even before this ends: its old connection would show what is gone.
        let stays = || self.days.known().changes == changes && self.days.all().into_iter().any(|day| self.days.path(day) == *path);
        if *path == self.answers || stays() {
            if idle.len() >= IDLE {
                drop(idle.remove(0));
            }
            idle.push((path.to_owned(), conn));
        }
        answer
    }

    fn take(&self, path: &Path) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().rposition(|(of, _)| of == path)?;
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
            let asked = readers.with(&path, |conn| {
                meanwhile();
                Ok(conn.query_row("SELECT n FROM t", [], |row| row.get::<_, i64>(0))?)
            });
            asked.unwrap()
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
