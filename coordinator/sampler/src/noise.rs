//! Fields of standard normal noise over a whole canvas, any window of which is computed on demand.
//!
//! Each value depends on its own (channel, row, column) and the seed alone, so windows agree wherever
//! they overlap. The normal transform uses only the four operations and square roots, which every
//! IEEE machine rounds alike: the same seed gives the same noise everywhere.

use gigasmith_types::Array;
use multiversion::multiversion;

use super::philox::{Philox, Purpose};
use super::units::{LatentSize, Window};

/// Noise over a canvas of (channels, height, width).
#[derive(Debug, Clone)]
pub enum NoiseField {
    /// Computed from a seed.
    Counter(CounterNoise),
    /// Given: recorded noise, or PyTorch's.
    Stored(Array),
}

impl NoiseField {
    /// The field of one stage (0: the base) for one purpose.
    pub fn from_seed(seed: u64, stage: u32, purpose: Purpose, channels: usize) -> Self {
        Self::Counter(CounterNoise { philox: Philox::new(seed, stage, purpose), channels })
    }

    /// The values in a window, (channels, height, width).
    pub fn window(&self, window: Window) -> Array {
        self.window_in(window, Vec::new())
    }

    /// The same in the memory of an empty vector.
    pub fn window_in(&self, window: Window, room: Vec<f32>) -> Array {
        match self {
            Self::Counter(noise) => noise.window(window, room),
            Self::Stored(array) => crop_in(array, window, room),
        }
    }

    /// The whole field.
    pub fn whole(&self, size: LatentSize) -> Array {
        self.window(size.rect())
    }
}

/// Copies a window out of a (channels, height, width) array.
pub fn crop(array: &Array, window: Window) -> Array {
    crop_in(array, window, Vec::new())
}

/// The same in the memory of an empty vector.
pub fn crop_in(array: &Array, window: Window, mut out: Vec<f32>) -> Array {
    let (channels, height, width) = array.chw().expect("a field has three axes");
    out.reserve(channels * window.area());
    for plane in array.data().chunks_exact(height * width) {
        for row in plane.chunks_exact(width).skip(window.top).take(window.height) {
            out.extend_from_slice(&row[window.left..window.right()]);
        }
    }
    Array::new([channels, window.height, window.width], out).expect("a window lies inside its canvas")
}

/// Counter-based noise: unbounded, stateless.
#[derive(Debug, Clone, Copy)]
pub struct CounterNoise {
    philox: Philox,
    channels: usize,
}

impl CounterNoise {
    /// The values in a window. Four columns of one row and channel share a Philox position.
    fn window(&self, window: Window, mut data: Vec<f32>) -> Array {
        data.reserve(self.channels * window.area());
        for channel in 0..self.channels {
            for row in window.top..window.bottom() {
                self.row(channel, row, window.left, window.right(), &mut data);
            }
        }
        Array::new([self.channels, window.height, window.width], data).expect("every value was pushed")
    }

    fn row(&self, channel: usize, row: usize, left: usize, right: usize, out: &mut Vec<f32>) {
        // 2^24 rows, 2^26 groups of columns, 2^14 channels.
        let base = (channel as u64) << 50 | (row as u64) << 26;
        let mut values = [[0f32; 4]; GROUPS];
        for group in (left / 4..right.div_ceil(4)).step_by(GROUPS) {
            normals(&self.philox, base | group as u64, &mut values);
            let first = group * 4;
            let inside = left.max(first) - first..(right - first).min(4 * GROUPS);
            out.extend_from_slice(&values.as_flattened()[inside]);
        }
    }
}

/// Groups of four columns that are computed together: vectors of any machine fit in.
const GROUPS: usize = 32;

/// The four normals of every position from `position` on. The same on every instruction set: there is nothing
/// in it that one of them could round differently.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
fn normals(philox: &Philox, position: u64, out: &mut [[f32; 4]; GROUPS]) {
    let [a, b, c, d] = philox.run::<GROUPS>(position);
    let words = a.iter().zip(&b).zip(c.iter().zip(&d));
    for (out, ((a, b), (c, d))) in out.iter_mut().zip(words) {
        let ((p, q), (r, s)) = (normal_pair(*a, *b), normal_pair(*c, *d));
        *out = [p, q, r, s];
    }
}

/// Two independent standard normals from two random words (Box and Muller, 1958).
#[inline(always)]
fn normal_pair(a: u32, b: u32) -> (f32, f32) {
    // 24 bits each, exact in f32: the radius from (0, 1], the angle from [0, 1) of a turn.
    let u = ((a >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
    let radius = (-2.0 * ln(u)).sqrt();
    let (sin, cos) = sin_cos_turn((b >> 8) as f32 * (1.0 / 16_777_216.0));
    (radius * cos, radius * sin)
}

/// Natural logarithm of a normal positive number, within 2 ulp: exponent times ln 2 plus the series of
/// `2 atanh((m - 1) / (m + 1))` over a mantissa m in [sqrt(1/2), sqrt(2)).
#[inline(always)]
fn ln(x: f32) -> f32 {
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let exponent = (bits as i32) >> 23;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF_BITS);
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    let series = z * (0.666_666_7 + z * (0.4 + z * (0.285_714_3 + z * (0.222_222_2 + z * 0.181_818_2))));
    exponent as f32 * std::f32::consts::LN_2 + (2.0 * s + s * series)
}

/// Sine and cosine of a fraction of a turn in [0, 1), within 2e-7: Taylor series on an eighth of a turn
/// either way.
#[inline(always)]
fn sin_cos_turn(turn: f32) -> (f32, f32) {
    // Of what is not negative, the whole part is the floor.
    let quarter = (turn * 4.0 + 0.5) as i32;
    let x = (turn - quarter as f32 * 0.25) * std::f32::consts::TAU;
    let z = x * x;
    let sin = x
        * (1.0
            - z * (1.0 / 6.0)
                * (1.0 - z * (1.0 / 20.0) * (1.0 - z * (1.0 / 42.0) * (1.0 - z * (1.0 / 72.0)))));
    let cos = 1.0 - z * 0.5 * (1.0 - z * (1.0 / 12.0) * (1.0 - z * (1.0 / 30.0) * (1.0 - z * (1.0 / 56.0))));
    // (sin, cos), (cos, -sin), (-sin, -cos), (-cos, sin), without a branch.
    let quarter = quarter as u32;
    let (first, second) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let negated = |v: f32, sign: u32| f32::from_bits(v.to_bits() ^ (sign & 2) << 30);
    (negated(first, quarter), negated(second, quarter + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_normal_transform_matches_the_exact_one() {
        let philox = Philox::new(11, 0, Purpose::Noise);
        for i in 0..20_000 {
            let [a, b, ..] = philox.at(i);
            let u = (f64::from(a >> 8) + 1.0) / 16_777_216.0;
            let angle = f64::from(b >> 8) / 16_777_216.0 * std::f64::consts::TAU;
            let radius = (-2.0 * u.ln()).sqrt();
            let (p, q) = normal_pair(a, b);
            // Rounding of f32 arithmetic on values up to 5.8.
            assert!((f64::from(p) - radius * angle.cos()).abs() < 3e-6, "{a} {b}");
            assert!((f64::from(q) - radius * angle.sin()).abs() < 3e-6, "{a} {b}");
        }
    }

    #[test]
    fn the_field_is_standard_normal() {
        let size = LatentSize { height: 200, width: 250 };
        let field = NoiseField::from_seed(5, 1, Purpose::Noise, 4).whole(size);
        let n = field.data().len() as f64;
        let moment = |k: i32| field.data().iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n;
        // Four standard errors of each moment with 200,000 values.
        assert!(moment(1).abs() < 0.009, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.013, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.035, "skew {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.09, "kurtosis {}", moment(4));
        let neighbours: f64 = field.data().windows(2).map(|p| f64::from(p[0] * p[1])).sum::<f64>() / n;
        assert!(neighbours.abs() < 0.009, "correlation {neighbours}");
    }

    proptest! {
        #[test]
        fn windows_agree_with_the_whole_field(
            seed: u64, top in 0usize..20, left in 0usize..20, height in 1usize..12, width in 1usize..12,
        ) {
            let field = NoiseField::from_seed(seed, 3, Purpose::Noise, 4);
            let whole = field.whole(LatentSize { height: 32, width: 32 });
            let window = Window { top, left, height, width };
            prop_assert_eq!(field.window(window), crop(&whole, window));
        }
    }
}
