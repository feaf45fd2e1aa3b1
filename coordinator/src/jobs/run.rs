//! One render on the farm, from its spec to its result in the store.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gigasmith_proto::domain::{ModelDescription, RenderState};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Jobs;
use super::entry::Entry;
use crate::disk::{self, Need};
use crate::estimate;
use crate::farm::{Lane, LaneOptions, TaskError};
use crate::render::{Course, Live, Progress, RenderError, Rendered, StageBegin, Start, render_from};
use crate::spec::{RenderSpec, StagePlans};
use crate::store::{
    Claim, Closed, Keeper, KeeperStart, Outputs, RenderRecord, RenderStore, Restored, StoreError,
    StoredState, Told,
};

/// How long a last checkpoint may take when the coordinator ends.
const LAST_CHECKPOINT: Duration = Duration::from_secs(20);
/// Parts of a picture that are written between two words about it.
const TOLD_EVERY: u64 = 64;
/// Between two attempts to read or write the store.
const RETRY: Duration = Duration::from_secs(5);

/// Runs a render and stores how it ended.
pub(super) async fn run(jobs: Jobs, id: String, spec: RenderSpec, model: Arc<ModelDescription>) {
    tracing::info!(id, "a render starts");
    // In a set of its own: a panic is a failure of this render alone, and ending us ends it.
    let mut attempts = JoinSet::new();
    let (handle, named) = (jobs.clone(), id.clone());
    let span = tracing::info_span!("render", id = named);
    attempts.spawn(async move { attempt(&handle, &named, &spec, model).await }.instrument(span));
    let (state, reason) = match attempts.join_next().await.expect("one was spawned") {
        Ok(Ok(claim)) => {
            end(&jobs, &id, RenderState::Done, String::new()).await;
            // Only now that it is known to be done.
            if let Err(error) = jobs.0.store.discard_checkpoints(&id, &claim).await {
                tracing::warn!(id, %error, "the checkpoints of a finished render are left behind");
            }
            return;
        }
        // It is taken up again at the next start.
        Ok(Err(Ended::Closed)) => return,
        Ok(Err(Ended::Lost(claim, reason))) => {
            tracing::error!(id, reason, "a render is given up here");
            // Our own runner ends by itself.
            drop(jobs.update(&id, |entry| entry.lose(claim.as_ref(), reason)));
            jobs.0.changed.notify_one();
            return;
        }
        Ok(Err(Ended::Failed(reason))) => (RenderState::Failed, reason),
        Err(error) => (RenderState::Failed, format!("a bug in gigasmith, please report it: {error}")),
    };
    end(&jobs, &id, state, reason).await;
}

async fn end(jobs: &Jobs, id: &str, state: RenderState, reason: String) {
    tracing::info!(id, %state, reason, "a render ends");
    jobs.update(id, |entry| {
        // A person may have cancelled it in its last moment.
        if !entry.state.is_final() {
            entry.end(state, reason);
        }
    });
    jobs.persist_surely(id).await;
    jobs.0.changed.notify_one();
}

/// Removes the checkpoints of a render that was given up.
pub(super) async fn discard(jobs: &Jobs, id: &str) {
    let store = &jobs.0.store;
    let discarded =
        async { store.discard_checkpoints(id, &store.claim(id, &jobs.0.options.owner).await?).await };
    if let Err(error) = discarded.await {
        tracing::warn!(id, %error, "the checkpoints of a cancelled render are left behind");
    }
}

/// Why a render ended without a picture.
enum Ended {
    /// The coordinator ends.
    Closed,
    /// Another coordinator has it, or it was removed; the right that was lost.
    Lost(Option<Claim>, String),
    Failed(String),
}

impl From<RenderError> for Ended {
    fn from(error: RenderError) -> Self {
        match error {
            RenderError::Task(TaskError::Closed) | RenderError::Stopped => Self::Closed,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Superseded { .. } | StoreError::Removed(_) => Self::Lost(None, error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

async fn attempt(
    jobs: &Jobs,
    id: &str,
    spec: &RenderSpec,
    model: Arc<ModelDescription>,
) -> Result<Claim, Ended> {
    let (store, owner) = (&jobs.0.store, &jobs.0.options.owner);
    let record = jobs.entries().get(id).map(|e| e.record.clone()).ok_or(Ended::Closed)?;
    // Before anything is written to what may be gone.
    if patiently(jobs, id, || store.read(id)).await?.is_none() {
        return Err(StoreError::Removed(format!("render {id}")).into());
    }
    let claim = patiently(jobs, id, || store.claim(id, owner)).await?;
    jobs.update(id, |entry| entry.claim = Some(claim.clone()));
    let claimed = attempt_claimed(jobs, id, (spec, model), (record, &claim)).await;
    match claimed {
        Err(Ended::Lost(_, reason)) => Err(Ended::Lost(Some(claim), reason)),
        Err(other) => Err(other),
        Ok(()) => Ok(claim),
    }
}

/// The same with the right to write.
async fn attempt_claimed(
    jobs: &Jobs,
    id: &str,
    (spec, model): (&RenderSpec, Arc<ModelDescription>),
    (record, claim): (RenderRecord, &Claim),
) -> Result<(), Ended> {
    let (store, keep) = (&jobs.0.store, &jobs.0.options.keep);
    match patiently(jobs, id, || store.read(id)).await? {
        None => return Err(StoreError::Removed(format!("render {id}")).into()),
        // Another coordinator has had it meanwhile.
        Some(stored) if stored.state.state == StoredState::Done => return Ok(()),
        Some(_) => {}
    }
    check_room(store, spec, &record).map_err(Ended::Failed)?;
    let Restored { mut start, found, damage } =
        patiently(jobs, id, || store.restore(id, spec, &model)).await?;
    let from_start = start.position.is_beginning();
    let inputs = patiently(jobs, id, || store.inputs(&record, from_start)).await?;
    if from_start {
        start = Start { conditioning: start.conditioning, ..Start::beginning(inputs.picture) };
    }
    let plans = StagePlans::new(spec, &model, inputs.plan.as_deref());
    let plans = plans.map_err(|e| Ended::Failed(e.to_string()))?;
    let (on_failure, failures) = mpsc::unbounded_channel();
    let priority = jobs.entries().get(id).map_or(0, |e| e.priority);
    let options = LaneOptions { model: model.clone(), mix: spec.mix, priority, on_failure: Some(on_failure) };
    let lane: Lane = jobs.0.farm.lane(options).await.map_err(|_| Ended::Closed)?;
    let lane = Arc::new(lane);
    jobs.update(id, |entry| entry.lane = Some(lane.clone()));
    // A person may have paused it meanwhile, or given it another priority.
    jobs.tell_lane(id).await;
    let pauses = tokio::spawn(note_failures(jobs.clone(), id.to_owned(), failures));
    let _pauses = AbortOnDrop(pauses);
    let counted = plans.clone();
    let per_stage = tokio::task::spawn_blocking(move || counted.counts().to_vec()).await;
    let mut progress = JobProgress { jobs, id, per_stage: per_stage.unwrap_or_default(), counted: 0 };
    damage.iter().for_each(|damage| progress.warn(damage));
    let stop = jobs.0.stopping.child_token();
    let mut keeper = Keeper::start(KeeperStart {
        metrics: jobs.0.farm.metrics().clone(),
        store: store.clone(),
        id: id.to_owned(),
        claim: claim.clone(),
        spec: spec.hash(),
        found,
        options: *keep,
        stop: stop.clone(),
    });
    let live = Arc::new(Live::new(first_version()));
    let (tallied, shown) = (keeper.tallied(), live.clone());
    jobs.update(id, |entry| (entry.tallied, entry.live) = (Some(tallied), Some(shown)));
    let course = Course::new(&mut progress, &mut keeper, stop);
    let mut course = course.with_scratch(store.scratch().clone()).with_live(live);
    let rendered = render_from(lane, (spec, plans), start, &mut course).await;
    let stored = match rendered {
        Ok(rendered) => {
            progress.phase("storing the picture");
            store_result(jobs, id, spec, (record, claim), rendered).await
        }
        Err(error) => Err(error.into()),
    };
    if stored.is_ok() {
        // Nobody will go on from its checkpoints.
        return Ok(());
    }
    match keeper.close(LAST_CHECKPOINT).await {
        Closed::Kept => {}
        Closed::Late(reason) => tracing::warn!(id, reason, "the last checkpoint is missing"),
        Closed::Lost(error) => return Err(error.into()),
    }
    stored
}

/// Fails when the disk of the scratch folder is certainly too small: before the first patch, not after the last.
fn check_room(store: &RenderStore, spec: &RenderSpec, record: &RenderRecord) -> Result<(), String> {
    let (size, format) = (spec.upscales.last().map_or(spec.base, |u| u.size), record.request.format);
    let area = estimate::area(size);
    let mut needs = vec![Need::scratch(area, Some(format), store.scratch())];
    needs.extend(store.folder().map(|folder| Need::store(area, format, folder, 1)));
    let warnings = disk::check(&needs, &disk::System).map_err(|e| format!("{e} (of `gigasmith serve`)"))?;
    warnings.iter().for_each(|warning| tracing::warn!(id = record.id, "{warning}"));
    Ok(())
}

/// Stores what a render made, for as long as that takes.
async fn store_result(
    jobs: &Jobs,
    id: &str,
    spec: &RenderSpec,
    (record, claim): (RenderRecord, &Claim),
    rendered: Rendered,
) -> Result<(), Ended> {
    let store = &jobs.0.store;
    let (spec, format, scratch) = (spec.clone(), record.request.format, store.scratch().clone());
    let outputs = tokio::task::spawn_blocking(move || Outputs::of(&rendered, &spec, (format, &scratch)));
    let outputs = outputs.await.map_err(|e| e.to_string()).flatten();
    let outputs = outputs.map_err(|e| Ended::Failed(format!("writing the picture failed: {e}")))?;
    // What is beside us ends when we do: cancelled, or with the coordinator.
    let ending = CancellationToken::new();
    let _ends = ending.clone().drop_guard();
    let (told, named) = (jobs.clone(), id.to_owned());
    let told: Told = Arc::new(move |done, all| {
        let goes_on = !ending.is_cancelled();
        if goes_on && (done % TOLD_EVERY == 0 || done == all) {
            told.update(&named, |entry| entry.tiles(done, all));
        }
        goes_on
    });
    patiently(jobs, id, || store.put_result(id, claim, &outputs, told.clone())).await
}

/// Versions of what is to be seen go on from the time, so that whoever saw another process's does not take
/// ours for the same.
fn first_version() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tries for as long as it takes, or until the coordinator ends: a store that is away for minutes delays a
/// render, and ends none.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    jobs: &Jobs,
    id: &str,
    attempt: impl Fn() -> F,
) -> Result<T, Ended> {
    let tries = async {
        loop {
            match attempt().await {
                Err(error @ (StoreError::Store { .. } | StoreError::Scratch(_))) => {
                    tracing::warn!(id, %error, retry_in = ?RETRY, "the store is away");
                    jobs.update(id, |entry| entry.troubled(&error));
                    tokio::time::sleep(RETRY).await;
                }
                other => {
                    jobs.update(id, Entry::untroubled);
                    return other.map_err(Ended::from);
                }
            }
        }
    };
    tokio::select! {
        done = tries => done,
        () = jobs.0.stopping.cancelled() => Err(Ended::Closed),
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
    /// Patches of the stage that are counted.
    counted: u64,
}

impl Progress for JobProgress<'_> {
    fn taken_up(&mut self, begin: StageBegin) {
        self.stage(begin);
    }

    fn stage(&mut self, begin: StageBegin) {
        self.counted = begin.done as u64;
        self.jobs.update(self.id, |entry| entry.stage(begin, &self.per_stage));
    }

    fn patches(&mut self, done: usize) {
        self.jobs.0.farm.metrics().patches((done as u64).saturating_sub(self.counted));
        self.counted = done as u64;
        self.jobs.update(self.id, |entry| entry.patches(Instant::now(), done as u64));
    }

    fn phase(&mut self, what: &'static str) {
        self.jobs.update(self.id, |entry| entry.phase(what));
    }

    fn tiles(&mut self, done: usize, total: usize) {
        self.jobs.update(self.id, |entry| entry.tiles(done as u64, total as u64));
    }

    fn late(&mut self, reason: Option<&str>) {
        match reason {
            Some(reason) => tracing::warn!(id = self.id, reason, "checkpoints are late"),
            None => tracing::info!(id = self.id, "checkpoints are on time again"),
        }
        self.jobs.update(self.id, |entry| entry.late = reason.unwrap_or_default().to_owned());
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
