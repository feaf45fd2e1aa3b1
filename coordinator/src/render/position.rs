//! Where a render stands.
//!
//! A render goes from position to position (`Render::step`) until it is [`Position::Written`]. Going on
//! with one that was left means starting at another position: each has what it needs to go on from there, and
//! nothing else, so nothing that belongs to an earlier position can be taken by mistake.

use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning};

use super::Rendered;
use super::course::SavedDecoding;
use crate::digest::Digest;
use crate::raster::Source;
use crate::sampler::resize::Picture;
use crate::sampler::stage::SavedStage;

/// Where a render stands, and what is known of its text.
#[derive(Debug, Default)]
pub struct Start {
    /// The encoded text; `None`: it is encoded first.
    pub conditioning: Option<Conditioning>,
    /// Where it goes on.
    pub position: Position,
}

impl Start {
    /// The beginning. A picture takes the place of the base stage: it is there exactly when the spec has an
    /// image hash.
    pub fn beginning(picture: Option<Picture>) -> Self {
        Self { conditioning: None, position: Position::Base { picture } }
    }
}

/// Where a render stands.
#[derive(Debug)]
pub enum Position {
    /// Before everything.
    Base {
        /// Takes the place of the base stage.
        picture: Option<Picture>,
    },
    /// Before or among the patches of a stage.
    Stage {
        /// Which one; 0 is the base.
        stage: u32,
        /// What it starts from.
        from: StageFrom,
    },
    /// The patches of a stage are done: its latent becomes a picture.
    Decoding {
        /// Which one.
        stage: u32,
        /// Its denoised latent, (channels, height, width).
        latent: Arc<Array>,
        /// Tiles of the picture that are decoded already.
        decoded: SavedDecoding,
    },
    /// The last picture is there.
    Written(Rendered),
}

/// What the patches of a stage start from.
#[derive(Debug)]
pub enum StageFrom {
    /// Noise alone: no step is guided.
    Noise,
    /// The picture of the stage before, to be enlarged and encoded.
    Picture(Source),
    /// Where they were left.
    Left {
        /// The digest of the stage's plan.
        plan: Digest,
        /// What guides it, (channels, height, width); `None` where nothing does.
        guide: Option<Array>,
        /// The canvas.
        saved: SavedStage,
    },
}

impl Default for Position {
    fn default() -> Self {
        Self::Base { picture: None }
    }
}

impl Position {
    /// Whether nothing of the render is done: its inputs are needed.
    pub fn is_beginning(&self) -> bool {
        matches!(self, Self::Base { .. })
    }

    /// How far it is, so that two positions of a render compare: stage, whether its patches are done, patches or rows
    /// of tiles.
    pub fn mark(&self) -> (u32, bool, u64) {
        match self {
            Self::Base { .. } => (0, false, 0),
            Self::Stage { stage, from: StageFrom::Left { saved, .. } } => {
                (*stage, false, saved.committed.len() as u64)
            }
            Self::Stage { stage, .. } => (*stage, false, 0),
            Self::Decoding { stage, decoded, .. } => (*stage, true, decoded.bands.len() as u64),
            Self::Written(_) => (u32::MAX, true, 0),
        }
    }

    /// The stage that it stands in; `None` before and after all of them.
    pub fn stage(&self) -> Option<u32> {
        match self {
            Self::Stage { stage, .. } | Self::Decoding { stage, .. } => Some(*stage),
            Self::Base { .. } | Self::Written(_) => None,
        }
    }
}
