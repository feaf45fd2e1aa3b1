//! From arguments to a render spec: what is given wins, then `--paper`, then `--from`, then the model's
//! preset.

use std::path::Path;

use gigasmith_proto::domain::ModelDescription;
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

/// The publication's settings (its section 4 and its program's defaults).
const PAPER_STEPS: u32 = 50;
const PAPER_GUIDANCE_SCALE: f32 = 7.5;
/// Sliders of the publication at 50 steps, for the first upscale stage and for the later ones.
const PAPER_SLIDERS: [u32; 2] = [20, 30];
/// More guidance than any model bears.
const MAX_GUIDANCE: f32 = 1000.0;
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
        for (name, value) in [("guidance scale", args.guidance_scale), ("pag scale", args.pag_scale)] {
            if value.is_some_and(|v| !(0.0..=MAX_GUIDANCE).contains(&v)) {
                let value = value.unwrap_or_default();
                return Err(Failure::usage(format!(
                    "{name} {value} makes no sense: give 0 to {MAX_GUIDANCE}"
                )));
            }
        }
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
    let image_hash = picture.as_ref().map(|p| blake3::hash(p.rgb()).to_string());
    check_image(from, image_hash.as_deref(), &mut warnings)?;
    check_origin(from, model, &mut warnings);

    let steps =
        pick(args.steps, args.paper.then_some(PAPER_STEPS), from.map(|f| f.steps), model.preset.steps);
    Schedule::new(&model.schedule, steps).map_err(Failure::usage)?;
    let (base, sizes) = sizes(args, from, picture.as_ref(), model)?;
    if let Some(cut) = cut_off(base, sizes.last().copied().unwrap_or(base)) {
        warnings.push(format!(
            "the base is {base}: {:.0}% of it is cut off to fit the final aspect",
            cut * 100.0
        ));
    }
    let upscales = sliders(args, from, steps, &sizes)?;
    let guidance_scale = pick(
        args.guidance_scale,
        args.paper.then_some(PAPER_GUIDANCE_SCALE),
        from.map(|f| f.guidance_scale),
        model.preset.guidance_scale,
    );
    let vae = args.vae.map(VaeMode::from);
    let spec = RenderSpec {
        version: SPEC_VERSION,
        prompt,
        negative_prompt: args.negative_prompt.clone().or(from.and_then(|f| f.negative_prompt.clone())),
        model: ModelSpec::of(model),
        base,
        upscales,
        steps,
        guidance_scale,
        pag: pag(args, from, model)?,
        seed: seeds.0[0],
        plan: pick(
            args.plan.map(PlanKind::from),
            args.paper.then_some(PlanKind::Paper),
            from.map(|f| f.plan),
            PlanKind::Balanced,
        ),
        plan_hash: plan_json.as_ref().map(|(_, json)| blake3::hash(json.as_bytes()).to_string()),
        rng: pick(args.rng.map(rng), None, from.map(|f| f.rng), Rng::Philox),
        crops: pick(None, args.paper.then_some(Crops::Published), from.map(|f| f.crops), Crops::True),
        vae: pick(vae, args.paper.then_some(VaeMode::Tiled), from.map(|f| f.vae), VaeMode::Auto),
        image_hash,
    };
    if from.is_some_and(|f| f.plan_hash.is_some()) && plan_json.is_none() {
        return Err(Failure::usage("the picture was made with a plan file: pass it with --plan-file"));
    }
    let plans = plan_json.map(|(plan, _)| plans(&plan, &spec, model)).transpose()?;
    Ok(Resolved { spec, picture, plans, warnings })
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

/// A picture that was made from an image needs it again.
fn check_image(
    from: Option<&RenderSpec>,
    hash: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    match (from.and_then(|f| f.image_hash.as_deref()), hash) {
        (Some(_), None) => {
            Err(Failure::usage("the picture was made from an image: pass that image with --image"))
        }
        (Some(before), Some(now)) if before != now => {
            warnings.push("this is another image than the one the picture was made from".into());
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check_origin(from: Option<&RenderSpec>, model: &ModelDescription, warnings: &mut Vec<String>) {
    let Some(before) = from.map(|f| &f.model) else { return };
    let now = ModelSpec::of(model);
    if before.fingerprints != now.fingerprints {
        warnings.push(format!(
            "the picture was made with other weights ({}) than these ({}): it will differ",
            before.name, now.name
        ));
    } else if before.numeric_class != now.numeric_class {
        let (before, now) = (&before.numeric_class, &now.numeric_class);
        warnings.push(format!(
            "the picture was computed as {before}, this one as {now}: it may differ in the last bits"
        ));
    }
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
    let same_picture = |f: &&RenderSpec| picture.is_none_or(|p| p.size() == f.base);
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

fn sliders(
    args: &RenderArgs,
    from: Option<&RenderSpec>,
    steps: u32,
    sizes: &[ImageSize],
) -> Result<Vec<UpscaleSpec>, Failure> {
    let kept = from.filter(|f| {
        args.slider.is_empty() && !args.paper && f.steps == steps && f.upscales.len() == sizes.len()
    });
    let given = match kept {
        Some(from) => from.upscales.iter().map(|u| u.slider).collect(),
        None if args.paper && args.slider.is_empty() && steps >= PAPER_SLIDERS[1] => {
            (0..sizes.len()).map(|i| PAPER_SLIDERS[i.min(1)]).collect()
        }
        None => args.slider.clone(),
    };
    let sliders = resolve_sliders(&given, steps, sizes.len()).map_err(Failure::usage)?;
    Ok(sizes.iter().zip(sliders).map(|(&size, slider)| UpscaleSpec { size, slider }).collect())
}

fn pag(
    args: &RenderArgs,
    from: Option<&RenderSpec>,
    model: &ModelDescription,
) -> Result<Option<PagSpec>, Failure> {
    let before = from.and_then(|f| f.pag.clone());
    let scale = args.pag_scale.or(before.as_ref().map(|p| p.scale)).unwrap_or(0.0);
    if scale == 0.0 {
        return match args.pag_blocks.is_empty() {
            true => Ok(None),
            false => Err(Failure::usage(
                "--pag-blocks without --pag-scale does nothing: give a scale, for example 3",
            )),
        };
    }
    let blocks = match (&args.pag_blocks[..], before) {
        ([], Some(before)) => before.blocks,
        ([], None) => vec!["mid".into()],
        (blocks, _) => blocks.to_vec(),
    };
    let known = |b: &&String| ["down", "mid", "up"].contains(&b.as_str()) || model.pag_blocks.contains(b);
    match blocks.iter().find(|b| !known(b)) {
        None => Ok(Some(PagSpec { scale, blocks })),
        Some(block) => {
            let all = model.pag_blocks.join(", ");
            Err(Failure::usage(format!(
                "pag block `{block}` is not in this model: it has down, mid, up, and one by one {all}"
            )))
        }
    }
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
