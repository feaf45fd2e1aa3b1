//! Why does it wait?
//!
//! Pure: from a render and what is known of the workers to a sentence, empty when all is well.

use gigasmith_proto::domain::{RenderState, WorkerState, WorkerStatus};

use super::entry::Entry;
use super::phase::{Next, Phase};
use crate::farm::{Kind, Roster};
use crate::request::RenderRequest;
use crate::spec::ModelSpec;

/// What is known around a render.
pub(super) struct Scene<'a> {
    pub(super) workers: &'a [WorkerStatus],
    pub(super) roster: &'a Roster,
    /// Its tasks that wait, and its tasks in all, once it is started.
    pub(super) depth: Option<(usize, usize)>,
    /// Unfinished renders that are served before it.
    pub(super) ahead: usize,
    /// Renders that are started at a time.
    pub(super) active: usize,
}

/// Whether a kind of worker can do a render's tasks.
fn suits(entry: &Entry, kind: &Kind) -> bool {
    match &entry.spec {
        None => entry.record.as_ref().is_some_and(|r| r.request.wants(&kind.model)),
        Some(spec) => {
            let model = ModelSpec::of(&kind.model);
            model.fingerprints == spec.model.fingerprints
                && (spec.mix || model.numeric_class == spec.model.numeric_class)
        }
    }
}

/// Workers that may get a render's tasks.
pub(super) fn capacity(entry: &Entry, roster: &Roster) -> usize {
    roster.kinds.iter().filter(|k| suits(entry, k)).map(|k| k.open).sum()
}

/// Why nothing happens, or why it ended.
pub(super) fn reason(entry: &Entry, scene: &Scene<'_>) -> String {
    let (id, reason) = (&entry.id, entry.phase.reason());
    match entry.phase.state() {
        RenderState::Done | RenderState::Cancelled => String::new(),
        RenderState::Failed => format!("{reason}; `gigasmith continue {id}` tries again"),
        RenderState::Paused if reason.is_empty() => format!("paused: `gigasmith continue {id}` goes on"),
        RenderState::Paused => format!("paused because {reason}; `gigasmith continue {id}` tries again"),
        RenderState::Queued | RenderState::Running => waits(entry, scene),
    }
}

fn waits(entry: &Entry, scene: &Scene<'_>) -> String {
    if let Some(trouble) = &entry.trouble {
        return format!("{}; it goes on once that is fixed", trouble.reason);
    }
    let Some(record) = &entry.record else { return "it is being read from the store".to_owned() };
    if capacity(entry, scene.roster) == 0 {
        return no_worker(entry, &record.request, scene);
    }
    if entry.phase == Phase::Leaving(Next::Queue) {
        return "it leaves its place to another, after a checkpoint".to_owned();
    }
    if entry.phase == Phase::Queued && scene.ahead >= scene.active {
        let ahead = match scene.ahead {
            1 => "1 render is".to_owned(),
            ahead => format!("{ahead} renders are"),
        };
        let runs = if scene.active == 1 { "runs" } else { "run" };
        return format!("{ahead} before it, and {} {runs} at a time", scene.active);
    }
    match scene.depth {
        // All its tasks wait: the workers do others'.
        Some((waiting, tasks)) if waiting > 0 && waiting == tasks && scene.ahead > 0 => match scene.ahead {
            1 => "the workers are busy with the render before it".to_owned(),
            ahead => format!("the workers are busy with the {ahead} renders before it"),
        },
        _ => String::new(),
    }
}

/// Why no worker may get the render's tasks.
fn no_worker(entry: &Entry, request: &RenderRequest, scene: &Scene<'_>) -> String {
    let name = &request.model;
    let here: Vec<&WorkerStatus> = scene.workers.iter().filter(|w| w.state != WorkerState::Offline).collect();
    if here.is_empty() {
        return format!("no worker is connected; start one: gigasmith worker --model {name}");
    }
    let suited: Vec<&Kind> = scene.roster.kinds.iter().filter(|k| suits(entry, k)).collect();
    if !suited.is_empty() {
        return unavailable(&here, &suited);
    }
    let named: Vec<&Kind> = scene.roster.kinds.iter().filter(|k| k.model.name == *name).collect();
    if named.is_empty() {
        let mut models: Vec<&str> = here.iter().map(|w| w.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        return format!("no worker with the model `{name}`: those here have {}", models.join(", "));
    }
    let Some(spec) = &entry.spec else {
        let wanted = [request.backend.clone(), request.dtype.map(|d| d.to_string())];
        let wanted: Vec<String> = wanted.into_iter().flatten().collect();
        return format!("no worker with `{name}` computes on {}", wanted.join(" in "));
    };
    let same_weights = named.iter().find(|k| ModelSpec::of(&k.model).fingerprints == spec.model.fingerprints);
    match same_weights {
        Some(kind) => format!(
            "no worker of the numeric class {}, in which the render was begun: those here are {}; start one \
             of that class, or submit again with --mix",
            spec.model.numeric_class, kind.model.numeric_class
        ),
        None => format!(
            "the workers with `{name}` hold other weights than those the render was begun with ({}); start \
             one with its --variant",
            first_hash(spec.model.fingerprints.iter().map(|(c, f)| (c.as_str(), f.as_str())))
        ),
    }
}

/// The suited workers are here, but none may get tasks.
fn unavailable(here: &[&WorkerStatus], suited: &[&Kind]) -> String {
    let is_suited = |w: &&&WorkerStatus| {
        suited.iter().any(|k| k.model.name == w.model && k.model.numeric_class.to_string() == w.numeric_class)
    };
    let workers: Vec<&&WorkerStatus> = here.iter().filter(is_suited).collect();
    let mut counts: Vec<(WorkerState, usize)> = Vec::new();
    for worker in &workers {
        match counts.iter_mut().find(|(state, _)| *state == worker.state) {
            Some((_, count)) => *count += 1,
            None => counts.push((worker.state, 1)),
        }
    }
    let counts: Vec<String> = counts.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    let first = workers.iter().find(|w| !w.reason.is_empty());
    let example = first.map_or(String::new(), |w| format!(" ({}: {})", w.name, w.reason));
    format!("no worker with its model may get tasks: {}{example}", counts.join(", "))
}

fn first_hash<'a>(mut fingerprints: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let unet = fingerprints.find(|(component, _)| *component == "unet");
    unet.map_or(String::new(), |(component, hash)| format!("{component} {}", hash.get(..10).unwrap_or(hash)))
}
