//! Tiled TIFF with a pyramid: what viewers of large pictures open without reading all of it.
//!
//! Each level is an image of the main chain, the reduced ones marked by NewSubfileType: libvips, GDAL,
//! OpenSlide and tifffile find a pyramid there, and everything else shows the first image. (OpenSlide does
//! not follow SubIFDs, the other form, and for libvips they are an option of its loader.) Levels end with
//! the first that fits a tile.
//!
//! Offsets have 32 bits, which every reader knows, whenever the file is sure to stay below 4 GiB, and 64
//! (BigTIFF) otherwise; that is decided from the size alone, before the first byte. Values are sRGB, and every
//! level carries the profile that says so: readers open levels one by one.
//!
//! The bytes depend on the pixels, the texts and the options alone (on big-endian machines the byte order
//! is theirs). Memory is a batch of tiles, plus 16 bytes a tile for the index.

use std::borrow::Cow;
use std::io::{self, Seek, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use tiff::TiffError;
use tiff::encoder::{
    DirectoryEncoder, Rational, TiffEncoder, TiffKind, TiffKindBig, TiffKindStandard, TiffValue,
};
use tiff::tags::{
    CompressionMethod, PhotometricInterpretation, PlanarConfiguration, Predictor, ResolutionUnit,
};
use tiff::tags::{SampleFormat, Tag, Type};

use super::jpeg::{abbreviate, check_quality, encode_jpeg, subsampling};
use super::srgb::srgb_icc;
use super::tiles::{Grid, Tile, encode_in_order};
use super::xmp;
use crate::output::Embedded;
use crate::raster::Levels;
use crate::sampler::units::ImageSize;

/// A tile's side.
const TILE: u32 = 256;
/// A tile's side in pictures with a side above [`LARGE`]: a quarter of the tiles keeps the index of the
/// largest pictures small enough for readers that limit it (a megabyte in the `tiff` crate).
const LARGE_TILE: u32 = 512;
const LARGE: u32 = 16384;
/// zlib's usual level. On a rendered picture level 9 saves 4% for 2.7 times the time; level 3 costs 7%, and
/// takes a third of it.
const DEFLATE_LEVEL: u32 = 6;
/// XMP in TIFF, after the XMP specification, part 3.
const XMP: Tag = Tag::Unknown(700);
/// What the values of Y, Cb and Cr mean; the same as in JFIF.
const REFERENCE_BLACK_WHITE: Tag = Tag::Unknown(532);

/// How tiles are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TiffCompression {
    /// zlib after differencing: every pixel comes back as it was.
    Deflate,
    /// JPEG in YCbCr; below quality 90 with colours at half resolution.
    Jpeg {
        /// 1 to 100; 90 is usual.
        quality: u8,
    },
}

/// How wide offsets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TiffVariant {
    /// Classic when the file surely fits 4 GiB, else BigTIFF.
    #[default]
    Auto,
    /// 32 bits; writing fails when the file grows beyond 4 GiB.
    Classic,
    /// 64 bits.
    Big,
}

/// How a TIFF is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TiffOptions {
    /// Of tiles.
    pub compression: TiffCompression,
    /// Of the file.
    pub variant: TiffVariant,
}

/// Writes a picture with its pyramid and its texts; the file starts where `file` starts. `progress` gets
/// the tiles written and all tiles, and ends the writing with an error of its own.
pub fn write_tiff<W: Write + Seek>(
    file: W,
    levels: &dyn Levels,
    embedded: &Embedded,
    options: TiffOptions,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    if let TiffCompression::Jpeg { quality } = options.compression {
        check_quality(quality)?;
    }
    let grids = grids(levels);
    let big = match options.variant {
        TiffVariant::Auto => worst_size(&grids, embedded, options.compression) > u64::from(u32::MAX),
        TiffVariant::Classic => false,
        TiffVariant::Big => true,
    };
    let picture = Source { levels, embedded, compression: options.compression, grids };
    match big {
        false => write_levels(TiffEncoder::<W, TiffKindStandard>::new_generic(file), &picture, progress),
        true => write_levels(TiffEncoder::<W, TiffKindBig>::new_generic(file), &picture, progress),
    }
    .map_err(explained)
}

/// What is written.
struct Source<'a> {
    levels: &'a dyn Levels,
    embedded: &'a Embedded,
    compression: TiffCompression,
    /// Of the levels that are written, the largest first.
    grids: Vec<Grid>,
}

fn grids(levels: &dyn Levels) -> Vec<Grid> {
    let whole = levels.size(0);
    let tile = if whole.width.max(whole.height) > LARGE { LARGE_TILE } else { TILE };
    let grid = |level| Grid { size: levels.size(level), tile, overlap: 0 };
    let above = (0..levels.levels()).take_while(|l| *l == 0 || grid(l - 1).tiles() > 1);
    above.map(grid).collect()
}

/// More than the file can have. Deflate stores what it cannot compress with 5 bytes for every 16 KB or
/// more; JPEG of pure noise at quality 100 takes 1.6 times the pixels' own bytes (`noise_fits_the_bound`).
fn worst_size(grids: &[Grid], embedded: &Embedded, compression: TiffCompression) -> u64 {
    let tiles: u64 = grids.iter().map(Grid::tiles).sum();
    let pixels = u64::from(grids[0].tile).pow(2) * 3;
    let tile = match compression {
        TiffCompression::Deflate => pixels + pixels / 1024 + 64,
        TiffCompression::Jpeg { .. } => pixels * 3,
    };
    let texts = embedded.parameters.len() + embedded.json.len() + embedded.software.len();
    // Escaped in XML a character may take 6 times its bytes; an index entry has 16 bytes at most.
    tiles * (tile + 16) + grids.len() as u64 * 4096 + texts as u64 * 8
}

fn write_levels<W: Write + Seek, K: TiffKind>(
    encoder: Result<TiffEncoder<W, K>, TiffError>,
    picture: &Source<'_>,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> Result<(), TiffError> {
    let mut encoder = encoder?;
    let total = picture.grids.iter().map(Grid::tiles).sum();
    let mut done = 0;
    for (level, grid) in picture.grids.iter().enumerate() {
        let mut directory = Fields { inner: encoder.image_directory()? };
        let index = write_tiles(&mut directory, picture, level, &mut || {
            done += 1;
            progress(done, total)
        })?;
        describe(&mut directory, grid, level, picture.compression)?;
        if level == 0 {
            add_texts(&mut directory, picture.embedded)?;
        }
        index.write(&mut directory)?;
        directory.align()?;
        directory.inner.finish()?;
    }
    Ok(())
}

/// Where tiles are.
struct Index {
    offsets: Vec<u64>,
    bytes: Vec<u32>,
    /// Shared by the tiles, with JPEG.
    tables: Option<Vec<u8>>,
}

fn write_tiles<W: Write + Seek, K: TiffKind>(
    directory: &mut Fields<'_, W, K>,
    picture: &Source<'_>,
    level: usize,
    progress: &mut dyn FnMut() -> io::Result<()>,
) -> Result<Index, TiffError> {
    let grid = picture.grids[level];
    let mut index = Index { offsets: Vec::new(), bytes: Vec::new(), tables: None };
    encode_in_order(
        picture.levels,
        level,
        grid,
        |tile| encode(&padded(tile, grid.tile), grid.tile, picture.compression),
        |_, _, tile| {
            let offset = directory.inner.write_data(&tile.data[..]).map_err(into_io)?;
            index.offsets.push(offset);
            index.bytes.push(u32::try_from(tile.data.len()).map_err(io::Error::other)?);
            index.tables = index.tables.take().or(tile.tables);
            progress()
        },
    )?;
    Ok(index)
}

/// A tile as it stands in the file.
struct Encoded {
    data: Vec<u8>,
    tables: Option<Vec<u8>>,
}

fn encode(rgb: &[u8], side: u32, compression: TiffCompression) -> io::Result<Encoded> {
    match compression {
        TiffCompression::Deflate => {
            let mut zlib =
                ZlibEncoder::new(Vec::with_capacity(rgb.len() / 2), Compression::new(DEFLATE_LEVEL));
            zlib.write_all(&differences(rgb, side as usize * 3))?;
            Ok(Encoded { data: zlib.finish()?, tables: None })
        }
        TiffCompression::Jpeg { quality } => {
            let size = ImageSize { width: side, height: side };
            let jpeg = abbreviate(&encode_jpeg(rgb, size, quality)?)?;
            Ok(Encoded { data: jpeg.scan, tables: Some(jpeg.tables) })
        }
    }
}

/// The horizontal predictor: each value less that of the pixel to its left.
fn differences(rgb: &[u8], row_bytes: usize) -> Vec<u8> {
    let mut out = rgb.to_vec();
    for (row, original) in out.chunks_exact_mut(row_bytes).zip(rgb.chunks_exact(row_bytes)) {
        for (value, left) in row[3..].iter_mut().zip(original) {
            *value = value.wrapping_sub(*left);
        }
    }
    out
}

/// A whole tile: the last column and row repeated, which compresses best and rings least.
fn padded(tile: Tile, side: u32) -> Vec<u8> {
    let (width, side) = (tile.size.width as usize, side as usize);
    if tile.rgb.len() == side * side * 3 {
        return tile.rgb;
    }
    let mut out = Vec::with_capacity(side * side * 3);
    for row in tile.rgb.chunks_exact(width * 3) {
        out.extend_from_slice(row);
        for _ in width..side {
            out.extend_from_slice(&row[row.len() - 3..]);
        }
    }
    let last = out.len() - side * 3;
    while out.len() < side * side * 3 {
        out.extend_from_within(last..last + side * 3);
    }
    out
}

fn describe<W: Write + Seek, K: TiffKind>(
    directory: &mut Fields<'_, W, K>,
    grid: &Grid,
    level: usize,
    compression: TiffCompression,
) -> Result<(), TiffError> {
    // Bit 0 of NewSubfileType: a smaller version of another image of this file.
    directory.put(Tag::NewSubfileType, u32::from(level > 0))?;
    directory.put(Tag::ImageWidth, grid.size.width)?;
    directory.put(Tag::ImageLength, grid.size.height)?;
    directory.put(Tag::BitsPerSample, &[8u16; 3][..])?;
    directory.put(Tag::SampleFormat, &[SampleFormat::Uint; 3][..])?;
    directory.put(Tag::SamplesPerPixel, 3u16)?;
    directory.put(Tag::Orientation, 1u16)?;
    directory.put(Tag::PlanarConfiguration, PlanarConfiguration::Chunky)?;
    // Obligatory, but a drawn picture has no size in inches.
    directory.put(Tag::XResolution, Rational { n: 72, d: 1 })?;
    directory.put(Tag::YResolution, Rational { n: 72, d: 1 })?;
    directory.put(Tag::ResolutionUnit, ResolutionUnit::None)?;
    directory.put(Tag::IccProfile, Opaque(srgb_icc()))?;
    directory.put(Tag::TileWidth, grid.tile)?;
    directory.put(Tag::TileLength, grid.tile)?;
    match compression {
        TiffCompression::Deflate => {
            directory.put(Tag::Compression, CompressionMethod::Deflate)?;
            directory.put(Tag::PhotometricInterpretation, PhotometricInterpretation::RGB)?;
            directory.put(Tag::Predictor, Predictor::Horizontal)
        }
        TiffCompression::Jpeg { quality } => {
            directory.put(Tag::Compression, CompressionMethod::ModernJPEG)?;
            directory.put(Tag::PhotometricInterpretation, PhotometricInterpretation::YCbCr)?;
            directory.put(Tag::ChromaSubsampling, &subsampling(quality)[..])?;
            // Colours lie in the middle of the pixels they belong to, as in JFIF.
            directory.put(Tag::ChromaPositioning, 1u16)?;
            let values = [0, 255, 128, 255, 128, 255].map(|n| Rational { n, d: 1 });
            directory.put(REFERENCE_BLACK_WHITE, &values[..])
        }
    }
}

fn add_texts<W: Write + Seek, K: TiffKind>(
    directory: &mut Fields<'_, W, K>,
    embedded: &Embedded,
) -> Result<(), TiffError> {
    directory.put(Tag::ImageDescription, Utf8(&embedded.parameters))?;
    directory.put(Tag::Software, Utf8(&embedded.software))?;
    directory.put(XMP, xmp::packet(embedded).as_bytes())
}

impl Index {
    fn write<W: Write + Seek, K: TiffKind>(self, directory: &mut Fields<'_, W, K>) -> Result<(), TiffError> {
        let offsets: Result<Vec<K::OffsetType>, _> =
            self.offsets.into_iter().map(K::convert_offset).collect();
        directory.put(Tag::TileOffsets, K::convert_slice(&offsets?))?;
        directory.put(Tag::TileByteCounts, &self.bytes[..])?;
        match self.tables {
            Some(tables) => directory.put(Tag::JPEGTables, Opaque(&tables)),
            None => Ok(()),
        }
    }
}

/// A directory whose values start at even offsets, as TIFF wants.
struct Fields<'a, W: Write + Seek, K: TiffKind> {
    inner: DirectoryEncoder<'a, W, K>,
}

impl<W: Write + Seek, K: TiffKind> Fields<'_, W, K> {
    fn put(&mut self, tag: Tag, value: impl TiffValue) -> Result<(), TiffError> {
        self.align()?;
        self.inner.write_tag(tag, value)
    }

    fn align(&mut self) -> Result<(), TiffError> {
        let nothing: &[u8] = &[];
        if self.inner.write_data(nothing)? % 2 == 1 {
            self.inner.write_data(0u8)?;
        }
        Ok(())
    }
}

/// Text of type ASCII: the specification says 7 bits, readers take UTF-8.
struct Utf8<'a>(&'a str);

impl TiffValue for Utf8<'_> {
    const BYTE_LEN: u8 = 1;
    const FIELD_TYPE: Type = Type::ASCII;

    fn count(&self) -> usize {
        self.data().len()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // A NUL ends the text for some readers, and begins another for others.
        let mut bytes = self.0.replace('\0', "\u{fffd}").into_bytes();
        bytes.push(0);
        Cow::Owned(bytes)
    }
}

/// Bytes of type UNDEFINED.
struct Opaque<'a>(&'a [u8]);

impl TiffValue for Opaque<'_> {
    const BYTE_LEN: u8 = 1;
    const FIELD_TYPE: Type = Type::UNDEFINED;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0)
    }
}

fn into_io(error: TiffError) -> io::Error {
    match error {
        TiffError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

fn explained(error: TiffError) -> io::Error {
    match error {
        TiffError::IntSizeError => {
            io::Error::other("the file grows beyond the 4 GiB of classic TIFF; write a BigTIFF")
        }
        other => into_io(other),
    }
}

#[cfg(test)]
#[path = "tiff_tests.rs"]
mod tests;
