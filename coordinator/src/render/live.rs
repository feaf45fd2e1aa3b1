//! What can be seen of a render while it is under way: the canvas in colours, how far each place of it is,
//! and, once it is decoded, the picture.
//!
//! The latents of a patch are turned to colours when it is committed, by a linear map, one pixel for each
//! latent pixel: a fifth of the canvas's memory. Who looks takes what is there and works on it by itself: the
//! render waits for nobody. The map is fitted to the first picture that the render decodes; before that it is SDXL's, or shades of grey.

mod colours;
mod preview;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use gigasmith_proto::domain::{Array, ModelDescription};

use super::StageBegin;
use crate::raster::{Levels, Raster};
use crate::sampler::canvas::Canvas;
use crate::sampler::schedule::Schedule;
use crate::sampler::stage::{PatchInput, StageObserver, StageRules, StageRun};
use crate::sampler::tiles::Tiling;
use crate::sampler::units::{ImageSize, LatentSize, PixelRect, Step, Window};
use colours::Colours;
use preview::Preview;

/// Changes that are remembered, for those who saw the canvas a moment ago.
const REMEMBERED: usize = 256;
/// Cells along the longer side, at most.
const CELLS: usize = 64;

/// What is to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// A canvas that is denoised.
    Latents,
    /// A canvas that is decoded.
    Tiles,
    /// The picture.
    Picture,
}

/// How far each part of a canvas is, in squares, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cells {
    /// Squares in a row.
    pub columns: usize,
    /// Rows of squares.
    pub rows: usize,
    /// Their side in image pixels.
    pub side: u32,
    /// Steps that each has behind it; while a canvas is decoded: 1 where it is.
    pub done: Vec<u16>,
}

/// The canvas at a glance.
#[derive(Debug, Clone)]
pub struct Glance {
    /// Changes when there is another picture to look at: another stage, or another size.
    pub version: u64,
    /// Counts changes of pixels.
    pub changed: u64,
    /// What is to be seen.
    pub shown: Shown,
    /// Which stage, 0 for the base.
    pub stage: u32,
    /// How many there are.
    pub stages: u32,
    /// The size of its picture.
    pub size: ImageSize,
    /// Steps of the stage; 1 while it is decoded.
    pub steps: u32,
    /// How far it is; `None` for a picture.
    pub cells: Option<Cells>,
}

/// A render as others may look at it.
#[derive(Debug)]
pub struct Live {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    changed: u64,
    colours: Option<Colours>,
    recent: VecDeque<(u64, PixelRect)>,
    scene: Option<Scene>,
}

#[derive(Debug)]
struct Scene {
    stage: u32,
    stages: u32,
    size: ImageSize,
    steps: u32,
    factor: usize,
    preview: Preview,
    latent: LatentSize,
    cells: Cells,
    rules: Option<Arc<StageRules>>,
    decoding: Option<(Arc<Raster>, Tiling)>,
    is_finished: bool,
}

impl Live {
    /// Nothing is to be seen yet. `version`: that of the first thing to be seen; a process that goes on where
    /// another was should not begin at the same number.
    pub fn new(version: u64) -> Self {
        let inner = Inner { version, changed: 0, colours: None, recent: VecDeque::new(), scene: None };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// What is to be seen now; `None`: nothing yet.
    pub fn glance(&self) -> Option<Glance> {
        let inner = self.lock();
        let scene = inner.scene.as_ref()?;
        let shown = match () {
            () if scene.is_finished => Shown::Picture,
            () if scene.decoding.is_some() => Shown::Tiles,
            () => Shown::Latents,
        };
        Some(Glance {
            version: inner.version,
            changed: inner.changed,
            shown,
            stage: scene.stage,
            stages: scene.stages,
            size: scene.size,
            steps: if shown == Shown::Tiles { 1 } else { scene.steps },
            cells: (shown != Shown::Picture).then(|| scene.cells.clone()),
        })
    }

    /// What has changed since `changed` was counted; `None`: it may be anything.
    pub fn dirty(&self, changed: u64) -> Option<Vec<PixelRect>> {
        let inner = self.lock();
        let oldest = inner.recent.front().map_or(inner.changed, |(at, _)| at - 1);
        let since = inner.recent.iter().filter(|(at, _)| *at > changed);
        (changed >= oldest).then(|| since.map(|(_, rect)| *rect).collect())
    }

    /// Where a patch of the stage that is to be seen lies, and its step.
    pub fn patch(&self, stage: u32, position: u32) -> Option<(PixelRect, Step)> {
        let inner = self.lock();
        let scene = inner.scene.as_ref().filter(|s| s.stage == stage)?;
        let (plan, id) = (scene.rules.as_ref()?.plan(), crate::sampler::units::PatchId(position));
        (id.index() < plan.len()).then(|| (plan.window(id).pixels(scene.factor), plan.step_of(id)))
    }

    /// Where a tile of the stage that is decoded lies.
    pub fn tile(&self, stage: u32, position: u32) -> Option<PixelRect> {
        let inner = self.lock();
        let scene = inner.scene.as_ref().filter(|s| s.stage == stage)?;
        let (_, tiling) = scene.decoding.as_ref()?;
        ((position as usize) < tiling.len()).then(|| tiling.kept(position as usize).pixels(scene.factor))
    }

    /// The pixels of a part of a level, as far as they are known: of the picture where it is decoded, else
    /// of the preview. `None` when another version is to be seen now, or there is no such part.
    pub fn read(&self, version: u64, level: usize, rect: PixelRect) -> Option<Vec<u8>> {
        enum Found {
            Picture(Arc<Raster>),
            Preview(Preview),
        }
        let found = {
            let inner = self.lock();
            let scene = inner.scene.as_ref().filter(|_| inner.version == version)?;
            let size = level_size(scene.size, level);
            if !rect.is_within(size) {
                return None;
            }
            let decoded = scene.decoding.as_ref().map(|(raster, _)| raster.clone());
            match decoded.filter(|r| level < r.levels() && r.rows(level) >= rect.top + rect.height) {
                None if scene.is_finished => return None,
                None => Found::Preview(scene.preview.take(level, rect)),
                Some(raster) => Found::Picture(raster),
            }
        };
        match found {
            Found::Picture(raster) => raster.read(level, rect).ok(),
            Found::Preview(preview) => Some(preview.shrunk(level, rect)),
        }
    }

    /// The picture, once it is decoded.
    pub fn picture(&self) -> Option<Arc<Raster>> {
        let inner = self.lock();
        let scene = inner.scene.as_ref().filter(|s| s.is_finished)?;
        scene.decoding.as_ref().map(|(raster, _)| raster.clone())
    }

    /// A stage begins, or is taken up.
    pub(super) fn begin(&self, begin: StageBegin, run: &StageRun, model: &ModelDescription) {
        let (latent, factor) = (run.canvas().size(), model.latent_factor as usize);
        let steps = run.rules().schedule().len() as u32;
        let mut scene =
            Scene { rules: Some(run.rules().clone()), ..Scene::new(begin, latent, factor, steps) };
        let (side, columns) = (scene.cells.side as usize / factor, scene.cells.columns);
        let colours = self.lock().colours.clone().unwrap_or_else(|| Colours::guess(model));
        for top in (0..latent.height).step_by(side) {
            for left in (0..latent.width).step_by(side) {
                let window = Window {
                    top,
                    left,
                    height: side.min(latent.height - top),
                    width: side.min(latent.width - left),
                };
                let done = run.canvas().steps_done(window);
                scene.preview.paint(
                    window,
                    &run.canvas().read_now(window),
                    &colours,
                    gain(run.rules().schedule(), done),
                );
                scene.cells.done[top / side * columns + left / side] = done;
            }
        }
        let mut inner = self.lock();
        inner.version += 1;
        inner.recent.clear();
        inner.changed += 1;
        inner.scene = Some(scene);
        inner.colours.get_or_insert(colours);
    }

    /// A stage's canvas, or what a restored one is of, is decoded from now on.
    pub(super) fn decode(
        &self,
        begin: StageBegin,
        latent: &Array,
        raster: &Arc<Raster>,
        tiling: &Tiling,
        model: &ModelDescription,
    ) {
        let (colours, is_new) = {
            let inner = self.lock();
            let colours = inner.colours.clone().unwrap_or_else(|| Colours::guess(model));
            (colours, inner.scene.as_ref().is_none_or(|s| s.stage != begin.stage))
        };
        let new = is_new.then(|| {
            let mut scene = Scene::new(begin, tiling.size(), model.latent_factor as usize, 1);
            scene.preview.paint(scene.latent.rect(), latent, &colours, 1.0);
            scene
        });
        let mut inner = self.lock();
        if new.is_some() {
            inner.version += 1;
            inner.scene = new;
        }
        let scene = inner.scene.as_mut().expect("there is one now");
        scene.cells.done.fill(0);
        scene.rules = None;
        scene.decoding = Some((raster.clone(), tiling.clone()));
        let finished = raster.finished() / model.latent_factor;
        scene.mark(Window { height: finished as usize, ..scene.latent.rect() }, 1);
        inner.recent.clear();
        inner.changed += 1;
    }

    /// A tile is decoded; `rows`: from which row of pixels to which the picture is finished by it.
    pub(super) fn decoded(&self, position: usize, rows: Option<(u32, u32)>) {
        let mut inner = self.lock();
        let Some(scene) = &mut inner.scene else { return };
        let Some((_, tiling)) = &scene.decoding else { return };
        let kept = tiling.kept(position);
        scene.mark(kept, 1);
        let rect =
            rows.map(|(top, end)| PixelRect { top, left: 0, height: end - top, width: scene.size.width });
        if let Some(rect) = rect {
            inner.dirty(rect);
        }
    }

    /// A stage is decoded. Its latent and its picture tell which colours latents stand for.
    pub(super) fn finish(&self, latent: &Array, raster: &Raster, is_last: bool, factor: usize) {
        let fitted = Colours::fit(latent, raster, factor);
        let mut inner = self.lock();
        if let Some(fitted) = fitted {
            inner.colours = Some(fitted);
        }
        if let Some(scene) = inner.scene.as_mut().filter(|_| is_last) {
            scene.is_finished = true;
            scene.preview = Preview::new(LatentSize { height: 0, width: 0 }, scene.factor);
        }
        inner.changed += 1;
        inner.recent.clear();
    }
}

/// Turns what is committed to colours.
pub(super) struct Painter<'a> {
    pub(super) live: &'a Live,
    pub(super) schedule: &'a Schedule,
}

impl StageObserver for Painter<'_> {
    fn committed(&mut self, input: &PatchInput, _: &Array, canvas: &Canvas) {
        let done = input.step.0 as u16 + 1;
        let latent = canvas.read_now(input.window);
        let mut inner = self.live.lock();
        let Inner { colours: Some(colours), scene: Some(scene), .. } = &mut *inner else { return };
        scene.preview.paint(input.window, &latent, colours, gain(self.schedule, done));
        scene.mark(input.window, done);
        let rect = input.window.pixels(scene.factor);
        inner.dirty(rect);
    }
}

/// How much weaker than its picture the canvas is after so many steps: the picture is drowned in noise at
/// first, and shows when seen from afar.
fn gain(schedule: &Schedule, done: u16) -> f32 {
    let alpha = match usize::from(done) {
        done if done >= schedule.len() => 1.0,
        done => schedule.at(Step(done as u32)).alphas_cumprod,
    };
    1.0 / alpha.sqrt().max(0.5)
}

impl Inner {
    fn dirty(&mut self, rect: PixelRect) {
        self.changed += 1;
        self.recent.push_back((self.changed, rect));
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }
}

fn level_size(size: ImageSize, level: usize) -> ImageSize {
    let side = |length: u32| u64::from(length).div_ceil(1u64 << level.min(40)) as u32;
    ImageSize { width: side(size.width), height: side(size.height) }
}

impl Scene {
    /// A black canvas.
    fn new(begin: StageBegin, latent: LatentSize, factor: usize, steps: u32) -> Self {
        let side = latent.height.max(latent.width).div_ceil(CELLS).max(1);
        let (columns, rows) = (latent.width.div_ceil(side), latent.height.div_ceil(side));
        let done = vec![0; columns * rows];
        Self {
            stage: begin.stage,
            stages: begin.total,
            size: begin.size,
            steps,
            factor,
            preview: Preview::new(latent, factor),
            latent,
            cells: Cells { columns, rows, side: (side * factor) as u32, done },
            rules: None,
            decoding: None,
            is_finished: false,
        }
    }

    /// The cells whose middle lies in a window are so far.
    fn mark(&mut self, window: Window, done: u16) {
        let side = self.cells.side as usize / self.factor;
        let Cells { columns, rows, done: cells, .. } = &mut self.cells;
        let range = |from: usize, to: usize, all: usize, end: usize| {
            // The middle of the last cell may lie beyond the edge.
            let first = (from + side / 2) / side;
            let last = if to == end { all } else { (to + side / 2) / side };
            first.min(all)..last.min(all)
        };
        for row in range(window.top, window.bottom(), *rows, self.latent.height) {
            for column in range(window.left, window.right(), *columns, self.latent.width) {
                let cell = &mut cells[row * *columns + column];
                *cell = (*cell).max(done);
            }
        }
    }
}

#[cfg(test)]
mod tests;
