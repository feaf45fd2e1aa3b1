//! A render as it was asked for: what was given, and nothing that follows from it.
//!
//! A request can be made, sent and kept before any worker with its model is there; [`resolve`] settles it
//! into a [`RenderSpec`] once the model is known.

mod few_steps;
mod resolve;

use gigasmith_proto::domain::{Dtype, ModelDescription, WireDtype};
use serde::{Deserialize, Serialize};

pub use resolve::{Resolved, resolve};

use crate::digest::Digest;
use crate::output::Format;
use crate::sampler::cascade::CascadeError;
use crate::sampler::plan::{PlanFileError, PlanKind};
use crate::sampler::resize::Picture;
use crate::sampler::schedule::ScheduleError;
use crate::sampler::tiles::VaeMode;
use crate::sampler::units::ImageSize;
use crate::spec::{RenderSpec, Rng, SliderError, SpecError};
use crate::versions::{Stated, VersionError, Versioned};

/// The newest version of [`RenderRequest`].
pub const REQUEST_VERSION: u32 = 1;

/// A request that makes no render on this model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// The sizes.
    #[error(transparent)]
    Size(#[from] CascadeError),
    /// The steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The sliders.
    #[error(transparent)]
    Slider(#[from] SliderError),
    /// A number, a block, a mode.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The plan file.
    #[error(transparent)]
    Plan(#[from] PlanFileError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What was asked for. Empty lists and `None` mean: not given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RenderRequest {
    /// Format version; not given: 1.
    #[serde(skip_serializing)]
    pub version: RequestVersion,
    /// What to draw.
    pub prompt: String,
    /// What to steer away from.
    pub negative_prompt: Option<String>,
    /// Width of the final picture in image pixels.
    pub width: Option<u32>,
    /// Height of the final picture in image pixels.
    pub height: Option<u32>,
    /// Side of the final picture against the base.
    pub scale: Option<f64>,
    /// Size of the base stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<ImageSize>,
    /// Sides of all upscale stages against the base.
    pub stages: Vec<f64>,
    /// Denoising steps per stage.
    pub steps: Option<u32>,
    /// Guided steps: one value, or one per upscale stage.
    pub slider: Vec<u32>,
    /// Classifier-free guidance scale.
    pub guidance_scale: Option<f32>,
    /// Perturbed-attention guidance scale.
    pub pag_scale: Option<f32>,
    /// Self-attentions that it perturbs.
    pub pag_blocks: Vec<String>,
    /// The seed.
    pub seed: u64,
    /// The model's name.
    pub model: String,
    /// Kind of device the workers must have: `cpu`, `cuda` or `metal`.
    pub backend: Option<String>,
    /// What the workers must compute in.
    pub dtype: Option<Dtype>,
    /// How windows are laid.
    pub plan: Option<PlanKind>,
    /// Everything as published.
    pub paper: bool,
    /// Where the base stage's noise comes from.
    pub rng: Option<Rng>,
    /// How pictures go through the VAE.
    pub vae: Option<VaeMode>,
    /// How latents and noise predictions travel.
    pub wire: Option<WireDtype>,
    /// Whether workers of any numeric class may take part.
    pub mix: bool,
    /// How its picture is to be kept. (Not a part of the spec: the pixels are the same.)
    #[serde(skip_serializing_if = "is_default")]
    pub format: Format,
    /// The settings of a picture made before.
    pub from: Option<RenderSpec>,
}

/// The version of a request, [`REQUEST_VERSION`]: others are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "u64")]
pub struct RequestVersion;

impl TryFrom<u64> for RequestVersion {
    type Error = VersionError;

    fn try_from(found: u64) -> Result<Self, VersionError> {
        VersionError::check(REQUEST, found, REQUEST_VERSION).map(|()| Self)
    }
}

/// What a [`VersionError`] calls a request.
const REQUEST: &str = "the request";

impl Versioned for RenderRequest {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.check(REQUEST, REQUEST_VERSION)?;
        stated.from.as_deref().map_or(Ok(()), RenderSpec::check_versions)
    }
}

fn is_default(format: &Format) -> bool {
    *format == Format::default()
}

/// More text than any prompt has; the encoders see 77 tokens.
const MAX_TEXT: usize = 1 << 20;

impl RenderRequest {
    /// Whether it can be kept and resolved at all: what needs no model.
    pub fn check(&self) -> Result<(), RequestError> {
        let texts = [Some(&self.prompt), self.negative_prompt.as_ref(), Some(&self.model)];
        if let Some(long) = texts.into_iter().flatten().find(|t| t.len() > MAX_TEXT) {
            let bytes = long.len();
            return Err(RequestError::Other(format!("a text has {bytes} bytes: give at most {MAX_TEXT}")));
        }
        let Some(from) = &self.from else { return Ok(()) };
        let sizes = from.upscales.iter().map(|u| u.size).chain([from.base]);
        if from.steps == 0 || sizes.into_iter().any(|s| s.width == 0 || s.height == 0) {
            let what = "the settings of the picture make no sense: they have no steps, or a size of 0";
            return Err(RequestError::Other(what.into()));
        }
        Ok(())
    }

    /// Whether a model is one that was asked for: its name, its kind of device, its number format.
    pub fn wants(&self, model: &ModelDescription) -> bool {
        let class = &model.numeric_class;
        self.model == model.name
            && self.backend.as_ref().is_none_or(|b| *b == class.backend)
            && self.dtype.is_none_or(|d| d == class.dtype)
    }
}

/// What comes along with a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestInputs {
    /// Takes the place of the base stage.
    pub picture: Option<Picture>,
    /// A plan file's JSON.
    pub plan: Option<String>,
}

impl RequestInputs {
    /// What of them decides how a request is resolved. Hashes the picture's pixels.
    pub fn facts(&self) -> InputFacts {
        let picture = self
            .picture
            .as_ref()
            .map(|p| InputPicture { size: p.size(), hash: Digest::of(p.rgb()).to_string() });
        InputFacts { picture, plan: self.plan.clone() }
    }
}

/// What must be known of what comes along with a request, without its pixels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputFacts {
    /// Of the picture that takes the place of the base stage.
    pub picture: Option<InputPicture>,
    /// A plan file's JSON.
    pub plan: Option<String>,
}

/// A picture that comes along, by its size and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputPicture {
    /// Its size in pixels.
    pub size: ImageSize,
    /// The BLAKE3 of its pixels, in hexadecimal.
    pub hash: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_us_is_refused() {
        let spec = crate::spec::tests::spec();
        let from = |from: RenderSpec| RenderRequest { from: Some(from), ..RenderRequest::default() };
        assert!(from(spec.clone()).check().is_ok());
        let mut empty = spec.clone();
        empty.upscales[1].size.width = 0;
        for wrong in [RenderSpec { steps: 0, ..spec }, empty] {
            assert!(from(wrong).check().unwrap_err().to_string().contains("make no sense"));
        }
        let long = RenderRequest { prompt: "x".repeat(MAX_TEXT + 1), ..RenderRequest::default() };
        assert!(long.check().unwrap_err().to_string().contains("1048577 bytes"));
    }
}
