//! Products of activations with weights, [block](super::block) by block.
//!
//! Weights are packed once: a panel has up to [`WIDTH`] output columns, one row of it per input. Rows of
//! activations are read where they lie. Every element is summed in the order of its inputs, in runs of at
//! most [`RUN`] fused multiply-adds: the same bytes for any number of rows, threads, and vector lanes.
//!
//! Weights in bf16 are multiplied as they are where the CPU can: then activations are rounded to bf16 too, which is a
//! numeric class of its own.
//!
//! Unsafe code: aligned memory, and results that several threads write.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::block::{ROWS, RUN, WIDTH, block, block_of_pairs};
use super::simd::{Isa, LANES};

/// 64 bytes, so aligned that a vector never lies in two lines of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line<T>([T; LANES]);

/// Values of 4 bytes in aligned memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Aligned<T = f32>(Vec<Line<T>>);

impl<T: Copy + Default> Aligned<T> {
    const SIZE: () = assert!(size_of::<Line<T>>() == LANES * size_of::<T>(), "lines have no padding");

    /// So many zeros.
    pub(super) fn zeros(length: usize) -> Self {
        const { Self::SIZE };
        Self(vec![Line([T::default(); LANES]); length.div_ceil(LANES)])
    }

    /// At least so many values; what is new is zero.
    pub(super) fn grow(&mut self, length: usize) {
        if self.0.len() < length.div_ceil(LANES) {
            self.0.resize(length.div_ceil(LANES), Line([T::default(); LANES]));
        }
    }

    pub(super) fn values(&self) -> &[T] {
        const { Self::SIZE };
        // SAFETY: a `Line` is 16 values without padding, so the vector's lines are that many values.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }

    pub(super) fn values_mut(&mut self) -> &mut [T] {
        const { Self::SIZE };
        // SAFETY: as in `values`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}

/// Columns of one panel: where they begin and how many there are, with and without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panel {
    pub(super) first: usize,
    pub(super) columns: usize,
    pub(super) width: usize,
    offset: usize,
}

/// Cuts `columns` into panels for so many inputs each.
pub(super) fn panels(columns: usize, inputs: usize) -> impl Iterator<Item = Panel> + Clone {
    (0..columns.div_ceil(WIDTH)).map(move |i| {
        let first = i * WIDTH;
        let columns = WIDTH.min(columns - first);
        Panel { first, columns, width: columns.next_multiple_of(LANES), offset: first * inputs }
    })
}

/// Values that all panels need.
pub(super) fn packed_length(columns: usize, inputs: usize) -> usize {
    columns.next_multiple_of(LANES) * inputs
}

/// Packs a panel of a matrix whose element (input, column) is `source[input rows + column columns]`.
pub(super) fn pack(out: &mut [f32], panel: Panel, source: &[f32], rows: usize, columns: usize) {
    for (input, line) in out.chunks_exact_mut(panel.width).enumerate() {
        for (column, o) in line[..panel.columns].iter_mut().enumerate() {
            *o = source[input * rows + (panel.first + column) * columns];
        }
        line[panel.columns..].fill(0.0);
    }
}

#[derive(Debug, Clone)]
enum Store {
    F32(Aligned),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// Rows of two inputs each, whose values of a column lie side by side: the first in the low half.
    Pairs(Aligned<u32>),
}

/// The weights of a layer in panels: `inputs` rows, `columns` columns.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub(super) inputs: usize,
    pub(super) columns: usize,
    store: Store,
}

/// What weights come as.
pub(super) enum Source<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Packed {
    /// Packs the weights whose value for (input, column) is `source[index(input, column)]`, or zero. Products take
    /// `depth` inputs at a time.
    pub(super) fn new(
        source: &Source<'_>,
        (inputs, columns): (usize, usize),
        depth: usize,
        index: impl Fn(usize, usize) -> Option<usize> + Sync,
    ) -> Self {
        use rayon::prelude::*;
        fn fill<T: Copy + Default + Send + Sync>(
            out: &mut [T],
            source: &[T],
            (inputs, columns): (usize, usize),
            index: impl Fn(usize, usize) -> Option<usize> + Sync,
        ) {
            out.par_chunks_mut(WIDTH * inputs).zip(panels(columns, inputs).collect::<Vec<_>>()).for_each(
                |(out, panel)| {
                    for (input, line) in out.chunks_exact_mut(panel.width).enumerate() {
                        for (column, o) in line[..panel.columns].iter_mut().enumerate() {
                            *o = index(input, panel.first + column).map_or(T::default(), |i| source[i]);
                        }
                    }
                },
            );
        }
        let (size, length) = ((inputs, columns), packed_length(columns, inputs));
        let store = match source {
            Source::F32(source) => {
                let mut out = Aligned::zeros(length);
                fill(&mut out.values_mut()[..length], source, size, index);
                Store::F32(out)
            }
            Source::F16(source) => {
                let mut out = vec![f16::ZERO; length];
                fill(&mut out, source, size, index);
                Store::F16(out)
            }
            Source::Bf16(source) if Isa::best().has_bf16() && depth.is_multiple_of(2) => {
                let mut out = Aligned::zeros(length / 2);
                out.values_mut()[..length / 2]
                    .par_chunks_mut(WIDTH * inputs / 2)
                    .zip(panels(columns, inputs).collect::<Vec<_>>())
                    .for_each(|(out, panel)| {
                        for (pair, line) in out.chunks_exact_mut(panel.width).enumerate() {
                            for (column, o) in line[..panel.columns].iter_mut().enumerate() {
                                let [low, high] = [0, 1].map(|i| {
                                    let at = index(2 * pair + i, panel.first + column);
                                    u32::from(at.map_or(0, |at| source[at].to_bits()))
                                });
                                *o = high << 16 | low;
                            }
                        }
                    });
                Store::Pairs(out)
            }
            Source::Bf16(source) => {
                let mut out = vec![bf16::ZERO; length];
                fill(&mut out, source, size, index);
                Store::Bf16(out)
            }
        };
        Self { inputs, columns, store }
    }

    pub(super) fn panels(&self) -> impl Iterator<Item = Panel> + Clone {
        panels(self.columns, self.inputs)
    }

    /// [`Packed::rows`] where they are kept in f32, as they lie.
    pub(super) fn rows_in_place(&self, panel: Panel, input: usize, count: usize) -> Option<&[f32]> {
        let range = panel.offset + input * panel.width..panel.offset + (input + count) * panel.width;
        match &self.store {
            Store::F32(values) => Some(&values.values()[range]),
            Store::F16(_) | Store::Bf16(_) | Store::Pairs(_) => None,
        }
    }

    /// [`Packed::rows`] as pairs, where they are kept so.
    pub(super) fn pairs(&self, panel: Panel, input: usize, count: usize) -> Option<&[u32]> {
        let Store::Pairs(values) = &self.store else { return None };
        let start = panel.offset + input * panel.width;
        Some(&values.values()[start / 2..(start + count * panel.width) / 2])
    }

    /// So many rows of a panel from `input` on; `wide` holds them where they are kept in half precision.
    pub(super) fn rows<'a>(
        &'a self,
        panel: Panel,
        input: usize,
        count: usize,
        wide: &'a mut Aligned,
    ) -> &'a [f32] {
        let range = panel.offset + input * panel.width..panel.offset + (input + count) * panel.width;
        let length = range.len();
        match &self.store {
            Store::F32(values) => return &values.values()[range],
            Store::F16(values) => {
                wide.grow(length);
                half::slice::HalfFloatSliceExt::convert_to_f32_slice(
                    &values[range],
                    &mut wide.values_mut()[..length],
                );
            }
            Store::Bf16(values) => {
                wide.grow(length);
                half::slice::HalfFloatSliceExt::convert_to_f32_slice(
                    &values[range],
                    &mut wide.values_mut()[..length],
                );
            }
            Store::Pairs(_) => {
                wide.grow(length);
                let pairs = self.pairs(panel, input, count).expect("of this kind");
                let lines = wide.values_mut()[..length].chunks_exact_mut(2 * panel.width);
                for (line, pairs) in lines.zip(pairs.chunks_exact(panel.width)) {
                    let (first, second) = line.split_at_mut(panel.width);
                    for ((first, second), pair) in first.iter_mut().zip(second).zip(pairs) {
                        *first = f32::from_bits(pair << 16);
                        *second = f32::from_bits(pair & 0xffff_0000);
                    }
                }
            }
        }
        &wide.values()[..length]
    }
}

/// Rows of a task, at most and at least where there are many.
const TILE: (usize, usize) = (192, 48);

/// Multiplies `count` rows with packed weights whose inputs come in so many `taps` of equal length:
/// `row(r, tap)` are the activations, `finish(r, panel, sums)` takes a row's results for a panel. Tasks
/// run on all threads; how rows and panels are shared out does not show in the results.
pub(super) fn multiply<'a>(
    packed: &Packed,
    taps: usize,
    count: usize,
    row: impl Fn(usize, usize) -> &'a [f32] + Sync,
    finish: impl Fn(usize, Panel, &mut [f32]) + Sync,
) {
    use rayon::prelude::*;
    let isa = Isa::best();
    let panels: Vec<Panel> = packed.panels().collect();
    let (mut tile, mut groups) = (TILE.0, 1);
    let wanted = 3 * rayon::current_num_threads();
    while wanted > 3 && count.div_ceil(tile) * groups < wanted {
        match (tile > TILE.1, groups < panels.len()) {
            (true, _) => tile /= 2,
            (false, true) => groups = (2 * groups).min(panels.len()),
            (false, false) => break,
        }
    }
    let (per_group, groups) = parts(panels.len(), panels.len().div_ceil(groups));
    let depth = packed.inputs / taps;
    assert!(depth > 0 && depth * taps == packed.inputs, "{taps} taps of {} inputs", packed.inputs);
    (0..count.div_ceil(tile) * groups).into_par_iter().for_each_init(
        || (Aligned::default(), Aligned::default()),
        |(sums, wide), task| {
            let first = task / groups * tile;
            let rows = tile.min(count - first);
            sums.grow(rows * WIDTH);
            let sums = sums.values_mut();
            for panel in panels.iter().skip(task % groups * per_group).take(per_group) {
                for (tap, start) in (0..taps).flat_map(|t| (0..depth).step_by(RUN).map(move |s| (t, s))) {
                    let run = RUN.min(depth - start);
                    let pairs = packed.pairs(*panel, tap * depth + start, run);
                    let values = match pairs {
                        Some(_) => &[],
                        None => packed.rows(*panel, tap * depth + start, run, wide),
                    };
                    for r in (0..rows).step_by(ROWS) {
                        let mut slices = [&[][..]; ROWS];
                        let some = ROWS.min(rows - r);
                        for (i, slice) in slices[..some].iter_mut().enumerate() {
                            *slice = &row(first + r + i, tap)[start..start + run];
                        }
                        let (slices, out) = (&slices[..some], &mut sums[r * WIDTH..]);
                        let (width, accumulate) = (panel.width, tap + start > 0);
                        match pairs {
                            Some(pairs) => block_of_pairs(isa, slices, pairs, width, out, WIDTH, accumulate),
                            None => block(isa, slices, values, width, out, WIDTH, accumulate),
                        }
                    }
                }
                for r in 0..rows {
                    finish(first + r, *panel, &mut sums[r * WIDTH..][..panel.width]);
                }
            }
        },
    );
}

/// Values of a result, which several threads write, each its own elements. Memory is not cleared first.
pub(super) struct Output {
    values: Vec<f32>,
    start: *mut f32,
    length: usize,
    /// Elements written. Counted where it costs nobody anything: threads would wait for each other.
    #[cfg(debug_assertions)]
    written: std::sync::atomic::AtomicUsize,
}

// SAFETY: an `Output` owns its memory and only hands out access through `write`, whose callers promise that
// threads write disjoint elements.
unsafe impl Sync for Output {}

impl Output {
    /// Of so many values.
    pub(super) fn new(length: usize) -> Self {
        let mut values = Vec::with_capacity(length);
        Self {
            start: values.as_mut_ptr(),
            values,
            length,
            #[cfg(debug_assertions)]
            written: Default::default(),
        }
    }

    /// Writes the elements from `offset` on.
    ///
    /// # Safety
    /// Nobody else may write these elements at the same time.
    pub(super) unsafe fn write(&self, offset: usize, values: &[f32]) {
        let end = offset.checked_add(values.len());
        assert!(end.is_some_and(|end| end <= self.length), "a run beyond the output");
        #[cfg(debug_assertions)]
        self.written.fetch_add(values.len(), std::sync::atomic::Ordering::Relaxed);
        // SAFETY: in bounds by the assertion, of memory that `self` owns, unshared by the caller's promise.
        unsafe { self.start.add(offset).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// The values.
    ///
    /// # Safety
    /// Every element has been written.
    pub(super) unsafe fn finish(mut self) -> Vec<f32> {
        #[cfg(debug_assertions)]
        assert_eq!(*self.written.get_mut(), self.length, "elements written once each");
        // SAFETY: the capacity is `length` at least, and all of it was written by the caller's promise.
        unsafe { self.values.set_len(self.length) };
        self.values
    }
}

/// Cuts `n` into the fewest parts of at most `most`, as equal as possible: (part length, parts).
pub(super) fn parts(n: usize, most: usize) -> (usize, usize) {
    let count = n.div_ceil(most).max(1);
    let length = n.div_ceil(count).max(1);
    (length, n.div_ceil(length).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_without_a_remnant() {
        for n in 1..2000 {
            let (length, count) = parts(n, 128);
            assert!(length <= 128 && length * count >= n && length * (count - 1) < n);
        }
        assert_eq!(parts(129, 128), (65, 2));
    }
}
