//! The hub's cache on disk, as all of the hub's clients have it:
//!
//! ```text
//! .locks/models--org--name/<name>.lock
//! models--org--name/blobs/<name>               a file's content, by its tag
//! models--org--name/refs/<revision>            a commit
//! models--org--name/snapshots/<commit>/<path>  a link to a blob
//! models--org--name/trees/<commit>.json        what the repository holds (newer clients; only read here)
//! models--org--name/.gigasmith/<commit>.json   the same (ours)
//! ```
//!
//! Nothing half-written has a final name: files are made in `.gigasmith` and renamed. Reading needs no right to write.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::download::sync_folder;
use super::names::{self, is_commit};
use super::remote::{Files, Listed};
use crate::model::layout::{self, Variant};

const VERSION: u32 = 1;

/// One repository's part of the cache.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
    links: bool,
}

/// What a repository holds, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    files: Files,
}

/// The same as newer clients of the hub keep it.
#[derive(Deserialize)]
struct Tree {
    format_version: u32,
    files: std::collections::BTreeMap<String, TreeFile>,
}

#[derive(Deserialize)]
struct TreeFile {
    size: Option<u64>,
    blob_id: Option<String>,
    lfs_sha256: Option<String>,
    lfs_size: Option<u64>,
}

impl Cache {
    pub(super) fn new(cache: &Path, id: &str, links: bool) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(&name), links }
    }

    /// The commit that a revision was when it was last asked for; a commit is itself.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.reference(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, tag: &str) -> PathBuf {
        self.folder.join("blobs").join(names::blob_name(tag))
    }

    pub(super) fn lock(&self, tag: &str) -> PathBuf {
        self.locks.join(names::blob_name(tag) + ".lock")
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    /// What the repository holds at a commit, if it was written down.
    pub(super) fn files(&self, commit: &str) -> Option<Files> {
        let read = |path: PathBuf| fs::read(path).ok();
        let ours = read(self.list(commit)).and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        if let Some(kept) = ours.filter(|kept| kept.version == VERSION) {
            return Some(kept.files);
        }
        let tree = read(self.folder.join("trees").join(format!("{commit}.json")))?;
        let tree = serde_json::from_slice::<Tree>(&tree).ok().filter(|tree| tree.format_version == 1)?;
        let listed = |f: TreeFile| Listed {
            size: f.lfs_size.or(f.size),
            git: f.blob_id.filter(|_| f.lfs_sha256.is_none()),
            sha256: f.lfs_sha256,
        };
        Some(tree.files.into_iter().map(|(path, file)| (path, listed(file))).collect())
    }

    fn list(&self, commit: &str) -> PathBuf {
        self.folder.join(".gigasmith").join(format!("{commit}.json"))
    }

    /// Writes down what the repository holds, unless that is done.
    pub(super) fn keep_files(&self, commit: &str, files: &Files) -> io::Result<()> {
        let kept = Kept { version: VERSION, files: files.clone() };
        self.write(&self.list(commit), &serde_json::to_vec(&kept).map_err(io::Error::other)?)
    }

    /// Notes which commit a revision is, unless that is noted.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.write(&self.reference(revision), commit.as_bytes())
    }

    /// Writes a small file at once, unless it is there as it should be.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if fs::read(path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        let draft = self.draft()?;
        fs::write(&draft, content)?;
        fs::File::open(&draft)?.sync_all()?;
        self.put(&draft, path)
    }

    /// A name for a file that is being made.
    fn draft(&self) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = self.folder.join(".gigasmith");
        fs::create_dir_all(&folder)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(folder.join(format!("{}-{count}.tmp", std::process::id())))
    }

    /// Gives what was made its name.
    fn put(&self, draft: &Path, path: &Path) -> io::Result<()> {
        let put = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::rename(draft, path)
        };
        put().inspect_err(|_| drop(fs::remove_file(draft)))?;
        sync_folder(path);
        Ok(())
    }

    /// Makes the folder of blobs, for one who wants to write one.
    pub(super) fn make_room(&self) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("blobs"))
    }

    /// Makes a file of a snapshot of a blob: a relative link; where there are none, the blob itself if it is new,
    /// else a copy.
    pub(super) fn place(&self, blob: &Path, commit: &str, file: &str, is_new: bool) -> io::Result<()> {
        let path = self.snapshot(commit).join(file);
        let draft = self.draft()?;
        if self.links {
            let up = "../".repeat(file.split('/').count() + 1);
            let target = Path::new(&up).join("blobs").join(blob.file_name().unwrap_or_default());
            match link(&target, &draft) {
                Ok(()) => return self.put(&draft, &path),
                Err(error) => tracing::debug!(%error, "no links here; files of snapshots are copies"),
            }
        }
        if is_new {
            return self.put_blob(blob, &path);
        }
        fs::copy(blob, &draft)?;
        self.put(&draft, &path)
    }

    fn put_blob(&self, blob: &Path, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::rename(blob, path)?;
        sync_folder(path);
        Ok(())
    }

    /// What a snapshot lacks to be a model; by the repository's files where they are known.
    pub(super) fn missing(&self, commit: &str, files: Option<&Files>, variant: Variant) -> Option<String> {
        let folder = self.snapshot(commit);
        let here = here(&folder);
        let here: BTreeSet<&str> = here.iter().map(String::as_str).collect();
        let wanted = match files {
            Some(files) => {
                let known = files.keys().map(String::as_str).collect();
                let wanted = layout::needed(&known, variant);
                if let Err(error) = layout::check(&|path| known.contains(path), variant) {
                    return Some(error.to_string());
                }
                if let Some(file) = wanted.iter().find(|file| !is_whole(&folder.join(file), &files[*file])) {
                    return Some(file.clone());
                }
                wanted
            }
            None => {
                let index = json(&folder.join("model_index.json")).ok();
                if let Some(missing) = layout::lacking(&here, index.as_ref(), variant) {
                    return Some(missing);
                }
                layout::needed(&here, variant)
            }
        };
        for index in wanted.iter().filter(|file| layout::is_index(file)) {
            let Ok(shards) = self.shards(commit, index) else { return Some(format!("a readable {index}")) };
            let is_here = |shard: &&String| {
                let listed = files.and_then(|files| files.get(*shard)).cloned().unwrap_or_default();
                is_whole(&folder.join(shard), &listed)
            };
            if let Some(gone) = shards.iter().find(|shard| !is_here(shard)) {
                return Some(gone.clone());
            }
        }
        None
    }

    /// The shards that an index of a snapshot lists.
    pub(super) fn shards(&self, commit: &str, index: &str) -> Result<BTreeSet<String>, String> {
        layout::shards(index, &json(&self.snapshot(commit).join(index))?)
    }

    /// Whether a snapshot of unknown origin has the weights that are wanted most: with others nobody knows whether the
    /// repository has those.
    pub(super) fn has_first_choice(&self, commit: &str, variant: Variant) -> bool {
        let folder = self.snapshot(commit);
        let first = if variant == Variant::Auto { Variant::Fp16 } else { variant };
        let full = |part: &(&str, &str)| {
            let has = |path: &str| folder.join(path).is_file();
            let (a, b) = (layout::weights(&has, *part, first), layout::weights(&has, *part, Variant::Full));
            first != Variant::Full && a == b
        };
        !layout::WEIGHTED.iter().any(full)
    }
}

fn json(path: &Path) -> Result<serde_json::Value, String> {
    let text = fs::read(path).map_err(|e| e.to_string())?;
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}

/// Whether a file is there, and as long as it should be.
pub(super) fn is_whole(path: &Path, listed: &Listed) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && listed.size.is_none_or(|size| size == m.len()))
}

#[cfg(unix)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The files of a snapshot, two levels deep, as `part/file`.
fn here(folder: &Path) -> Vec<String> {
    let names = |dir: &Path| -> Vec<(PathBuf, String)> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| (e.path(), e.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut files = Vec::new();
    for (path, name) in names(folder) {
        if path.is_dir() {
            let inner = names(&path).into_iter().filter(|(p, _)| p.is_file());
            files.extend(inner.map(|(_, n)| format!("{name}/{n}")));
        } else if path.is_file() {
            files.push(name);
        }
    }
    files
}

/// Bytes that the disk of a folder has left, where the system says. The folder need not be there yet.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there = folder.ancestors().find(|f| f.is_dir())?;
        let disk = rustix::fs::statvfs(there).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
