//! The embedded archive against the suite, and what is its own: crashes between its files, its version, its bounded number of open files.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::archive::ScanBy;
use crate::archive::contract::{self, ALL, Bench, sample, snapshot};

struct Directory(TempDir);

impl Bench for Directory {
    async fn open(&self) -> Arc<dyn Archive> {
        Arc::new(Embedded::open(self.0.path()).unwrap())
    }
}

#[tokio::test]
async fn passes_the_suite() {
    contract::suite(|| Directory(tempfile::tempdir().unwrap())).await;
}

/// What a crash leaves: the files as they are, without anybody closing them.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // The index of a WAL is not kept across a crash: SQLite makes it anew.
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if !entry.path().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_crash_between_event_rows_and_cursors_is_made_good_by_the_replay() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = Embedded::open(dir.path()).unwrap();
    archive.write_side(|writer| writer.write_events(&sample().events)).await.unwrap();
    copy(dir.path(), crashed.path());
    archive.write(sample()).await.unwrap();
    let whole = snapshot(&archive).await;

    let reopened = Embedded::open(crashed.path()).unwrap();
    assert_eq!(reopened.cursor(3).await.unwrap(), Cursor::default(), "rows without their cursor");
    assert_eq!(reopened.scan(&SiteId::parse("demo").unwrap(), &Scan { limit: 9, ..Scan::default() }).await.unwrap().len(), 2);
    reopened.write(sample()).await.unwrap();
    assert_eq!(snapshot(&reopened).await, whole);
    reopened.close().await.unwrap();

    // A crash after both.
    let crashed = tempfile::tempdir().unwrap();
    copy(dir.path(), crashed.path());
    let reopened = Embedded::open(crashed.path()).unwrap();
    assert_eq!(snapshot(&reopened).await, whole);
    reopened.close().await.unwrap();
    archive.close().await.unwrap();
}

#[tokio::test]
async fn power_loss_of_answers_leaves_rows_that_the_replay_meets_again() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = Embedded::open(dir.path()).unwrap();
    archive.write(sample()).await.unwrap();
    let whole = snapshot(&archive).await;
    copy(dir.path(), crashed.path());
    archive.close().await.unwrap();
    // `answers.db` commits without a sync: its WAL may be lost from any point on. The days' files may not.
    let wal = crashed.path().join("answers.db-wal");
    let bytes = std::fs::read(&wal).unwrap();
    for kept in [0, bytes.len() / 3, bytes.len() - 5_000] {
        let again = tempfile::tempdir().unwrap();
        copy(crashed.path(), again.path());
        std::fs::write(again.path().join("answers.db-wal"), &bytes[..kept]).unwrap();
        let reopened = Embedded::open(again.path()).unwrap();
        assert_eq!(reopened.cursor(3).await.unwrap(), Cursor::default());
        reopened.write(sample()).await.unwrap();
        assert_eq!(snapshot(&reopened).await, whole);
        reopened.close().await.unwrap();
    }
}

#[tokio::test]
async fn more_days_than_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Embedded::open(dir.path()).unwrap();
    let first = sample().events[0].clone();
    for round in 0..2u64 {
        let events = (0..100u64).map(|day| {
            let (offset, occurred_at) = (day * 2 + round, first.occurred_at.plus_seconds(day as i64 * 86_400 + round as i64));
            EventRow { offset, occurred_at, event_id: format!("e{offset}"), ..first.clone() }
        });
        archive.write(WriteBatch { events: events.collect(), ..WriteBatch::default() }).await.unwrap();
    }
    assert_eq!(archive.days().await.unwrap().len(), 100);
    let rows = archive.scan(&first.site, &Scan { limit: 1_000, ..Scan::default() }).await.unwrap();
    assert!(rows.iter().map(|row| row.offset).eq(0..200));
    archive.close().await.unwrap();
    let reading = Embedded::open_readonly(dir.path()).unwrap();
    assert_eq!(reading.days().await.unwrap().len(), 100);
    assert!(matches!(reading.write(WriteBatch::default()).await, Err(Error::Closed)));
    assert!(Embedded::open_readonly(&dir.path().join("nowhere")).is_err());
}

/// A day's file as builds before this version had it.
fn as_version(version: i32, path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.execute_batch(&format!("DROP TABLE by_object; PRAGMA user_version = {version};")).unwrap();
}

fn path_of(dir: &Path, day: Timestamp) -> std::path::PathBuf {
    dir.join("archive").join(format!("{}.db", day.utc_date()))
}

/// An empty file of a day, as builds before version 3 began it.
fn begin_in_version_2(dir: &Path, day: Timestamp) {
    std::fs::create_dir_all(dir.join("archive")).unwrap();
    day::DayFile::open(&path_of(dir, day)).unwrap().close().unwrap();
    as_version(2, &path_of(dir, day));
}

#[tokio::test]
async fn a_days_file_of_an_earlier_version_is_asked_for_objects_and_takes_them() {
    for version in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let first = sample().events[0].clone();
        let start = first.occurred_at;
        let sid = format!("MP{}", "0".repeat(32));
        let body = serde_json::json!({"properties": {"object": {"sid": sid, "kind": "map"}}, "type": "object_changed"});
        let row = |id: &str, kind: &str, offset: u64| EventRow {
            event_id: id.into(),
            kind: kind.into(),
            offset,
            body_key: 0,
            body: bytes::Bytes::from(body.to_string()),
            ..first.clone()
        };
        if version == 2 {
            begin_in_version_2(dir.path(), start);
        }
        let archive = Embedded::open(dir.path()).unwrap();
        archive.write(WriteBatch { events: vec![row("a", "page_viewed", 0)], ..WriteBatch::default() }).await.unwrap();
        archive.close().await.unwrap();
        as_version(version, &path_of(dir.path(), start));
        let archive = Embedded::open(dir.path()).unwrap();
        let found = async |by: ScanBy| archive.scan(&first.site, &Scan { by, limit: 9, ..Scan::default() }).await.unwrap().len();
        assert_eq!((found(ScanBy::Object(sid.clone())).await, found(ScanBy::All).await), (0, 1), "version {version}");
        archive.write(WriteBatch { events: vec![row("b", "object_changed", 1)], ..WriteBatch::default() }).await.unwrap();
        assert_eq!((found(ScanBy::Object(sid.clone())).await, found(ScanBy::All).await), (1, 2), "version {version}");
        archive.close().await.unwrap();
        let conn = rusqlite::Connection::open(path_of(dir.path(), start)).unwrap();
        let now = conn.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0)).unwrap();
        assert_eq!(now, if version == 2 { 2 } else { 4 });
    }
}

/// A day of many rows, some of them written twice, before and after the file is opened again; in a file begun by this build and in one of version 2.
#[tokio::test]
async fn a_day_of_many_rows_is_looked_up_in_all_its_runs() {
    const ROWS: u64 = 140_000;
    for version in [2, 4] {
        let dir = tempfile::tempdir().unwrap();
        let first = sample().events[0].clone();
        if version == 2 {
            begin_in_version_2(dir.path(), first.occurred_at);
        }
        let start = first.occurred_at;
        let row = |n: u64| EventRow {
            event_id: format!("e{n}"),
            fingerprint: n % 7,
            offset: n,
            occurred_at: start.plus_micros(n as i64),
            products: if n % 10_000 == 9 { vec!["mug".into()] } else { vec![format!("p{n}")] },
            customer: (n % 20_000 == 11).then_some([5; 16]),
            visitor: None,
            ..first.clone()
        };
        let write = async |archive: &Embedded, rows: std::ops::Range<u64>| {
            archive.write(WriteBatch { events: rows.map(row).collect(), ..WriteBatch::default() }).await.unwrap();
        };
        let mut archive = Embedded::open(dir.path()).unwrap();
        for from in (0..ROWS).step_by(20_000) {
            write(&archive, from..from + 20_000).await;
        }
        for _ in 0..2 {
            // Replays: of the first run, of the last, and over a run's end.
            write(&archive, 0..500).await;
            write(&archive, ROWS - 500..ROWS).await;
            write(&archive, 65_000..66_000).await;
            archive.close().await.unwrap();
            archive = Embedded::open(dir.path()).unwrap();
        }
        let site = first.site.clone();
        let all = async |by: ScanBy, newest_first: bool, limit: usize| {
            let scan = Scan { by, newest_first, limit, ..Scan::default() };
            archive.scan(&site, &scan).await.unwrap().iter().map(|row| row.offset).collect::<Vec<_>>()
        };
        assert_eq!(all(ScanBy::All, false, 1_000_000).await.len() as u64, ROWS, "version {version}");
        for n in [0, 65_535, 65_536, 131_071, 131_072, ROWS - 1] {
            assert_eq!(all(ScanBy::EventId(format!("e{n}")), false, 9).await, [n]);
        }
        let mugs: Vec<u64> = (9..ROWS).step_by(10_000).collect();
        assert_eq!(all(ScanBy::Product("mug".into()), false, 99).await, mugs);
        assert_eq!(all(ScanBy::Product("mug".into()), false, 8).await, mugs[..8]);
        assert_eq!(all(ScanBy::Product("mug".into()), true, 8).await, mugs.iter().rev().take(8).copied().collect::<Vec<_>>());
        assert_eq!(all(ScanBy::People(vec![[5; 16]]), true, 2).await, [120_011, 100_011]);
        let sought = [3, 70_000, ROWS].map(|n| Sought { event_id: format!("e{n}"), day: None });
        let kept: Vec<u64> = archive.kept(&site, &sought).await.unwrap().iter().map(|kept| kept.offset).collect();
        assert_eq!(kept, [3, 70_000]);
        archive.close().await.unwrap();
        let path = dir.path().join("archive").join(format!("{}.db", start.utc_date()));
        let conn = rusqlite::Connection::open(path).unwrap();
        assert_eq!(conn.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0)).unwrap(), version, "a file stays as it was begun");
        let runs: i64 = conn.query_row("SELECT count(DISTINCT id >> 48) FROM by_id", [], |row| row.get(0)).unwrap();
        assert_eq!(runs == 3, version == 4, "{runs} runs");
    }
}

#[tokio::test]
async fn a_days_file_of_version_1_tells_when_it_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let first = sample().events[0].clone();
    let day = |n: i64| first.occurred_at.plus_seconds(n * 86_400);
    let row = |id: &str, occurred_at: Timestamp, received_at: Timestamp| EventRow { event_id: id.into(), occurred_at, received_at, ..first.clone() };
    let events = vec![row("a", day(0), day(9)), row("b", day(1), day(1)), row("c", day(2), day(9)), row("d", day(3), day(3))];
    (0..4).for_each(|n| begin_in_version_2(dir.path(), day(n)));
    let archive = Embedded::open(dir.path()).unwrap();
    archive.write(WriteBatch { events, ..WriteBatch::default() }).await.unwrap();
    archive.close().await.unwrap();
    for file in std::fs::read_dir(dir.path().join("archive")).unwrap() {
        let conn = rusqlite::Connection::open(file.unwrap().path()).unwrap();
        conn.execute_batch("DROP TABLE taken; PRAGMA user_version = 1;").unwrap();
    }
    let archive = Embedded::open(dir.path()).unwrap();
    // Two are written to, and so brought to this version; of two the rows are read.
    let events = vec![row("e", day(2), day(5)), row("f", day(3), day(5))];
    archive.write(WriteBatch { events, ..WriteBatch::default() }).await.unwrap();
    let days = async || archive.days().await.unwrap().iter().map(|d| d - day(0).utc_day()).collect::<Vec<_>>();
    archive.retain(day(5), &ALL).await.unwrap();
    assert_eq!(days().await, [0, 2, 3]);
    archive.retain(day(6), &ALL).await.unwrap();
    assert_eq!(days().await, [0, 2]);
    archive.retain(day(9), &ALL).await.unwrap();
    assert_eq!(days().await, [0, 2]);
    // A file that cannot be read stays; the others go.
    archive.write(WriteBatch { events: vec![row("g", day(0), day(9))], ..WriteBatch::default() }).await.unwrap();
    archive.close().await.unwrap();
    std::fs::write(dir.path().join("archive").join(format!("{}.db", day(0).utc_date())), [7; 4096]).unwrap();
    let archive = Embedded::open(dir.path()).unwrap();
    archive.retain(day(10), &ALL).await.unwrap();
    assert_eq!(archive.days().await.unwrap(), [day(0).utc_day()]);
}

#[tokio::test]
async fn a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Embedded::open(dir.path()).unwrap();
    archive.write(sample()).await.unwrap();
    archive.close().await.unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("answers.db")).unwrap();
    conn.pragma_update(None, "user_version", answers::VERSION + 1).unwrap();
    drop(conn);
    for opened in [Embedded::open(dir.path()), Embedded::open_readonly(dir.path())] {
        assert!(matches!(opened, Err(Error::Corrupt(what)) if what.contains("version 4")));
    }
    let conn = rusqlite::Connection::open(dir.path().join("answers.db")).unwrap();
    conn.pragma_update(None, "user_version", 1).unwrap();
    let opened = Embedded::open_readonly(dir.path());
    assert!(matches!(opened, Err(Error::Corrupt(what)) if what.contains("version 1")), "a reader cannot bring it to this version");
}

#[tokio::test]
async fn a_page_of_a_dump_ends_at_some_mib() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Embedded::open(dir.path()).unwrap();
    let body = |len: usize| bytes::Bytes::from(vec![b'x'; len]);
    // Large ones, and small ones behind them.
    let event = |offset: u64| EventRow {
        offset,
        event_id: format!("e{offset}"),
        body: body(if offset < 20 { 900 << 10 } else { 10 }),
        ..sample().events[0].clone()
    };
    let quarantined = |offset: u64| QuarantineRow { offset, raw: body(900 << 10), ..sample().quarantine[0].clone() };
    let batch = WriteBatch { events: (0..40).map(event).collect(), quarantine: (100..120).map(quarantined).collect(), ..WriteBatch::default() };
    archive.write(batch).await.unwrap();
    archive.close().await.unwrap();
    let mut offsets = Vec::new();
    dump::each_page(dir.path(), &mut |page| {
        let events = page.batch.events.iter().map(|row| (row.offset, row.body.len()));
        let rows: Vec<_> = events.chain(page.batch.quarantine.iter().map(|row| (row.offset, row.raw.len()))).collect();
        let bytes: usize = rows.iter().map(|(_, bytes)| bytes).sum();
        assert!(bytes < 10 << 20, "{} rows of {bytes} bytes", rows.len());
        offsets.extend(rows.into_iter().map(|(offset, _)| offset));
        Ok(())
    })
    .unwrap();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..40).chain(100..120).collect::<Vec<_>>(), "each row once");
}
