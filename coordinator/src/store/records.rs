//! What the store keeps of a render, as JSON.

use gigasmith_proto::domain::RenderState;
use serde::{Deserialize, Serialize};

use crate::output::Format;
use crate::request::{InputPicture, RenderRequest};
use crate::sampler::units::ImageSize;
use crate::spec::RenderSpec;
use crate::versions::{Stated, VersionError, Versioned};

/// The format version that this program writes. It reads version 1 too, whose renders have their state in
/// `state.json` and one place for all results.
pub const VERSION: u32 = 2;

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

/// How far a render is, with what a listing shows of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateRecord {
    /// Format version, [`VERSION`]; 1 where it is not said.
    #[serde(default = "first_version")]
    pub version: u32,
    /// Where it stands. `queued` and `running` mean the same after a restart.
    pub state: StoredState,
    /// Higher goes first.
    pub priority: i32,
    /// Why it is paused or has failed.
    pub reason: String,
    /// What the user should know of its settings.
    pub warnings: Vec<String>,
    /// What a listing shows besides; absent in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Where its result lies, once it is done; absent in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultRecord>,
    /// How often it was started from the same point.
    #[serde(default, skip_serializing_if = "is_default")]
    pub starts: Starts,
    /// Whether what only a render under way needs is removed; said of renders that have ended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tidied: bool,
}

fn first_version() -> u32 {
    1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Versioned for StateRecord {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.check("the render's state", VERSION)
    }
}

/// What a listing shows of a render, so that it reads one small object for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Position among all renders of the store.
    pub order: u64,
    /// Tells two renders of one name apart.
    pub nonce: String,
    /// The model's name.
    pub model: String,
    /// What is drawn, cut to [`PROMPT`] characters.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// The final size, once it is known.
    pub size: Option<ImageSize>,
    /// How the picture is kept.
    pub format: Format,
}

/// Characters of a prompt in a [`Summary`].
pub const PROMPT: usize = 500;

impl Summary {
    /// Of a render, and of what it was settled to.
    pub fn of(record: &RenderRecord, spec: Option<&RenderSpec>) -> Self {
        let request = &record.request;
        let prompt = match request.prompt.char_indices().nth(PROMPT) {
            Some((cut, _)) => format!("{}…", &request.prompt[..cut]),
            None => request.prompt.clone(),
        };
        Self {
            order: record.order,
            nonce: record.nonce.clone(),
            model: request.model.clone(),
            prompt,
            seed: request.seed,
            size: spec.map(|s| s.upscales.last().map_or(s.base, |u| u.size)),
            format: request.format,
        }
    }

    /// What is unique about the render: two of one name, one after the other, differ in it.
    pub fn unique(&self, id: &str) -> String {
        format!("{id} {}", self.nonce)
    }
}

/// Where the result of a finished render lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultRecord {
    /// The epoch of the coordinator that wrote it.
    pub epoch: u64,
    /// The picture's format.
    pub format: Format,
    /// Whether there are latents: a stage ran.
    pub latents: bool,
}

/// How often a render was started without getting further.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Starts {
    /// How often.
    pub count: u32,
    /// From where: stage, whether its patches are done, patches or rows of tiles.
    pub mark: (u32, bool, u64),
}

impl StateRecord {
    /// A render that has not begun.
    pub fn queued(priority: i32) -> Self {
        Self {
            version: VERSION,
            state: StoredState::Queued,
            priority,
            reason: String::new(),
            warnings: Vec::new(),
            summary: None,
            result: None,
            starts: Starts::default(),
            tidied: false,
        }
    }

    /// A render that cannot be done.
    pub fn failed(priority: i32, reason: String) -> Self {
        Self { state: StoredState::Failed, reason, ..Self::queued(priority) }
    }

    /// With what a listing shows.
    pub fn with_summary(self, summary: Summary) -> Self {
        Self { summary: Some(summary), ..self }
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
