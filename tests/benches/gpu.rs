//! The noise predictor of SDXL's shape on an NVIDIA GPU in f16, against PyTorch: time of a patch, memory, utilisation.
//!
//! `GIGASMITH_PYTHON=python3 cargo bench -p gigasmith-tests --features gigasmith-worker/cudnn --bench gpu --
//! [WORDS]`. Words: `rounds=7`, `sides=64,128`, `batch=2`, `compile` (PyTorch through torch.compile too, which takes
//! minutes). A patch is a call of two rows: with guidance. Ours and PyTorch's (f16, channels-last, fused attention) run
//! in turn, CALLS patches a round, each started while the one before runs. The model has random weights and is made
//! once under the target directory (6 GB); it takes a Python that has what `tests/benches/reference/requirements.txt`
//! says, and PyTorch with CUDA.
#![allow(clippy::print_stdout)]

mod reference;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use gigasmith_proto::domain::{Conditioning, Dtype, NoiseTask};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::{
    self, BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, Variant,
};
use reference::{Python, distance, make, median, noise, question};
use serde_json::json;

/// Patches of a round.
const CALLS: usize = 20;

struct Options {
    rounds: usize,
    sides: Vec<usize>,
    batch: usize,
    compiles: bool,
    python: Option<PathBuf>,
}

impl Options {
    fn from_args() -> anyhow::Result<Self> {
        let python = std::env::var_os("GIGASMITH_PYTHON").map(PathBuf::from);
        let mut all = Self { rounds: 5, sides: vec![128, 64], batch: 1, compiles: false, python };
        for word in std::env::args().skip(1).filter(|a| a != "--bench") {
            match word.split_once('=') {
                Some(("rounds", n)) => all.rounds = n.parse().context("rounds=N")?,
                Some(("batch", n)) => all.batch = n.parse().context("batch=N")?,
                Some(("sides", list)) => {
                    all.sides =
                        list.split(',').map(str::parse).collect::<Result<_, _>>().context("sides=N,N")?;
                }
                _ if word == "compile" => all.compiles = true,
                _ => anyhow::bail!("unknown word {word}"),
            }
        }
        Ok(all)
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::from_args()?;
    let Some(folder) = make("sdxl-shape", options.python.as_deref(), &["--half"])? else {
        println!(
            "skipped: the model's weights are made by the reference; GIGASMITH_PYTHON does not name a Python"
        );
        return Ok(());
    };
    let before = memory().context("nvidia-smi")?;
    let start = Instant::now();
    let load = LoadOptions {
        device: DeviceChoice::Cuda(0),
        dtype: Some(Dtype::F16),
        batch: BatchChoice::Patches(options.batch),
        variant: Variant::Auto,
        hub: HubOptions::from_env(),
    };
    let mut model = model::load(&ModelSource::Folder(folder.clone()), &load)?;
    println!("{}", model.describe().numeric_class);
    println!("{:<34} {:>9.2} s", "files checked and hashed", start.elapsed().as_secs_f64());
    let (task, conditioning) = question(&folder, options.sides[0], 5.0)?;
    let start = Instant::now();
    model.predict_noise(&task, &conditioning)?;
    println!("{:<34} {:>9.2} s", "weights placed, first patch", start.elapsed().as_secs_f64());
    for &side in &options.sides {
        let ours = Ours::new(&folder, side, options.batch)?;
        ours.patches(&mut model, CALLS)?;
        let watch = Watch::start();
        let start = Instant::now();
        let mut all = Vec::new();
        while start.elapsed() < Duration::from_secs(3) {
            all.push(ours.patches(&mut model, CALLS)?);
        }
        let utilisation = watch.stop();
        println!(
            "{:<34} {:>9.2} ms, {:.2} GB of memory, {utilisation:.0}% utilisation, host busy {:.1} ms a call",
            format!("ours, latent {side}"),
            median(&mut all) * 1e3,
            (memory()? - before) / 1e3,
            ours.host_seconds(&mut model)? * 1e3,
        );
    }
    let kinds: &[&[&str]] =
        if options.compiles { &[&["--cuda"], &["--cuda", "--compile"]] } else { &[&["--cuda"]] };
    for arguments in kinds {
        compare(&options, &mut model, &folder, arguments)?;
    }
    let start = Instant::now();
    let tile = noise(&[4, 128, 128], 3);
    model.decode_tile(&tile, None)?;
    println!("{:<34} {:>9.2} s", "VAE placed, first tile of 128", start.elapsed().as_secs_f64());
    let start = Instant::now();
    model.decode_tile(&tile, None)?;
    println!("{:<34} {:>9.3} s", "a tile of 128", start.elapsed().as_secs_f64());
    println!("{:<34} {:>9.2} GB of memory", "with the VAE", (memory()? - before) / 1e3);
    Ok(())
}

fn compare(
    options: &Options,
    model: &mut dyn Backend,
    folder: &Path,
    arguments: &[&str],
) -> anyhow::Result<()> {
    let Some(python) = &options.python else { return Ok(()) };
    let before = memory()?;
    let mut python = Python::start(python, Some(folder), arguments)?;
    println!("PyTorch {}: {}", arguments.join(" "), python.ask(&json!({"do": "versions"}))?);
    // Each size that is compiled takes a minute.
    if !arguments.contains(&"--compile") {
        let distance = distance(model, &mut python, folder)?;
        println!("{:<34} {distance:.1e} from PyTorch's (relative L2)", "noise");
    }
    for &side in &options.sides {
        let ours = Ours::new(folder, side, options.batch)?;
        let rows = 2 * options.batch;
        let request = json!({"do": "unet", "side": side, "batch": rows, "calls": CALLS, "warm": true});
        ours.patches(model, CALLS)?;
        let start = Instant::now();
        python.seconds(&request)?;
        let first = start.elapsed().as_secs_f64();
        let (mut a, mut b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let mine = ours.patches(model, CALLS)?;
            let theirs = python.seconds(&request)? / options.batch as f64;
            a.push(mine);
            b.push(theirs);
            ratios.push(mine / theirs);
        }
        let (a, b, ratio) = (median(&mut a), median(&mut b), median(&mut ratios));
        let range = format!("{:.2}..{:.2}", ratios[0], ratios[ratios.len() - 1]);
        println!(
            "{:<34} {:>9.2} {:>9.2} ms {ratio:>7.2} {range:>12}; theirs holds {:.2} GB, took {first:.0} s to start",
            format!("a patch, latent {side}"),
            a * 1e3,
            b * 1e3,
            (memory()? - before) / 1e3,
        );
    }
    Ok(())
}

/// A group of patches to ask for.
struct Ours {
    tasks: Vec<NoiseTask>,
    conditioning: Conditioning,
}

impl Ours {
    fn new(folder: &Path, side: usize, batch: usize) -> anyhow::Result<Self> {
        let (task, conditioning) = question(folder, side, 5.0)?;
        Ok(Self { tasks: vec![task; batch], conditioning })
    }

    /// Seconds per patch of so many calls, each started while the one before runs: as a worker does it.
    fn patches(&self, model: &mut dyn Backend, calls: usize) -> anyhow::Result<f64> {
        let patches: Vec<_> = self.tasks.iter().map(|task| (task, &self.conditioning)).collect();
        let start = Instant::now();
        let mut running = None;
        for _ in 0..calls {
            let next = model.start_noises(&patches);
            if let Some(running) = running.replace(next) {
                model.finish_noises(running, &patches).into_iter().collect::<Result<Vec<_>, _>>()?;
            }
        }
        let last = running.context("at least one call")?;
        model.finish_noises(last, &patches).into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(start.elapsed().as_secs_f64() / (calls * patches.len()) as f64)
    }

    /// How long it takes to start a call.
    fn host_seconds(&self, model: &mut dyn Backend) -> anyhow::Result<f64> {
        let patches: Vec<_> = self.tasks.iter().map(|task| (task, &self.conditioning)).collect();
        let mut all = Vec::new();
        for _ in 0..CALLS {
            let start = Instant::now();
            let started = model.start_noises(&patches);
            all.push(start.elapsed().as_secs_f64());
            model.finish_noises(started, &patches).into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        Ok(median(&mut all))
    }
}

/// MB of the GPU's memory that are in use, by anybody.
fn memory() -> anyhow::Result<f64> {
    ask("memory.used")
}

fn ask(what: &str) -> anyhow::Result<f64> {
    let query = format!("--query-gpu={what}");
    let said =
        Command::new("nvidia-smi").args([&query, "--format=csv,noheader,nounits", "-i", "0"]).output()?;
    // MiB
    let number: f64 = String::from_utf8(said.stdout)?.trim().parse()?;
    Ok(if what.starts_with("memory") { number * 1.048_576 } else { number })
}

/// Samples the utilisation.
struct Watch {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<f64>,
}

impl Watch {
    fn start() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(300));
                all.extend(ask("utilization.gpu"));
            }
            median(&mut all)
        });
        Self { is_over, thread }
    }

    fn stop(self) -> f64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(f64::NAN)
    }
}
