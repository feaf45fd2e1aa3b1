//! The worker of gigasmith: one device, one model, one question: *what noise is in this patch?*
//!
//! [`model`] holds the networks and is the only place with tensor types; [`backend`] is the plain
//! interface in front of it; [`device`] is the thread that owns it; [`session`] carries questions and
//! answers between that thread and a coordinator, which [`connect`] reaches; [`lifecycle`] says how it
//! ends, and [`signals`] who asks it to; [`cli`] and [`settings`] are what a user types; [`log`] is what it
//! says; [`memory`] keeps what a network uses over and over; [`synthetic`] stands in for a model in tests and
//! benchmarks.

pub mod backend;
pub mod cli;
pub mod connect;
mod desk;
pub mod device;
#[cfg(test)]
#[path = "../../tests/src/fuzz.rs"]
mod fuzz;
mod library;
pub mod lifecycle;
pub mod log;
pub mod memory;
pub mod model;
#[doc(hidden)]
pub mod operators;
pub mod session;
pub mod settings;
pub mod signals;
pub mod synthetic;
