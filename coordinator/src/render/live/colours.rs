//! Which colours a latent stands for: a linear map, fitted to a picture that was decoded.

use gigasmith_proto::domain::{Array, ModelDescription};

use crate::raster::{Levels, Raster};
use crate::sampler::units::{ImageSize, PixelRect};

/// Places that the map of colours is fitted to.
const FITTED: usize = 16_384;

/// A linear map from a latent pixel to a colour: for each of R, G and B a weight per channel, then what is
/// added, all in levels of 255.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Colours([Vec<f32>; 3]);

impl Colours {
    /// Before anything is decoded: SDXL's, as everybody uses them, or shades of grey.
    pub(super) fn guess(model: &ModelDescription) -> Self {
        const SDXL: [[f32; 5]; 3] = [
            [0.3651, -0.2533, 0.1076, -0.3165, 0.1084],
            [0.4232, -0.0042, 0.1111, -0.2492, -0.0175],
            [0.4341, 0.1068, -0.0362, -0.2188, -0.0011],
        ];
        let channels = model.latent_channels as usize;
        let is_sdxl = channels == 4 && (model.scaling_factor - 0.13025).abs() < 1e-6;
        let levels = |row: [f32; 5]| {
            let mut row = row.map(|v| v * 127.5).to_vec();
            row[4] += 127.5;
            row
        };
        match is_sdxl {
            true => Self(SDXL.map(levels)),
            false => Self::shades(channels),
        }
    }

    /// Shades of grey, by the first channel.
    pub(super) fn shades(channels: usize) -> Self {
        let mut grey = vec![40.0];
        grey.resize(channels, 0.0);
        grey.push(127.5);
        Self([grey.clone(), grey.clone(), grey])
    }

    pub(super) fn pixel(&self, value: impl Fn(usize) -> f32) -> [u8; 3] {
        [0, 1, 2].map(|colour| {
            let weights = &self.0[colour];
            let channels = weights.len() - 1;
            let sum = (0..channels).map(|c| weights[c] * value(c)).sum::<f32>() + weights[channels];
            sum.clamp(0.0, 255.0) as u8
        })
    }

    /// The map that comes closest to what a latent was decoded to (least squares); `None` when that cannot
    /// be told.
    pub(super) fn fit(latent: &Array, raster: &Raster, factor: usize) -> Option<Self> {
        let (channels, height, width) = latent.chw()?;
        // The level at which a pixel is a latent pixel.
        let level = factor.is_power_of_two().then(|| factor.trailing_zeros() as usize)?;
        let size = ImageSize { width: width as u32, height: height as u32 };
        if level >= raster.levels() || Levels::size(raster, level) != size {
            return None;
        }
        let n = channels + 1;
        // The normal equations: n unknowns, three right-hand sides.
        let mut equations = vec![vec![0.0f64; n + 3]; n];
        let every = (height * width).div_ceil(FITTED).max(1);
        let mut row = (usize::MAX, Vec::new());
        for at in (0..height * width).step_by(every) {
            let (y, x) = (at / width, at % width);
            if row.0 != y {
                let rect = PixelRect { top: y as u32, left: 0, height: 1, width: width as u32 };
                row = (y, raster.read(level, rect).ok()?);
            }
            let known: Vec<f64> = (0..channels)
                .map(|c| f64::from(latent.data()[c * height * width + at]))
                .chain([1.0])
                .chain(row.1[x * 3..x * 3 + 3].iter().map(|&v| f64::from(v)))
                .collect();
            for (i, equation) in equations.iter_mut().enumerate() {
                equation.iter_mut().zip(&known).for_each(|(e, k)| *e += known[i] * k);
            }
        }
        let solved = solve(equations)?;
        Some(Self([0, 1, 2].map(|colour| solved.iter().map(|row| row[colour] as f32).collect())))
    }
}

/// Solves n equations with n unknowns for several right-hand sides by elimination; `None` when they do not
/// determine it.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let n = rows.len();
    let scale = rows.iter().flatten().fold(0.0f64, |most, v| most.max(v.abs()));
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        let first = rows[column].clone();
        if first[column].abs() <= scale * 1e-12 {
            return None;
        }
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let times = row[column] / first[column];
            row.iter_mut().zip(&first).for_each(|(v, f)| *v -= times * f);
        }
    }
    Some(rows.iter().enumerate().map(|(i, row)| row[n..].iter().map(|v| v / row[i]).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raster::Scratch;
    use crate::sampler::resize::Picture;

    #[test]
    fn colours_are_found_again() {
        let (height, width, factor) = (12usize, 20usize, 4usize);
        let data: Vec<f32> = (0..2 * height * width).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let latent = Array::new([2, height, width], data).unwrap();
        let colours = Colours([vec![60.0, -30.0, 128.0], vec![0.0, 70.0, 100.0], vec![20.0, 20.0, 90.0]]);
        let pixel = |y: usize, x: usize| {
            let at = y / factor * width + x / factor;
            colours.pixel(|c| latent.data()[c * height * width + at])
        };
        let (h, w) = (height * factor, width * factor);
        let rgb = (0..h * w).flat_map(|i| pixel(i / w, i % w)).collect();
        let size = ImageSize { width: w as u32, height: h as u32 };
        let raster = Raster::of(&Picture::new(size, rgb), &Scratch::default()).unwrap();
        let fitted = Colours::fit(&latent, &raster, factor).unwrap();
        for (found, wanted) in fitted.0.iter().flatten().zip(colours.0.iter().flatten()) {
            // Levels are whole numbers, rounded down.
            assert!((found - wanted).abs() < 1.0, "{fitted:?}");
        }
        assert_eq!(Colours::fit(&Array::zeros([2, height, width]), &raster, factor), None);
    }
}
