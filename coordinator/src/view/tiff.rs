//! TIFF for a viewer: decoded, cut and encoded as JPEG, tile by tile.
//!
//! Levels that the file does not have are made of the next larger one that it has, in bands, so that
//! memory stays small. That costs time: a file without a pyramid is refused when a tile would need more
//! than [`MOST_PIXELS`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::dzi::name_of;
use super::tiff_levels::{Chunk, FileLevel, Shared, find_levels};
use super::{Description, TileSource, ViewError};
use crate::input::texts::{Told, of_directories};
use crate::output::encode_jpeg;
use crate::raster::halve;
use crate::sampler::units::{ImageSize, PixelRect};

/// Of tiles on their way to the viewer.
const QUALITY: u8 = 90;
/// A tile's side, unless the file's own suits.
const TILE: u32 = 256;
/// Decoded for one tile at most: a second on one core.
const MOST_PIXELS: u64 = 64 << 20;
/// Pixels of a chunk: a flat file may be one strip.
const MOST_CHUNK: u64 = 64 << 20;
/// Decoded chunks that are kept.
const CACHE_BYTES: usize = 64 << 20;
/// Rows that are made at once of a level that is not in the file.
const BAND: u32 = 32;

/// A TIFF or BigTIFF.
pub struct TiffSource {
    description: Description,
    /// By how often they are halved.
    levels: Vec<Option<FileLevel>>,
    cache: Mutex<Cache>,
}

impl TiffSource {
    /// A file.
    pub fn open(path: &Path) -> Result<Self, ViewError> {
        Self::new(File::open(path)?, name_of(path)?)
    }

    /// Anything that can be read at any place.
    pub fn new(file: impl Read + Seek + Send + 'static, name: &str) -> Result<Self, ViewError> {
        let mut file = Shared::new(Box::new(file));
        let mut levels = find_levels(&file)?;
        let mut magic = [0; 4];
        file.rewind()?;
        file.read_exact(&mut magic)?;
        let text = Told::of(of_directories(file));
        let small =
            |level: &FileLevel| u64::from(level.chunk.width) * u64::from(level.chunk.height) <= MOST_CHUNK;
        levels.iter_mut().skip(1).for_each(|level| *level = level.take().filter(small));
        let Some(Some(whole)) = levels.first() else {
            return Err(ViewError::Unreadable("the TIFF has no image".into()));
        };
        if !small(whole) {
            return Err(ViewError::Unreadable(format!(
                "a TIFF with pieces of {} pixels is too slow to show; convert it to tiled 8-bit RGB",
                whole.chunk
            )));
        }
        let own = whole.chunk.width;
        let suits = whole.is_tiled() && own == whole.chunk.height && (128..=1024).contains(&own);
        let variant = if magic.contains(&43) { "BigTIFF" } else { "TIFF" };
        let description = Description {
            name: name.to_owned(),
            width: whole.size.width,
            height: whole.size.height,
            tile_size: if suits { own } else { TILE },
            overlap: 0,
            max_level: levels.len() as u32 - 1,
            format: format!("{variant}, {}", whole.compression),
            parameters: text.parameters,
            settings: text.settings,
        };
        let source = Self { description, levels, cache: Mutex::default() };
        source.check_cost()?;
        // What cannot be decoded is refused now, and not tile by tile.
        for level in source.levels.iter().flatten() {
            level.decode(0, 0)?;
        }
        Ok(source)
    }

    fn size(&self, halvings: usize) -> ImageSize {
        let side = |pixels: u32| u64::from(pixels).div_ceil(1 << halvings) as u32;
        ImageSize { width: side(self.description.width), height: side(self.description.height) }
    }

    /// Fails where tiles of a missing level would take too long.
    fn check_cost(&self) -> Result<(), ViewError> {
        let mut present = 0;
        for halvings in 0..self.levels.len() {
            if self.levels[halvings].is_some() {
                present = halvings;
            }
            let source = self.size(present);
            let reach =
                |side: u32| (u64::from(self.description.tile_size) << (halvings - present)).min(side.into());
            if reach(source.width) * reach(source.height) > MOST_PIXELS {
                let Description { width, height, .. } = self.description;
                return Err(ViewError::Unreadable(format!(
                    "the TIFF has {width}x{height} pixels and no pyramid, which takes too long to show: write it \
                     with `gigasmith`, or with `vips tiffsave IN OUT --tile --pyramid`"
                )));
            }
        }
        Ok(())
    }

    /// Pixels of any level; the rect lies inside.
    fn region(&self, halvings: usize, rect: PixelRect) -> Result<Vec<u8>, ViewError> {
        if let Some(level) = &self.levels[halvings] {
            return self.assemble(halvings, level, rect);
        }
        let finer = self.size(halvings - 1);
        let mut rgb = Vec::with_capacity(rect.width as usize * rect.height as usize * 3);
        for top in (rect.top..rect.top + rect.height).step_by(BAND as usize) {
            let rows = BAND.min(rect.top + rect.height - top);
            let source = PixelRect {
                left: 2 * rect.left,
                top: 2 * top,
                width: (2 * rect.width).min(finer.width - 2 * rect.left),
                height: (2 * rows).min(finer.height - 2 * top),
            };
            let pixels = self.region(halvings - 1, source)?;
            halve(&pixels, source.width as usize, &mut rgb);
        }
        Ok(rgb)
    }

    /// Pixels of a level that the file has. What it lacks by rounding is its last column and row again.
    fn assemble(&self, halvings: usize, level: &FileLevel, rect: PixelRect) -> Result<Vec<u8>, ViewError> {
        let mut rgb = vec![0; rect.width as usize * rect.height as usize * 3];
        let inside = |start: u32, length: u32, side: u32| {
            let start = start.min(side - 1);
            (start, (start + length.max(1)).min(side))
        };
        let (left, right) = inside(rect.left, rect.width, level.size.width);
        let (top, bottom) = inside(rect.top, rect.height, level.size.height);
        for row in top / level.chunk.height..=(bottom - 1) / level.chunk.height {
            for column in left / level.chunk.width..=(right - 1) / level.chunk.width {
                let chunk = self.chunk(halvings, level, column, row)?;
                let at = (column * level.chunk.width, row * level.chunk.height);
                copy(&chunk, at, (left..right, top..bottom), &mut rgb, rect.width as usize);
            }
        }
        extend(&mut rgb, rect.width as usize, (right - left) as usize, (bottom - top) as usize);
        Ok(rgb)
    }

    fn chunk(
        &self,
        halvings: usize,
        level: &FileLevel,
        column: u32,
        row: u32,
    ) -> Result<Arc<Chunk>, ViewError> {
        let cached = |cache: &Mutex<Cache>| {
            cache.lock().unwrap_or_else(PoisonError::into_inner).get((halvings, column, row))
        };
        if let Some(chunk) = cached(&self.cache) {
            return Ok(chunk);
        }
        let chunk = Arc::new(level.decode(column, row)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put((halvings, column, row), Arc::clone(&chunk));
        Ok(chunk)
    }
}

impl TileSource for TiffSource {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn tile(&self, level: u32, column: u32, row: u32) -> Result<(Vec<u8>, &'static str), ViewError> {
        let missing = ViewError::NoSuchTile { level, column, row };
        let Some(halvings) = self.description.max_level.checked_sub(level) else { return Err(missing) };
        let (size, side) = (self.size(halvings as usize), self.description.tile_size);
        if column >= size.width.div_ceil(side) || row >= size.height.div_ceil(side) {
            return Err(missing);
        }
        let (left, top) = (column * side, row * side);
        let (width, height) = (side.min(size.width - left), side.min(size.height - top));
        let rgb = self.region(halvings as usize, PixelRect { left, top, width, height })?;
        Ok((encode_jpeg(&rgb, ImageSize { width, height }, QUALITY)?, "image/jpeg"))
    }
}

/// Copies what a chunk at a place has of a window into the window's pixels.
fn copy(
    chunk: &Chunk,
    (left, top): (u32, u32),
    (columns, rows): (std::ops::Range<u32>, std::ops::Range<u32>),
    out: &mut [u8],
    out_width: usize,
) {
    let first = columns.start.max(left);
    let end = columns.end.min(left + chunk.size.width);
    if first >= end {
        return;
    }
    let bytes = (end - first) as usize * 3;
    for y in rows.start.max(top)..rows.end.min(top + chunk.size.height) {
        let from = ((y - top) as usize * chunk.size.width as usize + (first - left) as usize) * 3;
        let to = ((y - rows.start) as usize * out_width + (first - columns.start) as usize) * 3;
        out[to..to + bytes].copy_from_slice(&chunk.rgb[from..from + bytes]);
    }
}

/// Repeats the last filled column and row to the edges.
fn extend(rgb: &mut [u8], width: usize, filled_width: usize, filled_height: usize) {
    let row_bytes = width * 3;
    if filled_width < width {
        for row in rgb.chunks_exact_mut(row_bytes) {
            for x in filled_width..width {
                row.copy_within(filled_width * 3 - 3..filled_width * 3, x * 3);
            }
        }
    }
    for y in filled_height..rgb.len() / row_bytes {
        rgb.copy_within((filled_height - 1) * row_bytes..filled_height * row_bytes, y * row_bytes);
    }
}

/// Halvings, column, row.
type Key = (usize, u32, u32);

/// Decoded chunks; the longest unused go first.
#[derive(Default)]
struct Cache {
    chunks: HashMap<Key, (u64, Arc<Chunk>)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    fn get(&mut self, key: Key) -> Option<Arc<Chunk>> {
        self.clock += 1;
        let (used, chunk) = self.chunks.get_mut(&key)?;
        *used = self.clock;
        Some(Arc::clone(chunk))
    }

    fn put(&mut self, key: Key, chunk: Arc<Chunk>) {
        if chunk.rgb.len() > CACHE_BYTES {
            return;
        }
        self.clock += 1;
        self.bytes += chunk.rgb.len();
        if let Some((_, old)) = self.chunks.insert(key, (self.clock, chunk)) {
            self.bytes -= old.rgb.len();
        }
        // A few hundred at most, so looking at all of them costs less than decoding one.
        while self.bytes > CACHE_BYTES {
            let oldest = self.chunks.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some((_, old)) = oldest.and_then(|key| self.chunks.remove(&key)) else { return };
            self.bytes -= old.rgb.len();
        }
    }
}

#[cfg(test)]
#[path = "tiff_tests.rs"]
mod tests;
