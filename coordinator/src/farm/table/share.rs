//! Whose turn it is: the job of the highest priority, and of several the one that has had the least.
//!
//! A job's *load* is the device time that its finished tasks took, and what those in flight are expected to
//! take. A job that begins to want workers (it is new, had no tasks, or was paused) starts at the least load
//! of the active jobs that it competes with: it gets its share from then on, and is owed nothing for the time
//! before. Without active ones it starts where the others left off.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::calls::Charge;
use super::types::JobId;
use super::{Job, TaskTable};

/// The lowest goes first.
pub(super) type Rank = (Reverse<i32>, u64, JobId);

impl Job {
    /// Milliseconds of devices' time, served and in flight.
    pub(super) fn load(&self) -> u64 {
        self.served + self.in_flight
    }

    pub(super) fn rank(&self, id: JobId) -> Rank {
        (Reverse(self.options.priority), self.load(), id)
    }

    /// Whether some worker may be wanted by both.
    fn competes(&self, other: &Self) -> bool {
        let of = |job: &Self| (job.options.priority, job.options.requirement.model);
        let (ours, theirs) = (self.options.requirement.class, other.options.requirement.class);
        let is_shared = ours.zip(theirs).is_none_or(|(a, b)| a == b);
        of(self) == of(other) && is_shared
    }
}

impl TaskTable {
    /// Jobs whose tasks wait, in the order they are served.
    pub(super) fn ranking(&self) -> Vec<(JobId, &Job)> {
        let wants = self.jobs.iter().filter(|(_, job)| !job.paused && !job.waiting.is_empty());
        let mut ranking: Vec<(JobId, &Job)> = wants.map(|(&id, job)| (id, job)).collect();
        ranking.sort_by_key(|(id, job)| job.rank(*id));
        ranking
    }

    /// The load at which a job starts that begins to want workers.
    fn start(&self, id: JobId) -> u64 {
        let others =
            || self.jobs.iter().filter(|(other, job)| **other != id && job.competes(&self.jobs[&id]));
        let is_active = |job: &Job| !job.paused && !job.tasks.is_empty();
        let least = others().filter(|(_, job)| is_active(job)).map(|(_, job)| job.load()).min();
        least.or_else(|| others().map(|(_, job)| job.load()).max()).unwrap_or(0)
    }

    /// A job begins to want workers: what it did not want before is not owed to it.
    pub(super) fn catch_up(&mut self, id: JobId) {
        let start = self.start(id);
        let job = self.jobs.get_mut(&id).expect("the caller looked");
        job.served = job.served.max(start.saturating_sub(job.in_flight));
    }

    /// A job is among others than before: only from now on does it share with them.
    pub(super) fn begin_anew(&mut self, id: JobId) {
        let start = self.start(id);
        let job = self.jobs.get_mut(&id).expect("the caller looked");
        job.served = start.saturating_sub(job.in_flight);
    }

    /// Jobs pay for what their tasks took.
    pub(super) fn charge(jobs: &mut BTreeMap<JobId, Job>, charge: &Charge<'_>) {
        let (last, earlier) = charge.jobs.split_last().expect("a call has a result");
        for id in earlier {
            if let Some(job) = jobs.get_mut(id) {
                job.served = job.served.saturating_sub(charge.before) + charge.now;
            }
        }
        if let Some(job) = jobs.get_mut(last) {
            job.served += charge.now;
        }
    }
}
