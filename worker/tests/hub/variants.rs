//! Which of several weights are used follows from the repository and from what was asked for.

use gigasmith_proto::domain::Dtype;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadError, LoadOptions, ModelSource, Variant, load,
};

use crate::stand_in::{COMMIT, Files, Hub, repository};
use crate::{offline, open_as, options, root, snapshot};

const UNET: &str = "unet/diffusion_pytorch_model";

/// Half as large weights, in fp16: so that the two can be told apart.
fn halved(file: &[u8]) -> Vec<u8> {
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    let tensors = SafeTensors::deserialize(file).unwrap();
    let halves: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let value = |b: &[u8]| match view.dtype() {
                Dtype::F32 => f32::from_le_bytes(b.try_into().unwrap()),
                Dtype::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                Dtype::BF16 => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                Dtype::F64 => f64::from_le_bytes(b.try_into().unwrap()) as f32,
                other => panic!("{other:?}"),
            };
            let size = view.data().len() / view.shape().iter().product::<usize>().max(1);
            let bytes =
                view.data().chunks(size).flat_map(|b| half::f16::from_f32(value(b) / 2.0).to_le_bytes());
            (name.to_owned(), view.shape().to_vec(), bytes.collect())
        })
        .collect();
    let views = halves.iter().map(|(n, s, d)| (n, TensorView::new(Dtype::F16, s.clone(), d).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A repository with full and fp16 weights of every component.
fn both() -> Files {
    let mut files = repository();
    let weights: Vec<String> =
        files.keys().filter(|f| f.contains('/') && f.ends_with(".safetensors")).cloned().collect();
    for file in weights {
        let half = halved(&files[&file]);
        files.insert(file.replace(".safetensors", ".fp16.safetensors"), half);
    }
    files
}

fn renamed(mut files: Files, from: &str, to: &str) -> Files {
    let names: Vec<String> = files.keys().filter(|f| f.contains('/') && f.ends_with(from)).cloned().collect();
    for name in names {
        let content = files.remove(&name).unwrap();
        files.insert(name.replace(from, to), content);
    }
    files
}

fn taken(hub: &Hub) -> Vec<String> {
    let sent = hub.asked().into_iter().filter(|a| a.is_cdn && a.path.contains(UNET));
    sent.map(|a| a.path.split(['?']).next().unwrap().trim_start_matches("/cdn/").to_owned()).collect()
}

#[test]
fn every_number_format_has_the_same_weights_and_so_the_same_model() {
    let hub = Hub::with(both());
    let mut models = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let cache = tempfile::tempdir().unwrap();
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            dtype: Some(dtype),
            batch: BatchChoice::Auto,
            variant: Variant::Auto,
            hub: options(cache.path(), &hub.address),
        };
        let model = load(&ModelSource::parse("farm/tiny").unwrap(), &options).unwrap();
        assert_eq!(taken(&hub), [format!("{UNET}.fp16.safetensors")]);
        models.push(model.describe().clone());
    }
    assert_eq!(models[0].fingerprints, models[1].fingerprints);
    assert_eq!(models[0].fingerprints, models[2].fingerprints);
    assert_ne!(models[0].numeric_class, models[1].numeric_class);
}

#[test]
fn the_cache_decides_nothing() {
    let hub = Hub::with(both());
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    let pinned = format!("farm/tiny@{COMMIT}");
    let full = open_as(&pinned, Variant::Full, online.clone()).unwrap();
    assert_eq!(taken(&hub), [format!("{UNET}.safetensors")]);
    // The full weights are all here: what is wanted are the others.
    let message = open_as(&pinned, Variant::Auto, offline(&online)).unwrap_err().to_string();
    assert!(
        message.contains("fp16.safetensors is missing")
            && message.contains("use --variant full, which is here"),
        "{message}"
    );
    let half = open_as(&pinned, Variant::Auto, online.clone()).unwrap();
    assert_eq!(taken(&hub), [format!("{UNET}.fp16.safetensors")]);
    assert_ne!(half.describe().fingerprints, full.describe().fingerprints);
    for (variant, model) in [(Variant::Full, &full), (Variant::Auto, &half), (Variant::Fp16, &half)] {
        let again = open_as(&pinned, variant, offline(&online)).unwrap();
        assert_eq!(again.describe().fingerprints, model.describe().fingerprints);
    }
    // A snapshot whose origin nobody wrote down: with a connection the hub is asked, even for a commit.
    std::fs::remove_dir_all(root(cache.path()).join(".gigasmith")).unwrap();
    for file in [format!("{UNET}.fp16.safetensors"), "vae/diffusion_pytorch_model.fp16.safetensors".into()] {
        std::fs::remove_file(snapshot(cache.path()).join(file)).unwrap();
    }
    open_as(&pinned, Variant::Auto, online).unwrap();
    assert!(snapshot(cache.path()).join(format!("{UNET}.fp16.safetensors")).is_file());
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let cases = [
        (
            repository(),
            Variant::Fp16,
            "there are no fp16 weights; what there is: full, .bin; use --variant auto",
        ),
        (
            renamed(repository(), ".safetensors", ".fp16.safetensors"),
            Variant::Full,
            "text_encoder has no full weights; what there is: fp16",
        ),
        (
            renamed(repository(), ".safetensors", ".non_ema.safetensors"),
            Variant::Auto,
            "what there is: non_ema",
        ),
        (
            renamed(repository(), "model.safetensors", "model.ckpt"),
            Variant::Auto,
            "text_encoder has no safetensors weights",
        ),
    ];
    for (files, variant, said) in cases {
        let hub = Hub::with(files);
        let cache = tempfile::tempdir().unwrap();
        let message =
            open_as("farm/tiny", variant, options(cache.path(), &hub.address)).unwrap_err().to_string();
        assert!(message.starts_with("`farm/tiny`") && message.contains(said), "{message}");
    }
}

#[test]
fn all_there_is_will_do() {
    for (ending, variant) in [
        (".bf16.safetensors", Variant::Auto),
        (".fp16.safetensors", Variant::Fp16),
        (".bf16.safetensors", Variant::Bf16),
    ] {
        let hub = Hub::with(renamed(repository(), ".safetensors", ending));
        let cache = tempfile::tempdir().unwrap();
        let online: HubOptions = options(cache.path(), &hub.address);
        open_as("farm/tiny", variant, online.clone()).unwrap();
        open_as("farm/tiny", variant, offline(&online)).unwrap();
    }
}

#[test]
fn shards_are_fetched_with_their_index() {
    let mut files = repository();
    let weights = files.remove("unet/diffusion_pytorch_model.safetensors").unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let all: Vec<_> = tensors.iter().collect();
    let mut map = serde_json::Map::new();
    for (i, part) in all.chunks(all.len().div_ceil(2)).enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", i + 1);
        map.extend(part.iter().map(|(name, _)| ((*name).to_owned(), file.clone().into())));
        let shard = safetensors::serialize(part.iter().map(|(n, v)| (*n, v)), None).unwrap();
        files.insert(format!("unet/{file}"), shard);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    files.insert(format!("{UNET}.safetensors.index.json"), index.into_bytes());
    let hub = Hub::with(files);
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    open_as("farm/tiny", Variant::Auto, online.clone()).unwrap();
    let last = "unet/diffusion_pytorch_model-00002-of-00002.safetensors";
    for is_listed in [true, false] {
        std::fs::remove_file(snapshot(cache.path()).join(last)).unwrap();
        if !is_listed {
            std::fs::remove_dir_all(root(cache.path()).join(".gigasmith")).unwrap();
        }
        let message = open_as("farm/tiny", Variant::Auto, offline(&online)).unwrap_err().to_string();
        assert!(message.contains(last) && message.contains("HF_HUB_OFFLINE"), "{message}");
        open_as(&format!("farm/tiny@{COMMIT}"), Variant::Auto, online.clone()).unwrap();
    }
    assert!(matches!(open_as("farm/tiny", Variant::Fp16, online), Err(LoadError::Hub(_))));
}
