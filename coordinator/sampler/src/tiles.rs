//! Tiled encoding and decoding: how a large picture is cut for the VAE.
//!
//! Everything is counted in latent pixels, for the encoder too. Two ways:
//!
//! *As published* (diffusers' `AutoencoderKL`): tiles start at every multiple of three quarters of a tile,
//! are cut at the edge, and fade into the tile above and the tile at the left over their first quarter.
//! What a tile makes of its own edges, where it sees zeros instead of its neighbours, and its own
//! normalisation statistics show: as faint seams, and as colours that change from tile to tile.
//!
//! *Seamless*: tiles of equal size, evenly spread, overlap by twice what the network sees through its
//! convolutions and [`FADE`] besides. What a tile makes of its edges is thrown away, neighbours fade into
//! each other over the middle of their overlap, and all of them share one set of normalisation statistics
//! ([`pool`]). What is left is the attention in the middle of the network, which sees its own tile only.

pub mod join;
pub mod pool;

use gigasmith_types::{ModelDescription, Rect};

use super::units::{ImageSize, LatentSize, Window};

/// Latent pixels over which seamless tiles fade into each other.
pub const FADE: usize = 8;

/// How a picture goes through the VAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VaeMode {
    /// At once, for pictures up to a megapixel; in seamless tiles beyond.
    #[default]
    Seamless,
    /// At once, for pictures up to a megapixel; in tiles as published beyond: what `seamless` was before.
    Auto,
    /// At once, whatever the size.
    Whole,
    /// In tiles, as published.
    Tiled,
}

/// Where something goes through in tiles, and how they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Not at all.
    Whole,
    /// As published.
    Published,
    /// With overlaps that hide them.
    Seamless,
}

impl VaeMode {
    /// How a picture of this size is cut.
    pub fn cut(self, size: ImageSize) -> Cut {
        let is_large = u64::from(size.width) * u64::from(size.height) > 1 << 20;
        match self {
            Self::Seamless if is_large => Cut::Seamless,
            Self::Auto if is_large => Cut::Published,
            Self::Tiled => Cut::Published,
            Self::Seamless | Self::Auto | Self::Whole => Cut::Whole,
        }
    }
}

/// Which of the VAE's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// Pixels to latents.
    Encoder,
    /// Latents to pixels.
    Decoder,
}

impl Network {
    /// How far its convolutions see, in latent pixels.
    pub fn reach(self, model: &ModelDescription) -> usize {
        match self {
            Self::Encoder => model.vae_reach.encoder as usize,
            Self::Decoder => model.vae_reach.decoder as usize,
        }
    }

    /// Groups of its normalisations.
    pub fn groups(self, model: &ModelDescription) -> usize {
        match self {
            Self::Encoder => model.vae_norms.encoder as usize,
            Self::Decoder => model.vae_norms.decoder as usize,
        }
    }

    /// Results per latent pixel and axis: image pixels, or moments.
    pub fn scale(self, model: &ModelDescription) -> usize {
        match self {
            Self::Encoder => 1,
            Self::Decoder => model.latent_factor as usize,
        }
    }
}

/// A tile along one axis, in latent pixels from the canvas's edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// What the network sees.
    seen: (usize, usize),
    /// What is wanted of that.
    wanted: (usize, usize),
    /// How much of what is wanted is kept, when the next tile has faded in over the rest.
    keep: usize,
}

/// How one picture is cut, and how the results of its tiles join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    rows: Vec<Span>,
    columns: Vec<Span>,
    size: LatentSize,
    /// Over how much tiles fade into each other.
    fade: usize,
    scale: usize,
}

impl Tiling {
    /// How a latent of some size is decoded or encoded.
    pub fn new(mode: VaeMode, network: Network, latent: LatentSize, model: &ModelDescription) -> Self {
        let factor = model.latent_factor;
        let size = ImageSize { width: latent.width as u32 * factor, height: latent.height as u32 * factor };
        let (tile, scale) = ((model.vae_tile / factor) as usize, network.scale(model));
        match mode.cut(size) {
            Cut::Whole => Self::whole(latent, scale),
            Cut::Published => Self::published(latent, tile, scale),
            Cut::Seamless => Self::seamless(latent, tile, network.reach(model), scale),
        }
    }

    /// One tile that is everything.
    pub fn whole(size: LatentSize, scale: usize) -> Self {
        let all = |length| vec![Span { seen: (0, length), wanted: (0, length), keep: length }];
        Self { rows: all(size.height), columns: all(size.width), size, fade: 0, scale }
    }

    /// Tiles of side `tile` as published.
    pub fn published(size: LatentSize, tile: usize, scale: usize) -> Self {
        let stride = (tile * 3 / 4).max(1);
        let spans = |length: usize| {
            let span = |start: usize| {
                let seen = (start, (start + tile).min(length));
                Span { seen, wanted: seen, keep: stride.min(seen.1 - start) }
            };
            (0..length).step_by(stride).map(span).collect()
        };
        Self { rows: spans(size.height), columns: spans(size.width), size, fade: tile - stride, scale }
    }

    /// Tiles of side `tile` or larger for a network that sees `reach`.
    pub fn seamless(size: LatentSize, tile: usize, reach: usize, scale: usize) -> Self {
        let overlap = 2 * reach + FADE;
        let tile = seamless_side(tile, reach);
        let spans = |length: usize| {
            let starts = spread(length, tile, overlap);
            let end = |start: usize| (start + tile).min(length);
            // Neighbours meet in the middle of their overlap.
            let fade = |k: usize| {
                let middle = (starts[k] + end(starts[k - 1])) / 2;
                (middle - FADE / 2, middle + FADE / 2)
            };
            let span = |k: usize| {
                let is_last = k + 1 == starts.len();
                let from = if k == 0 { 0 } else { fade(k).0 };
                let (until, next) = if is_last { (length, length) } else { (fade(k + 1).1, fade(k + 1).0) };
                Span { seen: (starts[k], end(starts[k])), wanted: (from, until), keep: next - from }
            };
            (0..starts.len()).map(span).collect()
        };
        Self { rows: spans(size.height), columns: spans(size.width), size, fade: FADE, scale }
    }

    /// The canvas, in latent pixels.
    pub fn size(&self) -> LatentSize {
        self.size
    }

    /// Rows of tiles.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Tiles.
    pub fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Whether there is nothing to cut.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn spans(&self, position: usize) -> Option<(Span, Span)> {
        let row = self.rows.get(position / self.columns.len())?;
        Some((*row, self.columns[position % self.columns.len()]))
    }

    /// What the network sees of the tile at a position in raster order. Panics beyond the last.
    pub fn window(&self, position: usize) -> Window {
        let (row, column) = self.spans(position).expect("there is such a tile");
        let (top, left) = (row.seen.0, column.seen.0);
        Window { top, left, height: row.seen.1 - top, width: column.seen.1 - left }
    }

    /// The part of that window that is wanted, counted from the window's corner.
    pub fn part(&self, position: usize) -> Rect {
        let (row, column) = self.spans(position).expect("there is such a tile");
        Rect {
            top: row.wanted.0 - row.seen.0,
            left: column.wanted.0 - column.seen.0,
            height: row.wanted.1 - row.wanted.0,
            width: column.wanted.1 - column.wanted.0,
        }
    }

    /// The part of the canvas, in latent pixels, that a tile has to itself once all are joined.
    pub fn kept(&self, position: usize) -> Window {
        let (row, column) = self.spans(position).expect("there is such a tile");
        Window { top: row.wanted.0, left: column.wanted.0, height: row.keep, width: column.keep }
    }

    /// Finished rows of results after so many joined rows of tiles.
    pub fn finished(&self, rows: usize) -> usize {
        self.rows[..rows].iter().map(|r| r.keep).sum::<usize>() * self.scale
    }

    /// The shape of a tile's result, by position; `None` when there is none such.
    pub fn result_shape(&self, position: usize, channels: usize) -> Option<[usize; 3]> {
        let (row, column) = self.spans(position)?;
        let side = |span: Span| (span.wanted.1 - span.wanted.0) * self.scale;
        Some([channels, side(row), side(column)])
    }

    /// The shapes of what `rows` joined rows of tiles leave for the next to fade in over.
    pub fn tails(&self, rows: usize, channels: usize) -> Vec<[usize; 3]> {
        let Some(row) = rows.checked_sub(1).filter(|_| self.fade > 0) else {
            return Vec::new();
        };
        let columns = self.columns.len();
        let positions = row * columns..(row + 1) * columns;
        let shapes = positions.filter_map(|i| self.result_shape(i, channels));
        shapes.map(|[c, h, w]| [c, h.min(self.fade * self.scale), w]).collect()
    }
}

/// The side of seamless tiles: the VAE's own, if that is two and a half times their overlap.
fn seamless_side(tile: usize, reach: usize) -> usize {
    let least = ((2 * reach + FADE) * 5).div_ceil(2);
    tile.max(least.next_multiple_of(8))
}

/// Where the fewest tiles start that overlap by at least `overlap`, evenly spread.
fn spread(length: usize, tile: usize, overlap: usize) -> Vec<usize> {
    let Some(slack) = length.checked_sub(tile).filter(|&slack| slack > 0) else {
        return vec![0];
    };
    let gaps = slack.div_ceil(tile - overlap);
    (0..=gaps).map(|k| k * slack / gaps).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_narrow_tile_follows_even_where_one_would_do() {
        let tiling = Tiling::published(LatentSize { height: 32, width: 48 }, 32, 8);
        let lefts: Vec<(usize, usize)> =
            (0..2).map(|i| (tiling.window(i).left, tiling.window(i).width)).collect();
        assert_eq!((lefts, tiling.len()), (vec![(0, 32), (24, 24)], 4));
    }

    #[test]
    fn sdxl_pictures_are_cut_like_this() {
        let tiles = |side| Tiling::seamless(LatentSize { height: side, width: side }, 128, 18, 8).len();
        assert_eq!([256, 512, 1024, 4096].map(tiles), [9, 36, 144, 2401]);
    }

    proptest! {
        #[test]
        fn seamless_tiles_cover_everything_out_of_reach_of_their_edges(
            height in 1usize..400, width in 1usize..400, tile in 1usize..130, reach in 0usize..20,
        ) {
            let size = LatentSize { height, width };
            let tiling = Tiling::seamless(size, tile, reach, 1);
            let (mut bottom, mut right) = (0, 0);
            for i in 0..tiling.len() {
                let (window, part) = (tiling.window(i), tiling.part(i));
                prop_assert!(part.is_within(window.height, window.width));
                for (start, length, seen, edge, far) in [
                    (part.top, part.height, window.height, window.top, window.bottom() == height),
                    (part.left, part.width, window.width, window.left, window.right() == width),
                ] {
                    prop_assert!(edge == 0 || start >= reach);
                    prop_assert!(far || start + length + reach <= seen);
                }
                let kept = tiling.kept(i);
                if kept.left == 0 {
                    prop_assert_eq!(kept.top, bottom);
                    (bottom, right) = (kept.bottom(), 0);
                }
                prop_assert_eq!(kept.left, right);
                right = kept.right();
            }
            prop_assert_eq!((bottom, right), (height, width));
        }
    }
}
