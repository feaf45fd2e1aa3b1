//! Joining the results of tiles: decoded pixels, or encoded moments.

use std::collections::BTreeMap;
use std::sync::Arc;

use gigasmith_types::Array;

use super::Tiling;
use crate::noise::crop;
use crate::resize::Picture;
use crate::units::{ImageSize, Window};

/// Joins the results of a tiling as they come, in any order, and keeps no more of them than it must.
#[derive(Debug, Clone)]
pub struct Joiner {
    tiling: Tiling,
    /// Rows of tiles that are joined.
    rows: usize,
    /// What the row of tiles above leaves for the next to fade in over: its tiles' last rows.
    tails: Vec<Array>,
    /// Results that wait for their row, by position among all windows.
    waiting: BTreeMap<usize, Arc<Array>>,
}

impl Joiner {
    /// Nothing has come yet.
    pub fn new(tiling: Tiling) -> Self {
        Self { tiling, rows: 0, tails: Vec::new(), waiting: BTreeMap::new() }
    }

    /// Goes on where `rows` rows of tiles were joined. `tails`: what [`Self::tails`] was then, unless it was
    /// the start.
    pub fn restore(tiling: Tiling, rows: usize, tails: Vec<Array>) -> Self {
        Self { tiling, rows, tails, waiting: BTreeMap::new() }
    }

    /// Rows of tiles that are joined.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The last rows of the tiles of the last joined row, (channels, up to the fade, width) each.
    pub fn tails(&self) -> &[Array] {
        &self.tails
    }

    /// Results that wait for others of their row.
    pub fn waiting(&self) -> &BTreeMap<usize, Arc<Array>> {
        &self.waiting
    }

    /// The positions of the results that are still to come.
    pub fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        let columns = self.tiling.columns.len();
        let all = self.rows * columns..self.tiling.rows.len() * columns;
        all.filter(|i| !self.waiting.contains_key(i))
    }

    /// Takes in the result of a tile, by its position, and returns what is finished by it: bands of whole
    /// rows from the top, one below the other.
    pub fn add(&mut self, position: usize, result: Arc<Array>) -> Vec<Band> {
        self.waiting.insert(position, result);
        let mut bands = Vec::new();
        let columns = self.tiling.columns.len();
        while self.rows < self.tiling.rows.len() {
            let row = self.rows * columns..(self.rows + 1) * columns;
            if self.waiting.range(row.clone()).count() < columns {
                break;
            }
            let tiles: Vec<Arc<Array>> =
                row.map(|i| self.waiting.remove(&i).expect("counted above")).collect();
            bands.push(self.join_row(tiles));
            self.rows += 1;
        }
        bands
    }

    fn join_row(&mut self, tiles: Vec<Arc<Array>>) -> Band {
        let fade = self.tiling.fade * self.tiling.scale;
        let mut row: Vec<Array> = Vec::new();
        for tile in tiles {
            // Somebody who stores a tile may hold it too.
            let mut tile = Arc::try_unwrap(tile).unwrap_or_else(|shared| Array::clone(&shared));
            if let Some(above) = self.tails.get(row.len()) {
                fade_rows(&mut tile, above, fade);
            }
            if let Some(left) = row.last() {
                fade_columns(&mut tile, left, fade);
            }
            row.push(tile);
        }
        let tails =
            if fade > 0 { row.iter().map(|tile| last_rows(tile, fade)).collect() } else { Vec::new() };
        self.tails = tails;
        let scale = self.tiling.scale;
        let keep = self.tiling.columns.iter().map(|c| c.keep * scale);
        Band { parts: row.into_iter().zip(keep).collect(), height: self.tiling.rows[self.rows].keep * scale }
    }
}

/// Whole rows of joined results.
#[derive(Debug)]
pub struct Band {
    /// Tiles from the left, and how many of their columns are kept.
    parts: Vec<(Array, usize)>,
    /// Rows that are kept of each.
    height: usize,
}

impl Band {
    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.parts.iter().map(|(_, keep)| keep).sum()
    }

    /// A row of a channel, in pieces from the left.
    fn pieces(&self, channel: usize, row: usize) -> impl Iterator<Item = &[f32]> {
        self.parts.iter().map(move |(tile, keep)| {
            let (_, height, width) = chw(tile);
            &tile.data()[(channel * height + row) * width..][..*keep]
        })
    }

    /// As an array, (channels, height, width).
    pub fn to_array(&self) -> Array {
        let channels = chw(&self.parts[0].0).0;
        let mut data = Vec::with_capacity(channels * self.height * self.width());
        for channel in 0..channels {
            for row in 0..self.height {
                self.pieces(channel, row).for_each(|piece| data.extend_from_slice(piece));
            }
        }
        Array::new([channels, self.height, self.width()], data).expect("every value was copied")
    }

    /// Decoded tiles as rows of 8-bit RGB: `round(255 clamp(x / 2 + 0.5, 0, 1))`.
    pub fn to_rgb(&self) -> Vec<u8> {
        let width = self.width();
        let mut rgb = vec![0; 3 * width * self.height];
        for (row, out) in rgb.chunks_exact_mut(3 * width).enumerate() {
            for channel in 0..3 {
                let values = self.pieces(channel, row).flatten();
                for (pixel, &value) in out.chunks_exact_mut(3).zip(values) {
                    pixel[channel] = level(value);
                }
            }
        }
        rgb
    }
}

/// Joins the results of all tiles at once, in raster order: (channels, height, width).
pub fn join(tiling: &Tiling, results: Vec<Array>) -> Array {
    assert_eq!(results.len(), tiling.len(), "a result for every tile");
    let mut joiner = Joiner::new(tiling.clone());
    let bands = results.into_iter().enumerate().flat_map(|(i, tile)| joiner.add(i, Arc::new(tile)));
    stack(&bands.map(|band| band.to_array()).collect::<Vec<_>>())
}

/// The last rows of a tile, `count` where it has so many.
fn last_rows(tile: &Array, count: usize) -> Array {
    let (_, height, width) = chw(tile);
    let rows = count.min(height);
    crop(tile, Window { top: height - rows, left: 0, height: rows, width })
}

fn chw(array: &Array) -> (usize, usize, usize) {
    array.chw().expect("a tile has three axes")
}

/// The first rows of `tile` fade in over the last rows of the tile above it.
fn fade_rows(tile: &mut Array, above: &Array, fade: usize) {
    let ((channels, height, width), (_, above_height, above_width)) = (chw(tile), chw(above));
    let extent = fade.min(height).min(above_height);
    for channel in 0..channels {
        for y in 0..extent {
            let weight = y as f32 / extent as f32;
            let other =
                &above.data()[(channel * above_height + above_height - extent + y) * above_width..][..width];
            let own = &mut tile.data_mut()[(channel * height + y) * width..][..width];
            own.iter_mut().zip(other).for_each(|(v, &o)| *v = o * (1.0 - weight) + *v * weight);
        }
    }
}

/// The first columns of `tile` fade in over the last columns of the tile at its left.
fn fade_columns(tile: &mut Array, left: &Array, fade: usize) {
    let ((_, _, width), (_, _, left_width)) = (chw(tile), chw(left));
    let extent = fade.min(width).min(left_width);
    let rows = tile.data_mut().chunks_exact_mut(width).zip(left.data().chunks_exact(left_width));
    for (own, other) in rows {
        for x in 0..extent {
            let weight = x as f32 / extent as f32;
            own[x] = other[left_width - extent + x] * (1.0 - weight) + own[x] * weight;
        }
    }
}

/// Bands one below the other.
fn stack(bands: &[Array]) -> Array {
    let (channels, _, width) = chw(&bands[0]);
    let height = bands.iter().map(|b| chw(b).1).sum();
    let mut data = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        for band in bands {
            let plane = chw(band).1 * width;
            data.extend_from_slice(&band.data()[channel * plane..][..plane]);
        }
    }
    Array::new([channels, height, width], data).expect("bands have equal widths")
}

/// `round(255 clamp(x / 2 + 0.5, 0, 1))`.
fn level(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// A decoded image (3, height, width) as 8-bit pixels.
pub fn to_picture(image: &Array) -> Picture {
    let (_, height, width) = chw(image);
    let band = Band { parts: vec![(image.clone(), width)], height };
    Picture::new(ImageSize { width: width as u32, height: height as u32 }, band.to_rgb())
}

#[cfg(test)]
mod tests {
    use gigasmith_types::Pixels;
    use proptest::prelude::*;

    use super::*;
    use crate::units::LatentSize;

    fn tilings(size: LatentSize, tile: usize, reach: usize, scale: usize) -> [Tiling; 2] {
        [Tiling::published(size, tile, scale), Tiling::seamless(size, tile, reach, scale)]
    }

    /// What a network that only enlarges would make of a tile.
    fn result(image: &Array, tiling: &Tiling, position: usize) -> Array {
        tiling.part(position).of(&crop(image, tiling.window(position)), 1)
    }

    proptest! {
        #[test]
        fn tiles_of_one_image_join_to_that_image(
            height in 1usize..150, width in 1usize..150, tile in 4usize..30, reach in 0usize..5,
        ) {
            let size = LatentSize { height, width };
            let image = Array::new([2, height, width], (0..2 * height * width).map(|i| i as f32).collect()).unwrap();
            for tiling in tilings(size, tile, reach, 1) {
                let joined = join(&tiling, (0..tiling.len()).map(|i| result(&image, &tiling, i)).collect());
                prop_assert_eq!(joined.shape(), image.shape());
                for (a, b) in joined.data().iter().zip(image.data()) {
                    // A mean of equal values, weighted in f32.
                    prop_assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{} {}", a, b);
                }
            }
        }

        #[test]
        fn tiles_join_alike_in_any_order_and_after_an_interruption(
            height in 1usize..90, width in 1usize..90, tile in 4usize..30, scale in 1usize..3, seed: u64,
            left in 0usize..40,
        ) {
            let size = LatentSize { height, width };
            let value = |i: usize| ((i as f32 + 0.5) * (seed % 1009) as f32).sin();
            for tiling in tilings(size, tile, 1, scale) {
                let tiles: Vec<Arc<Array>> = (0..tiling.len()).map(|n| {
                    let shape = tiling.result_shape(n, 3).unwrap();
                    let data = (0..shape.iter().product()).map(|i| value(i + n * 31)).collect();
                    Arc::new(Array::new(shape, data).unwrap())
                }).collect();
                let whole = join(&tiling, tiles.iter().map(|t| Array::clone(t)).collect());
                let mut order: Vec<usize> = (0..tiles.len()).collect();
                order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(seed | 1) % 97);
                let (mut joiner, mut bands, mut rows) = (Joiner::new(tiling.clone()), Vec::new(), 0);
                for (n, &i) in order.iter().enumerate() {
                    if n == left {
                        // Left, with what waits kept and the rest named by `missing`.
                        let waiting = joiner.waiting().clone();
                        let shapes = joiner.tails().iter().map(|t| t.shape().to_vec());
                        let expected = tiling.tails(joiner.rows(), 3);
                        prop_assert_eq!(shapes.collect::<Vec<_>>(), expected.iter().map(|s| s.to_vec()).collect::<Vec<_>>());
                        joiner = Joiner::restore(tiling.clone(), joiner.rows(), joiner.tails().to_vec());
                        for (i, tile) in waiting {
                            prop_assert!(joiner.add(i, tile).is_empty());
                        }
                        let mut missing = order[n..].to_vec();
                        missing.sort_unstable();
                        prop_assert_eq!(joiner.missing().collect::<Vec<_>>(), missing);
                    }
                    for band in joiner.add(i, tiles[i].clone()) {
                        rows += band.height();
                        bands.push(band.to_array());
                    }
                    prop_assert_eq!(rows, tiling.finished(joiner.rows()));
                }
                prop_assert_eq!(joiner.missing().count(), 0);
                prop_assert_eq!(stack(&bands), whole);
            }
        }
    }

    #[test]
    fn pixels_and_values_convert_both_ways() {
        let rgb: Vec<u8> = (0..=255).flat_map(|v| [v, 255 - v, v / 2]).collect();
        let picture = to_picture(&Pixels::new(16, 16, rgb.clone()).unwrap().to_array());
        assert_eq!(picture.rgb(), rgb);
        let beyond = Array::new([3, 1, 1], vec![-3.0, 0.0, f32::MAX]).unwrap();
        assert_eq!(to_picture(&beyond).rgb(), [0, 128, 255]);
    }
}
