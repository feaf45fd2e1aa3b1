//! Why a model could not be fetched, and what to do about it.

use super::options::shown;
use crate::model::layout::{Variant, VariantError};

/// Why a model could not be fetched. What a server says is shown escaped; a token never.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub does not know the repository or the revision.
    #[error(
        "the hub at {endpoint} has no model `{id}` (revision {revision}); check the spelling, and set \
         HF_TOKEN if it is private"
    )]
    Unknown {
        /// Address of the hub.
        endpoint: String,
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
    },
    /// The repository wants a permission.
    #[error(
        "access to `{id}` is refused ({status}): it wants a permission, or does not exist; check the \
         spelling, accept its conditions at {endpoint}/{id}, and set HF_TOKEN to a token that may read it"
    )]
    Refused {
        /// Address of the hub.
        endpoint: String,
        /// The repository.
        id: String,
        /// The HTTP status.
        status: u16,
    },
    /// The network is not to be touched, and the cache does not have the model.
    #[error(
        "`{id}` (revision {revision}) is not complete in the cache {cache} and HF_HUB_OFFLINE is set; \
         {missing} is missing; fetch it once with a connection{}", other_variant(*.here)
    )]
    Offline {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The cache folder.
        cache: String,
        /// What is missing.
        missing: String,
        /// Another variant that the cache has.
        here: Option<Variant>,
    },
    /// No answer.
    #[error(
        "the hub at {endpoint} cannot be reached: {reason}; check the connection, or set HF_HUB_OFFLINE=1 to \
         use what the cache has"
    )]
    Unreachable {
        /// Address of the hub.
        endpoint: String,
        /// What the transport said.
        reason: String,
    },
    /// The hub has a bad day.
    #[error(
        "the hub at {endpoint} cannot send {file} of `{id}` now: it answered with status {status}{}; try \
         again later{}", times(*.tries), remedy(*.status)
    )]
    Busy {
        /// Address of the hub.
        endpoint: String,
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// The HTTP status.
        status: u16,
        /// How often it was asked.
        tries: u32,
    },
    /// The cache folder cannot be used.
    #[error("the cache {cache} cannot be used: {reason}; set HF_HOME to a folder you can write to")]
    Cache {
        /// The cache folder.
        cache: String,
        /// What the system said.
        reason: String,
    },
    /// The cache lacks a file and nothing can be written to it.
    #[error(
        "the cache {cache} lacks {file} of `{id}` and cannot be written to: {reason}; complete it from where it can \
         be written to, or set HF_HOME to a folder you can write to"
    )]
    ReadOnly {
        /// The cache folder.
        cache: String,
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// The disk is too small for what is still to come.
    #[error(
        "`{id}` needs {} more in the cache {cache}, where {} are free; make room, or set HF_HOME to a folder on a \
         larger disk", bytes(*.needed), bytes(*.free)
    )]
    NoSpace {
        /// The repository.
        id: String,
        /// The cache folder.
        cache: String,
        /// Bytes still to come.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The hub's answer makes no sense.
    #[error("fetching {file} of `{id}` failed: {reason}")]
    Transfer {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The repository does not have the weights asked for.
    #[error("`{id}`: {error}")]
    Variant {
        /// The repository.
        id: String,
        /// What there is, and what to do.
        error: VariantError,
    },
    /// A variable that cannot be used.
    #[error("{variable}: {reason}")]
    Setting {
        /// The variable.
        variable: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
}

impl HubError {
    /// Whether a complete cache serves as well: not where the user asked for what cannot be.
    pub(super) fn leaves_the_cache(&self) -> bool {
        !matches!(self, Self::Variant { .. } | Self::Setting { .. })
    }

    pub(super) fn setting(variable: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setting { variable: variable.into(), reason: reason.into() }
    }
}

/// A number of bytes for people.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

fn times(tries: u32) -> String {
    if tries > 1 { format!(" ({tries} tries)") } else { String::new() }
}

fn remedy(status: u16) -> &'static str {
    if status == 429 { ", or set HF_TOKEN: the limits of known users are higher" } else { "" }
}

fn other_variant(here: Option<Variant>) -> String {
    here.map_or(String::new(), |v| format!(", or use --variant {}, which is here", v.as_str()))
}

/// What is asked of whom, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) endpoint: &'a str,
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
}

/// What went wrong with one exchange.
#[derive(Debug)]
pub(super) enum Problem {
    /// An answer with a status that is none of success, and after how many seconds to ask again.
    Status(u16, Option<u64>),
    /// No answer, or one that broke off.
    Transport(String),
    /// An answer that makes no sense.
    Garbled(String),
    /// The disk.
    Disk(std::io::Error),
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

impl Problem {
    /// Whether it may be over in a moment.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Status(status, _) => matches!(status, 408 | 425 | 429 | 500..=599),
            // Who is not trusted now will not be in a moment.
            Self::Transport(reason) => !reason.contains("invalid peer certificate"),
            Self::Garbled(_) | Self::Disk(_) => false,
        }
    }

    /// What it means for the user, when `file` was asked for the `tries`th time.
    pub(super) fn explain(self, subject: Subject<'_>, file: &str, tries: u32) -> HubError {
        let (endpoint, id) = (shown(subject.endpoint), subject.id.to_owned());
        match self {
            Self::Status(status @ (401 | 403), _) => HubError::Refused { endpoint, id, status },
            Self::Status(404, _) if file == FILE_LIST => {
                HubError::Unknown { endpoint, id, revision: subject.revision.to_owned() }
            }
            Self::Status(status, _) if self.passes() => {
                HubError::Busy { endpoint, id, file: file.to_owned(), status, tries }
            }
            Self::Status(status, _) => {
                let reason = format!("the hub at {endpoint} answered with status {status}");
                HubError::Transfer { id, file: file.to_owned(), reason }
            }
            Self::Transport(reason) => HubError::Unreachable { endpoint, reason: reason + &times(tries) },
            Self::Garbled(reason) => HubError::Transfer { id, file: file.to_owned(), reason },
            Self::Disk(error) => {
                HubError::Transfer { id, file: file.to_owned(), reason: format!("the disk: {error}") }
            }
        }
    }
}

/// What the hub's list of a repository's files is called in messages.
pub(super) const FILE_LIST: &str = "the file list";
