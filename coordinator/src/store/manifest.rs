//! Manifests: what a checkpoint consists of.
//!
//! Pure: no I/O. A manifest lists every blob of a point that a render can go on from. It is written last and
//! created once, so a manifest that is there points at nothing that is missing; it carries a hash of itself,
//! so one that was torn is known for it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use gigasmith_proto::text::Shown;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;

/// The manifest version that this program writes, and the only one so far.
pub const MANIFEST_VERSION: u32 = 1;

/// Which manifest: newer ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManifestName {
    /// Of the coordinator that wrote it.
    pub epoch: u64,
    /// Counts its manifests.
    pub sequence: u64,
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}-{:08}.json", self.epoch, self.sequence)
    }
}

impl FromStr for ManifestName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, sequence) = text.strip_suffix(".json").and_then(|t| t.split_once('-')).ok_or(())?;
        let number = |s: &str| s.parse().map_err(|_| ());
        Ok(Self { epoch: number(epoch)?, sequence: number(sequence)? })
    }
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version, [`MANIFEST_VERSION`].
    pub version: u32,
    /// The epoch of the coordinator that wrote it.
    pub epoch: u64,
    /// Counts the manifests of an epoch.
    pub sequence: u64,
    /// The hash of the spec that it belongs to.
    pub spec: Digest,
    /// The encoded text: a safetensors file with `prompt`, `pooled`, and, where there is a negative prompt,
    /// `negative_prompt` and `negative_pooled`.
    pub conditioning: Digest,
    /// Which stage; 0 is the base.
    pub stage: u32,
    /// Where in the stage.
    pub at: ManifestAt,
}

/// Where in a stage a checkpoint lies. Blobs of values hold f32, little-endian, (channels, height, width).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum ManifestAt {
    /// Among its patches.
    Sampling {
        /// How the canvas is cut.
        canvas: CanvasRecord,
        /// The hash of the stage's plan.
        plan: Digest,
        /// Patches of the stage.
        patches: u32,
        /// Those committed: ranges of first, and one past the last.
        committed: Vec<(u32, u32)>,
        /// What guides the stage, block by block; absent where nothing does.
        guide: Option<Vec<Digest>>,
        /// Blocks of the canvas that committed patches have touched; the others are as the stage began.
        blocks: Vec<BlockRecord>,
    },
    /// Among the tiles that its latent is decoded in.
    Decoding {
        /// How the canvas is cut.
        canvas: CanvasRecord,
        /// The latent, block by block.
        latent: Vec<Digest>,
        /// Finished rows of pixels from the top, 8-bit RGB, one blob per joined row of tiles.
        bands: Vec<Digest>,
        /// What the last joined row of tiles leaves for the next to fade in over.
        tails: Vec<ArrayRecord>,
        /// Tiles of rows that are not joined yet, by position in raster order.
        waiting: Vec<(u32, ArrayRecord)>,
        /// The normalisation statistics that all tiles share, (1, groups, 2), where they do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        norms: Option<ArrayRecord>,
    },
}

/// How a canvas is cut: blocks in raster order, smaller at the right and at the bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanvasRecord {
    /// Latent channels.
    pub channels: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
    /// Side of a whole block in latent pixels.
    pub side: usize,
}

/// A block of a canvas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Its position.
    pub index: usize,
    /// The values now.
    pub now: Digest,
    /// What pixels were when the newest step that touched them began, where that is still read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Digest>,
}

/// An array in a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayRecord {
    /// (channels, height, width).
    pub shape: [usize; 3],
    /// The values.
    pub blob: Digest,
}

/// A manifest as it is stored.
#[derive(Serialize)]
struct Sealed<'a> {
    blake3: Digest,
    manifest: &'a RawValue,
}

#[derive(Deserialize)]
struct Opened<'a> {
    blake3: Digest,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// Why bytes are no manifest that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It was torn or tampered with.
    #[error("{}", Shown(.0))]
    Damaged(String),
    /// It was written by a later version.
    #[error("it has version {0}, this program reads {MANIFEST_VERSION}: use a newer gigasmith")]
    Version(u64),
}

impl Manifest {
    /// Which one it is.
    pub fn name(&self) -> ManifestName {
        ManifestName { epoch: self.epoch, sequence: self.sequence }
    }

    /// The bytes of its object: JSON with `manifest` and the BLAKE3 of that value's text.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = serde_json::to_string(self).expect("manifests are plain data");
        let blake3 = Digest::of(text.as_bytes());
        let manifest = RawValue::from_string(text).expect("it was serialised a moment ago");
        serde_json::to_vec(&Sealed { blake3, manifest: &manifest }).expect("manifests are plain data")
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |e: serde_json::Error| ManifestError::Damaged(e.to_string());
        let Opened { blake3, manifest } = serde_json::from_slice(bytes).map_err(damaged)?;
        if Digest::of(manifest.get().as_bytes()) != blake3 {
            return Err(ManifestError::Damaged("its hash is not that of its content".into()));
        }
        // The version first: another one may look different.
        let value: serde_json::Value = serde_json::from_str(manifest.get()).map_err(damaged)?;
        match value["version"].as_u64() {
            Some(version) if version == u64::from(MANIFEST_VERSION) => {
                serde_json::from_value(value).map_err(damaged)
            }
            Some(version) => Err(ManifestError::Version(version)),
            None => Err(ManifestError::Damaged("it has no version".into())),
        }
    }

    /// Every blob that it needs.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut blobs = BTreeSet::from([self.conditioning]);
        match &self.at {
            ManifestAt::Sampling { guide, blocks, .. } => {
                blobs.extend(guide.iter().flatten());
                blobs.extend(blocks.iter().flat_map(|b| std::iter::once(b.now).chain(b.before)));
            }
            ManifestAt::Decoding { latent, bands, tails, waiting, norms, .. } => {
                blobs.extend(latent.iter().chain(bands));
                let arrays = tails.iter().chain(waiting.iter().map(|(_, tile)| tile)).chain(norms);
                blobs.extend(arrays.map(|a| a.blob));
            }
        }
        blobs
    }

    /// Patches of the stage that are committed, and patches of the stage; `None` once it is decoded.
    pub fn progress(&self) -> Option<(u32, u32)> {
        match &self.at {
            ManifestAt::Sampling { committed, patches, .. } => {
                let committed = committed.iter().map(|(first, end)| end.saturating_sub(*first));
                Some((committed.fold(0, u32::saturating_add), *patches))
            }
            ManifestAt::Decoding { .. } => None,
        }
    }
}

/// A manifest that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which one.
    pub name: ManifestName,
    /// Its stage; `None` for one that cannot be used.
    pub stage: Option<u32>,
    /// What it needs.
    pub blobs: BTreeSet<Digest>,
}

/// The manifests to be given up: those that cannot be used, and all but the newest `keep` (at least one) of
/// the others. The newest of the stage before the newest's is kept beside them: should the last checkpoints
/// all be damaged, only one stage is lost.
pub fn superseded(manifests: &[Kept], keep: usize) -> Vec<ManifestName> {
    let mut usable: Vec<&Kept> = manifests.iter().filter(|m| m.stage.is_some()).collect();
    usable.sort_by_key(|m| std::cmp::Reverse(m.name));
    let newest = usable.first().and_then(|m| m.stage);
    let before = usable.iter().find(|m| m.stage < newest).map(|m| m.name);
    let kept: BTreeSet<ManifestName> =
        usable.iter().take(keep.max(1)).map(|m| m.name).chain(before).collect();
    manifests.iter().map(|m| m.name).filter(|name| !kept.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Digest {
        [n; 32].into()
    }

    fn sampling() -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            epoch: 3,
            sequence: 12,
            spec: id(1),
            conditioning: id(2),
            stage: 1,
            at: ManifestAt::Sampling {
                canvas: CanvasRecord { channels: 4, height: 128, width: 64, side: 32 },
                plan: id(3),
                patches: 90,
                committed: vec![(0, 40), (42, 43)],
                guide: Some(vec![id(4), id(5)]),
                blocks: vec![
                    BlockRecord { index: 0, now: id(6), before: Some(id(7)) },
                    BlockRecord { index: 3, now: id(8), before: None },
                ],
            },
        }
    }

    #[test]
    fn manifests_come_back_and_their_blobs_are_all_named() {
        let manifest = sampling();
        assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
        assert_eq!(manifest.progress(), Some((41, 90)));
        assert_eq!(manifest.blobs(), (2..=8).filter(|n| *n != 3).map(id).collect());
        let array = |n| ArrayRecord { shape: [3, 8, 8], blob: id(n) };
        let ManifestAt::Sampling { canvas, .. } = manifest.at else { unreachable!() };
        let at = ManifestAt::Decoding {
            canvas,
            latent: vec![id(10)],
            bands: vec![id(11)],
            tails: vec![array(12)],
            waiting: vec![(7, array(13))],
            norms: Some(array(14)),
        };
        let decoding = Manifest { at, ..sampling() };
        assert_eq!(Manifest::parse(&decoding.to_bytes()).unwrap(), decoding);
        assert_eq!(decoding.blobs(), [2, 10, 11, 12, 13, 14].map(id).into());
        // As it was written before tiles shared statistics.
        let mut before = decoding.clone();
        let ManifestAt::Decoding { norms, .. } = &mut before.at else { unreachable!() };
        *norms = None;
        assert_eq!(Manifest::parse(&before.to_bytes()).unwrap(), before);
        assert!(!String::from_utf8(before.to_bytes()).unwrap().contains("norms"));
        assert_eq!(decoding.progress(), None);
    }

    #[test]
    fn any_damage_shows() {
        let bytes = sampling().to_bytes();
        for end in 0..bytes.len() {
            assert!(Manifest::parse(&bytes[..end]).is_err(), "torn at {end}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Manifest::parse(&changed).is_err(), "byte {at} changed");
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let later = Manifest { version: 2, ..sampling() };
        assert_eq!(Manifest::parse(&later.to_bytes()), Err(ManifestError::Version(2)));
    }

    /// Version 1 as it was first written: it must be read for ever.
    #[test]
    fn version_1_is_read() {
        let text = include_str!("manifest-v1.json");
        let manifest = Manifest::parse(text.trim_end().as_bytes()).unwrap();
        assert_eq!(manifest, sampling());
        assert_eq!(manifest.name().to_string(), "00000003-00000012.json");
        assert_eq!("00000003-00000012.json".parse(), Ok(manifest.name()));
        for bad in ["3-12", "x-1.json", "1.json", "00000003-00000012.json#1"] {
            assert_eq!(bad.parse::<ManifestName>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn the_newest_are_kept_and_one_of_the_stage_before() {
        let kept = |epoch, sequence, stage| Kept {
            name: ManifestName { epoch, sequence },
            stage,
            blobs: BTreeSet::new(),
        };
        let all = [
            kept(1, 1, Some(0)),
            kept(1, 2, Some(0)),
            kept(1, 3, Some(1)),
            kept(1, 9, Some(1)),
            kept(2, 1, None),
            kept(2, 2, Some(1)),
        ];
        let gone = |keep| superseded(&all, keep).iter().map(|n| (n.epoch, n.sequence)).collect::<Vec<_>>();
        assert_eq!(gone(2), [(1, 1), (1, 3), (2, 1)]);
        assert_eq!(gone(1), [(1, 1), (1, 3), (1, 9), (2, 1)]);
        assert_eq!(gone(0), gone(1), "one is always kept");
        assert_eq!(gone(9), [(2, 1)]);
        assert!(superseded(&[], 2).is_empty());
    }
}
