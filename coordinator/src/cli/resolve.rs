//! From arguments to a render spec: what is given wins, then `--paper`, then `--from`, then the model's
//! preset.

use std::path::{Path, PathBuf};

use gigasmith_proto::domain::{ModelDescription, PAPER_SLIDER_SHARES};
use gigasmith_worker::model::ModelSource;

use super::failure::Failure;
use super::render::{RenderArgs, RngArg};
use super::seeds::Seeds;
use crate::output::{Settings, read_picture, read_text};
use crate::sampler::cascade::{Cascade, ModelSizes, SizeRequest};
use crate::sampler::plan::{Plan, PlanFile, PlanKind};
use crate::sampler::resize::Picture;
use crate::sampler::schedule::Schedule;
use crate::sampler::tiles::VaeMode;
use crate::sampler::units::ImageSize;
use crate::spec::{Crops, ModelSpec, PagSpec, RenderSpec, Rng, SPEC_VERSION, UpscaleSpec, resolve_sliders};

/// What `--paper` sets.
struct RenderSpecDefaults {
    steps: u32,
    guidance_scale: f32,
    plan: PlanKind,
    crops: Crops,
    vae: VaeMode,
}

/// The publication's settings (its section 4 and its program's defaults).
const PAPER: RenderSpecDefaults = RenderSpecDefaults {
    steps: 50,
    guidance_scale: 7.5,
    plan: PlanKind::Paper,
    crops: Crops::Published,
    vae: VaeMode::Tiled,
};
/// How much of a picture may be cut off in silence.
const QUIET_CUT: f64 = 0.1;

/// What can be known before the model is loaded.
#[derive(Debug)]
pub(super) struct ModelQuestion {
    from: Option<RenderSpec>,
    prompt: String,
    picture: Option<Picture>,
    plan_json: Option<(PlanFile, String)>,
    model: String,
    seeds: Seeds,
}

/// Everything a render needs.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) spec: RenderSpec,
    pub(super) picture: Option<Picture>,
    pub(super) plans: Option<Vec<Plan>>,
    pub(super) warnings: Vec<String>,
}

impl ModelQuestion {
    /// Reads the inputs that arguments name, and checks what needs no model.
    pub(super) fn read(args: &RenderArgs) -> Result<Self, Failure> {
        let from = args.from.as_deref().map(read_settings).transpose()?;
        let prompt = args.prompt.clone().or(from.as_ref().map(|f| f.prompt.clone()));
        let prompt = prompt.ok_or_else(|| {
            Failure::usage("no prompt: give --prompt TEXT, or --from a picture made before")
        })?;
        if args.output.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) {
            let name = args.output.display();
            return Err(Failure::usage(format!(
                "output {name} does not end in .png: only PNG is written; name it {name}.png"
            )));
        }
        distinct_outputs(args)?;
        let picture = args.image.as_deref().map(read_picture).transpose()?;
        let plan_json = args.plan_file.as_deref().map(read_plan).transpose()?;
        let model =
            args.model.clone().or(from.as_ref().map(|f| f.model.name.clone())).unwrap_or("pocket".into());
        let seeds = args.seed.clone().unwrap_or(Seeds(vec![from.as_ref().map_or(0, |f| f.seed)]));
        Ok(Self { from, prompt, picture, plan_json, model, seeds })
    }

    /// Where the model comes from.
    pub(super) fn source(&self) -> Result<ModelSource, Failure> {
        ModelSource::parse(&self.model).map_err(|error| match &self.from {
            Some(from) if from.model.name == self.model => Failure::Model(format!(
                "the picture was made with the model `{}`, which is no known name here: pass --model with its folder",
                self.model
            )),
            _ => error.into(),
        })
    }

    /// The seeds to render.
    pub(super) fn seeds(&self) -> Seeds {
        self.seeds.clone()
    }
}

/// Two outputs under one name would leave one of them.
fn distinct_outputs(args: &RenderArgs) -> Result<(), Failure> {
    let named = [Some(&args.output), args.save_latents.as_ref(), args.save_plan.as_ref()];
    let named: Vec<&PathBuf> = named.into_iter().flatten().collect();
    match (1..named.len()).find(|&i| named[..i].contains(&named[i])) {
        None => Ok(()),
        Some(i) => {
            Err(Failure::usage(format!("two outputs are called {}: name them apart", named[i].display())))
        }
    }
}

fn read_settings(path: &Path) -> Result<RenderSpec, Failure> {
    let json = read_text(path)?.ok_or_else(|| {
        Failure::Input(format!(
            "{} carries no settings of gigasmith: --from takes a PNG that it wrote",
            path.display()
        ))
    })?;
    Ok(Settings::from_json(&json)?.spec)
}

fn read_plan(path: &Path) -> Result<(PlanFile, String), Failure> {
    let input = |reason: String| Failure::Input(format!("cannot read the plan {}: {reason}", path.display()));
    let json = std::fs::read_to_string(path).map_err(|e| input(e.to_string()))?;
    let plan: PlanFile = serde_json::from_str(&json).map_err(|e| input(e.to_string()))?;
    if plan.version != 1 {
        return Err(input(crate::sampler::plan::PlanFileError::Version(plan.version).to_string()));
    }
    Ok((plan, json))
}

/// Settles every setting.
pub(super) fn resolve(
    args: &RenderArgs,
    question: ModelQuestion,
    model: &ModelDescription,
) -> Result<Resolved, Failure> {
    let ModelQuestion { from, prompt, picture, plan_json, seeds, .. } = question;
    let from = from.as_ref();
    let mut warnings = Vec::new();
    let paper = args.paper.then_some(PAPER);
    let steps = pick(args.steps, paper.as_ref().map(|p| p.steps), from.map(|f| f.steps), model.preset.steps);
    Schedule::new(&model.schedule, steps).map_err(Failure::usage)?;
    let (base, sizes) = sizes(args, from, picture.as_ref(), model)?;
    let shares = if args.paper { PAPER_SLIDER_SHARES } else { model.preset.slider_shares };
    let guidance_scale = pick(
        args.guidance_scale,
        paper.as_ref().map(|p| p.guidance_scale),
        from.map(|f| f.guidance_scale),
        model.preset.guidance_scale,
    );
    let plan = plan_json.as_ref().and_then(|(file, _)| file.stages.first()).map(|s| s.kind);
    let plan = plan.or(args.plan.map(PlanKind::from));
    let spec = RenderSpec {
        version: SPEC_VERSION,
        prompt,
        negative_prompt: args.negative_prompt.clone().or(from.and_then(|f| f.negative_prompt.clone())),
        model: ModelSpec::of(model),
        base,
        upscales: sliders(args, from, (steps, shares), &sizes)?,
        steps,
        guidance_scale,
        pag: pag(args, from)?,
        seed: seeds.0[0],
        plan: pick(plan, paper.as_ref().map(|p| p.plan), from.map(|f| f.plan), PlanKind::Balanced),
        plan_hash: plan_json.as_ref().map(|(_, json)| blake3::hash(json.as_bytes()).to_string()),
        rng: pick(args.rng.map(rng), None, from.map(|f| f.rng), Rng::Philox),
        crops: pick(None, paper.as_ref().map(|p| p.crops), from.map(|f| f.crops), Crops::True),
        vae: pick(
            args.vae.map(VaeMode::from),
            paper.as_ref().map(|p| p.vae),
            from.map(|f| f.vae),
            VaeMode::Auto,
        ),
        image_hash: picture.as_ref().map(|p| blake3::hash(p.rgb()).to_string()),
        wire: Default::default(),
        mix: false,
    };
    spec.check(model).map_err(Failure::usage)?;
    let plans = plan_json.map(|(plan, _)| plans(&plan, &spec, model)).transpose()?;
    if let Some(from) = from {
        check_origin(from, &spec, &mut warnings)?;
    }
    warnings.extend(remarks(&spec));
    Ok(Resolved { spec, picture, plans, warnings })
}

/// What works, but may not be what was meant.
fn remarks(spec: &RenderSpec) -> Vec<String> {
    let mut remarks = Vec::new();
    let last = spec.upscales.last().map_or(spec.base, |u| u.size);
    if let Some(cut) = cut_off(spec.base, last) {
        let percent = cut * 100.0;
        remarks.push(format!(
            "the base is {}: {percent:.0}% of it is cut off to fit the final aspect",
            spec.base
        ));
    }
    if spec.negative_prompt.is_some() && spec.guidance_scale <= 1.0 {
        let scale = spec.guidance_scale;
        remarks.push(format!(
            "the negative prompt does nothing at guidance scale {scale}: it needs more than 1"
        ));
    }
    remarks
}

/// The first that is there: given, published, from a picture, preset.
fn pick<T>(given: Option<T>, paper: Option<T>, from: Option<T>, preset: T) -> T {
    given.or(paper).or(from).unwrap_or(preset)
}

fn rng(rng: RngArg) -> Rng {
    match rng {
        RngArg::Philox => Rng::Philox,
        RngArg::Torch => Rng::Torch,
    }
}

/// What rendering a picture again needs and was not given, or what now differs.
fn check_origin(from: &RenderSpec, spec: &RenderSpec, warnings: &mut Vec<String>) -> Result<(), Failure> {
    for (what, flag, before, now) in [
        ("image", "--image", &from.image_hash, &spec.image_hash),
        ("plan file", "--plan-file", &from.plan_hash, &spec.plan_hash),
    ] {
        match (before, now) {
            (Some(_), None) => {
                return Err(Failure::usage(format!(
                    "the picture was made with its own {what}: pass it with {flag}"
                )));
            }
            (Some(before), Some(now)) if before != now => {
                warnings.push(format!("this is another {what} than the one the picture was made with"));
            }
            _ => {}
        }
    }
    let (before, now) = (&from.model, &spec.model);
    if before.fingerprints != now.fingerprints {
        let (before, now) = (&before.name, &now.name);
        warnings.push(format!(
            "the picture was made with other weights ({before}) than these ({now}): it will differ"
        ));
    } else if before.numeric_class != now.numeric_class {
        let (before, now) = (&before.numeric_class, &now.numeric_class);
        warnings.push(format!(
            "the picture was computed as {before}, this one as {now}: it may differ in the last bits"
        ));
    }
    Ok(())
}

fn sizes(
    args: &RenderArgs,
    from: Option<&RenderSpec>,
    picture: Option<&Picture>,
    model: &ModelDescription,
) -> Result<(ImageSize, Vec<ImageSize>), Failure> {
    let request = SizeRequest {
        width: args.width,
        height: args.height,
        scale: args.scale,
        stages: args.stages.clone(),
        picture: picture.map(Picture::size),
    };
    let asked = SizeRequest { picture: None, ..request.clone() } != SizeRequest::default();
    let same_picture = |f: &&RenderSpec| picture.is_none_or(|p| p.size() == f.base && !f.upscales.is_empty());
    if let Some(from) = from.filter(|_| !asked).filter(same_picture) {
        return Ok((from.base, from.upscales.iter().map(|u| u.size).collect()));
    }
    let model_sizes = ModelSizes {
        native: &model.native_sizes,
        latent_factor: model.latent_factor,
        default_scale: model.preset.scale.into(),
    };
    let cascade = Cascade::resolve(&request, model_sizes).map_err(Failure::usage)?;
    Ok((cascade.base, cascade.upscales))
}

/// The share of the base that the final aspect leaves out, when worth a word.
fn cut_off(base: ImageSize, last: ImageSize) -> Option<f64> {
    let aspect = |s: ImageSize| f64::from(s.width) / f64::from(s.height);
    let (a, b) = (aspect(base), aspect(last));
    let cut = 1.0 - (a / b).min(b / a);
    (cut > QUIET_CUT).then_some(cut)
}

/// Sliders as given; else those of a picture made before, in proportion to the steps; else shares of the
/// steps: the publication's with `--paper`, or the model's.
fn sliders(
    args: &RenderArgs,
    from: Option<&RenderSpec>,
    (steps, shares): (u32, [f32; 2]),
    sizes: &[ImageSize],
) -> Result<Vec<UpscaleSpec>, Failure> {
    let given = match from.filter(|f| f.upscales.len() == sizes.len()) {
        _ if !args.slider.is_empty() => args.slider.clone(),
        Some(from) if !args.paper => {
            let share =
                |slider: u32| (u64::from(slider) * u64::from(steps) * 2 / u64::from(from.steps)).div_ceil(2);
            from.upscales.iter().map(|u| share(u.slider) as u32).collect()
        }
        _ => Vec::new(),
    };
    let sliders = resolve_sliders(&given, steps, sizes.len(), shares).map_err(Failure::usage)?;
    Ok(sizes.iter().zip(sliders).map(|(&size, slider)| UpscaleSpec { size, slider }).collect())
}

fn pag(args: &RenderArgs, from: Option<&RenderSpec>) -> Result<Option<PagSpec>, Failure> {
    let before = from.and_then(|f| f.pag.clone());
    let scale = args.pag_scale.or(before.as_ref().map(|p| p.scale)).unwrap_or(0.0);
    if scale == 0.0 {
        return match args.pag_blocks.is_empty() {
            true => Ok(None),
            false => Err(Failure::usage("--pag-blocks needs a --pag-scale above 0, for example 3")),
        };
    }
    let blocks = match (&args.pag_blocks[..], before) {
        ([], Some(before)) => before.blocks,
        ([], None) => vec!["mid".into()],
        (blocks, _) => blocks.to_vec(),
    };
    Ok(Some(PagSpec { scale, blocks }))
}

fn plans(file: &PlanFile, spec: &RenderSpec, model: &ModelDescription) -> Result<Vec<Plan>, Failure> {
    let (found, wanted) = (file.stages.len(), spec.upscales.len());
    if found != wanted {
        return Err(Failure::usage(crate::sampler::plan::PlanFileError::Stages { found, wanted }));
    }
    let plan = |(stage, (file, upscale)): (usize, (&crate::sampler::plan::StagePlanFile, &UpscaleSpec))| {
        let canvas = upscale.size.latent(model.latent_factor);
        file.to_plan(stage, canvas, model.patch_side as usize, spec.steps as usize).map_err(Failure::usage)
    };
    (1..).zip(file.stages.iter().zip(&spec.upscales)).map(plan).collect()
}
