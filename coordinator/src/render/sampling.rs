//! The pieces that a render, a replayed trace and tests share: stages on the farm.

use std::sync::Arc;

use gigasmith_proto::domain::{
    Array, Conditioning, ConditioningId, ModelDescription, NoiseTask, PagScale, Task, TaskResult, WireDtype,
};

use super::RenderError;
use super::course::{Course, Point, PointAt};
use super::flight::{Flight, all_cores, on_a_core};
use crate::estimate::AHEAD;
use crate::farm::{Lane, TaskError, TaskOrder};
use crate::sampler::stage::{PatchInput, StageObserver, StageRun};
use crate::sampler::units::{ImageSize, LatentSize, Window};
use crate::spec::{Crops, PagSpec};

/// A lane, its model, the text and the guidance.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Where tasks go.
    pub lane: Arc<Lane>,
    /// The text conditioning, by name and, so that workers can fetch it, itself.
    pub conditioning: (ConditioningId, Arc<Conditioning>),
    /// How latents and noise predictions travel.
    pub wire: WireDtype,
    /// Classifier-free guidance scale.
    pub guidance_scale: f32,
    /// Perturbed-attention guidance.
    pub pag: Option<PagSpec>,
    /// Which crop coordinates the network is told.
    pub crops: Crops,
}

impl Sampling {
    /// What the workers hold.
    pub fn model(&self) -> &ModelDescription {
        self.lane.model()
    }

    /// The latent that stands for a picture of this size.
    pub fn latent_size(&self, size: ImageSize) -> LatentSize {
        size.latent(self.model().latent_factor)
    }

    /// Runs a stage to its end and returns its latent. Everything but reading and writing the canvas is
    /// done beside this loop, on all cores. When it is stopped, it leaves a last point.
    pub async fn run_stage(
        &self,
        stage: u32,
        size: ImageSize,
        mut run: StageRun,
        observer: &mut (dyn StageObserver + Send),
        course: &mut Course<'_>,
    ) -> Result<Array, RenderError> {
        let mut flight = Flight::new(&self.lane);
        let cores = all_cores();
        let point = |run: &StageRun| Point {
            conditioning: self.conditioning.1.clone(),
            stage,
            at: PointAt::Sampling { rules: run.rules().clone(), saved: run.saved() },
        };
        let mut nothing_new = true;
        course.journal.note(point(&run));
        while !run.is_done() {
            while flight.has_room() {
                // Results that come early wait in memory for one that is late.
                let Some(start) = run.next_patch(AHEAD as usize * flight.room()) else { break };
                let (sampling, rules, cores) = (self.clone(), run.rules().clone(), cores.clone());
                flight.send(async move {
                    let by_rules = rules.clone();
                    let input = on_a_core(&cores, move || by_rules.input(start)).await;
                    let prediction = sampling.predict(stage, size, &input).await?;
                    Ok(on_a_core(&cores, move || rules.outcome(input, prediction)).await)
                });
            }
            tokio::select! {
                biased;
                () = course.stop.cancelled() => {
                    course.journal.note(point(&run));
                    return Err(RenderError::Stopped);
                }
                outcome = flight.next() => {
                    let outcome = outcome.inspect_err(|_| course.journal.note(point(&run)))?;
                    run.complete(outcome.expect("an unfinished stage has a patch that can start"), observer);
                    nothing_new = false;
                    course.progress.patches(run.progress().0);
                }
                () = course.due(nothing_new) => {}
            }
            if !nothing_new {
                nothing_new = course.offer(|| point(&run));
            }
        }
        course.journal.note(point(&run));
        Ok(run.into_latent())
    }

    /// Predicts the guided noise of one patch.
    pub async fn predict(&self, stage: u32, size: ImageSize, input: &PatchInput) -> Result<Array, TaskError> {
        let order = TaskOrder { stage, position: input.id.0 };
        match self.lane.run(order, Task::PredictNoise(self.noise_task(size, input))).await? {
            TaskResult::Noise(noise) => Ok(noise),
            other => unreachable!("the farm checks the kind of an answer: {other:?}"),
        }
    }

    fn noise_task(&self, size: ImageSize, input: &PatchInput) -> NoiseTask {
        NoiseTask {
            time_ids: self.time_ids(size, input.window),
            latent: input.latent.clone(),
            wire: self.wire,
            timestep: input.timestep.0,
            conditioning: self.conditioning.0,
            guidance_scale: self.guidance_scale,
            pag: self.pag.as_ref().map(|p| PagScale { scale: p.scale, blocks: p.blocks.clone() }),
        }
    }

    /// `(H, W, top, left, H, W)` of a window, in image pixels.
    pub fn time_ids(&self, size: ImageSize, window: Window) -> [f32; 6] {
        let pixels = |latent: usize| latent as f32 * self.model().latent_factor as f32;
        let (height, width) = (size.height as f32, size.width as f32);
        let left = pixels(window.left);
        let top = match self.crops {
            Crops::True => pixels(window.top),
            Crops::Published => left,
        };
        [height, width, top, left, height, width]
    }
}
