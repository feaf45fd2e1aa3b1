//! Pictures through the farm's VAE: whole or in tiles, encoded or decoded.

use std::sync::Arc;

use gigasmith_proto::domain::{Array, Task, TaskResult};

use super::RenderError;
use super::course::{Course, Point, PointAt, SavedDecoding};
use super::flight::{Flight, at_leisure};
use super::sampling::Sampling;
use crate::farm::TaskOrder;
use crate::sampler::blocks::BlockGrid;
use crate::sampler::noise::{NoiseField, crop};
use crate::sampler::resize::Picture;
use crate::sampler::tiles::{Joiner, Tiling, VaeMode, picture_window, to_rgb};
use crate::sampler::units::{ImageSize, LatentSize, Window};

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

/// The same from encoded moments (2 C, h, w) and a field of noise, row by row: a whole field would be
/// another canvas in memory.
pub(super) fn latent_of(moments: &Array, noise: &NoiseField, scaling_factor: f32) -> Array {
    let (channels, height, width) = moments.chw().expect("moments have three axes");
    let (means, logvars) = moments.data().split_at(moments.data().len() / 2);
    let mut latent = Array::zeros([channels / 2, height, width]);
    for row in 0..height {
        let noise = noise.window(Window { top: row, left: 0, height: 1, width });
        for (channel, noise) in noise.data().chunks_exact(width).enumerate() {
            let row = (channel * height + row) * width..(channel * height + row + 1) * width;
            let moments = means[row.clone()].iter().zip(&logvars[row.clone()]);
            for ((out, &noise), (&mean, &logvar)) in latent.data_mut()[row].iter_mut().zip(noise).zip(moments)
            {
                *out = sampled(scaling_factor, mean, std_of(logvar), noise);
            }
        }
    }
    latent
}

impl Sampling {
    /// Encodes a picture: mean and log-variance, (2 C, h, w).
    pub async fn encode(&self, stage: u32, mode: VaeMode, picture: &Picture) -> Result<Array, RenderError> {
        let size = picture.size();
        let input = LatentSize { height: size.height as usize, width: size.width as usize };
        let (tile, factor) = (self.model().vae_tile as usize, self.model().latent_factor as usize);
        let tiling = match mode.is_tiled(size) {
            true => Tiling::published(input, tile, tile / factor),
            false => Tiling::whole(input),
        };
        let windows = tiling.windows();
        let task = |i: usize| Task::EncodeTile { image: Arc::new(picture_window(picture, windows[i])) };
        let mut results: Vec<Option<Array>> = vec![None; windows.len()];
        let mut flight = Flight::new(&self.lane);
        let mut next = 0..windows.len();
        while let Some((i, tile)) = self.next_tile(stage, &mut flight, &mut next, task).await? {
            results[i] = Some(tile);
        }
        Ok(at_leisure(|| {
            tiling.join(results.into_iter().map(|r| r.expect("every tile was answered")).collect())
        }))
    }

    fn decoder_tiling(&self, mode: VaeMode, latent: &Array) -> Tiling {
        let (_, height, width) = latent.chw().expect("a latent has three axes");
        let (tile, factor) = (self.model().vae_tile, self.model().latent_factor);
        Tiling::decoding(mode, LatentSize { height, width }, tile, factor)
    }

    fn decode_task(&self, latent: &Array, window: Window) -> Task {
        let mut latent = crop(latent, window);
        latent.data_mut().iter_mut().for_each(|v| *v /= self.model().scaling_factor);
        Task::DecodeTile { latent: Arc::new(latent) }
    }

    /// Decodes a latent: (3, height, width), nominally in [-1, 1].
    pub async fn decode(&self, stage: u32, mode: VaeMode, latent: &Array) -> Result<Array, RenderError> {
        let tiling = self.decoder_tiling(mode, latent);
        let windows = tiling.windows();
        let mut results: Vec<Option<Array>> = vec![None; windows.len()];
        let mut flight = Flight::new(&self.lane);
        let (mut next, task) = (0..windows.len(), |i: usize| self.decode_task(latent, windows[i]));
        while let Some((i, tile)) = self.next_tile(stage, &mut flight, &mut next, task).await? {
            results[i] = Some(tile);
        }
        Ok(at_leisure(|| {
            tiling.join(results.into_iter().map(|r| r.expect("every tile was answered")).collect())
        }))
    }

    /// Decodes a latent to pixels, from where `decoded` says that it was left. Gives points to the journal
    /// when `grid`, the canvas's, is given; when it is stopped then, it leaves a last one.
    pub async fn decode_picture(
        &self,
        (stage, mode): (u32, VaeMode),
        latent: &Arc<Array>,
        grid: Option<BlockGrid>,
        decoded: SavedDecoding,
        course: &mut Course<'_>,
    ) -> Result<Picture, RenderError> {
        let tiling = self.decoder_tiling(mode, latent);
        let windows = tiling.windows();
        let SavedDecoding { mut bands, tails, waiting } = decoded;
        let mut joiner = Joiner::restore(tiling, bands.len(), tails);
        waiting.into_iter().for_each(|(i, tile)| bands.extend(joiner.add(i, tile).iter().map(pixels)));
        let missing: Vec<usize> = joiner.missing().collect();
        let (mut next, task) = (missing.into_iter(), |i: usize| self.decode_task(latent, windows[i]));
        let point = |joiner: &Joiner, bands: &[Arc<Vec<u8>>], grid| Point {
            conditioning: self.conditioning.1.clone(),
            stage,
            at: PointAt::Decoding {
                latent: latent.clone(),
                grid,
                decoded: SavedDecoding {
                    bands: bands.to_vec(),
                    tails: joiner.tails().to_vec(),
                    waiting: joiner.waiting().clone(),
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
                    if let Some(grid) = grid {
                        course.journal.note(point(&joiner, &bands, grid));
                    }
                    return Err(RenderError::Stopped);
                }
                tile = self.next_tile(stage, &mut flight, &mut next, task) => {
                    let tile = tile.inspect_err(|_| {
                        grid.into_iter().for_each(|grid| course.journal.note(point(&joiner, &bands, grid)));
                    })?;
                    let Some((i, tile)) = tile else { break };
                    let joined = at_leisure(|| joiner.add(i, Arc::new(tile)).iter().map(pixels).collect::<Vec<_>>());
                    bands.extend(joined);
                    nothing_new = false;
                }
                () = course.due(nothing_new || grid.is_none()) => {}
            }
            if let Some(grid) = grid.filter(|_| !nothing_new) {
                nothing_new = course.offer(|| point(&joiner, &bands, grid));
            }
        }
        let (_, height, width) = latent.chw().expect("a latent has three axes");
        let factor = self.model().latent_factor;
        let size = ImageSize { width: width as u32 * factor, height: height as u32 * factor };
        Ok(at_leisure(|| Picture::new(size, joined(bands))))
    }

    /// Keeps tiles in flight, and returns the next answer with its position; `None` when all are answered.
    /// Dropping the future loses no answer.
    async fn next_tile(
        &self,
        stage: u32,
        flight: &mut Flight<'_, (usize, TaskResult)>,
        next: &mut (impl Iterator<Item = usize> + Send),
        task: impl Fn(usize) -> Task,
    ) -> Result<Option<(usize, Array)>, RenderError> {
        while flight.has_room() {
            let Some(position) = next.next() else { break };
            let (lane, task) = (self.lane.clone(), task(position));
            flight.send(async move {
                let order = TaskOrder { stage, position: position as u32 };
                Ok((position, lane.run(order, task).await?))
            });
        }
        match flight.next().await? {
            None => Ok(None),
            Some((position, TaskResult::Moments(array) | TaskResult::Image(array))) => {
                Ok(Some((position, array)))
            }
            Some((_, other)) => unreachable!("the farm checks the kind of an answer: {other:?}"),
        }
    }
}

fn pixels(band: &Array) -> Arc<Vec<u8>> {
    Arc::new(to_rgb(band))
}

/// Bands one below the other; each is let go as it is copied.
fn joined(bands: Vec<Arc<Vec<u8>>>) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(bands.iter().map(|b| b.len()).sum());
    bands.into_iter().for_each(|band| rgb.extend_from_slice(&band));
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::philox::Purpose;

    #[test]
    fn latents_come_out_alike_at_once_and_row_by_row() {
        let noise = NoiseField::from_seed(3, 1, Purpose::Encode, 2);
        let moments = (0..4 * 5 * 7).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let moments = Array::new([4, 5, 7], moments).unwrap();
        let (mean, std) = mean_and_std(&moments);
        let whole = noise.whole(LatentSize { height: 5, width: 7 });
        assert_eq!(latent_of(&moments, &noise, 0.13), sampled_latent(&mean, &std, &whole, 0.13));
    }
}
