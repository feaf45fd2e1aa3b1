//! `vae/config.json`: AutoencoderKL.

use gigasmith_proto::domain::VaePair;
use serde::Serialize;
use serde_json::json;

use super::Reader;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// More than any network has: what a configuration can make this program allocate is bounded.
const MAX_WIDTH: usize = 1 << 14;
/// Latents of at most 1/64 of the picture's side.
const MAX_BLOCKS: usize = 7;
const MAX_LAYERS: usize = 64;
const MAX_CHANNELS: usize = 64;
const MAX_SIDE: usize = 1 << 16;

/// An AutoencoderKL (Rombach et al., arXiv 2112.10752).
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VaeConfig {
    pub(crate) block_out_channels: Vec<usize>,
    pub(crate) layers_per_block: usize,
    pub(crate) latent_channels: usize,
    pub(crate) norm_num_groups: usize,
    /// Native side in image pixels: the published tile.
    pub(crate) sample_size: usize,
    pub(crate) scaling_factor: f64,
    /// The weights overflow in f16.
    pub(crate) force_upcast: bool,
    pub(crate) use_quant_conv: bool,
    pub(crate) use_post_quant_conv: bool,
    pub(crate) mid_block_add_attention: bool,
}

impl VaeConfig {
    /// Image pixels per latent pixel and axis.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// How far encoder and decoder see through their convolutions, in latent pixels.
    pub(crate) fn reach(&self) -> VaePair {
        let (blocks, layers) = (self.block_out_channels.len() as u32, self.layers_per_block as u32);
        let factor = self.factor() as u32;
        // In image pixels: a 3x3 convolution sees one pixel of its own resolution on every side, one that
        // halves the resolution two on one side. A resnet has two, the middle has two resnets.
        let (mut encoder, mut decoder) = (1, 1);
        for block in 0..blocks {
            let pixel = 1 << block;
            let resizes = u32::from(block + 1 < blocks);
            encoder += (2 * layers + 2 * resizes) * pixel;
            decoder += (2 * (layers + 1) + resizes) * pixel;
        }
        let middle = (4 + 1) * factor;
        VaePair { encoder: (encoder + middle).div_ceil(factor), decoder: (decoder + middle).div_ceil(factor) }
    }

    /// Groups of all normalisations of encoder and decoder.
    pub(crate) fn norms(&self) -> VaePair {
        let (blocks, layers) = (self.block_out_channels.len(), self.layers_per_block);
        // Two a resnet; the middle has two resnets and perhaps an attention; one at the end.
        let others = 4 + usize::from(self.mid_block_add_attention) + 1;
        let groups = |layers: usize| ((2 * layers * blocks + others) * self.norm_num_groups) as u32;
        VaePair { encoder: groups(layers), decoder: groups(layers + 1) }
    }

    /// Reads `vae/config.json`.
    pub(crate) fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        let r = Reader::open(files, "vae/config.json")?;
        r.require("act_fn", &[json!("silu"), json!("swish")])?;
        for (key, value) in [("in_channels", 3), ("out_channels", 3)] {
            r.require(key, &[json!(value)])?;
        }
        for key in ["latents_mean", "latents_std"] {
            let what =
                "latents that are normalised channel by channel (as Playground v2.5's) are not supported";
            if r.get(key).is_some() {
                return Err(r.error(key, what));
            }
        }
        r.require("shift_factor", &[json!(0.0), json!(0)])?;
        r.ignore(&["_class_name"]);
        let channels = r.sizes("block_out_channels", MAX_WIDTH)?;
        if channels.len() > MAX_BLOCKS {
            return Err(r.error("block_out_channels", format!("at most {MAX_BLOCKS} blocks are supported")));
        }
        for (key, class) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types = r.strings(key)?;
            if types.len() != channels.len() || types.iter().any(|t| t != class) {
                return Err(r.error(key, format!("{} times \"{class}\" is needed", channels.len())));
            }
        }
        let groups = r.size_or("norm_num_groups", 32, MAX_WIDTH)?;
        if channels.iter().any(|c| c % groups != 0) {
            return Err(r.error("norm_num_groups", format!("it must divide every width of {channels:?}")));
        }
        let config = Self {
            layers_per_block: r.size_or("layers_per_block", 1, MAX_LAYERS)?,
            latent_channels: r.size_or("latent_channels", 4, MAX_CHANNELS)?,
            norm_num_groups: groups,
            sample_size: r.size_up_to("sample_size", MAX_SIDE)?,
            scaling_factor: r.positive_or("scaling_factor", 0.18215)?,
            force_upcast: r.bool_or("force_upcast", true)?,
            use_quant_conv: r.bool_or("use_quant_conv", true)?,
            use_post_quant_conv: r.bool_or("use_post_quant_conv", true)?,
            mid_block_add_attention: r.bool_or("mid_block_add_attention", true)?,
            block_out_channels: channels,
        };
        if config.sample_size < config.factor() {
            let least = format!("at least {}, one latent pixel, is needed", config.factor());
            return Err(r.error("sample_size", least));
        }
        r.warn_unread();
        Ok(config)
    }
}
