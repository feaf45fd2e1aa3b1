//! Broken, foreign and incomplete models: every fault is found at load and named.

mod foreign;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gigasmith_proto::domain::{Array, Conditioning, Dtype, NoiseTask};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadError, LoadOptions, ModelSource, SdxlModel, Variant, load,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// A writable copy of a small model.
fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&golden().join("exotic/mixed"), folder.path());
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        copy_folder(&golden().join("tiny-sdxl").join(tokenizer), &folder.path().join(tokenizer));
    }
    folder
}

fn open_as(folder: &Path, dtype: Option<Dtype>) -> Result<SdxlModel, LoadError> {
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    };
    load(&ModelSource::Folder(folder.to_owned()), &options)
}

fn open(folder: &Path) -> Result<SdxlModel, LoadError> {
    open_as(folder, None)
}

fn message(folder: &Path) -> String {
    match open(folder) {
        Ok(_) => panic!("the model loaded"),
        Err(error) => error.to_string(),
    }
}

/// Changes one value of a configuration file; null removes nothing, it sets null.
fn set(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.iter().map(|(n, v)| (n.to_owned(), (v.dtype(), v.shape().to_vec(), v.data().to_vec())));
    all.collect()
}

fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a String, &'a (safetensors::Dtype, Vec<usize>, Vec<u8>))>,
) {
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .into_iter()
        .map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

#[test]
fn a_configuration_that_means_another_network_is_refused() {
    let cases: [(&str, &str, Value, &str); 16] = [
        ("unet/config.json", "class_embed_type", json!("timestep"), "only null is supported"),
        ("unet/config.json", "encoder_hid_dim", json!(768), "only null is supported"),
        (
            "unet/config.json",
            "resnet_time_scale_shift",
            json!("scale_shift"),
            "only \"default\" is supported",
        ),
        ("unet/config.json", "dual_cross_attention", json!(true), "only false is supported"),
        ("unet/config.json", "attention_type", json!("gated"), "only \"default\" is supported"),
        ("unet/config.json", "act_fn", json!("gelu"), "only \"silu\" or \"swish\" is supported"),
        ("unet/config.json", "addition_embed_type", json!("text"), "only \"text_time\" (SDXL) is supported"),
        ("unet/config.json", "only_cross_attention", json!([false, true, false]), "only false is supported"),
        ("unet/config.json", "mid_block_type", json!("MyMidBlock"), "UNetMidBlock2DCrossAttn"),
        ("unet/config.json", "norm_num_groups", json!(5), "it must divide every width"),
        ("unet/config.json", "attention_head_dim", json!([3, 4, 3]), "must divide its width 8"),
        ("unet/config.json", "cross_attention_dim", json!(32), "the text encoders' widths add up to 24"),
        ("vae/config.json", "shift_factor", json!(0.1), "is supported"),
        ("text_encoder/config.json", "hidden_act", json!("relu"), "only \"quick_gelu\" or \"gelu\""),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            json!("sample"),
            "only \"epsilon\" or \"v_prediction\"",
        ),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", json!(true), "only false is supported"),
    ];
    for (file, key, value, expected) in cases {
        let folder = model();
        set(folder.path(), file, key, value.clone());
        let error = message(folder.path());
        assert!(error.contains(file) && error.contains(&format!("`{key}` is {value}")), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_unknown_block_or_class_is_refused() {
    let folder = model();
    let blocks = json!(["CrossAttnDownBlock2D", "KDownBlock2D", "CrossAttnDownBlock2D"]);
    set(folder.path(), "unet/config.json", "down_block_types", blocks);
    let error = message(folder.path());
    assert!(
        error.contains("`down_block_types`") && error.contains("only DownBlock2D and CrossAttnDownBlock2D"),
        "{error}"
    );
    let folder = model();
    set(folder.path(), "model_index.json", "vae", json!(["diffusers", "AutoencoderTiny"]));
    let error = message(folder.path());
    assert!(
        error.contains("`vae` is [\"diffusers\",\"AutoencoderTiny\"]; only the class AutoencoderKL"),
        "{error}"
    );
}

#[test]
fn damaged_and_missing_files_are_named() {
    let folder = model();
    let path = folder.path().join(UNET);
    let bytes = std::fs::read(&path).unwrap();
    for cut in [bytes.len() - 1, bytes.len() / 2, 100, 3, 0] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let error = message(folder.path());
        assert!(
            error.contains(UNET) && error.contains("damaged") && error.contains(&format!("{cut} bytes")),
            "{error}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    let error = message(folder.path());
    assert!(error.contains(UNET) && error.contains("is missing") && error.contains("safetensors"), "{error}");
    let folder = model();
    std::fs::remove_file(folder.path().join("tokenizer/merges.txt")).unwrap();
    assert!(message(folder.path()).contains("tokenizer/merges.txt is missing"));
    let folder = model();
    std::fs::write(folder.path().join("vae/config.json"), "{").unwrap();
    assert!(message(folder.path()).contains("vae/config.json is not the JSON expected"));
    let empty = tempfile::tempdir().unwrap();
    assert!(message(empty.path()).contains("is not a model folder: it is an empty folder"));
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let change = |edit: &dyn Fn(&mut Tensors)| {
        let folder = model();
        let path = folder.path().join(VAE);
        let mut tensors = read_tensors(&path);
        edit(&mut tensors);
        write_tensors(&path, &tensors);
        let error = message(folder.path());
        assert!(error.contains(VAE), "{error}");
        error
    };
    let name = "decoder.conv_in.weight".to_owned();
    let error = change(&|t| drop(t.remove(&name)));
    assert!(error.contains("has no tensor `decoder.conv_in.weight` (shape [12, 4, 3, 3])"), "{error}");
    let error = change(&|t| t.get_mut(&name).unwrap().1 = vec![12, 4, 9]);
    assert!(error.contains("has shape [12, 4, 9], but the configuration calls for [12, 4, 3, 3]"), "{error}");
    let error = change(&|t| {
        let tensor = t[&name].clone();
        t.insert("loss.logvar".into(), tensor.clone());
        t.insert("loss.other".into(), tensor);
    });
    assert!(
        error.contains("`loss.logvar` (shape [12, 4, 3, 3]) has no place")
            && error.contains("nor have 1 others"),
        "{error}"
    );
    let error = change(&|t| t.get_mut(&name).unwrap().0 = safetensors::Dtype::I16);
    assert!(error.contains("holds I16 values"), "{error}");
}

#[test]
fn known_buffers_are_no_weights() {
    let folder = model();
    let before = open(folder.path()).unwrap().describe().fingerprints.clone();
    let path = folder.path().join("text_encoder/model.safetensors");
    let mut tensors = read_tensors(&path);
    let ids = (0..77i64).flat_map(i64::to_le_bytes).collect();
    let buffer = (safetensors::Dtype::I64, vec![1, 77], ids);
    tensors.insert("text_model.embeddings.position_ids".into(), buffer);
    write_tensors(&path, &tensors);
    assert_eq!(open(folder.path()).unwrap().describe().fingerprints, before);
}

/// Splits the UNet's weights into two shards with an index.
fn shard(folder: &Path) {
    let path = folder.join(UNET);
    let tensors = read_tensors(&path);
    std::fs::remove_file(path).unwrap();
    let half = tensors.len() / 2;
    let mut map = serde_json::Map::new();
    for (i, range) in [(1, 0..half), (2, half..tensors.len())] {
        let file = format!("diffusion_pytorch_model-{i:05}-of-00002.safetensors");
        let part: Vec<_> = tensors.iter().skip(range.start).take(range.len()).collect();
        map.extend(part.iter().map(|(name, _)| ((*name).clone(), json!(file))));
        write_tensors(&folder.join("unet").join(file), part);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    let path = folder.join("unet/diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
}

#[test]
fn shards_and_variants_are_the_same_model() {
    let folder = model();
    let before = open(folder.path()).unwrap().describe().fingerprints.clone();
    shard(folder.path());
    let vae = folder.path().join(VAE);
    std::fs::rename(&vae, folder.path().join("vae/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    assert_eq!(open(folder.path()).unwrap().describe().fingerprints, before);
    let last = folder.path().join("unet/diffusion_pytorch_model-00002-of-00002.safetensors");
    std::fs::remove_file(last).unwrap();
    let error = message(folder.path());
    assert!(error.contains("diffusion_pytorch_model-00002-of-00002.safetensors is missing"), "{error}");
}

#[test]
fn an_index_that_promises_too_much_is_refused() {
    let folder = model();
    shard(folder.path());
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["conv_in.weight"] = json!("diffusion_pytorch_model-00002-of-00002.safetensors");
    std::fs::write(&path, index.to_string()).unwrap();
    let error = message(folder.path());
    assert!(
        error.contains("00002-of-00002") && error.contains("promises tensor `conv_in.weight`"),
        "{error}"
    );
}

#[test]
fn weights_and_configurations_change_only_their_own_fingerprint() {
    let folder = model();
    let before = open(folder.path()).unwrap().describe().fingerprints.clone();
    set(folder.path(), "unet/config.json", "norm_eps", json!(1e-5));
    let after = open(folder.path()).unwrap().describe().fingerprints.clone();
    assert_eq!((before[0], before[2]), (after[0], after[2]));
    assert_ne!(before[1], after[1]);
    set(folder.path(), "unet/config.json", "norm_eps", json!(1e-4));
    set(folder.path(), "unet/config.json", "_name_or_path", json!("elsewhere"));
    assert_eq!(open(folder.path()).unwrap().describe().fingerprints, before);
}

#[test]
fn half_precision_computes_nearly_the_same() {
    let folder = model();
    let mut exact = open(folder.path()).unwrap();
    let text = exact.encode_text("a lighthouse").unwrap();
    let conditioning = Conditioning { prompt: text.states, pooled: text.pooled, negative: None };
    let task = NoiseTask {
        latent: Array::new([4, 9, 8], (0..288).map(|i| (i as f32).sin()).collect()).unwrap().into(),
        wire: Default::default(),
        timestep: 981,
        time_ids: [48.0, 48.0, 0.0, 0.0, 48.0, 48.0],
        conditioning: conditioning.id(),
        guidance_scale: 1.0,
        pag: None,
    };
    let noise = exact.predict_noise(&task, &conditioning).unwrap();
    let latent = Array::new([4, 5, 6], (0..120).map(|i| (i as f32).sin()).collect()).unwrap();
    let wanted = exact.decode_tile(&latent, None).unwrap();
    for (dtype, tolerance) in [(Dtype::F16, 1e-6), (Dtype::Bf16, 0.1)] {
        let mut model = open_as(folder.path(), Some(dtype)).unwrap();
        assert_eq!(model.describe().numeric_class.dtype, dtype);
        let got = model.predict_noise(&task, &conditioning).unwrap();
        let worst = got.data().iter().zip(noise.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // A CPU keeps weights in half precision and computes in f32: f16 weights lose nothing in f16.
        assert!((worst > 0.0) == (dtype == Dtype::Bf16) && worst < 0.15, "{dtype}: {worst}");
        let got = model.decode_tile(&latent, None).unwrap();
        let worst = got.data().iter().zip(wanted.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // f16 would overflow in some VAEs, so this one computes in f32 (`force_upcast`).
        assert!(worst < tolerance && (dtype == Dtype::F16 || worst > 0.0), "{dtype}: {worst}");
    }
}

#[test]
fn presets_come_from_the_model() {
    let folder = model();
    let preset = json!({"steps": 12, "scale": 4, "native_sizes": [[96, 64]]});
    std::fs::write(folder.path().join("gigasmith.json"), preset.to_string()).unwrap();
    let model = open(folder.path()).unwrap();
    let description = model.describe();
    assert_eq!((description.preset.steps, description.preset.scale), (12, 4.0));
    assert_eq!(description.native_sizes, [(96, 64)]);
    std::fs::write(folder.path().join("gigasmith.json"), r#"{"step": 1}"#).unwrap();
    assert!(message(folder.path()).contains("unknown field `step`"));
}
