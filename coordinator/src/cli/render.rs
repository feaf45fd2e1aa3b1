//! `gigasmith render`: arguments, and one picture after the other.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::failure::Failure;
use super::progress::Display;
use super::resolve::{Resolved, resolve};
use super::seeds::Seeds;
use super::worker;
use crate::output::{check_writable, write_atomically, write_latents, write_png};
use crate::render::{Progress, RenderInputs, Rendered, render};
use crate::sampler::plan::{PlanFile, PlanKind, StagePlanFile};
use crate::sampler::tiles::VaeMode;
use gigasmith_worker::cli::DeviceArgs;

use super::resolve::ModelQuestion;

/// Arguments of `gigasmith render`. What is not given comes from `--from`, `--paper` or the model.
#[derive(Debug, Args)]
pub(super) struct RenderArgs {
    /// What to draw.
    #[arg(short, long, value_name = "TEXT")]
    pub(super) prompt: Option<String>,
    /// What to steer away from. Not given and "" are different things to SDXL.
    #[arg(short, long, value_name = "TEXT")]
    pub(super) negative_prompt: Option<String>,
    /// Width of the final picture in pixels.
    #[arg(long, value_name = "PIXELS", conflicts_with = "scale")]
    pub(super) width: Option<u32>,
    /// Height of the final picture in pixels.
    #[arg(long, value_name = "PIXELS", conflicts_with = "scale")]
    pub(super) height: Option<u32>,
    /// Side of the final picture against the base: 4 gives 16 times the pixels.
    #[arg(long, value_name = "FACTOR")]
    pub(super) scale: Option<f64>,
    /// Sides of all upscale stages against the base, for example 2,4,8.
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', conflicts_with = "scale")]
    pub(super) stages: Vec<f64>,
    /// Denoising steps per stage.
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<u32>,
    /// Guided steps per upscale stage, 0 to the number of steps: one value, or one per stage. High keeps
    /// the structure, low adds detail.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(super) slider: Vec<u32>,
    /// Classifier-free guidance scale; 0 to 1 turns it off.
    #[arg(long, visible_alias = "cfg", value_name = "SCALE", allow_negative_numbers = true)]
    pub(super) guidance_scale: Option<f32>,
    /// Perturbed-attention guidance scale; 0 turns it off.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub(super) pag_scale: Option<f32>,
    /// Self-attentions that it perturbs: down, mid, up, or single ones such as d0,m0,u3.
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    pub(super) pag_blocks: Vec<String>,
    /// A seed, a list 1,5,9, or a range 1..4 with both ends: one picture each.
    #[arg(short, long, value_name = "SEEDS")]
    pub(super) seed: Option<Seeds>,
    /// The model: pocket, a folder in the diffusers layout, or a hub id such as
    /// stabilityai/stable-diffusion-xl-base-1.0.
    #[arg(short, long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
    /// How windows are laid: balanced needs fewer network calls, paper is the published order.
    #[arg(long, value_enum, value_name = "PLAN")]
    pub(super) plan: Option<PlanArg>,
    /// Everything as published: 50 steps, guidance 7.5, sliders 20 and 30, plan paper, tiled VAE, its crops.
    #[arg(long)]
    pub(super) paper: bool,
    /// Start from this picture instead of a base stage.
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// Where the base stage's noise comes from: torch is what diffusers draws on a CPU for the seed.
    #[arg(long, value_enum, value_name = "RNG")]
    pub(super) rng: Option<RngArg>,
    /// How pictures go through the VAE: auto is at once up to a megapixel and tiled beyond.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) vae: Option<VaeArg>,
    /// Take all settings from a picture made by gigasmith; other arguments win over them.
    #[arg(long, value_name = "FILE.png")]
    pub(super) from: Option<PathBuf>,
    /// The picture to write.
    #[arg(short, long, value_name = "FILE.png", default_value = "out.png")]
    pub(super) output: PathBuf,
    /// Write the last stage's latents.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(super) save_latents: Option<PathBuf>,
    /// Write the plan of the upscale stages.
    #[arg(long, value_name = "FILE.json")]
    pub(super) save_plan: Option<PathBuf>,
    /// Take the plan of the upscale stages from a file.
    #[arg(long, value_name = "FILE.json")]
    pub(super) plan_file: Option<PathBuf>,
    /// No progress.
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PlanArg {
    Balanced,
    Paper,
}

impl From<PlanArg> for PlanKind {
    fn from(plan: PlanArg) -> Self {
        match plan {
            PlanArg::Balanced => Self::Balanced,
            PlanArg::Paper => Self::Paper,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RngArg {
    Philox,
    Torch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum VaeArg {
    Auto,
    Whole,
    Tiled,
}

impl From<VaeArg> for VaeMode {
    fn from(mode: VaeArg) -> Self {
        match mode {
            VaeArg::Auto => Self::Auto,
            VaeArg::Whole => Self::Whole,
            VaeArg::Tiled => Self::Tiled,
        }
    }
}

/// Renders one picture per seed.
pub(super) async fn run(args: RenderArgs) -> Result<(), Failure> {
    let question = ModelQuestion::read(&args)?;
    for path in [&args.save_latents, &args.save_plan].into_iter().flatten() {
        check_writable(path)?;
    }
    let seeds = question.seeds();
    for &seed in &seeds.0 {
        check_writable(&seeds.file(&args.output, seed))?;
    }
    let mut display = Display::new(args.quiet);
    let mut embedded = worker::start(question.source()?, &args.device).await?;
    let lane = embedded.lane().await?;
    let model = lane.model().clone();
    let Resolved { spec, picture, plans, warnings } = resolve(&args, question, &model)?;
    display.finish();
    warnings.iter().for_each(|w| display.warn(w));
    for &seed in &seeds.0 {
        let started = Instant::now();
        let spec = crate::spec::RenderSpec { seed, ..spec.clone() };
        let inputs = RenderInputs { picture: picture.clone(), plans: plans.clone() };
        let rendered =
            embedded.until_worker_ends(render(lane.clone(), &spec, inputs, &mut display)).await??;
        display.phase("writing");
        let path = seeds.file(&args.output, seed);
        write(&args, |name| seeds.file(name, seed), rendered, spec, model.patch_side as usize)?;
        let seconds = started.elapsed().as_secs_f64();
        display.say(&format!("wrote {} (seed {seed}, {seconds:.1} s)", path.display()));
    }
    drop(lane);
    embedded.stop().await;
    Ok(())
}

/// Writes what was asked for; `named` turns an argument into the file for this seed.
fn write(
    args: &RenderArgs,
    named: impl Fn(&Path) -> PathBuf,
    rendered: Rendered,
    spec: crate::spec::RenderSpec,
    patch_side: usize,
) -> Result<(), Failure> {
    let settings = crate::output::Settings::new(spec);
    write_png(&named(&args.output), &rendered.picture, &settings)?;
    if let Some(path) = &args.save_latents {
        let latent = rendered
            .latent
            .as_ref()
            .ok_or_else(|| Failure::output("no stage ran, so there are no latents to save"))?;
        write_latents(&named(path), latent, &settings)?;
    }
    if let Some(path) = &args.save_plan {
        let stages = rendered.plans.iter().map(|p| StagePlanFile::from_plan(p, patch_side)).collect();
        let json = serde_json::to_vec(&PlanFile { version: 1, stages }).expect("a plan is plain data");
        write_atomically(&named(path), |file| file.write_all(&json))?;
    }
    Ok(())
}
