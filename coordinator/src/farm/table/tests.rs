//! The table's rules, one by one.

use super::*;

const NOW: Millis = Millis(0);

fn order(position: u32) -> TaskOrder {
    TaskOrder { stage: 0, position }
}

#[test]
fn tasks_go_out_in_order_and_within_the_slots() {
    let mut table = TaskTable::default();
    let (late, early) = (table.submit(order(5)), table.submit(order(1)));
    let worker = table.join(NOW, 1);
    let (to, lease, task) = table.assign(NOW).unwrap();
    assert_eq!((to, task), (worker, early));
    assert_eq!(table.assign(NOW), None, "one slot, one lease");
    assert_eq!(table.succeed(NOW, worker, lease), Verdict::Done(early));
    assert_eq!(table.assign(NOW).unwrap().2, late);
}

#[test]
fn a_lost_worker_frees_its_tasks_and_fences_its_reports() {
    let mut table = TaskTable::default();
    let task = table.submit(order(0));
    let (first, second) = (table.join(NOW, 2), table.join(NOW, 2));
    let (holder, lease, _) = table.assign(NOW).unwrap();
    table.leave(holder);
    let (next, fresh, again) = table.assign(NOW).unwrap();
    assert_eq!((again, next), (task, if holder == first { second } else { first }));
    assert_eq!(table.succeed(NOW, holder, lease), Verdict::Stale);
    assert_eq!(table.succeed(NOW, holder, fresh), Verdict::Stale, "a lease belongs to its worker");
    assert_eq!(table.succeed(NOW, next, fresh), Verdict::Done(task));
    assert_eq!(table.succeed(NOW, next, fresh), Verdict::Stale, "a duplicate changes nothing");
}

#[test]
fn silence_frees_and_a_word_keeps() {
    let mut table = TaskTable::default();
    let task = table.submit(order(0));
    let worker = table.join(NOW, 1);
    let (_, lease, _) = table.assign(NOW).unwrap();
    table.hear(Millis(10_000), worker);
    assert!(table.expire(Millis(20_000)).is_empty());
    assert_eq!(table.expire(Millis(25_000)), [worker]);
    assert_eq!(table.assign(Millis(25_000)), None, "a silent worker gets nothing");
    assert_eq!(table.succeed(Millis(26_000), worker, lease), Verdict::Stale, "its lease has ended");
    assert_eq!(table.assign(Millis(26_000)).unwrap().2, task, "it was heard of: it gets work again");
}

#[test]
fn failures_end_and_go_elsewhere_first() {
    let mut table = TaskTable::default();
    let task = table.submit(order(0));
    let workers = [table.join(NOW, 1), table.join(NOW, 1)];
    let mut seen = Vec::new();
    for attempt in 1..=MAX_ATTEMPTS {
        let (worker, lease, _) = table.assign(NOW).unwrap();
        seen.push(worker);
        let verdict = table.fail(NOW, worker, lease, false);
        let last = attempt == MAX_ATTEMPTS;
        assert_eq!(verdict, if last { Verdict::Failed(task, attempt) } else { Verdict::Again });
    }
    assert!(workers.iter().all(|w| seen.contains(w)), "both workers had a try: {seen:?}");
    let hopeless = table.submit(order(0));
    let (worker, lease, _) = table.assign(NOW).unwrap();
    assert_eq!(table.fail(NOW, worker, lease, true), Verdict::Failed(hopeless, 1));
}

#[test]
fn a_worker_that_only_fails_is_blocked() {
    let mut table = TaskTable::default();
    let worker = table.join(NOW, 1);
    for i in 0..BLOCK_AFTER {
        assert!(!table.is_blocked(worker));
        table.submit(order(i));
        let (_, lease, _) = table.assign(NOW).unwrap();
        table.fail(NOW, worker, lease, false);
    }
    assert!(table.is_blocked(worker));
    assert_eq!(table.assign(NOW), None);
    let good = table.join(NOW, 1);
    assert_eq!(table.assign(NOW).unwrap().0, good);
}

#[test]
fn idle_workers_duplicate_overdue_leases_and_the_first_result_wins() {
    let mut table = TaskTable::default();
    let worker = table.join(NOW, 2);
    table.submit(order(0));
    let (_, lease, _) = table.assign(NOW).unwrap();
    table.succeed(Millis(100), worker, lease);
    let (old, young) = (table.submit(order(1)), table.submit(order(2)));
    let (_, first, _) = table.assign(Millis(101)).unwrap();
    let (_, second, _) = table.assign(Millis(102)).unwrap();
    let idle = table.join(Millis(103), 1);
    assert_eq!(table.assign(Millis(301)), None, "twice the usual 100 ms are not over");
    let (copier, copy, task) = table.assign(Millis(400)).unwrap();
    assert_eq!((copier, task), (idle, old));
    assert_eq!(table.assign(Millis(500)), None, "one copy at a time");
    assert_eq!(table.succeed(Millis(501), idle, copy), Verdict::Done(old));
    assert_eq!(table.succeed(Millis(502), worker, first), Verdict::Stale);
    assert_eq!(table.succeed(Millis(503), worker, second), Verdict::Done(young));
}

#[test]
fn a_withdrawn_task_gives_its_slot_back() {
    let mut table = TaskTable::default();
    let worker = table.join(NOW, 1);
    let unwanted = table.submit(order(0));
    let (_, lease, _) = table.assign(NOW).unwrap();
    table.withdraw(unwanted);
    assert_eq!(table.succeed(NOW, worker, lease), Verdict::Stale);
    table.submit(order(0));
    assert!(table.assign(NOW).is_some());
}
