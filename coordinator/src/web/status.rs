//! Renders and workers as the pages are told of them.

use gigasmith_proto::domain::{RenderStatus, WorkerStatus};
use serde_json::{Value, json};

use super::version;
use crate::farm::Farm;
use crate::jobs::Jobs;

/// Characters of a prompt that are shown.
const PROMPT: usize = 500;

/// Everything, as JSON.
pub(super) async fn state(jobs: &Jobs, farm: &Farm) -> Value {
    let renders: Vec<Value> = jobs.statuses().await.iter().map(render).collect();
    let workers: Vec<Value> = farm.workers().await.iter().map(worker).collect();
    json!({ "renders": renders, "workers": workers, "version": version() })
}

/// A render. Ages are rounded, so that a render at rest stays the same.
pub(super) fn render(status: &RenderStatus) -> Value {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    if let Some((cut, _)) = status.prompt.char_indices().nth(PROMPT) {
        value["prompt"] = json!(format!("{}…", &status.prompt[..cut]));
    }
    value["seconds_left"] = json!(status.seconds_left());
    value["checkpoint"] = match status.checkpoint {
        None => Value::Null,
        Some(c) => json!({ "age": (c.age / 5.0).round() * 5.0, "bytes": c.bytes }),
    };
    value
}

/// A worker.
pub(super) fn worker(status: &WorkerStatus) -> Value {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    // Heartbeats come every few seconds: less is no silence.
    let silent = if status.silent_for < 10.0 { 0.0 } else { status.silent_for.round() };
    value["silent_for"] = json!(silent);
    value
}
