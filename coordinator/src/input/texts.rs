//! The texts of a picture, wherever programs put them when they save it again.
//!
//! PNG keeps them as text chunks; in JPEG, WebP and TIFF they stand in EXIF (UserComment, ImageDescription),
//! in XMP, or in a comment. Ours are JSON under the keyword `gigasmith`, or in an XMP namespace of their own.

use std::io::{Cursor, Read, Seek};

use super::ifd::{Directories, entry};
use crate::output::xmp;

/// Longer texts are none of ours.
const MOST_TEXT: u64 = 16 << 20;
const IMAGE_DESCRIPTION: u16 = 270;
const XMP: u16 = 700;
const EXIF_DIRECTORY: u16 = 34665;
const USER_COMMENT: u16 = 37510;
/// As PNG files and libvips call XMP.
const XMP_KEYWORD: &str = "XML:com.adobe.xmp";
const SETTINGS: &str = "gigasmith";
const PARAMETERS: &str = "parameters";

/// A text and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) keyword: String,
    pub(crate) text: String,
}

impl Text {
    pub(crate) fn new(keyword: &str, text: String) -> Self {
        Self { keyword: keyword.to_owned(), text }
    }
}

/// What a picture says of how it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// As A1111 writes it, or whatever another program put into the description.
    pub(crate) parameters: Option<String>,
    /// Our settings as JSON.
    pub(crate) settings: Option<String>,
}

impl Told {
    /// Sorts a picture's texts.
    pub(crate) fn of(texts: Vec<Text>) -> Self {
        let mut told = Self::default();
        let mut other = None;
        for Text { keyword, text } in texts {
            let text = text.trim_matches(['\0', ' ', '\n']).to_owned();
            if text.is_empty() {
                continue;
            }
            if keyword.eq_ignore_ascii_case(SETTINGS) {
                told.settings.get_or_insert(text);
            } else if keyword.eq_ignore_ascii_case(PARAMETERS) {
                told.parameters.get_or_insert(text);
            } else if keyword == XMP_KEYWORD
                || text.starts_with("<?xpacket")
                || text.starts_with("<x:xmpmeta")
            {
                let (parameters, settings) = xmp::read(text.as_bytes());
                told.settings = told.settings.or(settings);
                other = other.or(parameters);
            } else if is_settings(&text) {
                told.settings.get_or_insert(text);
            } else if text.contains("Steps: ") {
                told.parameters.get_or_insert(text);
            } else if ["imagedescription", "usercomment", "description", "comment"]
                .contains(&keyword.to_ascii_lowercase().as_str())
            {
                other.get_or_insert(text);
            }
        }
        told.parameters = told.parameters.or(other);
        told
    }
}

/// Whether a text is our JSON, whatever it is called.
fn is_settings(text: &str) -> bool {
    text.starts_with('{')
        && serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| {
            json["spec"]["version"].is_u64()
                && json["software"].as_str().is_some_and(|s| s.starts_with(SETTINGS))
        })
}

/// The texts in EXIF data.
pub(crate) fn of_exif(exif: &[u8]) -> Vec<Text> {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    of_directories(Cursor::new(exif))
}

/// An XMP packet as a text.
pub(crate) fn of_xmp(packet: &[u8]) -> Text {
    Text::new(XMP_KEYWORD, String::from_utf8_lossy(packet).into_owned())
}

/// The texts of a TIFF or of EXIF data: those of the first directory, and of its EXIF directory.
pub(crate) fn of_directories(file: impl Read + Seek) -> Vec<Text> {
    let read = || -> std::io::Result<Vec<Text>> {
        let mut directories = Directories::open(file)?;
        let (mut entries, _) = directories.entries(directories.first)?;
        if let Some(exif) = entry(&entries, EXIF_DIRECTORY).copied() {
            for at in directories.integers(&exif, 1)? {
                entries.extend(directories.entries(at).map(|(entries, _)| entries).unwrap_or_default());
            }
        }
        let mut texts = Vec::new();
        for entry in &entries {
            let keyword = match entry.tag {
                IMAGE_DESCRIPTION => "ImageDescription",
                XMP => XMP_KEYWORD,
                USER_COMMENT => "UserComment",
                _ => continue,
            };
            let bytes = directories.bytes(entry, MOST_TEXT)?;
            let text = match entry.tag {
                USER_COMMENT => user_comment(&bytes, directories.is_little()),
                _ => String::from_utf8_lossy(&bytes).into_owned(),
            };
            texts.push(Text::new(keyword, text));
        }
        Ok(texts)
    };
    read().unwrap_or_default()
}

/// EXIF 2.32, 4.6.5: eight bytes name the encoding. UTF-16 is in the file's order, or, as many programs
/// write it, in the other; or it says UTF-16 and is UTF-8.
fn user_comment(bytes: &[u8], little: bool) -> String {
    let Some((name, text)) = bytes.split_at_checked(8) else { return String::new() };
    if name != b"UNICODE\0" {
        return String::from_utf8_lossy(text).into_owned();
    }
    let utf16 = |little: bool| {
        let (pairs, _) = text.as_chunks::<2>();
        let units = pairs.iter().map(|&b| if little { u16::from_le_bytes(b) } else { u16::from_be_bytes(b) });
        String::from_utf16_lossy(&units.collect::<Vec<_>>())
    };
    let likely = |text: &String| text.chars().filter(|c| c.is_ascii()).count() * 2 > text.chars().count();
    let candidates = [utf16(little), utf16(!little), String::from_utf8_lossy(text).into_owned()];
    let [first, ..] = &candidates;
    candidates.iter().find(|c| likely(c)).unwrap_or(first).trim_start_matches('\u{feff}').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Settings;
    use crate::output::testing::embedded;

    fn exif(tag: u16, kind: u8, value: &[u8]) -> Vec<u8> {
        // A directory with one entry; the EXIF directory behind it, if the tag stands there.
        let mut file = b"MM\0*\0\0\0\x08".to_vec();
        if tag == USER_COMMENT {
            file.extend(b"\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0");
        }
        let at = file.len() as u32 + 18;
        file.extend(b"\0\x01");
        file.extend(tag.to_be_bytes());
        file.extend([0, kind]);
        file.extend((value.len() as u32).to_be_bytes());
        file.extend(at.to_be_bytes());
        file.extend([0; 4]);
        file.extend(value);
        file
    }

    #[test]
    fn comments_are_read_in_every_encoding() {
        let text = "富士山\nSteps: 3, Seed: 5";
        let utf16 = |le: bool| {
            let units = text.encode_utf16().flat_map(|u| if le { u.to_le_bytes() } else { u.to_be_bytes() });
            [b"UNICODE\0".to_vec(), units.collect()].concat()
        };
        let utf8 = [b"UNICODE\0", text.as_bytes()].concat();
        let plain = [b"\0\0\0\0\0\0\0\0", text.as_bytes()].concat();
        for value in [utf16(true), utf16(false), utf8, plain] {
            let told = Told::of(of_exif(&exif(USER_COMMENT, 7, &value)));
            assert_eq!(told.parameters.as_deref(), Some(text), "{value:?}");
        }
        let told = Told::of(of_exif(&exif(IMAGE_DESCRIPTION, 2, b"a dog on a beach\0")));
        assert_eq!(told.parameters.as_deref(), Some("a dog on a beach"));
    }

    #[test]
    fn our_settings_are_found_under_any_name() {
        let json = Settings::new(crate::spec::tests::spec()).to_json();
        let found = |text: Text| Told::of(vec![text]).settings;
        for keyword in ["gigasmith", "Gigasmith", "UserComment", "ImageDescription", "Comment"] {
            assert_eq!(found(Text::new(keyword, json.clone())).as_deref(), Some(json.as_str()), "{keyword}");
        }
        let packet = xmp::packet(&embedded());
        assert_eq!(found(of_xmp(packet.as_bytes())), Some(embedded().json));
        assert_eq!(found(Text::new("Comment", "{\"spec\": 3}".into())), None);
        assert_eq!(found(Text::new("workflow", "{\"nodes\": []}".into())), None);
    }

    #[test]
    fn damage_is_no_text() {
        let whole = exif(USER_COMMENT, 7, b"ASCII\0\0\0hello");
        for length in 0..whole.len() {
            // Only that it returns.
            let _ = of_exif(&whole[..length]);
        }
    }
}
