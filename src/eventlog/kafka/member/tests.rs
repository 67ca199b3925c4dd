//! A member by itself, and by the clock it is told.

use super::*;
use bytes::Bytes;

fn stored(offset: Offset) -> Stored {
    Stored { offset, value: Bytes::from(vec![b'x'; 10]) }
}

fn at(seconds: u64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(seconds)
}

/// A member that reads partitions 0 and 1 from offset 5.
fn reading() -> Member {
    let mut member = Member::default();
    member.assigned(vec![1, 0]);
    assert!(matches!(member.deliver(99), Some(Ok(Delivery::Assigned(parts))) if parts == [0, 1]));
    for partition in [0, 1] {
        member.seek(partition, 5);
    }
    assert_eq!(member.tasks(at(0)), [Task::Seek(0, 5), Task::Seek(1, 5)]);
    assert!(member.sought(0, 5, 9) && member.sought(1, 5, 9));
    member
}

fn offsets(member: &mut Member, max_bytes: usize) -> Option<(u16, Vec<Offset>)> {
    match member.deliver(max_bytes)? {
        Ok(Delivery::Records { partition, records, .. }) => Some((partition, records.iter().map(|stored| stored.offset).collect())),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn what_a_paused_partition_has_read_ahead_holds_up_no_other() {
    let mut member = reading();
    let large = |offset| Stored { offset, value: vec![0; READ_AHEAD].into() };
    member.take("events", 0, large(5), at(0));
    assert!(member.is_full());
    member.pause(0);
    assert!(!member.is_full());
    // On its way still.
    member.take("events", 0, stored(6), at(0));
    member.take("events", 1, stored(5), at(0));
    assert_eq!(offsets(&mut member, 99), Some((1, vec![5])));
    member.resume(0);
    assert!(member.is_full());
    assert_eq!(offsets(&mut member, usize::MAX), Some((0, vec![5, 6])));
    assert!(!member.is_full());
    let goes: [fn(&mut Member); 3] =
        [|member| member.seek(0, 5), |member| member.fail(0, Error::Closed("it fails".into())), |member| member.revoked(vec![0])];
    for goes in goes {
        let mut member = reading();
        member.take("events", 0, large(5), at(0));
        member.pause(0);
        goes(&mut member);
        member.resume(0);
        assert_eq!(member.bytes, 0);
    }
}

#[test]
fn only_the_next_record_of_a_sought_partition_is_taken() {
    let mut member = reading();
    for offset in [3, 5, 5, 6] {
        member.take("events", 0, stored(offset), at(0));
    }
    member.take("events", 7, stored(0), at(0));
    assert_eq!(offsets(&mut member, 10), Some((0, vec![5])), "at most so many bytes, at least one record");
    assert_eq!(offsets(&mut member, 99), Some((0, vec![6])));
    assert_eq!(offsets(&mut member, 99), None);
    member.seek(0, 2);
    member.take("events", 0, stored(7), at(0));
    assert_eq!(offsets(&mut member, 99), None, "a seek has yet to reach the brokers");
    assert!(!member.sought(0, 1, 9), "an older seek");
    assert!(member.sought(0, 2, 9));
    member.take("events", 0, stored(2), at(0));
    assert_eq!(offsets(&mut member, 99), Some((0, vec![2])));
}

#[test]
fn a_gap_fails_its_partition_alone() {
    let mut member = reading();
    member.take("events", 0, stored(6), at(0));
    member.take("events", 1, stored(5), at(0));
    assert!(matches!(member.deliver(99), Some(Ok(Delivery::Failed { partition: 0, error: Error::Damaged { offset: 5, .. } }))));
    assert_eq!(offsets(&mut member, 99), Some((1, vec![5])));
    member.take("events", 0, stored(7), at(0));
    assert_eq!(offsets(&mut member, 99), None, "told once");
    assert_eq!(member.reading(), [(1, 6)]);
}

#[test]
fn a_partition_that_is_not_fetched_is_read_anew() {
    let mut member = reading();
    member.pause(1);
    drop(member.tasks(at(0)));
    for (is_fetched, expected) in [(false, None), (true, None), (false, None), (false, Some(Task::ReadOn(0, 5))), (false, None)] {
        member.heard_fetched(0, is_fetched);
        member.heard_fetched(1, is_fetched);
        assert_eq!(member.tasks(at(0)), Vec::from_iter(expected));
    }
}

#[test]
fn a_paused_partition_keeps_what_it_has_and_reads_on_where_it_was() {
    let mut member = reading();
    member.take("events", 0, stored(5), at(0));
    member.pause(0);
    assert_eq!(member.tasks(at(0)), [Task::Pause(0)]);
    assert_eq!(offsets(&mut member, 99), None);
    member.resume(0);
    member.resume(0);
    assert_eq!(member.tasks(at(0)), [Task::ReadOn(0, 6)]);
    assert_eq!(offsets(&mut member, 99), Some((0, vec![5])));
    member.pause(0);
    member.resume(0);
    member.pause(0);
    assert_eq!(member.tasks(at(0)), [Task::Pause(0), Task::Pause(0)], "what was taken back is not done");
}

#[test]
fn a_revocation_waits_for_the_reader_to_come_back() {
    let mut member = reading();
    member.take("events", 0, stored(5), at(0));
    member.take("events", 1, stored(5), at(0));
    assert!(member.is_revoked());
    member.revoked(vec![0]);
    assert!(!member.is_revoked());
    assert!(matches!(member.deliver(99), Some(Ok(Delivery::Revoked(parts))) if parts == [0]));
    assert!(!member.is_revoked(), "told, but it may be writing");
    member.seek(0, 5);
    assert_eq!(offsets(&mut member, 99), Some((1, vec![5])), "of the other nothing is delivered any more");
    assert!(member.is_revoked());
    assert_eq!(member.tasks(at(0)), []);
    member.revoked(vec![0]);
    assert!(member.is_revoked(), "nothing to give back");
}

#[test]
fn a_partition_that_stands_still_before_its_end_is_read_anew() {
    let mut member = reading();
    assert_eq!(member.tasks(at(1)), []);
    assert_eq!(member.tasks(at(30)), []);
    member.take("events", 1, stored(5), at(20));
    assert_eq!(member.tasks(at(32)), [Task::Look(0, 5)]);
    assert_eq!(member.tasks(at(33)), [], "once in a while");
    for offset in 6..9 {
        member.take("events", 1, stored(offset), at(40));
    }
    assert_eq!(member.tasks(at(100)), [Task::Look(0, 5), Task::Look(1, 9)]);
    assert_eq!(member.tasks(at(101)), []);
    member.heard_end(1, 10);
    assert_eq!(member.tasks(at(129)), [], "a while from when there was something to wait for");
    assert_eq!(member.tasks(at(160)), [Task::Look(0, 5), Task::Look(1, 9)]);
}

#[test]
fn a_client_that_is_asked_in_vain_is_replaced() {
    let mut member = reading();
    assert_eq!((0..5).map(|_| member.count_stall(0)).collect::<Vec<_>>(), [false, false, false, true, true]);
    assert!(!member.count_stall(1), "each partition for itself");
    member.take("events", 0, stored(5), at(0));
    assert!(!member.count_stall(0), "it gives records");
    let large = Stored { offset: 6, value: vec![0; READ_AHEAD].into() };
    member.take("events", 0, large, at(0));
    assert!((0..9).all(|_| !member.count_stall(0)), "its reader has enough");
}

#[test]
fn a_client_that_does_not_reach_its_group_is_looked_after_and_in_the_end_replaced() {
    let mut member = Member::default();
    member.heard_group(true, at(0));
    assert!(!member.is_astray(at(99)) && !member.count_astray());
    member.heard_group(false, at(100));
    member.heard_group(false, at(129));
    let looks: Vec<_> = (100..=300).filter(|now| member.is_astray(at(*now))).collect();
    assert_eq!(looks, [131, 162, 193, 224, 255, 286], "each half minute, and while the brokers answer nobody that is not counted");
    assert_eq!((0..5).map(|_| member.count_astray()).collect::<Vec<_>>(), [false, false, false, true, true]);
    member.heard_group(true, at(300));
    member.heard_group(false, at(301));
    assert!(member.is_astray(at(332)) && !member.count_astray(), "it was reached in between");
    member.lost();
    assert!(!member.is_astray(at(999)), "another client is asked");
}

#[test]
fn what_took_long_lets_records_and_the_group_go_first() {
    let mut member = reading();
    member.seek(0, 6);
    member.seek(1, 7);
    let tasks = member.tasks(at(0));
    member.put_behind(tasks[1..].iter().copied(), (at(0), at(2)));
    assert_eq!(member.tasks(at(3)), []);
    assert_eq!(member.tasks(at(4)), [Task::Seek(1, 7)], "for as long as it took");
}

#[test]
fn a_partition_that_cannot_be_asked_for_holds_up_no_other() {
    let mut member = reading();
    for (partition, offset) in [(0, 6), (1, 7)] {
        member.seek(partition, offset);
    }
    let tasks = member.tasks(at(0));
    assert_eq!(tasks, [Task::Seek(0, 6), Task::Seek(1, 7)]);
    member.put_off(tasks[0], tasks[1..].iter().copied(), (at(0), at(3)));
    assert_eq!(member.tasks(at(4)), [], "records that are there are taken first, for as long as the attempt took");
    member.drained();
    assert_eq!(member.tasks(at(4)), [Task::Seek(1, 7)], "the other one does not wait for what failed");
    member.done(Task::Seek(1, 7));
    assert!(member.sought(1, 7, 9));

    member.pause(1);
    assert_eq!(member.tasks(at(5)), [Task::Pause(1)]);

    // What failed is tried ever less often.
    let mut due = 6;
    for wait in [6, 12, 24, 30, 30] {
        assert_eq!(member.tasks(at(due - 1)), []);
        assert_eq!(member.tasks(at(due)), [Task::Seek(0, 6)]);
        member.put_off(Task::Seek(0, 6), [], (at(due), at(due + 3)));
        member.drained();
        due += 3 + wait;
    }
    member.seek(0, 8);
    assert_eq!(member.tasks(at(due)), [Task::Seek(0, 8)]);
    member.done(Task::Seek(0, 8));
    member.put_off(Task::Seek(0, 8), [], (at(due), at(due)));
    assert_eq!(member.tasks(at(due + 1)), [Task::Seek(0, 8)], "once it was reached, it is soon tried again");
}

#[test]
fn a_look_that_failed_is_repeated_while_it_is_wanted() {
    let mut member = reading();
    member.take("events", 0, stored(5), at(60));
    for offset in 5..9 {
        member.take("events", 1, stored(offset), at(20));
    }
    assert_eq!(member.tasks(at(60)), [Task::Look(1, 9)]);
    for (began, again) in [(60, 66), (66, 75)] {
        member.put_off(Task::Look(1, 9), [], (at(began), at(began + 3)));
        member.drained();
        assert_eq!(member.tasks(at(again - 1)), [], "not at once");
        assert_eq!(member.tasks(at(again)), [Task::Look(1, 9)]);
    }
    member.put_off(Task::Look(1, 9), [], (at(75), at(78)));
    member.drained();
    member.take("events", 1, stored(9), at(80));
    assert_eq!(member.tasks(at(91)), [Task::Look(0, 6)], "something came");
}

#[test]
fn records_that_come_before_a_partition_is_read_on_do_not_leave_it_paused() {
    let mut member = reading();
    member.again(Task::ReadOn(0, 5));
    member.take("events", 0, stored(5), at(0));
    assert_eq!(member.tasks(at(0)), [Task::ReadOn(0, 6)]);
}

#[test]
fn every_partition_gets_its_turn() {
    let mut member = reading();
    for offset in 5..8 {
        member.take("events", 0, stored(offset), at(0));
        member.take("events", 1, stored(offset), at(0));
    }
    let served: Vec<u16> = std::iter::from_fn(|| offsets(&mut member, 1)).map(|(partition, _)| partition).collect();
    assert_eq!(served, [1, 0, 1, 0, 1, 0]);
    assert!(!member.is_full());
}

#[test]
fn what_was_read_of_another_topic_is_disowned_until_this_one_is_read() {
    let mut member = reading();
    member.commit(0, 5);
    member.disown(0);
    member.fail(0, Error::Closed(String::new()));
    member.commit(0, 5);
    assert_eq!((member.said.get(&0), std::mem::take(&mut member.unsaid)), (Some(&Said::Nothing), true));
    member.seek(0, 0);
    member.commit(0, 5);
    assert_eq!((member.said.get(&0), member.unsaid), (Some(&Said::Nothing), false));
    assert!(member.sought(0, 0, 9));
    // What the brokers know by then is that it read from the start.
    assert_eq!(member.said.get(&0), None);
    member.commit(0, 1);
    assert_eq!(member.said.get(&0), Some(&Said::Below(1)));
}

#[test]
fn a_place_that_is_set_anew_is_sought_and_said_at_once() {
    let mut member = reading();
    member.begin(1, 7);
    assert_eq!(member.tasks(at(0)), [Task::Begin(1, 7)]);
    assert_eq!((member.said.get(&1), member.unsaid), (Some(&Said::Below(7)), true));
    assert!(!member.sought(1, 5, 9) && member.sought(1, 7, 9));
}
