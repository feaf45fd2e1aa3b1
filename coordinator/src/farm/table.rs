//! Who works on what: the decisions, apart from performing them.
//!
//! Pure: events come in as method calls with the time as an argument, decisions go out as return
//! values. No clock, no I/O; time never needs to match the time of day, and a clock that steps is no
//! concern of this file.
//!
//! Jobs are renders: their tasks are handed out by priority, then to the job that has had the least of
//! the devices' time (`table/share.rs`), then in the order of each job's plan. A task is *leased* to a worker under a fencing number that is never
//! given twice, until a deadline. Hearing from the worker moves the deadline; silence or a failure
//! frees the task for another worker. When a connection breaks, its leases are *suspended*: the tasks
//! are free at once, yet the worker may return before the deadline and hand its results in. A worker
//! that fails again and again is blocked. When nothing waits, an idle worker takes over a task that stands
//! behind the call under way in a busy worker's queue (`table/calls.rs`), or else duplicates a lease that has stood for twice the usual
//! time, the oldest first; the first result wins.
//!
//! Invariants (the simulation in `table/simulation.rs` checks them after every event):
//! 1. *No task is lost*: a task waits, or is leased to at least one connected worker, until it ends.
//! 2. *A task ends once*: with one result or one error; whatever comes later changes nothing.
//! 3. *A fenced result never lands*: a report counts only under a lease that still stands, from the
//!    worker that holds it.
//! 4. *Slots are kept*: no worker holds more leases than it has slots, nor two of one task.
//! 5. *Progress*: while one good worker lives that may do them, every task ends whose job is not paused.
//! 6. *Only the fit work*: a task goes to an open worker with the weights and class its job requires, and
//!    never from a paused job.
//! 7. *No starvation*: of the jobs of the highest priority with a task that the worker may take, the one with
//!    the least load gets it; and every task adds to a load.
//! 8. *Fair share*: while two jobs of equal priority and requirement have tasks waiting, and all tasks take the
//!    same time, the numbers of their tasks that are done never drift apart by more than twice all slots.
//! 9. *No call is done twice*: an idle worker takes over no lease that is in the call under way, once it is known
//!    how many tasks the other's calls take.

mod calls;
mod idle;
mod queries;
mod share;
#[cfg(test)]
mod share_simulation;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod stage_simulation;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use calls::{Calls, smooth};
pub use types::{
    ClassKey, Expired, JobId, JobOptions, LeaseId, Millis, ModelKey, Requirement, Skills, TaskId, TaskOrder,
    Verdict, WorkerId,
};

/// How often a task may fail before it counts as failed.
pub const MAX_ATTEMPTS: u32 = 3;
/// How long a worker whose connection broke may stay away before its leases end, and how long one may be
/// silent and still get new ones.
pub const LEASE: Millis = Millis(15_000);
/// How long a connected worker may be silent before its leases end: a large result on a slow line is
/// silence too. A connection that is dead breaks sooner.
pub const SILENCE: Millis = Millis(60_000);
/// Failures in a row after which a worker is blocked.
pub const BLOCK_AFTER: u32 = 5;
/// A lease that has stood for so many times the usual time (the worker's own, where that is longer), and
/// at least for [`HUNG_LEAST`], is on a device that hangs.
const HUNG_FACTOR: u64 = 20;
/// See [`HUNG_FACTOR`].
const HUNG_LEAST: Millis = Millis(5 * 60_000);
/// The same while no task of the kind was ever done.
const HUNG_FIRST: Millis = Millis(60 * 60_000);

#[derive(Debug)]
struct Job {
    options: JobOptions,
    paused: bool,
    /// Milliseconds of devices' time that its finished tasks took.
    served: u64,
    /// What its leases are expected to take.
    in_flight: u64,
    tasks: BTreeSet<TaskId>,
    waiting: BTreeSet<(TaskOrder, TaskId)>,
}

#[derive(Debug)]
struct Entry {
    job: JobId,
    order: TaskOrder,
    kind: &'static str,
    failures: u32,
    /// Leases that stand, suspended ones included.
    leases: Vec<LeaseId>,
    /// Workers that failed it: others go first, where there are any.
    failed_on: BTreeSet<WorkerId>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    task: TaskId,
    worker: WorkerId,
    since: Millis,
    /// Milliseconds of the worker's time that it is expected to take.
    cost: u64,
}

#[derive(Debug)]
struct Worker {
    skills: Skills,
    slots: u32,
    /// Whether the farm wants it to get tasks: it is admitted, enabled, not draining.
    open: bool,
    /// Whether it may also work for jobs that allow any class.
    mixes: bool,
    connected: bool,
    leases: BTreeSet<LeaseId>,
    heard: Millis,
    failures_in_a_row: u32,
    calls: Calls,
}

impl Worker {
    fn is_fit(&self, requirement: Requirement) -> bool {
        self.skills.model == requirement.model
            && requirement.class.map_or(self.mixes, |class| class == self.skills.class)
    }

    fn is_sound(&self, now: Millis) -> bool {
        self.open && self.connected && self.failures_in_a_row < BLOCK_AFTER && self.heard.after(LEASE) > now
    }

    fn has_room(&self) -> bool {
        self.leases.len() < self.slots as usize
    }

    /// When another task would be done, at this worker's pace.
    fn expected(&self, usual: u64) -> u64 {
        (self.leases.len() as u64 + 1) * self.calls.pace().unwrap_or(usual).max(1)
    }
}

/// Jobs, tasks, workers and leases.
#[derive(Debug, Default)]
pub struct TaskTable {
    jobs: BTreeMap<JobId, Job>,
    tasks: BTreeMap<TaskId, Entry>,
    leases: BTreeMap<LeaseId, Lease>,
    workers: BTreeMap<WorkerId, Worker>,
    /// Moving average of the time from lease to result, by kind of task and of worker, in milliseconds.
    usual: BTreeMap<(&'static str, Skills), u64>,
    /// Leases that ended without their worker's doing, to be withdrawn from it.
    withdrawn: Vec<(WorkerId, LeaseId)>,
    next: u64,
}

impl TaskTable {
    /// A table whose numbers start after `base`. Coordinators that start from different random bases
    /// never give the same fencing number.
    pub fn starting_after(base: u64) -> Self {
        Self { next: base, ..Self::default() }
    }

    /// A number that is never given twice.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Adds a job.
    pub fn open_job(&mut self, options: JobOptions) -> JobId {
        let id = JobId(self.number());
        let (tasks, waiting) = (BTreeSet::new(), BTreeSet::new());
        self.jobs.insert(id, Job { options, paused: false, served: 0, in_flight: 0, tasks, waiting });
        id
    }

    /// Removes a job and returns its tasks, which nobody wants any more.
    pub fn close_job(&mut self, id: JobId) -> Vec<TaskId> {
        let Some(job) = self.jobs.get(&id) else { return Vec::new() };
        let tasks: Vec<TaskId> = job.tasks.iter().copied().collect();
        tasks.iter().for_each(|&task| self.end_task(task));
        self.jobs.remove(&id);
        tasks
    }

    /// Gives a job another priority.
    pub fn prioritise(&mut self, id: JobId, priority: i32) {
        if let Some(job) = self.jobs.get_mut(&id)
            && std::mem::replace(&mut job.options.priority, priority) != priority
        {
            self.begin_anew(id);
        }
    }

    /// Holds a job's tasks back, or hands them out again. What is leased goes on.
    pub fn pause(&mut self, id: JobId, paused: bool) {
        if let Some(job) = self.jobs.get_mut(&id)
            && std::mem::replace(&mut job.paused, paused)
            && !paused
        {
            self.catch_up(id);
        }
    }

    /// Adds a task; `None` when its job is gone.
    pub fn submit(&mut self, job: JobId, order: TaskOrder, kind: &'static str) -> Option<TaskId> {
        let id = TaskId(self.number());
        if self.jobs.get(&job)?.tasks.is_empty() {
            self.catch_up(job);
        }
        let owner = self.jobs.get_mut(&job).expect("just seen");
        owner.tasks.insert(id);
        owner.waiting.insert((order, id));
        let (leases, failed_on) = (Vec::new(), BTreeSet::new());
        self.tasks.insert(id, Entry { job, order, kind, failures: 0, leases, failed_on });
        Some(id)
    }

    /// Adds a worker with room for `slots` tasks, closed at first.
    pub fn join(&mut self, now: Millis, skills: Skills, slots: u32) -> WorkerId {
        let id = WorkerId(self.number());
        let worker = Worker {
            skills,
            slots,
            open: false,
            mixes: false,
            connected: true,
            leases: BTreeSet::new(),
            heard: now,
            failures_in_a_row: 0,
            calls: Calls::new(now, slots),
        };
        self.workers.insert(id, worker);
        id
    }

    /// Whether a worker gets tasks, and whether also those of jobs that allow any class.
    pub fn set_open(&mut self, id: WorkerId, open: bool, mixes: bool) {
        if let Some(worker) = self.workers.get_mut(&id) {
            (worker.open, worker.mixes) = (open, mixes);
        }
    }

    /// Forgets a worker's failures.
    pub fn forgive(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.failures_in_a_row = 0;
        }
        self.tasks.values_mut().for_each(|t| {
            t.failed_on.remove(&id);
        });
    }

    /// Notes that a worker is alive: all its leases stand on.
    pub fn hear(&mut self, now: Millis, worker: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.heard = worker.heard.max(now);
        }
    }

    /// Notes that a worker's connection broke: its tasks wait again, its leases stand suspended.
    pub fn disconnect(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.connected = false;
        let leases: Vec<LeaseId> = worker.leases.iter().copied().collect();
        leases.into_iter().for_each(|lease| self.settle(self.leases[&lease].task));
    }

    /// Notes that a worker is connected again and still has these leases; returns those that stand.
    pub fn reconnect(&mut self, now: Millis, id: WorkerId, held: &[u64]) -> Vec<u64> {
        let Some(worker) = self.workers.get_mut(&id) else { return Vec::new() };
        (worker.connected, worker.heard) = (true, worker.heard.max(now));
        let mine = worker.leases.clone();
        let (kept, lost): (Vec<LeaseId>, Vec<LeaseId>) =
            mine.into_iter().partition(|lease| held.contains(&lease.0));
        lost.into_iter().for_each(|lease| self.end_lease(lease));
        kept.iter().for_each(|lease| self.settle(self.leases[lease].task));
        kept.into_iter().map(|lease| lease.0).collect()
    }

    /// Removes a worker; its tasks wait again.
    pub fn leave(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.remove(&id) {
            worker.leases.into_iter().for_each(|lease| self.end_lease(lease));
        }
    }

    /// Ends the leases of connected workers that have been silent too long, and leases that have stood for
    /// so long that the device must hang, which counts as a failure. Workers that have been away too long
    /// are named: the caller removes them.
    pub fn expire(&mut self, now: Millis) -> Expired {
        let hung = self.expire_hung(now);
        let of = |is: &dyn Fn(&Worker) -> bool| -> Vec<WorkerId> {
            self.workers.iter().filter(|(_, w)| is(w)).map(|(&id, _)| id).collect()
        };
        let silent = of(&|w| w.connected && w.heard.after(SILENCE) <= now && !w.leases.is_empty());
        let gone = of(&|w| !w.connected && w.heard.after(LEASE) <= now);
        for id in &silent {
            let leases = std::mem::take(&mut self.workers.get_mut(id).expect("just seen").leases);
            self.withdrawn.extend(leases.iter().map(|&lease| (*id, lease)));
            leases.into_iter().for_each(|lease| self.end_lease(lease));
        }
        Expired { silent, gone, hung }
    }

    fn expire_hung(&mut self, now: Millis) -> Vec<WorkerId> {
        let limit = |l: &Lease, worker: &Worker| {
            let usual = self.usual.get(&(self.tasks[&l.task].kind, worker.skills)).copied();
            let usual = usual.max(worker.calls.pace());
            usual.map_or(HUNG_FIRST, |usual| Millis((HUNG_FACTOR * usual).max(HUNG_LEAST.0)))
        };
        // A worker that hands results in does not hang, however long its queue is.
        let late = |l: &Lease| {
            let worker = &self.workers[&l.worker];
            worker.calls.began(l.since).after(limit(l, worker)) <= now
        };
        let hung: Vec<(LeaseId, Lease)> =
            self.leases.iter().filter(|(_, l)| late(l)).map(|(&id, &l)| (id, l)).collect();
        for &(id, lease) in &hung {
            if let Some(worker) = self.workers.get_mut(&lease.worker) {
                worker.failures_in_a_row += 1;
            }
            self.tasks
                .get_mut(&lease.task)
                .expect("a lease belongs to a task")
                .failed_on
                .insert(lease.worker);
            self.withdrawn.push((lease.worker, id));
            self.end_lease(id);
        }
        hung.into_iter().map(|(_, lease)| lease.worker).collect()
    }

    /// Removes a task that nobody wants any more.
    pub fn withdraw(&mut self, task: TaskId) {
        self.end_task(task);
    }

    /// Leases that ended without their worker's doing since the last call.
    pub fn take_withdrawn(&mut self) -> Vec<(WorkerId, LeaseId)> {
        std::mem::take(&mut self.withdrawn)
    }

    /// Leases the first task that some worker has room for to the worker that will be done with it
    /// first. When there is none, a worker that has nothing else to do takes the first task that stands
    /// behind the call under way in another's queue, or else duplicates the one that is overdue the longest.
    pub fn assign(&mut self, now: Millis) -> Option<(WorkerId, LeaseId, TaskId)> {
        if let Some((worker, task)) = self.first_waiting(now) {
            return Some(self.lease(now, worker, task));
        }
        let idle = self.idle(now);
        if let Some((worker, lease)) = self.queued_elsewhere(now, &idle) {
            let Lease { task, worker: holder, .. } = self.leases[&lease];
            self.withdrawn.push((holder, lease));
            self.end_lease(lease);
            return Some(self.lease(now, worker, task));
        }
        let (worker, task) = self.overdue(now, &idle)?;
        Some(self.lease(now, worker, task))
    }

    fn first_waiting(&self, now: Millis) -> Option<(WorkerId, TaskId)> {
        let open = |w: &Worker| w.is_sound(now) && w.has_room();
        let free: Vec<(WorkerId, &Worker)> =
            self.workers.iter().filter(|(_, w)| open(w)).map(|(&id, w)| (id, w)).collect();
        if free.is_empty() {
            return None;
        }
        for (_, job) in self.ranking() {
            if !free.iter().any(|(_, w)| w.is_fit(job.options.requirement)) {
                continue;
            }
            for &(_, task) in &job.waiting {
                let entry = &self.tasks[&task];
                let usual = |w: &Worker| self.usual.get(&(entry.kind, w.skills)).copied().unwrap_or(1);
                let may = |id: &WorkerId, w: &Worker| {
                    w.is_fit(job.options.requirement) && self.may_try(now, entry, job, *id)
                };
                let best = free.iter().filter(|(id, w)| may(id, w));
                if let Some((worker, _)) = best.min_by_key(|(id, w)| (w.expected(usual(w)), *id)) {
                    return Some((*worker, task));
                }
                // Only a task that failed somewhere can be refused by every fit worker with room.
            }
        }
        None
    }

    /// Whether a worker may try a task: it has not failed it, or every sound fit worker has.
    fn may_try(&self, now: Millis, entry: &Entry, job: &Job, id: WorkerId) -> bool {
        let fresh = |(id, w): (&WorkerId, &Worker)| {
            w.is_sound(now) && w.is_fit(job.options.requirement) && !entry.failed_on.contains(id)
        };
        !entry.failed_on.contains(&id) || !self.workers.iter().any(fresh)
    }

    fn lease(&mut self, now: Millis, worker: WorkerId, task: TaskId) -> (WorkerId, LeaseId, TaskId) {
        let id = LeaseId(self.number());
        let entry = self.tasks.get_mut(&task).expect("a task to lease exists");
        entry.leases.push(id);
        let to = self.workers.get_mut(&worker).expect("a worker to lease to exists");
        to.leases.insert(id);
        let usual = self.usual.get(&(entry.kind, to.skills)).copied();
        let cost = to.calls.pace().or(usual).unwrap_or(0).max(1);
        self.leases.insert(id, Lease { task, worker, since: now, cost });
        self.jobs.get_mut(&entry.job).expect("a task belongs to a job").in_flight += cost;
        self.settle(task);
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
        let since = self.leases[&lease].since;
        let Entry { kind, job, .. } = self.tasks[&task];
        let by = &self.workers[&worker];
        let usual = (kind, by.skills);
        let of_kind = |l: &Lease| self.tasks[&l.task].kind == kind && by.calls.has_waited(l.since);
        let offered = by.leases.iter().filter(|l| of_kind(&self.leases[l])).count();
        self.usual.insert(usual, smooth(self.usual.get(&usual).copied(), now.since(since)));
        self.end_lease(lease);
        self.end_task(task);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.failures_in_a_row = 0;
            Self::charge(&mut self.jobs, &worker.calls.succeeded(now, since, (kind, job), offered));
        }
        Verdict::Done(task)
    }

    /// Takes in a failure; `permanent` when no other attempt can mend it.
    pub fn fail(&mut self, now: Millis, worker: WorkerId, lease: LeaseId, permanent: bool) -> Verdict {
        self.hear(now, worker);
        let Some(task) = self.leased(worker, lease) else { return Verdict::Stale };
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.failures_in_a_row += u32::from(!permanent);
            worker.calls.failed(now);
        }
        let entry = self.tasks.get_mut(&task).expect("a leased task exists");
        entry.failures += 1;
        entry.failed_on.insert(worker);
        let (failures, job) = (entry.failures, entry.job);
        let pauses = self.jobs[&job].options.pause_on_failure;
        if permanent || (failures >= MAX_ATTEMPTS && !pauses) {
            self.end_lease(lease);
            self.end_task(task);
            return Verdict::Failed(task, failures);
        }
        if failures >= MAX_ATTEMPTS {
            (entry.failures, entry.failed_on) = (0, BTreeSet::new());
            self.end_lease(lease);
            self.pause(job, true);
            return Verdict::Paused(job, failures);
        }
        self.end_lease(lease);
        Verdict::Again
    }

    /// Ends one lease; its task waits again unless another lease of it stands.
    fn end_lease(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(&id) else { return };
        if let Some(worker) = self.workers.get_mut(&lease.worker) {
            worker.leases.remove(&id);
        }
        let entry = self.tasks.get_mut(&lease.task).expect("a lease belongs to a task");
        entry.leases.retain(|l| *l != id);
        self.jobs.get_mut(&entry.job).expect("a task belongs to a job").in_flight -= lease.cost;
        self.settle(lease.task);
    }

    /// A task waits exactly while no connected worker holds a lease of it.
    fn settle(&mut self, task: TaskId) {
        let entry = &self.tasks[&task];
        let live = |l: &LeaseId| self.workers.get(&self.leases[l].worker).is_some_and(|w| w.connected);
        let is_held = entry.leases.iter().any(live);
        let waiting = &mut self.jobs.get_mut(&entry.job).expect("a task belongs to a job").waiting;
        if is_held {
            waiting.remove(&(entry.order, task));
        } else {
            waiting.insert((entry.order, task));
        }
    }

    /// Removes a task with all its leases, which are withdrawn from their workers.
    fn end_task(&mut self, task: TaskId) {
        let Some(entry) = self.tasks.get(&task) else { return };
        for lease in entry.leases.clone() {
            let worker = self.leases[&lease].worker;
            self.withdrawn.push((worker, lease));
            self.end_lease(lease);
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.calls.shorten();
            }
        }
        let entry = self.tasks.remove(&task).expect("just seen");
        let job = self.jobs.get_mut(&entry.job).expect("a task belongs to a job");
        job.tasks.remove(&task);
        job.waiting.remove(&(entry.order, task));
    }
}
