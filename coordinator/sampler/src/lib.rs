//! The sampler: every decision of Pixelsmith's method (Tragakis et al., arXiv 2406.07251), as pure
//! functions of a spec, a seed and the networks' answers.
//!
//! Nothing here does I/O, waits, reads a clock or a global random generator, or knows of tokio,
//! tonic or candle. [`stage`] ties the parts together: it hands out patches whose inputs are ready
//! and commits their results in an order that gives the same bytes as running them one by one.
#![forbid(unsafe_code)]

pub mod blend;
pub mod blocks;
pub mod canvas;
pub mod cascade;
pub mod graph;
pub mod guidance;
pub mod noise;
pub mod patch_set;
pub mod philox;
pub mod plan;
pub mod resize;
pub mod schedule;
mod spare;
pub mod stage;
pub mod tiles;
pub mod torch_rng;
pub mod units;
