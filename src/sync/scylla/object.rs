//! One object as rows of one partition: what a write of it becomes, and what is read back. Used by the ObjectStore of this folder alone.
//!
//! The head, the rows and all that a write removes go as one mutation, so that nobody sees half of a write and a crash leaves none. A write too large for
//! that is first put beside the rows whole, in chunks; then come its rows, then its head, which takes the chunks away. Chunks that are whole and newer than the
//! head are the object's latest write, for all who read it: whatever of its rows is there already, is the same. The next write first makes it good.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Scylla, stamp};
use crate::cql::{self, Cluster, Write};
use crate::event::ObjectKey;
use crate::sync::stored::{corrupt, head_from_bytes, head_to_bytes, row_from_bytes, row_to_bytes};
use crate::sync::{Error, Head, ObjectWrite, StoredObject};

const PUT: &str = "INSERT INTO object (site, kind, name, item, value) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
const TAKE: &str = "DELETE FROM object USING TIMESTAMP ? WHERE site = ? AND kind = ? AND name = ? AND item = ?";
const TAKE_SOME: &str = "DELETE FROM object USING TIMESTAMP ? WHERE site = ? AND kind = ? AND name = ? AND item >= ? AND item < ?";
pub(super) const TAKE_ALL: &str = "DELETE FROM object USING TIMESTAMP ? WHERE site = ? AND kind = ? AND name = ?";
const GET: &str = "SELECT item, value FROM object WHERE site = ? AND kind = ? AND name = ?";
const GET_HEAD: &str = "SELECT value FROM object WHERE site = ? AND kind = ? AND name = ? AND item = 0x00";

/// The first byte of `item` says what it is. A head has no more than that; they are read in this order.
const HEAD: u8 = 0;
/// A row: its name follows.
const ROW: u8 = 1;
/// A chunk of a large write: its `upto`, a number of its writer's, the chunk's.
const CHUNK: u8 = 2;
/// A write that the cluster refused; the value says why.
const REFUSED: u8 = 3;

/// Most bytes, and most rows, written as one mutation. (Cassandra's `batch_size_fail_threshold` is for several; one may have half a segment of its commit log.)
const WHOLE_BYTES: usize = 256 << 10;
const WHOLE_ROWS: usize = 1_000;
/// Bytes of a chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// Most bytes of one row: both servers refuse mutations of 16 MiB, not in words that tell it from trouble that passes.
const MOST_ROW: usize = 8 << 20;
/// How often an object that changes while it is read page by page is read again.
const TRIES: usize = 20;

/// Version byte of chunks.
const VERSION: u8 = 1;

/// A row as read: item and value.
type Raw = (Vec<u8>, Option<Vec<u8>>);

/// A write in the bytes it is stored in.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Encoded {
    pub(super) upto: u64,
    head: Vec<u8>,
    clear: bool,
    purge: Vec<String>,
    rows: Vec<(String, Vec<u8>)>,
}

/// What is read of a partition.
#[derive(Debug, Default)]
struct Found {
    /// The object as it is to be shown.
    object: Option<StoredObject>,
    /// Large writes newer than the head, which the object has in it, the earliest first.
    unfinished: Vec<Encoded>,
}

impl Encoded {
    pub(super) fn of(write: &ObjectWrite) -> Self {
        Self {
            upto: write.head.upto,
            head: head_to_bytes(&write.head),
            clear: write.clear,
            purge: write.purge.clone(),
            rows: write.rows.iter().map(|row| (row.item.clone(), row_to_bytes(row))).collect(),
        }
    }

    /// Why no cluster takes it.
    fn unstorable(&self) -> Option<String> {
        let largest = self.rows.iter().map(|(_, value)| value.len()).max()?;
        (largest > MOST_ROW).then(|| format!("a row has {largest} bytes, at most {MOST_ROW} can be stored"))
    }

    /// All but the head, in pieces that may be written in any order.
    pub(super) fn body(&self, key: &ObjectKey) -> Result<Vec<(usize, Write)>, Error> {
        let (before, at) = (stamp::before(self.upto)?, stamp::at(self.upto)?);
        let fixed = fixed_bytes(key);
        let mut pieces = Vec::with_capacity(self.rows.len() + self.purge.len() + 2);
        if self.clear {
            pieces.push((fixed, take_some(key, ROW, before)));
        }
        for item in &self.purge {
            let (site, kind, name) = columns(key);
            pieces.push((fixed + item.len(), Write::new(TAKE, (before, site, kind, name, row_item(item)))));
        }
        for (item, value) in &self.rows {
            pieces.push((fixed + item.len() + value.len(), put(key, row_item(item), value.clone(), at)));
        }
        Ok(pieces)
    }

    /// Whether all of it may be one mutation.
    fn is_small(&self, key: &ObjectKey) -> bool {
        let items = self.purge.iter().map(String::len).chain(self.rows.iter().map(|(item, value)| item.len() + value.len()));
        let pieces = self.purge.len() + self.rows.len() + 1;
        pieces < WHOLE_ROWS && self.head.len() + pieces * fixed_bytes(key) + items.sum::<usize>() <= WHOLE_BYTES
    }

    /// All of it, as one mutation.
    fn whole(&self, key: &ObjectKey) -> Result<Vec<Write>, Error> {
        Ok(self.body(key)?.into_iter().map(|(_, piece)| piece).chain([self.head(key)?]).collect())
    }

    fn head(&self, key: &ObjectKey) -> Result<Write, Error> {
        Ok(put(key, vec![HEAD], self.head.clone(), stamp::at(self.upto)?))
    }

    /// The chunks that hold all of it.
    pub(super) fn chunks(&self, key: &ObjectKey) -> Result<Vec<Write>, Error> {
        let bytes = postcard::to_extend(self, vec![VERSION]).unwrap_or_default();
        let (writer, count) = (rand::random::<u64>(), bytes.len().div_ceil(CHUNK_BYTES) as u32);
        let at = stamp::at(self.upto)?;
        let chunk = |(number, part): (u32, &[u8])| {
            let item = [&[CHUNK][..], &self.upto.to_be_bytes(), &writer.to_be_bytes(), &number.to_be_bytes()].concat();
            put(key, item, [&count.to_be_bytes()[..], part].concat(), at)
        };
        Ok((0..).zip(bytes.chunks(CHUNK_BYTES)).map(chunk).collect())
    }
}

/// About how many bytes a piece of an object has beside its item.
fn fixed_bytes(key: &ObjectKey) -> usize {
    key.name.len() + key.site.as_str().len() + 32
}

/// The columns that name an object.
pub(super) fn columns(key: &ObjectKey) -> (String, i8, String) {
    (key.site.as_str().to_owned(), key.kind as i8, key.name.clone())
}

fn put(key: &ObjectKey, item: Vec<u8>, value: Vec<u8>, at: i64) -> Write {
    let (site, kind, name) = columns(key);
    Write::new(PUT, (site, kind, name, item, value, at))
}

/// Removes all items of a kind.
fn take_some(key: &ObjectKey, of: u8, at: i64) -> Write {
    let (site, kind, name) = columns(key);
    Write::new(TAKE_SOME, (at, site, kind, name, vec![of], vec![of + 1]))
}

fn row_item(item: &str) -> Vec<u8> {
    [&[ROW], item.as_bytes()].concat()
}

/// Reads a partition's rows, in their order.
fn read(key: &ObjectKey, raw: Vec<Raw>) -> Result<Found, Error> {
    let (mut head, mut rows, mut chunks) = (None, BTreeMap::new(), BTreeMap::new());
    for (item, value) in raw {
        let value = value.ok_or_else(|| corrupt(key, "a row has no value"))?;
        match item.split_first() {
            Some((&HEAD, [])) => head = Some(head_from_bytes(key, &value)?),
            Some((&ROW, name)) => {
                let name = std::str::from_utf8(name).map_err(|_| corrupt(key, "an item's name is malformed"))?;
                rows.insert(name.to_owned(), value);
            }
            Some((&CHUNK, rest)) => gather_chunk(key, &mut chunks, rest, &value)?,
            Some((&REFUSED, _)) => return Err(corrupt(key, &format!("a write of it was refused: {}", String::from_utf8_lossy(&value)))),
            _ => return Err(corrupt(key, "a row is of no kind this build knows")),
        }
    }
    let mut found = Found::default();
    for ((upto, _), (count, of, bytes)) in chunks {
        // One that is not whole was not begun.
        if count != of || head.as_ref().is_some_and(|head: &Head| head.upto >= upto) {
            continue;
        }
        let write: Encoded = match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| corrupt(key, "a large write is malformed"))?,
            _ => return Err(corrupt(key, "a large write is of a later version")),
        };
        if write.clear {
            rows.clear();
        }
        write.purge.iter().for_each(|item| drop(rows.remove(item)));
        rows.extend(write.rows.iter().cloned());
        head = Some(head_from_bytes(key, &write.head)?);
        found.unfinished.push(write);
    }
    let Some(head) = head else {
        return if rows.is_empty() { Ok(found) } else { Err(corrupt(key, "it has rows but no head")) };
    };
    let rows = rows.into_iter().map(|(item, value)| row_from_bytes(key, &item, &value)).collect::<Result<_, _>>()?;
    found.object = Some(StoredObject { key: key.clone(), head, rows });
    Ok(found)
}

/// Chunks by (upto, writer): how many in a row, of how many, and their bytes.
type Chunks = BTreeMap<(u64, u64), (u32, u32, Vec<u8>)>;

fn gather_chunk(key: &ObjectKey, chunks: &mut Chunks, item: &[u8], value: &[u8]) -> Result<(), Error> {
    let numbers = || {
        let (upto, rest) = item.split_first_chunk::<8>()?;
        let (writer, rest) = rest.split_first_chunk::<8>()?;
        let (of, bytes) = value.split_first_chunk::<4>()?;
        let number: [u8; 4] = rest.try_into().ok()?;
        Some((u64::from_be_bytes(*upto), u64::from_be_bytes(*writer), u32::from_be_bytes(number), u32::from_be_bytes(*of), bytes))
    };
    let (upto, writer, number, of, part) = numbers().ok_or_else(|| corrupt(key, "a chunk of a large write is malformed"))?;
    let (count, _, bytes) = chunks.entry((upto, writer)).or_insert((0, of, Vec::new()));
    // They come in order; after a gap no count is right.
    if number == *count {
        *count += 1;
        bytes.extend_from_slice(part);
    }
    Ok(())
}

/// What an object's own bytes are to blame for, and what not.
fn of_object(key: &ObjectKey, error: cql::Error) -> Error {
    match error {
        cql::Error::Form(what) => corrupt(key, &what),
        other => other.into(),
    }
}

impl Scylla {
    /// An object as it stands.
    pub(super) async fn load_one(&self, key: &ObjectKey) -> Result<Option<StoredObject>, Error> {
        let found = self.find(key).await?;
        if !found.unfinished.is_empty() {
            self.unfinished().insert(key.clone());
        }
        Ok(found.object)
    }

    async fn find(&self, key: &ObjectKey) -> Result<Found, Error> {
        for _ in 0..TRIES {
            let (raw, pages) = self.cluster.paged::<Raw>(GET, columns(key)).await.map_err(|error| of_object(key, error))?;
            // Several pages are of several moments: they belong together where the head is the same after them.
            let head = raw.first().filter(|(item, _)| item == &[HEAD]).and_then(|(_, value)| value.clone());
            if pages < 2 || self.head_bytes(key).await? == head {
                return read(key, raw);
            }
        }
        Err(Error::Store(format!("an object of kind {:?} changes faster than it can be read", key.kind)))
    }

    /// An object's head, without what a large write has yet to finish.
    pub(super) async fn head(&self, key: &ObjectKey) -> Result<Option<Head>, Error> {
        self.head_bytes(key).await?.map(|bytes| head_from_bytes(key, &bytes)).transpose()
    }

    async fn head_bytes(&self, key: &ObjectKey) -> Result<Option<Vec<u8>>, Error> {
        let rows: Vec<(Option<Vec<u8>>,)> = self.cluster.rows(GET_HEAD, columns(key)).await.map_err(|error| of_object(key, error))?;
        Ok(rows.into_iter().next().and_then(|(value,)| value))
    }

    /// Writes objects, no two of them the same: small writes together, the others each by itself. Those that are refused for good are marked so, and given.
    pub(super) async fn put_all(&self, writes: Vec<ObjectWrite>) -> Result<Vec<(ObjectKey, Error)>, Error> {
        let (mut small, mut wholes, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for write in writes {
            let encoded = Encoded::of(&write);
            if encoded.is_small(&write.key) && encoded.unstorable().is_none() && !self.unfinished().contains(&write.key) {
                wholes.push(encoded.whole(&write.key)?);
                small.push((write.key, encoded.upto));
            } else {
                others.push(self.put(write));
            }
        }
        let together = async {
            let refused = self.cluster.write_wholes(wholes).await?;
            let refused = small.iter().zip(refused).filter_map(|(object, refused)| Some((object, refused?)));
            let marks = refused.map(|((key, upto), why)| async move { self.mark_refused(key, *upto, &why).await });
            Cluster::gather(marks.collect()).await
        };
        let (mut refused, others) = futures::future::try_join(together, Cluster::gather(others)).await?;
        refused.extend(others.into_iter().flatten());
        Ok(refused)
    }

    /// Writes an object. One that is refused for good is marked so, and given.
    async fn put(&self, write: ObjectWrite) -> Result<Option<(ObjectKey, Error)>, Error> {
        let (encoded, key) = (Encoded::of(&write), write.key);
        if self.unfinished().contains(&key) {
            self.finish(&key).await?;
        }
        let refused = match encoded.unstorable() {
            Some(what) => what,
            None => match self.put_encoded(&key, &encoded).await {
                Ok(()) => return Ok(None),
                Err(Failed::Refused(what)) => what,
                Err(Failed::Other(error)) => return Err(error),
            },
        };
        self.mark_refused(&key, encoded.upto, &refused).await.map(Some)
    }

    /// Marks an object whose write is refused for good, and tells so.
    async fn mark_refused(&self, key: &ObjectKey, upto: u64, refused: &str) -> Result<(ObjectKey, Error), Error> {
        // Where not even this is taken, it is not the object that is refused.
        let mark = put(key, vec![REFUSED], refused.as_bytes().to_vec(), stamp::at(upto)?);
        self.cluster.write_whole(vec![mark]).await?;
        metrics::counter!("contrail_objects_refused_total").increment(1);
        Ok((key.clone(), corrupt(key, &format!("a write of it was refused: {refused}"))))
    }

    async fn put_encoded(&self, key: &ObjectKey, write: &Encoded) -> Result<(), Failed> {
        if write.is_small(key) {
            return Ok(self.cluster.write_whole(write.whole(key)?).await?);
        }
        self.cluster.write(write.chunks(key)?).await?;
        self.spread(key, write, write.body(key)?).await
    }

    /// Writes the rows of a large write whose chunks are there, then the head, which takes them away.
    async fn spread(&self, key: &ObjectKey, write: &Encoded, pieces: Vec<(usize, Write)>) -> Result<(), Failed> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        for (size, piece) in pieces {
            if bytes + size > WHOLE_BYTES || group.len() >= WHOLE_ROWS {
                self.cluster.write_whole(std::mem::take(&mut group)).await?;
                bytes = 0;
            }
            bytes += size;
            group.push(piece);
        }
        self.cluster.write_whole(group).await?;
        let chunks = take_some(key, CHUNK, stamp::after(write.upto)?);
        Ok(self.cluster.write_whole(vec![write.head(key)?, chunks]).await?)
    }

    /// Makes good what large writes had begun: the next write has only what changes after them.
    async fn finish(&self, key: &ObjectKey) -> Result<(), Error> {
        for write in self.find(key).await?.unfinished {
            let pieces = write.body(key)?;
            self.spread(key, &write, pieces).await.map_err(Failed::whole)?;
        }
        self.unfinished().remove(key);
        Ok(())
    }
}

/// Why a write failed: refused as it is, or for reasons of others'.
enum Failed {
    Refused(String),
    Other(Error),
}

impl Failed {
    fn whole(self) -> Error {
        match self {
            Self::Refused(what) => Error::Store(what),
            Self::Other(error) => error,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<cql::Error> for Failed {
    fn from(error: cql::Error) -> Self {
        match error {
            cql::Error::Refused(what) => Self::Refused(what),
            other => Self::Other(other.into()),
        }
    }
}
