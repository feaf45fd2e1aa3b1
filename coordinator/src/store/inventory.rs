//! What lies in a store, for people; removing it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use object_store::ObjectMeta;
use object_store::path::Path;
use tokio_stream::StreamExt;

use super::manifest::{Manifest, ManifestName};
use super::{RenderStore, StoreError, Stored};
use crate::digest::Digest;

/// How long writes that were on their way are waited for, between looks.
const AFTERMATH: Duration = Duration::from_millis(150);

/// A render, as a listing of its objects shows it.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// What was asked for and how far it is; `None` when that cannot be read, or a removal broke off.
    pub stored: Option<Stored>,
    /// Why it cannot be read.
    pub damage: Option<String>,
    /// Bytes of all its objects.
    pub bytes: u64,
    /// Where its newest checkpoint stands.
    pub standing: Option<Standing>,
}

/// Where a checkpoint stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// When it was written, by the store's clock.
    pub written: SystemTime,
    /// Its stage; 0 is the base.
    pub stage: u32,
    /// Patches committed, and patches of the stage; `None` while it is decoded.
    pub patches: Option<(u32, u32)>,
    /// How many checkpoints there are.
    pub checkpoints: usize,
}

fn written(object: &ObjectMeta) -> SystemTime {
    let millis = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

impl RenderStore {
    /// The ids of all renders, and of what removals that broke off have left.
    pub async fn ids(&self) -> Result<Vec<String>, StoreError> {
        let prefix = self.root.clone().join("renders");
        let listed = self.objects.list_with_delimiter(Some(&prefix)).await;
        let listed = listed.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
        Ok(listed.common_prefixes.iter().filter_map(Path::filename).map(str::to_owned).collect())
    }

    pub(super) async fn objects_below(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
        let mut listed = self.objects.list(Some(prefix));
        let mut objects = Vec::new();
        while let Some(found) = listed.next().await {
            objects.push(found.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?);
        }
        Ok(objects)
    }

    /// What lies there of a render.
    pub async fn inventory(&self, id: &str) -> Result<Inventory, StoreError> {
        let objects = self.objects_below(&self.root.clone().join("renders").join(id)).await?;
        let (stored, damage) = match self.read(id).await {
            Ok(stored) => (stored, None),
            Err(error @ StoreError::Store { .. }) => return Err(error),
            Err(error) => (None, Some(error.to_string())),
        };
        let folder = self.path(id, "checkpoints");
        let name = |o: &ObjectMeta| -> Option<ManifestName> {
            o.location.prefix_match(&folder).and_then(|mut rest| rest.next()?.as_ref().parse().ok())
        };
        let mut manifests: Vec<(ManifestName, &ObjectMeta)> =
            objects.iter().filter_map(|o| Some((name(o)?, o))).collect();
        manifests.sort_unstable_by_key(|(name, _)| std::cmp::Reverse(*name));
        let mut standing = None;
        for (_, object) in &manifests {
            let Some(bytes) = self.get(&object.location).await? else { continue };
            // A damaged one is reported when the render is taken up.
            let Ok(manifest) = Manifest::parse(&bytes) else { continue };
            let (stage, patches) = (manifest.stage, manifest.progress());
            standing =
                Some(Standing { written: written(object), stage, patches, checkpoints: manifests.len() });
            break;
        }
        Ok(Inventory { stored, damage, bytes: objects.iter().map(|o| o.size).sum(), standing })
    }

    /// Blobs older than `age` by the store's clock and ours.
    pub(super) async fn old_blobs(&self, id: &str, age: Duration) -> Result<BTreeSet<Digest>, StoreError> {
        let now = SystemTime::now();
        let is_old = |o: &ObjectMeta| now.duration_since(written(o)).is_ok_and(|since| since > age);
        let objects = self.objects_below(&self.path(id, "blobs")).await?;
        let old = objects.iter().filter(|o| is_old(o)).filter_map(|o| o.location.filename()?.parse().ok());
        Ok(old.collect())
    }

    /// Removes a render and everything of it. Whoever works on it notices and stops.
    pub async fn remove(&self, id: &str) -> Result<(), StoreError> {
        // From here on there is no such render, whatever happens to the rest.
        for first in ["render.json", "spec.json", "state.json"] {
            self.delete(&self.path(id, first)).await?;
        }
        self.remove_states(id).await?;
        self.delete_below(&self.path(id, "epochs")).await?;
        self.delete_below(&self.path(id, "checkpoints")).await?;
        let all = self.root.clone().join("renders").join(id);
        self.delete_below(&all).await?;
        // What somebody was writing meanwhile, who notices soon.
        for _ in 0..3 {
            tokio::time::sleep(AFTERMATH).await;
            if self.get(&self.path(id, "render.json")).await?.is_some() {
                // Somebody has begun another of that name.
                return Ok(());
            }
            self.delete_below(&all).await?;
            self.remove_states(id).await?;
        }
        self.sweep_folder(id, "");
        Ok(())
    }

    pub(super) async fn delete_below(&self, prefix: &Path) -> Result<(), StoreError> {
        let mut deleting = tokio::task::JoinSet::new();
        for object in self.objects_below(prefix).await? {
            while deleting.len() >= 16 {
                deleting.join_next().await.expect("there are sixteen").expect("it does not panic")?;
            }
            let store = self.clone();
            deleting.spawn(async move { store.delete(&object.location).await });
        }
        deleting.join_all().await.into_iter().collect()
    }

    /// In a folder: what object stores do not show, such as empty folders and parts of files whose writing
    /// a crash cut off.
    pub(super) fn sweep_folder(&self, id: &str, part: &str) {
        if let Some(folder) = &self.folder {
            // What cannot be removed takes room and does no harm.
            let _ = std::fs::remove_dir_all(folder.join("renders").join(id).join(part));
        }
    }
}
