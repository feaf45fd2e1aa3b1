//! A small picture of a latent: one pixel for each latent pixel, painted while others look.
//!
//! It lies in bands of rows that are shared: who looks takes the bands, and shrinks them while the painter goes on;
//! the painter copies a band only while somebody has it.

use std::ops::Range;
use std::sync::Arc;

use gigasmith_proto::domain::Array;

use super::colours::Colours;
use crate::sampler::units::{LatentSize, PixelRect, Window};

/// Rows in a band.
const BAND: usize = 64;
/// A pixel that is shrunk is the mean of at most so many pixels a side.
const SAMPLES: usize = 4;

/// A preview, or the bands of one that somebody has taken.
#[derive(Debug, Clone)]
pub(super) struct Preview {
    size: LatentSize,
    /// Image pixels for each pixel, a side.
    factor: usize,
    /// The number of the first band that is here.
    first: usize,
    bands: Vec<Arc<Vec<u8>>>,
}

impl Preview {
    /// A black one.
    pub(super) fn new(size: LatentSize, factor: usize) -> Self {
        let rows = |top: usize| BAND.min(size.height - top);
        let bands = (0..size.height).step_by(BAND);
        let bands = bands.map(|top| Arc::new(vec![0; rows(top) * size.width * 3])).collect();
        Self { size, factor, first: 0, bands }
    }

    /// Paints a window of the latent, its values times `gain`.
    pub(super) fn paint(&mut self, window: Window, latent: &Array, colours: &Colours, gain: f32) {
        for row in 0..window.height {
            let (band, at) = self.place(window.top + row, window.left);
            let out = &mut Arc::make_mut(&mut self.bands[band])[at..][..window.width * 3];
            for (column, pixel) in out.chunks_exact_mut(3).enumerate() {
                let value = |channel: usize| {
                    gain * latent.data()[channel * window.area() + row * window.width + column]
                };
                pixel.copy_from_slice(&colours.pixel(value));
            }
        }
    }

    /// The bands that a part of a level is made of. Copies no pixel.
    pub(super) fn take(&self, level: usize, rect: PixelRect) -> Self {
        let last = rect.top + rect.height.max(1) - 1;
        let rows =
            self.span(level, rect.top, self.size.height).start..self.span(level, last, self.size.height).end;
        let bands = rows.start / BAND..rows.end.div_ceil(BAND);
        Self { first: bands.start, bands: self.bands[bands].to_vec(), ..*self }
    }

    /// A part of a level: enlarged, or the mean of some of the pixels that it is made of.
    pub(super) fn shrunk(&self, level: usize, rect: PixelRect) -> Vec<u8> {
        let mut out = Vec::with_capacity(rect.area() * 3);
        for y in rect.top..rect.top + rect.height {
            let rows = self.span(level, y, self.size.height);
            for x in rect.left..rect.left + rect.width {
                let columns = self.span(level, x, self.size.width);
                let (mut sum, mut n) = ([0u32; 3], 0);
                for row in rows.clone().step_by(rows.len().div_ceil(SAMPLES)) {
                    for column in columns.clone().step_by(columns.len().div_ceil(SAMPLES)) {
                        let (band, at) = self.place(row, column);
                        let pixel = &self.bands[band][at..at + 3];
                        sum.iter_mut().zip(pixel).for_each(|(s, &v)| *s += u32::from(v));
                        n += 1;
                    }
                }
                out.extend(sum.map(|s| (s / n) as u8));
            }
        }
        out
    }

    /// Which of `length` pixels of a line the pixel `at` of a level stands for, at least one.
    fn span(&self, level: usize, at: u32, length: usize) -> Range<usize> {
        let (from, to) = ((at as usize) << level, ((at as usize) + 1) << level);
        let first = (from / self.factor).min(length - 1);
        first..to.div_ceil(self.factor).min(length).max(first + 1)
    }

    /// In which band a pixel is, of those here, and where in it.
    fn place(&self, row: usize, column: usize) -> (usize, usize) {
        (row / BAND - self.first, (row % BAND * self.size.width + column) * 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey() -> Colours {
        Colours::shades(1)
    }

    #[test]
    fn what_was_taken_stays_as_it_was_while_the_painter_goes_on() {
        let size = LatentSize { height: 2 * BAND + 10, width: 7 };
        let mut preview = Preview::new(size, 8);
        let flat = |value: f32| Array::new([1, size.height, size.width], vec![value; size.area()]).unwrap();
        preview.paint(size.rect(), &flat(0.0), &grey(), 1.0);
        // The second band, latent pixel by latent pixel.
        let rect = PixelRect { top: BAND as u32, left: 0, height: BAND as u32, width: 7 };
        let taken = preview.take(3, rect);
        assert_eq!(taken.bands.len(), 1, "only what is wanted is taken");
        assert!(Arc::ptr_eq(&taken.bands[0], &preview.bands[1]), "nothing is copied");
        preview.paint(size.rect(), &flat(1.0), &grey(), 1.0);
        assert!(taken.shrunk(3, rect).iter().all(|&v| v == 127));
        assert!(preview.take(3, rect).shrunk(3, rect).iter().all(|&v| v == 167));
    }

    #[test]
    fn every_level_shows_the_pixels_that_lie_there() {
        let size = LatentSize { height: BAND + 3, width: 6 };
        let mut preview = Preview::new(size, 8);
        let values = (0..size.area()).map(|i| (i / size.width) as f32 / 40.0).collect();
        let latent = Array::new([1, size.height, size.width], values).unwrap();
        preview.paint(size.rect(), &latent, &grey(), 1.0);
        let shown = |level: usize, top: u32, left: u32| {
            let rect = PixelRect { top, left, height: 1, width: 1 };
            preview.take(level, rect).shrunk(level, rect)
        };
        for row in [0, 1, BAND - 1, BAND, BAND + 2] {
            let expected = (127.5 + row as f32) as u8;
            assert_eq!(shown(3, row as u32, 5), [expected; 3], "row {row}, a pixel each");
            assert_eq!(shown(0, 8 * row as u32 + 7, 0), [expected; 3], "row {row}, enlarged");
        }
        // Four rows a pixel, across the edge of a band: 64, 65 and 66, the mean of 62 to 65 is another's.
        assert_eq!(shown(5, BAND as u32 / 4, 0), [(127 + 65) as u8; 3]);
    }
}
