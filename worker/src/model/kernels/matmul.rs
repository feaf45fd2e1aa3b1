//! Products of strided matrices, on one thread, into a part of a larger array.
//!
//! The `gemm` crate cuts long sums where the CPU's caches suggest, which would make the bytes of a
//! result depend on the machine. It never cuts sums of at most 512 terms, so longer ones are cut
//! here, always at multiples of 512.
//!
//! Unsafe code: raw pointers, because tiles of one output, written by several threads, are not
//! contiguous slices. Bounds are checked before every product.
#![allow(unsafe_code)]

use gemm::{Parallelism, gemm};

/// Terms of the longest sum that is never cut on any CPU.
pub(super) const LONGEST: usize = 512;

/// A matrix of f32 within a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The matrix whose element (i, j) is `data[i * row_stride + j * column_stride]`.
    pub(super) fn new(data: &'a [f32], row_stride: usize, column_stride: usize) -> Self {
        Self { data, row_stride, column_stride }
    }

    fn covers(&self, rows: usize, columns: usize) -> bool {
        last(rows, columns, self.row_stride, self.column_stride).is_some_and(|l| l < self.data.len())
    }
}

/// Index of the last element of a matrix; `None` where it has no elements or the index overflows.
fn last(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Option<usize> {
    let down = rows.checked_sub(1)?.checked_mul(row_stride)?;
    let right = columns.checked_sub(1)?.checked_mul(column_stride)?;
    down.checked_add(right)
}

/// An output that several threads write to, each its own elements.
pub(super) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Shared` is an exclusive borrow of a slice cut into tiles. It only hands out access
// through the unsafe functions below, whose callers promise that threads touch disjoint elements.
unsafe impl Sync for Shared<'_> {}

/// A tile of a [`Shared`] output: element (i, j) is at `offset + i row_stride + j column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) offset: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> Shared<'a> {
    /// Shares `out` for as long as it is borrowed.
    pub(super) fn new(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), length: out.len(), life: std::marker::PhantomData }
    }

    /// Runs `f` on the run of `length` elements at `offset`.
    ///
    /// # Safety
    /// No other thread may touch these elements during the call.
    pub(super) unsafe fn run(&self, offset: usize, length: usize, f: impl FnOnce(&mut [f32])) {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "a run beyond the output");
        // SAFETY: in bounds by the assertion, of the borrow held in `life`, and unshared by the
        // caller's promise.
        f(unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), length) });
    }

    /// `tile = a b`, or `tile += a b` where `accumulate` is set; `depth` is the number of columns of
    /// `a` and rows of `b`.
    ///
    /// # Safety
    /// No other thread may touch the tile's elements during the call.
    pub(super) unsafe fn multiply(
        &self,
        tile: Tile,
        accumulate: bool,
        a: Matrix<'_>,
        b: Matrix<'_>,
        depth: usize,
    ) {
        let Tile { offset, rows, columns, row_stride, column_stride } = tile;
        let end = last(rows, columns, row_stride, column_stride).and_then(|l| l.checked_add(offset));
        assert!(end.is_some_and(|l| l < self.length), "a product beyond the output");
        assert!(a.covers(rows, depth) && b.covers(depth, columns), "a product beyond its factors");
        for k in (0..depth).step_by(LONGEST) {
            let terms = LONGEST.min(depth - k);
            // SAFETY: the assertions above have checked the last element of all three matrices,
            // strides are not negative, so every element in between is in bounds too; the output is
            // borrowed exclusively and unshared by the caller's promise.
            unsafe {
                gemm(
                    rows,
                    columns,
                    terms,
                    self.start.add(offset),
                    column_stride as isize,
                    row_stride as isize,
                    accumulate || k > 0,
                    a.data.as_ptr().add(k * a.column_stride),
                    a.column_stride as isize,
                    a.row_stride as isize,
                    b.data.as_ptr().add(k * b.row_stride),
                    b.column_stride as isize,
                    b.row_stride as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        }
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

    #[test]
    fn long_sums_and_strides() {
        let (m, n, k) = (3, 5, 1100);
        let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 5) as f32 - 2.0).collect();
        let mut out = vec![1f32; m * n];
        let shared = Shared::new(&mut out);
        let tile = Tile { offset: 0, rows: m, columns: n, row_stride: 1, column_stride: m };
        // SAFETY: one thread.
        unsafe { shared.multiply(tile, true, Matrix::new(&a, k, 1), Matrix::new(&b, 1, k), k) };
        for i in 0..m {
            for j in 0..n {
                let exact: f32 = 1.0 + (0..k).map(|t| a[i * k + t] * b[j * k + t]).sum::<f32>();
                assert_eq!(out[j * m + i], exact);
            }
        }
    }

    #[test]
    #[should_panic(expected = "beyond its factors")]
    fn bounds_are_checked() {
        let mut out = vec![0f32; 4];
        let shared = Shared::new(&mut out);
        let tile = Tile { offset: 0, rows: 2, columns: 2, row_stride: 2, column_stride: 1 };
        let short = [0f32; 3];
        // SAFETY: one thread; panics before anything is touched.
        unsafe { shared.multiply(tile, false, Matrix::new(&short, 2, 1), Matrix::new(&short, 2, 1), 2) };
    }
}
