//! The plain types that coordinator and worker speak about: no tensor library, no transport.
//!
//! Everything here is data. What comes off the wire is turned into these types by the crate `gigasmith-proto`, the
//! only place that validates messages.
#![forbid(unsafe_code)]

mod array;
mod control;
mod hello;
mod model;
mod pixels;
mod task;

pub use array::{Array, ShapeError};
pub use control::{
    CheckpointStatus, Progressed, RenderState, RenderStatus, WorkerChange, WorkerState, WorkerStatus,
};
pub use hello::{Hello, Identifier, OLDEST_PROTOCOL, PROTOCOL, Welcome};
pub use model::{
    BetaSchedule, Component, Dtype, Fingerprint, ModelDescription, NumericClass, PAPER_SLIDER_SHARES,
    PredictionType, Preset, ScheduleConfig, TimestepSpacing, VaePair,
};
pub use pixels::{Pixels, Rect};
pub use task::{
    Conditioning, ConditioningId, NoiseTask, PagScale, Task, TaskResult, TextEncoding, TileRules, Wanted,
    WireDtype,
};
