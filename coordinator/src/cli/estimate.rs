//! `gigasmith estimate`: what a render will take, before anything starts.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use gigasmith_proto::domain::{
    Array, Conditioning, ModelDescription, NoiseTask, Task, TaskResult, TileRules, WireDtype,
};
use gigasmith_worker::cli::{DeviceArgs, start_device};
use gigasmith_worker::device::DeviceThread;

use super::failure::Failure;
use super::files::{FileArgs, Room, final_size};
use super::render::source;
use super::settings::PictureArgs;
use super::{print, tell};
use crate::estimate::{Budget, Crew, Estimate, seconds};
use crate::raster::Scratch;
use crate::request::{Resolved, resolve};
use crate::spec::{RenderSpec, StagePlans};

/// Tasks in flight to each worker, unless it is told otherwise.
const SLOTS: u64 = 2;

/// Arguments of `gigasmith estimate`.
#[derive(Debug, Args)]
pub(super) struct EstimateArgs {
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    files: FileArgs,
    /// Workers that will share the work, all as fast.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// What a worker takes for a patch (`gigasmith workers` shows it as S/TASK).
    #[arg(long, value_name = "SECONDS", value_parser = positive, conflicts_with = "measure")]
    seconds_per_patch: Option<f64>,
    /// Measure patch and tile on this machine's device first.
    #[arg(long)]
    measure: bool,
    /// Fail when it takes more: calls=5000,time=2h,memory=8GB,worker-memory=12GB,disk=20GB,wire=100GB, any of
    /// them.
    #[arg(long, value_name = "LIMITS")]
    budget: Option<Budget>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "give a number of seconds above 0".to_owned())
}

/// Says what a render takes.
pub(super) async fn run(args: EstimateArgs) -> Result<(), Failure> {
    // No work depends on the words.
    let asked = args.picture.read_or(Some(""))?;
    let format = args.files.format()?;
    let device = start_device(source(&asked)?, &args.device).await?;
    let model = device.description().clone();
    let Resolved { spec, plans, warnings } =
        resolve(&asked.request, &asked.inputs.facts(), &model).map_err(Failure::usage)?;
    warnings.iter().for_each(|w| tell(&format!("warning: {w}")));
    let (patch, tile) = match args.measure {
        true => {
            let (patch, tile) = measure(&device, &model, &spec).await?;
            tell(&format!("measured here: {patch:.3} s a patch, {tile:.3} s a tile"));
            (Some(patch), Some(tile))
        }
        false => (args.seconds_per_patch, None),
    };
    let crew = Crew {
        workers: args.workers.into(),
        slots: device.slots().into(),
        seconds_per_patch: patch,
        seconds_per_tile: tile,
        format,
        keeps: true,
    };
    let estimate = Estimate::of(&spec, &model, &plans, crew);
    let pictures = asked.seeds.0.len();
    let output = args.files.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = Scratch::new(output);
    let room = Room { files: &args.files, scratch: &scratch, store: None, pictures };
    // Here it is only told.
    let remarks = room.remarks(final_size(&spec)).unwrap_or_else(|e| vec![e.to_string()]);
    remarks.iter().for_each(|remark| tell(&format!("warning: {remark}")));
    match args.json {
        true => print(&serde_json::to_string_pretty(&estimate).expect("an estimate is plain data"))?,
        false => {
            print(&estimate.to_string())?;
            if pictures > 1 {
                let all = estimate
                    .seconds
                    .map_or(String::new(), |s| format!(", {} in all", seconds(s * pictures as f64)));
                print(&format!("seeds           {pictures}: each of them takes that{all}"))?;
            }
            if estimate.seconds.is_none() {
                tell("for a time pass --measure, or --seconds-per-patch and --workers");
            }
        }
    }
    args.budget.as_ref().map_or(Ok(()), |budget| check(&estimate, budget))
}

/// Fails when a render takes more than it may.
pub(super) fn check(estimate: &Estimate, budget: &Budget) -> Result<(), Failure> {
    let over = estimate.exceeds(budget).map_err(Failure::usage)?;
    if over.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "it takes more than the budget allows: {}; or raise --budget",
        over.join("; ")
    )))
}

/// What a render on this machine takes, against its budget.
pub(super) fn check_render(
    spec: &RenderSpec,
    model: &ModelDescription,
    plans: &StagePlans,
    (files, keeps): (&FileArgs, bool),
    budget: &Budget,
) -> Result<(), Failure> {
    if budget.limits_time() {
        return Err(Failure::usage(
            "a budget of time needs to know how fast this device is: `gigasmith estimate --measure --budget` tells; \
             leave `time` out here",
        ));
    }
    let crew = Crew {
        workers: 1,
        slots: SLOTS,
        seconds_per_patch: None,
        seconds_per_tile: None,
        format: files.format()?,
        keeps,
    };
    check(&Estimate::of(spec, model, plans, crew), budget)
}

/// Seconds for a patch as the render has them, and for a tile. Each is done twice: the first time loads
/// weights.
async fn measure(
    device: &DeviceThread,
    model: &ModelDescription,
    spec: &RenderSpec,
) -> Result<(f64, f64), Failure> {
    let failed =
        |what: &str, message: String| Failure::render(format!("{what} could not be measured: {message}"));
    let text = device.run(Task::EncodeText { prompt: spec.prompt.clone() }, None).await;
    let Ok(TaskResult::Text(text)) = text else {
        return Err(failed("a text", text.err().map_or_else(String::new, |f| f.message)));
    };
    let negative = (spec.guidance_scale > 1.0)
        .then(|| (Array::zeros(text.states.shape()), Array::zeros(text.pooled.shape())));
    let conditioning = Arc::new(Conditioning { prompt: text.states, pooled: text.pooled, negative });
    let (channels, side) = (model.latent_channels as usize, model.patch_side as usize);
    let pixels = (model.patch_side * model.latent_factor) as f32;
    let patch = Task::PredictNoise(NoiseTask {
        latent: Arc::new(Array::zeros([channels, side, side])),
        wire: WireDtype::F32,
        timestep: model.schedule.num_train_timesteps / 2,
        time_ids: [pixels, pixels, 0.0, 0.0, pixels, pixels],
        conditioning: conditioning.id(),
        guidance_scale: spec.guidance_scale,
        pag: spec
            .pag
            .as_ref()
            .map(|p| gigasmith_proto::domain::PagScale { scale: p.scale, blocks: p.blocks.clone() }),
    });
    let tile_side = (model.vae_tile / model.latent_factor) as usize;
    let tile = Task::DecodeTile {
        latent: Arc::new(Array::zeros([channels, tile_side, tile_side])),
        rules: TileRules::plain(tile_side, tile_side),
    };
    let mut times = Vec::new();
    for (what, task) in [("a patch", patch), ("a tile", tile)] {
        let mut took = 0.0;
        for _ in 0..2 {
            let begun = Instant::now();
            let done = device.run(task.clone(), Some(conditioning.clone())).await;
            done.map_err(|f| failed(what, f.message))?;
            took = begun.elapsed().as_secs_f64();
        }
        times.push(took);
    }
    Ok((times[0], times[1]))
}
