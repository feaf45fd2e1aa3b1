//! Attention in one kernel on NVIDIA GPUs: FlashAttention-2 (Dao, arXiv 2307.08691), by way of
//! candle-flash-attn. What it does not take, among it f32 and causal masks, is [`plain`]'s.
//!
//! The library's kernels are compiled for one architecture, and it does not say when they cannot
//! start on another: the result is then whatever was in that memory. So it is first tried against
//! [`plain`], and not used where it fails.
//!
//! Invariants: scores and their sums are f32, whatever [`AttentionSpec::upcast`] says; no sum
//! depends on the other images of a batch.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

use super::{AttentionSpec, Mask, plain};

/// The widest head that is left to it. It has kernels up to 512, which only the VAE would use.
const WIDEST: usize = 256;

/// Whether attentions in `dtype` are computed here on `device`. A process has one GPU: the first
/// that is asked for is tried, and stands for all.
pub(in crate::model) fn usable(device: &Device, dtype: DType) -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    device.is_cuda()
        && matches!(dtype, DType::F16 | DType::BF16)
        && *WORKS.get_or_init(|| match largest_error(device) {
            Ok(error) if error < 0.01 => true,
            outcome => {
                tracing::warn!(
                    ?outcome,
                    "flash attention does not work on this GPU, so attention will be slower; \
                     was it built with another CUDA_COMPUTE_CAP?"
                );
                false
            }
        })
}

/// Whether an attention of queries (batch, sq, heads, width) is computed here.
pub(super) fn takes(q: &Tensor, spec: AttentionSpec) -> Result<bool> {
    let d = q.dim(3)?;
    Ok(spec.mask == Mask::None && d <= WIDEST && d.is_multiple_of(8) && usable(q.device(), q.dtype()))
}

/// See [`super::attention()`]; heads apart.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(3)? as f32).sqrt();
    candle_flash_attn::flash_attn(q, k, v, scale, false)?.flatten_from(2)
}

/// How far a small attention is from [`plain`]'s, at most: a thousandth by rounding alone. Infinite
/// where it is not a number.
fn largest_error(device: &Device) -> Result<f32> {
    let (heads, d) = (2, 64);
    // Queries large enough that single keys count: results lie between 0.4 and 1.6.
    let states = |rows: usize, step: usize, (scale, shift): (f32, f32)| {
        let values: Vec<f32> =
            (0..rows * heads * d).map(|i| ((i * step % 101) as f32 / 50.0 - 1.0) * scale + shift).collect();
        Tensor::from_vec(values, (1, rows, heads, d), device)?.to_dtype(DType::F16)
    };
    let (q, k, v) = (states(100, 37, (16.0, 0.0))?, states(77, 59, (1.0, 0.0))?, states(77, 83, (1.0, 1.0))?);
    let spec = AttentionSpec { heads, mask: Mask::None, upcast: true };
    // In this order: memory that the right result was in before would pass for an answer.
    let here = attention(&q, &k, &v)?;
    let there = plain::attention(&q, &k, &v, spec)?;
    distance(&here, &there)
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    let apart = (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.flatten_all()?;
    let apart = apart.to_vec1::<f32>()?.into_iter();
    Ok(apart.map(|x| if x.is_nan() { f32::INFINITY } else { x }).fold(0.0, f32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs an NVIDIA GPU, and kernels built for it"]
    fn agrees_with_plain_attention() {
        let device = Device::new_cuda(0).unwrap();
        // batch, heads, head width, queries, keys: self-attention, text, a width between two kernels
        for (batch, heads, d, sq, sk) in
            [(2, 3, 32, 256, 256), (2, 10, 64, 4096, 4096), (1, 20, 64, 1000, 77), (1, 2, 40, 70, 33)]
        {
            for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
                let states = |s| Tensor::randn(0f32, 1.0, (batch, s, heads, d), &device)?.to_dtype(dtype);
                let (q, k, v) = (states(sq).unwrap(), states(sk).unwrap(), states(sk).unwrap());
                let spec = AttentionSpec { heads, mask: Mask::None, upcast: true };
                assert!(takes(&q, spec).unwrap());
                let here = attention(&q, &k, &v).unwrap();
                let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
                let exact = plain::attention(&wide(&q), &wide(&k), &wide(&v), spec).unwrap();
                // Ten roundings of a number around 1: 11 bits and 8.
                let error = distance(&here, &exact).unwrap();
                assert!(error < tolerance, "{dtype:?} {heads}x{d} {sq}x{sk}: {error}");
            }
        }
    }
}
