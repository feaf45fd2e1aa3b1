//! The coordinator of gigasmith: it owns the canvas and every sampling decision.
//!
//! [`render`] tells a render from spec to picture; [`sampler`] holds the method, pure; [`farm`] hands
//! tasks to workers; [`input`] reads pictures and [`output`] writes them; [`verify`] replays recorded traces through all of them;
//! [`cli`] is what a user types. `ARCHITECTURE.md` says what may depend on what.

#[cfg(feature = "embedded-worker")]
pub mod cli;
pub mod control;
pub mod digest;
pub mod disk;
#[cfg(feature = "embedded-worker")]
pub mod embedded;
pub mod estimate;
pub mod farm;
#[cfg(test)]
#[path = "../../tests/src/fuzz.rs"]
mod fuzz;
#[cfg(test)]
mod fuzz_targets;
pub mod input;
pub mod jobs;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod output;
pub mod raster;
pub mod render;
pub mod request;
pub mod spec;
pub mod store;
pub mod verify;
pub mod versions;
pub mod view;
pub mod web;

pub use gigasmith_sampler as sampler;
