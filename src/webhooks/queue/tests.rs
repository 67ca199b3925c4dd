//! Tests of the queue, at times of their own.

use proptest::prelude::*;

use super::*;

const A: &str = "site-a";
const B: &str = "site-b";

fn site(name: &str) -> SiteId {
    SiteId::parse(name).unwrap()
}

/// A message about an object; its identity says which it is.
fn message(about: &str, name: &str) -> Message {
    let mut message = Message::reached("endpoint_connected", name, "");
    message.about = about.into();
    message
}

struct It {
    queue: Queue,
    now: Instant,
}

impl It {
    fn new(settings: Settings) -> Self {
        Self { queue: Queue::new(settings), now: Instant::now() }
    }

    fn push(&mut self, to: &str, about: &str, name: &str, offset: u64) {
        self.queue.push(&site(to), message(about, name), Some((0, offset)), self.now);
    }

    fn start(&mut self) -> Vec<Attempt> {
        self.queue.start(self.now)
    }

    fn tried(&mut self, attempt: &Attempt, outcome: Outcome) {
        self.queue.tried(&attempt.site, attempt.number, outcome, self.now, 1.0);
    }

    fn after(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn ended(&mut self) -> Vec<(u64, Option<&'static str>)> {
        self.queue.take_ended().into_iter().map(|ended| (ended.place.unwrap().1, ended.dropped)).collect()
    }
}

fn names(attempts: &[Attempt]) -> Vec<&str> {
    attempts.iter().map(|attempt| attempt.message.identity.as_str()).collect()
}

const FAILED: Outcome = Outcome::Failed("status");

#[test]
fn of_one_object_one_goes_after_the_other_and_other_objects_meanwhile() {
    let mut it = It::new(Settings::default());
    for (about, name, offset) in [("x", "x1", 0), ("x", "x2", 1), ("y", "y1", 2), ("x", "x3", 3)] {
        it.push(A, about, name, offset);
    }
    let first = it.start();
    assert_eq!(names(&first), ["x1", "y1"]);
    assert!(it.start().is_empty());
    it.tried(&first[1], Outcome::Told);
    it.tried(&first[0], FAILED);
    assert_eq!(names(&it.start()), [""; 0], "x2 waits for x1");
    it.after(1.0);
    let again = it.start();
    assert_eq!(names(&again), ["x1"]);
    it.tried(&again[0], Outcome::Refused("refused"));
    let next = it.start();
    assert_eq!(names(&next), ["x2"], "what is refused is given up");
    it.tried(&next[0], Outcome::Told);
    assert_eq!(it.ended(), [(2, None), (0, Some("refused")), (1, None)]);
    assert_eq!(names(&it.start()), ["x3"]);
}

#[test]
fn pauses_double_up_to_a_bound_and_after_a_quarter_of_an_hour_it_is_given_up() {
    let mut it = It::new(Settings::default());
    it.push(A, "x", "x1", 7);
    let began = it.now;
    let mut pauses = Vec::new();
    while let Some(wake) = it.queue.wake() {
        pauses.push(wake.duration_since(it.now).as_secs());
        it.now = wake;
        it.queue.expire(it.now);
        if let [attempt] = &it.start()[..] {
            it.tried(attempt, FAILED);
        }
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    assert_eq!(it.ended(), [(7, Some("late"))]);
    assert!(it.now.duration_since(began) <= Duration::from_secs(900));
    // Full jitter: from nothing up to that.
    it.push(A, "x", "x1", 8);
    let attempt = it.start().remove(0);
    it.queue.tried(&attempt.site, attempt.number, FAILED, it.now, 0.0);
    assert_eq!(it.queue.wake(), Some(it.now));
}

#[test]
fn a_service_that_fails_is_asked_for_one_thing_at_a_time_and_the_others_as_ever() {
    let mut it = It::new(Settings { in_flight: 3, ..Settings::default() });
    for n in 0..5 {
        it.push(A, &n.to_string(), "a", n);
        it.push(B, &n.to_string(), "b", 10 + n);
    }
    let first = it.start();
    assert_eq!(first.len(), 6);
    for attempt in &first {
        it.tried(attempt, if attempt.site == site(A) { FAILED } else { Outcome::Told });
    }
    let mut second = it.start();
    second.sort_by(|a, b| a.site.cmp(&b.site));
    assert_eq!(names(&second), ["a", "b", "b"]);
    it.tried(&second[0], Outcome::Told);
    it.after(1.0);
    assert_eq!(it.start().len(), 3, "it answers again");
}

#[test]
fn what_waits_has_an_end_tried_or_not() {
    let mut it = It::new(Settings { in_flight: 1, ..Settings::default() });
    it.push(A, "x", "x1", 0);
    it.push(A, "y", "y1", 1);
    let under_way = it.start();
    assert_eq!(names(&under_way), ["x1"]);
    it.after(900.0);
    it.queue.expire(it.now);
    assert_eq!(it.ended(), [(1, Some("late"))], "what is under way may still succeed");
    it.tried(&under_way[0], FAILED);
    assert_eq!((it.ended(), it.queue.len(), it.queue.wake()), (vec![(0, Some("late"))], 0, None));
}

#[test]
fn where_there_is_no_room_the_newest_of_whoever_has_most_is_given_up() {
    let mut it = It::new(Settings { waiting: 3, ..Settings::default() });
    (0..5).for_each(|n| it.push(A, "x", "x", n));
    assert_eq!(it.ended(), [(3, Some("full")), (4, Some("full"))]);
    let held = message("x", "x").bytes();
    let mut it = It::new(Settings { all_bytes: 4 * held, ..Settings::default() });
    (0..4).for_each(|n| it.push(A, "x", "x", n));
    it.push(B, "x", "x", 9);
    assert_eq!(it.ended(), [(3, Some("full"))], "not of the one that has little");
    assert_eq!(it.start().len(), 2);
}

#[test]
fn what_another_process_tells_is_forgotten_and_what_is_under_way_counts_for_nothing() {
    let mut it = It::new(Settings::default());
    it.push(A, "x", "x1", 0);
    it.push(A, "x", "x2", 1);
    it.queue.push(&site(A), message("x", "x3"), Some((1, 5)), it.now);
    it.queue.push(&site(A), message("z", "client"), None, it.now);
    let started = it.start();
    it.queue.forget(&[0], it.now);
    assert_eq!(it.queue.len(), 3);
    it.tried(&started[0], Outcome::Told);
    let ended = it.queue.take_ended();
    assert_eq!((ended.len(), ended[0].place), (1, None));
    assert_eq!(names(&it.start()), ["x3"]);
}

proptest! {
    /// Whatever comes and whatever is answered: no object has two under way, of each all are told in order, and in the end nothing is left.
    #[test]
    fn order_holds_and_nothing_is_forgotten(
        pushes in proptest::collection::vec((0..2u8, 0..3u8), 1..40),
        answers in proptest::collection::vec(0..3u8, 1..200),
    ) {
        let mut it = It::new(Settings { in_flight: 2, ..Settings::default() });
        for (n, (to, about)) in (0..).zip(&pushes) {
            it.push(if *to == 0 { A } else { B }, &about.to_string(), &format!("{n:04}"), n);
        }
        let mut answers = answers.into_iter().chain(std::iter::repeat(0));
        let mut told: HashMap<(SiteId, String), Vec<String>> = HashMap::new();
        while let Some(wake) = it.queue.wake() {
            it.now = it.now.max(wake);
            let started = it.start();
            let about: std::collections::HashSet<_> = started.iter().map(|a| (&a.site, &a.message.about)).collect();
            prop_assert_eq!(about.len(), started.len());
            for attempt in &started {
                let outcome = match answers.next() { Some(1) => FAILED, Some(2) => Outcome::Refused("refused"), _ => Outcome::Told };
                if outcome == Outcome::Told {
                    told.entry((attempt.site.clone(), attempt.message.about.clone())).or_default().push(attempt.message.identity.clone());
                }
                it.tried(attempt, outcome);
            }
            it.queue.expire(it.now);
        }
        prop_assert!(told.values().all(|names| names.is_sorted()));
        prop_assert_eq!((it.queue.len(), it.queue.bytes, it.queue.under_way), (0, 0, 0));
        prop_assert_eq!(it.ended().len(), pushes.len());
    }
}
