//! `model_index.json` (what the model is made of) and the optional `gigasmith.json` (its presets).

use gigasmith_proto::domain::{PAPER_SLIDER_SHARES, Preset};
use serde::Deserialize;
use serde_json::Value;

use super::Reader;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// What matters of `model_index.json`.
#[derive(Debug, Clone)]
pub(crate) struct ModelIndex {
    /// A missing negative prompt means zero embeddings.
    pub(crate) force_zeros_for_empty_prompt: bool,
}

impl ModelIndex {
    /// Reads the index and checks that every component is of a class this program implements.
    pub(crate) fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        let r = Reader::open(files, "model_index.json")?;
        let pipeline = r.str_or("_class_name", "StableDiffusionXLPipeline")?;
        if !pipeline.starts_with("StableDiffusionXL") {
            return Err(
                r.error("_class_name", "only pipelines of the StableDiffusionXL family are supported")
            );
        }
        let classes: [(&str, &[&str]); 6] = [
            ("unet", &["UNet2DConditionModel"]),
            ("vae", &["AutoencoderKL"]),
            ("text_encoder", &["CLIPTextModel"]),
            ("text_encoder_2", &["CLIPTextModelWithProjection"]),
            ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
            ("tokenizer_2", &["CLIPTokenizer", "CLIPTokenizerFast"]),
        ];
        for (key, allowed) in classes {
            let class = r.get(key).and_then(|v| v.get(1)).and_then(Value::as_str);
            if !class.is_some_and(|c| allowed.contains(&c)) {
                return Err(r.error(key, format!("only the class {} is supported", allowed.join(" or "))));
            }
        }
        let scheduler = r.get("scheduler").and_then(|v| v.get(1)).and_then(Value::as_str);
        // The betas are the model's; the sampler is ours. So any scheduler's file will do.
        if !scheduler.is_some_and(|c| c.ends_with("Scheduler")) {
            return Err(r.error("scheduler", "a scheduler's class is needed"));
        }
        Ok(Self { force_zeros_for_empty_prompt: r.bool_or("force_zeros_for_empty_prompt", true)? })
    }
}

/// `gigasmith.json`: what to use when the user says nothing. Every key is optional.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PresetFile {
    steps: Option<u32>,
    guidance_scale: Option<f32>,
    scale: Option<f32>,
    /// Guided share of the steps, for the first upscale stage and for the later ones.
    slider_shares: Option<[f32; 2]>,
    /// (width, height) in image pixels, the default first.
    #[serde(default)]
    pub(crate) native_sizes: Vec<(u32, u32)>,
}

impl PresetFile {
    const NAME: &'static str = "gigasmith.json";

    /// Reads the file if there is one.
    pub(crate) fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        if !files.exists(Self::NAME) {
            return Ok(Self::default());
        }
        let preset: Self = serde_json::from_str(&files.text(Self::NAME)?)
            .map_err(|e| LoadError::Json { file: files.name(Self::NAME), reason: e.to_string() })?;
        preset.check().map_err(|reason| LoadError::Json { file: files.name(Self::NAME), reason })?;
        Ok(preset)
    }

    fn check(&self) -> Result<(), String> {
        if self.steps == Some(0) {
            return Err("`steps` must be at least 1".into());
        }
        for (key, value, least) in [("guidance_scale", self.guidance_scale, 0.0), ("scale", self.scale, 1.0)]
        {
            if value.is_some_and(|v| !(v.is_finite() && v >= least)) {
                return Err(format!("`{key}` must be a number of at least {least}"));
            }
        }
        if self.slider_shares.is_some_and(|shares| !shares.iter().all(|s| (0.0..=1.0).contains(s))) {
            return Err("`slider_shares` must be two numbers from 0 to 1".into());
        }
        Ok(())
    }

    /// The presets, completed with the published program's defaults.
    pub(crate) fn preset(&self) -> Preset {
        Preset {
            steps: self.steps.unwrap_or(50),
            guidance_scale: self.guidance_scale.unwrap_or(7.5),
            scale: self.scale.unwrap_or(2.0),
            slider_shares: self.slider_shares.unwrap_or(PAPER_SLIDER_SHARES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_completed_and_checked() {
        let some: PresetFile = serde_json::from_str(r#"{"steps": 30}"#).unwrap();
        assert_eq!(
            some.preset(),
            Preset { steps: 30, guidance_scale: 7.5, scale: 2.0, slider_shares: [0.4, 0.6] }
        );
        assert!(serde_json::from_str::<PresetFile>(r#"{"step": 30}"#).is_err());
        let shares: PresetFile = serde_json::from_str(r#"{"slider_shares": [0.5, 1.5]}"#).unwrap();
        assert!(shares.check().is_err());
        let bad: PresetFile = serde_json::from_str(r#"{"scale": 0.5}"#).unwrap();
        assert_eq!(bad.check().unwrap_err(), "`scale` must be a number of at least 1");
    }
}
