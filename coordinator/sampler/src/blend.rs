//! Which pixels of a window are pending, which lie in the transition zone, which are left alone.

use super::units::Window;

/// What a patch may do to a pixel of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Not yet denoised in this step: takes the result.
    Pending,
    /// Done, but within the transition zone: becomes the mean of old and new.
    Zone,
    /// Done, and far from any pending pixel of the window: stays.
    Done,
}

/// The cells of a window, row-major. A pixel is pending unless one of the `earlier` windows of the
/// step covers it; a done pixel is in the zone when a pending pixel of the window lies within
/// Chebyshev distance `zone`.
pub fn cells(window: Window, earlier: impl Iterator<Item = Window>, zone: usize) -> Vec<Cell> {
    let mut out = Vec::new();
    Marks::default().cells(window, earlier, zone, &mut out);
    out
}

/// Room to find cells in, for windows one after the other.
#[derive(Debug, Default)]
pub struct Marks {
    pending: Vec<bool>,
    near: Vec<bool>,
    close: Vec<bool>,
}

impl Marks {
    /// Writes the cells of a window over `out`; see [`cells`].
    pub fn cells(
        &mut self,
        window: Window,
        earlier: impl Iterator<Item = Window>,
        zone: usize,
        out: &mut Vec<Cell>,
    ) {
        let Window { height, width, .. } = window;
        let Self { pending, near, close } = self;
        for (marks, value) in [(&mut *pending, true), (&mut *near, false), (&mut *close, false)] {
            marks.clear();
            marks.resize(height * width, value);
        }
        for overlap in earlier.filter_map(|other| window.intersection(other)) {
            for row in overlap.top - window.top..overlap.bottom() - window.top {
                pending[row * width + overlap.left - window.left..][..overlap.width].fill(false);
            }
        }
        // A square neighbourhood is a run along the row, then along the column.
        for (row, out) in pending.chunks_exact(width).zip(near.chunks_exact_mut(width)) {
            dilate(width, zone, |i| row[i], |i| out[i] = true);
        }
        for column in 0..width {
            dilate(height, zone, |i| near[i * width + column], |i| close[i * width + column] = true);
        }
        let cell = |(pending, close): (&bool, &bool)| match (pending, close) {
            (true, _) => Cell::Pending,
            (false, true) => Cell::Zone,
            (false, false) => Cell::Done,
        };
        out.clear();
        out.extend(pending.iter().zip(&*close).map(cell));
    }
}

/// Marks every position within `reach` of a set one, in two sweeps.
fn dilate(length: usize, reach: usize, set: impl Fn(usize) -> bool, mut mark: impl FnMut(usize)) {
    let mut sweep = |positions: &mut dyn Iterator<Item = usize>| {
        let mut left = 0;
        for i in positions {
            left = if set(i) { reach + 1 } else { left };
            if left > 0 {
                mark(i);
                left -= 1;
            }
        }
    };
    sweep(&mut (0..length));
    sweep(&mut (0..length).rev());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cells_follow_the_definition(
            zone in 0usize..6,
            others in prop::collection::vec((0usize..24, 0usize..24, 1usize..16, 1usize..16), 0..5),
        ) {
            let window = Window { top: 7, left: 5, height: 13, width: 11 };
            let others: Vec<Window> = others
                .into_iter()
                .map(|(top, left, height, width)| Window { top, left, height, width })
                .collect();
            let pending = |y: usize, x: usize| {
                let pixel = Window { top: y, left: x, height: 1, width: 1 };
                others.iter().all(|o| o.intersection(pixel).is_none())
            };
            for (i, cell) in cells(window, others.iter().copied(), zone).into_iter().enumerate() {
                let (y, x) = (window.top + i / window.width, window.left + i % window.width);
                let near = (window.top..window.bottom()).any(|r| (window.left..window.right()).any(|c| {
                    pending(r, c) && r.abs_diff(y).max(c.abs_diff(x)) <= zone
                }));
                let expected = match (pending(y, x), near) {
                    (true, _) => Cell::Pending,
                    (false, true) => Cell::Zone,
                    (false, false) => Cell::Done,
                };
                prop_assert_eq!(cell, expected);
            }
        }
    }
}
