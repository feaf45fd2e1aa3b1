//! Where the group normalisations of encoder and decoder get their means and variances.
//!
//! A picture that goes through the VAE in tiles is normalised tile by tile, each with its own statistics:
//! colours and contrast then change from tile to tile. With statistics that all tiles share, and tiles that
//! overlap by what the convolutions see, a tile comes out as the same part of the whole does, but for the
//! attention in the middle.

use candle_core::{Result, Tensor, bail};
use gigasmith_proto::domain::Rect;

use super::kernels;

/// Numbers per group: mean and variance.
const PAIR: usize = 2;

/// The statistics of one pass through a network, whose normalisations ask in their order.
#[derive(Debug)]
pub(crate) struct Norms<'a> {
    /// Mean and variance of each group of all normalisations that are still to come; `None`: their own.
    given: Option<&'a [f32]>,
    measure: Option<Measure>,
}

#[derive(Debug)]
struct Measure {
    /// The part that counts, in latent pixels.
    part: Rect,
    /// Rows of the tile's latent: a tensor of n times as many rows has n times the resolution.
    rows: usize,
    found: Vec<f32>,
}

impl<'a> Norms<'a> {
    /// Every normalisation has its own.
    pub(crate) fn own() -> Self {
        Self { given: None, measure: None }
    }

    /// Mean and variance, one after the other, of every group; `None`: their own.
    pub(crate) fn given(given: Option<&'a [f32]>) -> Self {
        Self { given, measure: None }
    }

    /// Also finds out what they are over `part` of a tile whose latent has so many rows.
    pub(crate) fn measuring(given: Option<&'a [f32]>, part: Rect, rows: usize) -> Self {
        Self { given, measure: Some(Measure { part, rows, found: Vec::new() }) }
    }

    /// What was found: mean and variance of every group.
    pub(crate) fn into_found(self) -> Vec<f32> {
        self.measure.map_or_else(Vec::new, |m| m.found)
    }

    /// The statistics that the next normalisation, of `x` (1, channels, h, w), is to use; `None`: its own.
    pub(crate) fn next(&mut self, x: &Tensor, groups: usize) -> Result<Option<&'a [f32]>> {
        if let Some(Measure { part, rows, found }) = &mut self.measure {
            let scale = x.dim(2)? / *rows;
            let part = x.narrow(2, part.top * scale, part.height * scale)?.narrow(
                3,
                part.left * scale,
                part.width * scale,
            )?;
            found.extend(kernels::group_statistics(&part, groups)?);
        }
        let Some(given) = self.given else { return Ok(None) };
        if given.len() < PAIR * groups {
            bail!("statistics of fewer groups were given than the network has");
        }
        let (now, later) = given.split_at(PAIR * groups);
        self.given = Some(later);
        Ok(Some(now))
    }
}
