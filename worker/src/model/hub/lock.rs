//! One process at a time fetches a file. The locks are those of the hub's own clients, at the same places and of the
//! same kind (the system's advisory locks on whole files), so that all can share a cache. They vanish with the process
//! that holds them, and over NFS hold between machines.
//!
//! They save work and are not needed for correctness: where a file system has none, downloads go on without.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// How often it is said that we wait.
const REMINDER: Duration = Duration::from_secs(60);

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock at `path`, made if need be, and waits for as long as it takes. `what`: what is waited for, in
    /// the log.
    pub(super) fn take(path: &Path, what: &str) -> io::Result<Self> {
        let began = Instant::now();
        let (mut pause, mut said) = (SHORTEST, None::<Instant>);
        loop {
            let file = open(path)?;
            match file.try_lock() {
                // One that was removed meanwhile keeps nobody away.
                Ok(()) if is_at(&file, path) => return Ok(Self { _file: Some(file) }),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(lock = %path.display(), %error, "this file system has no locks: going on without");
                    return Ok(Self { _file: None });
                }
            }
            if said.is_none_or(|at| at.elapsed() >= REMINDER) {
                let (lock, waited) = (path.display(), began.elapsed().as_secs());
                tracing::warn!(%lock, waited, "waiting for another process that fetches {what}");
                said = Some(Instant::now());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        // Others of the group may wait for it.
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o664);
    }
    options.open(path).or_else(|error| {
        // Another user's: to read it is enough to wait for it.
        if error.kind() == io::ErrorKind::PermissionDenied {
            File::open(path).map_err(|_| error)
        } else {
            Err(error)
        }
    })
}

/// Whether the file at `path` is still this one.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
        (ours.dev(), ours.ino()) == (there.dev(), there.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_survives_the_removal_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/a.lock");
        let first = Lock::take(&path, "a").unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || {
                let lock = Lock::take(&path, "a").unwrap();
                sender.send(()).unwrap();
                lock
            }
        });
        assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err());
        // Somebody tidies up: who waits must not be content with a file that nobody else sees.
        std::fs::remove_file(&path).unwrap();
        drop(first);
        receiver.recv().unwrap();
        assert!(path.exists());
        drop(waiter.join().unwrap());
        Lock::take(&path, "a").unwrap();
    }
}
