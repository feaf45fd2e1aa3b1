//! The networks against tensors recorded from the reference programs: the text encoders, the noise
//! predictor, the VAE. Tolerances are relative L2 distances in f32; the recordings named `image` are
//! stored in half precision and compared with 2e-3.

// The distances themselves are worth seeing, with `--nocapture`.
#![allow(clippy::print_stdout)]

mod recorded;

use gigasmith_proto::domain::{Array, Conditioning, Dtype, NoiseTask, PagScale};
use gigasmith_worker::backend::{Backend, BackendError};
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, SdxlModel, Variant, load,
};
use recorded::{Case, distance, divided, golden, largest_difference, picture, window};

fn options() -> LoadOptions {
    LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    }
}

fn open(source: &str) -> SdxlModel {
    load(&ModelSource::parse(source).unwrap(), &options()).unwrap()
}

fn tiny_source() -> ModelSource {
    ModelSource::parse(golden("tiny-sdxl").to_str().unwrap()).unwrap()
}

fn tiny() -> SdxlModel {
    load(&tiny_source(), &options()).unwrap()
}

#[test]
fn text_encoders_reproduce_the_recorded_embeddings() {
    let mut model = tiny();
    for name in ["square", "wide", "nocfg", "pag"] {
        let case = Case::read(name);
        let mut check = |prompt: &str, states: &str, pooled: &str| {
            let got = model.encode_text(prompt).unwrap();
            let errors = [distance(&got.states, &case.get(states)), distance(&got.pooled, &case.get(pooled))];
            println!("{name} {states}: {errors:?}");
            assert!(errors.iter().all(|e| *e < 1e-5), "{name} {prompt:?}: {errors:?}");
            assert_eq!(got.dropped_tokens, 0);
        };
        check(case.json["prompt"].as_str().unwrap(), "prompt_embeds", "pooled_prompt_embeds");
        if let Some(negative) = case.json["negative_prompt"].as_str() {
            check(negative, "negative_prompt_embeds", "negative_pooled_prompt_embeds");
        }
    }
}

#[test]
fn the_noise_predictor_reproduces_the_recorded_patches() {
    let mut model = tiny();
    for name in ["square", "wide", "nocfg", "pag"] {
        let case = Case::read(name);
        let conditioning = case.conditioning();
        let plan = case.json["plan"].as_array().unwrap();
        let (mut worst, mut checked) = (0f64, 0);
        for (i, row) in plan.iter().enumerate() {
            let name = |what: &str| format!("patch{i:05}.{what}");
            if !case.has(&name("input")) {
                continue;
            }
            // The trace has the time ids of every batch row; they are all the same.
            let ids: [f32; 6] = case.get(&name("time_ids")).data()[..6].try_into().unwrap();
            let task = case.task(case.get(&name("input")), row[1].as_u64().unwrap(), ids, &conditioning);
            let got = model.predict_noise(&task, &conditioning).unwrap();
            worst = worst.max(distance(&got, &case.get(&name("noise_pred"))));
            checked += 1;
        }
        println!("{name}: {checked} patches, worst {worst:e}");
        assert!(checked >= 4 && worst < 2e-5, "{name}: {checked} patches, worst {worst}");
    }
}

#[test]
fn the_vae_decodes_as_recorded() {
    let mut model = tiny();
    let scale = model.describe().scaling_factor;
    for name in ["square", "wide"] {
        let case = Case::read(name);
        let got = model.decode_tile(&divided(&case.get("base_latents"), scale), None).unwrap();
        let wanted = case.get("base_image_whole");
        let rows = wanted.chw().unwrap().1;
        let got = window(&got, 0, 0, rows, got.chw().unwrap().2);
        let error = largest_difference(&got, &wanted);
        println!("{name} whole: {error:e}");
        assert!(error < 2e-3, "{name}: {error}");
        // The first three quarters of the first tile are not blended with any other.
        let tile = window(&divided(&case.get("final_latents"), scale), 0, 0, 32, 32);
        let got = window(&model.decode_tile(&tile, None).unwrap(), 0, 0, 192, 192);
        let error = largest_difference(&got, &window(&case.get("image_tiled"), 0, 0, 192, 192));
        println!("{name} tile: {error:e}");
        assert!(error < 2e-3, "{name} tile: {error}");
    }
}

#[test]
fn the_vae_encodes_as_recorded() {
    let mut model = tiny();
    let case = Case::read("wide");
    let tile = window(&picture(&golden("wide/upsampled.png")), 0, 0, 256, 256);
    let moments = model.encode_tile(&tile, None).unwrap();
    let side = 24;
    let moments = window(&moments, 0, 0, side, side);
    let (mean, log_variance) = moments.data().split_at(4 * side * side);
    let array = |data: Vec<f32>| Array::new([4, side, side], data).unwrap();
    let mean = array(mean.to_vec());
    let std = array(log_variance.iter().map(|v| (0.5 * v).exp()).collect());
    let errors = [
        distance(&mean, &window(&case.get("encoded_mean"), 0, 0, side, side)),
        distance(&std, &window(&case.get("encoded_std"), 0, 0, side, side)),
    ];
    println!("wide: {errors:?}");
    // The recorded means are themselves 1.3e-5 from a double-precision computation.
    assert!(errors[0] < 2e-5 && errors[1] < 1e-5, "{errors:?}");
}

/// A patch's bytes must not depend on threads, on what was asked before, or on the other rows.
#[test]
fn answers_are_the_same_to_the_bit() {
    let case = Case::read("pag");
    let conditioning = case.conditioning();
    let row = &case.json["plan"][0];
    let ids: [f32; 6] = case.get("patch00000.time_ids").data()[..6].try_into().unwrap();
    let mut task = case.task(case.get("patch00000.input"), row[1].as_u64().unwrap(), ids, &conditioning);
    let on = |threads: usize, task: &NoiseTask| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = tiny();
            let first = model.predict_noise(task, &conditioning).unwrap();
            model.decode_tile(&case.get("base_latents"), None).unwrap();
            assert_eq!(first, model.predict_noise(task, &conditioning).unwrap());
            first
        })
    };
    assert!(on(1, &task) == on(3, &task), "the number of threads changed the result");
    // Guidance 1 and no perturbation leave the prompt's row; with a perturbation of nothing, that
    // row must come out the same beside another.
    (task.guidance_scale, task.pag) = (1.0, None);
    let alone = on(1, &task);
    task.pag = Some(PagScale { scale: 3.0, blocks: Vec::new() });
    assert!(alone == on(2, &task), "the other rows changed the result");
}

/// Patches that differ in everything, some of which can't go together, and one that can't go at all.
#[test]
fn patches_in_one_call_have_the_answers_that_they_have_alone() {
    let case = Case::read("pag");
    let conditioning = case.conditioning();
    let other = Conditioning { negative: None, ..conditioning.clone() };
    let row = &case.json["plan"][0];
    let ids: [f32; 6] = case.get("patch00000.time_ids").data()[..6].try_into().unwrap();
    let first = case.task(case.get("patch00000.input"), row[1].as_u64().unwrap(), ids, &conditioning);
    let mut tasks = vec![(first, &conditioning); 6];
    tasks[1].0.timestep = 7;
    tasks[1].0.time_ids[2] += 32.0;
    tasks[2].0.latent = case.get("patch00001.input").into();
    tasks[3].0.pag = None;
    (tasks[4].0.guidance_scale, tasks[4].1) = (1.0, &other);
    tasks[5].1 = &other;
    let mut alone = tiny();
    let alone = tasks.iter().map(|(task, conditioning)| alone.predict_noise(task, conditioning));
    let alone: Vec<_> = alone.map(|answer| answer.map_err(|e| e.to_string())).collect();
    assert!(alone[5].as_ref().unwrap_err().contains("needs a negative conditioning"));
    assert!(alone[..5].iter().all(Result::is_ok));
    for batch in [2, 8] {
        let options = LoadOptions { batch: BatchChoice::Patches(batch), ..options() };
        let mut model = load(&tiny_source(), &options).unwrap();
        let patches: Vec<_> = tasks.iter().map(|(task, conditioning)| (task, *conditioning)).collect();
        let answers =
            model.predict_noises(&patches).into_iter().map(|answer| answer.map_err(|e| e.to_string()));
        assert!(alone == answers.collect::<Vec<_>>(), "batches of {batch} changed a result");
    }
}

/// Products of bf16 (where the processor has them; else widened weights): near the recordings, and as reproducible.
#[test]
fn bf16_is_near_and_the_same_to_the_bit() {
    let open = |batch: usize| {
        let (dtype, batch) = (Some(Dtype::Bf16), BatchChoice::Patches(batch));
        load(&tiny_source(), &LoadOptions { dtype, batch, ..options() }).unwrap()
    };
    let case = Case::read("square");
    let conditioning = case.conditioning();
    let (mut tasks, mut wanted) = (Vec::new(), Vec::new());
    for (i, row) in case.json["plan"].as_array().unwrap().iter().enumerate() {
        let name = |what: &str| format!("patch{i:05}.{what}");
        if case.has(&name("input")) {
            let ids: [f32; 6] = case.get(&name("time_ids")).data()[..6].try_into().unwrap();
            let latent = case.get(&name("input"));
            tasks.push(case.task(latent, row[1].as_u64().unwrap(), ids, &conditioning));
            wanted.push(case.get(&name("noise_pred")));
        }
    }
    let mut model = open(1);
    println!("{}", model.describe().numeric_class);
    let alone: Vec<Array> =
        tasks.iter().map(|task| model.predict_noise(task, &conditioning).unwrap()).collect();
    let worst = alone.iter().zip(&wanted).map(|(a, b)| distance(a, b)).fold(0.0, f64::max);
    println!("bf16: {} patches, worst {worst:e}", tasks.len());
    // 8 bits, and guidance of 7.5 makes errors larger.
    assert!(tasks.len() >= 4 && worst > 1e-4 && worst < 0.12, "{worst}");
    let patches: Vec<_> = tasks.iter().map(|task| (task, &conditioning)).collect();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let answers = pool.install(|| open(4).predict_noises(&patches));
        let answers: Vec<Array> = answers.into_iter().map(Result::unwrap).collect();
        assert!(answers == alone, "{threads} threads and batches of 4 changed a result");
    }
}

#[test]
fn wrong_questions_are_explained() {
    let case = Case::read("square");
    let mut model = tiny();
    let full = case.conditioning();
    let prompt_only = Conditioning { negative: None, ..full.clone() };
    let mut task = case.task(Array::zeros([4, 8, 8]), 1, [0.0; 6], &full);
    let error = model.predict_noise(&task, &prompt_only).unwrap_err();
    assert!(matches!(error, BackendError::MissingNegative { .. }), "{error}");
    task.pag = Some(PagScale { scale: 1.0, blocks: vec!["m7".into()] });
    let error = model.predict_noise(&task, &full).unwrap_err().to_string();
    assert!(error.starts_with("unknown attention block `m7`") && error.contains("mid (m0 to m1)"), "{error}");
    task.pag = None;
    task.latent = Array::zeros([3, 8, 8]).into();
    let error = model.predict_noise(&task, &full).unwrap_err().to_string();
    assert_eq!(error, "the latent has shape [3, 8, 8]; this model needs (4, height, width)");
    let error = model.encode_tile(&Array::zeros([3, 12, 16]), None).unwrap_err().to_string();
    assert!(error.contains("multiples of 8"), "{error}");
    assert!(model.decode_tile(&Array::zeros([4, 8]), None).is_err());
}

#[test]
fn the_embedded_model_answers_from_anywhere() {
    let mut model = open("pocket");
    let description = model.describe().clone();
    assert_eq!((description.name.as_str(), description.latent_factor), ("pocket", 8));
    let text = model.encode_text("mountains at dusk").unwrap();
    let conditioning = Conditioning { prompt: text.states, pooled: text.pooled, negative: None };
    let side = description.patch_side as usize;
    let task = NoiseTask {
        latent: Array::zeros([4, side, side]).into(),
        wire: Default::default(),
        timestep: 501,
        time_ids: [128.0, 128.0, 0.0, 0.0, 128.0, 128.0],
        conditioning: conditioning.id(),
        guidance_scale: 1.0,
        pag: None,
    };
    let noise = model.predict_noise(&task, &conditioning).unwrap();
    assert!(noise.is_finite() && noise.shape() == task.latent.shape());
    let image = model.decode_tile(&noise, None).unwrap();
    assert_eq!(image.shape(), [3, 8 * side, 8 * side]);
}
