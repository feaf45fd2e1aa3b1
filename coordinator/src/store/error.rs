//! Why a store could not do something, in words for people.

use std::time::Duration;

use gigasmith_proto::text::Shown;

use super::remedy;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store itself.
    #[error("the store failed at {path}: {}", remedy::explained(source))]
    Store {
        /// Which object.
        path: String,
        /// The store's reason.
        source: object_store::Error,
    },
    /// An object that is not what it should be.
    #[error("{} in the store is damaged: {}", Shown(path), Shown(reason))]
    Damaged {
        /// Which object.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The id is another render's.
    #[error("there is a render `{0}` already: choose another name")]
    Taken(String),
    /// A removal of a render of that id broke off.
    #[error(
        "`{0}` was removed, but not all of it is gone: `gigasmith renders rm {0}` again, or choose another name"
    )]
    Remains(String),
    /// The scratch folder failed, where pictures under way lie.
    #[error("the picture under way cannot be kept: {0}; --scratch names another folder")]
    Scratch(std::io::Error),
    /// Somebody newer has taken over.
    #[error("another coordinator has taken over {what} (epoch {epoch}, {owner}): this one stops")]
    Superseded {
        /// The render, or the store.
        what: String,
        /// The newer epoch.
        epoch: u64,
        /// Whose it is.
        owner: String,
    },
    /// It was removed while it was worked on.
    #[error("{0} was removed from the store while it was worked on")]
    Removed(String),
    /// It did not answer in time.
    #[error(
        "it has not answered for {} s: does its endpoint exist? (AWS_ENDPOINT_URL, GOOGLE_BASE_URL or \
         AZURE_STORAGE_ENDPOINT, if set)",
        .0.as_secs()
    )]
    Silent(Duration),
    /// It cannot create an object only where there is none.
    #[error(
        "objects cannot be created only where there are none, which keeps two coordinators apart: a store needs \
         {needs}; use another store, or a folder of this machine ({reason})"
    )]
    Unconditional {
        /// What is missing.
        needs: &'static str,
        /// The store's reason.
        reason: String,
    },
    /// It takes objects and does not delete them.
    #[error("what was written there cannot be deleted, which checkpoints need: {0}")]
    Undeletable(String),
    /// It is of a later version.
    #[error("{} in the store: {}", Shown(path), Shown(reason))]
    Version {
        /// Which object.
        path: String,
        /// Both versions.
        reason: String,
    },
}
