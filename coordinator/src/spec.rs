//! The specification of a render: everything that decides its bytes, resolved, and nothing else.
//!
//! It is stored with the picture, and read back to make the same picture again. No time, host, path or
//! worker is part of it.

mod plans;

use std::collections::BTreeSet;

use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::domain::{Component, ModelDescription, NumericClass, WireDtype};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::sampler::cascade::{Cascade, CascadeError, MAX_STAGES};
use crate::sampler::plan::PlanKind;
use crate::sampler::tiles::{Cut, VaeMode};
use crate::sampler::units::ImageSize;
use crate::versions::{Stated, VersionError, Versioned};
pub use plans::{StagePlans, read_plan_file};

/// The newest version of [`RenderSpec`]. A spec has the oldest version that can say what it says, so that
/// programs that know no newer one read it, or refuse it.
pub const SPEC_VERSION: u32 = 2;

/// A render, fully resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderSpec {
    /// Format version: 1, or 2 where the base is drawn in windows.
    pub version: u32,
    /// What to draw.
    pub prompt: String,
    /// What to steer away from; `None`: nothing given, which is not the same as an empty string.
    pub negative_prompt: Option<String>,
    /// Which model, by name and content.
    pub model: ModelSpec,
    /// Size of the base stage, or of the picture that takes its place.
    pub base: ImageSize,
    /// The base is larger than what the model sees at once: it is drawn in windows, as `plan` lays them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub base_in_windows: bool,
    /// The upscale stages, ending at the final size.
    pub upscales: Vec<UpscaleSpec>,
    /// Denoising steps per stage.
    pub steps: u32,
    /// Classifier-free guidance scale; at most 1: none.
    pub guidance_scale: f32,
    /// Perturbed-attention guidance, in every stage.
    pub pag: Option<PagSpec>,
    /// Decides every random number.
    pub seed: u64,
    /// How windows are laid.
    pub plan: PlanKind,
    /// A plan given in a file, by the BLAKE3 hash of its JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// Where the base stage's noise comes from.
    pub rng: Rng,
    /// Which crop coordinates the network is told.
    pub crops: Crops,
    /// How pictures go through the VAE.
    pub vae: VaeMode,
    /// The picture that takes the place of the base stage, by the BLAKE3 hash of its pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_hash: Option<String>,
    /// How latents and noise predictions travel between coordinator and workers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wire: WireDtype,
    /// Workers of any numeric class may take part whose results lie close. The bytes then depend on who
    /// computed what.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mix: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A model, by name and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// `pocket`, a hub id, or a folder's last name.
    pub name: String,
    /// BLAKE3 of each component: `text`, `unet`, `vae`, in hexadecimal.
    pub fingerprints: Vec<(String, String)>,
    /// The class of the results.
    pub numeric_class: NumericClass,
}

impl ModelSpec {
    /// The model that a worker describes.
    pub fn of(model: &ModelDescription) -> Self {
        let name = |c: &Component| match c {
            Component::Text => "text",
            Component::Unet => "unet",
            Component::Vae => "vae",
        };
        Self {
            name: model.name.clone(),
            fingerprints: model.fingerprints.iter().map(|(c, f)| (name(c).into(), f.to_string())).collect(),
            numeric_class: model.numeric_class.clone(),
        }
    }
}

/// One upscale stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpscaleSpec {
    /// Size of the stage's picture.
    pub size: ImageSize,
    /// Number of guided steps, 0 to the number of steps.
    pub slider: u32,
}

/// Perturbed-attention guidance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagSpec {
    /// Its scale, above 0.
    pub scale: f32,
    /// Which self-attentions become the identity.
    pub blocks: Vec<String>,
}

/// Where the base stage's noise comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rng {
    /// The counter-based generator that all other noise comes from.
    Philox,
    /// PyTorch's CPU generator, as diffusers uses it.
    Torch,
}

/// Which crop coordinates the network is told in its time ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crops {
    /// The true top and left of the window.
    True,
    /// `left` in both places, as the published program has it.
    Published,
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// A size.
    #[error(transparent)]
    Size(#[from] CascadeError),
    /// A number.
    #[error("{name} {value} makes no sense: give {expected}")]
    Number {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// Attention blocks that the model does not have.
    #[error("pag block `{block}` is not in this model: it has {available}")]
    PagBlock {
        /// What was asked for.
        block: String,
        /// All names.
        available: String,
    },
    /// A picture too large to go through the VAE at once.
    #[error("{0} is too large to go through the VAE at once: use --vae tiled")]
    Whole(ImageSize),
}

impl Versioned for RenderSpec {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.check("the render's settings", SPEC_VERSION)
    }
}

impl RenderSpec {
    /// The BLAKE3 of its JSON: what checkpoints are bound to.
    pub fn hash(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a spec is plain data"))
    }

    /// The size of a stage's picture, 0 for the base; `None` beyond the last.
    pub fn stage_size(&self, stage: u32) -> Option<ImageSize> {
        match stage.checked_sub(1) {
            None => Some(self.base),
            Some(i) => self.upscales.get(i as usize).map(|u| u.size),
        }
    }

    /// Every setting that differs in `other`: its name, the value here, the value there.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let value = |spec: &Self| serde_json::to_value(spec).expect("a spec is plain data");
        let mut found = Vec::new();
        differ("", &value(self), &value(other), &mut found);
        found
    }

    /// Whether every setting is in its range and known to the model. Steps and sliders are checked
    /// where they are resolved.
    pub fn check(&self, model: &ModelDescription) -> Result<(), SpecError> {
        if self.upscales.len() > MAX_STAGES {
            return Err(CascadeError::TooManyStages(self.upscales.len()).into());
        }
        let sizes = || self.upscales.iter().map(|u| u.size);
        let base = (self.image_hash.is_none()).then_some(self.base);
        base.into_iter().chain(sizes()).try_for_each(|s| Cascade::check(s, model.latent_factor))?;
        let too_large =
            |s: &ImageSize| 12 * u64::from(s.width) * u64::from(s.height) >= MAX_MESSAGE_BYTES as u64;
        if let Some(size) =
            base.into_iter().chain(sizes()).find(|s| self.vae.cut(*s) == Cut::Whole && too_large(s))
        {
            return Err(SpecError::Whole(size));
        }
        let number = |name, value: f32, least: f32| match value {
            v if (least..=1000.0).contains(&v) => Ok(()),
            v => Err(SpecError::Number { name, value: v.into(), expected: "0 to 1000" }),
        };
        number("guidance scale", self.guidance_scale, 0.0)?;
        let Some(PagSpec { scale, blocks }) = &self.pag else { return Ok(()) };
        number("pag scale", *scale, f32::MIN_POSITIVE)?;
        check_pag_blocks(blocks, model)
    }
}

/// Compares two JSON values down to what differs.
fn differ(name: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in names {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                differ(&name, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), found);
            }
        }
        _ if a == b => {}
        _ => {
            let show = |v: &Value| match v {
                Value::Null => "nothing".to_owned(),
                v => v.to_string(),
            };
            found.push(format!("{} is {}, was {}", name.replace('_', " "), show(b), show(a)));
        }
    }
}

/// Whether the model has all these attention blocks.
pub fn check_pag_blocks(blocks: &[String], model: &ModelDescription) -> Result<(), SpecError> {
    let parts = [("down", 'd'), ("mid", 'm'), ("up", 'u')];
    // Not every model attends to something in every part.
    let of_part = |letter: char| model.pag_blocks.iter().any(|name| name.starts_with(letter));
    let parts: Vec<&str> = parts.into_iter().filter(|(_, l)| of_part(*l)).map(|(part, _)| part).collect();
    let known = |b: &&String| parts.contains(&b.as_str()) || model.pag_blocks.contains(b);
    match blocks.iter().find(|b| !known(b)) {
        None => Ok(()),
        Some(block) => {
            let available = format!("{}, and one by one {}", parts.join(", "), model.pag_blocks.join(", "));
            Err(SpecError::PagBlock { block: block.clone(), available })
        }
    }
}

/// A slider that does not fit the steps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliderError {
    /// More guided steps than steps.
    #[error("slider {slider} is above the number of steps: give 0 to {steps}")]
    AboveSteps {
        /// What was asked for.
        slider: u32,
        /// S.
        steps: u32,
    },
    /// Neither one value nor one per stage.
    #[error("{given} sliders for {stages} upscale stages: give one value, or one per stage")]
    Count {
        /// How many were given.
        given: usize,
        /// How many stages there are.
        stages: usize,
    },
}

/// The slider of each upscale stage: one value for all, one each, or, when none is given, these shares
/// of the steps, for the first stage and for the later ones.
pub fn resolve_sliders(
    given: &[u32],
    steps: u32,
    stages: usize,
    shares: [f32; 2],
) -> Result<Vec<u32>, SliderError> {
    if let Some(&slider) = given.iter().find(|&&s| s > steps) {
        return Err(SliderError::AboveSteps { slider, steps });
    }
    let share = |i: usize| ((steps as f32 * shares[i.min(1)]).round() as u32).clamp(1, steps);
    match given {
        [] => Ok((0..stages).map(share).collect()),
        [one] => Ok(vec![*one; stages]),
        each if each.len() == stages => Ok(each.to_vec()),
        _ => Err(SliderError::Count { given: given.len(), stages }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use gigasmith_proto::domain::Dtype;

    use super::*;

    /// A small render with most settings away from their defaults.
    pub(crate) fn spec() -> RenderSpec {
        let class =
            NumericClass { backend: "cpu".into(), kernels: "avx2".into(), dtype: Dtype::F32, algorithm: 1 };
        let size = |width, height| ImageSize { width, height };
        RenderSpec {
            version: 1,
            prompt: "a fox".into(),
            negative_prompt: Some("blurry".into()),
            model: ModelSpec {
                name: "pocket".into(),
                fingerprints: vec![("unet".into(), "0123456789abcdef".into())],
                numeric_class: class,
            },
            base: size(8, 8),
            base_in_windows: false,
            upscales: vec![
                UpscaleSpec { size: size(16, 16), slider: 12 },
                UpscaleSpec { size: size(32, 32), slider: 18 },
            ],
            steps: 30,
            guidance_scale: 7.5,
            pag: Some(PagSpec { scale: 3.0, blocks: vec!["mid".into(), "u0".into()] }),
            seed: u64::MAX,
            plan: PlanKind::Balanced,
            plan_hash: None,
            rng: Rng::Philox,
            crops: Crops::True,
            vae: VaeMode::Auto,
            image_hash: None,
            wire: WireDtype::F32,
            mix: false,
        }
    }

    #[test]
    fn sliders_follow_the_publication_in_proportion() {
        let resolve_sliders = |given: &[u32], steps, stages| {
            resolve_sliders(given, steps, stages, gigasmith_proto::domain::PAPER_SLIDER_SHARES)
        };
        assert_eq!(resolve_sliders(&[], 50, 3), Ok(vec![20, 30, 30]));
        assert_eq!(resolve_sliders(&[], 30, 2), Ok(vec![12, 18]));
        assert_eq!(resolve_sliders(&[], 1, 1), Ok(vec![1]));
        assert_eq!(resolve_sliders(&[0], 4, 2), Ok(vec![0, 0]));
        assert_eq!(resolve_sliders(&[4, 3], 4, 2), Ok(vec![4, 3]));
        assert_eq!(resolve_sliders(&[5], 4, 2), Err(SliderError::AboveSteps { slider: 5, steps: 4 }));
        assert_eq!(resolve_sliders(&[1, 2, 3], 4, 2), Err(SliderError::Count { given: 3, stages: 2 }));
    }

    #[test]
    fn differences_are_named_with_both_values() {
        let before = spec();
        assert!(before.differences(&before).is_empty());
        let mut now = before.clone();
        (now.seed, now.negative_prompt, now.pag) = (8, None, None);
        now.model.numeric_class.dtype = Dtype::F16;
        now.upscales[1].slider = 3;
        let found = before.differences(&now);
        let starts = [
            "model.numeric class.dtype is \"f16\", was \"f32\"",
            "negative prompt is nothing, was \"blurry\"",
        ];
        assert!(starts.iter().all(|s| found.iter().any(|f| f == s)), "{found:?}");
        let seed = format!("seed is 8, was {}", u64::MAX);
        assert!(found.contains(&seed) && found.len() == 5, "{found:?}");
        assert!(found.iter().any(|f| f.starts_with("upscales is [")), "{found:?}");
        assert_ne!(before.hash(), now.hash());
    }
}
