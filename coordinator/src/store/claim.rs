//! Epochs: which coordinator may write.
//!
//! Whoever takes something up (a render, or, as `serve` does, a whole store) creates the next object below
//! its `epochs/`; objects are created once, so an epoch is one coordinator's. The newest epoch wins at once.
//! Before each manifest, each collection of garbage and each result, a coordinator looks whether the epoch
//! after its own is there; if so, it stops. Epochs have no gaps, so one look is enough, and no listing has
//! to be up to date.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use gigasmith_proto::domain::Identifier;
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio_stream::StreamExt;

use super::{RenderStore, StoreError, json};

/// `epochs/NNNNNNNN.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EpochRecord {
    /// Format version, 1.
    version: u32,
    /// Tells claims apart, even those of one coordinator.
    incarnation: String,
    /// For people: where it runs.
    owner: String,
}

/// Who takes something up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// A random text that nobody else has.
    pub incarnation: String,
    /// For people: machine and process.
    pub name: String,
}

/// The right to write, until somebody newer takes it.
#[derive(Debug, Clone)]
pub struct Claim {
    folder: Path,
    incarnation: String,
    /// Its number; the first is 1.
    pub epoch: u64,
    /// States that were written with it; clones count together.
    pub(super) states: Arc<AtomicU64>,
}

fn object(folder: &Path, epoch: u64) -> Path {
    folder.clone().join("epochs").join(format!("{epoch:08}.json"))
}

impl RenderStore {
    /// Takes up the whole store, as `serve` does.
    pub async fn claim_store(&self, owner: &Owner) -> Result<Claim, StoreError> {
        self.claim_folder(self.coordinator(), owner).await
    }

    fn coordinator(&self) -> Path {
        self.root.clone().join("coordinator")
    }

    /// Takes up a render. Whoever had it before stops.
    pub async fn claim(&self, id: &str, owner: &Owner) -> Result<Claim, StoreError> {
        self.claim_folder(self.root.clone().join("renders").join(id), owner).await
    }

    async fn claim_folder(&self, folder: Path, owner: &Owner) -> Result<Claim, StoreError> {
        let mut epoch = self.newest_epoch(&folder).await? + 1;
        if let Some(id) = folder.filename().filter(|_| folder != self.coordinator()) {
            // A removal that broke off may have left manifests without their epochs.
            let left = self.manifests(id).await?;
            epoch = left.iter().map(|name| name.epoch + 1).max().unwrap_or(0).max(epoch);
        }
        let Identifier(random) = Identifier::random();
        let random: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let incarnation = format!("{}-{random}", owner.incarnation);
        let record = EpochRecord { version: 1, incarnation: incarnation.clone(), owner: owner.name.clone() };
        loop {
            let path = object(&folder, epoch);
            let ours = self.create(&path, json(&record)).await?
                // Somebody's, or ours, from an attempt whose answer was lost.
                || self.epoch_record(&path).await?.is_some_and(|r| r.incarnation == incarnation);
            if ours {
                return Ok(Claim { folder, incarnation, epoch, states: Arc::default() });
            }
            epoch += 1;
        }
    }

    /// The newest epoch that a listing shows, which may be out of date: creating the next tells.
    async fn newest_epoch(&self, folder: &Path) -> Result<u64, StoreError> {
        let prefix = folder.clone().join("epochs");
        let mut listed = self.objects.list(Some(&prefix));
        let mut newest = 0;
        while let Some(found) = listed.next().await {
            let found = found.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
            let number = found.location.filename().and_then(|n| n.strip_suffix(".json")?.parse().ok());
            newest = newest.max(number.unwrap_or(0));
        }
        Ok(newest)
    }

    /// `None` when it is not there; one that cannot be read is somebody else's.
    async fn epoch_record(&self, path: &Path) -> Result<Option<EpochRecord>, StoreError> {
        match self.get_json(path).await {
            Err(StoreError::Damaged { .. }) => {
                let unknown = "an unknown coordinator".to_owned();
                Ok(Some(EpochRecord { version: 0, incarnation: String::new(), owner: unknown }))
            }
            other => other,
        }
    }

    /// Fails when somebody newer has taken over, or what was taken up is gone.
    pub async fn check(&self, claim: &Claim) -> Result<(), StoreError> {
        let Claim { folder, incarnation, epoch, .. } = claim;
        let what = || match folder.filename() {
            Some(id) if *folder != self.coordinator() => format!("render {id}"),
            _ => "the store".to_owned(),
        };
        if let Some(newer) = self.epoch_record(&object(folder, epoch + 1)).await? {
            return Err(StoreError::Superseded { what: what(), epoch: epoch + 1, owner: newer.owner });
        }
        match self.epoch_record(&object(folder, *epoch)).await? {
            Some(record) if record.incarnation == *incarnation => Ok(()),
            Some(newer) => Err(StoreError::Superseded { what: what(), epoch: *epoch, owner: newer.owner }),
            None => Err(StoreError::Removed(what())),
        }
    }
}
