//! The words of the table.

/// A point in time, or a length of it, in milliseconds since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    pub(super) fn after(self, length: Self) -> Self {
        Self(self.0 + length.0)
    }

    pub(in crate::farm) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A render on this farm. A smaller number came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// A task of this table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// A worker, from its first connection until it is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A fencing number: one attempt at one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What comes first when several tasks of a job wait: (stage, position in the stage's plan).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskOrder {
    /// Position of the stage in the cascade.
    pub stage: u32,
    /// Position of the task in the stage.
    pub position: u32,
}

/// A model's weights, as the farm numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey(pub u32);

/// A numeric class, as the farm numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey(pub u32);

/// What a worker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skills {
    /// Its weights.
    pub model: ModelKey,
    /// The class of its results.
    pub class: ClassKey,
}

/// Which workers may do a job's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// Those with these weights,
    pub model: ModelKey,
    /// and this class; `None`: any class whose results are known to lie close.
    pub class: Option<ClassKey>,
}

/// How a job's tasks are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobOptions {
    /// Who may do them.
    pub requirement: Requirement,
    /// Higher goes first.
    pub priority: i32,
    /// When a task fails everywhere the job is paused, to be continued when the cause is mended;
    /// otherwise the task ends with its error.
    pub pause_on_failure: bool,
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
    /// The task has failed everywhere: its job is paused, and the task waits.
    Paused(JobId, u32),
    /// The lease had ended: nothing changes.
    Stale,
}

/// Workers whose leases ended because of the time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expired {
    /// Connected, but silent: they get work again once they are heard of.
    pub silent: Vec<WorkerId>,
    /// Not connected for so long that they are to be removed.
    pub gone: Vec<WorkerId>,
    /// Heard of, but stuck in a task.
    pub hung: Vec<WorkerId>,
}
