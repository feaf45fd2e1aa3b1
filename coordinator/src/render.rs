//! One render, from spec to picture: the paper's method in the order the paper tells it.
//!
//! Every network call is a task of the farm; everything between the calls is the sampler's. This file
//! only says what follows what. A render can be left at any moment and taken up elsewhere: along the way it
//! gives its [`Journal`] the points it could go on from.

mod course;
mod flight;
mod live;
mod sampling;
mod tiles;
mod vae;

use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning, Task, TaskResult, TextEncoding};
use tokio_util::sync::CancellationToken;

pub use course::{Course, Journal, Point, PointAt, Progress, Resumed, ResumedAt, SavedDecoding, StageBegin};
pub use live::{Cells, Glance, Live, Shown};
pub use sampling::Sampling;
pub use tiles::Enlarged;
pub use vae::{mean_and_std, sampled_latent};

use crate::farm::{Lane, TaskError, TaskOrder};
use crate::raster::{Raster, Source};
use crate::sampler::blocks::BlockGrid;
use crate::sampler::guidance::Guide;
use crate::sampler::noise::NoiseField;
use crate::sampler::philox::Purpose;
use crate::sampler::plan::Plan;
use crate::sampler::resize::Picture;
use crate::sampler::schedule::{Schedule, ScheduleError};
use crate::sampler::stage::{RestoreError, StageRun, Start};
use crate::sampler::torch_rng;
use crate::sampler::units::ImageSize;
use crate::spec::{RenderSpec, Rng};
use crate::store::BlobId;
use flight::at_leisure;
use live::Painter;

/// Why a render ended without a picture.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A task could not be done.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The steps do not fit the model's schedule.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// It was left at a point that does not fit its plan.
    #[error("the checkpoint does not fit the render: {0}")]
    Restore(#[from] RestoreError),
    /// Its plan is not the one it was begun with.
    #[error("the plan is not the one that the render was begun with: go on with the gigasmith that began it")]
    Plan,
    /// The scratch folder failed.
    #[error("the picture under way cannot be kept: {0}; --scratch names another folder")]
    Scratch(#[from] std::io::Error),
    /// It was stopped, after giving its last point to the journal.
    #[error("stopped")]
    Stopped,
}

/// What a render takes besides its spec.
#[derive(Debug, Default)]
pub struct RenderInputs {
    /// Takes the place of the base stage.
    pub picture: Option<Picture>,
    /// Plans of the upscale stages, in order, instead of drawn ones.
    pub plans: Option<Vec<Plan>>,
}

/// What a render makes.
#[derive(Debug)]
pub struct Rendered {
    /// The picture.
    pub picture: Arc<Raster>,
    /// The last stage's latent, (channels, height, width); `None` when no stage ran.
    pub latent: Option<Arc<Array>>,
    /// The plans of the upscale stages.
    pub plans: Vec<Plan>,
}

/// Renders a picture. `inputs` must fit the spec: a picture exactly when the spec has an image hash.
pub async fn render(
    lane: Arc<Lane>,
    spec: &RenderSpec,
    inputs: RenderInputs,
    progress: &mut dyn Progress,
) -> Result<Rendered, RenderError> {
    let mut nothing = ();
    let mut course = Course::new(progress, &mut nothing, CancellationToken::new());
    render_from(lane, spec, inputs, Resumed::default(), &mut course).await
}

/// Renders a picture from where it was left, which must be a point of the same spec. Inputs that are needed
/// only before that point may be missing.
pub async fn render_from(
    lane: Arc<Lane>,
    spec: &RenderSpec,
    inputs: RenderInputs,
    resumed: Resumed,
    course: &mut Course<'_>,
) -> Result<Rendered, RenderError> {
    let stop = course.stop.clone();
    tokio::select! {
        // The render first: where it can leave a last point, it does.
        biased;
        done = run(lane, spec, inputs, resumed, course) => done,
        () = stop.cancelled() => Err(RenderError::Stopped),
    }
}

async fn run(
    lane: Arc<Lane>,
    spec: &RenderSpec,
    inputs: RenderInputs,
    resumed: Resumed,
    course: &mut Course<'_>,
) -> Result<Rendered, RenderError> {
    let schedule = Schedule::new(&lane.model().schedule, spec.steps)?;
    let conditioning = match resumed.conditioning {
        Some(conditioning) => conditioning,
        None => encode_prompts(&lane, spec, course.progress).await?,
    };
    let sampling = Sampling {
        conditioning: lane.shelve(conditioning),
        lane,
        wire: spec.wire,
        guidance_scale: spec.guidance_scale,
        pag: spec.pag.clone(),
        crops: spec.crops,
    };
    let render = Render { sampling, spec, schedule };
    let mut given = inputs.plans.map(Vec::into_iter);
    let mut plans = Vec::new();
    for stage in 1..=spec.upscales.len() as u32 {
        let plan = given.as_mut().and_then(Iterator::next);
        plans.push(plan.unwrap_or_else(|| at_leisure(|| render.draw_plan(stage))));
    }
    let last = spec.upscales.len() as u32;
    let mut picture = inputs.picture;
    let (mut latent, mut decoded) = (None, SavedDecoding::default());
    // The first stage that is not finished, and where it was left.
    let (mut stage, mut left) = (u32::from(picture.is_some()), None);
    match resumed.at {
        None => {}
        Some(ResumedAt::Stage { stage: at, plan, guide, saved }) => {
            (stage, left) = (at, Some((plan, guide, saved)));
        }
        Some(ResumedAt::Finished { stage: at, latent: finished, decoded: tiles }) => {
            let total = spec.upscales.len() as u32 + 1;
            let begin = StageBegin { stage: at, total, size: render.size(at), patches: 0, done: 0 };
            course.progress.taken_up(begin);
            (stage, latent, decoded) = (at + 1, Some(Arc::new(finished)), tiles);
        }
    }
    while stage <= last {
        let plan = match stage.checked_sub(1) {
            None => at_leisure(|| render.draw_plan(0)),
            Some(upscale) => plans[upscale as usize].clone(),
        };
        let run = match left.take() {
            Some((before, guide, saved)) => {
                if before != BlobId::from(plan.hash()).to_string() {
                    return Err(RenderError::Plan);
                }
                let start = render.start(stage, guide.map(|g| render.guide(stage, g)));
                let schedule = render.schedule.clone();
                at_leisure(|| StageRun::restore(plan, schedule, start, saved))?
            }
            None => {
                // What the stage before made; nobody after this one looks at it.
                let made = (picture.take(), latent.take());
                let guide = match render.slider(stage) {
                    0 => None,
                    _ => {
                        let picture = match made {
                            (Some(picture), _) => Source::Memory(Arc::new(picture)),
                            (None, latent) => {
                                let latent = latent.expect("a guided stage follows another, or a picture");
                                let (grid, decoded) =
                                    (render.grid(stage - 1, &plans), std::mem::take(&mut decoded));
                                Source::Disk(
                                    render.to_picture(stage - 1, (&latent, grid), decoded, course).await?,
                                )
                            }
                        };
                        Some(render.guide_from(stage, picture, course).await?)
                    }
                };
                let start = render.start(stage, guide);
                at_leisure(|| StageRun::new(plan, render.schedule.clone(), start))
            }
        };
        latent = Some(Arc::new(render.run_stage(stage, run, course).await?));
        stage += 1;
    }
    let picture = match (&latent, picture) {
        (Some(latent), _) => {
            render.to_picture(last, (latent, render.grid(last, &plans)), decoded, course).await?
        }
        (None, picture) => {
            let picture = picture.expect("without a stage the picture is given");
            Arc::new(at_leisure(|| Raster::of(&picture, &course.scratch))?)
        }
    };
    Ok(Rendered { picture, latent, plans })
}

async fn encode_prompts(
    lane: &Lane,
    spec: &RenderSpec,
    progress: &mut dyn Progress,
) -> Result<Conditioning, RenderError> {
    progress.phase("encoding text");
    let needs_negative = spec.guidance_scale > 1.0;
    let negative = spec.negative_prompt.as_deref().filter(|_| needs_negative);
    let mut encode = async |which: &str, prompt: &str| -> Result<(Array, Array), RenderError> {
        let text = encode_text(lane, prompt).await?;
        if text.dropped_tokens > 0 {
            let dropped = text.dropped_tokens;
            progress.warn(&format!("the {which} is longer than 77 tokens: its last {dropped} are left out"));
        }
        Ok((text.states, text.pooled))
    };
    let (prompt, pooled) = encode("prompt", &spec.prompt).await?;
    let negative = match negative {
        Some(negative) => Some(encode("negative prompt", negative).await?),
        None if needs_negative && !lane.model().force_zeros_for_empty_prompt => {
            Some(encode("negative prompt", "").await?)
        }
        None => needs_negative.then(|| (Array::zeros(prompt.shape()), Array::zeros(pooled.shape()))),
    };
    Ok(Conditioning { prompt, pooled, negative })
}

/// Encodes one prompt with both text encoders.
pub async fn encode_text(lane: &Lane, prompt: &str) -> Result<TextEncoding, TaskError> {
    let order = TaskOrder { stage: 0, position: 0 };
    match lane.run(order, Task::EncodeText { prompt: prompt.to_owned() }).await? {
        TaskResult::Text(text) => Ok(text),
        other => unreachable!("the farm checks the kind of an answer: {other:?}"),
    }
}

struct Render<'a> {
    sampling: Sampling,
    spec: &'a RenderSpec,
    schedule: Schedule,
}

impl Render<'_> {
    fn size(&self, stage: u32) -> ImageSize {
        stage.checked_sub(1).map_or(self.spec.base, |i| self.spec.upscales[i as usize].size)
    }

    /// Guided steps of a stage; the base has none.
    fn slider(&self, stage: u32) -> usize {
        stage.checked_sub(1).map_or(0, |i| self.spec.upscales[i as usize].slider as usize)
    }

    /// How a stage's canvas is cut.
    fn grid(&self, stage: u32, plans: &[Plan]) -> BlockGrid {
        match stage.checked_sub(1) {
            None => BlockGrid::of(&at_leisure(|| self.draw_plan(0))),
            Some(upscale) => BlockGrid::of(&plans[upscale as usize]),
        }
    }

    fn draw_plan(&self, stage: u32) -> Plan {
        self.spec.draw_plan(stage, self.sampling.model())
    }

    fn field(&self, stage: u32, purpose: Purpose) -> NoiseField {
        let channels = self.sampling.model().latent_channels as usize;
        NoiseField::from_seed(self.spec.seed, stage, purpose, channels)
    }

    /// The noise that a stage starts from, or that is mixed into its guide.
    fn noise(&self, stage: u32) -> NoiseField {
        match self.spec.rng {
            Rng::Torch if stage == 0 => {
                let size = self.sampling.latent_size(self.spec.base);
                let channels = self.sampling.model().latent_channels as usize;
                NoiseField::Stored(torch_rng::randn(self.spec.seed, &[channels, size.height, size.width]))
            }
            _ => self.field(stage, Purpose::Noise),
        }
    }

    fn guide(&self, stage: u32, latent: Array) -> Guide {
        Guide::new(latent, self.noise(stage))
    }

    /// What a stage starts from: noise alone, as ordinary sampling does, or a guide.
    fn start(&self, stage: u32, guide: Option<Guide>) -> Start {
        match guide {
            Some(guide) => Start::Guided { guide, slider: self.slider(stage) },
            None => Start::Noise(self.noise(stage)),
        }
    }

    /// What guides a stage: the enlarged picture of the one before, encoded.
    async fn guide_from(
        &self,
        stage: u32,
        picture: Source,
        course: &mut Course<'_>,
    ) -> Result<Guide, RenderError> {
        let enlarged = Enlarged::new(picture, self.size(stage));
        let (mode, noise) = ((stage, self.spec.vae), self.field(stage, Purpose::Encode));
        let latent = self.sampling.encode_latent(mode, enlarged, &noise, course).await?;
        Ok(self.guide(stage, latent))
    }

    async fn run_stage(
        &self,
        stage: u32,
        run: StageRun,
        course: &mut Course<'_>,
    ) -> Result<Array, RenderError> {
        let ((done, patches), size) = (run.progress(), self.size(stage));
        let total = self.spec.upscales.len() as u32 + 1;
        let begin = StageBegin { stage, total, size, patches, done };
        if done < patches {
            course.progress.stage(begin);
        }
        let Some(live) = course.live.clone() else {
            return self.sampling.run_stage(stage, size, run, &mut (), course).await;
        };
        at_leisure(|| live.begin(begin, &run, self.sampling.model()));
        let rules = run.rules().clone();
        let mut painter = Painter { live: &live, schedule: rules.schedule() };
        self.sampling.run_stage(stage, size, run, &mut painter, course).await
    }

    /// Decodes the latent of a stage.
    async fn to_picture(
        &self,
        stage: u32,
        latent: (&Arc<Array>, BlockGrid),
        decoded: SavedDecoding,
        course: &mut Course<'_>,
    ) -> Result<Arc<Raster>, RenderError> {
        let total = self.spec.upscales.len() as u32 + 1;
        let begin = StageBegin { stage, total, size: self.size(stage), patches: 0, done: 0 };
        self.sampling.decode_picture((begin, self.spec.vae), latent, decoded, course).await
    }
}
