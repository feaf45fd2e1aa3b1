//! Group and layer normalisation. Means and variances are summed in f64.
//!
//! Group normalisation uses the statistics of what it is given, or others.
//!
//! Unsafe code: parts of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::host::{self, Host, tensor};
use super::product::Output;
use super::simd::{self, Isa};

/// Pixels whose sums are added up in f32: few enough to be accurate, and to be in the cache for the sum of
/// squares about their own mean.
const PIXELS: usize = 64;
/// Pixels of a task.
const TASK: usize = 1024;

/// See [`super::group_norm`].
pub(super) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    (eps, silu): (f32, bool),
    statistics: Option<&[f32]>,
) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    check_groups(channels, groups)?;
    if x.elem_count() == 0
        || weight.dims() != [channels]
        || bias.dims() != [channels]
        || statistics.is_some_and(|given| given.len() != 2 * groups)
    {
        let given = statistics.map(<[f32]>::len);
        bail!("{:?} with {:?}, {:?}, {given:?} statistics", x.dims(), weight.dims(), bias.dims());
    }
    let x = host::channels_last(x)?;
    let (x, weight, bias) = (Host::contiguous(&x)?, Host::contiguous(weight)?, Host::contiguous(bias)?);
    let (xs, ws, bs) = (x.values()?, weight.values()?, bias.values()?);
    let isa = Isa::best();
    let out = Output::new(xs.len());
    for (entry, x) in xs.chunks_exact(h * w * channels).enumerate() {
        let own;
        let statistics = match statistics {
            Some(given) => given,
            None => {
                own = of_groups(isa, x, channels, groups);
                &own
            }
        };
        let per_group = channels / groups;
        let scale = |c: usize| 1.0 / (statistics[c / per_group * 2 + 1] + eps).sqrt() * ws[c];
        let scales: Vec<f32> = (0..channels).map(scale).collect();
        let shift = |c: usize| bs[c] - statistics[c / per_group * 2] * scales[c];
        let shifts: Vec<f32> = (0..channels).map(shift).collect();
        x.par_chunks(TASK * channels).enumerate().for_each(|(task, x)| {
            let mut pixel = vec![0f32; channels];
            for (i, x) in x.chunks_exact(channels).enumerate() {
                if silu {
                    simd::scale_shift_silu(isa, &mut pixel, x, &scales, &shifts);
                } else {
                    simd::scale_shift(isa, &mut pixel, x, &scales, &shifts);
                }
                // SAFETY: every pixel is of one task.
                unsafe { out.write((entry * h * w + task * TASK + i) * channels, &pixel) };
            }
        });
    }
    // SAFETY: every pixel was written.
    host::image(unsafe { out.finish() }, [batch, channels, h, w])
}

fn check_groups(channels: usize, groups: usize) -> Result<()> {
    if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
        bail!("{channels} channels in {groups} groups");
    }
    Ok(())
}

/// Mean and variance of every group of channels of (pixels, channels), one after the other.
fn of_groups(isa: Isa, x: &[f32], channels: usize, groups: usize) -> Vec<f32> {
    let blocks = x.len().div_ceil(PIXELS * channels);
    // Of each block and channel: the sum, and the sum of squares about the block's mean.
    let mut sums = vec![0f32; 2 * blocks * channels];
    let per_task = TASK / PIXELS;
    sums.par_chunks_mut(2 * per_task * channels).zip(x.par_chunks(TASK * channels)).for_each(|(sums, x)| {
        for (sums, x) in sums.chunks_exact_mut(2 * channels).zip(x.chunks(PIXELS * channels)) {
            let (sums, squares) = sums.split_at_mut(channels);
            simd::column_sums(isa, x, sums, squares);
        }
    });
    let (pixels, per_group) = (x.len() / channels, channels / groups);
    let count = (pixels * per_group) as f64;
    let blocks = |group: usize| {
        sums.chunks_exact(2 * channels).enumerate().flat_map(move |(i, block)| {
            let pixels = PIXELS.min(pixels - i * PIXELS) as f64;
            let (sums, squares) = block.split_at(channels);
            let of_group = group * per_group..(group + 1) * per_group;
            sums[of_group.clone()].iter().zip(&squares[of_group]).map(move |(s, q)| (pixels, *s, *q))
        })
    };
    let statistics = (0..groups).into_par_iter().map(|group| {
        let mean = blocks(group).map(|(_, sum, _)| f64::from(sum)).sum::<f64>() / count;
        // Chan, Golub and LeVeque's pairwise formula.
        let squares = blocks(group).map(|(pixels, sum, squares)| {
            f64::from(squares) + pixels * (f64::from(sum) / pixels - mean).powi(2)
        });
        [mean as f32, (squares.sum::<f64>() / count) as f32]
    });
    statistics.collect::<Vec<_>>().into_flattened()
}

/// See [`super::group_statistics`].
pub(super) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    let (_, channels, _, _) = x.dims4()?;
    check_groups(channels, groups)?;
    let x = host::channels_last(x)?;
    let x = Host::contiguous(&x)?;
    Ok(of_groups(Isa::best(), x.values()?, channels, groups))
}

/// See [`super::layer_norm`].
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    const ROWS: usize = 32;
    let x = x.contiguous()?;
    let dims = x.dims().to_vec();
    let width = dims.last().copied().unwrap_or(0);
    if width == 0 || weight.dims() != [width] || bias.dims() != [width] {
        bail!("{dims:?} with {:?} and {:?}", weight.dims(), bias.dims());
    }
    let (x, weight, bias) = (Host::contiguous(&x)?, Host::contiguous(weight)?, Host::contiguous(bias)?);
    let (xs, ws, bs) = (x.values()?, weight.values()?, bias.values()?);
    let isa = Isa::best();
    let out = Output::new(xs.len());
    xs.par_chunks(ROWS * width).enumerate().for_each(|(task, x)| {
        let mut row = vec![0f32; width];
        for (i, x) in x.chunks_exact(width).enumerate() {
            simd::layer_norm(isa, &mut row, x, ws, bs, eps);
            // SAFETY: every row is of one task.
            unsafe { out.write((task * ROWS + i) * width, &row) };
        }
    });
    // SAFETY: every row was written.
    tensor(unsafe { out.finish() }, &dims)
}
