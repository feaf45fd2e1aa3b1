//! What a worker does that has no task while none waits: it relieves others.
//!
//! Workers compute in the order they are given tasks. The oldest leases, as many as a call takes, are under way:
//! those stay where they are. What stands behind them costs nothing to move, while it is sure that it has not begun.

use super::share::Rank;
use super::{Lease, LeaseId, Millis, TaskId, TaskOrder, TaskTable, Worker, WorkerId};

impl TaskTable {
    /// Workers that have nothing to do.
    pub(super) fn idle(&self, now: Millis) -> Vec<WorkerId> {
        let idle = |w: &Worker| w.is_sound(now) && w.leases.is_empty();
        self.workers.iter().filter(|(_, w)| idle(w)).map(|(&id, _)| id).collect()
    }

    /// A lease that waits in a worker's queue behind the call under way, and an idle worker that would be done
    /// with it clearly sooner. Near the end of that call the next one may have begun already, unseen from here: how
    /// long a call takes is only estimated, and of several tasks, whose number varies, not well.
    pub(super) fn queued_elsewhere(&self, now: Millis, idle: &[WorkerId]) -> Option<(WorkerId, LeaseId)> {
        let holders = self.workers.values().filter(|w| w.connected && !w.calls.is_coming_in(now));
        let queued = holders.flat_map(|holder| {
            let waiting = holder.leases.iter().enumerate().skip(holder.calls.size());
            waiting.map(move |(place, &lease)| (holder, place, lease))
        });
        let gain = |(holder, place, id): (&Worker, usize, LeaseId)| {
            let entry = &self.tasks[&self.leases[&id].task];
            let job = &self.jobs[&entry.job];
            let pace = |w: &Worker| {
                let usual = || self.usual.get(&(entry.kind, w.skills)).copied();
                w.calls.pace().or_else(usual).unwrap_or(1)
            };
            let there = pace(holder);
            let (under_way, left) = self.call_under_way(now, holder, there);
            let (size, length) = (holder.calls.size(), under_way as u64 * there);
            let sure = if size == 1 { 4 } else { 2 };
            if place < 2 * size && sure * left < length {
                return None;
            }
            // Its own call ends when all of it are done.
            let end = under_way + ((place - under_way) / size + 1) * size;
            let wait = left + (holder.leases.len().min(end) - under_way) as u64 * there;
            // A quarter of a task: less is not worth the risk of doing it twice.
            let sooner = |w: &&WorkerId| {
                let worker = &self.workers[w];
                worker.is_fit(job.options.requirement)
                    && !entry.failed_on.contains(w)
                    && pace(worker) + there / 4 < wait
            };
            let usable = !job.paused && entry.leases.len() == 1;
            let best = idle.iter().filter(|w| usable && sooner(w));
            let best = best.min_by_key(|w| self.workers[w].calls.pace())?;
            let rank: (Rank, TaskOrder) = (job.rank(entry.job), entry.order);
            Some((rank, *best, id))
        };
        queued.filter_map(gain).min_by_key(|(rank, ..)| *rank).map(|(_, worker, lease)| (worker, lease))
    }

    /// How many of a worker's leases its call under way holds, and how long that will take yet, at `pace` a task.
    fn call_under_way(&self, now: Millis, worker: &Worker, pace: u64) -> (usize, u64) {
        let since = |lease: &LeaseId| self.leases[lease].since;
        let began = worker.leases.first().map_or(now, |lease| worker.calls.began(since(lease)));
        let waited = worker.leases.iter().filter(|lease| worker.calls.has_waited(since(lease))).count();
        let tasks = waited.clamp(1, worker.calls.size());
        (tasks, (tasks as u64 * pace).saturating_sub(now.since(began)))
    }

    /// The lease that has stood longest of those that have stood for twice the usual time, and an idle worker
    /// that may try its task too.
    pub(super) fn overdue(&self, now: Millis, idle: &[WorkerId]) -> Option<(WorkerId, TaskId)> {
        let helper = |task: TaskId| {
            let entry = &self.tasks[&task];
            let job = &self.jobs[&entry.job];
            let may = |id: &&WorkerId| {
                self.workers[id].is_fit(job.options.requirement) && !entry.failed_on.contains(id)
            };
            let usable = !job.paused && entry.leases.len() == 1;
            idle.iter().filter(|_| usable).find(may).copied()
        };
        let is_late = |l: &&Lease| {
            let holder = &self.workers[&l.worker];
            let usual = self.usual.get(&(self.tasks[&l.task].kind, holder.skills));
            usual.is_some_and(|usual| l.since.0 + 2 * usual < now.0)
        };
        let mut late: Vec<&Lease> = self.leases.values().filter(is_late).collect();
        late.sort_by_key(|l| (l.since, l.task));
        late.into_iter().find_map(|l| Some((helper(l.task)?, l.task)))
    }
}
