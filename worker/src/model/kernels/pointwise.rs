//! GEGLU, sums and nearest-neighbour resizing.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::host::{Host, tensor};
use super::simd;

const RUN: usize = 16 * 1024;

/// See [`super::geglu`].
pub(super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut dims = x.dims().to_vec();
    let last = dims.len() - 1;
    let width = dims[last] / 2;
    let x = Host::contiguous(&x)?;
    let xs = x.values()?;
    let rows = (RUN / width).max(1);
    let mut out = vec![0f32; xs.len() / 2];
    out.par_chunks_mut(rows * width).zip(xs.par_chunks(rows * 2 * width)).for_each(|(out, x)| {
        for (out, x) in out.chunks_mut(width).zip(x.chunks(2 * width)) {
            simd::geglu(out, &x[..width], &x[width..]);
        }
    });
    dims[last] = width;
    tensor(out, &dims)
}

/// See [`super::add`].
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("a sum of {:?} and {:?}", a.dims(), b.dims());
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let dims = a.dims().to_vec();
    let (a, b) = (Host::contiguous(&a)?, Host::contiguous(&b)?);
    let (xs, ys) = (a.values()?, b.values()?);
    let mut out = vec![0f32; xs.len()];
    out.par_chunks_mut(RUN).zip(xs.par_chunks(RUN)).zip(ys.par_chunks(RUN)).for_each(|((out, x), y)| {
        for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
            *o = x + y;
        }
    });
    tensor(out, &dims)
}

/// See [`super::upsample`].
pub(super) fn upsample(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, channels, h, w) = x.dims4()?;
    let x = Host::contiguous(&x)?;
    let xs = x.values()?;
    let from: Vec<usize> = (0..width).map(|i| i * w / width).collect();
    let mut out = vec![0f32; batch * channels * height * width];
    out.par_chunks_mut(height * width).zip(xs.par_chunks(h * w)).for_each(|(out, x)| {
        for (y, row) in out.chunks_mut(width).enumerate() {
            let line = &x[y * h / height * w..][..w];
            for (o, i) in row.iter_mut().zip(&from) {
                *o = line[*i];
            }
        }
    });
    tensor(out, &[batch, channels, height, width])
}
