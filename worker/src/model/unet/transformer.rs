//! `Transformer2DModel`: image planes become tokens, pass through layers of self-attention,
//! cross-attention and a gated feed-forward network, and become planes again.

use candle_core::{Result, Tensor};

use super::Context;
use crate::model::error::LoadError;
use crate::model::kernels::{self, AttentionSpec, Mask};
use crate::model::layers::{Gated, GroupNorm, LayerNorm, Linear};
use crate::model::weights::Scope;

type Load<T> = std::result::Result<T, LoadError>;

/// Epsilon of the GroupNorm in front (fixed in diffusers, unlike that of the resnets).
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

/// Sizes of a transformer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerSpec {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) cross_dim: usize,
    pub(super) groups: usize,
    /// Tokens enter and leave through linear layers rather than 1x1 convolutions: the weights have
    /// other shapes, the arithmetic is the same.
    pub(super) linear_projection: bool,
    pub(super) upcast: bool,
}

/// A stack of transformer layers over an image.
#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
}

impl Transformer {
    /// `names` are the names of the layers' self-attentions for perturbed-attention guidance.
    pub(super) fn load(scope: &Scope<'_>, spec: TransformerSpec, names: &[String]) -> Load<Self> {
        let c = spec.channels;
        let projection = |name: &str| {
            let scope = scope.at(name);
            if spec.linear_projection {
                Linear::load(&scope, c, c)
            } else {
                Linear::load_or_pointwise(&scope, c, c)
            }
        };
        let layers = names
            .iter()
            .enumerate()
            .map(|(i, name)| Layer::load(&scope.at("transformer_blocks").at(i), spec, name.clone()))
            .collect::<Load<_>>()?;
        Ok(Self {
            norm: GroupNorm::load(&scope.at("norm"), c, spec.groups, GROUP_NORM_EPS)?,
            proj_in: projection("proj_in")?,
            layers,
            proj_out: projection("proj_out")?,
        })
    }

    /// (batch, channels, h, w), the same shape out.
    pub(super) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let mut tokens = self.proj_in.forward(&kernels::tokens(&self.norm.forward(x)?)?)?;
        for layer in &self.layers {
            tokens = layer.forward(tokens, context)?;
        }
        kernels::image(&self.proj_out.forward_onto(&tokens, &kernels::tokens(x)?)?, h, w)
    }
}

/// One layer (`BasicTransformerBlock`).
#[derive(Debug)]
struct Layer {
    name: String,
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    gate: Gated,
    out: Linear,
}

impl Layer {
    fn load(scope: &Scope<'_>, spec: TransformerSpec, name: String) -> Load<Self> {
        let c = spec.channels;
        Ok(Self {
            name,
            norm1: LayerNorm::load(&scope.at("norm1"), c, LAYER_NORM_EPS)?,
            attn1: Attention::load(&scope.at("attn1"), spec, c)?,
            norm2: LayerNorm::load(&scope.at("norm2"), c, LAYER_NORM_EPS)?,
            attn2: Attention::load(&scope.at("attn2"), spec, spec.cross_dim)?,
            norm3: LayerNorm::load(&scope.at("norm3"), c, LAYER_NORM_EPS)?,
            gate: Gated::load(&scope.at("ff.net.0.proj"), c, 4 * c)?,
            out: Linear::load(&scope.at("ff.net.2"), 4 * c, c)?,
        })
    }

    fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<Tensor> {
        let normal = self.norm1.forward(&x)?;
        let x = match context.perturbed.rows_in(&self.name) {
            0 => self.attn1.forward(&normal, &normal, &x)?,
            last => self.attn1.forward_last_identity(&normal, last, &x)?,
        };
        let x = self.attn2.forward(&self.norm2.forward(&x)?, context.states, &x)?;
        self.out.forward_onto(&self.gate.forward(&self.norm3.forward(&x)?)?, &x)
    }
}

/// Multi-head attention with its projections.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    spec: AttentionSpec,
}

impl Attention {
    fn load(scope: &Scope<'_>, spec: TransformerSpec, source: usize) -> Load<Self> {
        let c = spec.channels;
        Ok(Self {
            to_q: Linear::load_unbiased(&scope.at("to_q"), c, c)?,
            to_k: Linear::load_unbiased(&scope.at("to_k"), source, c)?,
            to_v: Linear::load_unbiased(&scope.at("to_v"), source, c)?,
            to_out: Linear::load(&scope.at("to_out.0"), c, c)?,
            spec: AttentionSpec { heads: spec.heads, mask: Mask::None, upcast: spec.upcast },
        })
    }

    /// Queries from `x`, keys and values from `source`; the result is added to `residual`.
    fn forward(&self, x: &Tensor, source: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(source)?, self.to_v.forward(source)?);
        self.to_out.forward_onto(&kernels::attention(&q, &k, &v, self.spec)?, residual)
    }

    /// Self-attention whose tokens attend to nothing but themselves in the `last` batch rows: there the scores
    /// are the identity matrix, so that the output is `to_out(v)` (Ahn et al., arXiv 2403.17377, eq. 15).
    fn forward_last_identity(&self, x: &Tensor, last: usize, residual: &Tensor) -> Result<Tensor> {
        let others = x.dim(0)? - last;
        let v = self.to_v.forward(x)?;
        if others == 0 {
            return self.to_out.forward_onto(&v, residual);
        }
        let queries = x.narrow(0, 0, others)?;
        let (q, k) = (self.to_q.forward(&queries)?, self.to_k.forward(&queries)?);
        let mixed = kernels::attention(&q, &k, &v.narrow(0, 0, others)?.contiguous()?, self.spec)?;
        let mixed = Tensor::cat(&[&mixed, &v.narrow(0, others, last)?], 0)?;
        self.to_out.forward_onto(&mixed, residual)
    }
}
