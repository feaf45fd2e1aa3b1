//! What a model says of itself: configurations that fit each other, fingerprints, sizes, memory.

use candle_core::{DType, Device};
use gigasmith_proto::domain::{Component, Dtype, Fingerprint};

use super::config::{PresetFile, TextConfig, UnetConfig, VaeConfig, canonical_config};
use super::error::LoadError;
use super::files::ModelFiles;
use super::fingerprint::Content;
use super::kernels::working_dtype;
use super::layout;
use super::predictor::Predictor;
use super::select::candle_dtype;
use super::tokenizer::Tokenizer;
use super::weights::Weights;

/// Where components are in [`layout::WEIGHTED`].
pub(super) const TEXT: [usize; 2] = [0, 1];
pub(super) const UNET: usize = 2;
pub(super) const VAE: usize = 3;

/// The configurations of all components.
#[derive(Debug)]
pub(super) struct Configs {
    pub(super) text: [TextConfig; 2],
    pub(super) unet: UnetConfig,
    pub(super) vae: VaeConfig,
}

impl Configs {
    pub(super) fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        let configs = Self {
            text: [
                TextConfig::read(files, "text_encoder", false)?,
                TextConfig::read(files, "text_encoder_2", true)?,
            ],
            unet: UnetConfig::read(files)?,
            vae: VaeConfig::read(files)?,
        };
        configs.check(files)?;
        Ok(configs)
    }

    /// The components must fit each other.
    fn check(&self, files: &ModelFiles) -> Result<(), LoadError> {
        let width = self.text[0].hidden_size + self.text[1].hidden_size;
        let pooled = self.text[1].projection.unwrap_or(0);
        let pairs = [
            ("cross_attention_dim", self.unet.cross_dim(), width, "the text encoders' widths add up to"),
            ("in_channels", self.unet.in_channels, self.vae.latent_channels, "the VAE's latents have"),
            (
                "projection_class_embeddings_input_dim",
                self.unet.projection_input_dim,
                pooled + 6 * self.unet.addition_time_embed_dim,
                "pooled text and time ids add up to",
            ),
        ];
        for (key, value, other, what) in pairs {
            if value != other {
                return Err(LoadError::Config {
                    file: files.name("unet/config.json"),
                    key: key.into(),
                    value: value.to_string(),
                    expected: format!("{what} {other}"),
                });
            }
        }
        Ok(())
    }
}

/// Tokens of a text.
const TOKENS: usize = 77;
/// What fits at once through the VAE of a picture that is not cut.
const WHOLE_PIXELS: u64 = 1 << 20;

/// About what the device must hold at most: the weights that are placed together, and the largest of what a
/// call's patches (two rows each: with guidance) and a tile need beside them. The factors are what tensors of full
/// resolution there are at a time.
pub(super) fn device_bytes(
    (device, dtype): (&Device, Dtype),
    batch: usize,
    configs: &Configs,
    weights: &[Weights; 4],
) -> Memory {
    let size = |dtype: DType| dtype.size_in_bytes() as u64;
    let unet_dtype = candle_dtype(dtype);
    let vae_dtype =
        if unet_dtype == DType::F16 && configs.vae.force_upcast { DType::F32 } else { unet_dtype };
    let text_dtype = if device.is_cpu() { DType::F32 } else { unet_dtype };
    let bytes = |i: usize, dtype: DType| weights[i].count() * size(dtype);
    let text: u64 = TEXT.iter().map(|&i| bytes(i, text_dtype)).sum();
    let (unet, vae) = (bytes(UNET, unet_dtype), bytes(VAE, vae_dtype));
    // A GPU gives the VAE up when patches start, and patches when the VAE is needed stay.
    let placed = text.max(unet + vae);
    let side = configs.unet.sample_size as u64;
    let patch = batch as u64
        * 2
        * side
        * side
        * configs.unet.base_channels as u64
        * size(working_dtype(device, unet_dtype))
        * 20;
    let channels = configs.vae.block_out_channels.iter().take(2).max().copied().unwrap_or(0) as u64;
    let pixels = WHOLE_PIXELS.max((configs.vae.sample_size as u64).pow(2));
    let tile = pixels * channels * size(working_dtype(device, vae_dtype)) * 7 / 2;
    let text = Predictor::text_bytes(&configs.unet, (batch * 2, TOKENS), working_dtype(device, unet_dtype));
    Memory { placed, working: patch.max(tile) + text, vae: vae + tile }
}

/// Bytes on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Of weights.
    pub(super) placed: u64,
    /// Of what networks make on their way.
    pub(super) working: u64,
    /// Of the VAE: weights, and what it makes on its way.
    pub(super) vae: u64,
}

/// One hash per component. Configurations count as they were understood, so that the same network is the same
/// whoever wrote its file. Tokenizers count with the text encoders: by what they do to the words.
pub(super) fn fingerprints(
    configs: &Configs,
    weights: &[Weights; 4],
    tokenizers: &[Tokenizer; 2],
) -> Result<Vec<(Component, Fingerprint)>, LoadError> {
    let mut text = Content::default();
    for i in TEXT {
        text.add_text(&config_name(i), &canonical_config(&configs.text[usize::from(i == TEXT[1])]));
        tokenizers[i].describe(&mut text);
        text.add_weights(&weights[i])?;
    }
    let mut all = vec![(Component::Text, text.finish())];
    let (unet, vae) = (canonical_config(&configs.unet), canonical_config(&configs.vae));
    for (component, i, config) in [(Component::Unet, UNET, unet), (Component::Vae, VAE, vae)] {
        let mut content = Content::default();
        content.add_text(&config_name(i), &config);
        content.add_weights(&weights[i])?;
        all.push((component, content.finish()));
    }
    Ok(all)
}

fn config_name(component: usize) -> String {
    format!("{}/config.json", layout::WEIGHTED[component].0)
}

/// Sizes the model was trained at. SDXL's own list (Podell et al., arXiv 2307.01952, appendix I) for
/// models of its size and in proportion for others, unless the model's preset file says.
pub(super) fn native_sizes(presets: &PresetFile, configs: &Configs) -> Vec<(u32, u32)> {
    if !presets.native_sizes.is_empty() {
        return presets.native_sizes.clone();
    }
    let factor = configs.vae.factor() as u32;
    let side = configs.unet.sample_size as u32 * factor;
    // SDXL was trained at several aspects of equal area; other sizes follow in proportion.
    let cells = u64::from(side / factor);
    let scaled = |length: u64| ((length * cells + 512) / 1024) as u32 * factor;
    let mut sizes = vec![(side, side)];
    for (long, short) in [(1152, 896), (1216, 832), (1344, 768), (1536, 640)] {
        sizes.extend([(scaled(long), scaled(short)), (scaled(short), scaled(long))]);
    }
    sizes
}
