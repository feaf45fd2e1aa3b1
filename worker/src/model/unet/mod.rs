//! The noise predictor: UNet2DConditionModel with SDXL's `text_time` conditioning (Podell et al.,
//! arXiv 2307.01952), entirely as its configuration says.

mod blocks;
mod embeddings;
mod transformer;

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor, bail};

use super::config::UnetConfig;
use super::error::LoadError;
use super::kernels::Values;
use super::layers::{Conv2d, GroupNorm};
use super::weights::Scope;
use blocks::{DownBlock, MidBlock, UpBlock};
use embeddings::{TimeEmbedding, sinusoidal};

pub(crate) use blocks::pag_names;

/// What the network sees besides the texts, for a batch of rows.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    /// Noisy latents, one row's after the other.
    pub(crate) latents: Vec<f32>,
    /// (rows, c, h, w)
    pub(crate) shape: Vec<usize>,
    /// t: training timestep of every row.
    pub(crate) timesteps: Vec<f32>,
    /// Pooled text states of every row.
    pub(crate) pooled: Vec<&'a [f32]>,
    /// Canvas size, crop and target size in image pixels, of every row.
    pub(crate) time_ids: Vec<[f32; 6]>,
}

/// What the cross-attentions need of the texts of a batch's rows: the same for all patches and timesteps.
#[derive(Debug, Default)]
pub(crate) struct Text {
    /// Keys and values, by the name of their layer.
    by_layer: HashMap<String, Vec<Tensor>>,
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
    text: &'a Text,
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
    mid: Option<MidBlock>,
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

    /// Reads text states (rows, tokens, width).
    pub(crate) fn read(&self, states: &Tensor) -> Result<Text> {
        let (states, mut text) = (states.to_dtype(self.dtype)?, Text::default());
        let (down, up) = (self.down.iter().flat_map(DownBlock::transformers), self.up.iter());
        let up = up.flat_map(UpBlock::transformers);
        let mid = self.mid.iter().filter_map(MidBlock::transformer);
        for transformer in down.chain(mid).chain(up) {
            transformer.read(&states, &mut text)?;
        }
        Ok(text)
    }

    /// Bytes that [`Self::read`] keeps of a row of so many tokens.
    pub(crate) fn text_bytes(config: &UnetConfig, tokens: usize, dtype: DType) -> usize {
        let of_block = |channels: usize, depths: &Option<Vec<usize>>| {
            2 * channels * depths.iter().flatten().sum::<usize>()
        };
        let of_blocks = config
            .blocks
            .iter()
            .map(|b| of_block(b.channels, &b.down_depths) + of_block(b.channels, &b.up_depths));
        let last = config.blocks.last().map_or(0, |b| b.channels);
        (of_blocks.sum::<usize>() + 2 * last * config.mid.depth()) * tokens * dtype.size_in_bytes()
    }

    /// The network's inputs: latents, sinusoids of timesteps, pooled text states with sinusoids of time ids. Sinusoids
    /// are computed in f32 whatever the network computes in: in half precision, large timesteps would be far off.
    pub(crate) fn inputs(&self, rows: Rows<'_>) -> Vec<Values> {
        let c = &self.config;
        let n = rows.timesteps.len();
        let sines = |value: f32, width: usize| sinusoidal(value, width, c.flip_sin_to_cos, c.freq_shift);
        let time: Vec<f32> = rows.timesteps.iter().flat_map(|t| sines(*t, c.blocks[0].channels)).collect();
        let added = rows.pooled.iter().zip(&rows.time_ids).flat_map(|(pooled, ids)| {
            let ids = ids.iter().flat_map(|id| sines(*id, c.addition_time_embed_dim));
            pooled.iter().copied().chain(ids)
        });
        let added: Vec<f32> = added.collect();
        let widths = [time.len() / n, added.len() / n];
        vec![(rows.latents, rows.shape), (time, vec![n, widths[0]]), (added, vec![n, widths[1]])]
    }

    /// The network's raw output for its inputs, shaped as the latents, in f32.
    pub(crate) fn forward(&self, inputs: &[Tensor], text: &Text, perturbed: Perturbed<'_>) -> Result<Tensor> {
        let [latents, time, added] = inputs else { bail!("{} inputs of three", inputs.len()) };
        let context = Context { time: self.embed(time, added)?, text, perturbed };
        let mut x = self.conv_in.forward(&latents.to_dtype(self.dtype)?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &context, &mut skips)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, &context)?;
        }
        for block in &self.up {
            x = block.forward(x, &context, &mut skips)?;
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?.to_dtype(DType::F32)?.contiguous()
    }

    /// The embedding of timestep, time ids and pooled text, through its SiLU: (rows, time_embed_dim).
    fn embed(&self, time: &Tensor, added: &Tensor) -> Result<Tensor> {
        let (time, added) = (time.to_dtype(self.dtype)?, added.to_dtype(self.dtype)?);
        (self.time.forward(&time)? + self.added.forward(&added)?)?.silu()
    }
}
