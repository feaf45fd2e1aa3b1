//! Guidance latents, and the mixing of their phases into a patch.
//!
//! Method, rules 3 and 7: `guide_s = sqrt(abar(t_s)) guide + sqrt(1 - abar(t_s)) n`, never stored but
//! computed for any window; a guided patch keeps the magnitudes of its own spectrum and turns its
//! phases towards those of the guidance.

use std::collections::HashMap;
use std::sync::Arc;

use gigasmith_types::Array;
use multiversion::multiversion;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};

use super::noise::{NoiseField, crop_in};
use super::spare::Spare;
use super::units::{LatentSize, Window};

/// What a stage is guided by: the encoded, enlarged previous picture, and the noise field n.
#[derive(Debug, Clone)]
pub struct Guide {
    latent: Array,
    noise: NoiseField,
}

impl Guide {
    /// `latent`: `scaling_factor * (mean + std * noise)` of the encoding, (channels, height, width).
    pub fn new(latent: Array, noise: NoiseField) -> Self {
        Self { latent, noise }
    }

    /// The clean guide, (channels, height, width).
    pub fn latent(&self) -> &Array {
        &self.latent
    }

    /// `sqrt(abar) guide + sqrt(1 - abar) n` in a window.
    pub fn at(&self, alphas_cumprod: f32, window: Window) -> Array {
        self.at_in(alphas_cumprod, window, &Spare::default())
    }

    /// The same in memory that is there.
    pub(super) fn at_in(&self, alphas_cumprod: f32, window: Window, spare: &Spare) -> Array {
        let (signal, noise) = (alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt());
        let mut latent = crop_in(&self.latent, window, spare.values());
        let field = self.noise.window_in(window, spare.values());
        latent.data_mut().iter_mut().zip(field.data()).for_each(|(x, &n)| *x = signal * *x + noise * n);
        spare.give(field);
        latent
    }
}

/// Columns of a spectrum that are transformed together: a row of them fills a line of the cache.
const COLUMNS: usize = 8;

/// Two-dimensional real transforms of one size, and the room they need.
struct Transforms {
    size: LatentSize,
    row_forward: Arc<dyn RealToComplex<f32>>,
    row_inverse: Arc<dyn ComplexToReal<f32>>,
    column_forward: Arc<dyn Fft<f32>>,
    column_inverse: Arc<dyn Fft<f32>>,
}

/// Mixes phases; keeps the plans of the sizes it has met.
#[derive(Default)]
pub struct PhaseMixer {
    transforms: HashMap<LatentSize, Transforms>,
    own: Vec<Complex<f32>>,
    guide: Vec<Complex<f32>>,
    column: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl std::fmt::Debug for PhaseMixer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PhaseMixer").field("sizes", &self.transforms.keys()).finish_non_exhaustive()
    }
}

impl PhaseMixer {
    /// Mixes the phases of `guide` into `latent` in place; both (channels, height, width). Per channel,
    /// with F = rfft2(latent) and G = rfft2(guide): keep |F|, take the phase of F/|F| + G/|G|.
    pub fn mix(&mut self, latent: &mut Array, guide: &mut Array) {
        let (_, height, width) = latent.chw().expect("a latent has three axes");
        assert_eq!(latent.shape(), guide.shape(), "a guide is shaped as its patch");
        let size = LatentSize { height, width };
        let transforms = self.transforms.entry(size).or_insert_with(|| Transforms::new(size));
        let spectrum = height * (width / 2 + 1);
        self.own.resize(spectrum, Complex::default());
        self.guide.resize(spectrum, Complex::default());
        self.column.resize(COLUMNS * height, Complex::default());
        self.scratch.resize(transforms.scratch_len(), Complex::default());
        let area = size.area();
        for (x, g) in latent.data_mut().chunks_exact_mut(area).zip(guide.data_mut().chunks_exact_mut(area)) {
            let mut room = (&mut self.column[..], &mut self.scratch[..]);
            transforms.forward(x, &mut self.own, &mut room);
            transforms.forward(g, &mut self.guide, &mut room);
            mix_spectra(&mut self.own, &self.guide, size);
            transforms.inverse(&mut self.own, x, &mut room);
        }
    }
}

type Room<'a> = (&'a mut [Complex<f32>], &'a mut [Complex<f32>]);

impl Transforms {
    fn new(size: LatentSize) -> Self {
        let (mut real, mut complex) = (RealFftPlanner::new(), FftPlanner::new());
        Self {
            size,
            row_forward: real.plan_fft_forward(size.width),
            row_inverse: real.plan_fft_inverse(size.width),
            column_forward: complex.plan_fft_forward(size.height),
            column_inverse: complex.plan_fft_inverse(size.height),
        }
    }

    fn scratch_len(&self) -> usize {
        let rows = self.row_forward.get_scratch_len().max(self.row_inverse.get_scratch_len());
        let forward = self.column_forward.get_inplace_scratch_len();
        rows.max(forward).max(self.column_inverse.get_inplace_scratch_len())
    }

    /// Unnormalised rfft2. Overwrites `image`.
    fn forward(&self, image: &mut [f32], spectrum: &mut [Complex<f32>], room: &mut Room<'_>) {
        let bins = self.size.width / 2 + 1;
        for (row, out) in image.chunks_exact_mut(self.size.width).zip(spectrum.chunks_exact_mut(bins)) {
            let scratch = &mut room.1[..self.row_forward.get_scratch_len()];
            self.row_forward.process_with_scratch(row, out, scratch).expect("lengths are the plan's");
        }
        self.columns(&*self.column_forward, spectrum, room);
    }

    /// The inverse of [`Self::forward`]. Overwrites `spectrum`.
    fn inverse(&self, spectrum: &mut [Complex<f32>], image: &mut [f32], room: &mut Room<'_>) {
        let LatentSize { width, .. } = self.size;
        let bins = width / 2 + 1;
        self.columns(&*self.column_inverse, spectrum, room);
        for (row, out) in spectrum.chunks_exact_mut(bins).zip(image.chunks_exact_mut(width)) {
            // The first bin and, for an even width, the last are real: what rounding left is dropped.
            row[0].im = 0.0;
            if width.is_multiple_of(2) {
                row[bins - 1].im = 0.0;
            }
            let scratch = &mut room.1[..self.row_inverse.get_scratch_len()];
            self.row_inverse.process_with_scratch(row, out, scratch).expect("lengths are the plan's");
        }
        let scale = 1.0 / self.size.area() as f32;
        image.iter_mut().for_each(|v| *v *= scale);
    }

    fn columns(&self, fft: &dyn Fft<f32>, spectrum: &mut [Complex<f32>], room: &mut Room<'_>) {
        let LatentSize { height, width } = self.size;
        let bins = width / 2 + 1;
        let (columns, scratch) = room;
        for first in (0..bins).step_by(COLUMNS) {
            let count = COLUMNS.min(bins - first);
            let columns = &mut columns[..count * height];
            for (y, row) in spectrum.chunks_exact(bins).enumerate() {
                let row = &row[first..first + count];
                columns[y..].iter_mut().step_by(height).zip(row).for_each(|(c, s)| *c = *s);
            }
            fft.process_with_scratch(columns, &mut scratch[..fft.get_inplace_scratch_len()]);
            for (y, row) in spectrum.chunks_exact_mut(bins).enumerate() {
                let row = &mut row[first..first + count];
                row.iter_mut().zip(columns[y..].iter().step_by(height)).for_each(|(s, c)| *s = *c);
            }
        }
    }
}

/// Keeps |F| and replaces its phase by that of F/|F| + G/|G|; the phase of 0 is 0.
fn mix_spectra(own: &mut [Complex<f32>], guide: &[Complex<f32>], size: LatentSize) {
    let bins = size.width / 2 + 1;
    // Self-conjugate bins are real. Where the signs agree F stays; where they oppose the sum is 0 but
    // for rounding, which would decide between +-i|F|, and the inverse transform drops imaginary
    // parts there: so 0.
    let (rows, columns) = (half_points(size.height), half_points(size.width));
    let real = rows.flat_map(|r| columns.clone().map(move |c| r * bins + c));
    let decided: Vec<(usize, f32)> = real
        .map(|at| (at, if (own[at].re < 0.0) == (guide[at].re < 0.0) { own[at].re } else { 0.0 }))
        .collect();
    turn_phases(own, guide);
    decided.into_iter().for_each(|(at, value)| own[at] = Complex::new(value, 0.0));
}

/// |F| times the phase of F/|F| + G/|G|, in every bin.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
fn turn_phases(own: &mut [Complex<f32>], guide: &[Complex<f32>]) {
    for (f, &g) in own.iter_mut().zip(guide) {
        *f = unit(unit(*f) + unit(g)) * magnitude(*f);
    }
}

/// Frequencies that are their own negative: 0, and half the length when that is even.
fn half_points(length: usize) -> impl Iterator<Item = usize> + Clone {
    [Some(0), length.is_multiple_of(2).then_some(length / 2)].into_iter().flatten()
}

/// |z|, by operations that every machine rounds alike (`hypot` is not one).
#[inline(always)]
fn magnitude(z: Complex<f32>) -> f32 {
    z.norm_sqr().sqrt()
}

#[inline(always)]
fn unit(z: Complex<f32>) -> Complex<f32> {
    let norm = magnitude(z);
    // Both are computed, and one is taken: vectors do not branch.
    let quotient = z / norm;
    let is_positive = norm > 0.0;
    Complex::new(if is_positive { quotient.re } else { 1.0 }, if is_positive { quotient.im } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::philox::Purpose;
    use super::*;

    fn noise(seed: u64, height: usize, width: usize) -> Array {
        NoiseField::from_seed(seed, 0, Purpose::Noise, 2).whole(LatentSize { height, width })
    }

    /// The definition, by sums over pixels in f64.
    fn plain(x: &[f32], g: &[f32], height: usize, width: usize) -> Vec<f64> {
        let dft = |values: &[f32]| -> Vec<(f64, f64)> {
            let turn = std::f64::consts::TAU;
            let bin = |u: usize, v: usize| {
                (0..height * width).fold((0.0, 0.0), |(re, im), i| {
                    let (y, x) = (i / width, i % width);
                    let angle = turn * ((u * y) as f64 / height as f64 + (v * x) as f64 / width as f64);
                    (re + f64::from(values[i]) * angle.cos(), im - f64::from(values[i]) * angle.sin())
                })
            };
            (0..height * width).map(|i| bin(i / width, i % width)).collect()
        };
        let (f, g) = (dft(x), dft(g));
        let own = |n: usize, length: usize| (2 * n).is_multiple_of(length);
        let mixed: Vec<(f64, f64)> = (0..height * width)
            .map(|i| {
                let (norm, guide) = (f[i].0.hypot(f[i].1), g[i].0.hypot(g[i].1));
                if own(i / width, height) && own(i % width, width) {
                    return if (f[i].0 < 0.0) == (g[i].0 < 0.0) { f[i] } else { (0.0, 0.0) };
                }
                let sum = (f[i].0 / norm + g[i].0 / guide, f[i].1 / norm + g[i].1 / guide);
                let length = sum.0.hypot(sum.1);
                (sum.0 / length * norm, sum.1 / length * norm)
            })
            .collect();
        let turn = std::f64::consts::TAU;
        let pixel = |y: usize, x: usize| {
            (0..height * width).fold(0.0, |sum, i| {
                let (u, v) = (i / width, i % width);
                let angle = turn * ((u * y) as f64 / height as f64 + (v * x) as f64 / width as f64);
                sum + mixed[i].0 * angle.cos() - mixed[i].1 * angle.sin()
            }) / (height * width) as f64
        };
        (0..height * width).map(|i| pixel(i / width, i % width)).collect()
    }

    #[test]
    fn mixing_follows_the_definition() {
        for (height, width) in [(8, 8), (6, 5), (5, 6), (7, 3), (1, 4), (4, 1), (1, 1)] {
            let (mut x, mut g) = (noise(1, height, width), noise(2, height, width));
            let expected = plain(&x.data()[..height * width], &g.data()[..height * width], height, width);
            PhaseMixer::default().mix(&mut x, &mut g);
            for (ours, exact) in x.data().iter().zip(expected) {
                // f32 transforms of a few dozen values near 1.
                assert!((f64::from(*ours) - exact).abs() < 5e-6, "{height}x{width}: {ours} {exact}");
            }
        }
    }

    proptest! {
        #[test]
        fn equal_inputs_stay_as_they_are(seed: u64, height in 1usize..40, width in 1usize..40) {
            let original = noise(seed, height, width);
            let (mut x, mut g) = (original.clone(), original.clone());
            PhaseMixer::default().mix(&mut x, &mut g);
            for (a, b) in x.data().iter().zip(original.data()) {
                prop_assert!((a - b).abs() < 1e-5, "{} {}", a, b);
            }
        }
    }
}
