//! Taking a render up: the newest checkpoint that is whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning, ModelDescription};
use tokio_stream::StreamExt;

use super::blobs::{self, conditioning_from};
use super::keeper::Found;
use super::manifest::{
    ArrayRecord, BlockRecord, CanvasRecord, Kept, Manifest, ManifestAt, ManifestError, ManifestName,
};
use super::{RenderStore, StoreError};
use crate::digest::Digest;
use crate::raster::Raster;
use crate::render::{Position, SavedDecoding, StageFrom, Start};
use crate::sampler::blocks::BlockGrid;
use crate::sampler::canvas::SavedBlock;
use crate::sampler::patch_set::PatchSet;
use crate::sampler::stage::SavedStage;
use crate::sampler::tiles::{Network, Tiling};
use crate::sampler::units::{LatentSize, PixelRect, Window};
use crate::spec::RenderSpec;

/// How often checkpoints are listed again when what was listed is gone.
const RELISTS: usize = 5;
/// Channels of a decoded tile, and bytes of a pixel.
const RGB: usize = 3;
/// Blocks are never smaller, unless the canvas is.
const LEAST_SIDE: usize = 8;

/// A render as it was left.
#[derive(Debug, Default)]
pub struct Restored {
    /// Where it goes on: at the beginning, without its picture, where there is no checkpoint.
    pub start: Start,
    /// What its keeper must know.
    pub found: Found,
    /// Checkpoints that could not be used, and why.
    pub damage: Vec<String>,
}

/// Why a manifest was not used.
enum Unusable {
    /// It, or something it needs, is damaged: an older one may do.
    Damaged(String),
    Store(StoreError),
}

impl From<StoreError> for Unusable {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged { .. } => Self::Damaged(error.to_string()),
            error => Self::Store(error),
        }
    }
}

/// Where blobs of a manifest belong.
enum Place {
    Guide(usize),
    Now(usize),
    Before(usize),
    Latent(usize),
    Band(usize),
    Tail(usize),
    Waiting(usize),
    Norms,
}

impl RenderStore {
    /// The newest point of a render that is whole, and what else lies there. Damaged checkpoints are named
    /// in the result, and the ones before are used; the store's own failures are errors.
    pub async fn restore(
        &self,
        id: &str,
        spec: &RenderSpec,
        model: &ModelDescription,
    ) -> Result<Restored, StoreError> {
        for _ in 0..RELISTS {
            // A manifest that is listed and gone was collected by somebody who has written a newer one.
            if let Some(restored) = self.try_restore(id, spec, model).await? {
                return Ok(restored);
            }
        }
        let path = self.path(id, "checkpoints").to_string();
        Err(StoreError::Damaged { path, reason: "what it lists is not there".into() })
    }

    /// `None`: the listing was out of date.
    async fn try_restore(
        &self,
        id: &str,
        spec: &RenderSpec,
        model: &ModelDescription,
    ) -> Result<Option<Restored>, StoreError> {
        let mut restored = Restored::default();
        let mut names = self.manifests(id).await?;
        names.sort_unstable();
        // The listing may be a little behind.
        while let Some(&ManifestName { epoch, sequence }) = names.last() {
            let next = ManifestName { epoch, sequence: sequence + 1 };
            if self.get(&self.manifest_path(id, next)).await?.is_none() {
                break;
            }
            names.push(next);
        }
        for name in names.into_iter().rev() {
            let path = self.manifest_path(id, name);
            let unusable = Kept { name, stage: None, blobs: Default::default() };
            let manifest = match self.manifest(id, name, spec).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) if restored.start.position.is_beginning() => return Ok(None),
                Ok(None) => continue,
                Err(Unusable::Store(error)) => return Err(error),
                Err(Unusable::Damaged(reason)) => {
                    restored.damage.push(format!("the checkpoint {path} cannot be used: {reason}"));
                    restored.found.manifests.push(unusable);
                    continue;
                }
            };
            let kept = Kept { name, stage: Some(manifest.stage), blobs: manifest.blobs() };
            if !restored.start.position.is_beginning() {
                restored.found.manifests.push(kept);
                continue;
            }
            match self.load(id, manifest, spec, model, &restored.found).await {
                Ok((start, remark)) => {
                    restored.start = start;
                    restored.damage.extend(remark);
                    restored.found.manifests.push(kept);
                }
                Err(Unusable::Store(error)) => return Err(error),
                Err(Unusable::Damaged(reason)) => {
                    restored.damage.push(format!("the checkpoint {path} cannot be used: {reason}"));
                    restored.found.manifests.push(unusable);
                }
            }
        }
        if restored.start.position.is_beginning() {
            let finished = self.finished_stage(id, spec, model, &mut restored.damage).await?;
            restored.start.position = finished.unwrap_or_default();
        }
        Ok(Some(restored))
    }

    /// The manifests that a listing shows.
    pub(super) async fn manifests(&self, id: &str) -> Result<Vec<ManifestName>, StoreError> {
        let prefix = self.path(id, "checkpoints");
        let mut listed = self.objects.list(Some(&prefix));
        let mut names = Vec::new();
        while let Some(found) = listed.next().await {
            let found = found.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
            names.extend(found.location.filename().and_then(|name| name.parse::<ManifestName>().ok()));
        }
        Ok(names)
    }

    /// `None`: it is not there.
    async fn manifest(
        &self,
        id: &str,
        name: ManifestName,
        spec: &RenderSpec,
    ) -> Result<Option<Manifest>, Unusable> {
        let path = self.manifest_path(id, name);
        let Some(bytes) = self.get(&path).await? else { return Ok(None) };
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(ManifestError::Damaged(reason)) => return Err(Unusable::Damaged(reason)),
            Err(error @ ManifestError::Version(_)) => {
                let (path, reason) = (path.to_string(), error.to_string());
                return Err(Unusable::Store(StoreError::Version { path, reason }));
            }
        };
        match manifest.spec == spec.hash() {
            true => Ok(Some(manifest)),
            false => Err(Unusable::Damaged("it is of other settings".into())),
        }
    }

    async fn load(
        &self,
        id: &str,
        manifest: Manifest,
        spec: &RenderSpec,
        model: &ModelDescription,
        found: &Found,
    ) -> Result<(Start, Option<String>), Unusable> {
        let damaged = |reason: String| Unusable::Damaged(reason);
        let stage = manifest.stage;
        let slider = stage.checked_sub(1).and_then(|i| spec.upscales.get(i as usize)).map_or(0, |u| u.slider);
        let size = spec.stage_size(stage).ok_or_else(|| damaged(format!("there is no stage {stage}")))?;
        let (channels, latent) = (model.latent_channels as usize, size.latent(model.latent_factor));
        let wanted = (channels, latent.height, latent.width);
        let (CanvasRecord { channels, height, width, side }, blobs) = contents(&manifest);
        if (channels, height, width) != wanted || side < LEAST_SIDE.min(height.max(width)) {
            let found = format!("{channels}x{height}x{width}");
            return Err(damaged(format!("its canvas is {found}, the render's is {wanted:?}")));
        }
        let grid = BlockGrid::new(LatentSize { height, width }, side);
        let tiling = Tiling::new(spec.vae, Network::Decoder, latent, model);
        let mut parts = Parts::new(grid, channels, &manifest.at);
        let fits = match &manifest.at {
            ManifestAt::Sampling { guide, .. } => guide.is_some() == (slider > 0),
            ManifestAt::Decoding { norms, .. } => {
                let shape = [1, Network::Decoder.groups(model), 2];
                norms.as_ref().is_none_or(|norms| norms.shape == shape)
            }
        };
        if !fits || !parts.fit(&manifest.at, &tiling) {
            return Err(damaged("it does not list what such a stage has".into()));
        }
        if let ManifestAt::Decoding { bands, .. } = &manifest.at {
            let raster = Raster::create(size, &self.scratch).map_err(StoreError::Scratch)?;
            parts.rows = (0..=bands.len()).map(|rows| tiling.finished(rows) as u32).collect();
            parts.raster = Some(Arc::new(raster));
        }
        self.read_blobs(id, blobs, |place, blob, bytes| {
            found.blobs.insert(blob);
            let path = || self.blob_path(id, &blob).to_string();
            let reason = || "it has another length".to_owned();
            let put = parts.put(place, bytes).map_err(StoreError::Scratch)?;
            put.ok_or_else(|| StoreError::Damaged { path: path(), reason: reason() })
        })
        .await?;
        let (finished, raster) = (parts.rows.last().copied(), parts.raster.clone());
        if let (Some(raster), Some(end)) = (raster, finished) {
            // The pyramid of what is there: gigabytes, perhaps.
            let built = tokio::task::spawn_blocking(move || raster.finish(end)).await;
            let built = built.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
            built.map_err(StoreError::Scratch)?;
        }
        // Every checkpoint has the same text: should it be damaged, it is encoded again.
        let (conditioning, remark) = match self.conditioning(id, &manifest, found).await {
            Ok(conditioning) => (Some(conditioning), None),
            Err(error @ StoreError::Damaged { .. }) => {
                (None, Some(format!("{error}: the text is encoded again")))
            }
            Err(error) => return Err(error.into()),
        };
        Ok((Start { conditioning, position: parts.position(stage, manifest.at) }, remark))
    }

    async fn conditioning(
        &self,
        id: &str,
        manifest: &Manifest,
        found: &Found,
    ) -> Result<Conditioning, StoreError> {
        let blob = manifest.conditioning;
        let path = || self.blob_path(id, &blob).to_string();
        let bytes = self.read_blob(id, blob).await?;
        let read =
            conditioning_from(&bytes).map_err(|reason| StoreError::Damaged { path: path(), reason })?;
        found.blobs.insert(blob);
        Ok(read)
    }

    /// What programs before checkpoints kept: the latents of the newest finished stage.
    async fn finished_stage(
        &self,
        id: &str,
        spec: &RenderSpec,
        model: &ModelDescription,
        damage: &mut Vec<String>,
    ) -> Result<Option<Position>, StoreError> {
        for stage in (0..=spec.upscales.len() as u32).rev() {
            let size = spec.stage_size(stage).expect("it is one of the spec's");
            let latent = size.latent(model.latent_factor);
            let shape = [model.latent_channels as usize, latent.height, latent.width];
            match self.stage(id, stage, shape, spec).await {
                Ok(None) => {}
                Ok(Some(latent)) => {
                    let decoded = SavedDecoding::default();
                    return Ok(Some(Position::Decoding { stage, latent: Arc::new(latent), decoded }));
                }
                Err(error @ StoreError::Damaged { .. }) => damage.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// The canvas of a manifest, and its blobs with their places.
fn contents(manifest: &Manifest) -> (CanvasRecord, Vec<(Place, Digest)>) {
    let mut blobs = Vec::new();
    let numbered = |ids: &[Digest], place: fn(usize) -> Place| -> Vec<(Place, Digest)> {
        ids.iter().enumerate().map(|(i, &id)| (place(i), id)).collect()
    };
    match &manifest.at {
        ManifestAt::Sampling { canvas, guide, blocks, .. } => {
            blobs.extend(numbered(guide.as_deref().unwrap_or_default(), Place::Guide));
            for (i, BlockRecord { now, before, .. }) in blocks.iter().enumerate() {
                blobs.push((Place::Now(i), *now));
                blobs.extend(before.map(|before| (Place::Before(i), before)));
            }
            (*canvas, blobs)
        }
        ManifestAt::Decoding { canvas, latent, bands, tails, waiting, norms } => {
            blobs.extend(numbered(latent, Place::Latent));
            blobs.extend(numbered(bands, Place::Band));
            blobs.extend(tails.iter().enumerate().map(|(i, a)| (Place::Tail(i), a.blob)));
            blobs.extend(waiting.iter().enumerate().map(|(i, (_, a))| (Place::Waiting(i), a.blob)));
            blobs.extend(norms.iter().map(|a| (Place::Norms, a.blob)));
            (*canvas, blobs)
        }
    }
}

/// The pieces of a point as they come in.
struct Parts {
    grid: BlockGrid,
    channels: usize,
    /// What guides, or the finished latent: put together block by block.
    whole: Option<Array>,
    /// Position and shape of each block that was touched.
    blocks: Vec<(usize, Window)>,
    now: BTreeMap<usize, Arc<Array>>,
    before: BTreeMap<usize, Arc<Array>>,
    tail_shapes: Vec<[usize; 3]>,
    tile_shapes: Vec<[usize; 3]>,
    norms_shape: Option<[usize; 3]>,
    raster: Option<Arc<Raster>>,
    /// Where bands begin, and where the last ends, in rows of pixels.
    rows: Vec<u32>,
    norms: Option<Array>,
    tails: BTreeMap<usize, Array>,
    waiting: BTreeMap<usize, Arc<Array>>,
}

impl Parts {
    fn new(grid: BlockGrid, channels: usize, at: &ManifestAt) -> Self {
        let shapes = |arrays: Vec<&ArrayRecord>| arrays.iter().map(|a| a.shape).collect();
        let (mut blocks, mut tail_shapes, mut tile_shapes) = (Vec::new(), Vec::new(), Vec::new());
        let mut norms_shape = None;
        let has_whole = match at {
            ManifestAt::Sampling { guide, blocks: records, .. } => {
                let known = records.iter().filter(|b| b.index < grid.len());
                blocks = known.map(|b| (b.index, grid.window(b.index))).collect();
                guide.is_some()
            }
            ManifestAt::Decoding { tails, waiting, norms, .. } => {
                norms_shape = norms.as_ref().map(|norms| norms.shape);
                tail_shapes = shapes(tails.iter().collect());
                tile_shapes = shapes(waiting.iter().map(|(_, a)| a).collect());
                true
            }
        };
        let LatentSize { height, width } = grid.size();
        let whole = has_whole.then(|| Array::zeros([channels, height, width]));
        Self {
            grid,
            channels,
            whole,
            blocks,
            now: BTreeMap::new(),
            before: BTreeMap::new(),
            tail_shapes,
            tile_shapes,
            norms_shape,
            raster: None,
            rows: Vec::new(),
            norms: None,
            tails: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Whether a manifest lists as many things as the canvas has. What else could be wrong shows when the
    /// stage is restored.
    fn fit(&self, at: &ManifestAt, tiling: &Tiling) -> bool {
        match at {
            ManifestAt::Sampling { guide, blocks, committed, patches, .. } => {
                guide.as_ref().is_none_or(|g| g.len() == self.grid.len())
                    && blocks.len() == self.blocks.len()
                    && blocks.is_sorted_by_key(|b| b.index)
                    && PatchSet::from_ranges(committed, *patches as usize).is_some()
            }
            ManifestAt::Decoding { latent, bands, tails, waiting, .. } => {
                let positions: Vec<usize> = waiting.iter().map(|(i, _)| *i as usize).collect();
                let waits = positions.iter().zip(&self.tile_shapes);
                latent.len() == self.grid.len()
                    && bands.len() <= tiling.rows()
                    && self.tail_shapes == tiling.tails(bands.len(), RGB)
                    && tails.len() == self.tail_shapes.len()
                    && positions.is_sorted_by(|a, b| a < b)
                    && waits.into_iter().all(|(&i, &shape)| tiling.result_shape(i, RGB) == Some(shape))
            }
        }
    }

    /// Puts a blob where it belongs; `None` when it does not fit.
    fn put(&mut self, place: Place, bytes: Vec<u8>) -> std::io::Result<Option<()>> {
        if let (Place::Band(i), Some(raster)) = (&place, &self.raster) {
            let (top, end) = (self.rows[*i], self.rows[i + 1]);
            let fits = bytes.len() == (end - top) as usize * raster.picture_size().width as usize * RGB;
            return fits.then(|| raster.write_rows(top, &bytes)).transpose();
        }
        Ok(self.put_values(place, &bytes))
    }

    fn put_values(&mut self, place: Place, bytes: &[u8]) -> Option<()> {
        let shaped = |window: Window| blobs::values(&[self.channels, window.height, window.width], bytes);
        match place {
            Place::Guide(i) | Place::Latent(i) => {
                let window = self.grid.window(i);
                let block = shaped(window)?;
                paste(self.whole.as_mut()?, &block, window);
            }
            Place::Now(i) => drop(self.now.insert(i, Arc::new(shaped(self.blocks[i].1)?))),
            Place::Before(i) => drop(self.before.insert(i, Arc::new(shaped(self.blocks[i].1)?))),
            Place::Tail(i) => drop(self.tails.insert(i, blobs::values(&self.tail_shapes[i], bytes)?)),
            Place::Waiting(i) => {
                drop(self.waiting.insert(i, Arc::new(blobs::values(&self.tile_shapes[i], bytes)?)));
            }
            Place::Norms => {
                let [_, groups, pair] = self.norms_shape?;
                self.norms = Some(blobs::values(&[groups, pair], bytes)?);
            }
            // Only a stage that is decoded has them.
            Place::Band(_) => return None,
        }
        Some(())
    }

    fn position(mut self, stage: u32, at: ManifestAt) -> Position {
        match at {
            ManifestAt::Sampling { committed, patches, plan, .. } => {
                let committed = PatchSet::from_ranges(&committed, patches as usize).unwrap_or_default();
                let blocks = self.blocks.iter().enumerate().map(|(i, &(index, _))| SavedBlock {
                    index,
                    version: 1,
                    now: self.now.remove(&i).expect("every blob was read"),
                    before: self.before.remove(&i),
                });
                let saved = SavedStage { grid: self.grid, committed, blocks: blocks.collect() };
                Position::Stage { stage, from: StageFrom::Left { plan, guide: self.whole, saved } }
            }
            ManifestAt::Decoding { waiting, .. } => {
                let tiles = self.waiting.into_values();
                let positions = waiting.iter().map(|(position, _)| *position as usize);
                let width = self.raster.as_ref().map_or(0, |r| r.picture_size().width);
                let band =
                    |ends: &[u32]| PixelRect { top: ends[0], left: 0, height: ends[1] - ends[0], width };
                let decoded = SavedDecoding {
                    bands: self.rows.windows(2).map(band).collect(),
                    raster: self.raster,
                    norms: self.norms.map(Arc::new),
                    tails: self.tails.into_values().collect(),
                    waiting: positions.zip(tiles).collect(),
                };
                let latent = self.whole.expect("a finished stage has a latent");
                Position::Decoding { stage, latent: Arc::new(latent), decoded }
            }
        }
    }
}

/// Copies a block (channels, height, width) into the canvas it is of.
fn paste(canvas: &mut Array, block: &Array, window: Window) {
    let (channels, height, width) = canvas.chw().expect("a canvas has three axes");
    for channel in 0..channels {
        for row in 0..window.height {
            let target = (channel * height + window.top + row) * width + window.left;
            let source = (channel * window.height + row) * window.width;
            canvas.data_mut()[target..][..window.width]
                .copy_from_slice(&block.data()[source..][..window.width]);
        }
    }
}
