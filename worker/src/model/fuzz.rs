//! Readers of a model's files, fed with what is nearly one. See `tests/src/fuzz.rs`.

use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;

use super::files::ModelFiles;
use super::hub::HubOptions;
use super::layout::Variant;
use super::sdxl::{LoadOptions, load};
use super::select::{BatchChoice, DeviceChoice};
use super::source::ModelSource;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::backend::Backend;
use crate::fuzz::{Limits, Verdict, fuzz};

const LIMITS: Limits = Limits { memory: 256 << 20 };

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false => std::fs::write(to.join(name), std::fs::read(path).unwrap()).unwrap(),
        }
    }
}

/// A refusal says nothing that a terminal would obey.
fn said(error: &impl std::fmt::Display) -> Verdict {
    let message = error.to_string();
    match message.chars().any(|c| c.is_control() || c == '\u{202e}') {
        true => Err(format!("it says {message:?}")),
        false => Ok(()),
    }
}

/// And which file it is about.
fn refused(error: &impl std::fmt::Display, folder: &Path) -> Verdict {
    said(error)?;
    let message = error.to_string();
    match message.contains(folder.to_str().unwrap()) {
        true => Ok(()),
        false => Err(format!("it names no file: {message}")),
    }
}

/// A folder in which one file is changed, and put back for the next case.
struct Folder {
    folder: tempfile::TempDir,
    files: Vec<String>,
    whole: Vec<Vec<u8>>,
}

impl Folder {
    fn new(folder: tempfile::TempDir, files: &[&str]) -> Self {
        let whole = files.iter().map(|file| std::fs::read(folder.path().join(file)).unwrap()).collect();
        Self { folder, files: files.iter().map(|f| (*f).to_owned()).collect(), whole }
    }

    fn with<T>(&self, which: usize, bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
        let path = self.folder.path().join(&self.files[which]);
        std::fs::write(&path, bytes).unwrap();
        let read = read(self.folder.path());
        std::fs::write(path, &self.whole[which]).unwrap();
        read
    }
}

#[test]
fn tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("tiny-sdxl/tokenizer_2"), &folder.path().join("slow"));
    let slow = |name: &str| std::fs::read(folder.path().join("slow").join(name)).unwrap();
    let vocab: serde_json::Value = serde_json::from_slice(&slow("vocab.json")).unwrap();
    let merges = String::from_utf8(slow("merges.txt")).unwrap();
    let merges: Vec<&str> = merges.lines().skip(1).collect();
    let token = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "lstrip": true, "rstrip": true, "normalized": true,
            "single_word": true, "special": true})
    };
    let fast = serde_json::json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges},
        "added_tokens": [token(0, "!"), token(2012, "<|startoftext|>"), token(2013, "<|endoftext|>")]});
    std::fs::create_dir(folder.path().join("fast")).unwrap();
    std::fs::write(folder.path().join("fast/tokenizer.json"), fast.to_string()).unwrap();
    const FILES: [&str; 5] = [
        "slow/vocab.json",
        "slow/merges.txt",
        "slow/tokenizer_config.json",
        "slow/special_tokens_map.json",
        "fast/tokenizer.json",
    ];
    let folder = Folder::new(folder, &FILES);
    let corpus = folder.whole.clone();
    fuzz("tokenizers", corpus, LIMITS, move |which, bytes| {
        folder.with(which, bytes, |path| {
            let files = ModelFiles::Folder(path.to_owned());
            let name = FILES[which].split('/').next().unwrap();
            match Tokenizer::load(&files, name, 77, 2014) {
                Err(error) => refused(&error, path),
                Ok(tokenizer) => {
                    let odd = String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).into_owned();
                    for prompt in ["a cat! ! <|endoftext|> x", " ! ", &odd] {
                        let lengths = tokenizer.encode(prompt).map(|tokens| tokens.ids.len());
                        if lengths != Ok(tokenizer.encode("").map_or(0, |tokens| tokens.ids.len())) {
                            return Err(format!("{prompt:?} has {lengths:?} tokens"));
                        }
                    }
                    Ok(())
                }
            }
        })
    });
}

/// A prompt is never refused for what is in it.
#[test]
fn prompts() {
    let folder = golden("tiny-sdxl");
    let table: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../tests/tokens.json")).unwrap();
    let corpus = table.iter().map(|row| row["prompt"].as_str().unwrap().as_bytes().to_vec()).collect();
    let tokenizer = Tokenizer::load(&ModelFiles::Folder(folder), "tokenizer_2", 77, 2014).unwrap();
    fuzz("prompts", corpus, LIMITS, move |_, bytes| {
        let prompt = String::from_utf8_lossy(bytes);
        let prompt = &prompt[..prompt.floor_char_boundary(1 << 20)];
        match tokenizer.encode(prompt)?.ids.len() {
            77 => Ok(()),
            other => Err(format!("{other} tokens")),
        }
    });
}

#[test]
fn weights() {
    let numbers: Vec<u8> = (0..96).collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let tensors = |names: [&str; 3]| {
        use safetensors::Dtype;
        let views = [
            view(Dtype::F32, &[2, 3, 4], &numbers),
            view(Dtype::BF16, &[5], &numbers[..10]),
            view(Dtype::F16, &[0, 7], &numbers[..0]),
        ];
        safetensors::serialize(names.into_iter().zip(views), None).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("one/model.safetensors", &tensors(["a.weight", "b", "c"]));
    write("many/x-1.safetensors", &tensors(["a", "b", "c"]));
    write("many/x-2.safetensors", &tensors(["d", "e", "f"]));
    let map = |(tensor, shard): (&str, u8)| {
        (tensor.to_owned(), serde_json::json!(format!("x-{shard}.safetensors")))
    };
    let map: serde_json::Map<_, _> =
        [("a", 1), ("b", 1), ("c", 1), ("d", 2), ("e", 2), ("f", 2)].map(map).into_iter().collect();
    let index = serde_json::json!({"metadata": {"total_size": 212}, "weight_map": map});
    write("many/model.safetensors.index.json", index.to_string().as_bytes());
    const FILES: [&str; 3] =
        ["one/model.safetensors", "many/model.safetensors.index.json", "many/x-1.safetensors"];
    let folder = Folder::new(folder, &FILES);
    let corpus = folder.whole.clone();
    fuzz("weights", corpus, Limits { memory: 64 << 20 }, move |which, bytes| {
        folder.with(which, bytes, |path| {
            let files = ModelFiles::Folder(path.to_owned());
            let component = FILES[which].split('/').next().unwrap();
            let weights = match Weights::open(&files, (component, "model"), Variant::Full) {
                Ok(weights) => weights,
                Err(error) => return refused(&error, path),
            };
            let mut read = 0;
            for (name, _, _, length) in weights.iter() {
                weights.read(name, |piece| read += piece.len()).map_err(|e| e.to_string())?;
                read -= length as usize;
            }
            weights.check().map_err(|e| e.to_string())?;
            if read == 0 { Ok(()) } else { Err(format!("{read} bytes too many")) }
        })
    });
}

/// A whole model, of which one file is changed: it is refused, or it encodes a text.
#[test]
fn models() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("exotic/mixed"), folder.path());
    for name in ["tokenizer", "tokenizer_2"] {
        copy(&golden("tiny-sdxl").join(name), &folder.path().join(name));
    }
    let preset = serde_json::json!({"steps": 10, "guidance_scale": 4.5, "scale": 2.0, "slider_shares": [0.7, 0.8],
        "native_sizes": [[64, 64], [96, 64]]});
    std::fs::write(folder.path().join("gigasmith.json"), preset.to_string()).unwrap();
    let folder = Folder::new(
        folder,
        &[
            "model_index.json",
            "gigasmith.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "unet/config.json",
            "vae/config.json",
            "tokenizer/tokenizer_config.json",
        ],
    );
    let corpus = folder.whole.clone();
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    };
    fuzz("models", corpus, LIMITS, move |which, bytes| {
        folder.with(which, bytes, |path| match load(&ModelSource::Folder(path.to_owned()), &options) {
            Err(error) => refused(&error, path),
            // What passes may be of no use, and says so.
            Ok(mut model) => model.encode_text("a cat").map(drop).or_else(|error| said(&error)),
        })
    });
}
