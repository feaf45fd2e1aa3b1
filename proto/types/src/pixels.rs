//! 8-bit pictures on their way to an encoder.

use super::{Array, ShapeError};

/// A rectangle of some tile, in latent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rect {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Rect {
    /// Whether it has an inside and lies within so many rows and columns.
    pub fn is_within(&self, height: usize, width: usize) -> bool {
        let fits = |start: usize, length: usize, all: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= all)
        };
        fits(self.top, self.height, height) && fits(self.left, self.width, width)
    }

    /// The part of an array (channels, height, width) that it covers, with every side times `scale`.
    /// Panics unless it lies inside.
    pub fn of(&self, array: &Array, scale: usize) -> Array {
        let (channels, height, width) = array.chw().expect("three axes");
        let [top, left, rows, columns] = [self.top, self.left, self.height, self.width].map(|n| n * scale);
        if (rows, columns) == (height, width) {
            return array.clone();
        }
        let mut data = Vec::with_capacity(channels * rows * columns);
        for channel in 0..channels {
            for row in top..top + rows {
                data.extend_from_slice(&array.data()[(channel * height + row) * width + left..][..columns]);
            }
        }
        Array::new([channels, rows, columns], data).expect("every value was copied")
    }
}

/// 8-bit RGB, row by row from the top.
#[derive(Clone, PartialEq, Eq)]
pub struct Pixels {
    height: usize,
    width: usize,
    rgb: Vec<u8>,
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pixels({}x{})", self.width, self.height)
    }
}

impl Pixels {
    /// Wraps pixels; fails unless there are three bytes for each.
    pub fn new(height: usize, width: usize, rgb: Vec<u8>) -> Result<Self, ShapeError> {
        let expected = height.checked_mul(width).and_then(|n| n.checked_mul(3)).unwrap_or(usize::MAX);
        if expected != rgb.len() {
            return Err(ShapeError { shape: vec![height, width, 3], expected, actual: rgb.len() });
        }
        Ok(Self { height, width, rgb })
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The bytes.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// As an encoder takes it: (3, height, width), `2 v / 255 - 1`.
    pub fn to_array(&self) -> Array {
        let area = self.height * self.width;
        let mut data = vec![0.0; 3 * area];
        for (i, pixel) in self.rgb.chunks_exact(3).enumerate() {
            for (channel, &value) in pixel.iter().enumerate() {
                data[channel * area + i] = 2.0 * (f32::from(value) / 255.0) - 1.0;
            }
        }
        Array::new([3, self.height, self.width], data).expect("three planes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_planes() {
        let pixels = Pixels::new(1, 2, vec![0, 255, 51, 102, 153, 204]).unwrap();
        let array = pixels.to_array();
        assert_eq!((array.shape(), array.data()[0], array.data()[2]), (&[3, 1, 2][..], -1.0, 1.0));
        assert_eq!(array.data()[4], 2.0 * (51.0 / 255.0) - 1.0);
        assert!(Pixels::new(2, 2, vec![0; 11]).is_err());
    }

    #[test]
    fn rectangles_cut_what_they_cover() {
        let array = Array::new([2, 4, 6], (0..48).map(|i| i as f32).collect()).unwrap();
        let cut = Rect { top: 1, left: 1, height: 1, width: 2 }.of(&array, 2);
        assert_eq!((cut.shape(), &cut.data()[..4]), (&[2, 2, 4][..], &[14.0, 15.0, 16.0, 17.0][..]));
        assert!(Rect { top: 1, left: 0, height: 3, width: 6 }.is_within(4, 6));
        assert!(!Rect { top: 2, left: 0, height: 3, width: 6 }.is_within(4, 6));
        assert!(!Rect { top: 0, left: 0, height: 0, width: 1 }.is_within(4, 6));
    }
}
