//! PNG: pixels by bands of rows, any size in the memory of a few rows, and the settings as text chunks and
//! as XMP. Values are marked as sRGB.

use std::io::{self, Write};

use png::{BitDepth, ColorType, Compression, Encoder, SrgbRenderingIntent};

use super::tiles::read_exactly;
use super::{Embedded, xmp};
use crate::raster::Levels;
use crate::sampler::units::PixelRect;

/// Keyword of the text that A1111, ComfyUI and their companions read.
const PARAMETERS: &str = "parameters";
/// Keyword of the JSON that renders the picture again.
const SETTINGS: &str = "gigasmith";
/// Keyword of XMP, which other programs carry over into JPEG, WebP and TIFF.
const XMP: &str = "XML:com.adobe.xmp";
/// Rows read at once: about 16 MB of pixels.
const BAND_BYTES: usize = 16 << 20;
/// Compressed bytes in a chunk.
const CHUNK: usize = 64 << 10;

/// Writes level 0 with its texts. `progress` gets rows written and all rows, and ends the writing with an
/// error of its own.
pub fn write_png(
    file: impl Write,
    levels: &dyn Levels,
    embedded: &Embedded,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let size = levels.size(0);
    let mut encoder = Encoder::new(file, size.width, size.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    encoder.set_source_srgb(SrgbRenderingIntent::Perceptual);
    add_text(&mut encoder, PARAMETERS, embedded.parameters.clone())?;
    add_text(&mut encoder, SETTINGS, embedded.json.clone())?;
    encoder.add_text_chunk("Software".into(), embedded.software.clone())?;
    encoder.add_itxt_chunk(XMP.into(), xmp::packet(embedded))?;
    let mut writer = encoder.write_header()?;
    let mut stream = writer.stream_writer_with_size(CHUNK)?;
    let band = (BAND_BYTES / (size.width as usize * 3)).clamp(1, 1024) as u32;
    let mut top = 0;
    while top < size.height {
        let rows = band.min(size.height - top);
        let rect = PixelRect { left: 0, top, width: size.width, height: rows };
        stream.write_all(&read_exactly(levels, 0, rect)?)?;
        top += rows;
        progress(u64::from(top), u64::from(size.height))?;
    }
    stream.finish()?;
    Ok(writer.finish()?)
}

/// As `tEXt` where Latin-1 can hold it, as every reader expects, else as `iTXt` (UTF-8).
fn add_text<W: Write>(encoder: &mut Encoder<'_, W>, keyword: &str, text: String) -> io::Result<()> {
    let latin1 = text.chars().all(|c| u32::from(c) <= 0xff && c != '\0');
    let added = match latin1 {
        true => encoder.add_text_chunk(keyword.into(), text),
        false => encoder.add_itxt_chunk(keyword.into(), text),
    };
    Ok(added?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::testing::{Memory, embedded};
    use super::super::{Settings, write_atomically};
    use super::*;
    use crate::input::{Origin, read_picture, read_settings};
    use crate::raster::{Raster, Scratch};
    use crate::sampler::resize::Picture;
    use crate::sampler::units::ImageSize;
    use crate::spec::{RenderSpec, SPEC_VERSION};

    fn settings(prompt: &str) -> Settings {
        Settings::new(RenderSpec { prompt: prompt.into(), ..crate::spec::tests::spec() })
    }

    #[test]
    fn pixels_and_settings_come_back_in_any_alphabet() {
        let folder = tempfile::tempdir().unwrap();
        let picture = Picture::new(ImageSize { width: 2, height: 1 }, vec![0, 128, 255, 1, 2, 3]);
        let raster = Raster::of(&picture, &Scratch::default()).unwrap();
        for prompt in ["a fox", "détail élevé", "富士山 at night\nand \"more\""] {
            let path = folder.path().join("a.png");
            let embedded = settings(prompt).embedded();
            write_atomically(&path, |file| write_png(file, &raster, &embedded, &mut |_, _| Ok(()))).unwrap();
            assert_eq!(read_picture(&path).unwrap().picture, picture);
            let Origin::Ours(json) = read_settings(&path).unwrap() else { panic!("settings were written") };
            assert_eq!(Settings::from_json(&json).unwrap(), settings(prompt));
        }
    }

    #[test]
    fn parameters_are_those_other_tools_read() {
        assert_eq!(
            settings("a fox").to_parameters(),
            "a fox\nNegative prompt: blurry\nSteps: 30, Sampler: DDIM, CFG scale: 7.5, \
             Seed: 18446744073709551615, Size: 8x8, Model hash: 0123456789, Model: pocket, Hires upscale: 4, \
             Hires upscaler: Pixelsmith, Pixelsmith size: 32x32, Pixelsmith slider: \"12, 18\", \
             Pixelsmith plan: balanced, PAG scale: 3, PAG blocks: \"mid, u0\", Version: gigasmith 0.1.0"
        );
    }

    #[test]
    fn foreign_and_future_settings_are_told_apart() {
        assert!(matches!(Settings::from_json("{}"), Err(super::super::SettingsError::Malformed(_))));
        let of_version = |version: u32| {
            let json = settings("a").to_json();
            Settings::from_json(&json.replace("\"version\":1", &format!("\"version\":{version}")))
        };
        assert!(of_version(SPEC_VERSION).is_ok());
        for other in [0, SPEC_VERSION + 1] {
            let error = of_version(other).unwrap_err();
            assert!(
                matches!(&error, super::super::SettingsError::Version(v) if v.found == u64::from(other)),
                "{error}"
            );
        }
    }

    #[test]
    fn pixels_and_texts_come_back() {
        for (width, height) in [(1, 1), (255, 257), (1000, 3), (700, 1513), (9000, 1100)] {
            let picture = Memory::noise(width, height);
            let mut file = Vec::new();
            write_png(&mut file, &picture, &embedded(), &mut |_, _| Ok(())).unwrap();
            let mut reader = png::Decoder::new(Cursor::new(&file)).read_info().unwrap();
            let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut rgb).unwrap();
            assert!(rgb == picture.rgb(0));
            let texts: Vec<_> = reader.info().utf8_text.iter().map(|c| c.get_text().unwrap()).collect();
            assert_eq!(texts, [embedded().parameters, embedded().json, xmp::packet(&embedded())]);
            assert_eq!(reader.info().srgb, Some(SrgbRenderingIntent::Perceptual));
            assert_eq!(reader.info().uncompressed_latin1_text[0].text, embedded().software);
        }
    }

    #[test]
    fn progress_can_end_it() {
        let picture = Memory::smooth(20, 3000);
        let mut stop = |done, total| match done {
            1024 => Err(io::Error::other(format!("stopped at {done} of {total}"))),
            _ => Ok(()),
        };
        let error = write_png(Vec::new(), &picture, &embedded(), &mut stop).unwrap_err();
        assert_eq!(error.to_string(), "stopped at 1024 of 3000");
    }
}
