//! Our own TIFFs and others' in the viewer.

use std::io::Cursor;

use tiff::encoder::{Compression, TiffEncoder, colortype};
use tiff::tags::Tag;

use super::*;
use crate::output::testing::{Memory, embedded, largest_difference};
use crate::output::{TiffCompression, TiffOptions, TiffVariant, write_tiff};
use crate::raster::Levels;

fn source(picture: &Memory, compression: TiffCompression, variant: TiffVariant) -> TiffSource {
    let mut file = Cursor::new(Vec::new());
    write_tiff(&mut file, picture, &embedded(), TiffOptions { compression, variant }, &mut |_, _| Ok(()))
        .unwrap();
    TiffSource::new(file, "a").unwrap()
}

fn whole(source: &TiffSource, halvings: usize) -> Vec<u8> {
    let ImageSize { width, height } = source.size(halvings);
    source.region(halvings, PixelRect { left: 0, top: 0, width, height }).unwrap()
}

/// Deflated strips without a pyramid.
fn flat(picture: &Memory) -> Cursor<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    let size = picture.size(0);
    let mut encoder =
        TiffEncoder::new(&mut file).unwrap().with_compression(Compression::Deflate(Default::default()));
    encoder.write_image::<colortype::RGB8>(size.width, size.height, picture.rgb(0)).unwrap();
    file
}

#[test]
fn every_level_has_the_pixels_that_were_written() {
    for (width, height) in [(1, 1), (255, 257), (1000, 3), (700, 513)] {
        let picture = Memory::noise(width, height);
        for variant in [TiffVariant::Classic, TiffVariant::Big] {
            let source = source(&picture, TiffCompression::Deflate, variant);
            assert_eq!(source.describe().max_level as usize + 1, picture.levels());
            for k in 0..picture.levels() {
                assert_eq!(source.size(k), picture.size(k));
                assert!(whole(&source, k) == picture.rgb(k), "{width}x{height}, level {k}");
            }
            let rect = PixelRect {
                left: width / 3,
                top: height / 3,
                width: width.div_ceil(2),
                height: height.div_ceil(2),
            };
            assert!(source.region(0, rect).unwrap() == picture.read(0, rect).unwrap());
        }
    }
}

#[test]
fn jpeg_comes_back_closely() {
    let picture = Memory::smooth(700, 513);
    for (quality, tolerance) in [(90, 6), (80, 12)] {
        let source = source(&picture, TiffCompression::Jpeg { quality }, TiffVariant::Auto);
        for k in 0..3 {
            let difference = largest_difference(&whole(&source, k), picture.rgb(k));
            // Smaller levels have steeper slopes.
            assert!(difference <= tolerance * (k as u8 + 1), "quality {quality}, level {k}: {difference}");
        }
    }
}

#[test]
fn it_describes_itself() {
    let source = source(&Memory::smooth(300, 20), TiffCompression::Jpeg { quality: 90 }, TiffVariant::Big);
    let expected = Description {
        name: "a".into(),
        width: 300,
        height: 20,
        tile_size: 256,
        overlap: 0,
        max_level: 9,
        format: "BigTIFF, JPEG".into(),
        parameters: Some(embedded().parameters),
        settings: Some(embedded().json),
    };
    assert_eq!(source.describe(), expected);
}

#[test]
fn tiles_are_jpegs_of_their_place_and_end_at_the_edges() {
    let source = source(&Memory::smooth(700, 513), TiffCompression::Deflate, TiffVariant::Auto);
    for (level, column, row, size) in
        [(10, 0, 0, (256, 256)), (10, 2, 2, (188, 1)), (9, 1, 1, (94, 1)), (0, 0, 0, (1, 1))]
    {
        let (bytes, mime) = source.tile(level, column, row).unwrap();
        assert_eq!(mime, "image/jpeg");
        // The frame header: marker, length, precision, then height and width.
        let frame = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        let side = |at: usize| u16::from_be_bytes([bytes[frame + at], bytes[frame + at + 1]]);
        assert_eq!((side(7), side(5)), size);
    }
    for (level, column, row) in [(11, 0, 0), (10, 3, 0), (10, 0, 3), (0, 1, 0), (u32::MAX, 0, 0)] {
        assert!(matches!(source.tile(level, column, row), Err(ViewError::NoSuchTile { .. })));
    }
}

#[test]
fn a_flat_file_is_shrunk_as_needed() {
    let picture = Memory::noise(700, 513);
    let source = TiffSource::new(flat(&picture), "a").unwrap();
    for k in 0..picture.levels() {
        assert!(whole(&source, k) == picture.rgb(k), "level {k}");
    }
    assert_eq!(source.describe().parameters, None);
}

#[test]
fn a_large_flat_file_is_refused_with_the_remedy() {
    // Nothing is decoded when a file is opened, so its one compressed row may stand for all of them.
    let mut file = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut file).unwrap();
    let mut directory = encoder.image_directory().unwrap();
    for (tag, value) in [
        (Tag::ImageWidth, 9000u32),
        (Tag::ImageLength, 9000),
        (Tag::Compression, 1),
        (Tag::PhotometricInterpretation, 2),
        (Tag::SamplesPerPixel, 3),
        (Tag::RowsPerStrip, 1),
    ] {
        directory.write_tag(tag, value).unwrap();
    }
    directory.write_tag(Tag::BitsPerSample, &[8u16; 3][..]).unwrap();
    directory.write_tag(Tag::StripOffsets, &vec![8u32; 9000][..]).unwrap();
    directory.write_tag(Tag::StripByteCounts, &vec![27000u32; 9000][..]).unwrap();
    directory.finish().unwrap();
    let error = TiffSource::new(file, "a").err().expect("it is refused").to_string();
    assert!(error.contains("9000x9000") && error.contains("--pyramid"), "{error}");
}

#[test]
fn other_kinds_of_pixels_are_shown_or_refused() {
    let grey: Vec<u8> = (0..60).collect();
    let mut file = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new_big(&mut file).unwrap().with_compression(Compression::Lzw);
    encoder.write_image::<colortype::Gray8>(10, 6, &grey).unwrap();
    let source = TiffSource::new(file, "a").unwrap();
    assert_eq!(whole(&source, 0), grey.iter().flat_map(|v| [*v; 3]).collect::<Vec<_>>());
    assert_eq!(source.describe().format, "BigTIFF, LZW");

    let mut file = Cursor::new(Vec::new());
    let rgba: Vec<u8> = (0..80).collect();
    TiffEncoder::new(&mut file).unwrap().write_image::<colortype::RGBA8>(10, 2, &rgba).unwrap();
    let source = TiffSource::new(file, "a").unwrap();
    assert_eq!(whole(&source, 0)[..6], [0, 1, 2, 4, 5, 6]);

    let mut file = Cursor::new(Vec::new());
    TiffEncoder::new(&mut file).unwrap().write_image::<colortype::RGB16>(1, 1, &[1, 128, 65535]).unwrap();
    let source = TiffSource::new(file, "a").unwrap();
    assert_eq!(whole(&source, 0), [0, 0, 255]);

    let mut file = Cursor::new(Vec::new());
    TiffEncoder::new(&mut file).unwrap().write_image::<colortype::GrayI16>(1, 1, &[1]).unwrap();
    let error = TiffSource::new(file, "a").err().expect("signed samples are refused").to_string();
    assert!(error.contains("16-bit") && error.contains("convert it"), "{error}");
    assert!(TiffSource::new(Cursor::new(b"no TIFF".to_vec()), "a").is_err());
}

#[test]
fn levels_in_subifds_and_rounded_down_are_found() {
    let picture = Memory::smooth(601, 401);
    // Made of another colour, so that it is seen which was used.
    let small = vec![9u8; 300 * 200 * 3];
    let mut file = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut file).unwrap();
    let mut below = encoder.extra_directory().unwrap();
    let strip = below.write_data(&small[..]).unwrap() as u32;
    plain(&mut below, (300, 200), strip, small.len() as u32);
    below.write_tag(Tag::NewSubfileType, 1u32).unwrap();
    let below = below.finish_with_offsets().unwrap().offset;
    let mut directory = encoder.image_directory().unwrap();
    let strip = directory.write_data(picture.rgb(0)).unwrap() as u32;
    plain(&mut directory, (601, 401), strip, picture.rgb(0).len() as u32);
    directory.write_tag(Tag::SubIfd, below).unwrap();
    directory.finish().unwrap();
    let source = TiffSource::new(file, "a").unwrap();
    assert!(whole(&source, 0) == picture.rgb(0));
    assert_eq!(source.size(1), ImageSize { width: 301, height: 201 });
    assert!(whole(&source, 1).iter().all(|v| *v == 9));
    assert!(whole(&source, 3).iter().all(|v| *v == 9));
}

fn plain<W: std::io::Write + Seek>(
    directory: &mut tiff::encoder::DirectoryEncoder<'_, W, tiff::encoder::TiffKindStandard>,
    (width, height): (u32, u32),
    strip: u32,
    bytes: u32,
) {
    for (tag, value) in [
        (Tag::ImageWidth, width),
        (Tag::ImageLength, height),
        (Tag::Compression, 1),
        (Tag::PhotometricInterpretation, 2),
        (Tag::SamplesPerPixel, 3),
        (Tag::StripOffsets, strip),
        (Tag::StripByteCounts, bytes),
    ] {
        directory.write_tag(tag, value).unwrap();
    }
    directory.write_tag(Tag::BitsPerSample, &[8u16; 3][..]).unwrap();
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let mut cache = Cache::default();
    let chunk =
        |bytes: usize| Arc::new(Chunk { size: ImageSize { width: 1, height: 1 }, rgb: vec![0; bytes] });
    for column in 0..4 {
        cache.put((0, column, 0), chunk(CACHE_BYTES / 4));
    }
    assert!(cache.get((0, 0, 0)).is_some());
    cache.put((0, 9, 0), chunk(CACHE_BYTES / 4));
    assert!(cache.get((0, 0, 0)).is_some() && cache.get((0, 9, 0)).is_some());
    assert!(cache.get((0, 1, 0)).is_none());
    cache.put((1, 0, 0), chunk(CACHE_BYTES + 1));
    assert!(cache.get((1, 0, 0)).is_none() && cache.bytes <= CACHE_BYTES);
    cache.put((0, 9, 0), chunk(8));
    assert_eq!(cache.bytes, CACHE_BYTES / 4 * 3 + 8);
}

#[test]
fn several_threads_may_ask_at_once() {
    let picture = Memory::smooth(1500, 1500);
    let source = source(&picture, TiffCompression::Deflate, TiffVariant::Auto);
    let expected = source.tile(11, 1, 1).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for k in 0..36 {
                    source.tile(11, k % 6, k / 6).unwrap();
                }
                assert_eq!(source.tile(11, 1, 1).unwrap(), expected);
            });
        }
    });
}

#[test]
fn damage_is_an_error_and_no_more() {
    for compression in [TiffCompression::Deflate, TiffCompression::Jpeg { quality: 80 }] {
        let mut file = Cursor::new(Vec::new());
        let options = TiffOptions { compression, variant: TiffVariant::Auto };
        write_tiff(&mut file, &Memory::smooth(300, 40), &embedded(), options, &mut |_, _| Ok(())).unwrap();
        let whole = file.into_inner();
        for k in 0..400 {
            let mut bytes = whole.clone();
            // Spread over the file, by a step that shares no factor with its length.
            let at = (k * 7919) % bytes.len();
            match k % 4 {
                0 => bytes.truncate(at),
                _ => bytes[at] ^= 1 << (k % 8),
            }
            let Ok(source) = TiffSource::new(Cursor::new(bytes), "a") else { continue };
            for level in 0..=source.describe().max_level.min(12) {
                // Only that it returns.
                let _ = source.tile(level, 0, 0);
            }
        }
    }
}
