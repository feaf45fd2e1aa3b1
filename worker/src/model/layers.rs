//! Layers: weights by name, and the kernel that uses them.

use candle_core::{Result, Tensor};

use super::error::LoadError;
use super::kernels::{self, Around, Filters, Matrix, Padding, Shifted};
use super::norms::Norms;
use super::weights::Scope;

type Load<T> = std::result::Result<T, LoadError>;

/// `x W^T + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// `inputs` -> `outputs`, with a bias.
    pub(crate) fn load(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        let weight = Matrix::new(scope.get("weight", &[outputs, inputs])?)?;
        Ok(Self { weight, bias: Some(parameter(scope, "bias", outputs)?) })
    }

    /// `inputs` -> `outputs`, without a bias.
    pub(crate) fn load_unbiased(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        Ok(Self { weight: Matrix::new(scope.get("weight", &[outputs, inputs])?)?, bias: None })
    }

    /// With a bias, stored as a linear layer or as a 1x1 convolution.
    pub(crate) fn load_or_pointwise(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        let shapes: [&[usize]; 2] = [&[outputs, inputs], &[outputs, inputs, 1, 1]];
        let weight = Matrix::new(scope.get_any("weight", &shapes)?)?;
        Ok(Self { weight, bias: Some(parameter(scope, "bias", outputs)?) })
    }

    /// (batch, rows, inputs) -> (batch, rows, outputs).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref(), None)
    }

    /// The same, added to `residual`.
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref(), Some(residual))
    }

    /// (rows, inputs) -> (rows, outputs), each row on its own.
    pub(crate) fn forward_rows(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear_rows(x, &self.weight, self.bias.as_ref())
    }
}

/// Linear layers without biases that read the same: queries, keys, values.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    /// One for all of them, or one for each.
    matrices: Vec<Matrix>,
    layers: usize,
}

impl Joined {
    /// Each `inputs` -> `outputs`.
    pub(crate) fn load(scope: &Scope<'_>, names: &[&str], inputs: usize, outputs: usize) -> Load<Self> {
        let weights = names.iter().map(|name| scope.at(name).get("weight", &[outputs, inputs]));
        let weights = weights.collect::<Load<Vec<_>>>()?;
        let layers = weights.len();
        let matrices = match Matrix::joined(&weights)? {
            Some(all) => vec![all],
            None => weights.into_iter().map(Matrix::new).collect::<Result<_>>()?,
        };
        Ok(Self { matrices, layers })
    }

    /// (batch, rows, inputs) -> of each layer (batch, rows, heads, outputs / heads), maybe strided.
    pub(crate) fn forward(&self, x: &Tensor, heads: usize) -> Result<Vec<Tensor>> {
        let per_matrix = self.layers / self.matrices.len();
        let mut all = Vec::with_capacity(self.layers);
        for matrix in &self.matrices {
            let (batch, rows, _) = x.dims3()?;
            let out =
                kernels::linear(x, matrix, None, None)?.reshape((batch, rows, per_matrix * heads, ()))?;
            for i in 0..per_matrix {
                all.push(out.narrow(2, i * heads, heads)?);
            }
        }
        Ok(all)
    }
}

/// A linear layer whose second half of outputs gates the first (GEGLU).
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    weight: Matrix,
    bias: Tensor,
}

impl Gated {
    /// `inputs` -> `outputs`; the weights have twice as many.
    pub(crate) fn load(scope: &Scope<'_>, inputs: usize, outputs: usize) -> Load<Self> {
        let weight = Matrix::gated(scope.get("weight", &[2 * outputs, inputs])?)?;
        Ok(Self { weight, bias: parameter(scope, "bias", 2 * outputs)? })
    }

    /// (batch, rows, inputs) -> (batch, rows, outputs).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::geglu(x, &self.weight, &self.bias)
    }
}

/// A bias, or the weights of a normalisation.
fn parameter(scope: &Scope<'_>, name: &str, length: usize) -> Load<Tensor> {
    Ok(kernels::parameter(scope.get(name, &[length])?)?)
}

/// A 2-D convolution with a square kernel and a bias.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    filters: Filters,
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
        let filters = Filters::new(scope.get("weight", &[outputs, inputs, kernel, kernel])?)?;
        Ok(Self { filters, bias: parameter(scope, "bias", outputs)?, stride, padding })
    }

    /// (batch, inputs, h, w) -> (batch, outputs, h', w').
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_around(x, Around::default())
    }

    /// With what happens around it.
    pub(crate) fn forward_around(&self, x: &Tensor, around: Around<'_>) -> Result<Tensor> {
        kernels::conv2d(x, &self.filters, &self.bias, (self.stride, self.padding), around)
    }

    /// The same for a group normalisation to go on with.
    pub(crate) fn forward_to_norm(&self, x: &Tensor, around: Around<'_>) -> Result<Shifted> {
        kernels::conv2d_to_norm(x, &self.filters, &self.bias, (self.stride, self.padding), around)
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
        let weight = parameter(scope, "weight", channels)?;
        Ok(Self { weight, bias: parameter(scope, "bias", channels)?, groups, eps })
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
        self.apply_shifted(&Shifted::from(x.clone()), silu, norms)
    }

    /// The same of what a convolution left to it.
    pub(crate) fn apply_shifted(&self, x: &Shifted, silu: bool, norms: &mut Norms<'_>) -> Result<Tensor> {
        let statistics = norms.next(x.image(), self.groups)?;
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
        let weight = parameter(scope, "weight", width)?;
        Ok(Self { weight, bias: parameter(scope, "bias", width)?, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
