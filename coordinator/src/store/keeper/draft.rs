//! A point on its way into the store: which blobs are still to be written, and what the manifest will say.
//!
//! No I/O: [`Current`] remembers what is written of the stage, [`Draft`] what is left of a point.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning};

use super::super::blobs::{Blob, conditioning_bytes};
use super::super::manifest::{ArrayRecord, BlockRecord, CanvasRecord, ManifestAt};
use crate::digest::Digest;
use crate::render::{Point, PointAt, SavedDecoding};
use crate::sampler::blocks::BlockGrid;
use crate::sampler::stage::{SavedStage, StageRules};

/// What a blob is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Conditioning,
    Guide(usize),
    Now(usize),
    Before(usize),
    Latent(usize),
    Band(usize),
    Tail(usize),
    Waiting(usize),
    Norms,
}

/// A point on its way into the store: what is still to be written, and what the manifest will say.
pub(super) struct Draft {
    pub(super) stage: u32,
    kind: Kind,
    pub(super) left: Vec<(Slot, Blob)>,
    pub(super) ids: BTreeMap<Slot, Digest>,
    /// Versions of the blocks that are written.
    versions: BTreeMap<usize, u64>,
}

enum Kind {
    Sampling { canvas: CanvasRecord, plan: Digest, patches: u32, committed: Vec<(u32, u32)> },
    Decoding { canvas: CanvasRecord, tails: Vec<Shape>, waiting: Vec<(u32, Shape)>, norms: Option<Shape> },
}

type Shape = [usize; 3];

/// What is known of the stage whose points are kept.
#[derive(Debug, Default)]
pub(super) struct Current {
    stage: Option<u32>,
    conditioning: Option<Digest>,
    plan: Option<Digest>,
    guide: BTreeMap<usize, Digest>,
    latent: BTreeMap<usize, Digest>,
    bands: BTreeMap<usize, Digest>,
    /// Version, values now, values before of each block.
    blocks: BTreeMap<usize, (u64, Digest, Option<Digest>)>,
}

impl Current {
    /// What a manifest to come may need without writing it.
    pub(super) fn blobs(&self) -> BTreeSet<Digest> {
        let blocks = self.blocks.values().flat_map(|(_, now, before)| std::iter::once(*now).chain(*before));
        let lists = self.guide.values().chain(self.latent.values()).chain(self.bands.values());
        blocks.chain(lists.copied()).chain(self.conditioning).collect()
    }

    /// What is written need not be written again, even if this draft is given up.
    pub(super) fn remember(&mut self, draft: &Draft) {
        for (slot, &id) in &draft.ids {
            match *slot {
                Slot::Conditioning => self.conditioning = Some(id),
                Slot::Guide(i) => drop(self.guide.insert(i, id)),
                Slot::Latent(i) => drop(self.latent.insert(i, id)),
                Slot::Band(i) => drop(self.bands.insert(i, id)),
                Slot::Now(i) => {
                    let before = draft.ids.get(&Slot::Before(i)).copied();
                    let waits = draft.left.iter().any(|(slot, _)| *slot == Slot::Before(i));
                    if let Some(&version) = draft.versions.get(&i).filter(|_| !waits) {
                        self.blocks.insert(i, (version, id, before));
                    }
                }
                Slot::Before(_) | Slot::Tail(_) | Slot::Waiting(_) | Slot::Norms => {}
            }
        }
    }

    /// What is to be written of a point. What this process has written of the same stage is not looked at
    /// again.
    pub(super) async fn draft(&mut self, point: Point) -> Draft {
        let Point { conditioning, stage, at } = point;
        if self.stage != Some(stage) {
            let conditioning = self.conditioning;
            *self = Self { stage: Some(stage), conditioning, ..Self::default() };
        }
        let mut draft = match at {
            PointAt::Sampling { rules, saved } => self.sampling(stage, &rules, saved).await,
            PointAt::Decoding { latent, grid, decoded } => self.decoding(stage, &latent, grid, decoded),
        };
        match self.conditioning {
            Some(id) => drop(draft.ids.insert(Slot::Conditioning, id)),
            None => draft.left.push((Slot::Conditioning, text(&conditioning))),
        }
        draft
    }

    async fn sampling(&mut self, stage: u32, rules: &Arc<StageRules>, saved: SavedStage) -> Draft {
        let SavedStage { grid, committed, blocks } = saved;
        let plan = match self.plan {
            Some(plan) => plan,
            None => {
                let rules = rules.clone();
                let hashed = tokio::task::spawn_blocking(move || Digest::from(rules.plan().hash())).await;
                hashed.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
            }
        };
        self.plan = Some(plan);
        let channels = rules.channels();
        let kind = Kind::Sampling {
            canvas: canvas_record(channels, grid),
            plan,
            patches: rules.plan().len() as u32,
            committed: committed.ranges(),
        };
        let mut draft = Draft::new(stage, kind);
        for i in (0..grid.len()).filter(|_| rules.guide().is_some()) {
            draft.want(Slot::Guide(i), self.guide.get(&i), || Blob::Guide(rules.clone(), grid.window(i)));
        }
        for block in blocks {
            let i = block.index;
            let known = self.blocks.get(&i).filter(|(version, ..)| *version == block.version);
            draft.versions.insert(i, block.version);
            draft.want(Slot::Now(i), known.map(|(_, now, _)| now), || Blob::Values(block.now));
            if let Some(values) = block.before {
                let known = known.and_then(|(.., before)| before.as_ref());
                draft.want(Slot::Before(i), known, || Blob::Values(values));
            }
        }
        draft
    }

    fn decoding(&self, stage: u32, latent: &Arc<Array>, grid: BlockGrid, decoded: SavedDecoding) -> Draft {
        let channels = latent.shape()[0];
        let SavedDecoding { raster, bands, tails, waiting, norms } = decoded;
        let shape = |a: &Array| a.chw().map(|(c, h, w)| [c, h, w]).expect("three axes");
        let kind = Kind::Decoding {
            canvas: canvas_record(channels, grid),
            tails: tails.iter().map(shape).collect(),
            waiting: waiting.iter().map(|(&i, tile)| (i as u32, shape(tile))).collect(),
            norms: norms.as_ref().map(|norms| [1, norms.shape()[0], norms.shape()[1]]),
        };
        let mut draft = Draft::new(stage, kind);
        for i in 0..grid.len() {
            draft.want(Slot::Latent(i), self.latent.get(&i), || Blob::Part(latent.clone(), grid.window(i)));
        }
        for (raster, (i, &band)) in raster.iter().flat_map(|r| bands.iter().enumerate().map(move |b| (r, b)))
        {
            draft.want(Slot::Band(i), self.bands.get(&i), || Blob::Rows(raster.clone(), band));
        }
        if let Some(norms) = norms {
            draft.want(Slot::Norms, None, || Blob::Values(norms));
        }
        for (i, tail) in tails.into_iter().enumerate() {
            draft.want(Slot::Tail(i), None, || Blob::Values(Arc::new(tail)));
        }
        for (i, tile) in waiting {
            draft.want(Slot::Waiting(i), None, || Blob::Values(tile));
        }
        draft
    }
}

fn text(conditioning: &Conditioning) -> Blob {
    Blob::Bytes(Arc::new(conditioning_bytes(conditioning)))
}

fn canvas_record(channels: usize, grid: BlockGrid) -> CanvasRecord {
    let size = grid.size();
    CanvasRecord { channels, height: size.height, width: size.width, side: grid.side() }
}

impl Draft {
    fn new(stage: u32, kind: Kind) -> Self {
        Self { stage, kind, left: Vec::new(), ids: BTreeMap::new(), versions: BTreeMap::new() }
    }

    fn want(&mut self, slot: Slot, known: Option<&Digest>, blob: impl FnOnce() -> Blob) {
        match known {
            Some(&id) => drop(self.ids.insert(slot, id)),
            None => self.left.push((slot, blob())),
        }
    }

    /// The ids of some slots, in order.
    fn list(&self, first: Slot, end: Slot) -> Vec<Digest> {
        self.ids.range(first..end).map(|(_, id)| *id).collect()
    }

    /// What the manifest says. Every blob must be written.
    pub(super) fn at(&self) -> ManifestAt {
        match &self.kind {
            Kind::Sampling { canvas, plan, patches, committed } => {
                let guide = self.list(Slot::Guide(0), Slot::Now(0));
                let block = |(&index, _): (&usize, &u64)| BlockRecord {
                    index,
                    now: self.ids[&Slot::Now(index)],
                    before: self.ids.get(&Slot::Before(index)).copied(),
                };
                ManifestAt::Sampling {
                    canvas: *canvas,
                    plan: *plan,
                    patches: *patches,
                    committed: committed.clone(),
                    guide: (!guide.is_empty()).then_some(guide),
                    blocks: self.versions.iter().map(block).collect(),
                }
            }
            Kind::Decoding { canvas, tails, waiting, norms } => {
                let record = |shape: Shape, slot| ArrayRecord { shape, blob: self.ids[&slot] };
                ManifestAt::Decoding {
                    canvas: *canvas,
                    latent: self.list(Slot::Latent(0), Slot::Band(0)),
                    bands: self.list(Slot::Band(0), Slot::Tail(0)),
                    tails: tails.iter().enumerate().map(|(i, s)| record(*s, Slot::Tail(i))).collect(),
                    norms: norms.map(|shape| record(shape, Slot::Norms)),
                    waiting: waiting
                        .iter()
                        .map(|&(i, shape)| (i, record(shape, Slot::Waiting(i as usize))))
                        .collect(),
                }
            }
        }
    }
}
