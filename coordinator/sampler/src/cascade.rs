//! The sizes of a render's stages: a base at the model's own size, then enlargements up to the target.

mod base;

pub use base::{cut_off, cut_share};

use super::units::ImageSize;

/// The largest side of a picture, in image pixels.
const MAX_SIDE: u32 = 1 << 18;
/// The largest area of a picture, in image pixels: 32768 x 32768.
pub const MAX_AREA: u64 = 1 << 30;
/// The most upscale stages: doubling reaches the largest picture from one pixel in half as many.
pub const MAX_STAGES: usize = 32;
/// The smallest side of a picture, in latent pixels.
const MIN_LATENT_SIDE: u32 = 4;
/// A last stage that enlarges less than `2^0.3` is merged into the one before.
const SHORTEST_STAGE: f64 = 0.3;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SizeRequest {
    /// Width of the final picture.
    pub width: Option<u32>,
    /// Height of the final picture.
    pub height: Option<u32>,
    /// Linear size of the final picture against the base.
    pub scale: Option<f64>,
    /// Linear size of every upscale stage against the base.
    pub stages: Vec<f64>,
    /// Size of the base stage.
    pub base: Option<ImageSize>,
    /// Size of the picture that takes the place of the base stage.
    pub picture: Option<ImageSize>,
    /// A base of one of the model's own sizes, whatever it loses, as published.
    pub native_base: bool,
}

/// What the model says about sizes.
#[derive(Debug, Clone, Copy)]
pub struct ModelSizes<'a> {
    /// Sizes it was trained at, (width, height), the default first.
    pub native: &'a [(u32, u32)],
    /// Image pixels per latent pixel.
    pub latent_factor: u32,
    /// Scale when nothing is asked for.
    pub default_scale: f64,
}

/// The sizes of a render's stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cascade {
    /// The base stage, or the picture that takes its place.
    pub base: ImageSize,
    /// The base is more than the model sees at once: it is drawn in windows.
    pub base_in_windows: bool,
    /// The upscale stages, ending at the final size. Empty: the base is the final picture.
    pub upscales: Vec<ImageSize>,
}

/// A size that cannot be rendered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CascadeError {
    /// A side that is no multiple of the latent factor.
    #[error("{side} {value} is not a multiple of {factor}; the nearest are {below} and {above}")]
    OffGrid {
        /// `width` or `height`.
        side: &'static str,
        /// What was asked for.
        value: u32,
        /// Image pixels per latent pixel.
        factor: u32,
        /// The nearest smaller size that works.
        below: u32,
        /// The nearest larger size that works.
        above: u32,
    },
    /// Too small.
    #[error("{side} {value} is too small: at least {least} pixels are needed")]
    TooSmall {
        /// `width` or `height`.
        side: &'static str,
        /// What was asked for.
        value: u32,
        /// The least that works.
        least: u32,
    },
    /// Too large.
    #[error("{width}x{height} is too large: at most {MAX_SIDE} pixels a side and 32768x32768 in all")]
    TooLarge {
        /// Width asked for, in pixels.
        width: f64,
        /// Height asked for, in pixels.
        height: f64,
    },
    /// A scale below 1, or not a number.
    #[error("scale {0} is not a size: give a number of at least 1")]
    Scale(f64),
    /// A base that is larger than the picture.
    #[error("the base {base} is larger than the picture {target}: give a smaller --base, or leave it out")]
    BaseTooLarge {
        /// The base asked for.
        base: ImageSize,
        /// The final size.
        target: ImageSize,
    },
    /// Stage factors that do not rise.
    #[error(
        "stages {0:?} do not rise: give factors against the base, each larger than the one before and than 1, for example 2,4"
    )]
    Stages(Vec<f64>),
    /// More stages than any picture needs.
    #[error("{0} stages are too many: give at most {MAX_STAGES}")]
    TooManyStages(usize),
    /// Stage factors that end elsewhere than the size asked for.
    #[error(
        "the last of the stages is {last}, but the size asked for is {wanted:.2} times the base: leave out one of the two"
    )]
    StagesEnd {
        /// The last factor.
        last: f64,
        /// The factor that leads to the size asked for.
        wanted: f64,
    },
}

impl Cascade {
    /// The final size.
    pub fn target(&self) -> ImageSize {
        self.upscales.last().copied().unwrap_or(self.base)
    }

    /// Turns a request into sizes that are multiples of the latent factor.
    pub fn resolve(request: &SizeRequest, model: ModelSizes<'_>) -> Result<Self, CascadeError> {
        if request.stages.len() > MAX_STAGES {
            return Err(CascadeError::TooManyStages(request.stages.len()));
        }
        if !rises(&request.stages) {
            return Err(CascadeError::Stages(request.stages.clone()));
        }
        let (base, target) = base_and_target(request, model)?;
        check_range(target, model.latent_factor)?;
        let scale = cover(base, target);
        if request.picture.is_none() && scale <= 1.0 {
            if request.base.is_some() && scale < 1.0 {
                return Err(CascadeError::BaseTooLarge { base, target });
            }
            return match request.stages.last() {
                Some(&last) => Err(CascadeError::StagesEnd { last, wanted: scale }),
                None => {
                    let base_in_windows = base::needs_windows(target, &model);
                    Ok(Self { base: target, base_in_windows, upscales: Vec::new() })
                }
            };
        }
        let factors = match request.stages.last() {
            Some(&last) if (last / scale - 1.0).abs() > 0.05 => {
                return Err(CascadeError::StagesEnd { last, wanted: scale });
            }
            Some(_) => request.stages.clone(),
            None => doubling(scale),
        };
        let (last, earlier) = factors.split_last().expect("there is at least one stage");
        let between = |f: &f64| scaled(target, f / last, model.latent_factor);
        // A stage on the way that is too small to be a picture is left out.
        let earlier = earlier.iter().map(between).filter(|&s| check_range(s, model.latent_factor).is_ok());
        let upscales = earlier.chain([target]).collect();
        let base_in_windows = request.picture.is_none() && base::needs_windows(base, &model);
        Ok(Self { base, base_in_windows, upscales })
    }

    /// Whether pictures of this size can be made: in range, and a multiple of the latent factor.
    pub fn check(size: ImageSize, latent_factor: u32) -> Result<(), CascadeError> {
        check_range(size, latent_factor)?;
        on_grid("width", size.width, latent_factor)?;
        on_grid("height", size.height, latent_factor)
    }
}

fn base_and_target(
    request: &SizeRequest,
    model: ModelSizes<'_>,
) -> Result<(ImageSize, ImageSize), CascadeError> {
    let size = |(width, height): (u32, u32)| ImageSize { width, height };
    if let Some(base) = request.base {
        Cascade::check(base, model.latent_factor)?;
    }
    let start = request.picture.or(request.base);
    let native = start.unwrap_or(size(model.native[0]));
    if request.width.is_none() && request.height.is_none() {
        let scale = request.scale.or(request.stages.last().copied()).unwrap_or(model.default_scale);
        if !(scale.is_finite() && scale >= 1.0) {
            return Err(CascadeError::Scale(scale));
        }
        let (width, height) = (f64::from(native.width) * scale, f64::from(native.height) * scale);
        if width.max(height) > f64::from(MAX_SIDE) {
            return Err(CascadeError::TooLarge { width, height });
        }
        return Ok((native, scaled(native, scale, model.latent_factor)));
    }
    let other = |side: u32, factor: f64| scaled_side(f64::from(side) * factor, model.latent_factor);
    let target = match (request.width, request.height) {
        (Some(width), Some(height)) => ImageSize { width, height },
        (Some(width), None) => ImageSize { width, height: other(width, 1.0 / aspect(native)) },
        (None, Some(height)) => ImageSize { width: other(height, aspect(native)), height },
        (None, None) => unreachable!("handled above"),
    };
    Cascade::check(target, model.latent_factor)?;
    Ok((start.unwrap_or_else(|| base::choose(target, &model, !request.native_base)), target))
}

/// Width against height.
fn aspect(size: ImageSize) -> f64 {
    f64::from(size.width) / f64::from(size.height)
}

fn on_grid(side: &'static str, value: u32, factor: u32) -> Result<(), CascadeError> {
    let below = value / factor * factor;
    if below == value {
        return Ok(());
    }
    Err(CascadeError::OffGrid { side, value, factor, below, above: below + factor })
}

fn check_range(size: ImageSize, factor: u32) -> Result<(), CascadeError> {
    let least = factor * MIN_LATENT_SIDE;
    for (side, value) in [("width", size.width), ("height", size.height)] {
        if value < least {
            return Err(CascadeError::TooSmall { side, value, least });
        }
    }
    let area = u64::from(size.width) * u64::from(size.height);
    if size.width.max(size.height) > MAX_SIDE || area > MAX_AREA {
        return Err(CascadeError::TooLarge { width: size.width.into(), height: size.height.into() });
    }
    Ok(())
}

/// The factor by which `from` must grow to cover `to`.
fn cover(from: ImageSize, to: ImageSize) -> f64 {
    let ratio = |to: u32, from: u32| f64::from(to) / f64::from(from);
    ratio(to.width, from.width).max(ratio(to.height, from.height))
}

fn scaled(size: ImageSize, by: f64, factor: u32) -> ImageSize {
    let side = |s: u32| scaled_side(f64::from(s) * by, factor);
    ImageSize { width: side(size.width), height: side(size.height) }
}

/// The multiple of `factor` nearest to a length, at least one.
fn scaled_side(length: f64, factor: u32) -> u32 {
    let cells = (length / f64::from(factor)).round().max(1.0).min(f64::from(u32::MAX / factor));
    cells as u32 * factor
}

fn rises(stages: &[f64]) -> bool {
    let above = |(i, f): (usize, &f64)| f.is_finite() && *f > if i == 0 { 1.0 } else { stages[i - 1] };
    stages.iter().enumerate().all(above)
}

/// 2, 4, 8, ... and what is left.
fn doubling(scale: f64) -> Vec<f64> {
    let stages = (scale.log2() - SHORTEST_STAGE).ceil().max(1.0) as i32;
    (1..stages).map(|i| f64::from(2).powi(i)).chain([scale]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const SDXL: &[(u32, u32)] =
        &[(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (1344, 768), (768, 1344), (1536, 640)];

    pub(super) fn sdxl() -> ModelSizes<'static> {
        ModelSizes { native: SDXL, latent_factor: 8, default_scale: 4.0 }
    }

    fn resolve(request: SizeRequest) -> Result<Vec<(u32, u32)>, String> {
        let cascade = Cascade::resolve(&request, sdxl()).map_err(|e| e.to_string())?;
        Ok([cascade.base].into_iter().chain(cascade.upscales).map(|s| (s.width, s.height)).collect())
    }

    fn by_scale(scale: f64) -> SizeRequest {
        SizeRequest { scale: Some(scale), ..SizeRequest::default() }
    }

    fn by_size(width: u32, height: u32) -> SizeRequest {
        SizeRequest { width: Some(width), height: Some(height), ..SizeRequest::default() }
    }

    #[test]
    fn a_list_of_stages_without_end_is_refused() {
        let stages = |n: u32| (1..=n).map(|i| 1.0 + 3.0 * f64::from(i) / f64::from(n)).collect();
        let request = |n| SizeRequest { scale: Some(4.0), stages: stages(n), ..SizeRequest::default() };
        assert_eq!(resolve(request(32)).unwrap().len(), 33);
        let refused = resolve(request(33)).unwrap_err();
        assert_eq!(refused, "33 stages are too many: give at most 32");
    }

    #[test]
    fn stages_double_and_the_last_takes_what_is_left() {
        assert_eq!(resolve(SizeRequest::default()).unwrap(), [(1024, 1024), (2048, 2048), (4096, 4096)]);
        assert_eq!(resolve(by_scale(1.0)).unwrap(), [(1024, 1024)]);
        assert_eq!(resolve(by_scale(3.0)).unwrap(), [(1024, 1024), (2048, 2048), (3072, 3072)]);
        assert_eq!(resolve(by_scale(1.5)).unwrap(), [(1024, 1024), (1536, 1536)]);
        // 3840x2160 is 2.86 times 1344x768: what is left after doubling is worth a stage, 0.02 is not.
        assert_eq!(resolve(by_size(3840, 2160)).unwrap(), [(1344, 768), (2688, 1512), (3840, 2160)]);
        assert_eq!(resolve(by_size(2080, 2048)).unwrap(), [(1024, 1024), (2080, 2048)]);
        assert_eq!(resolve(by_size(512, 640)).unwrap(), [(512, 640)]);
    }

    #[test]
    fn stages_can_be_given() {
        let stages = |stages: &[f64]| SizeRequest { stages: stages.to_vec(), ..SizeRequest::default() };
        assert_eq!(resolve(stages(&[3.0, 4.0])).unwrap(), [(1024, 1024), (3072, 3072), (4096, 4096)]);
        assert!(resolve(stages(&[2.0, 2.0])).unwrap_err().contains("do not rise"));
        assert!(resolve(stages(&[1.0])).unwrap_err().contains("do not rise"));
        let both = SizeRequest { stages: vec![2.0], ..by_size(4096, 4096) };
        assert!(resolve(both).unwrap_err().contains("4.00 times"));
        let none = SizeRequest { stages: vec![2.0], ..by_size(64, 64) };
        assert!(resolve(none).unwrap_err().contains("leave out one"));
    }

    #[test]
    fn a_picture_keeps_its_aspect() {
        let picture = Some(ImageSize { width: 641, height: 480 });
        let request = SizeRequest { picture, ..by_scale(2.0) };
        assert_eq!(resolve(request).unwrap(), [(641, 480), (1280, 960)]);
    }

    #[test]
    fn a_panorama_keeps_its_aspect_from_the_base_on() {
        assert_eq!(
            resolve(by_size(32768, 4096)).unwrap(),
            [(8192, 1024), (16384, 2048), (32768, 4096)],
            "a strip of the native height"
        );
        assert_eq!(resolve(by_size(2048, 8192)).unwrap(), [(512, 2048), (1024, 4096), (2048, 8192)]);
        // Smaller than any base of its aspect: it is its own base.
        assert_eq!(resolve(by_size(2048, 256)).unwrap(), [(2048, 256)]);
        let cut = SizeRequest { native_base: true, ..by_size(8192, 1024) };
        assert_eq!(resolve(cut).unwrap()[0], (1536, 640));
    }

    #[test]
    fn a_base_can_be_given() {
        let base = |width, height| Some(ImageSize { width, height });
        let scaled = SizeRequest { base: base(2048, 1024), ..by_scale(2.0) };
        assert_eq!(resolve(scaled).unwrap(), [(2048, 1024), (4096, 2048)]);
        let sized = SizeRequest { base: base(1024, 512), ..by_size(2048, 1024) };
        assert_eq!(resolve(sized).unwrap(), [(1024, 512), (2048, 1024)]);
        let alone = SizeRequest { base: base(1024, 512), ..by_size(1024, 512) };
        assert_eq!(resolve(alone).unwrap(), [(1024, 512)]);
        let larger = SizeRequest { base: base(2048, 2048), ..by_size(1024, 1024) };
        let error = resolve(larger).unwrap_err();
        assert_eq!(
            error,
            "the base 2048x2048 is larger than the picture 1024x1024: give a smaller --base, or leave it out"
        );
        let off = SizeRequest { base: base(1000, 1001), ..by_scale(2.0) };
        assert!(resolve(off).unwrap_err().contains("1001 is not a multiple of 8"));
    }

    #[test]
    fn impossible_sizes_say_what_would_do() {
        let error = resolve(by_size(1000, 1001)).unwrap_err();
        assert_eq!(error, "height 1001 is not a multiple of 8; the nearest are 1000 and 1008");
        assert!(resolve(by_size(0, 64)).unwrap_err().contains("at least 32"));
        assert!(resolve(by_size(u32::MAX, u32::MAX)).unwrap_err().contains("too large"));
        for scale in [0.5, f64::NAN, f64::INFINITY, 1e9, -1.0] {
            assert!(resolve(by_scale(scale)).is_err(), "{scale}");
        }
    }
}
