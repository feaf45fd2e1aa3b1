//! Layers: weights by name, and the kernel that uses them.

use candle_core::{Result, Tensor};

use super::error::LoadError;
use super::kernels::{self, Padding};
use super::norms::Norms;
use super::weights::Scope;

type Load<T> = std::result::Result<T, LoadError>;

/// `x W^T + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `inputs` -> `outputs`, with a bias.
    pub(crate) fn load(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        let bias = Some(scope.get("bias", &[outputs])?);
        Ok(Self { weight: scope.get("weight", &[outputs, inputs])?, bias })
    }

    /// `inputs` -> `outputs`, without a bias.
    pub(crate) fn load_unbiased(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        Ok(Self { weight: scope.get("weight", &[outputs, inputs])?, bias: None })
    }

    /// With a bias, stored as a linear layer or as a 1x1 convolution.
    pub(crate) fn load_or_pointwise(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        let shapes: [&[usize]; 2] = [&[outputs, inputs], &[outputs, inputs, 1, 1]];
        let bias = Some(scope.get("bias", &[outputs])?);
        Ok(Self { weight: scope.get_any("weight", &shapes)?, bias })
    }

    /// (batch, rows, inputs) -> (batch, rows, outputs); `x` may be strided.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref())
    }

    /// (batch, rows, inputs) -> (batch, outputs, rows).
    pub(crate) fn forward_to_planes(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear_to_planes(x, &self.weight, self.bias.as_ref())
    }

    /// (rows, inputs) -> (rows, outputs), each row on its own.
    pub(crate) fn forward_rows(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear_rows(x, &self.weight, self.bias.as_ref())
    }
}

/// A 2-D convolution with a square kernel and a bias.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// Stride 1; the output has the size of the input (`kernel` is odd).
    pub(crate) fn load(scope: &Scope<'_>, inputs: usize, outputs: usize, kernel: usize) -> Load<Self> {
        Self::load_strided(scope, inputs, outputs, kernel, 1, Padding::all(kernel / 2))
    }

    /// Any stride and padding.
    pub(crate) fn load_strided(
        scope: &Scope<'_>,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Load<Self> {
        let weight = scope.get("weight", &[outputs, inputs, kernel, kernel])?;
        Ok(Self { weight, bias: scope.get("bias", &[outputs])?, stride, padding })
    }

    /// (batch, inputs, h, w) -> (batch, outputs, h', w').
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::conv2d(x, &self.weight, &self.bias, self.stride, self.padding)
    }
}

/// Group normalisation.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn load(scope: &Scope<'_>, channels: usize, groups: usize, eps: f64) -> Load<Self> {
        let weight = scope.get("weight", &[channels])?;
        Ok(Self { weight, bias: scope.get("bias", &[channels])?, groups, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, false, &mut Norms::own())
    }

    /// Followed by `x sigmoid(x)`.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, true, &mut Norms::own())
    }

    /// With statistics from elsewhere, followed by `x sigmoid(x)` where `silu` is set.
    pub(crate) fn apply(&self, x: &Tensor, silu: bool, norms: &mut Norms<'_>) -> Result<Tensor> {
        let statistics = norms.next(x, self.groups)?;
        kernels::group_norm(x, (&self.weight, &self.bias), self.groups, (self.eps, silu), statistics)
    }
}

/// Layer normalisation over the last axis.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn load(scope: &Scope<'_>, width: usize, eps: f64) -> Load<Self> {
        Ok(Self { weight: scope.get("weight", &[width])?, bias: scope.get("bias", &[width])?, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
