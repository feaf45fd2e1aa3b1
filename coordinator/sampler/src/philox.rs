//! Philox4x32-10: random numbers as a function of a key and a position.
//!
//! Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). No state: the same
//! position gives the same numbers, in any order, on any machine.

/// What random numbers are for. Two purposes never share a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// n: the starting noise, and that of the guidance latents.
    Noise = 1,
    /// The noise of `mean + std * noise` when a picture is encoded.
    Encode = 2,
    /// Where the windows of a plan lie.
    Plan = 3,
    /// Which chessboard colour a patch replaces.
    Chessboard = 4,
}

/// A stream of random numbers, keyed by (seed, stage, purpose).
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    key: [u32; 2],
    stage: u32,
    purpose: u32,
}

impl Philox {
    /// The stream for one purpose in one stage (0: the base) of the render with this seed.
    pub fn new(seed: u64, stage: u32, purpose: Purpose) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stage, purpose: purpose as u32 }
    }

    /// Four random words at a position.
    #[inline]
    pub fn at(&self, position: u64) -> [u32; 4] {
        // Stage and purpose share a word: no render has 2^24 stages.
        let tag = self.stage << 8 | self.purpose;
        rounds([position as u32, (position >> 32) as u32, tag, 0], self.key)
    }

    /// The random words at `position` and the N - 1 after it: first words, second words and so on. What
    /// [`Self::at`] says of each, in loops that a compiler makes vectors of.
    #[inline(always)]
    pub fn run<const N: usize>(&self, position: u64) -> [[u32; N]; 4] {
        let tag = self.stage << 8 | self.purpose;
        let positions: [u64; N] = std::array::from_fn(|i| position.wrapping_add(i as u64));
        let mut counter =
            [positions.map(|p| p as u32), positions.map(|p| (p >> 32) as u32), [tag; N], [0; N]];
        let mut key = self.key;
        for _ in 0..10 {
            for i in 0..N {
                let words = [counter[0][i], counter[1][i], counter[2][i], counter[3][i]];
                let words = round(words, key);
                for (column, word) in counter.iter_mut().zip(words) {
                    column[i] = word;
                }
            }
            key = next_key(key);
        }
        counter
    }

    /// A uniform integer in `0..n` at a position, by multiply and shift (bias below 2^-64 n).
    pub fn below(&self, position: u64, n: u64) -> u64 {
        let [a, b, ..] = self.at(position);
        let word = u64::from(a) | u64::from(b) << 32;
        ((u128::from(word) * u128::from(n)) >> 64) as u64
    }
}

#[inline]
fn rounds(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        counter = round(counter, key);
        key = next_key(key);
    }
    counter
}

#[inline(always)]
fn round(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let a = u64::from(counter[0]) * 0xD251_1F53;
    let b = u64::from(counter[2]) * 0xCD9E_8D57;
    [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32]
}

#[inline(always)]
fn next_key(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The authors' own vectors (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(rounds([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(rounds([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            rounds([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_differ_and_integers_stay_below() {
        let a = Philox::new(1, 0, Purpose::Noise);
        assert_ne!(a.at(0), Philox::new(2, 0, Purpose::Noise).at(0));
        assert_ne!(a.at(0), Philox::new(1, 1, Purpose::Noise).at(0));
        assert_ne!(a.at(0), Philox::new(1, 0, Purpose::Encode).at(0));
        let draws: Vec<u64> = (0..1000).map(|i| a.below(i, 7)).collect();
        assert!((0..7).all(|v| draws.contains(&v)) && draws.iter().all(|&v| v < 7));
    }
}
