//! Whether a store can be used at all: found out before a model is loaded, not after.
//!
//! What is tried is what everything else rests on: an object is created where there is none, is not created a
//! second time, and is deleted. The object has a name of this process's own, and is gone afterwards.

use std::time::Duration;

use gigasmith_proto::domain::Identifier;
use object_store::PutMode;
use object_store::path::Path;

use super::{RenderStore, StoreError};

/// How long all of it may take. A store that is slower is of no use for checkpoints.
const LONGEST: Duration = Duration::from_secs(45);

/// What a store makes of the condition that an object must not be there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// It keeps to it.
    Kept,
    /// It writes all the same. Of two coordinators that take up a render at the same moment, both may believe
    /// to have it; the older stops when it looks next.
    Ignored,
}

impl RenderStore {
    /// Fails when the store cannot be used. Leaves nothing there.
    pub async fn probe(&self) -> Result<Conditions, StoreError> {
        let Identifier(random) = Identifier::random();
        let random: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let path = self.root.clone().join("coordinator").join(format!("probe-{random}"));
        let tried = tokio::time::timeout(LONGEST, self.try_out(&path)).await;
        tried.unwrap_or(Err(StoreError::Silent(LONGEST)))
    }

    async fn try_out(&self, path: &Path) -> Result<Conditions, StoreError> {
        match self.put(path, "gigasmith was here", PutMode::Create).await {
            // There already: the answer to an earlier attempt was lost.
            Ok(()) | Err(StoreError::Store { source: object_store::Error::AlreadyExists { .. }, .. }) => {}
            Err(refused) => {
                // When that fails too, it is not the condition.
                self.put(path, "gigasmith was here", PutMode::Overwrite).await?;
                self.delete(path).await?;
                return Err(self.unconditional(&refused));
            }
        }
        let again = self.create(path, "gigasmith was here too").await;
        self.delete(path).await.map_err(|e| StoreError::Undeletable(e.to_string()))?;
        match again {
            Ok(false) => Ok(Conditions::Kept),
            Ok(true) => Ok(Conditions::Ignored),
            Err(refused) => Err(self.unconditional(&refused)),
        }
    }

    fn unconditional(&self, refused: &StoreError) -> StoreError {
        let needs = match self.folder {
            Some(_) => "hard links on the disk of its folder",
            None => "the condition `If-None-Match: *` on writing",
        };
        StoreError::Unconditional { needs, reason: refused.to_string() }
    }
}
