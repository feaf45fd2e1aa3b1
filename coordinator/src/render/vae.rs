//! Pictures through the farm's VAE: whole or in tiles, encoded or decoded.

use std::sync::Arc;

use gigasmith_proto::domain::Array;

use super::RenderError;
use super::course::{Course, Point, PointAt, SavedDecoding, StageBegin};
use super::flight::{Flight, at_leisure};
use super::sampling::Sampling;
use super::tiles::{Enlarged, Input, Passage};
use crate::raster::Raster;
use crate::sampler::blocks::BlockGrid;
use crate::sampler::noise::NoiseField;
use crate::sampler::tiles::VaeMode;
use crate::sampler::tiles::join::{Band, Joiner, join};
use crate::sampler::units::{ImageSize, LatentSize, PixelRect, Window};

/// `std = exp(logvar / 2)`.
fn std_of(logvar: f32) -> f32 {
    libm::expf(0.5 * logvar)
}

/// `scaling_factor * (mean + std * noise)`.
fn sampled(scaling_factor: f32, mean: f32, std: f32, noise: f32) -> f32 {
    scaling_factor * (mean + std * noise)
}

/// Mean and standard deviation, (C, h, w) each, of encoded moments (2 C, h, w): means, then log-variances.
pub fn mean_and_std(moments: &Array) -> (Array, Array) {
    let (channels, height, width) = moments.chw().expect("moments have three axes");
    let (mean, logvar) = moments.data().split_at(moments.data().len() / 2);
    let std = logvar.iter().map(|&v| std_of(v)).collect();
    let array = |data| Array::new([channels / 2, height, width], data).expect("half of the moments");
    (array(mean.to_vec()), array(std))
}

/// `scaling_factor * (mean + std * noise)`, all (C, h, w).
pub fn sampled_latent(mean: &Array, std: &Array, noise: &Array, scaling_factor: f32) -> Array {
    let mut latent = noise.clone();
    for ((n, &mean), &std) in latent.data_mut().iter_mut().zip(mean.data()).zip(std.data()) {
        *n = sampled(scaling_factor, mean, std, *n);
    }
    latent
}

/// The same for some rows of a latent, from `top` on: encoded moments (2 C, rows, w), and a field of noise
/// of which a whole window would be another canvas in memory.
fn sample_rows(latent: &mut Array, top: usize, moments: &Array, noise: &NoiseField, scaling_factor: f32) {
    let (_, height, width) = latent.chw().expect("a latent has three axes");
    let rows = moments.chw().expect("moments have three axes").1;
    let (means, logvars) = moments.data().split_at(moments.data().len() / 2);
    for row in 0..rows {
        let noise = noise.window(Window { top: top + row, left: 0, height: 1, width });
        for (channel, noise) in noise.data().chunks_exact(width).enumerate() {
            let from = (channel * rows + row) * width..(channel * rows + row + 1) * width;
            let moments = means[from.clone()].iter().zip(&logvars[from]);
            let out = &mut latent.data_mut()[(channel * height + top + row) * width..][..width];
            for ((out, &noise), (&mean, &logvar)) in out.iter_mut().zip(noise).zip(moments) {
                *out = sampled(scaling_factor, mean, std_of(logvar), noise);
            }
        }
    }
}

impl Sampling {
    /// Encodes a picture: mean and log-variance, (2 C, h, w).
    pub async fn encode(&self, stage: u32, mode: VaeMode, picture: Enlarged) -> Result<Array, RenderError> {
        let mut passage = Passage::new(self, stage, mode, Input::Picture(picture));
        passage.measure(&mut ()).await?;
        self.through(&passage).await
    }

    /// Decodes a latent: (3, height, width), nominally in [-1, 1].
    pub async fn decode(&self, stage: u32, mode: VaeMode, latent: &Array) -> Result<Array, RenderError> {
        let mut passage = Passage::new(self, stage, mode, Input::Latent(Arc::new(latent.clone())));
        passage.measure(&mut ()).await?;
        self.through(&passage).await
    }

    /// Everything at once, joined in memory.
    async fn through(&self, passage: &Passage<'_>) -> Result<Array, RenderError> {
        let mut results: Vec<Option<Array>> = vec![None; passage.tiling.len()];
        let mut flight = Flight::new(&self.lane);
        let (mut next, rows) = ((0..results.len()).peekable(), passage.tiling.rows());
        // All of them are kept.
        while let Some((i, tile)) = passage.next_tile(&mut flight, &mut next, rows).await? {
            results[i] = Some(tile);
        }
        Ok(at_leisure(|| {
            join(&passage.tiling, results.into_iter().map(|r| r.expect("every tile was answered")).collect())
        }))
    }

    /// Encodes a picture to a latent, `factor * (mean + std * noise)`, row of tiles by row of tiles.
    pub(super) async fn encode_latent(
        &self,
        (stage, mode): (u32, VaeMode),
        picture: Enlarged,
        noise: &NoiseField,
        course: &mut Course<'_>,
    ) -> Result<Array, RenderError> {
        let mut passage = Passage::new(self, stage, mode, Input::Picture(picture));
        passage.measure(course.progress).await?;
        course.progress.phase("encoding");
        let LatentSize { height, width } = passage.tiling.size();
        let mut latent = Array::zeros([self.model().latent_channels as usize, height, width]);
        let mut joiner = Joiner::new(passage.tiling.clone());
        let mut flight = Flight::new(&self.lane);
        let (total, mut top) = (passage.tiling.len(), 0);
        let mut next = (0..total).peekable();
        while let Some((i, tile)) = passage.next_tile(&mut flight, &mut next, joiner.rows()).await? {
            at_leisure(|| {
                for band in joiner.add(i, Arc::new(tile)) {
                    sample_rows(&mut latent, top, &band.to_array(), noise, self.model().scaling_factor);
                    top += band.height();
                }
            });
            course.progress.tiles(total - joiner.missing().count(), total);
        }
        Ok(latent)
    }

    /// Decodes a latent to pixels, from where `decoded` says that it was left. Gives points to the journal;
    /// when it is stopped, it leaves a last one.
    pub(super) async fn decode_picture(
        &self,
        (begin, mode): (StageBegin, VaeMode),
        (latent, grid): (&Arc<Array>, BlockGrid),
        decoded: SavedDecoding,
        course: &mut Course<'_>,
    ) -> Result<Arc<Raster>, RenderError> {
        let (stage, live) = (begin.stage, course.live.clone());
        let mut passage = Passage::new(self, stage, mode, Input::Latent(latent.clone()));
        let SavedDecoding { raster, bands, tails, waiting, norms } = decoded;
        passage.norms = norms;
        passage.measure(course.progress).await?;
        course.progress.phase("decoding");
        let (_, height, width) = latent.chw().expect("a latent has three axes");
        let factor = self.model().latent_factor;
        let size = ImageSize { width: width as u32 * factor, height: height as u32 * factor };
        let raster = match raster {
            Some(raster) => raster,
            None => Arc::new(Raster::create(size, &course.scratch)?),
        };
        let mut joiner = Joiner::restore(passage.tiling.clone(), bands.len(), tails);
        let mut state = Decoding { raster, bands };
        for (i, tile) in waiting {
            state.take_in(joiner.add(i, tile))?;
        }
        if let Some(live) = &live {
            at_leisure(|| live.decode(begin, latent, &state.raster, &passage.tiling, self.model()));
        }
        let missing: Vec<usize> = joiner.missing().collect();
        let total = passage.tiling.len();
        let mut next = missing.into_iter().peekable();
        let point = |joiner: &Joiner, state: &Decoding| Point {
            conditioning: self.conditioning.1.clone(),
            stage,
            at: PointAt::Decoding {
                latent: latent.clone(),
                grid,
                decoded: SavedDecoding {
                    raster: Some(state.raster.clone()),
                    bands: state.bands.clone(),
                    tails: joiner.tails().to_vec(),
                    waiting: joiner.waiting().clone(),
                    norms: passage.norms.clone(),
                },
            },
        };
        let mut flight = Flight::new(&self.lane);
        let mut nothing_new = true;
        let stop = course.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    course.journal.note(point(&joiner, &state));
                    return Err(RenderError::Stopped);
                }
                tile = passage.next_tile(&mut flight, &mut next, joiner.rows()) => {
                    let tile = tile.inspect_err(|_| course.journal.note(point(&joiner, &state)))?;
                    let Some((i, tile)) = tile else { break };
                    let rows = at_leisure(|| state.take_in(joiner.add(i, Arc::new(tile))))?;
                    live.iter().for_each(|live| live.decoded(i, rows));
                    course.progress.tiles(total - joiner.missing().count(), total);
                    nothing_new = false;
                }
                () = course.due(nothing_new) => {}
            }
            if !nothing_new {
                nothing_new = course.offer(|| point(&joiner, &state));
            }
        }
        course.journal.note(point(&joiner, &state));
        if let Some(live) = &live {
            at_leisure(|| live.finish(latent, &state.raster, stage + 1 == begin.total, factor as usize));
        }
        Ok(state.raster)
    }
}

/// A picture as far as it is decoded.
struct Decoding {
    raster: Arc<Raster>,
    /// Its finished rows, one part per joined row of tiles.
    bands: Vec<PixelRect>,
}

impl Decoding {
    /// Writes what is finished, and returns from which row to which that is.
    fn take_in(&mut self, bands: Vec<Band>) -> std::io::Result<Option<(u32, u32)>> {
        let width = self.raster.picture_size().width;
        let end = |bands: &[PixelRect]| bands.last().map_or(0, |b| b.top + b.height);
        let before = end(&self.bands);
        for band in bands {
            let (top, height) = (end(&self.bands), band.height() as u32);
            self.raster.write_rows(top, &band.to_rgb())?;
            self.raster.finish(top + height)?;
            self.bands.push(PixelRect { top, left: 0, height, width });
        }
        let now = end(&self.bands);
        Ok((now > before).then_some((before, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::noise::crop;
    use crate::sampler::philox::Purpose;

    #[test]
    fn latents_come_out_alike_at_once_and_row_by_row() {
        let noise = NoiseField::from_seed(3, 1, Purpose::Encode, 2);
        let moments = (0..4 * 5 * 7).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let moments = Array::new([4, 5, 7], moments).unwrap();
        let (mean, std) = mean_and_std(&moments);
        let whole = noise.whole(LatentSize { height: 5, width: 7 });
        let mut latent = Array::zeros([2, 5, 7]);
        for (top, height) in [(0, 2), (2, 3)] {
            let rows = crop(&moments, Window { top, left: 0, height, width: 7 });
            sample_rows(&mut latent, top, &rows, &noise, 0.13);
        }
        assert_eq!(latent, sampled_latent(&mean, &std, &whole, 0.13));
    }
}
