//! Group and layer normalisation.

use candle_core::{DType, Result, Tensor, bail};

use super::channels_last;
use super::engine::{Arg, Engine, Grid, width};

/// Threads of a block of group normalisation, about.
const THREADS: usize = 512;
/// Pixels of a run of moments, at least, and runs of an image, at most: enough blocks for any GPU, and few enough
/// moments. What they are decides the order of sums, so they do not depend on the GPU.
const PIXELS: usize = 16;
const RUNS: usize = 512;
/// The same where there is nothing to add up.
const FEWEST_PIXELS: usize = 8;
const MOST_RUNS: usize = 2048;
/// Bytes of shared memory that every block may have.
const SHARED: usize = 48 << 10;
/// Bytes of a mean and a sum of squares.
const MOMENTS: usize = 8;
/// Rows of a block of layer normalisation: a warp each.
const ROWS: usize = 4;

/// How the pixels of images are dealt out to blocks and threads.
struct Deal {
    batch: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    /// Channels of a thread.
    width: usize,
    /// Pixels that a block reads together.
    rows: usize,
    /// Pixels of a block.
    per_run: usize,
}

impl Deal {
    fn of(x: &Tensor, groups: usize) -> Result<Self> {
        let (batch, h, w, channels) = x.dims4()?;
        if channels % groups != 0 {
            bail!("{channels} channels in {groups} groups");
        }
        let pixels = h * w;
        let width = width(x.dtype(), &[channels]);
        let columns = channels / width;
        let rows = (THREADS / columns).clamp(1, pixels);
        let shared = (rows + 1) * channels * MOMENTS;
        if columns > 1024 || shared > SHARED {
            bail!("group normalisation of {channels} channels is more than a block of a GPU can do");
        }
        Ok(Self { batch, pixels, channels, groups, width, rows, per_run: pixels.div_ceil(RUNS).max(PIXELS) })
    }

    /// The same pixels for the second half.
    fn apart(&self) -> Self {
        Self { per_run: self.pixels.div_ceil(MOST_RUNS).max(FEWEST_PIXELS), ..*self }
    }

    fn runs(&self) -> usize {
        self.pixels.div_ceil(self.per_run)
    }

    /// Whole warps.
    fn grid(&self, shared: usize) -> Grid {
        let threads = (self.rows * self.channels / self.width).next_multiple_of(32);
        Grid { blocks: (self.runs(), self.batch), threads, shared }
    }

    fn sizes(&self) -> [Arg; 5] {
        [self.pixels, self.channels, self.groups, self.per_run, self.rows].map(|n| Arg::Int(n as i32))
    }
}

/// Mean and sum of squares of every group in every run: (batch, groups, runs, 2), f32.
fn moments(engine: &Engine, x: &Tensor, added: Option<&Tensor>, deal: &Deal) -> Result<Tensor> {
    let out = engine.empty(DType::F32, &[deal.batch, deal.groups, deal.runs(), 2])?;
    let pointers = [
        Arg::Pointer(engine.pointer(x)?),
        Arg::Pointer(added.map_or(Ok(0), |added| engine.pointer(added))?),
        Arg::Pointer(engine.pointer(&out)?),
    ];
    let arguments: Vec<Arg> = pointers.into_iter().chain(deal.sizes()).collect();
    let grid = deal.grid((deal.rows + 1) * deal.channels * MOMENTS);
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe { engine.launch(("group_moments", x.dtype(), deal.width), grid, &arguments)? };
    Ok(out)
}

/// See [`super::super::group_norm`]; `added` (batch, channels) is added to every pixel first.
pub(in super::super) fn group_norm(
    x: &Tensor,
    added: Option<&Tensor>,
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    (eps, silu): (f64, bool),
    statistics: Option<&[f32]>,
) -> Result<Tensor> {
    let engine = Engine::of(x)?;
    let x = engine.packed(&channels_last(x)?)?;
    let deal = Deal::of(&x, groups)?;
    let added = added.map(|added| engine.packed(added)).transpose()?;
    if added.as_ref().is_some_and(|added| added.dims() != [deal.batch, deal.channels]) {
        bail!("a shift of another shape than {}x{}", deal.batch, deal.channels);
    }
    let given = statistics.map(|given| Tensor::from_slice(given, given.len(), x.device())).transpose()?;
    if given.as_ref().is_some_and(|given| given.elem_count() != 2 * groups) {
        bail!("statistics of another number of groups than {groups}");
    }
    let (statistics, stride) = match given {
        Some(given) => (given, 0),
        None => (own_statistics(&engine, &x, added.as_ref(), &deal)?, 2 * groups),
    };
    let (weight, bias) = (engine.packed(weight)?, engine.packed(bias)?);
    let out = engine.empty(x.dtype(), x.dims())?;
    let pointers = [
        Arg::Pointer(engine.pointer(&x)?),
        Arg::Pointer(added.as_ref().map_or(Ok(0), |added| engine.pointer(added))?),
        Arg::Pointer(engine.pointer(&statistics)?),
        Arg::Pointer(engine.pointer(&weight)?),
        Arg::Pointer(engine.pointer(&bias)?),
        Arg::Pointer(engine.pointer(&out)?),
    ];
    let rest = [Arg::Int(stride as i32), Arg::Float(eps as f32), Arg::Int(i32::from(silu))];
    let deal = deal.apart();
    let arguments: Vec<Arg> = pointers.into_iter().chain(deal.sizes()).chain(rest).collect();
    let grid = deal.grid(2 * deal.channels * size_of::<f32>());
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe { engine.launch(("group_norm", x.dtype(), deal.width), grid, &arguments)? };
    out.permute((0, 3, 1, 2))
}

/// Mean and variance of every group: (batch, groups, 2), f32.
fn own_statistics(engine: &Engine, x: &Tensor, added: Option<&Tensor>, deal: &Deal) -> Result<Tensor> {
    let moments = moments(engine, x, added, deal)?;
    let out = engine.empty(DType::F32, &[deal.batch, deal.groups, 2])?;
    let sizes = [deal.pixels, deal.channels / deal.groups, deal.runs(), deal.per_run];
    let pointers = [Arg::Pointer(engine.pointer(&moments)?), Arg::Pointer(engine.pointer(&out)?)];
    let arguments: Vec<Arg> = pointers.into_iter().chain(sizes.map(|n| Arg::Int(n as i32))).collect();
    let grid = Grid { blocks: (deal.groups, deal.batch), threads: 32, shared: 0 };
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe { engine.launch(("group_statistics", DType::F32, 1), grid, &arguments)? };
    Ok(out)
}

/// See [`super::super::group_statistics`].
pub(in super::super) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    let engine = Engine::of(x)?;
    let x = engine.packed(&channels_last(x)?)?;
    let deal = Deal::of(&x, groups)?;
    let moments = super::super::values(&moments(&engine, &x, None, &deal)?)?;
    let per_group = (deal.channels / groups) as f64;
    let count = |run: usize| deal.per_run.min(deal.pixels - run * deal.per_run) as f64 * per_group;
    let all = deal.pixels as f64 * per_group;
    let of_group = |of_group: &[f32]| {
        let runs = of_group.as_chunks::<2>().0.iter().enumerate();
        let runs = runs.map(|(run, [mean, squares])| (count(run), f64::from(*mean), f64::from(*squares)));
        let mean = runs.clone().map(|(n, mean, _)| n * mean).sum::<f64>() / all;
        let squares = runs.map(|(n, m, squares)| squares + n * (m - mean).powi(2)).sum::<f64>();
        [mean as f32, (squares / all) as f32]
    };
    Ok(moments.chunks_exact(2 * deal.runs()).flat_map(of_group).collect())
}

/// See [`super::super::layer_norm`].
pub(in super::super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let engine = Engine::of(x)?;
    let (x, weight, bias) = (engine.packed(x)?, engine.packed(weight)?, engine.packed(bias)?);
    let columns = x.dims().last().copied().unwrap_or(1);
    let rows = x.elem_count() / columns.max(1);
    let out = engine.empty(x.dtype(), x.dims())?;
    let arguments = [
        Arg::Pointer(engine.pointer(&x)?),
        Arg::Pointer(engine.pointer(&weight)?),
        Arg::Pointer(engine.pointer(&bias)?),
        Arg::Pointer(engine.pointer(&out)?),
        Arg::Long(rows as i64),
        Arg::Int(columns as i32),
        Arg::Float(eps as f32),
    ];
    let grid = Grid { blocks: (rows.div_ceil(ROWS), 1), threads: 32 * ROWS, shared: 0 };
    // SAFETY: the kernel's arguments, with tensors of their sizes.
    unsafe {
        engine.launch(("layer_norm", x.dtype(), width(x.dtype(), &[columns])), grid, &arguments)?;
    }
    Ok(out)
}
