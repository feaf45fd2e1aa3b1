//! The network's operations one by one, for benchmarks: sizes in, something that runs it out.

use candle_core::{Device, Result, Tensor};

use crate::model::kernels::{self, Around, AttentionSpec, Filters, Mask, Matrix, Padding};

/// An operation and its sizes.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operator {
    Conv3x3 { channels_in: usize, channels_out: usize, side: usize, batch: usize },
    UpsampleConv { channels: usize, side: usize, batch: usize },
    Linear { rows: usize, inputs: usize, outputs: usize },
    Geglu { rows: usize, inputs: usize, outputs: usize },
    Attention { batch: usize, heads: usize, queries: usize, keys: usize, width: usize },
    GroupNormSilu { channels: usize, groups: usize, side: usize, batch: usize },
    LayerNorm { rows: usize, width: usize },
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

/// An image as the kernels leave it.
fn picture(batch: usize, channels: usize, side: usize) -> Result<Tensor> {
    kernels::image(&random(&[batch, side * side, channels])?, side, side)
}

impl Operator {
    /// Makes inputs and weights; each call of what comes back runs the operation once, on the CPU.
    ///
    /// # Errors
    /// When the sizes make no sense.
    pub fn prepare(self) -> Result<Box<dyn Fn() -> Result<Tensor> + Send + Sync>> {
        let convolution = |channels_in: usize, channels_out: usize, batch, side, resized| {
            let (filters, bias) = (random(&[channels_out, channels_in, 3, 3])?, random(&[channels_out])?);
            let (x, filters) = (picture(batch, channels_in, side)?, Filters::new(filters)?);
            let run = move || {
                let around = Around { resized, ..Around::default() };
                kernels::conv2d(&x, &filters, &bias, (1, Padding::all(1)), around)
            };
            Result::Ok(Box::new(run) as Box<dyn Fn() -> Result<Tensor> + Send + Sync>)
        };
        Ok(match self {
            Self::Conv3x3 { channels_in, channels_out, side, batch } => {
                convolution(channels_in, channels_out, batch, side, None)?
            }
            Self::UpsampleConv { channels, side, batch } => {
                convolution(channels, channels, batch, side, Some((2 * side, 2 * side)))?
            }
            Self::Linear { rows, inputs, outputs } => {
                let (weight, bias) = (Matrix::new(random(&[outputs, inputs])?)?, random(&[outputs])?);
                let x = random(&[1, rows, inputs])?;
                Box::new(move || kernels::linear(&x, &weight, Some(&bias), None))
            }
            Self::Geglu { rows, inputs, outputs } => {
                let (weight, bias) =
                    (Matrix::gated(random(&[2 * outputs, inputs])?)?, random(&[2 * outputs])?);
                let x = random(&[1, rows, inputs])?;
                Box::new(move || kernels::geglu(&x, &weight, &bias))
            }
            Self::Attention { batch, heads, queries, keys, width } => {
                let states = |rows: usize| random(&[batch, rows, heads * width]);
                let (q, k, v) = (states(queries)?, states(keys)?, states(keys)?);
                let spec = AttentionSpec { heads, mask: Mask::None, upcast: false };
                Box::new(move || kernels::attention(&q, &k, &v, spec))
            }
            Self::GroupNormSilu { channels, groups, side, batch } => {
                let (x, weight, bias) =
                    (picture(batch, channels, side)?.into(), random(&[channels])?, random(&[channels])?);
                Box::new(move || kernels::group_norm(&x, (&weight, &bias), groups, (1e-5, true), None))
            }
            Self::LayerNorm { rows, width } => {
                let (x, weight, bias) = (random(&[1, rows, width])?, random(&[width])?, random(&[width])?);
                Box::new(move || kernels::layer_norm(&x, &weight, &bias, 1e-5))
            }
        })
    }
}
