//! A pyramid that is there: a picture under way, or one that was read as a whole.

use std::io::{self, Read, Seek};
use std::sync::Arc;

use png::{ColorType, Transformations};

use super::{Description, TileSource, ViewError};
use crate::output::{bounded_text, encode_jpeg, max_level};
use crate::raster::{Levels, Raster, Scratch};
use crate::sampler::units::{ImageSize, PixelRect};

/// A tile's side.
const TILE: u32 = 256;
/// Of tiles on their way to the viewer.
const QUALITY: u8 = 90;
/// Rows that are written at once.
const ROWS: usize = 64;

/// Tiles from a pyramid.
pub struct LevelsSource {
    levels: Arc<dyn Levels>,
    description: Description,
}

impl LevelsSource {
    /// A PNG, read as a whole into the scratch folder.
    pub fn open_png(file: impl Read + Seek, name: &str, scratch: &Scratch) -> Result<Self, ViewError> {
        let unreadable =
            |e: png::DecodingError| ViewError::Unreadable(format!("{name}.png cannot be shown: {e}"));
        let mut decoder = png::Decoder::new(io::BufReader::with_capacity(1 << 20, file));
        decoder.set_transformations(Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(unreadable)?;
        if reader.info().interlaced {
            let reason = "it is interlaced: write it again without";
            return Err(ViewError::Unreadable(format!("{name}.png cannot be shown: {reason}")));
        }
        let size = ImageSize { width: reader.info().width, height: reader.info().height };
        let raster = Raster::create(size, scratch)?;
        let (color, _) = reader.output_color_type();
        let (mut rows, mut top) = (Vec::new(), 0);
        while let Some(row) = reader.next_row().map_err(unreadable)? {
            rgb(row.data(), color, &mut rows);
            let full = rows.len() / (size.width as usize * 3);
            if full >= ROWS {
                raster.write_rows(top, &rows)?;
                top += full as u32;
                raster.finish(top)?;
                rows.clear();
            }
        }
        raster.write_rows(top, &rows)?;
        raster.finish(size.height)?;
        reader.finish().map_err(unreadable)?;
        let text = |keyword: &str| {
            let info = reader.info();
            let latin1 = info.uncompressed_latin1_text.iter().map(|c| (&c.keyword, Some(c.text.clone())));
            let utf8 = info.utf8_text.iter().map(|c| (&c.keyword, bounded_text(c)));
            latin1.chain(utf8).find(|(k, _)| *k == keyword).and_then(|(_, text)| text)
        };
        let description = Description {
            name: name.to_owned(),
            width: size.width,
            height: size.height,
            tile_size: TILE,
            overlap: 0,
            max_level: max_level(size),
            format: "PNG".into(),
            parameters: text("parameters"),
            settings: text("gigasmith"),
        };
        Ok(Self { levels: Arc::new(raster), description })
    }
}

/// A row as RGB; transparency is dropped.
fn rgb(row: &[u8], color: ColorType, out: &mut Vec<u8>) {
    match color {
        ColorType::Rgb => out.extend_from_slice(row),
        ColorType::Rgba => row.chunks_exact(4).for_each(|p| out.extend_from_slice(&p[..3])),
        ColorType::GrayscaleAlpha => row.chunks_exact(2).for_each(|p| out.extend([p[0]; 3])),
        // Palettes are expanded.
        ColorType::Grayscale | ColorType::Indexed => row.iter().for_each(|&v| out.extend([v; 3])),
    }
}

impl TileSource for LevelsSource {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn tile(&self, level: u32, column: u32, row: u32) -> Result<(Vec<u8>, &'static str), ViewError> {
        let missing = || ViewError::NoSuchTile { level, column, row };
        let halvings = self.description.max_level.checked_sub(level).ok_or_else(missing)? as usize;
        let size = self.levels.size(halvings);
        let place = |at: u32, length: u32| {
            let start = at.checked_mul(TILE).filter(|start| *start < length)?;
            Some((start, TILE.min(length - start)))
        };
        let (left, width) = place(column, size.width).ok_or_else(missing)?;
        let (top, height) = place(row, size.height).ok_or_else(missing)?;
        let rgb = self.levels.read(halvings, PixelRect { top, left, height, width })?;
        Ok((encode_jpeg(&rgb, ImageSize { width, height }, QUALITY)?, "image/jpeg"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::output::testing::{Memory, embedded};
    use crate::output::write_png;

    #[test]
    fn a_png_is_shown_with_its_texts() {
        let mut file = Vec::new();
        write_png(&mut file, &Memory::smooth(700, 300), &embedded(), &mut |_, _| Ok(())).unwrap();
        let source = LevelsSource::open_png(Cursor::new(file), "a", &Scratch::default()).unwrap();
        let described = source.describe();
        assert_eq!((described.width, described.height, described.max_level), (700, 300, 10));
        assert_eq!(described.settings, Some(embedded().json));
        assert_eq!(described.parameters, Some(embedded().parameters));
        let decoded = |level, column, row| {
            let (bytes, kind) = source.tile(level, column, row).unwrap();
            assert_eq!(kind, "image/jpeg");
            image::load_from_memory(&bytes).unwrap().into_rgb8()
        };
        assert_eq!(decoded(10, 2, 1).dimensions(), (188, 44));
        assert_eq!(decoded(0, 0, 0).dimensions(), (1, 1));
        let truth = Memory::smooth(700, 300);
        let rect = PixelRect { top: 0, left: 256, height: 256, width: 256 };
        let exact = truth.read(0, rect).unwrap();
        let shown = decoded(10, 1, 0).into_raw();
        let worst = exact.iter().zip(&shown).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst < Some(24), "{worst:?}");
        assert!(source.tile(10, 3, 0).is_err() && source.tile(11, 0, 0).is_err());
    }

    #[test]
    fn what_is_no_png_is_explained() {
        let error =
            LevelsSource::open_png(Cursor::new(b"no".to_vec()), "a", &Scratch::default()).err().unwrap();
        assert!(error.to_string().contains("a.png cannot be shown"), "{error}");
    }
}
