//! `unet/config.json`: UNet2DConditionModel with SDXL's `text_time` conditioning.
//!
//! Two traps of the format: `attention_head_dim` really is the *number* of heads, and
//! `resnet_out_scale_factor` is never applied to the block types supported here.

use serde::Serialize;
use serde_json::{Value, json};

use super::Reader;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// More than any network has: what a configuration can make this program allocate is bounded.
const MAX_WIDTH: usize = 1 << 14;
const MAX_BLOCKS: usize = 8;
const MAX_LAYERS: usize = 64;
const MAX_DEPTH: usize = 256;
const MAX_SIDE: usize = 4096;
const MAX_KERNEL: usize = 31;

/// What is between the down and the up path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum MidConfig {
    /// `UNetMidBlock2DCrossAttn`: a resnet, a transformer of so many layers, a resnet.
    Attention(usize),
    /// `UNetMidBlock2D` as diffusers builds it here: one resnet (SSD-1B, Segmind-Vega).
    Resnet,
    /// Nothing (KOALA).
    Absent,
}

impl MidConfig {
    /// Transformer layers.
    pub(crate) fn depth(self) -> usize {
        match self {
            Self::Attention(depth) => depth,
            Self::Resnet | Self::Absent => 0,
        }
    }
}

/// One resolution of the down or up path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BlockConfig {
    /// Width.
    pub(crate) channels: usize,
    /// Number of resnets in the down path (the up path has one more).
    pub(crate) layers: usize,
    /// Number of transformer layers after each resnet of the down path; `None` for a block
    /// without attention.
    pub(crate) down_depths: Option<Vec<usize>>,
    /// The same for the up path, one entry more.
    pub(crate) up_depths: Option<Vec<usize>>,
    /// Number of attention heads.
    pub(crate) heads: usize,
    /// Width of the text states attended to.
    pub(crate) cross_dim: usize,
}

/// The whole network.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct UnetConfig {
    pub(crate) sample_size: usize,
    pub(crate) in_channels: usize,
    /// Channels at full resolution.
    pub(crate) base_channels: usize,
    pub(crate) flip_sin_to_cos: bool,
    pub(crate) freq_shift: f64,
    /// By resolution, the finest first.
    pub(crate) blocks: Vec<BlockConfig>,
    pub(crate) mid: MidConfig,
    /// Every residual sum of the middle block's resnets is divided by this.
    pub(crate) mid_scale: f64,
    pub(crate) downsample_padding: usize,
    pub(crate) norm_num_groups: usize,
    pub(crate) norm_eps: f64,
    pub(crate) use_linear_projection: bool,
    pub(crate) upcast_attention: bool,
    pub(crate) addition_time_embed_dim: usize,
    pub(crate) projection_input_dim: usize,
    pub(crate) time_embed_dim: usize,
    pub(crate) conv_in_kernel: usize,
    pub(crate) conv_out_kernel: usize,
}

impl UnetConfig {
    /// Width of the text states (all blocks of SDXL have the same).
    pub(crate) fn cross_dim(&self) -> usize {
        self.blocks[0].cross_dim
    }

    /// Width of the pooled text state.
    pub(crate) fn pooled_dim(&self) -> usize {
        self.projection_input_dim - 6 * self.addition_time_embed_dim
    }

    /// Reads `unet/config.json`.
    pub(crate) fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        let r = Reader::open(files, "unet/config.json")?;
        refuse_other_models(&r)?;
        refuse_unsupported(&r)?;
        let channels = r.sizes("block_out_channels", MAX_WIDTH)?;
        if channels.len() > MAX_BLOCKS {
            return Err(r.error("block_out_channels", format!("at most {MAX_BLOCKS} blocks are supported")));
        }
        let mid = mid(&r, channels.len())?;
        let blocks = read_blocks(&r, &channels, mid)?;
        let groups = r.size("norm_num_groups")?;
        if channels.iter().any(|c| c % groups != 0) {
            return Err(r.error("norm_num_groups", format!("it must divide every width of {channels:?}")));
        }
        let config = Self {
            sample_size: side(&r)?,
            in_channels: r.size_or("in_channels", 4, MAX_WIDTH)?,
            base_channels: channels[0],
            flip_sin_to_cos: r.bool_or("flip_sin_to_cos", true)?,
            freq_shift: r.f64_or("freq_shift", 0.0)?,
            mid,
            mid_scale: r.positive_or("mid_block_scale_factor", 1.0)?,
            downsample_padding: r.usize_or("downsample_padding", 1)?,
            norm_num_groups: groups,
            norm_eps: r.positive_or("norm_eps", 1e-5)?,
            use_linear_projection: r.bool_or("use_linear_projection", false)?,
            upcast_attention: r.bool_or("upcast_attention", false)?,
            addition_time_embed_dim: r.size_up_to("addition_time_embed_dim", MAX_WIDTH)?,
            projection_input_dim: r.size("projection_class_embeddings_input_dim")?,
            time_embed_dim: r.size_or("time_embedding_dim", channels[0] * 4, 4 * MAX_WIDTH)?,
            conv_in_kernel: odd(&r, "conv_in_kernel")?,
            conv_out_kernel: odd(&r, "conv_out_kernel")?,
            blocks,
        };
        config.check(&r)?;
        r.warn_unread();
        Ok(config)
    }

    /// Values that are right each by itself must make a network together.
    fn check(&self, r: &Reader) -> Result<(), LoadError> {
        if self.downsample_padding > 1 {
            return Err(r.error("downsample_padding", "only 0 or 1 is supported"));
        }
        if self.projection_input_dim <= 6 * self.addition_time_embed_dim {
            let expected = "it must exceed 6 times `addition_time_embed_dim` by the pooled text width";
            return Err(r.error("projection_class_embeddings_input_dim", expected));
        }
        for (key, value) in [
            ("addition_time_embed_dim", self.addition_time_embed_dim),
            ("block_out_channels", self.base_channels),
        ] {
            if value % 2 != 0 || value < 4 {
                return Err(r.error(key, "a sinusoidal embedding needs an even width of at least 4"));
            }
        }
        // The frequencies of the embeddings are spread over half their width less the shift.
        let half = self.addition_time_embed_dim.min(self.base_channels) / 2;
        if self.freq_shift < 0.0 || self.freq_shift > half as f64 - 1.0 {
            return Err(r.error("freq_shift", format!("a number from 0 to {} is needed", half - 1)));
        }
        Ok(())
    }
}

/// Fails on networks for another use than to make pictures of texts, and says which.
fn refuse_other_models(r: &Reader) -> Result<(), LoadError> {
    if let Some(class) = r.get("_class_name").and_then(Value::as_str).filter(|c| *c != "UNet2DConditionModel")
    {
        return Err(r.error("_class_name", format!("{class} is not supported; only UNet2DConditionModel is")));
    }
    if r.get("time_cond_proj_dim").is_some() {
        let what =
            "this is an LCM model, which is told the guidance scale; such models are not supported yet";
        return Err(r.error("time_cond_proj_dim", what));
    }
    let (inputs, outputs) = (r.usize_or("in_channels", 4)?, r.usize_or("out_channels", 4)?);
    if inputs == outputs {
        return Ok(());
    }
    let what = match (inputs, outputs) {
        (9, 4) => "this is an inpainting model (its UNet also sees a mask and a masked picture)",
        (8, 4) => "this is an editing model, as InstructPix2Pix (its UNet also sees a picture)",
        (7, 4) => "this is an upscaling model (its UNet also sees a small picture)",
        (5, 4) => "this is a depth model (its UNet also sees a depth map)",
        (4, 8) => "this is a model that also predicts the variance",
        _ => "this is a model with other inputs than outputs",
    };
    let key = if inputs == 4 { "out_channels" } else { "in_channels" };
    Err(r.error(key, format!("{what}; only models that make pictures of texts are supported")))
}

/// Fails on every value that means a network other than the one implemented.
fn refuse_unsupported(r: &Reader) -> Result<(), LoadError> {
    let text_time = r.get("addition_embed_type").and_then(Value::as_str) == Some("text_time");
    if !text_time {
        return Err(r.error("addition_embed_type", "only \"text_time\" (SDXL) is supported"));
    }
    r.require("act_fn", &[json!("silu"), json!("swish")])?;
    r.require("attention_type", &[json!("default")])?;
    r.require("resnet_time_scale_shift", &[json!("default")])?;
    r.require("time_embedding_type", &[json!("positional")])?;
    for key in [
        "center_input_sample",
        "class_embeddings_concat",
        "dual_cross_attention",
        "mid_block_only_cross_attention",
        "resnet_skip_time_act",
    ] {
        r.require(key, &[json!(false)])?;
    }
    for key in [
        "class_embed_type",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_class_embeds",
        "time_embedding_act_fn",
        "timestep_post_act",
    ] {
        r.require(key, &[])?;
    }
    let only_cross = r.get("only_cross_attention");
    let none =
        |v: &Value| v == &json!(false) || v.as_array().is_some_and(|l| l.iter().all(|b| b == &json!(false)));
    if only_cross.is_some_and(|v| !none(v)) {
        return Err(r.error("only_cross_attention", "only false is supported"));
    }
    // `dropout` is for training; the two others reach no supported block.
    r.ignore(&["dropout", "resnet_out_scale_factor", "addition_embed_type_num_heads"]);
    Ok(())
}

/// What `mid_block_type` says: a missing key is not the same as null.
fn mid(r: &Reader, blocks: usize) -> Result<MidConfig, LoadError> {
    const ATTENTION: &str = "UNetMidBlock2DCrossAttn";
    if r.is_null("mid_block_type") {
        return Ok(MidConfig::Absent);
    }
    match r.str_or("mid_block_type", ATTENTION)? {
        ATTENTION => Ok(MidConfig::Attention(mid_depth(r, blocks)?)),
        "UNetMidBlock2D" => Ok(MidConfig::Resnet),
        _ => Err(r.error(
            "mid_block_type",
            format!("only \"{ATTENTION}\", \"UNetMidBlock2D\" or null is supported"),
        )),
    }
}

fn read_blocks(r: &Reader, channels: &[usize], mid: MidConfig) -> Result<Vec<BlockConfig>, LoadError> {
    let n = channels.len();
    let down = has_attention(r, "down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"], n)?;
    let mut up = has_attention(r, "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D"], n)?;
    up.reverse();
    let layers = r.size_per("layers_per_block", 2, n, MAX_LAYERS)?;
    let key =
        if r.get("num_attention_heads").is_some() { "num_attention_heads" } else { "attention_head_dim" };
    let heads = r.size_per(key, 8, n, MAX_WIDTH)?;
    let cross = r.size_per("cross_attention_dim", 1280, n, MAX_WIDTH)?;
    if cross.iter().any(|c| c != &cross[0]) {
        return Err(r.error("cross_attention_dim", "the text states have one width, so all must be equal"));
    }
    let down_depths = depths(r, "transformer_layers_per_block", n)?;
    let mut up_depths = if r.get("reverse_transformer_layers_per_block").is_some() {
        depths(r, "reverse_transformer_layers_per_block", n)?
    } else {
        if let Some(i) = down_depths.iter().position(|d| matches!(d, Depth::PerLayer(_))) {
            let expected = format!(
                "block {i} lists depths per layer, so `reverse_transformer_layers_per_block` is needed"
            );
            return Err(r.error("transformer_layers_per_block", expected));
        }
        down_depths.iter().rev().cloned().collect()
    };
    up_depths.reverse();
    (0..n)
        .map(|i| {
            let attends = down[i] || up[i] || (i + 1 == n && mid.depth() > 0);
            if attends && !channels[i].is_multiple_of(heads[i]) {
                return Err(r.error(
                    key,
                    format!("the number of heads of block {i} must divide its width {}", channels[i]),
                ));
            }
            let count = |wanted: bool, depth: &Depth, layers: usize, key: &str| match (wanted, depth) {
                (false, _) => Ok(None),
                (true, Depth::Same(d)) => Ok(Some(vec![*d; layers])),
                (true, Depth::PerLayer(list)) if list.len() == layers => Ok(Some(list.clone())),
                _ => Err(r.error(key, format!("block {i} needs {layers} depths"))),
            };
            Ok(BlockConfig {
                channels: channels[i],
                layers: layers[i],
                down_depths: count(down[i], &down_depths[i], layers[i], "transformer_layers_per_block")?,
                up_depths: count(
                    up[i],
                    &up_depths[i],
                    layers[i] + 1,
                    "reverse_transformer_layers_per_block",
                )?,
                heads: heads[i],
                cross_dim: cross[i],
            })
        })
        .collect()
}

/// Transformer layers of one block: the same after each resnet, or one number for each.
#[derive(Debug, Clone)]
enum Depth {
    Same(usize),
    PerLayer(Vec<usize>),
}

fn depths(r: &Reader, key: &str, n: usize) -> Result<Vec<Depth>, LoadError> {
    let number = |v: &Value| v.as_u64().filter(|d| *d <= MAX_DEPTH as u64).map(|d| d as usize);
    let one = |v: &Value| match v {
        Value::Array(list) => list.iter().map(number).collect::<Option<Vec<_>>>().map(Depth::PerLayer),
        other => number(other).map(Depth::Same),
    };
    let found = match r.get(key) {
        None => Some(vec![Depth::Same(1); n]),
        Some(Value::Array(list)) if list.len() == n => list.iter().map(one).collect(),
        Some(Value::Array(_)) => None,
        Some(v) => number(v).map(|d| vec![Depth::Same(d); n]),
    };
    found.ok_or_else(|| {
        r.error(key, format!("one number up to {MAX_DEPTH}, or {n} of them, or {n} lists are needed"))
    })
}

fn mid_depth(r: &Reader, blocks: usize) -> Result<usize, LoadError> {
    match depths(r, "transformer_layers_per_block", blocks)?.last() {
        Some(Depth::Same(d)) => Ok(*d),
        Some(Depth::PerLayer(list)) if !list.is_empty() => Ok(list[0]),
        _ => Err(r.error("transformer_layers_per_block", "the last block needs a depth")),
    }
}

/// Which blocks attend to text; `names` are those of a block without and with attention.
fn has_attention(r: &Reader, key: &str, names: [&str; 2], n: usize) -> Result<Vec<bool>, LoadError> {
    let types = r.strings(key)?;
    if types.len() != n {
        return Err(r.error(key, format!("{n} block types are needed, one for each of `block_out_channels`")));
    }
    types
        .iter()
        .map(|t| match names.iter().position(|name| name == t) {
            Some(i) => Ok(i == 1),
            None => Err(r.error(key, format!("only {} and {} are supported", names[0], names[1]))),
        })
        .collect()
}

/// `sample_size`: a number, or a list of two equal ones.
fn side(r: &Reader) -> Result<usize, LoadError> {
    match r.get("sample_size") {
        Some(Value::Array(list)) if list.len() == 2 && list[0] == list[1] => {
            Ok(r.sizes("sample_size", MAX_SIDE)?[0])
        }
        Some(Value::Array(_)) => Err(r.error("sample_size", "only square native windows are supported")),
        _ => r.size_up_to("sample_size", MAX_SIDE),
    }
}

fn odd(r: &Reader, key: &str) -> Result<usize, LoadError> {
    let value = r.size_or(key, 3, MAX_KERNEL)?;
    if value % 2 == 1 { Ok(value) } else { Err(r.error(key, "an odd number is needed")) }
}
