//! What can be seen of a render while it is under way: the canvas in colours, how far each place of it is,
//! and, once it is decoded, the picture.
//!
//! The latents of a patch are turned to colours when it is committed, by a linear map, one pixel for each
//! latent pixel: a fifth of the canvas's memory, and nothing that the render would wait for. The map is
//! fitted to the first picture that the render decodes; before that it is SDXL's, or shades of grey.

mod colours;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use gigasmith_proto::domain::{Array, ModelDescription};
use tokio::sync::watch;

use super::StageBegin;
use crate::raster::{Levels, Raster};
use crate::sampler::canvas::Canvas;
use crate::sampler::schedule::Schedule;
use crate::sampler::stage::{PatchInput, StageObserver, StageRules, StageRun};
use crate::sampler::tiles::Tiling;
use crate::sampler::units::{ImageSize, LatentSize, PixelRect, Step, Window};
use colours::Colours;

/// Changes that are remembered, for those who saw the canvas a moment ago.
const REMEMBERED: usize = 256;
/// Cells along the longer side, at most.
const CELLS: usize = 64;
/// A pixel of a preview is the mean of at most so many latent pixels a side.
const SAMPLES: usize = 4;

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
    changes: watch::Sender<u64>,
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
    /// One pixel for each latent pixel.
    preview: Vec<u8>,
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
        Self { inner: Mutex::new(inner), changes: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Is told when something changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn touch(&self) {
        self.changes.send_modify(|n| *n += 1);
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
        let raster = {
            let inner = self.lock();
            let scene = inner.scene.as_ref().filter(|_| inner.version == version)?;
            let size = level_size(scene.size, level);
            if !rect.is_within(size) {
                return None;
            }
            let decoded = scene.decoding.as_ref().map(|(raster, _)| raster.clone());
            match decoded.filter(|r| level < r.levels() && r.rows(level) >= rect.top + rect.height) {
                None => return Some(scene.shrunk(level, rect)),
                Some(raster) => raster,
            }
        };
        raster.read(level, rect).ok()
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
        let side = latent.height.max(latent.width).div_ceil(CELLS).max(1);
        let (columns, rows) = (latent.width.div_ceil(side), latent.height.div_ceil(side));
        let cells = Cells { columns, rows, side: (side * factor) as u32, done: vec![0; columns * rows] };
        let mut scene = Scene {
            stage: begin.stage,
            stages: begin.total,
            size: begin.size,
            steps: run.rules().schedule().len() as u32,
            factor,
            preview: vec![0; latent.area() * 3],
            latent,
            cells,
            rules: Some(run.rules().clone()),
            decoding: None,
            is_finished: false,
        };
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
                scene.paint(
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
        drop(inner);
        self.touch();
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
        let factor = model.latent_factor as usize;
        let mut inner = self.lock();
        let colours = inner.colours.clone().unwrap_or_else(|| Colours::guess(model));
        if inner.scene.as_ref().is_none_or(|s| s.stage != begin.stage) {
            let size = tiling.size();
            let side = size.height.max(size.width).div_ceil(CELLS).max(1);
            let (columns, rows) = (size.width.div_ceil(side), size.height.div_ceil(side));
            let mut scene = Scene {
                stage: begin.stage,
                stages: begin.total,
                size: begin.size,
                steps: 1,
                factor,
                preview: vec![0; size.area() * 3],
                latent: size,
                cells: Cells { columns, rows, side: (side * factor) as u32, done: Vec::new() },
                rules: None,
                decoding: None,
                is_finished: false,
            };
            scene.paint(size.rect(), latent, &colours, 1.0);
            inner.version += 1;
            inner.scene = Some(scene);
        }
        let scene = inner.scene.as_mut().expect("there is one now");
        scene.cells.done = vec![0; scene.cells.columns * scene.cells.rows];
        scene.rules = None;
        scene.decoding = Some((raster.clone(), tiling.clone()));
        let finished = raster.finished() / model.latent_factor;
        scene.mark(Window { height: finished as usize, ..scene.latent.rect() }, 1);
        inner.recent.clear();
        inner.changed += 1;
        drop(inner);
        self.touch();
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
        drop(inner);
        self.touch();
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
            scene.preview = Vec::new();
        }
        inner.changed += 1;
        inner.recent.clear();
        drop(inner);
        self.touch();
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
        scene.paint(input.window, &latent, colours, gain(self.schedule, done));
        scene.mark(input.window, done);
        let rect = input.window.pixels(scene.factor);
        inner.dirty(rect);
        drop(inner);
        self.live.touch();
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
    fn paint(&mut self, window: Window, latent: &Array, colours: &Colours, gain: f32) {
        for row in 0..window.height {
            let at = ((window.top + row) * self.latent.width + window.left) * 3;
            let out = &mut self.preview[at..][..window.width * 3];
            for (column, pixel) in out.chunks_exact_mut(3).enumerate() {
                let value = |channel: usize| {
                    gain * latent.data()[channel * window.area() + row * window.width + column]
                };
                pixel.copy_from_slice(&colours.pixel(value));
            }
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

    /// A part of a level of the preview: enlarged, or the mean of some of the pixels that it is made of.
    fn shrunk(&self, level: usize, rect: PixelRect) -> Vec<u8> {
        let mut out = Vec::with_capacity(rect.area() * 3);
        // In latent pixels, from which to which, times the factor.
        let span = |at: u32, length: usize| {
            let (from, to) = ((at as usize) << level, ((at as usize) + 1) << level);
            let first = (from / self.factor).min(length - 1);
            (first, to.div_ceil(self.factor).min(length).max(first + 1))
        };
        for y in rect.top..rect.top + rect.height {
            let (top, bottom) = span(y, self.latent.height);
            for x in rect.left..rect.left + rect.width {
                let (left, right) = span(x, self.latent.width);
                let (mut sum, mut n) = ([0u32; 3], 0);
                for row in (top..bottom).step_by((bottom - top).div_ceil(SAMPLES)) {
                    for column in (left..right).step_by((right - left).div_ceil(SAMPLES)) {
                        let at = (row * self.latent.width + column) * 3;
                        sum.iter_mut().zip(&self.preview[at..at + 3]).for_each(|(s, &v)| *s += u32::from(v));
                        n += 1;
                    }
                }
                out.extend(sum.map(|s| (s / n) as u8));
            }
        }
        out
    }
}
