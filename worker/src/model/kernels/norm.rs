//! Group and layer normalisation. Means and variances are summed in f64.
//!
//! Group normalisation uses the statistics of what it is given, or others.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::host::{Host, tensor};
use super::simd;

/// See [`super::group_norm`].
pub(super) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    (eps, silu): (f32, bool),
    statistics: Option<&[f32]>,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let dims = x.dims().to_vec();
    let channels = dims[1];
    let plane: usize = dims[2..].iter().product();
    let (x, weight, bias) = (Host::contiguous(&x)?, Host::contiguous(weight)?, Host::contiguous(bias)?);
    let (xs, ws, bs) = (x.values()?, weight.values()?, bias.values()?);
    let per_group = channels / groups;
    let mut out = vec![0f32; xs.len()];
    let size = per_group * plane;
    out.par_chunks_mut(size).zip(xs.par_chunks(size)).enumerate().for_each(|(i, (out, x))| {
        let first = i % groups * per_group;
        let (mean, variance) = match statistics {
            Some(given) => (given[i % groups * 2], given[i % groups * 2 + 1]),
            None => mean_and_variance(x),
        };
        let r = 1.0 / (variance + eps).sqrt();
        for (c, (out, x)) in out.chunks_mut(plane).zip(x.chunks(plane)).enumerate() {
            let scale = r * ws[first + c];
            let shift = bs[first + c] - mean * scale;
            if silu {
                simd::scale_shift_silu(out, x, scale, shift);
            } else {
                simd::scale_shift(out, x, scale, shift);
            }
        }
    });
    tensor(out, &dims)
}

fn mean_and_variance(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = (simd::sum(x) / n) as f32;
    (mean, (simd::sum_squares(x, mean) / n) as f32)
}

/// See [`super::group_statistics`].
pub(super) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    let x = x.contiguous()?;
    let x = Host::contiguous(&x)?;
    let values = x.values()?;
    let of_groups = values.par_chunks_exact(values.len() / groups).map(mean_and_variance);
    Ok(of_groups.collect::<Vec<_>>().into_iter().flat_map(|(mean, variance)| [mean, variance]).collect())
}

/// See [`super::layer_norm`].
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    const ROWS: usize = 32;
    let x = x.contiguous()?;
    let dims = x.dims().to_vec();
    let width = dims[dims.len() - 1];
    let (x, weight, bias) = (Host::contiguous(&x)?, Host::contiguous(weight)?, Host::contiguous(bias)?);
    let (xs, ws, bs) = (x.values()?, weight.values()?, bias.values()?);
    let mut out = vec![0f32; xs.len()];
    out.par_chunks_mut(ROWS * width).zip(xs.par_chunks(ROWS * width)).for_each(|(out, x)| {
        for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
            simd::layer_norm(out, x, ws, bs, eps);
        }
    });
    tensor(out, &dims)
}
