//! All that `objects.db` holds, in the words of an [`super::super::ObjectStore`]: for moving it elsewhere. Called by the composition root on a store that nobody
//! writes.

use std::path::Path;

use rusqlite::Connection;

use super::queries::{self, failed};
use super::rows;
use crate::event::identity::{Entry, IdentityKey};
use crate::event::{PARTITIONS, Timestamp};
use crate::sqlite;
use crate::sync::stored::{corrupt, head_from_bytes, row_from_bytes};
use crate::sync::{Checkpoint, Error, ObjectWrite, RouterCommit};

/// Objects, entries or hashes of one page.
const PAGE: usize = 1_000;

/// A part of the store, to be committed in the order told. All but the last one leave every reader at its beginning.
#[derive(Debug, Default)]
pub struct Page {
    /// Objects, whole.
    pub objects: Vec<ObjectWrite>,
    /// Where keepers are.
    pub checkpoints: Vec<(u16, Checkpoint)>,
    /// What routers remember, and where they are. The partition of entries says nothing.
    pub commits: Vec<RouterCommit>,
}

/// Hands all of the store at `path` to `take`, page by page; the last one has the offsets. Blocking.
///
/// # Errors
/// The first of the file or of `take`; [`Error::Corrupt`] for an object that cannot be read: nothing is left out.
pub fn each_page(path: &Path, take: &mut dyn FnMut(Page) -> Result<(), Error>) -> Result<(), Error> {
    let conn = sqlite::open_readonly(path).map_err(failed)?;
    each_object(&conn, take)?;
    each_sight(&conn, take)?;
    each_entry(&conn, take)?;
    let mut last = Page::default();
    for partition in 0..PARTITIONS {
        last.checkpoints.push((partition, queries::checkpoint(&conn, partition)?));
    }
    let mut statement = conn.prepare("SELECT partition, next, received_at FROM router").map_err(failed)?;
    let mut stored = statement.query([]).map_err(failed)?;
    while let Some(row) = stored.next().map_err(failed)? {
        let read = || -> rusqlite::Result<RouterCommit> {
            let (next, received_at) = (row.get::<_, i64>(1)?.cast_unsigned(), Timestamp::from_micros(row.get(2)?));
            Ok(RouterCommit { partition: row.get(0)?, next, received_at, ..RouterCommit::default() })
        };
        last.commits.push(read().map_err(failed)?);
    }
    take(last)
}

fn each_object(conn: &Connection, take: &mut dyn FnMut(Page) -> Result<(), Error>) -> Result<(), Error> {
    let mut statement = conn.prepare("SELECT object, item, value FROM rows ORDER BY object, item").map_err(failed)?;
    let mut stored = statement.query([]).map_err(failed)?;
    let (mut page, mut of) = (Page::default(), Vec::new());
    while let Some(row) = stored.next().map_err(failed)? {
        let blob = |column: usize| row.get_ref(column).and_then(|value| value.as_blob().map_err(Into::into)).map_err(failed);
        let (object, item, value) = (blob(0)?, blob(1)?, blob(2)?);
        if object == of.as_slice() {
            if let Some(write) = page.objects.last_mut() {
                let row = row_from_bytes(&write.key, rows::item_of(&write.key, item)?, value)?;
                write.rows.push(row);
            }
            continue;
        }
        let key = rows::key_of(object).ok_or_else(|| Error::Store("an object's key is malformed".into()))?;
        if item != rows::HEAD {
            return Err(corrupt(&key, "it has rows but no head"));
        }
        if page.objects.len() == PAGE {
            take(std::mem::take(&mut page))?;
        }
        object.clone_into(&mut of);
        let head = head_from_bytes(&key, value)?;
        page.objects.push(ObjectWrite { key, head, rows: Vec::new(), purge: Vec::new(), clear: false, list: true, ended: Vec::new() });
    }
    take(page)
}

fn each_sight(conn: &Connection, take: &mut dyn FnMut(Page) -> Result<(), Error>) -> Result<(), Error> {
    for partition in 0..PARTITIONS {
        let mut statement = conn.prepare("SELECT hash FROM sighted WHERE partition = ?1").map_err(failed)?;
        let hashes: rusqlite::Result<Vec<[u8; 16]>> = statement.query_map([partition], |row| row.get(0)).and_then(Iterator::collect);
        for sighted in hashes.map_err(failed)?.chunks(PAGE) {
            let commit = RouterCommit { partition, sighted: sighted.to_vec(), ..RouterCommit::default() };
            take(Page { commits: vec![commit], ..Page::default() })?;
        }
    }
    Ok(())
}

fn each_entry(conn: &Connection, take: &mut dyn FnMut(Page) -> Result<(), Error>) -> Result<(), Error> {
    let mut commit = RouterCommit::default();
    let mut hand = |commit: RouterCommit| take(Page { commits: vec![commit], ..Page::default() });
    let each = |hour: Option<Timestamp>, key: IdentityKey, entry: Entry| -> Result<(), Failed> {
        let hour = hour.unwrap_or_default();
        if commit.received_at != hour || commit.entries.len() == PAGE {
            hand(std::mem::replace(&mut commit, RouterCommit { received_at: hour, ..RouterCommit::default() }))?;
        }
        commit.entries.push((key, entry));
        Ok(())
    };
    sqlite::each_entry(conn, each).map_err(|Failed(error)| error)?;
    hand(commit)
}

/// An error of this room, made of one of the file's where need be.
struct Failed(Error);

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self(failed(error))
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}
