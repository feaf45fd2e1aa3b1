//! PNG: pixels by rows, whatever their depth; interlaced ones at once.
//!
//! What colours mean is said, in the order of the PNG specification (third edition, 4.3), by cICP, iCCP,
//! sRGB, or gAMA with cHRM; the first that is there counts. A file must have its end, and its checksums must
//! be right.

use std::io::{self, BufRead, Seek};

use png::{BitDepth, ColorType, Decoder, Info, Limits, Transformations};

use super::colour::{ColourError, Model, ToSrgb};
use super::pixels::{Converter, PixelLayout, Samples};
use super::{check_size, texts::Text};
use crate::sampler::units::ImageSize;

/// Rows that are handed on together.
const ROWS: usize = 64;
/// Text, profiles and rows: far more than any file needs.
const MOST_BYTES: usize = 1 << 30;

/// A file of which the header was read.
pub(crate) struct PngFile<R: BufRead + Seek> {
    reader: png::Reader<R>,
    size: ImageSize,
    converter: Converter,
    warnings: Vec<String>,
}

/// What is known of a file once it was read.
#[derive(Debug, Default)]
pub(crate) struct PngEnd {
    /// 1 to 8, as in EXIF.
    pub(crate) orientation: u8,
    pub(crate) warnings: Vec<String>,
    pub(crate) texts: Vec<Text>,
}

fn damaged(error: png::DecodingError) -> String {
    match error {
        png::DecodingError::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            "it is cut off: its end is missing".into()
        }
        other => format!("it is damaged: {other}").trim_end_matches('.').to_owned(),
    }
}

impl<R: BufRead + Seek> PngFile<R> {
    pub(crate) fn open(file: R) -> Result<Self, String> {
        let mut decoder = Decoder::new_with_limits(file, Limits { bytes: MOST_BYTES });
        decoder.set_transformations(Transformations::EXPAND);
        let reader = decoder.read_info().map_err(damaged)?;
        let size = check_size(reader.info().width, reader.info().height)?;
        let layout = match reader.output_color_type().0 {
            ColorType::Grayscale => PixelLayout::plain(Model::Grey),
            ColorType::GrayscaleAlpha => PixelLayout::with_alpha(Model::Grey),
            // Palettes are expanded.
            ColorType::Rgb | ColorType::Indexed => PixelLayout::plain(Model::Rgb),
            ColorType::Rgba => PixelLayout::with_alpha(Model::Rgb),
        };
        let mut warnings = Vec::new();
        let colour = match colours(reader.info(), layout.model) {
            Ok(colour) => colour,
            Err(error @ ColourError::Hdr(_)) => return Err(error.to_string()),
            Err(error) => {
                warnings.push(super::taken_as_srgb(&error));
                ToSrgb::Same
            }
        };
        Ok(Self { reader, size, converter: Converter::new(layout, colour), warnings })
    }

    /// Width and height, as stored.
    pub(crate) fn size(&self) -> ImageSize {
        self.size
    }

    /// Reads all of it: `each` gets whole rows of 8-bit RGB, from the top.
    pub(crate) fn read(mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<PngEnd, String> {
        let deep = self.reader.output_color_type().1 == BitDepth::Sixteen;
        let mut rgb = Vec::new();
        let row_bytes = self.size.width as usize * 3;
        let mut hand_on = |rgb: &mut Vec<u8>, last: bool| {
            if rgb.len() >= row_bytes * ROWS || last {
                each(rgb).map_err(|e| e.to_string())?;
                rgb.clear();
            }
            Ok::<_, String>(())
        };
        if self.reader.info().interlaced {
            let length = self.reader.output_buffer_size().ok_or("it is too large")?;
            let mut pixels = vec![0; length];
            self.reader.next_frame(&mut pixels).map_err(damaged)?;
            for row in pixels.chunks_exact(length / self.size.height as usize) {
                convert(&self.converter, row, deep, &mut rgb);
                hand_on(&mut rgb, false)?;
            }
        } else {
            while let Some(row) = self.reader.next_row().map_err(damaged)? {
                convert(&self.converter, row.data(), deep, &mut rgb);
                hand_on(&mut rgb, false)?;
            }
        }
        hand_on(&mut rgb, true)?;
        self.reader.finish().map_err(damaged)?;
        if self.converter.saw_transparency() {
            self.warnings.push(super::OVER_WHITE.into());
        }
        let info = self.reader.info();
        let orientation = info.exif_metadata.as_deref().map_or(1, super::orientation::of_exif);
        Ok(PngEnd { orientation, warnings: self.warnings, texts: texts(info) })
    }
}

fn convert(converter: &Converter, row: &[u8], deep: bool, out: &mut Vec<u8>) {
    if deep {
        let samples: Vec<u16> = row.as_chunks::<2>().0.iter().map(|b| u16::from_be_bytes(*b)).collect();
        converter.rgb(Samples::U16(&samples), out);
    } else {
        converter.rgb(Samples::U8(row), out);
    }
}

fn colours(info: &Info<'_>, model: Model) -> Result<ToSrgb, ColourError> {
    if let Some(cicp) = &info.coding_independent_code_points {
        return ToSrgb::of_cicp(cicp.color_primaries, cicp.transfer_function, model);
    }
    if let Some(icc) = &info.icc_profile {
        return ToSrgb::of_icc(icc, model);
    }
    if info.srgb.is_some() {
        return Ok(ToSrgb::Same);
    }
    let Some(gamma) = info.gama_chunk else { return Ok(ToSrgb::Same) };
    let places = info
        .chrm_chunk
        .map(|c| [c.white, c.red, c.green, c.blue].map(|(x, y)| (x.into_value(), y.into_value())));
    Ok(ToSrgb::of_gamma(gamma.into_value(), places, model))
}

/// Bytes of a compressed text, at most; a longer one is left out. A few bytes can stand for many.
const LONGEST_TEXT: usize = 16 << 20;

fn texts(info: &Info<'_>) -> Vec<Text> {
    let plain = info.uncompressed_latin1_text.iter().map(|c| Text::new(&c.keyword, c.text.clone()));
    let packed = info.compressed_latin1_text.iter().filter_map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(LONGEST_TEXT).ok()?;
        Some(Text::new(&chunk.keyword, chunk.get_text().ok()?))
    });
    let utf8 = info.utf8_text.iter().filter_map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(LONGEST_TEXT).ok()?;
        Some(Text::new(&chunk.keyword, chunk.get_text().ok()?))
    });
    let exif = info.exif_metadata.iter().flat_map(|exif| super::texts::of_exif(exif));
    plain.chain(packed).chain(utf8).chain(exif).collect()
}

/// The texts of a file, wherever they stand in it. No pixel is decoded.
pub(crate) fn read_texts(file: impl BufRead + Seek) -> Result<Vec<Text>, String> {
    let decoder = Decoder::new_with_limits(file, Limits { bytes: MOST_BYTES });
    let mut reader = decoder.read_info().map_err(damaged)?;
    reader.finish().map_err(damaged)?;
    Ok(texts(reader.info()))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    struct Made<'a> {
        depth: BitDepth,
        colour: ColorType,
        pixels: &'a [u8],
        palette: &'a [u8],
        trns: &'a [u8],
    }

    /// 2x2 pixels.
    fn png(made: &Made<'_>, prepare: impl FnOnce(&mut png::Encoder<'_, &mut Vec<u8>>)) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 2);
        encoder.set_color(made.colour);
        encoder.set_depth(made.depth);
        if !made.palette.is_empty() {
            encoder.set_palette(made.palette.to_vec());
        }
        if !made.trns.is_empty() {
            encoder.set_trns(made.trns.to_vec());
        }
        prepare(&mut encoder);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(made.pixels).unwrap();
        writer.finish().unwrap();
        file
    }

    fn read(file: &[u8]) -> Result<(Vec<u8>, PngEnd), String> {
        let mut rgb = Vec::new();
        let end = PngFile::open(Cursor::new(file))?.read(&mut |rows| {
            rgb.extend_from_slice(rows);
            Ok(())
        })?;
        Ok((rgb, end))
    }

    const RGB: Made<'_> = Made {
        depth: BitDepth::Eight,
        colour: ColorType::Rgb,
        pixels: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        palette: &[],
        trns: &[],
    };

    #[test]
    fn every_kind_of_pixel_is_read() {
        let rgb = |made: &Made<'_>| read(&png(made, |_| {})).unwrap().0;
        assert_eq!(rgb(&RGB), RGB.pixels);
        let deep = [0, 128, 0, 129, 255, 255].repeat(4);
        assert_eq!(rgb(&Made { depth: BitDepth::Sixteen, pixels: &deep, ..RGB }), [0, 1, 255].repeat(4));
        let bits = Made { depth: BitDepth::One, colour: ColorType::Grayscale, pixels: &[0x80, 0x40], ..RGB };
        assert_eq!(rgb(&bits), [255, 255, 255, 0, 0, 0, 0, 0, 0, 255, 255, 255]);
        let indexed = Made {
            depth: BitDepth::Two,
            colour: ColorType::Indexed,
            pixels: &[0x10, 0x40],
            palette: &[9, 8, 7, 100, 0, 200],
            trns: &[255, 0],
        };
        let (rgb, end) = read(&png(&indexed, |_| {})).unwrap();
        assert_eq!(rgb, [9, 8, 7, 255, 255, 255, 255, 255, 255, 9, 8, 7]);
        assert!(end.warnings[0].contains("white"), "{:?}", end.warnings);
    }

    #[test]
    fn colours_follow_the_first_chunk_that_counts() {
        let p3 = moxcms::ColorProfile::new_display_p3().encode().unwrap();
        let pixels = [81, 157, 62].repeat(4);
        let made = Made { pixels: &pixels, ..RGB };
        let green = |file: &[u8]| read(file).unwrap().0[..3].to_vec();
        let plain = png(&made, |e| e.set_source_srgb(png::SrgbRenderingIntent::Perceptual));
        // After the header.
        let with = |name: &[u8], body: &[u8]| {
            let mut chunk = [&(body.len() as u32).to_be_bytes()[..], name, body].concat();
            let mut crc = flate2::Crc::new();
            crc.update(&chunk[4..]);
            chunk.extend(crc.sum().to_be_bytes());
            [&plain[..33], &chunk, &plain[33..]].concat()
        };
        let icc = |profile: &[u8]| {
            let mut zlib = flate2::write::ZlibEncoder::new(b"icc\0\0".to_vec(), flate2::Compression::new(6));
            io::Write::write_all(&mut zlib, profile).unwrap();
            with(b"iCCP", &zlib.finish().unwrap())
        };
        let of_icc = green(&icc(&p3));
        assert!(of_icc[0].abs_diff(44) <= 1 && of_icc[1].abs_diff(159) <= 1, "{of_icc:?}");
        assert_eq!(green(&plain), [81, 157, 62]);
        let linear = green(&png(&made, |e| e.set_source_gamma(png::ScaledFloat::new(1.0))));
        assert!(linear[1] > 200, "{linear:?}");
        assert_eq!(green(&with(b"cICP", &[12, 13, 0, 1])), of_icc);
        assert!(read(&with(b"cICP", &[9, 16, 0, 1])).unwrap_err().contains("HDR (PQ)"));
        let broken = icc(b"no profile");
        let (rgb, end) = read(&broken).unwrap();
        assert!(rgb == pixels && end.warnings[0].contains("taken as sRGB"), "{:?}", end.warnings);
    }

    #[test]
    fn no_part_of_a_file_is_taken_for_the_whole() {
        let file = png(&RGB, |_| {});
        for length in 0..file.len() {
            assert!(read(&file[..length]).is_err(), "{length} of {}", file.len());
        }
        let mut wrong = file;
        // In the pixels, behind header and chunk length.
        wrong[45] ^= 1;
        assert!(read(&wrong).unwrap_err().contains("damaged"));
    }
}
