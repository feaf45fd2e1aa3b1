//! Whether what is to be written fits on the disks: asked before the work, not after.
//!
//! Paths on one file system are counted together. Only what certainly does not fit is refused; what may not
//! fit is warned of. What a file system says of itself is [`Disks`]' business: quotas that it does not tell are
//! not seen, and one that tells nothing, or nonsense, is believed to have room.

use std::path::{Path, PathBuf};

use crate::estimate::{bytes, output_bytes, scratch_bytes};
use crate::output::{Format, Kind};
use crate::raster::Scratch;

/// What a file system says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Tells file systems apart.
    pub device: u64,
    /// Bytes that may still be written.
    pub available: u64,
    /// Whether a file takes as many bytes there as it has: false where they are compressed.
    pub exact: bool,
}

/// Where the free space of a path is asked for.
pub trait Disks {
    /// The file system of a path, or of the nearest folder above it that is there; `None` where that is not
    /// known.
    fn space(&self, path: &Path) -> Option<Space>;
}

/// This machine's.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

/// Something that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What it is, for people.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Bytes that it takes at the least, without which the work is lost.
    pub least: u64,
    /// Bytes that it takes at the most.
    pub most: u64,
    /// The flag that puts it elsewhere.
    pub flag: &'static str,
}

impl Need {
    /// Pictures under way, of `area` pixels in the end: the picture with its pyramid; and where it is `kept` in a
    /// store, its file before it goes there.
    pub fn scratch(area: u64, kept: Option<Format>, scratch: &Scratch) -> Self {
        let file = kept.filter(|format| format.kind != Kind::Dzi);
        let (least, most) = file.map_or((0, 0), |format| output_bytes(area, format));
        let raster = scratch_bytes(area);
        Self {
            what: "the picture under way",
            path: scratch.folder().to_owned(),
            least: raster + least,
            most: raster + most,
            flag: "--scratch",
        }
    }

    /// So many pictures of `area` pixels.
    pub fn output(area: u64, format: Format, path: &Path, pictures: u64) -> Self {
        let (least, most) = output_bytes(area, format);
        Self {
            what: if pictures == 1 { "the picture" } else { "the pictures" },
            path: path.to_owned(),
            least: least.saturating_mul(pictures),
            most: most.saturating_mul(pictures),
            flag: "-o",
        }
    }

    /// Checkpoints and the result of a render, in a folder. A store that is full holds nothing up.
    pub fn store(area: u64, format: Format, folder: &Path, pictures: u64) -> Self {
        let (_, most) = output_bytes(area, format);
        let checkpoint = scratch_bytes(area);
        Self {
            what: "checkpoints",
            path: folder.to_owned(),
            least: 0,
            most: checkpoint.saturating_add(most.saturating_mul(pictures)),
            flag: "--store",
        }
    }
}

/// A file system that is certainly too small.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TooSmall(String);

/// Fails when something certainly does not fit; returns a warning for each file system on which something may
/// not.
pub fn check(needs: &[Need], disks: &dyn Disks) -> Result<Vec<String>, TooSmall> {
    let mut groups: Vec<(Space, Vec<&Need>)> = Vec::new();
    for need in needs {
        let Some(space) = disks.space(&need.path) else { continue };
        match groups.iter_mut().find(|(known, _)| known.device == space.device) {
            Some((_, group)) => group.push(need),
            None => groups.push((space, vec![need])),
        }
    }
    let mut warnings = Vec::new();
    for (space, group) in groups {
        let sum = |of: fn(&Need) -> u64| group.iter().fold(0, |sum: u64, need| sum.saturating_add(of(need)));
        let (least, most) = (sum(|n| n.least), sum(|n| n.most));
        let free = bytes(space.available);
        let place = group[0].path.display();
        if least > space.available && space.exact {
            let (list, flags) = (list(&group, |n| n.least), flags(&group, |n| n.least > 0));
            return Err(TooSmall(format!(
                "the disk of {place} has {free} free, too little for {list}: make room, or name another place with \
                 {flags}"
            )));
        }
        if most > space.available {
            let (list, flags) = (list(&group, |n| n.most), flags(&group, |_| true));
            warnings.push(format!(
                "the disk of {place} has {free} free, which may be too little for up to {list}; {flags} names another \
                 place"
            ));
        }
    }
    Ok(warnings)
}

fn list(group: &[&Need], of: fn(&Need) -> u64) -> String {
    let parts: Vec<String> =
        group.iter().filter(|n| of(n) > 0).map(|n| format!("{} of {}", bytes(of(n)), n.what)).collect();
    parts.join(" and ")
}

fn flags(group: &[&Need], counts: fn(&Need) -> bool) -> String {
    group.iter().filter(|n| counts(n)).map(|n| n.flag).collect::<Vec<_>>().join(" or ")
}

impl Disks for System {
    #[cfg(unix)]
    fn space(&self, path: &Path) -> Option<Space> {
        use std::os::unix::fs::MetadataExt;
        let here = nearest(path)?;
        let device = here.metadata().ok()?.dev();
        let told = rustix::fs::statvfs(&here).ok()?;
        // Without any block it is no disk; a network's that has no room left may only not know.
        let books = books(&here);
        if told.f_blocks == 0 || (told.f_bavail == 0 && books == Books::Remote) {
            return None;
        }
        let available = told.f_bavail.saturating_mul(told.f_frsize);
        Some(Space { device, available, exact: books != Books::Compressing })
    }

    #[cfg(not(unix))]
    fn space(&self, _: &Path) -> Option<Space> {
        None
    }
}

/// The path, or the nearest folder above it that is there.
#[cfg(unix)]
fn nearest(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|p| p.exists()).map(Path::to_owned)
}

/// What is known of how a file system keeps its books.
#[cfg(unix)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Books {
    Plain,
    /// It may compress what is written.
    Compressing,
    /// Another machine, or another program, keeps them.
    Remote,
}

#[cfg(target_os = "linux")]
fn books(path: &Path) -> Books {
    // `linux/magic.h`: btrfs, ZFS, bcachefs, F2FS; NFS, CIFS, SMB, SMB2, FUSE, 9P, Ceph, AFS.
    const COMPRESSING: [u32; 4] = [0x9123_683E, 0x2FC1_2FC1, 0xCA45_1A4E, 0xF2F5_2010];
    const REMOTE: [u32; 8] =
        [0x6969, 0xFF53_4D42, 0x517B, 0xFE53_4D42, 0x6573_5546, 0x0102_1997, 0x00C3_6400, 0x5346_414F];
    match rustix::fs::statfs(path).map(|told| told.f_type as u32) {
        Ok(magic) if COMPRESSING.contains(&magic) => Books::Compressing,
        Ok(magic) if REMOTE.contains(&magic) => Books::Remote,
        _ => Books::Plain,
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn books(_: &Path) -> Books {
    Books::Plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Quality;

    const PNG: Format = Format { kind: Kind::Png, quality: Quality::Lossless };
    const MEGAPIXEL: u64 = 1 << 20;

    /// Folders by their first part, and what is free there.
    struct Folders(&'static [(&'static str, u64, u64)]);

    impl Disks for Folders {
        fn space(&self, path: &Path) -> Option<Space> {
            let (_, device, available) = self.0.iter().find(|(root, ..)| path.starts_with(root))?;
            Some(Space { device: *device, available: *available, exact: *device < 100 })
        }
    }

    fn needs(scratch: &str, output: &str) -> Vec<Need> {
        let scratch = Scratch::new(scratch);
        vec![
            Need::scratch(MEGAPIXEL, Some(PNG), &scratch),
            Need::output(MEGAPIXEL, PNG, Path::new(output), 1),
        ]
    }

    #[test]
    fn what_certainly_does_not_fit_is_refused_and_what_may_not_is_warned_of() {
        let disks = Folders(&[("/small", 1, 600_000), ("/large", 2, 1 << 40), ("/medium", 3, 2 << 20)]);
        let error = check(&needs("/small", "/large/a.png"), &disks).unwrap_err().to_string();
        for word in ["/small", "600 kB", "4.3 MB", "picture under way", "--scratch"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(!error.contains("-o"), "{error}");
        assert_eq!(check(&needs("/large", "/large/a.png"), &disks), Ok(vec![]));
        let warnings = check(&needs("/large", "/medium/a.png"), &disks).unwrap();
        assert!(
            warnings.len() == 1 && warnings[0].contains("3.2 MB") && warnings[0].contains("-o"),
            "{warnings:?}"
        );
    }

    #[test]
    fn one_file_system_is_counted_once() {
        let disks = Folders(&[("/a", 1, 4_350_000), ("/b", 1, 4_350_000), ("/c", 2, 4_350_000)]);
        assert!(check(&needs("/a", "/c/x.png"), &disks).is_ok());
        let error = check(&needs("/a", "/b/x.png"), &disks).unwrap_err().to_string();
        assert!(error.contains("--scratch or -o") && error.contains("the picture under way and"), "{error}");
    }

    #[test]
    fn a_store_is_only_warned_of_and_what_is_not_known_has_room() {
        let disks = Folders(&[("/small", 1, 1000), ("/squeezed", 100, 1000)]);
        let store = Need::store(MEGAPIXEL, PNG, Path::new("/small/st"), 1);
        let warnings = check(&[store], &disks).unwrap();
        assert!(warnings[0].contains("--store"), "{warnings:?}");
        assert_eq!(check(&needs("/unknown", "/unknown/x.png"), &disks), Ok(vec![]));
        assert_eq!(
            check(&needs("/squeezed", "/unknown/x.png"), &disks).unwrap().len(),
            1,
            "it may compress well"
        );
    }

    #[test]
    fn several_pictures_and_the_largest_there_are_add_up() {
        let area = 1u64 << 40;
        let need = Need::output(area, PNG, Path::new("/x"), u64::MAX);
        assert_eq!(need.least, u64::MAX);
        let tiles = Format { kind: Kind::Dzi, quality: Quality::Jpeg(90) };
        assert_eq!(
            Need::scratch(area, Some(tiles), &Scratch::new("/x")).least,
            4 * area,
            "tiles go to their place"
        );
    }

    #[cfg(unix)]
    #[test]
    fn the_system_tells_of_the_nearest_folder() {
        let folder = tempfile::tempdir().unwrap();
        let here = System.space(folder.path());
        let below = System.space(&folder.path().join("not/there/yet/a.png"));
        assert_eq!(here.map(|s| s.device), below.map(|s| s.device));
        assert!(here.is_none_or(|s| s.device > 0));
        assert!(System.space(Path::new("relative.png")).is_some() || here.is_none());
        // A pseudo file system has no blocks: nothing is known of it.
        if Path::new("/proc/self").exists() {
            assert_eq!(System.space(Path::new("/proc/self/x")), None);
        }
    }
}
