//! What those who look at a render are told.

use gigasmith_proto::domain::ScheduleConfig;

use super::*;
use crate::sampler::noise::NoiseField;
use crate::sampler::philox::Purpose;
use crate::sampler::plan::{Geometry, Plan, PlanKind};
use crate::sampler::stage::Start;

const STEPS: u32 = 3;
const SIZE: LatentSize = LatentSize { height: 40, width: 70 };

/// One whose latents are shown in shades of grey.
fn model() -> ModelDescription {
    let synthetic = gigasmith_worker::synthetic::Synthetic::new("side=16".parse().unwrap());
    let model = gigasmith_worker::backend::Backend::describe(&synthetic).clone();
    ModelDescription { scaling_factor: 1.0, ..model }
}

/// A stage whose canvas is watched.
struct Bench {
    live: Live,
    run: StageRun,
    model: ModelDescription,
}

impl Bench {
    fn new() -> Self {
        let (model, live) = (model(), Live::new(7));
        let plan = Plan::draw(PlanKind::Balanced, Geometry::new(SIZE, 16), STEPS as usize, 1, 0);
        let noise = NoiseField::from_seed(1, 0, Purpose::Noise, model.latent_channels as usize);
        let schedule = Schedule::new(&ScheduleConfig::SDXL, STEPS).unwrap();
        let run = StageRun::new(plan, schedule, Start::Noise(noise));
        live.begin(Self::begin(&run, &model), &run, &model);
        Self { live, run, model }
    }

    fn begin(run: &StageRun, model: &ModelDescription) -> StageBegin {
        let factor = model.latent_factor;
        let size = ImageSize { width: SIZE.width as u32 * factor, height: SIZE.height as u32 * factor };
        StageBegin { stage: 0, total: 1, size, patches: run.progress().1, done: 0 }
    }

    /// Commits a patch; where it lies.
    fn step(&mut self) -> Option<Window> {
        let start = self.run.next_patch(1)?;
        let input = self.run.rules().input(start);
        let (window, prediction) = (input.window, Array::clone(&input.latent));
        let outcome = self.run.rules().outcome(input, prediction);
        let schedule = self.run.rules().clone();
        self.run.complete(outcome, &mut Painter { live: &self.live, schedule: schedule.schedule() });
        Some(window)
    }

    /// The level at which a pixel is a latent pixel.
    fn level(&self) -> usize {
        self.model.latent_factor.trailing_zeros() as usize
    }

    fn whole(&self) -> PixelRect {
        PixelRect { top: 0, left: 0, height: SIZE.height as u32, width: SIZE.width as u32 }
    }
}

#[test]
fn what_has_changed_is_told_and_what_is_long_gone_may_be_anything() {
    let mut bench = Bench::new();
    let begun = bench.live.glance().unwrap();
    assert_eq!(bench.live.dirty(begun.changed), Some(Vec::new()));
    assert_eq!(bench.live.dirty(begun.changed - 1), None, "another canvas");
    let factor = bench.model.latent_factor as usize;
    let first = bench.step().unwrap().pixels(factor);
    let between = bench.live.glance().unwrap().changed;
    let second = bench.step().unwrap().pixels(factor);
    assert_eq!(bench.live.dirty(begun.changed), Some(vec![first, second]));
    assert_eq!(bench.live.dirty(between), Some(vec![second]));
    let mut inner = bench.live.lock();
    (0..REMEMBERED - 1).for_each(|_| inner.dirty(first));
    drop(inner);
    assert_eq!(bench.live.dirty(begun.changed), None, "the first change is forgotten");
    assert_eq!(bench.live.dirty(begun.changed + 1).map(|d| d.len()), Some(REMEMBERED));
}

#[test]
fn cells_count_the_steps_that_each_has_behind_it() {
    let mut bench = Bench::new();
    let cells = |bench: &Bench| bench.live.glance().unwrap().cells.unwrap();
    assert!(cells(&bench).done.iter().all(|&done| done == 0));
    let window = bench.step().unwrap();
    let Cells { columns, side, done, .. } = cells(&bench);
    let side = side as usize / bench.model.latent_factor as usize;
    for (i, done) in done.iter().enumerate() {
        let (y, x) = (i / columns * side + side / 2, i % columns * side + side / 2);
        let inside = (window.top..window.bottom()).contains(&y) && (window.left..window.right()).contains(&x);
        assert_eq!(*done, u16::from(inside), "the cell whose middle is {y}, {x}");
    }
    while bench.step().is_some() {}
    assert!(cells(&bench).done.iter().all(|&done| u32::from(done) == STEPS));
}

#[test]
fn the_preview_shows_the_canvas_as_it_stands() {
    let mut bench = Bench::new();
    let (level, whole) = (bench.level(), bench.whole());
    let version = bench.live.glance().unwrap().version;
    let noise = bench.live.read(version, level, whole).unwrap();
    while bench.step().is_some() {}
    let shown = bench.live.read(version, level, whole).unwrap();
    assert_ne!(shown, noise);
    let canvas = bench.run.canvas().read_now(SIZE.rect());
    let colours = Colours::guess(&bench.model);
    for (i, pixel) in shown.chunks_exact(3).enumerate() {
        assert_eq!(pixel, colours.pixel(|channel| canvas.data()[channel * SIZE.area() + i]), "pixel {i}");
    }
    assert_eq!(bench.live.read(version + 1, level, whole), None, "another canvas");
    assert_eq!(
        bench.live.read(version, level, PixelRect { width: whole.width + 1, ..whole }),
        None,
        "outside"
    );
    let (stage, position) = (0, 1);
    let (rect, step) = bench.live.patch(stage, position).unwrap();
    let window = bench.run.rules().plan().window(crate::sampler::units::PatchId(position));
    assert_eq!((rect, step), (window.pixels(bench.model.latent_factor as usize), Step(0)));
    assert_eq!(bench.live.patch(1, position), None, "another stage");
}
