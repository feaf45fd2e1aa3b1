//! The table's rules, one by one.

use super::*;

const NOW: Millis = Millis(0);
const SKILLS: Skills = Skills { model: ModelKey(0), class: ClassKey(0) };

fn order(position: u32) -> TaskOrder {
    TaskOrder { stage: 0, position }
}

fn job_of(priority: i32, class: Option<ClassKey>, pause_on_failure: bool) -> JobOptions {
    JobOptions { requirement: Requirement { model: ModelKey(0), class }, priority, pause_on_failure }
}

/// A table with one job, and ways to speak of it shortly.
struct Bench {
    table: TaskTable,
    job: JobId,
}

impl Bench {
    fn new() -> Self {
        let mut table = TaskTable::default();
        let job = table.open_job(job_of(0, Some(ClassKey(0)), false));
        Self { table, job }
    }

    fn submit(&mut self, position: u32) -> TaskId {
        self.table.submit(self.job, order(position), "patch").unwrap()
    }

    fn join(&mut self, slots: u32) -> WorkerId {
        self.join_with(SKILLS, slots)
    }

    fn join_with(&mut self, skills: Skills, slots: u32) -> WorkerId {
        let worker = self.table.join(NOW, skills, slots);
        self.table.set_open(worker, true, true);
        worker
    }
}

#[test]
fn tasks_go_out_in_order_and_within_the_slots() {
    let mut bench = Bench::new();
    let (late, early) = (bench.submit(5), bench.submit(1));
    let worker = bench.join(1);
    let Bench { table, .. } = &mut bench;
    let (to, lease, task) = table.assign(NOW).unwrap();
    assert_eq!((to, task), (worker, early));
    assert_eq!(table.assign(NOW), None, "one slot, one lease");
    assert_eq!(table.succeed(NOW, worker, lease), Verdict::Done(early));
    assert_eq!(table.assign(NOW).unwrap().2, late);
}

#[test]
fn jobs_are_served_by_priority_then_in_the_order_they_came() {
    let mut bench = Bench::new();
    let first = bench.submit(9);
    let Bench { table, .. } = &mut bench;
    let [second, urgent] = [0, 5].map(|priority| table.open_job(job_of(priority, Some(ClassKey(0)), false)));
    let later = table.submit(second, order(0), "patch").unwrap();
    let soon = table.submit(urgent, order(0), "patch").unwrap();
    let held = table.submit(urgent, order(1), "patch").unwrap();
    let worker = bench.join(9);
    let Bench { table, job } = &mut bench;
    assert_eq!(table.assign(NOW).unwrap().2, soon);
    table.pause(urgent, true);
    table.prioritise(second, 1);
    assert_eq!(table.assign(NOW).unwrap().2, later);
    assert_eq!(table.assign(NOW).unwrap().2, first);
    assert_eq!(table.assign(NOW), None, "a paused job's tasks stay");
    table.pause(urgent, false);
    let (_, lease, task) = table.assign(NOW).unwrap();
    assert_eq!(task, held);
    assert_eq!(table.close_job(urgent).len(), 2);
    assert_eq!(table.succeed(NOW, worker, lease), Verdict::Stale, "nobody wants it any more");
    assert_eq!(table.take_withdrawn().len(), 2, "its leases are withdrawn from the worker");
    assert_eq!(table.submit(urgent, order(0), "patch"), None);
    assert_eq!(table.job_depth(*job), (0, 1));
}

#[test]
fn only_fit_workers_get_tasks() {
    let mut bench = Bench::new();
    let strict = bench.submit(0);
    let other_weights = Skills { model: ModelKey(1), class: ClassKey(0) };
    let other_class = Skills { model: ModelKey(0), class: ClassKey(1) };
    bench.join_with(other_weights, 4);
    let near = bench.join_with(other_class, 4);
    let closed = bench.table.join(NOW, SKILLS, 4);
    assert_eq!(bench.table.assign(NOW), None, "wrong weights, wrong class, not admitted");
    let mixing = bench.table.open_job(job_of(0, None, false));
    let mixed = bench.table.submit(mixing, order(0), "patch").unwrap();
    let (worker, _, task) = bench.table.assign(NOW).unwrap();
    assert_eq!((worker, task), (near, mixed));
    bench.table.set_open(near, true, false);
    bench.table.submit(mixing, order(1), "patch").unwrap();
    assert_eq!(bench.table.assign(NOW), None, "its results lie too far away to mix");
    bench.table.set_open(closed, true, false);
    assert_eq!(bench.table.assign(NOW).map(|(w, _, t)| (w, t)), Some((closed, strict)));
}

#[test]
fn fast_workers_get_more() {
    let mut bench = Bench::new();
    let (slow, fast) = (bench.join(2), bench.join(2));
    for (position, (worker, took)) in [(slow, 400), (fast, 100)].into_iter().enumerate() {
        bench.submit(position as u32);
        let Bench { table, .. } = &mut bench;
        table.set_open(if worker == slow { fast } else { slow }, false, false);
        let (_, lease, _) = table.assign(NOW).unwrap();
        table.succeed(Millis(took), worker, lease);
        table.set_open(slow, true, true);
        table.set_open(fast, true, true);
    }
    for position in 10..13 {
        bench.submit(position);
    }
    let given: Vec<WorkerId> =
        std::iter::from_fn(|| bench.table.assign(Millis(500)).map(|(w, ..)| w)).collect();
    assert_eq!(given, [fast, fast, slow], "two tasks of 100 ms end before one of 400");
}

#[test]
fn a_lost_worker_frees_its_tasks_and_fences_its_reports() {
    let mut bench = Bench::new();
    let task = bench.submit(0);
    let (first, second) = (bench.join(2), bench.join(2));
    let Bench { table, .. } = &mut bench;
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
fn a_broken_connection_suspends_leases_and_a_return_resumes_them() {
    let mut bench = Bench::new();
    let (kept, dropped) = (bench.submit(0), bench.submit(1));
    let worker = bench.join(2);
    let Bench { table, .. } = &mut bench;
    let (_, first, _) = table.assign(NOW).unwrap();
    let (_, second, _) = table.assign(NOW).unwrap();
    table.disconnect(worker);
    assert_eq!(table.depth(), (2, 0), "its tasks are free at once");
    assert_eq!(table.reconnect(NOW, worker, &[first.0, 999]), [first.0], "it still has one of them");
    assert_eq!(table.depth(), (1, 1));
    assert_eq!(table.succeed(NOW, worker, second), Verdict::Stale, "what it did not name has ended");
    assert_eq!(table.succeed(NOW, worker, first), Verdict::Done(kept));
    assert_eq!(table.assign(NOW).unwrap().2, dropped);
    // While it is away another worker takes over; whoever is first wins.
    table.disconnect(worker);
    bench.join(1);
    let Bench { table, .. } = &mut bench;
    let (other, copy, task) = table.assign(NOW).unwrap();
    assert_eq!(task, dropped);
    assert_eq!(table.succeed(NOW, other, copy), Verdict::Done(dropped));
    assert!(table.reconnect(NOW, worker, &[]).is_empty());
}

#[test]
fn silence_frees_and_a_word_keeps() {
    let mut bench = Bench::new();
    let task = bench.submit(0);
    let worker = bench.join(1);
    let Bench { table, .. } = &mut bench;
    let (_, lease, _) = table.assign(NOW).unwrap();
    table.hear(Millis(10_000), worker);
    let late = Millis(10_000 + SILENCE.0);
    assert_eq!(table.expire(Millis(late.0 - 1)), Expired::default());
    assert_eq!(table.expire(late).silent, [worker]);
    assert_eq!(table.assign(late), None, "a silent worker gets nothing");
    assert_eq!(table.succeed(late, worker, lease), Verdict::Stale, "its lease has ended");
    assert_eq!(table.assign(late).unwrap().2, task, "it was heard of: it gets work again");
    table.disconnect(worker);
    assert_eq!(table.expire(Millis(late.0 + LEASE.0)).gone, [worker], "one that does not return");
}

#[test]
fn a_device_that_hangs_loses_its_task_though_its_worker_is_heard_of() {
    let mut bench = Bench::new();
    bench.submit(0);
    let worker = bench.join(1);
    let Bench { table, .. } = &mut bench;
    let (_, lease, _) = table.assign(NOW).unwrap();
    table.succeed(Millis(100), worker, lease);
    let stuck = bench.submit(1);
    let Bench { table, .. } = &mut bench;
    let (_, lease, _) = table.assign(Millis(100)).unwrap();
    let later = Millis(100 + HUNG_LEAST.0);
    table.hear(later, worker);
    let other = Skills { model: ModelKey(7), class: ClassKey(0) };
    let quick = table.join(later, other, 1);
    assert_eq!(table.expire(Millis(later.0 - 1)), Expired::default());
    table.leave(quick);
    assert_eq!(table.expire(later).hung, [worker]);
    assert_eq!(table.take_withdrawn(), [(worker, lease)]);
    assert_eq!(table.assign(later).unwrap().2, stuck, "there is no other worker: it may try again");
}

#[test]
fn failures_end_and_go_elsewhere_first() {
    let mut bench = Bench::new();
    let task = bench.submit(0);
    let workers = [bench.join(1), bench.join(1)];
    let mut seen = Vec::new();
    for attempt in 1..=MAX_ATTEMPTS {
        let (worker, lease, _) = bench.table.assign(NOW).unwrap();
        seen.push(worker);
        let verdict = bench.table.fail(NOW, worker, lease, false);
        let last = attempt == MAX_ATTEMPTS;
        assert_eq!(verdict, if last { Verdict::Failed(task, attempt) } else { Verdict::Again });
    }
    assert!(workers.iter().all(|w| seen.contains(w)), "both workers had a try: {seen:?}");
    let hopeless = bench.submit(0);
    let (worker, lease, _) = bench.table.assign(NOW).unwrap();
    assert_eq!(bench.table.fail(NOW, worker, lease, true), Verdict::Failed(hopeless, 1));
}

#[test]
fn a_bad_worker_gets_a_task_once_even_while_the_good_ones_are_busy() {
    let mut bench = Bench::new();
    bench.submit(0);
    let good = bench.join(1);
    let Bench { table, .. } = &mut bench;
    let (_, busy, _) = table.assign(NOW).unwrap();
    let bad = bench.join(1);
    let task = bench.submit(1);
    let Bench { table, .. } = &mut bench;
    let (worker, lease, _) = table.assign(NOW).unwrap();
    assert_eq!((worker, table.fail(NOW, bad, lease, false)), (bad, Verdict::Again));
    assert_eq!(table.assign(NOW), None, "it waits for the good worker");
    table.succeed(Millis(1), good, busy);
    assert_eq!(table.assign(Millis(1)).map(|(w, _, t)| (w, t)), Some((good, task)));
}

#[test]
fn a_task_that_fails_everywhere_pauses_a_job_that_wants_it_so() {
    let mut table = TaskTable::default();
    let job = table.open_job(job_of(0, Some(ClassKey(0)), true));
    let task = table.submit(job, order(0), "patch").unwrap();
    let worker = table.join(NOW, SKILLS, 1);
    table.set_open(worker, true, true);
    for attempt in 1..=MAX_ATTEMPTS {
        let (_, lease, _) = table.assign(NOW).unwrap();
        let verdict = table.fail(NOW, worker, lease, false);
        let last = attempt == MAX_ATTEMPTS;
        assert_eq!(verdict, if last { Verdict::Paused(job, attempt) } else { Verdict::Again });
    }
    assert_eq!(table.assign(NOW), None);
    table.pause(job, false);
    let (_, lease, again) = table.assign(NOW).unwrap();
    assert_eq!((again, table.succeed(NOW, worker, lease)), (task, Verdict::Done(task)));
}

#[test]
fn a_worker_that_only_fails_is_blocked_until_it_is_forgiven() {
    let mut bench = Bench::new();
    let worker = bench.join(1);
    for i in 0..BLOCK_AFTER {
        assert!(!bench.table.is_blocked(worker));
        bench.submit(i);
        let (_, lease, _) = bench.table.assign(NOW).unwrap();
        bench.table.fail(NOW, worker, lease, false);
    }
    assert!(bench.table.is_blocked(worker));
    assert_eq!(bench.table.assign(NOW), None);
    let good = bench.join(1);
    let (taker, _, _) = bench.table.assign(NOW).unwrap();
    assert_eq!(taker, good);
    bench.table.forgive(worker);
    assert_eq!(bench.table.assign(NOW).unwrap().0, worker);
}

#[test]
fn idle_workers_duplicate_overdue_leases_and_the_first_result_wins() {
    let mut bench = Bench::new();
    let (worker, other) = (bench.join(1), bench.join(1));
    bench.submit(0);
    let (_, lease, _) = bench.table.assign(NOW).unwrap();
    bench.table.succeed(Millis(100), worker, lease);
    let (old, young) = (bench.submit(1), bench.submit(2));
    let (_, first, _) = bench.table.assign(Millis(101)).unwrap();
    let (_, second, _) = bench.table.assign(Millis(102)).unwrap();
    let idle = bench.join(1);
    let Bench { table, .. } = &mut bench;
    assert_eq!(table.assign(Millis(301)), None, "twice the usual 100 ms are not over");
    let (copier, copy, task) = table.assign(Millis(400)).unwrap();
    assert_eq!((copier, task), (idle, old));
    assert_eq!(table.assign(Millis(500)), None, "one copy at a time");
    assert_eq!(table.succeed(Millis(501), idle, copy), Verdict::Done(old));
    assert_eq!(table.take_withdrawn(), [(worker, first)], "the slower one need not go on");
    assert_eq!(table.succeed(Millis(502), worker, first), Verdict::Stale);
    assert_eq!(table.succeed(Millis(503), other, second), Verdict::Done(young));
}

#[test]
fn an_idle_worker_takes_over_what_stands_in_anothers_queue() {
    let mut bench = Bench::new();
    let busy = bench.join(2);
    bench.submit(0);
    let (_, lease, _) = bench.table.assign(NOW).unwrap();
    bench.table.succeed(Millis(100), busy, lease);
    let (under_way, queued) = (bench.submit(1), bench.submit(2));
    let (_, first, _) = bench.table.assign(Millis(100)).unwrap();
    let (_, second, _) = bench.table.assign(Millis(100)).unwrap();
    let idle = bench.join(2);
    assert_eq!(bench.table.assign(Millis(190)), None, "the next task is about to begin where it is");
    let (taker, lease, task) = bench.table.assign(Millis(110)).unwrap();
    assert_eq!((taker, task), (idle, queued));
    assert_eq!(bench.table.take_withdrawn(), [(busy, second)], "the other need not do it");
    assert_eq!(bench.table.succeed(Millis(112), busy, second), Verdict::Stale);
    assert_eq!(bench.table.assign(Millis(112)), None, "what is under way stays");
    assert_eq!(bench.table.succeed(Millis(200), busy, first), Verdict::Done(under_way));
    assert_eq!(bench.table.succeed(Millis(900), idle, lease), Verdict::Done(queued));
    // `idle` is slow, as it turns out: it leaves a fast worker's queue alone.
    bench.submit(3);
    bench.submit(4);
    bench.table.set_open(idle, false, false);
    bench.table.assign(Millis(900)).unwrap();
    bench.table.assign(Millis(900)).unwrap();
    bench.table.set_open(idle, true, true);
    assert_eq!(bench.table.assign(Millis(901)), None);
}

#[test]
fn a_withdrawn_task_gives_its_slot_back() {
    let mut bench = Bench::new();
    let worker = bench.join(1);
    let unwanted = bench.submit(0);
    let (_, lease, _) = bench.table.assign(NOW).unwrap();
    bench.table.withdraw(unwanted);
    assert_eq!(bench.table.succeed(NOW, worker, lease), Verdict::Stale);
    bench.submit(0);
    assert!(bench.table.assign(NOW).is_some());
}

#[test]
fn tables_that_start_elsewhere_give_other_numbers() {
    let mut table = TaskTable::starting_after(1 << 40);
    assert!(table.number() > 1 << 40);
}

#[test]
fn the_results_of_one_call_share_its_time() {
    let mut bench = Bench::new();
    let worker = bench.join(8);
    let pace = |bench: &Bench, now: Millis| bench.table.worker(now, worker).unwrap().2;
    for call in 0..5 {
        (0..4).for_each(|i| {
            bench.submit(i);
        });
        let begun = Millis(1_000 * call);
        let leases: Vec<LeaseId> =
            std::iter::from_fn(|| bench.table.assign(begun)).map(|(_, lease, _)| lease).collect();
        for (i, lease) in leases.into_iter().enumerate() {
            let now = Millis(begun.0 + 400 + i as u64);
            bench.table.succeed(now, worker, lease);
        }
        assert_eq!(pace(&bench, begun), Some(100), "400 ms for four tasks");
    }
    bench.submit(9);
    let (_, lease, _) = bench.table.assign(Millis(6_000)).unwrap();
    bench.table.succeed(Millis(6_180), worker, lease);
    assert_eq!(pace(&bench, Millis(6_180)), Some(110), "a call of its own");
}

#[test]
fn a_call_of_two_jobs_is_paid_by_both() {
    let mut bench = Bench::new();
    bench.join(4);
    let other = bench.table.open_job(job_of(0, Some(ClassKey(0)), false));
    let Bench { table, job } = &mut bench;
    let jobs = [*job, other];
    for job in jobs {
        table.submit(job, order(0), "patch").unwrap();
        table.submit(job, order(1), "patch").unwrap();
    }
    let leases: Vec<(WorkerId, LeaseId)> =
        std::iter::from_fn(|| table.assign(NOW)).map(|(worker, lease, _)| (worker, lease)).collect();
    for (i, (worker, lease)) in leases.into_iter().enumerate() {
        table.succeed(Millis(400 + i as u64), worker, lease);
    }
    assert_eq!(jobs.map(|job| table.jobs[&job].served), [200, 200]);
}
