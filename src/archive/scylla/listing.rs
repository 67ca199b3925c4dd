//! Which partitions of the tables by time there are: lists of plain rows, written beside what they list, so that a question asks for what exists
//! and nothing else. Written by all parts of this backend that write such tables, read by all that read them. What it remembers is only ever what
//! is acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use crate::archive::{Error, Metric};
use crate::cql::{Cluster, Write};
use crate::event::Timestamp;

use super::stamp;

/// Every day.
pub(super) const ALL_DAYS: RangeInclusive<i32> = i32::MIN..=i32::MAX;

/// Most lines remembered; beyond, it starts anew.
const REMEMBERED: usize = 200_000;

const PUT_DAY: &str = "INSERT INTO listed_day (site, what, day, part, taken) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT: &str = "INSERT INTO listed (site, what, day, hour, part, bucket) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const DAYS: &str = "SELECT day, part, taken FROM listed_day WHERE site = ? AND what = ? AND day >= ? AND day <= ?";
const OF_DAY: &str = "SELECT hour, part, bucket FROM listed WHERE site = ? AND what = ? AND day = ?";
const TAKE_DAY: &str = "DELETE FROM listed_day USING TIMESTAMP ? WHERE site = ? AND what = ? AND day = ? AND part = ?";
const TAKE: &str = "DELETE FROM listed USING TIMESTAMP ? WHERE site = ? AND what = ? AND day = ? AND hour = ? AND part = ? AND bucket = ?";

/// Kind of thing that is listed. A number never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum What {
    /// Buckets of event rows.
    Events,
    /// Cells of a metric.
    Cells(Metric),
    /// Times at which orders count.
    Sales,
    /// Times at which steps count.
    Steps,
    /// Last signs of life of checkouts.
    LastSigns,
    /// Buckets of quarantined records.
    Quarantine,
    /// Books.
    Books,
}

impl What {
    pub(super) const fn number(self) -> i8 {
        match self {
            Self::Events => 0,
            Self::Sales => 1,
            Self::Steps => 2,
            Self::LastSigns => 3,
            Self::Quarantine => 4,
            Self::Books => 5,
            Self::Cells(metric) => 16 + metric as i8,
        }
    }
}

/// One partition of a table by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Line {
    /// Its name; empty for records of no site.
    pub(super) site: String,
    pub(super) what: What,
    pub(super) day: i32,
    /// Of the day.
    pub(super) hour: i8,
    pub(super) part: u16,
    pub(super) bucket: i64,
    /// Day it was taken on, where retention asks for it; else 0.
    pub(super) taken: i32,
}

impl Line {
    /// The line of what stands at a time, in buckets or not.
    pub(super) fn at(site: &str, what: What, at: Timestamp, part: u16, bucket: i64, taken: i32) -> Self {
        let hour = stamp::hour(at).rem_euclid(24) as i8;
        Self { site: site.to_owned(), what, day: at.utc_day(), hour, part, bucket, taken }
    }

    /// Hours since the epoch.
    pub(super) fn full_hour(&self) -> i32 {
        self.day * 24 + i32::from(self.hour)
    }
}

/// The lists, and what of them is known to be written.
pub(super) struct Listing {
    known: Mutex<HashSet<Line>>,
}

impl Listing {
    pub(super) fn new() -> Self {
        Self { known: Mutex::new(HashSet::new()) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<Line>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to `writes` what makes these lines known; gives those that are to be remembered once that is acknowledged. Each line comes with its
    /// write timestamp.
    pub(super) fn put(&self, lines: BTreeMap<Line, i64>, writes: &mut Vec<Write>) -> Vec<Line> {
        let fresh: BTreeMap<Line, i64> = {
            let known = self.known();
            lines.into_iter().filter(|(line, _)| !known.contains(line)).collect()
        };
        for (line, stamp) in &fresh {
            let Line { site, what, day, hour, part, bucket, taken } = line;
            let (site, part) = (site.clone(), *part as i16);
            writes.push(Write::new(PUT_DAY, (site.clone(), what.number(), *day, part, *taken, *stamp)));
            writes.push(Write::new(PUT, (site, what.number(), *day, *hour, part, *bucket, *stamp)));
        }
        fresh.into_keys().collect()
    }

    /// These lines are acknowledged.
    pub(super) fn remember(&self, lines: Vec<Line>) {
        let mut known = self.known();
        if known.len() > REMEMBERED {
            known.clear();
        }
        known.extend(lines);
    }

    /// Forgets what it remembers: somebody may have removed it.
    pub(super) fn forget(&self) {
        self.known().clear();
    }

    /// The days among `within` that hold anything of a kind, each with the greatest day it was taken on.
    pub(super) async fn days(cluster: &Cluster, site: &str, what: What, within: RangeInclusive<i32>) -> Result<BTreeMap<i32, i32>, Error> {
        if within.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<(i32, i16, i32)> = cluster.rows(DAYS, (site, what.number(), within.start(), within.end())).await?;
        let mut days = BTreeMap::new();
        for (day, _, taken) in rows {
            let known = days.entry(day).or_insert(taken);
            *known = taken.max(*known);
        }
        Ok(days)
    }

    /// The partitions of a day, in (hour, part, bucket) order.
    pub(super) async fn of_day(cluster: &Cluster, site: &str, what: What, day: i32) -> Result<Vec<Line>, Error> {
        let rows: Vec<(i8, i16, i64)> = cluster.rows(OF_DAY, (site, what.number(), day)).await?;
        let line = |(hour, part, bucket)| Line { site: site.to_owned(), what, day, hour, part: part as u16, bucket, taken: 0 };
        Ok(rows.into_iter().map(line).collect())
    }

    /// The partitions whose hour overlaps `from..to`, in (day, hour, part, bucket) order.
    pub(super) async fn between(cluster: &Cluster, site: &str, what: What, from: Timestamp, to: Timestamp) -> Result<Vec<Line>, Error> {
        if from >= to {
            return Ok(Vec::new());
        }
        let (first, last) = (stamp::hour(from), stamp::hour(to.plus_micros(-1)));
        let days = Self::days(cluster, site, what, first.div_euclid(24)..=last.div_euclid(24)).await?;
        let lines = Cluster::gather(days.into_keys().map(|day| Self::of_day(cluster, site, what, day)).collect()).await?;
        Ok(lines.into_iter().flatten().filter(|line| (first..=last).contains(&line.full_hour())).collect())
    }

    /// What removes these lines, and the days of them that have no other, with the write timestamp of each one's part.
    pub(super) fn take(lines: &[Line], stamp: impl Fn(u16) -> i64) -> Vec<Write> {
        let mut writes = Vec::with_capacity(lines.len());
        let mut days = BTreeSet::new();
        for Line { site, what, day, hour, part, bucket, .. } in lines {
            let named = (site.clone(), what.number(), *day);
            writes.push(Write::new(TAKE, (stamp(*part), named.0.clone(), named.1, named.2, *hour, *part as i16, *bucket)));
            days.insert((named, *part));
        }
        let days = days.into_iter().map(|((site, what, day), part)| Write::new(TAKE_DAY, (stamp(part), site, what, day, part as i16)));
        writes.extend(days);
        writes
    }
}
