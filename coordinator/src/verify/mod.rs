//! Replaying a recorded trace: is this device, this build, this model a match for the publication?
//!
//! Every part of a trace is computed from the trace's own inputs, through the farm, graph and messages
//! that a render uses, and compared with what was recorded. Where a trace lacks an input, the value
//! computed here takes its place; where it lacks an output, there is nothing to compare and the value
//! is only kept for the dump.

mod report;
mod trace;

use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning, ModelDescription, WireDtype};
use tokio_util::sync::CancellationToken;

pub use report::{Comparison, Report, Tolerance};
pub use trace::{Trace, TraceError};

use crate::farm::Lane;
use crate::raster::Source;
use crate::render::{
    Course, Enlarged, Progress, RenderError, Sampling, StageBegin, encode_text, mean_and_std, sampled_latent,
};
use crate::sampler::canvas::Canvas;
use crate::sampler::guidance::Guide;
use crate::sampler::noise::NoiseField;
use crate::sampler::plan::Plan;
use crate::sampler::resize::Picture;
use crate::sampler::schedule::Schedule;
use crate::sampler::stage::{PatchInput, StageObserver, StageRun, Start};
use crate::sampler::tiles::VaeMode;
use crate::sampler::tiles::join::to_picture;
use crate::sampler::units::{ImageSize, LatentSize, Step};
use crate::spec::{Crops, PagSpec};

/// Why a trace could not be replayed to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The trace is not readable, or not whole.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// It is of another model.
    #[error(
        "the trace was recorded with another model: its text has {recorded} numbers for each token, this model's \
         {ours}; pass --model with the one it was recorded with"
    )]
    OtherModel {
        /// Width of the recorded text.
        recorded: usize,
        /// Width of the model's.
        ours: usize,
    },
    /// A task failed.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// Replays a trace on a farm.
pub async fn verify(
    lane: Arc<Lane>,
    trace: &Trace,
    progress: &mut dyn Progress,
) -> Result<Report, VerifyError> {
    let model = lane.model().clone();
    trace.check_model(&model)?;
    let mut replay = Replay { lane, trace, model, report: Report::default() };
    progress.phase("schedule and text");
    let schedule = replay.schedule()?;
    let conditioning = replay.text().await?;
    let sampling = replay.sampling(conditioning);
    let base = replay.base(&sampling, &schedule, progress).await?;
    progress.phase("decoding the base");
    let picture = replay.decode_base(&sampling, base.as_ref()).await?;
    progress.phase("resizing and encoding");
    let moments = replay.encode(&sampling, picture).await?;
    let guide = replay.guide(moments);
    let last = replay.patches(&sampling, schedule, guide, progress).await?;
    progress.phase("decoding");
    replay.decode_final(&sampling, last.as_ref()).await?;
    Ok(replay.report)
}

struct Replay<'a> {
    lane: Arc<Lane>,
    trace: &'a Trace,
    model: Arc<ModelDescription>,
    report: Report,
}

impl Replay<'_> {
    /// Compares a value with the trace's, where it has one, and keeps it.
    fn compare(&mut self, part: &'static str, name: &str, value: Array, tolerance: Tolerance) {
        self.report.add(part, name, value, self.trace.tensor(name), tolerance);
    }

    fn compare_picture(&mut self, part: &'static str, name: &str, picture: &Picture, tolerance: Tolerance) {
        let recorded = self.trace.picture(name).map(levels);
        self.report.add_plain(part, name, levels(picture), recorded.as_ref(), tolerance);
    }

    /// The trace's tensor without its batch axis, or else what was computed.
    fn input(&self, name: &str, computed: Option<&Array>) -> Option<Array> {
        self.trace.tensor(name).map(|t| t.array.clone()).or_else(|| computed.cloned())
    }

    fn schedule(&mut self) -> Result<Schedule, VerifyError> {
        let case = self.trace.case();
        let schedule = Schedule::new(&self.model.schedule, case.steps).map_err(RenderError::from)?;
        let steps = || (0..case.steps).map(|s| schedule.at(Step(s)));
        let row = |values: Vec<f32>| Array::new([values.len()], values).expect("one axis");
        let ours = row(steps().map(|s| s.timestep.0 as f32).collect());
        let theirs = row(case.timesteps.iter().map(|&t| t as f32).collect());
        self.report.add_plain("schedule", "timesteps", ours, Some(&theirs), Tolerance::EXACT);
        let ours = row(steps().map(|s| s.alphas_cumprod).collect());
        let theirs = row(case.alphas_cumprod.iter().map(|&a| a as f32).collect());
        self.report.add_plain("schedule", "alphas_cumprod", ours, Some(&theirs), Tolerance::EMBEDDING);
        Ok(schedule)
    }

    async fn text(&mut self) -> Result<Conditioning, VerifyError> {
        let case = self.trace.case();
        let encode = async |prompt: &str| encode_text(&self.lane, prompt).await.map_err(RenderError::from);
        let ours = encode(&case.prompt).await?;
        let recorded = self.trace.tensor("prompt_embeds").and_then(|t| t.array.shape().last().copied());
        if let (Some(recorded), Some(&width)) = (recorded, ours.states.shape().last())
            && recorded != width
        {
            return Err(VerifyError::OtherModel { recorded, ours: width });
        }
        let negative = match &case.negative_prompt {
            _ if case.guidance_scale <= 1.0 => None,
            None if self.model.force_zeros_for_empty_prompt => {
                Some((Array::zeros(ours.states.shape()), Array::zeros(ours.pooled.shape())))
            }
            prompt => {
                let text = encode(prompt.as_deref().unwrap_or_default()).await?;
                Some((text.states, text.pooled))
            }
        };
        let mut checked = |name: &str, value: Array| {
            let input = self.input(name, Some(&value)).expect("a value was computed");
            self.compare("text", name, value, Tolerance::EMBEDDING);
            input
        };
        Ok(Conditioning {
            prompt: checked("prompt_embeds", ours.states),
            pooled: checked("pooled_prompt_embeds", ours.pooled),
            negative: negative.map(|(states, pooled)| {
                (checked("negative_prompt_embeds", states), checked("negative_pooled_prompt_embeds", pooled))
            }),
        })
    }

    fn sampling(&self, conditioning: Conditioning) -> Sampling {
        let case = self.trace.case();
        let pag = PagSpec { scale: case.pag_scale, blocks: case.pag_applied_layers.clone() };
        Sampling {
            lane: self.lane.clone(),
            conditioning: self.lane.shelve(conditioning),
            wire: WireDtype::F32,
            guidance_scale: case.guidance_scale,
            pag: (case.pag_scale > 0.0).then_some(pag),
            crops: Crops::Published,
        }
    }

    /// The base stage from the trace's starting noise.
    async fn base(
        &mut self,
        sampling: &Sampling,
        schedule: &Schedule,
        progress: &mut dyn Progress,
    ) -> Result<Option<Array>, VerifyError> {
        let Some(noise) = self.input("base_noise", None) else {
            self.report.skip("base", "the trace has no `base_noise`");
            return Ok(None);
        };
        let size = self.trace.case().base_size();
        let plan = Plan::whole(sampling.latent_size(size), schedule.len());
        progress.stage(StageBegin { stage: 0, total: 2, size, patches: plan.len(), done: 0 });
        let run = StageRun::new(plan, schedule.clone(), Start::Noise(NoiseField::Stored(noise)));
        let latent = sampling
            .run_stage(0, size, run, &mut (), &mut Course::new(progress, &mut (), CancellationToken::new()))
            .await?;
        self.compare("base", "base_latents", latent.clone(), Tolerance::LATENT);
        Ok(Some(latent))
    }

    /// Decodes the base at once and in tiles; returns the tiled one as a picture.
    async fn decode_base(
        &mut self,
        sampling: &Sampling,
        computed: Option<&Array>,
    ) -> Result<Option<Picture>, VerifyError> {
        let Some(latent) = self.input("base_latents", computed) else {
            self.report.skip("base decode", "the trace has neither `base_latents` nor `base_noise`");
            return Ok(None);
        };
        let whole = sampling.decode(0, VaeMode::Whole, &latent).await?;
        self.compare("base decode", "base_image_whole", whole, Tolerance::IMAGE);
        let tiled = sampling.decode(0, VaeMode::Tiled, &latent).await?;
        let picture = to_picture(&tiled);
        self.compare_picture("base decode", "base.png", &picture, Tolerance::LEVEL);
        self.compare("base decode", "base_image_tiled", tiled, Tolerance::IMAGE);
        Ok(Some(picture))
    }

    /// Resizes `base.png`, and encodes `upsampled.png`: mean and standard deviation.
    async fn encode(
        &mut self,
        sampling: &Sampling,
        computed: Option<Picture>,
    ) -> Result<Option<(Array, Array)>, VerifyError> {
        let base = self.trace.picture("base.png").cloned().or(computed);
        let resized = base.map(|p| p.resized(self.trace.case().size()));
        if let Some(resized) = &resized {
            self.compare_picture("resize", "upsampled.png", resized, Tolerance::EXACT);
        }
        let Some(picture) = self.trace.picture("upsampled.png").cloned().or(resized) else {
            self.report.skip("encode", "there is no `upsampled.png`, no `base.png`, and no base to decode");
            return Ok(None);
        };
        if picture.size() != self.trace.case().size() {
            let (found, wanted) = (picture.size(), self.trace.case().size());
            return Err(TraceError::Case(format!("upsampled.png is {found}, the case {wanted}")).into());
        }
        let recorded =
            ["base.png", "upsampled.png"].into_iter().any(|name| self.trace.picture(name).is_some());
        let tolerance = if recorded { Tolerance::MOMENT } else { Tolerance::LEVELS };
        let enlarged = Enlarged::new(Source::Memory(Arc::new(picture)), self.trace.case().size());
        let (mean, std) = mean_and_std(&sampling.encode(1, VaeMode::Tiled, enlarged).await?);
        self.compare("encode", "encoded_mean", mean.clone(), tolerance);
        self.compare("encode", "encoded_std", std.clone(), tolerance);
        Ok(Some((mean, std)))
    }

    fn guide(&mut self, moments: Option<(Array, Array)>) -> Option<Array> {
        let (mean, std) = moments.as_ref().map_or((None, None), |(m, s)| (Some(m), Some(s)));
        let mean = self.input("encoded_mean", mean);
        let std = self.input("encoded_std", std);
        let (Some(mean), Some(std), Some(noise)) = (mean, std, self.input("encode_noise", None)) else {
            self.report.skip("guide", "the trace has no `encode_noise`, or nothing to encode");
            return None;
        };
        let guide = sampled_latent(&mean, &std, &noise, self.model.scaling_factor);
        self.compare("guide", "guide", guide.clone(), Tolerance::EMBEDDING);
        Some(guide)
    }

    /// The patch loop with the recorded plan, from the trace's guide and noise.
    async fn patches(
        &mut self,
        sampling: &Sampling,
        schedule: Schedule,
        guide: Option<Array>,
        progress: &mut dyn Progress,
    ) -> Result<Option<Array>, VerifyError> {
        let case = self.trace.case();
        let size = case.size();
        let slider = case.slider as usize;
        let guide = self.input("guide", guide.as_ref());
        let noise = self.input("guidance_noise", None).map(NoiseField::Stored);
        let start = match (guide, noise) {
            (_, Some(noise)) if slider == 0 => Start::Noise(noise),
            (Some(guide), Some(noise)) => Start::Guided { guide: Guide::new(guide, noise), slider },
            _ => {
                self.report.skip(
                    "patches",
                    "the trace has no `guidance_noise`, or no `guide` and nothing to make it from",
                );
                return Ok(None);
            }
        };
        let plan = self.trace.plan(sampling.latent_size(size))?;
        progress.stage(StageBegin { stage: 1, total: 2, size, patches: plan.len(), done: 0 });
        let channels = self.model.latent_channels as usize;
        let mut recorder = Recorder::new(channels, sampling.latent_size(size), plan.steps());
        let run = StageRun::new(plan, schedule, start);
        let last = sampling
            .run_stage(
                1,
                size,
                run,
                &mut recorder,
                &mut Course::new(progress, &mut (), CancellationToken::new()),
            )
            .await?;
        let rows = 1 + usize::from(case.guidance_scale > 1.0) + usize::from(case.pag_scale > 0.0);
        recorder.patches.sort_by_key(|(input, _)| input.id);
        for (input, prediction) in recorder.patches {
            let name = |what: &str| format!("patch{:05}.{what}", input.id.0);
            let ids = sampling.time_ids(size, input.window).repeat(rows);
            let ids = Array::new([rows, 6], ids).expect("six values a row");
            self.compare("time ids", &name("time_ids"), ids, Tolerance::EXACT);
            // From the recorded input where there is one, so that a deviation shows where it arises.
            let recorded = self.trace.tensor(&name("input")).map(|t| t.array.clone());
            let prediction = match recorded.filter(|r| r.shape() == input.latent.shape()) {
                Some(latent) => {
                    let input = PatchInput { latent: Arc::new(latent), ..input.clone() };
                    sampling.predict(1, size, &input).await.map_err(RenderError::from)?
                }
                None => prediction,
            };
            let latent = Arc::unwrap_or_clone(input.latent);
            self.compare("patch input", &name("input"), latent, Tolerance::LATENT);
            self.compare("noise prediction", &name("noise_pred"), prediction, Tolerance::LATENT);
        }
        for (step, latent) in recorder.after_step.into_iter().enumerate() {
            self.compare("latents", &format!("latents_after_step{step:03}"), latent, Tolerance::LATENT);
        }
        self.compare("latents", "final_latents", last.clone(), Tolerance::LATENT);
        Ok(Some(last))
    }

    async fn decode_final(
        &mut self,
        sampling: &Sampling,
        computed: Option<&Array>,
    ) -> Result<(), VerifyError> {
        let Some(latent) = self.input("final_latents", computed) else {
            self.report.skip("final decode", "there are no final latents");
            return Ok(());
        };
        let image = sampling.decode(1, VaeMode::Tiled, &latent).await?;
        self.compare_picture("final decode", "image.png", &to_picture(&image), Tolerance::LEVEL);
        self.compare("final decode", "image_tiled", image, Tolerance::IMAGE);
        Ok(())
    }
}

/// The pixels of a picture as (3, height, width) levels 0 to 255.
fn levels(picture: &Picture) -> Array {
    let ImageSize { width, height } = picture.size();
    let (height, width) = (height as usize, width as usize);
    let plane = |channel: usize| picture.rgb().iter().skip(channel).step_by(3).map(|&v| f32::from(v));
    Array::new([3, height, width], (0..3).flat_map(plane).collect()).expect("three planes")
}

/// Keeps what entered and left the network, and the canvas as every step left it.
struct Recorder {
    patches: Vec<(PatchInput, Array)>,
    after_step: Vec<Array>,
    size: LatentSize,
}

impl Recorder {
    fn new(channels: usize, size: LatentSize, steps: usize) -> Self {
        let after_step = vec![Array::zeros([channels, size.height, size.width]); steps];
        Self { patches: Vec::new(), after_step, size }
    }
}

impl StageObserver for Recorder {
    fn committed(&mut self, input: &PatchInput, prediction: &Array, canvas: &Canvas) {
        let window = input.window;
        let now = canvas.read_now(window);
        let planes = self.after_step[input.step.index()].data_mut().chunks_exact_mut(self.size.area());
        for (plane, own) in planes.zip(now.data().chunks_exact(window.area())) {
            for (row, values) in own.chunks_exact(window.width).enumerate() {
                plane[(window.top + row) * self.size.width + window.left..][..window.width]
                    .copy_from_slice(values);
            }
        }
        self.patches.push((input.clone(), prediction.clone()));
    }
}
