//! Pictures in an object store: read part by part, never downloaded.
//!
//! Tiles are made on threads that may wait; what they wait for happens in the runtime they were started in.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;

use super::dzi::TileFetch;
use super::levels::LevelsSource;
use super::{DziSource, TiffSource, TileSource, ViewError};
use crate::output::Kind;
use crate::raster::Scratch;

/// Bytes that are read at once, and so many of such parts are kept.
const PART: u64 = 256 << 10;
const PARTS: usize = 64;

/// Where a picture lies.
#[derive(Debug, Clone)]
pub struct StoredPicture {
    /// The store.
    pub objects: Arc<dyn ObjectStore>,
    /// The folder.
    pub folder: Path,
    /// The name without its ending.
    pub name: String,
    /// The ending.
    pub kind: Kind,
}

impl StoredPicture {
    fn path(&self, part: &str) -> Path {
        part.split('/').fold(self.folder.clone(), |path, part| path.join(part))
    }
}

/// Opens a picture of a store. A PNG, which can only be read from top to bottom, is read into the scratch
/// folder.
pub async fn open_object(picture: StoredPicture, scratch: Scratch) -> Result<Arc<dyn TileSource>, ViewError> {
    let runtime = Handle::current();
    let opened = tokio::task::spawn_blocking(move || -> Result<Arc<dyn TileSource>, ViewError> {
        let name = picture.name.clone();
        match picture.kind {
            Kind::Dzi => {
                let tiles = ObjectTiles { picture, runtime };
                Ok(Arc::new(DziSource::new(Box::new(tiles), &name)?))
            }
            kind => {
                let path = picture.path(&format!("{name}.{}", kind.extension()));
                let file = ObjectFile::open(picture.objects, path, runtime)?;
                match kind {
                    Kind::Tif => Ok(Arc::new(TiffSource::new(file, &name)?)),
                    _ => Ok(Arc::new(LevelsSource::open_png(file, &name, &scratch)?)),
                }
            }
        }
    });
    opened.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

fn into_io(error: object_store::Error) -> io::Error {
    match error {
        object_store::Error::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, error),
        error => io::Error::other(error),
    }
}

/// The parts of a Deep Zoom picture.
struct ObjectTiles {
    picture: StoredPicture,
    runtime: Handle,
}

impl TileFetch for ObjectTiles {
    fn get(&self, path: &str) -> io::Result<Vec<u8>> {
        let path = self.picture.path(path);
        let get = async { self.picture.objects.get(&path).await?.bytes().await };
        self.runtime.block_on(get).map(|bytes| bytes.to_vec()).map_err(into_io)
    }
}

/// An object as a file.
struct ObjectFile {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    runtime: Handle,
    length: u64,
    at: u64,
    /// Parts by position, those used last at the end.
    parts: VecDeque<(u64, Bytes)>,
}

impl ObjectFile {
    fn open(objects: Arc<dyn ObjectStore>, path: Path, runtime: Handle) -> io::Result<Self> {
        let length = runtime.block_on(objects.head(&path)).map_err(into_io)?.size;
        Ok(Self { objects, path, runtime, length, at: 0, parts: VecDeque::new() })
    }

    fn part(&mut self, index: u64) -> io::Result<Bytes> {
        if let Some(known) = self.parts.iter().position(|(at, _)| *at == index) {
            let found = self.parts.remove(known).expect("just found");
            self.parts.push_back(found.clone());
            return Ok(found.1);
        }
        let range = index * PART..((index + 1) * PART).min(self.length);
        let bytes = self.runtime.block_on(self.objects.get_range(&self.path, range)).map_err(into_io)?;
        self.parts.push_back((index, bytes.clone()));
        if self.parts.len() > PARTS {
            self.parts.pop_front();
        }
        Ok(bytes)
    }
}

impl Read for ObjectFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.length || out.is_empty() {
            return Ok(0);
        }
        let part = self.part(self.at / PART)?;
        let rest = part.get((self.at % PART) as usize..).unwrap_or_default();
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for ObjectFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "a place before the start");
        self.at = moved.ok_or_else(before)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use object_store::PutPayload;
    use object_store::memory::InMemory;

    use super::*;
    use crate::output::testing::{Memory, embedded};
    use crate::output::{DziOptions, DziSink, Format, Quality, write_dzi, write_file};
    use crate::raster::Levels;

    struct Shelf(Vec<(String, Vec<u8>)>);

    impl DziSink for Shelf {
        fn put(&mut self, path: &str, bytes: Vec<u8>) -> io::Result<()> {
            self.0.push((path.to_owned(), bytes));
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_format_is_shown_from_a_store() {
        let picture = Memory::noise(900, 700);
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        for kind in [Kind::Png, Kind::Tif, Kind::Dzi] {
            let mut parts = Shelf(Vec::new());
            if kind == Kind::Dzi {
                let options = DziOptions::default();
                write_dzi(&mut parts, "a", &picture, &embedded(), options, &mut |_, _| Ok(())).unwrap();
            } else {
                let mut file = io::Cursor::new(Vec::new());
                let format = Format { kind, quality: Quality::Lossless };
                write_file(&mut file, &picture, &embedded(), format, &mut |_, _| Ok(())).unwrap();
                parts.0.push((format!("a.{}", kind.extension()), file.into_inner()));
            }
            for (path, bytes) in parts.0 {
                objects.put(&Path::from(format!("deep/down/{path}")), PutPayload::from(bytes)).await.unwrap();
            }
            let stored = StoredPicture {
                objects: objects.clone(),
                folder: Path::from("deep/down"),
                name: "a".into(),
                kind,
            };
            let source = open_object(stored.clone(), Scratch::default()).await.unwrap();
            let described = source.describe();
            assert_eq!((described.width, described.height), (900, 700), "{kind:?}");
            assert_eq!(described.settings, Some(embedded().json), "{kind:?}");
            let level = picture.levels() as u32 - 1;
            let (tile, _) =
                tokio::task::spawn_blocking(move || source.tile(level, 1, 1)).await.unwrap().unwrap();
            assert!(image::load_from_memory(&tile).unwrap().width() >= 254);
            let missing = StoredPicture { name: "b".into(), ..stored };
            assert!(open_object(missing, Scratch::default()).await.is_err());
        }
    }
}
