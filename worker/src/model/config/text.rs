//! `text_encoder/config.json`: a CLIP text model.

use super::Reader;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// GELU with the error function.
    Gelu,
}

/// A CLIP text model (Radford et al., arXiv 2103.00020).
#[derive(Debug, Clone)]
pub(crate) struct TextConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) max_positions: usize,
    pub(crate) activation: Activation,
    pub(crate) layer_norm_eps: f64,
    /// The token that ends a text. The value 2 is historical and means "the largest id".
    pub(crate) eos_token_id: u32,
    /// Width of the projected pooled state; `None` for a model without projection.
    pub(crate) projection: Option<usize>,
}

impl TextConfig {
    /// Reads `{folder}/config.json`; `projected` says whether the model ends in a projection.
    pub(crate) fn read(files: &ModelFiles, folder: &str, projected: bool) -> Result<Self, LoadError> {
        let r = Reader::open(files, &format!("{folder}/config.json"))?;
        let activation = match r.str_or("hidden_act", "quick_gelu")? {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            _ => return Err(r.error("hidden_act", "only \"quick_gelu\" or \"gelu\" is supported")),
        };
        let config = Self {
            vocab_size: r.size("vocab_size")?,
            hidden_size: r.size("hidden_size")?,
            intermediate_size: r.size("intermediate_size")?,
            layers: r.size("num_hidden_layers")?,
            heads: r.size("num_attention_heads")?,
            max_positions: r.usize_or("max_position_embeddings", 77)?,
            activation,
            layer_norm_eps: r.f64_or("layer_norm_eps", 1e-5)?,
            eos_token_id: r.usize_or("eos_token_id", 49407)? as u32,
            projection: if projected { Some(r.size("projection_dim")?) } else { None },
        };
        if !config.hidden_size.is_multiple_of(config.heads) {
            let expected = format!("it must divide `hidden_size` {}", config.hidden_size);
            return Err(r.error("num_attention_heads", expected));
        }
        if config.layers < 2 {
            return Err(r.error("num_hidden_layers", "the penultimate states need at least 2 layers"));
        }
        Ok(config)
    }
}
