//! Tiles of a picture on the farm: what is asked of workers, and the statistics that tiles share.

use std::iter::Peekable;
use std::sync::Arc;

use gigasmith_proto::domain::{
    Array, ModelDescription, Pixels, Rect, Task, TaskResult, TileRules, Wanted, WireDtype,
};
use tokio::sync::Semaphore;

use super::course::Progress;
use super::flight::{Flight, all_cores, on_a_core};
use super::{RenderError, Sampling};
use crate::farm::TaskOrder;
use crate::raster::Source;
use crate::sampler::noise::crop;
use crate::sampler::resize::Resize;
use crate::sampler::tiles::pool::{ROUNDS, pool, samples};
use crate::sampler::tiles::{Cut, Network, Tiling, VaeMode};
use crate::sampler::units::{ImageSize, LatentSize, Window};

/// Rows of tiles that may be asked for beyond the one that is joined next.
const AHEAD: usize = 2;

/// A picture as it will be once it is enlarged: any part of it can be had without the rest.
#[derive(Debug, Clone)]
pub struct Enlarged {
    source: Source,
    resize: Option<Arc<Resize>>,
    size: ImageSize,
}

impl Enlarged {
    /// A picture at another size, with what does not fit the aspect cut off.
    pub fn new(source: Source, size: ImageSize) -> Self {
        let resize = (source.size() != size).then(|| Arc::new(Resize::new(source.size(), size)));
        Self { source, resize, size }
    }

    /// The pixels of a window; `factor` image pixels per latent pixel.
    fn pixels(&self, window: Window, factor: usize) -> std::io::Result<Pixels> {
        let rect = window.pixels(factor);
        let rgb = match &self.resize {
            None => self.source.part(rect)?,
            Some(resize) => resize.part(rect, &self.source.part(resize.source(rect))?),
        };
        Ok(Pixels::new(window.height * factor, window.width * factor, rgb).expect("the rectangle's pixels"))
    }
}

/// What goes through the VAE.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// A latent, to be decoded.
    Latent(Arc<Array>),
    /// A picture, to be encoded.
    Picture(Enlarged),
}

impl Input {
    fn network(&self) -> Network {
        match self {
            Self::Latent(_) => Network::Decoder,
            Self::Picture(_) => Network::Encoder,
        }
    }

    fn size(&self, model: &ModelDescription) -> LatentSize {
        match self {
            Self::Latent(latent) => {
                let (_, height, width) = latent.chw().expect("a latent has three axes");
                LatentSize { height, width }
            }
            Self::Picture(enlarged) => enlarged.size.latent(model.latent_factor),
        }
    }

    /// The task for a window of it. Takes a moment: it is done beside the render's loop.
    fn task(&self, window: Window, rules: TileRules, model: &ModelDescription) -> std::io::Result<Task> {
        match self {
            Self::Latent(latent) => {
                let mut latent = crop(latent, window);
                latent.data_mut().iter_mut().for_each(|v| *v /= model.scaling_factor);
                Ok(Task::DecodeTile { latent: Arc::new(latent), rules })
            }
            Self::Picture(enlarged) => {
                let image = Arc::new(enlarged.pixels(window, model.latent_factor as usize)?);
                Ok(Task::EncodeTile { image, rules })
            }
        }
    }
}

/// A picture or latent on its way through the VAE: how it is cut, and with which statistics.
#[derive(Debug)]
pub(super) struct Passage<'a> {
    sampling: &'a Sampling,
    stage: u32,
    input: Input,
    pub(super) tiling: Tiling,
    /// What all tiles share; `None`: nothing.
    pub(super) norms: Option<Arc<Array>>,
    is_seamless: bool,
    cores: Arc<Semaphore>,
}

impl<'a> Passage<'a> {
    pub(super) fn new(sampling: &'a Sampling, stage: u32, mode: VaeMode, input: Input) -> Self {
        let model = sampling.model();
        let size = input.size(model);
        let tiling = Tiling::new(mode, input.network(), size, model);
        let whole = ImageSize {
            width: size.width as u32 * model.latent_factor,
            height: size.height as u32 * model.latent_factor,
        };
        let is_seamless = mode.cut(whole) == Cut::Seamless;
        Self { sampling, stage, input, tiling, norms: None, is_seamless, cores: all_cores() }
    }

    /// Finds the statistics that all tiles share, unless they are known or each is to have its own.
    pub(super) async fn measure(&mut self, progress: &mut dyn Progress) -> Result<(), RenderError> {
        let model = self.sampling.model();
        let network = self.input.network();
        if self.norms.is_some() || !self.is_seamless || self.tiling.len() == 1 || network.groups(model) == 0 {
            return Ok(());
        }
        progress.phase("measuring");
        let samples = samples(network, self.input.size(model), model);
        let total = ROUNDS * samples.len();
        let mut norms: Option<Arc<Array>> = None;
        for round in 0..ROUNDS {
            let mut found: Vec<Option<Array>> = vec![None; samples.len()];
            let asked = |i: usize| (samples[i].window, self.rules(&norms, Wanted::Norms, samples[i].part));
            let mut flight = Flight::new(&self.sampling.lane);
            let (mut next, all) = ((0..samples.len()).peekable(), samples.len());
            while let Some((i, measured)) = self.next(&mut flight, (&mut next, all), &asked).await? {
                found[i] = Some(measured);
                let done = round * samples.len() + found.iter().flatten().count();
                progress.tiles(done, total);
            }
            let found: Vec<Array> = found.into_iter().map(|f| f.expect("all were answered")).collect();
            norms = Some(Arc::new(pool(&samples, &found)));
        }
        self.norms = norms;
        Ok(())
    }

    fn rules(&self, norms: &Option<Arc<Array>>, wanted: Wanted, part: Rect) -> TileRules {
        // Decoded values have a hundredth of a level to spare in half precision.
        let wire = if self.is_seamless { WireDtype::F16 } else { WireDtype::F32 };
        TileRules { norms: norms.clone(), wanted, part, wire }
    }

    /// Keeps tiles in flight, and returns the next answer with its position; `None` when all are answered.
    /// `joined`: rows of tiles that are joined. Results of later ones wait in memory for a tile that is late,
    /// so none is asked for that lies far ahead. Dropping the future loses no answer.
    pub(super) async fn next_tile(
        &self,
        flight: &mut Flight<'_, (usize, TaskResult)>,
        next: &mut Peekable<impl Iterator<Item = usize> + Send>,
        joined: usize,
    ) -> Result<Option<(usize, Array)>, RenderError> {
        let columns = self.tiling.len() / self.tiling.rows();
        let limit = joined * columns + AHEAD * columns + flight.room();
        let asked =
            |i: usize| (self.tiling.window(i), self.rules(&self.norms, Wanted::Values, self.tiling.part(i)));
        self.next(flight, (next, limit), &asked).await
    }

    async fn next(
        &self,
        flight: &mut Flight<'_, (usize, TaskResult)>,
        (next, limit): (&mut Peekable<impl Iterator<Item = usize> + Send>, usize),
        asked: &(impl Fn(usize) -> (Window, TileRules) + Sync),
    ) -> Result<Option<(usize, Array)>, RenderError> {
        while flight.has_room() {
            let Some(position) = next.next_if(|position| *position < limit) else { break };
            let ((window, rules), input) = (asked(position), self.input.clone());
            let (lane, stage, cores) = (self.sampling.lane.clone(), self.stage, self.cores.clone());
            flight.send(async move {
                let model = lane.model().clone();
                let task = on_a_core(&cores, move || input.task(window, rules, &model)).await?;
                let order = TaskOrder { stage, position: position as u32 };
                Ok((position, lane.run(order, task).await?))
            });
        }
        match flight.next().await? {
            None => Ok(None),
            Some((i, TaskResult::Moments(array) | TaskResult::Image(array) | TaskResult::Norms(array))) => {
                Ok(Some((i, array)))
            }
            Some((_, other)) => unreachable!("the farm checks the kind of an answer: {other:?}"),
        }
    }
}
