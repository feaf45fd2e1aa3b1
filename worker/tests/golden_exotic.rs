//! Configurations unlike SDXL's own, against small random models computed by the reference
//! implementation: every block with its own width, depth and number of heads, convolutional
//! projections, no symmetric padding, odd windows, v-prediction, single perturbed attentions, weight
//! names of old VAEs, the historical end-of-text rule.

// The distances themselves are worth seeing, with `--nocapture`.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use gigasmith_proto::domain::{Array, Conditioning, NoiseTask, PagScale, PredictionType, TimestepSpacing};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, SdxlModel, Variant, load,
};
use safetensors::SafeTensors;
use serde_json::Value;

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
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The model with the tokenizers of the other fixture, which it shares.
fn open(folder: &Path, scratch: &Path) -> SdxlModel {
    copy_folder(folder, scratch);
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        copy_folder(&golden().join("tiny-sdxl").join(tokenizer), &scratch.join(tokenizer));
    }
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    };
    load(&ModelSource::Folder(scratch.to_owned()), &options).unwrap()
}

struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    fn get(&self, name: &str) -> Array {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let data = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        // All are batches of one.
        Array::new(view.shape()[1..].to_vec(), data).unwrap()
    }
}

fn distance(got: &Array, wanted: &Array) -> f64 {
    assert_eq!(got.shape(), wanted.shape());
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.data().iter().zip(wanted.data()).map(|(a, b)| square(a - b)).sum();
    (error / wanted.data().iter().map(|v| square(*v)).sum::<f64>()).sqrt()
}

fn check_model(folder: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let mut model = open(folder, scratch.path());
    let expected = Expected { bytes: std::fs::read(folder.join("expected.safetensors")).unwrap() };
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    assert_eq!(serde_json::json!(model.describe().pag_blocks), json["pag_names"]);

    let text = model.encode_text(json["prompt"].as_str().unwrap()).unwrap();
    let errors =
        [distance(&text.states, &expected.get("states")), distance(&text.pooled, &expected.get("pooled"))];
    println!("{}: text {errors:?}", folder.display());
    assert!(errors.iter().all(|e| *e < 1e-5), "text: {errors:?}");

    let conditioning = Conditioning {
        prompt: expected.get("states"),
        pooled: expected.get("pooled"),
        negative: Some((expected.get("neg_states"), expected.get("neg_pooled"))),
    };
    let pag_sets = json["pag"].as_array().unwrap();
    for window in 0..json["windows"].as_array().unwrap().len() {
        for j in 0..=pag_sets.len() {
            let blocks =
                |set: &Value| set.as_array().unwrap().iter().map(|b| b.as_str().unwrap().into()).collect();
            let scale = json["pag_scale"].as_f64().unwrap() as f32;
            let task = NoiseTask {
                latent: expected.get(&format!("in{window}")).into(),
                wire: Default::default(),
                timestep: json["timesteps"][window].as_u64().unwrap() as u32,
                time_ids: expected.get(&format!("ids{window}")).data().try_into().unwrap(),
                conditioning: conditioning.id(),
                guidance_scale: json["guidance_scale"].as_f64().unwrap() as f32,
                pag: (j > 0).then(|| PagScale { scale, blocks: blocks(&pag_sets[j - 1]) }),
            };
            let got = model.predict_noise(&task, &conditioning).unwrap();
            let error = distance(&got, &expected.get(&format!("out{window}.{j}")));
            println!("  window {window}, perturbation {j}: {error:e}");
            assert!(error < 2e-5, "window {window}, perturbation {j}: {error}");
        }
    }

    let image = distance(&model.decode_tile(&expected.get("z"), None).unwrap(), &expected.get("image"));
    let moments =
        distance(&model.encode_tile(&expected.get("tile"), None).unwrap(), &expected.get("moments"));
    println!("  image {image:e}, moments {moments:e}");
    assert!(image < 1e-5 && moments < 1e-5, "image {image}, moments {moments}");
}

#[test]
fn unusual_configurations_compute_what_they_say() {
    for entry in std::fs::read_dir(golden().join("exotic")).unwrap() {
        check_model(&entry.unwrap().path());
    }
}

#[test]
fn the_description_follows_the_files() {
    let scratch = tempfile::tempdir().unwrap();
    let model = open(&golden().join("exotic/mixed"), scratch.path());
    let description = model.describe();
    assert_eq!(description.schedule.prediction_type, PredictionType::VPrediction);
    assert_eq!(description.schedule.timestep_spacing, TimestepSpacing::Trailing);
    assert_eq!((description.patch_side, description.latent_factor, description.vae_tile), (24, 2, 32));
    assert!(!description.force_zeros_for_empty_prompt);
    assert_eq!(description.native_sizes[0], (48, 48));
    assert_eq!((description.preset.steps, description.preset.guidance_scale), (50, 7.5));
}
