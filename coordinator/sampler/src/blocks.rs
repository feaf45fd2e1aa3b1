//! A canvas in blocks: squares that are copied, stored and forgotten one by one.
//!
//! [`BlockGrid`] is the geometry; [`OpenSteps`] knows in which blocks a step is begun and not finished:
//! only there does anybody still read what a pixel was when its newest step began.

use super::plan::{Geometry, Plan};
use super::units::{LatentSize, Step, Window};

/// How a canvas is cut: squares in raster order, smaller at the right and at the bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockGrid {
    size: LatentSize,
    side: usize,
}

impl BlockGrid {
    /// Blocks of `side` x `side` latent pixels (at least 1).
    pub fn new(size: LatentSize, side: usize) -> Self {
        Self { size, side: side.max(1) }
    }

    /// Blocks that suit a plan: twice the side of its windows, so that a patch touches four at most.
    pub fn of(plan: &Plan) -> Self {
        Self::of_geometry(plan.geometry())
    }

    /// The same, before the plan is drawn.
    pub fn of_geometry(geometry: Geometry) -> Self {
        let window = geometry.window;
        Self::new(geometry.canvas, 2 * window.height.max(window.width))
    }

    /// The canvas.
    pub fn size(&self) -> LatentSize {
        self.size
    }

    /// The side of a whole block.
    pub fn side(&self) -> usize {
        self.side
    }

    fn columns(&self) -> usize {
        self.size.width.div_ceil(self.side)
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.columns() * self.size.height.div_ceil(self.side)
    }

    /// Whether there is nothing to cut.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a block lies.
    pub fn window(&self, index: usize) -> Window {
        let (top, left) = (index / self.columns() * self.side, index % self.columns() * self.side);
        let (height, width) = (self.side.min(self.size.height - top), self.side.min(self.size.width - left));
        Window { top, left, height, width }
    }

    /// The blocks that a window touches, in raster order.
    pub fn overlapping(&self, window: Window) -> impl Iterator<Item = usize> + use<> {
        let (side, columns) = (self.side, self.columns());
        let across = window.left / side..=(window.right() - 1) / side;
        (window.top / side..=(window.bottom() - 1) / side)
            .flat_map(move |row| across.clone().map(move |column| row * columns + column))
    }
}

/// In which blocks a step is begun and not finished.
#[derive(Debug)]
pub struct OpenSteps {
    grid: BlockGrid,
    /// Patches of each step that touch each block: (all, not committed), by step, then by block.
    counts: Vec<(u32, u32)>,
    /// Steps that are open in each block.
    open: Vec<u32>,
}

impl OpenSteps {
    /// No step is begun.
    pub fn new(plan: &Plan, grid: BlockGrid) -> Self {
        let mut counts = vec![(0, 0); plan.steps() * grid.len()];
        for step in 0..plan.steps() {
            for (id, _) in plan.step(Step(step as u32)) {
                for block in grid.overlapping(plan.window(id)) {
                    let (all, left) = &mut counts[step * grid.len() + block];
                    (*all, *left) = (*all + 1, *left + 1);
                }
            }
        }
        Self { grid, counts, open: vec![0; grid.len()] }
    }

    /// A patch is committed: calls `closed` for each block in which no step is open now.
    pub fn commit(&mut self, step: Step, window: Window, mut closed: impl FnMut(usize)) {
        for block in self.grid.overlapping(window) {
            let (all, left) = &mut self.counts[step.index() * self.grid.len() + block];
            if left == all {
                self.open[block] += 1;
            }
            *left -= 1;
            if *left == 0 {
                self.open[block] -= 1;
            }
            if self.open[block] == 0 {
                closed(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::PlanKind;
    use super::*;

    proptest! {
        #[test]
        fn blocks_tile_the_canvas_and_overlaps_are_all_overlaps(
            (height, width, side) in (1usize..50, 1usize..50, 1usize..20),
            (top, left, h, w) in (0usize..50, 0usize..50, 1usize..50, 1usize..50),
        ) {
            let size = LatentSize { height, width };
            let grid = BlockGrid::new(size, side);
            let blocks: Vec<Window> = (0..grid.len()).map(|i| grid.window(i)).collect();
            prop_assert_eq!(blocks.iter().map(|b| b.area()).sum::<usize>(), size.area());
            for (i, a) in blocks.iter().enumerate() {
                prop_assert!(blocks[i + 1..].iter().all(|b| a.intersection(*b).is_none()));
            }
            let (top, left) = (top % height, left % width);
            let window = Window { top, left, height: h.min(height - top), width: w.min(width - left) };
            let found: Vec<usize> = grid.overlapping(window).collect();
            let expected = (0..grid.len()).filter(|&i| blocks[i].intersection(window).is_some());
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_block_is_open_between_the_first_and_the_last_patch_of_a_step() {
        let plan =
            Plan::draw(PlanKind::Balanced, Geometry::new(LatentSize { height: 40, width: 24 }, 8), 2, 3, 1);
        let grid = BlockGrid::of(&plan);
        let mut open = OpenSteps::new(&plan, grid);
        for step in [Step(0), Step(1)] {
            let patches: Vec<Window> = plan.step(step).map(|(id, _)| plan.window(id)).collect();
            for (i, &window) in patches.iter().enumerate() {
                let mut closed = Vec::new();
                open.commit(step, window, |block| closed.push(block));
                let expected = grid
                    .overlapping(window)
                    .filter(|&b| patches[i + 1..].iter().all(|w| grid.window(b).intersection(*w).is_none()));
                assert_eq!(closed, expected.collect::<Vec<_>>());
            }
        }
    }
}
