//! What stays in the CPU's registers of a product: a few rows of activations with up to 64 columns of weights.
//!
//! Every element is summed in the order of its inputs: the same bytes for any number of rows and vector lanes.
//!
//! Unsafe code: vector loads and stores through pointers, and the call of functions compiled for
//! instructions beyond the baseline. Bounds are checked before every block.
#![allow(unsafe_code)]

use super::simd::{Isa, LANES, Set, fma};

/// Columns of a panel, at most; panels are padded to a multiple of [`LANES`].
pub(super) const WIDTH: usize = 64;
/// Rows of a block, at most.
pub(super) const ROWS: usize = 6;
/// Inputs that are summed up before the sum is rounded into the result, at most.
pub(super) const RUN: usize = 512;

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
pub(super) fn block_of_pairs(
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

/// Sixteen columns of a row at a time, for the compiler to vectorise.
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

    /// Calls `$kernel`, whose vectors are of 16 columns, with as many rows and columns as there are.
    macro_rules! for_shape {
        ($kernel:ident, $width:expr, $rows:expr, $($arg:expr),*) => {
            match $width / 16 {
                4 => for_rows!($kernel, 4, $rows, $($arg),*),
                3 => for_rows!($kernel, 3, $rows, $($arg),*),
                2 => for_rows!($kernel, 2, $rows, $($arg),*),
                _ => for_rows!($kernel, 1, $rows, $($arg),*),
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
            for_shape!(paired, width, rows, from, size, to, stride, accumulate);
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
            for_shape!(wide, width, rows, from, size, to, stride, accumulate);
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::product::{Aligned, Packed, Source};
    use super::*;

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
