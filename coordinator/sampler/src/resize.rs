//! Resizing a picture between stages: Lanczos with radius 3, antialiased, on 8-bit pixels, to the byte
//! as Pillow does it: columns first, then rows, each rounded to 8 bits, with 22-bit coefficients.
//! (The SIMD crates that follow Pillow filter rows first and end up to 13 levels away at sharp edges.)

use std::f64::consts::PI;

use bytes::Bytes;

use super::units::{ImageSize, PixelRect};

/// An 8-bit RGB picture, rows top to bottom. Clones share their pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    size: ImageSize,
    rgb: Bytes,
}

impl Picture {
    /// Wraps pixels. Panics unless there are `3 * width * height` bytes and both sides are above 0.
    pub fn new(size: ImageSize, rgb: Vec<u8>) -> Self {
        assert!(size.width > 0 && size.height > 0, "a picture has pixels");
        assert_eq!(rgb.len(), size.width as usize * size.height as usize * 3, "a pixel has three bytes");
        Self { size, rgb: rgb.into() }
    }

    /// Width and height.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// The pixels, three bytes each.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The same, to be shared or cut without a copy.
    pub fn bytes(&self) -> Bytes {
        self.rgb.clone()
    }

    /// The picture at another size, as [`Resize`] has it.
    pub fn resized(&self, to: ImageSize) -> Self {
        let resize = Resize::new(self.size, to);
        let all = PixelRect::all(to);
        let source = resize.source(all);
        Self { size: to, rgb: resize.part(all, &self.part(source)).into() }
    }

    /// The pixels of a part of it, which must lie inside.
    pub fn part(&self, rect: PixelRect) -> Vec<u8> {
        if rect == PixelRect::all(self.size) {
            return self.rgb.to_vec();
        }
        let stride = self.size.width as usize * 3;
        let rows = self.rgb.chunks_exact(stride).skip(rect.top as usize).take(rect.height as usize);
        let columns = rect.left as usize * 3..(rect.left + rect.width) as usize * 3;
        rows.flat_map(|row| &row[columns.clone()]).copied().collect()
    }
}

/// A picture's change to another size. The aspect is kept: what does not fit is cut off equally on both
/// sides. Any part of the result can be made on its own, from a part of the picture.
#[derive(Debug, Clone)]
pub struct Resize {
    columns: Filter,
    rows: Filter,
}

impl Resize {
    /// From one size to another.
    pub fn new(from: ImageSize, to: ImageSize) -> Self {
        let (from_width, from_height) = (f64::from(from.width), f64::from(from.height));
        let (to_width, to_height) = (f64::from(to.width), f64::from(to.height));
        let shrink = (from_width / to_width).min(from_height / to_height);
        Self {
            columns: Filter::new(from.width, centred(from_width, to_width * shrink), to.width),
            rows: Filter::new(from.height, centred(from_height, to_height * shrink), to.height),
        }
    }

    /// The part of the picture that a part of the result is made of.
    pub fn source(&self, rect: PixelRect) -> PixelRect {
        let (left, right) = self.columns.source(rect.left, rect.width);
        let (top, bottom) = self.rows.source(rect.top, rect.height);
        let [top, left, height, width] = [top, left, bottom - top, right - left].map(|n| n as u32);
        PixelRect { top, left, height, width }
    }

    /// A part of the result, from the pixels of [`Self::source`].
    pub fn part(&self, rect: PixelRect, source: &[u8]) -> Vec<u8> {
        let from = self.source(rect);
        let columns = self.columns.part(rect.left, rect.width, from.left);
        let wide = columns.across(source, from.width as usize);
        self.rows.part(rect.top, rect.height, from.top).down(&wide, rect.width as usize)
    }
}

/// The middle `part` of a length: where it begins and ends.
fn centred(length: f64, part: f64) -> (f64, f64) {
    // All of it, exactly, when rounding is the only difference.
    if length - part < 1e-9 * length { (0.0, length) } else { ((length - part) / 2.0, (length + part) / 2.0) }
}

/// Bits after the point in a coefficient: a sum of products with 8-bit values fits 32 bits.
const BITS: u32 = 22;
const RADIUS: f64 = 3.0;

/// For each output position: the first input position it is made of, and the coefficients from there.
#[derive(Debug, Clone)]
struct Filter {
    taps: Vec<(usize, Vec<i32>)>,
}

impl Filter {
    /// The filter that makes `to` positions of the range `from..until` of an axis of `length`.
    fn new(length: u32, (from, until): (f64, f64), to: u32) -> Self {
        let scale = (until - from) / f64::from(to);
        let stretch = scale.max(1.0);
        let support = RADIUS * stretch;
        let taps = (0..to).map(|position| {
            let center = from + (f64::from(position) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(length as usize);
            let weight = |input: usize| lanczos((input as f64 - center + 0.5) / stretch);
            let total: f64 = (first..last).map(weight).sum();
            let fixed = |w: f64| (w / total * f64::from(1 << BITS)).round() as i32;
            (first, (first..last).map(|input| fixed(weight(input))).collect())
        });
        Self { taps: taps.collect() }
    }

    /// Where the input of some output positions begins and ends.
    fn source(&self, first: u32, count: u32) -> (usize, usize) {
        let taps = &self.taps[first as usize..(first + count) as usize];
        let first = taps.iter().map(|(first, _)| *first).min().unwrap_or(0);
        (first, taps.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(first))
    }

    /// The filter for some output positions, on an input that begins at `from`.
    fn part(&self, first: u32, count: u32, from: u32) -> Self {
        let taps = &self.taps[first as usize..(first + count) as usize];
        Self { taps: taps.iter().map(|(at, weights)| (at - from as usize, weights.clone())).collect() }
    }

    /// Filters every row of pixels of three bytes.
    fn across(&self, rgb: &[u8], width: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(rgb.len() / width * self.taps.len());
        for row in rgb.chunks_exact(width * 3) {
            for (first, weights) in &self.taps {
                let mut sums = [1 << (BITS - 1); 3];
                for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                    sums.iter_mut().zip(pixel).for_each(|(s, &p)| *s += i32::from(p) * weight);
                }
                out.extend(sums.map(level));
            }
        }
        out
    }

    /// Filters every column.
    fn down(&self, rgb: &[u8], width: usize) -> Vec<u8> {
        let stride = width * 3;
        let mut out = Vec::with_capacity(self.taps.len() * stride);
        let mut sums = vec![0; stride];
        for (first, weights) in &self.taps {
            sums.fill(1 << (BITS - 1));
            for (row, weight) in rgb[first * stride..].chunks_exact(stride).zip(weights) {
                sums.iter_mut().zip(row).for_each(|(s, &p)| *s += i32::from(p) * weight);
            }
            out.extend(sums.iter().map(|&s| level(s)));
        }
        out
    }
}

fn level(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// `sinc(x) sinc(x / 3)` within three of 0.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { libm::sin(PI * x) / (PI * x) };
    if (-RADIUS..RADIUS).contains(&x) { sinc(x) * sinc(x / RADIUS) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_those_of_the_whole(
            (width, height, to_width, to_height) in (1u32..40, 1u32..40, 1u32..90, 1u32..90), seed: u32,
            (x, y, w, h) in (0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0),
        ) {
            let rgb = (0..width * height * 3).map(|i| (i ^ seed).wrapping_mul(2_654_435_761) as u8);
            let picture = Picture::new(ImageSize { width, height }, rgb.collect());
            let to = ImageSize { width: to_width, height: to_height };
            let piece = |length: u32, start: f64, part: f64| {
                let start = (f64::from(length) * start) as u32;
                (start, 1 + (f64::from(length - start - 1) * part) as u32)
            };
            let ((left, width), (top, height)) = (piece(to_width, x, w), piece(to_height, y, h));
            let rect = PixelRect { top, left, height, width };
            let resize = Resize::new(picture.size(), to);
            let part = resize.part(rect, &picture.part(resize.source(rect)));
            prop_assert_eq!(part, picture.resized(to).part(rect));
        }
    }

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
