//! Which names there are of a site and kind, spread over a fixed number of partitions by a hash. A name stands here from before its object is first written until
//! the object is purged; so does its SID. Used by the ObjectStore of this folder alone.

use std::cmp::Ordering;

use super::Scylla;
use crate::cql::{Cluster, Write};
use crate::event::{ObjectKey, ObjectKind, SiteId};
use crate::sync::{Error, Head, Seek, naming};

const PUT: &str = "INSERT INTO object_name (site, kind, bucket, name) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
const TAKE: &str = "DELETE FROM object_name USING TIMESTAMP ? WHERE site = ? AND kind = ? AND bucket = ? AND name = ?";
const GET: &str = "SELECT name FROM object_name WHERE site = ? AND kind = ? AND bucket = ? AND name >= ? LIMIT ?";
const GET_DOWN: &str =
    "SELECT name FROM object_name WHERE site = ? AND kind = ? AND bucket = ? AND name >= ? AND name < ? ORDER BY name DESC LIMIT ?";

const PUT_SID: &str = "INSERT INTO object_sid (site, kind, number, name) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
const TAKE_SID: &str = "DELETE FROM object_sid USING TIMESTAMP ? WHERE site = ? AND kind = ? AND number = ?";
const GET_SID: &str = "SELECT name FROM object_sid WHERE site = ? AND kind = ? AND number = ?";

/// Partitions of one site and kind. Never another number.
const BUCKETS: u32 = 64;
/// Heads read at once.
pub(super) const HEADS: usize = 512;

fn bucket(name: &str) -> i8 {
    (crc32c::crc32c(name.as_bytes()) % BUCKETS) as i8
}

/// What lists an object.
pub(super) fn put(key: &ObjectKey, at: i64) -> Write {
    let (site, kind, bucket) = (key.site.as_str().to_owned(), key.kind as i8, bucket(&key.name));
    Write::new(PUT, (site, kind, bucket, key.name.clone(), at)).beside((&key.site, kind, bucket), 40 + key.name.len())
}

/// What takes it from the list.
pub(super) fn take(key: &ObjectKey, at: i64) -> Write {
    Write::new(TAKE, (at, key.site.as_str().to_owned(), key.kind as i8, bucket(&key.name), key.name.clone()))
}

/// What finds an object by its SID.
pub(super) fn put_sid(key: &ObjectKey, incarnation: u64, at: i64) -> Write {
    let number = naming::sid_number(key, incarnation).to_vec();
    Write::new(PUT_SID, (key.site.as_str().to_owned(), key.kind as i8, number, key.name.clone(), at))
}

/// What ends that.
pub(super) fn take_sid(key: &ObjectKey, incarnation: u64, at: i64) -> Write {
    Write::new(TAKE_SID, (at, key.site.as_str().to_owned(), key.kind as i8, naming::sid_number(key, incarnation).to_vec()))
}

/// The least text after this one.
fn next_after(text: &str) -> String {
    format!("{text}\0")
}

impl Scylla {
    /// The name of the object that is listed under a SID.
    pub(super) async fn name_of_sid(&self, site: &SiteId, kind: ObjectKind, number: &[u8; 16]) -> Result<Option<String>, Error> {
        let rows: Vec<(String,)> = self.cluster.rows(GET_SID, (site.as_str(), kind as i8, &number[..])).await?;
        Ok(rows.into_iter().next().map(|(name,)| name))
    }

    /// Living objects in the order of `seek`.
    pub(super) async fn listed(
        &self,
        site: &SiteId,
        kind: ObjectKind,
        prefix: &str,
        seek: Seek<&str>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let mut range = match seek {
            Seek::First => Range::Up(prefix.to_owned()),
            Seek::After(after) => Range::Up(next_after(after).max(prefix.to_owned())),
            Seek::Before(before) => Range::Down(prefix.to_owned(), before.to_owned()),
        };
        if let Range::Down(_, before) = &mut range
            && before.as_str() > prefix
            && !before.starts_with(prefix)
        {
            // Behind the last with this prefix: no name goes on with the last of all code points, which is no character.
            *before = format!("{prefix}{}", char::MAX);
        }
        let mut out = Vec::new();
        while out.len() < limit {
            let (names, whole_to) = self.names_of(site, kind, &range, limit - out.len()).await?;
            let mut keys: Vec<ObjectKey> = names.into_iter().map(|name| ObjectKey { site: site.clone(), kind, name }).collect();
            let end = keys.partition_point(|key| key.name.starts_with(prefix));
            let ended = end < keys.len() || whole_to.is_none();
            keys.truncate(end);
            for keys in keys.chunks(HEADS) {
                let heads = Cluster::gather(keys.iter().map(|key| self.head(key)).collect()).await?;
                let living = keys.iter().zip(heads).filter_map(|(key, head)| Some((key.clone(), head.filter(|head| head.removed_at.is_none())?)));
                out.extend(living);
                if out.len() >= limit {
                    break;
                }
            }
            match whole_to {
                Some(last) if !ended => range.go_on(last),
                _ => break,
            }
        }
        out.truncate(limit);
        Ok(out)
    }

    /// About `wanted` names of a range, in its order, all that there are up to the last of them; that one, where there may be more.
    async fn names_of(&self, site: &SiteId, kind: ObjectKind, range: &Range, wanted: usize) -> Result<(Vec<String>, Option<String>), Error> {
        // Twice what comes to one bucket.
        let each = (wanted / (BUCKETS as usize / 2) + 8).min(10_000);
        let ask = async |bucket: u32| {
            let (kind, bucket, each) = (kind as i8, bucket as i8, each as i32);
            match range {
                Range::Up(from) => self.cluster.rows::<(String,)>(GET, (site.as_str(), kind, bucket, from, each)).await,
                Range::Down(least, before) => self.cluster.rows(GET_DOWN, (site.as_str(), kind, bucket, least, before, each)).await,
            }
        };
        let buckets = Cluster::gather((0..BUCKETS).map(ask).collect()).await?;
        // A bucket that gave all that was asked for may have more after its last.
        let full = buckets.iter().filter(|names| names.len() >= each).filter_map(|names| names.last()).map(|(name,)| name.clone());
        let whole_to = full.min_by(|a, b| range.order(a, b));
        let mut names: Vec<String> = buckets.into_iter().flatten().map(|(name,)| name).collect();
        names.retain(|name| whole_to.as_ref().is_none_or(|last| range.order(name, last).is_le()));
        names.sort_unstable_by(|a, b| range.order(a, b));
        Ok((names, whole_to))
    }
}

/// Names that are asked for, in the order they are to come in.
enum Range {
    /// From this one on.
    Up(String),
    /// From the first before the second down to the first.
    Down(String, String),
}

impl Range {
    fn order(&self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Up(_) => a.cmp(b),
            Self::Down(..) => b.cmp(a),
        }
    }

    /// What comes after this name.
    fn go_on(&mut self, last: String) {
        match self {
            Self::Up(from) => *from = next_after(&last),
            Self::Down(_, before) => *before = last,
        }
    }
}
