//! The reference: PyTorch, which answers requests (`serve.py`), and the questions that both are asked.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use gigasmith_proto::domain::{Array, Conditioning, NoiseTask, WireDtype};
use gigasmith_worker::backend::Backend;
use serde_json::{Value, json};

const TOKENS: usize = 77;

/// The folder of a model of random weights, made once under the target directory; `None` where there is nobody to
/// make it.
pub(crate) fn make(kind: &str, python: Option<&Path>, arguments: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    let name = [&[kind], arguments].concat().concat();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-models").join(name);
    if folder.join("model_index.json").exists() {
        return Ok(Some(folder));
    }
    let Some(python) = python else { return Ok(None) };
    // A run that broke off left a part of it.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let made = Command::new(python).arg(script("make.py")).arg(kind).arg(&folder).args(arguments).status()?;
    if !made.success() {
        bail!("make.py {kind} failed");
    }
    Ok(Some(folder))
}

/// How far our answer is from PyTorch's, for one patch.
pub(crate) fn distance(model: &mut dyn Backend, python: &mut Python, folder: &Path) -> anyhow::Result<f64> {
    let (task, conditioning) = question(folder, 32, 1.0)?;
    let ours = model.predict_noise(&task, &conditioning)?;
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
    let (error, norm) = ours
        .data()
        .iter()
        .zip(theirs)
        .fold((0f64, 0f64), |(e, n), (a, b)| (e + f64::from(a - b).powi(2), n + f64::from(b).powi(2)));
    Ok((error / norm).sqrt())
}

pub(crate) fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference").join(name)
}

/// Numbers between -1.7 and 1.7 of variance 1, from Knuth's MMIX generator.
pub(crate) fn noise(shape: &[usize], seed: u64) -> Array {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt()
    };
    let values = (0..shape.iter().product()).map(|_| next()).collect();
    Array::new(shape.to_vec(), values).expect("as many values as the shape has")
}

/// A patch of a latent of this side; two rows where the guidance scale is not 1.
pub(crate) fn question(
    folder: &Path,
    side: usize,
    guidance_scale: f32,
) -> anyhow::Result<(NoiseTask, Conditioning)> {
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
pub(crate) struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    pub(crate) fn start(python: &Path, folder: Option<&Path>, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .arg(script("serve.py"))
            .args(folder)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("GIGASMITH_PYTHON={}", python.display()))?;
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, input, output })
    }

    pub(crate) fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.input, "{request}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("the reference ended")?;
        match answer["error"].as_str() {
            Some(error) => bail!("{error} (asked {request})"),
            None => Ok(answer),
        }
    }

    pub(crate) fn seconds(&mut self, request: &Value) -> anyhow::Result<f64> {
        self.ask(request)?["seconds"][0].as_f64().context("seconds in the answer")
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
