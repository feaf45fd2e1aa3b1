//! One render's state in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use gigasmith_proto::domain::{CheckpointStatus, Progressed, RenderStatus};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::phase::Phase;
use super::queue::Candidate;
use crate::farm::Lane;
use crate::render::{Live, StageBegin};
use crate::spec::RenderSpec;
use crate::store::{
    Claim, Indexed, RenderRecord, ResultRecord, StateRecord, StoreError, StoredState, Summary, Tallied,
    VERSION,
};

/// Over how many seconds the rate is measured.
const RATE_SECONDS: f64 = 30.0;

/// A render of this coordinator.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) summary: Summary,
    /// What was asked for: read when the render is to run.
    pub(super) record: Option<Arc<RenderRecord>>,
    pub(super) spec: Option<Arc<RenderSpec>>,
    pub(super) phase: Phase,
    /// Lives exactly while the phase holds a place.
    pub(super) session: Option<Session>,
    pub(super) priority: i32,
    pub(super) warnings: Vec<String>,
    pub(super) result: Option<ResultRecord>,
    pub(super) progress: Progressed,
    /// What keeps it waiting beside the workers, such as a store that is away.
    pub(super) trouble: Option<Trouble>,
    /// Patches of all stages; 0 until they are counted.
    pub(super) patches_all: u64,
    /// Why its checkpoints are late; empty when they are not.
    pub(super) late: String,
    /// Since when no worker can do its tasks.
    pub(super) unfit: Option<Instant>,
    /// It is read, or settled, by a task.
    pub(super) is_prepared: bool,
    /// Held while a person's change is made, and while a state is written.
    pub(super) changing: Arc<AsyncMutex<()>>,
    /// Number of its last change.
    pub(super) changed: u64,
    /// When how many patches of the stage were done.
    recent: VecDeque<(Instant, u64)>,
}

/// What lives for a render that holds a place.
#[derive(Debug)]
pub(super) struct Session {
    /// Tells it to leave, after a last checkpoint.
    pub(super) stop: CancellationToken,
    /// Ends it at once.
    pub(super) abort: AbortHandle,
    /// Told when it has ended, and what followed is decided.
    pub(super) ended: watch::Receiver<bool>,
    /// The right to write of the render, once it has it.
    pub(super) claim: Option<Claim>,
    pub(super) lane: Option<Arc<Lane>>,
    /// What its keeper has written.
    pub(super) tallied: Option<Tallied>,
    /// What can be seen of it.
    pub(super) live: Arc<Live>,
}

/// What keeps a render waiting.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: String,
    /// Whether it is the store.
    pub(super) store_away: bool,
}

impl Trouble {
    pub(super) fn of(error: &StoreError) -> Self {
        Self { reason: error.to_string(), store_away: matches!(error, StoreError::Store { .. }) }
    }
}

impl Entry {
    /// A render as a listing of the store shows it.
    pub(super) fn indexed(indexed: Indexed) -> Self {
        let Indexed { id, state, summary } = indexed;
        Self {
            id,
            summary,
            record: None,
            spec: None,
            phase: Phase::stored(state.state, &state.reason),
            session: None,
            priority: state.priority,
            warnings: state.warnings,
            result: state.result,
            progress: Progressed::default(),
            trouble: None,
            patches_all: 0,
            late: String::new(),
            unfit: None,
            is_prepared: false,
            changing: Arc::default(),
            changed: 0,
            recent: VecDeque::new(),
        }
    }

    /// Takes over what the store says of it.
    pub(super) fn adopt(&mut self, state: StateRecord) {
        self.phase = Phase::stored(state.state, &state.reason);
        (self.result, self.warnings) = (state.result, state.warnings);
        self.rest();
    }

    pub(super) fn settle(&mut self, spec: RenderSpec, warnings: Vec<String>) {
        self.summary.size = Some(spec.upscales.last().map_or(spec.base, |u| u.size));
        (self.spec, self.warnings, self.trouble) = (Some(Arc::new(spec)), warnings, None);
    }

    /// Nothing of it is under way any more.
    pub(super) fn rest(&mut self) {
        self.progress.phase.clear();
        self.progress.rate = 0.0;
        (self.session, self.trouble, self.unfit) = (None, None, None);
        self.late.clear();
        self.recent.clear();
    }

    /// Who is served before whom: less goes first.
    pub(super) fn rank(&self) -> (std::cmp::Reverse<i32>, u64, String) {
        (std::cmp::Reverse(self.priority), self.summary.order, self.id.clone())
    }

    /// As the queue looks at it; `None` for one that takes no part.
    pub(super) fn candidate(&self) -> Option<Candidate<'_>> {
        let takes_part = self.phase.has_place() || self.phase == Phase::Queued && self.spec.is_some();
        takes_part.then_some(Candidate {
            id: &self.id,
            priority: self.priority,
            order: self.summary.order,
            has_place: self.phase.has_place(),
            leaves: matches!(self.phase, Phase::Leaving(_)),
            unfit: self.unfit,
        })
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
    pub(super) fn between(&mut self, what: &str) {
        self.progress.phase = what.to_owned();
        (self.progress.tiles_done, self.progress.tiles) = (0, 0);
        self.progress.rate = 0.0;
    }

    /// So many of the phase's tiles are done.
    pub(super) fn tiles(&mut self, done: u64, all: u64) {
        (self.progress.tiles_done, self.progress.tiles) = (done, all);
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

    /// As it is to be stored.
    pub(super) fn state_record(&self) -> StateRecord {
        StateRecord {
            version: VERSION,
            state: StoredState::from(self.phase.state()),
            priority: self.priority,
            reason: self.phase.reason().to_owned(),
            warnings: self.warnings.clone(),
            summary: Some(self.summary.clone()),
            result: self.result,
            starts: Default::default(),
            tidied: false,
        }
    }

    /// As people see it.
    pub(super) fn status(&self, reason: String, workers: usize) -> RenderStatus {
        let state = self.phase.state();
        let late = (!self.late.is_empty())
            .then(|| format!("checkpoints are late: {}; the render goes on", self.late));
        let tally = self.session.as_ref().and_then(|s| s.tallied.as_ref()).map(Tallied::tally);
        let checkpoint = tally.and_then(|tally| {
            let age = tally.at?.elapsed().as_secs_f64();
            Some(CheckpointStatus { age, bytes: tally.last })
        });
        RenderStatus {
            id: self.id.clone(),
            state,
            priority: self.priority,
            model: self.summary.model.clone(),
            prompt: self.record.as_ref().map_or(&self.summary.prompt, |r| &r.request.prompt).clone(),
            seed: self.summary.seed,
            size: self.summary.size.map(|s| (s.width, s.height)),
            progress: self.progress.clone(),
            workers: if state.is_final() { 0 } else { workers as u32 },
            reason,
            warnings: self.warnings.iter().cloned().chain(late).collect(),
            format: self.summary.format.kind.extension().to_owned(),
            checkpoint,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::request::RenderRequest;

    pub(in crate::jobs) fn entry(id: &str, order: u64, priority: i32) -> Entry {
        let (picture, plan, request) = (None, None, RenderRequest::default());
        let (id, nonce) = (id.to_owned(), String::new());
        let record = RenderRecord { version: VERSION, id, nonce, order, request, priority, picture, plan };
        let summary = Summary::of(&record, None);
        let state = StateRecord::queued(priority);
        let mut entry = Entry::indexed(Indexed { id: record.id.clone(), state, summary });
        (entry.record, entry.spec) = (Some(Arc::new(record)), Some(Arc::new(crate::spec::tests::spec())));
        entry
    }

    #[test]
    fn a_store_that_is_away_is_told_from_other_trouble() {
        let away =
            || object_store::Error::NotImplemented { operation: "get".into(), implementer: "x".into() };
        let trouble = Trouble::of(&StoreError::Store { path: "renders/a".into(), source: away() });
        assert!(trouble.store_away && trouble.reason.contains("renders/a"));
        let trouble = Trouble::of(&StoreError::Scratch(std::io::Error::other("the disk is full")));
        assert!(!trouble.store_away && trouble.reason.contains("full"));
        let mut one = entry("a", 1, 0);
        one.trouble = Some(trouble);
        one.rest();
        assert!(one.trouble.is_none(), "what rests waits for nothing");
    }

    #[test]
    fn all_patches_are_those_of_every_stage() {
        let mut one = entry("a", 1, 0);
        let size = crate::sampler::units::ImageSize { width: 512, height: 512 };
        let begin = |stage, patches, done| StageBegin { stage, total: 3, size, patches, done };
        let per_stage = [30, 120, 480];
        for (stage, patches, done, left) in [(0, 30, 0, 630), (1, 120, 20, 580), (2, 480, 480, 0)] {
            one.stage(begin(stage, patches, done), &per_stage);
            assert_eq!((one.patches_all, one.progress.patches_left), (630, left));
        }
    }
}
