//! The CLIP text models (Radford et al., arXiv 2103.00020), as SDXL uses them: penultimate hidden
//! states without the final normalisation, and the projected end-of-text state of the last layer.

use candle_core::{D, DType, Result, Tensor};

use super::config::{Activation, TextConfig};
use super::error::LoadError;
use super::kernels::{self, AttentionSpec, Mask};
use super::layers::{LayerNorm, Linear};
use super::weights::Scope;

type Load<T> = std::result::Result<T, LoadError>;

/// What the encoder says of a text.
#[derive(Debug)]
pub(crate) struct ClipOutput {
    /// Output of the last but one layer, (tokens, width), f32.
    pub(crate) states: Tensor,
    /// Projected end-of-text state, (projection), f32; `None` for a model without projection.
    pub(crate) pooled: Option<Tensor>,
}

/// One CLIP text model.
#[derive(Debug)]
pub(crate) struct ClipText {
    config: TextConfig,
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    head: Option<Head>,
}

/// What turns the last layer's output into the pooled state.
#[derive(Debug)]
struct Head {
    norm: LayerNorm,
    projection: Linear,
}

impl ClipText {
    /// Takes every weight it needs from `scope`.
    pub(crate) fn load(scope: &Scope<'_>, config: &TextConfig) -> Load<Self> {
        let (width, text) = (config.hidden_size, scope.at("text_model"));
        let embeddings = text.at("embeddings");
        let layers = (0..config.layers)
            .map(|i| Layer::load(&text.at("encoder.layers").at(i), config))
            .collect::<Load<Vec<_>>>()?;
        // Without a projection nothing reads the last layer and the norm, but they are in the files.
        let norm = LayerNorm::load(&text.at("final_layer_norm"), width, config.layer_norm_eps)?;
        let head = config
            .projection
            .map(|p| Linear::load_unbiased(&scope.at("text_projection"), width, p))
            .transpose()?
            .map(|projection| Head { norm, projection });
        Ok(Self {
            tokens: embeddings.at("token_embedding").get("weight", &[config.vocab_size, width])?,
            positions: embeddings.at("position_embedding").get("weight", &[config.max_positions, width])?,
            layers,
            head,
            config: config.clone(),
        })
    }

    /// Encodes `ids`, which include the start and end tokens and the padding.
    pub(crate) fn forward(&self, ids: &[u32]) -> Result<ClipOutput> {
        let n = ids.len();
        let index = Tensor::from_slice(ids, n, self.tokens.device())?;
        let embedded = self.tokens.index_select(&index, 0)?.add(&self.positions.narrow(0, 0, n)?)?;
        let mut x = embedded.unsqueeze(0)?;
        let (last, before) = self.layers.split_last().expect("the configuration has at least 2 layers");
        for layer in before {
            x = layer.forward(&x)?;
        }
        let states = x.squeeze(0)?.to_dtype(DType::F32)?;
        let pooled = match &self.head {
            None => None,
            Some(head) => {
                let x = head.norm.forward(&last.forward(&x)?)?;
                let end = x.narrow(1, end_of_text(ids, self.config.eos_token_id), 1)?.squeeze(1)?;
                let pooled = head.projection.forward_rows(&end.contiguous()?)?;
                Some(pooled.squeeze(0)?.to_dtype(DType::F32)?)
            }
        };
        Ok(ClipOutput { states, pooled })
    }
}

/// Where the text ends: at the first `eos`, or at the first of the largest id where `eos` is the
/// historical 2; 0 where there is none.
fn end_of_text(ids: &[u32], eos: u32) -> usize {
    let wanted = if eos == 2 { ids.iter().copied().max().unwrap_or(0) } else { eos };
    ids.iter().position(|id| *id == wanted).unwrap_or(0)
}

/// One transformer layer.
#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    spec: AttentionSpec,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &TextConfig) -> Load<Self> {
        let (c, wide, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = scope.at("self_attn");
        Ok(Self {
            norm1: LayerNorm::load(&scope.at("layer_norm1"), c, eps)?,
            q: Linear::load(&attention.at("q_proj"), c, c)?,
            k: Linear::load(&attention.at("k_proj"), c, c)?,
            v: Linear::load(&attention.at("v_proj"), c, c)?,
            out: Linear::load(&attention.at("out_proj"), c, c)?,
            norm2: LayerNorm::load(&scope.at("layer_norm2"), c, eps)?,
            fc1: Linear::load(&scope.at("mlp.fc1"), c, wide)?,
            fc2: Linear::load(&scope.at("mlp.fc2"), wide, c)?,
            activation: config.activation,
            spec: AttentionSpec { heads: config.heads, mask: Mask::Causal, upcast: false },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normal = self.norm1.forward(x)?;
        let (q, k, v) = (self.q.forward(&normal)?, self.k.forward(&normal)?, self.v.forward(&normal)?);
        let x = self.out.forward_onto(&kernels::attention(&q, &k, &v, self.spec)?, x)?;
        let hidden = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let hidden = match self.activation {
            Activation::QuickGelu => (&hidden * candle_nn::ops::sigmoid(&(&hidden * 1.702)?)?)?,
            Activation::Gelu => hidden.gelu_erf()?,
        };
        self.fc2.forward_onto(&hidden, &x)
    }
}

/// The states of both encoders side by side, (tokens, width1 + width2).
pub(crate) fn side_by_side(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[a, b], D::Minus1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_text_follows_the_configuration() {
        let padded_with_zero = [9, 3, 4, 8, 0, 0];
        assert_eq!(end_of_text(&padded_with_zero, 8), 3);
        assert_eq!(end_of_text(&padded_with_zero, 2), 0);
        assert_eq!(end_of_text(&[5, 3, 9, 9, 9], 2), 2);
        assert_eq!(end_of_text(&[5, 3, 9, 9, 9], 9), 2);
        assert_eq!(end_of_text(&[5, 3], 7), 0);
    }
}
