//! The databases' formats: every table and each file's version mark, pinned by a golden file, so that no change of them goes unnoticed; and files of
//! earlier versions, as their dumps have them, opened by this build.

use std::fs;
use std::path::Path;

use contrail::archive;
use contrail::event::identity::{Completion, ORDER_STEP};
use contrail::event::{SiteId, Timestamp};
use serde_json::json;

use crate::harness::Server;

fn schema(name: &str, path: &Path) -> String {
    let conn = rusqlite::Connection::open(path).unwrap();
    let version: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let mut statement = conn.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").unwrap();
    let tables: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    // Tables of identity are named by their hour.
    let named = |sql: &String| sql.split_whitespace().map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ");
    let mut tables: Vec<String> = tables.iter().map(named).collect();
    tables.dedup();
    format!("# {name}, version {version}\n{}\n", tables.join("\n"))
}

fn fixture(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

#[test]
fn the_databases_are_as_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::on(&data, &[]);
    server.accept(&[json!({"event_id": "e1", "type": "page_viewed", "occurred_at": "2026-03-01T10:00:00Z", "page": {"url": "/"}})]);
    server.settle();
    assert!(server.stop().success());
    let day = fs::read_dir(data.join("archive")).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some_and(|e| e == "db"));
    let found: String = [
        ("sites.db", data.join("sites.db")),
        ("objects.db", data.join("objects.db")),
        ("answers.db", data.join("answers.db")),
        ("archive/<day>.db", day.unwrap()),
    ]
    .iter()
    .map(|(name, path)| schema(name, path))
    .collect();
    assert_eq!(found, fixture("databases.sql"), "a changed format is a new version, with a migration:\n{found}");
}

#[tokio::test]
async fn answers_of_version_1_become_this_version_with_all_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("answers.db");
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch(&fixture("answers_v1.sql")).unwrap();
    conn.close().unwrap();
    let (site, from, to) = (SiteId::parse("demo").unwrap(), Timestamp::parse("2026-11-20T00:00:00Z").unwrap(), Timestamp::MAX);
    // The second time there is nothing left to do.
    for _ in 0..2 {
        let archive = archive::open("embedded", dir.path(), &archive::Settings::default(), contrail::event::Clock::system()).await.unwrap();
        let checkouts = archive.checkouts(&site, from, to, None, 9).await.unwrap();
        let completed: Vec<_> = checkouts.iter().map(|checkout| (checkout.checkout.as_str(), checkout.crawler, checkout.completed)).collect();
        let at = |seconds, crawler| Some(Completion { at: from.plus_seconds(seconds), crawler });
        let expected =
            [("ch1", false, None), ("crawler-bought", true, at(31, true)), ("crawler-open", true, None), ("human-bought", false, at(26, false))];
        assert_eq!(completed, expected, "a completion counts by its checkout's flag, as version 1 counted it");
        let mut steps = archive.steps(&site, from, to).await.unwrap();
        steps.sort_by_key(|step| (step.at, step.crawler));
        let steps: Vec<_> = steps.iter().map(|step| (step.step.as_str(), step.at.micros() - from.micros(), step.crawler)).collect();
        let second = 1_000_000;
        let entered =
            [("contact", 5 * second, false), ("contact", 16 * second, false), ("contact", 16 * second, true), ("contact", 16 * second, true)];
        assert_eq!(steps, [&entered[..], &[(ORDER_STEP, 26 * second, false), (ORDER_STEP, 31 * second, true)]].concat());
        let sold = archive.sales(&site, from, to).await.unwrap();
        assert_eq!((sold.len(), sold[0].units, archive.cursor(3).await.unwrap().next), (1, 2, 2));
        archive.close().await.unwrap();
    }
    let golden = fixture("databases.sql");
    let answers =
        golden.split_inclusive('\n').skip_while(|line| !line.starts_with("# answers.db")).take_while(|line| !line.starts_with("# archive/"));
    assert_eq!(schema("answers.db", &path), answers.collect::<String>(), "as if made by this version");
}
