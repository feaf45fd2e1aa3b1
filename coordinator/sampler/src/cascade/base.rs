//! Which base fits a picture's aspect: one of the model's own sizes where little of it is cut away, else a
//! size of that aspect; and whether the model can see it at once or it is drawn in windows.
//!
//! A model draws well what is near its training sizes: SDXL's reach from half to twice the native side
//! (512x2048 to 2048x512, Podell et al., arXiv 2307.01952, appendix I). A wider panorama is drawn as a
//! strip as high as the native side, in windows of that side, as MultiDiffusion does (Bar-Tal et al.,
//! arXiv 2302.08113).

use super::{ModelSizes, aspect, scaled_side};
use crate::units::ImageSize;

/// The share of a base that may be cut away for the final aspect.
const MOST_CUT: f64 = 0.1;
/// The longest side that a model sees at once, in native sides.
const LONGEST_AT_ONCE: f64 = 2.0;
/// The largest area that a model sees at once, in native areas.
const LARGEST_AT_ONCE: f64 = 1.5;
/// Fitted sides are multiples of this share of the native side, where the latent grid allows.
const GRID_SHARE: f64 = 16.0;

/// The share of `base` that the aspect of `last` leaves out, 0 to 1.
pub fn cut_share(base: ImageSize, last: ImageSize) -> f64 {
    let (a, b) = (aspect(base), aspect(last));
    1.0 - (a / b).min(b / a)
}

/// The same, when it is worth a word: above a tenth.
pub fn cut_off(base: ImageSize, last: ImageSize) -> Option<f64> {
    Some(cut_share(base, last)).filter(|cut| *cut > MOST_CUT)
}

/// The base of a picture of size `target`: the native size of the nearest aspect; with `fits`, and where
/// that would lose more than a tenth, a size of the picture's own aspect.
pub(super) fn choose(target: ImageSize, model: &ModelSizes<'_>, fits: bool) -> ImageSize {
    let distance = |s: &ImageSize| (aspect(*s).ln() - aspect(target).ln()).abs();
    let sizes = model.native.iter().map(|&(width, height)| ImageSize { width, height });
    let nearest = sizes.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("a model has a size");
    if !fits || cut_off(nearest, target).is_none() { nearest } else { fitted(target, model) }
}

/// A base with the aspect of `target`: of the native area where its long side stays within twice the
/// native side, else as high (or wide) as the native side.
fn fitted(target: ImageSize, model: &ModelSizes<'_>) -> ImageSize {
    let side = native_side(model);
    let stretch = aspect(target).max(aspect(target).recip()).sqrt();
    let (long, short) = match side * stretch {
        long if long <= side * LONGEST_AT_ONCE => (long, side / stretch),
        _ => (side * stretch * stretch, side),
    };
    let grid = ((side / GRID_SHARE) as u32 / model.latent_factor).max(1) * model.latent_factor;
    let (long, short) = (scaled_side(long, grid), scaled_side(short, grid));
    if target.width > target.height {
        ImageSize { width: long, height: short }
    } else {
        ImageSize { width: short, height: long }
    }
}

/// Whether a base of this size is more than the model can see at once.
pub(super) fn needs_windows(base: ImageSize, model: &ModelSizes<'_>) -> bool {
    let side = native_side(model);
    let longest = f64::from(base.width.max(base.height));
    let area = f64::from(base.width) * f64::from(base.height);
    let is_native = model.native.contains(&(base.width, base.height));
    !is_native && (longest > side * LONGEST_AT_ONCE || area > side * side * LARGEST_AT_ONCE)
}

/// The side of a square of the default size's area, in image pixels.
fn native_side(model: &ModelSizes<'_>) -> f64 {
    let (width, height) = model.native[0];
    (f64::from(width) * f64::from(height)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SDXL, sdxl};
    use super::*;

    fn size(width: u32, height: u32) -> ImageSize {
        ImageSize { width, height }
    }

    #[test]
    fn a_base_near_a_native_aspect_is_native() {
        for target in [size(4096, 4096), size(3840, 2160), size(2160, 3840), size(6144, 2560)] {
            let base = choose(target, &sdxl(), true);
            assert!(SDXL.contains(&(base.width, base.height)), "{target}: {base}");
        }
    }

    #[test]
    fn no_aspect_loses_more_than_a_tenth() {
        for (width, height) in
            [(8192, 2048), (16384, 2048), (2048, 256), (256, 2048), (32768, 1024), (7680, 2160)]
        {
            let target = size(width, height);
            let base = choose(target, &sdxl(), true);
            assert_eq!(cut_off(base, target), None, "{target} from {base}");
            // As published: cut.
            let cut = choose(target, &sdxl(), false);
            assert!(SDXL.contains(&(cut.width, cut.height)), "{target}: {cut}");
        }
    }

    #[test]
    fn what_the_model_cannot_see_at_once_is_drawn_in_windows() {
        assert_eq!(choose(size(8192, 2048), &sdxl(), true), size(2048, 512));
        assert!(!needs_windows(size(2048, 512), &sdxl()));
        assert_eq!(choose(size(16384, 2048), &sdxl(), true), size(8192, 1024));
        assert_eq!(choose(size(2048, 16384), &sdxl(), true), size(1024, 8192));
        assert!(needs_windows(size(8192, 1024), &sdxl()));
        assert!(needs_windows(size(2048, 2048), &sdxl()));
        assert!(SDXL.iter().all(|&(w, h)| !needs_windows(size(w, h), &sdxl())));
    }
}
