//! Linear layers, and those whose outputs gate each other.
//!
//! Unsafe code: parts of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};

use super::host::{Host, source, tensor};
use super::product::{Output, Packed, multiply};
use super::simd::{self, Isa};

/// Columns of values, and of their gates, in a panel.
const HALF: usize = 32;

/// Packs a matrix (out, in).
pub(super) fn pack(weight: &Tensor) -> Result<Packed> {
    let (columns, inputs) = weight.dims2()?;
    let weight = weight.contiguous()?;
    source(&weight, |values| Packed::new(&values, (inputs, columns), inputs, |k, c| Some(c * inputs + k)))
}

/// Packs a matrix (2 out, in) whose second half gates the first: a panel has some values and their gates.
pub(super) fn pack_gated(weight: &Tensor) -> Result<Packed> {
    let (both, inputs) = weight.dims2()?;
    if both % 2 != 0 {
        bail!("{both} outputs, of which half gate the others");
    }
    let columns = both / 2;
    let weight = weight.contiguous()?;
    let index = |k: usize, c: usize| {
        let (panel, within) = (c / (2 * HALF), c % (2 * HALF));
        let column = panel * HALF + within % HALF;
        (column < columns).then_some(((within / HALF * columns) + column) * inputs + k)
    };
    let padded = padded(columns);
    source(&weight, |values| Packed::new(&values, (inputs, padded), inputs, index))
}

/// Columns of a gated matrix with so many outputs, as it is packed.
fn padded(columns: usize) -> usize {
    columns.div_ceil(HALF) * 2 * HALF
}

/// `x W^T + b + residual` for `x` (batch, rows, in).
pub(super) fn linear(
    x: &Tensor,
    weight: &Packed,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, rows, inputs) = x.dims3()?;
    if inputs != weight.inputs {
        bail!("{inputs} inputs for a layer of {}", weight.inputs);
    }
    let columns = weight.columns;
    if bias.is_some_and(|b| b.dims() != [columns]) {
        bail!("a bias of {:?} for {columns} outputs", bias.map(Tensor::dims));
    }
    let x = x.contiguous()?;
    let residual = residual.map(|r| r.contiguous()).transpose()?;
    if residual.as_ref().is_some_and(|r| r.dims() != [batch, rows, columns]) {
        bail!("a residual of another shape than {batch}x{rows}x{columns}");
    }
    let hosts = (Host::contiguous(&x)?, Host::optional(bias)?, Host::optional(residual.as_ref())?);
    let (xs, bs, rs) = (hosts.0.values()?, Host::some(&hosts.1)?, Host::some(&hosts.2)?);
    let out = Output::new(batch * rows * columns);
    multiply(
        weight,
        1,
        batch * rows,
        |r, _| &xs[r * inputs..][..inputs],
        |r, panel, sums| {
            let at = r * columns + panel.first;
            let sums = &mut sums[..panel.columns];
            if let Some(bs) = bs {
                simd::add(Isa::best(), sums, &bs[panel.first..][..panel.columns]);
            }
            if let Some(rs) = rs {
                simd::add(Isa::best(), sums, &rs[at..][..panel.columns]);
            }
            // SAFETY: every (row, panel) is finished once.
            unsafe { out.write(at, sums) };
        },
    );
    // SAFETY: every panel of every row was written.
    tensor(unsafe { out.finish() }, &[batch, rows, columns])
}

/// `(x W1^T + b1) gelu(x W2^T + b2)`: (batch, rows, in) -> (batch, rows, out), weights from
/// [`pack_gated`], `bias` (2 out).
pub(super) fn geglu(x: &Tensor, weight: &Packed, bias: &Tensor) -> Result<Tensor> {
    let (batch, rows, inputs) = x.dims3()?;
    let columns = bias.dims1()? / 2;
    if inputs != weight.inputs {
        bail!("{inputs} inputs for a layer of {}", weight.inputs);
    }
    if bias.dims1()? % 2 != 0 || weight.columns != padded(columns) {
        bail!("a bias of {:?} for {} packed columns", bias.dims(), weight.columns);
    }
    let x = x.contiguous()?;
    let (x, bias) = (Host::contiguous(&x)?, Host::contiguous(bias)?);
    let (xs, bs) = (x.values()?, bias.values()?);
    let out = Output::new(batch * rows * columns);
    multiply(
        weight,
        1,
        batch * rows,
        |r, _| &xs[r * inputs..][..inputs],
        |r, panel, sums| {
            let first = panel.first / 2;
            let some = HALF.min(columns - first);
            let (values, gates) = sums.split_at_mut(HALF);
            simd::add(Isa::best(), &mut values[..some], &bs[first..][..some]);
            simd::add(Isa::best(), &mut gates[..some], &bs[columns + first..][..some]);
            simd::geglu(Isa::best(), &mut values[..some], &gates[..some]);
            // SAFETY: every (row, panel) is finished once.
            unsafe { out.write(r * columns + first, &values[..some]) };
        },
    );
    // SAFETY: every panel of every row was written.
    tensor(unsafe { out.finish() }, &[batch, rows, columns])
}
