//! Where a model's files are: embedded in the binary, or in a folder.
//!
//! Small files are read whole, up to a limit. Weights are read in pieces when a tensor is placed, and never
//! kept: the system's cache has them as long as it has room. They are not mapped, because the bytes of a
//! mapping change, and its end goes away (SIGBUS), when somebody writes to the file.
//!
//! A file of weights stays open from when it is hashed until the worker ends, so that replacing it by another
//! of the same name, as downloads do, changes nothing. Written to in place, it would no longer be what the
//! fingerprint says: so its length and time of modification are compared after every use ([`Blob::check`]).

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::error::LoadError;
use super::pocket::EmbeddedFile;
use super::texts::{self, StandIn};

/// Bytes of a text, at most: many times what any tokenizer has.
const LONGEST_TEXT: u64 = 64 << 20;
/// Bytes of a text that is parsed into values, which take many times as much memory.
const LONGEST_JSON: u64 = 16 << 20;
/// Bytes that are read of weights at a time: whole numbers of any format.
const PIECE: usize = 1 << 20;

/// The files of one model, by their paths inside it (`unet/config.json`).
#[derive(Debug, Clone)]
pub(crate) enum ModelFiles {
    /// Embedded in the binary.
    Embedded(&'static [EmbeddedFile]),
    /// In a folder of the diffusers layout.
    Folder(PathBuf),
}

/// The bytes of one file of weights.
#[derive(Debug)]
pub(crate) struct Blob {
    name: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Embedded(&'static [u8]),
    File { file: Mutex<File>, stamp: Stamp },
}

/// What changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl Blob {
    /// How it is shown in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes, when it was opened.
    pub(crate) fn len(&self) -> u64 {
        match &self.content {
            Content::Embedded(bytes) => bytes.len() as u64,
            Content::File { stamp, .. } => stamp.length,
        }
    }

    /// Reads a part of it, in pieces of whole MiB, but for the last.
    pub(crate) fn read(&self, range: Range<u64>, mut take: impl FnMut(&[u8])) -> Result<(), LoadError> {
        let file = match &self.content {
            Content::Embedded(bytes) => {
                take(&bytes[range.start as usize..range.end as usize]);
                return Ok(());
            }
            Content::File { file, .. } => file,
        };
        let mut read = || -> std::io::Result<()> {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(range.start))?;
            let mut left = range.end - range.start;
            let mut piece = vec![0; PIECE.min(left as usize)];
            while left > 0 {
                let some = piece.len().min(left as usize);
                file.read_exact(&mut piece[..some])?;
                take(&piece[..some]);
                left -= some as u64;
            }
            Ok(())
        };
        // Most likely because the file has become shorter.
        read().map_err(|source| {
            let changed = self.check().err();
            changed.unwrap_or_else(|| LoadError::Read { file: self.name.clone(), source })
        })
    }

    /// Fails where the file is no longer what was opened. What was read before is to be thrown away then.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let Content::File { file, stamp } = &self.content else { return Ok(()) };
        let metadata = file.lock().unwrap_or_else(PoisonError::into_inner).metadata();
        let now = Stamp::of(&metadata.map_err(|source| LoadError::Read { file: self.name.clone(), source })?);
        if now == *stamp {
            return Ok(());
        }
        let what = match (stamp.length, now.length) {
            (old, new) if old != new => format!("{old} bytes then, {new} now"),
            _ => "it was written to".into(),
        };
        Err(LoadError::Changed { file: self.name.clone(), what })
    }
}

impl ModelFiles {
    /// How a path is shown in messages.
    pub(crate) fn name(&self, path: &str) -> String {
        match self {
            Self::Embedded(_) => format!("pocket:{path}"),
            Self::Folder(root) => root.join(path).display().to_string(),
        }
    }

    /// Whether the file exists.
    pub(crate) fn exists(&self, path: &str) -> bool {
        match self {
            Self::Embedded(files) => files.iter().any(|(name, _)| *name == path),
            Self::Folder(root) => root.join(path).is_file(),
        }
    }

    fn embedded(&self, files: &'static [EmbeddedFile], path: &str) -> Result<&'static [u8], LoadError> {
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, bytes)| *bytes).ok_or_else(|| self.missing(path))
    }

    fn missing(&self, path: &str) -> LoadError {
        LoadError::MissingFile {
            file: self.name(path),
            remedy: "a model has the layout of the public SDXL repositories".into(),
        }
    }

    fn file(&self, root: &std::path::Path, path: &str) -> Result<(File, Metadata), LoadError> {
        let full = root.join(path);
        // Opening a pipe would wait for somebody to write to it.
        if !full.is_file() {
            return Err(self.missing(path));
        }
        let read = |source| LoadError::Read { file: self.name(path), source };
        let file = File::open(&full).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        Ok((file, metadata))
    }

    /// A file of weights, to read parts of.
    pub(crate) fn open(&self, path: &str) -> Result<Blob, LoadError> {
        let content = match self {
            Self::Embedded(files) => Content::Embedded(self.embedded(files, path)?),
            Self::Folder(root) => {
                let (file, metadata) = self.file(root, path)?;
                Content::File { file: Mutex::new(file), stamp: Stamp::of(&metadata) }
            }
        };
        let blob = Blob { name: self.name(path), content };
        let mut start = Vec::new();
        blob.read(0..blob.len().min(texts::TELLING_BYTES), |piece| start.extend_from_slice(piece))?;
        self.check_stand_in(path, &start)?;
        Ok(blob)
    }

    /// Fails where a file only stands for the one that was meant; its start tells.
    fn check_stand_in(&self, path: &str, start: &[u8]) -> Result<(), LoadError> {
        match texts::stand_in(start) {
            None => Ok(()),
            Some(StandIn { what, remedy }) => Err(LoadError::StandIn { file: self.name(path), what, remedy }),
        }
    }

    /// The file as text.
    pub(crate) fn text(&self, path: &str) -> Result<String, LoadError> {
        self.text_up_to(path, LONGEST_TEXT)
    }

    /// The file as JSON.
    pub(crate) fn json(&self, path: &str) -> Result<serde_json::Value, LoadError> {
        let text = self.text_up_to(path, LONGEST_JSON)?;
        texts::json(&text).map_err(|e| LoadError::Json { file: self.name(path), reason: e.to_string() })
    }

    fn text_up_to(&self, path: &str, longest: u64) -> Result<String, LoadError> {
        let bytes = match self {
            Self::Embedded(files) => self.embedded(files, path)?.to_vec(),
            Self::Folder(root) => {
                let (file, _) = self.file(root, path)?;
                let mut bytes = Vec::new();
                // One byte more than there may be, whatever the file says of its length.
                let read = file.take(longest + 1).read_to_end(&mut bytes);
                read.map_err(|source| LoadError::Read { file: self.name(path), source })?;
                bytes
            }
        };
        let bad = |reason: String| LoadError::Json { file: self.name(path), reason };
        if bytes.len() as u64 > longest {
            return Err(bad(format!("more than {} MiB", longest >> 20)));
        }
        self.check_stand_in(path, &bytes)?;
        texts::decode(&bytes).map(str::to_owned).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn folder(name: &str, bytes: &[u8]) -> (tempfile::TempDir, ModelFiles) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let files = ModelFiles::Folder(folder.path().to_owned());
        (folder, files)
    }

    fn read(blob: &Blob, range: Range<u64>) -> Result<Vec<u8>, LoadError> {
        let mut all = Vec::new();
        blob.read(range, |piece| all.extend_from_slice(piece))?;
        Ok(all)
    }

    #[test]
    fn parts_are_read_in_pieces() {
        let bytes: Vec<u8> = (0..5 * PIECE / 2).map(|i| (i % 251) as u8).collect();
        let (_folder, files) = folder("w", &bytes);
        let blob = files.open("w").unwrap();
        assert_eq!(blob.len(), bytes.len() as u64);
        assert_eq!(read(&blob, 0..blob.len()).unwrap(), bytes);
        assert_eq!(read(&blob, 7..PIECE as u64 + 9).unwrap(), bytes[7..PIECE + 9]);
        assert!(read(&blob, 7..7).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_changes_in_place_is_named_and_one_that_is_replaced_stays_what_it_was() {
        let (folder, files) = folder("w", &[1; 100]);
        let path = folder.path().join("w");
        let blob = files.open("w").unwrap();
        blob.check().unwrap();
        // Another file of the same name.
        std::fs::write(folder.path().join("new"), [2; 50]).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        blob.check().unwrap();
        assert_eq!(read(&blob, 0..100).unwrap(), [1; 100]);
        // Cut short: an error, no signal.
        let blob = files.open("w").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
        let error = read(&blob, 0..50).unwrap_err().to_string();
        assert!(error.contains("changed") && error.contains("50 bytes then, 20 now"), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        // Rewritten with as many bytes.
        let blob = files.open("w").unwrap();
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(&[3; 20]).unwrap();
        file.set_modified(SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
        let error = blob.check().unwrap_err().to_string();
        assert!(error.contains("it was written to"), "{error}");
    }

    #[test]
    fn texts_have_a_limit_and_must_be_texts() {
        let (folder, files) = folder("t", &[0xff; 3]);
        assert!(files.text("t").unwrap_err().to_string().contains("not UTF-8"));
        File::options().write(true).open(folder.path().join("t")).unwrap().set_len(LONGEST_TEXT + 1).unwrap();
        assert!(files.text("t").unwrap_err().to_string().contains("more than 64 MiB"));
        assert!(files.json("t").unwrap_err().to_string().contains("more than 16 MiB"));
    }
}
