//! The CPU kernels against candle's own operations.

use std::cell::Cell;

use candle_core::{Device, Result, Tensor};

use super::*;

thread_local! {
    /// Every test has a thread of its own: it sees the same numbers in every run.
    static STATE: Cell<u64> = const { Cell::new(1) };
}

/// Nearly normal numbers: sums of twelve uniform ones from a linear congruence (Knuth's MMIX).
fn random(shape: &[usize]) -> Tensor {
    let uniform = || {
        let next =
            STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        STATE.set(next);
        (next >> 40) as f32 / (1u64 << 24) as f32
    };
    let count = shape.iter().product();
    let values = std::iter::repeat_with(|| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).take(count);
    Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
}

/// Relative L2 distance.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt()) };
    norm(&(a - b).unwrap()).unwrap() / norm(b).unwrap()
}

fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: Padding) -> Tensor {
    let filters = Filters::new(weight.clone()).unwrap();
    conv2d(x, &filters, bias, (stride, padding), Around::default()).unwrap()
}

#[test]
fn convolutions_agree_with_candle() {
    let cases = [
        // batch, ci, co, h, w, kernel, stride, before, after
        (2, 5, 7, 9, 11, 3, 1, 1, 1),
        (1, 70, 33, 17, 30, 3, 1, 1, 1),
        (2, 64, 300, 6, 5, 3, 2, 1, 1),
        (1, 9, 8, 13, 14, 3, 2, 0, 1),
        (1, 3, 4, 3, 900, 3, 1, 1, 1),
        (2, 40, 24, 8, 8, 1, 1, 0, 0),
        (1, 4, 6, 8, 8, 5, 1, 2, 2),
        (1, 2, 3, 1, 1, 3, 1, 1, 1),
        (1, 2, 3, 1, 1, 3, 2, 1, 1),
        (2, 16, 70, 8, 12, 3, 1, 1, 1),
        (1, 100, 4, 33, 31, 3, 1, 1, 1),
    ];
    for (b, ci, co, h, w, k, stride, before, after) in cases {
        let (x, weight, bias) = (random(&[b, ci, h, w]), random(&[co, ci, k, k]), random(&[co]));
        let padding = Padding { before, after };
        let got = convolve(&x, &weight, &bias, stride, padding);
        let exact = plain::conv2d(&x, &weight, &bias, (stride, padding), Around::default()).unwrap();
        assert!(
            distance(&got, &exact) < 2e-6,
            "{ci}->{co} {h}x{w} k{k} s{stride}: {}",
            distance(&got, &exact)
        );
        // Resized, shifted and added to something, on the way.
        let resized = (2 * h - 1, 2 * w);
        let residual = random(&[
            b,
            co,
            (resized.0 + before + after - k) / stride + 1,
            (resized.1 + before + after - k) / stride + 1,
        ]);
        let shift = random(&[b, co]);
        let around = Around { resized: Some(resized), shift: Some(&shift), residual: Some(&residual) };
        let filters = Filters::new(weight.clone()).unwrap();
        let got = conv2d(&x, &filters, &bias, (stride, padding), around).unwrap();
        let exact = plain::conv2d(&x, &weight, &bias, (stride, padding), around).unwrap();
        assert!(distance(&got, &exact) < 2e-6, "{ci}->{co} {h}x{w} k{k} s{stride} around");
    }
}

#[test]
fn linear_layers_agree_with_candle() {
    for (b, s, k, n) in [(2, 300, 70, 500), (1, 1, 2000, 3), (3, 77, 1100, 129)] {
        let (x, w, bias) = (random(&[b, s, k]), random(&[n, k]), random(&[n]));
        let matrix = Matrix::new(w.clone()).unwrap();
        let exact = plain::linear(&x, &w, Some(&bias)).unwrap();
        assert!(distance(&linear(&x, &matrix, Some(&bias), None).unwrap(), &exact) < 2e-6);
        let residual = random(&[b, s, n]);
        let onto = linear(&x, &matrix, Some(&bias), Some(&residual)).unwrap();
        assert!(distance(&onto, &(exact + &residual).unwrap()) < 2e-6);
        let strided = random(&[b, k, s]).transpose(1, 2).unwrap();
        let exact = plain::linear(&strided, &w, None).unwrap();
        assert!(distance(&linear(&strided, &matrix, None, None).unwrap(), &exact) < 2e-6);
        let rows = x.get(0).unwrap();
        let exact = plain::linear_rows(&rows, &w, Some(&bias)).unwrap();
        assert!(distance(&linear_rows(&rows, &matrix, Some(&bias)).unwrap(), &exact) < 2e-6);
        // Weights in half precision are widened, nothing else is rounded.
        for dtype in [DType::F16, DType::BF16] {
            let half = w.to_dtype(dtype).unwrap();
            let exact = plain::linear(&x, &half.to_dtype(DType::F32).unwrap(), Some(&bias)).unwrap();
            let got = linear(&x, &Matrix::new(half).unwrap(), Some(&bias), None).unwrap();
            // Where products of bf16 are computed as such, activations have 8 bits too.
            let rounds = dtype == DType::BF16 && simd::Isa::best().has_bf16();
            let tolerance = if rounds { 5e-3 } else { 2e-6 };
            assert!(distance(&got, &exact) < tolerance, "{dtype:?}");
        }
    }
}

#[test]
fn attention_agrees_with_candle() {
    let cases = [
        (2, 130, 130, 3, 20),
        (1, 65, 77, 2, 64),
        (1, 9, 9, 1, 600),
        (1, 1200, 1200, 1, 8),
        (2, 5, 2100, 1, 72),
    ];
    for (b, sq, sk, heads, d) in cases {
        let width = heads * d;
        let (q, k, v) = (random(&[b, sq, width]), random(&[b, sk, width]), random(&[b, sk, width]));
        let apart = |t: &Tensor| super::heads(t, heads).unwrap();
        for mask in [Mask::None, Mask::Causal] {
            let spec = AttentionSpec { heads, mask, upcast: false };
            let exact = plain::attention(&apart(&q), &apart(&k), &apart(&v), spec).unwrap();
            assert!(distance(&attention(&q, &k, &v, spec).unwrap(), &exact) < 2e-6);
        }
    }
}

#[test]
fn norms_and_gates_agree_with_candle() {
    let x = (random(&[2, 12, 17, 9]) + 3.0).unwrap();
    let (w, b) = (random(&[12]), random(&[12]));
    for silu in [false, true] {
        // Its own statistics, or the same from elsewhere: measured once, and given.
        let own = plain::group_norm(&x, (&w, &b), 4, (1e-5, silu), None).unwrap();
        assert!(
            distance(&group_norm(&x.clone().into(), (&w, &b), 4, (1e-5, silu), None).unwrap(), &own) < 2e-6
        );
        let first = x.narrow(0, 0, 1).unwrap();
        let found = group_statistics(&first, 4).unwrap();
        let plainly = plain::group_statistics(&first, 4).unwrap();
        assert!(found.iter().zip(&plainly).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {plainly:?}");
        let given = group_norm(&first.clone().into(), (&w, &b), 4, (1e-5, silu), Some(&found)).unwrap();
        assert!(distance(&given, &own.narrow(0, 0, 1).unwrap()) < 2e-6);
        let other: Vec<f32> = found.iter().map(|v| v * 1.5 + 0.1).collect();
        let exact = plain::group_norm(&x, (&w, &b), 4, (1e-5, silu), Some(&other)).unwrap();
        assert!(
            distance(
                &group_norm(&x.clone().into(), (&w, &b), 4, (1e-5, silu), Some(&other)).unwrap(),
                &exact
            ) < 2e-6
        );
        assert!(distance(&exact, &own) > 1e-2, "other statistics, another result");
    }
    let x = random(&[2, 35, 70]);
    let (w, b) = (random(&[70]), random(&[70]));
    let exact = candle_nn::ops::layer_norm(&x, &w, &b, 1e-5).unwrap();
    assert!(distance(&layer_norm(&x, &w, &b, 1e-5).unwrap(), &exact) < 2e-6);
    for outputs in [7, 32, 90] {
        let (w, b) = (random(&[2 * outputs, 70]), random(&[2 * outputs]));
        let exact = plain::geglu(&plain::linear(&x, &w, Some(&b)).unwrap()).unwrap();
        assert!(distance(&geglu(&x, &Matrix::gated(w).unwrap(), &b).unwrap(), &exact) < 2e-6);
    }
}

#[test]
fn images_become_tokens_and_back() {
    let (a, b) = (random(&[2, 5, 3, 4]), random(&[2, 7, 3, 4]));
    let both = concat_channels(&a, &b).unwrap();
    assert_eq!(distance(&both, &Tensor::cat(&[&a, &b], 1).unwrap()), 0.0);
    let rows = tokens(&both).unwrap();
    let plainly = both.flatten_from(2).unwrap().transpose(1, 2).unwrap();
    assert_eq!(distance(&rows, &plainly), 0.0);
    assert_eq!(distance(&image(&rows, 3, 4).unwrap(), &both), 0.0);
}

/// Bytes must not depend on threads or on the other rows of a batch.
#[test]
fn threads_and_batch_do_not_change_a_bit() {
    let bits = |t: Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let (x, w, b) = (random(&[2, 70, 19, 23]), random(&[90, 70, 3, 3]), random(&[90]));
    let (t, tw) = (random(&[2, 300, 600]), random(&[200, 600]));
    let g = random(&[70]);
    let spec = AttentionSpec { heads: 4, mask: Mask::None, upcast: false };
    let matrix = Matrix::new(tw).unwrap();
    let run = |x: &Tensor, t: &Tensor| {
        let first = |t: Tensor| bits(t.narrow(0, 0, 1).unwrap());
        let mut all = first(convolve(x, &w, &b, 1, Padding::all(1)));
        all.extend(first(convolve(x, &w, &b, 2, Padding::all(1))));
        all.extend(first(group_norm(&x.clone().into(), (&g, &g), 7, (1e-5, true), None).unwrap()));
        all.extend(bits(linear(t, &matrix, None, None).unwrap().narrow(0, 0, 1).unwrap()));
        all.extend(bits(attention(t, t, t, spec).unwrap().narrow(0, 0, 1).unwrap()));
        all
    };
    let on = |threads: usize, x: &Tensor, t: &Tensor| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| run(x, t))
    };
    let one = on(1, &x, &t);
    assert!(one == on(2, &x, &t) && one == on(5, &x, &t), "the number of threads changed the result");
    let (x1, t1) = (x.narrow(0, 0, 1).unwrap(), t.narrow(0, 0, 1).unwrap());
    assert!(one == on(2, &x1, &t1), "the batch changed the result");
}

/// Every operation whose memory is not cleared first refuses what would leave some of it unwritten.
#[test]
fn sizes_that_do_not_fit_are_refused() {
    let x = random(&[1, 3, 8]);
    let (matrix, gated) = (Matrix::new(random(&[6, 8])).unwrap(), Matrix::gated(random(&[12, 8])).unwrap());
    assert!(linear(&x, &matrix, Some(&random(&[6])), None).is_ok());
    assert!(linear(&x, &matrix, Some(&random(&[7])), None).is_err());
    assert!(linear(&x, &matrix, None, Some(&random(&[1, 3, 7]))).is_err());
    assert!(geglu(&x, &gated, &random(&[12])).is_ok());
    for wrong in [13, 66, 80] {
        assert!(geglu(&x, &gated, &random(&[wrong])).is_err(), "{wrong}");
    }
    assert!(Matrix::gated(random(&[11, 8])).is_err());
    let image = random(&[1, 20, 8, 8]);
    let filters = Filters::new(random(&[5, 20, 3, 3])).unwrap();
    let shape = (1, Padding { before: 1, after: 1 });
    let with = |bias: usize, around: Around<'_>| conv2d(&image, &filters, &random(&[bias]), shape, around);
    assert!(with(5, Around::default()).is_ok());
    for wrong in [4, 6] {
        assert!(with(wrong, Around::default()).is_err());
    }
    let (shift, residual) = (random(&[1, 6]), random(&[1, 5, 8, 9]));
    assert!(with(5, Around { shift: Some(&shift), ..Around::default() }).is_err());
    assert!(with(5, Around { residual: Some(&residual), ..Around::default() }).is_err());
    assert!(with(5, Around { resized: Some((0, 4)), ..Around::default() }).is_err());
    let shifted = Shifted::from(image.clone());
    let norm = |n: usize, groups: usize, given: Option<&[f32]>| {
        group_norm(&shifted, (&random(&[n]), &random(&[n])), groups, (1e-5, false), given)
    };
    assert!(norm(20, 4, Some(&[0.5; 8])).is_ok());
    assert!(norm(20, 4, Some(&[0.5; 7])).is_err());
    assert!(norm(19, 4, None).is_err() && norm(20, 0, None).is_err() && norm(20, 3, None).is_err());
    assert!(group_statistics(&image, 0).is_err() && group_statistics(&image, 3).is_err());
    assert!(layer_norm(&x, &random(&[7]), &random(&[8]), 1e-5).is_err());
    assert!(layer_norm(&x, &random(&[8]), &random(&[9]), 1e-5).is_err());
    let empty = Tensor::zeros((1, 0, 8), DType::F32, &Device::Cpu).unwrap();
    let spec = |heads| AttentionSpec { heads, mask: Mask::None, upcast: false };
    assert!(attention(&x, &x, &x, spec(2)).is_ok());
    assert!(attention(&x, &x, &x, spec(0)).is_err() && attention(&x, &x, &x, spec(3)).is_err());
    assert!(attention(&x, &empty, &empty, spec(2)).is_err());
    let none = Tensor::zeros((1, 0, 8, 8), DType::F32, &Device::Cpu).unwrap();
    assert!(concat_channels(&image, &none).is_err());
}
