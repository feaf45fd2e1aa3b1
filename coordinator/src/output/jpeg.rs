//! JPEG: whole files for Deep Zoom and the viewer, and the abbreviated streams that TIFF wants.
//!
//! The encoder runs without SIMD, whose results could differ between processors.

use std::io;

use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};

use crate::sampler::units::ImageSize;

/// From this quality on colours are stored at full resolution, below it at half, as libvips and others do.
const FULL_COLOUR: u8 = 90;

/// Horizontal and vertical subsampling of the colours at a quality.
pub(crate) fn subsampling(quality: u8) -> [u16; 2] {
    if quality >= FULL_COLOUR { [1, 1] } else { [2, 2] }
}

/// Fails unless the quality is 1 to 100.
pub(crate) fn check_quality(quality: u8) -> io::Result<()> {
    match quality {
        1..=100 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("JPEG quality {quality} is not in 1 to 100; 90 is usual"),
        )),
    }
}

/// A picture of at most 65535 pixels a side, 8-bit RGB, as a JPEG file.
pub(crate) fn encode_jpeg(rgb: &[u8], size: ImageSize, quality: u8) -> io::Result<Vec<u8>> {
    check_quality(quality)?;
    let side = |pixels: u32| u16::try_from(pixels).map_err(io::Error::other);
    let mut jpeg = Vec::with_capacity(rgb.len() / 4);
    let mut encoder = Encoder::new(&mut jpeg, quality);
    encoder.set_sampling_factor(match subsampling(quality) {
        [1, 1] => SamplingFactor::F_1_1,
        _ => SamplingFactor::F_2_2,
    });
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder.encode(rgb, side(size.width)?, side(size.height)?, ColorType::Rgb).map_err(io::Error::other)?;
    Ok(jpeg)
}

/// A JPEG file taken apart as in TIFF Technical Note 2.
pub(crate) struct Abbreviated {
    /// Quantisation and Huffman tables; the same for all pictures of one quality.
    pub(crate) tables: Vec<u8>,
    /// Everything else, without the JFIF header.
    pub(crate) scan: Vec<u8>,
}

/// Takes a baseline JPEG file apart. The components get the numbers 1 to 3: readers that find no JFIF
/// header take other numbers for RGB.
pub(crate) fn abbreviate(jpeg: &[u8]) -> io::Result<Abbreviated> {
    const START: [u8; 2] = [0xff, 0xd8];
    const END: [u8; 2] = [0xff, 0xd9];
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the JPEG stream is broken; this is a defect");
    let (mut tables, mut scan) = (START.to_vec(), START.to_vec());
    let mut rest = jpeg.strip_prefix(&START).ok_or_else(broken)?;
    loop {
        let [0xff, marker, high, low, ..] = *rest else { return Err(broken()) };
        let length = 2 + usize::from(u16::from_be_bytes([high, low]));
        let (segment, after) = rest.split_at_checked(length).ok_or_else(broken)?;
        rest = after;
        match marker {
            0xdb | 0xc4 => tables.extend(segment),
            // The frame: precision, height, width and a count come before the components.
            0xc0 => scan.extend(numbered(segment, 10, 3).ok_or_else(broken)?),
            // The scan: a count before the components; after it come the coded pixels.
            0xda => {
                scan.extend(numbered(segment, 5, 2).ok_or_else(broken)?);
                scan.extend(rest);
                tables.extend(END);
                return Ok(Abbreviated { tables, scan });
            }
            0xe0..=0xef => {}
            _ => scan.extend(segment),
        }
    }
}

/// The segment with its components numbered from 1: the first at `start`, then every `step` bytes.
fn numbered(segment: &[u8], start: usize, step: usize) -> Option<Vec<u8>> {
    let count = *segment.get(start.checked_sub(1)?)?;
    let mut segment = segment.to_vec();
    for component in 0..count {
        *segment.get_mut(start + usize::from(component) * step)? = component + 1;
    }
    Some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::Memory;

    #[test]
    fn all_pictures_of_a_quality_share_their_tables() {
        let size = ImageSize { width: 16, height: 32 };
        for quality in [1, 80, 90, 100] {
            let parts = [Memory::smooth(16, 32), Memory::noise(16, 32)]
                .map(|p| abbreviate(&encode_jpeg(p.rgb(0), size, quality).unwrap()).unwrap());
            assert_eq!(parts[0].tables, parts[1].tables);
            assert_ne!(parts[0].scan, parts[1].scan);
            assert!(!parts[0].scan.windows(4).any(|w| w == b"JFIF"));
        }
    }

    #[test]
    fn wrong_qualities_and_streams_are_refused() {
        let size = ImageSize { width: 1, height: 1 };
        for quality in [0, 101] {
            let error = encode_jpeg(&[0; 3], size, quality).unwrap_err().to_string();
            assert!(error.contains(&quality.to_string()), "{error}");
        }
        let jpeg = encode_jpeg(&[0; 3], size, 90).unwrap();
        assert!(abbreviate(&jpeg[..100]).is_err());
        assert!(abbreviate(b"GIF89a").is_err());
    }
}
