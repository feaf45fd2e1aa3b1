//! Renders and workers as the pages are told of them.

use gigasmith_proto::domain::{RenderStatus, WorkerStatus};
use serde_json::{Value, json};

use super::version;
use crate::farm::Farm;
use crate::jobs::{Beside, Jobs};
use crate::output::Settings;
use crate::request::RenderRequest;
use crate::spec::RenderSpec;

/// Characters of a prompt in the list; [`settings`] has all of it.
const PROMPT: usize = 500;

/// Renders that have ended and are shown, the newest.
const ENDED: usize = 100;

/// What is under way and what has ended lately, as JSON.
pub(super) async fn state(jobs: &Jobs, farm: &Farm) -> Value {
    let mut statuses = jobs.unfinished().await;
    let ended = jobs.ended(None, ENDED).await;
    statuses.extend(ended.map(|(ended, _)| ended).unwrap_or_default());
    let renders: Vec<Value> = statuses.iter().map(|status| render(status, jobs.beside(&status.id))).collect();
    let workers: Vec<Value> = farm.workers().await.iter().map(worker).collect();
    json!({ "renders": renders, "ended": jobs.ended_count(), "workers": workers, "version": version() })
}

/// A render. Ages are rounded, so that a render at rest stays the same.
pub(super) fn render(status: &RenderStatus, beside: Beside) -> Value {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    if let Some((cut, _)) = status.prompt.char_indices().nth(PROMPT) {
        value["prompt"] = json!(format!("{}…", &status.prompt[..cut]));
    }
    value["patches_all"] = json!(beside.patches_all);
    value["store_away"] = json!(beside.store_away);
    if beside.store_away {
        // The store's own words are for the log and for `gigasmith status`.
        value["reason"] = json!("the store does not answer; the render goes on when it is back");
    }
    value["seconds_left"] = json!(status.seconds_left());
    value["checkpoint"] = match status.checkpoint {
        None => Value::Null,
        Some(c) => json!({ "age": (c.age / 5.0).round() * 5.0, "bytes": c.bytes }),
    };
    value
}

/// How a render is made: as it stands in its picture, or, until the model is known, as it was asked for.
pub(super) fn settings(request: RenderRequest, spec: Option<RenderSpec>) -> Value {
    let (prompt, negative) = (request.prompt.clone(), request.negative_prompt.clone());
    let settled = spec.map(Settings::new);
    json!({
        "prompt": settled.as_ref().map_or(prompt, |s| s.spec.prompt.clone()),
        "negative_prompt": settled.as_ref().map_or(negative, |s| s.spec.negative_prompt.clone()),
        "parameters": settled.as_ref().map(Settings::to_parameters),
        "settings": settled.map_or_else(|| json!(request), |settled| json!(settled)),
    })
}

/// A worker.
pub(super) fn worker(status: &WorkerStatus) -> Value {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    // Heartbeats come every few seconds: less is no silence.
    let silent = if status.silent_for < 10.0 { 0.0 } else { status.silent_for.round() };
    value["silent_for"] = json!(silent);
    value
}
