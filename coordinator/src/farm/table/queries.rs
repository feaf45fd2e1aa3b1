//! What the table tells of its jobs and workers; nothing here changes it.

use super::{
    BLOCK_AFTER, Entry, JobId, Lease, LeaseId, Millis, Requirement, Skills, TaskOrder, TaskTable, WorkerId,
};

impl TaskTable {
    /// Whether a worker failed so often in a row that it gets no more work.
    pub fn is_blocked(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|w| w.failures_in_a_row >= BLOCK_AFTER)
    }

    /// What is known of a worker: leases, milliseconds since it was heard of, milliseconds a task.
    pub fn worker(&self, now: Millis, id: WorkerId) -> Option<(usize, u64, Option<u64>)> {
        self.workers.get(&id).map(|w| (w.leases.len(), now.since(w.heard), w.calls.pace()))
    }

    /// Whether a worker holds no lease.
    pub fn is_idle(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_none_or(|w| w.leases.is_empty())
    }

    /// How long a lease has stood, and the kind of its task.
    pub fn lease_age(&self, now: Millis, lease: LeaseId) -> Option<(&'static str, u64)> {
        let lease = self.leases.get(&lease)?;
        Some((self.tasks[&lease.task].kind, now.since(lease.since)))
    }

    /// The tasks of a job that are under way: order, kind, worker, and how long the lease has stood.
    pub fn underway(&self, now: Millis, id: JobId) -> Vec<(TaskOrder, &'static str, WorkerId, u64)> {
        let tasks = self.jobs.get(&id).into_iter().flat_map(|job| &job.tasks);
        let entries = tasks.map(|task| &self.tasks[task]);
        let of = |entry: &Entry, lease: &LeaseId| {
            let Lease { worker, since, .. } = self.leases[lease];
            (entry.order, entry.kind, worker, now.since(since))
        };
        entries.flat_map(|entry| entry.leases.iter().map(move |lease| of(entry, lease))).collect()
    }

    /// Tasks that wait and tasks that are leased.
    pub fn depth(&self) -> (usize, usize) {
        let waiting = self.jobs.values().map(|j| j.waiting.len()).sum();
        (waiting, self.tasks.len() - waiting)
    }

    /// Whether a job needs workers of exactly these weights and this class.
    pub fn is_required(&self, skills: Skills) -> bool {
        let Skills { model, class } = skills;
        let exactly = Requirement { model, class: Some(class) };
        self.jobs.values().any(|job| job.options.requirement == exactly)
    }

    /// Tasks of a job that wait, and its tasks in all.
    pub fn job_depth(&self, id: JobId) -> (usize, usize) {
        self.jobs.get(&id).map_or((0, 0), |j| (j.waiting.len(), j.tasks.len()))
    }
}
