//! What a picture's values mean as colours, turned into 8-bit sRGB.
//!
//! Profiles of curves and a matrix (cameras, phones, screens) and of one curve (grey) are computed here, in
//! double precision with `libm`: the same bytes on every machine. Profiles of tables (printers, scanners) go
//! through `moxcms`, which this workspace builds without its vector code for the same reason. The intent is
//! relative colorimetric, without black-point compensation. A profile that says sRGB in other words changes no
//! pixel.

use std::sync::{Arc, OnceLock};

use moxcms::{
    CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, DataColorSpace, Layout,
    MatrixCoefficients, RenderingIntent, ToneReprCurve, TransferCharacteristics, Transform16BitExecutor,
    TransformOptions, XyY,
};

/// Values of a 16-bit sample.
const VALUES: usize = 1 << 16;
/// Between two brightnesses that differ by less, the curve is taken for the same, as libpng does.
const GAMMA_TOLERANCE: f32 = 0.05;
/// What a file holds that gives only a number for its curve: the inverse of 2.2.
const SRGB_GAMMA: f32 = 0.45455;
/// A profile that moves no colour by more is sRGB in other words.
const SAME: u8 = 1;

/// What a sample stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// One value, 0 is black.
    Grey,
    /// Red, green, blue; 0 is none.
    Rgb,
    /// Cyan, magenta, yellow, black; 0 is no ink.
    Cmyk,
}

impl Model {
    /// Samples of a pixel.
    pub(crate) fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
            Self::Cmyk => 4,
        }
    }

    fn layout(self) -> Layout {
        match self {
            Self::Grey => Layout::Gray,
            Self::Rgb => Layout::Rgb,
            Self::Cmyk => Layout::Rgba,
        }
    }

    fn space(self) -> DataColorSpace {
        match self {
            Self::Grey => DataColorSpace::Gray,
            Self::Rgb => DataColorSpace::Rgb,
            Self::Cmyk => DataColorSpace::Cmyk,
        }
    }
}

/// Colours that cannot be turned into sRGB.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ColourError {
    /// Brighter than sRGB can be.
    #[error("its colours are HDR ({0}), which would come out pale: convert it to sRGB first")]
    Hdr(&'static str),
    /// The profile is not understood; the pixels may be taken as sRGB.
    #[error("{0}")]
    Profile(String),
}

/// A way to sRGB.
#[derive(Clone)]
pub(crate) enum ToSrgb {
    /// It is sRGB already; CMYK by the usual formula.
    Same,
    /// One curve.
    Grey(Arc<[u8]>),
    /// Curves, then a matrix between linear values.
    Matrix(Arc<Shaper>),
    /// Tables.
    Table(Arc<Transform16BitExecutor>),
}

/// Curves and a matrix.
pub(crate) struct Shaper {
    /// Linear values of 16-bit samples, by channel.
    linear: [Vec<f32>; 3],
    matrix: [[f32; 3]; 3],
}

impl ToSrgb {
    /// From an embedded ICC profile.
    pub(crate) fn of_icc(icc: &[u8], model: Model) -> Result<Self, ColourError> {
        let broken = |e: String| ColourError::Profile(format!("its colour profile cannot be used ({e})"));
        let profile = ColorProfile::new_from_slice(icc).map_err(|e| broken(e.to_string()))?;
        if let Some(cicp) = &profile.cicp {
            check_range(cicp.transfer_characteristics)?;
        }
        if profile.color_space != model.space() {
            let what = format!("it is for {:?}, the pixels are {model:?}", profile.color_space);
            return Err(broken(what));
        }
        Self::of_profile(&profile, model).map_err(broken)
    }

    /// From the numbers of H.273, which video and PNG's cICP chunk use.
    pub(crate) fn of_cicp(primaries: u8, transfer: u8, model: Model) -> Result<Self, ColourError> {
        let unknown = || {
            let what = format!("its colour space (primaries {primaries}, transfer {transfer}) is not known");
            ColourError::Profile(what)
        };
        let transfer = TransferCharacteristics::try_from(transfer).map_err(|_| unknown())?;
        check_range(transfer)?;
        let primaries = CicpColorPrimaries::try_from(primaries).map_err(|_| unknown())?;
        if primaries == CicpColorPrimaries::Bt709 && transfer == TransferCharacteristics::Srgb {
            return Ok(Self::Same);
        }
        let profile = ColorProfile::new_from_cicp(CicpProfile {
            color_primaries: primaries,
            transfer_characteristics: transfer,
            matrix_coefficients: MatrixCoefficients::Identity,
            full_range: true,
        });
        Self::of_rgb_or_grey(profile, model).ok_or_else(unknown)
    }

    /// From the exponent of a file's encoding, about 1/2.2, and where its white and primaries lie (CIE x, y):
    /// white, red, green, blue. Without them the primaries are sRGB's.
    pub(crate) fn of_gamma(gamma: f32, places: Option<[(f32, f32); 4]>, model: Model) -> Self {
        let srgb = [(0.3127, 0.329), (0.64, 0.33), (0.3, 0.6), (0.15, 0.06)];
        let near = |a: (f32, f32), b: (f32, f32)| (a.0 - b.0).abs() < 2e-3 && (a.1 - b.1).abs() < 2e-3;
        let places = places.unwrap_or(srgb);
        let same_places = places.iter().zip(srgb).all(|(a, b)| near(*a, b));
        let same_curve = (gamma / SRGB_GAMMA - 1.0).abs() <= GAMMA_TOLERANCE;
        if same_places && same_curve || !(0.01..=100.0).contains(&gamma) {
            return Self::Same;
        }
        let mut profile = ColorProfile::new_srgb();
        if !same_places {
            let [white, red, green, blue] = places;
            let chromaticity = |(x, y)| moxcms::Chromaticity { x, y };
            let primaries = ColorPrimaries {
                red: chromaticity(red),
                green: chromaticity(green),
                blue: chromaticity(blue),
            };
            profile.update_rgb_colorimetry(XyY::new(f64::from(white.0), f64::from(white.1), 1.0), primaries);
        }
        if !same_curve {
            let curve = ToneReprCurve::Parametric(vec![1.0 / gamma]);
            profile.red_trc = Some(curve.clone());
            profile.green_trc = Some(curve.clone());
            profile.blue_trc = Some(curve);
        }
        Self::of_rgb_or_grey(profile, model).unwrap_or(Self::Same)
    }

    /// An RGB profile without tables, for grey pixels too.
    fn of_rgb_or_grey(mut profile: ColorProfile, model: Model) -> Option<Self> {
        match model {
            Model::Rgb => {}
            Model::Grey => {
                profile.color_space = DataColorSpace::Gray;
                profile.gray_trc = profile.green_trc.clone();
            }
            Model::Cmyk => return None,
        }
        Self::of_profile(&profile, model).ok()
    }

    fn of_profile(profile: &ColorProfile, model: Model) -> Result<Self, String> {
        let tables = [
            &profile.lut_a_to_b_colorimetric,
            &profile.lut_a_to_b_perceptual,
            &profile.lut_a_to_b_saturation,
        ];
        let found = if tables.iter().any(|t| t.is_some()) {
            let options = TransformOptions {
                rendering_intent: RenderingIntent::RelativeColorimetric,
                prefer_fixed_point: false,
                interpolation_method: moxcms::InterpolationMethod::Tetrahedral,
                barycentric_weight_scale: moxcms::BarycentricWeightScale::High,
                ..TransformOptions::default()
            };
            let srgb = ColorProfile::new_srgb();
            let made = profile.create_transform_16bit(model.layout(), &srgb, Layout::Rgb, options);
            Self::Table(made.map_err(|e| e.to_string())?)
        } else {
            match (model, &profile.gray_trc, profile.is_matrix_shaper()) {
                (Model::Grey, Some(curve), _) => {
                    let encode = |v: usize| encoded(evaluate(curve, v as f64 / (VALUES - 1) as f64) as f32);
                    Self::Grey((0..VALUES).map(encode).collect())
                }
                (Model::Rgb, _, true) => Self::Matrix(Arc::new(Shaper::of(profile))),
                _ => return Err("it has neither curves nor tables".into()),
            }
        };
        Ok(if model != Model::Cmyk && found.changes_little(model) { Self::Same } else { found })
    }

    /// Whether it is sRGB in other words.
    fn changes_little(&self, model: Model) -> bool {
        let steps: Vec<u8> = match model {
            Model::Grey => (0..=255).collect(),
            _ => (0..=15).map(|v| v * 17).collect(),
        };
        let same: Vec<u8> = match model {
            Model::Grey => steps.iter().flat_map(|&v| [v; 3]).collect(),
            _ => steps
                .iter()
                .flat_map(|&r| steps.iter().flat_map(move |&g| [(r, g)]))
                .flat_map(|(r, g)| steps.iter().flat_map(move |&b| [r, g, b]))
                .collect(),
        };
        let samples: Vec<u16> = match model {
            Model::Grey => steps.iter().map(|&v| widened(v)).collect(),
            _ => same.iter().map(|&v| widened(v)).collect(),
        };
        let mut turned = Vec::with_capacity(same.len());
        self.turn(&samples, model, &mut turned);
        same.iter().zip(&turned).all(|(a, b)| a.abs_diff(*b) <= SAME)
    }

    /// Whether pixels stay as they are.
    pub(crate) fn is_same(&self) -> bool {
        matches!(self, Self::Same)
    }

    /// Turns whole pixels of 16-bit samples and appends them as 8-bit RGB.
    pub(crate) fn turn(&self, samples: &[u16], model: Model, out: &mut Vec<u8>) {
        match self {
            Self::Same => match model {
                Model::Grey => out.extend(samples.iter().flat_map(|&v| [narrowed(v); 3])),
                Model::Rgb => out.extend(samples.iter().map(|&v| narrowed(v))),
                Model::Cmyk => out.extend(samples.chunks_exact(4).flat_map(without_inks)),
            },
            Self::Grey(table) => out.extend(samples.iter().flat_map(|&v| [table[usize::from(v)]; 3])),
            Self::Matrix(shaper) => out.extend(samples.chunks_exact(3).flat_map(|p| shaper.turn(p))),
            Self::Table(transform) => {
                let mut rgb = vec![0; samples.len() / model.channels() * 3];
                // Fails for wrong lengths only.
                let turned = transform.transform(samples, &mut rgb);
                debug_assert!(turned.is_ok());
                out.extend(rgb.into_iter().map(narrowed));
            }
        }
    }
}

/// Fails for what is brighter than sRGB can show.
fn check_range(transfer: TransferCharacteristics) -> Result<(), ColourError> {
    match transfer {
        TransferCharacteristics::Smpte2084 => Err(ColourError::Hdr("PQ")),
        TransferCharacteristics::Hlg => Err(ColourError::Hdr("HLG")),
        _ => Ok(()),
    }
}

impl Shaper {
    fn of(profile: &ColorProfile) -> Self {
        let matrix = profile.transform_matrix(&ColorProfile::new_srgb()).v;
        let curves = [&profile.red_trc, &profile.green_trc, &profile.blue_trc];
        let linear = curves.map(|curve| {
            let curve = curve.as_ref().expect("a matrix profile has three curves");
            (0..VALUES).map(|v| evaluate(curve, v as f64 / (VALUES - 1) as f64) as f32).collect()
        });
        Self { linear, matrix: matrix.map(|row| row.map(|v| v as f32)) }
    }

    fn turn(&self, pixel: &[u16]) -> [u8; 3] {
        let [r, g, b] = [0, 1, 2].map(|c| self.linear[c][usize::from(pixel[c])]);
        self.matrix.map(|row| encoded(row[0] * r + row[1] * g + row[2] * b))
    }
}

/// A profile's curve at 0 to 1 (ICC.1:2022, 10.6 and 10.18).
fn evaluate(curve: &ToneReprCurve, x: f64) -> f64 {
    match curve {
        ToneReprCurve::Lut(points) => match &points[..] {
            [] => x,
            [gamma] => libm::pow(x, f64::from(*gamma) / 256.0),
            points => {
                let place = x * (points.len() - 1) as f64;
                let below = (place as usize).min(points.len() - 2);
                let [a, b] = [points[below], points[below + 1]].map(f64::from);
                (a + (b - a) * (place - below as f64)) / 65535.0
            }
        },
        ToneReprCurve::Parametric(numbers) => {
            let numbers: Vec<f64> = numbers.iter().map(|v| f64::from(*v)).collect();
            let (gamma, a, b, c, d, e, f) = match numbers[..] {
                [g] => (g, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
                [g, a, b] => (g, a, b, 0.0, -b / a, 0.0, 0.0),
                [g, a, b, c] => (g, a, b, 0.0, -b / a, c, c),
                [g, a, b, c, d] => (g, a, b, c, d, 0.0, 0.0),
                [g, a, b, c, d, e, f] => (g, a, b, c, d, e, f),
                _ => return x,
            };
            if x < d { c * x + f } else { libm::pow((a * x + b).max(0.0), gamma) + e }
        }
    }
}

/// A linear value as an sRGB value (IEC 61966-2-1), clipped and rounded.
fn encoded(linear: f32) -> u8 {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let encode = |v: usize| {
            let linear = v as f64 / (VALUES - 1) as f64;
            let value = match linear <= 0.003_130_8 {
                true => 12.92 * linear,
                false => 1.055 * libm::pow(linear, 1.0 / 2.4) - 0.055,
            };
            (value * 255.0).round() as u8
        };
        (0..VALUES).map(encode).collect()
    });
    // NaN becomes 0.
    table[(linear.clamp(0.0, 1.0) * (VALUES - 1) as f32 + 0.5) as usize]
}

/// No inks on white paper, where no profile tells more: what they leave of the light is multiplied.
fn without_inks(inks: &[u16]) -> [u8; 3] {
    const FULL: u64 = 65535;
    let black = FULL - u64::from(inks[3]);
    let left = |ink: u16| ((FULL - u64::from(ink)) * black * 255 + FULL * FULL / 2) / (FULL * FULL);
    [left(inks[0]), left(inks[1]), left(inks[2])].map(|v| v as u8)
}

/// An 8-bit sample as a 16-bit one.
pub(crate) fn widened(value: u8) -> u16 {
    u16::from(value) * 257
}

/// And back, rounded.
pub(crate) fn narrowed(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(profile: ColorProfile, model: Model, samples: &[u8]) -> Vec<u8> {
        let to = ToSrgb::of_icc(&profile.encode().unwrap(), model).unwrap();
        let samples: Vec<u16> = samples.iter().map(|&v| widened(v)).collect();
        let mut out = Vec::new();
        to.turn(&samples, model, &mut out);
        out
    }

    #[test]
    fn srgb_in_other_words_changes_nothing() {
        let to = |p: &ColorProfile, model| ToSrgb::of_icc(&p.encode().unwrap(), model).unwrap();
        assert!(to(&ColorProfile::new_srgb(), Model::Rgb).is_same());
        let mut tabulated = ColorProfile::new_srgb();
        tabulated.cicp = None;
        let srgb = tabulated.red_trc.clone().unwrap();
        let points = (0..1024).map(|v| (evaluate(&srgb, f64::from(v) / 1023.0) * 65535.0).round() as u16);
        let curve = ToneReprCurve::Lut(points.collect());
        tabulated.red_trc = Some(curve.clone());
        tabulated.green_trc = Some(curve.clone());
        tabulated.blue_trc = Some(curve);
        assert!(to(&tabulated, Model::Rgb).is_same());
        assert!(!to(&ColorProfile::new_display_p3(), Model::Rgb).is_same());
        assert!(ToSrgb::of_gamma(0.45455, None, Model::Rgb).is_same());
        assert!(!ToSrgb::of_gamma(1.0, None, Model::Grey).is_same());
        assert!(ToSrgb::of_cicp(1, 13, Model::Rgb).unwrap().is_same());
    }

    /// The values are LittleCMS's (relative colorimetric, no black-point compensation), which may round
    /// otherwise by one.
    #[test]
    fn wide_gamuts_come_back_as_littlecms_has_them() {
        let near = |a: &[u8], b: [u8; 3]| a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 1);
        let p3 = turned(ColorProfile::new_display_p3(), Model::Rgb, &[81, 157, 62, 230, 230, 230]);
        assert!(near(&p3[..3], [44, 159, 44]) && p3[3..] == [230; 3], "{p3:?}");
        let grey = turned(ColorProfile::new_gray_with_gamma(1.0), Model::Grey, &[0, 55, 255]);
        assert!(near(&grey[3..6], [128; 3]) && grey[..3] == [0; 3] && grey[6..] == [255; 3], "{grey:?}");
    }

    #[test]
    fn what_cannot_be_shown_is_told_from_what_is_broken() {
        assert_eq!(ToSrgb::of_cicp(9, 16, Model::Rgb).err(), Some(ColourError::Hdr("PQ")));
        assert_eq!(ToSrgb::of_cicp(9, 18, Model::Rgb).err(), Some(ColourError::Hdr("HLG")));
        let p3 = ColorProfile::new_display_p3().encode().unwrap();
        for (icc, model) in
            [(&p3[..60], Model::Rgb), (&b"no profile"[..], Model::Grey), (&p3[..], Model::Cmyk)]
        {
            assert!(matches!(ToSrgb::of_icc(icc, model), Err(ColourError::Profile(_))), "{model:?}");
        }
    }

    #[test]
    fn inks_without_a_profile_are_multiplied() {
        let mut out = Vec::new();
        let inks = [0, 0, 0, 0, 65535, 0, 0, 0, 0, 65535, 65535, 32768].map(|v| v as u16);
        ToSrgb::Same.turn(&inks, Model::Cmyk, &mut out);
        assert_eq!(out, [255, 255, 255, 0, 255, 255, 127, 0, 0]);
    }
}
