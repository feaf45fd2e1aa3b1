//! Enlarging a picture between stages: Lanczos with radius 3, antialiased, on 8-bit pixels, as Pillow
//! does it (the recorded pictures are matched to the byte).

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::units::ImageSize;

/// An 8-bit RGB picture, rows top to bottom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    size: ImageSize,
    rgb: Vec<u8>,
}

impl Picture {
    /// Wraps pixels. Panics unless there are `3 * width * height` bytes and both sides are above 0.
    pub fn new(size: ImageSize, rgb: Vec<u8>) -> Self {
        assert!(size.width > 0 && size.height > 0, "a picture has pixels");
        assert_eq!(rgb.len(), size.width as usize * size.height as usize * 3, "a pixel has three bytes");
        Self { size, rgb }
    }

    /// Width and height.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// The pixels, three bytes each.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The picture at another size. The aspect is kept: what does not fit is cut off equally on both
    /// sides.
    pub fn resized(&self, to: ImageSize) -> Self {
        let source = ImageRef::new(self.size.width, self.size.height, &self.rgb, PixelType::U8x3)
            .expect("a picture's bytes fit its size");
        let mut target = Image::new(to.width, to.height, PixelType::U8x3);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
            .fit_into_destination(Some((0.5, 0.5)));
        Resizer::new().resize(&source, &mut target, &options).expect("both pictures have the same pixels");
        Self { size: to, rgb: target.into_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_aspect_cuts_both_sides_equally() {
        let (width, height) = (90u32, 30u32);
        let thirds =
            |x: u32| [255 * u8::from(x < 30), 255 * u8::from((30..60).contains(&x)), 255 * u8::from(x >= 60)];
        let rgb = (0..width * height).flat_map(|i| thirds(i % width)).collect();
        let square =
            Picture::new(ImageSize { width, height }, rgb).resized(ImageSize { width: 60, height: 60 });
        // The middle third fills the square; only Lanczos ringing reaches in from the sides.
        assert!(
            square
                .rgb()
                .chunks_exact(3)
                .enumerate()
                .all(|(i, p)| !(6..54).contains(&(i % 60)) || p == [0, 255, 0])
        );
    }
}
