//! JPEG: its segments, and its pixels.
//!
//! Decoders draw what is there of a file that was cut off, and grey for the rest. So the file is taken apart
//! first: it must have its end marker, which thumbnails in its metadata do not count for; what follows the
//! end (other pictures, films, padding) is left out. Then it is decoded strictly: a scan that breaks a code's
//! rules is an error. A scan that ends early before an end marker is not told, as with other decoders. The decoder runs without SIMD, so that processors do not differ.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::check_size;
use super::colour::Model;
use crate::sampler::units::ImageSize;

/// What APP1 begins with.
const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// What APP2 begins with when it holds a part of a profile: then come its number and how many there are.
const ICC: &[u8] = b"ICC_PROFILE\0";

/// A file taken apart.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// The file with one picture and without metadata.
    stream: Vec<u8>,
    size: Option<ImageSize>,
    pub(crate) exif: Option<Vec<u8>>,
    pub(crate) xmp: Option<Vec<u8>>,
    pub(crate) comments: Vec<Vec<u8>>,
    /// The profile's parts by their numbers, with how many there should be.
    icc: Vec<(u8, u8, Vec<u8>)>,
    ended: bool,
}

/// Decoded pixels, row by row.
pub(crate) struct JpegPixels {
    pub(crate) samples: Vec<u8>,
    pub(crate) model: Model,
}

impl Segments {
    /// Takes a whole file apart.
    pub(crate) fn of(file: &[u8]) -> Result<Self, String> {
        let found = Self::read(file)?;
        match (found.ended, found.size) {
            (false, _) => Err("it is cut off: its end is missing".into()),
            (true, None) => Err("it has no picture".into()),
            (true, Some(_)) => Ok(found),
        }
    }

    /// The texts of a file, of which the end need not be there.
    pub(crate) fn texts(file: &[u8]) -> Result<Self, String> {
        Self::read(file)
    }

    fn read(file: &[u8]) -> Result<Self, String> {
        let mut found = Self { stream: vec![0xff, 0xd8], ..Self::default() };
        let mut rest = file.strip_prefix(&[0xff, 0xd8]).ok_or("it is no JPEG")?;
        let mut scans = 0;
        loop {
            // What stands between segments, and fill bytes before a marker, mean nothing.
            let Some(start) = rest.iter().position(|&b| b == 0xff) else { return Ok(found) };
            rest = &rest[start..];
            let Some(at) = rest.iter().position(|&b| b != 0xff) else { return Ok(found) };
            let marker = rest[at];
            rest = &rest[at + 1..];
            match marker {
                0x00 | 0x01 | 0xd0..=0xd8 => continue,
                0xd9 if scans == 0 => continue,
                0xd9 => {
                    found.stream.extend([0xff, 0xd9]);
                    found.ended = true;
                    return Ok(found);
                }
                _ => {}
            }
            let Some(length) = rest.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b))) else {
                return Ok(found);
            };
            if length < 2 {
                return Err("it is damaged: a segment has no length".into());
            }
            let Some((segment, after)) = rest.split_at_checked(length) else { return Ok(found) };
            rest = after;
            found.segment(marker, segment)?;
            if marker == 0xda {
                scans += 1;
                let scan = scan_length(rest);
                found.stream.extend_from_slice(&rest[..scan]);
                rest = &rest[scan..];
            }
        }
    }

    /// `segment` begins with its length.
    fn segment(&mut self, marker: u8, segment: &[u8]) -> Result<(), String> {
        let body = &segment[2..];
        match marker {
            0xe1 => {
                if let Some(exif) = body.strip_prefix(EXIF) {
                    self.exif.get_or_insert(exif.to_vec());
                } else if let Some(xmp) = body.strip_prefix(XMP) {
                    self.xmp.get_or_insert(xmp.to_vec());
                }
                return Ok(());
            }
            0xe2 => {
                if let Some([number, count, part @ ..]) = body.strip_prefix(ICC) {
                    self.icc.push((*number, *count, part.to_vec()));
                }
                return Ok(());
            }
            0xfe => {
                self.comments.push(body.to_vec());
                return Ok(());
            }
            // The JFIF header and Adobe's say what colours mean.
            0xe0 | 0xee => {}
            0xe3..=0xef => return Ok(()),
            0xc0..=0xc2 => self.frame(body)?,
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(format!(
                    "it is a {} JPEG, which is not read: convert it to PNG or TIFF",
                    if marker >= 0xc9 { "arithmetically coded" } else { "lossless or hierarchical" }
                ));
            }
            _ => {}
        }
        self.stream.extend([0xff, marker]);
        self.stream.extend_from_slice(segment);
        Ok(())
    }

    fn frame(&mut self, body: &[u8]) -> Result<(), String> {
        let [precision, h1, h0, w1, w0, ..] = *body else {
            return Err("it is damaged: its frame is short".into());
        };
        if precision != 8 {
            return Err(format!(
                "it is a JPEG of {precision} bits, which is not read: convert it to PNG or TIFF"
            ));
        }
        let [width, height] = [[w1, w0], [h1, h0]].map(|b| u32::from(u16::from_be_bytes(b)));
        self.size = Some(check_size(width, height)?);
        Ok(())
    }

    /// Width and height, as stored.
    pub(crate) fn size(&self) -> ImageSize {
        self.size.expect("a file without a picture is no whole one")
    }

    /// The embedded profile: `None` when there is none, an error when parts are missing.
    pub(crate) fn icc(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(&(_, count, _)) = self.icc.first() else { return Ok(None) };
        let part = |number| self.icc.iter().find(|(n, _, _)| *n == number).map(|(_, _, part)| &part[..]);
        let parts: Option<Vec<&[u8]>> = (1..=count.max(1)).map(part).collect();
        parts.map(|parts| Some(parts.concat())).ok_or_else(|| "its colour profile is not complete".into())
    }

    /// Decodes the picture: grey, RGB, or CMYK with 0 for no ink.
    pub(crate) fn decode(&self) -> Result<JpegPixels, String> {
        let (mut samples, space) = decode(&self.stream, |space| match space {
            ColorSpace::YCbCr => ColorSpace::RGB,
            other => other,
        })?;
        let model = match space {
            ColorSpace::Luma => Model::Grey,
            ColorSpace::YCbCr | ColorSpace::RGB => Model::Rgb,
            // Every program that writes CMYK does it as Adobe: inverted.
            ColorSpace::CMYK => {
                samples.iter_mut().for_each(|v| *v = 255 - *v);
                Model::Cmyk
            }
            ColorSpace::YCCK => {
                for pixel in samples.chunks_exact_mut(4) {
                    // What YCbCr turns into is already what the inversion makes of C, M and Y.
                    let inks = ycc_to_rgb([pixel[0], pixel[1], pixel[2]]);
                    pixel[..3].copy_from_slice(&inks);
                    pixel[3] = 255 - pixel[3];
                }
                Model::Cmyk
            }
            other => {
                return Err(format!(
                    "it is a JPEG of {other:?}, which is not read: convert it to PNG or TIFF"
                ));
            }
        };
        let ImageSize { width, height } = self.size();
        if samples.len() != width as usize * height as usize * model.channels() {
            return Err("it is damaged: it has less pixels than it says".into());
        }
        Ok(JpegPixels { samples, model })
    }
}

/// Bytes of a scan: up to a marker that is no restart.
fn scan_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|&b| b == 0xff) {
        match bytes.get(at + found + 1) {
            Some(0x00 | 0xd0..=0xd7) => at += found + 2,
            Some(0xff) => at += found + 1,
            Some(_) => return at + found,
            None => break,
        }
    }
    bytes.len()
}

/// Decodes a stream strictly into the colours that `wanted` makes of its own.
fn decode(stream: &[u8], wanted: impl Fn(ColorSpace) -> ColorSpace) -> Result<(Vec<u8>, ColorSpace), String> {
    let damaged = |e: zune_jpeg::errors::DecodeErrors| {
        let reason = e.to_string().replace(['\n', '\r'], " ");
        format!("it is damaged or cut off: {}", reason.trim().trim_matches('"'))
    };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_use_unsafe(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(stream), options);
    decoder.decode_headers().map_err(damaged)?;
    let space = decoder.input_colorspace().ok_or("it is damaged: it has no colours")?;
    decoder.set_options(options.jpeg_set_out_colorspace(wanted(space)));
    Ok((decoder.decode().map_err(damaged)?, space))
}

/// Sides are padded to whole blocks of colours at half resolution.
const PADDING: u32 = 16;

/// Decodes a piece of a TIFF, of about this size, with the tables that all pieces share (TIFF Technical Note 2), colours as they
/// are stored.
pub(crate) fn decode_piece(
    tables: Option<&[u8]>,
    piece: &[u8],
    size: ImageSize,
) -> Result<(ImageSize, Vec<u8>), String> {
    let rest = piece.strip_prefix(&[0xff, 0xd8]).ok_or("a JPEG piece does not begin as one")?;
    let mut stream = vec![0xff, 0xd8];
    if let Some(tables) = tables {
        let tables = tables.strip_prefix(&[0xff, 0xd8]).unwrap_or(tables);
        stream.extend_from_slice(tables.strip_suffix(&[0xff, 0xd9]).unwrap_or(tables));
    }
    stream.extend_from_slice(rest);
    let whole = Segments::of(&stream)?;
    let found = whole.size();
    if found.width > size.width.saturating_add(PADDING) || found.height > size.height.saturating_add(PADDING)
    {
        return Err(format!("it is damaged: it says {found} pixels"));
    }
    decode(&whole.stream, |space| space).map(|(samples, _)| (whole.size(), samples))
}

/// JFIF 1.02, page 3, in 16-bit fixed point.
pub(crate) fn ycc_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = ((i32::from(y) << 16) + HALF, i32::from(cb) - 128, i32::from(cr) - 128);
    let value = |v: i32| (v >> 16).clamp(0, 255) as u8;
    [value(y + 91881 * cr), value(y - 22554 * cb - 46802 * cr), value(y + 116_130 * cb)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::encode_jpeg;
    use crate::output::testing::{Memory, largest_difference};

    fn file(picture: &Memory, width: u32, height: u32) -> Vec<u8> {
        encode_jpeg(picture.rgb(0), ImageSize { width, height }, 95).unwrap()
    }

    fn decoded(file: &[u8]) -> Result<Vec<u8>, String> {
        Ok(Segments::of(file)?.decode()?.samples)
    }

    fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xff, marker], &length[..], body].concat()
    }

    #[test]
    fn whatever_stands_around_the_picture_is_no_harm() {
        let picture = Memory::smooth(70, 50);
        let file = file(&picture, 70, 50);
        let expected = decoded(&file).unwrap();
        assert!(largest_difference(&expected, picture.rgb(0)) < 12);
        // A thumbnail in the metadata has an end of its own.
        let thumbnail = segment(0xe1, &[EXIF, &file[..]].concat());
        let with_thumbnail = [&file[..2], &thumbnail, &file[2..]].concat();
        let with_film = [&file[..], b"\0\0\0\x18ftypmp42", &[0xff; 40]].concat();
        let with_another = [&file[..], &file[..]].concat();
        let with_padding = [&file[..2], &[0, 0, 0, 0, 0xff, 0xff], &file[2..]].concat();
        for (k, other) in [with_thumbnail.clone(), with_film, with_another, with_padding].iter().enumerate() {
            assert!(decoded(other).unwrap() == expected, "{k}");
        }
        // And is not taken for the end of the picture.
        let cut = with_thumbnail.len() - file.len() / 2;
        assert!(decoded(&with_thumbnail[..cut]).unwrap_err().contains("cut off"));
    }

    #[test]
    fn no_part_of_a_file_is_taken_for_the_whole() {
        let file = file(&Memory::noise(64, 64), 64, 64);
        for length in 0..file.len() {
            assert!(decoded(&file[..length]).is_err(), "{length} of {}", file.len());
        }
    }

    #[test]
    fn a_profile_is_put_together_from_its_parts() {
        let file = file(&Memory::smooth(8, 8), 8, 8);
        let part = |number: u8, text: &[u8]| segment(0xe2, &[ICC, &[number, 2], text].concat());
        let icc = |parts: &[Vec<u8>]| {
            Segments::of(&[&file[..2], &parts.concat(), &file[2..]].concat()).unwrap().icc()
        };
        assert_eq!(icc(&[part(2, b"cd"), part(1, b"ab")]).unwrap().unwrap(), b"abcd");
        assert!(icc(&[part(1, b"ab")]).unwrap_err().contains("not complete"));
        assert_eq!(icc(&[]).unwrap(), None);
    }

    #[test]
    fn kinds_that_are_not_decoded_are_named() {
        let file = file(&Memory::smooth(8, 8), 8, 8);
        let frame = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        for (marker, name) in [(0xc3, "lossless"), (0xc9, "arithmetically")] {
            let mut other = file.clone();
            other[frame + 1] = marker;
            assert!(decoded(&other).unwrap_err().contains(name));
        }
        let mut deep = file;
        deep[frame + 4] = 12;
        assert!(decoded(&deep).unwrap_err().contains("12 bits"));
    }

    #[test]
    fn colours_turn_as_in_jfif() {
        assert_eq!(ycc_to_rgb([128, 128, 128]), [128; 3]);
        assert_eq!(ycc_to_rgb([76, 85, 255]), [254, 0, 0]);
        assert_eq!(ycc_to_rgb([255, 255, 255]), [255, 121, 255]);
    }
}
