//! PNG: pixels, and the settings as text chunks.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use png::{BitDepth, ColorType, Compression, Decoder, Encoder};

use super::{ReadError, Settings, WriteError, write_atomically};
use crate::sampler::resize::Picture;

/// Keyword of the text that A1111, ComfyUI and their companions read.
const PARAMETERS: &str = "parameters";
/// Keyword of the JSON that renders the picture again.
const SETTINGS: &str = "gigasmith";

/// Writes a picture with its settings.
pub fn write_png(path: &Path, picture: &Picture, settings: &Settings) -> Result<(), WriteError> {
    write_atomically(path, |file| encode_png(file, picture, settings))
}

/// The same to anything that takes bytes.
pub fn encode_png(file: impl io::Write, picture: &Picture, settings: &Settings) -> io::Result<()> {
    let mut encoder = Encoder::new(file, picture.size().width, picture.size().height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    add_text(&mut encoder, PARAMETERS, settings.to_parameters())?;
    add_text(&mut encoder, SETTINGS, settings.to_json())?;
    encoder.add_text_chunk("Software".into(), settings.software.clone())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.rgb())?;
    Ok(writer.finish()?)
}

/// As `tEXt` where Latin-1 can hold it, as every reader expects, else as `iTXt` (UTF-8).
fn add_text<W: io::Write>(encoder: &mut Encoder<'_, W>, keyword: &str, text: String) -> io::Result<()> {
    let latin1 = text.chars().all(|c| u32::from(c) <= 0xff && c != '\0');
    let added = match latin1 {
        true => encoder.add_text_chunk(keyword.into(), text),
        false => encoder.add_itxt_chunk(keyword.into(), text),
    };
    Ok(added?)
}

/// The settings' JSON of a PNG this program wrote; `None` when it carries none.
pub fn read_text(path: &Path) -> Result<Option<String>, ReadError> {
    let read = || -> Result<Option<String>, png::DecodingError> {
        let mut reader = Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
        reader.finish()?;
        let info = reader.info();
        let latin1 = info.uncompressed_latin1_text.iter().map(|c| (&c.keyword, Some(c.text.clone())));
        let utf8 = info.utf8_text.iter().map(|c| (&c.keyword, c.get_text().ok()));
        Ok(latin1.chain(utf8).find(|(keyword, _)| *keyword == SETTINGS).and_then(|(_, text)| text))
    };
    let explained = |e: png::DecodingError| format!("{e}; a PNG that gigasmith wrote is needed");
    read().map_err(|e| ReadError { path: path.to_owned(), reason: explained(e) })
}

#[cfg(test)]
mod tests {
    use super::super::read_picture;
    use super::*;
    use crate::sampler::units::ImageSize;
    use crate::spec::RenderSpec;

    fn settings(prompt: &str) -> Settings {
        Settings::new(RenderSpec { prompt: prompt.into(), ..crate::spec::tests::spec() })
    }

    #[test]
    fn pixels_and_settings_come_back_in_any_alphabet() {
        let folder = tempfile::tempdir().unwrap();
        let picture = Picture::new(ImageSize { width: 2, height: 1 }, vec![0, 128, 255, 1, 2, 3]);
        for prompt in ["a fox", "détail élevé", "富士山 at night\nand \"more\""] {
            let path = folder.path().join("a.png");
            write_png(&path, &picture, &settings(prompt)).unwrap();
            assert_eq!(read_picture(&path).unwrap(), picture);
            let json = read_text(&path).unwrap().expect("settings were written");
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
        let future = settings("a").to_json().replace("\"version\":1", "\"version\":2");
        assert_eq!(Settings::from_json(&future), Err(super::super::SettingsError::Version(2)));
    }
}
