//! AutoencoderKL: images to latents and back (Rombach et al., arXiv 2112.10752, appendix G). Whole
//! tiles only: cutting and blending is the coordinator's.

use candle_core::{DType, Result, Tensor};

use super::config::VaeConfig;
use super::error::LoadError;
use super::kernels::{self, AttentionSpec, Mask};
use super::layers::{Conv2d, GroupNorm, Linear};
use super::norms::Norms;
use super::resnet::{Downsample, Resnet, ResnetSpec, Upsample};
use super::weights::Scope;

type Load<T> = std::result::Result<T, LoadError>;

/// Epsilon of every GroupNorm (fixed in diffusers).
const EPS: f64 = 1e-6;

/// Encoder and decoder.
#[derive(Debug)]
pub(crate) struct Vae {
    dtype: DType,
    encoder: Encoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    decoder: Decoder,
}

impl Vae {
    /// Takes every weight it needs from `scope`.
    pub(crate) fn load(scope: &Scope<'_>, config: &VaeConfig, dtype: DType) -> Load<Self> {
        let c = config.latent_channels;
        let pointwise = |name: &str, wanted: bool, n: usize| {
            wanted.then(|| Conv2d::load(&scope.at(name), n, n, 1)).transpose()
        };
        Ok(Self {
            dtype,
            encoder: Encoder::load(&scope.at("encoder"), config)?,
            quant: pointwise("quant_conv", config.use_quant_conv, 2 * c)?,
            post_quant: pointwise("post_quant_conv", config.use_post_quant_conv, c)?,
            decoder: Decoder::load(&scope.at("decoder"), config)?,
        })
    }

    /// (batch, 3, h, w) -> mean and log-variance (batch, 2 C, h / f, w / f), f32, the latter clamped
    /// to [-30, 20].
    pub(crate) fn encode(&self, image: &Tensor, norms: &mut Norms<'_>) -> Result<Tensor> {
        let mut moments = self.encoder.forward(&image.to_dtype(self.dtype)?, norms)?;
        if let Some(quant) = &self.quant {
            moments = quant.forward(&moments)?;
        }
        let halves = moments.to_dtype(DType::F32)?.chunk(2, 1)?;
        Tensor::cat(&[&halves[0], &halves[1].clamp(-30f32, 20f32)?], 1)
    }

    /// (batch, C, h, w) -> (batch, 3, f h, f w), f32, not clamped.
    pub(crate) fn decode(&self, latent: &Tensor, norms: &mut Norms<'_>) -> Result<Tensor> {
        let mut x = latent.to_dtype(self.dtype)?;
        if let Some(post_quant) = &self.post_quant {
            x = post_quant.forward(&x)?;
        }
        self.decoder.forward(&x, norms)?.to_dtype(DType::F32)
    }
}

fn load_resnet(scope: &Scope<'_>, config: &VaeConfig, inputs: usize, outputs: usize) -> Load<Resnet> {
    let groups = config.norm_num_groups;
    Resnet::load(scope, ResnetSpec { inputs, outputs, time_embed_dim: None, groups, eps: EPS, scale: 1.0 })
}

/// `n` resnets named `resnets.0` ..., from `inputs` to `outputs` channels.
fn load_resnets(
    scope: &Scope<'_>,
    config: &VaeConfig,
    n: usize,
    inputs: usize,
    outputs: usize,
) -> Load<Vec<Resnet>> {
    (0..n)
        .map(|i| {
            load_resnet(&scope.at("resnets").at(i), config, if i == 0 { inputs } else { outputs }, outputs)
        })
        .collect()
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down: Vec<(Vec<Resnet>, Option<Downsample>)>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn load(scope: &Scope<'_>, config: &VaeConfig) -> Load<Self> {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let mut inputs = channels[0];
        let mut down = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let scope = scope.at("down_blocks").at(i);
            let resnets = load_resnets(&scope, config, config.layers_per_block, inputs, outputs)?;
            // Zeros below and on the right only.
            let shrink = (i + 1 < channels.len())
                .then(|| Downsample::load(&scope.at("downsamplers.0"), outputs, 0))
                .transpose()?;
            down.push((resnets, shrink));
            inputs = outputs;
        }
        Ok(Self {
            conv_in: Conv2d::load(&scope.at("conv_in"), 3, channels[0], 3)?,
            down,
            mid: Mid::load(&scope.at("mid_block"), config, last)?,
            norm_out: GroupNorm::load(&scope.at("conv_norm_out"), last, config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(&scope.at("conv_out"), last, 2 * config.latent_channels, 3)?,
        })
    }

    fn forward(&self, image: &Tensor, norms: &mut Norms<'_>) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for (resnets, shrink) in &self.down {
            for resnet in resnets {
                x = resnet.apply(&x, None, norms)?;
            }
            if let Some(shrink) = shrink {
                x = shrink.forward(&x)?;
            }
        }
        let x = self.mid.forward(&x, norms)?;
        self.conv_out.forward(&self.norm_out.apply(&x, true, norms)?)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid: Mid,
    up: Vec<(Vec<Resnet>, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(scope: &Scope<'_>, config: &VaeConfig) -> Load<Self> {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let mut inputs = last;
        let mut up = Vec::new();
        for (i, &outputs) in channels.iter().rev().enumerate() {
            let scope = scope.at("up_blocks").at(i);
            let resnets = load_resnets(&scope, config, config.layers_per_block + 1, inputs, outputs)?;
            let grow = (i + 1 < channels.len())
                .then(|| Upsample::load(&scope.at("upsamplers.0"), outputs))
                .transpose()?;
            up.push((resnets, grow));
            inputs = outputs;
        }
        Ok(Self {
            conv_in: Conv2d::load(&scope.at("conv_in"), config.latent_channels, last, 3)?,
            mid: Mid::load(&scope.at("mid_block"), config, last)?,
            up,
            norm_out: GroupNorm::load(&scope.at("conv_norm_out"), channels[0], config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(&scope.at("conv_out"), channels[0], 3, 3)?,
        })
    }

    fn forward(&self, latent: &Tensor, norms: &mut Norms<'_>) -> Result<Tensor> {
        let mut x = self.mid.forward(&self.conv_in.forward(latent)?, norms)?;
        for (resnets, grow) in &self.up {
            for resnet in resnets {
                x = resnet.apply(&x, None, norms)?;
            }
            if let Some(grow) = grow {
                let (_, _, h, w) = x.dims4()?;
                x = grow.forward(&x, 2 * h, 2 * w)?;
            }
        }
        self.conv_out.forward(&self.norm_out.apply(&x, true, norms)?)
    }
}

/// Resnet, attention, resnet.
#[derive(Debug)]
struct Mid {
    first: Resnet,
    attention: Option<Attention>,
    last: Resnet,
}

impl Mid {
    fn load(scope: &Scope<'_>, config: &VaeConfig, channels: usize) -> Load<Self> {
        let attention = config
            .mid_block_add_attention
            .then(|| Attention::load(&scope.at("attentions.0"), channels, config.norm_num_groups))
            .transpose()?;
        Ok(Self {
            first: load_resnet(&scope.at("resnets.0"), config, channels, channels)?,
            attention,
            last: load_resnet(&scope.at("resnets.1"), config, channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, norms: &mut Norms<'_>) -> Result<Tensor> {
        let mut x = self.first.apply(x, None, norms)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x, norms)?;
        }
        self.last.apply(&x, None, norms)
    }
}

/// Self-attention with one head over all pixels.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    /// Weights come under the names of today or those before diffusers 0.15, and the older ones
    /// also shaped as 1x1 convolutions.
    fn load(scope: &Scope<'_>, channels: usize, groups: usize) -> Load<Self> {
        let old = scope.at("query").has("weight");
        let names =
            if old { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
        let load = |i: usize| Linear::load_or_pointwise(&scope.at(names[i]), channels, channels);
        Ok(Self {
            norm: GroupNorm::load(&scope.at("group_norm"), channels, groups, EPS)?,
            to_q: load(0)?,
            to_k: load(1)?,
            to_v: load(2)?,
            to_out: load(3)?,
        })
    }

    fn forward(&self, x: &Tensor, norms: &mut Norms<'_>) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let tokens = kernels::tokens(&self.norm.apply(x, false, norms)?)?;
        let (q, k, v) =
            (self.to_q.forward(&tokens)?, self.to_k.forward(&tokens)?, self.to_v.forward(&tokens)?);
        // Half precision scores of one wide head overflow easily.
        let spec = AttentionSpec { heads: 1, mask: Mask::None, upcast: true };
        let mixed = kernels::attention(&q, &k, &v, spec)?;
        kernels::image(&self.to_out.forward_onto(&mixed, &kernels::tokens(x)?)?, h, w)
    }
}
