//! One render on the farm, from its spec to its result in the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gigasmith_proto::domain::{Array, ModelDescription, RenderState};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Jobs;
use crate::farm::{Lane, LaneOptions, TaskError};
use crate::output::{Settings, encode_png};
use crate::render::{Progress, RenderError, RenderInputs, Rendered, StageArchive, render_with};
use crate::request::{RequestInputs, resolve};
use crate::sampler::plan::{Geometry, Plan, PlanFile};
use crate::sampler::units::ImageSize;
use crate::spec::RenderSpec;
use crate::store::{RenderRecord, RenderStore, StoreError};

/// Between two attempts to read or write the store.
const RETRY: Duration = Duration::from_secs(5);

/// Runs a render and stores how it ended.
pub(super) async fn run(jobs: Jobs, id: String, spec: RenderSpec, model: Arc<ModelDescription>) {
    tracing::info!(id, "a render starts");
    // In a set of its own: a panic is a failure of this render alone, and ending us ends it.
    let mut attempts = JoinSet::new();
    let (handle, named) = (jobs.clone(), id.clone());
    attempts.spawn(async move { attempt(&handle, &named, &spec, model).await });
    let (state, reason) = match attempts.join_next().await.expect("one was spawned") {
        Ok(Ok(())) => (RenderState::Done, String::new()),
        // The farm ends with the process: the render is taken up again at the next start.
        Ok(Err(Ended::Closed)) => return,
        Ok(Err(Ended::Failed(reason))) => (RenderState::Failed, reason),
        Err(error) => (RenderState::Failed, format!("a bug in gigasmith, please report it: {error}")),
    };
    tracing::info!(id, %state, reason, "a render ends");
    jobs.update(&id, |entry| {
        // A person may have cancelled it in its last moment.
        if !entry.state.is_final() {
            entry.end(state, reason);
        }
    });
    jobs.persist_surely(&id).await;
    jobs.0.changed.notify_one();
}

/// Why a render ended without a picture.
enum Ended {
    Closed,
    Failed(String),
}

impl From<RenderError> for Ended {
    fn from(error: RenderError) -> Self {
        match error {
            RenderError::Task(TaskError::Closed) => Self::Closed,
            error => Self::Failed(error.to_string()),
        }
    }
}

async fn attempt(
    jobs: &Jobs,
    id: &str,
    spec: &RenderSpec,
    model: Arc<ModelDescription>,
) -> Result<(), Ended> {
    let record = jobs.entries().get(id).map(|e| e.record.clone()).ok_or(Ended::Closed)?;
    let inputs = patiently(jobs, id, || jobs.0.store.inputs(&record))
        .await
        .map_err(|e| Ended::Failed(e.to_string()))?;
    let inputs = render_inputs(&record, inputs, &model).map_err(Ended::Failed)?;
    let patch_side = model.patch_side as usize;
    let (on_failure, failures) = mpsc::unbounded_channel();
    let priority = jobs.entries().get(id).map_or(0, |e| e.priority);
    let options = LaneOptions { model: model.clone(), mix: spec.mix, priority, on_failure: Some(on_failure) };
    let lane: Lane = jobs.0.farm.lane(options).await.map_err(|_| Ended::Closed)?;
    let lane = Arc::new(lane);
    jobs.update(id, |entry| entry.lane = Some(lane.clone()));
    // A person may have paused it meanwhile, or given it another priority.
    jobs.tell_lane(id).await;
    let pauses = tokio::spawn(note_failures(jobs.clone(), id.to_owned(), failures));
    let (counted, has_picture) = (spec.clone(), inputs.picture.is_some());
    let per_stage = tokio::task::spawn_blocking(move || stage_patches(&counted, &model, has_picture)).await;
    let mut progress = JobProgress { jobs, id, per_stage: per_stage.unwrap_or_default() };
    let archive = Archive { store: &jobs.0.store, id, spec, shapes: stage_shapes(spec, lane.model()) };
    let rendered = render_with(lane, spec, inputs, &archive, &mut progress).await;
    pauses.abort();
    progress.phase("storing the picture");
    store_result(jobs, id, spec, patch_side, rendered?).await
}

/// A request's inputs as a render takes them.
fn render_inputs(
    record: &RenderRecord,
    inputs: RequestInputs,
    model: &ModelDescription,
) -> Result<RenderInputs, String> {
    let plans = match inputs.plan {
        None => None,
        Some(_) => resolve(&record.request, &inputs, model).map_err(|e| e.to_string())?.plans,
    };
    Ok(RenderInputs { picture: inputs.picture, plans })
}

/// Patches of every stage, the base first.
fn stage_patches(spec: &RenderSpec, model: &ModelDescription, has_picture: bool) -> Vec<u64> {
    let base = if has_picture { 0 } else { u64::from(spec.steps) };
    let upscale = |(stage, upscale): (u32, &crate::spec::UpscaleSpec)| {
        let geometry = Geometry::new(upscale.size.latent(model.latent_factor), model.patch_side as usize);
        Plan::draw(spec.plan, geometry, spec.steps as usize, spec.seed, stage).len() as u64
    };
    std::iter::once(base).chain((1..).zip(&spec.upscales).map(upscale)).collect()
}

async fn store_result(
    jobs: &Jobs,
    id: &str,
    spec: &RenderSpec,
    side: usize,
    rendered: Rendered,
) -> Result<(), Ended> {
    let spec = spec.clone();
    let encode = move || {
        let mut png = Vec::new();
        encode_png(&mut png, &rendered.picture, &Settings::new(spec))
            .map(|()| (png, PlanFile::of(&rendered.plans, side).to_json()))
    };
    let encoded = tokio::task::spawn_blocking(encode).await;
    let encoded = encoded.map_err(|e| Ended::Failed(format!("writing the picture broke off: {e}")))?;
    let (png, plans) = encoded.map_err(|e| Ended::Failed(format!("writing the picture failed: {e}")))?;
    let put = || jobs.0.store.put_result(id, png.clone(), plans.clone());
    patiently(jobs, id, put).await.map_err(|e| Ended::Failed(e.to_string()))
}

/// Tries for as long as it takes: a store that is away for minutes delays a render, and ends none.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    jobs: &Jobs,
    id: &str,
    attempt: impl Fn() -> F,
) -> Result<T, StoreError> {
    loop {
        match attempt().await {
            Err(error @ StoreError::Store { .. }) => {
                tracing::warn!(id, %error, retry_in = ?RETRY, "the store is away");
                jobs.update(id, |entry| entry.trouble = error.to_string());
                tokio::time::sleep(RETRY).await;
            }
            other => {
                jobs.update(id, |entry| entry.trouble.clear());
                return other;
            }
        }
    }
}

/// A task that fails everywhere pauses the render: says so, and why.
async fn note_failures(jobs: Jobs, id: String, mut failures: mpsc::UnboundedReceiver<String>) {
    while let Some(reason) = failures.recv().await {
        tracing::error!(id, reason, "a render is paused");
        jobs.update(&id, |entry| {
            if !entry.state.is_final() {
                (entry.state, entry.reason) = (RenderState::Paused, reason);
            }
        });
        jobs.persist_surely(&id).await;
    }
}

/// Shows a render's progress in its entry.
struct JobProgress<'a> {
    jobs: &'a Jobs,
    id: &'a str,
    per_stage: Vec<u64>,
}

impl Progress for JobProgress<'_> {
    fn stage(&mut self, stage: u32, total: u32, size: ImageSize, patches: usize) {
        let later: u64 = self.per_stage.iter().skip(stage as usize + 1).sum();
        let (size, patches) = ((size.width, size.height), patches as u64);
        self.jobs.update(self.id, |entry| entry.stage(stage, total, size, patches, patches + later));
    }

    fn patches(&mut self, done: usize) {
        self.jobs.update(self.id, |entry| entry.patches(Instant::now(), done as u64));
    }

    fn phase(&mut self, what: &'static str) {
        self.jobs.update(self.id, |entry| entry.progress.phase = what.to_owned());
    }

    fn warn(&mut self, message: &str) {
        tracing::warn!(id = self.id, message, "a render warns");
        self.jobs.update(self.id, |entry| {
            if !entry.warnings.iter().any(|w| w == message) {
                entry.warnings.push(message.to_owned());
            }
        });
    }
}

/// What every stage's latent must be shaped like, the base first.
fn stage_shapes(spec: &RenderSpec, model: &ModelDescription) -> Vec<[usize; 3]> {
    let sizes = std::iter::once(spec.base).chain(spec.upscales.iter().map(|u| u.size));
    let shape = |size: ImageSize| {
        let latent = size.latent(model.latent_factor);
        [model.latent_channels as usize, latent.height, latent.width]
    };
    sizes.map(shape).collect()
}

/// Finished stages in the store.
struct Archive<'a> {
    shapes: Vec<[usize; 3]>,
    store: &'a RenderStore,
    id: &'a str,
    spec: &'a RenderSpec,
}

impl StageArchive for Archive<'_> {
    async fn load(&self, stage: u32) -> Option<Array> {
        match self.store.stage(self.id, stage, self.shapes[stage as usize], self.spec).await {
            Ok(latent) => latent,
            Err(error) => {
                tracing::warn!(id = self.id, stage, %error, "a finished stage cannot be read: it runs again");
                None
            }
        }
    }

    async fn save(&self, stage: u32, latent: &Array) -> Result<(), String> {
        self.store.put_stage(self.id, stage, latent, self.spec).await.map_err(|e| e.to_string())
    }
}
