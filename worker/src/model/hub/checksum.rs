//! Whether a file is what its tag says.
//!
//! A tag of 64 hexadecimal digits is the file's SHA-256: that is how the hub names large files. One of 40 is git's
//! hash of a small file on the public hub, but mirrors and stand-ins also use the SHA-1 of the content, or any hash of
//! their own. So 40 digits alone prove nothing: they are held against the file only where the hub's list of files names
//! the same digits as its git hash. Other tags say nothing of the content, and only its size is checked.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::names::is_hex;
use super::remote::Listed;

/// What a file's content must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    /// SHA-256, in hexadecimal digits.
    Sha256(String),
    /// SHA-1 of git's header and the content, or of the content alone, in hexadecimal digits.
    Sha1(String),
    /// Nobody knows.
    Unknown,
}

impl Checksum {
    /// From a file's tag and what the list of files says.
    pub(super) fn of(etag: &str, listed: &Listed) -> Self {
        let tag = etag.to_ascii_lowercase();
        if is_hex(&tag, 64) {
            return Self::Sha256(tag);
        }
        if let Some(sha) = &listed.sha256 {
            return Self::Sha256(sha.clone());
        }
        match &listed.git {
            Some(git) if *git == tag => Self::Sha1(tag),
            _ => Self::Unknown,
        }
    }

    /// Whether the file has it. Reads all of it, unless nobody knows.
    pub(super) fn is_met(&self, path: &Path) -> io::Result<bool> {
        match self {
            Self::Unknown => Ok(true),
            Self::Sha256(expected) => {
                let mut hash = Context::new(&SHA256);
                read(path, |bytes| hash.update(bytes))?;
                Ok(hex(hash) == *expected)
            }
            Self::Sha1(expected) => {
                let mut plain = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                let mut git = plain.clone();
                git.update(format!("blob {}\0", std::fs::metadata(path)?.len()).as_bytes());
                read(path, |bytes| {
                    plain.update(bytes);
                    git.update(bytes);
                })?;
                Ok([hex(git), hex(plain)].contains(expected))
            }
        }
    }
}

fn read(path: &Path, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => take(&buffer[..n]),
        }
    }
}

fn hex(hash: Context) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes_of_a_known_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        // `sha256sum`, `git hash-object` and `sha1sum` of it.
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha1 = "f572d396fae9206628714fb2ce00f72e94f2258f";
        let listed = |digits: &str| Listed { git: Some(digits.into()), ..Listed::default() };
        let met = |checksum: Checksum| checksum.is_met(&path).unwrap();
        assert!(met(Checksum::of(sha256, &Listed::default())));
        assert!(!met(Checksum::of(&sha256.replace('5', "6"), &Listed::default())));
        for digits in [git, sha1] {
            assert!(met(Checksum::of(digits, &listed(digits))));
            assert_eq!(Checksum::of(digits, &Listed::default()), Checksum::Unknown);
        }
        let other = git.replace('c', "d");
        assert!(!met(Checksum::of(&other, &listed(&other))));
        assert_eq!(Checksum::of("abc", &listed(git)), Checksum::Unknown);
        let large = Listed { sha256: Some(sha256.into()), ..Listed::default() };
        assert!(met(Checksum::of("abc", &large)));
    }
}
