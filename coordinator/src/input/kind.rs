//! Which format a file has, by its first bytes: names lie.

/// Bytes that tell.
pub(crate) const HEAD: usize = 4096;

/// Formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Png,
    Jpeg,
    WebP,
    /// BigTIFF too.
    Tiff,
    Bmp,
    Gif,
    /// A Deep Zoom descriptor.
    Dzi,
    /// Texts beside a picture.
    Json,
}

/// What is read, for people.
pub(crate) const READ: &str = "PNG, JPEG, WebP, TIFF, BMP, GIF and Deep Zoom (.dzi) are read";

/// Formats that are known by their first bytes and not read.
const REFUSED: &[(&[u8], &str)] = &[
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc", "JPEG XR"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"gimp xcf", "GIMP (XCF)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"IIU\0", "camera raw (RW2)"),
    (b"IIRO", "camera raw (ORF)"),
    (b"IIRS", "camera raw (ORF)"),
    (b"MMOR", "camera raw (ORF)"),
    (b"FOVb", "camera raw (X3F)"),
    (b"qoif", "QOI"),
    (b"DDS ", "DirectDraw surface (DDS)"),
    (b"farbfeld", "farbfeld"),
    (b"\0\0\x01\0", "icon (ICO)"),
    (b"\0\0\x02\0\0\0\0\0", "TGA"),
    (b"\0\0\x02\0", "cursor (CUR)"),
    (b"version https://git-lfs", "pointer of git-lfs (run `git lfs pull`)"),
    (b"PK\x03\x04", "ZIP (perhaps of Krita or OpenRaster)"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
];

/// Brands of the ISO base media format: `ftyp` follows a length.
const BRANDS: &[(&[&[u8; 4]], &str)] = &[
    (&[b"avif", b"avis"], "AVIF"),
    (&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"], "HEIC"),
    (&[b"crx "], "camera raw (CR3)"),
];

impl FileKind {
    /// Of a file that begins so; else what to tell people.
    pub(crate) fn of(head: &[u8]) -> Result<Self, String> {
        let refused =
            |name: &str| Err(format!("it is a file of {name}, which is not read: convert it to PNG or TIFF"));
        match head {
            [] => return Err("it is empty".into()),
            [0x89, b'P', b'N', b'G', ..] => return Ok(Self::Png),
            [0xff, 0xd8, 0xff, ..] => return Ok(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => return Ok(Self::WebP),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => {
                return match head.get(8..10) {
                    Some(b"CR") => refused("camera raw (CR2)"),
                    _ => Ok(Self::Tiff),
                };
            }
            [b'B', b'M', ..] if head.len() >= 18 => return Ok(Self::Bmp),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => return Ok(Self::Gif),
            [b'P', b'1'..=b'7', b' ' | b'\t' | b'\n' | b'\r' | b'#', ..] => return refused("Netpbm (PNM)"),
            [_, _, _, _, b'f', b't', b'y', b'p', rest @ ..] => {
                let brands = rest.as_chunks::<4>().0.iter().take(16);
                let known = |list: &[&[u8; 4]]| brands.clone().any(|b| list.contains(&b));
                let found = BRANDS.iter().find(|(list, _)| known(list));
                return refused(found.map_or("MP4 (a film?)", |(_, name)| name));
            }
            _ => {}
        }
        if let Some((_, name)) = REFUSED.iter().find(|(magic, _)| head.starts_with(magic)) {
            return refused(name);
        }
        let text = String::from_utf8_lossy(head);
        let text = text.trim_start_matches('\u{feff}').trim_start();
        if text.starts_with('{') {
            return Ok(Self::Json);
        }
        if text.starts_with('<') {
            return match () {
                () if text.contains("<svg") => refused("SVG"),
                () if text.contains("<Image") => Ok(Self::Dzi),
                () => refused("HTML or XML"),
            };
        }
        Err(format!("its bytes are those of no picture; {READ}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_formats() {
        let kinds: [(&[u8], FileKind); 9] = [
            (b"\x89PNG\r\n\x1a\n", FileKind::Png),
            (b"\xff\xd8\xff\xe0", FileKind::Jpeg),
            (b"RIFF\0\0\0\0WEBPVP8L", FileKind::WebP),
            (b"II*\0\x08\0\0\0\x01\0", FileKind::Tiff),
            (b"MM\0+", FileKind::Tiff),
            (b"BM\0\0\0\0\0\0\0\0\0\0\0\0\x28\0\0\0", FileKind::Bmp),
            (b"GIF89a", FileKind::Gif),
            (b"\xef\xbb\xbf<?xml version='1.0'?>\n<Image xmlns=", FileKind::Dzi),
            (b" {\"software\":", FileKind::Json),
        ];
        for (head, kind) in kinds {
            assert_eq!(FileKind::of(head), Ok(kind));
        }
    }

    #[test]
    fn others_are_named_with_the_remedy() {
        let cases: [(&[u8], &str); 12] = [
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0miafavif", "AVIF"),
            (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "MP4"),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "CR3"),
            (b"\xff\x0a\0\0", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
            (b"8BPS\0\x01", "PSD"),
            (b"%PDF-1.7", "PDF"),
            (b"<?xml version='1.0'?>\n<!-- x -->\n<svg>", "SVG"),
            (b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
            (b"P6\n1 1\n255\n", "Netpbm"),
            (b"<!DOCTYPE html>", "HTML"),
        ];
        for (head, name) in cases {
            let told = FileKind::of(head).unwrap_err();
            assert!(told.contains(name) && told.contains("convert it to PNG or TIFF"), "{told}");
        }
        assert_eq!(FileKind::of(b"").unwrap_err(), "it is empty");
        assert!(FileKind::of(b"hello").unwrap_err().contains("are read"));
    }
}
