//! Samples as a file has them, turned into 8-bit sRGB: colours by their profile, transparency over white.
//!
//! White is what browsers show behind a transparent picture.

use std::sync::atomic::{AtomicBool, Ordering};

use super::colour::{Model, ToSrgb, widened};

/// Pixels that are turned at a time.
const AT_ONCE: usize = 4096;

/// What a pixel's alpha means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpha {
    /// There is none.
    None,
    /// Colours are as they were drawn.
    Straight,
    /// Colours are multiplied by it.
    Premultiplied,
}

/// The samples of a pixel: colours, then alpha, then what is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PixelLayout {
    pub(crate) model: Model,
    pub(crate) alpha: Alpha,
    pub(crate) skipped: usize,
}

impl PixelLayout {
    /// Colours alone.
    pub(crate) fn plain(model: Model) -> Self {
        Self { model, alpha: Alpha::None, skipped: 0 }
    }

    /// Colours and straight alpha.
    pub(crate) fn with_alpha(model: Model) -> Self {
        Self { model, alpha: Alpha::Straight, skipped: 0 }
    }

    /// Samples of a pixel.
    pub(crate) fn channels(self) -> usize {
        self.model.channels() + usize::from(self.alpha != Alpha::None) + self.skipped
    }
}

/// Whole pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Samples<'a> {
    /// 0 to 255.
    U8(&'a [u8]),
    /// 0 to 65535.
    U16(&'a [u16]),
    /// 0 to 1; what lies outside is clipped.
    F32(&'a [f32]),
}

impl Samples<'_> {
    fn len(self) -> usize {
        match self {
            Self::U8(s) => s.len(),
            Self::U16(s) => s.len(),
            Self::F32(s) => s.len(),
        }
    }

    fn part(self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::U8(s) => Samples::U8(&s[range]),
            Self::U16(s) => Samples::U16(&s[range]),
            Self::F32(s) => Samples::F32(&s[range]),
        }
    }

    fn widened(self) -> Vec<u16> {
        match self {
            Self::U8(s) => s.iter().map(|&v| widened(v)).collect(),
            Self::U16(s) => s.to_vec(),
            // NaN becomes 0.
            Self::F32(s) => s.iter().map(|v| (v.clamp(0.0, 1.0) * 65535.0).round() as u16).collect(),
        }
    }
}

/// Turns a file's samples.
pub(crate) struct Converter {
    layout: PixelLayout,
    colour: ToSrgb,
    /// A pixel was not opaque.
    transparent: AtomicBool,
}

impl Converter {
    pub(crate) fn new(layout: PixelLayout, colour: ToSrgb) -> Self {
        Self { layout, colour, transparent: AtomicBool::new(false) }
    }

    /// Whether any pixel so far was not opaque.
    pub(crate) fn saw_transparency(&self) -> bool {
        self.transparent.load(Ordering::Relaxed)
    }

    /// Whether 8-bit RGB stays as it is.
    pub(crate) fn keeps_rgb8(&self) -> bool {
        self.colour.is_same() && self.layout == PixelLayout::plain(Model::Rgb)
    }

    /// Appends whole pixels as 8-bit RGB.
    pub(crate) fn rgb(&self, samples: Samples<'_>, out: &mut Vec<u8>) {
        let plain = self.colour.is_same() && self.layout.alpha == Alpha::None && self.layout.skipped == 0;
        match (samples, self.layout.model) {
            (Samples::U8(rgb), Model::Rgb) if plain => out.extend_from_slice(rgb),
            (Samples::U8(grey), Model::Grey) if plain => out.extend(grey.iter().flat_map(|&v| [v; 3])),
            // One rounding, not two.
            (Samples::F32(rgb), Model::Rgb) if plain => out.extend(rgb.iter().map(|v| rounded(*v))),
            (Samples::F32(grey), Model::Grey) if plain => {
                out.extend(grey.iter().flat_map(|v| [rounded(*v); 3]));
            }
            _ => {
                let step = AT_ONCE * self.layout.channels();
                for start in (0..samples.len()).step_by(step) {
                    self.turn(samples.part(start..(start + step).min(samples.len())).widened(), out);
                }
            }
        }
    }

    fn turn(&self, samples: Vec<u16>, out: &mut Vec<u8>) {
        let PixelLayout { model, alpha, skipped } = self.layout;
        let colours = model.channels();
        if alpha == Alpha::None {
            match skipped {
                0 => self.colour.turn(&samples, model, out),
                _ => {
                    let pixels = samples.chunks_exact(colours + skipped);
                    let kept: Vec<u16> = pixels.flat_map(|p| &p[..colours]).copied().collect();
                    self.colour.turn(&kept, model, out);
                }
            }
            return;
        }
        let pixels = samples.chunks_exact(self.layout.channels());
        let mut opaque = Vec::with_capacity(samples.len());
        for pixel in pixels.clone() {
            let most = pixel[colours];
            opaque.extend(pixel[..colours].iter().map(|&value| match alpha {
                Alpha::Premultiplied if most > 0 => {
                    (u32::from(value) * 65535 / u32::from(most)).min(65535) as u16
                }
                _ => value,
            }));
        }
        let start = out.len();
        self.colour.turn(&opaque, model, out);
        for (pixel, rgb) in pixels.zip(out[start..].chunks_exact_mut(3)) {
            let alpha = u32::from(pixel[colours]);
            if alpha < 65535 {
                self.transparent.store(true, Ordering::Relaxed);
                for value in rgb {
                    let over = u32::from(*value) * alpha + 255 * (65535 - alpha);
                    *value = ((over + 32767) / 65535) as u8;
                }
            }
        }
    }
}

fn rounded(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// The 8-bit sample that stands for a value of fewer bits.
pub(crate) fn of_bits(value: u8, bits: u8) -> u8 {
    let most = (1u16 << bits) - 1;
    (u16::from(value) * 255 / most) as u8
}

/// A palette's colours as 8-bit RGB.
pub(crate) fn palette_rgb(colours: &[u16], converter: &Converter) -> Vec<u8> {
    let mut rgb = Vec::new();
    // Palettes of old programs hold 8-bit values in 16-bit places.
    match colours.iter().all(|&v| v < 256) {
        true => {
            let colours: Vec<u8> = colours.iter().map(|&v| v as u8).collect();
            converter.rgb(Samples::U8(&colours), &mut rgb);
        }
        // As Pillow and libtiff have it: the upper byte.
        false => {
            let colours: Vec<u8> = colours.iter().map(|&v| (v >> 8) as u8).collect();
            converter.rgb(Samples::U8(&colours), &mut rgb);
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(layout: PixelLayout, samples: Samples<'_>) -> (Vec<u8>, bool) {
        let converter = Converter::new(layout, ToSrgb::Same);
        let mut out = Vec::new();
        converter.rgb(samples, &mut out);
        (out, converter.saw_transparency())
    }

    #[test]
    fn depths_are_rounded_once() {
        let rgb = PixelLayout::plain(Model::Rgb);
        assert_eq!(turned(rgb, Samples::U8(&[0, 128, 255])).0, [0, 128, 255]);
        assert_eq!(turned(rgb, Samples::U16(&[128, 129, 65535])).0, [0, 1, 255]);
        assert_eq!(turned(rgb, Samples::F32(&[-1.0, 0.5, f32::NAN])).0, [0, 128, 0]);
        assert_eq!(turned(PixelLayout::plain(Model::Grey), Samples::F32(&[2.0])).0, [255; 3]);
    }

    #[test]
    fn transparency_lies_over_white() {
        let straight = PixelLayout::with_alpha(Model::Rgb);
        let pixels = [0, 0, 0, 0, 200, 0, 100, 255, 0, 100, 200, 51];
        assert_eq!(
            turned(straight, Samples::U8(&pixels)),
            (vec![255, 255, 255, 200, 0, 100, 204, 224, 244], true)
        );
        assert!(!turned(straight, Samples::U8(&[1, 2, 3, 255])).1);
        let multiplied = PixelLayout { alpha: Alpha::Premultiplied, ..straight };
        assert_eq!(turned(multiplied, Samples::U8(&[0, 20, 40, 51])).0, [204, 224, 244]);
        let grey = PixelLayout { model: Model::Grey, alpha: Alpha::Straight, skipped: 1 };
        assert_eq!(turned(grey, Samples::U8(&[7, 255, 99, 9, 0, 99])).0, [7, 7, 7, 255, 255, 255]);
    }

    #[test]
    fn samples_that_mean_nothing_are_passed_over() {
        let layout = PixelLayout { model: Model::Rgb, alpha: Alpha::None, skipped: 2 };
        assert_eq!(
            turned(layout, Samples::U8(&[1, 2, 3, 9, 9, 4, 5, 6, 9, 9])),
            (vec![1, 2, 3, 4, 5, 6], false)
        );
    }
}
