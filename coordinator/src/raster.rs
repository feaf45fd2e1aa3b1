//! Pictures under way, on disk, with their pyramids.
//!
//! A picture of 32768x32768 has 3.2 GB. While it is decoded, enlarged, written and looked at it lies in an
//! unnamed file in a scratch folder, from which any part of any level can be read; nothing of it stays in
//! memory. The file takes 4 bytes a pixel and vanishes with the [`Raster`], however the program ends.
//!
//! Level 0 is the picture; each further level is half as large (rounded up), down to one pixel, every pixel
//! the mean of the four (fewer at an odd edge) below it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::sampler::resize::Picture;
use crate::sampler::units::{ImageSize, PixelRect};

/// Bytes that are read and written at a time when levels are built.
const CHUNK: usize = 8 << 20;
/// Larger ones are a mistake: a terapixel.
const MOST_PIXELS: u64 = 1 << 40;

/// A picture with its pyramid.
pub trait Levels: Send + Sync {
    /// Number of levels, the whole size first.
    fn levels(&self) -> usize;
    /// The size of a level.
    fn size(&self, level: usize) -> ImageSize;
    /// A part of a level, which must lie inside: 8-bit RGB, row by row.
    fn read(&self, level: usize, rect: PixelRect) -> io::Result<Vec<u8>>;
}

/// The sizes of a picture's levels.
pub fn level_sizes(size: ImageSize) -> Vec<ImageSize> {
    let mut sizes = vec![size];
    while let Some(&ImageSize { width, height }) = sizes.last().filter(|s| s.width > 1 || s.height > 1) {
        sizes.push(ImageSize { width: width.div_ceil(2), height: height.div_ceil(2) });
    }
    sizes
}

/// Where pictures under way lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch(PathBuf);

impl Default for Scratch {
    /// The system's folder for large temporary files: `TMPDIR`, `/var/tmp`, or what the system says. (`/tmp`
    /// is in memory on many machines.)
    fn default() -> Self {
        let var_tmp = Self::new("/var/tmp");
        match std::env::var_os("TMPDIR") {
            None if cfg!(unix) && var_tmp.file().is_ok() => var_tmp,
            _ => Self(std::env::temp_dir()),
        }
    }
}

impl Scratch {
    /// A folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// An unnamed file there.
    pub fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.0)
    }

    /// What to tell people when the folder fails.
    pub fn explain(&self, error: &io::Error) -> String {
        let folder = self.0.display();
        format!("the picture under way cannot be kept in {folder}: {error}; --scratch names another folder")
    }
}

/// A picture in a scratch file, finished from the top so far.
#[derive(Debug)]
pub struct Raster {
    file: Positioned,
    /// Size, and offset in the file.
    levels: Vec<(ImageSize, u64)>,
    /// Rows of each level that are there.
    rows: Vec<AtomicU32>,
    /// Held while levels are built.
    building: Mutex<()>,
}

impl Raster {
    /// A picture of which nothing is there yet.
    pub fn create(size: ImageSize, scratch: &Scratch) -> io::Result<Self> {
        assert!(size.width > 0 && size.height > 0, "a picture has pixels");
        if u64::from(size.width) * u64::from(size.height) > MOST_PIXELS {
            let message = format!("a picture of {size} pixels is larger than any that is handled here");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut offset = 0;
        let mut place = |size: ImageSize| {
            let at = offset;
            offset += bytes(size.width, u64::from(size.height));
            (size, at)
        };
        let levels: Vec<_> = level_sizes(size).into_iter().map(&mut place).collect();
        let rows = levels.iter().map(|_| AtomicU32::new(0)).collect();
        Ok(Self { file: Positioned::new(scratch.file()?), levels, rows, building: Mutex::new(()) })
    }

    /// All of a picture in memory.
    pub fn of(picture: &Picture, scratch: &Scratch) -> io::Result<Self> {
        let raster = Self::create(picture.size(), scratch)?;
        raster.write_rows(0, picture.rgb())?;
        raster.finish(picture.size().height)?;
        Ok(raster)
    }

    /// Width and height of the picture.
    pub fn picture_size(&self) -> ImageSize {
        self.levels[0].0
    }

    /// Rows from the top that are finished, with what follows from them of the other levels.
    pub fn finished(&self) -> u32 {
        self.rows(0)
    }

    /// Writes whole rows, in any order.
    pub fn write_rows(&self, top: u32, rgb: &[u8]) -> io::Result<()> {
        let size = self.picture_size();
        let rows = rgb.len() as u64 / bytes(size.width, 1);
        assert!(u64::from(top) + rows <= u64::from(size.height), "rows of the picture");
        self.file.write(bytes(size.width, u64::from(top)), rgb)
    }

    /// All rows above `until` are written: builds what follows from them of the other levels.
    pub fn finish(&self, until: u32) -> io::Result<()> {
        let _one_at_a_time = self.building.lock().expect("no holder panics");
        let mut there = until;
        for level in 1..self.levels.len() {
            let (below, above) = (self.levels[level - 1].0, self.levels[level].0);
            let until = if there == below.height { above.height } else { there / 2 };
            let at_once = (CHUNK as u64 / bytes(below.width, 2)).max(1) as u32;
            let mut top = self.rows(level);
            while top < until {
                let height = at_once.min(until - top);
                let rows = (2 * height).min(below.height - 2 * top);
                let rect = PixelRect { top: 2 * top, left: 0, height: rows, width: below.width };
                let half = halved(&self.read(level - 1, rect)?, below.width as usize);
                self.file.write(self.levels[level].1 + bytes(above.width, u64::from(top)), &half)?;
                top += height;
                self.rows[level].store(top, Ordering::Release);
            }
            there = until;
        }
        self.rows[0].fetch_max(until, Ordering::Release);
        Ok(())
    }

    /// Rows of a level that are there, from the top.
    pub fn rows(&self, level: usize) -> u32 {
        self.rows[level].load(Ordering::Acquire)
    }

    /// All of it, in memory.
    pub fn to_picture(&self) -> io::Result<Picture> {
        let size = self.picture_size();
        Ok(Picture::new(size, self.read(0, PixelRect::all(size))?))
    }
}

impl Levels for Raster {
    fn levels(&self) -> usize {
        self.levels.len()
    }

    fn size(&self, level: usize) -> ImageSize {
        self.levels[level].0
    }

    fn read(&self, level: usize, rect: PixelRect) -> io::Result<Vec<u8>> {
        let (size, offset) = self.levels[level];
        assert!(rect.is_within(size), "{rect:?} lies inside {size}");
        let mut rgb = vec![0; rect.area() * 3];
        if rect.width == size.width {
            self.file.read(offset + bytes(size.width, u64::from(rect.top)), &mut rgb)?;
            return Ok(rgb);
        }
        let rows = rgb.chunks_exact_mut(bytes(rect.width, 1) as usize);
        for (row, out) in (u64::from(rect.top)..).zip(rows) {
            self.file.read(offset + bytes(size.width, row) + bytes(rect.left, 1), out)?;
        }
        Ok(rgb)
    }
}

fn bytes(width: u32, rows: u64) -> u64 {
    u64::from(width) * rows * 3
}

/// Rows of pixels, two of which become one; where the last has no other it stands alone.
fn halved(rgb: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rgb.len() / 4 + width * 3);
    halve(rgb, width, &mut out);
    out
}

/// The same, appended to `out`.
pub(crate) fn halve(rgb: &[u8], width: usize, out: &mut Vec<u8>) {
    let stride = width * 3;
    for pair in rgb.chunks(2 * stride) {
        let (first, second) = (&pair[..stride], pair.get(stride..).filter(|s| !s.is_empty()));
        let second = second.unwrap_or(first);
        for (a, b) in first.chunks(6).zip(second.chunks(6)) {
            for channel in 0..3 {
                let right = if a.len() == 6 { channel + 3 } else { channel };
                let sum = [a[channel], a[right], b[channel], b[right]].map(u32::from).iter().sum::<u32>();
                out.push(((sum + 2) / 4) as u8);
            }
        }
    }
}

/// A file that is read and written at positions, by many threads.
#[derive(Debug)]
pub(crate) struct Positioned {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: Mutex<File>,
}

#[cfg(unix)]
impl Positioned {
    pub(crate) fn new(file: File) -> Self {
        Self { file }
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, at)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, at)
    }
}

#[cfg(not(unix))]
impl Positioned {
    pub(crate) fn new(file: File) -> Self {
        Self { file: Mutex::new(file) }
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        use io::{Read, Seek};
        let mut file = self.file.lock().expect("no holder panics");
        file.seek(io::SeekFrom::Start(at))?;
        file.read_exact(bytes)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        use io::{Seek, Write};
        let mut file = self.file.lock().expect("no holder panics");
        file.seek(io::SeekFrom::Start(at))?;
        file.write_all(bytes)
    }
}

/// A finished picture, wherever it is.
#[derive(Debug, Clone)]
pub enum Source {
    /// In memory.
    Memory(Arc<Picture>),
    /// On disk.
    Disk(Arc<Raster>),
}

impl Source {
    /// Width and height.
    pub fn size(&self) -> ImageSize {
        match self {
            Self::Memory(picture) => picture.size(),
            Self::Disk(raster) => raster.picture_size(),
        }
    }

    /// A part of it, which must lie inside: 8-bit RGB, row by row.
    pub fn part(&self, rect: PixelRect) -> io::Result<Vec<u8>> {
        match self {
            Self::Memory(picture) => Ok(picture.part(rect)),
            Self::Disk(raster) => raster.read(0, rect),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_halve_down_to_a_pixel() {
        let size = |width, height| ImageSize { width, height };
        assert_eq!(level_sizes(size(1, 1)), [size(1, 1)]);
        assert_eq!(level_sizes(size(5, 2)), [size(5, 2), size(3, 1), size(2, 1), size(1, 1)]);
        // A mean rounds to the nearest; what has no neighbour stands alone.
        assert_eq!(halved(&[0, 0, 0, 1, 2, 3, 9, 9, 9, 1, 2, 3, 2, 4, 6, 7, 7, 7], 3), [1, 2, 3, 8, 8, 8]);
    }

    proptest! {
        #[test]
        fn rows_in_any_order_and_portion_give_one_pyramid(
            width in 1u32..40, height in 1u32..40, portion in 1u32..9, seed: u32,
        ) {
            let size = ImageSize { width, height };
            let rgb = (0..width * height * 3).map(|i| (i ^ seed).wrapping_mul(2_654_435_761) as u8).collect();
            let picture = Picture::new(size, rgb);
            let whole = Raster::of(&picture, &Scratch::default()).unwrap();
            let parts = Raster::create(size, &Scratch::default()).unwrap();
            for top in (0..height).step_by(portion as usize).rev() {
                let rect = PixelRect { top, left: 0, height: portion.min(height - top), width };
                parts.write_rows(top, &picture.part(rect)).unwrap();
            }
            for until in (0..height).step_by(portion as usize).chain([height]) {
                parts.finish(until).unwrap();
                prop_assert_eq!(parts.finished(), until);
            }
            for level in 0..whole.levels() {
                let all = PixelRect::all(whole.size(level));
                prop_assert_eq!(parts.rows(level), all.height);
                prop_assert_eq!(parts.read(level, all).unwrap(), whole.read(level, all).unwrap());
            }
            let rect = PixelRect { top: height / 2, left: width / 3, height: 1, width: width - width / 3 };
            prop_assert_eq!(whole.read(0, rect).unwrap(), picture.part(rect));
            prop_assert_eq!(whole.to_picture().unwrap(), picture);
        }
    }
}
