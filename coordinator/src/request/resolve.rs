//! From a request to a render spec: what is given wins, then `--paper`, then `--from`, then the model's
//! preset.

use gigasmith_proto::domain::{ModelDescription, PAPER_SLIDER_SHARES};

use super::{RenderRequest, RequestError, RequestInputs, few_steps};
use crate::sampler::cascade::{Cascade, CascadeError, ModelSizes, SizeRequest, cut_off, cut_share};
use crate::sampler::plan::{Plan, PlanFile, PlanFileError, PlanKind, StagePlanFile};
use crate::sampler::resize::Picture;
use crate::sampler::schedule::Schedule;
use crate::sampler::tiles::VaeMode;
use crate::sampler::units::ImageSize;
use crate::spec::{Crops, ModelSpec, PagSpec, RenderSpec, Rng, UpscaleSpec, resolve_sliders};
use crate::versions::{self, Stated, VersionError, Versioned};

/// What `--paper` sets.
struct Published {
    steps: u32,
    guidance_scale: f32,
    plan: PlanKind,
    crops: Crops,
    vae: VaeMode,
}

/// The publication's settings (its section 4 and its program's defaults).
const PAPER: Published = Published {
    steps: 50,
    guidance_scale: 7.5,
    plan: PlanKind::Paper,
    crops: Crops::Published,
    vae: VaeMode::Tiled,
};

/// A render with every setting settled.
#[derive(Debug)]
pub struct Resolved {
    /// What decides its bytes.
    pub spec: RenderSpec,
    /// Plans that take the place of drawn ones.
    pub plans: Option<Vec<Plan>>,
    /// What works, but may not be what was meant.
    pub warnings: Vec<String>,
}

/// Settles every setting of a request on a model.
pub fn resolve(
    request: &RenderRequest,
    inputs: &RequestInputs,
    model: &ModelDescription,
) -> Result<Resolved, RequestError> {
    request.check()?;
    let from = request.from.as_ref();
    let picture = inputs.picture.as_ref();
    if let Some(from) = from {
        check_inputs(from, inputs)?;
    }
    let plan_file = inputs.plan.as_deref().map(read_plan).transpose()?;
    let mut warnings = Vec::new();
    let paper = request.paper.then_some(PAPER);
    let paper = paper.as_ref();
    let steps = pick(request.steps, paper.map(|p| p.steps), from.map(|f| f.steps), model.preset.steps);
    Schedule::new(&model.schedule, steps)?;
    let Cascade { base, base_in_windows, upscales: sizes } = sizes(request, from, picture, model)?;
    let shares = if request.paper { PAPER_SLIDER_SHARES } else { model.preset.slider_shares };
    let guidance_scale = pick(
        request.guidance_scale,
        paper.map(|p| p.guidance_scale),
        from.map(|f| f.guidance_scale),
        model.preset.guidance_scale,
    );
    let plan = plan_file.as_ref().and_then(|file| file.stages.first()).map(|s| s.kind).or(request.plan);
    let spec = RenderSpec {
        version: if base_in_windows { 2 } else { 1 },
        prompt: request.prompt.clone(),
        negative_prompt: request.negative_prompt.clone().or(from.and_then(|f| f.negative_prompt.clone())),
        model: ModelSpec::of(model),
        base,
        base_in_windows,
        upscales: sliders(request, from, (steps, shares), &sizes)?,
        steps,
        guidance_scale,
        pag: pag(request, from)?,
        seed: request.seed,
        plan: pick(plan, paper.map(|p| p.plan), from.map(|f| f.plan), PlanKind::Balanced),
        plan_hash: inputs.plan.as_ref().map(|json| blake3::hash(json.as_bytes()).to_string()),
        rng: pick(request.rng, None, from.map(|f| f.rng), Rng::Philox),
        crops: pick(None, paper.map(|p| p.crops), from.map(|f| f.crops), Crops::True),
        vae: pick(request.vae, paper.map(|p| p.vae), from.map(|f| f.vae), VaeMode::Seamless),
        image_hash: picture.map(|p| blake3::hash(p.rgb()).to_string()),
        wire: pick(request.wire, None, from.map(|f| f.wire), Default::default()),
        mix: request.mix,
    };
    spec.check(model)?;
    let plans = plan_file.map(|file| plans(&file, &spec, model)).transpose()?;
    if let Some(from) = from {
        compare_origin(from, &spec, &mut warnings);
    }
    warnings.extend(remarks(&spec, model));
    warnings.extend(few_steps::remarks(&spec, model));
    warnings.extend(picture.and_then(|p| fitted(p.size(), spec.upscales.last()?.size)));
    Ok(Resolved { spec, plans, warnings })
}

impl Versioned for PlanFile {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.check("the plan", 1)
    }
}

/// Reads a plan file's JSON.
pub fn read_plan(json: &str) -> Result<PlanFile, RequestError> {
    versions::read(json.as_bytes()).map_err(|e| RequestError::Other(format!("the plan file: {e}")))
}

/// What works, but may not be what was meant.
fn remarks(spec: &RenderSpec, model: &ModelDescription) -> Vec<String> {
    let mut remarks = Vec::new();
    let last = spec.upscales.last().map_or(spec.base, |u| u.size);
    if let Some(cut) = cut_off(spec.base, last) {
        let way_out = if spec.image_hash.is_some() { "" } else { "; --base WIDTHxHEIGHT chooses another" };
        remarks.push(format!(
            "the base is {}: {:.0}% of it is cut off to fit the final aspect{way_out}",
            spec.base,
            cut * 100.0
        ));
    }
    if spec.base_in_windows {
        let side = model.patch_side * model.latent_factor;
        remarks.push(format!(
            "the base is {}, more than the model sees at once: it is drawn in windows of {side} pixels, so \
             that things may appear more than once",
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

/// Fails when rendering a picture again needs what was not given.
fn check_inputs(from: &RenderSpec, inputs: &RequestInputs) -> Result<(), RequestError> {
    let missing = match (&from.image_hash, &from.plan_hash) {
        (Some(_), _) if inputs.picture.is_none() => "from a picture: pass that with --image",
        (_, Some(_)) if inputs.plan.is_none() => "with a plan file: pass that with --plan-file",
        _ => return Ok(()),
    };
    Err(RequestError::Other(format!("the picture of --from was made {missing}")))
}

/// What differs from a picture made before.
fn compare_origin(from: &RenderSpec, spec: &RenderSpec, warnings: &mut Vec<String>) {
    for (what, before, now) in
        [("image", &from.image_hash, &spec.image_hash), ("plan file", &from.plan_hash, &spec.plan_hash)]
    {
        if before.is_some() && before != now {
            warnings.push(format!("this is another {what} than the one the picture was made with"));
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
}

fn sizes(
    request: &RenderRequest,
    from: Option<&RenderSpec>,
    picture: Option<&Picture>,
    model: &ModelDescription,
) -> Result<Cascade, RequestError> {
    let wanted = SizeRequest {
        width: request.width,
        height: request.height,
        scale: request.scale,
        stages: request.stages.clone(),
        base: request.base,
        picture: picture.map(Picture::size),
        native_base: request.paper,
    };
    let asked = SizeRequest { picture: None, native_base: false, ..wanted.clone() } != SizeRequest::default();
    let same_picture = |f: &&RenderSpec| picture.is_none_or(|p| p.size() == f.base && !f.upscales.is_empty());
    if let Some(from) = from.filter(|_| !asked).filter(same_picture) {
        let upscales = from.upscales.iter().map(|u| u.size).collect();
        return Ok(Cascade { base: from.base, base_in_windows: from.base_in_windows, upscales });
    }
    let model_sizes = ModelSizes {
        native: &model.native_sizes,
        latent_factor: model.latent_factor,
        default_scale: model.preset.scale.into(),
    };
    Cascade::resolve(&wanted, model_sizes).map_err(|error| match (picture, error) {
        // Nobody gave this width.
        (Some(picture), CascadeError::TooSmall { least, .. }) if wanted.width.or(wanted.height).is_none() => {
            let size = picture.size();
            let what = "which is too small at this scale";
            RequestError::Other(format!("the picture is {size}, {what}: {least} pixels a side are needed"))
        }
        (_, error) => error.into(),
    })
}

/// How a picture fits the size that it is rendered at, when worth a word.
fn fitted(picture: ImageSize, last: ImageSize) -> Option<String> {
    if last.width < picture.width || last.height < picture.height {
        return Some(format!(
            "the picture is {picture} and comes out smaller, {last}: without --width and --height, --scale enlarges it"
        ));
    }
    let exact = u64::from(picture.width) * u64::from(last.height)
        == u64::from(picture.height) * u64::from(last.width);
    // What is more than a little is said of every base.
    (!exact && cut_off(picture, last).is_none()).then(|| {
        format!(
            "the picture is {picture}, and {last} has another aspect (sides are multiples of the latent pixel): \
             {:.1}% of it is cut off at the edges",
            cut_share(picture, last) * 100.0
        )
    })
}

/// Sliders as given; else those of a picture made before, in proportion to the steps; else shares of the
/// steps: the publication's with `--paper`, or the model's.
fn sliders(
    request: &RenderRequest,
    from: Option<&RenderSpec>,
    (steps, shares): (u32, [f32; 2]),
    sizes: &[ImageSize],
) -> Result<Vec<UpscaleSpec>, RequestError> {
    let given = match from.filter(|f| f.upscales.len() == sizes.len()) {
        _ if !request.slider.is_empty() => request.slider.clone(),
        Some(from) if !request.paper => {
            let share =
                |slider: u32| (u64::from(slider) * u64::from(steps) * 2 / u64::from(from.steps)).div_ceil(2);
            from.upscales.iter().map(|u| share(u.slider) as u32).collect()
        }
        _ => Vec::new(),
    };
    let sliders = resolve_sliders(&given, steps, sizes.len(), shares)?;
    Ok(sizes.iter().zip(sliders).map(|(&size, slider)| UpscaleSpec { size, slider }).collect())
}

fn pag(request: &RenderRequest, from: Option<&RenderSpec>) -> Result<Option<PagSpec>, RequestError> {
    let before = from.and_then(|f| f.pag.clone());
    let scale = request.pag_scale.or(before.as_ref().map(|p| p.scale)).unwrap_or(0.0);
    if scale == 0.0 {
        return match request.pag_blocks.is_empty() {
            true => Ok(None),
            false => {
                Err(RequestError::Other("--pag-blocks needs a --pag-scale above 0, for example 3".into()))
            }
        };
    }
    let blocks = match (&request.pag_blocks[..], before) {
        ([], Some(before)) => before.blocks,
        ([], None) => vec!["mid".into()],
        (blocks, _) => blocks.to_vec(),
    };
    Ok(Some(PagSpec { scale, blocks }))
}

/// The plans of a plan file, for a spec that was resolved with it.
pub fn given_plans(
    json: &str,
    spec: &RenderSpec,
    model: &ModelDescription,
) -> Result<Vec<Plan>, RequestError> {
    plans(&read_plan(json)?, spec, model)
}

fn plans(file: &PlanFile, spec: &RenderSpec, model: &ModelDescription) -> Result<Vec<Plan>, RequestError> {
    let (found, wanted) = (file.stages.len(), spec.upscales.len());
    if found != wanted {
        return Err(PlanFileError::Stages { found, wanted }.into());
    }
    let plan = |(stage, (file, upscale)): (usize, (&StagePlanFile, &UpscaleSpec))| {
        let canvas = upscale.size.latent(model.latent_factor);
        file.to_plan(stage, canvas, model.patch_side as usize, spec.steps as usize)
    };
    Ok((1..).zip(file.stages.iter().zip(&spec.upscales)).map(plan).collect::<Result<_, PlanFileError>>()?)
}
