//! From what a person names to a picture that can be looked at.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::dzi::name_of;
use super::objects::{StoredPicture, open_object};
use super::{DziSource, LevelsSource, TiffSource, TileSource, ViewError};
use crate::output::{Format, Kind};
use crate::raster::Scratch;
use crate::store;

/// A picture that was opened.
#[derive(Clone)]
pub struct Opened {
    /// Its tiles.
    pub picture: Arc<dyn TileSource>,
    /// The file's size, where that is known.
    pub bytes: Option<u64>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("picture", &self.picture.describe()).finish_non_exhaustive()
    }
}

/// Opens a file (`.dzi`, `.tif`, `.png`), or one in an object store (`s3://`, `gs://`, `az://`, `file://`).
pub async fn open(text: &str, scratch: &Scratch) -> Result<Opened, ViewError> {
    let kind = Format::of(Path::new(text), None).map(|format| format.kind).map_err(|_| {
        ViewError::Unreadable(format!("{text} does not end in .dzi, .tif, .tiff or .png: these are shown"))
    })?;
    let text = text.strip_prefix("file://").unwrap_or(text);
    if text.contains("://") {
        return Ok(Opened { picture: open_object(stored(text, kind)?, scratch.clone()).await?, bytes: None });
    }
    let (text, scratch) = (text.to_owned(), scratch.clone());
    let opened = tokio::task::spawn_blocking(move || open_file(Path::new(&text), kind, &scratch)).await;
    opened.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

fn open_file(path: &Path, kind: Kind, scratch: &Scratch) -> Result<Opened, ViewError> {
    let explained = |e: std::io::Error| ViewError::Unreadable(format!("cannot read {}: {e}", path.display()));
    let file = File::open(path).map_err(explained)?;
    let bytes = file.metadata().map_err(explained)?.len();
    let picture: Arc<dyn TileSource> = match kind {
        Kind::Dzi => return Ok(Opened { picture: Arc::new(DziSource::open(path)?), bytes: None }),
        Kind::Tif => Arc::new(TiffSource::open(path)?),
        Kind::Png => Arc::new(LevelsSource::open_png(file, name_of(path)?, scratch)?),
    };
    Ok(Opened { picture, bytes: Some(bytes) })
}

/// The last part of the URL is the picture, what is before it a store.
fn stored(url: &str, kind: Kind) -> Result<StoredPicture, ViewError> {
    let (folder, file) = url.rsplit_once('/').expect("a URL has slashes");
    let name = Path::new(file).file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let (objects, folder) = store::open_objects(folder).map_err(|e| ViewError::Unreadable(e.to_string()))?;
    Ok(StoredPicture { objects, folder, name, kind })
}
