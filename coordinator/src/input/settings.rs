//! The settings of a picture made before, wherever they are: in the picture, or beside it.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::foreign::Foreign;
use super::kind::FileKind;
use super::texts::{Text, Told, of_directories, of_exif, of_xmp};
use super::{all, jpeg, open_kind, others, png};
use crate::output::{DziNotes, ReadError};

/// What a picture says of how it was made.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Our settings' JSON.
    Ours(String),
    /// Another program's text.
    Foreign(Box<Foreign>),
}

/// The settings in a picture, or in the `.dzi.json` beside one (which may be named itself). Pictures may
/// have been converted or saved again, as long as their texts were kept.
pub fn read_settings(path: &Path) -> Result<Origin, ReadError> {
    let Told { parameters, settings } = told(path).map_err(|e| ReadError::new(path, e))?;
    if let Some(json) = settings {
        return Ok(Origin::Ours(json));
    }
    match parameters.as_deref().and_then(Foreign::parse) {
        Some(foreign) => Ok(Origin::Foreign(Box::new(foreign))),
        None => Err(ReadError::new(
            path,
            "it carries no settings: --from takes a picture that gigasmith wrote (.png, .tif, .dzi with its \
             .dzi.json), or a copy that kept the texts",
        )),
    }
}

/// All that a picture says of how it was made.
pub(crate) fn told(path: &Path) -> Result<Told, String> {
    let (file, kind) = open_kind(path)?;
    let texts = match kind {
        FileKind::Png => png::read_texts(BufReader::new(file))?,
        FileKind::Jpeg => jpeg_texts(&all(file)?)?,
        FileKind::WebP => others::webp_texts(BufReader::new(file))?,
        FileKind::Tiff => of_directories(BufReader::new(file)),
        FileKind::Bmp | FileKind::Gif => Vec::new(),
        FileKind::Json => return of_json(&all(file)?),
        FileKind::Dzi => return beside(path),
    };
    Ok(Told::of(texts))
}

fn jpeg_texts(bytes: &[u8]) -> Result<Vec<Text>, String> {
    let segments = jpeg::Segments::texts(bytes)?;
    let exif = segments.exif.as_deref().map(of_exif).unwrap_or_default();
    let xmp = segments.xmp.as_deref().map(of_xmp);
    let comments =
        segments.comments.iter().map(|c| Text::new("Comment", String::from_utf8_lossy(c).into_owned()));
    Ok(exif.into_iter().chain(xmp).chain(comments).collect())
}

/// The texts beside a Deep Zoom descriptor.
fn beside(path: &Path) -> Result<Told, String> {
    let mut notes = path.as_os_str().to_owned();
    notes.push(".json");
    let notes = PathBuf::from(notes);
    let bytes = std::fs::read(&notes)
        .map_err(|e| format!("its settings are in {}, which cannot be read: {e}", notes.display()))?;
    of_json(&bytes)
}

/// The texts beside a picture, or the settings alone.
fn of_json(bytes: &[u8]) -> Result<Told, String> {
    if let Ok(notes) = serde_json::from_slice::<DziNotes>(bytes) {
        return Ok(Told {
            parameters: Some(notes.parameters),
            settings: Some(notes.settings.get().to_owned()),
        });
    }
    let json: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| format!("it is no whole JSON: {e}"))?;
    // Whether they are settings is told when they are parsed.
    let settings = json.get("spec").map(|_| String::from_utf8_lossy(bytes).into_owned());
    Ok(Told { parameters: None, settings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::{Memory, embedded};
    use crate::output::{Format, Settings, write_picture};

    fn ours(path: &Path) -> String {
        match read_settings(path).unwrap() {
            Origin::Ours(json) => json,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_come_back_from_every_format() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "a.tif", "a.dzi"] {
            let path = folder.path().join(name);
            let format = Format::of(&path, None).unwrap();
            write_picture(&path, &Memory::smooth(300, 200), &embedded(), format, &mut |_, _| Ok(())).unwrap();
            assert_eq!(ours(&path), embedded().json, "{name}");
            // Names tell nothing.
            let other = folder.path().join("b.jpg");
            if name != "a.dzi" {
                std::fs::copy(&path, &other).unwrap();
                assert_eq!(ours(&other), embedded().json, "{name}");
            }
        }
        assert_eq!(ours(&folder.path().join("a.dzi.json")), embedded().json);
        let alone = folder.path().join("alone.json");
        let json = Settings::new(crate::spec::tests::spec()).to_json();
        std::fs::write(&alone, &json).unwrap();
        assert_eq!(ours(&alone), json);
        std::fs::remove_file(folder.path().join("a.dzi.json")).unwrap();
        let error = read_settings(&folder.path().join("a.dzi")).unwrap_err().to_string();
        assert!(error.contains("a.dzi.json"), "{error}");
    }

    #[test]
    fn settings_behind_the_pixels_and_packed_ones_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mut file = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut file, 1, 1);
        encoder.set_color(::png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[1, 2, 3]).unwrap();
        writer.write_text_chunk(&::png::text_metadata::ZTXtChunk::new("gigasmith", "{\"spec\":1}")).unwrap();
        writer.finish().unwrap();
        std::fs::write(&path, file).unwrap();
        assert_eq!(ours(&path), "{\"spec\":1}");
    }

    #[test]
    fn settings_outlive_a_conversion_to_jpeg() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let size = crate::sampler::units::ImageSize { width: 8, height: 8 };
        let jpeg = crate::output::encode_jpeg(Memory::smooth(8, 8).rgb(0), size, 90).unwrap();
        let packet = crate::output::xmp::packet(&embedded());
        let body = [b"http://ns.adobe.com/xap/1.0/\0", packet.as_bytes()].concat();
        let head = [&[0xff, 0xe1], &(body.len() as u16 + 2).to_be_bytes()[..]].concat();
        std::fs::write(&path, [&jpeg[..2], &head, &body, &jpeg[2..]].concat()).unwrap();
        assert_eq!(ours(&path), embedded().json);
        std::fs::write(&path, jpeg).unwrap();
        let error = read_settings(&path).unwrap_err().to_string();
        assert!(error.contains("a.jpg") && error.contains("no settings"), "{error}");
    }
}
