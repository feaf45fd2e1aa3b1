//! From what a person names to a picture that can be looked at.

use std::path::Path;
use std::sync::Arc;

use super::dzi::name_of;
use super::objects::{StoredPicture, open_object};
use super::{DziSource, LevelsSource, TiffSource, TileSource, ViewError};
use crate::input::{FileKind, open_kind};
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

/// Opens a file of any format that is read, or a `.dzi`, `.tif` or `.png` in an object store (`s3://`,
/// `gs://`, `az://`, `file://`).
pub async fn open(text: &str, scratch: &Scratch) -> Result<Opened, ViewError> {
    let text = text.strip_prefix("file://").unwrap_or(text);
    if text.contains("://") {
        let kind = Format::of(Path::new(text), None).map(|format| format.kind).map_err(|_| {
            ViewError::Unreadable(format!(
                "{text} does not end in .dzi, .tif, .tiff or .png: these are shown"
            ))
        })?;
        return Ok(Opened { picture: open_object(stored(text, kind)?, scratch.clone()).await?, bytes: None });
    }
    let (text, scratch) = (text.to_owned(), scratch.clone());
    let opened = tokio::task::spawn_blocking(move || open_file(Path::new(&text), &scratch)).await;
    opened.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

fn open_file(path: &Path, scratch: &Scratch) -> Result<Opened, ViewError> {
    let explained = |e: String| ViewError::Unreadable(format!("cannot read {}: {e}", path.display()));
    let (file, kind) = open_kind(path).map_err(explained)?;
    let bytes = file.metadata()?.len();
    let opened = || -> Result<Arc<dyn TileSource>, ViewError> {
        Ok(match kind {
            FileKind::Dzi => Arc::new(DziSource::open(path)?),
            FileKind::Tiff => Arc::new(TiffSource::open(path)?),
            FileKind::Png => Arc::new(LevelsSource::open_png(file, name_of(path)?, scratch)?),
            _ => Arc::new(LevelsSource::open_other(path, name_of(path)?, scratch)?),
        })
    };
    let picture = opened().map_err(|e| match e {
        ViewError::Unreadable(reason) if !reason.contains(&*path.to_string_lossy()) => explained(reason),
        other => other,
    })?;
    Ok(Opened { picture, bytes: (kind != FileKind::Dzi).then_some(bytes) })
}

/// The last part of the URL is the picture, what is before it a store.
fn stored(url: &str, kind: Kind) -> Result<StoredPicture, ViewError> {
    let (folder, file) = url.rsplit_once('/').expect("a URL has slashes");
    let name = Path::new(file).file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let (objects, folder) = store::open_objects(folder).map_err(|e| ViewError::Unreadable(e.to_string()))?;
    Ok(StoredPicture { objects, folder, name, kind })
}
