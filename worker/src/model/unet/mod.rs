//! The noise predictor: UNet2DConditionModel with SDXL's `text_time` conditioning (Podell et al.,
//! arXiv 2307.01952), entirely as its configuration says.

mod blocks;
mod embeddings;
mod transformer;

use candle_core::{DType, Result, Tensor};

use super::config::UnetConfig;
use super::error::LoadError;
use super::layers::{Conv2d, GroupNorm};
use super::weights::Scope;
use blocks::{DownBlock, MidBlock, UpBlock};
use embeddings::{TimeEmbedding, sinusoidal};

pub(crate) use blocks::pag_names;

/// What the network sees besides the latents, for a batch of `n` rows.
#[derive(Debug)]
pub(crate) struct UnetInput<'a> {
    /// Noisy latents (n, c, h, w).
    pub(crate) latents: &'a Tensor,
    /// t: training timestep of every row.
    pub(crate) timesteps: &'a [f32],
    /// Text states (n, tokens, width).
    pub(crate) states: &'a Tensor,
    /// Pooled text states (n, width), f32.
    pub(crate) pooled: &'a Tensor,
    /// Canvas size, crop and target size in image pixels, of every row.
    pub(crate) time_ids: &'a [[f32; 6]],
    /// Self-attentions of the last rows that are made the identity.
    pub(crate) perturbed: Perturbed<'a>,
}

/// Which self-attentions of the batch's last rows are the identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Perturbed<'a> {
    /// Their names.
    pub(crate) names: &'a [String],
    /// How many rows, at the end of the batch.
    pub(crate) rows: usize,
}

impl Perturbed<'_> {
    /// The rows in which the self-attention `name` is among them.
    fn rows_in(&self, name: &str) -> usize {
        if self.names.iter().any(|n| n == name) { self.rows } else { 0 }
    }
}

/// State that every block needs: the time embedding (through its SiLU), the text, the perturbation.
struct Context<'a> {
    time: Tensor,
    states: &'a Tensor,
    perturbed: Perturbed<'a>,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Unet {
    config: UnetConfig,
    dtype: DType,
    time: TimeEmbedding,
    added: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: MidBlock,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Takes every weight it needs from `scope`.
    pub(crate) fn load(
        scope: &Scope<'_>,
        config: &UnetConfig,
        dtype: DType,
    ) -> std::result::Result<Self, LoadError> {
        let first = config.blocks[0].channels;
        let (time, added) = (config.time_embed_dim, config.projection_input_dim);
        Ok(Self {
            dtype,
            time: TimeEmbedding::load(&scope.at("time_embedding"), first, time)?,
            added: TimeEmbedding::load(&scope.at("add_embedding"), added, time)?,
            conv_in: Conv2d::load(&scope.at("conv_in"), config.in_channels, first, config.conv_in_kernel)?,
            down: blocks::load_down(scope, config)?,
            mid: MidBlock::load(&scope.at("mid_block"), config)?,
            up: blocks::load_up(scope, config)?,
            norm_out: GroupNorm::load(
                &scope.at("conv_norm_out"),
                first,
                config.norm_num_groups,
                config.norm_eps,
            )?,
            conv_out: Conv2d::load(&scope.at("conv_out"), first, config.in_channels, config.conv_out_kernel)?,
            config: config.clone(),
        })
    }

    /// The network's raw output, shaped as the latents, in f32.
    pub(crate) fn forward(&self, input: &UnetInput<'_>) -> Result<Tensor> {
        let context = Context { time: self.embed(input)?, states: input.states, perturbed: input.perturbed };
        let mut x = self.conv_in.forward(&input.latents.to_dtype(self.dtype)?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &context, &mut skips)?;
        }
        x = self.mid.forward(&x, &context)?;
        for block in &self.up {
            x = block.forward(x, &context, &mut skips)?;
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?.to_dtype(DType::F32)
    }

    /// The embedding of timestep, time ids and pooled text, through its SiLU: (n, time_embed_dim).
    /// Sinusoids are computed in f32 whatever the network computes in: in half precision, large
    /// timesteps would be far off.
    fn embed(&self, input: &UnetInput<'_>) -> Result<Tensor> {
        let c = &self.config;
        let rows = input.pooled.dim(0)?;
        let device = input.latents.device();
        let sines = |values: &[f32], width: usize| -> Result<Tensor> {
            let all: Vec<f32> =
                values.iter().flat_map(|v| sinusoidal(*v, width, c.flip_sin_to_cos, c.freq_shift)).collect();
            Tensor::from_vec(all, (rows, values.len() / rows * width), device)
        };
        let time = sines(input.timesteps, c.blocks[0].channels)?.to_dtype(self.dtype)?;
        let ids = sines(input.time_ids.as_flattened(), c.addition_time_embed_dim)?;
        let pooled = input.pooled.to_dtype(DType::F32)?;
        let added = Tensor::cat(&[&pooled, &ids], 1)?.to_dtype(self.dtype)?;
        (self.time.forward(&time)? + self.added.forward(&added)?)?.silu()
    }
}
