//! Softmax attention: for each head, blocks of queries against all keys. The scores of one block
//! are all that is ever held.
//!
//! Unsafe code: blocks of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Mask;
use super::host::{Host, tensor};
use super::matmul::{Matrix, Shared, Tile, parts};
use super::simd;

/// Queries of a block, at most.
const BLOCK: usize = 64;

/// See [`super::attention()`].
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (batch, sq, width) = q.dims3()?;
    let sk = k.dim(1)?;
    if k.dims() != [batch, sk, width] || v.dims() != k.dims() || width % heads != 0 {
        bail!("attention of {:?}, {:?}, {:?} with {heads} heads", q.dims(), k.dims(), v.dims());
    }
    let d = width / heads;
    let (q, k, v) = (Host::contiguous(&q)?, Host::contiguous(&k)?, Host::contiguous(&v)?);
    let (qs, ks, vs) = (q.values()?, k.values()?, v.values()?);
    let scale = 1.0 / (d as f32).sqrt();
    let (block, blocks) = parts(sq, BLOCK);
    let mut out = vec![0f32; batch * sq * width];
    let shared = Shared::new(&mut out);
    (0..batch * heads * blocks).into_par_iter().for_each_init(Vec::new, |scores, task| {
        let (entry, head, r0) = (task / (heads * blocks), task / blocks % heads, task % blocks * block);
        let rows = block.min(sq - r0);
        let queries = Matrix::new(&qs[(entry * sq + r0) * width + head * d..], width, 1);
        let keys = Matrix::new(&ks[entry * sk * width + head * d..], 1, width);
        let values = Matrix::new(&vs[entry * sk * width + head * d..], width, 1);
        scores.resize(rows * sk, 0.0);
        let tile = Tile { offset: 0, rows, columns: sk, row_stride: sk, column_stride: 1 };
        // SAFETY: `scores` belongs to this task.
        unsafe { Shared::new(scores).multiply(tile, false, queries, keys, d) };
        let inverse: Vec<f32> = scores
            .chunks_mut(sk)
            .enumerate()
            .map(|(r, row)| {
                let seen = if mask == Mask::Causal { (r0 + r + 1).min(sk) } else { sk };
                row[seen..].fill(0.0);
                simd::softmax(&mut row[..seen], scale)
            })
            .collect();
        let tile = Tile {
            offset: (entry * sq + r0) * width + head * d,
            rows,
            columns: d,
            row_stride: width,
            column_stride: 1,
        };
        // SAFETY: tasks differ in entry, head or block, so their tiles are disjoint.
        unsafe {
            shared.multiply(tile, false, Matrix::new(scores, sk, 1), values, sk);
            for (r, inverse) in inverse.iter().enumerate() {
                shared.run(tile.offset + r * width, d, |run| run.iter_mut().for_each(|v| *v *= inverse));
            }
        }
    });
    tensor(out, &[batch, sq, width])
}
