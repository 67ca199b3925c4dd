//! Proves an archive: that its answers equal a recount of its event rows, and that its books balance with rows and log. Called by `contrail audit`, load tests and the
//! crash tests; reads only. Must never take a figure of the archiver's for granted: it folds all rows through identity anew and sums them itself.
//!
//! What it cannot see: a repeat leaves no row, so that a checkout's last sign of life may be later than its rows tell; and where the best of a fact's reports went
//! with its day and another is left for the next one, a recount takes that one's word until its day goes too. Estimates of people are recounted by the
//! archive's own sketch.

mod books;
mod recount;

use std::fmt;

use serde::Serialize;

use super::rollup::hour_of;
use super::{Archive, Cursor, Error, EventRow, Metric, Scan, ScanBy};
use crate::event::{RulesOf, SiteId, Timestamp};
use crate::eventlog::EventLog;

/// Differences kept; further ones are only counted.
const KEPT: usize = 1_000;

/// Rows read at once.
const PAGE: usize = 500;

/// Before every event.
const FIRST: Timestamp = Timestamp::from_micros(-62_135_596_800_000_000);

/// After every event: 9999-12-30, a border of cells and hours.
const LAST: Timestamp = Timestamp::from_micros(253_402_128_000_000_000);

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Audit {
    /// Event rows recounted.
    pub events: u64,
    /// Cells compared.
    pub cells: u64,
    /// Hours of books compared.
    pub hours: u64,
    /// Records of the log compared; 0 without a log.
    pub records: u64,
    /// Whether the archive went on meanwhile, so that differences prove nothing: audit again when it stands still.
    pub moved: bool,
    /// What does not agree, at most the first thousand.
    pub differences: Vec<Difference>,
    /// How much does not agree.
    pub found: u64,
}

/// One thing that does not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Whose.
    pub site: SiteId,
    /// What it is about, such as `views of sku-1 in 2026-11-20T10:00:00Z`.
    pub what: String,
    /// What the archive's answers or books say.
    pub stated: String,
    /// What the recount, the rows or the log say.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: the archive states {}, found {}", self.site, self.what, self.stated, self.found)
    }
}

impl Audit {
    /// Whether everything agrees.
    pub const fn is_clean(&self) -> bool {
        self.found == 0
    }

    fn note(&mut self, site: &SiteId, what: String, stated: impl fmt::Display, found: impl fmt::Display) {
        self.found += 1;
        if self.differences.len() < KEPT {
            self.differences.push(Difference { site: site.clone(), what, stated: stated.to_string(), found: found.to_string() });
        }
    }
}

/// Audits all sites; with a log, as far as that is kept, also against the log. Memory grows with the cells, orders and checkouts of one site; rows are held
/// a part at a time.
///
/// # Errors
/// Those of archive and log; differences are no error.
pub async fn audit(archive: &dyn Archive, log: Option<&dyn EventLog>, rules: &RulesOf) -> Result<Audit, Error> {
    let before = archive.cursors().await?;
    let mut audit = Audit::default();
    let sites = archive.sites().await?;
    let kept_from = books::first_hour(archive, &sites).await?;
    for site in &sites {
        let bytes = books::check_rows(archive, site, &before, kept_from, &mut audit).await?;
        recount::check(archive, &rules(site), site, &before, bytes, &mut audit).await?;
    }
    if let Some(log) = log {
        books::check_log(archive, log, &sites, &before, kept_from, &mut audit).await?;
    }
    audit.moved = archive.cursors().await? != before;
    Ok(audit)
}

/// Goes through the event rows of a site that lie below `cursors`.
async fn each_row(archive: &dyn Archive, site: &SiteId, cursors: &[Cursor], mut visit: impl FnMut(EventRow)) -> Result<(), Error> {
    let mut scan = Scan { by: ScanBy::All, limit: PAGE, ..Scan::default() };
    loop {
        let rows = archive.scan(site, &scan).await?;
        let more = rows.len() >= PAGE;
        scan.after = rows.last().map(|row| (row.occurred_at, row.partition, row.offset));
        for row in rows {
            if cursors.get(usize::from(row.partition)).is_some_and(|cursor| row.offset < cursor.next) {
                visit(row);
            }
        }
        if !more {
            return Ok(());
        }
    }
}

const fn metric_name(metric: Metric) -> &'static str {
    match metric {
        Metric::Searches => "searches",
        Metric::EmptySearches => "searches without results",
        Metric::Views => "views",
        Metric::Pages => "page views",
        Metric::Sold => "sales",
        Metric::Steps => "steps",
    }
}

#[cfg(test)]
mod tests;
