//! Halving a picture.

use crate::sampler::units::ImageSize;

/// Appends the picture at half its size, rounded up: the mean of each 2x2 square, and of what is there of
/// it at the right and lower edge.
pub(crate) fn halve(rgb: &[u8], size: ImageSize, out: &mut Vec<u8>) {
    let row_bytes = size.width as usize * 3;
    for rows in rgb.chunks(row_bytes * 2) {
        let (upper, lower) = rows.split_at(row_bytes);
        let lower = if lower.is_empty() { upper } else { lower };
        for (a, b) in upper.chunks(6).zip(lower.chunks(6)) {
            for colour in 0..3 {
                let right = if a.len() == 6 { colour + 3 } else { colour };
                let sum = [a[colour], a[right], b[colour], b[right]].map(u16::from).iter().sum::<u16>();
                out.push(((sum + 2) / 4) as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::Memory;
    use crate::raster::Levels;

    #[test]
    fn it_is_the_mean_of_squares() {
        for (width, height) in [(1, 1), (2, 2), (7, 4), (4, 7), (9, 9), (1, 6)] {
            let picture = Memory::noise(width, height);
            let mut out = Vec::new();
            halve(picture.rgb(0), picture.size(0), &mut out);
            let expected = if picture.levels() > 1 { picture.rgb(1) } else { picture.rgb(0) };
            assert_eq!(out, expected);
        }
    }
}
