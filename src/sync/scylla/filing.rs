//! Objects by the hour of their last change, for expiry: lines written once per object and hour, before the object is. The head tells whether a line is still
//! true; who meets one that is not takes it away. Used by the ObjectStore of this folder alone.
//!
//! Each line says which write it was made for, and is taken away as of that write: a later one that puts it again is not undone. The list of hours is written
//! after their lines, by the clock, and an hour leaves it as of a moment before its lines were looked at, a day later at the earliest.

use super::listing::HEADS;
use super::object::columns;
use super::{Scylla, stamp};
use crate::cql::{Cluster, Write};
use crate::event::{ObjectKey, ObjectKind, SiteId, Timestamp};
use crate::sync::stored::{Filing, Shelf, filing_of, hour_of, is_asked_for};
use crate::sync::{Error, Head};

const PUT: &str = "INSERT INTO object_hour (part, family, hour, name, site, kind, upto) VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const TAKE: &str = "DELETE FROM object_hour USING TIMESTAMP ? WHERE part = ? AND family = ? AND hour = ? AND name = ? AND site = ? AND kind = ?";
const GET: &str = "SELECT name, site, kind, upto FROM object_hour WHERE part = ? AND family = ? AND hour = ?";
const PUT_HOUR: &str = "INSERT INTO listed_hour (part, family, hour) VALUES (?, ?, ?) USING TIMESTAMP ?";
const TAKE_HOUR: &str = "DELETE FROM listed_hour USING TIMESTAMP ? WHERE part = ? AND family = ? AND hour = ?";
const GET_HOURS: &str = "SELECT hour FROM listed_hour WHERE part = ? AND family = ? AND hour <= ?";

/// Removed objects, whatever their names.
const REMOVED: i8 = 0;
/// Objects with lifetimes, whatever their names.
const EXPIRING: i8 = 31;
/// What names begin with, up to the first dot, that have a list of their own: 1 and so on. A number never changes its meaning.
const FAMILIES: [&str; 9] = ["customer", "visitor", "trail", "page", "product", "checkout", "index", "top", "link"];
/// All others share lists by a hash, from here on.
const OTHERS: i8 = 32;
const OTHER_LISTS: u32 = 64;
/// Hours before now in which lines are never taken for forgotten.
const FRESH_HOURS: i64 = 24;

/// One hour's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Hour {
    hour: i64,
    part: u16,
    family: i8,
}

/// A line of it, and the write it was made for.
#[derive(Debug)]
struct Line {
    key: ObjectKey,
    upto: u64,
}

fn family_of(name: &str) -> i8 {
    let begins = name.split_once('.').map_or("", |(family, _)| family);
    match (1..).zip(FAMILIES).find(|(_, known)| *known == begins) {
        Some((number, _)) => number,
        None => OTHERS + (crc32c::crc32c(begins.as_bytes()) % OTHER_LISTS) as i8,
    }
}

/// The families in which names of this prefix are.
fn families_of(prefix: &str) -> Vec<i8> {
    if prefix.contains('.') {
        return vec![family_of(prefix)];
    }
    (1..=FAMILIES.len() as i8).chain((0..OTHER_LISTS as i8).map(|n| OTHERS + n)).collect()
}

impl Hour {
    /// Where an object is listed.
    pub(super) fn of(key: &ObjectKey, (shelf, hour): Filing) -> Self {
        let family = match shelf {
            Shelf::Removed => REMOVED,
            Shelf::Expiring => EXPIRING,
            Shelf::Living => family_of(&key.name),
        };
        Self { hour, part: key.partition(), family }
    }

    fn columns(self) -> (i16, i8, i32) {
        (self.part as i16, self.family, self.hour.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32)
    }

    /// What lists an object here, for a write.
    pub(super) fn put(self, key: &ObjectKey, upto: u64) -> Result<Write, Error> {
        let ((part, family, hour), (site, kind, name)) = (self.columns(), columns(key));
        let bytes = 60 + name.len() + site.len();
        Ok(Write::new(PUT, (part, family, hour, name, site, kind, upto as i64, stamp::at(upto)?)).beside(self, bytes))
    }

    /// What takes it away as of a write.
    pub(super) fn take(self, key: &ObjectKey, at: i64) -> Write {
        let ((part, family, hour), (site, kind, name)) = (self.columns(), columns(key));
        Write::new(TAKE, (at, part, family, hour, name, site, kind)).beside(self, 60 + key.name.len())
    }

    /// What puts it in the list of hours.
    pub(super) fn put_hour(self, now: Timestamp) -> Write {
        let (part, family, hour) = self.columns();
        Write::new(PUT_HOUR, (part, family, hour, now.micros()))
    }

    /// Whether it is so near to now that it is not taken from the list of hours, and so need be put there only once.
    pub(super) fn is_fresh(self, now: Timestamp) -> bool {
        self.hour > hour_of(now) - FRESH_HOURS
    }
}

impl Scylla {
    /// Living objects last changed before a time.
    pub(super) async fn stale_of(&self, parts: &[u16], prefix: &str, before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.filed_before(parts, (Shelf::Living, &families_of(prefix)), prefix, before, limit).await
    }

    /// Objects with a lifetime that ends at or before `now`.
    pub(super) async fn expiring_of(&self, parts: &[u16], now: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.filed_before(parts, (Shelf::Expiring, &[EXPIRING]), "", now, limit).await
    }

    /// Tombstones last changed before a time.
    pub(super) async fn tombstones_of(&self, parts: &[u16], before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        self.filed_before(parts, (Shelf::Removed, &[REMOVED]), "", before, limit).await
    }

    /// Hour by hour, sorted within the hour, until there are enough; of the last hour whichever are found first.
    async fn filed_before(
        &self,
        parts: &[u16],
        (shelf, families): (Shelf, &[i8]),
        prefix: &str,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let lists: Vec<(u16, i8)> = parts.iter().flat_map(|part| families.iter().map(move |family| (*part, *family))).collect();
        let asked = lists.into_iter().map(|(part, family)| async move {
            let (number, _, last) = Hour { hour: hour_of(before), part, family }.columns();
            let hours: Vec<(i32,)> = self.cluster.rows(GET_HOURS, (number, family, last)).await?;
            Ok::<_, Error>(hours.into_iter().map(|(hour,)| Hour { hour: i64::from(hour), part, family }).collect::<Vec<_>>())
        });
        let mut hours: Vec<Hour> = Cluster::gather(asked.collect()).await?.into_iter().flatten().collect();
        hours.sort_unstable();
        let mut out = Vec::new();
        for same in hours.chunk_by(|a, b| a.hour == b.hour) {
            if out.len() >= limit {
                break;
            }
            let mut within = Vec::new();
            for hour in same {
                let wanted = |key: &ObjectKey, head: &Head| key.name.starts_with(prefix) && is_asked_for(shelf, head, before);
                within.extend(self.true_lines(*hour, wanted, limit - out.len()).await?);
            }
            within.sort_by_key(|(_, head)| head.updated_at);
            within.truncate(limit - out.len());
            out.append(&mut within);
        }
        Ok(out)
    }

    /// At least `enough` of the wanted objects listed in an hour whose heads say so too, or all. Takes away what is not true any longer.
    async fn true_lines(&self, hour: Hour, wanted: impl Fn(&ObjectKey, &Head) -> bool, enough: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let now = self.clock.now();
        let rows: Vec<(String, String, i8, i64)> = self.cluster.rows(GET, hour.columns()).await?;
        let mut lines = rows.into_iter().filter_map(line);
        let (mut out, mut wrong, mut kept) = (Vec::new(), Vec::new(), 0);
        while out.len() < enough {
            let some: Vec<Line> = lines.by_ref().take(HEADS).collect();
            if some.is_empty() {
                break;
            }
            let heads = Cluster::gather(some.iter().map(|line| self.readable_head(&line.key)).collect()).await?;
            for (line, head) in some.into_iter().zip(heads) {
                match head {
                    Readable::Yes(head) if Hour::of(&line.key, filing_of(&head)) == hour => {
                        kept += 1;
                        out.extend(wanted(&line.key, &head).then_some((line.key, head)));
                    }
                    Readable::Yes(head) if line.upto <= head.upto => wrong.push(hour.take(&line.key, stamp::after(line.upto)?)),
                    // A write that has not come to its head yet, or never will.
                    Readable::None if !hour.is_fresh(now) => wrong.push(hour.take(&line.key, stamp::after(line.upto)?)),
                    Readable::Yes(_) | Readable::None | Readable::No => kept += 1,
                }
            }
        }
        self.cluster.write(wrong).await?;
        if lines.next().is_none() && kept == 0 && !hour.is_fresh(now) {
            let (part, family, number) = hour.columns();
            self.cluster.write(vec![Write::new(TAKE_HOUR, (now.micros() - 1, part, family, number))]).await?;
        }
        Ok(out)
    }

    async fn readable_head(&self, key: &ObjectKey) -> Result<Readable, Error> {
        match self.head(key).await {
            Ok(head) => Ok(head.map_or(Readable::None, Readable::Yes)),
            Err(Error::Corrupt { .. }) => Ok(Readable::No),
            Err(error) => Err(error),
        }
    }
}

enum Readable {
    Yes(Head),
    /// There is none.
    None,
    /// There is one that cannot be read: it is passed over.
    No,
}

fn line((name, site, kind, upto): (String, String, i8, i64)) -> Option<Line> {
    let kind = match kind {
        0 => ObjectKind::Document,
        1 => ObjectKind::List,
        2 => ObjectKind::Map,
        3 => ObjectKind::Stream,
        _ => return None,
    };
    Some(Line { key: ObjectKey { site: SiteId::parse(&site).ok()?, kind, name }, upto: upto as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_prefix_is_in_its_families() {
        for name in ["customer.c1", "trail.visitor.v1", "customers.c1", "x.y", "funnel", "", ".x"] {
            for end in (0..=name.len()).filter(|end| name.is_char_boundary(*end)) {
                assert!(families_of(&name[..end]).contains(&family_of(name)), "{name} {end}");
            }
        }
        let own: Vec<i8> = FAMILIES.iter().map(|family| family_of(&format!("{family}.x"))).collect();
        assert_eq!(own, (1..=9).collect::<Vec<i8>>());
        assert!((OTHERS..OTHERS + 64).contains(&family_of("whatever.x")));
    }
}
