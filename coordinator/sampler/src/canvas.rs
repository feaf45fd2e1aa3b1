//! The canvas: the whole latent while its pixels stand at different steps.
//!
//! Two values per pixel are enough: `now`, and `before`, what it was when the newest step that touched
//! it began. With the number of steps each pixel has left behind, the start of step s can be read even
//! where step s has already written.
//!
//! Both are kept in blocks that are shared, not copied, with whoever stores them ([`Canvas::saved`]): a
//! block is copied when it is written to while somebody still holds it. `before` exists only where it
//! may still be read.

use std::sync::Arc;

use gigasmith_types::Array;

use super::blend::Cell;
use super::blocks::BlockGrid;
use super::units::{LatentSize, Step, Window};

/// The latent of a stage: (channels, height, width), f32.
#[derive(Debug)]
pub struct Canvas {
    grid: BlockGrid,
    channels: usize,
    blocks: Vec<Block>,
    /// Steps each pixel has left behind.
    steps_done: Vec<u16>,
}

#[derive(Debug)]
struct Block {
    window: Window,
    now: Arc<Array>,
    before: Option<Arc<Array>>,
    version: u64,
}

/// A block that is no longer as the stage found it.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedBlock {
    /// Its position in the grid.
    pub index: usize,
    /// Grows with every write: equal versions of one run are equal values.
    pub version: u64,
    /// The values now, (channels, block height, block width).
    pub now: Arc<Array>,
    /// What pixels were when the newest step that touched them began; `None` where nobody reads it any
    /// more. Pixels that no open step has touched hold anything.
    pub before: Option<Arc<Array>>,
}

impl Canvas {
    /// A canvas at the start of step 0. `start` gives the values of a window, (channels, height, width).
    pub fn new(grid: BlockGrid, start: impl Fn(Window) -> Array) -> Self {
        let block = |index| {
            let window = grid.window(index);
            Block { window, now: Arc::new(start(window)), before: None, version: 0 }
        };
        let blocks: Vec<Block> = (0..grid.len()).map(block).collect();
        let channels = blocks[0].now.shape()[0];
        Self { grid, channels, blocks, steps_done: vec![0; grid.size().area()] }
    }

    /// Puts a stored block in place. Returns whether its shape fits.
    pub fn put(&mut self, saved: SavedBlock) -> bool {
        let Some(block) = self.blocks.get_mut(saved.index) else { return false };
        let fits = |values: &Array| values.shape() == block.now.shape();
        if !fits(&saved.now) || saved.before.as_ref().is_some_and(|b| !fits(b)) {
            return false;
        }
        (block.now, block.before, block.version) = (saved.now, saved.before, saved.version);
        true
    }

    /// Says that every pixel of a window has left a step behind.
    pub fn mark_done(&mut self, step: Step, window: Window) {
        for row in window.top..window.bottom() {
            let first = row * self.grid.size().width;
            self.steps_done[first + window.left..first + window.right()].fill(step.0 as u16 + 1);
        }
    }

    /// The fewest steps that a pixel of a window has left behind.
    pub fn steps_done(&self, window: Window) -> u16 {
        let row = |row: usize| &self.steps_done[row * self.grid.size().width..][window.left..window.right()];
        (window.top..window.bottom()).flat_map(row).copied().min().unwrap_or(0)
    }

    /// The blocks that have been written to.
    pub fn saved(&self) -> Vec<SavedBlock> {
        let written = self.blocks.iter().enumerate().filter(|(_, block)| block.version > 0);
        written
            .map(|(index, block)| SavedBlock {
                index,
                version: block.version,
                now: block.now.clone(),
                before: block.before.clone(),
            })
            .collect()
    }

    /// Height and width.
    pub fn size(&self) -> LatentSize {
        self.grid.size()
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The canvas as it stands in a window, (channels, height, width).
    pub fn read_now(&self, window: Window) -> Array {
        self.read(window, None, Vec::new())
    }

    /// The same in the memory of an empty vector.
    pub fn read_now_in(&self, window: Window, room: Vec<f32>) -> Array {
        self.read(window, None, room)
    }

    /// A window as it stood when `step` began. Every pixel of it must have left the step before
    /// behind, and none the step after: the graph sees to that.
    pub fn read_start_of(&self, step: Step, window: Window) -> Array {
        self.read(window, Some(step), Vec::new())
    }

    /// The same in the memory of an empty vector.
    pub fn read_start_in(&self, step: Step, window: Window, room: Vec<f32>) -> Array {
        self.read(window, Some(step), room)
    }

    fn has_left(&self, pixel: usize, step: Step) -> bool {
        let done = usize::from(self.steps_done[pixel]);
        debug_assert!((step.index()..=step.index() + 1).contains(&done), "a window is read at its own step");
        done > step.index()
    }

    /// A window as it stands, or as it stood when a step began.
    fn read(&self, window: Window, start_of: Option<Step>, mut out: Vec<f32>) -> Array {
        out.resize(self.channels * window.area(), 0.0);
        for index in self.grid.overlapping(window) {
            let block = &self.blocks[index];
            let part = window.intersection(block.window).expect("the block overlaps");
            let old = start_of.and_then(|step| Some((step, block.before.as_ref()?)));
            for channel in 0..self.channels {
                for row in part.top..part.bottom() {
                    let source = offset(block.window, channel, row, part.left);
                    let target = offset(window, channel, row, part.left);
                    let out = &mut out[target..][..part.width];
                    out.copy_from_slice(&block.now.data()[source..][..part.width]);
                    let Some((step, before)) = old else { continue };
                    let pixel = row * self.grid.size().width + part.left;
                    let before = &before.data()[source..][..part.width];
                    let values = out.iter_mut().zip(before).enumerate();
                    values
                        .filter(|(i, _)| self.has_left(pixel + i, step))
                        .for_each(|(_, (out, &before))| *out = before);
                }
            }
        }
        Array::new([self.channels, window.height, window.width], out).expect("every value was read")
    }

    /// Writes a patch's result back (method, rule 8): pending pixels take it, pixels of the transition
    /// zone become the mean of old and new, the others stay.
    pub fn write_back(&mut self, step: Step, window: Window, cells: &[Cell], result: &Array) {
        assert_eq!(
            result.shape(),
            [self.channels, window.height, window.width],
            "a result is shaped as its window"
        );
        for index in self.grid.overlapping(window) {
            let Block { window: place, now, before, version } = &mut self.blocks[index];
            let part = window.intersection(*place).expect("the block overlaps");
            *version += 1;
            let now = Arc::make_mut(now);
            let before = before.get_or_insert_with(|| Arc::new(Array::zeros(now.shape())));
            let (now, before) = (now.data_mut(), Arc::make_mut(before).data_mut());
            for channel in 0..self.channels {
                for row in part.top..part.bottom() {
                    let target = offset(*place, channel, row, part.left);
                    let source = offset(window, channel, row, part.left);
                    let cells = &cells[offset(window, 0, row, part.left)..][..part.width];
                    let now = &mut now[target..][..part.width];
                    let before = &mut before[target..][..part.width];
                    let new = &result.data()[source..][..part.width];
                    for (i, cell) in cells.iter().enumerate() {
                        match cell {
                            Cell::Pending => (before[i], now[i]) = (now[i], new[i]),
                            Cell::Zone => now[i] = (now[i] + new[i]) * 0.5,
                            Cell::Done => {}
                        }
                    }
                }
            }
        }
        self.leave_behind(step, window, cells);
    }

    fn leave_behind(&mut self, step: Step, window: Window, cells: &[Cell]) {
        for (index, _) in cells.iter().enumerate().filter(|(_, cell)| **cell == Cell::Pending) {
            let (row, column) = (window.top + index / window.width, window.left + index % window.width);
            let done = &mut self.steps_done[row * self.grid.size().width + column];
            debug_assert_eq!(usize::from(*done), step.index(), "a pixel is written once a step");
            *done = step.0 as u16 + 1;
        }
    }

    /// Nobody will read any more what the pixels of a block were when their step began.
    pub fn forget_before(&mut self, block: usize) {
        self.blocks[block].before = None;
    }

    /// The latent, (channels, height, width).
    pub fn into_latent(self) -> Array {
        // What was before is not needed for it.
        let blocks = self.blocks.into_iter().map(|b| (b.window, b.now)).collect::<Vec<_>>();
        assemble(self.channels, self.grid.size(), &blocks)
    }
}

/// Puts blocks together: (channels, height, width).
fn assemble(channels: usize, size: LatentSize, blocks: &[(Window, Arc<Array>)]) -> Array {
    let mut out = vec![0.0; channels * size.area()];
    for (place, values) in blocks {
        for channel in 0..channels {
            for row in place.top..place.bottom() {
                let target = offset(size.rect(), channel, row, place.left);
                let source = offset(*place, channel, row, place.left);
                out[target..][..place.width].copy_from_slice(&values.data()[source..][..place.width]);
            }
        }
    }
    Array::new([channels, size.height, size.width], out).expect("blocks tile the canvas")
}

/// Where the value of a canvas pixel lies in an array (channels, height, width) that stands for a window.
fn offset(window: Window, channel: usize, row: usize, column: usize) -> usize {
    (channel * window.height + row - window.top) * window.width + column - window.left
}

#[cfg(test)]
mod tests {
    use super::super::noise::crop;
    use super::*;

    #[test]
    fn the_start_of_a_step_stays_readable_while_the_step_writes() {
        let window = Window { top: 0, left: 0, height: 1, width: 3 };
        let start = Array::new([1, 1, 3], vec![1.0, 2.0, 3.0]).unwrap();
        // Blocks of two pixels: the middle of it all is a border.
        let grid = BlockGrid::new(LatentSize { height: 1, width: 3 }, 2);
        let mut canvas = Canvas::new(grid, |window| crop(&start, window));
        let left = Window { width: 2, ..window };
        canvas.write_back(
            Step(0),
            left,
            &[Cell::Pending; 2],
            &Array::new([1, 1, 2], vec![10.0, 20.0]).unwrap(),
        );
        let right = Window { left: 1, width: 2, ..window };
        assert_eq!(canvas.read_start_of(Step(0), right).data(), [2.0, 3.0]);
        canvas.write_back(
            Step(0),
            right,
            &[Cell::Zone, Cell::Pending],
            &Array::new([1, 1, 2], vec![40.0, 50.0]).unwrap(),
        );
        assert_eq!(canvas.read_now(window).data(), [10.0, 30.0, 50.0]);
        assert_eq!(canvas.read_start_of(Step(1), window).data(), [10.0, 30.0, 50.0]);
    }

    #[test]
    fn what_is_saved_does_not_change_any_more() {
        let grid = BlockGrid::new(LatentSize { height: 1, width: 4 }, 2);
        let mut canvas = Canvas::new(grid, |w| Array::new([1, 1, w.width], vec![1.0; w.width]).unwrap());
        assert!(canvas.saved().is_empty());
        let window = Window { top: 0, left: 0, height: 1, width: 2 };
        let write = |canvas: &mut Canvas, step, value| {
            let result = Array::new([1, 1, 2], vec![value; 2]).unwrap();
            canvas.write_back(Step(step), window, &[Cell::Pending; 2], &result);
        };
        write(&mut canvas, 0, 5.0);
        let first = canvas.saved();
        canvas.forget_before(0);
        write(&mut canvas, 1, 7.0);
        let second = canvas.saved();
        assert_eq!((first.len(), first[0].index, first[0].now.data()), (1, 0, &[5.0, 5.0][..]));
        assert_eq!(first[0].before.as_ref().unwrap().data(), [1.0, 1.0]);
        assert_eq!(second[0].now.data(), [7.0, 7.0]);
        assert!(second[0].version > first[0].version);

        let mut again = Canvas::new(grid, |w| Array::new([1, 1, w.width], vec![1.0; w.width]).unwrap());
        assert!(again.put(second[0].clone()));
        assert!(!again.put(SavedBlock { index: 9, ..second[0].clone() }), "there is no such block");
        assert!(!again.put(SavedBlock { now: Array::zeros([1, 1, 3]).into(), ..second[0].clone() }));
        again.mark_done(Step(1), window);
        let whole = grid.size().rect();
        assert_eq!(again.read_now(whole), canvas.read_now(whole));
        assert_eq!(again.read_start_of(Step(1), window).data(), [5.0, 5.0]);
        assert_eq!(again.into_latent().data(), [7.0, 7.0, 1.0, 1.0]);
    }
}
