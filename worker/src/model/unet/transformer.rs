//! `Transformer2DModel`: image planes become tokens, pass through layers of self-attention,
//! cross-attention and a gated feed-forward network, and become planes again.

use candle_core::{Result, Tensor, bail};

use super::{Context, Text};
use crate::model::error::LoadError;
use crate::model::kernels::{self, AttentionSpec, Mask};
use crate::model::layers::{Gated, GroupNorm, Joined, LayerNorm, Linear};
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

    /// Adds keys and values of text states (batch, tokens, width) to `text`.
    pub(super) fn read(&self, states: &Tensor, text: &mut Text) -> Result<()> {
        for layer in &self.layers {
            let of_layer = layer.attn2.of_text.forward(states, layer.attn2.spec.heads)?;
            text.by_layer.insert(layer.name.clone(), of_layer);
        }
        Ok(())
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
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
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
            attn1: SelfAttention::load(&scope.at("attn1"), spec)?,
            norm2: LayerNorm::load(&scope.at("norm2"), c, LAYER_NORM_EPS)?,
            attn2: CrossAttention::load(&scope.at("attn2"), spec)?,
            norm3: LayerNorm::load(&scope.at("norm3"), c, LAYER_NORM_EPS)?,
            gate: Gated::load(&scope.at("ff.net.0.proj"), c, 4 * c)?,
            out: Linear::load(&scope.at("ff.net.2"), 4 * c, c)?,
        })
    }

    fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<Tensor> {
        let last = context.perturbed.rows_in(&self.name);
        let x = self.attn1.forward(&self.norm1.forward(&x)?, last, &x)?;
        let Some(text) = context.text.by_layer.get(&self.name) else {
            bail!("the text was not read for {}", self.name);
        };
        let x = self.attn2.forward(&self.norm2.forward(&x)?, text, &x)?;
        self.out.forward_onto(&self.gate.forward(&self.norm3.forward(&x)?)?, &x)
    }
}

/// Multi-head attention of tokens to each other.
#[derive(Debug)]
struct SelfAttention {
    /// Queries, keys, values.
    projections: Joined,
    to_out: Linear,
    spec: AttentionSpec,
}

fn attention_spec(spec: TransformerSpec) -> AttentionSpec {
    AttentionSpec { heads: spec.heads, mask: Mask::None, upcast: spec.upcast }
}

impl SelfAttention {
    fn load(scope: &Scope<'_>, spec: TransformerSpec) -> Load<Self> {
        let c = spec.channels;
        Ok(Self {
            projections: Joined::load(scope, &["to_q", "to_k", "to_v"], c, c)?,
            to_out: Linear::load(&scope.at("to_out.0"), c, c)?,
            spec: attention_spec(spec),
        })
    }

    /// The result is added to `residual`. In the `last` batch rows, tokens attend to nothing but themselves: there
    /// the scores are the identity matrix, so that the output is `to_out(v)` (Ahn et al., arXiv 2403.17377, eq. 15).
    fn forward(&self, x: &Tensor, last: usize, residual: &Tensor) -> Result<Tensor> {
        let states = self.projections.forward(x, self.spec.heads)?;
        let [q, k, v] = states.as_slice() else { bail!("an attention without keys") };
        let others = x.dim(0)? - last;
        let mixed = |rows: usize| {
            let of = |t: &Tensor| t.narrow(0, 0, rows);
            kernels::attention(&of(q)?, &of(k)?, &of(v)?, self.spec)
        };
        let alone = |rows: usize| v.narrow(0, others, rows)?.flatten_from(2);
        let mixed = match (others, last) {
            (0, last) => alone(last)?,
            (others, 0) => mixed(others)?,
            (others, last) => Tensor::cat(&[&mixed(others)?, &alone(last)?], 0)?,
        };
        self.to_out.forward_onto(&mixed, residual)
    }
}

/// Multi-head attention of tokens to a text.
#[derive(Debug)]
struct CrossAttention {
    to_q: Linear,
    /// Keys and values.
    of_text: Joined,
    to_out: Linear,
    spec: AttentionSpec,
}

impl CrossAttention {
    fn load(scope: &Scope<'_>, spec: TransformerSpec) -> Load<Self> {
        let c = spec.channels;
        Ok(Self {
            to_q: Linear::load_unbiased(&scope.at("to_q"), c, c)?,
            of_text: Joined::load(scope, &["to_k", "to_v"], spec.cross_dim, c)?,
            to_out: Linear::load(&scope.at("to_out.0"), c, c)?,
            spec: attention_spec(spec),
        })
    }

    /// The result is added to `residual`. `text`: keys and values.
    fn forward(&self, x: &Tensor, text: &[Tensor], residual: &Tensor) -> Result<Tensor> {
        let [k, v] = text else { bail!("an attention without keys") };
        let mixed = kernels::attention(&self.to_q.forward(x)?, k, v, self.spec)?;
        self.to_out.forward_onto(&mixed, residual)
    }
}
