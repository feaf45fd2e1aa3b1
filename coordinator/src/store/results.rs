//! Results of finished renders: below the epoch of who made them, named by the render's state.
//!
//! Nothing here overwrites or deletes what a reader may need. A writer that was superseded fills its own folder, which
//! no state names; `RenderStore::discard` removes it once a newer one is named.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::outputs::{Outputs, Told, Whole, goes_on};
use super::upload::Upload;
use super::{Claim, RenderStore, ResultRecord, SMALL, StateRecord, StoreError};
use crate::output::{DziSink, Kind};
use crate::view::StoredPicture;

/// Tiles that are sent between two looks whether somebody newer has taken over.
const TILES_PER_LOOK: u64 = 512;
/// Tiles on their way to the store at a time.
const TILES_AT_A_TIME: usize = 32;
/// What a picture is called in the store, without its ending.
const RESULT: &str = "result";
const KINDS: [Kind; 3] = [Kind::Png, Kind::Tif, Kind::Dzi];

/// A part of a finished render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The picture.
    Picture,
    /// The last stage's latents, a safetensors file.
    Latents,
    /// The plans of the upscale stages, JSON.
    Plan,
}

/// A piece of a file. Pieces of a file follow each other.
#[derive(Debug, Clone)]
pub struct Piece {
    /// What the file's name has after the picture's own: empty where there is one file only, else
    /// `_files/LEVEL/X_Y.jpg` and the like.
    pub file: String,
    /// Some of its bytes.
    pub bytes: Bytes,
}

/// A part as it comes out of the store.
pub struct Fetched {
    /// What kind of file a picture is.
    pub kind: Option<Kind>,
    /// Bytes in all.
    pub total: u64,
    /// The bytes, in pieces.
    pub pieces: Pin<Box<dyn Stream<Item = Result<Piece, StoreError>> + Send>>,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched")
            .field("kind", &self.kind)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

/// Where a result lies, and what the picture is.
#[derive(Debug, Clone)]
pub struct ResultPlace {
    folder: Path,
    /// What kind of file the picture is.
    pub kind: Kind,
    latents: Path,
    plan: Path,
}

impl ResultPlace {
    pub(super) fn picture(&self) -> Path {
        self.folder.clone().join(format!("{RESULT}.{}", self.kind.extension()))
    }
}

impl RenderStore {
    fn results(&self, id: &str, epoch: u64) -> Path {
        self.path(id, &format!("results/{epoch:08}"))
    }

    /// Stores what a render made, and returns what its state is to say of it.
    ///
    /// # Errors
    /// `Superseded` or `Removed` as soon as that shows: what is written until then nobody reads.
    pub async fn put_result(
        &self,
        id: &str,
        claim: &Claim,
        result: &Outputs,
        told: Told,
    ) -> Result<ResultRecord, StoreError> {
        self.check(claim).await?;
        let folder = self.results(id, claim.epoch);
        let format = result.format();
        if let Some(latents) = result.latents() {
            self.write(&folder.clone().join("latents.safetensors"), latents.clone()).await?;
        }
        self.write(&folder.clone().join("plan.json"), result.plans().clone()).await?;
        match format.kind {
            Kind::Dzi => self.put_tiles(&folder, claim, result, told).await?,
            kind => {
                let making = result.clone();
                let made = tokio::task::spawn_blocking(move || {
                    making.file(&mut |done, total| goes_on(&told, done, total))
                });
                let made = made.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                let file = made.map_err(StoreError::Scratch)?;
                self.write_file(&folder.join(format!("{RESULT}.{}", kind.extension())), claim, file).await?;
            }
        }
        Ok(ResultRecord { epoch: claim.epoch, format, latents: result.latents().is_some() })
    }

    /// Writes an object from a file, in parts; it is not there before the last of them.
    async fn write_file(&self, path: &Path, claim: &Claim, file: Arc<Whole>) -> Result<(), StoreError> {
        let length = file.length;
        let part = |at: u64| {
            let file = file.clone();
            async move {
                let read = tokio::task::spawn_blocking(move || file.part(at).map(Bytes::from)).await;
                read.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
                    .map_err(StoreError::Scratch)
            }
        };
        if length <= SMALL as u64 {
            return self.write(path, part(0).await?).await;
        }
        let mut upload = Upload::begin(self, path).await?;
        for at in (0..length).step_by(SMALL) {
            upload.put(part(at).await?).await?;
        }
        // That took its time: somebody newer may have come, who needs the room.
        self.check(claim).await?;
        upload.finish().await
    }

    /// Stores a picture as Deep Zoom.
    async fn put_tiles(
        &self,
        folder: &Path,
        claim: &Claim,
        result: &Outputs,
        told: Told,
    ) -> Result<(), StoreError> {
        let (sender, mut parts) = mpsc::channel::<(String, Bytes)>(4);
        let making = result.clone();
        let made = tokio::task::spawn_blocking(move || making.tiles(&mut Queue(sender), RESULT, &told));
        let descriptor = format!("{RESULT}.{}", Kind::Dzi.extension());
        let (mut flying, mut last) = (JoinSet::new(), None);
        let mut sent = 0;
        while let Some((name, bytes)) = parts.recv().await {
            sent += 1;
            if sent % TILES_PER_LOOK == 0 {
                self.check(claim).await?;
            }
            let path = name.split('/').fold(folder.clone(), |path, part| path.join(part));
            if name == descriptor {
                last = Some((path, bytes));
                break;
            }
            while flying.len() >= TILES_AT_A_TIME {
                landed(flying.join_next().await)?;
            }
            let store = self.clone();
            flying.spawn(async move { store.write(&path, bytes).await });
        }
        while !flying.is_empty() {
            landed(flying.join_next().await)?;
        }
        // The queue is closed: it ends.
        drop(parts);
        let made = made.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        made.map_err(StoreError::Scratch)?;
        match last {
            Some((path, bytes)) => self.write(&path, bytes).await,
            None => Err(StoreError::Scratch(io::Error::other("the descriptor is missing"))),
        }
    }

    /// Removes what was only needed to go on with a render, and results other than the one that its state names.
    /// What is kept is told, not read: a state that was read is one that somebody newer may be giving up.
    async fn discard(&self, id: &str, claim: &Claim, keeps: Option<ResultRecord>) -> Result<(), StoreError> {
        self.check(claim).await?;
        let keeps = keeps.map(|result| self.results(id, result.epoch));
        for part in ["checkpoints", "blobs"] {
            self.delete_below(&self.path(id, part)).await?;
        }
        let results = self.path(id, "results");
        let listed = self.objects.list_with_delimiter(Some(&results)).await;
        let listed = listed.map_err(|source| StoreError::Store { path: results.to_string(), source })?;
        for folder in listed.common_prefixes {
            let epoch = folder.filename().and_then(|name| name.parse::<u64>().ok());
            // One of a newer epoch is another's.
            if keeps.as_ref() != Some(&folder) && epoch.is_some_and(|epoch| epoch <= claim.epoch) {
                self.delete_below(&folder).await?;
            }
        }
        self.sweep_folder(id, "blobs");
        Ok(())
    }

    /// Removes what nobody needs of a render that has ended, and says so in its state. `state`: as it is stored, `done`
    /// or `cancelled`.
    pub async fn tidy(&self, id: &str, claim: &Claim, state: StateRecord) -> Result<(), StoreError> {
        if state.result.is_some_and(|result| result.epoch != claim.epoch) {
            // Another's: from here on a state of ours names it, and no late one.
            self.set_state(id, claim, &state).await?;
        }
        self.discard(id, claim, state.result).await?;
        self.set_state(id, claim, &StateRecord { tidied: true, ..state }).await
    }

    /// Where the result of a render that is done lies; `None` when it is not there. `stages`: how many upscale
    /// stages it has.
    pub async fn result_place(
        &self,
        id: &str,
        state: &StateRecord,
        stages: u32,
    ) -> Result<Option<ResultPlace>, StoreError> {
        if let Some(ResultRecord { epoch, format, .. }) = state.result {
            let folder = self.results(id, epoch);
            let (latents, plan) =
                (folder.clone().join("latents.safetensors"), folder.clone().join("plan.json"));
            return Ok(Some(ResultPlace { folder, kind: format.kind, latents, plan }));
        }
        // As version 1 kept it.
        let folder = self.root.clone().join("renders").join(id);
        let (latents, plan) = (self.stage_path(id, stages), self.path(id, "result-plan.json"));
        for kind in KINDS {
            let place =
                ResultPlace { folder: folder.clone(), kind, latents: latents.clone(), plan: plan.clone() };
            let path = place.picture();
            match self.objects.head(&path).await {
                Ok(_) => return Ok(Some(place)),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(StoreError::Store { path: path.to_string(), source }),
            }
        }
        Ok(None)
    }

    /// The picture of a result, for a viewer.
    pub fn stored_picture(&self, place: &ResultPlace) -> StoredPicture {
        let (folder, name) = (place.folder.clone(), RESULT.to_owned());
        StoredPicture { objects: self.objects.clone(), folder, name, kind: place.kind }
    }

    /// A part of a result, to be read piece by piece; `None` when it is not there.
    pub async fn result(&self, place: &ResultPlace, part: Part) -> Result<Option<Fetched>, StoreError> {
        let path = match part {
            Part::Plan => place.plan.clone(),
            Part::Latents => place.latents.clone(),
            Part::Picture if place.kind == Kind::Dzi => return self.tiles(place).await.map(Some),
            Part::Picture => {
                let found = self.object(place.picture(), String::new()).await?;
                return Ok(found.map(|fetched| Fetched { kind: Some(place.kind), ..fetched }));
            }
        };
        self.object(path, String::new()).await
    }

    async fn object(&self, path: Path, file: String) -> Result<Option<Fetched>, StoreError> {
        match self.objects.get(&path).await {
            Ok(found) => {
                let total = found.meta.size;
                let pieces = found.into_stream().map(move |bytes| {
                    let bytes =
                        bytes.map_err(|source| StoreError::Store { path: path.to_string(), source })?;
                    Ok(Piece { file: file.clone(), bytes })
                });
                Ok(Some(Fetched { kind: None, total, pieces: Box::pin(pieces) }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(StoreError::Store { path: path.to_string(), source }),
        }
    }

    /// Every file of a Deep Zoom picture, the descriptor last.
    async fn tiles(&self, place: &ResultPlace) -> Result<Fetched, StoreError> {
        let prefix = place.folder.clone().join(format!("{RESULT}_files"));
        let mut files = Vec::new();
        let mut total = 0;
        for found in self.objects_below(&prefix).await? {
            let inside: Option<Vec<String>> =
                found.location.prefix_match(&prefix).map(|p| p.map(|s| s.as_ref().to_owned()).collect());
            let Some(inside) = inside else { continue };
            total += found.size;
            files.push((found.location, format!("_files/{}", inside.join("/"))));
        }
        files.sort_by(|a, b| a.1.cmp(&b.1));
        for (name, file) in [("result.dzi.json", ".dzi.json"), ("result.dzi", ".dzi")] {
            let path = place.folder.clone().join(name);
            let head = self.objects.head(&path).await;
            total += head.map_err(|source| StoreError::Store { path: path.to_string(), source })?.size;
            files.push((path, file.to_owned()));
        }
        let (sender, receiver) = mpsc::channel(4);
        let store = self.clone();
        tokio::spawn(async move {
            // Asked for many at a time, given in their order.
            let (mut files, mut asked) = (files.into_iter(), VecDeque::new());
            loop {
                while asked.len() < TILES_AT_A_TIME {
                    let Some((path, file)) = files.next() else { break };
                    let store = store.clone();
                    asked.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
                        let missing =
                            || StoreError::Damaged { path: path.to_string(), reason: "it is missing".into() };
                        let bytes = store.get(&path).await?.ok_or_else(missing)?;
                        Ok(Piece { file, bytes: bytes.into() })
                    })));
                }
                let Some(next) = asked.pop_front() else { return };
                let piece = next.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
            }
        });
        let pieces = Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver));
        Ok(Fetched { kind: Some(Kind::Dzi), total, pieces })
    }
}

/// What came of something that was sent.
fn landed(done: Option<Result<Result<(), StoreError>, tokio::task::JoinError>>) -> Result<(), StoreError> {
    match done {
        Some(done) => done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())),
        None => Ok(()),
    }
}

/// Hands parts to a task that stores them.
struct Queue(mpsc::Sender<(String, Bytes)>);

impl DziSink for Queue {
    fn put(&mut self, path: &str, bytes: Vec<u8>) -> io::Result<()> {
        let gone = |_| io::Error::other("nobody stores it any more");
        self.0.blocking_send((path.to_owned(), bytes.into())).map_err(gone)
    }
}
