//! Renders in an object store: what was asked for, how far it is, finished stages, results.
//!
//! Layout below the store's root, format version 1:
//!
//! ```text
//! renders/ID/render.json            the request; created once, so that an id is taken by one render
//! renders/ID/inputs/HASH            what came along with it, by its BLAKE3, written before render.json
//! renders/ID/spec.json              the request settled on a model; created once
//! renders/ID/state.json             state, priority, reason; overwritten
//! renders/ID/stages/N.safetensors   the latents of a finished stage, N = 0 for the base
//! renders/ID/result.png, result-plan.json
//! ```
//!
//! Two coordinators on one store do not know of each other yet: run one.
//!
//! Crash safety: a render exists from the moment its `render.json` does, and everything that file needs
//! is written before it. Objects appear whole or not at all (single puts; files are renamed into place).
//! A missing or damaged stage costs a repetition of that stage, to the same bytes. Nothing here deletes
//! what an unfinished render needs.

mod open;
mod records;

use std::sync::Arc;

use gigasmith_proto::domain::Array;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use tokio_stream::Stream;

pub use open::{StoreUrlError, open};
pub use records::{InputPicture, RenderRecord, StateRecord, VERSION};

use crate::output::{Settings, decode_latents, encode_latents};
use crate::request::RequestInputs;
use crate::sampler::resize::Picture;
use crate::sampler::units::ImageSize;
use crate::spec::RenderSpec;

/// Objects up to so many bytes are written at once; larger ones in parts of that size.
const SMALL: usize = 8 << 20;
/// Parts on their way at a time.
const PARTS_AT_A_TIME: usize = 4;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store itself.
    #[error("the store failed at {path}: {source}")]
    Store {
        /// Which object.
        path: String,
        /// The store's reason.
        source: object_store::Error,
    },
    /// An object that is not what it should be.
    #[error("{path} in the store is damaged: {reason}")]
    Damaged {
        /// Which object.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The id is another render's.
    #[error("there is a render `{0}` already: choose another name")]
    Taken(String),
}

/// A render as the store has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What was asked for.
    pub record: RenderRecord,
    /// The same settled on a model, where that has happened.
    pub spec: Option<RenderSpec>,
    /// How far it is.
    pub state: StateRecord,
}

/// All renders of a store.
#[derive(Debug, Clone)]
pub struct RenderStore {
    objects: Arc<dyn ObjectStore>,
    root: Path,
}

impl RenderStore {
    /// Renders below `root` of an object store.
    pub fn new(objects: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self { objects, root }
    }

    fn path(&self, id: &str, name: &str) -> Path {
        let folder = self.root.clone().join("renders").join(id);
        name.split('/').fold(folder, |path, part| path.join(part))
    }

    async fn get(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let fail = |source| StoreError::Store { path: path.to_string(), source };
        let found = match self.objects.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(fail(source)),
        };
        found.bytes().await.map(|bytes| Some(bytes.to_vec())).map_err(fail)
    }

    /// Writes an object, a large one in parts: one request must not take minutes.
    async fn write(&self, path: &Path, bytes: Vec<u8>) -> Result<(), StoreError> {
        if bytes.len() <= SMALL {
            return self.put(path, bytes, PutMode::Overwrite).await;
        }
        let fail = |source| StoreError::Store { path: path.to_string(), source };
        let upload = self.objects.put_multipart(path).await.map_err(fail)?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, SMALL);
        let mut bytes = bytes::Bytes::from(bytes);
        while !bytes.is_empty() {
            parts.wait_for_capacity(PARTS_AT_A_TIME).await.map_err(fail)?;
            parts.put(bytes.split_to(SMALL.min(bytes.len())));
        }
        parts.finish().await.map(|_| ()).map_err(fail)
    }

    async fn put(&self, path: &Path, bytes: Vec<u8>, mode: PutMode) -> Result<(), StoreError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.objects.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(()),
            Err(source) => Err(StoreError::Store { path: path.to_string(), source }),
        }
    }

    async fn get_json<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(path).await? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| StoreError::Damaged { path: path.to_string(), reason: e.to_string() })
    }

    /// Stores a new render with what came along.
    pub async fn create(&self, record: &RenderRecord, inputs: &RequestInputs) -> Result<(), StoreError> {
        let id = record.id.as_str();
        let path = self.path(id, "render.json");
        if self.get(&path).await?.is_some() {
            return Err(StoreError::Taken(id.to_owned()));
        }
        // Under their own hashes: two submissions that reach for one id cannot mix.
        if let Some(picture) = &inputs.picture {
            self.write(&self.input_path(id, &hash_of(picture.rgb())), picture.rgb().to_vec()).await?;
        }
        if let Some(plan) = &inputs.plan {
            self.write(&self.input_path(id, &hash_of(plan.as_bytes())), plan.clone().into_bytes()).await?;
        }
        match self.put(&path, json(record), PutMode::Create).await {
            Err(StoreError::Store { source: object_store::Error::AlreadyExists { .. }, .. }) => {
                Err(StoreError::Taken(id.to_owned()))
            }
            other => other,
        }
    }

    fn input_path(&self, id: &str, hash: &str) -> Path {
        self.path(id, &format!("inputs/{hash}"))
    }

    /// Every render, in the order they were submitted. One whose request cannot be read is logged and left
    /// out; one whose state is damaged comes as failed, with the damage as its reason.
    pub async fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let prefix = self.root.clone().join("renders");
        let listed = self.objects.list_with_delimiter(Some(&prefix)).await;
        let listed = listed.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
        let mut renders = Vec::new();
        for folder in listed.common_prefixes {
            let Some(id) = folder.filename() else { continue };
            match self.read(id).await {
                Ok(Some(stored)) => renders.push(stored),
                // Inputs without a request: a submission that broke off.
                Ok(None) => {}
                Err(error @ StoreError::Store { .. }) => return Err(error),
                Err(error) => tracing::error!(id, %error, "a render cannot be read"),
            }
        }
        renders.sort_by(|a, b| (a.record.order, &a.record.id).cmp(&(b.record.order, &b.record.id)));
        Ok(renders)
    }

    async fn read(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        let Some(record) = self.get_json::<RenderRecord>(&self.path(id, "render.json")).await? else {
            return Ok(None);
        };
        let damaged =
            |reason: String| StoreError::Damaged { path: self.path(id, "render.json").to_string(), reason };
        record.check().map_err(damaged)?;
        let spec = self.get_json(&self.path(id, "spec.json")).await;
        let state = self.get_json(&self.path(id, "state.json")).await;
        let (spec, state) = match (spec, state) {
            (Err(error @ StoreError::Store { .. }), _) | (_, Err(error @ StoreError::Store { .. })) => {
                return Err(error);
            }
            (Ok(spec), Ok(state)) => (spec, state.unwrap_or_else(|| StateRecord::queued(record.priority))),
            (Err(damage), _) => (None, StateRecord::failed(record.priority, damage.to_string())),
            (Ok(spec), Err(damage)) => (spec, StateRecord::failed(record.priority, damage.to_string())),
        };
        Ok(Some(Stored { record, spec, state }))
    }

    /// What came along with a render.
    pub async fn inputs(&self, record: &RenderRecord) -> Result<RequestInputs, StoreError> {
        let picture = match &record.picture {
            None => None,
            Some(InputPicture { size, hash }) => {
                let rgb = self.input(&record.id, hash).await?;
                if rgb.len() != bytes_of(*size) {
                    let path = self.input_path(&record.id, hash).to_string();
                    let reason = "it has another size than the request says".to_owned();
                    return Err(StoreError::Damaged { path, reason });
                }
                Some(Picture::new(*size, rgb))
            }
        };
        let plan = match &record.plan {
            None => None,
            Some(hash) => {
                let bytes = self.input(&record.id, hash).await?;
                let path = || self.input_path(&record.id, hash).to_string();
                let text = String::from_utf8(bytes);
                Some(text.map_err(|e| StoreError::Damaged { path: path(), reason: e.to_string() })?)
            }
        };
        Ok(RequestInputs { picture, plan })
    }

    async fn input(&self, id: &str, hash: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.input_path(id, hash);
        let damaged =
            |reason: &str| StoreError::Damaged { path: path.to_string(), reason: reason.to_owned() };
        let bytes = self.get(&path).await?.ok_or_else(|| damaged("it is missing"))?;
        if hash_of(&bytes) == hash { Ok(bytes) } else { Err(damaged("its bytes are not those submitted")) }
    }

    /// Stores what a request was settled to. The first one stands: it is returned.
    pub async fn settle(&self, id: &str, spec: &RenderSpec) -> Result<RenderSpec, StoreError> {
        let path = self.path(id, "spec.json");
        match self.put(&path, json(spec), PutMode::Create).await {
            Ok(()) => Ok(spec.clone()),
            Err(StoreError::Store { source: object_store::Error::AlreadyExists { .. }, .. }) => {
                let missing = || StoreError::Damaged { path: path.to_string(), reason: "it vanished".into() };
                self.get_json(&path).await?.ok_or_else(missing)
            }
            Err(error) => Err(error),
        }
    }

    /// Stores a render's state.
    pub async fn set_state(&self, id: &str, state: &StateRecord) -> Result<(), StoreError> {
        self.put(&self.path(id, "state.json"), json(state), PutMode::Overwrite).await
    }

    fn stage_path(&self, id: &str, stage: u32) -> Path {
        self.path(id, &format!("stages/{stage}.safetensors"))
    }

    /// Stores the latent of a finished stage.
    pub async fn put_stage(
        &self,
        id: &str,
        stage: u32,
        latent: &Array,
        spec: &RenderSpec,
    ) -> Result<(), StoreError> {
        let path = self.stage_path(id, stage);
        let damaged =
            |e: &dyn std::fmt::Display| StoreError::Damaged { path: path.to_string(), reason: e.to_string() };
        let bytes = encode_latents(latent, &Settings::new(spec.clone())).map_err(|e| damaged(&e))?;
        self.write(&path, bytes).await
    }

    /// The latent of a finished stage, if it is there and that of this render: (channels, height, width)
    /// as given, by the same settings.
    pub async fn stage(
        &self,
        id: &str,
        stage: u32,
        shape: [usize; 3],
        spec: &RenderSpec,
    ) -> Result<Option<Array>, StoreError> {
        let path = self.stage_path(id, stage);
        let damaged = |reason: String| StoreError::Damaged { path: path.to_string(), reason };
        let Some(bytes) = self.get(&path).await? else { return Ok(None) };
        let (latent, settings) = decode_latents(&bytes).map_err(|e| damaged(e.to_string()))?;
        if latent.shape() != shape {
            return Err(damaged(format!("it has shape {:?}, not {shape:?}", latent.shape())));
        }
        match settings.map(|json| Settings::from_json(&json)) {
            Some(Ok(settings)) if settings.spec == *spec => Ok(Some(latent)),
            _ => Err(damaged("it is of another render".to_owned())),
        }
    }

    /// Stores a render's picture and plans.
    pub async fn put_result(&self, id: &str, png: Vec<u8>, plans: Vec<u8>) -> Result<(), StoreError> {
        self.write(&self.path(id, "result-plan.json"), plans).await?;
        self.write(&self.path(id, "result.png"), png).await
    }

    /// A part of a finished render, to be read piece by piece; `None` when it is not there. `stages`: how
    /// many upscale stages the render has.
    pub async fn result(&self, id: &str, part: Part, stages: u32) -> Result<Option<Fetched>, StoreError> {
        let path = match part {
            Part::Picture => self.path(id, "result.png"),
            Part::Plan => self.path(id, "result-plan.json"),
            Part::Latents => self.stage_path(id, stages),
        };
        match self.objects.get(&path).await {
            Ok(found) => Ok(Some(Fetched { total: found.meta.size, bytes: found.into_stream() })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(StoreError::Store { path: path.to_string(), source }),
        }
    }
}

/// A part of a finished render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The picture, a PNG.
    Picture,
    /// The last stage's latents, a safetensors file.
    Latents,
    /// The plans of the upscale stages, JSON.
    Plan,
}

/// A part as it comes out of the store.
pub struct Fetched {
    /// Bytes in all.
    pub total: u64,
    /// The bytes, in pieces.
    pub bytes: std::pin::Pin<Box<dyn Stream<Item = object_store::Result<bytes::Bytes>> + Send>>,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched").field("total", &self.total).finish_non_exhaustive()
    }
}

/// How inputs are called.
pub fn hash_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// Bytes of a picture's pixels.
pub fn bytes_of(size: ImageSize) -> usize {
    size.width as usize * size.height as usize * 3
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("records are plain data")
}

#[cfg(test)]
mod tests;
