//! Are there seams? Plans compared over several seeds, as numbers.
//!
//! `cargo bench -p gigasmith-tests --bench seams -- [SEEDS] [PROMPT]` renders 4x pictures with the
//! embedded model by both plans and prints, per plan, for the last step and for the last five:
//! - *border*: mean luminance gradient across the borders between patches, over that along all other
//!   lines between latent pixels. 1 is no seam.
//! - *zone*: mean standard deviation within the latent pixels of the transition zones, over that of
//!   all others. 1 is no blur and no ringing.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use gigasmith_coordinator::embedded::EmbeddedFarm;
use gigasmith_coordinator::render::{Rendered, render};
use gigasmith_coordinator::sampler::blend::{Cell, cells};
use gigasmith_coordinator::sampler::plan::{Plan, PlanKind};
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::{ImageSize, LatentSize, Step, Window};
use gigasmith_coordinator::spec::{
    Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, UpscaleSpec, resolve_sliders,
};
use gigasmith_proto::domain::ModelDescription;
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::model::{
    self, BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, Variant,
};
use gigasmith_worker::session::SessionOptions;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let seeds: u64 = args.next().map_or(Ok(8), |s| s.parse())?;
    let prompt = args.next().unwrap_or("mountains with a lake at sunset, a sun".into());
    let options = LoadOptions {
        device: DeviceChoice::Auto,
        dtype: None,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_env(),
    };
    let device = DeviceThread::start(move || model::open(&ModelSource::Pocket, &options))?;
    let session = SessionOptions {
        name: "bench".into(),
        device: "auto".into(),
        slots: 2,
        coordinator: "embedded".into(),
        reconnects: false,
    };
    let mut farm = EmbeddedFarm::start(Arc::new(device), session);
    let lane = farm.lane().await?;
    let model = lane.model().clone();
    println!(
        "{:<10} {:>5} {:>12} {:>12} {:>12} {:>12}",
        "plan", "seed", "border last", "border 5", "zone last", "zone 5"
    );
    for kind in [PlanKind::Paper, PlanKind::Balanced] {
        let mut sums = [0.0; 4];
        for seed in 1..=seeds {
            let spec = spec(&model, &prompt, kind, seed)?;
            let Rendered { picture, plans, .. } = render(lane.clone(), &spec, None, &mut ()).await?;
            let plan = &plans.plan(spec.upscales.len() as u32);
            let picture = picture.to_picture()?;
            let luminance: Vec<f64> = picture
                .rgb()
                .chunks_exact(3)
                .map(|p| {
                    (0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])) / 255.0
                })
                .collect();
            let image = Image { luminance, size: picture.size(), factor: model.latent_factor as usize };
            let (one, five) = (marks(plan, 1), marks(plan, 5));
            let row = [image.border(&one), image.border(&five), image.zone(&one), image.zone(&five)];
            print_row(kind, &seed.to_string(), row);
            sums.iter_mut().zip(row).for_each(|(s, r)| *s += r / seeds as f64);
        }
        print_row(kind, "mean", sums);
    }
    farm.stop().await;
    Ok(())
}

fn print_row(kind: PlanKind, seed: &str, [a, b, c, d]: [f64; 4]) {
    println!("{:<10} {seed:>5} {a:>12.3} {b:>12.3} {c:>12.3} {d:>12.3}", format!("{kind:?}").to_lowercase());
}

fn spec(model: &ModelDescription, prompt: &str, plan: PlanKind, seed: u64) -> anyhow::Result<RenderSpec> {
    let (width, height) = model.native_sizes[0];
    let size = |factor| ImageSize { width: width * factor, height: height * factor };
    let sliders = resolve_sliders(&[], model.preset.steps, 2, model.preset.slider_shares)?;
    Ok(RenderSpec {
        version: SPEC_VERSION,
        prompt: prompt.into(),
        negative_prompt: None,
        model: ModelSpec::of(model),
        base: size(1),
        base_in_windows: false,
        upscales: [2, 4]
            .into_iter()
            .zip(sliders)
            .map(|(f, slider)| UpscaleSpec { size: size(f), slider })
            .collect(),
        steps: model.preset.steps,
        guidance_scale: model.preset.guidance_scale,
        pag: None,
        seed,
        plan,
        plan_hash: None,
        rng: Rng::Philox,
        crops: Crops::True,
        vae: VaeMode::Whole,
        image_hash: None,
        wire: Default::default(),
        mix: false,
    })
}

/// Where patches of the last steps met: latent pixels that begin another patch's area to the right or
/// below, and latent pixels that were blended.
struct Marks {
    size: LatentSize,
    border_left: Vec<bool>,
    border_top: Vec<bool>,
    zone: Vec<bool>,
}

fn marks(plan: &Plan, last: usize) -> Marks {
    let size = plan.geometry().canvas;
    let none = vec![false; size.area()];
    let mut marks = Marks { size, border_left: none.clone(), border_top: none.clone(), zone: none };
    for step in plan.steps() - last..plan.steps() {
        let mut owner = vec![0u32; size.area()];
        let mut earlier: Vec<Window> = Vec::new();
        for (id, _) in plan.step(Step(step as u32)) {
            let w = plan.window(id);
            for (i, cell) in cells(w, earlier.iter().copied(), plan.geometry().zone).into_iter().enumerate() {
                let at = (w.top + i / w.width) * size.width + w.left + i % w.width;
                match cell {
                    Cell::Pending => owner[at] = id.0,
                    Cell::Zone => marks.zone[at] = true,
                    Cell::Done => {}
                }
            }
            earlier.push(w);
        }
        for at in 0..size.area() {
            marks.border_left[at] |= at % size.width > 0 && owner[at] != owner[at - 1];
            marks.border_top[at] |= at >= size.width && owner[at] != owner[at - size.width];
        }
    }
    marks
}

struct Image {
    luminance: Vec<f64>,
    size: ImageSize,
    factor: usize,
}

impl Image {
    fn at(&self, y: usize, x: usize) -> f64 {
        self.luminance[y * self.size.width as usize + x]
    }

    /// Gradient across marked lines over gradient across all other lines between latent pixels.
    fn border(&self, marks: &Marks) -> f64 {
        let (mut on, mut off) = (Mean::default(), Mean::default());
        for cell in 0..marks.size.area() {
            let (y, x) = (cell / marks.size.width * self.factor, cell % marks.size.width * self.factor);
            for i in 0..self.factor {
                if x > 0 {
                    let gradient = (self.at(y + i, x) - self.at(y + i, x - 1)).abs();
                    if marks.border_left[cell] { on.add(gradient) } else { off.add(gradient) }
                }
                if y > 0 {
                    let gradient = (self.at(y, x + i) - self.at(y - 1, x + i)).abs();
                    if marks.border_top[cell] { on.add(gradient) } else { off.add(gradient) }
                }
            }
        }
        on.value() / off.value()
    }

    /// Standard deviation within blended latent pixels over that within all others.
    fn zone(&self, marks: &Marks) -> f64 {
        let (mut on, mut off) = (Mean::default(), Mean::default());
        for (cell, &zone) in marks.zone.iter().enumerate() {
            let (y, x) = (cell / marks.size.width * self.factor, cell % marks.size.width * self.factor);
            let values =
                || (0..self.factor * self.factor).map(|i| self.at(y + i / self.factor, x + i % self.factor));
            let n = (self.factor * self.factor) as f64;
            let mean = values().sum::<f64>() / n;
            let deviation = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            if zone { on.add(deviation) } else { off.add(deviation) }
        }
        on.value() / off.value()
    }
}

#[derive(Default)]
struct Mean {
    sum: f64,
    n: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.n += 1.0;
    }

    fn value(&self) -> f64 {
        self.sum / self.n
    }
}
