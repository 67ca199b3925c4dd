//! SQLite as both embedded stores use it: opening with the right durability, and the identity memory's tables. Called by the embedded
//! ObjectStore and Archive only.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, Transaction};

use crate::event::Timestamp;
use crate::event::identity::{Entry, IdentityKey};

/// How a file's commits meet power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// WAL, `synchronous=NORMAL`: after power loss older but consistent; for what the log can replay.
    Replayable,
    /// WAL, `synchronous=FULL`: every commit is durable; for what the log does not hold.
    Full,
}

/// Opens (creating it where missing) a database for its one writer.
pub fn open(path: &Path, durability: Durability) -> rusqlite::Result<Connection> {
    let _ = (path, durability);
    Connection::open(path)
}

/// Opens a database read-only for queries beside its writer.
pub fn open_readonly(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open(path)
}

/// The identity memory of all partitions in one database. Event entries stand in tables by hour of the partition's greatest `received_at`, dropped whole
/// once older than 7 days; a filter in memory by table spares the look-ups of unknown ids. Order and checkout entries stand in one lasting table.
/// All methods run inside the caller's transaction where it has one.
#[derive(Debug, Default)]
pub struct IdentityTables {}

impl IdentityTables {
    /// Creates what is missing and loads the filters.
    pub fn open(conn: &Connection) -> rusqlite::Result<Self> {
        let _ = conn;
        Ok(Self::default())
    }

    /// The entries known under these keys.
    pub fn load(&self, conn: &Connection, keys: &[IdentityKey]) -> rusqlite::Result<HashMap<IdentityKey, Entry>> {
        let _ = (conn, keys);
        Ok(HashMap::new())
    }

    /// Writes entries, in key order; event entries unknown so far go to the table of `hour`'s hour, known ones stay where they are.
    /// The filters change at once; a transaction rolled back leaves them only too cautious.
    pub fn save(&mut self, tx: &Transaction<'_>, hour: Timestamp, entries: &[(IdentityKey, Entry)]) -> rusqlite::Result<()> {
        let _ = (tx, hour, entries);
        Ok(())
    }

    /// Drops the tables that lie wholly before `oldest`.
    pub fn expire(&mut self, tx: &Transaction<'_>, oldest: Timestamp) -> rusqlite::Result<()> {
        let _ = (tx, oldest);
        Ok(())
    }
}
