//! One stage of a render: the method's rules 1 to 8 over a whole canvas, driven from outside.
//!
//! The driver takes a ready patch ([`StageRun::next_patch`]), turns it into what the network sees
//! ([`StageRules::input`]), has its noise predicted anywhere, turns the answer into the patch's outcome
//! ([`StageRules::outcome`]), and brings that back ([`StageRun::complete`]), with as many patches under way
//! as it likes. The two in the middle are where the arithmetic is: they need no canvas, so that they can
//! run on any thread. The bytes that come out do not depend on the order in which outcomes come in.
//!
//! A stage can be left at any moment ([`StageRun::saved`]) and taken up elsewhere ([`StageRun::restore`]):
//! only what is not committed is computed again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use gigasmith_types::Array;

use super::blend::Cell;
use super::blocks::{BlockGrid, OpenSteps};
use super::canvas::{Canvas, SavedBlock};
use super::graph::{Frontier, Graph, Unfounded, reads_within_step};
use super::guidance::{Guide, PhaseMixer};
use super::noise::NoiseField;
use super::patch_set::PatchSet;
use super::plan::Plan;
use super::schedule::Schedule;
use super::spare::Spare;
use super::units::{LatentSize, PatchId, Step, Timestep, Window};

/// What a stage starts from.
#[derive(Debug)]
pub enum Start {
    /// Pure noise, unguided: the base stage, or slider 0.
    Noise(NoiseField),
    /// Guidance latents of step 0, and guidance for the first `slider` steps (at least 1).
    Guided {
        /// What guides.
        guide: Guide,
        /// Number of guided steps.
        slider: usize,
    },
}

/// Where a stage stands: enough to go on elsewhere. Blocks are shared with the canvas, not copied.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedStage {
    /// How the canvas is cut.
    pub grid: BlockGrid,
    /// Patches committed.
    pub committed: PatchSet,
    /// Blocks that a committed patch has touched, in ascending order; the others are as the stage began.
    pub blocks: Vec<SavedBlock>,
}

/// A saved stage that does not fit its plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Committed patches that no run can have left.
    #[error(transparent)]
    Unfounded(#[from] Unfounded),
    /// Blocks for another canvas.
    #[error("its blocks are not those of a {}x{} canvas", .0.width, .0.height)]
    Canvas(LatentSize),
    /// A block that is missing, one too many, or of another shape.
    #[error("block {0} is missing, or not what the committed patches make of it")]
    Block(usize),
}

/// A patch that can start, with everything it reads of the canvas.
#[derive(Debug)]
pub struct PatchStart {
    id: PatchId,
    /// The window as the step began.
    start: Array,
    /// The window as it stands now, where the patch reads what its own step has written.
    now: Option<Array>,
}

/// A patch that is ready for the network.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchInput {
    /// Which patch.
    pub id: PatchId,
    /// Its step.
    pub step: Step,
    /// t of the step.
    pub timestep: Timestep,
    /// Where it lies on the canvas.
    pub window: Window,
    /// What the network sees: (channels, window height, window width).
    pub latent: Arc<Array>,
}

/// What a patch will write, before it is committed.
#[derive(Debug)]
pub struct PatchOutcome {
    input: PatchInput,
    prediction: Array,
    values: Array,
    cells: Vec<Cell>,
}

/// Told of every patch as it is committed.
pub trait StageObserver {
    /// `input` entered the network, `prediction` came out, `canvas` is the window as it stands now.
    /// Every pixel of the window has left the patch's step behind, and no later step has touched it.
    fn committed(&mut self, input: &PatchInput, prediction: &Array, canvas: &Canvas);
}

/// An observer that looks away.
impl StageObserver for () {
    fn committed(&mut self, _: &PatchInput, _: &Array, _: &Canvas) {}
}

/// What all patches of a stage share and none changes.
#[derive(Debug)]
pub struct StageRules {
    plan: Plan,
    schedule: Schedule,
    guide: Option<Guide>,
    slider: usize,
    graph: Arc<Graph>,
    channels: usize,
    /// Mixers that no thread is using.
    mixers: Mutex<Vec<PhaseMixer>>,
    spare: Spare,
}

impl StageRules {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Channels of the canvas.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// What guides, if anything does.
    pub fn guide(&self) -> Option<&Guide> {
        self.guide.as_ref()
    }

    /// Rules 3 and 4: what the network sees of a patch.
    pub fn input(&self, start: PatchStart) -> PatchInput {
        let PatchStart { id, start, now } = start;
        let (step, window) = (self.plan.step_of(id), self.plan.window(id));
        let latent = match now {
            Some(mut now) => {
                self.mix_phases(&mut now, step, window);
                self.renoise(&mut now, &start, id, window);
                self.spare.give(start);
                now
            }
            None => {
                // Done pixels are re-noised and pending ones are as the step found them: all is the step's start.
                let mut latent = start;
                // In step 0 guidance and canvas are the same values: mixing would change nothing.
                if (1..self.slider).contains(&step.index()) {
                    self.mix_phases(&mut latent, step, window);
                }
                latent
            }
        };
        let timestep = self.schedule.at(step).timestep;
        PatchInput { id, step, timestep, window, latent: Arc::new(latent) }
    }

    /// Pixels that are no longer pending show what they were when the step began.
    fn renoise(&self, mixed: &mut Array, start: &Array, id: PatchId, window: Window) {
        let cells = self.cells(id, window);
        let planes = mixed.data_mut().chunks_exact_mut(window.area());
        for (mixed, start) in planes.zip(start.data().chunks_exact(window.area())) {
            let values = mixed.iter_mut().zip(start).zip(&cells);
            values
                .filter(|(_, cell)| **cell != Cell::Pending)
                .for_each(|((mixed, start), _)| *mixed = *start);
        }
        self.spare.give_cells(cells);
    }

    fn mix_phases(&self, latent: &mut Array, step: Step, window: Window) {
        let Some(guide) = &self.guide else { return };
        let mut guide = guide.at_in(self.schedule.at(step).alphas_cumprod, window, &self.spare);
        let mixers = || self.mixers.lock().expect("no holder panics");
        let mut mixer = mixers().pop().unwrap_or_default();
        mixer.mix(latent, &mut guide);
        mixers().push(mixer);
        self.spare.give(guide);
    }

    fn cells(&self, id: PatchId, window: Window) -> Vec<Cell> {
        let earlier = self.graph.earlier(id).iter().map(|&other| self.plan.window(other));
        let mut cells = self.spare.cells();
        let zone = self.plan.geometry().zone;
        self.spare.with_marks(|marks| marks.cells(window, earlier, zone, &mut cells));
        cells
    }

    /// Rules 6 and 7: what becomes of the network's output for a patch (epsilon or v, shaped as its input).
    pub fn outcome(&self, input: PatchInput, prediction: Array) -> PatchOutcome {
        let PatchInput { id, step, window, .. } = input;
        let mut values = self.spare.values();
        values.extend_from_slice(input.latent.data());
        let shape = input.latent.shape();
        let mut values = Array::new(shape, values).expect("as many as the latent has");
        self.schedule.advance(step, values.data_mut(), prediction.data());
        if let Some(guide) = self.guide.as_ref().filter(|_| step.index() + 1 < self.slider) {
            let next = guide.at_in(self.schedule.at(Step(step.0 + 1)).alphas_cumprod, window, &self.spare);
            chessboard(&mut values, &next, self.plan.patch(id).bit);
            self.spare.give(next);
        }
        PatchOutcome { cells: self.cells(id, window), input, prediction, values }
    }
}

/// A stage while it runs.
#[derive(Debug)]
pub struct StageRun {
    rules: Arc<StageRules>,
    grid: BlockGrid,
    canvas: Canvas,
    frontier: Frontier<PatchOutcome>,
    committed: PatchSet,
    open: OpenSteps,
}

impl StageRun {
    /// A stage before its first patch. The plan must have one entry per step of the schedule.
    pub fn new(plan: Plan, schedule: Schedule, start: Start) -> Self {
        let saved =
            SavedStage { grid: BlockGrid::of(&plan), committed: PatchSet::default(), blocks: Vec::new() };
        Self::restore(plan, schedule, start, saved).expect("a stage without patches fits any plan")
    }

    /// A stage where another run with the same plan, schedule and start has left it.
    pub fn restore(
        plan: Plan,
        schedule: Schedule,
        start: Start,
        saved: SavedStage,
    ) -> Result<Self, RestoreError> {
        assert_eq!(plan.steps(), schedule.len(), "a plan has windows for every step");
        let SavedStage { grid, committed, blocks } = saved;
        if grid.size() != plan.geometry().canvas {
            return Err(RestoreError::Canvas(plan.geometry().canvas));
        }
        let first = schedule.at(Step(0)).alphas_cumprod;
        let (slider, noise, guide) = match start {
            Start::Noise(noise) => (0, Some(noise), None),
            Start::Guided { guide, slider } => (slider, None, Some(guide)),
        };
        let graph = Arc::new(Graph::new(&plan, slider));
        let frontier = Frontier::restore(graph.clone(), &committed)?;
        let mut canvas = Canvas::new(grid, |window| match (&noise, &guide) {
            (Some(noise), _) => noise.window(window),
            (None, guide) => guide.as_ref().expect("a stage starts from one of them").at(first, window),
        });
        let (mut open, mut touched) = (OpenSteps::new(&plan, grid), BTreeMap::new());
        for id in committed.iter() {
            let (step, window) = (plan.step_of(id), plan.window(id));
            canvas.mark_done(step, window);
            grid.overlapping(window).for_each(|block| {
                touched.insert(block, true);
            });
            open.commit(step, window, |block| {
                touched.insert(block, false);
            });
        }
        if blocks.len() != touched.len() {
            return Err(RestoreError::Block(blocks.len().min(touched.len())));
        }
        for (mut block, (index, is_open)) in blocks.into_iter().zip(touched) {
            // Where no step is open nobody reads it.
            block.before = block.before.filter(|_| is_open);
            if block.index != index || block.before.is_some() != is_open || !canvas.put(block) {
                return Err(RestoreError::Block(index));
            }
        }
        let (channels, mixers) = (canvas.channels(), Mutex::default());
        let spare = Spare::default();
        let rules = Arc::new(StageRules { plan, schedule, guide, slider, graph, channels, mixers, spare });
        Ok(Self { rules, grid, canvas, frontier, committed, open })
    }

    /// Where the stage stands. Costs no copy; the blocks never change any more.
    pub fn saved(&self) -> SavedStage {
        SavedStage { grid: self.grid, committed: self.committed.clone(), blocks: self.canvas.saved() }
    }

    /// The canvas as it stands.
    pub fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// What turns starts into inputs and predictions into outcomes.
    pub fn rules(&self) -> &Arc<StageRules> {
        &self.rules
    }

    /// Takes the first patch in plan order that can start now (rule 2). While `most` patches are taken and
    /// not committed, only the one that the others wait for: a driver that completes what it takes comes to
    /// the end with any bound.
    pub fn next_patch(&mut self, most: usize) -> Option<PatchStart> {
        let id = self.frontier.next_ready(most)?;
        let plan = &self.rules.plan;
        let (step, window) = (plan.step_of(id), plan.window(id));
        let reads_step = reads_within_step(plan.kind(), step, self.rules.slider);
        let spare = &self.rules.spare;
        let start = self.canvas.read_start_in(step, window, spare.values());
        let now = reads_step.then(|| self.canvas.read_now_in(window, spare.values()));
        Some(PatchStart { id, start, now })
    }

    /// Takes in a patch's outcome and commits what can be committed (rule 8), telling `observer`. Panics
    /// when the patch is not under way: the caller keeps to one outcome per patch.
    pub fn complete(&mut self, outcome: PatchOutcome, observer: &mut dyn StageObserver) {
        let Self { rules, canvas, frontier, committed, open, .. } = self;
        frontier.complete(outcome.input.id, outcome, |id, outcome| {
            let PatchOutcome { input, prediction, values, cells } = outcome;
            canvas.write_back(input.step, input.window, &cells, &values);
            committed.insert(id);
            open.commit(input.step, input.window, |block| canvas.forget_before(block));
            observer.committed(&input, &prediction, canvas);
            rules.spare.give(values);
            rules.spare.give(prediction);
            rules.spare.give_cells(cells);
            if let Ok(latent) = Arc::try_unwrap(input.latent) {
                rules.spare.give(latent);
            }
        });
    }

    /// Patches committed, and patches in all.
    pub fn progress(&self) -> (usize, usize) {
        (self.frontier.committed(), self.rules.plan.len())
    }

    /// Whether every patch is committed.
    pub fn is_done(&self) -> bool {
        self.frontier.is_done()
    }

    /// The denoised latent.
    pub fn into_latent(self) -> Array {
        self.canvas.into_latent()
    }
}

/// Rule 7: cells with `(row + column + bit) % 2 == 0`, counted within the window, take the guidance.
fn chessboard(result: &mut Array, guide: &Array, bit: bool) {
    let (_, height, width) = result.chw().expect("a latent has three axes");
    let rows = result.data_mut().chunks_exact_mut(width).zip(guide.data().chunks_exact(width));
    for (row, (values, guide)) in rows.enumerate() {
        let first = (row % height + usize::from(bit)) % 2;
        values.iter_mut().zip(guide).skip(first).step_by(2).for_each(|(v, g)| *v = *g);
    }
}

#[cfg(test)]
mod tests;
