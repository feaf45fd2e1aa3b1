//! The same operations in candle's own: what runs on GPUs, and what the CPU kernels are tested
//! against.

use candle_core::{D, DType, Result, Tensor};

use super::{Around, AttentionSpec, Mask, Padding};

/// Scores held at once, at most: 64 Mi values.
const SCORES: usize = 1 << 26;

/// See [`super::linear()`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, rows, inner) = x.dims3()?;
    let columns = weight.dim(0)?;
    let flat = x.contiguous()?.reshape((batch * rows, inner))?;
    let out = flat.matmul(&weight.t()?)?.reshape((batch, rows, columns))?;
    match bias {
        Some(bias) => out.broadcast_add(bias),
        None => Ok(out),
    }
}

/// See [`super::linear_rows`].
pub(super) fn linear_rows(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let transposed = weight.t()?;
    let rows: Vec<Tensor> =
        (0..x.dim(0)?).map(|i| x.narrow(0, i, 1)?.matmul(&transposed)).collect::<Result<_>>()?;
    let out = Tensor::cat(&rows, 0)?;
    match bias {
        Some(bias) => out.broadcast_add(bias),
        None => Ok(out),
    }
}

/// See [`super::conv2d`].
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, Padding { before, after }): (usize, Padding),
    around: Around<'_>,
) -> Result<Tensor> {
    let resized = around.resized.map(|(height, width)| x.upsample_nearest2d(height, width)).transpose()?;
    let x = resized.as_ref().unwrap_or(x);
    let out = if before == after {
        x.conv2d(weight, before, stride, 1, 1)?
    } else {
        let padded = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        padded.conv2d(weight, 0, stride, 1, 1)?
    };
    let bias = match around.shift {
        Some(shift) => shift.broadcast_add(bias)?.unsqueeze(2)?.unsqueeze(3)?,
        None => bias.reshape((1, (), 1, 1))?,
    };
    let out = out.broadcast_add(&bias)?;
    match around.residual {
        Some(residual) => out + residual,
        None => Ok(out),
    }
}

/// See [`super::group_norm`]. Statistics in f32.
pub(super) fn group_norm(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    (eps, silu): (f64, bool),
    statistics: Option<&[f32]>,
) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    let grouped = x.to_dtype(DType::F32)?.reshape((batch, groups, ()))?;
    let (centred, variance) = match statistics {
        None => {
            let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
            let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
            (centred, variance)
        }
        Some(given) => {
            let given = Tensor::from_slice(given, (1, groups, 2), x.device())?;
            (grouped.broadcast_sub(&given.narrow(2, 0, 1)?)?, given.narrow(2, 1, 1)?)
        }
    };
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((batch, channels, h, w))?;
    let shape = (1, channels, 1, 1);
    let scaled = normal.broadcast_mul(&weight.to_dtype(DType::F32)?.reshape(shape)?)?;
    let out = scaled.broadcast_add(&bias.to_dtype(DType::F32)?.reshape(shape)?)?;
    let out = if silu { out.silu()? } else { out };
    out.to_dtype(x.dtype())
}

/// See [`super::group_statistics`].
pub(super) fn group_statistics(x: &Tensor, groups: usize) -> Result<Vec<f32>> {
    let grouped = x.to_dtype(DType::F32)?.contiguous()?.reshape((groups, ()))?;
    let mean = grouped.mean_keepdim(1)?;
    let variance = grouped.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?;
    Tensor::cat(&[mean, variance], 1)?.flatten_all()?.to_vec1()
}

/// See [`super::geglu`].
pub(super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    halves[0].contiguous()? * halves[1].contiguous()?.gelu_erf()?
}

/// See [`super::attention()`]; heads apart.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> Result<Tensor> {
    let (batch, sq, heads, d) = q.dims4()?;
    let sk = k.dim(1)?;
    let split = |t: &Tensor| t.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let dtype = v.dtype();
    let wide = if spec.upcast { DType::F32 } else { dtype };
    let (q, k) = ((q.to_dtype(wide)? / (d as f64).sqrt())?, k.to_dtype(wide)?.t()?.contiguous()?);
    let block = (SCORES / (batch * heads * sk)).clamp(1, sq);
    let mut blocks = Vec::new();
    for start in (0..sq).step_by(block) {
        let rows = block.min(sq - start);
        let mut scores = q.narrow(2, start, rows)?.contiguous()?.matmul(&k)?.to_dtype(DType::F32)?;
        if spec.mask == Mask::Causal {
            let hidden = (start..start + rows)
                .flat_map(|i| (0..sk).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 }))
                .collect::<Vec<_>>();
            scores = scores.broadcast_add(&Tensor::from_vec(hidden, (rows, sk), scores.device())?)?;
        }
        blocks.push(candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(dtype)?.matmul(&v)?);
    }
    Tensor::cat(&blocks, 2)?.transpose(1, 2)?.contiguous()?.flatten_from(2)
}
