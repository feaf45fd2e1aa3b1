//! Convolution: bands of output pixels, each a sum of products of weights with the input's
//! neighbourhoods laid out as columns (im2col), a few input channels at a time.
//!
//! Unsafe code: bands of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Padding;
use super::host::{Host, tensor};
use super::matmul::{LONGEST, Matrix, Shared, Tile, parts};

/// Output pixels of a band, about: enough to amortise packing, few enough for the L2 cache.
const BAND: usize = 384;
/// Output channels of a task, at most.
const TILE_CHANNELS: usize = 256;

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Geometry {
    ci: usize,
    h: usize,
    w: usize,
    ho: usize,
    wo: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    before: usize,
}

/// Output pixels (y0..y1, x0..x1); more than one row only at full width.
#[derive(Clone, Copy)]
struct Band {
    y0: usize,
    y1: usize,
    x0: usize,
    x1: usize,
}

impl Band {
    fn pixels(&self) -> usize {
        (self.y1 - self.y0) * (self.x1 - self.x0)
    }
}

/// See [`super::conv2d`].
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, ci, h, w) = x.dims4()?;
    let (co, weight_ci, kh, kw) = weight.dims4()?;
    let (hp, wp) = (h + padding.before + padding.after, w + padding.before + padding.after);
    if weight_ci != ci || hp < kh || wp < kw {
        bail!("a {co}x{weight_ci}x{kh}x{kw} convolution does not fit an image of {ci}x{h}x{w}");
    }
    let (ho, wo) = ((hp - kh) / stride + 1, (wp - kw) / stride + 1);
    let g = Geometry { ci, h, w, ho, wo, kh, kw, stride, before: padding.before };
    let (x, weight, bias) = (Host::contiguous(&x)?, Host::contiguous(weight)?, Host::contiguous(bias)?);
    let (xs, ws, bs) = (x.values()?, weight.values()?, bias.values()?);
    let mut out = vec![0f32; batch * co * ho * wo];
    let bands = bands(ho, wo);
    let (tile_channels, channel_tiles) = parts(co, TILE_CHANNELS);
    let per_entry = bands.len() * channel_tiles;
    let shared = Shared::new(&mut out);
    (0..batch * per_entry).into_par_iter().for_each_init(Vec::new, |columns, task| {
        let (entry, rest) = (task / per_entry, task % per_entry);
        let (band, c0) = (bands[rest / channel_tiles], rest % channel_tiles * tile_channels);
        let channels = tile_channels.min(co - c0);
        let tile = Tile {
            offset: (entry * co + c0) * ho * wo + band.y0 * wo + band.x0,
            rows: channels,
            columns: band.pixels(),
            row_stride: ho * wo,
            column_stride: 1,
        };
        let image = &xs[entry * ci * h * w..][..ci * h * w];
        // SAFETY: tasks differ in entry, band or channels, so their tiles are disjoint.
        unsafe {
            for c in 0..channels {
                shared.run(tile.offset + c * ho * wo, tile.columns, |run| run.fill(bs[c0 + c]));
            }
            convolve(&shared, tile, g, band, image, &ws[c0 * ci * kh * kw..], columns);
        }
    });
    tensor(out, &[batch, co, ho, wo])
}

/// Adds the products for one band and `tile.rows` output channels to the output.
///
/// # Safety
/// No other thread may touch the tile's elements during the call.
unsafe fn convolve(
    out: &Shared<'_>,
    tile: Tile,
    g: Geometry,
    band: Band,
    image: &[f32],
    weight: &[f32],
    columns: &mut Vec<f32>,
) {
    let taps = g.kh * g.kw;
    if taps == 1 && g.stride == 1 && g.before == 0 && (g.h, g.w) == (g.ho, g.wo) {
        // A pointwise convolution is a product with the image as it lies.
        let b = Matrix::new(&image[band.y0 * g.w + band.x0..], g.h * g.w, 1);
        // SAFETY: the caller's promise.
        return unsafe { out.multiply(tile, true, Matrix::new(weight, g.ci, 1), b, g.ci) };
    }
    let step = (LONGEST / taps).max(1);
    columns.resize(step.min(g.ci) * taps * band.pixels(), 0.0);
    for c0 in (0..g.ci).step_by(step) {
        let channels = step.min(g.ci - c0);
        for c in 0..channels {
            let plane = &image[(c0 + c) * g.h * g.w..][..g.h * g.w];
            let rows = &mut columns[c * taps * band.pixels()..][..taps * band.pixels()];
            for (tap, row) in rows.chunks_exact_mut(band.pixels()).enumerate() {
                gather(row, plane, g, band, tap / g.kw, tap % g.kw);
            }
        }
        let a = Matrix::new(&weight[c0 * taps..], g.ci * taps, 1);
        let b = Matrix::new(columns, band.pixels(), 1);
        // SAFETY: the caller's promise.
        unsafe { out.multiply(tile, true, a, b, channels * taps) };
    }
}

/// Copies what tap (ky, kx) of the kernel sees of `plane` for each pixel of the band; zero outside.
fn gather(row: &mut [f32], plane: &[f32], g: Geometry, band: Band, ky: usize, kx: usize) {
    let width = band.x1 - band.x0;
    for (y, run) in (band.y0..band.y1).zip(row.chunks_exact_mut(width)) {
        let source = (y * g.stride + ky).checked_sub(g.before).filter(|y| *y < g.h);
        let Some(source) = source else {
            run.fill(0.0);
            continue;
        };
        let line = &plane[source * g.w..][..g.w];
        // Output x reads column `x stride + kx - before`: zeros, then pixels, then zeros.
        let first = g.before.saturating_sub(kx).div_ceil(g.stride).clamp(band.x0, band.x1) - band.x0;
        let past = (g.w + g.before).saturating_sub(kx).div_ceil(g.stride).clamp(band.x0, band.x1) - band.x0;
        let past = past.max(first);
        run[..first].fill(0.0);
        run[past..].fill(0.0);
        if past > first {
            let start = (band.x0 + first) * g.stride + kx - g.before;
            if g.stride == 1 {
                run[first..past].copy_from_slice(&line[start..start + past - first]);
            } else {
                for (o, v) in run[first..past].iter_mut().zip(line[start..].iter().step_by(g.stride)) {
                    *o = *v;
                }
            }
        }
    }
}

/// Cuts the output into bands of whole rows, or of parts of one row where rows are long.
fn bands(ho: usize, wo: usize) -> Vec<Band> {
    if wo > BAND {
        let (width, count) = parts(wo, BAND);
        let row = |y| (0..count).map(move |i| (y, i * width));
        return (0..ho)
            .flat_map(row)
            .map(|(y, x0)| Band { y0: y, y1: y + 1, x0, x1: (x0 + width).min(wo) })
            .collect();
    }
    let (rows, count) = parts(ho, (BAND / wo).max(1));
    (0..count).map(|i| Band { y0: i * rows, y1: ((i + 1) * rows).min(ho), x0: 0, x1: wo }).collect()
}
