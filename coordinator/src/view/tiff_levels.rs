//! The images of a TIFF that make up a pyramid, and their pixels chunk by chunk.
//!
//! A smaller level may stand in the main chain or in SubIFDs. The decoder knows only the chain, so each
//! level gets a decoder of its own over a view of the file whose header points at that level. 8-bit grey
//! and RGB are read, with or without alpha (dropped), and YCbCr; tiles and strips; stored, Deflate, LZW,
//! PackBits and JPEG.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use tiff::decoder::{ChunkType, Decoder, DecodingResult};
use tiff::tags::{CompressionMethod, IfdPointer, Tag};
use tiff::{ColorType, TiffError};

use super::ViewError;
use crate::sampler::units::ImageSize;

/// More than any pyramid has; a file with a thousand pages is no pyramid.
const MOST_IMAGES: usize = 64;
/// Pixels of a chunk: a flat file may be one strip.
const MOST_CHUNK: u64 = 64 << 20;
/// Decoders kept for the next tile of a level; each holds the level's index.
const MOST_IDLE: usize = 4;

/// A file, or anything like one.
pub(crate) trait Bytes: Read + Seek + Send {}

impl<T: Read + Seek + Send> Bytes for T {}

/// A view of a file that several decoders share.
#[derive(Clone)]
pub(crate) struct Shared {
    file: Arc<Mutex<Box<dyn Bytes>>>,
    /// Stands in for the file's first bytes.
    header: Vec<u8>,
    position: u64,
}

impl Shared {
    /// All of it as it is.
    pub(crate) fn new(file: Box<dyn Bytes>) -> Self {
        Self { file: Arc::new(Mutex::new(file)), header: Vec::new(), position: 0 }
    }

    /// The same file, with a header that points at another directory.
    fn pointing_at(&self, directory: IfdPointer) -> io::Result<Self> {
        let mut whole = Self { header: Vec::new(), position: 0, ..self.clone() };
        let mut header = vec![0; 8];
        whole.read_exact(&mut header)?;
        let little = header[0] == b'I';
        let big = header[2..4].contains(&43);
        let mut pointer = if little { directory.0.to_le_bytes() } else { directory.0.to_be_bytes() }.to_vec();
        if !big {
            header.truncate(4);
            pointer = if little { pointer[..4].to_vec() } else { pointer[4..].to_vec() };
        }
        header.extend(pointer);
        Ok(Self { header, position: 0, ..whole })
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(self.position).unwrap_or(usize::MAX);
        let count = match self.header.get(start..).filter(|rest| !rest.is_empty()) {
            Some(mut rest) => rest.read(buffer)?,
            None => {
                let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(self.position))?;
                file.read(buffer)?
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(by) => {
                self.position.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?
            }
            SeekFrom::End(_) => self.file.lock().unwrap_or_else(PoisonError::into_inner).seek(to)?,
        };
        Ok(self.position)
    }
}

type Reader = Decoder<BufReader<Shared>>;

/// One image of the file.
pub(crate) struct FileLevel {
    /// As the file has it: other programs round down where we round up.
    pub(crate) size: ImageSize,
    /// A tile's size, or that of a strip; those at the edges may show less.
    pub(crate) chunk: ImageSize,
    pub(crate) tiled: bool,
    pub(crate) compression: String,
    /// Marked as a smaller version of another image.
    reduced: bool,
    file: Shared,
    idle: Mutex<Vec<Reader>>,
}

/// Decoded pixels.
pub(crate) struct Chunk {
    pub(crate) size: ImageSize,
    /// 8-bit RGB, row by row.
    pub(crate) rgb: Vec<u8>,
}

/// A file's levels by how often they are halved: the first is there, others may be missing.
pub(crate) fn find_levels(file: &Shared) -> Result<Vec<Option<FileLevel>>, ViewError> {
    let mut directories = directories(file)?.into_iter();
    let first = directories.next().ok_or_else(|| ViewError::Unreadable("the TIFF has no image".into()))?;
    let first = FileLevel::open(file, first)?;
    let whole = first.size;
    let mut levels: Vec<Option<FileLevel>> = vec![Some(first)];
    levels.resize_with(crate::output::max_level(whole) as usize + 1, || None);
    for directory in directories {
        // Other images of the file may be anything.
        let Ok(level) = FileLevel::open(file, directory) else { continue };
        let Some(halvings) = halvings(whole, level.size) else { continue };
        if let Some(place @ None) = levels.get_mut(halvings).filter(|_| level.reduced || level.tiled) {
            *place = Some(level);
        }
    }
    Ok(levels)
}

/// How often the whole picture is halved to have this size, give or take the rounding; `None` for sizes
/// in between, and for the whole size.
fn halvings(whole: ImageSize, size: ImageSize) -> Option<usize> {
    (1..32).find(|k| {
        let fits = |whole: u32, side: u32| whole.div_ceil(1 << k).abs_diff(side) <= 1;
        // Rounding may not hide a whole step: 2 and 1 pixels are close.
        let longest = |s: ImageSize| u64::from(s.width.max(s.height));
        fits(whole.width, size.width)
            && fits(whole.height, size.height)
            && longest(size) * 3 > longest(whole) >> k << 1
            && longest(size) < longest(whole)
    })
}

/// The images of the main chain, each followed by its SubIFDs.
fn directories(file: &Shared) -> Result<Vec<IfdPointer>, ViewError> {
    let mut decoder = Decoder::new(BufReader::new(file.clone())).map_err(unreadable)?;
    let mut found = Vec::new();
    loop {
        found.extend(decoder.ifd_pointer());
        if let Some(below) = decoder.find_tag(Tag::SubIfd).ok().flatten().and_then(|v| v.into_ifd_vec().ok())
        {
            found.extend(below);
        }
        // An image that is not understood is passed over; `more_images` ends at broken links.
        loop {
            if !decoder.more_images() || found.len() >= MOST_IMAGES {
                found.truncate(MOST_IMAGES);
                return Ok(found);
            }
            if decoder.next_image().is_ok() {
                break;
            }
        }
    }
}

impl FileLevel {
    fn open(file: &Shared, directory: IfdPointer) -> Result<Self, ViewError> {
        let file = file.pointing_at(directory)?;
        let mut decoder = Decoder::new(BufReader::new(file.clone())).map_err(unreadable)?;
        let (width, height) = decoder.dimensions().map_err(unreadable)?;
        let colour = decoder.colortype().map_err(unreadable)?;
        let planes: u16 =
            decoder.find_tag_unsigned(Tag::PlanarConfiguration).map_err(unreadable)?.unwrap_or(1);
        let chunk = decoder.chunk_dimensions();
        let kind = decoder.find_tag_unsigned::<u32>(Tag::NewSubfileType).map_err(unreadable)?.unwrap_or(0);
        let refuse =
            |what: String| Err(ViewError::Unreadable(format!("{what}; convert it to tiled 8-bit RGB")));
        if samples(colour).is_none() {
            return refuse(format!("a TIFF of {colour:?} is not shown"));
        }
        if planes != 1 {
            return refuse("a TIFF with separate colour planes is not shown".into());
        }
        if u64::from(chunk.0) * u64::from(chunk.1.min(height)) > MOST_CHUNK {
            return refuse(format!(
                "a TIFF with pieces of {}x{} pixels is too slow to show",
                chunk.0, chunk.1
            ));
        }
        let method: u16 = decoder.find_tag_unsigned(Tag::Compression).map_err(unreadable)?.unwrap_or(1);
        Ok(Self {
            size: ImageSize { width, height },
            chunk: ImageSize { width: chunk.0, height: chunk.1.min(height) },
            tiled: decoder.get_chunk_type() == ChunkType::Tile,
            compression: named(CompressionMethod::from_u16_exhaustive(method)),
            // Bit 0 is a smaller version, bit 2 a mask.
            reduced: kind & 0b101 == 0b001,
            file,
            idle: Mutex::new(vec![decoder]),
        })
    }

    /// Chunks from left to right.
    pub(crate) fn columns(&self) -> u32 {
        self.size.width.div_ceil(self.chunk.width)
    }

    /// Decodes a chunk.
    pub(crate) fn decode(&self, column: u32, row: u32) -> Result<Chunk, ViewError> {
        let mut decoder = match self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(decoder) => decoder,
            None => Decoder::new(BufReader::new(self.file.clone())).map_err(unreadable)?,
        };
        let index = row * self.columns() + column;
        let (width, height) = decoder.chunk_data_dimensions(index);
        let colour = decoder.colortype().map_err(unreadable)?;
        let pixels = match decoder.read_chunk(index).map_err(unreadable)? {
            DecodingResult::U8(pixels) => pixels,
            _ => return Err(ViewError::Unreadable("the TIFF's samples are not of 8 bits".into())),
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(decoder);
        }
        drop(idle);
        Ok(Chunk { size: ImageSize { width, height }, rgb: to_rgb(pixels, colour) })
    }
}

fn named(method: CompressionMethod) -> String {
    match method {
        CompressionMethod::None => "uncompressed".into(),
        CompressionMethod::Deflate | CompressionMethod::OldDeflate => "Deflate".into(),
        CompressionMethod::ModernJPEG => "JPEG".into(),
        other => format!("{other:?}"),
    }
}

/// Samples of a pixel; `None` for what is not shown.
fn samples(colour: ColorType) -> Option<usize> {
    match colour {
        ColorType::Gray(8) => Some(1),
        // Grey with alpha.
        ColorType::Multiband { bit_depth: 8, num_samples: 2 } => Some(2),
        ColorType::RGB(8) | ColorType::YCbCr(8) => Some(3),
        ColorType::RGBA(8) => Some(4),
        _ => None,
    }
}

fn to_rgb(pixels: Vec<u8>, colour: ColorType) -> Vec<u8> {
    match colour {
        ColorType::RGB(_) => pixels,
        ColorType::RGBA(_) => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        ColorType::YCbCr(_) => pixels.chunks_exact(3).flat_map(|p| ycc_to_rgb([p[0], p[1], p[2]])).collect(),
        other => pixels.chunks_exact(samples(other).unwrap_or(1)).flat_map(|p| [p[0]; 3]).collect(),
    }
}

/// JFIF 1.02, page 3, in 16-bit fixed point.
fn ycc_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = ((i32::from(y) << 16) + HALF, i32::from(cb) - 128, i32::from(cr) - 128);
    let value = |v: i32| (v >> 16).clamp(0, 255) as u8;
    [value(y + 91881 * cr), value(y - 22554 * cb - 46802 * cr), value(y + 116_130 * cb)]
}

/// With the reason for people.
pub(crate) fn unreadable(error: TiffError) -> ViewError {
    match error {
        TiffError::IoError(error) => ViewError::Io(error),
        other => {
            ViewError::Unreadable(format!("the TIFF is damaged or of a kind that is not shown: {other}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_tell_levels() {
        let size = |width, height| ImageSize { width, height };
        let of = |width, height| halvings(size(1001, 513), size(width, height));
        assert_eq!(
            [of(501, 257), of(500, 256), of(251, 129), of(125, 64)],
            [Some(1), Some(1), Some(2), Some(3)]
        );
        assert_eq!([of(1001, 513), of(334, 171), of(501, 513), of(9, 9)], [None; 4]);
        assert_eq!([of(2, 1), of(1, 1)].map(|k| k.is_some()), [true, true]);
    }

    #[test]
    fn colours_turn_as_in_jfif() {
        assert_eq!(ycc_to_rgb([128, 128, 128]), [128; 3]);
        assert_eq!(ycc_to_rgb([76, 85, 255]), [254, 0, 0]);
        assert_eq!(ycc_to_rgb([255, 255, 255]), [255, 121, 255]);
    }
}
