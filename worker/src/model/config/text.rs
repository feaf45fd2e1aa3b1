//! `text_encoder/config.json`: a CLIP text model.

use serde::Serialize;

use super::Reader;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// More than any network has: what a configuration can make this program allocate is bounded.
const MAX_WIDTH: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_POSITIONS: usize = 1 << 12;
/// Start token, one of the text, end token.
const MIN_POSITIONS: usize = 3;

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Activation {
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// GELU with the error function.
    Gelu,
}

/// A CLIP text model (Radford et al., arXiv 2103.00020).
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TextConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) max_positions: usize,
    pub(crate) activation: Activation,
    pub(crate) layer_norm_eps: f64,
    /// The token that ends a text. The value 2 is historical and means "the largest id". Only the pooled state
    /// needs it: 0 for a model without projection.
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
            hidden_size: r.size_up_to("hidden_size", MAX_WIDTH)?,
            intermediate_size: r.size_up_to("intermediate_size", MAX_WIDTH)?,
            layers: r.size_up_to("num_hidden_layers", MAX_LAYERS)?,
            heads: r.size_up_to("num_attention_heads", MAX_WIDTH)?,
            max_positions: r.size_or("max_position_embeddings", 77, MAX_POSITIONS)?,
            activation,
            layer_norm_eps: r.positive_or("layer_norm_eps", 1e-5)?,
            eos_token_id: if projected { r.usize_or("eos_token_id", 49407)? as u32 } else { 0 },
            projection: if projected { Some(r.size_up_to("projection_dim", MAX_WIDTH)?) } else { None },
        };
        if config.eos_token_id as usize >= config.vocab_size {
            return Err(r.error(
                "eos_token_id",
                format!("a token of the vocabulary of {} is needed", config.vocab_size),
            ));
        }
        if config.max_positions < MIN_POSITIONS {
            return Err(r.error("max_position_embeddings", format!("at least {MIN_POSITIONS} is needed")));
        }
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
