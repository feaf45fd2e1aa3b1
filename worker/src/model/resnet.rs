//! The residual block of UNet and VAE (`ResnetBlock2D`), and the resizing layers between blocks.

use candle_core::{Result, Tensor};

use super::error::LoadError;
use super::kernels::{Around, Padding};
use super::layers::{Conv2d, GroupNorm, Linear};
use super::norms::Norms;
use super::weights::Scope;

/// Sizes of a residual block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetSpec {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Width of the time embedding, where there is one.
    pub(crate) time_embed_dim: Option<usize>,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    /// The residual sum is divided by this.
    pub(crate) scale: f64,
}

/// `(shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))) / scale`.
#[derive(Debug, Clone)]
pub(crate) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    scale: f64,
}

impl Resnet {
    pub(crate) fn load(scope: &Scope<'_>, spec: ResnetSpec) -> std::result::Result<Self, LoadError> {
        let ResnetSpec { inputs, outputs, time_embed_dim, groups, eps, scale } = spec;
        let time =
            time_embed_dim.map(|d| Linear::load(&scope.at("time_emb_proj"), d, outputs)).transpose()?;
        let shortcut = (inputs != outputs)
            .then(|| Conv2d::load(&scope.at("conv_shortcut"), inputs, outputs, 1))
            .transpose()?;
        Ok(Self {
            norm1: GroupNorm::load(&scope.at("norm1"), inputs, groups, eps)?,
            conv1: Conv2d::load(&scope.at("conv1"), inputs, outputs, 3)?,
            time,
            norm2: GroupNorm::load(&scope.at("norm2"), outputs, groups, eps)?,
            conv2: Conv2d::load(&scope.at("conv2"), outputs, outputs, 3)?,
            shortcut,
            scale,
        })
    }

    /// `x` (batch, inputs, h, w); `time` (batch, time_embed_dim), already through its SiLU.
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        self.apply(x, time, &mut Norms::own())
    }

    /// The same with statistics from elsewhere.
    pub(crate) fn apply(&self, x: &Tensor, time: Option<&Tensor>, norms: &mut Norms<'_>) -> Result<Tensor> {
        let shift = match (&self.time, time) {
            (Some(layer), Some(time)) => Some(layer.forward_rows(time)?),
            _ => None,
        };
        let around = Around { shift: shift.as_ref(), ..Around::default() };
        let hidden = self.conv1.forward_to_norm(&self.norm1.apply(x, true, norms)?, around)?;
        let shortcut = self.shortcut.as_ref().map(|shortcut| shortcut.forward(x)).transpose()?;
        let around = Around { residual: Some(shortcut.as_ref().unwrap_or(x)), ..Around::default() };
        let sum = self.conv2.forward_around(&self.norm2.apply_shifted(&hidden, true, norms)?, around)?;
        if self.scale == 1.0 { Ok(sum) } else { sum / self.scale }
    }
}

/// Halves height and width with a convolution of stride 2.
#[derive(Debug, Clone)]
pub(crate) struct Downsample(Conv2d);

impl Downsample {
    /// `padding` 1, or 0 for the asymmetric kind (zeros below and on the right only).
    pub(crate) fn load(
        scope: &Scope<'_>,
        channels: usize,
        padding: usize,
    ) -> std::result::Result<Self, LoadError> {
        let padding = if padding == 0 { Padding { before: 0, after: 1 } } else { Padding::all(padding) };
        Ok(Self(Conv2d::load_strided(&scope.at("conv"), channels, channels, 3, 2, padding)?))
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// Resizes to a given size (nearest neighbour) and convolves.
#[derive(Debug, Clone)]
pub(crate) struct Upsample(Conv2d);

impl Upsample {
    pub(crate) fn load(scope: &Scope<'_>, channels: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self(Conv2d::load(&scope.at("conv"), channels, channels, 3)?))
    }

    pub(crate) fn forward(&self, x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        self.0.forward_around(x, Around { resized: Some((height, width)), ..Around::default() })
    }
}
