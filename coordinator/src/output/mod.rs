//! Pictures and latents, written to disk.
//!
//! Nothing is ever half there under its final name: files are written beside it under a temporary
//! name, renamed when whole, and synced with their folder. Files say nothing that varies from run to run.
//! Pictures are read from their pyramid part by part, and never held whole.

mod dzi;
mod format;
mod jpeg;
mod png;
mod settings;
pub(crate) mod srgb;
#[cfg(test)]
pub(crate) mod testing;
mod tiff;
mod tiles;
pub(crate) mod xmp;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use gigasmith_proto::domain::Array;
use gigasmith_proto::text::Shown;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

pub use self::png::write_png;
pub use dzi::folder::{FolderSink, check_replaceable};
pub use dzi::{
    DziFormat, DziNotes, DziOptions, DziSink, descriptor, files_folder, max_level, notes_path, tile_path,
    write_dzi,
};
pub use format::{Format, FormatError, Kind, Quality, Written, write_file, write_picture};
pub(crate) use jpeg::encode_jpeg;
pub use settings::{Embedded, Settings, SettingsError};
pub use tiff::{TiffCompression, TiffOptions, TiffVariant, write_tiff};

/// The name of the tensor that holds latents.
const LATENTS: &str = "latents";

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {reason}")]
pub struct WriteError {
    path: PathBuf,
    reason: String,
}

impl WriteError {
    pub(crate) fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// A picture that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the picture {}: {}", Shown(&path.to_string_lossy()), Shown(reason))]
pub struct ReadError {
    path: PathBuf,
    reason: String,
}

impl ReadError {
    pub(crate) fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// A file that has its final name only once it is whole. A link is followed; what is there and no regular
/// file is left alone.
#[derive(Debug)]
pub struct PartFile {
    path: PathBuf,
    file: io::BufWriter<tempfile::NamedTempFile>,
}

impl PartFile {
    /// Begins a file beside its place, under a temporary name.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let attempt = || -> io::Result<Self> {
            let path = destination(path)?;
            sweep(&path);
            let file = io::BufWriter::with_capacity(1 << 20, beside(&path)?);
            Ok(Self { path, file })
        };
        attempt().map_err(|e| WriteError::new(path, e))
    }

    /// Gives it its name.
    pub fn finish(self) -> Result<(), WriteError> {
        let Self { path, file } = self;
        let attempt = || -> io::Result<()> {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            sync_folder(&path)
        };
        attempt().map_err(|e| WriteError::new(&path, e))
    }
}

impl Write for PartFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for PartFile {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Writes a file under a temporary name in the same folder, then renames it.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut PartFile) -> io::Result<()>,
) -> Result<(), WriteError> {
    let mut file = PartFile::create(path)?;
    write(&mut file).map_err(|e| WriteError::new(path, e))?;
    file.finish()
}

/// The same for bytes that are there.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_atomically(path, |file| file.write_all(bytes))
}

/// Fails when a file of this name could not be written: before hours of work, not after.
pub fn check_writable(path: &Path) -> Result<(), WriteError> {
    let attempt = destination(path).and_then(|path| beside(&path));
    attempt.map(drop).map_err(|e| WriteError::new(path, e))
}

/// Links that are followed before they are taken for a circle.
const MOST_LINKS: usize = 40;

/// Where a file of this name really goes: links are followed, also to a file that is not there yet. Fails where
/// none can be made.
pub(crate) fn destination(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = path.read_link() else { return replaceable(path) };
        // A relative one counts from the link's folder.
        path = folder_of(&path).join(target);
    }
    Err(io::Error::other("it is a circle of links; remove it, or choose another name"))
}

/// A file that may be there is regular, and may be written to; its folder is there.
fn replaceable(path: PathBuf) -> io::Result<PathBuf> {
    match path.metadata() {
        Ok(there) if there.is_dir() => Err(io::Error::other("it is a folder; give a file name")),
        Ok(there) if !there.is_file() => Err(io::Error::other("it is no regular file; choose another name")),
        Ok(there) if there.permissions().readonly() => Err(io::Error::other(
            "it is there already and read-only; make it writable, or choose another name",
        )),
        Ok(_) => Ok(path),
        Err(_) if !folder_of(&path).is_dir() => {
            let folder = folder_of(&path);
            let hint = match folder.components().next() {
                Some(first) if first.as_os_str().to_string_lossy().starts_with('~') => {
                    "; only a shell makes your home folder of `~`, and not within quotes: write it out"
                }
                _ => "",
            };
            Err(io::Error::other(format!("there is no folder {}{hint}", folder.display())))
        }
        Err(_) => Ok(path),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a renamed file's name outlast a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match File::open(folder_of(path))?.sync_all() {
        // Some network file systems know no such thing.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
    #[cfg(not(unix))]
    Ok(())
}

/// Names of so many bytes leave room for what makes them temporary; longer ones are cut, as no temporary name may
/// be too long for a file system that the file's own name is not too long for.
const ROOMY: usize = 120;

/// What makes a name temporary: this, random characters, and an ending.
const MARK: &str = ".gigasmith-";
const PART: &str = ".part";
const RANDOM: usize = 6;

/// What a file's temporary names begin with, and end with.
fn part_names(path: &Path) -> (String, &'static str) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let most = name.len().saturating_sub(".".len() + MARK.len() + RANDOM + PART.len()).max(ROOMY);
    let end = (0..=most.min(name.len())).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    (format!(".{}{MARK}", &name[..end]), PART)
}

/// Removes what an earlier attempt at this file left when it was killed. A day old, it is nobody's.
fn sweep(path: &Path) {
    const OLD: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
    let (prefix, suffix) = part_names(path);
    let Ok(entries) = std::fs::read_dir(folder_of(path)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_part = name.to_str().is_some_and(|n| n.starts_with(&prefix) && n.ends_with(suffix));
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if is_part && age.is_some_and(|age| age > OLD) {
            // Then it stays.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = folder_of(path);
    let (prefix, suffix) = part_names(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(suffix).rand_bytes(RANDOM);
    // Files of this kind are private by default; a picture is as public as any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // The name that it would have had says nothing to people.
    builder.tempfile_in(folder).map_err(|e| {
        let said = e.to_string();
        io::Error::new(
            e.kind(),
            said.split_once(" at path ").map_or(said.clone(), |(reason, _)| reason.to_owned()),
        )
    })
}

/// Writes a latent (channels, height, width) as the tensor `latents` (1, channels, height, width), with
/// the render's settings in the header.
pub fn write_latents(path: &Path, latent: &Array, settings: &Settings) -> Result<(), WriteError> {
    let bytes = encode_latents(latent, settings).map_err(|e| WriteError::new(path, e))?;
    write_bytes(path, &bytes)
}

/// The same as bytes.
pub fn encode_latents(latent: &Array, settings: &Settings) -> Result<Vec<u8>, SafeTensorError> {
    let shape = [1].into_iter().chain(latent.shape().iter().copied()).collect();
    let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(latent.data()))?;
    let header = HashMap::from([("gigasmith".to_owned(), settings.to_json())]);
    safetensors::serialize([(LATENTS, view)], Some(header))
}

/// Reads what [`encode_latents`] wrote: (channels, height, width), and the settings' JSON.
pub fn decode_latents(bytes: &[u8]) -> Result<(Array, Option<String>), SafeTensorError> {
    let file = SafeTensors::deserialize(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let settings = header.metadata().as_ref().and_then(|m| m.get("gigasmith").cloned());
    let tensor = file.tensor(LATENTS)?;
    let data = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let wrong = || SafeTensorError::TensorInvalidInfo;
    match (tensor.dtype(), tensor.shape()) {
        (Dtype::F32, [1, c, h, w]) => {
            Array::new([*c, *h, *w], data).map(|latent| (latent, settings)).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |f| f.write_all(b"old")).unwrap();
        let error = write_atomically(&path, |f| {
            f.write_all(b"ne")?;
            Err(io::Error::other("disk full"))
        });
        assert!(error.unwrap_err().to_string().contains("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no leftovers");
    }

    #[test]
    fn latents_come_back_to_the_bit() {
        let spec = crate::spec::tests::spec();
        let latent = Array::new([2, 1, 3], vec![0.5, -0.0, 1e-40, 7.0, f32::MIN, 3.0]).unwrap();
        let settings = Settings::new(spec);
        let bytes = encode_latents(&latent, &settings).unwrap();
        assert_eq!(decode_latents(&bytes).unwrap(), (latent, Some(settings.to_json())));
        assert!(decode_latents(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn places_that_cannot_be_written_are_found_early() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_writable(folder.path()).is_err());
        assert!(check_writable(&folder.path().join("missing/a.png")).is_err());
        let good = folder.path().join("a.png");
        check_writable(&good).unwrap();
        assert!(!good.exists());
        let said = |path: &str| check_writable(&folder.path().join(path)).unwrap_err().to_string();
        assert!(said("missing/a.png").contains("there is no folder"), "{}", said("missing/a.png"));
        assert!(!said("missing/a.png").contains("gigasmith-"));
        assert!(check_writable(Path::new("~/a.png")).unwrap_err().to_string().contains("write it out"));
    }

    #[test]
    fn a_file_that_is_read_only_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, "old").unwrap();
        let mut permissions = path.metadata().unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&path, permissions.clone()).unwrap();
        assert!(check_writable(&path).unwrap_err().to_string().contains("read-only"));
        assert!(write_bytes(&path, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_also_to_what_is_not_there_yet() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("disk")).unwrap();
        symlink("disk/real.png", at("link.png")).unwrap();
        symlink("link.png", at("twice.png")).unwrap();
        symlink("around.png", at("round.png")).unwrap();
        symlink("round.png", at("around.png")).unwrap();
        for text in [&b"first"[..], b"second"] {
            write_bytes(&at("twice.png"), text).unwrap();
            assert_eq!(std::fs::read(at("disk/real.png")).unwrap(), text);
        }
        assert!(at("link.png").is_symlink() && at("twice.png").is_symlink());
        assert!(check_writable(&at("round.png")).unwrap_err().to_string().contains("circle"));
    }

    #[test]
    fn the_longest_names_have_temporary_ones() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["a".repeat(251) + ".png", "\u{e9}".repeat(125) + ".png", "b".repeat(120), "c".repeat(100)]
        {
            let (prefix, suffix) = part_names(Path::new(&name));
            assert!(prefix.len() + RANDOM + suffix.len() <= name.len().max(ROOMY + 23), "{name}");
            write_bytes(&folder.path().join(&name), b"x").unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }
}
