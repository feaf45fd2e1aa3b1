//! Finished pictures for a deep zoom viewer: tiles of any level, from a file or a folder of tiles.
//!
//! Levels are numbered as in Deep Zoom: 0 is one pixel, the last the whole picture.

pub(crate) mod dzi;
mod levels;
mod objects;
mod open;
mod tiff;
pub(crate) mod tiff_levels;
mod tiff_pixels;

use gigasmith_proto::text::Shown;
use serde::Serialize;

pub use dzi::{DziSource, FolderTiles, TileFetch};
pub use levels::LevelsSource;
pub use objects::{StoredPicture, open_object};
pub use open::{Opened, open};
pub use tiff::TiffSource;

/// A picture that cannot be shown, or a tile of it.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Outside the picture.
    #[error("there is no tile {column},{row} in level {level}")]
    NoSuchTile {
        /// As asked for.
        level: u32,
        /// As asked for.
        column: u32,
        /// As asked for.
        row: u32,
    },
    /// Damaged, or of a kind that is not shown; says which.
    #[error("{}", Shown(.0))]
    Unreadable(String),
    /// The disk's or the network's.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What a viewer has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The file's name without its ending.
    pub name: String,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// A tile's side without overlap, in pixels.
    pub tile_size: u32,
    /// What a tile shows of each neighbour, in pixels.
    pub overlap: u32,
    /// The level that has the whole picture.
    pub max_level: u32,
    /// For people: `BigTIFF, JPEG`.
    pub format: String,
    /// As A1111 writes it, if there.
    pub parameters: Option<String>,
    /// The settings' JSON, if there.
    pub settings: Option<String>,
}

/// A picture as tiles.
pub trait TileSource: Send + Sync {
    /// What it is.
    fn describe(&self) -> Description;
    /// A tile as a JPEG or PNG file, with its media type.
    fn tile(&self, level: u32, column: u32, row: u32) -> Result<(Vec<u8>, &'static str), ViewError>;
}
