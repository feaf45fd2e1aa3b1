//! Renders in an object store: what was asked for, how far it is, checkpoints, results.
//!
//! Layout below the store's root, format version 2:
//!
//! ```text
//! coordinator/epochs/N.json         which `serve` has the store; created once each
//! renders/ID/render.json            the request; created once, so that an id is taken by one render
//! renders/ID/inputs/HASH            what came along with it, by its BLAKE3, written before render.json
//! renders/ID/spec.json              the request settled on a model; created once
//! renders/ID/epochs/N.json          which coordinator may write checkpoints; created once each
//! renders/ID/checkpoints/E-S.json   manifests, by epoch and sequence; created once each (`manifest.rs`)
//! renders/ID/blobs/HASH             what manifests consist of, by its BLAKE3
//! renders/ID/results/E/             what epoch E made: result.png or result.tif, or as Deep Zoom result.dzi,
//!                                   result.dzi.json and result_files/LEVEL/X_Y.jpg; latents.safetensors, plan.json
//! states/ID/E-S.json                how far it is, by epoch and sequence; created once each (`states.rs`)
//! ```
//!
//! Version 1 had `renders/ID/state.json`, overwritten, `renders/ID/result.*`, `result-plan.json` and
//! `stages/N.safetensors`: they are read, and not written any more.
//!
//! # What can be relied on
//!
//! *Whole or not at all.* Objects appear at once (single puts, multipart uploads; files are renamed into
//! place and synced, with their folder). Should a store tear one all the same, its hash tells.
//!
//! *Order.* A render exists from the moment its `render.json` does, and everything that file needs is written
//! before it. Blobs are written before the manifest that lists them, results before the state that says
//! `done`. Deleting goes the other way round: `render.json` first, manifests before blobs.
//!
//! *One writer.* Whoever takes up a render creates its next epoch, and from then on nobody older writes
//! manifests, results or states after a look that shows it (`claim.rs`).
//!
//! *A late writer spoils nothing.* Between a look and the write after it a process can be stopped for any length of
//! time: a closed lid, a frozen machine. So looks alone do not suffice, and every object that a reader needs carries
//! the epoch of who wrote it, or the digest of its bytes, in its name, and is created, not overwritten. What an
//! older coordinator writes late lies beside what the newer one wrote, and is outranked. Deleting follows the
//! argument of generation numbers (Neon's RFC 025): what is deleted is named; that it is not needed any more was
//! written before; and a look after that writing showed nobody newer. Whoever takes over later reads what was
//! written, and so needs nothing of what a late deletion takes: results go once a state names another, checkpoints
//! once a state says `done` or `cancelled`.
//!
//! *What a crash costs.* The patches since the newest manifest. A manifest or blob that is damaged or missing
//! costs the way back to the one before; the bytes of the picture are the same in every case.
//!
//! *Garbage.* Only the newest coordinator collects, after a manifest of its own: manifests beyond those kept
//! and blobs that none of the kept needs (`keeper.rs`). Blobs that a crash left behind are swept when the
//! render is taken up again and they are an hour old. When a render is done, all its checkpoints go, and
//! the results of earlier epochs.

mod blobs;
mod claim;
mod error;
mod inventory;
mod keeper;
pub mod manifest;
mod open;
mod outputs;
mod picture_file;
mod probe;
mod records;
mod remedy;
mod restore;
mod results;
mod states;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gigasmith_proto::domain::{Array, Identifier};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use claim::{Claim, Owner};
pub use error::StoreError;
pub use inventory::{Inventory, Standing};
pub use keeper::{Closed, Found, KeepOptions, Keeper, KeeperStart, Tallied, Tally};
pub use open::{StoreUrlError, open, open_objects};
pub use outputs::{Outputs, Told};
pub use picture_file::PictureFile;
pub use probe::Conditions;
pub use records::{PROMPT, RenderRecord, ResultRecord, Starts, StateRecord, StoredState, Summary, VERSION};
pub use restore::Restored;
pub use results::{Fetched, Part, Piece, ResultPlace};
pub use states::Indexed;

use upload::Upload;

use crate::output::{Settings, decode_latents};
use crate::raster::Scratch;
use crate::request::{InputFacts, InputPicture, RenderRequest, RequestInputs};
use crate::sampler::resize::Picture;
use crate::sampler::units::ImageSize;
use crate::spec::RenderSpec;
use crate::versions::{self, Unreadable, Versioned};

/// Objects up to so many bytes are written at once; larger ones in parts of that size.
const SMALL: usize = 8 << 20;
/// Ids that are tried before a render without a name is refused.
const FREE_IDS: u64 = 10_000;
/// Parts on their way at a time.
const PARTS_AT_A_TIME: usize = 4;

/// A render that is to be stored.
#[derive(Debug, Clone)]
pub struct NewRender {
    /// The id wanted; `None` for the next free one.
    pub id: Option<String>,
    /// Position among all renders of the store.
    pub order: u64,
    /// What is asked for.
    pub request: RenderRequest,
    /// Higher goes first.
    pub priority: i32,
    /// What tells this submission from every other: its record's nonce.
    pub key: Identifier,
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
    /// The folder, where it is one: what object stores do not show can be cleaned up there.
    folder: Option<PathBuf>,
    /// Where pictures under way lie.
    scratch: Scratch,
    /// Megabytes of blobs that may be in memory at a time.
    room: Arc<Semaphore>,
}

/// See [`RenderStore::room`].
const ROOM: u32 = 96;

fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM as usize))
}

impl RenderStore {
    /// Waits until so many bytes more may be in memory.
    async fn room_for(&self, bytes: u64) -> OwnedSemaphorePermit {
        let megabytes = (bytes >> 20).clamp(1, ROOM.into()) as u32;
        self.room.clone().acquire_many_owned(megabytes).await.expect("it is never closed")
    }

    /// Renders below `root` of an object store.
    pub fn new(objects: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self { objects, root, folder: None, scratch: Scratch::default(), room: room() }
    }

    /// Renders in a folder.
    fn in_folder(objects: Arc<dyn ObjectStore>, folder: PathBuf) -> Self {
        // What is large enough for pictures is large enough for those under way.
        let scratch = Scratch::new(&folder);
        Self { objects, root: Path::default(), folder: Some(folder), scratch, room: room() }
    }

    /// Pictures under way lie elsewhere.
    pub fn with_scratch(self, scratch: Scratch) -> Self {
        Self { scratch, ..self }
    }

    /// The folder, where it is one.
    pub fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    /// Where pictures under way lie: in the store's own folder, or, where it has none, in the system's.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
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
    async fn write(&self, path: &Path, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
        let mut bytes = bytes.into();
        if bytes.len() <= SMALL {
            return self.put(path, bytes, PutMode::Overwrite).await;
        }
        let mut upload = Upload::begin(self, path).await?;
        while !bytes.is_empty() {
            upload.put(bytes.split_to(SMALL.min(bytes.len()))).await?;
        }
        upload.finish().await
    }

    /// Creates an object that nobody has created before: whether it did.
    async fn create(&self, path: &Path, bytes: impl Into<Bytes>) -> Result<bool, StoreError> {
        match self.put(path, bytes, PutMode::Create).await {
            Ok(()) => Ok(true),
            Err(StoreError::Store { source: object_store::Error::AlreadyExists { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, path: &Path, bytes: impl Into<Bytes>, mode: PutMode) -> Result<(), StoreError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.objects.put_opts(path, PutPayload::from(bytes.into()), options).await {
            Ok(_) => Ok(()),
            Err(source) => Err(StoreError::Store { path: path.to_string(), source }),
        }
    }

    /// Deletes an object; one that is not there is deleted.
    async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Store { path: path.to_string(), source }),
        }
    }

    fn manifest_path(&self, id: &str, name: manifest::ManifestName) -> Path {
        self.path(id, &format!("checkpoints/{name}"))
    }

    async fn get_json<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(path).await? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| StoreError::Damaged { path: path.to_string(), reason: e.to_string() })
    }

    async fn get_versioned<T: Versioned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(path).await? else { return Ok(None) };
        let path = || path.to_string();
        versions::read(&bytes).map(Some).map_err(|e| match e {
            Unreadable::Version(version) => StoreError::Version { path: path(), reason: version.to_string() },
            Unreadable::Malformed(reason) => StoreError::Damaged { path: path(), reason },
        })
    }

    /// Stores a new render with what came along.
    async fn create_render(&self, record: &RenderRecord, inputs: &RequestInputs) -> Result<(), StoreError> {
        let id = record.id.as_str();
        let path = self.path(id, "render.json");
        let bytes = json(record);
        match self.get(&path).await? {
            Some(there) if there == bytes => return Ok(()),
            Some(_) => return Err(StoreError::Taken(id.to_owned())),
            None => {}
        }
        // They would be taken for the new one's.
        for remains in ["spec.json", "state.json"] {
            if self.get(&self.path(id, remains)).await?.is_some() {
                return Err(StoreError::Remains(id.to_owned()));
            }
        }
        // Under their own hashes: two submissions that reach for one id cannot mix.
        if let Some(picture) = &inputs.picture {
            let hash = record.picture.as_ref().map_or_else(|| hash_of(picture.rgb()), |p| p.hash.clone());
            self.write(&self.input_path(id, &hash), picture.bytes()).await?;
        }
        if let Some(plan) = &inputs.plan {
            self.write(&self.input_path(id, &hash_of(plan.as_bytes())), plan.clone().into_bytes()).await?;
        }
        // Somebody's, or ours, from an attempt whose answer was lost.
        match self.create(&path, bytes.clone()).await? || self.get(&path).await?.as_ref() == Some(&bytes) {
            true => Ok(()),
            false => Err(StoreError::Taken(id.to_owned())),
        }
    }

    /// Stores a new render under its name, or under the next free id `rN`.
    pub async fn add(&self, new: NewRender, inputs: &RequestInputs) -> Result<RenderRecord, StoreError> {
        let NewRender { id, order, request, priority, key } = new;
        let picture = inputs.facts().picture;
        let plan = inputs.plan.as_ref().map(|json| hash_of(json.as_bytes()));
        let nonce = nonce(key);
        let mut record = RenderRecord {
            version: VERSION,
            id: String::new(),
            nonce,
            order,
            request,
            priority,
            picture,
            plan,
        };
        if let Some(id) = id {
            record.id = id;
            self.create_render(&record, inputs).await?;
            return self.added(record).await;
        }
        let first = self.free_number().await?;
        for number in first..first.saturating_add(FREE_IDS) {
            record.id = format!("r{number}");
            match self.create_render(&record, inputs).await {
                Err(StoreError::Taken(_) | StoreError::Remains(_)) => {}
                Err(error) => return Err(error),
                Ok(()) => return self.added(record).await,
            }
        }
        Err(StoreError::Taken(record.id))
    }

    async fn added(&self, record: RenderRecord) -> Result<RenderRecord, StoreError> {
        let state = StateRecord::queued(record.priority).with_summary(Summary::of(&record, None));
        self.first_state(&record.id, &state).await?;
        Ok(record)
    }

    /// The number after the largest that an id `rN` has: renders with names of their own take none.
    async fn free_number(&self) -> Result<u64, StoreError> {
        let ids = self.ids().await?;
        let numbers = ids.iter().filter_map(|id| id.strip_prefix('r')?.parse::<u64>().ok());
        Ok(numbers.filter(|n| *n < u64::MAX - FREE_IDS).max().unwrap_or(0) + 1)
    }

    fn input_path(&self, id: &str, hash: &str) -> Path {
        self.path(id, &format!("inputs/{hash}"))
    }

    /// One render; `None` when there is none of that id.
    pub async fn read(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        let record: Option<RenderRecord> = self.get_versioned(&self.path(id, "render.json")).await?;
        let Some(record) = record else { return Ok(None) };
        let spec = self.get_versioned(&self.path(id, "spec.json")).await;
        let state = self.state(id).await;
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

    /// What came along with a render; the picture only where it is wanted.
    pub async fn inputs(&self, record: &RenderRecord, picture: bool) -> Result<RequestInputs, StoreError> {
        let picture = match record.picture.as_ref().filter(|_| picture) {
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

    /// What of the inputs decides how a request is resolved: nothing of it reads pixels.
    pub async fn facts(&self, record: &RenderRecord) -> Result<InputFacts, StoreError> {
        let plan = self.inputs(record, false).await?.plan;
        Ok(InputFacts { picture: record.picture.clone(), plan })
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
        if self.create(&path, json(spec)).await? {
            return Ok(spec.clone());
        }
        let missing = || StoreError::Damaged { path: path.to_string(), reason: "it vanished".into() };
        self.get_versioned(&path).await?.ok_or_else(missing)
    }

    fn stage_path(&self, id: &str, stage: u32) -> Path {
        self.path(id, &format!("stages/{stage}.safetensors"))
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
}

/// The position of a render that is submitted now: milliseconds since 1970, so that nobody reads all renders to find
/// the next. Those of version 1 are smaller.
pub fn order_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |since| since.as_millis() as u64)
}

/// The nonce of a submission with this key.
pub fn nonce(Identifier(key): Identifier) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
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
