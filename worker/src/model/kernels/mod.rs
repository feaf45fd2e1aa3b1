//! The arithmetic of the networks, one function per operation.
//!
//! On a CPU these are our own kernels; on other devices they are candle's operations
//! ([`plain`]). Half precision on a CPU is a way to save memory: every operation widens to f32,
//! computes, and rounds its result.
//!
//! Invariants of the CPU kernels: the order of every sum is a function of the shapes alone, never
//! of the number of threads, the size of a cache or the other rows of a batch. So one image's
//! result is the same bytes in any batch, on any number of threads, on every CPU of one
//! instruction set ([`simd::isa`]).

mod attention;
mod conv;
mod host;
mod linear;
mod matmul;
mod norm;
mod plain;
mod pointwise;
pub(crate) mod simd;

#[cfg(test)]
mod tests;

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

/// Runs a CPU kernel on f32 copies where the tensors are half precision.
fn in_f32(inputs: &[&Tensor], kernel: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let dtype = inputs[0].dtype();
    let wide: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F32)).collect::<Result<_>>()?;
    let out = kernel(&wide)?;
    if dtype == DType::F32 { Ok(out) } else { out.to_dtype(dtype) }
}

/// `x W^T + b`: (batch, rows, in) -> (batch, rows, out), `weight` (out, in). `x` may be strided.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !on_cpu(x) {
        return plain::linear(x, weight, bias);
    }
    with_bias(x, weight, bias, |x, w, b| linear::linear(x, w, b, linear::Output::Rows))
}

/// Like [`linear()`], with the result as planes: (batch, rows, in) -> (batch, out, rows).
pub(crate) fn linear_to_planes(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !on_cpu(x) {
        return plain::linear(x, weight, bias)?.transpose(1, 2)?.contiguous();
    }
    with_bias(x, weight, bias, |x, w, b| linear::linear(x, w, b, linear::Output::Planes))
}

/// `x W^T + b` for a few rows, each computed alone: (rows, in) -> (rows, out). A row's result does
/// not depend on the others, on any device.
pub(crate) fn linear_rows(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !on_cpu(x) {
        return plain::linear_rows(x, weight, bias);
    }
    with_bias(x, weight, bias, linear::linear_rows)
}

fn with_bias(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    kernel: impl FnOnce(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    match bias {
        Some(bias) => in_f32(&[x, weight, bias], |t| kernel(&t[0], &t[1], Some(&t[2]))),
        None => in_f32(&[x, weight], |t| kernel(&t[0], &t[1], None)),
    }
}

/// 2-D cross-correlation: (batch, ci, h, w) -> (batch, co, h', w'), `weight` (co, ci, kh, kw),
/// `bias` (co).
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    if !on_cpu(x) {
        return plain::conv2d(x, weight, bias, stride, padding);
    }
    in_f32(&[x, weight, bias], |t| conv::conv2d(&t[0], &t[1], &t[2], stride, padding))
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
    in_f32(&[x, weight, bias], |t| {
        norm::group_norm(&t[0], &t[1], &t[2], groups, (eps as f32, silu), statistics)
    })
}

/// Mean and variance of each group of channels of (1, c, h, w), one after the other. `x` may be strided.
pub(crate) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    if !on_cpu(x) {
        return plain::group_statistics(x, groups);
    }
    norm::group_statistics(&x.to_dtype(DType::F32)?, groups)
}

/// Layer normalisation over the last axis (Ba et al., arXiv 1607.06450).
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if !on_cpu(x) {
        return candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32);
    }
    in_f32(&[x, weight, bias], |t| norm::layer_norm(&t[0], &t[1], &t[2], eps as f32))
}

/// GEGLU (Shazeer, arXiv 2002.05202): the first half of the last axis times GELU (with the error
/// function) of the second.
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    if !on_cpu(x) {
        return plain::geglu(x);
    }
    in_f32(&[x], |t| pointwise::geglu(&t[0]))
}

/// Multi-head attention: q (batch, sq, c), k and v (batch, sk, c) -> (batch, sq, c). Never holds
/// all the scores.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> Result<Tensor> {
    if !on_cpu(q) {
        return plain::attention(q, k, v, spec);
    }
    in_f32(&[q, k, v], |t| attention::attention(&t[0], &t[1], &t[2], spec.heads, spec.mask))
}

/// `a + b` of equal shapes.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !on_cpu(a) {
        return a + b;
    }
    in_f32(&[a, b], |t| pointwise::add(&t[0], &t[1]))
}

/// Nearest-neighbour resize of (batch, c, h, w) to (batch, c, height, width): pixel (y, x) is
/// pixel (floor(y h / height), floor(x w / width)) of the source.
pub(crate) fn upsample(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    if !on_cpu(x) {
        return x.upsample_nearest2d(height, width);
    }
    in_f32(&[x], |t| pointwise::upsample(&t[0], height, width))
}

/// Appends the channels of `b` to those of `a`.
pub(crate) fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[a, b], 1)
}
