//! One stage of a render: the method's rules 1 to 8 over a whole canvas, driven from outside.
//!
//! The driver takes a ready patch ([`StageRun::next_patch`]), has its noise predicted anywhere, and
//! brings the answer back ([`StageRun::complete`]), with as many patches under way as it likes. The
//! bytes that come out do not depend on the order in which answers come in.

use std::collections::HashMap;

use gigasmith_proto::domain::Array;

use super::blend::{self, Cell};
use super::canvas::Canvas;
use super::graph::{Frontier, Graph, reads_within_step};
use super::guidance::{Guide, PhaseMixer};
use super::noise::NoiseField;
use super::plan::Plan;
use super::schedule::Schedule;
use super::units::{PatchId, Step, Timestep, Window};

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
    pub latent: Array,
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

/// A stage while it runs.
#[derive(Debug)]
pub struct StageRun {
    plan: Plan,
    schedule: Schedule,
    guide: Option<Guide>,
    slider: usize,
    canvas: Canvas,
    frontier: Frontier<Array>,
    under_way: HashMap<PatchId, PatchInput>,
    mixer: PhaseMixer,
}

impl StageRun {
    /// A stage before its first patch. The plan must have one entry per step of the schedule.
    pub fn new(plan: Plan, schedule: Schedule, start: Start) -> Self {
        assert_eq!(plan.steps(), schedule.len(), "a plan has windows for every step");
        let whole = plan.geometry().canvas.rect();
        let (latent, guide, slider) = match start {
            Start::Noise(noise) => (noise.window(whole), None, 0),
            Start::Guided { guide, slider } => {
                (guide.at(schedule.at(Step(0)).alphas_cumprod, whole), Some(guide), slider)
            }
        };
        let frontier = Frontier::new(Graph::new(&plan, slider));
        let canvas = Canvas::new(latent);
        Self {
            plan,
            schedule,
            guide,
            slider,
            canvas,
            frontier,
            under_way: HashMap::new(),
            mixer: PhaseMixer::default(),
        }
    }

    /// Takes the first patch in plan order that can start now, with its input computed.
    pub fn next_patch(&mut self) -> Option<PatchInput> {
        let id = self.frontier.next_ready()?;
        let (step, window) = (self.plan.step_of(id), self.plan.window(id));
        let timestep = self.schedule.at(step).timestep;
        let input = PatchInput { id, step, timestep, window, latent: self.input(id, step, window) };
        self.under_way.insert(id, input.clone());
        Some(input)
    }

    /// Rules 2 to 4: what the network sees.
    fn input(&mut self, id: PatchId, step: Step, window: Window) -> Array {
        if !reads_within_step(self.plan.kind(), step, self.slider) {
            // Done pixels are re-noised and pending ones are as the step found them: all is the step's start.
            let mut latent = self.canvas.read_start_of(step, window);
            // In step 0 guidance and canvas are the same values: mixing would change nothing.
            if (1..self.slider).contains(&step.index()) {
                self.mix_phases(&mut latent, step, window);
            }
            return latent;
        }
        let mut latent = self.canvas.read_now(window);
        self.mix_phases(&mut latent, step, window);
        let start = self.canvas.read_start_of(step, window);
        let cells = self.cells(id, window);
        let planes =
            latent.data_mut().chunks_exact_mut(window.area()).zip(start.data().chunks_exact(window.area()));
        for (mixed, start) in planes {
            let values = mixed.iter_mut().zip(start).zip(&cells);
            values
                .filter(|(_, cell)| **cell != Cell::Pending)
                .for_each(|((mixed, start), _)| *mixed = *start);
        }
        latent
    }

    fn mix_phases(&mut self, latent: &mut Array, step: Step, window: Window) {
        if let Some(guide) = &self.guide {
            let mut guide = guide.at(self.schedule.at(step).alphas_cumprod, window);
            self.mixer.mix(latent, &mut guide);
        }
    }

    fn cells(&self, id: PatchId, window: Window) -> Vec<Cell> {
        cells(self.frontier.graph(), &self.plan, id, window)
    }

    /// Takes in the network's output for a patch (epsilon or v, shaped as its input) and commits what
    /// can be committed, telling `observer`. Panics when the patch is not under way: the caller keeps
    /// to one answer per patch.
    pub fn complete(&mut self, id: PatchId, prediction: Array, observer: &mut dyn StageObserver) {
        let Self { plan, schedule, guide, slider, canvas, frontier, under_way, .. } = self;
        assert!(under_way.contains_key(&id), "an answer belongs to a patch under way");
        frontier.complete(id, prediction, |graph, id, prediction| {
            let input = under_way.remove(&id).expect("a held result belongs to a patch under way");
            let PatchInput { step, window, .. } = input;
            let mut result = input.latent.clone();
            schedule.advance(step, result.data_mut(), prediction.data());
            if let Some(guide) = guide.as_ref().filter(|_| step.index() + 1 < *slider) {
                let next = guide.at(schedule.at(Step(step.0 + 1)).alphas_cumprod, window);
                chessboard(&mut result, &next, plan.patch(id).bit);
            }
            canvas.write_back(step, window, &cells(graph, plan, id, window), &result);
            observer.committed(&input, &prediction, canvas);
        });
    }

    /// Patches committed, and patches in all.
    pub fn progress(&self) -> (usize, usize) {
        (self.frontier.committed(), self.plan.len())
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

fn cells(graph: &Graph, plan: &Plan, id: PatchId, window: Window) -> Vec<Cell> {
    let earlier = graph.earlier(id).iter().map(|&other| plan.window(other));
    blend::cells(window, earlier, plan.geometry().zone)
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
