//! TIFFs read back by the `tiff` crate: pixels, levels, tags, determinism.

use std::io::Cursor;

use tiff::decoder::{Decoder, DecodingResult};

use super::*;
use crate::output::testing::{Memory, embedded, largest_difference, with_threads};
use crate::sampler::units::PixelRect;

const DEFLATE: TiffCompression = TiffCompression::Deflate;

fn written(picture: &Memory, compression: TiffCompression, variant: TiffVariant) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let options = TiffOptions { compression, variant };
    write_tiff(&mut file, picture, &embedded(), options, &mut |_, _| Ok(())).unwrap();
    file.into_inner()
}

fn levels_of(bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).unwrap();
    let mut levels = Vec::new();
    loop {
        let (width, height) = decoder.dimensions().unwrap();
        let DecodingResult::U8(pixels) = decoder.read_image().unwrap() else { panic!("8-bit samples") };
        levels.push((width, height, pixels));
        if !decoder.more_images() {
            return levels;
        }
        decoder.next_image().unwrap();
    }
}

#[test]
fn pixels_of_all_levels_come_back() {
    for (width, height, count) in [(1, 1, 1), (255, 257, 2), (1000, 3, 3), (700, 513, 3), (256, 256, 1)] {
        let picture = Memory::noise(width, height);
        for variant in [TiffVariant::Auto, TiffVariant::Big] {
            let levels = levels_of(&written(&picture, DEFLATE, variant));
            assert_eq!(levels.len(), count, "{width}x{height}");
            for (k, (width, height, pixels)) in levels.iter().enumerate() {
                assert_eq!(picture.size(k), ImageSize { width: *width, height: *height });
                assert_eq!(pixels, picture.rgb(k));
            }
        }
    }
}

#[test]
fn jpeg_stays_close_in_grey() {
    // The `tiff` crate returns YCbCr as stored; grey has its value as Y.
    let picture = Memory::new(300, 270, |x, y| [((x + y) / 3) as u8; 3]);
    for quality in [80, 90] {
        for (k, (_, _, pixels)) in
            levels_of(&written(&picture, TiffCompression::Jpeg { quality }, TiffVariant::Auto))
                .iter()
                .enumerate()
        {
            let luma: Vec<u8> = pixels.chunks_exact(3).map(|p| p[0]).collect();
            let truth: Vec<u8> = picture.rgb(k).chunks_exact(3).map(|p| p[0]).collect();
            assert!(largest_difference(&luma, &truth) <= 6, "quality {quality}, level {k}");
            assert!(pixels.chunks_exact(3).all(|p| p[1].abs_diff(128) <= 2 && p[2].abs_diff(128) <= 2));
        }
    }
}

#[test]
fn threads_change_no_byte() {
    let picture = Memory::smooth(1700, 1300);
    for compression in [DEFLATE, TiffCompression::Jpeg { quality: 85 }] {
        let one = with_threads(1, || written(&picture, compression, TiffVariant::Auto));
        let four = with_threads(4, || written(&picture, compression, TiffVariant::Auto));
        assert!(one == four);
    }
}

#[test]
fn texts_come_back() {
    for variant in [TiffVariant::Classic, TiffVariant::Big] {
        let bytes = written(&Memory::smooth(9, 9), DEFLATE, variant);
        let mut decoder = Decoder::new(Cursor::new(&bytes)).unwrap();
        let text = crate::input::texts::Told::of(crate::input::texts::of_directories(Cursor::new(&bytes)));
        assert_eq!(text.parameters.unwrap(), embedded().parameters);
        assert_eq!(text.settings.unwrap(), embedded().json);
        assert_eq!(decoder.get_tag_ascii_string(Tag::Software).unwrap(), embedded().software);
    }
}

#[test]
fn progress_counts_every_tile_and_can_end_it() {
    let picture = Memory::smooth(700, 513);
    let options = TiffOptions { compression: DEFLATE, variant: TiffVariant::Auto };
    let mut seen = Vec::new();
    let mut count = |done, total| {
        seen.push((done, total));
        Ok(())
    };
    write_tiff(Cursor::new(Vec::new()), &picture, &embedded(), options, &mut count).unwrap();
    assert_eq!(seen, (1..=14).map(|done| (done, 14)).collect::<Vec<_>>());
    let mut stop = |done, _| if done == 3 { Err(io::Error::other("stopped")) } else { Ok(()) };
    let error = write_tiff(Cursor::new(Vec::new()), &picture, &embedded(), options, &mut stop).unwrap_err();
    assert_eq!(error.to_string(), "stopped");
}

/// A picture that is all size and no pixels.
struct Vast(ImageSize);

impl Levels for Vast {
    fn levels(&self) -> usize {
        1 + (0..32).find(|k| self.0.width.max(self.0.height) <= 1 << k).unwrap()
    }
    fn size(&self, level: usize) -> ImageSize {
        let side = |n: u32| n.div_ceil(1 << level);
        ImageSize { width: side(self.0.width), height: side(self.0.height) }
    }
    fn read(&self, _: usize, _: PixelRect) -> io::Result<Vec<u8>> {
        Err(io::Error::other("read"))
    }
}

#[test]
fn offsets_are_wide_when_they_may_have_to_be() {
    let is_big = |side, compression| {
        let grids = grids(&Vast(ImageSize { width: side, height: side }));
        worst_size(&grids, &embedded(), compression) > u64::from(u32::MAX)
    };
    assert!(!is_big(16384, DEFLATE) && !is_big(32000, DEFLATE) && is_big(32768, DEFLATE));
    let jpeg = TiffCompression::Jpeg { quality: 90 };
    assert!(!is_big(18432, jpeg) && is_big(20000, jpeg));
    assert_eq!(&written(&Memory::smooth(4, 4), DEFLATE, TiffVariant::Auto)[..4], b"II*\0");
    assert_eq!(&written(&Memory::smooth(4, 4), DEFLATE, TiffVariant::Big)[..4], b"II+\0");
}

#[test]
fn noise_fits_the_bound() {
    let picture = Memory::noise(512, 512);
    let stark = Memory::new(512, 512, |x, y| {
        let at = picture.rgb(0)[(y as usize * 512 + x as usize) * 3];
        if at > 127 { [255; 3] } else { [0; 3] }
    });
    for quality in [75, 90, 100] {
        for picture in [&picture, &stark] {
            let compression = TiffCompression::Jpeg { quality };
            let bytes = written(picture, compression, TiffVariant::Auto).len() as u64;
            assert!(bytes < worst_size(&grids(picture), &embedded(), compression) * 9 / 10, "{quality}");
        }
    }
    let bytes = written(&picture, DEFLATE, TiffVariant::Auto).len() as u64;
    assert!(bytes < worst_size(&grids(&picture), &embedded(), DEFLATE));
}

#[test]
fn tiles_are_larger_in_the_largest_pictures() {
    let tile = |width, height| grids(&Vast(ImageSize { width, height }))[0].tile;
    assert_eq!((tile(16384, 16384), tile(16385, 100), tile(100, 20000)), (256, 512, 512));
}
