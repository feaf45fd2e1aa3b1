//! Products of activations with weights, in blocks of a few rows and up to 64 columns that stay in the
//! CPU's registers.
//!
//! Weights are packed once: a panel has up to [`WIDTH`] output columns, one row of it per input. Rows of
//! activations are read where they lie. Every element is summed in the order of its inputs, in runs of at
//! most [`RUN`] fused multiply-adds: the same bytes for any number of rows, threads, and vector lanes.
//!
//! Weights in bf16 are multiplied as they are, two inputs in one instruction, where the CPU can: then activations are
//! rounded to bf16 too, which is a numeric class of its own.
//!
//! Unsafe code: vector loads and stores through pointers, and the call of functions compiled for
//! instructions beyond the baseline. Bounds are checked before every block.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::simd::{Isa, Set, fma};

/// Columns of a panel, at most.
pub(super) const WIDTH: usize = 64;
/// Rows of a block, at most.
pub(super) const ROWS: usize = 6;
/// Inputs that are summed up before the sum is rounded into the result, at most.
pub(super) const RUN: usize = 512;
/// Panels are padded to a multiple of this.
const LANES: usize = 16;

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

    /// The same where they are kept in f32, as they lie.
    pub(super) fn rows_in_place(&self, panel: Panel, input: usize, count: usize) -> Option<&[f32]> {
        let range = panel.offset + input * panel.width..panel.offset + (input + count) * panel.width;
        match &self.store {
            Store::F32(values) => Some(&values.values()[range]),
            Store::F16(_) | Store::Bf16(_) | Store::Pairs(_) => None,
        }
    }

    /// The same of pairs, where they are kept so.
    fn pairs(&self, panel: Panel, input: usize, count: usize) -> Option<&[u32]> {
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

/// `out = rows panel`, or `out += rows panel` where `accumulate` is set: row r of up to [`ROWS`] slices of
/// one length, the panel's rows for as many inputs, `width` columns (a multiple of 16, up to 64). Row r of
/// the result is at `out[r stride..]`.
pub(super) fn block(
    isa: Isa,
    rows: &[&[f32]],
    panel: &[f32],
    width: usize,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let depth = panel.len() / width;
    assert!(!rows.is_empty() && rows.len() <= ROWS && rows.iter().all(|r| r.len() >= depth));
    assert!(width <= WIDTH && width.is_multiple_of(LANES) && panel.len() == depth * width);
    assert!(stride >= width && (rows.len() - 1) * stride + width <= out.len());
    match isa.set() {
        // SAFETY: the `Isa` vouches for the instructions, the assertions for the bounds.
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { x86::avx512(rows, panel, width, out, stride, accumulate) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { x86::avx2(rows, panel, width, out, stride, accumulate) },
        Set::Baseline => baseline(rows, panel, width, out, stride, accumulate),
    }
}

/// [`block`] with pairs of bf16: rows are rounded to bf16 (to the nearest, numbers below 2^-126 to zero), sums are f32.
/// Each adds the products of a pair's second values, then those of its first.
fn block_of_pairs(
    isa: Isa,
    rows: &[&[f32]],
    panel: &[u32],
    width: usize,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let depth = 2 * (panel.len() / width);
    assert!(isa.has_bf16() && depth <= RUN);
    assert!(!rows.is_empty() && rows.len() <= ROWS && rows.iter().all(|r| r.len() >= depth));
    assert!(width <= WIDTH && width.is_multiple_of(LANES) && panel.len() == depth / 2 * width);
    assert!(stride >= width && (rows.len() - 1) * stride + width <= out.len());
    // SAFETY: the `Isa` vouches for the instructions, the assertions for the bounds.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        x86::pairs(rows, panel, width, out, stride, accumulate);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (panel, out, accumulate);
}

/// Four rows and sixteen columns at a time, for the compiler to vectorise.
fn baseline(rows: &[&[f32]], panel: &[f32], width: usize, out: &mut [f32], stride: usize, accumulate: bool) {
    const FUSED: bool = cfg!(target_arch = "aarch64");
    for (r, row) in rows.iter().enumerate() {
        for column in (0..width).step_by(LANES) {
            let mut sums = [0f32; LANES];
            for (a, line) in row.iter().zip(panel.chunks_exact(width)) {
                for (sum, b) in sums.iter_mut().zip(&line[column..column + LANES]) {
                    *sum = fma::<FUSED>(*a, *b, *sum);
                }
            }
            for (o, sum) in out[r * stride + column..][..LANES].iter_mut().zip(sums) {
                *o = if accumulate { *o + sum } else { sum };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    macro_rules! kernel {
        ($name:ident, $feature:literal, $vector:ty, $lanes:literal,
         $zero:ident, $load:ident, $store:ident, $set:ident, $fma:ident, $add:ident) => {
            /// `M` rows and `N` vectors of columns.
            ///
            /// # Safety
            /// The CPU has the instructions; there are `M` rows of `depth` values, as many rows of the
            /// panel, `width` apart, and `M` rows of the output, `stride` apart, each of `N` vectors.
            #[target_feature(enable = $feature)]
            unsafe fn $name<const M: usize, const N: usize>(
                rows: [*const f32; M],
                mut panel: *const f32,
                (depth, width): (usize, usize),
                out: *mut f32,
                stride: usize,
                accumulate: bool,
            ) {
                // SAFETY: all pointers stay within what the caller promises.
                unsafe {
                    let mut sums = [[$zero(); N]; M];
                    for k in 0..depth {
                        let mut b = [$zero(); N];
                        for j in 0..N {
                            b[j] = $load(panel.add($lanes * j));
                        }
                        for i in 0..M {
                            let a = $set(*rows[i].add(k));
                            for j in 0..N {
                                sums[i][j] = $fma(a, b[j], sums[i][j]);
                            }
                        }
                        panel = panel.add(width);
                    }
                    for i in 0..M {
                        for j in 0..N {
                            let to = out.add(i * stride + $lanes * j);
                            let sum = if accumulate { $add($load(to), sums[i][j]) } else { sums[i][j] };
                            $store(to, sum);
                        }
                    }
                }
            }
        };
    }
    kernel!(
        wide,
        "avx512f",
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps
    );
    kernel!(
        narrow,
        "avx2,fma",
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps
    );

    /// Calls `$kernel` with as many rows as there are.
    macro_rules! for_rows {
        ($kernel:ident, $vectors:literal, $rows:expr, $($arg:expr),*) => {
            match $rows.len() {
                6 => $kernel::<6, $vectors>(pointers($rows), $($arg),*),
                5 => $kernel::<5, $vectors>(pointers($rows), $($arg),*),
                4 => $kernel::<4, $vectors>(pointers($rows), $($arg),*),
                3 => $kernel::<3, $vectors>(pointers($rows), $($arg),*),
                2 => $kernel::<2, $vectors>(pointers($rows), $($arg),*),
                _ => $kernel::<1, $vectors>(pointers($rows), $($arg),*),
            }
        };
    }

    /// Sixteen pairs.
    ///
    /// # Safety
    /// The CPU has the instructions, and there are sixteen.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn paired_bits(from: *const u32) -> __m512bh {
        // SAFETY: the caller's promise; both are 512 bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }

    /// `M` rows and `N` vectors of columns, of pairs of bf16.
    ///
    /// # Safety
    /// As for `wide`, with pairs for values.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn paired<const M: usize, const N: usize>(
        rows: [*const u32; M],
        mut panel: *const u32,
        (depth, width): (usize, usize),
        out: *mut f32,
        stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: all pointers stay within what the caller promises; vectors of the same size are the same bits.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); N]; M];
            for k in 0..depth {
                let b: [__m512bh; N] = std::array::from_fn(|j| paired_bits(panel.add(16 * j)));
                for i in 0..M {
                    let a = _mm512_set1_epi32((*rows[i].add(k)).cast_signed());
                    let a = std::mem::transmute::<__m512i, __m512bh>(a);
                    for j in 0..N {
                        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], a, b[j]);
                    }
                }
                panel = panel.add(width);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    let to = out.add(i * stride + 16 * j);
                    let sum = if accumulate { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }

    /// Rounds values to bf16.
    ///
    /// # Safety
    /// The CPU has the instructions, and there is room for as many values as are read.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn round(from: &[f32], to: *mut u32) {
        for start in (0..from.len()).step_by(16) {
            let some = (from.len() - start).min(16);
            let mask = ((1u32 << some) - 1) as u16;
            // SAFETY: the mask keeps to what there is.
            unsafe {
                let values = _mm512_maskz_loadu_ps(mask, from.as_ptr().add(start));
                let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
                _mm256_mask_storeu_epi16(to.cast::<i16>().add(start), mask, rounded);
            }
        }
    }

    /// See [`super::block_of_pairs`], which checks the bounds.
    ///
    /// # Safety
    /// The CPU has AVX-512 with BF16, and the assertions of `block_of_pairs` hold.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn pairs(
        rows: &[&[f32]],
        panel: &[u32],
        width: usize,
        out: &mut [f32],
        stride: usize,
        accumulate: bool,
    ) {
        const PAIRS: usize = super::RUN / 2;
        let depth = panel.len() / width;
        let mut rounded = [[0u32; PAIRS]; super::ROWS];
        for (row, to) in rows.iter().zip(&mut rounded) {
            // SAFETY: `PAIRS` is what there may be at most.
            unsafe { round(&row[..2 * depth], to.as_mut_ptr()) };
        }
        let all: [&[u32]; super::ROWS] = std::array::from_fn(|i| &rounded[i][..]);
        let rows = &all[..rows.len()];
        let (size, from, to) = ((depth, width), panel.as_ptr(), out.as_mut_ptr());
        // SAFETY: the caller's promise.
        unsafe {
            match width / 16 {
                4 => for_rows!(paired, 4, rows, from, size, to, stride, accumulate),
                3 => for_rows!(paired, 3, rows, from, size, to, stride, accumulate),
                2 => for_rows!(paired, 2, rows, from, size, to, stride, accumulate),
                _ => for_rows!(paired, 1, rows, from, size, to, stride, accumulate),
            }
        }
    }

    fn pointers<T, const M: usize>(rows: &[&[T]]) -> [*const T; M] {
        std::array::from_fn(|i| rows[i].as_ptr())
    }

    /// See [`super::block`], which checks the bounds.
    ///
    /// # Safety
    /// The CPU has AVX-512F, and the assertions of `block` hold.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(
        rows: &[&[f32]],
        panel: &[f32],
        width: usize,
        out: &mut [f32],
        stride: usize,
        accumulate: bool,
    ) {
        let (size, from, to) = ((panel.len() / width, width), panel.as_ptr(), out.as_mut_ptr());
        // SAFETY: the caller's promise.
        unsafe {
            match width / 16 {
                4 => for_rows!(wide, 4, rows, from, size, to, stride, accumulate),
                3 => for_rows!(wide, 3, rows, from, size, to, stride, accumulate),
                2 => for_rows!(wide, 2, rows, from, size, to, stride, accumulate),
                _ => for_rows!(wide, 1, rows, from, size, to, stride, accumulate),
            }
        }
    }

    /// See [`super::block`], which checks the bounds.
    ///
    /// # Safety
    /// The CPU has AVX2 and FMA, and the assertions of `block` hold.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(
        rows: &[&[f32]],
        panel: &[f32],
        width: usize,
        out: &mut [f32],
        stride: usize,
        accumulate: bool,
    ) {
        let size = (panel.len() / width, width);
        for column in (0..width).step_by(16) {
            // SAFETY: the caller's promise; 16 columns from here on are within the width.
            unsafe {
                let (from, to) = (panel.as_ptr().add(column), out.as_mut_ptr().add(column));
                for_rows!(narrow, 2, rows, from, size, to, stride, accumulate);
            }
        }
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
}

// SAFETY: an `Output` owns its memory and only hands out access through `write`, whose callers promise that
// threads write disjoint elements.
unsafe impl Sync for Output {}

impl Output {
    /// Of so many values.
    pub(super) fn new(length: usize) -> Self {
        let mut values = Vec::with_capacity(length);
        Self { start: values.as_mut_ptr(), values, length }
    }

    /// Writes the elements from `offset` on.
    ///
    /// # Safety
    /// Nobody else may write these elements at the same time.
    pub(super) unsafe fn write(&self, offset: usize, values: &[f32]) {
        let end = offset.checked_add(values.len());
        assert!(end.is_some_and(|end| end <= self.length), "a run beyond the output");
        // SAFETY: in bounds by the assertion, of memory that `self` owns, unshared by the caller's promise.
        unsafe { self.start.add(offset).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// The values.
    ///
    /// # Safety
    /// Every element has been written.
    pub(super) unsafe fn finish(mut self) -> Vec<f32> {
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

    /// Small whole numbers: every order of summing gives the exact result.
    #[test]
    fn blocks_are_exact_on_every_instruction_set() {
        for isa in Isa::all() {
            for (rows, columns, depth) in [(1, 3, 700), (2, 16, 5), (3, 40, 64), (6, 64, 33), (5, 150, 7)] {
                let a: Vec<f32> = (0..rows * depth).map(|i| (i % 7) as f32 - 3.0).collect();
                let b: Vec<f32> = (0..depth * columns).map(|i| (i % 5) as f32 - 2.0).collect();
                let packed =
                    Packed::new(&Source::F32(&b), (depth, columns), depth, |k, c| Some(k * columns + c));
                let slices: Vec<&[f32]> = a.chunks(depth).collect();
                for panel in packed.panels() {
                    let mut out = vec![1.0; rows * WIDTH];
                    let mut wide = Aligned::default();
                    let values = packed.rows(panel, 0, depth, &mut wide);
                    block(isa, &slices, values, panel.width, &mut out, WIDTH, true);
                    for (r, c) in (0..rows).flat_map(|r| (0..panel.columns).map(move |c| (r, c))) {
                        let exact: f32 =
                            (0..depth).map(|k| a[r * depth + k] * b[k * columns + panel.first + c]).sum();
                        assert_eq!(out[r * WIDTH + c], 1.0 + exact, "{isa:?} {rows}x{columns}x{depth}");
                    }
                }
            }
        }
    }

    /// Small whole numbers are exact in bf16 too.
    #[test]
    #[allow(clippy::print_stdout)]
    fn pairs_of_bf16_are_exact() {
        let isa = Isa::best();
        if !isa.has_bf16() {
            println!("skipped: this processor has no AVX-512 BF16");
            return;
        }
        for (rows, columns, depth) in
            [(1, 3, 512), (2, 16, 6), (3, 40, 64), (4, 33, 2), (6, 64, 34), (5, 150, 18)]
        {
            let a: Vec<f32> = (0..rows * depth).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<bf16> = (0..depth * columns).map(|i| bf16::from_f32((i % 5) as f32 - 2.0)).collect();
            let packed =
                Packed::new(&Source::Bf16(&b), (depth, columns), depth, |k, c| Some(k * columns + c));
            let slices: Vec<&[f32]> = a.chunks(depth).collect();
            for panel in packed.panels() {
                let exact = |r: usize, c: usize| -> f32 {
                    (0..depth).map(|k| a[r * depth + k] * b[k * columns + panel.first + c].to_f32()).sum()
                };
                let mut out = vec![1.0; rows * WIDTH];
                let pairs = packed.pairs(panel, 0, depth).expect("kept in pairs");
                block_of_pairs(isa, &slices, pairs, panel.width, &mut out, WIDTH, true);
                let mut wide = Aligned::default();
                let values = packed.rows(panel, 0, depth, &mut wide);
                let mut widened = vec![1.0; rows * WIDTH];
                block(isa, &slices, values, panel.width, &mut widened, WIDTH, true);
                for (r, c) in (0..rows).flat_map(|r| (0..panel.columns).map(move |c| (r, c))) {
                    let got = [out[r * WIDTH + c], widened[r * WIDTH + c]];
                    assert_eq!(got, [1.0 + exact(r, c); 2], "{rows}x{columns}x{depth}");
                }
            }
        }
    }

    #[test]
    #[should_panic]
    fn bounds_are_checked() {
        block(Isa::best(), &[&[0.0; 3]], &[0.0; 64], 16, &mut [0.0; 16], 16, false);
    }
}
