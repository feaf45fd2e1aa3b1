//! Shared by the whole-farm tests: golden files, models, and a fake network.
#![allow(dead_code)]

pub(crate) mod by_hand;
pub(crate) mod faulty;
pub(crate) mod kept;
pub(crate) mod net;
pub(crate) mod s3;

use std::path::PathBuf;
use std::sync::Arc;

use gigasmith_coordinator::embedded::EmbeddedFarm;
use gigasmith_proto::domain::{
    Array, Component, Conditioning, Dtype, Fingerprint, ModelDescription, NoiseTask, NumericClass, Preset,
    Rect, ScheduleConfig, TextEncoding, VaePair,
};
use gigasmith_worker::backend::{Backend, BackendError};
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::model::{
    self, BatchChoice, DeviceChoice, HubOptions, LoadError, LoadOptions, ModelSource, Variant,
};
use gigasmith_worker::session::SessionOptions;

/// A file or folder under `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A farm of one on a CPU with the named model.
pub(crate) fn farm_of(model: &str) -> EmbeddedFarm {
    let source = ModelSource::parse(model).expect("the model is known");
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: Some(Dtype::F32),
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_env(),
    };
    farm_with(move || model::open(&source, &options))
}

/// A farm of one on any backend.
pub(crate) fn farm_with(
    load: impl FnOnce() -> Result<Box<dyn Backend>, LoadError> + Send + 'static,
) -> EmbeddedFarm {
    let device = DeviceThread::start(load).expect("the backend loads");
    let session = SessionOptions {
        name: "test".into(),
        device: "cpu".into(),
        slots: 2,
        coordinator: "embedded".into(),
        reconnects: false,
    };
    EmbeddedFarm::start(Arc::new(device), session)
}

/// A network of a few lines: deterministic, cheap, and sensitive to every input.
pub(crate) struct Fake {
    pub(crate) model: ModelDescription,
    /// Called before every answer; may replace it.
    pub(crate) spoil: Box<dyn FnMut(&'static str, Array) -> Result<Array, BackendError> + Send>,
}

impl Fake {
    /// A well-behaved fake with windows of 16 latent pixels and pictures of 64 x 64.
    pub(crate) fn new() -> Self {
        Self { model: description(), spoil: Box::new(|_, array| Ok(array)) }
    }
}

/// What the fake says it is.
pub(crate) fn description() -> ModelDescription {
    ModelDescription {
        name: "fake".into(),
        fingerprints: vec![(Component::Unet, Fingerprint([1; 32]))],
        numeric_class: NumericClass {
            backend: "cpu".into(),
            kernels: "none".into(),
            dtype: Dtype::F32,
            algorithm: 1,
        },
        patch_side: 16,
        latent_channels: 4,
        latent_factor: 4,
        scaling_factor: 0.5,
        vae_tile: 64,
        vae_reach: VaePair { encoder: 0, decoder: 1 },
        vae_norms: VaePair { encoder: 1, decoder: 2 },
        device_bytes: 0,
        force_zeros_for_empty_prompt: true,
        schedule: ScheduleConfig::SDXL,
        pag_blocks: vec!["m0".into()],
        native_sizes: vec![(64, 64)],
        preset: Preset { steps: 4, guidance_scale: 5.0, scale: 2.0, slider_shares: [0.5, 0.75] },
    }
}

/// Some statistics, each group's shifted by so much more than the one before.
fn statistics(part: &Array, shift: f32, groups: usize) -> Array {
    let n = part.data().len() as f32;
    let mean = part.data().iter().sum::<f32>() / n;
    let variance = part.data().iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
    let pairs = (0..groups).flat_map(|g| [mean + shift * g as f32, variance]);
    Array::new([groups, 2], pairs.collect()).expect("a mean and a variance each")
}

fn array(shape: [usize; 3], value: impl Fn(usize, usize, usize) -> f32) -> Array {
    let [c, h, w] = shape;
    let data = (0..c * h * w).map(|i| value(i / (h * w), i / w % h, i % w)).collect();
    Array::new(shape, data).expect("the shape fits")
}

impl Backend for Fake {
    fn describe(&self) -> &ModelDescription {
        &self.model
    }

    fn encode_text(&mut self, prompt: &str) -> Result<TextEncoding, BackendError> {
        let sum = prompt.bytes().map(f32::from).sum::<f32>() / 1000.0;
        let states = Array::new([77, 2], vec![sum; 154]).expect("the shape fits");
        Ok(TextEncoding { states, pooled: Array::new([1], vec![sum]).expect("one value"), dropped_tokens: 0 })
    }

    fn predict_noise(
        &mut self,
        task: &NoiseTask,
        conditioning: &Conditioning,
    ) -> Result<Array, BackendError> {
        let text = conditioning.pooled.data()[0];
        let place: f32 = task.time_ids.iter().zip([0.1, 0.2, 0.3, 0.5, 0.7, 1.1]).map(|(a, b)| a * b).sum();
        let mean = task.latent.data().iter().sum::<f32>() / task.latent.data().len() as f32;
        let mut noise = Array::clone(&task.latent);
        let offset = text + place * 0.01 + mean + task.timestep as f32 * 0.001;
        noise.data_mut().iter_mut().for_each(|v| *v = (*v * 1.2 + offset).sin());
        (self.spoil)("patch", noise)
    }

    fn encode_tile(&mut self, image: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        let (_, h, w) = image.chw().expect("three axes");
        let moments = array([8, h / 4, w / 4], |c, y, x| match c {
            0..4 => image.data()[(c % 3 * h + y * 4) * w + x * 4] * norms.map_or(1.0, |n| 1.0 + n.data()[0]),
            _ => -4.0,
        });
        (self.spoil)("encode", moments)
    }

    fn decode_tile(&mut self, latent: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        let (_, h, w) = latent.chw().expect("three axes");
        let shift = norms.map_or(0.0, |n| n.data().iter().sum::<f32>() * 0.1);
        let image =
            array([3, h * 4, w * 4], |c, y, x| (latent.data()[(c * h + y / 4) * w + x / 4] + shift).tanh());
        (self.spoil)("decode", image)
    }

    fn encoder_norms(&mut self, image: &Array, _: Option<&Array>, part: Rect) -> Result<Array, BackendError> {
        (self.spoil)("encoder statistics", statistics(&part.of(image, 4), 0.0, 1))
    }

    fn decoder_norms(
        &mut self,
        latent: &Array,
        norms: Option<&Array>,
        part: Rect,
    ) -> Result<Array, BackendError> {
        // The second group's follow from what was given for the first.
        let given = norms.map_or(0.0, |n| n.data()[0]);
        (self.spoil)("decoder statistics", statistics(&part.of(latent, 1), given, 2))
    }
}
