//! The configuration files of a model, read strictly: a value that this program cannot honour is an
//! error that names file and key, never a silent default.

mod index;
mod pipelines;
mod presets;
mod reader;
mod schedule;
mod schedulers;
mod text;
mod unet;
mod vae;

pub(crate) use index::ModelIndex;
pub(crate) use presets::{PresetFile, Training};
pub(crate) use reader::{Reader, canonical_config};
pub(crate) use schedule::read_schedule;
pub(crate) use text::{Activation, TextConfig};
pub(crate) use unet::{BlockConfig, MidConfig, UnetConfig};
pub(crate) use vae::VaeConfig;
