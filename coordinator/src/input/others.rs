//! WebP, BMP and GIF, by the `image` crate. Of a film the first picture is taken.

use std::io::{BufRead, Seek};

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder};

use super::colour::{ColourError, Model, ToSrgb};
use super::pixels::{Converter, PixelLayout, Samples};
use super::texts::{Text, of_exif, of_xmp};
use super::{Decoded, OVER_WHITE, check_size, orientation, taken_as_srgb};

fn damaged(error: image::ImageError) -> String {
    let reason = error.to_string().replace(['\n', '\r'], " ");
    format!("it is damaged, cut off or of a kind that is not read: {}", reason.trim().trim_end_matches('.'))
}

/// A WebP, lossy or lossless.
pub(crate) fn read_webp(file: impl BufRead + Seek, length: u64) -> Result<Decoded, String> {
    let mut file = file;
    check_riff(&mut file, length)?;
    let decoder = WebPDecoder::new(file).map_err(damaged)?;
    let animated = decoder.has_animation();
    let mut decoded = read(decoder)?;
    if animated {
        decoded.warnings.push("it is a film: its first picture is taken".into());
    }
    Ok(decoded)
}

/// A WebP says how long it is.
fn check_riff(file: &mut (impl BufRead + Seek), length: u64) -> Result<(), String> {
    let mut head = [0; 8];
    file.read_exact(&mut head).and_then(|()| file.rewind()).map_err(|e| e.to_string())?;
    let said = 8 + u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    match said > length {
        true => Err(format!("it is cut off: it has {length} bytes of {said}")),
        false => Ok(()),
    }
}

/// The texts of a WebP.
pub(crate) fn webp_texts(file: impl BufRead + Seek) -> Result<Vec<Text>, String> {
    let mut decoder = WebPDecoder::new(file).map_err(damaged)?;
    let exif = decoder.exif_metadata().ok().flatten().map(|exif| of_exif(&exif)).unwrap_or_default();
    let xmp = decoder.xmp_metadata().ok().flatten().map(|packet| of_xmp(&packet));
    Ok(exif.into_iter().chain(xmp).collect())
}

/// A BMP.
pub(crate) fn read_bmp(file: impl BufRead + Seek) -> Result<Decoded, String> {
    read(BmpDecoder::new(file).map_err(damaged)?)
}

/// A GIF.
pub(crate) fn read_gif(bytes: &[u8]) -> Result<Decoded, String> {
    let pictures = gif_pictures(bytes).ok_or("it is cut off: its end is missing")?;
    let mut decoded = read(GifDecoder::new(std::io::Cursor::new(bytes)).map_err(damaged)?)?;
    if pictures > 1 {
        decoded.warnings.push(format!("it is a film of {pictures} pictures: the first is taken"));
    }
    Ok(decoded)
}

/// Pictures in a GIF; `None` when it has no end (GIF89a, 17 to 27).
fn gif_pictures(bytes: &[u8]) -> Option<u32> {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut at = 13 + table(*bytes.get(10)?);
    let mut pictures = 0;
    loop {
        match bytes.get(at)? {
            0x3b => return Some(pictures),
            // A label, then blocks.
            0x21 => at += 2,
            // A place and a size, perhaps a palette, the bits of a code, then blocks.
            0x2c => {
                at += 11 + table(*bytes.get(at + 9)?);
                pictures += 1;
            }
            // Padding before the end.
            _ if pictures > 0 => return Some(pictures),
            _ => return None,
        }
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
    }
}

fn read(mut decoder: impl ImageDecoder) -> Result<Decoded, String> {
    let (width, height) = decoder.dimensions();
    let size = check_size(width, height)?;
    let icc = decoder.icc_profile().ok().flatten();
    let turned = decoder.exif_metadata().ok().flatten().map_or(1, |exif| orientation::of_exif(&exif));
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let (layout, samples) = match image {
        DynamicImage::ImageLuma8(image) => (PixelLayout::plain(Model::Grey), image.into_raw()),
        DynamicImage::ImageLumaA8(image) => (PixelLayout::with_alpha(Model::Grey), image.into_raw()),
        DynamicImage::ImageRgba8(image) => (PixelLayout::with_alpha(Model::Rgb), image.into_raw()),
        image => (PixelLayout::plain(Model::Rgb), image.into_rgb8().into_raw()),
    };
    let mut warnings = Vec::new();
    let colour = match icc.map(|icc| ToSrgb::of_icc(&icc, layout.model)) {
        None => ToSrgb::Same,
        Some(Ok(colour)) => colour,
        Some(Err(error @ ColourError::Hdr(_))) => return Err(error.to_string()),
        Some(Err(error)) => {
            warnings.push(taken_as_srgb(&error));
            ToSrgb::Same
        }
    };
    let converter = Converter::new(layout, colour);
    let rgb = match converter.keeps_rgb8() {
        true => samples,
        false => {
            let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
            converter.rgb(Samples::U8(&samples), &mut rgb);
            rgb
        }
    };
    if converter.saw_transparency() {
        warnings.push(OVER_WHITE.into());
    }
    Ok(Decoded { size, rgb, orientation: turned, warnings })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::codecs::gif::GifEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, Frame, RgbaImage};

    use super::*;
    use crate::output::testing::Memory;

    fn encoded(kind: &str) -> Vec<u8> {
        let picture = Memory::noise(40, 30);
        let mut file = Cursor::new(Vec::new());
        match kind {
            "webp" => WebPEncoder::new_lossless(&mut file)
                .encode(picture.rgb(0), 40, 30, ExtendedColorType::Rgb8)
                .unwrap(),
            "bmp" => image::codecs::bmp::BmpEncoder::new(&mut file)
                .encode(picture.rgb(0), 40, 30, ExtendedColorType::Rgb8)
                .unwrap(),
            _ => {
                let frame = || {
                    let pixels = (0..40 * 30).flat_map(|i| [(i % 7) as u8 * 30, 20, 200, 255]).collect();
                    Frame::new(RgbaImage::from_raw(40, 30, pixels).unwrap())
                };
                GifEncoder::new(&mut file).encode_frames([frame(), frame()]).unwrap();
            }
        }
        file.into_inner()
    }

    fn decoded(kind: &str, file: &[u8]) -> Result<Decoded, String> {
        match kind {
            "webp" => read_webp(Cursor::new(file), file.len() as u64),
            "bmp" => read_bmp(Cursor::new(file)),
            _ => read_gif(file),
        }
    }

    #[test]
    fn whole_files_are_read_and_parts_are_not() {
        for kind in ["webp", "bmp", "gif"] {
            let file = encoded(kind);
            let whole = decoded(kind, &file).unwrap();
            assert_eq!((whole.size.width, whole.size.height), (40, 30), "{kind}");
            if kind != "gif" {
                assert!(whole.rgb == Memory::noise(40, 30).rgb(0), "{kind}");
            } else {
                assert!(whole.warnings[0].contains("film of 2"), "{:?}", whole.warnings);
            }
            for length in (0..file.len()).step_by(7).chain([file.len() - 1]) {
                assert!(decoded(kind, &file[..length]).is_err(), "{kind}: {length} of {}", file.len());
            }
        }
    }

    #[test]
    fn transparency_is_told() {
        let mut file = Cursor::new(Vec::new());
        WebPEncoder::new_lossless(&mut file)
            .encode(&[1, 2, 3, 0, 4, 5, 6, 255], 2, 1, ExtendedColorType::Rgba8)
            .unwrap();
        let found = decoded("webp", &file.into_inner()).unwrap();
        assert_eq!(found.rgb, [255, 255, 255, 4, 5, 6]);
        assert_eq!(found.warnings, [OVER_WHITE]);
    }
}
