//! Where a model's files are: embedded in the binary, or in a folder. Weights in a folder are
//! mapped, not read: pages come in when a tensor is used and can be dropped under memory pressure.
//!
//! Unsafe code: mapping a file is unsafe because its bytes change if someone else writes to it.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;

use memmap2::Mmap;

use super::error::LoadError;
use super::pocket::EmbeddedFile;
use super::texts::{self, StandIn};

/// The files of one model, by their paths inside it (`unet/config.json`).
#[derive(Debug, Clone)]
pub(crate) enum ModelFiles {
    /// Embedded in the binary.
    Embedded(&'static [EmbeddedFile]),
    /// In a folder of the diffusers layout.
    Folder(PathBuf),
}

/// The bytes of one file.
#[derive(Debug)]
pub(crate) enum Blob {
    /// Embedded in the binary.
    Embedded(&'static [u8]),
    /// Mapped from a file.
    Mapped(Mmap),
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Embedded(bytes) => bytes,
            Self::Mapped(map) => map,
        }
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

    /// The file's bytes, mapped where it is a file of its own.
    pub(crate) fn open(&self, path: &str) -> Result<Blob, LoadError> {
        let missing = || LoadError::MissingFile {
            file: self.name(path),
            remedy: "a model has the layout of the public SDXL repositories".into(),
        };
        match self {
            Self::Embedded(files) => {
                let (_, bytes) = files.iter().find(|(name, _)| *name == path).ok_or_else(missing)?;
                Ok(Blob::Embedded(bytes))
            }
            Self::Folder(root) => {
                let full = root.join(path);
                if !full.is_file() {
                    return Err(missing());
                }
                let read = |source| LoadError::Read { file: full.display().to_string(), source };
                let file = File::open(&full).map_err(read)?;
                if file.metadata().map_err(read)?.len() == 0 {
                    return Ok(Blob::Embedded(&[]));
                }
                // SAFETY: the mapping is read-only and private to this process. Model files are
                // write-once (the hub cache renames finished downloads into place); a program that
                // rewrites one in place under a running worker could change weights, which the
                // fingerprint taken at load would no longer describe, but the bytes are only ever
                // read as numbers, so no invariant of the language depends on them.
                let map = unsafe { Mmap::map(&file) }.map_err(read)?;
                match texts::stand_in(&map) {
                    Some(StandIn { what, remedy }) => {
                        Err(LoadError::StandIn { file: full.display().to_string(), what, remedy })
                    }
                    None => Ok(Blob::Mapped(map)),
                }
            }
        }
    }

    /// The file as text.
    pub(crate) fn text(&self, path: &str) -> Result<String, LoadError> {
        let blob = self.open(path)?;
        let text =
            texts::decode(&blob).map_err(|reason| LoadError::Json { file: self.name(path), reason })?;
        Ok(text.to_owned())
    }

    /// The file as JSON.
    pub(crate) fn json(&self, path: &str) -> Result<serde_json::Value, LoadError> {
        let text = self.text(path)?;
        texts::json(&text).map_err(|e| LoadError::Json { file: self.name(path), reason: e.to_string() })
    }
}
