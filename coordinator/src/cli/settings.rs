//! The settings of a picture as they are typed: the same for `render` and `submit`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use gigasmith_proto::domain::{Identifier, WireDtype};

use super::failure::Failure;
use super::seeds::{Seeds, SeedsArg};
use super::tell;
use crate::input::{Foreign, Origin, read_picture, read_settings};
use crate::output::Settings;
use crate::request::{RenderRequest, RequestInputs};
use crate::sampler::plan::PlanKind;
use crate::sampler::tiles::VaeMode;
use crate::sampler::units::ImageSize;
use crate::spec::Rng;

/// The settings that `--from` brings.
pub(super) const OF_A_PICTURE: &[&str] = &[
    "prompt",
    "negative-prompt",
    "width",
    "height",
    "scale",
    "base",
    "stages",
    "steps",
    "slider",
    "guidance-scale",
    "pag-scale",
    "pag-blocks",
    "seed",
    "plan",
    "paper",
    "rng",
    "vae",
    "wire",
];

/// What a picture is made of. What is not given comes from `--from`, `--paper` or the model.
#[derive(Debug, Args)]
pub(super) struct PictureArgs {
    /// What to draw.
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What to steer away from. Leaving it out gives zeros as the negative, "" encodes an empty text: the pictures
    /// differ.
    #[arg(short, long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Width of the final picture in pixels.
    #[arg(long, value_name = "PIXELS", conflicts_with = "scale")]
    width: Option<u32>,
    /// Height of the final picture in pixels.
    #[arg(long, value_name = "PIXELS", conflicts_with = "scale")]
    height: Option<u32>,
    /// Side of the final picture against the base, which is of the model's own size (SDXL 1024): 4 gives 16 times
    /// the pixels. 2 for SDXL and 4 for pocket unless given.
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// Size of the base stage, for example 1536x512. By default one of the model's own sizes, or for a
    /// panorama one that fits. What the model cannot see at once is drawn in windows.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = read_size, conflicts_with = "image")]
    base: Option<ImageSize>,
    /// Sides of all upscale stages against the base, for example 2,4,8. Each doubles the one before unless given.
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', conflicts_with = "scale")]
    stages: Vec<f64>,
    /// Denoising steps per stage: 50 for SDXL, 30 for pocket unless given.
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// Guided steps per upscale stage, 0 to the number of steps: one value, or one per stage. High keeps
    /// the structure, low adds detail. Unless given, 40 % of the steps in the first and 60 % in the others, or what
    /// the model says.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    slider: Vec<u32>,
    /// Classifier-free guidance scale; 0 to 1 turns it off. 7.5 for SDXL unless given.
    #[arg(long, visible_alias = "cfg", value_name = "SCALE", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// Perturbed-attention guidance scale; 0, the default, turns it off.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pag_scale: Option<f32>,
    /// Self-attentions that it perturbs: down, mid (the default), up, or single ones such as d0,m0,u3.
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    pag_blocks: Vec<String>,
    /// A seed, a list 1,5,9, or a range 1..4 with both ends: one picture each. random (or -1) draws one and says
    /// which. 0 unless given.
    #[arg(short, long, value_name = "SEEDS", allow_negative_numbers = true)]
    seed: Option<SeedsArg>,
    /// The model: pocket (the default), a folder in the diffusers layout, a hub id such as
    /// stabilityai/stable-diffusion-xl-base-1.0, or synthetic, a stand-in for tests and benchmarks. For a farm: what
    /// its workers call it.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// How windows are laid: balanced, the default, needs fewer network calls, paper is the published order.
    #[arg(long, value_enum, value_name = "PLAN")]
    plan: Option<PlanArg>,
    /// Everything as published: 50 steps, guidance 7.5, sliders 20 and 30 of 50, plan paper, tiled VAE, its crops.
    #[arg(long)]
    paper: bool,
    /// Start from this picture instead of a base stage.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Where the base stage's noise comes from: torch is what diffusers draws on a CPU for the seed.
    #[arg(long, value_enum, value_name = "RNG")]
    rng: Option<RngArg>,
    /// How pictures are decoded and encoded: seamless, the default, is at once up to a megapixel, and beyond that in
    /// tiles with enough of their surroundings, normalised over the whole picture; tiled is as published.
    #[arg(long, visible_alias = "decode", value_enum, value_name = "MODE")]
    vae: Option<VaeArg>,
    /// How latents travel between coordinator and workers: f16 halves the traffic and rounds.
    #[arg(long, value_enum, value_name = "DTYPE")]
    wire: Option<WireArg>,
    /// Take all settings from a picture made by gigasmith; other arguments win over them.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Take the plan of the upscale stages from a file.
    #[arg(long, value_name = "FILE.json")]
    plan_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlanArg {
    Balanced,
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RngArg {
    Philox,
    Torch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VaeArg {
    #[value(alias = "auto")]
    Seamless,
    Whole,
    Tiled,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WireArg {
    F32,
    F16,
}

/// The settings as read: a request per seed, and what comes along with each.
#[derive(Debug)]
pub(super) struct Asked {
    /// The request, for the first seed.
    pub(super) request: RenderRequest,
    pub(super) inputs: RequestInputs,
    pub(super) seeds: Seeds,
    /// Whether the model's name is that of the picture made before.
    pub(super) model_is_from_picture: bool,
}

impl PictureArgs {
    /// Reads the inputs that arguments name, and checks what needs no model.
    pub(super) fn read(&self) -> Result<Asked, Failure> {
        self.read_or(None)
    }

    /// The same with a prompt for where none is given.
    pub(super) fn read_or(&self, prompt: Option<&str>) -> Result<Asked, Failure> {
        let (from, foreign) = match self.from.as_deref() {
            None => (None, Foreign::default()),
            Some(path) => match read_settings(path)? {
                Origin::Ours(json) => (Some(Settings::from_json(&json)?.spec), Foreign::default()),
                Origin::Foreign(foreign) => (None, self.told(*foreign)),
            },
        };
        let given = self.prompt.clone().or(from.as_ref().map(|f| f.prompt.clone()));
        let given = given.or(foreign.steps.map(|_| foreign.prompt.clone()));
        let prompt = given.or(prompt.map(str::to_owned));
        let prompt = prompt.ok_or_else(|| {
            Failure::usage("no prompt: give --prompt TEXT (\"\" is enough with --image), or --from a picture made before")
        })?;
        let picture = self.image.as_deref().map(read_picture).transpose()?.map(|loaded| {
            loaded.warnings.iter().for_each(|w| tell(&format!("warning: the image: {w}")));
            loaded.picture
        });
        let plan = self.plan_file.as_deref().map(read_plan).transpose()?;
        let seeds = match &self.seed {
            None => Seeds(vec![from.as_ref().map(|f| f.seed).or(foreign.seed).unwrap_or(0)]),
            Some(asked) => asked.resolve(random),
        };
        if self.seed == Some(SeedsArg::Random) {
            tell(&format!("seed {} was drawn", seeds.0[0]));
        }
        let before = from.as_ref().map(|f| f.model.name.clone());
        let model_is_from_picture = self.model.is_none() && before.is_some();
        let request = RenderRequest {
            prompt,
            negative_prompt: self.negative_prompt.clone().or(foreign.negative_prompt),
            width: self.width.or(foreign.size.map(|(width, _)| width)),
            height: self.height.or(foreign.size.map(|(_, height)| height)),
            scale: self.scale,
            base: self.base,
            stages: self.stages.clone(),
            steps: self.steps.or(foreign.steps),
            slider: self.slider.clone(),
            guidance_scale: self.guidance_scale.or(foreign.guidance_scale),
            pag_scale: self.pag_scale,
            pag_blocks: self.pag_blocks.clone(),
            seed: seeds.0[0],
            model: self.model.clone().or(before).unwrap_or("pocket".into()),
            plan: self.plan.map(|plan| match plan {
                PlanArg::Balanced => PlanKind::Balanced,
                PlanArg::Paper => PlanKind::Paper,
            }),
            paper: self.paper,
            rng: self.rng.map(|rng| match rng {
                RngArg::Philox => Rng::Philox,
                RngArg::Torch => Rng::Torch,
            }),
            vae: self.vae.map(|vae| match vae {
                VaeArg::Seamless => VaeMode::Seamless,
                VaeArg::Whole => VaeMode::Whole,
                VaeArg::Tiled => VaeMode::Tiled,
            }),
            wire: self.wire.map(|wire| match wire {
                WireArg::F32 => WireDtype::F32,
                WireArg::F16 => WireDtype::F16,
            }),
            from,
            ..RenderRequest::default()
        };
        Ok(Asked { request, inputs: RequestInputs { picture, plan }, seeds, model_is_from_picture })
    }

    /// Another program's settings, as far as they hold here, and says so. A size that was given wins, and a
    /// picture has its own.
    fn told(&self, foreign: Foreign) -> Foreign {
        const GRID: u32 = 8;
        let name = |name: &Option<String>| name.clone().unwrap_or("unknown".into());
        tell(&format!(
            "warning: the picture of --from carries no settings of gigasmith, but a text: its prompts, seed, steps, \
             guidance scale and size are taken; its model ({}) and sampler ({}) are not, so the picture will differ",
            name(&foreign.model),
            name(&foreign.sampler)
        ));
        let sized = self.width.or(self.height).is_some() || self.scale.is_some() || !self.stages.is_empty();
        let size = foreign.size.filter(|_| !sized && self.image.is_none());
        let side = |pixels: u32| (pixels / GRID).max(1) * GRID;
        Foreign { size: size.map(|(width, height)| (side(width), side(height))), ..foreign }
    }
}

/// `WIDTHxHEIGHT`, in pixels.
fn read_size(text: &str) -> Result<ImageSize, String> {
    let sides = text.split_once(['x', 'X']).map(|(w, h)| (w.trim().parse(), h.trim().parse()));
    match sides {
        Some((Ok(width), Ok(height))) => Ok(ImageSize { width, height }),
        _ => Err("give width and height in pixels, for example 1536x512".into()),
    }
}

/// A number that the system draws.
fn random() -> u64 {
    let Identifier(bytes) = Identifier::random();
    bytes.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn read_plan(path: &Path) -> Result<String, Failure> {
    let input = |reason: String| Failure::Input(format!("cannot read the plan {}: {reason}", path.display()));
    let json = std::fs::read_to_string(path).map_err(|e| input(e.to_string()))?;
    crate::spec::read_plan_file(&json).map_err(|e| input(e.to_string()))?;
    Ok(json)
}
