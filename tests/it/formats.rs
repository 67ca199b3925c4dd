//! The databases' formats: every table and each file's version, pinned by a golden file, so that no change of them goes unnoticed.

use std::fs;
use std::path::Path;

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
    let golden = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/databases_v1.sql")).unwrap();
    assert_eq!(found, golden, "a changed format is a new version, with a migration:\n{found}");
}
