//! Saving what comes in pieces: one file, or the many of a Deep Zoom picture.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::output::{DziSink, FolderSink, PartFile, WriteError, destination};

/// A file, or a folder of tiles, that gets its final name once everything is there.
#[derive(Debug)]
pub(super) struct Download {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// Nothing has come.
    None,
    File(Box<PartFile>),
    Tiles {
        sink: FolderSink,
        name: String,
        /// The file that is coming in, and what there is of it.
        file: String,
        bytes: Vec<u8>,
    },
}

impl Download {
    /// To this file, or, for Deep Zoom, to this descriptor and the folder beside it.
    pub(super) fn to(path: &Path) -> Self {
        Self { path: path.to_owned(), target: Target::None }
    }

    /// Takes a piece. `file`: what the file's name has after the picture's own; empty where there is one.
    pub(super) fn take(&mut self, file: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.path.clone();
        let failed = |e: std::io::Error| Failure::from(WriteError::new(&path, e));
        if let Target::None = self.target {
            self.target = self.begin(file)?;
        }
        match &mut self.target {
            Target::None => unreachable!("begun above"),
            Target::File(target) => target.write_all(bytes).map_err(failed),
            Target::Tiles { sink, name, file: current, bytes: there } => {
                if current != file {
                    let whole = std::mem::take(there);
                    put(sink, name, current, whole).map_err(failed)?;
                    file.clone_into(current);
                }
                there.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn begin(&self, file: &str) -> Result<Target, Failure> {
        let is_dzi = self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("dzi"));
        match (file.is_empty(), is_dzi) {
            (true, false) => Ok(Target::File(Box::new(PartFile::create(&self.path)?))),
            (false, true) => {
                let path = destination(&self.path).map_err(|e| WriteError::new(&self.path, e))?;
                let name = path.file_stem().and_then(|n| n.to_str()).map(str::to_owned);
                let name =
                    name.ok_or_else(|| Failure::usage("the output's name is not UTF-8: choose another"))?;
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                let sink = FolderSink::new(folder.unwrap_or(Path::new(".")), &name);
                let sink = sink.map_err(|e| WriteError::new(&self.path, e))?;
                Ok(Target::Tiles { sink, name, file: file.to_owned(), bytes: Vec::new() })
            }
            (one_file, _) => {
                let (path, is) =
                    (self.path.display(), if one_file { "one file" } else { "Deep Zoom: many files" });
                Err(Failure::usage(format!(
                    "the render is kept as {is}, which cannot be called {path}: name it otherwise"
                )))
            }
        }
    }

    /// Everything has come.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::from(WriteError::new(&self.path, e));
        match self.target {
            Target::None => Err(Failure::farm("nothing came")),
            Target::File(file) => Ok(file.finish()?),
            Target::Tiles { file, .. } if file != ".dzi" => {
                Err(Failure::farm(format!("the picture broke off at {file}: try again")))
            }
            // The descriptor.
            Target::Tiles { mut sink, name, file, bytes } => {
                put(&mut sink, &name, &file, bytes).map_err(failed)
            }
        }
    }
}

fn put(sink: &mut FolderSink, name: &str, file: &str, bytes: Vec<u8>) -> std::io::Result<()> {
    sink.put(&format!("{name}{file}"), bytes)
}
