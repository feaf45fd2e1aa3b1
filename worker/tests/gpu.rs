//! The networks on an NVIDIA GPU: against the recordings, and against themselves. They need one, and a build with the
//! feature `cudnn` or `flash-attn`:
//! `cargo test --release -p gigasmith-worker --features cudnn --test gpu -- --ignored --nocapture`.
#![allow(clippy::print_stdout)]
#![cfg(feature = "cuda")]

mod recorded;

use gigasmith_proto::domain::{Array, Conditioning, Dtype, NoiseTask};
use gigasmith_worker::backend::{Backend, Patch};
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, SdxlModel, Variant, load,
};
use recorded::{Case, distance, divided, golden, largest_difference, picture, window};

fn tiny(dtype: Dtype, batch: usize) -> SdxlModel {
    let options = LoadOptions {
        device: DeviceChoice::Cuda(0),
        dtype: Some(dtype),
        batch: BatchChoice::Patches(batch),
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    };
    let source = ModelSource::parse(golden("tiny-sdxl").to_str().unwrap()).unwrap();
    load(&source, &options).unwrap()
}

/// A recorded patch.
fn patch(case: &Case, i: usize, conditioning: &Conditioning) -> Option<NoiseTask> {
    let name = |what: &str| format!("patch{i:05}.{what}");
    let row = &case.json["plan"][i];
    case.has(&name("input")).then(|| {
        let ids: [f32; 6] = case.get(&name("time_ids")).data()[..6].try_into().unwrap();
        case.task(case.get(&name("input")), row[1].as_u64().unwrap(), ids, conditioning)
    })
}

/// The largest distances from all that is recorded: text, noise, decoded and encoded pictures.
fn distances(dtype: Dtype) -> [f64; 4] {
    let mut model = tiny(dtype, 1);
    println!("{}", model.describe().numeric_class);
    let mut worst = [0f64; 4];
    for name in ["square", "wide", "nocfg", "pag"] {
        let case = Case::read(name);
        let text = model.encode_text(case.json["prompt"].as_str().unwrap()).unwrap();
        worst[0] = worst[0].max(distance(&text.states, &case.get("prompt_embeds")));
        worst[0] = worst[0].max(distance(&text.pooled, &case.get("pooled_prompt_embeds")));
        let conditioning = case.conditioning();
        for i in 0..case.json["plan"].as_array().unwrap().len() {
            if let Some(task) = patch(&case, i, &conditioning) {
                let noise = model.predict_noise(&task, &conditioning).unwrap();
                let error = distance(&noise, &case.get(&format!("patch{i:05}.noise_pred")));
                worst[1] = worst[1].max(error);
            }
        }
    }
    let scale = model.describe().scaling_factor;
    for name in ["square", "wide"] {
        let case = Case::read(name);
        let image = model.decode_tile(&divided(&case.get("base_latents"), scale), None).unwrap();
        let wanted = case.get("base_image_whole");
        let image = window(&image, 0, 0, wanted.chw().unwrap().1, image.chw().unwrap().2);
        worst[2] = worst[2].max(f64::from(largest_difference(&image, &wanted)));
    }
    let case = Case::read("wide");
    let tile = window(&picture(&golden("wide/upsampled.png")), 0, 0, 256, 256);
    let mean = window(&model.encode_tile(&tile, None).unwrap(), 0, 0, 24, 24).into_data();
    let mean = Array::new([4, 24, 24], mean[..4 * 24 * 24].to_vec()).unwrap();
    worst[3] = distance(&mean, &window(&case.get("encoded_mean"), 0, 0, 24, 24));
    println!("{dtype:?}: text, noise, decoded, encoded: {worst:?}");
    worst
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_recordings_are_reproduced_in_f32() {
    let [text, noise, decoded, encoded] = distances(Dtype::F32);
    // The same tolerances as on a CPU.
    assert!(text < 1e-5 && noise < 2e-5 && decoded < 2e-3 && encoded < 2e-5);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_recordings_are_reproduced_in_half_precision() {
    // Roundings of 11 and of 8 bits. Guidance of 7.5 makes errors of the noise larger.
    for (dtype, tolerance) in [(Dtype::F16, 1e-2), (Dtype::Bf16, 8e-2)] {
        let [text, noise, decoded, encoded] = distances(dtype);
        assert!(text < tolerance && noise < tolerance && encoded < tolerance);
        assert!(decoded < 10.0 * tolerance);
    }
}

/// Whatever ran before, whatever else is in the call, wherever in it a patch is, and whatever runs meanwhile.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn answers_are_the_same_to_the_bit() {
    let case = Case::read("square");
    let conditioning = case.conditioning();
    let plan = 0..case.json["plan"].as_array().unwrap().len();
    let tasks: Vec<NoiseTask> = plan.filter_map(|i| patch(&case, i, &conditioning)).take(4).collect();
    assert_eq!(tasks.len(), 4);
    let latent = case.get("base_latents");
    for (dtype, batch) in [(Dtype::F32, 1), (Dtype::F16, 1), (Dtype::F16, 4), (Dtype::Bf16, 3)] {
        let answer = |model: &mut SdxlModel, order: &[usize]| -> Vec<Array> {
            let patches: Vec<Patch<'_>> = order.iter().map(|i| (&tasks[*i], &conditioning)).collect();
            model.predict_noises(&patches).into_iter().map(Result::unwrap).collect()
        };
        let mut model = tiny(dtype, batch);
        let first = answer(&mut model, &[0, 1, 2, 3]);
        let image = model.decode_tile(&latent, None).unwrap();
        assert!(first == answer(&mut model, &[0, 1, 2, 3]), "{dtype:?} x {batch}: asked again");
        let mut turned = answer(&mut model, &[2, 3, 0, 1]);
        turned.rotate_left(2);
        assert!(first == turned, "{dtype:?} x {batch}: in another order");
        let alone: Vec<Array> = (0..4).flat_map(|i| answer(&mut model, &[i])).collect();
        assert!(first == alone, "{dtype:?} x {batch}: alone");
        let mut other = tiny(dtype, batch);
        assert!(image == other.decode_tile(&latent, None).unwrap(), "{dtype:?}: the same image");
        let orders: Vec<Vec<Patch<'_>>> = [[0, 1], [2, 3]]
            .iter()
            .map(|pair| pair.iter().map(|i: &usize| (&tasks[*i], &conditioning)).collect())
            .collect();
        let started: Vec<_> = orders.iter().map(|patches| other.start_noises(patches)).collect();
        let finished = started.into_iter().zip(&orders);
        let meanwhile: Vec<Array> =
            finished.flat_map(|(s, p)| other.finish_noises(s, p)).map(Result::unwrap).collect();
        assert!(first == meanwhile, "{dtype:?} x {batch}: two at a time, by another");
    }
}
