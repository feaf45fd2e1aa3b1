//! Statistics that all tiles of a picture share: from where they are sampled, and how samples are pooled.
//!
//! A network's normalisations depend on each other: what the second one sees depends on the statistics of
//! the first. So they are found in [`ROUNDS`] rounds: in the first the samples use their own statistics, in
//! the next those that were pooled in the round before. Each round makes one more normalisation exact, and
//! the later ones, which change little, follow much faster (measured in `tests/benches/tiles.rs`).

use gigasmith_types::{Array, ModelDescription, Rect};

use super::{Network, seamless_side};
use crate::units::{LatentSize, Window};

/// Rounds in which statistics are found.
pub const ROUNDS: usize = 3;
/// Samples along an axis, at most.
pub const PER_AXIS: usize = 4;

/// A piece of a picture whose statistics are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What the network sees, in latent pixels of the canvas.
    pub window: Window,
    /// The part of the window that counts.
    pub part: Rect,
}

/// Where the statistics of a picture are sampled: everywhere, if [`PER_AXIS`] tiles an axis suffice, else
/// in so many, evenly spread.
pub fn samples(network: Network, size: LatentSize, model: &ModelDescription) -> Vec<Sample> {
    let reach = network.reach(model);
    let tile = seamless_side((model.vae_tile / model.latent_factor) as usize, reach);
    let (rows, columns) = (along(size.height, tile, reach), along(size.width, tile, reach));
    let pairs = rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column)));
    let sample = |(row, column): (&(Piece, Piece), &(Piece, Piece))| Sample {
        window: Window { top: row.0.0, left: column.0.0, height: row.0.1, width: column.0.1 },
        part: Rect { top: row.1.0, left: column.1.0, height: row.1.1, width: column.1.1 },
    };
    pairs.map(sample).collect()
}

/// Start and length.
type Piece = (usize, usize);

/// Windows along an axis, each with the part of it that counts.
fn along(length: usize, tile: usize, reach: usize) -> Vec<(Piece, Piece)> {
    if length <= tile {
        return vec![((0, length), (0, length))];
    }
    let count = (length - 2 * reach).div_ceil(tile - 2 * reach).min(PER_AXIS);
    let start = |k: usize| k * (length - tile) / (count - 1);
    // Neighbours share their overlap, so that nothing counts twice; what is near an inner edge never does.
    let middle = |k: usize| (start(k - 1) + tile + start(k)) / 2;
    let from = |k: usize| if k == 0 { 0 } else { middle(k).max(start(k) + reach) };
    let until = |k: usize| if k + 1 == count { length } else { middle(k + 1).min(start(k) + tile - reach) };
    (0..count).map(|k| ((start(k), tile), (from(k) - start(k), until(k) - from(k)))).collect()
}

/// The statistics of everything that was sampled: `found` are means and variances, (groups, 2), of each
/// sample. Summed in the samples' order, so that the same samples give the same bits.
pub fn pool(samples: &[Sample], found: &[Array]) -> Array {
    let areas: Vec<f64> = samples.iter().map(|s| (s.part.height * s.part.width) as f64).collect();
    let total: f64 = areas.iter().sum();
    let groups = found[0].shape()[0];
    let mut pooled = Vec::with_capacity(2 * groups);
    for group in 0..groups {
        let pair =
            |array: &Array| (f64::from(array.data()[2 * group]), f64::from(array.data()[2 * group + 1]));
        let weighted = |value: &dyn Fn(f64, f64) -> f64| {
            let sum: f64 = areas.iter().zip(found).map(|(area, a)| area * value(pair(a).0, pair(a).1)).sum();
            sum / total
        };
        let mean = weighted(&|mean, _| mean);
        // The variance within the samples, and that of their means.
        let variance = weighted(&|m, variance| variance + (m - mean) * (m - mean));
        pooled.extend([mean as f32, variance as f32]);
    }
    Array::new([groups, 2], pooled).expect("a mean and a variance each")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_never_count_twice_nor_what_lies_near_an_inner_edge(
            length in 1usize..3000, tile in 8usize..130, reach in 0usize..20,
        ) {
            let tile = seamless_side(tile, reach);
            let pieces = along(length, tile, reach);
            prop_assert!(pieces.len() <= PER_AXIS);
            let mut end = 0;
            for &((start, seen), (from, count)) in &pieces {
                prop_assert!(start + seen <= length && from + count <= seen && count > 0);
                prop_assert!(start + from >= end);
                end = start + from + count;
                prop_assert!(start == 0 || from >= reach);
                prop_assert!(start + seen == length || from + count + reach <= seen);
            }
            let counted: usize = pieces.iter().map(|(_, (_, count))| count).sum();
            prop_assert!(counted == length || length > PER_AXIS * (tile - 2 * reach));
        }

        #[test]
        fn pooled_samples_have_the_statistics_of_the_whole(values in prop::collection::vec(-9f32..9.0, 24)) {
            let of = |part: &[f32]| {
                let mean = part.iter().sum::<f32>() / part.len() as f32;
                let variance = part.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / part.len() as f32;
                Array::new([1, 2], vec![mean, variance]).unwrap()
            };
            let sample = |height| Sample {
                window: Window { top: 0, left: 0, height, width: 1 },
                part: Rect { top: 0, left: 0, height, width: 1 },
            };
            let pooled = pool(&[sample(18), sample(6)], &[of(&values[..18]), of(&values[18..])]);
            for (a, b) in pooled.data().iter().zip(of(&values).data()) {
                prop_assert!((a - b).abs() < 1e-4, "{} {}", a, b);
            }
        }
    }
}
