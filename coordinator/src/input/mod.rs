//! Pictures that people bring: of any usual format, as 8-bit sRGB.
//!
//! Formats are told by their bytes. What is damaged or cut off is refused, and so is what cannot be shown in
//! sRGB; nothing is guessed. Embedded colour profiles are honoured, cameras' orientation too, and what is
//! transparent lies over white. A picture is held once, with 3 bytes a pixel; beside it there is what its
//! decoder needs, and for JPEG, WebP, GIF and interlaced PNG that is the whole picture as it was stored.

pub(crate) mod colour;
mod dzi;
pub(crate) mod foreign;
pub(crate) mod ifd;
pub(crate) mod jpeg;
mod kind;
pub(crate) mod orientation;
mod others;
pub(crate) mod pixels;
pub(crate) mod png;
mod settings;
pub(crate) mod texts;
mod tiff;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

pub use foreign::Foreign;
pub(crate) use settings::told;
pub use settings::{Origin, read_settings};

use self::colour::{ColourError, ToSrgb};
pub(crate) use self::kind::FileKind;
use self::kind::{HEAD, READ};
use self::pixels::{Converter, PixelLayout, Samples};
use crate::output::ReadError;
use crate::sampler::cascade::MAX_AREA;
use crate::sampler::resize::Picture;
use crate::sampler::units::ImageSize;

/// What is told of transparent pictures.
pub(crate) const OVER_WHITE: &str = "parts of it are transparent: they lie over white";
/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

/// A picture, and what people should know of how it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The picture.
    pub picture: Picture,
    /// Lower-case sentences.
    pub warnings: Vec<String>,
}

/// A picture as stored.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) size: ImageSize,
    /// 8-bit sRGB, row by row.
    pub(crate) rgb: Vec<u8>,
    /// 1 to 8, as in EXIF.
    pub(crate) orientation: u8,
    pub(crate) warnings: Vec<String>,
}

/// Reads a picture of any usual format, at most 2^30 pixels.
pub fn read_picture(path: &Path) -> Result<Loaded, ReadError> {
    let read = || -> Result<Decoded, String> {
        match open_kind(path)? {
            (_, FileKind::Dzi) => dzi::read(path),
            (file, _) => read_bytes(file),
        }
    };
    let Decoded { size, rgb, orientation, warnings } = read().map_err(|e| ReadError::new(path, e))?;
    Ok(Loaded { picture: orientation::turned(size, rgb, orientation), warnings })
}

/// Opens a file that has an end: a pipe would be waited for, and cannot be read twice.
fn open_regular(path: &Path) -> Result<File, String> {
    let about = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if about.is_dir() {
        return Err("it is a folder: name a file".into());
    }
    if !about.is_file() {
        return Err("it is no regular file: save what it gives in a file first".into());
    }
    File::open(path).map_err(|e| e.to_string())
}

/// Opens a file, and tells its format.
pub(crate) fn open_kind(path: &Path) -> Result<(File, FileKind), String> {
    if path.to_str().is_some_and(|text| text.contains("://")) && !path.exists() {
        return Err("it is an address, not a file: download it first".into());
    }
    let mut file = open_regular(path)?;
    let kind = file_kind(&mut file)?;
    Ok((file, kind))
}

/// The format of a file, which is then at its start again.
fn file_kind(file: &mut (impl Read + Seek)) -> Result<FileKind, String> {
    let mut head = Vec::new();
    let read = file.by_ref().take(HEAD as u64).read_to_end(&mut head);
    read.and_then(|_| file.rewind()).map_err(|e| e.to_string())?;
    FileKind::of(&head)
}

/// Reads a picture that is one file.
pub(crate) fn read_bytes(mut file: impl Read + Seek + Send + 'static) -> Result<Decoded, String> {
    let kind = file_kind(&mut file)?;
    let buffered = |file| BufReader::with_capacity(BUFFER, file);
    match kind {
        FileKind::Png => read_png(buffered(file)),
        FileKind::Jpeg => read_jpeg(&all(file)?),
        FileKind::Tiff => tiff::read(file),
        FileKind::WebP => {
            let length = file.seek(io::SeekFrom::End(0)).map_err(|e| e.to_string())?;
            file.rewind().map_err(|e| e.to_string())?;
            others::read_webp(buffered(file), length)
        }
        FileKind::Bmp => others::read_bmp(buffered(file)),
        FileKind::Gif => others::read_gif(&all(file)?),
        FileKind::Dzi | FileKind::Json => Err(format!("its bytes are those of no picture; {READ}")),
    }
}

fn all(mut file: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn read_png(file: impl io::BufRead + Seek) -> Result<Decoded, String> {
    let file = png::PngFile::open(file)?;
    let size = file.size();
    let mut rgb = Vec::with_capacity(size.width as usize * size.height as usize * 3);
    let end = file.read(&mut |rows| {
        rgb.extend_from_slice(rows);
        Ok(())
    })?;
    Ok(Decoded { size, rgb, orientation: end.orientation, warnings: end.warnings })
}

fn read_jpeg(bytes: &[u8]) -> Result<Decoded, String> {
    let segments = jpeg::Segments::of(bytes)?;
    let jpeg::JpegPixels { samples, model } = segments.decode()?;
    let mut warnings = Vec::new();
    let found = segments.icc().map_err(ColourError::Profile);
    let colour = match found.and_then(|icc| icc.map(|icc| ToSrgb::of_icc(&icc, model)).transpose()) {
        Ok(colour) => colour.unwrap_or(ToSrgb::Same),
        Err(error @ ColourError::Hdr(_)) => return Err(error.to_string()),
        Err(error) => {
            warnings.push(taken_as_srgb(&error));
            ToSrgb::Same
        }
    };
    let converter = Converter::new(PixelLayout::plain(model), colour);
    let rgb = match converter.keeps_rgb8() {
        true => samples,
        false => {
            let mut rgb = Vec::with_capacity(samples.len() / model.channels() * 3);
            converter.rgb(Samples::U8(&samples), &mut rgb);
            rgb
        }
    };
    let orientation = segments.exif.as_deref().map_or(1, orientation::of_exif);
    Ok(Decoded { size: segments.size(), rgb, orientation, warnings })
}

/// What is told of a profile that is of no use.
pub(crate) fn taken_as_srgb(error: &ColourError) -> String {
    format!("{error}: its colours are taken as sRGB")
}

/// Fails for pictures without pixels, and for more than are handled here.
pub(crate) fn check_size(width: u32, height: u32) -> Result<ImageSize, String> {
    let size = ImageSize { width, height };
    match u64::from(width) * u64::from(height) {
        0 => Err(format!("it is {size} pixels")),
        1..=MAX_AREA => Ok(size),
        _ => Err(format!("it is {size}, larger than 32768x32768 in all: make it smaller first")),
    }
}

#[cfg(test)]
mod tests;
