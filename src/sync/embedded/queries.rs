//! What is read from `objects.db`: each function is one short read on a connection of the caller's. Used by the embedded ObjectStore
//! alone; must never write.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows;
use crate::event::{ObjectKey, ObjectKind, PARTITIONS, SiteId, Timestamp};
use crate::sync::stored::{Shelf, corrupt, head_from_bytes, hour_of, is_asked_for, row_from_bytes};
use crate::sync::{Checkpoint, Error, Head, Seek, StoredObject};

/// What a listing gives: heads by key.
pub(super) type Heads = Vec<(ObjectKey, Head)>;

/// Next offsets by partition, of `events` and of `changes`.
pub(super) type Offsets = (Vec<u64>, Vec<u64>);

/// Turns what SQLite says into the room's error.
pub(super) fn failed(error: rusqlite::Error) -> Error {
    Error::Store(error.to_string())
}

/// The next `events` offset of a partition; 0 where none is stored.
pub(super) fn router_next(conn: &Connection, partition: u16) -> Result<u64, Error> {
    let found: Option<i64> = conn
        .prepare_cached("SELECT next FROM router WHERE partition = ?1")
        .map_err(failed)?
        .query_row([partition], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    Ok(found.map_or(0, i64::cast_unsigned))
}

/// A keeper's checkpoint; the default where none is stored.
pub(super) fn checkpoint(conn: &Connection, partition: u16) -> Result<Checkpoint, Error> {
    let found: Option<Vec<u8>> = conn
        .prepare_cached("SELECT value FROM keeper WHERE partition = ?1")
        .map_err(failed)?
        .query_row([partition], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    let Some(bytes) = found else { return Ok(Checkpoint::default()) };
    let read = match bytes.split_first() {
        Some((1, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    };
    read.ok_or_else(|| Error::Store(format!("the checkpoint of changes partition {partition} is malformed")))
}

/// The offsets stored now.
pub(super) fn stored_offsets(conn: &Connection) -> rusqlite::Result<Offsets> {
    let of = |table: &str| -> rusqlite::Result<Vec<u64>> {
        let mut all = vec![0; usize::from(PARTITIONS)];
        let mut statement = conn.prepare_cached(table)?;
        let mut cursor = statement.query([])?;
        while let Some(row) = cursor.next()? {
            let (partition, next): (usize, i64) = (row.get(0)?, row.get(1)?);
            if let Some(slot) = all.get_mut(partition) {
                *slot = next.cast_unsigned();
            }
        }
        Ok(all)
    };
    Ok((of("SELECT partition, next FROM router")?, of("SELECT partition, next FROM keeper")?))
}

/// The same for readers.
pub(super) fn offsets(conn: &Connection) -> Result<Offsets, Error> {
    stored_offsets(conn).map_err(failed)
}

/// Which of these hashes a partition has sighted.
pub(super) fn sighted(conn: &Connection, partition: u16, hashes: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Error> {
    let mut statement = conn.prepare_cached("SELECT 1 FROM sighted WHERE partition = ?1 AND hash = ?2").map_err(failed)?;
    let mut found = Vec::new();
    for hash in hashes {
        if statement.exists(params![partition, hash]).map_err(failed)? {
            found.push(*hash);
        }
    }
    Ok(found)
}

/// Objects by key, in the order asked for, all as of one moment.
pub(super) fn load(conn: &Connection, keys: &[ObjectKey]) -> Result<Vec<Option<StoredObject>>, Error> {
    let snapshot = conn.unchecked_transaction().map_err(failed)?;
    let mut statement = snapshot.prepare_cached("SELECT item, value FROM rows WHERE object = ?1 ORDER BY item").map_err(failed)?;
    let mut out = Vec::with_capacity(keys.len());
    for key in keys {
        let mut found: Option<StoredObject> = None;
        let mut cursor = statement.query([rows::key_bytes(key)]).map_err(failed)?;
        while let Some(row) = cursor.next().map_err(failed)? {
            let item = row.get_ref(0).map_err(failed)?.as_blob().map_err(|_| corrupt(key, "an item's name is no blob"))?;
            let value = row.get_ref(1).map_err(failed)?.as_blob().map_err(|_| corrupt(key, "a row is no blob"))?;
            match &mut found {
                None if item == rows::HEAD => {
                    found = Some(StoredObject { key: key.clone(), head: head_from_bytes(key, value)?, rows: Vec::new() });
                }
                None => return Err(corrupt(key, "it has rows but no head")),
                Some(object) => object.rows.push(row_from_bytes(key, rows::item_of(key, item)?, value)?),
            }
        }
        out.push(found);
    }
    Ok(out)
}

/// Living objects of a site and kind in the order of `seek`.
pub(super) fn list(conn: &Connection, site: &SiteId, kind: ObjectKind, prefix: &str, seek: Seek<&str>, limit: usize) -> Result<Heads, Error> {
    const UP: &str = "SELECT object, value FROM rows WHERE object >= ?1 AND item = x'' ORDER BY object";
    const DOWN: &str = "SELECT object, value FROM rows WHERE object < ?1 AND item = x'' ORDER BY object DESC";
    let start = rows::prefix_bytes(site, kind, prefix);
    let (statement, from) = match seek {
        Seek::After(after) if after >= prefix => (UP, rows::prefix_bytes(site, kind, after)),
        Seek::First | Seek::After(_) => (UP, start.clone()),
        Seek::Before(before) if before.starts_with(prefix) => (DOWN, rows::prefix_bytes(site, kind, before)),
        Seek::Before(before) if before < prefix => return Ok(Vec::new()),
        // Behind the last with this prefix: text holds no byte as great.
        Seek::Before(_) => (DOWN, [&start[..], &[0xff]].concat()),
    };
    let mut statement = conn.prepare_cached(statement).map_err(failed)?;
    let mut cursor = statement.query([&from]).map_err(failed)?;
    let mut out = Vec::new();
    while out.len() < limit
        && let Some(row) = cursor.next().map_err(failed)?
    {
        let object = row.get_ref(0).map_err(failed)?.as_blob().unwrap_or_default();
        if !object.starts_with(&start) {
            break;
        }
        let Some(key) = rows::key_of(object) else { continue };
        if matches!(seek, Seek::After(after) if key.name.as_str() <= after) {
            continue;
        }
        let head = head_from_bytes(&key, row.get_ref(1).map_err(failed)?.as_blob().unwrap_or_default())?;
        if head.removed_at.is_none() {
            out.push((key, head));
        }
    }
    Ok(out)
}

/// Living objects of these partitions last changed before `before`, oldest first.
pub(super) fn stale(conn: &Connection, partitions: &[u16], prefix: &str, before: Timestamp, limit: usize) -> Result<Heads, Error> {
    // A prefix without a dot may stand for several families.
    let (least, greatest) = match prefix.split_once('.') {
        Some(_) => (rows::family_of(prefix), rows::family_of(prefix)),
        None => (rows::family_of(""), char::MAX.to_string()),
    };
    filed(conn, partitions, Shelf::Living, (&least, &greatest), prefix, before, limit)
}

/// Objects of these partitions with a lifetime that ends at or before `now`, to the hour oldest first.
pub(super) fn expiring(conn: &Connection, partitions: &[u16], now: Timestamp, limit: usize) -> Result<Heads, Error> {
    filed(conn, partitions, Shelf::Expiring, (rows::EXPIRING, rows::EXPIRING), "", now, limit)
}

/// The object listed under a SID.
pub(super) fn by_sid(conn: &Connection, sid: &[u8]) -> Result<Option<ObjectKey>, Error> {
    let mut statement = conn.prepare_cached("SELECT object FROM sids WHERE sid = ?1").map_err(failed)?;
    let found: Option<Vec<u8>> = statement.query_row([sid], |row| row.get(0)).optional().map_err(failed)?;
    Ok(found.and_then(|object| rows::key_of(&object)))
}

/// Tombstones of these partitions last changed before `before`, oldest first.
pub(super) fn tombstones(conn: &Connection, partitions: &[u16], before: Timestamp, limit: usize) -> Result<Heads, Error> {
    filed(conn, partitions, Shelf::Removed, (rows::REMOVED, rows::REMOVED), "", before, limit)
}

/// What is filed under the families `least..=greatest`, hour by hour, sorted within the hour. An object whose head cannot be read is passed over.
fn filed(
    conn: &Connection,
    partitions: &[u16],
    shelf: Shelf,
    families: (&str, &str),
    prefix: &str,
    before: Timestamp,
    limit: usize,
) -> Result<Heads, Error> {
    let snapshot = conn.unchecked_transaction().map_err(failed)?;
    let hours: Vec<i64> = snapshot
        .prepare_cached("SELECT DISTINCT hour FROM expiry WHERE family BETWEEN ?1 AND ?2 AND hour <= ?3 ORDER BY hour")
        .and_then(|mut statement| statement.query_map(params![families.0, families.1, hour_of(before)], |row| row.get(0))?.collect())
        .map_err(failed)?;
    let mut out: Heads = Vec::new();
    for hour in hours {
        if out.len() >= limit {
            break;
        }
        let mut within = filed_in_hour(&snapshot, families, hour)?;
        within.retain(|(key, head)| key.name.starts_with(prefix) && is_asked_for(shelf, head, before));
        within.retain(|(key, _)| partitions.contains(&key.partition()));
        within.sort_by_key(|(_, head)| head.updated_at);
        within.truncate(limit - out.len());
        out.append(&mut within);
    }
    Ok(out)
}

fn filed_in_hour(conn: &Connection, families: (&str, &str), hour: i64) -> Result<Heads, Error> {
    let mut statement = conn
        .prepare_cached(
            "SELECT e.object, r.value FROM expiry e CROSS JOIN rows r ON r.object = e.object AND r.item = x''
             WHERE e.family BETWEEN ?1 AND ?2 AND e.hour = ?3",
        )
        .map_err(failed)?;
    let mut cursor = statement.query(params![families.0, families.1, hour]).map_err(failed)?;
    let mut out = Vec::new();
    while let Some(row) = cursor.next().map_err(failed)? {
        let Some(key) = rows::key_of(row.get_ref(0).map_err(failed)?.as_blob().unwrap_or_default()) else { continue };
        let Ok(head) = head_from_bytes(&key, row.get_ref(1).map_err(failed)?.as_blob().unwrap_or_default()) else { continue };
        out.push((key, head));
    }
    Ok(out)
}
