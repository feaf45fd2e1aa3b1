//! How a camera was held: EXIF's orientation, 1 to 8.

use image::metadata::Orientation;

use crate::sampler::resize::Picture;
use crate::sampler::units::ImageSize;

/// The orientation that EXIF data says; 1 when it says none.
pub(crate) fn of_exif(exif: &[u8]) -> u8 {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    Orientation::from_exif_chunk(exif).map_or(1, Orientation::to_exif)
}

/// The picture as it was seen.
pub(crate) fn turned(size: ImageSize, mut rgb: Vec<u8>, orientation: u8) -> Picture {
    let (width, height) = (size.width as usize, size.height as usize);
    let (pixels, _) = rgb.as_chunks_mut::<3>();
    match orientation {
        2 => pixels.chunks_exact_mut(width).for_each(<[_]>::reverse),
        3 => pixels.reverse(),
        4 => {
            pixels.reverse();
            pixels.chunks_exact_mut(width).for_each(<[_]>::reverse);
        }
        5..=8 => {
            // Columns become rows: from the top or the bottom of each, from the first or the last.
            let (up, backwards) = (matches!(orientation, 6 | 7), matches!(orientation, 7 | 8));
            let mut out = Vec::with_capacity(pixels.len());
            for column in 0..width {
                let x = if backwards { width - 1 - column } else { column };
                for row in 0..height {
                    let y = if up { height - 1 - row } else { row };
                    out.push(pixels[y * width + x]);
                }
            }
            let size = ImageSize { width: size.height, height: size.width };
            return Picture::new(size, out.into_flattened());
        }
        _ => {}
    }
    Picture::new(size, rgb)
}

#[cfg(test)]
mod tests {
    use image::DynamicImage;

    use super::*;

    #[test]
    fn all_eight_are_those_of_the_image_crate() {
        let size = ImageSize { width: 3, height: 2 };
        let rgb: Vec<u8> = (0..18).collect();
        for n in 1..=8 {
            let mut image = DynamicImage::ImageRgb8(image::RgbImage::from_raw(3, 2, rgb.clone()).unwrap());
            image.apply_orientation(Orientation::from_exif(n).unwrap());
            let picture = turned(size, rgb.clone(), n);
            assert_eq!((picture.size().width, picture.size().height), (image.width(), image.height()));
            assert_eq!(picture.rgb(), image.into_rgb8().into_raw(), "{n}");
        }
    }
}
