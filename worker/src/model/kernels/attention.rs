//! Softmax attention with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao et al.,
//! arXiv 2205.14135): for each head, blocks of queries against blocks of keys. The scores of one pair of
//! blocks are all that is ever held.
//!
//! Unsafe code: parts of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Mask;
use super::block::{ROWS, RUN, WIDTH, block};
use super::host::{Host, tensor};
use super::product::{Aligned, Output, Panel, pack, packed_length, panels, parts};
use super::simd::{self, Isa};

/// Queries of a block, at most.
const QUERIES: usize = 96;
/// Keys of a block: whole panels.
const KEYS: usize = 512;

/// See [`super::attention()`].
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (batch, sq, width) = q.dims3()?;
    let sk = k.dim(1)?;
    let fits = k.dims() == [batch, sk, width] && v.dims() == k.dims() && heads > 0 && width % heads == 0;
    if !fits || [batch, sq, sk, width].contains(&0) {
        bail!("attention of {:?}, {:?}, {:?} with {heads} heads", q.dims(), k.dims(), v.dims());
    }
    let d = width / heads;
    let (q, k, v) = (Host::contiguous(&q)?, Host::contiguous(&k)?, Host::contiguous(&v)?);
    let (qs, ks, vs) = (q.values()?, k.values()?, v.values()?);
    // Keys as panels with a column per key, values as panels with a row per key.
    let key_panels: Vec<Panel> = panels(sk, d).collect();
    let value_panels: Vec<Panel> = panels(d, sk).collect();
    let (key_size, value_size) = (packed_length(sk, d), packed_length(d, sk));
    let mut keys = Aligned::zeros(batch * heads * key_size);
    let mut values = Aligned::zeros(batch * heads * value_size);
    let packed = keys.values_mut().par_chunks_exact_mut(key_size);
    packed.zip(values.values_mut().par_chunks_exact_mut(value_size)).enumerate().for_each(
        |(head, (keys, values))| {
            let start = head / heads * sk * width + head % heads * d;
            for (panel, out) in key_panels.iter().zip(keys.chunks_mut(WIDTH * d)) {
                pack(out, *panel, &ks[start..], 1, width);
            }
            for (panel, out) in value_panels.iter().zip(values.chunks_mut(WIDTH * sk)) {
                pack(out, *panel, &vs[start..], width, 1);
            }
        },
    );
    let (keys, values) = (keys.values(), values.values());
    let scale = 1.0 / (d as f32).sqrt();
    let (per_block, blocks) = parts(sq, QUERIES);
    let out = Output::new(batch * sq * width);
    (0..batch * heads * blocks).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let (head, first) = (task / blocks, task % blocks * per_block);
        let (entry, column) = (head / heads, head % heads * d);
        let rows = per_block.min(sq - first);
        let queries = &qs[(entry * sq + first) * width + column..];
        let operands = Operands {
            queries,
            stride: width,
            d,
            keys: &keys[head * key_size..][..key_size],
            values: &values[head * value_size..][..value_size],
            sk,
        };
        let seen = (mask == Mask::Causal).then_some(first + 1);
        operands.attend(Isa::best(), rows, scale, seen, scratch);
        let (sums, totals) = (scratch.mixed.values_mut(), &scratch.totals);
        for (r, total) in totals.iter().enumerate() {
            let inverse = 1.0 / total;
            let mixed = &mut sums[r * operands.mixed_stride()..][..d];
            mixed.iter_mut().for_each(|v| *v *= inverse);
            // SAFETY: tasks differ in entry, head or queries.
            unsafe { out.write((entry * sq + first + r) * width + column, mixed) };
        }
    });
    // SAFETY: every query of every head was written.
    tensor(unsafe { out.finish() }, &[batch, sq, width])
}

#[derive(Default)]
struct Scratch {
    scores: Aligned,
    mixed: Aligned,
    tops: Vec<f32>,
    totals: Vec<f32>,
}

/// One head of one batch entry.
struct Operands<'a> {
    /// Query r is `queries[r stride..][..d]`.
    queries: &'a [f32],
    stride: usize,
    d: usize,
    keys: &'a [f32],
    values: &'a [f32],
    sk: usize,
}

impl Operands<'_> {
    fn mixed_stride(&self) -> usize {
        self.d.next_multiple_of(WIDTH)
    }

    /// Leaves the unnormalised result and what to divide it by in `scratch`. `seen`: how many keys the
    /// first query sees; each later one sees one more.
    fn attend(&self, isa: Isa, rows: usize, scale: f32, seen: Option<usize>, scratch: &mut Scratch) {
        let Scratch { scores, mixed, tops, totals } = scratch;
        let stride = self.mixed_stride();
        scores.grow(rows * KEYS);
        mixed.grow(rows * stride);
        let (scores, mixed) = (scores.values_mut(), mixed.values_mut());
        mixed[..rows * stride].fill(0.0);
        *tops = vec![f32::NEG_INFINITY; rows];
        *totals = vec![0.0; rows];
        for start in (0..self.sk).step_by(KEYS) {
            if seen.is_some_and(|seen| start >= seen + rows - 1) {
                break;
            }
            let keys = KEYS.min(self.sk - start);
            self.score(isa, rows, (start, keys), scores);
            for r in 0..rows {
                let seen = seen.map_or(keys, |s| (s + r).saturating_sub(start).min(keys));
                let row = &mut scores[r * KEYS..][..keys];
                row[seen..].fill(0.0);
                if seen == 0 {
                    continue;
                }
                let (top, total) = simd::softmax_step(isa, &mut row[..seen], tops[r], scale);
                let decay = if start == 0 { 0.0 } else { simd::decay(isa, (tops[r] - top) * scale) };
                if start > 0 && decay != 1.0 {
                    mixed[r * stride..][..self.d].iter_mut().for_each(|v| *v *= decay);
                }
                totals[r] = totals[r] * decay + total;
                tops[r] = top;
            }
            self.mix(isa, rows, (start, keys), scores, mixed);
        }
    }

    /// Scores of all queries against a block of keys.
    fn score(&self, isa: Isa, rows: usize, (start, keys): (usize, usize), scores: &mut [f32]) {
        let wanted = panels(self.sk, self.d).skip(start / WIDTH).take(keys.div_ceil(WIDTH));
        for (i, panel) in wanted.enumerate() {
            for k in (0..self.d).step_by(RUN) {
                let run = RUN.min(self.d - k);
                let values = &self.keys[panel.first * self.d + k * panel.width..][..run * panel.width];
                for r in (0..rows).step_by(ROWS) {
                    let some = ROWS.min(rows - r);
                    let slices: [&[f32]; ROWS] = std::array::from_fn(|i| {
                        &self.queries[(r + i).min(rows - 1) * self.stride + k..][..run]
                    });
                    let out = &mut scores[r * KEYS + i * WIDTH..];
                    block(isa, &slices[..some], values, panel.width, out, KEYS, k > 0);
                }
            }
        }
    }

    /// Adds the values of a block of keys, each times its score.
    fn mix(&self, isa: Isa, rows: usize, (start, keys): (usize, usize), scores: &[f32], mixed: &mut [f32]) {
        let stride = self.mixed_stride();
        for panel in panels(self.d, self.sk) {
            let values = &self.values[panel.first * self.sk + start * panel.width..][..keys * panel.width];
            for r in (0..rows).step_by(ROWS) {
                let some = ROWS.min(rows - r);
                let slices: [&[f32]; ROWS] =
                    std::array::from_fn(|i| &scores[(r + i).min(rows - 1) * KEYS..][..keys]);
                let out = &mut mixed[r * stride + panel.first..];
                block(isa, &slices[..some], values, panel.width, out, stride, true);
            }
        }
    }
}
