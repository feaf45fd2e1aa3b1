//! Deep Zoom: a pyramid of small pictures that OpenSeadragon and others fetch one by one.
//!
//! `NAME.dzi` describes it, `NAME_files/LEVEL/X_Y.jpg` are the tiles, `NAME.dzi.json` holds the texts.
//! Level 0 is one pixel, the last the whole picture. The order of writing is fixed: tiles from the largest
//! level down, then the texts, then the descriptor, so that whoever finds a descriptor finds everything.
//!
//! Values are sRGB. PNG tiles say so; JPEG tiles do not: without a profile that is what every browser takes
//! them for, and a profile would be a third of the bytes of a small tile.
//!
//! This file says what is written; where to is a [`DziSink`]: a folder ([`folder`]), or an object store.

pub(crate) mod folder;

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::jpeg::{check_quality, encode_jpeg};
use super::tiles::{Grid, Tile, encode_in_order};
use crate::output::Embedded;
use crate::raster::Levels;
use crate::sampler::units::ImageSize;

/// What Deep Zoom has always had: tiles of 256 pixels where they have neighbours on both sides.
const TILE: u32 = 254;
const OVERLAP: u32 = 1;

/// How tiles are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DziFormat {
    /// Below quality 90 with colours at half resolution.
    Jpeg {
        /// 1 to 100; 90 is usual.
        quality: u8,
    },
    /// Every pixel comes back as it was.
    Png,
}

impl DziFormat {
    /// The ending of tiles' names.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg { .. } => "jpg",
            Self::Png => "png",
        }
    }
}

/// How a Deep Zoom picture is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DziOptions {
    /// Of tiles.
    pub format: DziFormat,
    /// A tile's side without overlap, in pixels; at least 1.
    pub tile_size: u32,
    /// What a tile shows of each neighbour, in pixels.
    pub overlap: u32,
}

impl Default for DziOptions {
    fn default() -> Self {
        Self { format: DziFormat::Jpeg { quality: 90 }, tile_size: TILE, overlap: OVERLAP }
    }
}

/// Where the parts go. Whoever keeps them under a name that had an older picture takes its descriptor away
/// before the first tile, and the tiles that the new one lacks.
pub trait DziSink {
    /// Stores one part. Called from one thread, in the same order for the same picture; the descriptor
    /// comes last and once. Paths have the form `NAME_files/LEVEL/X_Y.EXT`, `NAME.dzi.json`, `NAME.dzi`.
    fn put(&mut self, path: &str, bytes: Vec<u8>) -> io::Result<()>;
}

/// The texts beside a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct DziNotes {
    /// The program and its version.
    pub software: String,
    /// As A1111 writes it.
    pub parameters: String,
    /// The settings, as they were written.
    pub settings: Box<RawValue>,
}

/// The number of the level that has the whole picture: ceil(log2 of the longer side).
pub fn max_level(size: ImageSize) -> u32 {
    let longest = size.width.max(size.height).max(1);
    u32::BITS - (longest - 1).leading_zeros()
}

/// The descriptor's path.
pub(crate) fn descriptor_path(name: &str) -> String {
    format!("{name}.dzi")
}

/// The path of the texts.
pub fn notes_path(name: &str) -> String {
    format!("{name}.dzi.json")
}

/// The folder of the tiles.
pub fn files_folder(name: &str) -> String {
    format!("{name}_files")
}

/// A tile's path.
pub fn tile_path(name: &str, level: u32, column: u32, row: u32, extension: &str) -> String {
    format!("{}/{level}/{column}_{row}.{extension}", files_folder(name))
}

/// The descriptor's text.
pub fn descriptor(size: ImageSize, options: DziOptions) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Image xmlns=\"http://schemas.microsoft.com/deepzoom/2008\" Format=\"{}\" Overlap=\"{}\" TileSize=\"{}\">\n  \
         <Size Width=\"{}\" Height=\"{}\"/>\n\
         </Image>\n",
        options.format.extension(),
        options.overlap,
        options.tile_size,
        size.width,
        size.height
    )
}

/// Writes a picture with its texts. `progress` gets the tiles written and all tiles, and ends the writing
/// with an error of its own.
pub fn write_dzi(
    sink: &mut dyn DziSink,
    name: &str,
    levels: &dyn Levels,
    embedded: &Embedded,
    options: DziOptions,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    check_name(name)?;
    check_options(options)?;
    let notes = notes(embedded)?;
    let size = levels.size(0);
    let max_level = max_level(size);
    if levels.levels() != max_level as usize + 1 {
        let (found, needed) = (levels.levels(), max_level + 1);
        return Err(io::Error::other(format!(
            "a pyramid of {found} levels does not end at 1x1; {}x{} needs {needed}",
            size.width, size.height
        )));
    }
    let grids: Vec<Grid> = (0..levels.levels())
        .map(|k| Grid { size: levels.size(k), tile: options.tile_size, overlap: options.overlap })
        .collect();
    let total = grids.iter().map(Grid::tiles).sum();
    let mut done = 0;
    for (level, grid) in grids.into_iter().enumerate() {
        let number = max_level - level as u32;
        encode_in_order(
            levels,
            level,
            grid,
            |tile| encode(&tile, options.format),
            |column, row, bytes| {
                sink.put(&tile_path(name, number, column, row, options.format.extension()), bytes)?;
                done += 1;
                progress(done, total)
            },
        )?;
    }
    sink.put(&notes_path(name), notes)?;
    sink.put(&descriptor_path(name), descriptor(size, options).into_bytes())
}

fn check_options(options: DziOptions) -> io::Result<()> {
    if let DziFormat::Jpeg { quality } = options.format {
        check_quality(quality)?;
    }
    let DziOptions { tile_size, overlap, .. } = options;
    match tile_size {
        1..=8192 if overlap <= tile_size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "tiles of {tile_size} pixels with an overlap of {overlap} are not possible; 254 and 1 are usual"
            ),
        )),
    }
}

/// Fails for names that are no plain part of a path.
pub(crate) fn check_name(name: &str) -> io::Result<()> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']);
    match plain {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot name a Deep Zoom picture; give a plain name such as hills"),
        )),
    }
}

fn notes(embedded: &Embedded) -> io::Result<Vec<u8>> {
    let notes = DziNotes {
        software: embedded.software.clone(),
        parameters: embedded.parameters.clone(),
        settings: RawValue::from_string(embedded.json.clone())?,
    };
    let mut text = serde_json::to_vec(&notes)?;
    text.push(b'\n');
    Ok(text)
}

fn encode(tile: &Tile, format: DziFormat) -> io::Result<Vec<u8>> {
    match format {
        DziFormat::Jpeg { quality } => encode_jpeg(&tile.rgb, tile.size, quality),
        DziFormat::Png => {
            let mut bytes = Vec::with_capacity(tile.rgb.len() / 2);
            let mut encoder = png::Encoder::new(&mut bytes, tile.size.width, tile.size.height);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
            encoder.set_compression(png::Compression::Balanced);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&tile.rgb)?;
            writer.finish()?;
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::{Memory, embedded, with_threads};

    /// Keeps everything, in order.
    #[derive(Default, PartialEq)]
    struct Shelf(Vec<(String, Vec<u8>)>);

    impl DziSink for Shelf {
        fn put(&mut self, path: &str, bytes: Vec<u8>) -> io::Result<()> {
            self.0.push((path.to_owned(), bytes));
            Ok(())
        }
    }

    fn written(picture: &Memory, format: DziFormat) -> Shelf {
        let mut shelf = Shelf::default();
        let options = DziOptions { format, ..DziOptions::default() };
        write_dzi(&mut shelf, "a", picture, &embedded(), options, &mut |_, _| Ok(())).unwrap();
        shelf
    }

    #[test]
    fn levels_are_numbered_from_one_pixel_up() {
        let level = |width, height| max_level(ImageSize { width, height });
        assert_eq!([level(1, 1), level(2, 1), level(3, 2), level(256, 255), level(257, 3)], [0, 1, 2, 8, 9]);
        assert_eq!(level(u32::MAX, 1), 32);
    }

    #[test]
    fn the_descriptor_is_that_of_the_schema() {
        assert_eq!(
            descriptor(ImageSize { width: 700, height: 513 }, DziOptions::default()),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Image xmlns=\"http://schemas.microsoft.com/deepzoom/2008\" Format=\"jpg\" Overlap=\"1\" \
             TileSize=\"254\">\n  <Size Width=\"700\" Height=\"513\"/>\n</Image>\n"
        );
    }

    #[test]
    fn everything_comes_before_the_descriptor() {
        let parts = written(&Memory::smooth(300, 2), DziFormat::Png).0;
        let paths: Vec<&str> = parts.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths[..3], ["a_files/9/0_0.png", "a_files/9/1_0.png", "a_files/8/0_0.png"]);
        assert_eq!(paths[paths.len() - 3..], ["a_files/0/0_0.png", "a.dzi.json", "a.dzi"]);
        let notes: DziNotes = serde_json::from_slice(&parts[parts.len() - 2].1).unwrap();
        assert_eq!(
            (notes.settings.get(), notes.parameters),
            (embedded().json.as_str(), embedded().parameters)
        );
    }

    #[test]
    fn tiles_have_the_pixels_of_their_place() {
        for (width, height) in [(1, 1), (255, 257), (1000, 3), (700, 513)] {
            let picture = Memory::noise(width, height);
            let parts = written(&picture, DziFormat::Png).0;
            let mut parts = parts.iter();
            for k in 0..picture.levels() {
                let grid = Grid { size: picture.size(k), tile: 254, overlap: 1 };
                for (row, column) in (0..grid.rows()).flat_map(|r| (0..grid.columns()).map(move |c| (r, c))) {
                    let (path, bytes) = parts.next().unwrap();
                    let level = picture.levels() - 1 - k;
                    assert_eq!(*path, format!("a_files/{level}/{column}_{row}.png"));
                    let mut reader = png::Decoder::new(io::Cursor::new(bytes)).read_info().unwrap();
                    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
                    reader.next_frame(&mut rgb).unwrap();
                    assert!(rgb == picture.read(k, grid.rect(column, row)).unwrap());
                }
            }
        }
    }

    #[test]
    fn threads_change_no_byte() {
        let picture = Memory::smooth(1700, 900);
        for format in [DziFormat::Png, DziFormat::Jpeg { quality: 85 }] {
            assert!(
                with_threads(1, || written(&picture, format))
                    == with_threads(4, || written(&picture, format))
            );
        }
    }

    #[test]
    fn impossible_wishes_are_refused_before_the_first_tile() {
        let picture = Memory::smooth(3, 3);
        let options = DziOptions::default();
        let refused = |name: &str, embedded: &Embedded, options| {
            let mut shelf = Shelf::default();
            let result = write_dzi(&mut shelf, name, &picture, embedded, options, &mut |_, _| Ok(()));
            assert!(result.is_err() && shelf.0.is_empty());
        };
        for name in ["", ".", "..", "a/b", "../a", "a\\b", "c:a"] {
            refused(name, &embedded(), options);
        }
        refused("a", &Embedded { json: "{".into(), ..embedded() }, options);
        refused("a", &embedded(), DziOptions { tile_size: 0, ..options });
        refused("a", &embedded(), DziOptions { format: DziFormat::Jpeg { quality: 0 }, ..options });
    }
}
