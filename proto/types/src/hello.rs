//! How a worker and a coordinator introduce themselves to each other.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use super::ModelDescription;

/// The version of the conversation that this program speaks.
pub const PROTOCOL: u32 = 3;
/// The oldest version that it still understands: programs of two releases in a row work together, so that a farm
/// can be upgraded one machine at a time.
pub const OLDEST_PROTOCOL: u32 = PROTOCOL - 1;

/// Sixteen random bytes that tell one process from every other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identifier(pub [u8; 16]);

impl Identifier {
    /// Draws one. [`RandomState`] is keyed by the system's random source.
    pub fn random() -> Self {
        let half = || RandomState::new().hash_one((std::process::id(), SystemTime::now()));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&half().to_le_bytes());
        bytes[8..].copy_from_slice(&half().to_le_bytes());
        Self(bytes)
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What a worker says first.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Name to show people.
    pub name: String,
    /// What it computes on, to show people.
    pub device: String,
    /// Version of its program, to show people; empty before protocol 3.
    pub version: String,
    /// Tasks that may be in flight to it, at least 1.
    pub slots: u32,
    /// Its model.
    pub model: ModelDescription,
    /// Which process it is: the same after a reconnection.
    pub instance: Identifier,
    /// Which coordinator it last spoke to.
    pub incarnation: Option<Identifier>,
    /// Leases of that coordinator under way or not acknowledged.
    pub leases: Vec<u64>,
}

/// What a coordinator answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// What it calls the worker: its name, made unique.
    pub name: String,
    /// Which process the coordinator is: leases of another one are void.
    pub incarnation: Identifier,
    /// Which of the leases that the worker named still stand.
    pub leases: Vec<u64>,
}
