//! Deep Zoom into a folder.
//!
//! Tiles gather in `.NAME_files.part`. When the descriptor comes, they are synced and take their final
//! place in this order:
//!
//! 1. an older picture's descriptor and texts go,
//! 2. its tiles move to `.NAME_files.old`, the new ones to `NAME_files`,
//! 3. the new texts are written, then the new descriptor,
//! 4. the older tiles go.
//!
//! A crash before 1 leaves the older picture as it was; a crash later leaves no descriptor, or a whole
//! picture. So a descriptor never stands beside tiles that are missing or another's. What a crash left
//! is cleared by the next writing of the name, which starts from its first tile; what an error or Ctrl-C
//! left goes at once. Two writers of one name at the same time are not told apart.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::super::{WriteError, destination};
use super::{DziSink, check_name, descriptor_path, files_folder, notes_path};

/// Writes a picture into a folder under one name.
#[derive(Debug)]
pub struct FolderSink {
    folder: PathBuf,
    name: String,
    part: PathBuf,
    notes: Option<Vec<u8>>,
}

impl FolderSink {
    /// For `NAME.dzi` in a folder that is there. Fails when `NAME_files` holds something else than tiles,
    /// which replacing the picture would destroy.
    pub fn new(folder: &Path, name: &str) -> io::Result<Self> {
        check_name(name)?;
        let part = folder.join(part_of(&files_folder(name)));
        let sink = Self { folder: folder.to_owned(), name: name.to_owned(), part, notes: None };
        check_tiles(&sink.files())?;
        remove_tree(&sink.part)?;
        remove_tree(&sink.old())?;
        for name in [descriptor_path(name), notes_path(name)] {
            remove_file(&folder.join(part_of(&name)))?;
        }
        fs::create_dir(&sink.part)?;
        Ok(sink)
    }

    fn files(&self) -> PathBuf {
        self.folder.join(files_folder(&self.name))
    }

    fn old(&self) -> PathBuf {
        self.folder.join(format!(".{}.old", files_folder(&self.name)))
    }

    /// `LEVEL/X_Y.EXT`.
    fn put_tile(&self, tile: &str, bytes: &[u8]) -> io::Result<()> {
        let plain =
            |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':', '\0']);
        let (level, file) = tile
            .split_once('/')
            .filter(|(level, file)| plain(level) && plain(file) && !file.contains('/'))
            .ok_or_else(|| unknown(tile))?;
        let folder = self.part.join(level);
        if !folder.is_dir() {
            fs::create_dir(&folder)?;
        }
        fs::write(folder.join(file), bytes)
    }

    fn publish(&mut self, descriptor: &[u8]) -> io::Result<()> {
        self.sync_tiles()?;
        let (descriptor_name, notes_name) = (descriptor_path(&self.name), notes_path(&self.name));
        remove_file(&self.folder.join(&descriptor_name))?;
        remove_file(&self.folder.join(&notes_name))?;
        sync_folder(&self.folder)?;
        if self.files().exists() {
            fs::rename(self.files(), self.old())?;
        }
        fs::rename(&self.part, self.files())?;
        sync_folder(&self.folder)?;
        if let Some(notes) = self.notes.take() {
            self.write_whole(&notes_name, &notes)?;
        }
        self.write_whole(&descriptor_name, descriptor)?;
        remove_tree(&self.old())
    }

    /// Together at the end: one by one, each tile would wait for the disk.
    fn sync_tiles(&self) -> io::Result<()> {
        for level in fs::read_dir(&self.part)? {
            let level = level?.path();
            fs::read_dir(&level)?.par_bridge().try_for_each(|tile| File::open(tile?.path())?.sync_all())?;
            sync_folder(&level)?;
        }
        sync_folder(&self.part)
    }

    fn write_whole(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let part = self.folder.join(part_of(name));
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, self.folder.join(name))?;
        sync_folder(&self.folder)
    }
}

impl DziSink for FolderSink {
    fn put(&mut self, path: &str, bytes: Vec<u8>) -> io::Result<()> {
        if path == descriptor_path(&self.name) {
            self.publish(&bytes)
        } else if path == notes_path(&self.name) {
            self.notes = Some(bytes);
            Ok(())
        } else {
            let tile = path.strip_prefix(&files_folder(&self.name)).and_then(|rest| rest.strip_prefix('/'));
            self.put_tile(tile.ok_or_else(|| unknown(path))?, &bytes)
        }
    }
}

impl Drop for FolderSink {
    fn drop(&mut self) {
        // After publishing there is none. What cannot be removed now, the next writer removes.
        let _ = remove_tree(&self.part);
    }
}

/// What a file or folder is called until it is whole.
fn part_of(name: &str) -> String {
    format!(".{name}.part")
}

fn unknown(path: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{path:?} is no part of this picture; this is a defect"),
    )
}

/// Fails when a Deep Zoom picture of this name (`NAME.dzi`) could not take its place, because the folder of
/// its tiles holds something else: before hours of work, not after.
pub fn check_replaceable(path: &Path) -> Result<(), WriteError> {
    let check = || -> io::Result<()> {
        let path = destination(path)?;
        let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
        check_name(name)?;
        check_tiles(&path.with_file_name(files_folder(name)))?;
        // The longest name that it takes on the way; those of file systems differ in how long they may be.
        let longest = path.with_file_name(part_of(&notes_path(name)));
        match longest.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => Err(io::Error::other(
                "its name is too long for those of the files beside it: choose a shorter one",
            )),
            _ => Ok(()),
        }
    };
    check().map_err(|e| WriteError::new(path, e))
}

/// Browsers save pages with folders of such names.
fn check_tiles(files: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(files) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if name.to_str().is_none_or(|name| name.parse::<u32>().is_err()) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "{} holds {name:?}, which is no tile; move it away or choose another name",
                    files.display()
                ),
            ));
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(path))
}

fn remove_file(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes names outlast a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match File::open(path)?.sync_all() {
        // Some network file systems know no such thing.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
    #[cfg(not(unix))]
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{DziFormat, DziOptions, write_dzi};
    use super::*;
    use crate::output::testing::{Memory, embedded};

    fn write(folder: &Path, picture: &Memory, format: DziFormat, stop_at: u64) -> io::Result<()> {
        let mut sink = FolderSink::new(folder, "a")?;
        let options = DziOptions { format, ..DziOptions::default() };
        write_dzi(&mut sink, "a", picture, &embedded(), options, &mut |done, _| match done {
            _ if done == stop_at => Err(io::Error::other("stopped")),
            _ => Ok(()),
        })
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_interrupted_writing_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(folder.path(), &Memory::smooth(600, 600), DziFormat::Png, 5).is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn an_interrupted_writing_leaves_the_older_picture() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Memory::smooth(600, 600), DziFormat::Png, 0).unwrap();
        let before = names(&folder.path().join("a_files/10"));
        assert!(write(folder.path(), &Memory::smooth(100, 100), DziFormat::Png, 3).is_err());
        assert_eq!(names(folder.path()), ["a.dzi", "a.dzi.json", "a_files"]);
        assert_eq!(names(&folder.path().join("a_files/10")), before);
    }

    #[test]
    fn no_tile_of_an_older_picture_survives() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Memory::smooth(600, 600), DziFormat::Png, 0).unwrap();
        // What a crash between the renames leaves.
        fs::create_dir_all(folder.path().join(".a_files.part/3")).unwrap();
        fs::create_dir_all(folder.path().join(".a_files.old/3")).unwrap();
        fs::write(folder.path().join(".a.dzi.part"), b"<Ima").unwrap();
        write(folder.path(), &Memory::smooth(200, 3), DziFormat::Jpeg { quality: 90 }, 0).unwrap();
        assert_eq!(names(folder.path()), ["a.dzi", "a.dzi.json", "a_files"]);
        assert_eq!(names(&folder.path().join("a_files")), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
        assert_eq!(names(&folder.path().join("a_files/8")), ["0_0.jpg"]);
    }

    #[test]
    fn no_foreign_folder_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a_files")).unwrap();
        fs::write(folder.path().join("a_files/logo.png"), b"saved page").unwrap();
        let error = FolderSink::new(folder.path(), "a").unwrap_err().to_string();
        assert!(error.contains("logo.png"), "{error}");
        assert_eq!(names(folder.path()), ["a_files"]);
    }

    #[test]
    fn a_name_that_leaves_no_room_for_its_files_is_found_early() {
        let folder = tempfile::tempdir().unwrap();
        let check = |length: usize| check_replaceable(&folder.path().join("a".repeat(length) + ".dzi"));
        assert!(check(200).is_ok());
        let error = check(250).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }

    #[test]
    fn no_path_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = FolderSink::new(folder.path(), "a").unwrap();
        for path in
            ["a_files/../x.png", "a_files/1/../x.png", "x.png", "a_files/1/b/c.png", "a_files//x", "b.dzi"]
        {
            assert!(sink.put(path, vec![1]).is_err(), "{path}");
        }
    }
}
