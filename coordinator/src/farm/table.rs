//! Who works on what: the decisions, apart from performing them.
//!
//! Pure: commands come in as method calls, decisions go out as return values.
//!
//! Invariants:
//! 1. A task is in one place: waiting, or leased to exactly one connected worker.
//! 2. A lease number is never given twice; a report under a lease that has ended changes nothing.
//! 3. A worker never holds more leases than its slots.
//! 4. Every task ends: with a result, or with an error after [`MAX_ATTEMPTS`] failures.

use std::collections::{BTreeMap, BTreeSet};

/// How often a task is tried before it counts as failed.
pub const MAX_ATTEMPTS: u32 = 3;

/// A task of this table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// A connection of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A fencing number: one attempt at one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What comes first when several tasks wait: (stage, position in the stage's plan).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskOrder {
    /// Position of the stage in the cascade.
    pub stage: u32,
    /// Position of the task in the stage.
    pub position: u32,
}

#[derive(Debug)]
struct Entry {
    order: TaskOrder,
    failures: u32,
    lease: Option<(LeaseId, WorkerId)>,
}

/// What becomes of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The task is done: its result counts.
    Done(TaskId),
    /// The task goes to a worker again.
    Again,
    /// The task has failed for good, after this many attempts.
    Failed(TaskId, u32),
    /// The lease had ended: nothing changes.
    Stale,
}

/// Tasks, workers and leases.
#[derive(Debug, Default)]
pub struct TaskTable {
    tasks: BTreeMap<TaskId, Entry>,
    waiting: BTreeSet<(TaskOrder, TaskId)>,
    leases: BTreeMap<LeaseId, TaskId>,
    /// Slots of each worker, and how many are taken.
    workers: BTreeMap<WorkerId, (u32, u32)>,
    next: u64,
}

impl TaskTable {
    /// Adds a task.
    pub fn submit(&mut self, order: TaskOrder) -> TaskId {
        let id = TaskId(self.number());
        self.tasks.insert(id, Entry { order, failures: 0, lease: None });
        self.waiting.insert((order, id));
        id
    }

    /// Adds a worker with room for `slots` tasks.
    pub fn join(&mut self, slots: u32) -> WorkerId {
        let id = WorkerId(self.number());
        self.workers.insert(id, (slots, 0));
        id
    }

    /// Removes a worker; its tasks wait again.
    pub fn leave(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        let held = self.tasks.iter_mut().filter(|(_, e)| e.lease.is_some_and(|(_, w)| w == worker));
        for (&id, entry) in held {
            let (lease, _) = entry.lease.take().expect("filtered");
            self.leases.remove(&lease);
            self.waiting.insert((entry.order, id));
        }
    }

    /// Removes a task that nobody wants any more.
    pub fn withdraw(&mut self, task: TaskId) {
        if let Some(entry) = self.tasks.get(&task) {
            self.waiting.remove(&(entry.order, task));
            self.end_lease(task);
            self.tasks.remove(&task);
        }
    }

    /// Leases the first waiting task to the worker with the most free slots.
    pub fn assign(&mut self) -> Option<(WorkerId, LeaseId, TaskId)> {
        let free = |(_, (slots, taken)): &(&WorkerId, &mut (u32, u32))| slots - taken;
        let (&worker, room) = self.workers.iter_mut().filter(|w| free(w) > 0).max_by_key(free)?;
        let (_, task) = self.waiting.pop_first()?;
        room.1 += 1;
        self.next += 1;
        let lease = LeaseId(self.next);
        self.leases.insert(lease, task);
        self.tasks.get_mut(&task).expect("a waiting task exists").lease = Some((lease, worker));
        Some((worker, lease, task))
    }

    /// The task that `worker` holds under a lease, if it still does.
    pub fn leased(&self, worker: WorkerId, lease: LeaseId) -> Option<TaskId> {
        let task = *self.leases.get(&lease)?;
        (self.tasks[&task].lease == Some((lease, worker))).then_some(task)
    }

    /// Takes in a result.
    pub fn succeed(&mut self, worker: WorkerId, lease: LeaseId) -> Verdict {
        let Some(task) = self.leased(worker, lease) else { return Verdict::Stale };
        self.end_lease(task);
        self.tasks.remove(&task);
        Verdict::Done(task)
    }

    /// Takes in a failure; `permanent` when no other attempt can mend it.
    pub fn fail(&mut self, worker: WorkerId, lease: LeaseId, permanent: bool) -> Verdict {
        let Some(task) = self.leased(worker, lease) else { return Verdict::Stale };
        self.end_lease(task);
        let entry = self.tasks.get_mut(&task).expect("a leased task exists");
        entry.failures += 1;
        if permanent || entry.failures == MAX_ATTEMPTS {
            let failures = entry.failures;
            self.tasks.remove(&task);
            return Verdict::Failed(task, failures);
        }
        self.waiting.insert((entry.order, task));
        Verdict::Again
    }

    /// Workers connected, and their slots together.
    pub fn capacity(&self) -> (usize, usize) {
        (self.workers.len(), self.workers.values().map(|(slots, _)| *slots as usize).sum())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn end_lease(&mut self, task: TaskId) {
        let Some((lease, worker)) = self.tasks.get_mut(&task).and_then(|e| e.lease.take()) else { return };
        self.leases.remove(&lease);
        if let Some((_, taken)) = self.workers.get_mut(&worker) {
            *taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(position: u32) -> TaskOrder {
        TaskOrder { stage: 0, position }
    }

    #[test]
    fn tasks_go_out_in_order_and_within_the_slots() {
        let mut table = TaskTable::default();
        let (late, early) = (table.submit(order(5)), table.submit(order(1)));
        let worker = table.join(1);
        let (to, lease, task) = table.assign().unwrap();
        assert_eq!((to, task), (worker, early));
        assert_eq!(table.assign(), None, "one slot, one lease");
        assert_eq!(table.succeed(worker, lease), Verdict::Done(early));
        assert_eq!(table.assign().unwrap().2, late);
    }

    #[test]
    fn a_lost_worker_frees_its_tasks_and_fences_its_reports() {
        let mut table = TaskTable::default();
        let task = table.submit(order(0));
        let (first, second) = (table.join(2), table.join(2));
        let (holder, lease, _) = table.assign().unwrap();
        table.leave(holder);
        let (next, fresh, again) = table.assign().unwrap();
        assert_eq!((again, next), (task, if holder == first { second } else { first }));
        assert_eq!(table.succeed(holder, lease), Verdict::Stale);
        assert_eq!(table.succeed(holder, fresh), Verdict::Stale, "a lease belongs to its worker");
        assert_eq!(table.succeed(next, fresh), Verdict::Done(task));
        assert_eq!(table.succeed(next, fresh), Verdict::Stale, "a duplicate changes nothing");
    }

    #[test]
    fn failures_end() {
        let mut table = TaskTable::default();
        let task = table.submit(order(0));
        let worker = table.join(1);
        for attempt in 1..=MAX_ATTEMPTS {
            let (_, lease, _) = table.assign().unwrap();
            let verdict = table.fail(worker, lease, false);
            let last = attempt == MAX_ATTEMPTS;
            assert_eq!(verdict, if last { Verdict::Failed(task, attempt) } else { Verdict::Again });
        }
        let hopeless = table.submit(order(0));
        let (_, lease, _) = table.assign().unwrap();
        assert_eq!(table.fail(worker, lease, true), Verdict::Failed(hopeless, 1));
        let unwanted = table.submit(order(0));
        let (_, lease, _) = table.assign().unwrap();
        table.withdraw(unwanted);
        assert_eq!(table.succeed(worker, lease), Verdict::Stale);
        table.submit(order(0));
        assert!(table.assign().is_some(), "a withdrawn task gives its slot back");
    }
}
