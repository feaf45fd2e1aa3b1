//! What a path is that is no model: a file or a folder that people take for one, what it is, and how to come to a
//! model from there. Looks at names and at the first bytes of files, never at weights.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::error::LoadError;
use super::texts;

/// Names of a folder that are looked at.
const MANY: usize = 1000;
/// Weight files of a folder that are looked at.
const MANY_WEIGHTS: usize = 32;
/// What is read of a file to see what it is.
const START_BYTES: u64 = 1024;
/// The largest header of a weight file that is read to see what it holds.
const HEADER_BYTES: u64 = 32 << 20;

/// What weights are, by the names of their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    Checkpoint,
    Refiner,
    OtherCheckpoint(&'static str),
    Lora,
    ControlNet,
    Unet,
    Vae,
    TextEncoder,
    Embedding,
    Unknown,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Weights(Contents),
    /// PyTorch's own format, which can hold programs.
    Pickle,
    Gguf,
    Zip,
    Archive,
    StandIn(texts::StandIn),
    Empty,
    Other,
}

/// What a file that was given as a model is.
pub(crate) fn of_file(path: &Path) -> LoadError {
    let kind = match kind(path) {
        Ok(kind) => kind,
        Err(source) => return LoadError::Read { file: path.display().to_string(), source },
    };
    let (what, remedy) = match path.file_name().is_some_and(|name| name == "model_index.json") {
        true => ("the index of a model".to_owned(), "give the folder that it is in".to_owned()),
        false => explain(kind, path),
    };
    LoadError::NotAModel { path: path.to_owned(), what, remedy }
}

/// What a folder without `model_index.json` is.
pub(crate) fn of_folder(path: &Path) -> LoadError {
    let entries = match entries(path) {
        Ok(entries) => entries,
        Err(source) => return LoadError::Read { file: path.display().to_string(), source },
    };
    let (what, remedy) = folder(path, &entries);
    LoadError::NotAModel { path: path.to_owned(), what, remedy }
}

/// Names in a folder, and which of them are folders.
fn entries(path: &Path) -> std::io::Result<BTreeMap<String, bool>> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path().is_dir()))
    };
    std::fs::read_dir(path)?.take(MANY).map(name).collect()
}

fn folder(path: &Path, entries: &BTreeMap<String, bool>) -> (String, String) {
    let is_file = |name: &str| entries.get(name) == Some(&false);
    let is_folder = |name: &str| entries.get(name) == Some(&true);
    let indexed = |folder: &Path| folder.join("model_index.json").is_file();
    let inner = |name: &str| path.join(name);
    if entries.is_empty() {
        return ("an empty folder".into(), LAYOUT.into());
    }
    if is_folder("snapshots") && (is_folder("refs") || is_folder("blobs")) {
        return cache(path);
    }
    let models: Vec<PathBuf> = entries.keys().map(|n| inner(n)).filter(|p| indexed(p)).take(4).collect();
    if let Some(first) = models.first() {
        let what = if models.len() > 1 { "a folder of models" } else { "the folder around a model" };
        return (what.into(), format!("use `--model {}`", first.display()));
    }
    if path.parent().is_some_and(indexed) {
        let remedy = format!("use `--model {}`", path.parent().unwrap_or(path).display());
        return ("one part of a model".into(), remedy);
    }
    if is_file("adapter_config.json") || is_file("pytorch_lora_weights.safetensors") {
        return explain(Kind::Weights(Contents::Lora), path);
    }
    if let Some(class) = class(path) {
        let control = class.contains("ControlNet");
        let what = if control { "a ControlNet".into() } else { format!("a single network ({class})") };
        return (what, format!("a model also has text encoders, VAE and tokenizers: {LAYOUT}"));
    }
    let mut parts =
        ["unet", "vae", "text_encoder", "text_encoder_2", "scheduler"].into_iter().filter(|p| is_folder(p));
    match (parts.next(), parts.next()) {
        (Some(only), None) => {
            (format!("a folder with a {only} alone"), format!("fetch the whole repository; {LAYOUT}"))
        }
        (Some(_), Some(_)) => {
            ("a model without its model_index.json".into(), "fetch the whole repository again".into())
        }
        (None, _) => loose(path, entries),
    }
}

/// A folder of weight files without an order that is known here.
fn loose(path: &Path, entries: &BTreeMap<String, bool>) -> (String, String) {
    let files = entries.iter().filter(|(_, is_folder)| !**is_folder).map(|(name, _)| path.join(name));
    let weights = files.filter(|p| is_weights(p)).take(MANY_WEIGHTS);
    let found = weights.filter_map(|p| Some((kind(&p).ok()?, p)));
    // What can become a model tells more than what cannot.
    let best = found.min_by_key(|(kind, _)| *kind != Kind::Weights(Contents::Checkpoint));
    let Some((kind, file)) = best else { return ("a folder without model_index.json".into(), LAYOUT.into()) };
    let (what, remedy) = explain(kind, &file);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    (format!("a folder with {what} (`{name}`)"), remedy)
}

/// A repository's folder of the hub's cache.
fn cache(path: &Path) -> (String, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let id = name.strip_prefix("models--").map(|rest| rest.replacen("--", "/", 1));
    let snapshots = entries(&path.join("snapshots")).unwrap_or_default();
    let snapshot = snapshots.keys().next().map(|s| path.join("snapshots").join(s).display().to_string());
    let remedy = match (id, snapshot) {
        (Some(id), _) => format!("use `--model {id}`, which looks there first"),
        (None, Some(snapshot)) => format!("use `--model {snapshot}`"),
        (None, None) => LAYOUT.into(),
    };
    ("a repository in the hub's cache".into(), remedy)
}

/// The class that a folder's own configuration names.
fn class(path: &Path) -> Option<String> {
    let text = std::fs::read(path.join("config.json")).ok()?;
    let config = texts::json(texts::decode(&text).ok()?).ok()?;
    let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0))?;
    Some(class.as_str()?.to_owned())
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Whether the name is one that weights have.
pub(crate) fn is_weights(path: &Path) -> bool {
    ["safetensors", "sft", "ckpt", "pt", "pth", "bin", "gguf"].contains(&extension(path).as_str())
}

fn kind(path: &Path) -> std::io::Result<Kind> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = Vec::new();
    file.by_ref().take(START_BYTES).read_to_end(&mut start)?;
    if length <= START_BYTES
        && let Some(stand_in) = texts::stand_in(&start)
    {
        return Ok(Kind::StandIn(stand_in));
    }
    Ok(match start.as_slice() {
        [] => Kind::Empty,
        // PyTorch's newer files are archives too.
        [b'P', b'K', 3, 4, ..] if is_weights(path) => Kind::Pickle,
        [b'P', b'K', 3, 4, ..] => Kind::Zip,
        // Versions 2 to 5 of Python's pickle.
        [0x80, 2..=5, ..] => Kind::Pickle,
        [b'G', b'G', b'U', b'F', ..] => Kind::Gguf,
        // gzip, 7z, rar, xz
        [0x1f, 0x8b, ..]
        | [b'7', b'z', 0xbc, 0xaf, ..]
        | [b'R', b'a', b'r', b'!', ..]
        | [0xfd, b'7', b'z', ..] => Kind::Archive,
        _ => match header(&start, &mut file) {
            Some(names) => Kind::Weights(contents(&names)),
            None => Kind::Other,
        },
    })
}

/// The names of a safetensors file's tensors. `start`: what has been read of it.
fn header(start: &[u8], rest: &mut File) -> Option<Vec<String>> {
    let (size, begun) = start.split_first_chunk::<8>()?;
    let size = u64::from_le_bytes(*size);
    if size > HEADER_BYTES || !begun.starts_with(b"{") {
        return None;
    }
    let mut header = begun.to_vec();
    rest.take(size).read_to_end(&mut header).ok()?;
    header.truncate(size as usize);
    let names: BTreeMap<String, IgnoredAny> = serde_json::from_slice(&header).ok()?;
    Some(names.into_keys().collect())
}

fn contents(names: &[String]) -> Contents {
    let starts = |start: &str| names.iter().any(|n| n.starts_with(start));
    let has = |part: &str| names.iter().any(|n| n.contains(part));
    let lora = ["lora_unet_", "lora_te", ".lora_", "lora_up", "lora_down", ".hada_", ".lokr_"];
    // The first that fits.
    let signs = [
        (lora.iter().any(|part| has(part)), Contents::Lora),
        (starts("control_model.") || has("controlnet_") || has("input_hint_block"), Contents::ControlNet),
        (starts("conditioner.embedders.1."), Contents::Checkpoint),
        (starts("conditioner.embedders.0.model."), Contents::Refiner),
        (starts("cond_stage_model."), Contents::OtherCheckpoint("Stable Diffusion 1 or 2")),
        (has("joint_blocks."), Contents::OtherCheckpoint("Stable Diffusion 3")),
        (has("double_blocks.") || has("single_transformer_blocks."), Contents::OtherCheckpoint("FLUX")),
        (
            starts("model.diffusion_model.") || starts("input_blocks.") || starts("down_blocks."),
            Contents::Unet,
        ),
        (starts("first_stage_model.") || starts("decoder."), Contents::Vae),
        (
            has("text_model.") || starts("resblocks.") || starts("transformer.resblocks."),
            Contents::TextEncoder,
        ),
        (starts("emb_params") || (starts("clip_g") && starts("clip_l")), Contents::Embedding),
    ];
    signs.into_iter().find(|(is, _)| *is).map_or(Contents::Unknown, |(_, contents)| contents)
}

const LAYOUT: &str = "a model has the layout of the public SDXL repositories: model_index.json beside folders \
                      `unet`, `vae`, `text_encoder`, `text_encoder_2`, `tokenizer`, `tokenizer_2` and `scheduler`";

/// What it is, and what to do.
fn explain(kind: Kind, path: &Path) -> (String, String) {
    let base = "give a whole model, such as `stabilityai/stable-diffusion-xl-base-1.0`";
    let merge = "merge it into a model with diffusers (`load_lora_weights`, `fuse_lora`, `unload_lora_weights`, \
                 `save_pretrained`) and give that folder";
    let (what, remedy) = match kind {
        Kind::Weights(Contents::Checkpoint) => ("a single-file checkpoint".into(), converted(path)),
        Kind::Weights(Contents::Refiner) => {
            ("an SDXL refiner in a single file".into(), format!("it cannot make pictures by itself; {base}"))
        }
        Kind::Weights(Contents::OtherCheckpoint(family)) => {
            (format!("a single-file checkpoint of {family}"), "only SDXL models are supported".into())
        }
        Kind::Weights(Contents::Lora) => ("a LoRA, which changes a model".into(), merge.into()),
        Kind::Weights(Contents::ControlNet) => ("a ControlNet".into(), format!("it is not supported; {base}")),
        Kind::Weights(Contents::Unet) => (
            "a UNet alone".into(),
            "load it into a whole model with diffusers (`UNet2DConditionModel`, or `StableDiffusionXLPipeline` with \
             `unet=...`), `save_pretrained` that, and give the folder"
                .into(),
        ),
        Kind::Weights(Contents::Vae) => ("a VAE alone".into(), base.into()),
        Kind::Weights(Contents::TextEncoder) => ("a text encoder alone".into(), base.into()),
        Kind::Weights(Contents::Embedding) => ("a textual inversion".into(), format!("it is not supported; {base}")),
        Kind::Weights(Contents::Unknown) => ("a weight file of an unknown kind".into(), LAYOUT.into()),
        Kind::Pickle => ("a checkpoint in PyTorch's own format, which can hold programs".into(), converted(path)),
        Kind::Gguf => ("a GGUF file".into(), format!("its quantised weights are not supported; {base}")),
        Kind::Zip | Kind::Archive => ("an archive".into(), "unpack it and give the folder".into()),
        Kind::StandIn(stand_in) => (stand_in.what.into(), stand_in.remedy.into()),
        Kind::Empty => ("an empty file".into(), "fetch it again".into()),
        Kind::Other => ("a file".into(), LAYOUT.into()),
    };
    (what, remedy)
}

/// How to make a folder of a single file.
fn converted(path: &Path) -> String {
    let folder = path.with_extension("");
    format!(
        "make a folder of it once: `pip install diffusers transformers accelerate`, then `python3 -c 'from diffusers \
         import StableDiffusionXLPipeline as P; P.from_single_file({file:?}).save_pretrained({folder:?})'`, and use \
         `--model {}`",
        folder.display(),
        file = path.display().to_string(),
        folder = folder.display().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: LoadError) -> String {
        error.to_string()
    }

    /// A safetensors file with tensors of these names.
    fn weights(names: &[&str]) -> Vec<u8> {
        let tensors: Vec<String> = names
            .iter()
            .map(|n| format!("{n:?}:{{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
            .collect();
        let header = format!("{{{}}}", tensors.join(","));
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    }

    #[test]
    fn files_are_told_by_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let many: Vec<String> = (0..100).map(|i| format!("model.diffusion_model.out.{i}.weight")).collect();
        let many: Vec<&str> =
            many.iter().map(String::as_str).chain(["conditioner.embedders.1.model.x"]).collect();
        for (name, bytes, what) in [
            ("a.safetensors", weights(&many), "single-file checkpoint; make a folder"),
            ("b.safetensors", weights(&["lora_unet_down_blocks_0.lora_down.weight"]), "a LoRA"),
            ("c.safetensors", weights(&["down_blocks.0.resnets.0.conv1.weight"]), "a UNet alone"),
            ("d.safetensors", weights(&["cond_stage_model.transformer.x"]), "of Stable Diffusion 1 or 2"),
            ("e.safetensors", weights(&["conditioner.embedders.0.model.x"]), "refiner"),
            ("f.ckpt", b"PK\x03\x04archive/data.pkl".to_vec(), "PyTorch's own format"),
            ("g.pt", b"\x80\x02}q".to_vec(), "PyTorch's own format"),
            ("h.zip", b"PK\x03\x04x".to_vec(), "an archive; unpack"),
            ("i.gguf", b"GGUF\x03".to_vec(), "a GGUF file"),
            (
                "j.safetensors",
                b"version https://git-lfs.github.com/spec/v1\nsize 1\n".to_vec(),
                "git lfs pull",
            ),
            ("k.safetensors", Vec::new(), "an empty file"),
            ("l.safetensors", vec![255; 2000], "a file"),
            ("m.txt", b"hello".to_vec(), "a file"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let said = said(of_file(&path));
            assert!(said.contains(what) && said.contains(name.split('.').next().unwrap()), "{said}");
        }
    }

    #[test]
    fn folders_are_told_by_what_lies_in_them() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &[u8]| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        make("around/sdxl/model_index.json", b"{}");
        make("around/sdxl/unet/config.json", b"{}");
        make("models--org--some--name/refs/main", b"abc");
        make("models--org--some--name/snapshots/abc/model_index.json", b"{}");
        make("unet-only/unet/config.json", b"{}");
        make("lora/pytorch_lora_weights.safetensors", b"");
        make("control/config.json", br#"{"_class_name": "ControlNetModel"}"#);
        make("single/a_lora.safetensors", &weights(&["x.lora_A.weight"]));
        make("single/model.safetensors", &weights(&["conditioner.embedders.1.x"]));
        make("notes/readme.txt", b"hello");
        std::fs::create_dir(root.path().join("empty")).unwrap();
        for (path, what) in [
            ("around", "the folder around a model; use `--model"),
            ("around/sdxl/unet", "one part of a model; use `--model"),
            ("models--org--some--name", "use `--model org/some--name`"),
            ("unet-only", "a unet alone"),
            ("lora", "a LoRA"),
            ("control", "a ControlNet"),
            ("single", "a folder with a single-file checkpoint (`model.safetensors`); make a folder"),
            ("notes", "a folder without model_index.json; a model has the layout"),
            ("empty", "an empty folder"),
        ] {
            let said = said(of_folder(&root.path().join(path)));
            assert!(said.contains(what), "{path}: {said}");
        }
    }
}
