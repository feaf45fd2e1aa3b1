//! What the store keeps of a render, as JSON.

use gigasmith_proto::domain::RenderState;
use serde::{Deserialize, Serialize};

use crate::request::{InputPicture, RenderRequest};
use crate::versions::{Stated, VersionError, Versioned};

/// The format version that this program writes, and the only one so far.
pub const VERSION: u32 = 1;

/// `render.json`: a render as it was submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderRecord {
    /// Format version.
    pub version: u32,
    /// The render's id: also the name of its folder.
    pub id: String,
    /// Tells two submissions apart that are alike; empty in what was written before there was one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// Position among all renders of the store: those of equal priority run in this order.
    pub order: u64,
    /// What was asked for.
    pub request: RenderRequest,
    /// The priority it was submitted with.
    pub priority: i32,
    /// The picture that came along.
    pub picture: Option<InputPicture>,
    /// The plan file that came along, by the BLAKE3 of its JSON.
    pub plan: Option<String>,
}

impl Versioned for RenderRecord {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.check("the render", VERSION)?;
        stated.request.as_deref().map_or(Ok(()), RenderRequest::check_versions)
    }
}

/// `state.json`: how far a render is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// Where it stands. `queued` and `running` mean the same after a restart.
    pub state: StoredState,
    /// Higher goes first.
    pub priority: i32,
    /// Why it is paused or has failed.
    pub reason: String,
    /// What the user should know of its settings.
    pub warnings: Vec<String>,
}

impl StateRecord {
    /// A render that has not begun.
    pub fn queued(priority: i32) -> Self {
        Self { state: StoredState::Queued, priority, reason: String::new(), warnings: Vec::new() }
    }

    /// A render that cannot be done.
    pub fn failed(priority: i32, reason: String) -> Self {
        Self { state: StoredState::Failed, reason, ..Self::queued(priority) }
    }
}

/// A render's state as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredState {
    /// Waits, or is under way.
    Queued,
    /// Held back.
    Paused,
    /// Its picture is there.
    Done,
    /// Given up.
    Cancelled,
    /// Cannot be done.
    Failed,
}

impl From<RenderState> for StoredState {
    fn from(state: RenderState) -> Self {
        match state {
            RenderState::Queued | RenderState::Running => Self::Queued,
            RenderState::Paused => Self::Paused,
            RenderState::Done => Self::Done,
            RenderState::Cancelled => Self::Cancelled,
            RenderState::Failed => Self::Failed,
        }
    }
}

impl From<StoredState> for RenderState {
    fn from(state: StoredState) -> Self {
        match state {
            StoredState::Queued => Self::Queued,
            StoredState::Paused => Self::Paused,
            StoredState::Done => Self::Done,
            StoredState::Cancelled => Self::Cancelled,
            StoredState::Failed => Self::Failed,
        }
    }
}
