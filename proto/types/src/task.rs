//! The four kinds of work a worker does, and their results.

use std::fmt;
use std::sync::Arc;

use super::{Array, Pixels, Rect};

/// The BLAKE3 hash of a [`Conditioning`]: how tasks name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConditioningId(pub [u8; 32]);

impl fmt::Debug for ConditioningId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The text side of a render: what the noise predictor attends to.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// Text states of the prompt, (tokens, width).
    pub prompt: Array,
    /// Pooled state of the prompt, (width).
    pub pooled: Array,
    /// The same for the negative prompt; `None` when no guidance needs it.
    pub negative: Option<(Array, Array)>,
}

impl Conditioning {
    /// The hash of shapes and values.
    pub fn id(&self) -> ConditioningId {
        let mut hasher = blake3::Hasher::new();
        let mut add = |a: &Array| {
            hasher.update(&(a.shape().len() as u64).to_le_bytes());
            a.shape().iter().for_each(|&n| {
                hasher.update(&(n as u64).to_le_bytes());
            });
            a.data().iter().for_each(|v| {
                hasher.update(&v.to_le_bytes());
            });
        };
        add(&self.prompt);
        add(&self.pooled);
        if let Some((states, pooled)) = &self.negative {
            add(states);
            add(pooled);
        }
        ConditioningId(*hasher.finalize().as_bytes())
    }
}

/// Perturbed-attention guidance (Ahn et al., arXiv 2403.17377): how strong, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct PagScale {
    /// Weight of `e_pos - e_pert`, above 0.
    pub scale: f32,
    /// The self-attentions made the identity, by the names of
    /// [`ModelDescription::pag_blocks`](super::ModelDescription::pag_blocks).
    pub blocks: Vec<String>,
}

/// How latents and noise predictions travel between coordinator and worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// Exactly.
    #[default]
    F32,
    /// In half the bytes, rounded to the nearest.
    F16,
}

/// "What noise is in this patch?"
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseTask {
    /// The noisy window, (channels, height, width) in latent pixels.
    pub latent: Arc<Array>,
    /// How window and answer travel.
    pub wire: WireDtype,
    /// t: training timestep.
    pub timestep: u32,
    /// `(H, W, top, left, H, W)` in image pixels: canvas size, crop, target size.
    pub time_ids: [f32; 6],
    /// Which text conditioning to use.
    pub conditioning: ConditioningId,
    /// Classifier-free guidance scale g; at most 1 means no guidance.
    pub guidance_scale: f32,
    /// Perturbed-attention guidance, if any.
    pub pag: Option<PagScale>,
}

impl NoiseTask {
    /// Whether a negative pass is needed: g > 1.
    pub fn uses_negative(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// Rows per network call: prompt, negative, perturbed.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.uses_negative()) + usize::from(self.pag.is_some())
    }
}

/// What is wanted of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// What the network makes of it.
    Values,
    /// The mean and the variance of every group of its normalisations.
    Norms,
}

/// How a tile goes through the VAE.
#[derive(Debug, Clone, PartialEq)]
pub struct TileRules {
    /// Mean and variance of every group of the network's normalisations, (groups, 2), in the order that the
    /// network comes to them; `None`: the tile's own.
    pub norms: Option<Arc<Array>>,
    /// What is wanted.
    pub wanted: Wanted,
    /// The part of the tile that it is wanted of, in latent pixels.
    pub part: Rect,
    /// How values travel back.
    pub wire: WireDtype,
}

impl TileRules {
    /// All values of a tile of this height and width in latent pixels, by its own statistics.
    pub fn plain(height: usize, width: usize) -> Self {
        let part = Rect { top: 0, left: 0, height, width };
        Self { norms: None, wanted: Wanted::Values, part, wire: WireDtype::F32 }
    }
}

/// One piece of work for a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Predict the guided noise of a patch.
    PredictNoise(NoiseTask),
    /// Encode a prompt with both text encoders.
    EncodeText {
        /// The prompt as the user wrote it.
        prompt: String,
    },
    /// Encode an image tile.
    EncodeTile {
        /// The tile.
        image: Arc<Pixels>,
        /// How.
        rules: TileRules,
    },
    /// Decode a latent tile: (channels, height, width), already divided by the scaling factor.
    DecodeTile {
        /// The tile.
        latent: Arc<Array>,
        /// How.
        rules: TileRules,
    },
}

impl Task {
    /// Every kind, as [`Self::kind`] names them.
    pub const KINDS: [&str; 6] =
        ["patch", "text", "encode", "decode", "encoder statistics", "decoder statistics"];

    /// What the task is, for messages: `patch`, `text`, `encode`, `decode`, or statistics of the latter two.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PredictNoise(_) => "patch",
            Self::EncodeText { .. } => "text",
            Self::EncodeTile { rules: TileRules { wanted: Wanted::Norms, .. }, .. } => "encoder statistics",
            Self::DecodeTile { rules: TileRules { wanted: Wanted::Norms, .. }, .. } => "decoder statistics",
            Self::EncodeTile { .. } => "encode",
            Self::DecodeTile { .. } => "decode",
        }
    }
}

/// A prompt, encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoding {
    /// Penultimate hidden states of both encoders side by side, (77, width1 + width2).
    pub states: Array,
    /// The second encoder's projected end-of-text state, (projection width).
    pub pooled: Array,
    /// Tokens cut off because the prompt is longer than the encoders' 77.
    pub dropped_tokens: u32,
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskResult {
    /// The network's guided output (epsilon or v, as the model predicts), shaped as the window.
    Noise(Array),
    /// An encoded prompt.
    Text(TextEncoding),
    /// Mean and log-variance of the wanted part of an encoded tile, stacked: (2 channels, height, width).
    Moments(Array),
    /// The wanted part of a decoded tile, (3, f height, f width), nominally in [-1, 1], not clamped.
    Image(Array),
    /// Mean and variance of every group of a network's normalisations, (groups, 2).
    Norms(Array),
}
