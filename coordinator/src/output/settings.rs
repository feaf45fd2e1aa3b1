//! The settings that travel with a picture: as text for people and their tools, as JSON to render it
//! again.

use gigasmith_proto::text::Shown;
use serde::{Deserialize, Serialize};

use crate::sampler::plan::PlanKind;
use crate::spec::RenderSpec;
use crate::versions::{self, Stated, Unreadable, VersionError, Versioned};

/// Settings that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not ours, or damaged.
    #[error("the picture's settings are damaged: {}", Shown(.0))]
    Malformed(String),
    /// Written by a later program.
    #[error(transparent)]
    Version(VersionError),
}

/// What is embedded in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The program that made it: `gigasmith 0.1.0`.
    pub software: String,
    /// The render.
    pub spec: RenderSpec,
}

/// The texts that go into a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// For people and their tools: prompt and settings as A1111 writes them.
    pub parameters: String,
    /// The settings' JSON, in one line.
    pub json: String,
    /// The program and its version.
    pub software: String,
}

impl Versioned for Settings {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.spec.as_deref().map_or(Ok(()), RenderSpec::check_versions)
    }
}

impl Settings {
    /// The texts that go into the picture.
    pub fn embedded(&self) -> Embedded {
        Embedded { parameters: self.to_parameters(), json: self.to_json(), software: self.software.clone() }
    }

    /// The settings of a render by this program.
    pub fn new(spec: RenderSpec) -> Self {
        Self { software: format!("gigasmith {}", env!("CARGO_PKG_VERSION")), spec }
    }

    /// As JSON, in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("settings are plain data")
    }

    /// From JSON.
    pub fn from_json(json: &str) -> Result<Self, SettingsError> {
        versions::read(json.as_bytes()).map_err(|e| match e {
            Unreadable::Version(version) => SettingsError::Version(version),
            Unreadable::Malformed(reason) => SettingsError::Malformed(reason),
        })
    }

    /// As the `parameters` text that A1111 writes and many tools read: prompt, negative prompt, then
    /// a line of `Key: value` pairs. `Size` is the base, as there with its "Hires. fix".
    pub fn to_parameters(&self) -> String {
        let spec = &self.spec;
        let mut text = spec.prompt.clone();
        if let Some(negative) = &spec.negative_prompt {
            text.push_str(&format!("\nNegative prompt: {negative}"));
        }
        let plan = match spec.plan {
            PlanKind::Paper => "paper",
            PlanKind::Balanced => "balanced",
        };
        let unet = spec.model.fingerprints.iter().find(|(c, _)| c == "unet").map_or("", |(_, f)| f.as_str());
        let mut pairs = vec![
            format!("Steps: {}", spec.steps),
            "Sampler: DDIM".into(),
            format!("CFG scale: {}", spec.guidance_scale),
            format!("Seed: {}", spec.seed),
            format!("Size: {}", spec.base),
            format!("Model hash: {}", unet.get(..10).unwrap_or(unet)),
            format!("Model: {}", quoted(&spec.model.name)),
        ];
        if let (Some(first), Some(last)) = (spec.upscales.first(), spec.upscales.last()) {
            let scale = f64::from(last.size.width) / f64::from(spec.base.width);
            pairs.push(format!("Hires upscale: {}", (scale * 100.0).round() / 100.0));
            pairs.push("Hires upscaler: Pixelsmith".into());
            pairs.push(format!("Pixelsmith size: {}", last.size));
            let sliders: Vec<String> = spec.upscales.iter().map(|u| u.slider.to_string()).collect();
            pairs.push(match sliders.len() {
                1 => format!("Pixelsmith slider: {}", first.slider),
                _ => format!("Pixelsmith slider: \"{}\"", sliders.join(", ")),
            });
            pairs.push(format!("Pixelsmith plan: {plan}"));
        }
        if let Some(pag) = &spec.pag {
            pairs.push(format!("PAG scale: {}", pag.scale));
            pairs.push(format!("PAG blocks: {}", quoted(&pag.blocks.join(", "))));
        }
        pairs.push(format!("Version: {}", self.software));
        format!("{text}\n{}", pairs.join(", "))
    }
}

/// In quotes where a reader of comma-separated pairs would be misled.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}
