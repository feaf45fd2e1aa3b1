//! One render, from spec to picture: the paper's method in the order the paper tells it.
//!
//! Every network call is a task of the farm; everything between the calls is the sampler's. This file
//! only says what follows what: `Render::step` leads from a [`Position`] to the next. A render can be left at
//! any moment and taken up elsewhere, at the position where it stood: along the way it gives its [`Journal`] the
//! points it could go on from.

mod course;
mod flight;
mod live;
mod position;
mod sampling;
mod tiles;
mod vae;

use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning, Task, TaskResult, TextEncoding};
use tokio_util::sync::CancellationToken;

pub use course::{Course, Journal, Point, PointAt, Progress, SavedDecoding, StageBegin};
pub use live::{Cells, Glance, Live, Shown};
pub use position::{Position, StageFrom, Start};
pub use sampling::Sampling;
pub use tiles::Enlarged;
pub use vae::{mean_and_std, sampled_latent};

use crate::digest::Digest;
use crate::farm::{Lane, TaskError, TaskOrder};
use crate::raster::{Raster, Source};
use crate::sampler::guidance::Guide;
use crate::sampler::noise::NoiseField;
use crate::sampler::philox::Purpose;
use crate::sampler::resize::Picture;
use crate::sampler::schedule::{Schedule, ScheduleError};
use crate::sampler::stage::{RestoreError, StageRun};
use crate::sampler::units::ImageSize;
use crate::sampler::{self, torch_rng};
use crate::spec::{RenderSpec, Rng, StagePlans};
pub(crate) use flight::at_leisure;
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

/// What a render makes.
#[derive(Debug)]
pub struct Rendered {
    /// The picture.
    pub picture: Arc<Raster>,
    /// The last stage's latent, (channels, height, width); `None` when no stage ran.
    pub latent: Option<Arc<Array>>,
    /// The plans of its stages.
    pub plans: StagePlans,
}

/// Renders a picture from the beginning. `picture`: takes the place of the base stage, exactly when the spec has
/// an image hash.
pub async fn render(
    lane: Arc<Lane>,
    spec: &RenderSpec,
    picture: Option<Picture>,
    progress: &mut dyn Progress,
) -> Result<Rendered, RenderError> {
    let mut nothing = ();
    let mut course = Course::new(progress, &mut nothing, CancellationToken::new());
    let plans = StagePlans::drawn(spec, lane.model());
    render_from(lane, (spec, plans), Start::beginning(picture), &mut course).await
}

/// Renders a picture from a position of the same spec and plans.
pub async fn render_from(
    lane: Arc<Lane>,
    (spec, plans): (&RenderSpec, StagePlans),
    start: Start,
    course: &mut Course<'_>,
) -> Result<Rendered, RenderError> {
    let stop = course.stop.clone();
    tokio::select! {
        // The render first: where it can leave a last point, it does.
        biased;
        done = run(lane, (spec, plans), start, course) => done,
        () = stop.cancelled() => Err(RenderError::Stopped),
    }
}

async fn run(
    lane: Arc<Lane>,
    (spec, plans): (&RenderSpec, StagePlans),
    start: Start,
    course: &mut Course<'_>,
) -> Result<Rendered, RenderError> {
    let schedule = Schedule::new(&lane.model().schedule, spec.steps)?;
    let conditioning = match start.conditioning {
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
    let render = Render { sampling, spec, plans, schedule };
    if let Position::Decoding { stage, .. } = start.position {
        course.progress.taken_up(render.begin(stage, (0, 0)));
    }
    let mut position = start.position;
    loop {
        position = match position {
            Position::Written(rendered) => return Ok(rendered),
            position => render.step(position, course).await?,
        }
    }
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
    plans: StagePlans,
    schedule: Schedule,
}

impl Render<'_> {
    /// From a position to the next: the base, then of every stage its patches and its picture, which guides the
    /// stage after.
    async fn step(&self, position: Position, course: &mut Course<'_>) -> Result<Position, RenderError> {
        match position {
            Position::Base { picture: None } => Ok(Position::Stage { stage: 0, from: StageFrom::Noise }),
            Position::Base { picture: Some(picture) } if self.last() == 0 => {
                let picture = Arc::new(at_leisure(|| Raster::of(&picture, &course.scratch))?);
                Ok(Position::Written(Rendered { picture, latent: None, plans: self.plans.clone() }))
            }
            Position::Base { picture: Some(picture) } => Ok(self.after(0, Source::Memory(Arc::new(picture)))),
            Position::Stage { stage, from } => {
                let run = self.stage_run(stage, from, course).await?;
                let latent = Arc::new(self.run_stage(stage, run, course).await?);
                Ok(Position::Decoding { stage, latent, decoded: SavedDecoding::default() })
            }
            // Nobody looks at its picture.
            Position::Decoding { stage, .. } if stage < self.last() && self.slider(stage + 1) == 0 => {
                Ok(Position::Stage { stage: stage + 1, from: StageFrom::Noise })
            }
            Position::Decoding { stage, latent, decoded } => {
                let (begin, grid) = (self.begin(stage, (0, 0)), self.plans.grid(stage));
                let decoding = (&latent, grid);
                let vae = self.spec.vae;
                let picture = self.sampling.decode_picture((begin, vae), decoding, decoded, course).await?;
                Ok(match stage == self.last() {
                    true => {
                        let (latent, plans) = (Some(latent), self.plans.clone());
                        Position::Written(Rendered { picture, latent, plans })
                    }
                    false => self.after(stage, Source::Disk(picture)),
                })
            }
            written @ Position::Written(_) => Ok(written),
        }
    }

    /// The stage after the one that made a picture.
    fn after(&self, stage: u32, picture: Source) -> Position {
        let stage = stage + 1;
        let from = if self.slider(stage) == 0 { StageFrom::Noise } else { StageFrom::Picture(picture) };
        Position::Stage { stage, from }
    }

    /// A stage at its first patch, or where it was left.
    async fn stage_run(
        &self,
        stage: u32,
        from: StageFrom,
        course: &mut Course<'_>,
    ) -> Result<StageRun, RenderError> {
        let schedule = self.schedule.clone();
        let guide = match from {
            StageFrom::Noise => None,
            StageFrom::Picture(picture) => Some(self.guide_from(stage, picture, course).await?),
            StageFrom::Left { plan: before, guide, saved } => {
                let start = self.start(stage, guide.map(|g| Guide::new(g, self.noise(stage))));
                return at_leisure(|| {
                    let plan = self.plans.plan(stage);
                    if before != Digest::from(plan.hash()) {
                        return Err(RenderError::Plan);
                    }
                    Ok(StageRun::restore(plan, schedule, start, saved)?)
                });
            }
        };
        Ok(at_leisure(|| StageRun::new(self.plans.plan(stage), schedule, self.start(stage, guide))))
    }

    fn last(&self) -> u32 {
        self.spec.upscales.len() as u32
    }

    fn size(&self, stage: u32) -> ImageSize {
        self.spec.stage_size(stage).expect("a stage of the spec")
    }

    /// Guided steps of a stage; the base has none.
    fn slider(&self, stage: u32) -> usize {
        stage.checked_sub(1).map_or(0, |i| self.spec.upscales[i as usize].slider as usize)
    }

    fn begin(&self, stage: u32, (done, patches): (usize, usize)) -> StageBegin {
        StageBegin { stage, total: self.last() + 1, size: self.size(stage), patches, done }
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

    /// What a stage starts from: noise alone, as ordinary sampling does, or a guide.
    fn start(&self, stage: u32, guide: Option<Guide>) -> sampler::stage::Start {
        match guide {
            Some(guide) => sampler::stage::Start::Guided { guide, slider: self.slider(stage) },
            None => sampler::stage::Start::Noise(self.noise(stage)),
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
        Ok(Guide::new(latent, self.noise(stage)))
    }

    async fn run_stage(
        &self,
        stage: u32,
        run: StageRun,
        course: &mut Course<'_>,
    ) -> Result<Array, RenderError> {
        let (done, patches) = run.progress();
        let begin = self.begin(stage, (done, patches));
        if done < patches {
            course.progress.stage(begin);
        }
        let Some(live) = course.live.clone() else {
            return self.sampling.run_stage(stage, begin.size, run, &mut (), course).await;
        };
        at_leisure(|| live.begin(begin, &run, self.sampling.model()));
        let rules = run.rules().clone();
        let mut painter = Painter { live: &live, schedule: rules.schedule() };
        self.sampling.run_stage(stage, begin.size, run, &mut painter, course).await
    }
}
