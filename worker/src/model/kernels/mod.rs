//! The arithmetic of the networks, one function per operation.
//!
//! On a CPU these are our own kernels; on other devices they are candle's operations
//! ([`plain`]), and attention on NVIDIA GPUs is one kernel with the feature `flash-attn`. A CPU
//! computes in f32: half precision there is a way to keep weights in less memory.
//!
//! Images are (batch, channels, h, w) everywhere. On a CPU they lie channels-last (strides that put a
//! pixel's channels side by side), so that pixels are rows of a product, and tokens without a copy.
//!
//! Invariants of the CPU kernels: the order of every sum is a function of the shapes alone, never
//! of the number of threads, the size of a cache or the other rows of a batch. So one image's
//! result is the same bytes in any batch, on any number of threads, on every CPU of one class
//! ([`simd::Isa::class`]).

mod attention;
mod conv;
#[cfg(feature = "flash-attn")]
pub(super) mod flash;
mod host;
mod linear;
mod norm;
mod plain;
mod pointwise;
mod product;
pub(crate) mod simd;
mod winograd;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

/// How an image is extended with zeros before a convolution, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Padding {
    /// Above and on the left.
    pub(crate) before: usize,
    /// Below and on the right.
    pub(crate) after: usize,
}

impl Padding {
    /// The same on every side.
    pub(crate) const fn all(n: usize) -> Self {
        Self { before: n, after: n }
    }
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mask {
    /// All of them.
    None,
    /// Those at its own position and before.
    Causal,
}

/// How an attention is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionSpec {
    /// Number of heads; their width is that of the states over this.
    pub(crate) heads: usize,
    /// Which keys a query sees.
    pub(crate) mask: Mask,
    /// Compute the scores in f32 even where the states are half precision.
    pub(crate) upcast: bool,
}

fn on_cpu(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu)
}

/// What activations are computed in where weights are kept in `dtype`.
pub(crate) fn working_dtype(device: &Device, dtype: DType) -> DType {
    if device.is_cpu() { DType::F32 } else { dtype }
}

/// A bias, or a normalisation's weights: few values, kept as they are used.
pub(crate) fn parameter(values: Tensor) -> Result<Tensor> {
    if on_cpu(&values) { values.to_dtype(DType::F32) } else { Ok(values) }
}

/// The weights of a linear layer, as their device wants them.
#[derive(Debug, Clone)]
pub(crate) struct Matrix(Weights<product::Packed>);

/// The filters of a convolution, as their device wants them.
#[derive(Debug, Clone)]
pub(crate) struct Filters(Weights<conv::Filters>);

#[derive(Debug, Clone)]
enum Weights<P> {
    Plain(Tensor),
    Packed(Arc<P>),
}

impl<P> Weights<P> {
    fn new(weight: Tensor, pack: impl FnOnce(&Tensor) -> Result<P>) -> Result<Self> {
        // A check of names and shapes has scalars in place of weights.
        if on_cpu(&weight) && weight.rank() > 0 {
            return Ok(Self::Packed(Arc::new(pack(&weight)?)));
        }
        Ok(Self::Plain(weight))
    }
}

impl Matrix {
    /// Weights (out, in).
    pub(crate) fn new(weight: Tensor) -> Result<Self> {
        Ok(Self(Weights::new(weight, linear::pack)?))
    }

    /// Weights (2 out, in) for [`geglu`].
    pub(crate) fn gated(weight: Tensor) -> Result<Self> {
        Ok(Self(Weights::new(weight, linear::pack_gated)?))
    }
}

impl Filters {
    /// Filters (out, in, kh, kw).
    pub(crate) fn new(weight: Tensor) -> Result<Self> {
        Ok(Self(Weights::new(weight, conv::Filters::new)?))
    }
}

/// `x W^T + b + residual`: (batch, rows, in) -> (batch, rows, out).
pub(crate) fn linear(
    x: &Tensor,
    weight: &Matrix,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    match &weight.0 {
        Weights::Packed(weight) => linear::linear(x, weight, bias, residual),
        Weights::Plain(weight) => {
            let out = plain::linear(x, weight, bias)?;
            match residual {
                Some(residual) => out + residual,
                None => Ok(out),
            }
        }
    }
}

/// `x W^T + b` for a few rows, each computed alone: (rows, in) -> (rows, out). A row's result does
/// not depend on the others, on any device.
pub(crate) fn linear_rows(x: &Tensor, weight: &Matrix, bias: Option<&Tensor>) -> Result<Tensor> {
    match &weight.0 {
        Weights::Packed(weight) => linear::linear(&x.unsqueeze(0)?, weight, bias, None)?.squeeze(0),
        Weights::Plain(weight) => plain::linear_rows(x, weight, bias),
    }
}

/// GEGLU (Shazeer, arXiv 2002.05202): a linear layer's first half of outputs times GELU (with the error
/// function) of its second. (batch, rows, in) -> (batch, rows, out); `bias` (2 out).
pub(crate) fn geglu(x: &Tensor, weight: &Matrix, bias: &Tensor) -> Result<Tensor> {
    match &weight.0 {
        Weights::Packed(weight) => linear::geglu(x, weight, bias),
        Weights::Plain(weight) => plain::geglu(&plain::linear(x, weight, Some(bias))?),
    }
}

/// What happens around a convolution.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// The image is first resized to (height, width), to the nearest neighbour: pixel (y, x) is pixel
    /// (floor(y h / height), floor(x w / width)).
    pub(crate) resized: Option<(usize, usize)>,
    /// Added to every pixel: (batch, out).
    pub(crate) shift: Option<&'a Tensor>,
    /// Added to the result.
    pub(crate) residual: Option<&'a Tensor>,
}

/// 2-D cross-correlation: (batch, in, h, w) -> (batch, out, h', w'), `bias` (out).
pub(crate) fn conv2d(
    x: &Tensor,
    filters: &Filters,
    bias: &Tensor,
    (stride, padding): (usize, Padding),
    around: Around<'_>,
) -> Result<Tensor> {
    match &filters.0 {
        Weights::Packed(filters) => {
            let bias = host::Host::contiguous(bias)?;
            let shift = around.shift.map(Tensor::contiguous).transpose()?;
            let shift = host::Host::optional(shift.as_ref())?;
            let extras = conv::Extras {
                bias: bias.values()?,
                shift: host::Host::some(&shift)?,
                residual: around.residual,
            };
            let (_, _, h, w) = x.dims4()?;
            conv::conv2d(x, filters, (stride, padding), around.resized.unwrap_or((h, w)), &extras)
        }
        Weights::Plain(weight) => plain::conv2d(x, weight, bias, (stride, padding), around),
    }
}

/// Group normalisation (Wu and He, arXiv 1803.08494) of (batch, c, h, w), followed by
/// `x sigmoid(x)` where `silu` is set. `statistics`: mean and variance of each group, one after the other,
/// instead of those of `x`.
pub(crate) fn group_norm(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    (eps, silu): (f64, bool),
    statistics: Option<&[f32]>,
) -> Result<Tensor> {
    if !on_cpu(x) {
        return plain::group_norm(x, (weight, bias), groups, (eps, silu), statistics);
    }
    norm::group_norm(x, weight, bias, groups, (eps as f32, silu), statistics)
}

/// Mean and variance of each group of channels of (1, c, h, w), one after the other. `x` may be strided.
pub(crate) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    if !on_cpu(x) {
        return plain::group_statistics(x, groups);
    }
    norm::group_statistics(x, groups)
}

/// Layer normalisation over the last axis (Ba et al., arXiv 1607.06450).
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if !on_cpu(x) {
        return candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32);
    }
    norm::layer_norm(x, weight, bias, eps as f32)
}

/// Multi-head attention: q (batch, sq, c), k and v (batch, sk, c) -> (batch, sq, c). Never holds
/// all the scores.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> Result<Tensor> {
    if !on_cpu(q) {
        #[cfg(feature = "flash-attn")]
        if flash::takes(q, spec)? {
            return flash::attention(q, k, v, spec);
        }
        return plain::attention(q, k, v, spec);
    }
    attention::attention(q, k, v, spec.heads, spec.mask)
}

/// Pixels as rows: (batch, c, h, w) -> (batch, h w, c).
pub(crate) fn tokens(image: &Tensor) -> Result<Tensor> {
    let (batch, channels, h, w) = image.dims4()?;
    host::channels_last(image)?.reshape((batch, h * w, channels))
}

/// Rows as pixels: (batch, h w, c) -> (batch, c, h, w).
pub(crate) fn image(tokens: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (batch, _, channels) = tokens.dims3()?;
    let image = tokens.reshape((batch, h, w, channels))?.permute((0, 3, 1, 2))?;
    if on_cpu(tokens) { Ok(image) } else { image.contiguous() }
}

/// Appends the channels of `b` to those of `a`.
pub(crate) fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !on_cpu(a) {
        return Tensor::cat(&[a, b], 1);
    }
    pointwise::concat_channels(a, b)
}
