//! Attention in one kernel on NVIDIA GPUs, by cuDNN, or, where that is too old to have it, by FlashAttention-2 (Dao,
//! arXiv 2307.08691; candle-flash-attn): one of them in a process. What it doesn't take, among it f32 and causal masks,
//! is [`plain`]'s.
//!
//! Kernels may be compiled for other architectures than this one, and not all libraries say so: the result is then
//! whatever was in that memory. So each is first tried against [`plain`], and not used where it fails.
//!
//! Invariants: scores and their sums are f32, whatever [`AttentionSpec::upcast`] says; no sum depends on the other
//! images of a batch.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

use super::{AttentionSpec, Mask, cuda, plain};

/// The widest head that is left to them. Wider ones are only the VAE's, which is f32.
const WIDEST: usize = 256;

/// Whose attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Fused {
    Cudnn,
    #[cfg(feature = "flash-attn")]
    Flash,
}

impl Fused {
    /// In the order in which they are tried.
    const ALL: &[Self] = &[
        Self::Cudnn,
        #[cfg(feature = "flash-attn")]
        Self::Flash,
    ];

    /// Heads apart; None where the library has no kernel for these sizes.
    fn attention(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::Cudnn => cuda::attention(q, k, v),
            #[cfg(feature = "flash-attn")]
            Self::Flash => {
                let scale = 1.0 / (q.dim(3)? as f32).sqrt();
                candle_flash_attn::flash_attn(q, k, v, scale, false)?.flatten_from(2).map(Some)
            }
        }
    }
}

/// Whose kernels compute attentions in `dtype` on `device`. A process has one GPU: the first that is asked for is
/// tried, and stands for all.
pub(in crate::model) fn usable(device: &Device, dtype: DType) -> Option<Fused> {
    static WORKS: OnceLock<Option<Fused>> = OnceLock::new();
    if !device.is_cuda() || !matches!(dtype, DType::F16 | DType::BF16) {
        return None;
    }
    *WORKS.get_or_init(|| {
        let mut outcomes = Vec::new();
        let works = Fused::ALL.iter().copied().find(|&fused| {
            let outcome = largest_error(device, fused);
            let works = matches!(outcome, Ok(Some(error)) if error < 0.01);
            outcomes.push((fused, outcome));
            works
        });
        if works.is_none() {
            tracing::warn!(
                ?outcomes,
                "attention in one kernel does not work on this GPU, so it will be slower; cuDNN has one since 9.13.1, \
                 and the feature `flash-attn` where CUDA_COMPUTE_CAP was the GPU's when it was built"
            );
        }
        works
    })
}

/// See [`super::attention()`]; heads apart. None where it is left to [`plain`].
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> Result<Option<Tensor>> {
    let width = q.dim(3)?;
    if spec.mask != Mask::None || width > WIDEST || !width.is_multiple_of(8) {
        return Ok(None);
    }
    match usable(q.device(), q.dtype()) {
        Some(fused) => fused.attention(q, k, v),
        None => Ok(None),
    }
}

/// How far a small attention is from [`plain`]'s, at most: a thousandth by rounding alone. Infinite
/// where it is not a number; None where there is none.
fn largest_error(device: &Device, fused: Fused) -> Result<Option<f32>> {
    let (heads, d) = (2, 64);
    // Queries large enough that single keys count: results lie within 0.6 of the values' middle.
    let states = |rows: usize, step: usize, (scale, shift): (f32, f32)| {
        let values: Vec<f32> =
            (0..rows * heads * d).map(|i| ((i * step % 101) as f32 / 50.0 - 1.0) * scale + shift).collect();
        Tensor::from_vec(values, (1, rows, heads, d), device)?.to_dtype(DType::F16)
    };
    // Other results for each: those of the one before may still be in that memory.
    let around = 1.0 + fused as usize as f32;
    let (q, k) = (states(100, 37, (16.0, 0.0))?, states(77, 59, (1.0, 0.0))?);
    let v = states(77, 83, (1.0, around))?;
    let spec = AttentionSpec { heads, mask: Mask::None, upcast: true };
    // In this order: memory that the right result was in before would pass for an answer.
    let Some(here) = fused.attention(&q, &k, &v)? else { return Ok(None) };
    let there = plain::attention(&q, &k, &v, spec)?;
    distance(&here, &there).map(Some)
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
    fn agree_with_plain_attention() {
        let device = Device::new_cuda(0).unwrap();
        let exact_spec = |heads| AttentionSpec { heads, mask: Mask::None, upcast: true };
        // batch, heads, head width, queries, keys: self-attention, text, a width between two kernels
        for (batch, heads, d, sq, sk) in
            [(2, 3, 32, 256, 256), (2, 10, 64, 4096, 4096), (1, 20, 64, 1000, 77), (1, 2, 40, 70, 33)]
        {
            for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
                let states = |s| Tensor::randn(0f32, 1.0, (batch, s, heads, d), &device)?.to_dtype(dtype);
                let (q, k, v) = (states(sq).unwrap(), states(sk).unwrap(), states(sk).unwrap());
                let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
                let exact = plain::attention(&wide(&q), &wide(&k), &wide(&v), exact_spec(heads)).unwrap();
                for &fused in Fused::ALL {
                    let here = fused.attention(&q, &k, &v).unwrap();
                    let here = here.unwrap_or_else(|| panic!("{fused:?} has no {heads}x{d} {sq}x{sk}"));
                    // Ten roundings of a number around 1: 11 bits and 8.
                    let error = distance(&here, &exact).unwrap();
                    assert!(error < tolerance, "{fused:?} {dtype:?} {heads}x{d} {sq}x{sk}: {error}");
                }
            }
        }
    }

    /// Projections that were computed together lie in one tensor, side by side.
    #[test]
    #[ignore = "needs an NVIDIA GPU, and kernels built for it"]
    fn read_parts_of_a_tensor() {
        let device = Device::new_cuda(0).unwrap();
        let all = Tensor::randn(0f32, 1.0, (2, 300, 9, 64), &device).unwrap().to_dtype(DType::F16).unwrap();
        let [q, k, v] = [0, 3, 6].map(|first| all.narrow(2, first, 3).unwrap());
        for &fused in Fused::ALL {
            let here = fused.attention(&q, &k, &v).unwrap().unwrap();
            let packed = [&q, &k, &v].map(|t| t.contiguous().unwrap());
            let there = fused.attention(&packed[0], &packed[1], &packed[2]).unwrap().unwrap();
            assert_eq!(distance(&here, &there).unwrap(), 0.0, "{fused:?}");
        }
    }
}
