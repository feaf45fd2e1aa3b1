//! The pixels of a TIFF's image, piece by piece, as 8-bit sRGB.
//!
//! Grey, RGB, palettes, CMYK and YCbCr of 1 to 64 bits and in floating point, in one plane or several, in
//! tiles or strips. JPEG is decoded here and not by the `tiff` crate, which draws what is there of a piece
//! that was cut off.

use std::io::{BufReader, Read, Seek, SeekFrom};

use tiff::ColorType;
use tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};
use tiff::tags::{CompressionMethod, Tag};

use super::ViewError;
use super::tiff_levels::{Shared, unreadable};
use crate::input::colour::{ColourError, Model, ToSrgb};
use crate::input::pixels::{Alpha, Converter, PixelLayout, Samples, of_bits, palette_rgb};
use crate::input::{jpeg, taken_as_srgb};
use crate::sampler::cascade::MAX_AREA;
use crate::sampler::units::ImageSize;

/// Bytes that a byte can stand for, at most: deflate's 1032 and LZW's 2730, with room.
const MOST_PACKED: u64 = 4096;
/// Bytes of a piece that need no reason.
const ALWAYS_GRANTED: u64 = 16 << 20;

pub(super) type Reader = Decoder<BufReader<Shared>>;

/// A reader that takes a file's directory and its pieces whatever their size, but no more memory for either than
/// what is stored can stand for.
pub(super) fn reader(mut file: Shared) -> Result<Reader, ViewError> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let most = length.saturating_mul(MOST_PACKED).max(ALWAYS_GRANTED);
    let mut limits = Limits::unlimited();
    limits.decoding_buffer_size = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(Decoder::new(BufReader::new(file)).map_err(unreadable)?.with_limits(limits))
}

/// How an image's pixels are stored, and what they mean.
pub(super) struct TiffPixels {
    converter: Converter,
    /// Colours by index, three bytes each.
    palette: Option<Vec<u8>>,
    bits: u8,
    channels: usize,
    planar: bool,
    /// Pieces of a plane.
    pieces: u32,
    ycc: bool,
    jpeg: bool,
    tables: Option<Vec<u8>>,
    offsets: Vec<u64>,
    bytes: Vec<u64>,
    size: ImageSize,
    piece: ImageSize,
    /// Whether pieces are not compressed.
    plain: bool,
    tiled: bool,
    pub(super) warning: Option<String>,
}

/// Samples of one kind.
enum Owned {
    U8(Vec<u8>),
    U16(Vec<u16>),
    F32(Vec<f32>),
}

fn refused<T>(what: impl std::fmt::Display) -> Result<T, ViewError> {
    let convert = "convert it to tiled 8-bit RGB, or to PNG";
    Err(ViewError::Unreadable(format!("a TIFF of {what} is not read: {convert}")))
}

/// What a compression is called.
pub(super) fn named(method: CompressionMethod) -> String {
    match method {
        CompressionMethod::None => "uncompressed".into(),
        CompressionMethod::Deflate | CompressionMethod::OldDeflate => "Deflate".into(),
        CompressionMethod::ModernJPEG => "JPEG".into(),
        CompressionMethod::JPEG => "old-style JPEG".into(),
        CompressionMethod::ZSTD => "Zstandard".into(),
        other => match other.to_u16() {
            33003 | 33005 | 34712 => "JPEG 2000".into(),
            34887 => "LERC".into(),
            34925 => "LZMA".into(),
            50002 => "JPEG XL".into(),
            22610 => "JPEG XR".into(),
            code => match format!("{other:?}") {
                name if name.starts_with("Unknown") => format!("compression {code}"),
                name => name,
            },
        },
    }
}

impl TiffPixels {
    /// Of a reader's image. `inherited` is the profile of the image that this one is a smaller version of.
    pub(super) fn of(
        decoder: &mut Reader,
        palette: Option<Vec<u16>>,
        inherited: Option<&[u8]>,
    ) -> Result<Self, ViewError> {
        let method: u16 = decoder.find_tag_unsigned(Tag::Compression).map_err(unreadable)?.unwrap_or(1);
        let method = CompressionMethod::from_u16_exhaustive(method);
        use CompressionMethod::{Deflate, Fax4, LZW, ModernJPEG, OldDeflate, PackBits, WebP};
        if !matches!(
            method,
            CompressionMethod::None | LZW | Deflate | OldDeflate | PackBits | ModernJPEG | Fax4 | WebP
        ) {
            return refused(named(method));
        }
        let colour = decoder.colortype().map_err(unreadable)?;
        let bits = colour.bit_depth();
        let extra: Vec<u16> =
            decoder.find_tag_unsigned_vec(Tag::ExtraSamples).map_err(unreadable)?.unwrap_or_default();
        let Some(layout) = layout(colour, &extra) else { return refused(format!("{colour:?}")) };
        check_samples(decoder, colour, layout)?;
        let planar =
            decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration).map_err(unreadable)? == Some(2);
        let own = decoder.find_tag(Tag::IccProfile).map_err(unreadable)?.and_then(|v| v.into_u8_vec().ok());
        let meant = if palette.is_some() { Model::Rgb } else { layout.model };
        let (to_srgb, warning) = match own.as_deref().or(inherited).map(|icc| ToSrgb::of_icc(icc, meant)) {
            None => (ToSrgb::Same, None),
            Some(Ok(colour)) => (colour, None),
            Some(Err(error @ ColourError::Hdr(_))) => return Err(ViewError::Unreadable(error.to_string())),
            Some(Err(error)) => (ToSrgb::Same, Some(taken_as_srgb(&error))),
        };
        let pixels = if palette.is_some() { PixelLayout::plain(Model::Rgb) } else { layout };
        let converter = Converter::new(pixels, to_srgb);
        let (width, height) = decoder.dimensions().map_err(unreadable)?;
        let (piece_width, piece_height) = decoder.chunk_dimensions();
        let tiled = decoder.get_chunk_type() == ChunkType::Tile;
        // Tiles are whole beyond the edge; strips may claim any height.
        let piece = ImageSize {
            width: piece_width,
            height: if tiled { piece_height } else { piece_height.min(height) },
        };
        let [at, long] = match tiled {
            true => [Tag::TileOffsets, Tag::TileByteCounts],
            false => [Tag::StripOffsets, Tag::StripByteCounts],
        };
        let mut list = |tag| {
            Ok::<_, ViewError>(decoder.find_tag_unsigned_vec(tag).map_err(unreadable)?.unwrap_or_default())
        };
        let (offsets, bytes): (Vec<u64>, Vec<u64>) = (list(at)?, list(long)?);
        let tables =
            decoder.find_tag(Tag::JPEGTables).map_err(unreadable)?.and_then(|v| v.into_u8_vec().ok());
        let found = Self {
            palette: palette.map(|colours| palette_rgb(&colours, &converter)),
            converter,
            bits,
            channels: layout.channels(),
            planar,
            pieces: pieces(ImageSize { width, height }, piece)?,
            ycc: matches!(colour, ColorType::YCbCr(_)),
            jpeg: method == ModernJPEG,
            plain: method == CompressionMethod::None,
            tables,
            offsets,
            bytes,
            size: ImageSize { width, height },
            piece,
            tiled,
            warning,
        };
        found.check_index(decoder, method)?;
        Ok(found)
    }

    /// Fails for a file that was cut off.
    fn check_index(&self, decoder: &mut Reader, method: CompressionMethod) -> Result<(), ViewError> {
        let planes = if self.planar { self.channels as u64 } else { 1 };
        let needed = u64::from(self.pieces) * planes;
        let found = self.offsets.len().min(self.bytes.len()) as u64;
        if found < needed {
            let what = format!("the TIFF is damaged: it has {found} pieces of {needed}");
            return Err(ViewError::Unreadable(what));
        }
        let length = decoder.inner().seek(SeekFrom::End(0))?;
        let ends = self.offsets.iter().zip(&self.bytes).map(|(at, bytes)| at.saturating_add(*bytes));
        // The counts of uncompressed pieces are often wrong; reading tells.
        match ends.max().filter(|end| *end > length && method != CompressionMethod::None) {
            Some(end) => Err(ViewError::Unreadable(format!(
                "the TIFF is cut off: it has {length} bytes, its pieces reach to {end}"
            ))),
            None => Ok(()),
        }
    }

    /// Whether any pixel so far was not opaque.
    pub(super) fn saw_transparency(&self) -> bool {
        self.converter.saw_transparency()
    }

    /// Fails for a piece that claims more samples than its bytes can hold, before memory is taken for them.
    fn check_claim(&self, decoder: &mut Reader, index: u32) -> Result<(), ViewError> {
        let channels = if self.planar { 1 } else { self.channels as u64 };
        let area = u64::from(self.piece.width) * u64::from(self.piece.height);
        let claimed = area * channels * u64::from(self.bits).div_ceil(8);
        // The counts of uncompressed pieces are often wrong.
        let stored = match self.plain {
            true => decoder.inner().seek(SeekFrom::End(0))?,
            false => self.bytes[index as usize].saturating_mul(MOST_PACKED),
        };
        if claimed > stored.max(ALWAYS_GRANTED) {
            let what = format!("the TIFF is damaged: piece {index} cannot hold {} pixels", self.piece);
            return Err(ViewError::Unreadable(what));
        }
        Ok(())
    }

    /// The pixels of a piece, counted from left to right and top to bottom, as 8-bit RGB, and their size.
    pub(super) fn decode(&self, decoder: &mut Reader, index: u32) -> Result<(ImageSize, Vec<u8>), ViewError> {
        self.check_claim(decoder, index)?;
        let size = self.piece_size(index);
        let planes = if self.planar { self.channels } else { 1 };
        let mut parts = Vec::with_capacity(planes);
        for plane in 0..planes as u32 {
            parts.push(self.samples(decoder, plane * self.pieces + index, size)?);
        }
        let samples = match parts.len() {
            1 => parts.pop().expect("there is one"),
            _ => interleaved(parts)?,
        };
        let pixels = size.width as usize * size.height as usize;
        if samples.len() != pixels * self.channels {
            return Err(ViewError::Unreadable("the TIFF is damaged: a piece has another size".into()));
        }
        let mut rgb = Vec::with_capacity(pixels * 3);
        match (&self.palette, samples) {
            (Some(palette), Owned::U8(indices)) => rgb.extend(indices.iter().flat_map(|&i| {
                let at = usize::from(i) * 3;
                palette.get(at..at + 3).map_or([0; 3], |c| [c[0], c[1], c[2]])
            })),
            (_, Owned::U8(mut samples)) => {
                if self.ycc {
                    samples.as_chunks_mut::<3>().0.iter_mut().for_each(|p| *p = jpeg::ycc_to_rgb(*p));
                }
                if self.converter.keeps_rgb8() {
                    return Ok((size, samples));
                }
                self.converter.rgb(Samples::U8(&samples), &mut rgb);
            }
            (_, Owned::U16(samples)) => self.converter.rgb(Samples::U16(&samples), &mut rgb),
            (_, Owned::F32(samples)) => self.converter.rgb(Samples::F32(&samples), &mut rgb),
        }
        Ok((size, rgb))
    }

    /// What of a piece lies inside the image.
    fn piece_size(&self, index: u32) -> ImageSize {
        let columns = self.size.width.div_ceil(self.piece.width);
        let (column, row) = (index % columns, index / columns);
        ImageSize {
            width: self.piece.width.min(self.size.width - column * self.piece.width),
            height: self.piece.height.min(self.size.height - row * self.piece.height),
        }
    }

    /// The samples of a piece of one plane.
    fn samples(&self, decoder: &mut Reader, piece: u32, size: ImageSize) -> Result<Owned, ViewError> {
        if self.jpeg {
            return self.jpeg_samples(decoder, piece as usize, size).map(Owned::U8);
        }
        Ok(match decoder.read_chunk(piece).map_err(unreadable)? {
            DecodingResult::U8(samples) if self.bits < 8 => {
                let indices = self.palette.is_some();
                Owned::U8(unpacked(&samples, self.bits, size.width as usize, indices))
            }
            DecodingResult::U8(samples) => Owned::U8(samples),
            DecodingResult::U16(samples) => Owned::U16(samples),
            DecodingResult::U32(samples) => Owned::U16(samples.iter().map(|v| (v >> 16) as u16).collect()),
            DecodingResult::F16(samples) => Owned::F32(samples.iter().map(|v| v.to_f32()).collect()),
            DecodingResult::F32(samples) => Owned::F32(samples),
            DecodingResult::F64(samples) => Owned::F32(samples.iter().map(|v| *v as f32).collect()),
            _ => return refused("signed or 64-bit whole numbers"),
        })
    }

    fn jpeg_samples(
        &self,
        decoder: &mut Reader,
        piece: usize,
        size: ImageSize,
    ) -> Result<Vec<u8>, ViewError> {
        let mut bytes = Vec::new();
        let file = decoder.inner();
        file.seek(SeekFrom::Start(self.offsets[piece]))?;
        file.take(self.bytes[piece]).read_to_end(&mut bytes)?;
        let broken = |reason: String| ViewError::Unreadable(format!("the TIFF's piece {piece}: {reason}"));
        let (stored, samples) =
            jpeg::decode_piece(self.tables.as_deref(), &bytes, self.piece).map_err(broken)?;
        let channels = if self.planar { 1 } else { self.channels };
        let fits = stored.width >= size.width && stored.height >= size.height;
        if !fits || samples.len() != stored.width as usize * stored.height as usize * channels {
            return Err(broken(format!("it is damaged: it has {stored} pixels")));
        }
        if stored == size {
            return Ok(samples);
        }
        let rows = samples.chunks_exact(stored.width as usize * channels).take(size.height as usize);
        Ok(rows.flat_map(|row| &row[..size.width as usize * channels]).copied().collect())
    }

    /// Whether pieces are tiles.
    pub(super) fn is_tiled(&self) -> bool {
        self.tiled
    }
}

/// Pieces of a plane.
fn pieces(size: ImageSize, piece: ImageSize) -> Result<u32, ViewError> {
    let damaged = || ViewError::Unreadable("the TIFF is damaged: its pieces have no usual size".into());
    let ImageSize { width, height } = piece;
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) > MAX_AREA {
        return Err(damaged());
    }
    let pieces = u64::from(size.width.div_ceil(width)) * u64::from(size.height.div_ceil(height));
    u32::try_from(pieces).map_err(|_| damaged())
}

/// The samples of a pixel; `None` for what is not read.
fn layout(colour: ColorType, extra: &[u16]) -> Option<PixelLayout> {
    let alpha = match extra.first() {
        Some(1) => Alpha::Premultiplied,
        Some(2) => Alpha::Straight,
        _ => Alpha::None,
    };
    let with_alpha = |model| PixelLayout { model, alpha, skipped: usize::from(alpha == Alpha::None) };
    Some(match colour {
        ColorType::Gray(_) => PixelLayout::plain(Model::Grey),
        ColorType::Multiband { num_samples, .. } => {
            let others = usize::from(num_samples).checked_sub(2)?;
            PixelLayout { skipped: with_alpha(Model::Grey).skipped + others, ..with_alpha(Model::Grey) }
        }
        ColorType::RGB(_) | ColorType::YCbCr(8) => PixelLayout::plain(Model::Rgb),
        ColorType::RGBA(_) => with_alpha(Model::Rgb),
        ColorType::CMYK(_) => PixelLayout::plain(Model::Cmyk),
        ColorType::CMYKA(_) => with_alpha(Model::Cmyk),
        _ => return None,
    })
}

fn check_samples(decoder: &mut Reader, colour: ColorType, layout: PixelLayout) -> Result<(), ViewError> {
    let bits = colour.bit_depth();
    let one = layout.channels() == 1;
    if !(matches!(bits, 8 | 16 | 32 | 64) || one && matches!(bits, 1 | 2 | 4)) {
        return refused(format!("{bits} bits a sample"));
    }
    let format: Option<Vec<u16>> = decoder.find_tag_unsigned_vec(Tag::SampleFormat).map_err(unreadable)?;
    match format.as_ref().and_then(|f| f.first()) {
        Some(3) if bits >= 16 => {}
        None | Some(1 | 4) if bits <= 32 => {}
        _ => return refused(format!("{bits}-bit samples of this number format")),
    }
    let mut number = |tag| decoder.find_tag_unsigned::<u16>(tag).map_err(unreadable);
    let (samples, predictor) = (number(Tag::SamplesPerPixel)?.unwrap_or(1), number(Tag::Predictor)?);
    // The decoder takes the differences between the wrong samples.
    if predictor.is_some_and(|p| p != 1) && usize::from(samples) != layout.channels() {
        return refused(format!("{samples} samples a pixel with a predictor"));
    }
    Ok(())
}

/// Values of 1, 2 or 4 bits in rows of whole bytes: as they are, or as grey.
fn unpacked(packed: &[u8], bits: u8, width: usize, as_they_are: bool) -> Vec<u8> {
    let row_bytes = (width * usize::from(bits)).div_ceil(8);
    let of_byte =
        |byte: u8| (0..8 / bits).map(move |k| byte >> (8 - bits * (k + 1)) & ((1u16 << bits) - 1) as u8);
    let rows = packed.chunks_exact(row_bytes);
    let values = rows.flat_map(|row| row.iter().flat_map(|&b| of_byte(b)).take(width));
    if as_they_are { values.collect() } else { values.map(|v| of_bits(v, bits)).collect() }
}

fn interleaved(planes: Vec<Owned>) -> Result<Owned, ViewError> {
    fn join<T: Copy>(planes: &[Vec<T>]) -> Vec<T> {
        let length = planes.iter().map(Vec::len).min().unwrap_or(0);
        (0..length).flat_map(|k| planes.iter().map(move |p| p[k])).collect()
    }
    let (mut small, mut large, mut real) = (Vec::new(), Vec::new(), Vec::new());
    for plane in planes {
        match plane {
            Owned::U8(plane) => small.push(plane),
            Owned::U16(plane) => large.push(plane),
            Owned::F32(plane) => real.push(plane),
        }
    }
    match (small.is_empty(), large.is_empty(), real.is_empty()) {
        (false, true, true) => Ok(Owned::U8(join(&small))),
        (true, false, true) => Ok(Owned::U16(join(&large))),
        (true, true, false) => Ok(Owned::F32(join(&real))),
        _ => Err(ViewError::Unreadable("the TIFF is damaged: its planes differ".into())),
    }
}

impl Owned {
    fn len(&self) -> usize {
        match self {
            Self::U8(samples) => samples.len(),
            Self::U16(samples) => samples.len(),
            Self::F32(samples) => samples.len(),
        }
    }
}
