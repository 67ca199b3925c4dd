//! The contract suite over the embedded store, and what holds of it alone: damage of one object, power loss at any byte of the WAL.

use super::*;
use crate::sync::contract::{self, map, row, write};

fn opener(dir: &tempfile::TempDir) -> impl Fn() -> Arc<dyn ObjectStore> + use<> {
    let path = dir.path().join("objects.db");
    move || Arc::new(EmbeddedStore::open(&path, Duration::from_millis(5)).unwrap())
}

macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            let dir = tempfile::tempdir().unwrap();
            let open = opener(&dir);
            contract::$name(&|| Box::pin(std::future::ready(open()))).await;
        })+
    };
}

contract!(
    objects_come_back_as_written,
    all_survives_reopening,
    identities_are_remembered,
    listing_is_in_name_order,
    stale_objects_and_tombstones,
    sids_and_lifetimes,
    commits_are_visible_when_they_return,
);

#[tokio::test]
async fn one_damaged_object_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = opener(&dir)();
    let writes = ["a", "b"].map(|name| write(&map(name), 1, vec![row("x", 1, Some("1"))]));
    store.commit_objects(writes.to_vec(), vec![]).await.unwrap();
    store.close().await.unwrap();
    let conn = Connection::open(dir.path().join("objects.db")).unwrap();
    conn.execute("UPDATE rows SET value = x'01ff' WHERE object = ?1 AND item = x''", [rows::key_bytes(&map("a"))]).unwrap();
    drop(conn);
    let store = opener(&dir)();
    assert!(matches!(store.load(&[map("b"), map("a")]).await, Err(Error::Corrupt { name, .. }) if name == "a"));
    assert!(store.load(&[map("b")]).await.unwrap()[0].is_some());
}

#[tokio::test]
async fn a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
    let error = EmbeddedStore::open(&path, Duration::ZERO).err().unwrap().to_string();
    assert!(error.contains("newer"), "{error}");
}

/// However much of the WAL is lost, what is left is one of the states that were committed: objects and checkpoint of the same commit.
#[tokio::test]
async fn power_loss_leaves_a_commit_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = opener(&dir)();
    // What is read stays in the WAL: no checkpoint takes anything of what follows into the file.
    let reader = Connection::open(dir.path().join("objects.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM rows").unwrap();
    for n in 1..=20u64 {
        let writes = ["a", "b", "c"].map(|name| write(&map(name), n, vec![row("x", n, Some(&"v".repeat(700)))]));
        store.commit_objects(writes.to_vec(), vec![(0, Checkpoint { next: n, seen: vec![] })]).await.unwrap();
    }
    let (db, wal) = (std::fs::read(dir.path().join("objects.db")).unwrap(), std::fs::read(dir.path().join("objects.db-wal")).unwrap());
    drop(reader);
    store.close().await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..=wal.len()).step_by(1_531).chain([wal.len()]) {
        let lost = tempfile::tempdir().unwrap();
        std::fs::write(lost.path().join("objects.db"), &db).unwrap();
        std::fs::write(lost.path().join("objects.db-wal"), wal.get(..cut).unwrap()).unwrap();
        let store = opener(&lost)();
        let next = store.checkpoint(0).await.unwrap().next;
        let found = store.load(&[map("a"), map("b"), map("c")]).await.unwrap();
        assert!(found.iter().all(|o| o.as_ref().map_or(0, |o| o.head.event_id) == next), "cut at {cut}: checkpoint {next}, objects differ");
        seen.insert(next);
        store.close().await.unwrap();
    }
    assert!(seen.iter().copied().eq(0..=20), "{seen:?}");
}

#[tokio::test]
async fn router_state_waits_for_company_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.path().join("objects.db"), Duration::from_secs(3_600)).unwrap());
    let alone = store.commit_router(vec![RouterCommit { partition: 1, next: 5, ..RouterCommit::default() }]);
    let company = store.commit_objects(vec![write(&map("a"), 1, vec![])], vec![]);
    let (alone, company) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(alone, company) }).await.unwrap();
    alone.unwrap();
    company.unwrap();
    assert_eq!(store.router_next(1).await.unwrap(), 5);
    store.close().await.unwrap();
}
