//! What can be seen of a render while it is under way: the canvas in colours, how far each place of it is,
//! and, once it is decoded, the picture.
//!
//! The latents of a patch are turned to colours when it is committed, by a linear map, one pixel for each
//! latent pixel: a fifth of the canvas's memory, and nothing that the render would wait for. The map is
//! fitted to the first picture that the render decodes; before that it is SDXL's, or shades of grey.

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

/// Changes that are remembered, for those who saw the canvas a moment ago.
const REMEMBERED: usize = 256;
/// Cells along the longer side, at most.
const CELLS: usize = 64;
/// Places that the map of colours is fitted to.
const FITTED: usize = 16_384;
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

/// A linear map from a latent pixel to a colour: for each of R, G and B a weight per channel, then what is
/// added, all in levels of 255.
#[derive(Debug, Clone, PartialEq)]
struct Colours([Vec<f32>; 3]);

impl Colours {
    /// Before anything is decoded: SDXL's, as everybody uses them, or shades of grey.
    fn guess(model: &ModelDescription) -> Self {
        const SDXL: [[f32; 5]; 3] = [
            [0.3651, -0.2533, 0.1076, -0.3165, 0.1084],
            [0.4232, -0.0042, 0.1111, -0.2492, -0.0175],
            [0.4341, 0.1068, -0.0362, -0.2188, -0.0011],
        ];
        let channels = model.latent_channels as usize;
        let is_sdxl = channels == 4 && (model.scaling_factor - 0.13025).abs() < 1e-6;
        let levels = |row: [f32; 5]| {
            let mut row = row.map(|v| v * 127.5).to_vec();
            row[4] += 127.5;
            row
        };
        match is_sdxl {
            true => Self(SDXL.map(levels)),
            false => {
                let mut grey = vec![40.0];
                grey.resize(channels, 0.0);
                grey.push(127.5);
                Self([grey.clone(), grey.clone(), grey])
            }
        }
    }

    fn pixel(&self, value: impl Fn(usize) -> f32) -> [u8; 3] {
        [0, 1, 2].map(|colour| {
            let weights = &self.0[colour];
            let channels = weights.len() - 1;
            let sum = (0..channels).map(|c| weights[c] * value(c)).sum::<f32>() + weights[channels];
            sum.clamp(0.0, 255.0) as u8
        })
    }

    /// The map that comes closest to what a latent was decoded to (least squares); `None` when that cannot
    /// be told.
    fn fit(latent: &Array, raster: &Raster, factor: usize) -> Option<Self> {
        let (channels, height, width) = latent.chw()?;
        // The level at which a pixel is a latent pixel.
        let level = factor.is_power_of_two().then(|| factor.trailing_zeros() as usize)?;
        let size = ImageSize { width: width as u32, height: height as u32 };
        if level >= raster.levels() || Levels::size(raster, level) != size {
            return None;
        }
        let n = channels + 1;
        // The normal equations: n unknowns, three right-hand sides.
        let mut equations = vec![vec![0.0f64; n + 3]; n];
        let every = (height * width).div_ceil(FITTED).max(1);
        let mut row = (usize::MAX, Vec::new());
        for at in (0..height * width).step_by(every) {
            let (y, x) = (at / width, at % width);
            if row.0 != y {
                let rect = PixelRect { top: y as u32, left: 0, height: 1, width: width as u32 };
                row = (y, raster.read(level, rect).ok()?);
            }
            let known: Vec<f64> = (0..channels)
                .map(|c| f64::from(latent.data()[c * height * width + at]))
                .chain([1.0])
                .chain(row.1[x * 3..x * 3 + 3].iter().map(|&v| f64::from(v)))
                .collect();
            for (i, equation) in equations.iter_mut().enumerate() {
                equation.iter_mut().zip(&known).for_each(|(e, k)| *e += known[i] * k);
            }
        }
        let solved = solve(equations)?;
        Some(Self([0, 1, 2].map(|colour| solved.iter().map(|row| row[colour] as f32).collect())))
    }
}

/// Solves n equations with n unknowns for several right-hand sides by elimination; `None` when they do not
/// determine it.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let n = rows.len();
    let scale = rows.iter().flatten().fold(0.0f64, |most, v| most.max(v.abs()));
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        let first = rows[column].clone();
        if first[column].abs() <= scale * 1e-12 {
            return None;
        }
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let times = row[column] / first[column];
            row.iter_mut().zip(&first).for_each(|(v, f)| *v -= times * f);
        }
    }
    Some(rows.iter().enumerate().map(|(i, row)| row[n..].iter().map(|v| v / row[i]).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raster::Scratch;
    use crate::sampler::resize::Picture;

    #[test]
    fn colours_are_found_again() {
        let (height, width, factor) = (12usize, 20usize, 4usize);
        let data: Vec<f32> = (0..2 * height * width).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let latent = Array::new([2, height, width], data).unwrap();
        let colours = Colours([vec![60.0, -30.0, 128.0], vec![0.0, 70.0, 100.0], vec![20.0, 20.0, 90.0]]);
        let pixel = |y: usize, x: usize| {
            let at = y / factor * width + x / factor;
            colours.pixel(|c| latent.data()[c * height * width + at])
        };
        let (h, w) = (height * factor, width * factor);
        let rgb = (0..h * w).flat_map(|i| pixel(i / w, i % w)).collect();
        let size = ImageSize { width: w as u32, height: h as u32 };
        let raster = Raster::of(&Picture::new(size, rgb), &Scratch::default()).unwrap();
        let fitted = Colours::fit(&latent, &raster, factor).unwrap();
        for (found, wanted) in fitted.0.iter().flatten().zip(colours.0.iter().flatten()) {
            // Levels are whole numbers, rounded down.
            assert!((found - wanted).abs() < 1.0, "{fitted:?}");
        }
        assert_eq!(Colours::fit(&Array::zeros([2, height, width]), &raster, factor), None);
    }
}
