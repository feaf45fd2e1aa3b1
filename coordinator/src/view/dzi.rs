//! Deep Zoom pictures: tiles are passed on as they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use roxmltree::Document;

use super::{Description, TileSource, ViewError};
use crate::output::{DziNotes, files_folder, max_level, notes_path, tile_path};
use crate::sampler::units::ImageSize;

/// Where the parts of a picture come from.
pub trait TileFetch: Send + Sync {
    /// A part by its path, such as `NAME_files/9/0_1.jpg`; `NotFound` when it is not there.
    fn get(&self, path: &str) -> io::Result<Vec<u8>>;
}

/// Parts from a folder, and from nowhere else.
#[derive(Debug)]
pub struct FolderTiles {
    folder: PathBuf,
}

impl FolderTiles {
    /// From this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }
}

impl TileFetch for FolderTiles {
    fn get(&self, path: &str) -> io::Result<Vec<u8>> {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
        if !path.split('/').all(plain) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path:?} is no part of a picture")));
        }
        fs::read(self.folder.join(path))
    }
}

/// A Deep Zoom picture.
pub struct DziSource {
    description: Description,
    extension: String,
    mime: &'static str,
    fetch: Box<dyn TileFetch>,
}

impl DziSource {
    /// `NAME.dzi` in a folder.
    pub fn open(path: &Path) -> Result<Self, ViewError> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::new(Box::new(FolderTiles::new(folder)), name_of(path)?)
    }

    /// The picture of this name, wherever its parts are.
    pub fn new(fetch: Box<dyn TileFetch>, name: &str) -> Result<Self, ViewError> {
        let descriptor = fetch.get(&format!("{name}.dzi"))?;
        let header = Header::parse(&String::from_utf8_lossy(&descriptor)).map_err(|reason| {
            ViewError::Unreadable(format!(
                "{name}.dzi is no Deep Zoom descriptor: {reason}; write the picture again"
            ))
        })?;
        let notes = match fetch.get(&notes_path(name)) {
            Ok(bytes) => serde_json::from_slice::<DziNotes>(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let (parameters, settings) = notes.map(|n| (n.parameters, n.settings.get().to_owned())).unzip();
        let description = Description {
            name: name.to_owned(),
            width: header.size.width,
            height: header.size.height,
            tile_size: header.tile_size,
            overlap: header.overlap,
            max_level: max_level(header.size),
            format: format!("Deep Zoom, {}", header.format),
            parameters,
            settings,
        };
        let source = Self { description, extension: header.extension, mime: header.mime, fetch };
        source.check_tiles()?;
        Ok(source)
    }

    /// A tile's path.
    pub(crate) fn tile_path(&self, level: u32, column: u32, row: u32) -> String {
        tile_path(&self.description.name, level, column, row, &self.extension)
    }

    /// Fails when a level has no tiles, or they are not what their name says: now, and not tile by tile.
    fn check_tiles(&self) -> Result<(), ViewError> {
        for level in (0..=self.description.max_level).rev() {
            let path = self.tile_path(level, 0, 0);
            let bytes = match self.fetch.get(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(ViewError::Unreadable(format!(
                        "its tile {path} is missing: copy the whole folder {}",
                        files_folder(&self.description.name)
                    )));
                }
                Err(error) => return Err(error.into()),
            };
            let shown = bytes.starts_with(b"\xff\xd8\xff")
                || bytes.starts_with(b"\x89PNG\r\n\x1a\n")
                || bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
            if !shown {
                return Err(ViewError::Unreadable(format!(
                    "its tile {path} is no JPEG, PNG or WebP: write the picture again"
                )));
            }
        }
        Ok(())
    }
}

impl TileSource for DziSource {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn tile(&self, level: u32, column: u32, row: u32) -> Result<(Vec<u8>, &'static str), ViewError> {
        let missing = ViewError::NoSuchTile { level, column, row };
        let Description { width, height, tile_size, max_level, .. } = self.description;
        let Some(halvings) = max_level.checked_sub(level) else { return Err(missing) };
        let tiles = |side: u32| u64::from(side).div_ceil(1 << halvings).div_ceil(tile_size.into());
        // What cannot be there is not worth a request.
        if u64::from(column) >= tiles(width) || u64::from(row) >= tiles(height) {
            return Err(missing);
        }
        match self.fetch.get(&self.tile_path(level, column, row)) {
            Ok(bytes) => Ok((bytes, self.mime)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing),
            Err(error) => Err(error.into()),
        }
    }
}

/// A file's name without its ending.
pub(crate) fn name_of(path: &Path) -> Result<&str, ViewError> {
    path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| {
        ViewError::Unreadable(format!("{} has a name that is not UTF-8; rename it", path.display()))
    })
}

/// What a descriptor says.
struct Header {
    size: ImageSize,
    tile_size: u32,
    overlap: u32,
    extension: String,
    format: &'static str,
    mime: &'static str,
}

impl Header {
    fn parse(xml: &str) -> Result<Self, String> {
        let document = Document::parse(xml.trim_start_matches('\u{feff}')).map_err(|e| e.to_string())?;
        let image = document.root_element();
        // The namespace has a year in it, and there are two.
        let size = image.children().find(|n| n.tag_name().name() == "Size");
        let size =
            size.filter(|_| image.tag_name().name() == "Image").ok_or("it has no Image with a Size")?;
        let number = |node: roxmltree::Node<'_, '_>, name: &str, range: std::ops::RangeInclusive<u32>| {
            let text = node.attribute(name).unwrap_or_default();
            let value = text.trim().parse().ok().filter(|value| range.contains(value));
            value.ok_or_else(|| format!("{name} is {text:?}"))
        };
        let extension = image.attribute("Format").unwrap_or_default().to_owned();
        let (format, mime) = match extension.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" => ("JPEG", "image/jpeg"),
            "png" => ("PNG", "image/png"),
            "webp" => ("WebP", "image/webp"),
            _ => return Err(format!("tiles are {extension:?}; jpg, png and webp are shown")),
        };
        Ok(Self {
            size: ImageSize {
                width: number(size, "Width", 1..=u32::MAX)?,
                height: number(size, "Height", 1..=u32::MAX)?,
            },
            tile_size: number(image, "TileSize", 1..=65535)?,
            overlap: number(image, "Overlap", 0..=65535)?,
            extension,
            format,
            mime,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::{Memory, embedded};
    use crate::output::{DziFormat, DziOptions, FolderSink, write_dzi};

    fn written(folder: &Path) -> PathBuf {
        let mut sink = FolderSink::new(folder, "a").unwrap();
        let options = DziOptions { format: DziFormat::Png, ..DziOptions::default() };
        let picture = Memory::smooth(700, 513);
        write_dzi(&mut sink, "a", &picture, &embedded(), options, &mut |_, _| Ok(())).unwrap();
        folder.join("a.dzi")
    }

    #[test]
    fn what_was_written_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let source = DziSource::open(&path).unwrap();
        let expected = Description {
            name: "a".into(),
            width: 700,
            height: 513,
            tile_size: 254,
            overlap: 1,
            max_level: 10,
            format: "Deep Zoom, PNG".into(),
            parameters: Some(embedded().parameters),
            settings: Some(embedded().json),
        };
        assert_eq!(source.describe(), expected);
        let (bytes, mime) = source.tile(10, 2, 2).unwrap();
        assert_eq!((bytes, mime), (fs::read(folder.path().join("a_files/10/2_2.png")).unwrap(), "image/png"));
        assert!(matches!(source.tile(10, 3, 0), Err(ViewError::NoSuchTile { level: 10, column: 3, row: 0 })));
        assert!(matches!(source.tile(11, 0, 0), Err(ViewError::NoSuchTile { .. })));
    }

    #[test]
    fn foreign_descriptors_are_read_and_broken_ones_explained() {
        let older = "\u{feff}<?xml version='1.0'?><Image TileSize=\"512\" Overlap='0' Format='jpeg' \
                     xmlns='http://schemas.microsoft.com/deepzoom/2009'><Size Height='3' Width='4'/></Image>";
        let header = Header::parse(older).unwrap();
        assert_eq!((header.size, header.tile_size), (ImageSize { width: 4, height: 3 }, 512));
        for (from, to, reason) in [
            ("'jpeg'", "'../../etc'", "Format"),
            ("'jpeg'", "'tiff'", "tiff"),
            ("\"512\"", "\"0\"", "TileSize"),
            ("'4'", "'-1'", "Width"),
            ("Size", "Sise", "Size"),
            ("</Image>", "", ""),
        ] {
            let broken = Header::parse(&older.replace(from, to)).err().expect("it is broken");
            assert!(broken.contains(reason) || reason == "Format", "{broken}");
        }
    }

    #[test]
    fn no_path_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), b"x").unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        let tiles = FolderTiles::new(&folder.path().join("a"));
        for path in
            ["../secret", "/etc/hostname", "a/../../secret", "..", "", "b//c", "c:secret", "..\\secret"]
        {
            assert_eq!(tiles.get(path).unwrap_err().kind(), io::ErrorKind::NotFound, "{path}");
        }
        assert!(DziSource::new(Box::new(tiles), "../secret").is_err());
    }
}
