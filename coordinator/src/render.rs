//! One render, from spec to picture: the paper's method in the order the paper tells it.
//!
//! Every network call is a task of the farm; everything between the calls is the sampler's. This file
//! only says what follows what.

use std::sync::Arc;

use gigasmith_proto::domain::{
    Array, Conditioning, ConditioningId, ModelDescription, NoiseTask, PagScale, Task, TaskResult,
    TextEncoding, WireDtype,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::farm::{Lane, TaskError, TaskOrder};
use crate::sampler::guidance::Guide;
use crate::sampler::noise::NoiseField;
use crate::sampler::philox::Purpose;
use crate::sampler::plan::{Geometry, Plan};
use crate::sampler::resize::Picture;
use crate::sampler::schedule::{Schedule, ScheduleError};
use crate::sampler::stage::{PatchInput, StageObserver, StageRun, Start};
use crate::sampler::tiles::{Tiling, VaeMode, picture_window, to_picture};
use crate::sampler::torch_rng;
use crate::sampler::units::{ImageSize, LatentSize, Window};
use crate::spec::{Crops, PagSpec, RenderSpec, Rng, UpscaleSpec};

/// Why a render ended without a picture.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A task could not be done.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The steps do not fit the model's schedule.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

/// What a render tells while it runs. All methods have a default that says nothing.
pub trait Progress: Send {
    /// A stage of `total` begins with so many patches; `stage` 0 is the base.
    fn stage(&mut self, stage: u32, total: u32, size: ImageSize, patches: usize) {
        let _ = (stage, total, size, patches);
    }
    /// So many of the stage's patches are done.
    fn patches(&mut self, done: usize) {
        let _ = done;
    }
    /// Something short happens between stages: `encoding text`, `decoding`, `encoding`.
    fn phase(&mut self, what: &'static str) {
        let _ = what;
    }
    /// Something the user should know.
    fn warn(&mut self, message: &str) {
        let _ = message;
    }
}

/// Says nothing.
impl Progress for () {}

/// Where finished stages are kept, so that a render that is begun again need not run them again.
pub trait StageArchive: Sync {
    /// The latent of a finished stage, where it is kept and whole.
    fn load(&self, stage: u32) -> impl Future<Output = Option<Array>> + Send;
    /// Keeps the latent of a finished stage. A place that cannot be written costs a repetition, never the
    /// render: the error is a warning.
    fn save(&self, stage: u32, latent: &Array) -> impl Future<Output = Result<(), String>> + Send;
}

/// Keeps nothing.
impl StageArchive for () {
    async fn load(&self, _: u32) -> Option<Array> {
        None
    }

    async fn save(&self, _: u32, _: &Array) -> Result<(), String> {
        Ok(())
    }
}

/// The pieces that render, verify and tests share: a lane, its model, the text and the guidance.
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
    pub picture: Picture,
    /// The last stage's latent, (channels, height, width); `None` when no stage ran.
    pub latent: Option<Array>,
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
    render_with(lane, spec, inputs, &(), progress).await
}

/// Renders a picture, from the newest stage that the archive has.
pub async fn render_with(
    lane: Arc<Lane>,
    spec: &RenderSpec,
    inputs: RenderInputs,
    archive: &impl StageArchive,
    progress: &mut dyn Progress,
) -> Result<Rendered, RenderError> {
    let schedule = Schedule::new(&lane.model().schedule, spec.steps)?;
    progress.phase("encoding text");
    let conditioning = encode_prompts(&lane, spec, progress).await?;
    let sampling = Sampling {
        conditioning: lane.shelve(conditioning),
        lane,
        wire: spec.wire,
        guidance_scale: spec.guidance_scale,
        pag: spec.pag.clone(),
        crops: spec.crops,
    };
    let render = Render { sampling, spec, schedule };
    let stages = spec.upscales.len() as u32 + 1;
    let mut given = inputs.plans.map(Vec::into_iter);
    let mut plans = Vec::new();
    for (stage, upscale) in (1..).zip(&spec.upscales) {
        let plan = given.as_mut().and_then(Iterator::next);
        plans.push(plan.unwrap_or_else(|| at_leisure(|| render.draw_plan(stage, upscale))));
    }
    let (done, mut latent) = newest(archive, stages).await.map_or((None, None), |(s, l)| (Some(s), Some(l)));
    let mut picture = match (&latent, inputs.picture) {
        (Some(latent), _) => render.to_picture(done.unwrap_or(0), latent, progress).await?,
        (None, Some(picture)) => picture,
        (None, None) => {
            let base = render.base(stages, progress).await?;
            keep(archive, 0, &base, progress).await;
            let picture = render.to_picture(0, &base, progress).await?;
            latent = Some(base);
            picture
        }
    };
    for ((stage, upscale), plan) in (1..).zip(&spec.upscales).zip(&plans) {
        if done.is_some_and(|done| stage <= done) {
            continue;
        }
        progress.phase("encoding");
        let start = render.upscale_start(stage, upscale, &picture).await?;
        progress.stage(stage, stages, upscale.size, plan.len());
        let run = at_leisure(|| StageRun::new(plan.clone(), render.schedule.clone(), start));
        let denoised = render.sampling.run_stage(stage, upscale.size, run, &mut (), progress).await?;
        keep(archive, stage, &denoised, progress).await;
        picture = render.to_picture(stage, &denoised, progress).await?;
        latent = Some(denoised);
    }
    Ok(Rendered { picture, latent, plans })
}

/// The last finished stage that the archive has.
async fn newest(archive: &impl StageArchive, stages: u32) -> Option<(u32, Array)> {
    for stage in (0..stages).rev() {
        if let Some(latent) = archive.load(stage).await {
            return Some((stage, latent));
        }
    }
    None
}

async fn keep(archive: &impl StageArchive, stage: u32, latent: &Array, progress: &mut dyn Progress) {
    if let Err(reason) = archive.save(stage, latent).await {
        progress.warn(&format!("stage {} could not be kept: {reason}", stage + 1));
    }
}

async fn encode_prompts(
    lane: &Lane,
    spec: &RenderSpec,
    progress: &mut dyn Progress,
) -> Result<Conditioning, RenderError> {
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
    /// The base stage: ordinary sampling, one window over everything. Returns its latent.
    async fn base(&self, stages: u32, progress: &mut dyn Progress) -> Result<Array, RenderError> {
        let Self { sampling, spec, schedule } = self;
        let size = sampling.latent_size(spec.base);
        let channels = sampling.model().latent_channels as usize;
        let noise = match spec.rng {
            Rng::Philox => NoiseField::from_seed(spec.seed, 0, Purpose::Noise, channels),
            Rng::Torch => {
                NoiseField::Stored(torch_rng::randn(spec.seed, &[channels, size.height, size.width]))
            }
        };
        let plan = Plan::whole(size, schedule.len());
        progress.stage(0, stages, spec.base, plan.len());
        let run = StageRun::new(plan, schedule.clone(), Start::Noise(noise));
        sampling.run_stage(0, spec.base, run, &mut (), progress).await
    }

    /// Decodes a stage's latent.
    async fn to_picture(
        &self,
        stage: u32,
        latent: &Array,
        progress: &mut dyn Progress,
    ) -> Result<Picture, RenderError> {
        progress.phase("decoding");
        let image = self.sampling.decode(stage, self.spec.vae, latent).await?;
        Ok(at_leisure(|| to_picture(&image)))
    }

    fn draw_plan(&self, stage: u32, upscale: &UpscaleSpec) -> Plan {
        let canvas = self.sampling.latent_size(upscale.size);
        let geometry = Geometry::new(canvas, self.sampling.model().patch_side as usize);
        Plan::draw(self.spec.plan, geometry, self.schedule.len(), self.spec.seed, stage)
    }

    /// What an upscale stage starts from: the enlarged picture, encoded, and noise.
    async fn upscale_start(
        &self,
        stage: u32,
        upscale: &UpscaleSpec,
        picture: &Picture,
    ) -> Result<Start, RenderError> {
        let Self { sampling, spec, .. } = self;
        let channels = sampling.model().latent_channels as usize;
        let field = |purpose| NoiseField::from_seed(spec.seed, stage, purpose, channels);
        if upscale.slider == 0 {
            return Ok(Start::Noise(field(Purpose::Noise)));
        }
        let enlarged = at_leisure(|| picture.resized(upscale.size));
        let moments = sampling.encode(stage, spec.vae, &enlarged).await?;
        let latent = at_leisure(|| {
            let (mean, std) = mean_and_std(&moments);
            let noise = field(Purpose::Encode).whole(sampling.latent_size(upscale.size));
            sampled_latent(&mean, &std, &noise, sampling.model().scaling_factor)
        });
        let guide = Guide::new(latent, field(Purpose::Noise));
        Ok(Start::Guided { guide, slider: upscale.slider as usize })
    }
}

/// Mean and standard deviation, (C, h, w) each, of encoded moments (2 C, h, w): `std = exp(logvar / 2)`.
pub fn mean_and_std(moments: &Array) -> (Array, Array) {
    let (channels, height, width) = moments.chw().expect("moments have three axes");
    let (mean, logvar) = moments.data().split_at(moments.data().len() / 2);
    let std = logvar.iter().map(|v| libm::expf(0.5 * v)).collect();
    let array = |data| Array::new([channels / 2, height, width], data).expect("half of the moments");
    (array(mean.to_vec()), array(std))
}

/// `scaling_factor * (mean + std * noise)`, all (C, h, w).
pub fn sampled_latent(mean: &Array, std: &Array, noise: &Array, scaling_factor: f32) -> Array {
    let mut latent = noise.clone();
    for ((n, mean), std) in latent.data_mut().iter_mut().zip(mean.data()).zip(std.data()) {
        *n = scaling_factor * (mean + std * *n);
    }
    latent
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
    /// done beside this loop, on all cores.
    pub async fn run_stage(
        &self,
        stage: u32,
        size: ImageSize,
        mut run: StageRun,
        observer: &mut (dyn StageObserver + Send),
        progress: &mut dyn Progress,
    ) -> Result<Array, RenderError> {
        let mut flight = Flight::new(&self.lane);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = Arc::new(Semaphore::new(cores));
        while !run.is_done() {
            while flight.has_room() {
                let Some(start) = run.next_patch() else { break };
                let (sampling, rules, cores) = (self.clone(), run.rules().clone(), cores.clone());
                flight.send(async move {
                    let by_rules = rules.clone();
                    let input = on_a_core(&cores, move || by_rules.input(start)).await;
                    let prediction = sampling.predict(stage, size, &input).await?;
                    Ok(on_a_core(&cores, move || rules.outcome(input, prediction)).await)
                });
            }
            let outcome = flight.next().await?.expect("an unfinished stage has a patch that can start");
            run.complete(outcome, observer);
            progress.patches(run.progress().0);
        }
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

    /// Encodes a picture: mean and log-variance, (2 C, h, w).
    pub async fn encode(&self, stage: u32, mode: VaeMode, picture: &Picture) -> Result<Array, RenderError> {
        let size = picture.size();
        let input = LatentSize { height: size.height as usize, width: size.width as usize };
        let (tile, factor) = (self.model().vae_tile as usize, self.model().latent_factor as usize);
        let tiling = match mode.is_tiled(size) {
            true => Tiling::published(input, tile, tile / factor),
            false => Tiling::whole(input),
        };
        let task = |window| Task::EncodeTile { image: Arc::new(picture_window(picture, window)) };
        let tiles = self.run_tiles(stage, tiling.windows().into_iter().map(task)).await?;
        Ok(at_leisure(|| tiling.join(tiles)))
    }

    /// Decodes a latent: (3, height, width), nominally in [-1, 1].
    pub async fn decode(&self, stage: u32, mode: VaeMode, latent: &Array) -> Result<Array, RenderError> {
        let (_, height, width) = latent.chw().expect("a latent has three axes");
        let (tile, factor) = (self.model().vae_tile as usize, self.model().latent_factor as usize);
        let size = ImageSize { width: (width * factor) as u32, height: (height * factor) as u32 };
        let tiling = match mode.is_tiled(size) {
            true => Tiling::published(LatentSize { height, width }, tile / factor, tile),
            false => Tiling::whole(LatentSize { height, width }),
        };
        let task = |window| {
            let mut latent = crate::sampler::noise::crop(latent, window);
            latent.data_mut().iter_mut().for_each(|v| *v /= self.model().scaling_factor);
            Task::DecodeTile { latent: Arc::new(latent) }
        };
        let tiles = self.run_tiles(stage, tiling.windows().into_iter().map(task)).await?;
        Ok(at_leisure(|| tiling.join(tiles)))
    }

    /// Runs tile tasks and returns their arrays in order.
    async fn run_tiles(
        &self,
        stage: u32,
        tasks: impl Iterator<Item = Task>,
    ) -> Result<Vec<Array>, RenderError> {
        let mut tasks = (0..).zip(tasks);
        let mut flight = Flight::new(&self.lane);
        let mut results: Vec<Option<Array>> = Vec::new();
        loop {
            while flight.has_room() {
                let Some((position, task)) = tasks.next() else { break };
                results.push(None);
                let lane = self.lane.clone();
                flight.send(async move {
                    let order = TaskOrder { stage, position };
                    Ok((position, lane.run(order, task).await?))
                });
            }
            match flight.next().await? {
                None => break,
                Some((position, TaskResult::Moments(array) | TaskResult::Image(array))) => {
                    results[position as usize] = Some(array);
                }
                Some((_, other)) => unreachable!("the farm checks the kind of an answer: {other:?}"),
            }
        }
        Ok(results.into_iter().map(|r| r.expect("every tile was answered")).collect())
    }
}

/// Runs arithmetic in place, and lets the runtime's other tasks go on elsewhere meanwhile.
fn at_leisure<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        // There is no other thread.
        _ => work(),
    }
}

/// Runs arithmetic on a thread for it, no more at a time than there are cores.
async fn on_a_core<T: Send + 'static>(cores: &Semaphore, work: impl FnOnce() -> T + Send + 'static) -> T {
    let _core = cores.acquire().await.expect("the semaphore is never closed");
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Tasks under way on the farm, with what is done before and after.
struct Flight<'a, T> {
    lane: &'a Lane,
    tasks: JoinSet<Result<T, TaskError>>,
}

impl<'a, T: Send + 'static> Flight<'a, T> {
    fn new(lane: &'a Lane) -> Self {
        Self { lane, tasks: JoinSet::new() }
    }

    /// Whether another task is worth preparing: enough for every worker to find its next ones waiting,
    /// and no more, because a prepared task takes memory.
    fn has_room(&self) -> bool {
        self.tasks.len() < 2 * self.lane.slots().max(1)
    }

    fn send(&mut self, task: impl Future<Output = Result<T, TaskError>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// The next result in the order they come in; `None` when nothing is under way.
    async fn next(&mut self) -> Result<Option<T>, TaskError> {
        match self.tasks.join_next().await {
            None => Ok(None),
            Some(Ok(done)) => done.map(Some),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
