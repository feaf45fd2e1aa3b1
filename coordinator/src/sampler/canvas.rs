//! The canvas: the whole latent while its pixels stand at different steps.
//!
//! Two values per pixel are enough: `now`, and `before`, what it was when the newest step that touched
//! it began. With the number of steps each pixel has left behind, the start of step s can be read even
//! where step s has already written.

use gigasmith_proto::domain::Array;

use super::blend::Cell;
use super::units::{LatentSize, Step, Window};

/// The latent of a stage: (channels, height, width), f32.
#[derive(Debug)]
pub struct Canvas {
    size: LatentSize,
    channels: usize,
    now: Vec<f32>,
    before: Vec<f32>,
    /// Steps each pixel has left behind.
    steps_done: Vec<u16>,
}

impl Canvas {
    /// A canvas at the start of step 0.
    pub fn new(start: Array) -> Self {
        let (channels, height, width) = start.chw().expect("a latent has three axes");
        let size = LatentSize { height, width };
        let before = vec![0.0; start.data().len()];
        Self { size, channels, now: start.into_data(), before, steps_done: vec![0; size.area()] }
    }

    /// Height and width.
    pub fn size(&self) -> LatentSize {
        self.size
    }

    /// The canvas as it stands in a window, (channels, height, width).
    pub fn read_now(&self, window: Window) -> Array {
        self.read(window, |pixel, plane| self.now[plane + pixel])
    }

    /// A window as it stood when `step` began. Every pixel of it must have left the step before
    /// behind, and none the step after: the graph sees to that.
    pub fn read_start_of(&self, step: Step, window: Window) -> Array {
        self.read(window, |pixel, plane| {
            let source = if self.has_left(pixel, step) { &self.before } else { &self.now };
            source[plane + pixel]
        })
    }

    fn has_left(&self, pixel: usize, step: Step) -> bool {
        let done = usize::from(self.steps_done[pixel]);
        debug_assert!((step.index()..=step.index() + 1).contains(&done), "a window is read at its own step");
        done > step.index()
    }

    fn read(&self, window: Window, value: impl Fn(usize, usize) -> f32) -> Array {
        let mut data = Vec::with_capacity(self.channels * window.area());
        for channel in 0..self.channels {
            let plane = channel * self.size.area();
            for row in window.top..window.bottom() {
                let first = row * self.size.width;
                data.extend((first + window.left..first + window.right()).map(|pixel| value(pixel, plane)));
            }
        }
        Array::new([self.channels, window.height, window.width], data).expect("every value was read")
    }

    /// Writes a patch's result back (method, rule 8): pending pixels take it, pixels of the transition
    /// zone become the mean of old and new, the others stay.
    pub fn write_back(&mut self, step: Step, window: Window, cells: &[Cell], result: &Array) {
        assert_eq!(
            result.shape(),
            [self.channels, window.height, window.width],
            "a result is shaped as its window"
        );
        let area = self.size.area();
        for (index, &cell) in cells.iter().enumerate() {
            let pixel =
                (window.top + index / window.width) * self.size.width + window.left + index % window.width;
            for channel in 0..self.channels {
                let at = channel * area + pixel;
                let new = result.data()[channel * window.area() + index];
                match cell {
                    Cell::Pending => {
                        self.before[at] = self.now[at];
                        self.now[at] = new;
                    }
                    Cell::Zone => self.now[at] = (self.now[at] + new) * 0.5,
                    Cell::Done => {}
                }
            }
            if cell == Cell::Pending {
                debug_assert_eq!(
                    usize::from(self.steps_done[pixel]),
                    step.index(),
                    "a pixel is written once a step"
                );
                self.steps_done[pixel] = step.0 as u16 + 1;
            }
        }
    }

    /// The latent, (channels, height, width).
    pub fn into_latent(self) -> Array {
        Array::new([self.channels, self.size.height, self.size.width], self.now)
            .expect("a canvas keeps its size")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_step_stays_readable_while_the_step_writes() {
        let window = Window { top: 0, left: 0, height: 1, width: 3 };
        let mut canvas = Canvas::new(Array::new([1, 1, 3], vec![1.0, 2.0, 3.0]).unwrap());
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
}
