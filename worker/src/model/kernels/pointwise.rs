//! Channels side by side.
//!
//! Unsafe code: parts of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::host::{self, Host};
use super::product::Output;

const RUN: usize = 16 * 1024;

/// See [`super::concat_channels`].
pub(super) fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((batch, ca, h, w), (_, cb, hb, wb)) = (a.dims4()?, b.dims4()?);
    if (batch, h, w) != (b.dim(0)?, hb, wb) || ca == 0 || cb == 0 {
        bail!("the channels of {:?} and {:?}", a.dims(), b.dims());
    }
    let (a, b) = (host::channels_last(a)?, host::channels_last(b)?);
    let (a, b) = (Host::contiguous(&a)?, Host::contiguous(&b)?);
    let (xs, ys) = (a.values()?, b.values()?);
    let both = ca + cb;
    let pixels = (RUN / both).max(1);
    let out = Output::new(xs.len() + ys.len());
    let parts = xs.par_chunks(pixels * ca).zip(ys.par_chunks(pixels * cb));
    parts.enumerate().for_each(|(task, (x, y))| {
        for (i, (x, y)) in x.chunks_exact(ca).zip(y.chunks_exact(cb)).enumerate() {
            let at = (task * pixels + i) * both;
            // SAFETY: every pixel is of one task.
            unsafe {
                out.write(at, x);
                out.write(at + ca, y);
            }
        }
    });
    // SAFETY: every pixel was written.
    host::image(unsafe { out.finish() }, [batch, both, h, w])
}
