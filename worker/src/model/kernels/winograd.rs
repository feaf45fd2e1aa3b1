//! 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv
//! 1509.09308): 36 products for 16 pixels instead of 144.
//!
//! The interpolation points are 0, 5/8, -5/8, 3/2, -3/2 and infinity, of which all products are exact in
//! f32: errors are those of summing directly (the usual 0, 1, -1, 2, -2 have four times as much). Filters
//! are transformed as they are used, a panel at a time: kept transformed they would take four times the
//! memory and its traffic.
//!
//! Unsafe code: parts of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::block::{ROWS, WIDTH, block};
use super::conv::{Extras, Filters, Geometry};
use super::host::{self, Host};
use super::product::{Aligned, Output, Panel, parts};
use super::simd::{Isa, dispatch, fma};

/// Pixels along a side of an output tile, and of the input that it depends on.
const OUT: usize = 4;
const IN: usize = 6;
const POINTS: usize = IN * IN;
/// Tiles of a task: at most, and at least where there are many. Whole blocks of rows.
const TILES: (usize, usize) = (22 * ROWS, 4 * ROWS);
/// Input channels of which filters are transformed at a time.
const DEPTH: usize = 64;
const LANES: usize = 16;

/// Squares of the points a and b.
const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

type Lanes = [f32; LANES];

#[inline(always)]
fn map2(x: Lanes, y: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(x[i], y[i]))
}

/// `x + y`.
#[inline(always)]
fn add(x: Lanes, y: Lanes) -> Lanes {
    map2(x, y, |x, y| x + y)
}

/// `x - y`.
#[inline(always)]
fn sub(x: Lanes, y: Lanes) -> Lanes {
    map2(x, y, |x, y| x - y)
}

/// `c x + y`.
#[inline(always)]
fn axpy<const F: bool>(c: f32, x: Lanes, y: Lanes) -> Lanes {
    map2(x, y, |x, y| fma::<F>(c, x, y))
}

/// `c x`.
#[inline(always)]
fn times(c: f32, x: Lanes) -> Lanes {
    x.map(|x| c * x)
}

/// Six values of the input to the six points.
#[inline(always)]
fn input<const F: bool>(d: [Lanes; IN]) -> [Lanes; IN] {
    let (even_a, odd_a) = (axpy::<F>(-B2, d[2], d[4]), times(A, axpy::<F>(-B2, d[1], d[3])));
    let (even_b, odd_b) = (axpy::<F>(-A2, d[2], d[4]), times(B, axpy::<F>(-A2, d[1], d[3])));
    [
        axpy::<F>(A2 * B2, d[0], axpy::<F>(-(A2 + B2), d[2], d[4])),
        add(even_a, odd_a),
        sub(even_a, odd_a),
        add(even_b, odd_b),
        sub(even_b, odd_b),
        axpy::<F>(A2 * B2, d[1], axpy::<F>(-(A2 + B2), d[3], d[5])),
    ]
}

/// Three taps to the six points.
#[inline(always)]
fn filter<const F: bool>(g: [Lanes; 3]) -> [Lanes; IN] {
    const NA: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
    const NB: f32 = 1.0 / (2.0 * B2 * (B2 - A2));
    let (even_a, odd_a) = (times(NA, axpy::<F>(A2, g[2], g[0])), times(NA * A, g[1]));
    let (even_b, odd_b) = (times(NB, axpy::<F>(B2, g[2], g[0])), times(NB * B, g[1]));
    [
        times(1.0 / (A2 * B2), g[0]),
        add(even_a, odd_a),
        sub(even_a, odd_a),
        add(even_b, odd_b),
        sub(even_b, odd_b),
        g[2],
    ]
}

/// Six points to the four values of the output.
#[inline(always)]
fn output<const F: bool>(m: [Lanes; IN]) -> [Lanes; OUT] {
    let (sum_a, difference_a) = (add(m[1], m[2]), sub(m[1], m[2]));
    let (sum_b, difference_b) = (add(m[3], m[4]), sub(m[3], m[4]));
    [
        add(m[0], add(sum_a, sum_b)),
        axpy::<F>(A, difference_a, times(B, difference_b)),
        axpy::<F>(A2, sum_a, times(B2, sum_b)),
        axpy::<F>(A2 * A, difference_a, axpy::<F>(B2 * B, difference_b, m[5])),
    ]
}

#[inline(always)]
fn load(from: &[f32]) -> Lanes {
    let mut out = [0.0; LANES];
    match from.first_chunk::<LANES>() {
        Some(full) => *full,
        None => {
            out[..from.len()].copy_from_slice(from);
            out
        }
    }
}

#[inline(always)]
fn store(to: &mut [f32], lanes: Lanes) {
    match to.first_chunk_mut::<LANES>() {
        Some(full) => *full = lanes,
        None => to.copy_from_slice(&lanes[..to.len()]),
    }
}

#[inline(always)]
fn transform_input_body<const F: bool>(pixels: &[&[f32]; POINTS], out: &mut [f32], stride: usize) {
    let channels = pixels[0].len();
    for c in (0..channels).step_by(LANES) {
        let end = channels.min(c + LANES);
        let mut half = [[[0.0; LANES]; IN]; IN];
        for x in 0..IN {
            let column = input::<F>(std::array::from_fn(|y| load(&pixels[y * IN + x][c..end])));
            for y in 0..IN {
                half[y][x] = column[y];
            }
        }
        for (y, row) in half.into_iter().enumerate() {
            for (x, lanes) in input::<F>(row).into_iter().enumerate() {
                store(&mut out[(y * IN + x) * stride + c..][..end - c], lanes);
            }
        }
    }
}
dispatch! {
    /// Transforms a tile's 36 pixels of any number of channels; point p of them goes to
    /// `out[p stride..]`.
    fn transform_input(pixels: &[&[f32]; POINTS], out: &mut [f32], stride: usize) = transform_input_body
}

#[inline(always)]
fn transform_filters_body<const F: bool>(taps: &[&[f32]; 9], out: &mut [f32], stride: usize) {
    for c in (0..taps[0].len()).step_by(LANES) {
        let mut half = [[[0.0; LANES]; 3]; IN];
        for x in 0..3 {
            let column = filter::<F>(std::array::from_fn(|y| load(&taps[y * 3 + x][c..c + LANES])));
            for y in 0..IN {
                half[y][x] = column[y];
            }
        }
        for (y, row) in half.into_iter().enumerate() {
            for (x, lanes) in filter::<F>(row).into_iter().enumerate() {
                store(&mut out[(y * IN + x) * stride + c..][..LANES], lanes);
            }
        }
    }
}
dispatch! {
    /// Transforms filters of 3x3 taps, of any number of values in multiples of 16; point p of them goes
    /// to `out[p stride..]`.
    fn transform_filters(taps: &[&[f32]; 9], out: &mut [f32], stride: usize) = transform_filters_body
}

#[inline(always)]
fn transform_output_body<const F: bool>(points: &[f32], stride: usize, width: usize, out: &mut [f32]) {
    for c in (0..width).step_by(LANES) {
        let mut half = [[[0.0; LANES]; IN]; OUT];
        for x in 0..IN {
            let column = output::<F>(std::array::from_fn(|y| load(&points[(y * IN + x) * stride + c..])));
            for y in 0..OUT {
                half[y][x] = column[y];
            }
        }
        for (y, row) in half.into_iter().enumerate() {
            for (x, lanes) in output::<F>(row).into_iter().enumerate() {
                store(&mut out[(y * OUT + x) * WIDTH + c..][..LANES], lanes);
            }
        }
    }
}
dispatch! {
    /// Transforms the 36 points of a tile, point p at `points[p stride..]`, to its 16 pixels of up to 64
    /// channels, pixel i at `out[64 i..]`.
    fn transform_output(points: &[f32], stride: usize, width: usize, out: &mut [f32]) = transform_output_body
}

/// Whether this way pays for an output of so many pixels: tiles may reach far beyond small ones.
pub(super) fn pays(filters: &Filters, g: &Geometry) -> bool {
    let is_fit = (filters.kh, filters.kw, g.stride) == (3, 3, 1) && filters.inputs >= LANES;
    is_fit && g.ho.div_ceil(OUT) * g.wo.div_ceil(OUT) * POINTS * 4 <= g.ho * g.wo * 9 * 3
}

/// Where an output tile is.
#[derive(Clone, Copy)]
struct Place {
    entry: usize,
    y: usize,
    x: usize,
}

/// Scratch memory of a thread.
#[derive(Default)]
struct Scratch {
    inputs: Aligned,
    filters: Aligned,
    points: Aligned,
    wide: Aligned,
    taps: Vec<f32>,
}

/// See [`super::conv2d`]; `xs` is (batch, h, w, inputs).
pub(super) fn conv2d(xs: &[f32], filters: &Filters, g: &Geometry, extras: &Extras<'_>) -> Result<Tensor> {
    let isa = Isa::best();
    let (down, across) = (g.ho.div_ceil(OUT), g.wo.div_ceil(OUT));
    let count = g.batch * down * across;
    let place = |tile: usize| Place {
        entry: tile / (down * across),
        y: tile / across % down * OUT,
        x: tile % across * OUT,
    };
    let out = Output::new(g.batch * g.ho * g.wo * filters.outputs);
    let panels: Vec<Panel> = filters.packed.panels().collect();
    let (mut most, mut groups) = (TILES.0, 1);
    let wanted = 3 * rayon::current_num_threads();
    while wanted > 3 && count.div_ceil(most) * groups < wanted {
        // Every group of panels transforms the input again, and every run of tiles the filters.
        let is_cheaper = count * groups <= filters.outputs * count.div_ceil(most);
        match (most > TILES.1, groups < panels.len()) {
            (true, true) if is_cheaper => groups = (2 * groups).min(panels.len()),
            (true, _) => most = (most / 2).next_multiple_of(ROWS).max(TILES.1),
            (false, true) => groups = (2 * groups).min(panels.len()),
            (false, false) => break,
        }
    }
    let (per_group, groups) = parts(panels.len(), panels.len().div_ceil(groups));
    let zeros = vec![0f32; g.inputs];
    let residual = extras.residual.map(host::channels_last).transpose()?;
    let residual = Host::optional(residual.as_ref())?;
    let residual = Host::some(&residual)?;
    (0..count.div_ceil(most) * groups).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let first = task / groups * most;
        let tiles = most.min(count - first);
        let size = apart(tiles * DEPTH.min(g.inputs));
        scratch.inputs.grow(g.inputs.div_ceil(DEPTH) * POINTS * size);
        let inputs = scratch.inputs.values_mut();
        for t in 0..tiles {
            let Place { entry, y, x } = place(first + t);
            let pixels: [&[f32]; POINTS] =
                std::array::from_fn(|p| g.pixel(xs, entry, y + p / IN, x + p % IN, &zeros));
            // What one product reads lies together.
            for (start, out) in (0..g.inputs).step_by(DEPTH).zip(inputs.chunks_exact_mut(POINTS * size)) {
                let run = DEPTH.min(g.inputs - start);
                let some = pixels.map(|pixel| &pixel[start..][..run]);
                transform_input(isa, &some, &mut out[t * run..], size);
            }
        }
        for panel in panels.iter().skip(task % groups * per_group).take(per_group) {
            multiply(isa, filters, *panel, tiles, scratch);
            let points = scratch.points.values();
            let mut pixels = [0f32; OUT * OUT * WIDTH];
            for t in 0..tiles {
                transform_output(isa, &points[t * WIDTH..], apart(tiles * WIDTH), panel.width, &mut pixels);
                let Place { entry, y, x } = place(first + t);
                for (i, j) in (0..OUT).flat_map(|i| (0..OUT).map(move |j| (i, j))) {
                    if y + i < g.ho && x + j < g.wo {
                        let sums = &mut pixels[(i * OUT + j) * WIDTH..][..panel.columns];
                        let at = ((entry * g.ho + y + i) * g.wo + x + j) * filters.outputs + panel.first;
                        extras.finish(isa, entry, *panel, sums, residual.map(|r| &r[at..][..panel.columns]));
                        // SAFETY: every pixel is of one tile, and of each panel once.
                        unsafe { out.write(at, sums) };
                    }
                }
            }
        }
    });
    // SAFETY: every panel of every pixel was written: tiles cover the output.
    host::image(unsafe { out.finish() }, [g.batch, filters.outputs, g.ho, g.wo])
}

/// So many values, and a line of the cache: what belongs to the 36 points would otherwise lie apart by a power
/// of two, in a few lines of the cache that push each other out.
fn apart(length: usize) -> usize {
    length + LANES
}

/// The products of all points of some tiles with a panel: point p of tile t at
/// `scratch.points[p apart(64 tiles) + 64 t..]`. In the input, of each run of [`DEPTH`] channels (or fewer at the end)
/// one after the other, point p of tile t is at `[p apart(tiles min(DEPTH, channels)) + run t..]`.
fn multiply(isa: Isa, filters: &Filters, panel: Panel, tiles: usize, scratch: &mut Scratch) {
    let Scratch { inputs, filters: transformed, points, wide, taps } = scratch;
    let (inputs, channels) = (inputs.values(), filters.inputs);
    let (from, to) = (apart(tiles * DEPTH.min(channels)), apart(tiles * WIDTH));
    points.grow(POINTS * to);
    let points = points.values_mut();
    for (start, inputs) in (0..channels).step_by(DEPTH).zip(inputs.chunks_exact(POINTS * from)) {
        let run = DEPTH.min(channels - start);
        let size = run * panel.width;
        transformed.grow(POINTS * apart(size));
        let transformed = transformed.values_mut();
        let in_place = [0, 1, 2, 3, 4, 5, 6, 7, 8]
            .map(|t| filters.packed.rows_in_place(panel, t * channels + start, run));
        let nine = if in_place[0].is_some() {
            in_place.map(|rows| rows.expect("all weights are kept in one format"))
        } else {
            taps.clear();
            for tap in 0..9 {
                taps.extend_from_slice(filters.packed.rows(panel, tap * channels + start, run, wide));
            }
            std::array::from_fn(|tap| &taps[tap * size..][..size])
        };
        transform_filters(isa, &nine, transformed, apart(size));
        for p in 0..POINTS {
            let values = &transformed[p * apart(size)..][..size];
            for t in (0..tiles).step_by(ROWS) {
                let some = ROWS.min(tiles - t);
                let slices: [&[f32]; ROWS] =
                    std::array::from_fn(|i| &inputs[p * from + (t + i).min(tiles - 1) * run..][..run]);
                let out = &mut points[p * to + t * WIDTH..];
                block(isa, &slices[..some], values, panel.width, out, WIDTH, start > 0);
            }
        }
    }
}
