//! What to use when the user says nothing: the optional `gigasmith.json`, else what the model's other files say of
//! how it was trained, else the published program's defaults.

use gigasmith_proto::domain::{PAPER_SLIDER_SHARES, Preset, TimestepSpacing};
use serde::Deserialize;

use super::schedulers::Class;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// Sizes that a model can list, as many as a description can carry.
const MAX_SIZES: usize = 1024;
/// Native side of SDXL-Turbo, in image pixels; SDXL's is twice that.
const TURBO_SIDE: usize = 512;

/// How many steps a model was trained to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Training {
    /// Many, with guidance.
    Usual,
    /// One to four, without guidance (SDXL-Turbo: Sauer et al., arXiv 2311.17042).
    Turbo,
    /// Four to eight, with none or little guidance (latent consistency: Luo et al., arXiv 2310.04378).
    Consistency,
}

impl Training {
    /// What a model's files say of it. `side`: native side in image pixels.
    pub(crate) fn told_by(class: Class, spacing: TimestepSpacing, side: usize) -> Self {
        if class.few_steps {
            return Self::Consistency;
        }
        // A single step must begin at the last timestep, which only this spacing does.
        let turbo = spacing == TimestepSpacing::Trailing && side == TURBO_SIDE;
        if turbo { Self::Turbo } else { Self::Usual }
    }
}

/// `gigasmith.json`. Every key is optional.
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
        let sizes = &self.native_sizes;
        if sizes.len() > MAX_SIZES || sizes.iter().any(|(width, height)| *width == 0 || *height == 0) {
            return Err(format!("`native_sizes` must be up to {MAX_SIZES} sizes above 0"));
        }
        Ok(())
    }

    /// The presets, completed with what the model was trained for.
    pub(crate) fn preset(&self, training: Training) -> Preset {
        let (steps, guidance_scale) = match training {
            Training::Usual => (50, 7.5),
            Training::Turbo => (4, 0.0),
            Training::Consistency => (8, 1.0),
        };
        Preset {
            steps: self.steps.unwrap_or(steps),
            guidance_scale: self.guidance_scale.unwrap_or(guidance_scale),
            scale: self.scale.unwrap_or(2.0),
            slider_shares: self.slider_shares.unwrap_or(PAPER_SLIDER_SHARES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::schedulers;

    #[test]
    fn presets_are_completed_and_checked() {
        let some: PresetFile = serde_json::from_str(r#"{"steps": 30}"#).unwrap();
        assert_eq!(
            some.preset(Training::Usual),
            Preset { steps: 30, guidance_scale: 7.5, scale: 2.0, slider_shares: [0.4, 0.6] }
        );
        let turbo = some.preset(Training::Turbo);
        assert_eq!((turbo.steps, turbo.guidance_scale), (30, 0.0));
        assert!(serde_json::from_str::<PresetFile>(r#"{"step": 30}"#).is_err());
        let shares: PresetFile = serde_json::from_str(r#"{"slider_shares": [0.5, 1.5]}"#).unwrap();
        assert!(shares.check().is_err());
        let bad: PresetFile = serde_json::from_str(r#"{"scale": 0.5}"#).unwrap();
        assert_eq!(bad.check().unwrap_err(), "`scale` must be a number of at least 1");
        let sizes: PresetFile = serde_json::from_str(r#"{"native_sizes": [[0, 64]]}"#).unwrap();
        assert!(sizes.check().unwrap_err().contains("`native_sizes`"));
    }

    #[test]
    fn files_tell_what_a_model_was_trained_for() {
        let told = |class: &str, spacing, side| {
            Training::told_by(schedulers::find(class).expect("a known class"), spacing, side)
        };
        use TimestepSpacing::{Leading, Trailing};
        assert_eq!(told("EulerAncestralDiscreteScheduler", Trailing, 512), Training::Turbo);
        assert_eq!(told("EulerAncestralDiscreteScheduler", Trailing, 1024), Training::Usual);
        assert_eq!(told("EulerDiscreteScheduler", Leading, 512), Training::Usual);
        assert_eq!(told("LCMScheduler", Leading, 1024), Training::Consistency);
    }
}
