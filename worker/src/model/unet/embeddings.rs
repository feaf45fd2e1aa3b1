//! Sinusoidal embeddings and the two-layer network after them.

use candle_core::{Result, Tensor};

use crate::model::error::LoadError;
use crate::model::layers::Linear;
use crate::model::weights::Scope;

/// The embedding of one number (Vaswani et al., arXiv 1706.03762, section 3.5, as diffusers'
/// `get_timestep_embedding` has it): frequencies `10000^(-i / (width/2 - shift))`, sines then
/// cosines, or the other way round where `flip` is set. `width` is even.
pub(super) fn sinusoidal(value: f32, width: usize, flip: bool, shift: f64) -> Vec<f32> {
    let half = width / 2;
    // In f32 step by step, as the model was trained.
    let exponent = |i: usize| -(10_000f64.ln() as f32) * i as f32 / (half as f64 - shift) as f32;
    let angle = |i: usize| value * exponent(i).exp();
    let sines = (0..half).map(|i| angle(i).sin());
    let cosines = (0..half).map(|i| angle(i).cos());
    if flip { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() }
}

/// Linear, SiLU, linear.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    pub(super) fn load(
        scope: &Scope<'_>,
        inputs: usize,
        outputs: usize,
    ) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            linear_1: Linear::load(&scope.at("linear_1"), inputs, outputs)?,
            linear_2: Linear::load(&scope.at("linear_2"), outputs, outputs)?,
        })
    }

    /// (rows, inputs) -> (rows, outputs), each row on its own.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward_rows(&self.linear_1.forward_rows(x)?.silu()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_match_their_formula() {
        let e = sinusoidal(981.0, 8, true, 0.0);
        for (i, frequency) in [1.0f64, 0.1, 0.01, 0.001].into_iter().enumerate() {
            let angle = 981.0 * frequency;
            assert!((f64::from(e[i]) - angle.cos()).abs() < 1e-4);
            assert!((f64::from(e[4 + i]) - angle.sin()).abs() < 1e-4);
        }
        let swapped = sinusoidal(981.0, 8, false, 0.0);
        assert_eq!(swapped[..4], e[4..]);
    }
}
