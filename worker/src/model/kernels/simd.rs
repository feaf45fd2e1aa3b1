//! Loops over slices that the compiler turns into vector instructions, chosen at run time.
//!
//! Each loop is written once, generic over whether the CPU fuses multiply and add, and compiled
//! twice on x86-64. Lane counts are fixed by the source (16), so the order of every sum is too:
//! only fusing tells the two apart.
//!
//! Unsafe code: calling a function compiled for instructions beyond the baseline.
#![allow(unsafe_code)]

/// Lanes of every partial sum.
const LANES: usize = 16;

/// The instruction set that decides results, as [`NumericClass`] names it.
///
/// [`NumericClass`]: gigasmith_proto::domain::NumericClass
pub(crate) fn isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        // The same questions as the matrix products ask.
        if has_fma() && std::is_x86_feature_detected!("avx512f") {
            "avx512"
        } else if has_fma() {
            "avx2"
        } else {
            "portable"
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "neon"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "portable"
    }
}

#[cfg(target_arch = "x86_64")]
fn has_fma() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

/// Defines a function that runs `$body` with or without fused multiply-add, as the CPU has it.
macro_rules! dispatch {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn fused($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                if has_fma() {
                    // SAFETY: `fused` is an ordinary safe function except that it needs AVX2 and
                    // FMA, and `has_fma` has just asked the CPU for both.
                    return unsafe { fused($($arg),*) };
                }
                $body::<false>($($arg),*)
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
            }
        }
    };
}

#[inline(always)]
fn fma<const F: bool>(a: f32, b: f32, c: f32) -> f32 {
    if F { a.mul_add(b, c) } else { a * b + c }
}

/// e^x within 2 units in the last place, for x <= 88 (below -87 the result is about 1e-38).
/// Range reduction and polynomial of Moshier's Cephes library (`expf`).
#[inline(always)]
fn exp<const F: bool>(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number on every CPU.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.0);
    let n = fma::<F>(x, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = fma::<F>(n, -0.693_359_4, x);
    let r = fma::<F>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<F>(p, r, c);
    }
    let y = fma::<F>(r * r, p, r) + 1.0;
    f32::from_bits(((n as i32 + 127) as u32) << 23) * y
}

/// The error function within 5e-7. The rational approximation of Eigen's `erf_float`.
#[inline(always)]
fn erf<const F: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = fma::<F>(p, s, c);
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
        q = fma::<F>(q, s, c);
    }
    x * p / q
}

/// Adds up the lanes and then the rest, in that order, in f64.
#[inline(always)]
fn reduce(x: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0f64;
    // Short runs keep the f32 partial sums accurate.
    for run in x.chunks(256 * LANES) {
        let (chunks, rest) = run.as_chunks::<LANES>();
        let mut lanes = [0f32; LANES];
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane += term(*v);
            }
        }
        total += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
        total += rest.iter().map(|v| f64::from(term(*v))).sum::<f64>();
    }
    total
}

#[inline(always)]
fn sum_body<const F: bool>(x: &[f32]) -> f64 {
    reduce(x, |v| v)
}
dispatch! {
    /// The sum of `x`.
    fn sum(x: &[f32]) -> f64 = sum_body
}

#[inline(always)]
fn sum_squares_body<const F: bool>(x: &[f32], mean: f32) -> f64 {
    reduce(x, |v| (v - mean) * (v - mean))
}
dispatch! {
    /// The sum of `(x - mean)^2`.
    fn sum_squares(x: &[f32], mean: f32) -> f64 = sum_squares_body
}

#[inline(always)]
fn scale_shift_body<const F: bool>(out: &mut [f32], x: &[f32], scale: f32, shift: f32) {
    for (o, v) in out.iter_mut().zip(x) {
        *o = fma::<F>(*v, scale, shift);
    }
}
dispatch! {
    /// `out = scale x + shift`.
    fn scale_shift(out: &mut [f32], x: &[f32], scale: f32, shift: f32) = scale_shift_body
}

#[inline(always)]
fn scale_shift_silu_body<const F: bool>(out: &mut [f32], x: &[f32], scale: f32, shift: f32) {
    for (o, v) in out.iter_mut().zip(x) {
        let y = fma::<F>(*v, scale, shift);
        *o = y / (1.0 + exp::<F>(-y));
    }
}
dispatch! {
    /// `out = y sigmoid(y)` with `y = scale x + shift`.
    fn scale_shift_silu(out: &mut [f32], x: &[f32], scale: f32, shift: f32) = scale_shift_silu_body
}

#[inline(always)]
fn layer_norm_body<const F: bool>(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = x.len() as f64;
    let mean = (reduce(x, |v| v) / n) as f32;
    let variance = (reduce(x, |v| (v - mean) * (v - mean)) / n) as f32;
    let r = 1.0 / (variance + eps).sqrt();
    for (((o, v), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *o = fma::<F>((v - mean) * r, *w, *b);
    }
}
dispatch! {
    /// Layer normalisation of one row.
    fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) = layer_norm_body
}

#[inline(always)]
fn geglu_body<const F: bool>(out: &mut [f32], x: &[f32], gate: &[f32]) {
    for ((o, v), g) in out.iter_mut().zip(x).zip(gate) {
        let gelu = 0.5 * g * (1.0 + erf::<F>(g * std::f32::consts::FRAC_1_SQRT_2));
        *o = v * gelu;
    }
}
dispatch! {
    /// `out = x gelu(gate)`.
    fn geglu(out: &mut [f32], x: &[f32], gate: &[f32]) = geglu_body
}

#[inline(always)]
fn softmax_body<const F: bool>(row: &mut [f32], scale: f32) -> f32 {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in &*chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*v);
        }
    }
    let top = lanes.iter().chain(&*rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *v = exp::<F>((*v - top) * scale);
            *sum += *v;
        }
    }
    let mut total: f32 = sums.iter().sum();
    for v in rest {
        *v = exp::<F>((*v - top) * scale);
        total += *v;
    }
    1.0 / total
}
dispatch! {
    /// Replaces each value by `exp(scale (value - largest))` and returns 1 over their sum. Not for
    /// rows that hold an infinity.
    fn softmax(row: &mut [f32], scale: f32) -> f32 = softmax_body
}

#[inline(always)]
fn dot_body<const F: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for ((lane, p), q) in lanes.iter_mut().zip(x).zip(y) {
            *lane = fma::<F>(*p, *q, *lane);
        }
    }
    let mut total: f32 = lanes.iter().sum();
    for (p, q) in a_rest.iter().zip(b_rest) {
        total = fma::<F>(*p, *q, total);
    }
    total
}
dispatch! {
    /// The scalar product.
    fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(got) / exact - 1.0).abs() < 2.5e-7, "exp({x}) = {got}, not {exact}");
            }
        }
        assert!(exp::<true>(-200.0) < 1e-37);
    }

    /// Its Taylor series, good to 1e-9 up to 4, where it is 1 to 2e-8.
    fn exact_erf(x: f64) -> f64 {
        let (mut power, mut sum) = (x, x);
        for n in 1..120 {
            power *= -x * x / f64::from(n);
            sum += power / f64::from(2 * n + 1);
        }
        if x.abs() < 4.0 { sum * std::f64::consts::FRAC_2_SQRT_PI } else { x.signum() }
    }

    #[test]
    fn erf_is_accurate() {
        for i in -6000..6000 {
            let x = i as f32 / 1000.0;
            let exact = exact_erf(f64::from(x));
            for got in [erf::<true>(x), erf::<false>(x)] {
                assert!((f64::from(got) - exact).abs() < 5e-7, "erf({x}) = {got}, not {exact}");
            }
        }
    }
}
