//! A finished picture that is one file, read as a whole or in parts.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio_stream::{Stream, StreamExt};

use super::{RenderStore, ResultPlace, StoreError};
use crate::output::Kind;

/// Where a picture's file lies, and what it is.
#[derive(Debug, Clone)]
pub struct PictureFile {
    /// Which kind of file; never Deep Zoom, which has many.
    pub kind: Kind,
    /// Bytes in all.
    pub size: u64,
    /// Names its bytes: a file that was written again has another.
    pub version: String,
    objects: Arc<dyn ObjectStore>,
    path: ObjectPath,
    /// The store's own name for its bytes, where it has one.
    e_tag: Option<String>,
}

impl PictureFile {
    /// Some of its bytes, at least one, as they come out of the store.
    pub async fn read(
        &self,
        bytes: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static, StoreError> {
        let path = self.path.to_string();
        // Fails rather than continuing one file with another's bytes.
        let options = GetOptions::new().with_range(Some(bytes)).with_if_match(self.e_tag.clone());
        let found = self.objects.get_opts(&self.path, options).await;
        let found = found.map_err(|source| StoreError::Store { path: path.clone(), source })?;
        Ok(found
            .into_stream()
            .map(move |piece| piece.map_err(|source| StoreError::Store { path: path.clone(), source })))
    }
}

impl RenderStore {
    /// The picture of a result as a file; `None` where there is none, or it is Deep Zoom. `unique`: what tells the
    /// render from others of its name.
    pub async fn picture_file(
        &self,
        place: &ResultPlace,
        unique: &str,
    ) -> Result<Option<PictureFile>, StoreError> {
        let kind = place.kind;
        if kind == Kind::Dzi {
            return Ok(None);
        }
        let path = place.picture();
        let meta = match self.objects.head(&path).await {
            Ok(meta) => meta,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(StoreError::Store { path: path.to_string(), source }),
        };
        let version = version(unique, &meta);
        let ObjectMeta { size, e_tag, .. } = meta;
        Ok(Some(PictureFile { kind, size, version, objects: self.objects.clone(), path, e_tag }))
    }
}

fn version(unique: &str, meta: &ObjectMeta) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [unique, meta.location.as_ref(), meta.e_tag.as_deref().unwrap_or_default()] {
        hash.update(part.as_bytes()).update(&[0]);
    }
    hash.update(&meta.size.to_le_bytes()).update(&meta.last_modified.timestamp_millis().to_le_bytes());
    hash.finalize().to_hex()[..32].to_owned()
}
