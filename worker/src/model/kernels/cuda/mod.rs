//! The same operations on NVIDIA GPUs: products by cuBLASLt, convolutions by cuDNN, and what lies between by our own
//! kernels (`kernels.cu`), in as few passes over memory as there can be.
//!
//! Images lie channels-last, as on a CPU. Sums are f32 whatever the values are.
//!
//! Invariants: algorithms are chosen by sizes alone, never by timing, and nothing is added up in an order that
//! depends on what runs when. So one call's results are the same bytes at every run with the same libraries on the
//! same kind of GPU.
//!
//! Unsafe code: calls of NVIDIA's libraries, and of kernels, with pointers to memory on the device.
#![allow(unsafe_code)]

mod blas;
#[cfg(feature = "cudnn")]
mod dnn;
mod engine;
mod graph;
mod norm;
mod open;
#[cfg(feature = "cudnn")]
mod sdpa;
#[cfg(test)]
mod tests;

use candle_core::{CudaDevice, Result, Tensor, bail};

use super::{Around, Padding};
use engine::{Arg, Engine, Grid, width};

pub(super) use blas::linear;
pub(super) use graph::{Fill, Replay};
pub(super) use norm::{group_norm, group_statistics, layer_norm};
pub(in crate::model) use open::{class, open};
pub(super) use open::{free_bytes, give_back};
#[cfg(feature = "cudnn")]
pub(super) use sdpa::attention;

/// See [`super::round_f32`].
pub(super) fn round_f32(device: &CudaDevice) -> Result<()> {
    Engine::on(device)?.rounds.set(true);
    Ok(())
}

/// Threads of a block, where each computes some values on its own.
const THREADS: usize = 256;

/// A block of threads for every so many runs of `width` values.
fn elementwise(values: usize, width: usize) -> Grid {
    Grid { blocks: ((values / width).div_ceil(THREADS), 1), threads: THREADS, shared: 0 }
}

/// An image's values as (batch, h, w, channels): a view where it is kept that way.
fn channels_last(image: &Tensor) -> Result<Tensor> {
    image.permute((0, 2, 3, 1))?.contiguous()
}

/// Filters (out, in, kh, kw) with the inputs of a place side by side.
pub(super) fn filters(weight: &Tensor) -> Result<Tensor> {
    channels_last(weight)?.permute((0, 3, 1, 2))
}

/// See [`super::geglu`]; `x` is what its linear layer makes.
pub(super) fn gate(x: &Tensor) -> Result<Tensor> {
    let (batch, rows, both) = x.dims3()?;
    let columns = both / 2;
    let engine = Engine::of(x)?;
    let x = engine.packed(x)?;
    let out = engine.empty(x.dtype(), &[batch, rows, columns])?;
    let width = width(x.dtype(), &[columns]);
    let arguments = [
        Arg::Pointer(engine.pointer(&x)?),
        Arg::Pointer(engine.pointer(&out)?),
        Arg::Long((batch * rows) as i64),
        Arg::Int(columns as i32),
    ];
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe {
        engine.launch(("gate", x.dtype(), width), elementwise(batch * rows * columns, width), &arguments)?;
    }
    Ok(out)
}

/// See [`super::concat_channels`].
pub(super) fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((batch, of_a, h, w), (_, of_b, hb, wb)) = (a.dims4()?, b.dims4()?);
    if (batch, h, w) != (b.dim(0)?, hb, wb) || a.dtype() != b.dtype() {
        bail!("the channels of {:?} and {:?}", a.dims(), b.dims());
    }
    let engine = Engine::of(a)?;
    let (a, b) = (engine.packed(&channels_last(a)?)?, engine.packed(&channels_last(b)?)?);
    let out = engine.empty(a.dtype(), &[batch, h, w, of_a + of_b])?;
    let width = width(a.dtype(), &[of_a, of_b]);
    let arguments = [
        Arg::Pointer(engine.pointer(&a)?),
        Arg::Pointer(engine.pointer(&b)?),
        Arg::Pointer(engine.pointer(&out)?),
        Arg::Long((batch * h * w) as i64),
        Arg::Int(of_a as i32),
        Arg::Int(of_b as i32),
    ];
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe {
        let grid = elementwise(batch * h * w * (of_a + of_b), width);
        engine.launch(("concat", a.dtype(), width), grid, &arguments)?;
    }
    out.permute((0, 3, 1, 2))
}

/// Images (batch, h, w, channels) as images of another size, to the nearest neighbour.
fn resize(x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    let engine = Engine::of(x)?;
    let x = engine.packed(x)?;
    let out = engine.empty(x.dtype(), &[batch, height, width, channels])?;
    let together = engine::width(x.dtype(), &[channels]);
    let [h, w, tall, wide, deep] = [h, w, height, width, channels].map(|n| Arg::Int(n as i32));
    let arguments = [
        Arg::Pointer(engine.pointer(&x)?),
        Arg::Pointer(engine.pointer(&out)?),
        Arg::Long(batch as i64),
        h,
        w,
        tall,
        wide,
        deep,
    ];
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe {
        let grid = elementwise(batch * height * width * channels, together);
        engine.launch(("resize", x.dtype(), together), grid, &arguments)?;
    }
    Ok(out)
}

/// See [`super::conv2d`]; [`Around::shift`] is not added.
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, Padding { before, after }): (usize, Padding),
    around: Around<'_>,
) -> Result<Tensor> {
    let mut x = channels_last(x)?;
    if let Some(size) = around.resized {
        x = resize(&x, size)?;
    }
    let mut padding = before;
    if before != after {
        x = x.pad_with_zeros(1, before, after)?.pad_with_zeros(2, before, after)?;
        padding = 0;
    }
    let filters = weight.permute((0, 2, 3, 1))?;
    let residual = around.residual.map(channels_last).transpose()?;
    let (outputs, kh, kw, inputs) = filters.dims4()?;
    let out = if (kh, kw, stride, padding) == (1, 1, 1, 0) {
        // Pixels are rows of a product.
        let (batch, h, w, _) = x.dims4()?;
        let rows = |t: &Tensor| t.reshape((batch, h * w, ()));
        let filters = filters.contiguous()?.reshape((outputs, inputs))?;
        linear(&rows(&x)?, &filters, Some(bias), residual.as_ref().map(rows).transpose()?.as_ref())?
            .reshape((batch, h, w, outputs))?
    } else {
        convolve(&x, &filters, bias, (stride, padding), residual.as_ref())?
    };
    out.permute((0, 3, 1, 2))
}

#[cfg(feature = "cudnn")]
use dnn::conv2d as convolve;

/// Without cuDNN: candle's own.
#[cfg(not(feature = "cudnn"))]
fn convolve(
    x: &Tensor,
    filters: &Tensor,
    bias: &Tensor,
    (stride, padding): (usize, usize),
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let planes = |t: &Tensor| t.permute((0, 3, 1, 2))?.contiguous();
    let out = planes(x)?.conv2d(&planes(filters)?, padding, stride, 1, 1)?;
    let out = out.permute((0, 2, 3, 1))?.contiguous()?.broadcast_add(bias)?;
    match residual {
        Some(residual) => out + residual,
        None => Ok(out),
    }
}
