//! Linear layers: tiles of rows and columns, each one product.
//!
//! Unsafe code: tiles of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::host::{Host, tensor};
use super::matmul::{Matrix, Shared, Tile, parts};
use super::simd;

const TILE_ROWS: usize = 128;
const TILE_COLUMNS: usize = 384;

/// The order of the result's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// (batch, rows, out).
    Rows,
    /// (batch, out, rows).
    Planes,
}

/// `x W^T + b` for `x` (batch, rows, in) of any strides. Tiles never span two batch entries, so
/// that an entry's result does not depend on its neighbours.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, order: Output) -> Result<Tensor> {
    let (batch, rows, inner) = x.dims3()?;
    let (columns, _) = weight.dims2()?;
    let (x, weight) = (Host::strided(x)?, Host::contiguous(weight)?);
    let bias = bias.map(Host::contiguous).transpose()?;
    let (xs, ws) = (x.values()?, weight.values()?);
    let bs = bias.as_ref().map(Host::values).transpose()?;
    let [x_batch, x_row, x_inner] = x.strides() else { unreachable!("three axes") };
    let mut out = vec![0f32; batch * rows * columns];
    let (tile_rows, row_tiles) = parts(rows, TILE_ROWS);
    let (tile_columns, column_tiles) = parts(columns, TILE_COLUMNS);
    let shared = Shared::new(&mut out);
    (0..batch * row_tiles * column_tiles).into_par_iter().for_each(|task| {
        let (entry, rest) = (task / (row_tiles * column_tiles), task % (row_tiles * column_tiles));
        let (r0, c0) = (rest / column_tiles * tile_rows, rest % column_tiles * tile_columns);
        let base = entry * rows * columns;
        let (offset, row_stride, column_stride) = match order {
            Output::Rows => (base + r0 * columns + c0, columns, 1),
            Output::Planes => (base + c0 * rows + r0, 1, rows),
        };
        let tile = Tile {
            offset,
            rows: tile_rows.min(rows - r0),
            columns: tile_columns.min(columns - c0),
            row_stride,
            column_stride,
        };
        let a = Matrix::new(&xs[entry * x_batch + r0 * x_row..], *x_row, *x_inner);
        let b = Matrix::new(&ws[c0 * inner..], 1, inner);
        // SAFETY: tiles of different tasks are disjoint: each (entry, row, column) is in one.
        unsafe {
            if let Some(bs) = bs {
                fill(&shared, tile, order, &bs[c0..]);
            }
            shared.multiply(tile, bs.is_some(), a, b, inner);
        }
    });
    match order {
        Output::Rows => tensor(out, &[batch, rows, columns]),
        Output::Planes => tensor(out, &[batch, columns, rows]),
    }
}

/// Writes the bias into a tile.
///
/// # Safety
/// No other thread may touch the tile's elements during the call.
unsafe fn fill(out: &Shared<'_>, tile: Tile, order: Output, bias: &[f32]) {
    match order {
        Output::Rows => (0..tile.rows).for_each(|r| {
            let offset = tile.offset + r * tile.row_stride;
            // SAFETY: a row of the tile, unshared by the caller's promise.
            unsafe { out.run(offset, tile.columns, |run| run.copy_from_slice(&bias[..tile.columns])) }
        }),
        Output::Planes => (0..tile.columns).for_each(|c| {
            let offset = tile.offset + c * tile.column_stride;
            // SAFETY: a column of the tile, unshared by the caller's promise.
            unsafe { out.run(offset, tile.rows, |run| run.fill(bias[c])) }
        }),
    }
}

/// `x W^T + b` for a few rows (rows, in), every element a scalar product of its own.
pub(super) fn linear_rows(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, inner) = x.dims2()?;
    let (columns, _) = weight.dims2()?;
    let (x, weight) = (Host::contiguous(x)?, Host::contiguous(weight)?);
    let bias = bias.map(Host::contiguous).transpose()?;
    let (xs, ws) = (x.values()?, weight.values()?);
    let bs = bias.as_ref().map(Host::values).transpose()?;
    let mut out = vec![0f32; rows * columns];
    out.par_chunks_mut(64).enumerate().for_each(|(chunk, run)| {
        for (i, o) in run.iter_mut().enumerate() {
            let (row, column) = ((chunk * 64 + i) / columns, (chunk * 64 + i) % columns);
            let product = simd::dot(&xs[row * inner..][..inner], &ws[column * inner..][..inner]);
            *o = product + bs.map_or(0.0, |b| b[column]);
        }
    });
    tensor(out, &[rows, columns])
}
