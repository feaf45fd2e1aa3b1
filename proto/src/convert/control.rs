//! What people see of renders and workers.

use super::WireError;
use crate::domain::{CheckpointStatus, Progressed, RenderState, RenderStatus, WorkerState, WorkerStatus};
use crate::v1;

const STATES: [(RenderState, v1::RenderState); 6] = [
    (RenderState::Queued, v1::RenderState::Queued),
    (RenderState::Running, v1::RenderState::Running),
    (RenderState::Paused, v1::RenderState::Paused),
    (RenderState::Done, v1::RenderState::Done),
    (RenderState::Cancelled, v1::RenderState::Cancelled),
    (RenderState::Failed, v1::RenderState::Failed),
];

fn size_to_wire(size: Option<(u32, u32)>) -> Option<v1::Size> {
    size.map(|(width, height)| v1::Size { width, height })
}

fn size_from_wire(size: Option<v1::Size>) -> Option<(u32, u32)> {
    size.map(|s| (s.width, s.height))
}

/// Puts a render's status on the wire.
pub fn render_status_to_wire(status: RenderStatus) -> v1::Render {
    let state = STATES.iter().find(|(state, _)| *state == status.state).expect("every state is listed").1;
    let progress = status.progress;
    v1::Render {
        id: status.id,
        state: state.into(),
        priority: status.priority,
        model: status.model,
        prompt: status.prompt,
        seed: status.seed,
        size: size_to_wire(status.size),
        stage: progress.stage,
        stages: progress.stages,
        stage_size: size_to_wire(progress.stage_size),
        patches_done: progress.patches_done,
        patches: progress.patches,
        phase: progress.phase,
        rate: progress.rate,
        patches_left: progress.patches_left,
        workers: status.workers,
        reason: status.reason,
        warnings: status.warnings,
        tiles_done: progress.tiles_done,
        tiles: progress.tiles,
        format: status.format,
        checkpoint: status.checkpoint.map(|c| v1::Checkpoint { age: c.age, bytes: c.bytes }),
    }
}

/// Reads a render's status.
pub fn render_status_from_wire(render: v1::Render) -> Result<RenderStatus, WireError> {
    let state = STATES.iter().find(|(_, wire)| *wire == render.state());
    let state = state.ok_or_else(|| WireError::invalid("render.state", render.state, "a known state"))?.0;
    let progress = Progressed {
        stage: render.stage,
        stages: render.stages,
        stage_size: size_from_wire(render.stage_size),
        patches_done: render.patches_done,
        patches: render.patches,
        phase: render.phase,
        rate: render.rate,
        patches_left: render.patches_left,
        tiles_done: render.tiles_done,
        tiles: render.tiles,
    };
    Ok(RenderStatus {
        id: render.id,
        state,
        priority: render.priority,
        model: render.model,
        prompt: render.prompt,
        seed: render.seed,
        size: size_from_wire(render.size),
        progress,
        workers: render.workers,
        reason: render.reason,
        warnings: render.warnings,
        format: render.format,
        checkpoint: render.checkpoint.map(|c| CheckpointStatus { age: c.age, bytes: c.bytes }),
    })
}

/// Puts a worker's status on the wire.
pub fn worker_status_to_wire(status: WorkerStatus) -> v1::Worker {
    v1::Worker {
        state: status.state.to_string(),
        name: status.name,
        device: status.device,
        model: status.model,
        numeric_class: status.numeric_class,
        slots: status.slots,
        busy: status.busy,
        done: status.done,
        failed: status.failed,
        seconds_per_task: status.seconds_per_task,
        reason: status.reason,
        fingerprint: status.fingerprint,
        silent_for: status.silent_for,
        version: status.version,
    }
}

/// Reads a worker's status.
pub fn worker_status_from_wire(worker: v1::Worker) -> Result<WorkerStatus, WireError> {
    let state = WorkerState::ALL.iter().find(|(_, name)| *name == worker.state);
    let state = state.ok_or_else(|| WireError::invalid("worker.state", &worker.state, "a known state"))?.0;
    Ok(WorkerStatus {
        name: worker.name,
        state,
        device: worker.device,
        version: worker.version,
        model: worker.model,
        numeric_class: worker.numeric_class,
        fingerprint: worker.fingerprint,
        slots: worker.slots,
        busy: worker.busy,
        done: worker.done,
        failed: worker.failed,
        seconds_per_task: worker.seconds_per_task,
        silent_for: worker.silent_for,
        reason: worker.reason,
    })
}
