//! A large object on its way into the store, in parts.
//!
//! It is there when its last part is, and not before. Whoever gives it up, by an error or by being cancelled, leaves
//! no parts: they would take room that nothing shows.

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::{PARTS_AT_A_TIME, RenderStore, StoreError};

/// An upload that is aborted unless it is finished.
pub(super) struct Upload {
    path: Path,
    /// `None` once it is finished.
    upload: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
}

impl Upload {
    pub(super) async fn begin(store: &RenderStore, path: &Path) -> Result<Self, StoreError> {
        let begun = store.objects.put_multipart(path).await;
        let upload = begun.map_err(|source| StoreError::Store { path: path.to_string(), source })?;
        Ok(Self { path: path.clone(), upload: Some(upload), parts: JoinSet::new() })
    }

    fn fail(&self, source: object_store::Error) -> StoreError {
        StoreError::Store { path: self.path.to_string(), source }
    }

    async fn sent(&mut self) -> Result<(), StoreError> {
        match self.parts.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(self.fail(error)),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Sends a part, a few at a time. All but the last must have one size.
    pub(super) async fn put(&mut self, bytes: bytes::Bytes) -> Result<(), StoreError> {
        while self.parts.len() >= PARTS_AT_A_TIME {
            self.sent().await?;
        }
        let upload = self.upload.as_mut().expect("it is not finished");
        self.parts.spawn(upload.put_part(bytes.into()));
        Ok(())
    }

    /// Makes the object of its parts.
    pub(super) async fn finish(mut self) -> Result<(), StoreError> {
        while !self.parts.is_empty() {
            self.sent().await?;
        }
        let completed = self.upload.as_mut().expect("it is not finished").complete().await;
        completed.map_err(|error| self.fail(error))?;
        self.upload = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        let mut parts = std::mem::take(&mut self.parts);
        // Without a runtime nothing can be asked of the store.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                parts.shutdown().await;
                // If this fails too there is nothing else to try: the store's own rule for such parts removes them.
                let _ = upload.abort().await;
            });
        }
    }
}
