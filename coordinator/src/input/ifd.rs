//! Directories of TIFF and EXIF: numbered entries, as they stand in the file.
//!
//! The `tiff` crate reads images; this reads what is not one: the metadata of a camera, and what tells a raw
//! file from a picture.

use std::io::{self, Read, Seek, SeekFrom};

/// More entries than any directory has.
const MOST_ENTRIES: u64 = 4096;

/// A file of directories.
pub(crate) struct Directories<R> {
    file: R,
    little: bool,
    big: bool,
    /// Where the first directory stands.
    pub(crate) first: u64,
}

/// An entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) tag: u16,
    kind: u16,
    count: u64,
    /// Where its value stands in the directory, or the place of the value.
    pub(crate) field: u64,
}

impl Entry {
    /// Bytes of one of its values (TIFF 6.0, section 2; BigTIFF adds 8-byte integers).
    fn width(&self) -> u64 {
        match self.kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => 1,
        }
    }
}

impl<R: Read + Seek> Directories<R> {
    /// Reads the header.
    pub(crate) fn open(mut file: R) -> io::Result<Self> {
        let no = || io::Error::new(io::ErrorKind::InvalidData, "it is no TIFF");
        file.rewind()?;
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let (little, big) = match head {
            [b'I', b'I', 42, 0, ..] => (true, false),
            [b'M', b'M', 0, 42, ..] => (false, false),
            [b'I', b'I', 43, 0, ..] => (true, true),
            [b'M', b'M', 0, 43, ..] => (false, true),
            _ => return Err(no()),
        };
        let mut found = Self { file, little, big, first: 0 };
        found.first = if big { found.integer(8, 8)? } else { found.integer(4, 4)? };
        Ok(found)
    }

    /// Whether numbers begin with their lowest byte.
    pub(crate) fn is_little(&self) -> bool {
        self.little
    }

    /// The entries of a directory, and where the next one stands (0: nowhere).
    pub(crate) fn entries(&mut self, at: u64) -> io::Result<(Vec<Entry>, u64)> {
        let (head, size) = if self.big { (8, 20) } else { (2, 12) };
        let count = self.integer(at, head)?;
        if count > MOST_ENTRIES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a directory has too many entries"));
        }
        let mut entries = Vec::new();
        for k in 0..count {
            let at = at.saturating_add(head).saturating_add(k * size);
            let width = if self.big { 8 } else { 4 };
            entries.push(Entry {
                tag: self.integer(at, 2)? as u16,
                kind: self.integer(at.saturating_add(2), 2)? as u16,
                count: self.integer(at.saturating_add(4), width)?,
                field: at.saturating_add(4 + width),
            });
        }
        let next = at.saturating_add(head).saturating_add(count * size);
        let next = self.integer(next, if self.big { 8 } else { 4 }).unwrap_or(0);
        Ok((entries, next))
    }

    /// An entry's bytes, at most `most`.
    pub(crate) fn bytes(&mut self, entry: &Entry, most: u64) -> io::Result<Vec<u8>> {
        let length = entry.count.saturating_mul(entry.width()).min(most);
        let inside = if self.big { 8 } else { 4 };
        let at = if length <= inside { entry.field } else { self.integer(entry.field, inside)? };
        self.file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        (&mut self.file).take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// An entry's integers, at most `most`.
    pub(crate) fn integers(&mut self, entry: &Entry, most: u64) -> io::Result<Vec<u64>> {
        let width = entry.width();
        let bytes = self.bytes(entry, most * width)?;
        Ok(bytes.chunks_exact(width as usize).map(|b| self.value(b)).collect())
    }

    fn integer(&mut self, at: u64, width: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..width as usize];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(bytes)?;
        Ok(self.value(bytes))
    }

    fn value(&self, bytes: &[u8]) -> u64 {
        let add = |sum: u64, b: &u8| sum << 8 | u64::from(*b);
        if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }
}

/// The first entry with a tag.
pub(crate) fn entry(entries: &[Entry], tag: u16) -> Option<&Entry> {
    entries.iter().find(|e| e.tag == tag)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn both_orders_and_sizes_are_read() {
        let little = b"II*\0\x08\0\0\0\x01\0\x06\x01\x03\0\x01\0\0\0\x05\0\0\0\0\0\0\0";
        let big = b"MM\0*\0\0\0\x08\0\x01\x01\x06\0\x03\0\0\0\x01\0\x05\0\0\0\0\0\0";
        for file in [&little[..], &big[..]] {
            let mut directories = Directories::open(Cursor::new(file)).unwrap();
            let (entries, next) = directories.entries(directories.first).unwrap();
            assert_eq!((entries.len(), next), (1, 0));
            assert_eq!(directories.integers(entry(&entries, 262).unwrap(), 9).unwrap(), [5]);
        }
        assert!(Directories::open(Cursor::new(b"II*\0")).is_err());
        let mut cut = Directories::open(Cursor::new(&little[..12])).unwrap();
        assert!(cut.entries(8).is_err());
    }
}
