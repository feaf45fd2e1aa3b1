//! What a worker says about its model and its arithmetic, so that a coordinator needs no model files.

use std::fmt;

/// The BLAKE3 hash of one model component: its configuration and every weight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A part of the model whose files decide results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Both text encoders and both tokenizers.
    Text,
    /// The noise predictor.
    Unet,
    /// Image encoder and decoder.
    Vae,
}

/// The number format the networks compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with 5 exponent bits.
    F16,
    /// 16-bit floats with 8 exponent bits.
    Bf16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// Everything besides the weights that decides the bytes of a result. Workers of one class give
/// the same bytes for the same task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumericClass {
    /// Device kind: `cpu`, `cuda` or `metal`.
    pub backend: String,
    /// The instruction set that the kernels chose, for example `fma`; of a GPU its model and its libraries.
    pub kernels: String,
    /// What the noise predictor computes in.
    pub dtype: Dtype,
    /// Version of the worker's arithmetic: raised when a change alters any result's bytes.
    pub algorithm: u32,
}

impl fmt::Display for NumericClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/v{}", self.backend, self.kernels, self.dtype, self.algorithm)
    }
}

/// How the betas run from first to last training timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly spaced betas.
    Linear,
    /// Evenly spaced square roots of the betas (Stable Diffusion's own).
    ScaledLinear,
}

/// Which training timesteps a schedule of S steps visits (Lin et al., arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Multiples of floor(T / S), plus the offset.
    Leading,
    /// From T - 1 downwards in steps of T / S.
    Trailing,
    /// S evenly spaced values from 0 to T - 1.
    Linspace,
}

/// What the network's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `v = sqrt(abar) noise - sqrt(1 - abar) x0` (Salimans and Ho, arXiv 2202.00512).
    VPrediction,
}

/// The noise schedule the model was trained with, as its scheduler file states it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleConfig {
    /// First beta, in (0, 1).
    pub beta_start: f64,
    /// Last beta, in (0, 1).
    pub beta_end: f64,
    /// How betas are spaced.
    pub beta_schedule: BetaSchedule,
    /// T: number of training timesteps.
    pub num_train_timesteps: u32,
    /// Added to every timestep of `leading` spacing.
    pub steps_offset: u32,
    /// Which timesteps a schedule visits.
    pub timestep_spacing: TimestepSpacing,
    /// What the network's output means.
    pub prediction_type: PredictionType,
}

impl ScheduleConfig {
    /// SDXL's (Podell et al., arXiv 2307.01952), as its `scheduler_config.json` has it.
    pub const SDXL: Self = Self {
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        num_train_timesteps: 1000,
        steps_offset: 1,
        timestep_spacing: TimestepSpacing::Leading,
        prediction_type: PredictionType::Epsilon,
    };
}

/// What to use when the user says nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    /// Number of denoising steps.
    pub steps: u32,
    /// Classifier-free guidance scale.
    pub guidance_scale: f32,
    /// Linear upscale factor of the final picture against the base.
    pub scale: f32,
    /// Guided share of the steps, for the first upscale stage and for the later ones, in [0, 1].
    pub slider_shares: [f32; 2],
}

/// The publication's sliders: 20 of 50 steps in the first upscale stage, 30 of 50 in the later ones.
pub const PAPER_SLIDER_SHARES: [f32; 2] = [0.4, 0.6];

/// A number of the encoder, and one of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaePair {
    /// The encoder's.
    pub encoder: u32,
    /// The decoder's.
    pub decoder: u32,
}

/// A model as its workers describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDescription {
    /// What the user called it: `pocket`, a folder's name, a hub id.
    pub name: String,
    /// One hash per component.
    pub fingerprints: Vec<(Component, Fingerprint)>,
    /// The class of its results.
    pub numeric_class: NumericClass,
    /// P: native side of the noise predictor, in latent pixels (the UNet's `sample_size`).
    pub patch_side: u32,
    /// Channels of a latent (4 for SDXL).
    pub latent_channels: u32,
    /// Image pixels per latent pixel and axis (8 for SDXL).
    pub latent_factor: u32,
    /// Latents are the encoder's output times this.
    pub scaling_factor: f32,
    /// Native side of the VAE, in image pixels (its `sample_size`): the published tile.
    pub vae_tile: u32,
    /// How far the encoder and the decoder see, in latent pixels: what lies farther away than that from a
    /// place changes nothing there, but for attention and normalisation, which see the whole tile.
    pub vae_reach: VaePair,
    /// Groups of all normalisations of the encoder and of the decoder.
    pub vae_norms: VaePair,
    /// About how many bytes of memory a worker of it needs at most, on its device: weights that are placed
    /// together, and what a patch or a tile needs beside them.
    pub device_bytes: u64,
    /// A missing negative prompt means zero embeddings, not those of an empty string.
    pub force_zeros_for_empty_prompt: bool,
    /// The noise schedule.
    pub schedule: ScheduleConfig,
    /// Names that perturbed-attention guidance may address, one per self-attention: `d0`, `m0`, `u3`...
    pub pag_blocks: Vec<String>,
    /// Sizes the model was trained at, (width, height) in image pixels, the default first.
    pub native_sizes: Vec<(u32, u32)>,
    /// Defaults for steps and guidance.
    pub preset: Preset,
}
