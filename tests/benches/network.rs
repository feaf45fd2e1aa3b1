//! The networks on a CPU against PyTorch: single operations, whole UNet calls, VAE tiles.
//!
//! `GIGASMITH_PYTHON=python3 cargo bench -p gigasmith-tests --bench network -- [WORDS]`, with a Python that has
//! what `tests/benches/reference/requirements.txt` says; without one, only our own times are printed.
//! WORDS choose rows (`operators`, `unet`, `decode`, or part of a row's name); `threads=2` uses two,
//! `rounds=7` counts more. Ours and PyTorch's run in turn, after one of each that is not counted; a row has the
//! medians, and the median, least and largest of the rounds' ratios. Models with random weights are made once
//! under the target directory (7 GB).
#![allow(clippy::print_stdout)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use gigasmith_proto::domain::{Array, Conditioning, NoiseTask, WireDtype};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::memory::{self, Blocks};
use gigasmith_worker::model::{self, BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource};
use gigasmith_worker::operators::Operator;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Blocks = Blocks;

/// What a worker lets its allocator keep is the model's own estimate; operations have no model.
const KEPT: u64 = 4 << 30;
const TOKENS: usize = 77;

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
    python: Option<PathBuf>,
    pool: rayon::ThreadPool,
}

impl Bench {
    fn from_args() -> anyhow::Result<Self> {
        let (mut words, mut threads, mut rounds) = (Vec::new(), 1, 5);
        for word in std::env::args().skip(1).filter(|a| a != "--bench") {
            match word.split_once('=') {
                Some(("threads", n)) => threads = n.parse().context("threads=N")?,
                Some(("rounds", n)) => rounds = n.parse().context("rounds=N")?,
                _ => words.push(word),
            }
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let python = std::env::var_os("GIGASMITH_PYTHON").map(PathBuf::from);
        Ok(Self { words, threads, rounds: rounds.max(1), python, pool })
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
        self.python.as_deref().map(|python| Python::start(python, folder, self.threads)).transpose()
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
            println!("{name:<34} {:>9.4}", median(&mut all));
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
            dtype: None,
            batch: BatchChoice::Auto,
            hub: HubOptions::from_env(),
        };
        let mut model = model::load(&ModelSource::Folder(folder.clone()), &options)?;
        if let Some(python) = python.as_mut() {
            let distance = self.distance(&mut model, python, &folder)?;
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

    /// How far our answer is from PyTorch's, for one patch.
    fn distance(&self, model: &mut dyn Backend, python: &mut Python, folder: &Path) -> anyhow::Result<f64> {
        let (task, conditioning) = question(folder, 32, 1.0)?;
        let ours = self.pool.install(|| model.predict_noise(&task, &conditioning))?;
        let files = tempfile::tempdir()?;
        let (input, output) = (files.path().join("in.safetensors"), files.path().join("out.safetensors"));
        let timestep = Array::new([1], vec![task.timestep as f32])?;
        let ids = Array::new([6], task.time_ids.to_vec())?;
        let tensors = [
            ("latents", &*task.latent, true),
            ("states", &conditioning.prompt, true),
            ("pooled", &conditioning.pooled, true),
            ("time_ids", &ids, false),
            ("timestep", &timestep, false),
        ];
        let views = tensors.iter().map(|(name, array, is_batched)| {
            let bytes: Vec<u8> = array.data().iter().flat_map(|v| v.to_le_bytes()).collect();
            let batch = is_batched.then_some(1).into_iter();
            (*name, batch.chain(array.shape().iter().copied()).collect::<Vec<_>>(), bytes)
        });
        let owned: Vec<_> = views.collect();
        let views = owned
            .iter()
            .map(|(name, shape, bytes)| {
                let dtype = safetensors::Dtype::F32;
                Ok((*name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes)?))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &input)?;
        python.seconds(&json!({"do": "unet", "input_file": input, "output_file": output}))?;
        let bytes = std::fs::read(&output)?;
        let theirs = safetensors::SafeTensors::deserialize(&bytes)?;
        let theirs = theirs.tensor("noise")?;
        let theirs = theirs.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let (error, norm) =
            ours.data().iter().zip(theirs).fold((0f64, 0f64), |(e, n), (a, b)| {
                (e + f64::from(a - b).powi(2), n + f64::from(b).powi(2))
            });
        Ok((error / norm).sqrt())
    }

    /// A model of random weights; `None` where there is nobody to make it.
    fn folder(&self, kind: &str) -> anyhow::Result<Option<PathBuf>> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-models").join(kind);
        if folder.join("model_index.json").exists() {
            return Ok(Some(folder));
        }
        let Some(python) = &self.python else { return Ok(None) };
        // A run that broke off left a part of it.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let status = Command::new(python).arg(reference("make.py")).arg(kind).arg(&folder).status()?;
        if !status.success() {
            bail!("make.py {kind} failed");
        }
        Ok(Some(folder))
    }
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn reference(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference").join(script)
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

/// Numbers between -1.7 and 1.7 of variance 1, from Knuth's MMIX generator.
fn noise(shape: &[usize], seed: u64) -> Array {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt()
    };
    let values = (0..shape.iter().product()).map(|_| next()).collect();
    Array::new(shape.to_vec(), values).expect("as many values as the shape has")
}

/// A patch of a latent of this side; two rows where the guidance scale is not 1.
fn question(folder: &Path, side: usize, guidance_scale: f32) -> anyhow::Result<(NoiseTask, Conditioning)> {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("unet/config.json"))?)?;
    let size = |key: &str| {
        config[key].as_u64().map(|n| n as usize).with_context(|| format!("{key} in unet/config.json"))
    };
    let width = size("cross_attention_dim")?;
    let pooled = size("projection_class_embeddings_input_dim")? - 6 * size("addition_time_embed_dim")?;
    let conditioning = Conditioning {
        prompt: noise(&[TOKENS, width], 1),
        pooled: noise(&[pooled], 2),
        negative: Some((noise(&[TOKENS, width], 5), noise(&[pooled], 6))),
    };
    let pixels = (8 * side) as f32;
    let task = NoiseTask {
        latent: noise(&[4, side, side], 4).into(),
        wire: WireDtype::F32,
        timestep: 501,
        time_ids: [pixels, pixels, 0.0, 0.0, pixels, pixels],
        conditioning: conditioning.id(),
        guidance_scale,
        pag: None,
    };
    Ok((task, conditioning))
}

/// The reference, answering requests until it is dropped.
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(python: &Path, folder: Option<&Path>, threads: usize) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .arg(reference("serve.py"))
            .args(folder)
            .args(["--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("GIGASMITH_PYTHON={}", python.display()))?;
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, input, output })
    }

    fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.input, "{request}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("the reference ended")?;
        match answer["error"].as_str() {
            Some(error) => bail!("{error} (asked {request})"),
            None => Ok(answer),
        }
    }

    fn seconds(&mut self, request: &Value) -> anyhow::Result<f64> {
        self.ask(request)?["seconds"][0].as_f64().context("seconds in the answer")
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
