//! Whole files, by their names.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::output::testing::{Memory, embedded, largest_difference};
use crate::output::{Format, encode_jpeg, write_picture};

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn refusal(path: &Path) -> String {
    read_picture(path).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for (name, quality) in [
        ("a.png", "lossless"),
        ("a.tif", "lossless"),
        ("b.tif", "95"),
        ("c.tif", "80"),
        ("a.dzi", "lossless"),
        ("b.dzi", "95"),
    ] {
        let path = folder.path().join(name);
        let format = Format::of(&path, Some(quality.parse().unwrap())).unwrap();
        for (width, height) in [(600, 520), (255, 3), (1, 1)] {
            let picture = Memory::smooth(width, height);
            write_picture(&path, &picture, &embedded(), format, &mut |_, _| Ok(())).unwrap();
            let Loaded { picture: found, warnings } = read_picture(&path).unwrap();
            assert_eq!(found.size(), ImageSize { width, height }, "{name}");
            let tolerance = if quality == "lossless" { 0 } else { 14 };
            let difference = largest_difference(found.rgb(), picture.rgb(0));
            assert!(difference <= tolerance, "{name} {width}x{height}: {difference}");
            assert!(warnings.is_empty(), "{name}: {warnings:?}");
        }
    }
}

#[test]
fn what_was_cut_off_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let picture = Memory::noise(700, 300);
    for (name, quality) in [("a.png", "lossless"), ("a.tif", "lossless"), ("b.tif", "90")] {
        let path = folder.path().join(name);
        let format = Format::of(&path, Some(quality.parse().unwrap())).unwrap();
        write_picture(&path, &picture, &embedded(), format, &mut |_, _| Ok(())).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for share in 0..16 {
            let cut = file(&folder, &format!("cut-{name}"), &whole[..whole.len() * share / 16]);
            assert!(refusal(&cut).contains(&format!("cut-{name}")), "{share} of 16");
        }
    }
    let path = folder.path().join("a.dzi");
    let format = Format::of(&path, Some("lossless".parse().unwrap())).unwrap();
    write_picture(&path, &picture, &embedded(), format, &mut |_, _| Ok(())).unwrap();
    let tile = folder.path().join("a_files/10/1_0.png");
    let bytes = std::fs::read(&tile).unwrap();
    std::fs::write(&tile, &bytes[..bytes.len() / 2]).unwrap();
    assert!(refusal(&path).contains("1_0.png"));
    std::fs::remove_file(&tile).unwrap();
    assert!(refusal(&path).contains("1_0.png is missing"), "{}", refusal(&path));
}

#[test]
fn what_is_no_picture_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    for (name, bytes, reason) in [
        ("empty.jpg", &b""[..], "it is empty"),
        ("photo.jpg", heic, "HEIC"),
        ("a.png", b"hello", "no picture"),
        ("a.json", b"{}", "no picture"),
    ] {
        let told = refusal(&file(&folder, name, bytes));
        assert!(told.contains(name) && told.contains(reason) && !told.contains('\n'), "{told}");
    }
    assert!(refusal(folder.path()).contains("it is a folder"));
    assert!(refusal(&folder.path().join("missing.png")).contains("missing.png"));
}

#[test]
fn names_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let size = ImageSize { width: 20, height: 10 };
    let jpeg = encode_jpeg(Memory::smooth(20, 10).rgb(0), size, 90).unwrap();
    assert_eq!(read_picture(&file(&folder, "a.png", &jpeg)).unwrap().picture.size(), size);
    assert_eq!(read_picture(&file(&folder, "without", &jpeg)).unwrap().picture.size(), size);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_decoded() {
    let mut png = Vec::new();
    let mut writer = ::png::Encoder::new(&mut png, 1 << 16, 1 << 15).write_header().unwrap();
    writer.write_chunk(::png::chunk::IDAT, &[0; 9]).unwrap();
    drop(writer);
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(&file(&folder, "a.png", &png)).contains("larger than 32768x32768"));
}
