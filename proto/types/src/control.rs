//! What a coordinator tells people about renders and workers.

use std::fmt;

use serde::Serialize;

/// Where a render stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RenderState {
    /// Accepted, not begun.
    Queued,
    /// Under way.
    Running,
    /// Held back, by a person or by a task that fails everywhere.
    Paused,
    /// Its picture is in the store.
    Done,
    /// Given up by a person.
    Cancelled,
    /// It cannot be done.
    Failed,
}

impl RenderState {
    /// Whether nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed)
    }
}

impl fmt::Display for RenderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}

/// How far a render is.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Progressed {
    /// The stage under way, 0 for the base.
    pub stage: u32,
    /// Number of stages, 0 until the model is known.
    pub stages: u32,
    /// (width, height) of the stage under way in image pixels.
    pub stage_size: Option<(u32, u32)>,
    /// Patches of the stage that are done.
    pub patches_done: u64,
    /// Patches of the stage.
    pub patches: u64,
    /// What happens between stages; empty while patches are under way.
    pub phase: String,
    /// Tiles of the phase that are done.
    pub tiles_done: u64,
    /// Tiles of the phase; 0 when it has none.
    pub tiles: u64,
    /// Patches per second, lately.
    pub rate: f64,
    /// Patches of the whole render that are left.
    pub patches_left: u64,
}

/// A render, as people see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RenderStatus {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub state: RenderState,
    /// Higher goes first.
    pub priority: i32,
    /// The model's name.
    pub model: String,
    /// What to draw.
    pub prompt: String,
    /// Its seed.
    pub seed: u64,
    /// (width, height) of the final picture in image pixels; `None` until the model is known.
    pub size: Option<(u32, u32)>,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progressed,
    /// Workers that can take its tasks.
    pub workers: u32,
    /// Why nothing happens, or why it ended; empty when all is well.
    pub reason: String,
    /// What the user should know of its settings.
    pub warnings: Vec<String>,
    /// The ending of its picture's name: `png`, `tif` or `dzi`.
    pub format: String,
    /// Its newest checkpoint since the coordinator started.
    pub checkpoint: Option<CheckpointStatus>,
}

/// A checkpoint, as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CheckpointStatus {
    /// Seconds since it was written.
    pub age: f64,
    /// Bytes that were written for it.
    pub bytes: u64,
}

impl RenderStatus {
    /// Seconds until the last patch at the present rate, where that is known.
    pub fn seconds_left(&self) -> Option<f64> {
        let Progressed { rate, patches_left, .. } = self.progress;
        (rate > 0.0 && self.state == RenderState::Running).then(|| patches_left as f64 / rate)
    }
}

/// What a worker is doing, or why it does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It has tasks.
    Working,
    /// It waits for tasks.
    Idle,
    /// It answers questions whose answers are known.
    Examined,
    /// It finishes what it has, and ends.
    Draining,
    /// A person wants it to take no tasks.
    Disabled,
    /// It failed again and again.
    Blocked,
    /// Its answers differ from the farm's.
    Refused,
    /// Connected, or lately so, but not heard of.
    Silent,
    /// Gone.
    Offline,
}

impl WorkerState {
    /// Every state, with its name.
    pub const ALL: [(Self, &str); 9] = [
        (Self::Working, "working"),
        (Self::Idle, "idle"),
        (Self::Examined, "examined"),
        (Self::Draining, "draining"),
        (Self::Disabled, "disabled"),
        (Self::Blocked, "blocked"),
        (Self::Refused, "refused"),
        (Self::Silent, "silent"),
        (Self::Offline, "offline"),
    ];
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::ALL.iter().find(|(state, _)| state == self).map_or("", |(_, name)| name))
    }
}

/// A worker, as people see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its name, unique on the farm.
    pub name: String,
    /// What it is doing.
    pub state: WorkerState,
    /// What it computes on.
    pub device: String,
    /// Version of its program; empty where it does not say.
    pub version: String,
    /// Its model's name.
    pub model: String,
    /// The class of its results.
    pub numeric_class: String,
    /// BLAKE3 of its noise predictor, in hexadecimal.
    pub fingerprint: String,
    /// Tasks that may be in flight to it.
    pub slots: u32,
    /// Tasks in flight to it.
    pub busy: u32,
    /// Tasks done since it came.
    pub done: u64,
    /// Tasks failed since it came.
    pub failed: u64,
    /// Seconds a task, lately; 0 when unknown.
    pub seconds_per_task: f64,
    /// Seconds since it was last heard of.
    pub silent_for: f64,
    /// Why it gets no tasks; empty when it may.
    pub reason: String,
}

/// What a person wants of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerChange {
    /// Take tasks again; failures are forgotten.
    Enable,
    /// Take no more tasks, and stay.
    Disable,
    /// Finish what it has, and end.
    Drain,
}
