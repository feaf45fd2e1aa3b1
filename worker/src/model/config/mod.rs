//! The configuration files of a model, read strictly: a value that this program cannot honour is an
//! error that names file and key, never a silent default.

mod index;
mod reader;
mod schedule;
mod text;
mod unet;
mod vae;

pub(crate) use index::{ModelIndex, PresetFile};
pub(crate) use reader::{Reader, canonical};
pub(crate) use schedule::read_schedule;
pub(crate) use text::{Activation, TextConfig};
pub(crate) use unet::{BlockConfig, UnetConfig};
pub(crate) use vae::VaeConfig;
