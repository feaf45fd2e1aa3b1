//! Blobs: content-addressed objects that manifests point at.
//!
//! A blob's name is the hash of its bytes, so writing one twice does no harm, and one that is damaged shows.
//! That one is there is never taken for that it is whole: only blobs that were written, or read and checked,
//! by this process are not written again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use gigasmith_proto::domain::{Array, Conditioning};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tokio::task::JoinSet;

use super::{RenderStore, SMALL, StoreError};
use crate::digest::Digest;
use crate::raster::{Levels, Raster};
use crate::sampler::noise::crop;
use crate::sampler::stage::StageRules;
use crate::sampler::units::{PixelRect, Window};

/// Blobs on their way at a time.
const AT_A_TIME: usize = 16;

/// Between attempts to read a blob.
const READ_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_millis(1000)];

/// What is to be written.
#[derive(Debug, Clone)]
pub(super) enum Blob {
    /// Values, as f32.
    Values(Arc<Array>),
    /// A window of an array.
    Part(Arc<Array>, Window),
    /// A window of what guides a stage.
    Guide(Arc<StageRules>, Window),
    /// Bytes as they are.
    Bytes(Arc<Vec<u8>>),
    /// Rows of a picture under way.
    Rows(Arc<Raster>, PixelRect),
}

impl Blob {
    /// How many bytes it has.
    fn size(&self) -> u64 {
        let values = |channels: usize, window: &Window| 4 * (channels * window.area()) as u64;
        match self {
            Self::Values(array) => 4 * array.data().len() as u64,
            Self::Part(array, window) => values(array.shape()[0], window),
            Self::Guide(rules, window) => values(rules.channels(), window),
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Rows(_, rect) => 3 * rect.area() as u64,
        }
    }

    fn bytes(&self) -> std::io::Result<Vec<u8>> {
        let values = |array: &Array| array.data().iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(match self {
            Self::Values(array) => values(array),
            Self::Part(array, window) => values(&crop(array, *window)),
            Self::Guide(rules, window) => {
                let guide = rules.guide().expect("it is written for a stage that has one");
                values(&crop(guide.latent(), *window))
            }
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Rows(raster, rect) => raster.read(0, *rect)?,
        })
    }
}

/// The blobs of a render, as this process knows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Mutex<BTreeSet<Digest>>>);

impl Known {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeSet<Digest>) -> T) -> T {
        work(&mut self.0.lock().expect("no holder panics"))
    }

    pub(super) fn insert(&self, id: Digest) {
        self.with(|known| known.insert(id));
    }

    pub(super) fn remove(&self, id: &Digest) {
        self.with(|known| known.remove(id));
    }

    fn contains(&self, id: &Digest) -> bool {
        self.with(|known| known.contains(id))
    }

    pub(super) fn all(&self) -> BTreeSet<Digest> {
        self.with(|known| known.clone())
    }
}

/// What writing blobs came to.
pub(super) struct Written<K> {
    /// Names of those that are there now.
    pub(super) ids: Vec<(K, Digest)>,
    /// Those that are not.
    pub(super) left: Vec<(K, Blob)>,
    /// Bytes sent.
    pub(super) bytes: u64,
    /// Why one of them is not.
    pub(super) error: Option<StoreError>,
}

impl RenderStore {
    pub(super) fn blob_path(&self, id: &str, blob: &Digest) -> Path {
        self.path(id, &format!("blobs/{blob}"))
    }

    /// Writes blobs that are not known yet, many at a time. Each is let go as soon as it is written. After a
    /// failure no more are begun.
    pub(super) async fn write_blobs<K: Send + 'static>(
        &self,
        id: &str,
        known: &Known,
        blobs: Vec<(K, Blob)>,
    ) -> Written<K> {
        let mut written = Written { ids: Vec::new(), left: Vec::new(), bytes: 0, error: None };
        let (mut waiting, mut flying) = (blobs.into_iter(), JoinSet::new());
        loop {
            while flying.len() < AT_A_TIME && written.error.is_none() {
                let Some((key, blob)) = waiting.next() else { break };
                let (store, id, known) = (self.clone(), id.to_owned(), known.clone());
                flying.spawn(async move {
                    let outcome = store.write_blob(&id, &known, blob.clone()).await;
                    (key, blob, outcome)
                });
            }
            match flying.join_next().await {
                None => break,
                Some(Ok((key, _, Ok((blob, bytes))))) => {
                    written.ids.push((key, blob));
                    written.bytes += bytes;
                }
                Some(Ok((key, blob, Err(error)))) => {
                    written.left.push((key, blob));
                    written.error = Some(error);
                }
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        written.left.extend(waiting);
        written
    }

    async fn write_blob(&self, id: &str, known: &Known, blob: Blob) -> Result<(Digest, u64), StoreError> {
        // Rows of a large picture are tens of megabytes each.
        let _room = self.room_for(blob.size()).await;
        let made = tokio::task::spawn_blocking(move || {
            let bytes = blob.bytes()?;
            Ok::<_, std::io::Error>((Digest::of(&bytes), bytes))
        });
        let made = made.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        let (name, bytes) = made.map_err(StoreError::Scratch)?;
        if known.contains(&name) {
            return Ok((name, 0));
        }
        let (path, size) = (self.blob_path(id, &name), bytes.len());
        let bytes = Bytes::from(bytes);
        // Created, not overwritten: a write that is torn must not spoil one that is whole and in use.
        let mut sent = 0;
        if size <= SMALL && self.create(&path, bytes.clone()).await? {
            sent = size as u64;
        } else {
            match self.read_blob(id, name).await {
                Ok(_) => {}
                // A large one that is not there yet, or one that was torn.
                Err(StoreError::Damaged { .. }) => {
                    self.write(&path, bytes).await?;
                    sent = size as u64;
                }
                Err(error) => return Err(error),
            }
        }
        known.insert(name);
        Ok((name, sent))
    }

    /// Reads a blob and checks it.
    pub(super) async fn read_blob(&self, id: &str, blob: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(id, &blob);
        let damaged =
            |reason: &str| StoreError::Damaged { path: path.to_string(), reason: reason.to_owned() };
        let bytes = self.get(&path).await?.ok_or_else(|| damaged("it is missing"))?;
        let checked = tokio::task::spawn_blocking(move || (Digest::of(&bytes) == blob).then_some(bytes));
        let checked = checked.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        checked.ok_or_else(|| damaged("its bytes are not those that its name says"))
    }

    /// An object's size; 0 where that cannot be told.
    async fn size_of(&self, path: &Path) -> u64 {
        self.objects.head(path).await.map_or(0, |found| found.size)
    }

    /// The same, tried a few times: one failure among hundreds must not mean beginning again.
    async fn read_blob_patiently(&self, id: &str, blob: Digest) -> Result<Vec<u8>, StoreError> {
        for pause in READ_PAUSES {
            match self.read_blob(id, blob).await {
                Err(StoreError::Store { .. }) => tokio::time::sleep(pause).await,
                other => return other,
            }
        }
        self.read_blob(id, blob).await
    }

    /// Reads blobs, many at a time, and gives each to `take`.
    pub(super) async fn read_blobs<K: Send + 'static>(
        &self,
        id: &str,
        blobs: Vec<(K, Digest)>,
        mut take: impl FnMut(K, Digest, Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (mut waiting, mut flying) = (blobs.into_iter(), JoinSet::new());
        loop {
            while flying.len() < AT_A_TIME {
                let Some((key, blob)) = waiting.next() else { break };
                let (store, id) = (self.clone(), id.to_owned());
                flying.spawn(async move {
                    let size = store.size_of(&store.blob_path(&id, &blob)).await;
                    let room = store.room_for(size).await;
                    (key, blob, store.read_blob_patiently(&id, blob).await, room)
                });
            }
            match flying.join_next().await {
                None => return Ok(()),
                Some(Ok((key, blob, bytes, _room))) => take(key, blob, bytes?)?,
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }
}

/// Values from a blob; `None` when there are too few or too many.
pub(super) fn values(shape: &[usize], bytes: &[u8]) -> Option<Array> {
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Array::new(shape, data).ok()
}

/// The encoded text as a safetensors file.
pub(super) fn conditioning_bytes(conditioning: &Conditioning) -> Vec<u8> {
    let mut tensors = BTreeMap::from([("prompt", &conditioning.prompt), ("pooled", &conditioning.pooled)]);
    if let Some((prompt, pooled)) = &conditioning.negative {
        tensors.extend([("negative_prompt", prompt), ("negative_pooled", pooled)]);
    }
    let bytes = |array: &Array| -> Vec<u8> { array.data().iter().flat_map(|v| v.to_le_bytes()).collect() };
    let data: Vec<Vec<u8>> = tensors.values().map(|array| bytes(array)).collect();
    let views = tensors.iter().zip(&data).map(|((name, array), bytes)| {
        let view = TensorView::new(Dtype::F32, array.shape().to_vec(), bytes);
        (*name, view.expect("an array has its shape's values"))
    });
    safetensors::serialize(views, None).expect("the views are well formed")
}

/// Reads what [`conditioning_bytes`] made.
pub(super) fn conditioning_from(bytes: &[u8]) -> Result<Conditioning, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let array = |name: &str| -> Result<Array, String> {
        let tensor = file.tensor(name).map_err(|e| e.to_string())?;
        match tensor.dtype() {
            Dtype::F32 => values(tensor.shape(), tensor.data()).ok_or_else(|| format!("`{name}` is cut off")),
            other => Err(format!("`{name}` is {other:?}, not F32")),
        }
    };
    let negative = match file.tensor("negative_prompt") {
        Ok(_) => Some((array("negative_prompt")?, array("negative_pooled")?)),
        Err(_) => None,
    };
    Ok(Conditioning { prompt: array("prompt")?, pooled: array("pooled")?, negative })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditioning_comes_back_to_the_bit() {
        let array = |n: usize| Array::new([2, n], (0..2 * n).map(|i| (i as f32).cos()).collect()).unwrap();
        let mut conditioning = Conditioning { prompt: array(3), pooled: array(1), negative: None };
        for negative in [None, Some((array(3), array(2)))] {
            conditioning.negative = negative;
            let bytes = conditioning_bytes(&conditioning);
            assert_eq!(conditioning_from(&bytes).unwrap(), conditioning);
            assert!(conditioning_from(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}
