//! What a finished render leaves: its picture in any format, its latents, its plans.
//!
//! Pictures are large: nothing here holds one in memory. A format of one file is written to the scratch
//! folder once, and sent from there to wherever it is wanted; Deep Zoom's tiles go to the store one by one,
//! the descriptor last, so that one who finds it finds everything.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gigasmith_proto::domain::Array;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::{Claim, PARTS_AT_A_TIME, RenderStore, SMALL, StoreError};
use crate::output::{
    DziSink, Embedded, Format, Kind, Settings, WriteError, encode_latents, files_folder, notes_path,
    write_atomically, write_dzi, write_file, write_picture,
};
use crate::raster::{Levels, Positioned, Scratch};
use crate::render::Rendered;
use crate::spec::RenderSpec;
use crate::view::StoredPicture;

/// Tiles that are sent between two looks whether somebody newer has taken over.
const TILES_PER_LOOK: u64 = 512;
/// Tiles on their way to the store at a time.
const TILES_AT_A_TIME: usize = 32;
/// What a picture is called in the store, without its ending.
const RESULT: &str = "result";
const KINDS: [Kind; 3] = [Kind::Png, Kind::Tif, Kind::Dzi];

/// Told how far writing is: parts done, and all. Whether it goes on.
pub type Told = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Ends writing when nobody wants it any more.
fn goes_on(told: &Told, done: u64, all: u64) -> io::Result<()> {
    match told(done, all) {
        true => Ok(()),
        false => Err(io::Error::other("nobody wants it any more")),
    }
}

/// What a render made.
#[derive(Clone)]
pub struct Outputs {
    picture: Arc<dyn Levels>,
    embedded: Embedded,
    format: Format,
    /// The last stage, and its latents as a safetensors file; `None` when no stage ran.
    latents: Option<(u32, Bytes)>,
    /// The plans of the upscale stages, JSON.
    plans: Bytes,
    scratch: Scratch,
    /// The picture's file, once it was needed.
    file: Arc<Mutex<Option<Arc<Whole>>>>,
}

/// A file that is complete.
#[derive(Debug)]
struct Whole {
    file: Positioned,
    length: u64,
}

impl Whole {
    fn part(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (self.length - at).min(SMALL as u64) as usize];
        self.file.read(at, &mut bytes)?;
        Ok(bytes)
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outputs").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Outputs {
    /// What a render made. Takes a moment, for the latents and for the plans, which are drawn again.
    pub fn of(
        rendered: &Rendered,
        spec: &RenderSpec,
        (format, scratch): (Format, &Scratch),
    ) -> Result<Self, String> {
        let settings = Settings::new(spec.clone());
        let latents = rendered.latent.as_ref().map(|latent: &Arc<Array>| {
            let bytes = encode_latents(latent, &settings).map_err(|e| e.to_string())?;
            Ok::<_, String>((spec.upscales.len() as u32, Bytes::from(bytes)))
        });
        let plans = rendered.plans.to_json().into();
        let outputs = Self::new(rendered.picture.clone(), settings.embedded(), (format, scratch));
        Ok(Self { latents: latents.transpose()?, plans, ..outputs })
    }

    /// A picture alone.
    pub fn new(picture: Arc<dyn Levels>, embedded: Embedded, (format, scratch): (Format, &Scratch)) -> Self {
        Self {
            picture,
            embedded,
            format,
            latents: None,
            plans: Bytes::new(),
            scratch: scratch.clone(),
            file: Arc::default(),
        }
    }

    /// With the latents of a stage, a safetensors file.
    pub fn with_latents(self, stage: u32, latents: Bytes) -> Self {
        Self { latents: Some((stage, latents)), ..self }
    }

    /// The picture's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The latents, a safetensors file; `None` when no stage ran.
    pub fn latents(&self) -> Option<&Bytes> {
        self.latents.as_ref().map(|(_, bytes)| bytes)
    }

    /// The plans of the upscale stages, JSON.
    pub fn plans(&self) -> &Bytes {
        &self.plans
    }

    /// Writes the picture under its final name. Takes its time. An error of `written` ends it.
    pub fn write(
        &self,
        path: &Path,
        written: &mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        if self.format.kind == Kind::Dzi {
            return write_picture(path, &*self.picture, &self.embedded, self.format, written);
        }
        let file = self.file(written).map_err(|e| WriteError::new(path, self.scratch.explain(&e)))?;
        write_atomically(path, |out| {
            let parts = file.length.div_ceil(SMALL as u64);
            for part in 0..parts {
                out.write_all(&file.part(part * SMALL as u64)?)?;
                written(part + 1, parts)?;
            }
            Ok(())
        })
    }

    /// The picture as a file, written once.
    fn file(&self, written: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<Arc<Whole>> {
        let mut known = self.file.lock().expect("no holder panics");
        if let Some(file) = &*known {
            return Ok(file.clone());
        }
        let file = self.scratch.file()?;
        let mut buffered = io::BufWriter::with_capacity(1 << 20, &file);
        write_file(&mut buffered, &*self.picture, &self.embedded, self.format, written)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        let length = file.metadata()?.len();
        Ok(known.insert(Arc::new(Whole { file: Positioned::new(file), length })).clone())
    }
}

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

impl RenderStore {
    /// Stores what a render made, unless somebody newer has taken it over. What was stored of it before in
    /// another format goes.
    pub async fn put_result(
        &self,
        id: &str,
        claim: &Claim,
        result: &Outputs,
        told: Told,
    ) -> Result<(), StoreError> {
        self.check(claim).await?;
        if let Some((stage, latents)) = &result.latents {
            self.write(&self.stage_path(id, *stage), latents.clone()).await?;
        }
        self.write(&self.path(id, "result-plan.json"), result.plans.clone()).await?;
        match result.format.kind {
            Kind::Dzi => self.put_tiles(id, claim, result, told).await?,
            kind => {
                let making = result.clone();
                let made = tokio::task::spawn_blocking(move || {
                    making.file(&mut |done, total| goes_on(&told, done, total))
                });
                let made = made.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                let file = made.map_err(StoreError::Scratch)?;
                self.write_file(&self.result_path(id, kind), claim, file).await?;
            }
        }
        self.check(claim).await?;
        for other in KINDS.into_iter().filter(|k| *k != result.format.kind) {
            self.delete(&self.result_path(id, other)).await?;
        }
        if result.format.kind != Kind::Dzi {
            self.delete_tiles(id, |_| true).await?;
            self.delete(&self.path(id, &notes_path(RESULT))).await?;
        }
        Ok(())
    }

    /// Deletes tiles of an earlier picture.
    async fn delete_tiles(&self, id: &str, is_old: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let prefix = self.path(id, &files_folder(RESULT));
        let mut listed = self.objects.list(Some(&prefix));
        let mut old = Vec::new();
        while let Some(found) = listed.next().await {
            let found = found.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
            old.extend(Some(found.location).filter(|path| path.filename().is_some_and(&is_old)));
        }
        drop(listed);
        let mut going = JoinSet::new();
        for path in old {
            while going.len() >= TILES_AT_A_TIME {
                landed(going.join_next().await)?;
            }
            let store = self.clone();
            going.spawn(async move { store.delete(&path).await });
        }
        while !going.is_empty() {
            landed(going.join_next().await)?;
        }
        Ok(())
    }

    pub(super) fn result_path(&self, id: &str, kind: Kind) -> ObjectPath {
        self.path(id, &format!("{RESULT}.{}", kind.extension()))
    }

    /// Writes an object from a file, in parts; it is not there before the last of them.
    async fn write_file(&self, path: &ObjectPath, claim: &Claim, file: Arc<Whole>) -> Result<(), StoreError> {
        let fail = |source| StoreError::Store { path: path.to_string(), source };
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
        let upload = self.objects.put_multipart(path).await.map_err(fail)?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, SMALL);
        for at in (0..length).step_by(SMALL) {
            let bytes = match parts.wait_for_capacity(PARTS_AT_A_TIME).await {
                Ok(()) => part(at).await,
                Err(error) => Err(fail(error)),
            };
            match bytes {
                Ok(bytes) => parts.put(bytes),
                Err(error) => {
                    // Parts that stay take room and are billed; if this fails too there is nothing else to try.
                    let _ = parts.abort().await;
                    return Err(error);
                }
            }
        }
        // That took its time: somebody newer may have come.
        if let Err(error) = self.check(claim).await {
            let _ = parts.abort().await;
            return Err(error);
        }
        // Aborts by itself what it cannot finish.
        parts.finish().await.map(|_| ()).map_err(fail)
    }

    /// Stores a picture as Deep Zoom.
    async fn put_tiles(
        &self,
        id: &str,
        claim: &Claim,
        result: &Outputs,
        told: Told,
    ) -> Result<(), StoreError> {
        // Whoever looks at an older one must not find the new one's tiles, nor find older ones among the new.
        self.delete(&self.result_path(id, Kind::Dzi)).await?;
        let extension = format!(".{}", result.format.dzi().format.extension());
        self.delete_tiles(id, |name| !name.ends_with(&extension)).await?;
        let (sender, mut parts) = mpsc::channel::<(String, Bytes)>(4);
        let making = result.clone();
        let made = tokio::task::spawn_blocking(move || {
            let mut sink = Queue(sender);
            let mut written = |done, total| goes_on(&told, done, total);
            let options = making.format.dzi();
            write_dzi(&mut sink, RESULT, &*making.picture, &making.embedded, options, &mut written)
        });
        let (mut flying, mut last) = (JoinSet::new(), None);
        let mut sent = 0;
        while let Some((path, bytes)) = parts.recv().await {
            sent += 1;
            if sent % TILES_PER_LOOK == 0 {
                self.check(claim).await?;
            }
            let path = self.path(id, &path);
            if path == self.result_path(id, Kind::Dzi) {
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
        self.check(claim).await?;
        match last {
            Some((path, bytes)) => self.write(&path, bytes).await,
            None => Err(StoreError::Scratch(io::Error::other("the descriptor is missing"))),
        }
    }

    /// Of what kind a finished render's picture is; `None` when it is not there.
    pub async fn result_kind(&self, id: &str) -> Result<Option<Kind>, StoreError> {
        for kind in KINDS {
            let path = self.result_path(id, kind);
            match self.objects.head(&path).await {
                Ok(_) => return Ok(Some(kind)),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(StoreError::Store { path: path.to_string(), source }),
            }
        }
        Ok(None)
    }

    /// Where a finished render's picture lies; `None` when it is not there.
    pub async fn result_object(&self, id: &str) -> Result<Option<StoredPicture>, StoreError> {
        let kind = self.result_kind(id).await?;
        let folder = self.root.clone().join("renders").join(id);
        let stored =
            |kind| StoredPicture { objects: self.objects.clone(), folder, name: RESULT.to_owned(), kind };
        Ok(kind.map(stored))
    }

    /// A part of a finished render, to be read piece by piece; `None` when it is not there. `stages`: how
    /// many upscale stages the render has.
    pub async fn result(&self, id: &str, part: Part, stages: u32) -> Result<Option<Fetched>, StoreError> {
        let path = match part {
            Part::Plan => self.path(id, "result-plan.json"),
            Part::Latents => self.stage_path(id, stages),
            Part::Picture => match self.result_kind(id).await? {
                None => return Ok(None),
                Some(Kind::Dzi) => return self.tiles(id).await.map(Some),
                Some(kind) => {
                    let found = self.object(self.result_path(id, kind), String::new()).await?;
                    return Ok(found.map(|fetched| Fetched { kind: Some(kind), ..fetched }));
                }
            },
        };
        self.object(path, String::new()).await
    }

    async fn object(&self, path: ObjectPath, file: String) -> Result<Option<Fetched>, StoreError> {
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
    async fn tiles(&self, id: &str) -> Result<Fetched, StoreError> {
        let prefix = self.path(id, &format!("{RESULT}_files"));
        let mut files = Vec::new();
        let mut total = 0;
        let mut listed = self.objects.list(Some(&prefix));
        while let Some(found) = listed.next().await {
            let found = found.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
            let inside: Option<Vec<String>> =
                found.location.prefix_match(&prefix).map(|p| p.map(|s| s.as_ref().to_owned()).collect());
            let Some(inside) = inside else { continue };
            total += found.size;
            files.push((found.location, format!("_files/{}", inside.join("/"))));
        }
        drop(listed);
        files.sort_by(|a, b| a.1.cmp(&b.1));
        for (name, file) in [("result.dzi.json", ".dzi.json"), ("result.dzi", ".dzi")] {
            let path = self.path(id, name);
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
