//! How fast a worker is and how many tasks it does in one call of its network, learned from when its results come.
//!
//! The results of one call come together: those of a kind that come within a quarter of the call's time of its
//! first one, for another call would take about as long again. A call's time is shared evenly among its tasks.

use super::types::{JobId, Millis};

/// What the results of a worker tell.
#[derive(Debug)]
pub(super) struct Calls {
    /// Tasks in a call, at the most.
    size: usize,
    /// Moving average of a call's time for each of its tasks, in milliseconds: without the newest call, and with it.
    earlier: Option<u64>,
    pace: Option<u64>,
    newest: Option<Call>,
    /// When the newest call ended, by its first result or by a failure.
    ended: Millis,
    /// Whether results of the call under way may never come, since nobody wants them any more.
    is_short: bool,
}

#[derive(Debug)]
struct Call {
    kind: &'static str,
    ended: Millis,
    took: u64,
    /// Tasks that it could have taken, as far as is sure.
    offered: usize,
    /// Whose its tasks were.
    jobs: Vec<JobId>,
}

/// What jobs owe for a call, since one more of its results has come.
#[derive(Debug)]
pub(super) struct Charge<'a> {
    /// The jobs of its tasks, the newest result's last.
    pub(super) jobs: &'a [JobId],
    /// Milliseconds that each but the last was charged before.
    pub(super) before: u64,
    /// Milliseconds that each is to be charged.
    pub(super) now: u64,
}

/// A moving average.
pub(super) fn smooth(old: Option<u64>, new: u64) -> u64 {
    old.map_or(new, |old| (old * 7 + new) / 8)
}

impl Calls {
    /// Those of a worker that has done nothing yet. Workers hold two calls' tasks unless a person says otherwise.
    pub(super) fn new(now: Millis, slots: u32) -> Self {
        let size = slots.div_ceil(2).max(1) as usize;
        Self { size, earlier: None, pace: None, newest: None, ended: now, is_short: false }
    }

    /// Milliseconds a task.
    pub(super) fn pace(&self) -> Option<u64> {
        self.pace
    }

    /// Tasks in a call, at the most.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// A call failed.
    pub(super) fn failed(&mut self, now: Millis) {
        (self.ended, self.newest) = (now, None);
    }

    /// A task was withdrawn that may have begun: fewer results come than the call has tasks.
    pub(super) fn shorten(&mut self) {
        self.is_short = true;
        if let Some(call) = &mut self.newest {
            call.offered = 0;
        }
    }

    /// A result of a task of `job` that was leased at `since` has come; `offered`: how many of the worker's tasks of
    /// its kind have [waited](Self::has_waited), this one included.
    pub(super) fn succeeded(
        &mut self,
        now: Millis,
        since: Millis,
        (kind, job): (&'static str, JobId),
        offered: usize,
    ) -> Charge<'_> {
        let is_of = |c: &Call| c.kind == kind && since <= c.ended && 4 * now.since(c.ended) <= c.took;
        if !self.newest.as_ref().is_some_and(is_of) {
            if let Some(last) = self.newest.take().filter(|l| l.jobs.len() < l.offered.min(self.size)) {
                // It took fewer than it might have.
                self.size = (self.size + last.jobs.len()) / 2;
            }
            self.earlier = self.pace;
            let took = now.since(self.began(since));
            let offered = if std::mem::take(&mut self.is_short) { 0 } else { offered };
            self.newest = Some(Call { kind, ended: now, took, offered, jobs: Vec::new() });
            self.ended = now;
        }
        let call = self.newest.as_mut().expect("there is one now");
        let share = |tasks: usize| (call.took / tasks.max(1) as u64).max(1);
        let (before, now) = (share(call.jobs.len()), share(call.jobs.len() + 1));
        call.jobs.push(job);
        self.size = self.size.max(call.jobs.len());
        self.pace = Some(smooth(self.earlier, now));
        Charge { jobs: &call.jobs, before, now }
    }

    /// Whether a task leased at `since` was there when the call under way began. One that came to an idle device may
    /// have begun alone, however many came with it.
    pub(super) fn has_waited(&self, since: Millis) -> bool {
        since < self.ended
    }

    /// Whether results of a call that has ended may still be on their way.
    pub(super) fn is_coming_in(&self, now: Millis) -> bool {
        let is_open = |c: &Call| c.jobs.len() < self.size && 4 * now.since(c.ended) <= c.took;
        self.newest.as_ref().is_some_and(is_open)
    }

    /// When a call began that holds a task leased at `since`.
    pub(super) fn began(&self, since: Millis) -> Millis {
        since.max(self.ended)
    }
}
