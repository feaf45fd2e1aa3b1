//! The blocks of the UNet: down, middle, up. With or without attention is one type each: a block
//! without is one whose transformers are absent.

use candle_core::{Result, Tensor, bail};

use super::Context;
use super::transformer::{Transformer, TransformerSpec};
use crate::model::config::{BlockConfig, MidConfig, UnetConfig};
use crate::model::error::LoadError;
use crate::model::kernels;
use crate::model::resnet::{Downsample, Resnet, ResnetSpec, Upsample};
use crate::model::weights::Scope;

type Load<T> = std::result::Result<T, LoadError>;

/// Names of the self-attentions in the order of the network's modules (block, attention, layer):
/// `d0`.., `m0`.., `u0`..
pub(crate) fn pag_names(config: &UnetConfig) -> Vec<String> {
    let count = |depths: &Option<Vec<usize>>| depths.iter().flatten().sum::<usize>();
    let down: usize = config.blocks.iter().map(|b| count(&b.down_depths)).sum();
    let up: usize = config.blocks.iter().map(|b| count(&b.up_depths)).sum();
    let named = |letter: char, n: usize| (0..n).map(move |i| format!("{letter}{i}"));
    named('d', down).chain(named('m', config.mid.depth())).chain(named('u', up)).collect()
}

/// Deals out names in module order.
struct Names {
    letter: char,
    next: usize,
}

impl Names {
    fn take(&mut self, n: usize) -> Vec<String> {
        let names = (self.next..self.next + n).map(|i| format!("{}{i}", self.letter)).collect();
        self.next += n;
        names
    }
}

fn transformer_spec(config: &UnetConfig, block: &BlockConfig) -> TransformerSpec {
    TransformerSpec {
        channels: block.channels,
        heads: block.heads,
        cross_dim: block.cross_dim,
        groups: config.norm_num_groups,
        linear_projection: config.use_linear_projection,
        upcast: config.upcast_attention,
    }
}

fn load_resnet(
    scope: &Scope<'_>,
    config: &UnetConfig,
    inputs: usize,
    outputs: usize,
    scale: f64,
) -> Load<Resnet> {
    let spec = ResnetSpec {
        inputs,
        outputs,
        time_embed_dim: Some(config.time_embed_dim),
        groups: config.norm_num_groups,
        eps: config.norm_eps,
        scale,
    };
    Resnet::load(scope, spec)
}

/// The transformer after resnet `i`, where the block has any.
fn load_transformer(
    scope: &Scope<'_>,
    spec: TransformerSpec,
    depths: Option<&Vec<usize>>,
    i: usize,
    names: &mut Names,
) -> Load<Option<Transformer>> {
    depths
        .map(|depths| Transformer::load(&scope.at("attentions").at(i), spec, &names.take(depths[i])))
        .transpose()
}

/// A resnet and the transformer after it.
#[derive(Debug)]
struct Pair {
    resnet: Resnet,
    transformer: Option<Transformer>,
}

impl Pair {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(&context.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, context),
            None => Ok(x),
        }
    }
}

/// `DownBlock2D` or `CrossAttnDownBlock2D`.
#[derive(Debug)]
pub(super) struct DownBlock {
    pairs: Vec<Pair>,
    downsample: Option<Downsample>,
}

/// All down blocks, the finest first.
pub(super) fn load_down(scope: &Scope<'_>, config: &UnetConfig) -> Load<Vec<DownBlock>> {
    let mut names = Names { letter: 'd', next: 0 };
    let mut inputs = config.blocks[0].channels;
    let mut blocks = Vec::new();
    for (i, block) in config.blocks.iter().enumerate() {
        let scope = scope.at("down_blocks").at(i);
        let mut pairs = Vec::new();
        for j in 0..block.layers {
            let resnet = load_resnet(&scope.at("resnets").at(j), config, inputs, block.channels, 1.0)?;
            let spec = transformer_spec(config, block);
            let transformer = load_transformer(&scope, spec, block.down_depths.as_ref(), j, &mut names)?;
            pairs.push(Pair { resnet, transformer });
            inputs = block.channels;
        }
        let downsample = (i + 1 < config.blocks.len())
            .then(|| Downsample::load(&scope.at("downsamplers.0"), block.channels, config.downsample_padding))
            .transpose()?;
        blocks.push(DownBlock { pairs, downsample });
    }
    Ok(blocks)
}

impl DownBlock {
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.pairs.iter().filter_map(|pair| pair.transformer.as_ref())
    }

    /// Appends every intermediate result to `skips`.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        context: &Context<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for pair in &self.pairs {
            x = pair.forward(&x, context)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// `UNetMidBlock2DCrossAttn`, or `UNetMidBlock2D`, of which diffusers takes one resnet here.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Resnet,
    rest: Option<(Transformer, Resnet)>,
}

impl MidBlock {
    /// `None` for a network without a middle block.
    pub(super) fn load(scope: &Scope<'_>, config: &UnetConfig) -> Load<Option<Self>> {
        let block = &config.blocks[config.blocks.len() - 1];
        let resnet = |i: usize| {
            let c = block.channels;
            load_resnet(&scope.at("resnets").at(i), config, c, c, config.mid_scale)
        };
        let rest = match config.mid {
            MidConfig::Absent => return Ok(None),
            MidConfig::Resnet => None,
            MidConfig::Attention(depth) => {
                let names = Names { letter: 'm', next: 0 }.take(depth);
                let spec = transformer_spec(config, block);
                Some((Transformer::load(&scope.at("attentions.0"), spec, &names)?, resnet(1)?))
            }
        };
        Ok(Some(Self { first: resnet(0)?, rest }))
    }

    pub(super) fn transformer(&self) -> Option<&Transformer> {
        self.rest.as_ref().map(|(transformer, _)| transformer)
    }

    pub(super) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let x = self.first.forward(x, Some(&context.time))?;
        let Some((transformer, last)) = &self.rest else { return Ok(x) };
        last.forward(&transformer.forward(&x, context)?, Some(&context.time))
    }
}

/// `UpBlock2D` or `CrossAttnUpBlock2D`.
#[derive(Debug)]
pub(super) struct UpBlock {
    pairs: Vec<Pair>,
    upsample: Option<Upsample>,
}

/// All up blocks, the coarsest first.
pub(super) fn load_up(scope: &Scope<'_>, config: &UnetConfig) -> Load<Vec<UpBlock>> {
    let mut names = Names { letter: 'u', next: 0 };
    let count = config.blocks.len();
    let mut previous = config.blocks[count - 1].channels;
    let mut blocks = Vec::new();
    for (i, block) in config.blocks.iter().rev().enumerate() {
        let scope = scope.at("up_blocks").at(i);
        // The skip that enters last comes from the next finer block.
        let finer = config.blocks[(count - 1 - i).saturating_sub(1)].channels;
        let mut pairs = Vec::new();
        for j in 0..=block.layers {
            let skip = if j == block.layers { finer } else { block.channels };
            let inputs = skip + if j == 0 { previous } else { block.channels };
            let resnet = load_resnet(&scope.at("resnets").at(j), config, inputs, block.channels, 1.0)?;
            let spec = transformer_spec(config, block);
            let transformer = load_transformer(&scope, spec, block.up_depths.as_ref(), j, &mut names)?;
            pairs.push(Pair { resnet, transformer });
        }
        let upsample =
            (i + 1 < count).then(|| Upsample::load(&scope.at("upsamplers.0"), block.channels)).transpose()?;
        blocks.push(UpBlock { pairs, upsample });
        previous = block.channels;
    }
    Ok(blocks)
}

impl UpBlock {
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.pairs.iter().filter_map(|pair| pair.transformer.as_ref())
    }

    /// Takes the last of `skips` for each resnet, and resizes to the size of the next one.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        context: &Context<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for pair in &self.pairs {
            let Some(skip) = skips.pop() else { bail!("more up layers than down layers") };
            x = pair.forward(&kernels::concat_channels(&x, &skip)?, context)?;
        }
        if let (Some(upsample), Some(next)) = (&self.upsample, skips.last()) {
            // Twice the size, except where halving an odd size had rounded up.
            let (_, _, height, width) = next.dims4()?;
            x = upsample.forward(&x, height, width)?;
        }
        Ok(x)
    }
}
