//! What a model's networks are made of, and how each is built on its device: configurations and weights.

use candle_core::{DType, Device};

use super::clip::ClipText;
use super::describe::{Configs, TEXT, UNET, VAE};
use super::error::LoadError;
use super::files::ModelFiles;
use super::kernels::{self, working_dtype};
use super::layout::{self, Variant};
use super::names::Naming;
use super::unet::Unet;
use super::vae::Vae;
use super::weights::{Mode, Weights};

/// The text encoders while they are placed.
#[derive(Debug)]
pub(super) struct Text(pub(super) [ClipText; 2]);

/// The networks of one model, none of them placed.
#[derive(Debug)]
pub(super) struct Networks {
    pub(super) device: Device,
    /// What the noise predictor computes in.
    pub(super) dtype: DType,
    pub(super) configs: Configs,
    /// In the order of [`layout::WEIGHTED`].
    pub(super) weights: [Weights; 4],
}

impl Networks {
    /// Opens the files and checks every tensor's name and shape, without reading any weight.
    pub(super) fn open(
        files: &ModelFiles,
        (device, dtype): (Device, DType),
        variant: Variant,
    ) -> Result<Self, LoadError> {
        let configs = Configs::read(files)?;
        let open = |i: usize| {
            let naming = match i {
                UNET | VAE => Naming::Image,
                text => Naming::Text { projected: text == TEXT[1] },
            };
            Weights::open(files, layout::WEIGHTED[i], variant)?.named(naming)
        };
        let networks = Self { weights: [open(0)?, open(1)?, open(2)?, open(3)?], device, dtype, configs };
        networks.text(Mode::Check)?;
        networks.unet(Mode::Check)?;
        networks.vae(Mode::Check)?;
        Ok(networks)
    }

    /// Both text encoders.
    pub(super) fn text(&self, mode: Mode) -> Result<Text, LoadError> {
        let dtype = if self.device.is_cpu() { DType::F32 } else { self.dtype };
        let one = |i: usize| {
            self.weights[TEXT[i]]
                .build(mode, &self.device, dtype, |scope| ClipText::load(scope, &self.configs.text[i]))
        };
        Ok(Text([one(0)?, one(1)?]))
    }

    /// The noise predictor.
    pub(super) fn unet(&self, mode: Mode) -> Result<Unet, LoadError> {
        let (config, dtype) = (&self.configs.unet, self.dtype);
        let working = working_dtype(&self.device, dtype);
        self.weights[UNET].build(mode, &self.device, dtype, |scope| Unet::load(scope, config, working))
    }

    /// The VAE, in f32 where f16 is too narrow for it.
    pub(super) fn vae(&self, mode: Mode) -> Result<Vae, LoadError> {
        let config = &self.configs.vae;
        let overflows = self.dtype == DType::F16 && config.force_upcast;
        let dtype = if overflows { DType::F32 } else { self.dtype };
        let working = working_dtype(&self.device, dtype);
        if mode == Mode::Read && self.dtype != DType::F32 {
            kernels::round_f32(&self.device)?;
        }
        self.weights[VAE].build(mode, &self.device, dtype, |scope| Vae::load(scope, config, working))
    }
}
