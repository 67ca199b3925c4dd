//! The books' side of an audit: that appended = archived + duplicate + quarantined for every site and hour of `received_at`, that so many rows exist, and that the
//! log, where it is still kept, holds so many records.

use std::collections::BTreeMap;

use super::{Archive, Audit, Cursor, Error, FIRST, LAST, each_row, hour_of};
use crate::archive::Books;
use crate::archive::fold::{REFUSED, UNREADABLE};
use crate::event::{Record, RecordKind, SiteId, Timestamp};
use crate::eventlog::{EventLog, Topic};

/// Quarantined records read at once.
const PAGE: usize = 500;

/// Bytes of the log read at once.
const READ: usize = 1 << 20;

/// Seconds of an hour.
const HOUR: i64 = 3_600;

/// The first hour that any site has books of: what was taken before may have left its rows (they go with their day, books by their hour) and its records in the log.
/// Without any books it is before everything while there are rows, as these should have some, and after everything in an empty archive.
pub(super) async fn first_hour(archive: &dyn Archive, sites: &[SiteId]) -> Result<Timestamp, Error> {
    let mut first = LAST;
    for site in sites {
        first = archive.books(site, FIRST, first).await?.first().map_or(first, |(hour, _)| *hour);
    }
    let bookless = first == LAST && !archive.days().await?.is_empty();
    Ok(if bookless { FIRST } else { first })
}

/// Balances a site's books by themselves and against its rows, those taken from the hour `kept_from` on; gives the bytes of all bodies.
pub(super) async fn check_rows(
    archive: &dyn Archive,
    site: &SiteId,
    cursors: &[Cursor],
    kept_from: Timestamp,
    audit: &mut Audit,
) -> Result<usize, Error> {
    let mut bytes = 0;
    let mut archived: BTreeMap<Timestamp, u64> = BTreeMap::new();
    let mut events = 0;
    each_row(archive, site, cursors, |row| {
        events += 1;
        bytes += row.body.len();
        if kept_from <= row.received_at {
            *archived.entry(hour_of(row.received_at)).or_default() += 1;
        }
    })
    .await?;
    audit.events += events;
    let mut quarantined = quarantined(archive, site).await?;
    for (hour, books) in archive.books(site, FIRST, LAST).await? {
        audit.hours += 1;
        let accounted = books.archived + books.duplicate + books.quarantined;
        if books.appended != accounted {
            let parts = format!("{} archived + {} duplicate + {} quarantined", books.archived, books.duplicate, books.quarantined);
            audit.note(site, format!("the books' balance of {hour}"), format!("{} appended", books.appended), parts);
        }
        for (what, stated, found) in
            [("events archived", books.archived, archived.remove(&hour)), ("records quarantined", books.quarantined, quarantined.remove(&hour))]
        {
            let found = found.unwrap_or(0);
            if stated != found {
                audit.note(site, format!("{what} of {hour}"), stated, format!("{found} rows"));
            }
        }
    }
    for (hour, found) in archived.into_iter().chain(quarantined) {
        audit.note(site, format!("rows of {hour}"), "no books", format!("{found} rows"));
    }
    Ok(bytes)
}

async fn quarantined(archive: &dyn Archive, site: &SiteId) -> Result<BTreeMap<Timestamp, u64>, Error> {
    let mut by_hour = BTreeMap::new();
    let mut after = None;
    loop {
        let rows = archive.quarantine(site, after, PAGE).await?;
        after = rows.last().map(|row| (row.received_at, row.partition, row.offset));
        let more = rows.len() >= PAGE;
        for row in rows {
            *by_hour.entry(hour_of(row.received_at)).or_default() += 1;
        }
        if !more {
            return Ok(by_hour);
        }
    }
}

/// How many records taken in an hour are in quarantine for what the archive made of them, not by what they are.
async fn set_aside(archive: &dyn Archive, site: &SiteId, hour: Timestamp) -> Result<u64, Error> {
    let (mut count, mut after) = (0, Some((hour.plus_seconds(-1), 0, 0)));
    loop {
        let rows = archive.quarantine(site, after, PAGE).await?;
        after = rows.last().map(|row| (row.received_at, row.partition, row.offset));
        let (more, of_hour) = (rows.len() >= PAGE, rows.iter().take_while(|row| hour_of(row.received_at) <= hour).count());
        let ours = rows.iter().take(of_hour).filter(|row| hour_of(row.received_at) == hour && [UNREADABLE, REFUSED].contains(&&*row.code));
        count += ours.count() as u64;
        if !more || of_hour < rows.len() {
            return Ok(count);
        }
    }
}

/// Compares books with the log, from the first hour on that has books and that the log holds whole in every partition.
pub(super) async fn check_log(
    archive: &dyn Archive,
    log: &dyn EventLog,
    sites: &[SiteId],
    cursors: &[Cursor],
    kept_from: Timestamp,
    audit: &mut Audit,
) -> Result<(), Error> {
    let mut tally = Tally { whole_from: kept_from, ..Tally::default() };
    for (partition, bounds) in (0u16..).zip(log.bounds(Topic::Events).await?) {
        let cursor = cursors.get(usize::from(partition)).copied().unwrap_or_default();
        if cursor.next > bounds.next {
            if let Some(site) = sites.first() {
                audit.note(
                    site,
                    format!("the log's partition {partition}"),
                    format!("read up to {}", cursor.next),
                    format!("its end at {}", bounds.next),
                );
            }
            continue;
        }
        if bounds.start > 0 && bounds.start >= cursor.next {
            tally.cut_before(cursor.received_at);
        }
        let (mut from, mut first) = (bounds.start, bounds.start > 0);
        while from < cursor.next {
            let stored = log.read(Topic::Events, partition, from, READ).await?;
            let Some(last) = stored.last() else { break };
            from = last.offset + 1;
            for record in stored.iter().filter(|stored| stored.offset < cursor.next) {
                audit.records += 1;
                let Ok(record) = Record::decode(&record.value) else { continue };
                if std::mem::take(&mut first) {
                    tally.cut_before(record.received_at);
                }
                tally.add(record);
            }
        }
    }
    for site in sites {
        tally.check(archive, site, audit).await?;
    }
    Ok(())
}

/// What the log holds by site and hour.
#[derive(Default)]
struct Tally {
    /// Hours from here on are in the log whole.
    whole_from: Timestamp,
    hours: BTreeMap<(SiteId, Timestamp), Books>,
}

impl Tally {
    /// A partition begins within the hour of `received_at`, give or take what came out of order: the second one after is whole.
    fn cut_before(&mut self, received_at: Timestamp) {
        self.whole_from = self.whole_from.max(hour_of(received_at).plus_seconds(2 * HOUR));
    }

    fn add(&mut self, record: Record) {
        let books = self.hours.entry((record.site, hour_of(record.received_at))).or_default();
        match record.kind {
            RecordKind::Event => books.appended += 1,
            RecordKind::Quarantine => (books.appended, books.quarantined) = (books.appended + 1, books.quarantined + 1),
            RecordKind::Completion => books.derived += 1,
            RecordKind::Refusals => {}
        }
    }

    async fn check(&mut self, archive: &dyn Archive, site: &SiteId, audit: &mut Audit) -> Result<(), Error> {
        for (hour, books) in archive.books(site, self.whole_from, LAST).await? {
            let log = self.hours.remove(&(site.clone(), hour)).unwrap_or_default();
            // Events of the log that could not be read or kept are in quarantine beside the records that are there for it.
            let quarantined = match books.quarantined > log.quarantined {
                true => books.quarantined.min(log.quarantined + set_aside(archive, site, hour).await?),
                false => log.quarantined,
            };
            let pairs = [
                ("appended", books.appended, log.appended),
                ("quarantined", books.quarantined, quarantined),
                ("derived", books.derived, log.derived),
            ];
            for (what, stated, found) in pairs.into_iter().filter(|(_, stated, found)| stated != found) {
                audit.note(site, format!("records {what} of {hour}"), stated, format!("{found} in the log"));
            }
        }
        let unknown = self.hours.iter().filter(|((of, hour), log)| of == site && *hour >= self.whole_from && log.appended + log.derived > 0);
        for ((_, hour), log) in unknown {
            audit.note(site, format!("records of {hour}"), "no books", format!("{} in the log", log.appended + log.derived));
        }
        Ok(())
    }
}
