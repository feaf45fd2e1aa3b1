//! In which format a picture is written: chosen by the file's name, and how well it is kept.

use std::fmt;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    DziFormat, DziOptions, Embedded, FolderSink, TiffCompression, TiffOptions, TiffVariant, WriteError,
    destination, write_atomically, write_dzi, write_png, write_tiff,
};
use crate::raster::Levels;

/// Told how far writing is: parts done, and all. An error ends the writing.
pub type Written<'a> = &'a mut dyn FnMut(u64, u64) -> io::Result<()>;

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One file, lossless, read from top to bottom.
    #[default]
    Png,
    /// Tiled and with a pyramid, BigTIFF where it must be.
    Tif,
    /// Deep Zoom: a folder of small pictures.
    Dzi,
}

impl Kind {
    /// The ending of its files' names.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Tif => "tif",
            Self::Dzi => "dzi",
        }
    }
}

/// How well pixels are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quality {
    /// As they are.
    Lossless,
    /// As JPEG of this quality, 1 to 100.
    Jpeg(u8),
}

impl FromStr for Quality {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "lossless" => Ok(Self::Lossless),
            Ok(quality @ 1..=100) => Ok(Self::Jpeg(quality)),
            _ => Err("give lossless, or 1 to 100 for JPEG".to_owned()),
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lossless => f.write_str("lossless"),
            Self::Jpeg(quality) => write!(f, "{quality}"),
        }
    }
}

impl Serialize for Quality {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quality {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A name that says no format, or a wish that the format cannot fulfil.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No known ending.
    #[error(
        "output {name} does not end in .png, .tif, .tiff or .dzi, which are written{}: name it {proposed}",
        jpeg_hint(*is_jpeg)
    )]
    Name {
        /// As given.
        name: String,
        /// With an ending that is known.
        proposed: String,
        /// Whether it was to be a JPEG.
        is_jpeg: bool,
    },
    /// PNG has no JPEG in it.
    #[error("a PNG is always lossless: leave out --quality {0}, or write .tif or .dzi")]
    Quality(Quality),
}

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// Kind of file.
    pub kind: Kind,
    /// How well pixels are kept.
    pub quality: Quality,
}

impl Default for Format {
    fn default() -> Self {
        Self { kind: Kind::Png, quality: Quality::Lossless }
    }
}

impl Format {
    /// The format that a file's name stands for. Without a quality TIFFs are lossless, and Deep Zoom tiles
    /// JPEG of quality 90.
    pub fn of(path: &Path, quality: Option<Quality>) -> Result<Self, FormatError> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let kind = match extension.as_deref() {
            Some("png") => Kind::Png,
            Some("tif" | "tiff") => Kind::Tif,
            Some("dzi") => Kind::Dzi,
            other => return Err(unknown(path, other)),
        };
        Self::new(kind, quality)
    }

    /// A format of a kind.
    pub fn new(kind: Kind, quality: Option<Quality>) -> Result<Self, FormatError> {
        let quality = match (kind, quality) {
            (Kind::Png, Some(quality @ Quality::Jpeg(_))) => return Err(FormatError::Quality(quality)),
            (_, Some(quality)) => quality,
            (Kind::Dzi, None) => Quality::Jpeg(90),
            (Kind::Png | Kind::Tif, None) => Quality::Lossless,
        };
        Ok(Self { kind, quality })
    }

    pub(crate) fn dzi(self) -> DziOptions {
        let format = match self.quality {
            Quality::Lossless => DziFormat::Png,
            Quality::Jpeg(quality) => DziFormat::Jpeg { quality },
        };
        DziOptions { format, ..DziOptions::default() }
    }

    fn tiff(self) -> TiffOptions {
        let compression = match self.quality {
            Quality::Lossless => TiffCompression::Deflate,
            Quality::Jpeg(quality) => TiffCompression::Jpeg { quality },
        };
        TiffOptions { compression, variant: TiffVariant::Auto }
    }
}

/// Endings of pictures that are not written: what is meant is another format, not a file called `a.jpg.png`.
const OTHER_PICTURES: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jxl", "webp", "gif", "bmp", "avif", "heic", "psd", "exr", "jp2"];

fn jpeg_hint(is_jpeg: bool) -> &'static str {
    if is_jpeg { " (the last three hold JPEG with --quality 90)" } else { "" }
}

fn unknown(path: &Path, ending: Option<&str>) -> FormatError {
    let mut proposed = path.as_os_str().to_owned();
    // A folder, or an ending alone.
    let shown = path.to_string_lossy();
    let named = path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
    if !named || shown.ends_with(std::path::is_separator) {
        proposed = match named || path.file_name().is_none() {
            true => path.join("out.png").into_os_string(),
            false => path.with_file_name("out.png").into_os_string(),
        };
    } else if ending.is_some_and(|e| OTHER_PICTURES.contains(&e)) {
        proposed = path.with_extension("png").into_os_string();
    } else {
        proposed.push(".png");
    }
    let proposed = proposed.to_string_lossy().into_owned();
    let is_jpeg = ending.is_some_and(|e| e.starts_with("jp") && e != "jp2");
    FormatError::Name { name: path.display().to_string(), proposed, is_jpeg }
}

/// Writes a picture of a kind that is one file.
pub fn write_file(
    file: impl Write + Seek,
    levels: &dyn Levels,
    embedded: &Embedded,
    format: Format,
    written: Written<'_>,
) -> io::Result<()> {
    match format.kind {
        Kind::Png => write_png(file, levels, embedded, written),
        Kind::Tif => write_tiff(file, levels, embedded, format.tiff(), written),
        Kind::Dzi => unreachable!("Deep Zoom is a folder"),
    }
}

/// Writes a picture under its final name; what was there is replaced when all is well.
pub fn write_picture(
    path: &Path,
    levels: &dyn Levels,
    embedded: &Embedded,
    format: Format,
    written: Written<'_>,
) -> Result<(), WriteError> {
    if format.kind != Kind::Dzi {
        return write_atomically(path, |file| write_file(file, levels, embedded, format, written));
    }
    let mut attempt = || -> io::Result<()> {
        let path = &destination(path)?;
        let name = path.file_stem().and_then(|n| n.to_str());
        let name = name.ok_or_else(|| io::Error::other("its name is not UTF-8; rename it"))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        write_dzi(&mut FolderSink::new(folder, name)?, name, levels, embedded, format.dzi(), written)
    };
    attempt().map_err(|e| WriteError::new(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_formats() {
        let of = |name: &str, quality: Option<&str>| {
            Format::of(Path::new(name), quality.map(|q| q.parse().unwrap()))
                .map(|f| (f.kind, f.quality.to_string()))
                .map_err(|e| e.to_string())
        };
        assert_eq!(of("a.PNG", None), Ok((Kind::Png, "lossless".into())));
        assert_eq!(of("a.tiff", None), Ok((Kind::Tif, "lossless".into())));
        assert_eq!(of("a.tif", Some("85")), Ok((Kind::Tif, "85".into())));
        assert_eq!(of("b/a.dzi", None), Ok((Kind::Dzi, "90".into())));
        assert!(of("a.png", Some("85")).unwrap_err().contains("always lossless"));
        for (name, proposed) in [
            ("a.jpg", "name it a.png"),
            ("a", "name it a.png"),
            ("v1.2", "name it v1.2.png"),
            ("dir/", "name it dir/out.png"),
            ("..", "name it ../out.png"),
            ("d/.png", "name it d/out.png"),
        ] {
            let error = of(name, None).unwrap_err();
            assert!(error.contains(".dzi") && error.contains(proposed), "{error}");
        }
        assert!(of("a.jpeg", None).unwrap_err().contains("--quality") && of(".png", None).is_err());
        assert!("0".parse::<Quality>().is_err() && "101".parse::<Quality>().is_err());
        let format = Format { kind: Kind::Tif, quality: Quality::Jpeg(85) };
        let json = serde_json::to_string(&format).unwrap();
        assert_eq!(
            (json.as_str(), serde_json::from_str(&json).unwrap()),
            (r#"{"kind":"tif","quality":"85"}"#, format)
        );
    }
}
