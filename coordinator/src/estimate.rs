//! What a render will take, before anything starts: calls, bytes, memory, disk, time.
//!
//! Pure arithmetic on the spec and the model's description. Patches and tiles are exact: they are those of
//! the plan. Bytes over the wire are those of the payloads. Memory, files and time are estimates: their
//! constants were measured (PERFORMANCE.md says how).

mod budget;

use std::fmt;
use std::time::Duration;

use gigasmith_proto::domain::{ModelDescription, WireDtype};
use serde::Serialize;

pub use budget::Budget;

use crate::output::{Format, Kind, Quality};
use crate::sampler::tiles::pool::{ROUNDS, samples};
use crate::sampler::tiles::{Cut, Network, Tiling, VaeMode};
use crate::sampler::units::ImageSize;
use crate::spec::{RenderSpec, StagePlans};

/// Main memory of a coordinator beside what is counted: itself, its store's client, the encoders of files.
const IDLE_BYTES: u64 = 128 << 20;
/// Canvases in memory at the most, checkpoints and pages included: what guides, the values now, before their
/// newest step, and as they are being stored.
const CANVASES: f64 = 3.6;
/// Payloads in memory for each task that is prepared, under way or waits for its turn.
const PAYLOADS: u64 = 4;
/// Prepared tasks for each slot of a worker.
pub const PER_SLOT: u64 = 2;
/// Patches that may be taken and not committed, for each prepared task: a worker that is so many times slower than
/// the others holds nobody up.
pub const AHEAD: u64 = 4;
/// Arrays of a result that waits for an earlier one to be committed: what the network saw, what it said, and what
/// comes of it.
const HELD: u64 = 3;
/// Results of tiles in memory for each worker, beside those of the row that waits for its last: on their way, as
/// they came and as they are joined.
const RESULTS: u64 = 4;
/// Bytes of a message beside its payload.
const MESSAGE: u64 = 200;
/// A tile's time against a patch's, where it is not measured. (SDXL: a tile of a megapixel decoded, against
/// two rows of a patch.)
const TILE_TO_PATCH: f64 = 1.0;
/// Bytes a pixel of pictures as they usually come out: deflated, as JPEG at 90, and the pyramid's share.
const LOSSLESS: f64 = 1.5;
const JPEG: f64 = 0.35;
const PYRAMID: f64 = 4.0 / 3.0;
/// The least that a picture of a network's takes: deflated (a black one of `pocket`'s takes 0.25, for no network
/// gives the same number twice), and as JPEG of any quality.
const LEAST_LOSSLESS: f64 = 0.1;
const LEAST_JPEG: f64 = 0.02;
/// The most: noise, which deflating does not shrink, and which at the highest quality takes more as JPEG than as
/// it is.
const MOST_LOSSLESS: f64 = 3.05;
const MOST_JPEG: f64 = 5.0;
/// Bytes a pixel in the scratch folder: 3, and a third of that for the pyramid.
const SCRATCH: u64 = 4;

/// Who will work on it, and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crew {
    /// Workers.
    pub workers: u64,
    /// Tasks in flight to each.
    pub slots: u64,
    /// What one worker takes for a patch, where that is known.
    pub seconds_per_patch: Option<f64>,
    /// What one worker takes for a tile, where that is known.
    pub seconds_per_tile: Option<f64>,
    /// How the picture will be kept.
    pub format: Format,
    /// Whether checkpoints are kept.
    pub keeps: bool,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageEstimate {
    /// Width and height of its picture.
    pub size: (u32, u32),
    /// Patches: calls of the noise predictor.
    pub patches: u64,
    /// Tiles that are encoded for what guides it, statistics included.
    pub encoded: u64,
    /// Tiles that its picture is decoded in, statistics included.
    pub decoded: u64,
    /// Seconds, where the rate is known.
    pub seconds: Option<f64>,
}

/// A render.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Stage by stage, the base first.
    pub stages: Vec<StageEstimate>,
    /// Calls of the noise predictor.
    pub patches: u64,
    /// Rows in each of them: the prompt, the negative prompt, the perturbed one.
    pub rows: u64,
    /// Calls of encoder and decoder.
    pub tiles: u64,
    /// Payload bytes to the workers.
    pub sent: u64,
    /// Payload bytes back.
    pub received: u64,
    /// Memory of each worker's device.
    pub worker_memory: u64,
    /// Main memory of the coordinator.
    pub coordinator_memory: u64,
    /// Disk for pictures under way.
    pub scratch: u64,
    /// The largest checkpoint; later ones write only what has changed. 0 without a store.
    pub checkpoint: u64,
    /// The picture's files, as they usually come out.
    pub output: u64,
    /// The smallest that they come out.
    pub output_least: u64,
    /// The largest that they can be.
    pub output_most: u64,
    /// Seconds, where the rate is known.
    pub seconds: Option<f64>,
}

impl Estimate {
    /// What a render takes.
    pub fn of(spec: &RenderSpec, model: &ModelDescription, plans: &StagePlans, crew: Crew) -> Self {
        let has_picture = spec.image_hash.is_some();
        let rows = 1 + u64::from(spec.guidance_scale > 1.0) + u64::from(spec.pag.is_some());
        let mut estimate = Self {
            stages: Vec::new(),
            patches: 0,
            rows,
            tiles: 0,
            sent: 0,
            received: 0,
            worker_memory: model.device_bytes,
            coordinator_memory: IDLE_BYTES,
            scratch: 0,
            checkpoint: 0,
            output: 0,
            output_least: 0,
            output_most: 0,
            seconds: crew.seconds_per_patch.map(|_| 0.0),
        };
        let last = spec.upscales.len() as u32;
        for stage in u32::from(has_picture)..=last {
            estimate.add_stage((spec, model), plans, (stage, last), crew);
        }
        let target = spec.stage_size(last).expect("it is the last");
        if has_picture {
            // It is given as a whole.
            estimate.coordinator_memory += 3 * area(spec.base);
        }
        estimate.scratch = estimate.scratch.max(scratch_bytes(area(target)));
        estimate.add_output(area(target), crew.format);
        estimate
    }

    fn add_stage(
        &mut self,
        (spec, model): (&RenderSpec, &ModelDescription),
        plans: &StagePlans,
        (stage, last): (u32, u32),
        crew: Crew,
    ) {
        let size = spec.stage_size(stage).expect("it is one of the spec's");
        let latent = size.latent(model.latent_factor);
        let slider = stage.checked_sub(1).map_or(0, |i| spec.upscales[i as usize].slider);
        let (patches, window) = (plans.counts()[stage as usize], plans.geometry(stage).window);
        let channels = u64::from(model.latent_channels);
        let element = if spec.wire == WireDtype::F16 { 2 } else { 4 };
        let patch = channels * window.area() as u64 * element + MESSAGE;
        (self.sent, self.received) = (self.sent + patches * patch, self.received + patches * patch);
        let encoded =
            if slider > 0 { self.pass(spec.vae, Network::Encoder, latent, model) } else { Pass::default() };
        // A picture is made for the stage after, where that is guided, and of the last stage.
        let is_wanted = stage == last || spec.upscales[stage as usize].slider > 0;
        let decoded =
            if is_wanted { self.pass(spec.vae, Network::Decoder, latent, model) } else { Pass::default() };
        let tiles = encoded.tasks + decoded.tasks;
        let seconds = crew.seconds_per_patch.map(|patch| {
            let tile = crew.seconds_per_tile.unwrap_or(patch * TILE_TO_PATCH);
            // Steps follow each other wherever they are.
            let patches = (patches as f64 / crew.workers as f64).max(f64::from(spec.steps));
            patches * patch + (tiles as f64 / crew.workers as f64).ceil() * tile
        });
        self.seconds = self.seconds.zip(seconds).map(|(all, stage)| all + stage);
        self.patches += patches;
        self.tiles += tiles;
        let canvas = channels * latent.area() as u64 * 4;
        let in_flight = crew.workers * crew.slots * PER_SLOT;
        // Only patches of one step wait for each other.
        let held = ((AHEAD - 1) * in_flight).min(patches.div_ceil(u64::from(spec.steps)));
        let result = channels * window.area() as u64 * 4;
        let sampling =
            (CANVASES * canvas as f64) as u64 + in_flight * PAYLOADS * patch + held * HELD * result;
        let tiled =
            |pass: &Pass| canvas + pass.row + in_flight * pass.task + crew.workers * RESULTS * pass.result;
        let needed = sampling.max(tiled(&encoded)).max(tiled(&decoded)) + IDLE_BYTES;
        self.coordinator_memory = self.coordinator_memory.max(needed);
        if is_wanted {
            self.scratch = self.scratch.max(scratch_bytes(area(size)));
        }
        if crew.keeps {
            // What guides, values now and before; or, of a decoding, the latent and the finished rows.
            let decoding = if is_wanted { canvas + 3 * area(size) + decoded.row } else { 0 };
            self.checkpoint = self.checkpoint.max(3 * canvas).max(decoding);
        }
        self.stages.push(StageEstimate {
            size: (size.width, size.height),
            patches,
            encoded: encoded.tasks,
            decoded: decoded.tasks,
            seconds,
        });
    }

    /// A picture through one of the VAE's networks.
    fn pass(
        &mut self,
        mode: VaeMode,
        network: Network,
        latent: crate::sampler::units::LatentSize,
        model: &ModelDescription,
    ) -> Pass {
        let factor = u64::from(model.latent_factor);
        let channels = u64::from(model.latent_channels);
        let tiling = Tiling::new(mode, network, latent, model);
        let size = ImageSize {
            width: latent.width as u32 * model.latent_factor,
            height: latent.height as u32 * model.latent_factor,
        };
        let is_seamless = mode.cut(size) == Cut::Seamless && tiling.len() > 1;
        let groups = network.groups(model) as u64;
        let norms = if is_seamless { groups * 8 } else { 0 };
        let element = if mode.cut(size) == Cut::Seamless { 2 } else { 4 };
        let input = |area: u64| match network {
            Network::Decoder => channels * area * 4,
            Network::Encoder => 3 * area * factor * factor,
        };
        let result = |area: u64| match network {
            Network::Decoder => 3 * area * factor * factor * element,
            Network::Encoder => 2 * channels * area * 4,
        };
        // As f32, however they travel.
        let in_memory = |area: u64| match network {
            Network::Decoder => 3 * area * factor * factor * 4,
            Network::Encoder => 2 * channels * area * 4,
        };
        let mut pass = Pass { tasks: tiling.len() as u64, ..Pass::default() };
        for i in 0..tiling.len() {
            let (seen, part) = (tiling.window(i).area() as u64, tiling.part(i));
            let wanted = (part.height * part.width) as u64;
            self.sent += input(seen) + norms + MESSAGE;
            self.received += result(wanted) + MESSAGE;
            pass.task = pass.task.max(input(seen));
            pass.result = pass.result.max(in_memory(wanted));
        }
        pass.row = pass.result * (tiling.len() / tiling.rows()) as u64;
        if is_seamless && groups > 0 {
            let samples = samples(network, latent, model);
            pass.tasks += (ROUNDS * samples.len()) as u64;
            let seen: u64 = samples.iter().map(|s| input(s.window.area() as u64) + norms + MESSAGE).sum();
            self.sent += ROUNDS as u64 * seen;
            self.received += (ROUNDS * samples.len()) as u64 * (groups * 8 + MESSAGE);
        }
        pass
    }

    fn add_output(&mut self, area: u64, format: Format) {
        let pyramid = if format.kind == Kind::Png { 1.0 } else { PYRAMID };
        let usual = match format.quality {
            Quality::Lossless => LOSSLESS,
            Quality::Jpeg(_) => JPEG,
        };
        self.output = (area as f64 * usual * pyramid) as u64;
        (self.output_least, self.output_most) = output_bytes(area, format);
    }
}

/// What one picture costs in tasks and memory.
#[derive(Debug, Clone, Copy, Default)]
struct Pass {
    tasks: u64,
    /// Bytes of the largest task in memory.
    task: u64,
    /// Bytes of the largest result in memory.
    result: u64,
    /// Bytes of a row of results.
    row: u64,
}

/// Bytes in the scratch folder of a picture of so many pixels, with its pyramid.
pub fn scratch_bytes(area: u64) -> u64 {
    area.saturating_mul(SCRATCH)
}

/// Bytes of a picture's files, by its pixels: at the least and at the most.
pub fn output_bytes(area: u64, format: Format) -> (u64, u64) {
    let pyramid = if format.kind == Kind::Png { 1.0 } else { PYRAMID };
    let (least, most) = match format.quality {
        Quality::Lossless => (LEAST_LOSSLESS, MOST_LOSSLESS),
        Quality::Jpeg(_) => (LEAST_JPEG, MOST_JPEG),
    };
    let bytes = |each: f64| (area as f64 * each * pyramid) as u64;
    (bytes(least), bytes(most))
}

/// Pixels of a picture.
pub fn area(size: ImageSize) -> u64 {
    u64::from(size.width) * u64::from(size.height)
}

/// Bytes as people say them.
pub fn bytes(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ if value < 9.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// A number of things.
pub fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Seconds as people say them.
pub fn seconds(seconds: f64) -> String {
    let whole = Duration::from_secs(seconds.round().max(1.0) as u64);
    humantime::format_duration(whole).to_string()
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, stage) in self.stages.iter().enumerate() {
            let (width, height) = stage.size;
            let time = stage.seconds.map_or(String::new(), |s| format!("  {}", seconds(s)));
            writeln!(
                f,
                "stage {:<2} {:<14} {:>15} {:>6} tiles encoded {:>6} decoded{time}",
                i + 1,
                format!("{width}x{height}"),
                plural(stage.patches, "patch", "patches"),
                stage.encoded,
                stage.decoded
            )?;
        }
        let rows = if self.rows == 1 { "one row".to_owned() } else { format!("{} rows", self.rows) };
        let (patches, tiles) =
            (plural(self.patches, "patch", "patches"), plural(self.tiles, "tile", "tiles"));
        writeln!(f, "network calls   {patches} of {rows}, {tiles}")?;
        writeln!(f, "over the wire   {} to workers, {} back", bytes(self.sent), bytes(self.received))?;
        writeln!(f, "worker          about {} on its device", bytes(self.worker_memory))?;
        writeln!(f, "coordinator     about {} of memory", bytes(self.coordinator_memory))?;
        writeln!(f, "scratch disk    {}, and the picture's file", bytes(self.scratch))?;
        if self.checkpoint > 0 {
            writeln!(
                f,
                "checkpoint      up to {} in the store; each writes what changed",
                bytes(self.checkpoint)
            )?;
        }
        write!(f, "picture         about {}, at most {}", bytes(self.output), bytes(self.output_most))?;
        match self.seconds {
            Some(s) => write!(f, "\ntime            about {}", seconds(s)),
            None => Ok(()),
        }
    }
}
