//! The arithmetic of the networks, one function per operation.
//!
//! On a CPU these are our own kernels. On NVIDIA GPUs (`cuda`) they are NVIDIA's libraries and our own kernels, and
//! attention is one kernel (`fused`). On other devices they are candle's operations ([`plain`]). A CPU computes in f32:
//! half precision there is a way to keep weights in less memory, and bf16 a way to multiply faster where it has AVX-512
//! BF16.
//!
//! Images are (batch, channels, h, w) everywhere. On CPUs and NVIDIA GPUs they lie channels-last (strides that put a
//! pixel's channels side by side), so that pixels are rows of a product, and tokens without a copy.
//!
//! Invariants of the CPU kernels: the order of every sum is a function of the shapes alone, never
//! of the number of threads, the size of a cache or the other rows of a batch. So one image's
//! result is the same bytes in any batch, on any number of threads, on every CPU of one class
//! ([`simd::Isa::class`]).

mod attention;
mod block;
mod conv;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(feature = "cudnn")]
pub(super) mod fused;
mod host;
mod linear;
mod norm;
mod plain;
mod pointwise;
mod product;
mod replay;
pub(crate) mod simd;
mod staging;
mod winograd;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

pub(crate) use replay::{Replay, Values};
pub(crate) use staging::{Download, Staging};

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

/// Whether `x` is on a device that [`cuda`] computes on.
fn on_cuda(x: &Tensor) -> bool {
    cfg!(feature = "cuda") && x.device().is_cuda()
}

/// Gives memory that nothing is in any more back to the device: what is dropped stays with this process otherwise,
/// because the next call will need it.
pub(crate) fn give_back(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::give_back(device);
    }
    let _ = device;
    Ok(())
}

/// A tensor's values as f32, in order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    // Copies from some GPUs may still be under way.
    tensor.device().synchronize()?;
    Ok(values)
}

/// Bytes of memory that nobody uses on a device that has a memory of its own, if it says so.
pub(crate) fn free_bytes(device: &Device) -> Result<Option<u64>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::free_bytes(device).map(Some);
    }
    let _ = device;
    Ok(None)
}

/// Lets this thread's convolutions round f32 values to TF32 on NVIDIA GPUs: to f16's 11 bits, with f32's range. For a
/// VAE in f32 beside a network in half precision, which only needs the range.
pub(crate) fn round_f32(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::round_f32(device);
    }
    let _ = device;
    Ok(())
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

    /// The matrices (out, in) of several layers that read the same, one below the other, where their device is
    /// faster with one large product than with several.
    pub(crate) fn joined(weights: &[Tensor]) -> Result<Option<Self>> {
        if !weights.iter().all(on_cuda) {
            return Ok(None);
        }
        Self::new(Tensor::cat(weights, 0)?).map(Some)
    }

    /// Weights (2 out, in) for [`geglu`].
    pub(crate) fn gated(weight: Tensor) -> Result<Self> {
        Ok(Self(Weights::new(weight, linear::pack_gated)?))
    }
}

impl Filters {
    /// Filters (out, in, kh, kw).
    pub(crate) fn new(weight: Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let weight = if on_cuda(&weight) { cuda::filters(&weight)? } else { weight };
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
        #[cfg(feature = "cuda")]
        Weights::Plain(weight) if on_cuda(x) => cuda::linear(x, weight, bias, residual),
        Weights::Plain(weight) => {
            let out = plain::linear(x, weight, bias)?;
            match residual {
                Some(residual) => out + residual,
                None => Ok(out),
            }
        }
    }
}

/// `x W^T + b` for a few rows: (rows, in) -> (rows, out). A row's result does not depend on the others; on NVIDIA
/// GPUs it may depend on how many there are.
pub(crate) fn linear_rows(x: &Tensor, weight: &Matrix, bias: Option<&Tensor>) -> Result<Tensor> {
    match &weight.0 {
        Weights::Packed(weight) => linear::linear(&x.unsqueeze(0)?, weight, bias, None)?.squeeze(0),
        #[cfg(feature = "cuda")]
        Weights::Plain(weight) if on_cuda(x) => {
            cuda::linear(&x.unsqueeze(0)?, weight, bias, None)?.squeeze(0)
        }
        Weights::Plain(weight) => plain::linear_rows(x, weight, bias),
    }
}

/// GEGLU (Shazeer, arXiv 2002.05202): a linear layer's first half of outputs times GELU (with the error
/// function) of its second. (batch, rows, in) -> (batch, rows, out); `bias` (2 out).
pub(crate) fn geglu(x: &Tensor, weight: &Matrix, bias: &Tensor) -> Result<Tensor> {
    match &weight.0 {
        Weights::Packed(weight) => linear::geglu(x, weight, bias),
        #[cfg(feature = "cuda")]
        Weights::Plain(weight) if on_cuda(x) => cuda::gate(&cuda::linear(x, weight, Some(bias), None)?),
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
        #[cfg(feature = "cuda")]
        Weights::Plain(weight) if on_cuda(x) => {
            let out = cuda::conv2d(x, weight, bias, (stride, padding), around)?;
            match around.shift {
                Some(shift) => out.broadcast_add(&shift.unsqueeze(2)?.unsqueeze(3)?),
                None => Ok(out),
            }
        }
        Weights::Plain(weight) => plain::conv2d(x, weight, bias, (stride, padding), around),
    }
}

/// An image on its way to a group normalisation.
#[derive(Debug)]
pub(crate) struct Shifted {
    image: Tensor,
    /// (batch, channels): still to be added to every pixel.
    shift: Option<Tensor>,
}

impl From<Tensor> for Shifted {
    fn from(image: Tensor) -> Self {
        Self { image, shift: None }
    }
}

impl Shifted {
    /// The image; [`Around::shift`] may be missing from it.
    pub(crate) fn image(&self) -> &Tensor {
        &self.image
    }
}

/// [`conv2d`] for a group normalisation, which may be cheaper a place to add [`Around::shift`].
pub(crate) fn conv2d_to_norm(
    x: &Tensor,
    filters: &Filters,
    bias: &Tensor,
    shape: (usize, Padding),
    around: Around<'_>,
) -> Result<Shifted> {
    if on_cuda(x) {
        let image = conv2d(x, filters, bias, shape, Around { shift: None, ..around })?;
        return Ok(Shifted { image, shift: around.shift.cloned() });
    }
    conv2d(x, filters, bias, shape, around).map(Shifted::from)
}

/// Group normalisation (Wu and He, arXiv 1803.08494) of (batch, c, h, w), followed by
/// `x sigmoid(x)` where `silu` is set. `statistics`: mean and variance of each group, one after the other,
/// instead of those of `x`.
pub(crate) fn group_norm(
    x: &Shifted,
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    (eps, silu): (f64, bool),
    statistics: Option<&[f32]>,
) -> Result<Tensor> {
    let Shifted { image: x, shift } = x;
    #[cfg(feature = "cuda")]
    if on_cuda(x) {
        return cuda::group_norm(x, shift.as_ref(), (weight, bias), groups, (eps, silu), statistics);
    }
    debug_assert!(shift.is_none(), "a shift is left to the GPU's kernel alone");
    if !on_cpu(x) {
        return plain::group_norm(x, (weight, bias), groups, (eps, silu), statistics);
    }
    norm::group_norm(x, weight, bias, groups, (eps as f32, silu), statistics)
}

/// Mean and variance of each group of channels of (1, c, h, w), one after the other. `x` may be strided.
pub(crate) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    #[cfg(feature = "cuda")]
    if on_cuda(x) {
        return cuda::group_statistics(x, groups);
    }
    if !on_cpu(x) {
        return plain::group_statistics(x, groups);
    }
    norm::group_statistics(x, groups)
}

/// Layer normalisation over the last axis (Ba et al., arXiv 1607.06450).
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_cuda(x) {
        return cuda::layer_norm(x, weight, bias, eps);
    }
    if !on_cpu(x) {
        return candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32);
    }
    norm::layer_norm(x, weight, bias, eps as f32)
}

/// Multi-head attention: q (batch, sq, c), k and v (batch, sk, c) -> (batch, sq, c). They may also come with their
/// heads apart, as (batch, rows, heads, width), and then strided. Never holds all the scores.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> Result<Tensor> {
    if on_cpu(q) {
        let whole = |t: &Tensor| t.flatten_from(2);
        return attention::attention(&whole(q)?, &whole(k)?, &whole(v)?, spec.heads, spec.mask);
    }
    let (q, k, v) = (heads(q, spec.heads)?, heads(k, spec.heads)?, heads(v, spec.heads)?);
    #[cfg(feature = "cudnn")]
    if let Some(mixed) = fused::attention(&q, &k, &v, spec)? {
        return Ok(mixed);
    }
    plain::attention(&q, &k, &v, spec)
}

/// (batch, rows, c) as (batch, rows, heads, c / heads).
fn heads(states: &Tensor, heads: usize) -> Result<Tensor> {
    match states.rank() {
        4 => Ok(states.clone()),
        _ => {
            let (batch, rows, width) = states.dims3()?;
            states.reshape((batch, rows, heads, width / heads))
        }
    }
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
    if on_cpu(tokens) || on_cuda(tokens) { Ok(image) } else { image.contiguous() }
}

/// Appends the channels of `b` to those of `a`.
pub(crate) fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_cuda(a) {
        return cuda::concat_channels(a, b);
    }
    if !on_cpu(a) {
        return Tensor::cat(&[a, b], 1);
    }
    pointwise::concat_channels(a, b)
}
