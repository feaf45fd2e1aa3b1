//! Tiled encoding and decoding: how a large picture is cut for the VAE and put together again.
//!
//! The published tiling (diffusers' `AutoencoderKL`): tiles start at every multiple of three quarters
//! of a tile, are cut at the edge, and fade into the tile above and the tile at the left over their
//! first quarter. The same rules serve decoding (tiles of latents in, pixels out) and encoding (tiles
//! of pixels in, moments out).

use std::collections::BTreeMap;
use std::sync::Arc;

use gigasmith_proto::domain::Array;

use super::resize::Picture;
use super::units::{ImageSize, LatentSize, Window};

/// How a picture goes through the VAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VaeMode {
    /// At once, for pictures up to a megapixel; in tiles beyond.
    Auto,
    /// At once, whatever the size.
    Whole,
    /// In tiles, as published.
    Tiled,
}

impl VaeMode {
    /// Whether a picture of this size goes through in tiles.
    pub fn is_tiled(self, size: ImageSize) -> bool {
        match self {
            Self::Auto => u64::from(size.width) * u64::from(size.height) > 1 << 20,
            Self::Whole => false,
            Self::Tiled => true,
        }
    }
}

/// How one picture is cut: windows of the input, and how their results join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    /// Tile starts along the rows and the columns of the input.
    tops: Vec<usize>,
    lefts: Vec<usize>,
    input: LatentSize,
    tile: usize,
    /// Rows and columns of a tile's result that are kept, and over which it fades in; `None`: one tile.
    keep_and_fade: Option<(usize, usize)>,
}

impl Tiling {
    /// Tiles of side `tile` over an input of some size (latent or image pixels), each of which becomes
    /// a result of side `output_tile`.
    pub fn published(input: LatentSize, tile: usize, output_tile: usize) -> Self {
        // Counted on the coarser side, latent pixels, so that input and output agree for any tile.
        let coarse = tile.min(output_tile);
        let stride = (coarse * 3 / 4).max(1);
        let keep = stride * (output_tile / coarse);
        let starts = |length: usize| (0..length).step_by(stride * (tile / coarse)).collect();
        let keep_and_fade = Some((keep, output_tile - keep));
        Self { tops: starts(input.height), lefts: starts(input.width), input, tile, keep_and_fade }
    }

    /// How a latent goes through the decoder; `side`: of the VAE's tiles in image pixels, `factor`: image
    /// pixels per latent pixel.
    pub fn decoding(mode: VaeMode, latent: LatentSize, side: u32, factor: u32) -> Self {
        let size = ImageSize { width: latent.width as u32 * factor, height: latent.height as u32 * factor };
        match mode.is_tiled(size) {
            true => Self::published(latent, (side / factor) as usize, side as usize),
            false => Self::whole(latent),
        }
    }

    /// Rows of tiles.
    pub fn rows(&self) -> usize {
        self.tops.len()
    }

    /// Bytes of RGB that each joined row of decoded tiles gives; `factor`: image pixels per latent pixel.
    pub fn band_bytes(&self, factor: usize) -> Vec<usize> {
        let heights = self.tops.iter().map(|&top| self.tile.min(self.input.height - top) * factor);
        let kept = heights.map(|h| self.keep_and_fade.map_or(h, |(keep, _)| keep.min(h)));
        kept.map(|rows| 3 * rows * self.input.width * factor).collect()
    }

    /// The shape of a decoded tile, by position; `None` when there is none such.
    pub fn result_shape(&self, position: usize, factor: usize) -> Option<[usize; 3]> {
        let window = self.windows().get(position).copied()?;
        Some([3, window.height * factor, window.width * factor])
    }

    /// The shapes of what `rows` joined rows of decoded tiles leave for the next to fade in over.
    pub fn tails(&self, rows: usize, factor: usize) -> Vec<[usize; 3]> {
        let (Some((_, fade)), Some(row)) = (self.keep_and_fade, rows.checked_sub(1)) else {
            return Vec::new();
        };
        let columns = self.lefts.len();
        let shapes = (row * columns..(row + 1) * columns).filter_map(|i| self.result_shape(i, factor));
        shapes.map(|[c, h, w]| [c, h.min(fade), w]).collect()
    }

    /// One tile that is the whole input.
    pub fn whole(input: LatentSize) -> Self {
        Self { tops: vec![0], lefts: vec![0], input, tile: usize::MAX, keep_and_fade: None }
    }

    /// The windows of the input, in raster order.
    pub fn windows(&self) -> Vec<Window> {
        let side = |start: usize, length: usize| self.tile.min(length - start);
        let row = |top: usize| {
            self.lefts.iter().map(move |&left| Window {
                top,
                left,
                height: side(top, self.input.height),
                width: side(left, self.input.width),
            })
        };
        self.tops.iter().flat_map(|&top| row(top)).collect()
    }

    /// Joins the results of [`Self::windows`], in that order, each (channels, height, width).
    pub fn join(&self, results: Vec<Array>) -> Array {
        assert_eq!(results.len(), self.tops.len() * self.lefts.len(), "a result for every tile");
        let mut joiner = Joiner::new(self.clone());
        let bands = results.into_iter().enumerate().flat_map(|(i, tile)| joiner.add(i, Arc::new(tile)));
        stack(&bands.collect::<Vec<_>>())
    }
}

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
        let columns = self.tiling.lefts.len();
        let all = self.rows * columns..self.tiling.tops.len() * columns;
        all.filter(|i| !self.waiting.contains_key(i))
    }

    /// Takes in the result of a window, by its position, and returns what is finished by it: whole rows of
    /// the output from the top, (channels, rows, width), each a part below the one before.
    pub fn add(&mut self, position: usize, result: Arc<Array>) -> Vec<Array> {
        self.waiting.insert(position, result);
        let mut bands = Vec::new();
        let columns = self.tiling.lefts.len();
        while self.rows < self.tiling.tops.len() {
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

    fn join_row(&mut self, tiles: Vec<Arc<Array>>) -> Array {
        // Somebody who stores a tile may hold it too.
        let own = |tile| Arc::try_unwrap(tile).unwrap_or_else(|shared| Array::clone(&shared));
        let mut tiles = tiles.into_iter().map(own);
        let Some((keep, fade)) = self.tiling.keep_and_fade else {
            return tiles.next().expect("a tiling has a tile");
        };
        let mut row: Vec<Array> = Vec::new();
        for mut tile in tiles {
            if let Some(above) = self.tails.get(row.len()) {
                fade_rows(&mut tile, above, fade);
            }
            if let Some(left) = row.last() {
                fade_columns(&mut tile, left, fade);
            }
            row.push(tile);
        }
        self.tails = row.iter().map(|tile| last_rows(tile, fade)).collect();
        beside(&row, keep)
    }
}

/// The last rows of a tile, `count` where it has so many.
fn last_rows(tile: &Array, count: usize) -> Array {
    let (_, height, width) = chw(tile);
    let rows = count.min(height);
    super::noise::crop(tile, Window { top: height - rows, left: 0, height: rows, width })
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

/// The first `keep` rows and columns of each tile, side by side.
fn beside(tiles: &[Array], keep: usize) -> Array {
    let (channels, height, _) = chw(&tiles[0]);
    let rows = keep.min(height);
    let mut data = Vec::new();
    for channel in 0..channels {
        for y in 0..rows {
            for tile in tiles {
                let (_, height, width) = chw(tile);
                data.extend_from_slice(&tile.data()[(channel * height + y) * width..][..keep.min(width)]);
            }
        }
    }
    let width = data.len() / (channels * rows);
    Array::new([channels, rows, width], data).expect("rows have equal lengths")
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

/// A window of a picture as the encoder takes it: (3, height, width), values in [-1, 1].
pub fn picture_window(picture: &Picture, window: Window) -> Array {
    let stride = picture.size().width as usize * 3;
    let mut data = vec![0.0; 3 * window.area()];
    for (y, row) in picture.rgb().chunks_exact(stride).skip(window.top).take(window.height).enumerate() {
        for (x, pixel) in row[window.left * 3..window.right() * 3].chunks_exact(3).enumerate() {
            for (channel, &value) in pixel.iter().enumerate() {
                data[(channel * window.height + y) * window.width + x] =
                    2.0 * (f32::from(value) / 255.0) - 1.0;
            }
        }
    }
    Array::new([3, window.height, window.width], data).expect("every pixel was read")
}

/// A decoded image (3, height, width) as 8-bit pixels: `round(255 clamp(x / 2 + 0.5, 0, 1))`.
pub fn to_picture(image: &Array) -> Picture {
    let (_, height, width) = chw(image);
    Picture::new(ImageSize { width: width as u32, height: height as u32 }, to_rgb(image))
}

/// The same as bytes: rows of RGB.
pub fn to_rgb(image: &Array) -> Vec<u8> {
    let (_, height, width) = chw(image);
    let area = height * width;
    let mut rgb = vec![0; 3 * area];
    for (channel, plane) in image.data().chunks_exact(area).enumerate() {
        for (i, value) in plane.iter().enumerate() {
            let level = (value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
            rgb[i * 3 + channel] = level.round_ties_even() as u8;
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::noise::crop;
    use super::*;

    proptest! {
        #[test]
        fn tiles_of_one_image_join_to_that_image(height in 1usize..70, width in 1usize..70, tile in 4usize..30) {
            let size = LatentSize { height, width };
            let image = Array::new([2, height, width], (0..2 * height * width).map(|i| i as f32).collect()).unwrap();
            let tiling = Tiling::published(size, tile, tile);
            let joined = tiling.join(tiling.windows().into_iter().map(|w| crop(&image, w)).collect());
            prop_assert_eq!(joined.shape(), image.shape());
            for (a, b) in joined.data().iter().zip(image.data()) {
                // A mean of equal values, weighted in f32.
                prop_assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{} {}", a, b);
            }
        }
    }

    proptest! {
        #[test]
        fn tiles_join_alike_in_any_order_and_after_an_interruption(
            height in 1usize..70, width in 1usize..70, tile in 4usize..30, seed: u64, left in 0usize..40,
        ) {
            let size = LatentSize { height, width };
            let tiling = Tiling::published(size, tile, tile);
            let value = |i: usize| ((i as f32 + 0.5) * (seed % 1009) as f32).sin();
            let tiles: Vec<Arc<Array>> = tiling.windows().into_iter().enumerate().map(|(n, w)| {
                let data = (0..2 * w.area()).map(|i| value(i + n * 31)).collect();
                Arc::new(Array::new([2, w.height, w.width], data).unwrap())
            }).collect();
            let whole = tiling.join(tiles.iter().map(|t| Array::clone(t)).collect());
            let mut order: Vec<usize> = (0..tiles.len()).collect();
            order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(seed | 1) % 97);
            let (mut joiner, mut bands) = (Joiner::new(tiling.clone()), Vec::new());
            for (n, &i) in order.iter().enumerate() {
                if n == left {
                    // Left, with what waits kept and the rest named by `missing`.
                    let waiting = joiner.waiting().clone();
                    joiner = Joiner::restore(tiling.clone(), joiner.rows(), joiner.tails().to_vec());
                    for (i, tile) in waiting {
                        prop_assert!(joiner.add(i, tile).is_empty());
                    }
                    let mut missing = order[n..].to_vec();
                    missing.sort_unstable();
                    prop_assert_eq!(joiner.missing().collect::<Vec<_>>(), missing);
                }
                bands.extend(joiner.add(i, tiles[i].clone()));
            }
            prop_assert_eq!(joiner.missing().count(), 0);
            prop_assert_eq!(stack(&bands), whole);
        }
    }

    #[test]
    fn a_second_narrow_tile_follows_even_where_one_would_do() {
        let tiling = Tiling::published(LatentSize { height: 32, width: 48 }, 32, 256);
        let lefts: Vec<(usize, usize)> = tiling.windows()[..2].iter().map(|w| (w.left, w.width)).collect();
        assert_eq!((lefts, tiling.windows().len()), (vec![(0, 32), (24, 24)], 4));
    }

    #[test]
    fn pixels_and_values_convert_both_ways() {
        let size = ImageSize { width: 16, height: 16 };
        let picture = Picture::new(size, (0..=255).flat_map(|v| [v, 255 - v, v / 2]).collect());
        let window = Window { top: 0, left: 0, height: 16, width: 16 };
        assert_eq!(to_picture(&picture_window(&picture, window)), picture);
        let beyond = Array::new([3, 1, 1], vec![-3.0, 0.0, f32::MAX]).unwrap();
        assert_eq!(to_picture(&beyond).rgb(), [0, 128, 255]);
    }
}
