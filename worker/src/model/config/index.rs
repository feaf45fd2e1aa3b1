//! `model_index.json`: what the model is made of.

use serde_json::Value;

use super::schedulers::{self, Class};
use super::{Reader, pipelines};
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// What matters of `model_index.json`.
#[derive(Debug, Clone)]
pub(crate) struct ModelIndex {
    /// A missing negative prompt means zero embeddings.
    pub(crate) force_zeros_for_empty_prompt: bool,
    /// The scheduler's class.
    pub(crate) scheduler: Class,
}

impl ModelIndex {
    /// Reads the index and checks that every component is of a class this program implements.
    pub(crate) fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        let r = Reader::open(files, "model_index.json")?;
        check_pipeline(&r)?;
        let classes: [(&str, &[&str]); 6] = [
            ("unet", &["UNet2DConditionModel"]),
            ("vae", &["AutoencoderKL"]),
            ("text_encoder", &["CLIPTextModel"]),
            ("text_encoder_2", &["CLIPTextModelWithProjection"]),
            ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
            ("tokenizer_2", &["CLIPTokenizer", "CLIPTokenizerFast"]),
        ];
        for (key, allowed) in classes {
            if !class(&r, key).is_some_and(|c| allowed.contains(&c)) {
                return Err(r.error(key, format!("only the class {} is supported", allowed.join(" or "))));
            }
        }
        let Some(scheduler) = class(&r, "scheduler") else {
            return Err(r.error("scheduler", "a scheduler's class is needed"));
        };
        let found = schedulers::find(scheduler);
        let scheduler = found.ok_or_else(|| r.error("scheduler", schedulers::refusal(scheduler)))?;
        let force_zeros_for_empty_prompt = r.bool_or("force_zeros_for_empty_prompt", true)?;
        Ok(Self { force_zeros_for_empty_prompt, scheduler })
    }
}

/// The class of a component.
fn class<'a>(r: &'a Reader, component: &str) -> Option<&'a str> {
    r.get(component).and_then(|v| v.get(1)).and_then(Value::as_str)
}

/// The pipeline must make pictures of texts with SDXL's parts.
fn check_pipeline(r: &Reader) -> Result<(), LoadError> {
    let key = "_class_name";
    let pipeline = match r.get(key) {
        // A pipeline with code of its own: [module, class].
        Some(Value::Array(names)) => names.last().and_then(Value::as_str),
        Some(name) => name.as_str(),
        None => Some("StableDiffusionXLPipeline"),
    };
    let Some(pipeline) = pipeline else { return Err(r.error(key, "a pipeline's class is needed")) };
    if let Some(reason) = pipelines::refusal(pipeline) {
        return Err(r.error(key, reason));
    }
    if class(r, "controlnet").is_some() {
        let what = "it is a ControlNet's pipeline; give the model without it";
        return Err(r.error("controlnet", what));
    }
    let refiner = class(r, "text_encoder").is_none() && class(r, "text_encoder_2").is_some();
    if refiner || r.bool_or("requires_aesthetics_score", false)? {
        let key = if refiner { "text_encoder" } else { "requires_aesthetics_score" };
        let what = "it is an SDXL refiner, which cannot make pictures by itself; give the base model \
                    (`stabilityai/stable-diffusion-xl-base-1.0` or one made of it)";
        return Err(r.error(key, what));
    }
    Ok(())
}
