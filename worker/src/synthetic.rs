//! A stand-in for a model: deterministic, cheap, with a settable latency. For tests and benchmarks only.
//!
//! Its answers depend on everything a network's would (window, place, timestep, text, guidance), so
//! that a wrong input shows, but they mean nothing: pictures come out as coloured noise. It is shaped
//! like SDXL: windows of 128 latent pixels, eight image pixels each. Its decoder has one normalisation, so
//! that tiles with statistics of their own differ from each other.

use std::str::FromStr;
use std::time::Duration;

use gigasmith_proto::domain::{
    Array, Component, Conditioning, Dtype, Fingerprint, ModelDescription, NoiseTask, NumericClass,
    PAPER_SLIDER_SHARES, Preset, Rect, ScheduleConfig, TextEncoding, VaePair,
};

use crate::backend::{Backend, BackendError};

/// Side of a window in latent pixels.
const SIDE: u32 = 128;
/// Image pixels per latent pixel.
const FACTOR: usize = 8;
const CHANNELS: usize = 4;

/// How a synthetic model behaves: `latency=MILLISECONDS,tile=MILLISECONDS,side=LATENT_PIXELS`, in any order, all
/// optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticOptions {
    /// How long a patch takes.
    pub latency: Duration,
    /// How long a tile takes.
    pub tile: Duration,
    /// Side of a window in latent pixels.
    pub side: u32,
}

impl Default for SyntheticOptions {
    fn default() -> Self {
        Self { latency: Duration::ZERO, tile: Duration::ZERO, side: SIDE }
    }
}

impl FromStr for SyntheticOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` has no value"))?;
            let number: u32 = value.parse().map_err(|_| format!("`{part}` is no number"))?;
            match key {
                "latency" => options.latency = Duration::from_millis(number.into()),
                "tile" => options.tile = Duration::from_millis(number.into()),
                "side" if (8..=1024).contains(&number) => options.side = number,
                "side" => return Err(format!("side {number} is not within 8 and 1024")),
                _ => return Err(format!("`{key}` is unknown")),
            }
        }
        Ok(options)
    }
}

/// The model `synthetic`.
#[derive(Debug, Clone)]
pub struct Synthetic {
    description: ModelDescription,
    latency: Duration,
    tile: Duration,
}

impl Synthetic {
    /// What it is called.
    pub const NAME: &str = "synthetic";

    /// A model with these options.
    pub fn new(options: SyntheticOptions) -> Self {
        Self { description: description(options.side), latency: options.latency, tile: options.tile }
    }
}

fn description(side: u32) -> ModelDescription {
    let pixels = side * FACTOR as u32;
    // No weights: the name and the side are the content.
    let content = format!("synthetic {side} v2");
    let fingerprint =
        |c: Component| (c, Fingerprint(*blake3::hash(format!("{content} {c:?}").as_bytes()).as_bytes()));
    ModelDescription {
        name: Synthetic::NAME.into(),
        fingerprints: [Component::Text, Component::Unet, Component::Vae].map(fingerprint).to_vec(),
        numeric_class: NumericClass {
            backend: "synthetic".into(),
            kernels: "portable".into(),
            dtype: Dtype::F32,
            algorithm: 1,
        },
        patch_side: side,
        latent_channels: CHANNELS as u32,
        latent_factor: FACTOR as u32,
        scaling_factor: 0.13025,
        vae_tile: pixels,
        vae_reach: VaePair { encoder: 0, decoder: 0 },
        vae_norms: VaePair { encoder: 0, decoder: 1 },
        device_bytes: 64 << 20,
        force_zeros_for_empty_prompt: true,
        schedule: ScheduleConfig::SDXL,
        pag_blocks: vec!["d0".into(), "m0".into(), "u0".into()],
        native_sizes: vec![(pixels, pixels)],
        preset: Preset { steps: 50, guidance_scale: 7.5, scale: 2.0, slider_shares: PAPER_SLIDER_SHARES },
    }
}

/// A number in [-1, 1] that changes with everything the answer should depend on.
fn mood(values: impl Iterator<Item = f32>) -> f32 {
    let sum = values.zip(1u32..).fold(0.0f32, |sum, (v, i)| (sum + v * 0.37 / i as f32) % 16.0);
    sum / 16.0
}

impl Backend for Synthetic {
    fn describe(&self) -> &ModelDescription {
        &self.description
    }

    fn encode_text(&mut self, prompt: &str) -> Result<TextEncoding, BackendError> {
        let mood = mood(prompt.bytes().map(f32::from));
        let states = Array::new([77, 2], vec![mood; 154]).expect("77 tokens of width 2");
        let pooled = Array::new([1], vec![mood]).expect("one value");
        Ok(TextEncoding { states, pooled, dropped_tokens: 0 })
    }

    fn predict_noise(
        &mut self,
        task: &NoiseTask,
        conditioning: &Conditioning,
    ) -> Result<Array, BackendError> {
        std::thread::sleep(self.latency);
        let pag = task.pag.as_ref().map_or(0.0, |p| p.scale + p.blocks.len() as f32);
        let negative = conditioning.negative.as_ref().map_or(0.0, |(_, pooled)| pooled.data()[0]);
        let settings = [task.timestep as f32, task.guidance_scale, pag, negative];
        let text = conditioning.pooled.data().iter().copied();
        let place = mood(task.time_ids.into_iter().chain(settings).chain(text));
        // The mean ties every output to every input of the window.
        let mean = task.latent.data().iter().sum::<f32>() / task.latent.data().len() as f32;
        let mut noise = Array::clone(&task.latent);
        noise.data_mut().iter_mut().for_each(|v| *v = *v * 0.9 + 0.05 * (place + mean));
        Ok(noise)
    }

    fn encode_tile(&mut self, image: &Array, _: Option<&Array>) -> Result<Array, BackendError> {
        let (height, width) = sides(image, "image tile", 3)?;
        std::thread::sleep(self.tile);
        let (h, w) = (height / FACTOR, width / FACTOR);
        let mut data = Vec::with_capacity(2 * CHANNELS * h * w);
        for channel in 0..CHANNELS {
            for y in 0..h {
                let row = (channel % 3 * height + y * FACTOR) * width;
                data.extend((0..w).map(|x| image.data()[row + x * FACTOR] * 4.0));
            }
        }
        data.resize(2 * CHANNELS * h * w, -6.0);
        Ok(Array::new([2 * CHANNELS, h, w], data).expect("mean and log-variance"))
    }

    fn decode_tile(&mut self, latent: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        let (h, w) = sides(latent, "latent tile", CHANNELS)?;
        std::thread::sleep(self.tile);
        let own = || statistics(latent, Rect { top: 0, left: 0, height: h, width: w });
        let [mean, variance] = norms.map_or_else(own, |n| [n.data()[0], n.data()[1]]);
        let scale = 0.4 / variance.max(1e-12).sqrt();
        let mut data = Vec::with_capacity(3 * h * w * FACTOR * FACTOR);
        for channel in 0..3 {
            for y in 0..h * FACTOR {
                let row = &latent.data()[(channel * h + y / FACTOR) * w..][..w];
                data.extend(row.iter().flat_map(|v| [((v - mean) * scale).clamp(-1.0, 1.0); FACTOR]));
            }
        }
        Ok(Array::new([3, h * FACTOR, w * FACTOR], data).expect("eight pixels a side"))
    }

    fn encoder_norms(&mut self, _: &Array, _: Option<&Array>, _: Rect) -> Result<Array, BackendError> {
        Ok(Array::zeros([0, 2]))
    }

    fn decoder_norms(
        &mut self,
        latent: &Array,
        _: Option<&Array>,
        part: Rect,
    ) -> Result<Array, BackendError> {
        sides(latent, "latent tile", CHANNELS)?;
        Ok(Array::new([1, 2], statistics(latent, part).to_vec()).expect("one group"))
    }
}

/// Mean and variance over a part of all channels.
fn statistics(latent: &Array, part: Rect) -> [f32; 2] {
    let part = part.of(latent, 1);
    let mean_of = |value: &dyn Fn(f64) -> f64| {
        part.data().iter().map(|&v| value(f64::from(v))).sum::<f64>() / part.data().len() as f64
    };
    let mean = mean_of(&|v| v);
    [mean as f32, mean_of(&|v| (v - mean).powi(2)) as f32]
}

fn sides(array: &Array, what: &'static str, channels: usize) -> Result<(usize, usize), BackendError> {
    match array.chw() {
        Some((c, h, w)) if c == channels => Ok((h, w)),
        _ => {
            let expected = format!("({channels}, height, width)");
            Err(BackendError::Shape { what, actual: array.shape().to_vec(), expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use gigasmith_proto::domain::{ConditioningId, WireDtype};

    use super::*;

    #[test]
    fn every_input_counts() {
        let mut model = Synthetic::new(SyntheticOptions::default());
        let conditioning = |text: f32| Conditioning {
            prompt: Array::zeros([77, 2]),
            pooled: Array::new([1], vec![text]).unwrap(),
            negative: None,
        };
        let task = NoiseTask {
            latent: Array::zeros([4, 8, 8]).into(),
            wire: WireDtype::F32,
            timestep: 1,
            time_ids: [64.0; 6],
            conditioning: ConditioningId([0; 32]),
            guidance_scale: 5.0,
            pag: None,
        };
        let first = model.predict_noise(&task, &conditioning(0.3)).unwrap();
        assert_eq!(first, model.predict_noise(&task, &conditioning(0.3)).unwrap());
        assert_ne!(first, model.predict_noise(&task, &conditioning(0.4)).unwrap());
        let changes: [fn(&mut NoiseTask); 4] = [
            |t| t.timestep = 21,
            |t| t.time_ids[3] = 8.0,
            |t| t.guidance_scale = 6.0,
            |t| std::sync::Arc::make_mut(&mut t.latent).data_mut()[200] = 1.0,
        ];
        for change in changes {
            let mut other = task.clone();
            change(&mut other);
            let noise = model.predict_noise(&other, &conditioning(0.3)).unwrap();
            assert_ne!(first.data()[0], noise.data()[0], "{other:?}");
        }
    }

    #[test]
    fn tiles_have_the_shapes_of_a_real_model() {
        let mut model = Synthetic::new(SyntheticOptions::default());
        assert_eq!(model.encode_tile(&Array::zeros([3, 16, 24]), None).unwrap().shape(), [8, 2, 3]);
        assert_eq!(model.decode_tile(&Array::zeros([4, 2, 3]), None).unwrap().shape(), [3, 16, 24]);
        assert!(model.decode_tile(&Array::zeros([3, 2, 3]), None).is_err());
    }
}
