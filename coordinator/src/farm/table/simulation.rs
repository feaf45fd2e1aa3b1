//! Thousands of random schedules against the table's invariants: workers of any speed that join, leave,
//! hang, fail, answer late, twice or under other workers' leases, while time jumps.
//!
//! A failing seed is printed; `GIGASMITH_SIM_SEED=N cargo test -p gigasmith-coordinator simulation` replays it
//! alone.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::sampler::philox::{Philox, Purpose};

const SEEDS: u64 = 3_000;
const EVENTS: u32 = 300;

struct Draws(Philox, u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        self.1 += 1;
        self.0.below(self.1, n)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        (!items.is_empty()).then(|| items[self.below(items.len() as u64) as usize])
    }
}

/// The world around the table: what workers believe they hold, and what became of every task.
struct World {
    table: TaskTable,
    draws: Draws,
    now: Millis,
    workers: Vec<WorkerId>,
    hung: BTreeSet<WorkerId>,
    gone: Vec<WorkerId>,
    /// Leases as given out, never taken back: late and duplicate reports come from here.
    given: Vec<(WorkerId, LeaseId, TaskId)>,
    numbers: BTreeSet<LeaseId>,
    open: BTreeSet<TaskId>,
    ended: BTreeMap<TaskId, &'static str>,
    position: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            table: TaskTable::default(),
            draws: Draws(Philox::new(seed, 0, Purpose::Plan), 0),
            now: Millis(0),
            workers: Vec::new(),
            hung: BTreeSet::new(),
            gone: Vec::new(),
            given: Vec::new(),
            numbers: BTreeSet::new(),
            open: BTreeSet::new(),
            ended: BTreeMap::new(),
            position: 0,
        }
    }

    fn event(&mut self) {
        match self.draws.below(12) {
            0 | 1 => {
                self.position += 1;
                let order = TaskOrder { stage: 0, position: self.position % 7 };
                let task = self.table.submit(order);
                self.open.insert(task);
            }
            2 if self.workers.len() < 6 => {
                let slots = 1 + self.draws.below(3) as u32;
                self.workers.push(self.table.join(self.now, slots));
            }
            3 if self.draws.one_in(3) => {
                if let Some(worker) = self.draws.pick(&self.workers) {
                    self.table.leave(worker);
                    self.workers.retain(|w| *w != worker);
                    self.gone.push(worker);
                }
            }
            4 if self.draws.one_in(4) => {
                if let Some(worker) = self.draws.pick(&self.workers) {
                    self.hung.insert(worker);
                }
            }
            5 => {
                if let Some(worker) = self.draws.pick(&self.workers).filter(|w| !self.hung.contains(w)) {
                    self.table.hear(self.now, worker);
                }
            }
            6 => {
                self.now = Millis(self.now.0 + self.draws.below(LEASE.0));
                self.table.expire(self.now);
            }
            7 if self.draws.one_in(8) => {
                let open: Vec<TaskId> = self.open.iter().copied().collect();
                if let Some(task) = self.draws.pick(&open) {
                    self.table.withdraw(task);
                    self.end(task, "withdrawn");
                }
            }
            _ => self.report(),
        }
        while let Some((worker, lease, task)) = self.table.assign(self.now) {
            assert!(self.numbers.insert(lease), "invariant 3: lease {lease:?} is given twice");
            assert!(self.open.contains(&task), "invariant 2: {task:?} is given out after its end");
            self.given.push((worker, lease, task));
        }
        self.check();
    }

    /// Any report that some worker might send: of any lease ever given, by its holder or by another.
    fn report(&mut self) {
        let Some((holder, lease, task)) = self.draws.pick(&self.given) else { return };
        let impostor = self.draws.one_in(10).then(|| self.draws.pick(&self.workers)).flatten();
        let worker = impostor.unwrap_or(holder);
        let stands = self.table.leased(worker, lease).is_some();
        if stands && self.hung.contains(&worker) {
            return;
        }
        let verdict = match self.draws.below(6) {
            0 => self.table.fail(self.now, worker, lease, false),
            1 if self.draws.one_in(5) => self.table.fail(self.now, worker, lease, true),
            _ => self.table.succeed(self.now, worker, lease),
        };
        match verdict {
            Verdict::Stale => assert!(!stands, "a lease that stands is honoured"),
            _ if worker != holder => panic!("invariant 3: {worker:?} reported under {holder:?}'s lease"),
            Verdict::Again => assert!(stands),
            Verdict::Done(t) => {
                assert_eq!(t, task);
                self.end(task, "done");
            }
            Verdict::Failed(t, _) => {
                assert_eq!(t, task);
                self.end(task, "failed");
            }
        }
    }

    fn end(&mut self, task: TaskId, how: &'static str) {
        let before = self.ended.insert(task, how);
        assert_eq!(before, None, "invariant 2: {task:?} ends twice");
        self.open.remove(&task);
    }

    fn check(&self) {
        let table = &self.table;
        let known: BTreeSet<TaskId> = table.tasks.keys().copied().collect();
        assert_eq!(known, self.open, "invariant 1: tasks come and go only by events");
        for (id, entry) in &table.tasks {
            let waits = table.waiting.contains(&(entry.order, *id));
            assert_eq!(waits, entry.leases.is_empty(), "invariant 1: {id:?} waits or is leased");
            let holders: BTreeSet<WorkerId> = entry.leases.iter().map(|l| table.leases[l].worker).collect();
            assert_eq!(holders.len(), entry.leases.len(), "invariant 4: two leases of {id:?} on one worker");
            assert!(
                holders.iter().all(|w| self.workers.contains(w)),
                "invariant 1: leased to a worker that left"
            );
        }
        for worker in table.workers.values() {
            assert!(worker.leases.len() <= worker.slots as usize, "invariant 4: more leases than slots");
            assert!(worker.leases.iter().all(|l| table.leases.contains_key(l)));
        }
        let leases: usize = table.tasks.values().map(|t| t.leases.len()).sum();
        let held: usize = table.workers.values().map(|w| w.leases.len()).sum();
        assert_eq!(
            (leases, held),
            (table.leases.len(), table.leases.len()),
            "leases are known to both sides"
        );
        assert_eq!(table.waiting.len(), table.tasks.values().filter(|t| t.leases.is_empty()).count());
    }

    /// Invariant 5: with one good worker, and all others silent, everything ends.
    fn finish(&mut self) {
        let good = self.table.join(self.now, 1);
        for _ in 0..10_000 {
            if self.open.is_empty() {
                return;
            }
            self.now = Millis(self.now.0 + 1_000);
            self.table.hear(self.now, good);
            self.table.expire(self.now);
            while let Some((worker, lease, task)) = self.table.assign(self.now) {
                if worker == good {
                    assert_eq!(self.table.succeed(self.now, good, lease), Verdict::Done(task));
                    self.end(task, "done");
                }
            }
        }
        panic!("invariant 5: {} tasks never end", self.open.len());
    }
}

#[test]
#[allow(clippy::print_stderr)]
fn random_schedules_keep_the_invariants() {
    let seeds = match std::env::var("GIGASMITH_SIM_SEED").map(|s| s.parse()) {
        Ok(Ok(seed)) => seed..seed + 1,
        Ok(Err(error)) => panic!("GIGASMITH_SIM_SEED: {error}"),
        Err(_) => 0..SEEDS,
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..EVENTS).for_each(|_| world.event());
            world.finish();
        });
        if let Err(panic) = run {
            eprintln!("the failing seed is {seed}: replay it with GIGASMITH_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
