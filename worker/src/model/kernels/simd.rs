//! Loops over slices that the compiler turns into vector instructions, chosen at run time.
//!
//! Each loop is written once, generic over whether the CPU fuses multiply and add, and compiled three
//! times on x86-64. Lane counts are fixed by the source (16), so the order of every sum is too: only
//! fusing tells the versions apart, and AVX-512 and AVX2 give the same bytes.
//!
//! Unsafe code: calling a function compiled for instructions beyond the baseline.
#![allow(unsafe_code)]

/// Lanes of every partial sum.
pub(super) const LANES: usize = 16;

/// A set of vector instructions that this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

/// The instruction set that `GIGASMITH_ISA` names; set to nothing it names none.
fn asked() -> Option<String> {
    std::env::var("GIGASMITH_ISA").ok().filter(|name| !name.is_empty())
}

impl Isa {
    /// Every set that this CPU has, the widest first.
    pub(crate) fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            let avx512 = avx2 && has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw");
            [(avx512, Set::Avx512), (avx2, Set::Avx2), (true, Set::Baseline)]
                .into_iter()
                .filter_map(|(has, set)| has.then_some(Self(set)))
                .collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            vec![Self(Set::Baseline)]
        }
    }

    /// The widest that this CPU has, or the one that the environment variable `GIGASMITH_ISA` names
    /// (`avx512`, `avx2`, `baseline`).
    pub(crate) fn best() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| {
            let all = Self::all();
            let Some(name) = asked() else { return all[0] };
            all.iter().find(|isa| isa.name() == name).copied().unwrap_or_else(|| {
                let known: Vec<_> = all.iter().map(|isa| isa.name()).collect();
                tracing::warn!(
                    "GIGASMITH_ISA={name} is unknown on this CPU: use one of {}",
                    known.join(", ")
                );
                all[0]
            })
        })
    }

    fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            Set::Baseline => "baseline",
        }
    }

    /// Whether products of bf16 are computed as such. `GIGASMITH_ISA=avx512` leaves that away.
    pub(crate) fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
            let has = || std::is_x86_feature_detected!("avx512bf16") && asked().is_none();
            self.0 == Set::Avx512 && *HAS.get_or_init(has)
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Which one it is; only [`Self::all`] makes any, so the CPU has its instructions.
    pub(super) fn set(self) -> Set {
        self.0
    }

    /// What decides results, as [`NumericClass`] names it: `avx512` and `avx2` give the same bytes.
    ///
    /// [`NumericClass`]: gigasmith_proto::domain::NumericClass
    pub(crate) fn class(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 | Set::Avx2 => "fma",
            Set::Baseline if cfg!(target_arch = "aarch64") => "neon",
            Set::Baseline => "portable",
        }
    }
}

/// Defines a function that runs `$body` with the vector instructions of an [`Isa`].
macro_rules! dispatch {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        pub(super) fn $name(isa: $crate::model::kernels::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn fused($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                use $crate::model::kernels::simd::Set;
                match isa.set() {
                    // SAFETY: an ordinary safe function except that it needs these instructions, which
                    // an `Isa` of this set has found the CPU to have.
                    Set::Avx512 => unsafe { wide($($arg),*) },
                    // SAFETY: as above.
                    Set::Avx2 => unsafe { fused($($arg),*) },
                    Set::Baseline => $body::<false>($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = isa;
                $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
            }
        }
    };
}
pub(super) use dispatch;

/// `a b + c`, rounded once where `F` is set.
#[inline(always)]
pub(super) fn fma<const F: bool>(a: f32, b: f32, c: f32) -> f32 {
    if F { a.mul_add(b, c) } else { a * b + c }
}

/// e^x within 2 units in the last place, for x <= 88 (below -87 the result is about 1e-38).
/// Range reduction and polynomial of Moshier's Cephes library (`expf`).
#[inline(always)]
pub(super) fn exp<const F: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest whole number on every CPU, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.0);
    let rounded = fma::<F>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma::<F>(n, -0.693_359_4, x);
    let r = fma::<F>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<F>(p, r, c);
    }
    let y = fma::<F>(r * r, p, r) + 1.0;
    f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3F80_0000)) * y
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

/// Adds up the terms: in f32 in short runs, whose sums are added in f64.
#[inline(always)]
fn reduce(x: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    const WAYS: usize = 4;
    let mut total = 0f64;
    for run in x.chunks(16 * WAYS * LANES) {
        // Several sums at a time, since one has to wait for its last addition.
        let (chunks, rest) = run.as_chunks::<{ WAYS * LANES }>();
        let mut lanes = [0f32; WAYS * LANES];
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane += term(*v);
            }
        }
        for (lane, v) in lanes.iter_mut().zip(rest) {
            *lane += term(*v);
        }
        let mut half = WAYS * LANES / 2;
        while half > 0 {
            let (low, high) = lanes.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(&*high) {
                *a += *b;
            }
            half /= 2;
        }
        total += f64::from(lanes[0]);
    }
    total
}

#[inline(always)]
fn add_body<const F: bool>(to: &mut [f32], x: &[f32]) {
    for (o, v) in to.iter_mut().zip(x) {
        *o += *v;
    }
}
dispatch! {
    /// `to += x`.
    fn add(to: &mut [f32], x: &[f32]) = add_body
}

#[inline(always)]
fn column_sums_body<const F: bool>(x: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    let channels = sums.len();
    for row in x.chunks_exact(channels) {
        for (sum, v) in sums.iter_mut().zip(row) {
            *sum += *v;
        }
    }
    let inverse = 1.0 / (x.len() / channels) as f32;
    for row in x.chunks_exact(channels) {
        for ((square, v), sum) in squares.iter_mut().zip(row).zip(&*sums) {
            let d = fma::<F>(-*sum, inverse, *v);
            *square = fma::<F>(d, d, *square);
        }
    }
}
dispatch! {
    /// Adds each column of (rows, columns) to `sums`, and its squares about its own mean to `squares`;
    /// both are zero before.
    fn column_sums(x: &[f32], sums: &mut [f32], squares: &mut [f32]) = column_sums_body
}

#[inline(always)]
fn scale_shift_body<const F: bool>(out: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32]) {
    for (((o, v), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
        *o = fma::<F>(*v, *scale, *shift);
    }
}
dispatch! {
    /// `out = scale x + shift`, element by element.
    fn scale_shift(out: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32]) = scale_shift_body
}

#[inline(always)]
fn scale_shift_silu_body<const F: bool>(out: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32]) {
    for (((o, v), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
        let y = fma::<F>(*v, *scale, *shift);
        *o = y / (1.0 + exp::<F>(-y));
    }
}
dispatch! {
    /// `out = y sigmoid(y)` with `y = scale x + shift`, element by element.
    fn scale_shift_silu(out: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32]) = scale_shift_silu_body
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
fn geglu_body<const F: bool>(x: &mut [f32], gate: &[f32]) {
    for (v, g) in x.iter_mut().zip(gate) {
        *v *= 0.5 * g * (1.0 + erf::<F>(g * std::f32::consts::FRAC_1_SQRT_2));
    }
}
dispatch! {
    /// `x *= gelu(gate)`.
    fn geglu(x: &mut [f32], gate: &[f32]) = geglu_body
}

#[inline(always)]
fn softmax_step_body<const F: bool>(row: &mut [f32], before: f32, scale: f32) -> (f32, f32) {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in &*chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*v);
        }
    }
    let top = lanes.iter().chain(&*rest).fold(before, |a, b| a.max(*b));
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
    (top, total)
}
dispatch! {
    /// One step of an online softmax (Milakov and Gimelshein, arXiv 1805.02867): replaces each value by
    /// `exp(scale (value - top))`, where `top` is the largest of them and of `before`; `top` and their
    /// sum. Not for rows that hold an infinity.
    fn softmax_step(row: &mut [f32], before: f32, scale: f32) -> (f32, f32) = softmax_step_body
}

#[inline(always)]
fn decay_body<const F: bool>(x: f32) -> f32 {
    exp::<F>(x)
}
dispatch! {
    /// e^x.
    fn decay(x: f32) -> f32 = decay_body
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
