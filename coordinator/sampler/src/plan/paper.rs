//! The published covering: draw a pending pixel, centre a window on it, repeat.

use super::{Draws, Geometry};

/// The windows of one step as (top, left), in order.
pub(super) fn windows(geometry: Geometry, draws: &mut Draws) -> Vec<(usize, usize)> {
    let Geometry { canvas, window, .. } = geometry;
    let mut pending = Pending::new(canvas.height, canvas.width);
    let mut windows = Vec::new();
    while pending.total > 0 {
        let (row, column) = pending.nth(draws.below(pending.total as u64) as usize);
        let top = row.saturating_sub(window.height / 2).min(canvas.height - window.height);
        let left = column.saturating_sub(window.width / 2).min(canvas.width - window.width);
        pending.clear(top, left, window.height, window.width);
        windows.push((top, left));
    }
    windows
}

/// Which pixels are pending, as a bit each, with a count per row.
struct Pending {
    words_per_row: usize,
    bits: Vec<u64>,
    per_row: Vec<usize>,
    total: usize,
}

impl Pending {
    fn new(height: usize, width: usize) -> Self {
        let words_per_row = width.div_ceil(64);
        let mut row = vec![u64::MAX; words_per_row];
        if !width.is_multiple_of(64) {
            row[words_per_row - 1] = (1 << (width % 64)) - 1;
        }
        Self { words_per_row, bits: row.repeat(height), per_row: vec![width; height], total: height * width }
    }

    /// Row and column of the n-th pending pixel in raster order.
    fn nth(&self, mut n: usize) -> (usize, usize) {
        let row = self.per_row.iter().position(|&count| {
            let here = n < count;
            n -= if here { 0 } else { count };
            here
        });
        let row = row.expect("n is below the total");
        for (i, &word) in self.bits[row * self.words_per_row..][..self.words_per_row].iter().enumerate() {
            let count = word.count_ones() as usize;
            if n < count {
                let rest = (0..n).fold(word, |w, _| w & (w - 1));
                return (row, i * 64 + rest.trailing_zeros() as usize);
            }
            n -= count;
        }
        unreachable!("a row's count is the number of its bits")
    }

    fn clear(&mut self, top: usize, left: usize, height: usize, width: usize) {
        for row in top..top + height {
            let words = &mut self.bits[row * self.words_per_row..][..self.words_per_row];
            let mut cleared = 0;
            for (i, word) in words.iter_mut().enumerate().take((left + width).div_ceil(64)).skip(left / 64) {
                let from = left.saturating_sub(i * 64).min(64);
                let to = (left + width - i * 64).min(64);
                let low = |n: usize| if n == 64 { u64::MAX } else { (1 << n) - 1 };
                let mask = low(to) & !low(from);
                cleared += (*word & mask).count_ones() as usize;
                *word &= !mask;
            }
            self.per_row[row] -= cleared;
            self.total -= cleared;
        }
    }
}
