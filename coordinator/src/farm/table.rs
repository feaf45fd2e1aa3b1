//! Who works on what: the decisions, apart from performing them.
//!
//! Pure: events come in as method calls with the time as an argument, decisions go out as return
//! values. No clock, no I/O; time never needs to match the time of day, and a clock that steps is no
//! concern of this file.
//!
//! A task is *leased* to a worker under a fencing number that is never given twice, until a deadline.
//! Hearing from the worker moves the deadline; silence, a disconnection or a failure frees the task for
//! another worker. A worker that fails again and again is blocked. When nothing waits, idle workers
//! duplicate leases that have stood for twice the usual time, the oldest first; the first result wins.
//!
//! Invariants (the simulation in `table/simulation.rs` checks them after every event):
//! 1. *No task is lost*: a task waits, or is leased to at least one connected worker, until it ends.
//! 2. *A task ends once*: with one result or one error; whatever comes later changes nothing.
//! 3. *A fenced result never lands*: a report counts only under a lease that still stands, from the
//!    worker that holds it.
//! 4. *Slots are kept*: no worker holds more leases than it has slots, nor two of one task.
//! 5. *Progress*: while one good worker lives, every task ends.

use std::collections::{BTreeMap, BTreeSet};

/// How often a task may fail before it counts as failed.
pub const MAX_ATTEMPTS: u32 = 3;
/// How long a lease stands without a word from its worker.
pub const LEASE: Millis = Millis(15_000);
/// Failures in a row after which a worker is blocked.
pub const BLOCK_AFTER: u32 = 5;

/// A point in time, or a length of it, in milliseconds since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    fn after(self, length: Self) -> Self {
        Self(self.0 + length.0)
    }
}

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
    /// Leases that stand: one, or two when the task is duplicated.
    leases: Vec<LeaseId>,
    /// The worker that failed it last: another one goes first, where there is one.
    failed_on: Option<WorkerId>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    task: TaskId,
    worker: WorkerId,
    since: Millis,
}

#[derive(Debug)]
struct Worker {
    slots: u32,
    leases: BTreeSet<LeaseId>,
    heard: Millis,
    failures_in_a_row: u32,
}

impl Worker {
    fn takes_work(&self) -> bool {
        self.failures_in_a_row < BLOCK_AFTER && self.leases.len() < self.slots as usize
    }
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
    leases: BTreeMap<LeaseId, Lease>,
    workers: BTreeMap<WorkerId, Worker>,
    /// Moving average of the time from lease to result, in milliseconds.
    usual: Option<u64>,
    next: u64,
}

impl TaskTable {
    /// Adds a task.
    pub fn submit(&mut self, order: TaskOrder) -> TaskId {
        let id = TaskId(self.number());
        self.tasks.insert(id, Entry { order, failures: 0, leases: Vec::new(), failed_on: None });
        self.waiting.insert((order, id));
        id
    }

    /// Adds a worker with room for `slots` tasks.
    pub fn join(&mut self, now: Millis, slots: u32) -> WorkerId {
        let id = WorkerId(self.number());
        let worker = Worker { slots, leases: BTreeSet::new(), heard: now, failures_in_a_row: 0 };
        self.workers.insert(id, worker);
        id
    }

    /// Notes that a worker is alive: all its leases stand on.
    pub fn hear(&mut self, now: Millis, worker: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.heard = worker.heard.max(now);
        }
    }

    /// Removes a worker; its tasks wait again.
    pub fn leave(&mut self, worker: WorkerId) {
        if let Some(worker) = self.workers.remove(&worker) {
            worker.leases.into_iter().for_each(|lease| self.end_lease(lease));
        }
    }

    /// Ends the leases of workers that have been silent too long and returns those workers. They stay
    /// connected, and get work again once they are heard of.
    pub fn expire(&mut self, now: Millis) -> Vec<WorkerId> {
        let silent = |w: &Worker| w.heard.after(LEASE) <= now && !w.leases.is_empty();
        let silent: Vec<WorkerId> =
            self.workers.iter().filter(|(_, w)| silent(w)).map(|(&id, _)| id).collect();
        for id in &silent {
            let leases = std::mem::take(&mut self.workers.get_mut(id).expect("just seen").leases);
            leases.into_iter().for_each(|lease| self.end_lease(lease));
        }
        silent
    }

    /// Removes a task that nobody wants any more.
    pub fn withdraw(&mut self, task: TaskId) {
        self.end_task(task);
    }

    /// Leases the first waiting task to the worker with the most free slots; when none waits, leases
    /// the task that is overdue the longest a second time, to a worker that has nothing else to do.
    pub fn assign(&mut self, now: Millis) -> Option<(WorkerId, LeaseId, TaskId)> {
        let heard = |w: &Worker| w.heard.after(LEASE) > now;
        let open = self.workers.iter().filter(|(_, w)| w.takes_work() && heard(w));
        match self.waiting.first().copied() {
            Some((_, task)) => {
                let failed_on = self.tasks[&task].failed_on;
                let preference = |(id, w): &(&WorkerId, &Worker)| {
                    (Some(**id) != failed_on, w.slots as usize - w.leases.len())
                };
                let (&worker, _) = open.max_by_key(preference)?;
                Some(self.lease(now, worker, task))
            }
            None => {
                let (&worker, _) = open.filter(|(_, w)| w.leases.is_empty()).min_by_key(|(id, _)| **id)?;
                let usual = self.usual?;
                let overdue =
                    |l: &&Lease| l.since.0 + 2 * usual < now.0 && self.tasks[&l.task].leases.len() == 1;
                let oldest = self.leases.values().filter(overdue).min_by_key(|l| (l.since, l.task))?;
                Some(self.lease(now, worker, oldest.task))
            }
        }
    }

    fn lease(&mut self, now: Millis, worker: WorkerId, task: TaskId) -> (WorkerId, LeaseId, TaskId) {
        let id = LeaseId(self.number());
        let entry = self.tasks.get_mut(&task).expect("a task to lease exists");
        self.waiting.remove(&(entry.order, task));
        entry.leases.push(id);
        self.leases.insert(id, Lease { task, worker, since: now });
        self.workers.get_mut(&worker).expect("a worker to lease to exists").leases.insert(id);
        (worker, id, task)
    }

    /// The task that `worker` holds under a lease, if it still does.
    pub fn leased(&self, worker: WorkerId, lease: LeaseId) -> Option<TaskId> {
        self.leases.get(&lease).filter(|l| l.worker == worker).map(|l| l.task)
    }

    /// Takes in a result.
    pub fn succeed(&mut self, now: Millis, worker: WorkerId, lease: LeaseId) -> Verdict {
        self.hear(now, worker);
        let Some(task) = self.leased(worker, lease) else { return Verdict::Stale };
        let took = now.0.saturating_sub(self.leases[&lease].since.0);
        self.usual = Some(self.usual.map_or(took, |usual| (usual * 7 + took) / 8));
        self.end_task(task);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.failures_in_a_row = 0;
        }
        Verdict::Done(task)
    }

    /// Takes in a failure; `permanent` when no other attempt can mend it.
    pub fn fail(&mut self, now: Millis, worker: WorkerId, lease: LeaseId, permanent: bool) -> Verdict {
        self.hear(now, worker);
        let Some(task) = self.leased(worker, lease) else { return Verdict::Stale };
        if let Some(worker) = self.workers.get_mut(&worker).filter(|_| !permanent) {
            worker.failures_in_a_row += 1;
        }
        let entry = self.tasks.get_mut(&task).expect("a leased task exists");
        entry.failures += 1;
        entry.failed_on = Some(worker);
        let failures = entry.failures;
        if permanent || failures == MAX_ATTEMPTS {
            self.end_task(task);
            return Verdict::Failed(task, failures);
        }
        self.end_lease(lease);
        Verdict::Again
    }

    /// Whether a worker failed so often in a row that it gets no more work.
    pub fn is_blocked(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|w| w.failures_in_a_row >= BLOCK_AFTER)
    }

    /// Workers connected, and their slots together.
    pub fn capacity(&self) -> (usize, usize) {
        (self.workers.len(), self.workers.values().map(|w| w.slots as usize).sum())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Ends one lease; its task waits again unless another lease of it stands.
    fn end_lease(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(&id) else { return };
        if let Some(worker) = self.workers.get_mut(&lease.worker) {
            worker.leases.remove(&id);
        }
        let entry = self.tasks.get_mut(&lease.task).expect("a lease belongs to a task");
        entry.leases.retain(|l| *l != id);
        if entry.leases.is_empty() {
            self.waiting.insert((entry.order, lease.task));
        }
    }

    /// Removes a task with all its leases.
    fn end_task(&mut self, task: TaskId) {
        let Some(entry) = self.tasks.get(&task) else { return };
        entry.leases.clone().into_iter().for_each(|lease| self.end_lease(lease));
        let entry = self.tasks.remove(&task).expect("just seen");
        self.waiting.remove(&(entry.order, task));
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
