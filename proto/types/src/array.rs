//! A dense row-major array of `f32`: what latents, images and embeddings are outside a device.

/// A shape that does not fit its data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an array of shape {shape:?} has {expected} values, not {actual}")]
pub struct ShapeError {
    /// The claimed shape.
    pub shape: Vec<usize>,
    /// The product of the claimed shape.
    pub expected: usize,
    /// The number of values given.
    pub actual: usize,
}

/// A dense array of `f32`, row-major, the last axis contiguous.
///
/// Latents are (channels, height, width) in latent pixels; images are (3, height, width) in image
/// pixels with values in [-1, 1]; text states are (tokens, width).
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Array {
    /// Wraps `data`; fails when the product of `shape` is not its length.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self, ShapeError> {
        let shape = shape.into();
        let expected = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).unwrap_or(usize::MAX);
        if expected != data.len() {
            return Err(ShapeError { shape, expected, actual: data.len() });
        }
        Ok(Self { shape, data })
    }

    /// An array of zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Self { shape, data }
    }

    /// The length of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, row-major, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values, without the shape.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The shape as (channels, height, width), or `None` unless there are three axes.
    pub fn chw(&self) -> Option<(usize, usize, usize)> {
        match self.shape[..] {
            [c, h, w] => Some((c, h, w)),
            _ => None,
        }
    }

    /// Whether every value is finite (neither NaN nor infinite).
    pub fn is_finite(&self) -> bool {
        self.data.iter().all(|v| v.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_must_fit_its_data() {
        assert!(Array::new([2, 3], vec![0.0; 6]).is_ok());
        let error = Array::new([2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "an array of shape [2, 3] has 6 values, not 5");
        assert!(Array::new([usize::MAX, 2], vec![]).is_err());
    }
}
