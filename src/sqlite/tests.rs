//! The identity tables over a real file: known, unknown, expired, reopened, rolled back.

use super::*;
use crate::event::identity::EventEntry;
use crate::event::ids::{first_16, sha256};

const HOUR: i64 = 3_600;

fn key(n: u64) -> IdentityKey {
    IdentityKey(first_16(&sha256(&[&n.to_be_bytes()])))
}

fn event(first: u64) -> Entry {
    Entry::Event(EventEntry { first, fingerprints: vec![first] })
}

fn at_hour(hour: i64) -> Timestamp {
    Timestamp::from_micros(1_790_000_000_000_000).plus_seconds(hour * HOUR)
}

fn in_tx<T>(conn: &mut Connection, work: impl FnOnce(&Transaction<'_>) -> T) -> T {
    let tx = conn.transaction().unwrap();
    let out = work(&tx);
    tx.commit().unwrap();
    out
}

fn file() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    (dir, path)
}

/// Rows by table of hours, oldest first.
fn rows(conn: &Connection) -> Vec<usize> {
    let mut all = hours(conn).unwrap();
    all.reverse();
    all.iter().map(|hour| conn.query_row(&format!("SELECT count(*) FROM {}", table(*hour)), [], |row| row.get(0)).unwrap()).collect()
}

#[test]
fn opens_as_asked() {
    let (_dir, path) = file();
    assert!(open_readonly(&path).is_err());
    for (durability, synchronous) in [(Durability::Full, 2), (Durability::Replayable, 1)] {
        let conn = open(&path, durability).unwrap();
        let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
        assert_eq!(pragma("journal_mode"), rusqlite::types::Value::Text("wal".into()));
        assert_eq!(pragma("synchronous"), rusqlite::types::Value::Integer(synchronous));
        assert_eq!(pragma("foreign_keys"), rusqlite::types::Value::Integer(1));
        assert_eq!(pragma("busy_timeout"), rusqlite::types::Value::Integer(10_000));
        conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)").unwrap();
        let reader = open_readonly(&path).unwrap();
        assert_eq!(reader.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
        assert!(reader.execute("INSERT INTO t VALUES (1)", []).is_err());
    }
}

#[test]
fn knows_what_was_saved_until_it_expires() {
    let (_dir, path) = file();
    let mut conn = open(&path, Durability::Replayable).unwrap();
    let tables = IdentityTables::open(&conn).unwrap();
    let lasting = (key(9), Entry::Order(Default::default()));
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(0), &[(key(1), event(1)), lasting.clone()])).unwrap();
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(30), &[(key(2), event(2))])).unwrap();
    let all = [key(1), key(2), key(3), key(9)];
    let expected = HashMap::from([(key(1), event(1)), (key(2), event(2)), lasting.clone()]);
    assert_eq!(tables.load(&conn, &all).unwrap(), expected);
    assert_eq!(IdentityTables::open(&conn).unwrap().load(&conn, &all).unwrap(), expected, "after reopening");

    in_tx(&mut conn, |tx| tables.expire(tx, at_hour(0))).unwrap();
    assert_eq!(rows(&conn), [1, 1], "the hour of `oldest` itself stays");
    in_tx(&mut conn, |tx| tables.expire(tx, at_hour(1))).unwrap();
    let expected = HashMap::from([(key(2), event(2)), lasting]);
    assert_eq!(tables.load(&conn, &all).unwrap(), expected);
    assert_eq!(IdentityTables::open(&conn).unwrap().load(&conn, &all).unwrap(), expected, "after reopening");
    assert_eq!(rows(&conn), [1]);
}

#[test]
fn an_entry_is_remembered_from_its_last_news() {
    let (_dir, path) = file();
    let mut conn = open(&path, Durability::Replayable).unwrap();
    let tables = IdentityTables::open(&conn).unwrap();
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(0), &[(key(1), event(1))])).unwrap();
    let tables = IdentityTables::open(&conn).unwrap();
    let changed = Entry::Event(EventEntry { first: 1, fingerprints: vec![1, 2] });
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(5), &[(key(1), changed.clone()), (key(2), event(2))])).unwrap();
    assert_eq!(tables.load(&conn, &[key(1)]).unwrap(), HashMap::from([(key(1), changed.clone())]));
    assert_eq!(rows(&conn), [0, 2]);
    in_tx(&mut conn, |tx| tables.expire(tx, at_hour(1))).unwrap();
    assert_eq!(tables.load(&conn, &[key(1)]).unwrap(), HashMap::from([(key(1), changed)]), "its news is younger");
    in_tx(&mut conn, |tx| tables.expire(tx, at_hour(6))).unwrap();
    assert_eq!(tables.load(&conn, &[key(1)]).unwrap(), HashMap::new());
}

#[test]
fn a_rolled_back_transaction_leaves_nothing_known() {
    let (_dir, path) = file();
    let mut conn = open(&path, Durability::Replayable).unwrap();
    let tables = IdentityTables::open(&conn).unwrap();
    let tx = conn.transaction().unwrap();
    tables.save(&tx, at_hour(0), &[(key(1), event(1))]).unwrap();
    assert_eq!(tables.load(&tx, &[key(1)]).unwrap().len(), 1, "seen inside the transaction");
    tx.rollback().unwrap();
    assert_eq!(tables.load(&conn, &[key(1)]).unwrap(), HashMap::new());
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(2), &[(key(1), event(7))])).unwrap();
    assert_eq!(tables.load(&conn, &[key(1)]).unwrap(), HashMap::from([(key(1), event(7))]));
    let tx = conn.transaction().unwrap();
    tables.expire(&tx, at_hour(3)).unwrap();
    tx.rollback().unwrap();
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(2), &[(key(1), event(8))])).unwrap();
    assert_eq!(tables.load(&conn, &[key(1)]).unwrap(), HashMap::from([(key(1), event(8))]));
}

#[test]
fn a_hundred_thousand_ids_are_all_known_again() {
    let (_dir, path) = file();
    let mut conn = open(&path, Durability::Replayable).unwrap();
    let tables = IdentityTables::open(&conn).unwrap();
    for batch in 0..10u64 {
        let entries: Vec<_> = (batch * 10_000..(batch + 1) * 10_000).map(|n| (key(n), event(n))).collect();
        in_tx(&mut conn, |tx| tables.save(tx, at_hour(batch as i64 * 5), &entries)).unwrap();
    }
    let keys: Vec<_> = (0..100_000).map(key).collect();
    for tables in [&tables, &IdentityTables::open(&conn).unwrap()] {
        let found = tables.load(&conn, &keys).unwrap();
        assert!((0..100_000).all(|n| found.get(&key(n)) == Some(&event(n))));
        assert_eq!(tables.load(&conn, &(100_000..101_000).map(key).collect::<Vec<_>>()).unwrap(), HashMap::new());
    }
    assert_eq!(rows(&conn), [10_000; 10]);
}

#[test]
fn an_hour_of_many_ids_grows_in_runs() {
    let (_dir, path) = file();
    let mut conn = open(&path, Durability::Replayable).unwrap();
    let mut tables = IdentityTables::open(&conn).unwrap();
    for batch in 0..15u64 {
        if batch % 4 == 3 {
            tables = IdentityTables::open(&conn).unwrap();
        }
        let entries: Vec<_> = (batch * 10_000..(batch + 1) * 10_000).map(|n| (key(n), event(n))).collect();
        in_tx(&mut conn, |tx| tables.save(tx, at_hour(0), &entries)).unwrap();
    }
    let runs = |conn: &Connection| {
        let mut runs = BTreeMap::<u16, usize>::new();
        each_key(conn, &table(hour_of(at_hour(0))), |key| *runs.entry(run_of(key)).or_default() += 1).unwrap();
        runs.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(runs(&conn), [(0, 70_000), (1, 70_000), (2, 10_000)], "a save is never split");
    // News of some of each run move those to the last one.
    let news = |n: u64| Entry::Event(EventEntry { first: n, fingerprints: vec![n, n + 1] });
    let changed: Vec<_> = (0..150_000).step_by(1_000).map(|n| (key(n), news(n))).collect();
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(0), &changed)).unwrap();
    assert_eq!(runs(&conn), [(0, 69_930), (1, 69_930), (2, 10_140)]);
    let keys: Vec<_> = (0..151_000).map(key).collect();
    for tables in [&tables, &IdentityTables::open(&conn).unwrap()] {
        let found = tables.load(&conn, &keys).unwrap();
        assert_eq!(found.len(), 150_000);
        assert!((0..150_000).all(|n| found.get(&key(n)) == Some(&if n % 1_000 == 0 { news(n) } else { event(n) })));
    }
    in_tx(&mut conn, |tx| tables.expire(tx, at_hour(1))).unwrap();
    assert_eq!(tables.load(&conn, &keys).unwrap(), HashMap::new());
}

#[test]
fn a_damaged_entry_is_an_error_not_unknown() {
    let (_dir, path) = file();
    let mut conn = open(&path, Durability::Replayable).unwrap();
    let tables = IdentityTables::open(&conn).unwrap();
    in_tx(&mut conn, |tx| tables.save(tx, at_hour(0), &[(key(1), event(1))])).unwrap();
    conn.execute(&format!("UPDATE {} SET value = x'63'", table(hour_of(at_hour(0)))), []).unwrap();
    assert!(tables.load(&conn, &[key(1)]).is_err());
}
