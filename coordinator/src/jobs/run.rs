//! One render on the farm: a session lives the render's life for a place in the queue.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gigasmith_proto::domain::ModelDescription;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::Jobs;
use super::entry::{Entry, Session, Trouble};
use super::phase::{Outcome, Phase};
use crate::disk::{self, Need};
use crate::estimate;
use crate::farm::{Lane, LaneOptions, TaskError};
use crate::lifecycle::{Ended, Failed, Host, Lifecycle};
use crate::render::{Live, Progress, RenderError, Rendered, StageBegin};
use crate::spec::{RenderSpec, StagePlans};
use crate::store::{
    Claim, Outputs, RenderStore, StateRecord, StoreError, Stored, StoredState, Tallied, Told,
};

/// How long a last checkpoint may take when the coordinator ends.
const LAST_CHECKPOINT: Duration = Duration::from_secs(20);
/// Parts of a picture that are written between two words about it.
const TOLD_EVERY: u64 = 64;
/// Between two attempts to read or write the store.
const RETRY: Duration = Duration::from_secs(5);
/// Starts from one and the same point after which a person is to look.
const MOST_STARTS: u32 = 3;

/// Starts a session for a render that waits, unless a person has changed it a moment ago.
pub(super) fn start(jobs: &Jobs, id: &str, model: Arc<ModelDescription>) {
    let Some(spec) = jobs.with(id, |entry| entry.spec.clone()).flatten() else { return };
    let stop = jobs.0.stopping.child_token();
    let life = Lifecycle {
        store: jobs.0.store.clone(),
        id: id.to_owned(),
        owner: jobs.0.options.owner.clone(),
        spec: (*spec).clone(),
        model: model.clone(),
        keep: jobs.0.options.keep,
        metrics: jobs.0.farm.metrics().clone(),
        stop: stop.clone(),
        farewell: LAST_CHECKPOINT,
        most_starts: Some(MOST_STARTS),
    };
    let live = Arc::new(Live::new(first_version()));
    let (over, ended) = watch::channel(false);
    let session =
        |abort| Session { stop, abort, ended, claim: None, lane: None, tallied: None, live: live.clone() };
    let started = jobs.update(id, |entry| {
        if entry.phase != Phase::Queued {
            return None;
        }
        tracing::info!(id, "a render starts");
        let host = FarmHost {
            jobs: jobs.clone(),
            id: id.to_owned(),
            model,
            live: live.clone(),
            counted: 0,
            per_stage: Vec::new(),
            pauses: None,
        };
        let span = tracing::info_span!("render", id);
        let living = tokio::spawn(live_one(life, host).instrument(span));
        (entry.phase, entry.session) = (Phase::Starting, Some(session(living.abort_handle())));
        Some(living)
    });
    let Some(Some(living)) = started else { return };
    let (jobs, id) = (jobs.clone(), id.to_owned());
    jobs.0.tasks.clone().spawn(async move {
        let outcome = match living.await {
            Ok(outcome) => outcome,
            // Given up: whoever did that knows.
            Err(error) if error.is_cancelled() => Outcome::Left,
            Err(error) => Outcome::Failed(format!("a bug in gigasmith, please report it: {error}")),
        };
        jobs.session_ended(&id, outcome).await;
        over.send_replace(true);
        jobs.0.changed.notify_one();
    });
}

async fn live_one(life: Lifecycle, mut host: FarmHost) -> Outcome {
    let resumes = format!("gigasmith continue {}", life.id);
    match life.live(&mut host).await {
        Ended::Done(_) => Outcome::Done,
        Ended::Already(stored) => {
            host.jobs.update(&host.id, |entry| entry.result = stored.state.result);
            Outcome::Done
        }
        Ended::Cancelled => Outcome::Cancelled,
        Ended::Stopped(_) | Ended::NotKept(_) => Outcome::Left,
        Ended::Lost(error) => Outcome::Lost(error.to_string()),
        Ended::Stuck(count) => Outcome::Stuck(format!(
            "it was started {count} times without getting further: the coordinator may lack memory for it, see its log \
             (`{resumes}` tries again)"
        )),
        Ended::Failed(Failed::Render(RenderError::Task(TaskError::Closed)), _) => Outcome::Left,
        Ended::Failed(failed, _) => Outcome::Failed(failed.to_string()),
    }
}

/// Versions of what is to be seen go on from the time, so that whoever saw another process's does not take
/// ours for the same.
fn first_version() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

/// Fails when the disk of the scratch folder is certainly too small: before the first patch, not after the last.
fn check_room(store: &RenderStore, stored: &Stored, spec: &RenderSpec) -> Result<(), String> {
    let (size, format) = (spec.upscales.last().map_or(spec.base, |u| u.size), stored.record.request.format);
    let area = estimate::area(size);
    let mut needs = vec![Need::scratch(area, Some(format), store.scratch())];
    needs.extend(store.folder().map(|folder| Need::store(area, format, folder, 1)));
    let warnings = disk::check(&needs, &disk::System).map_err(|e| format!("{e} (of `gigasmith serve`)"))?;
    warnings.iter().for_each(|warning| tracing::warn!(id = stored.record.id, "{warning}"));
    Ok(())
}

/// Shows a render's life in its entry, and finds it workers.
struct FarmHost {
    jobs: Jobs,
    id: String,
    model: Arc<ModelDescription>,
    live: Arc<Live>,
    /// Patches of every stage.
    per_stage: Vec<u64>,
    /// Patches of the stage that are counted.
    counted: u64,
    /// Waits for tasks that fail everywhere.
    pauses: Option<AbortOnDropHandle<()>>,
}

impl FarmHost {
    fn update(&self, change: impl FnOnce(&mut Entry)) {
        self.jobs.update(&self.id, change);
    }

    /// Changes what lives for the render, if it has not ended meanwhile.
    fn session(&self, change: impl FnOnce(&mut Session)) {
        self.update(|entry| entry.session.iter_mut().for_each(change_once(change)));
    }
}

fn change_once<T>(change: impl FnOnce(&mut T)) -> impl FnMut(&mut T) {
    let mut change = Some(change);
    move |value| {
        if let Some(change) = change.take() {
            change(value);
        }
    }
}

impl Host for FarmHost {
    type Failure = String;

    fn claimed(&mut self, claim: &Claim, stored: &Stored) -> Result<(), String> {
        self.session(|session| session.claim = Some(claim.clone()));
        check_room(&self.jobs.0.store, stored, stored.spec.as_ref().ok_or("its settings are gone")?)
    }

    async fn lane(&mut self, spec: &RenderSpec) -> Result<Arc<Lane>, TaskError> {
        let (on_failure, mut failures) = mpsc::unbounded_channel();
        let priority = self.jobs.with(&self.id, |e| e.priority).unwrap_or(0);
        let on_failure = Some(on_failure);
        let options = LaneOptions { model: self.model.clone(), mix: spec.mix, priority, on_failure };
        let lane = Arc::new(self.jobs.0.farm.lane(options).await?);
        let (jobs, id) = (self.jobs.clone(), self.id.clone());
        // A task that fails everywhere pauses the render: its session leaves.
        self.pauses = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(reason) = failures.recv().await {
                tracing::error!(id, reason, "a render is paused");
                jobs.update(&id, |entry| {
                    if entry.phase.fail_task(reason) {
                        entry.session.iter().for_each(|s| s.stop.cancel());
                    }
                });
            }
        })));
        self.session(|session| session.lane = Some(lane.clone()));
        // A person may have given it another priority meanwhile.
        lane.prioritise(self.jobs.with(&self.id, |e| e.priority).unwrap_or(0)).await;
        Ok(lane)
    }

    fn begun(&mut self, tallied: Tallied, plans: &StagePlans) {
        self.per_stage = crate::render::at_leisure(|| plans.counts().to_vec());
        self.session(|session| session.tallied = Some(tallied));
        self.update(|entry| {
            if entry.phase == Phase::Starting {
                entry.phase = Phase::Running;
            }
        });
    }

    fn live(&self) -> Option<Arc<Live>> {
        Some(self.live.clone())
    }

    fn retry(&mut self, error: &StoreError) -> Option<Duration> {
        tracing::warn!(id = self.id, %error, retry_in = ?RETRY, "the store is away");
        self.update(|entry| entry.trouble = Some(Trouble::of(error)));
        Some(RETRY)
    }

    fn recovered(&mut self) {
        self.update(|entry| entry.trouble = None);
    }

    fn outputs(&self, rendered: &Rendered, stored: &Stored) -> Result<Outputs, String> {
        let spec = stored.spec.as_ref().ok_or("its settings are gone")?;
        Outputs::of(rendered, spec, (stored.record.request.format, self.jobs.0.store.scratch()))
    }

    fn state(&self, before: &StateRecord) -> StateRecord {
        self.jobs.with(&self.id, Entry::state_record).unwrap_or_else(|| before.clone())
    }

    fn stored(&mut self, state: &StateRecord) {
        self.update(|entry| {
            entry.trouble = None;
            if state.state == StoredState::Done {
                entry.result = state.result;
            }
        });
    }

    fn told(&self) -> Told {
        let (jobs, id) = (self.jobs.clone(), self.id.clone());
        Arc::new(move |done, all| {
            if done % TOLD_EVERY == 0 || done == all {
                jobs.update(&id, |entry| entry.tiles(done, all));
            }
            true
        })
    }
}

impl Progress for FarmHost {
    fn taken_up(&mut self, begin: StageBegin) {
        self.stage(begin);
    }

    fn stage(&mut self, begin: StageBegin) {
        self.counted = begin.done as u64;
        self.update(|entry| entry.stage(begin, &self.per_stage));
    }

    fn patches(&mut self, done: usize) {
        self.jobs.0.farm.metrics().patches((done as u64).saturating_sub(self.counted));
        self.counted = done as u64;
        self.update(|entry| entry.patches(Instant::now(), done as u64));
    }

    fn phase(&mut self, what: &'static str) {
        self.update(|entry| entry.between(what));
    }

    fn tiles(&mut self, done: usize, total: usize) {
        self.update(|entry| entry.tiles(done as u64, total as u64));
    }

    fn late(&mut self, reason: Option<&str>) {
        match reason {
            Some(reason) => tracing::warn!(id = self.id, reason, "checkpoints are late"),
            None => tracing::info!(id = self.id, "checkpoints are on time again"),
        }
        self.update(|entry| entry.late = reason.unwrap_or_default().to_owned());
    }

    fn warn(&mut self, message: &str) {
        tracing::warn!(id = self.id, message, "a render warns");
        self.update(|entry| {
            if !entry.warnings.iter().any(|w| w == message) {
                entry.warnings.push(message.to_owned());
            }
        });
    }
}
