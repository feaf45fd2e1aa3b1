//! Every operation against the CPU's, which is tested against candle's own.

use candle_core::{DType, Device, Tensor};

use super::super::{
    Around, AttentionSpec, Filters, Mask, Matrix, Padding, Staging, attention, concat_channels, conv2d,
    conv2d_to_norm, geglu, group_norm, group_statistics, image, layer_norm, linear, linear_rows, tokens,
};

/// A device, and the values that it computes with.
struct Place {
    device: Device,
    dtype: DType,
}

/// The same random values as everywhere, rounded to `dtype`.
struct Draws {
    dtype: DType,
    drawn: Vec<Tensor>,
}

impl Draws {
    fn take(&mut self, place: &Place, shape: &[usize], next: &mut usize) -> Tensor {
        if *next == self.drawn.len() {
            let values = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            self.drawn.push(values.to_dtype(self.dtype).unwrap());
        }
        let values = &self.drawn[*next];
        *next += 1;
        assert_eq!(values.dims(), shape);
        values.to_device(&place.device).unwrap().to_dtype(place.dtype).unwrap()
    }
}

/// The relative distance of what `run` makes on the GPU in `dtype` from what it makes on the CPU in f32, of the same
/// values.
fn distance(dtype: DType, run: impl Fn(&mut dyn FnMut(&[usize]) -> Tensor) -> Tensor) -> f32 {
    let mut draws = Draws { dtype, drawn: Vec::new() };
    let mut on = |place: Place| {
        let mut next = 0;
        let out = run(&mut |shape| draws.take(&place, shape, &mut next));
        out.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap()
    };
    let exact = on(Place { device: Device::Cpu, dtype: DType::F32 });
    let got = on(Place { device: super::open(0).unwrap(), dtype });
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(got - &exact).unwrap()) / norm(&exact)
}

fn check(what: &str, run: impl Fn(&mut dyn FnMut(&[usize]) -> Tensor) -> Tensor) {
    for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::F16, 1.5e-3), (DType::BF16, 1.2e-2)] {
        let error = distance(dtype, &run);
        assert!(error < tolerance, "{what} in {dtype:?}: {error}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn linear_layers_agree_with_the_cpu() {
    for (batch, rows, inputs, outputs) in
        [(1, 1, 8, 8), (2, 77, 64, 192), (1, 13, 33, 50), (3, 256, 320, 640)]
    {
        let small = (inputs as f64).sqrt();
        check("linear", |random| {
            let (x, w) = (random(&[batch, rows, inputs]), random(&[outputs, inputs]));
            linear(&x, &Matrix::new((w / small).unwrap()).unwrap(), None, None).unwrap()
        });
        check("linear with bias", |random| {
            let (x, w, b) = (random(&[batch, rows, inputs]), random(&[outputs, inputs]), random(&[outputs]));
            linear(&x, &Matrix::new((w / small).unwrap()).unwrap(), Some(&b), None).unwrap()
        });
        check("linear with bias and residual", |random| {
            let (x, w, b) = (random(&[batch, rows, inputs]), random(&[outputs, inputs]), random(&[outputs]));
            let residual = random(&[batch, rows, outputs]);
            linear(&x, &Matrix::new((w / small).unwrap()).unwrap(), Some(&b), Some(&residual)).unwrap()
        });
        check("linear of a part", |random| {
            let (x, w) = (random(&[batch + 1, rows, inputs]), random(&[outputs, inputs]));
            let x = x.narrow(0, 1, batch).unwrap();
            linear(&x, &Matrix::new((w / small).unwrap()).unwrap(), None, None).unwrap()
        });
        check("rows", |random| {
            let (x, w, b) = (random(&[batch, inputs]), random(&[outputs, inputs]), random(&[outputs]));
            linear_rows(&x, &Matrix::new((w / small).unwrap()).unwrap(), Some(&b)).unwrap()
        });
        check("gated", |random| {
            let (x, w, b) =
                (random(&[batch, rows, inputs]), random(&[2 * outputs, inputs]), random(&[2 * outputs]));
            geglu(&x, &Matrix::gated((w / small).unwrap()).unwrap(), &b).unwrap()
        });
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn convolutions_agree_with_the_cpu() {
    let all = Padding::all;
    // batch, in, out, h, w, kernel, stride, padding
    let cases = [
        (2, 32, 64, 16, 16, 3, 1, all(1)),
        (1, 4, 32, 9, 13, 3, 1, all(1)),
        (2, 64, 4, 16, 12, 3, 1, all(1)),
        (1, 24, 40, 8, 8, 1, 1, all(0)),
        (1, 7, 5, 10, 6, 3, 1, all(1)),
        (2, 32, 32, 16, 10, 3, 2, all(1)),
        (1, 32, 32, 16, 10, 3, 2, Padding { before: 0, after: 1 }),
    ];
    for (batch, inputs, outputs, h, w, k, stride, padding) in cases {
        let small = ((inputs * k * k) as f64).sqrt();
        let [ho, wo] = [h, w].map(|n| (n + padding.before + padding.after - k) / stride + 1);
        let drawn = |random: &mut dyn FnMut(&[usize]) -> Tensor| {
            let x = random(&[batch, inputs, h, w]);
            let filters = Filters::new((random(&[outputs, inputs, k, k]) / small).unwrap()).unwrap();
            (x, filters, random(&[outputs]))
        };
        check("convolution", |random| {
            let (x, filters, bias) = drawn(random);
            conv2d(&x, &filters, &bias, (stride, padding), Around::default()).unwrap()
        });
        check("convolution with shift and residual", |random| {
            let (x, filters, bias) = drawn(random);
            let (shift, residual) = (random(&[batch, outputs]), random(&[batch, outputs, ho, wo]));
            let around = Around { shift: Some(&shift), residual: Some(&residual), resized: None };
            conv2d(&x, &filters, &bias, (stride, padding), around).unwrap()
        });
        if (stride, padding.before) == (1, padding.after) {
            check("convolution of a resized image", |random| {
                let (x, filters, bias) = drawn(random);
                let around = Around { resized: Some((2 * h - 1, 2 * w)), ..Around::default() };
                conv2d(&x, &filters, &bias, (stride, padding), around).unwrap()
            });
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn norms_agree_with_the_cpu() {
    for (batch, channels, groups, h, w) in [
        (2, 64, 32, 16, 16),
        (1, 320, 32, 33, 7),
        (2, 12, 4, 5, 5),
        (1, 1280, 32, 8, 8),
        (1, 64, 8, 200, 170),
    ] {
        for silu in [false, true] {
            check("group normalisation", |random| {
                // Means far from 0.
                let x = (random(&[batch, channels, h, w]) + 5.0).unwrap();
                let (weight, bias) = (random(&[channels]), random(&[channels]));
                group_norm(&x.into(), (&weight, &bias), groups, (1e-5, silu), None).unwrap()
            });
            check("group normalisation with given statistics", |random| {
                let x = random(&[1, channels, h, w]);
                let (weight, bias) = (random(&[channels]), random(&[channels]));
                let given: Vec<f32> = (0..2 * groups).map(|i| 0.5 + i as f32 / 100.0).collect();
                group_norm(&x.into(), (&weight, &bias), groups, (1e-5, silu), Some(&given)).unwrap()
            });
            check("group normalisation after a convolution", |random| {
                let x = random(&[batch, channels, h, w]);
                let filters = Filters::new((random(&[channels, channels, 1, 1]) / 10.0).unwrap()).unwrap();
                let (bias, shift) = (random(&[channels]), random(&[batch, channels]));
                let around = Around { shift: Some(&shift), ..Around::default() };
                let hidden = conv2d_to_norm(&x, &filters, &bias, (1, Padding::all(0)), around).unwrap();
                let weight = random(&[channels]);
                group_norm(&hidden, (&weight, &bias), groups, (1e-5, silu), None).unwrap()
            });
        }
        check("statistics", |random| {
            let x = random(&[1, channels, h + 2, w]).narrow(2, 1, h).unwrap();
            let found = group_statistics(&x, groups).unwrap();
            Tensor::from_slice(&found, found.len(), &Device::Cpu).unwrap()
        });
    }
    for (rows, width) in [(5, 640), (64, 1280), (3, 7), (1, 72)] {
        check("layer normalisation", |random| {
            let (x, weight, bias) = (random(&[1, rows, width]), random(&[width]), random(&[width]));
            layer_norm(&(x + 3.0).unwrap(), &weight, &bias, 1e-5).unwrap()
        });
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn images_and_attention_agree_with_the_cpu() {
    for (a, b) in [(32, 64), (5, 8)] {
        check("channels side by side", |random| {
            let (x, y) = (random(&[2, a, 6, 5]), random(&[2, b, 6, 5]));
            concat_channels(&x, &y).unwrap()
        });
        check("tokens", |random| {
            image(&(tokens(&random(&[2, a, 6, 5])).unwrap() * 2.0).unwrap(), 6, 5).unwrap()
        });
    }
    for (mask, keys) in [(Mask::None, 77), (Mask::Causal, 100)] {
        check("attention", |random| {
            let (q, k, v) =
                (random(&[2, 100, 3 * 64]), random(&[2, keys, 3 * 64]), random(&[2, keys, 3 * 64]));
            attention(&q, &k, &v, AttentionSpec { heads: 3, mask, upcast: true }).unwrap()
        });
    }
    check("attention of joined projections", |random| {
        let x = random(&[2, 64, 96]);
        let weights = [random(&[96, 96]), random(&[96, 96]), random(&[96, 96])].map(|w| (w / 9.8).unwrap());
        let spec = AttentionSpec { heads: 3, mask: Mask::None, upcast: true };
        let parts: Vec<Tensor> = match Matrix::joined(&weights).unwrap() {
            Some(all) => {
                let out = linear(&x, &all, None, None).unwrap().reshape((2, 64, 9, 32)).unwrap();
                (0..3).map(|i| out.narrow(2, 3 * i, 3).unwrap()).collect()
            }
            None => weights.map(|w| linear(&x, &Matrix::new(w).unwrap(), None, None).unwrap()).to_vec(),
        };
        attention(&parts[0], &parts[1], &parts[2], spec).unwrap()
    });
}

/// A network's calls with other inputs each time, two on their way at a time.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn recorded_calls_give_what_they_give_when_they_are_sent() {
    let device = super::open(0).unwrap();
    let random = |shape: &[usize]| {
        Tensor::randn(0f32, 0.1, shape, &Device::Cpu)
            .unwrap()
            .to_dtype(DType::F16)
            .unwrap()
            .to_device(&device)
    };
    let filters = Filters::new(random(&[32, 4, 3, 3]).unwrap()).unwrap();
    let back = Filters::new(random(&[4, 32, 3, 3]).unwrap()).unwrap();
    let (bias, less, g) = (random(&[32]).unwrap(), random(&[4]).unwrap(), random(&[32]).unwrap());
    let shift = Matrix::new(random(&[32, 8]).unwrap()).unwrap();
    let spec = AttentionSpec { heads: 1, mask: Mask::None, upcast: true };
    let network = |inputs: &[Tensor]| {
        let shift = linear_rows(&inputs[1].to_dtype(DType::F16)?, &shift, None)?;
        let around = Around { shift: Some(&shift), ..Around::default() };
        let shape = (1, Padding::all(1));
        let hidden = conv2d_to_norm(&inputs[0].to_dtype(DType::F16)?, &filters, &bias, shape, around)?;
        let hidden = tokens(&group_norm(&hidden, (&g, &g), 8, (1e-5, true), None)?)?;
        let mixed = image(&attention(&hidden, &hidden, &hidden, spec)?, 16, 16)?;
        conv2d(&mixed, &back, &less, shape, Around::default())?.to_dtype(DType::F32)?.contiguous()
    };
    let values = |seed: usize, n: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 97.0 - 0.5).collect()
    };
    let shapes = [vec![2, 4, 16, 16], vec![2, 8]];
    let inputs = |seed| shapes.clone().map(|shape| (values(seed, shape.iter().product()), shape)).to_vec();
    let (mut staging, mut replay) = (Staging::default(), super::Replay::default());
    let mut running = Vec::new();
    let mut all = Vec::new();
    for seed in 0..6 {
        let out = replay.run(&mut staging, &inputs(seed), device.as_cuda_device().unwrap(), network).unwrap();
        running.push(staging.download(&out).unwrap());
        if seed > 0 {
            all.push(staging.finish(running.remove(0)).unwrap());
        }
    }
    all.push(staging.finish(running.remove(0)).unwrap());
    assert!(replay.is_recorded());
    for (seed, got) in all.into_iter().enumerate() {
        let there = inputs(seed).into_iter().map(|(v, s)| Tensor::from_vec(v, s, &device).unwrap());
        let exact = network(&there.collect::<Vec<_>>()).unwrap();
        assert!(got == exact.flatten_all().unwrap().to_vec1::<f32>().unwrap(), "call {seed}");
    }
}
