//! What waits to be mirrored, by a clock of its own.

use super::*;
use crate::event::ObjectKind;

const SETTINGS: Settings = Settings {
    in_flight: 2,
    waiting: 3,
    first_pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(8),
    denied_pause: Duration::from_secs(60),
};

const FAILED: Outcome = Outcome::Failed { pause: None, pending: false };

struct It {
    queue: Queue,
    now: Instant,
}

impl It {
    fn new() -> Self {
        Self { queue: Queue::new(SETTINGS), now: Instant::now() }
    }

    fn changed(&mut self, site: &str, name: &str, offset: Offset) -> bool {
        self.queue.changed(&key(site, name), offset, at(offset), self.now)
    }

    fn after(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn start(&mut self) -> Vec<(String, Option<Offset>)> {
        self.queue.start(self.now).into_iter().map(|job| (job.key.name, job.upto)).collect()
    }

    fn ended(&mut self, site: &str, name: &str, outcome: Outcome) -> Vec<Offset> {
        self.queue.ended(&key(site, name), (outcome, false), self.now, 1.0)
    }

    /// After some of it was done.
    fn moved(&mut self, site: &str, name: &str, outcome: Outcome) {
        self.queue.ended(&key(site, name), (outcome, true), self.now, 1.0);
    }
}

fn key(site: &str, name: &str) -> ObjectKey {
    ObjectKey { site: SiteId::parse(site).unwrap(), kind: ObjectKind::Map, name: name.into() }
}

fn at(offset: Offset) -> Timestamp {
    Timestamp::ZERO.plus_seconds(offset as i64)
}

fn of(name: &str, upto: Offset) -> (String, Option<Offset>) {
    (name.into(), Some(upto))
}

#[test]
fn an_object_waits_once_however_often_it_changes() {
    let mut it = It::new();
    assert!(it.changed("a", "x", 3));
    assert!(!it.changed("a", "x", 5) && !it.changed("a", "x", 9));
    assert_eq!((it.queue.lag(), it.start()), ((1, Some(at(3))), vec![of("x", 9)]));
    assert!(it.changed("a", "x", 11), "the first that the round did not see");
    assert_eq!(it.start(), [], "one round at a time");
    assert_eq!(it.ended("a", "x", Outcome::Done), [3]);
    assert_eq!(it.start(), [of("x", 11)]);
    assert_eq!((it.ended("a", "x", Outcome::Done), it.queue.lag()), (vec![11], (0, None)));
}

#[test]
fn what_was_not_done_holds_its_place() {
    let mut it = It::new();
    it.changed("a", "x", 3);
    it.start();
    it.changed("a", "x", 4);
    assert_eq!(it.ended("a", "x", Outcome::Later(Duration::from_secs(2))), [4], "3 is held, and 4 with it");
    assert_eq!(it.queue.wake(), Some(it.now + Duration::from_secs(2)));
    assert_eq!(it.start(), []);
    it.after(2.0);
    assert_eq!(it.start(), [of("x", 4)]);
    assert_eq!(it.ended("a", "x", Outcome::Done), [3]);
}

#[test]
fn pauses_grow_and_one_is_tried_until_one_succeeds() {
    let mut it = It::new();
    for (offset, name) in [(1, "x"), (2, "y"), (3, "z")] {
        it.changed("a", name, offset);
    }
    it.changed("b", "other", 4);
    let mut begun = it.start();
    begun.sort();
    assert_eq!(begun, [of("other", 4), of("x", 1), of("y", 2)]);
    it.ended("b", "other", Outcome::Done);
    it.ended("a", "y", FAILED);
    assert_eq!(it.start(), [], "x is under way");
    it.ended("a", "x", Outcome::Failed { pause: Some(Duration::from_secs(5)), pending: false });
    assert_eq!(it.start(), [], "two in a row: it is the service");
    it.after(4.999);
    assert_eq!(it.start(), []);
    it.after(0.001);
    assert_eq!(it.start().len(), 1);
    it.queue.forget(|_| true);
    for name in ["x", "y", "z"] {
        it.ended("a", name, Outcome::Done);
    }
    it.changed("a", "y", 5);
    assert_eq!(it.start(), [of("y", 5)]);
    it.ended("a", "y", FAILED);
    for pause in [1.0, 2.0, 4.0, 8.0, 8.0] {
        it.after(pause - 0.001);
        assert_eq!(it.start(), [], "{pause}");
        it.after(0.001);
        assert_eq!(it.start(), [of("y", 5)], "{pause}");
        it.changed("a", "z", 6);
        it.ended("a", "y", FAILED);
        assert_eq!(it.start(), [], "z rests with it");
        it.queue.forget(|key| key.name == "z");
    }
    it.after(8.0);
    it.start();
    it.moved("a", "y", FAILED);
    assert_eq!(it.queue.wake(), Some(it.now + Duration::from_secs(1)), "some of it was done");
    it.after(1.0);
    it.start();
    it.ended("a", "y", Outcome::Done);
    it.changed("a", "v", 8);
    it.changed("a", "w", 9);
    assert_eq!(it.start().len(), 2, "all is well again");
}

/// However busy an object is: what its last round took waits no longer.
#[test]
fn a_busy_object_is_not_behind() {
    let mut it = It::new();
    let began = it.now;
    it.changed("a", "x", 1);
    for offset in 2..100 {
        assert_eq!(it.start(), [of("x", offset - 1)]);
        it.after(1.0);
        it.changed("a", "x", offset);
        assert_eq!(it.queue.lag(), (1, Some(at(offset - 1))), "the round's counts until it is done");
        it.ended("a", "x", Outcome::Done);
        assert_eq!(it.queue.lag(), (1, Some(at(offset))));
    }
    assert_eq!(it.queue.late(began + Duration::from_secs(97)), []);
    it.start();
    it.ended("a", "x", FAILED);
    assert_eq!(it.queue.late(began + Duration::from_secs(99)), [SiteId::parse("a").unwrap()], "what failed waits on");
}

#[test]
fn what_is_not_applied_is_looked_at_ever_more_seldom() {
    let mut it = It::new();
    it.changed("a", "x", 1);
    for pause in [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 1.6] {
        assert_eq!(it.start(), [of("x", 1)]);
        it.ended("a", "x", Outcome::Unapplied);
        assert_eq!(it.queue.wake(), Some(it.now + Duration::from_secs_f64(pause)));
        it.after(pause);
    }
}

#[test]
fn who_is_denied_rests() {
    let mut it = It::new();
    it.changed("a", "x", 1);
    it.changed("a", "y", 2);
    it.start();
    it.ended("a", "x", Outcome::Denied);
    it.ended("a", "y", Outcome::Later(Duration::ZERO));
    assert_eq!((it.start(), it.queue.wake()), (vec![], Some(it.now + Duration::from_secs(60))));
    it.after(60.0);
    assert_eq!(it.start().len(), 1);
}

#[test]
fn what_is_forgotten_while_under_way_counts_for_nothing() {
    let mut it = It::new();
    it.changed("a", "x", 1);
    it.changed("a", "y", 2);
    it.start();
    it.changed("a", "z", 3);
    let mut closed: Vec<Offset> = it.queue.forget(|_| true).into_iter().map(|(_, offset)| offset).collect();
    closed.sort_unstable();
    assert_eq!(closed, [1, 2, 3]);
    assert!(it.changed("a", "y", 7), "and comes again");
    assert_eq!((it.ended("a", "x", FAILED), it.ended("a", "y", Outcome::Done)), (vec![], vec![]));
    assert_eq!(it.start(), [of("y", 7)]);
    assert_eq!((it.ended("a", "y", Outcome::Done), it.queue.lag()), (vec![7], (0, None)));
}

#[test]
fn a_copy_ends_when_all_of_it_is_there() {
    let mut it = It::new();
    let site = SiteId::parse("a").unwrap();
    it.queue.copy(&key("a", "x"), it.now);
    it.changed("a", "y", 2);
    assert_eq!((it.queue.len(&site), it.start()), ((2, 1), vec![("x".into(), None), of("y", 2)]));
    it.queue.copy(&key("a", "y"), it.now);
    it.ended("a", "x", Outcome::Later(Duration::ZERO));
    it.ended("a", "y", Outcome::Done);
    assert_eq!(it.queue.len(&site), (2, 2), "y was asked for again while it was under way");
    assert_eq!(it.start().len(), 2);
    it.ended("a", "x", Outcome::Done);
    it.ended("a", "y", Outcome::Done);
    assert_eq!(it.queue.len(&site), (0, 0));
}

#[test]
fn the_full_and_the_late_are_named() {
    let mut it = It::new();
    let began = it.now;
    it.changed("a", "x", 5);
    it.after(1.0);
    it.changed("b", "x", 4);
    assert_eq!((it.queue.full(), it.queue.late(began)), (vec![], vec![]));
    assert_eq!(it.queue.late(it.now), [SiteId::parse("a").unwrap()], "by how long it waits here, whenever it was received");
    it.changed("a", "y", 60);
    it.changed("a", "z", 61);
    assert_eq!(it.queue.full(), [SiteId::parse("a").unwrap()]);
}

#[test]
fn what_is_being_done_is_not_late_however_long_it_takes() {
    let mut it = It::new();
    it.changed("a", "x", 5);
    for _ in 0..9 {
        it.start();
        it.after(1.0);
        it.moved("a", "x", Outcome::Later(Duration::ZERO));
        assert_eq!((it.queue.late(it.now), it.queue.lag()), (vec![], (1, Some(at(5)))));
    }
    it.start();
    it.after(1.0);
    it.ended("a", "x", Outcome::Later(Duration::ZERO));
    assert_eq!(it.queue.late(it.now), [SiteId::parse("a").unwrap()]);
}
