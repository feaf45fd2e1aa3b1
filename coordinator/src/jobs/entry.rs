//! One render's state in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use gigasmith_proto::domain::{CheckpointStatus, Progressed, RenderState, RenderStatus};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinHandle;

use super::{JobChange, JobError};
use crate::farm::Lane;
use crate::render::{Live, StageBegin};
use crate::spec::RenderSpec;
use crate::store::{Claim, RenderRecord, StateRecord, StoreError, Stored, Tallied};

/// Over how many seconds the rate is measured.
const RATE_SECONDS: f64 = 30.0;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: RenderRecord,
    pub(super) spec: Option<RenderSpec>,
    pub(super) state: RenderState,
    pub(super) priority: i32,
    pub(super) reason: String,
    pub(super) warnings: Vec<String>,
    pub(super) progress: Progressed,
    pub(super) lane: Option<Arc<Lane>>,
    pub(super) runner: Option<JoinHandle<()>>,
    /// What keeps it waiting beside the workers, such as a store that is away; empty when nothing does.
    pub(super) trouble: String,
    /// Whether that is the store.
    pub(super) store_away: bool,
    /// Patches of all stages; 0 until they are counted.
    pub(super) patches_all: u64,
    /// Why its checkpoints are late; empty when they are not.
    pub(super) late: String,
    /// The right to write of it, once it was started.
    pub(super) claim: Option<Claim>,
    /// What its keeper has written.
    pub(super) tallied: Option<Tallied>,
    /// What can be seen of it.
    pub(super) live: Option<Arc<Live>>,
    /// Another coordinator has it, or it was removed: it rests here, and nothing of it is written.
    lost: bool,
    /// Held while a person's change is made.
    pub(super) changing: Arc<AsyncMutex<()>>,
    /// Held while its state is written.
    pub(super) writing: Arc<AsyncMutex<()>>,
    /// When how many patches of the stage were done.
    recent: VecDeque<(Instant, u64)>,
    version: watch::Sender<u64>,
}

impl Entry {
    /// A render as the store has it.
    pub(super) fn stored(stored: Stored) -> Self {
        let Stored { record, spec, state } = stored;
        Self {
            record,
            spec,
            state: state.state.into(),
            priority: state.priority,
            reason: state.reason,
            warnings: state.warnings,
            progress: Progressed::default(),
            lane: None,
            runner: None,
            trouble: String::new(),
            store_away: false,
            patches_all: 0,
            late: String::new(),
            claim: None,
            tallied: None,
            live: None,
            lost: false,
            changing: Arc::default(),
            writing: Arc::default(),
            recent: VecDeque::new(),
            version: watch::Sender::new(0),
        }
    }

    pub(super) fn settle(&mut self, spec: RenderSpec, warnings: Vec<String>) {
        (self.spec, self.warnings) = (Some(spec), warnings);
        self.untroubled();
    }

    /// The store or the scratch folder fails: it waits until that is mended.
    pub(super) fn troubled(&mut self, error: &StoreError) {
        self.trouble = error.to_string();
        self.store_away = matches!(error, StoreError::Store { .. });
    }

    /// All is well again.
    pub(super) fn untroubled(&mut self) {
        self.trouble.clear();
        self.store_away = false;
    }

    /// Nothing more will happen.
    pub(super) fn end(&mut self, state: RenderState, reason: String) {
        (self.state, self.reason) = (state, reason);
        self.progress.phase.clear();
        self.progress.rate = 0.0;
        self.untroubled();
        self.late.clear();
        self.lane = None;
        self.runner = None;
        self.tallied = None;
        self.live = None;
        self.recent.clear();
    }

    /// Tells those who watch.
    pub(super) fn touch(&self) {
        self.version.send_modify(|v| *v += 1);
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Makes a person's change, and returns the runner that must be ended, if any.
    pub(super) fn change(&mut self, change: JobChange) -> Result<Option<JoinHandle<()>>, JobError> {
        let refuse = |reason| Err(JobError::State { id: self.record.id.clone(), state: self.state, reason });
        if self.lost && change != JobChange::Continue {
            return refuse("another coordinator has it; `continue` takes it back");
        }
        match (change, self.state) {
            // Said twice, or said again because it could not be stored.
            (JobChange::Cancel, RenderState::Cancelled) => {}
            (JobChange::Continue, RenderState::Failed) => {
                // Somebody else may have had it since.
                self.claim = None;
                self.state = RenderState::Queued;
                self.reason.clear();
            }
            (_, state) if state.is_final() => {
                return refuse("it has ended, and nothing changes it any more");
            }
            (JobChange::Pause, _) => {
                self.state = RenderState::Paused;
                self.reason.clear();
            }
            (JobChange::Continue, RenderState::Paused) => {
                if std::mem::take(&mut self.lost) {
                    self.claim = None;
                }
                self.state = if self.runner.is_some() { RenderState::Running } else { RenderState::Queued };
                self.reason.clear();
                self.recent.clear();
            }
            (JobChange::Continue, _) => return refuse("only a paused or failed render can be continued"),
            (JobChange::Priority(priority), _) => self.priority = priority,
            (JobChange::Cancel, _) => {
                let runner = self.runner.take();
                self.end(RenderState::Cancelled, String::new());
                return Ok(runner);
            }
        }
        Ok(None)
    }

    /// A stage begins, or is taken up; `per_stage`: patches of every stage.
    pub(super) fn stage(&mut self, begin: StageBegin, per_stage: &[u64]) {
        self.patches_all = per_stage.iter().sum();
        let later: u64 = per_stage.iter().skip(begin.stage as usize + 1).sum();
        self.recent.clear();
        let (patches, done) = (begin.patches as u64, begin.done as u64);
        self.progress = Progressed {
            stage: begin.stage,
            stages: begin.total,
            stage_size: Some((begin.size.width, begin.size.height)),
            patches_done: done,
            patches,
            phase: String::new(),
            tiles_done: 0,
            tiles: 0,
            rate: 0.0,
            patches_left: patches.saturating_sub(done) + later,
        };
    }

    /// Something happens between stages.
    pub(super) fn phase(&mut self, what: &str) {
        self.progress.phase = what.to_owned();
        (self.progress.tiles_done, self.progress.tiles) = (0, 0);
        self.progress.rate = 0.0;
    }

    /// So many of the phase's tiles are done.
    pub(super) fn tiles(&mut self, done: u64, all: u64) {
        (self.progress.tiles_done, self.progress.tiles) = (done, all);
    }

    /// Another coordinator has it, or it was removed: it rests here, and its stored state stays that one's.
    /// `claim`: the right that was lost; one that was taken anew meanwhile stands. Returns the runner that
    /// must be ended, if any.
    pub(super) fn lose(&mut self, claim: Option<&Claim>, reason: String) -> Option<JoinHandle<()>> {
        if self.claim.as_ref().map(|c| c.epoch) != claim.map(|c| c.epoch) {
            return None;
        }
        let runner = self.runner.take();
        self.end(RenderState::Paused, reason);
        self.lost = true;
        runner
    }

    /// So many of the stage's patches are done.
    pub(super) fn patches(&mut self, now: Instant, done: u64) {
        let before = self.progress.patches_done;
        self.progress.patches_done = done;
        self.progress.patches_left = self.progress.patches_left.saturating_sub(done.saturating_sub(before));
        self.recent.push_back((now, done));
        while self.recent.len() > 2
            && self.recent.front().is_some_and(|(at, _)| (now - *at).as_secs_f64() > RATE_SECONDS)
        {
            self.recent.pop_front();
        }
        if let Some(&(at, then)) = self.recent.front()
            && now > at
        {
            self.progress.rate = done.saturating_sub(then) as f64 / (now - at).as_secs_f64();
        }
    }

    pub(super) fn state_record(&self) -> StateRecord {
        StateRecord {
            state: self.state.into(),
            priority: self.priority,
            reason: self.reason.clone(),
            warnings: self.warnings.clone(),
        }
    }

    pub(super) fn status(&self, reason: String, workers: usize) -> RenderStatus {
        let request = &self.record.request;
        let size = self.spec.as_ref().map(|s| s.upscales.last().map_or(s.base, |u| u.size));
        let late = (!self.late.is_empty())
            .then(|| format!("checkpoints are late: {}; the render goes on", self.late));
        let tally = self.tallied.as_ref().map(Tallied::tally);
        let checkpoint = tally.and_then(|tally| {
            let age = tally.at?.elapsed().as_secs_f64();
            Some(CheckpointStatus { age, bytes: tally.last })
        });
        RenderStatus {
            id: self.record.id.clone(),
            state: self.state,
            priority: self.priority,
            model: request.model.clone(),
            prompt: request.prompt.clone(),
            seed: request.seed,
            size: size.map(|s| (s.width, s.height)),
            progress: self.progress.clone(),
            workers: if self.state.is_final() { 0 } else { workers as u32 },
            reason,
            warnings: self.warnings.iter().cloned().chain(late).collect(),
            format: request.format.kind.extension().to_owned(),
            checkpoint,
        }
    }
}
