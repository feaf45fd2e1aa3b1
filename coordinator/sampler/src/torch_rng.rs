//! The normal noise that PyTorch's CPU generator gives for a seed, as diffusers users know it.
//!
//! PyTorch draws 24-bit uniforms from a Mersenne Twister and turns blocks of sixteen into normals
//! (Box-Muller: the first eight are radii, the last eight angles); a remainder recomputes the last
//! sixteen values. PyTorch's own vector code approximates logarithm and sine, so values agree to
//! about 1e-6, not to the bit.

use gigasmith_types::Array;
use rand_mt::Mt;

const BLOCK: usize = 16;

/// Standard normal noise of any shape with at least 16 values, as `torch.randn` with a generator
/// seeded by `manual_seed(seed)` returns it. Of the seed, the lower 32 bits count, as in PyTorch.
pub fn randn(seed: u64, shape: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    assert!(n >= BLOCK, "a latent has at least {BLOCK} values");
    let mut generator = Mt::new(seed as u32);
    let mut uniform = || (generator.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0;
    let mut data: Vec<f32> = (0..n).map(|_| uniform()).collect();
    data.chunks_exact_mut(BLOCK).for_each(box_muller);
    if !n.is_multiple_of(BLOCK) {
        let tail = &mut data[n - BLOCK..];
        tail.fill_with(uniform);
        box_muller(tail);
    }
    let mut noise = Array::zeros(shape);
    noise.data_mut().copy_from_slice(&data);
    noise
}

fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (r, a) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * libm::logf(1.0 - *r)).sqrt();
        let (sin, cos) = libm::sincosf(2.0 * std::f32::consts::PI * *a);
        (*r, *a) = (radius * cos, radius * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remainder_redraws_the_last_sixteen() {
        let (whole, odd) = (randn(3, &[32]), randn(3, &[19]));
        assert_eq!(whole.data()[..3], odd.data()[..3]);
        assert!(odd.data()[3..].iter().all(|v| v.is_finite()));
        assert_ne!(whole.data()[3..16], odd.data()[3..16]);
    }
}
