//! The images of a TIFF that make up a pyramid, and their pixels chunk by chunk.
//!
//! A smaller level may stand in the main chain or in SubIFDs. The decoder knows only the chain, so each
//! level gets a decoder of its own over a view of the file whose header points at that level. What their
//! pixels are is [`super::tiff_pixels`]'s matter.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use tiff::TiffError;
use tiff::tags::{CompressionMethod, IfdPointer, Tag};

use super::ViewError;
use super::tiff_pixels::{Reader, TiffPixels, named, reader};
use crate::input::ifd::{Directories, entry};
use crate::sampler::units::ImageSize;

/// More than any pyramid has; a file with a thousand pages is no pyramid.
const MOST_IMAGES: usize = 64;
/// What a directory says of its pixels: the kind of colours, and their palette.
const PHOTOMETRIC: u16 = 262;
const COLOR_MAP: u16 = 320;
/// Colours by index into a palette; plain grey; a camera's own sensor.
const PALETTE: u64 = 3;
const GREY: u8 = 1;
const SENSOR: u64 = 32803;
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
    /// Stands in for one more byte.
    patch: Option<(u64, u8)>,
    position: u64,
}

impl Shared {
    /// All of it as it is.
    pub(crate) fn new(file: Box<dyn Bytes>) -> Self {
        Self { file: Arc::new(Mutex::new(file)), header: Vec::new(), patch: None, position: 0 }
    }

    /// The same file, with a header that points at another directory.
    fn pointing_at(&self, directory: IfdPointer) -> io::Result<Self> {
        let mut whole = Self { header: Vec::new(), patch: None, position: 0, ..self.clone() };
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
        let patched = self.patch.and_then(|(at, byte)| Some((at.checked_sub(self.position)?, byte)));
        if let Some((at, byte)) = patched.filter(|(at, _)| *at < count as u64) {
            buffer[at as usize] = byte;
        }
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

/// One image of the file.
pub(crate) struct FileLevel {
    /// As the file has it: other programs round down where we round up.
    pub(crate) size: ImageSize,
    /// A tile's size, or that of a strip; those at the edges may show less.
    pub(crate) chunk: ImageSize,
    pub(crate) compression: String,
    /// Marked as a smaller version of another image.
    reduced: bool,
    /// 1 to 8, as in EXIF.
    pub(crate) orientation: u8,
    pixels: TiffPixels,
    icc: Option<Vec<u8>>,
    file: Shared,
    idle: Mutex<Vec<Reader>>,
}

/// Decoded pixels.
pub(crate) struct Chunk {
    pub(crate) size: ImageSize,
    /// 8-bit RGB, row by row.
    pub(crate) rgb: Vec<u8>,
}

/// A file's levels by how often they are halved: the first is there, others may be missing. The picture is
/// the first image that is not marked as a smaller version of another, or the first of all.
pub(crate) fn find_levels(file: &Shared) -> Result<Vec<Option<FileLevel>>, ViewError> {
    refuse_raw(file)?;
    let mut directories = directories(file)?;
    if directories.is_empty() {
        return Err(ViewError::Unreadable("the TIFF has no image".into()));
    }
    let whole = directories.iter().position(|d| !is_reduced(file, *d)).unwrap_or(0);
    let first = FileLevel::open(file, directories.remove(whole), None)?;
    let whole = first.size;
    let icc = first.icc.clone();
    let mut levels: Vec<Option<FileLevel>> = vec![Some(first)];
    levels.resize_with(crate::output::max_level(whole) as usize + 1, || None);
    for directory in directories {
        // Other images of the file may be anything.
        let Ok(level) = FileLevel::open(file, directory, icc.as_deref()) else { continue };
        let Some(halvings) = halvings(whole, level.size) else { continue };
        if let Some(place @ None) = levels.get_mut(halvings).filter(|_| level.reduced || level.is_tiled()) {
            *place = Some(level);
        }
    }
    Ok(levels)
}

/// Whether a directory says that it is a smaller version of another, or a mask.
fn is_reduced(file: &Shared, directory: IfdPointer) -> bool {
    let read = || -> io::Result<bool> {
        let mut directories = Directories::open(file.clone())?;
        let (entries, _) = directories.entries(directory.0)?;
        let Some(kind) = entry(&entries, Tag::NewSubfileType.to_u16()) else { return Ok(false) };
        Ok(directories.integers(kind, 1)?.first().is_some_and(|kind| kind & 0b101 != 0))
    };
    read().unwrap_or(false)
}

/// A camera's raw file begins like a TIFF, with a thumbnail. A chain of images that leads beyond the end is
/// that of a file that was cut off.
fn refuse_raw(file: &Shared) -> Result<(), ViewError> {
    /// DNGVersion; and compressions of Nikon, Sony, Pentax and Samsung.
    const DNG_VERSION: u16 = 50706;
    const RAW: [u64; 4] = [34713, 32767, 65535, 32770];
    let mut directories = Directories::open(file.clone())?;
    let (mut at, mut found) = (directories.first, Vec::new());
    while at != 0 && found.len() < MOST_IMAGES {
        let (entries, next) = match directories.entries(at) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ViewError::Unreadable("the TIFF is cut off: an image of it is missing".into()));
            }
            Err(_) => break,
        };
        let below = entry(&entries, Tag::SubIfd.to_u16()).copied();
        found.push(entries);
        for place in below.and_then(|b| directories.integers(&b, 16).ok()).unwrap_or_default() {
            found.extend(directories.entries(place).map(|(entries, _)| entries));
        }
        at = next;
    }
    for entries in &found {
        let mut is = |tag: u16, values: &[u64]| {
            let value = entry(entries, tag).and_then(|e| directories.integers(e, 1).ok());
            value.is_some_and(|v| v.first().is_some_and(|v| values.contains(v)))
        };
        let raw = entry(entries, DNG_VERSION).is_some()
            || is(PHOTOMETRIC, &[SENSOR, 34892])
            || is(Tag::Compression.to_u16(), &RAW);
        if raw {
            return Err(ViewError::Unreadable(
                "it is a file of camera raw, which is not read: convert it to PNG or TIFF".into(),
            ));
        }
    }
    Ok(())
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
    let mut decoder = reader(file.clone())?;
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
    fn open(file: &Shared, directory: IfdPointer, icc: Option<&[u8]>) -> Result<Self, ViewError> {
        let mut file = file.pointing_at(directory)?;
        let palette = file.hide_palette(directory)?;
        let mut decoder = reader(file.clone())?;
        let (width, height) = decoder.dimensions().map_err(unreadable)?;
        let chunk = decoder.chunk_dimensions();
        if chunk.0 == 0 || chunk.1 == 0 {
            return Err(ViewError::Unreadable("the TIFF is damaged: its pieces have no size".into()));
        }
        let mut number = |tag| decoder.find_tag_unsigned::<u32>(tag).map_err(unreadable);
        let kind = number(Tag::NewSubfileType)?.unwrap_or(0);
        let orientation = number(Tag::Orientation)?.filter(|n| (1..=8).contains(n)).unwrap_or(1);
        let method = number(Tag::Compression)?.unwrap_or(1);
        let own = decoder.find_tag(Tag::IccProfile).map_err(unreadable)?.and_then(|v| v.into_u8_vec().ok());
        let pixels = TiffPixels::of(&mut decoder, palette, icc)?;
        Ok(Self {
            size: ImageSize { width, height },
            chunk: ImageSize { width: chunk.0, height: chunk.1.min(height) },
            compression: named(CompressionMethod::from_u16_exhaustive(method as u16)),
            // Bit 0 is a smaller version, bit 2 a mask.
            reduced: kind & 0b101 == 0b001,
            orientation: orientation as u8,
            pixels,
            icc: own,
            file,
            idle: Mutex::new(vec![decoder]),
        })
    }

    /// Whether its pieces are tiles.
    pub(crate) fn is_tiled(&self) -> bool {
        self.pixels.is_tiled()
    }

    /// What was found in its pixels that people should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let transparent = self.pixels.saw_transparency().then(|| crate::input::OVER_WHITE.to_owned());
        self.pixels.warning.clone().into_iter().chain(transparent).collect()
    }

    /// Chunks from left to right.
    pub(crate) fn columns(&self) -> u32 {
        self.size.width.div_ceil(self.chunk.width)
    }

    /// Decodes a chunk.
    pub(crate) fn decode(&self, column: u32, row: u32) -> Result<Chunk, ViewError> {
        let mut decoder = match self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(decoder) => decoder,
            None => reader(self.file.clone())?,
        };
        let (size, rgb) = self.pixels.decode(&mut decoder, row * self.columns() + column)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(decoder);
        }
        Ok(Chunk { size, rgb })
    }
}

impl Shared {
    /// The decoder refuses palettes: they are hidden from it, and returned, reds, greens and blues of each
    /// colour together.
    fn hide_palette(&mut self, directory: IfdPointer) -> Result<Option<Vec<u16>>, ViewError> {
        let mut directories = Directories::open(self.clone())?;
        let (entries, _) = directories.entries(directory.0)?;
        let Some(photometric) = entry(&entries, PHOTOMETRIC) else { return Ok(None) };
        if directories.integers(photometric, 1)? != [PALETTE] {
            return Ok(None);
        }
        let Some(colours) = entry(&entries, COLOR_MAP) else {
            return Err(ViewError::Unreadable("the TIFF is damaged: its palette is missing".into()));
        };
        let values = directories.integers(colours, 3 << 16)?;
        let (reds, rest) = values.split_at(values.len() / 3);
        let (greens, blues) = rest.split_at(reds.len());
        let colours = reds.iter().zip(greens).zip(blues).flat_map(|((r, g), b)| [*r, *g, *b]);
        let low = photometric.field + u64::from(!directories.is_little());
        self.patch = Some((low, GREY));
        Ok(Some(colours.map(|v| v as u16).collect()))
    }
}

/// With the reason for people.
pub(crate) fn unreadable(error: TiffError) -> ViewError {
    match error {
        TiffError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            ViewError::Unreadable("the TIFF is cut off: its end is missing".into())
        }
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
}
