//! The learning store over a real embedded one: what is read through, what is kept apart, what is counted.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::sync::contract::{key, map, row, write};
use crate::sync::embedded::EmbeddedStore;

struct Place {
    live: Arc<dyn ObjectStore>,
    learning: LearningStore,
    has_room: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

/// A learning store over one that holds `written`, whose partitions of `changes` all end at 100.
async fn over(written: Vec<ObjectWrite>) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| -> Arc<dyn ObjectStore> { Arc::new(EmbeddedStore::open(&dir.path().join(name), Duration::ZERO).unwrap()) };
    let (live, has_room) = (open("live.db"), Arc::new(AtomicBool::new(true)));
    live.commit_objects(written, vec![(3, Checkpoint { next: 7, seen: vec![None; 16] })]).await.unwrap();
    live.commit_router(vec![RouterCommit { partition: 2, next: 9, ..RouterCommit::default() }]).await.unwrap();
    let room = Arc::clone(&has_room);
    let room: HasRoom = Arc::new(move || room.load(Ordering::Relaxed));
    let learning = LearningStore::open(Arc::clone(&live), open("scratch.db"), vec![100; 16], room).await.unwrap();
    Place { live, learning, has_room, _dir: dir }
}

async fn one(store: &dyn ObjectStore, key: &ObjectKey) -> StoredObject {
    store.load(std::slice::from_ref(key)).await.unwrap().pop().unwrap().unwrap()
}

#[tokio::test]
async fn what_is_written_is_read_over_what_is_live_and_counted() {
    let (a, document) = (map("a"), key(ObjectKind::Document, "d"));
    let place = over(vec![write(&a, 3, vec![row("x", 1, Some("1")), row("y", 3, Some("2"))])]).await;
    let (live, learning) = (&*place.live, &place.learning);
    assert_eq!((learning.router_next(2).await.unwrap(), learning.checkpoint(3).await.unwrap().next), (9, 7), "it begins where the live stage stands");
    let before = one(live, &a).await;
    assert_eq!(one(learning, &a).await, before);

    let writes = vec![write(&a, 5, vec![row("x", 5, Some("11"))]), write(&document, 1, vec![row("", 1, Some("d"))])];
    learning.commit_objects(writes, vec![(3, Checkpoint { next: 8, seen: vec![None; 16] })]).await.unwrap();
    learning.commit_objects(vec![write(&a, 6, vec![row("y", 6, None)])], Vec::new()).await.unwrap();
    learning.commit_router(vec![RouterCommit { partition: 2, next: 12, ..RouterCommit::default() }]).await.unwrap();
    let states: Vec<_> = one(learning, &a).await.rows.into_iter().map(|row| (row.item, row.state)).collect();
    assert_eq!(states, [("x".to_owned(), Some(b"11".to_vec())), ("y".to_owned(), None)], "rows that no write names stay");
    assert_eq!((learning.router_next(2).await.unwrap(), learning.checkpoint(3).await.unwrap().next), (12, 8));

    assert_eq!(one(live, &a).await, before);
    assert_eq!(live.load(&[document]).await.unwrap(), [None]);
    assert_eq!((live.router_next(2).await.unwrap(), live.checkpoint(3).await.unwrap().next), (9, 7));
    let learned = learning.learned();
    assert_eq!(learned.records, 3);
    assert_eq!(learned.objects["map"], Written { objects: 1, changes: 3, writes: 2, rows: 2, removed: 0 });
    assert_eq!(learned.objects["document"], Written { objects: 1, changes: 1, writes: 1, rows: 1, removed: 0 });
}

/// A live keeper beside it has folded in what the stage has yet to read: were that a repeat, nothing would be learned.
#[tokio::test]
async fn what_a_live_keeper_wrote_meanwhile_does_not_hide_the_stages_own_changes() {
    let (early, late) = (map("early"), map("late"));
    let place = over(vec![write(&early, 4, Vec::new())]).await;
    place.live.commit_objects(vec![write(&late, 30, Vec::new())], Vec::new()).await.unwrap();
    assert_eq!(one(&*place.live, &late).await.head.upto, 300);
    assert_eq!(one(&place.learning, &late).await.head.upto, 99);
    assert_eq!(one(&place.learning, &early).await.head.upto, 40, "what it included when learning began stays a repeat");
}

#[tokio::test]
async fn a_full_scratch_stands_still_and_says_so() {
    let place = over(Vec::new()).await;
    place.has_room.store(false, Ordering::Relaxed);
    let refused = place.learning.commit_objects(vec![write(&map("a"), 1, Vec::new())], Vec::new()).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("scratch"), "{refused}");
    assert_eq!(place.learning.learned(), Learned::default());
    place.has_room.store(true, Ordering::Relaxed);
    place.learning.commit_objects(vec![write(&map("a"), 1, Vec::new())], Vec::new()).await.unwrap();
}
