//! The networks on a CPU against PyTorch: single operations, whole UNet calls, VAE tiles.
//!
//! `GIGASMITH_PYTHON=python3 cargo bench -p gigasmith-tests --bench network -- [WORDS]`, with a Python that has
//! what `tests/benches/reference/requirements.txt` says; without one, only our own times are printed.
//! WORDS choose rows (`operators`, `unet`, `decode`, or part of a row's name); `threads=2` uses two,
//! `rounds=7` counts more, `dtype=bf16` is for our networks alone: PyTorch stays with f32. Ours and PyTorch's run in
//! turn, after one of each that is not counted; a row has the medians, and the median, least and largest of the
//! rounds' ratios. Models with random weights are made once under the target directory (7 GB).
#![allow(clippy::print_stdout)]

mod reference;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use gigasmith_proto::domain::Dtype;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::memory::{self, Blocks};
use gigasmith_worker::model::{
    self, BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, Variant,
};
use gigasmith_worker::operators::Operator;
use reference::{Python, distance, make, median, noise, question};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Blocks = Blocks;

/// What a worker lets its allocator keep is the model's own estimate; operations have no model.
const KEPT: u64 = 4 << 30;

fn main() -> anyhow::Result<()> {
    let bench = Bench::from_args()?;
    bench.versions()?;
    bench.operators()?;
    for kind in ["sd15-widths", "sdxl-half"] {
        bench.model(kind)?;
    }
    Ok(())
}

struct Bench {
    words: Vec<String>,
    threads: usize,
    rounds: usize,
    dtype: Option<Dtype>,
    python: Option<PathBuf>,
    pool: rayon::ThreadPool,
}

impl Bench {
    fn from_args() -> anyhow::Result<Self> {
        let (mut words, mut threads, mut rounds, mut dtype) = (Vec::new(), 1, 5, None);
        for word in std::env::args().skip(1).filter(|a| a != "--bench") {
            match word.split_once('=') {
                Some(("threads", n)) => threads = n.parse().context("threads=N")?,
                Some(("dtype", "f16")) => dtype = Some(Dtype::F16),
                Some(("dtype", "bf16")) => dtype = Some(Dtype::Bf16),
                Some(("rounds", n)) => rounds = n.parse().context("rounds=N")?,
                _ => words.push(word),
            }
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let python = std::env::var_os("GIGASMITH_PYTHON").map(PathBuf::from);
        Ok(Self { words, threads, rounds: rounds.max(1), dtype, python, pool })
    }

    fn wants(&self, kind: &str, row: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| w == kind || row.contains(w.as_str()))
    }

    fn versions(&self) -> anyhow::Result<()> {
        match self.serve(None)? {
            None => println!("skipped: PyTorch; GIGASMITH_PYTHON does not name a Python that has it"),
            Some(mut python) => println!("PyTorch: {}", python.ask(&json!({"do": "versions"}))?),
        }
        println!("{} threads, {} rounds", self.threads, self.rounds);
        println!("{:<34} {:>9} {:>9} {:>7} {:>15}", "", "ours, s", "theirs", "ratio", "least..largest");
        Ok(())
    }

    /// The reference, on as many threads.
    fn serve(&self, folder: Option<&Path>) -> anyhow::Result<Option<Python>> {
        self.python
            .as_deref()
            .map(|python| Python::start(python, folder, &["--threads", &self.threads.to_string()]))
            .transpose()
    }

    /// Times both in turn and prints a row.
    fn row<T: Send>(
        &self,
        name: &str,
        mut ours: impl FnMut() -> anyhow::Result<T> + Send,
        theirs: Option<(&mut Python, Value)>,
    ) -> anyhow::Result<()> {
        let mut run = || -> anyhow::Result<f64> {
            let start = Instant::now();
            drop(self.pool.install(&mut ours)?);
            Ok(start.elapsed().as_secs_f64())
        };
        run()?;
        let Some((python, request)) = theirs else {
            let mut all = (0..self.rounds).map(|_| run()).collect::<anyhow::Result<Vec<_>>>()?;
            let middle = median(&mut all);
            let range = format!("{:.4}..{:.4}", all[0], all[all.len() - 1]);
            println!("{name:<34} {middle:>9.4} {:>9} {:>7} {range:>15}", "", "");
            return Ok(());
        };
        python.seconds(&request)?;
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let (a, b) = (run()?, python.seconds(&request)?);
            ours.push(a);
            theirs.push(b);
            ratios.push(a / b);
        }
        let (a, b, ratio) = (median(&mut ours), median(&mut theirs), median(&mut ratios));
        let range = format!("{:.2}..{:.2}", ratios[0], ratios[ratios.len() - 1]);
        println!("{name:<34} {a:>9.4} {b:>9.4} {ratio:>7.2} {range:>15}");
        Ok(())
    }

    fn operators(&self) -> anyhow::Result<()> {
        memory::keep(KEPT);
        let mut python = self.serve(None)?;
        for (name, operator, request) in operators() {
            if !self.wants("operators", &name) {
                continue;
            }
            let run = operator.prepare()?;
            let theirs = python.as_mut().map(|p| (p, request));
            self.row(&name, || Ok(run()?), theirs)?;
        }
        Ok(())
    }

    fn model(&self, kind: &str) -> anyhow::Result<()> {
        let sides = [32, 64, 128].map(|side| (format!("unet {kind} {side}"), side));
        let tiles = [32, 64].map(|side| (format!("decode {kind} {side}"), side));
        // The VAE is the same in all.
        let has_tiles = kind == "sdxl-half";
        let wanted = sides.iter().filter(|(name, _)| self.wants("unet", name));
        let wanted_tiles = tiles.iter().filter(|(name, _)| has_tiles && self.wants("decode", name));
        if wanted.clone().chain(wanted_tiles.clone()).next().is_none() {
            return Ok(());
        }
        let Some(folder) = self.folder(kind)? else {
            println!("skipped: {kind}; its weights are made by the reference");
            return Ok(());
        };
        let mut python = self.serve(Some(&folder))?;
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            dtype: self.dtype,
            batch: BatchChoice::Auto,
            variant: Variant::Auto,
            hub: HubOptions::from_env(),
        };
        let mut model = model::load(&ModelSource::Folder(folder.clone()), &options)?;
        if let Some(python) = python.as_mut() {
            let distance = self.pool.install(|| distance(&mut model, python, &folder))?;
            println!("{:<34} {distance:.1e} from PyTorch's (relative L2)", format!("noise of {kind}"));
        }
        for (name, side) in wanted {
            let (task, conditioning) = question(&folder, *side, 5.0)?;
            let request = json!({"do": "unet", "side": side, "batch": 2});
            let theirs = python.as_mut().map(|p| (p, request));
            let run = || Ok(model.predict_noise(&task, &conditioning)?);
            self.row(&format!("{name}, batch 2"), run, theirs)?;
        }
        for (name, side) in wanted_tiles {
            let latent = noise(&[4, *side, *side], 3);
            let theirs = python.as_mut().map(|p| (p, json!({"do": "decode", "side": side})));
            self.row(name, || Ok(model.decode_tile(&latent, None)?), theirs)?;
        }
        Ok(())
    }

    /// A model of random weights; `None` where there is nobody to make it.
    fn folder(&self, kind: &str) -> anyhow::Result<Option<PathBuf>> {
        make(kind, self.python.as_deref(), &[])
    }
}

/// Operations at the sizes of SDXL, SD 1.5 and their VAE.
fn operators() -> Vec<(String, Operator, Value)> {
    let mut all = Vec::new();
    for (channels, side, batch) in
        [(320, 128, 2), (640, 64, 2), (1280, 32, 2), (1280, 8, 2), (128, 512, 1), (64, 32, 2)]
    {
        all.push((
            format!("conv3x3 {channels} at {side}, batch {batch}"),
            Operator::Conv3x3 { channels_in: channels, channels_out: channels, side, batch },
            json!({"do": "op", "name": "conv3x3", "channels_in": channels, "channels_out": channels,
                   "side": side, "batch": batch}),
        ));
    }
    let (channels, side, batch) = (640, 32, 2);
    all.push((
        format!("upsample + conv3x3 {channels} at {side}"),
        Operator::UpsampleConv { channels, side, batch },
        json!({"do": "op", "name": "upsample_conv", "channels": channels, "side": side, "batch": batch}),
    ));
    for (rows, inputs, outputs) in [(8192, 640, 640), (2048, 1280, 1280), (2048, 5120, 1280)] {
        all.push((
            format!("linear {rows} x {inputs} x {outputs}"),
            Operator::Linear { rows, inputs, outputs },
            json!({"do": "op", "name": "linear", "rows": rows, "inputs": inputs, "outputs": outputs}),
        ));
    }
    for (rows, inputs, outputs) in [(8192, 640, 2560), (2048, 1280, 5120)] {
        all.push((
            format!("GEGLU {rows} x {inputs} x {outputs}"),
            Operator::Geglu { rows, inputs, outputs },
            json!({"do": "op", "name": "geglu", "rows": rows, "inputs": inputs, "outputs": outputs}),
        ));
    }
    for (heads, queries, keys, width) in
        [(10, 4096, 4096, 64), (20, 1024, 1024, 64), (10, 4096, 77, 64), (8, 4096, 4096, 40)]
    {
        all.push((
            format!("attention {heads} x {width}, {queries} to {keys}"),
            Operator::Attention { batch: 2, heads, queries, keys, width },
            json!({"do": "op", "name": "attention", "batch": 2, "heads": heads, "queries": queries,
                   "keys": keys, "width": width}),
        ));
    }
    for (channels, side, batch) in [(320, 128, 2), (128, 512, 1)] {
        all.push((
            format!("GroupNorm + SiLU {channels} at {side}"),
            Operator::GroupNormSilu { channels, groups: 32, side, batch },
            json!({"do": "op", "name": "group_norm_silu", "channels": channels, "groups": 32, "side": side,
                   "batch": batch}),
        ));
    }
    let (rows, width) = (8192, 640);
    all.push((
        format!("LayerNorm {rows} x {width}"),
        Operator::LayerNorm { rows, width },
        json!({"do": "op", "name": "layer_norm", "rows": rows, "width": width}),
    ));
    all
}
