//! Does it show that a picture was decoded in tiles? Both ways against the whole at once, as numbers and as
//! pictures.
//!
//! `cargo bench -p gigasmith-tests --bench tiles -- LATENTS.safetensors [FOLDER]` decodes what
//! `gigasmith render --save-latents` wrote, with the embedded model, and prints for every way
//! - *drift*: the mean difference to the whole decode, per colour, the largest of the three, in levels of 255;
//! - *tile*: the same within single tiles, the worst;
//! - *rms*, *largest*: the difference of single values, in levels;
//! - *border*: the mean luminance gradient across the lines where tiles meet, over that along lines that
//!   lie an eighth to three eighths of a tile away on both sides, and how that compares to the whole decode.
//!
//! Ways beside `tiled` and `seamless`: what the overlaps alone do, and the statistics after so many rounds.
//! FOLDER gets the pictures, and the differences to the whole, 32 times as strong.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gigasmith_coordinator::embedded::EmbeddedFarm;
use gigasmith_coordinator::farm::{Lane, TaskOrder};
use gigasmith_coordinator::output::decode_latents;
use gigasmith_coordinator::sampler::noise::crop;
use gigasmith_coordinator::sampler::tiles::join::{join, to_picture};
use gigasmith_coordinator::sampler::tiles::pool::{ROUNDS, pool, samples};
use gigasmith_coordinator::sampler::tiles::{Network, Tiling};
use gigasmith_coordinator::sampler::units::{LatentSize, Window};
use gigasmith_proto::domain::{Array, Rect, Task, TaskResult, TileRules, Wanted, WireDtype};
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::model::{
    self, BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, Variant,
};
use gigasmith_worker::session::SessionOptions;

/// Luminance (ITU-R BT.601).
const LUMA: [f64; 3] = [0.299, 0.587, 0.114];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let Some(latents) = args.next() else {
        println!("skipped: give the latents of a render, `-- LATENTS.safetensors [FOLDER]`");
        return Ok(());
    };
    let folder = args.next().map(PathBuf::from);
    let (latent, _) = decode_latents(&std::fs::read(latents)?)?;
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
    let bench = Bench::new(farm.lane().await?, latent);
    bench.run(folder.as_deref()).await?;
    farm.stop().await;
    Ok(())
}

struct Bench {
    lane: Arc<Lane>,
    /// Divided by the scaling factor already.
    latent: Array,
    size: LatentSize,
}

impl Bench {
    fn new(lane: Arc<Lane>, mut latent: Array) -> Self {
        let factor = lane.model().scaling_factor;
        latent.data_mut().iter_mut().for_each(|v| *v /= factor);
        let (_, height, width) = latent.chw().expect("a latent has three axes");
        Self { lane, latent, size: LatentSize { height, width } }
    }

    async fn run(&self, folder: Option<&Path>) -> anyhow::Result<()> {
        let model = self.lane.model();
        let scale = model.latent_factor as usize;
        let tile = model.vae_tile as usize / scale;
        let published = Tiling::published(self.size, tile, scale);
        let seamless = Tiling::seamless(self.size, tile, Network::Decoder.reach(model), scale);
        println!("{} tiles as published, {} seamless", published.len(), seamless.len());
        let whole = self.decode(&Tiling::whole(self.size, scale), None, WireDtype::F32).await?;
        println!(
            "{:<22} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}",
            "way", "drift", "tile", "rms", "largest", "border", "to whole"
        );
        let report = |name: &str, tiling: &Tiling, image: &Array| -> anyhow::Result<()> {
            Report::of(image, &whole, tiling, scale).print(name);
            let Some(folder) = folder else { return Ok(()) };
            std::fs::create_dir_all(folder)?;
            save(&folder.join(format!("{name}.png")), image)?;
            let mut difference = whole.clone();
            let pairs = difference.data_mut().iter_mut().zip(image.data());
            pairs.for_each(|(w, &v)| *w = (v - *w) * 32.0);
            save(&folder.join(format!("{name}-difference.png")), &difference)
        };
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)?;
            save(&folder.join("whole.png"), &whole)?;
        }
        let tiled = self.decode(&published, None, WireDtype::F32).await?;
        report("tiled", &published, &tiled)?;
        report("overlap-alone", &seamless, &self.decode(&seamless, None, WireDtype::F32).await?)?;
        let exact = self.norms(&[whole_sample(self.size)], 1).await?;
        let ideal = self.decode(&seamless, Some(exact.clone()), WireDtype::F32).await?;
        report("whole-statistics", &seamless, &ideal)?;
        let places: Vec<(Window, Rect)> =
            samples(Network::Decoder, self.size, model).into_iter().map(|s| (s.window, s.part)).collect();
        println!("{} samples", places.len());
        for rounds in 1..=ROUNDS + 2 {
            let norms = self.norms(&places, rounds).await?;
            let image = self.decode(&seamless, Some(norms), WireDtype::F16).await?;
            let name = if rounds == ROUNDS { "seamless".into() } else { format!("{rounds}-rounds") };
            report(&name, &seamless, &image)?;
        }
        Ok(())
    }

    async fn ask(&self, window: Window, rules: TileRules) -> anyhow::Result<Array> {
        let task = Task::DecodeTile { latent: Arc::new(crop(&self.latent, window)), rules };
        match self.lane.run(TaskOrder { stage: 0, position: 0 }, task).await? {
            TaskResult::Image(array) | TaskResult::Norms(array) => Ok(array),
            other => anyhow::bail!("the worker answered {other:?}"),
        }
    }

    async fn decode(
        &self,
        tiling: &Tiling,
        norms: Option<Arc<Array>>,
        wire: WireDtype,
    ) -> anyhow::Result<Array> {
        let mut results = Vec::new();
        for i in 0..tiling.len() {
            let rules =
                TileRules { norms: norms.clone(), wanted: Wanted::Values, part: tiling.part(i), wire };
            results.push(self.ask(tiling.window(i), rules).await?);
        }
        Ok(join(tiling, results))
    }

    async fn norms(&self, places: &[(Window, Rect)], rounds: usize) -> anyhow::Result<Arc<Array>> {
        let mut norms: Option<Arc<Array>> = None;
        let samples: Vec<_> = places
            .iter()
            .map(|&(window, part)| gigasmith_coordinator::sampler::tiles::pool::Sample { window, part })
            .collect();
        for _ in 0..rounds {
            let mut found = Vec::new();
            for &(window, part) in places {
                let rules =
                    TileRules { norms: norms.clone(), wanted: Wanted::Norms, part, wire: WireDtype::F32 };
                found.push(self.ask(window, rules).await?);
            }
            norms = Some(Arc::new(pool(&samples, &found)));
        }
        Ok(norms.expect("there is a round"))
    }
}

fn whole_sample(size: LatentSize) -> (Window, Rect) {
    (size.rect(), Rect { top: 0, left: 0, height: size.height, width: size.width })
}

fn save(path: &Path, image: &Array) -> anyhow::Result<()> {
    let picture = to_picture(image);
    let size = picture.size();
    image::save_buffer(path, picture.rgb(), size.width, size.height, image::ExtendedColorType::Rgb8)?;
    Ok(())
}

struct Report {
    drift: f64,
    tile: f64,
    rms: f64,
    largest: f64,
    border: f64,
    whole_border: f64,
}

impl Report {
    fn of(image: &Array, whole: &Array, tiling: &Tiling, scale: usize) -> Self {
        let (_, height, width) = image.chw().expect("three axes");
        let area = height * width;
        // Half of [-1, 1] is 127.5 levels.
        let difference = |i: usize| f64::from(image.data()[i] - whole.data()[i]) * 127.5;
        let mean_over = |part: Window| {
            (0..3)
                .map(|c| {
                    let rows = part.top..part.bottom();
                    let row = |y| (part.left..part.right()).map(move |x| c * area + y * width + x);
                    rows.flat_map(row).map(difference).sum::<f64>() / part.area() as f64
                })
                .fold(0.0f64, |most, mean| most.max(mean.abs()))
        };
        let scaled = |w: Window| Window {
            top: w.top * scale,
            left: w.left * scale,
            height: w.height * scale,
            width: w.width * scale,
        };
        let kept = |i: usize| scaled(tiling.kept(i));
        let all = Window { top: 0, left: 0, height, width };
        let squares = (0..3 * area).map(|i| difference(i).powi(2)).sum::<f64>();
        Self {
            drift: mean_over(all),
            tile: (0..tiling.len()).map(|i| mean_over(kept(i))).fold(0.0, f64::max),
            rms: (squares / (3 * area) as f64).sqrt(),
            largest: (0..3 * area).map(|i| difference(i).abs()).fold(0.0, f64::max),
            border: border(image, tiling, scale),
            whole_border: border(whole, tiling, scale),
        }
    }

    fn print(&self, name: &str) {
        let Self { drift, tile, rms, largest, border, whole_border } = self;
        let to_whole = border / whole_border;
        println!(
            "{name:<22} {drift:>8.3} {tile:>8.3} {rms:>8.3} {largest:>8.2} {border:>8.4} {to_whole:>10.4}"
        );
    }
}

/// The mean luminance gradient across the lines where tiles meet, and in the zones in which they fade, over
/// that across lines away from them.
fn border(image: &Array, tiling: &Tiling, scale: usize) -> f64 {
    let (_, height, width) = image.chw().expect("three axes");
    let area = height * width;
    let luminance = |y: usize, x: usize| {
        (0..3).map(|c| LUMA[c] * f64::from(image.data()[c * area + y * width + x])).sum::<f64>()
    };
    let across = |x: usize| {
        (0..height).map(|y| (luminance(y, x) - luminance(y, x - 1)).abs()).sum::<f64>() / height as f64
    };
    let down = |y: usize| {
        (0..width).map(|x| (luminance(y, x) - luminance(y - 1, x)).abs()).sum::<f64>() / width as f64
    };
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for i in 0..tiling.len() {
        let kept = tiling.kept(i);
        if kept.top == 0 && kept.left > 0 {
            near(kept.left * scale, kept.width.min(32) * scale, width, &across, &mut on, &mut off);
        }
        if kept.left == 0 && kept.top > 0 {
            near(kept.top * scale, kept.height.min(32) * scale, height, &down, &mut on, &mut off);
        }
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    mean(&on) / mean(&off)
}

/// Lines in the zone that begins at `at`, and as many on both sides at a distance.
fn near(
    at: usize,
    tile: usize,
    end: usize,
    line: &dyn Fn(usize) -> f64,
    on: &mut Vec<f64>,
    off: &mut Vec<f64>,
) {
    let zone = tile / 4;
    on.extend((at..(at + zone).min(end)).filter(|&x| x > 0).map(line));
    for x in (at.saturating_sub(2 * zone)..at.saturating_sub(zone)).chain(at + 2 * zone..at + 3 * zone) {
        if x > 0 && x < end {
            off.push(line(x));
        }
    }
}
