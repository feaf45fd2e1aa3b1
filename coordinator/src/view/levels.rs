//! A pyramid that is there: a picture under way, or one that was read as a whole.

use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use super::{Description, TileSource, ViewError};
use crate::input::png::PngFile;
use crate::input::texts::Told;
use crate::input::{read_picture, told};
use crate::output::{encode_jpeg, max_level};
use crate::raster::{Levels, Raster, Scratch};
use crate::sampler::units::{ImageSize, PixelRect};

/// A tile's side.
const TILE: u32 = 256;
/// Of tiles on their way to the viewer.
const QUALITY: u8 = 90;

/// Tiles from a pyramid.
pub struct LevelsSource {
    levels: Arc<dyn Levels>,
    description: Description,
}

impl LevelsSource {
    /// A PNG, read as a whole into the scratch folder.
    pub fn open_png(file: impl Read + Seek, name: &str, scratch: &Scratch) -> Result<Self, ViewError> {
        let unreadable = |e: String| ViewError::Unreadable(format!("{name}.png cannot be shown: {e}"));
        let file = PngFile::open(io::BufReader::with_capacity(1 << 20, file)).map_err(unreadable)?;
        let size = file.size();
        let raster = Raster::create(size, scratch)?;
        let mut top = 0;
        let read = file.read(&mut |rows| {
            raster.write_rows(top, rows)?;
            top += (rows.len() / (size.width as usize * 3)) as u32;
            raster.finish(top)
        });
        let told = Told::of(read.map_err(unreadable)?.texts);
        Ok(Self::of(raster, name, "PNG", told))
    }

    /// A picture of another format, held in the scratch folder.
    pub(crate) fn open_other(path: &Path, name: &str, scratch: &Scratch) -> Result<Self, ViewError> {
        let loaded = read_picture(path).map_err(|e| ViewError::Unreadable(e.to_string()))?;
        let raster = Raster::of(&loaded.picture, scratch)?;
        let format = path.extension().and_then(|e| e.to_str()).unwrap_or("picture").to_ascii_uppercase();
        Ok(Self::of(raster, name, &format, told(path).unwrap_or_default()))
    }

    fn of(raster: Raster, name: &str, format: &str, told: Told) -> Self {
        let size = raster.picture_size();
        let description = Description {
            name: name.to_owned(),
            width: size.width,
            height: size.height,
            tile_size: TILE,
            overlap: 0,
            max_level: max_level(size),
            format: format.to_owned(),
            parameters: told.parameters,
            settings: told.settings,
        };
        Self { levels: Arc::new(raster), description }
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
