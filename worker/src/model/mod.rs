//! The networks: where their files come from, what their configurations mean, and how they run on a
//! device. The only place with tensor types; what leaves it is plain data.
//!
//! Invariants: the same question has the same answer to the bit, whatever the number of threads or
//! what was asked before; a configuration that is not understood is an error, never a guess; weights
//! that the configuration has no place for are an error too.

mod clip;
mod config;
mod describe;
mod error;
mod files;
mod fingerprint;
#[cfg(test)]
mod fuzz;
mod guidance;
mod hub;
pub(crate) mod kernels;
mod kind;
mod layers;
mod layout;
mod names;
mod networks;
mod norms;
mod pocket;
mod predictor;
mod resnet;
mod sdxl;
mod select;
mod source;
mod texts;
mod tokenizer;
mod unet;
mod vae;
mod weights;

pub use error::LoadError;
pub use hub::{HubError, HubOptions, Network};
pub use layout::{Variant, VariantError};
pub use sdxl::{LoadOptions, SdxlModel, load, open};
pub use select::{BatchChoice, DeviceChoice};
pub use source::ModelSource;
