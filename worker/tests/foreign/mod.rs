//! Models as they are found: written by other releases, for other processes, of other families, or made to harm.

use std::path::Path;

use gigasmith_proto::domain::{Fingerprint, Preset, TimestepSpacing};
use gigasmith_worker::backend::Backend;
use serde_json::{Value, json};

use super::{Tensors, UNET, message, model, open, read_tensors, set, write_tensors};

const SCHEDULER: &str = "scheduler/scheduler_config.json";

fn fingerprints(folder: &Path) -> Vec<Fingerprint> {
    open(folder).unwrap().describe().fingerprints.iter().map(|(_, f)| *f).collect()
}

fn change_tensors(folder: &Path, file: &str, change: impl FnOnce(Tensors) -> Tensors) {
    let path = folder.join(file);
    write_tensors(&path, &change(read_tensors(&path)));
}

fn remove(folder: &Path, file: &str, key: &str) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove(key);
    std::fs::write(path, json.to_string()).unwrap();
}

/// The scheduler of another class, with other values.
fn scheduled(class: &str, keys: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = model();
    set(folder.path(), "model_index.json", "scheduler", json!(["diffusers", class]));
    set(folder.path(), SCHEDULER, "_class_name", json!(class));
    keys.iter().for_each(|(key, value)| set(folder.path(), SCHEDULER, key, value.clone()));
    folder
}

#[test]
fn text_encoders_have_their_names_with_and_without_the_inner_model() {
    let folder = model();
    let before = fingerprints(folder.path());
    let states = |folder: &Path| open(folder).unwrap().encode_text("a lighthouse").unwrap();
    let text = states(folder.path());
    for encoder in ["text_encoder", "text_encoder_2"] {
        change_tensors(folder.path(), &format!("{encoder}/model.safetensors"), |tensors| {
            let bare = |name: String| name.strip_prefix("text_model.").map_or(name.clone(), str::to_owned);
            tensors.into_iter().map(|(name, tensor)| (bare(name), tensor)).collect()
        });
        assert_eq!(fingerprints(folder.path()), before, "{encoder}");
        let again = states(folder.path());
        assert!(again.states == text.states && again.pooled == text.pooled, "{encoder}");
    }
    change_tensors(folder.path(), "text_encoder/model.safetensors", |mut tensors| {
        let twice = tensors["final_layer_norm.bias"].clone();
        tensors.insert("text_model.final_layer_norm.bias".into(), twice);
        tensors
    });
    assert!(message(folder.path()).contains("`text_model.final_layer_norm.bias` is there under two names"));
}

#[test]
fn spare_tensors_are_ignored_where_they_are_known() {
    let folder = model();
    let before = fingerprints(folder.path());
    let encoder = "text_encoder/model.safetensors";
    let zeros = (safetensors::Dtype::F32, vec![2, 2], vec![0; 16]);
    for name in ["text_projection.weight", "logit_scale", "embeddings.position_ids"] {
        change_tensors(folder.path(), encoder, |mut tensors| {
            tensors.insert(name.into(), zeros.clone());
            tensors
        });
        assert_eq!(fingerprints(folder.path()), before, "{name}");
    }
    for name in ["lm_head.weight", "visual_projection.weight", "vision_model.post_layernorm.bias"] {
        change_tensors(folder.path(), encoder, |mut tensors| {
            tensors.insert(name.into(), zeros.clone());
            tensors
        });
        let error = message(folder.path());
        assert!(error.contains(&format!("tensor `{name}`")) && error.contains("has no place"), "{error}");
        change_tensors(folder.path(), encoder, |mut tensors| {
            tensors.remove(name);
            tensors
        });
    }
}

#[test]
fn marks_pointers_and_pages_are_known_in_every_kind_of_file() {
    let folder = model();
    let before = fingerprints(folder.path());
    let files = [
        "model_index.json",
        SCHEDULER,
        "unet/config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ];
    for file in files {
        let path = folder.path().join(file);
        let marked = [&b"\xef\xbb\xbf"[..], &std::fs::read(&path).unwrap()].concat();
        std::fs::write(path, marked).unwrap();
    }
    assert_eq!(fingerprints(folder.path()), before);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1059962\n";
    for file in files.into_iter().chain([UNET, "text_encoder_2/model.safetensors"]) {
        for (content, words) in [(pointer, "git lfs pull"), ("<!DOCTYPE html>\n<html>", "a web page")] {
            let folder = model();
            std::fs::write(folder.path().join(file), content).unwrap();
            let error = message(folder.path());
            assert!(error.contains(file) && error.contains(words), "{error}");
        }
    }
}

#[test]
fn schedulers_of_another_process_are_refused_by_class() {
    for (class, words) in [
        ("EDMEulerScheduler", "EDM process"),
        ("EDMDPMSolverMultistepScheduler", "EDM process"),
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
        ("FlowMatchHeunDiscreteScheduler", "flow matching"),
        ("DDIMInverseScheduler", "inversion"),
        ("ScoreSdeVeScheduler", "variance-exploding"),
        ("NoSuchScheduler", "not known"),
    ] {
        let error = message(scheduled(class, &[]).path());
        assert!(
            error.contains("model_index.json") && error.contains(class) && error.contains(words),
            "{error}"
        );
    }
    // The index wins over the scheduler's own file, as in diffusers.
    let folder = model();
    set(folder.path(), SCHEDULER, "_class_name", json!("FlowMatchEulerDiscreteScheduler"));
    open(folder.path()).unwrap();
}

#[test]
fn keys_of_another_process_are_refused_by_name() {
    let euler = "EulerDiscreteScheduler";
    for (class, key, value) in [
        (euler, "sigma_data", json!(0.5)),
        (euler, "sigma_max", json!(120.0)),
        (euler, "sigma_min", json!(0.002)),
        (euler, "shift", json!(3.0)),
        (euler, "timestep_type", json!("continuous")),
        (euler, "prediction_type", json!("flow_prediction")),
        (euler, "prediction_type", json!("sample")),
        (euler, "rescale_betas_zero_snr", json!(true)),
        (euler, "trained_betas", json!([0.1, 0.2])),
        ("UniPCMultistepScheduler", "use_flow_sigmas", json!(true)),
        ("UniPCMultistepScheduler", "use_dynamic_shifting", json!(true)),
        ("DPMSolverMultistepScheduler", "thresholding", json!(true)),
        ("DPMSolverMultistepScheduler", "variance_type", json!("learned_range")),
        ("DDIMScheduler", "clip_sample", json!(true)),
        (euler, "beta_schedule", json!("squaredcos_cap_v2")),
        (euler, "timestep_spacing", json!("uniform")),
        (euler, "beta_end", json!(0.9)),
        (euler, "beta_start", json!("NaN")),
    ] {
        let error = message(scheduled(class, &[(key, value.clone())]).path());
        assert!(error.contains(SCHEDULER) && error.contains(&format!("`{key}` is {value}")), "{error}");
    }
    for key in ["beta_start", "beta_end", "beta_schedule"] {
        let folder = model();
        remove(folder.path(), SCHEDULER, key);
        assert!(message(folder.path()).contains(&format!("`{key}` is missing")), "{key}");
    }
}

#[test]
fn keys_that_leave_the_process_alone_are_accepted() {
    let folder = scheduled(
        "EulerDiscreteScheduler",
        &[
            ("use_karras_sigmas", json!(true)),
            ("interpolation_type", json!("linear")),
            ("skip_prk_steps", json!(true)),
            ("final_sigmas_type", json!("sigma_min")),
            ("timestep_type", json!("discrete")),
            ("flow_shift", json!(3.0)),
            ("use_flow_sigmas", json!(false)),
            ("sigma_max", Value::Null),
            // Euler reads neither.
            ("clip_sample", json!(true)),
            ("thresholding", json!(true)),
        ],
    );
    open(folder.path()).unwrap();
    // What Python writes for minus infinity.
    let path = folder.path().join(SCHEDULER);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', r#"{"lambda_min_clipped": -Infinity, "#, 1)).unwrap();
    open(folder.path()).unwrap();
}

#[test]
fn the_class_says_which_timesteps_where_the_file_does_not() {
    for (class, spacing) in [
        ("DDIMScheduler", TimestepSpacing::Leading),
        ("PNDMScheduler", TimestepSpacing::Leading),
        ("EulerDiscreteScheduler", TimestepSpacing::Linspace),
        ("DPMSolverSinglestepScheduler", TimestepSpacing::Linspace),
    ] {
        let folder = scheduled(class, &[]);
        remove(folder.path(), SCHEDULER, "timestep_spacing");
        assert_eq!(open(folder.path()).unwrap().describe().schedule.timestep_spacing, spacing, "{class}");
    }
}

#[test]
fn models_for_another_use_are_named() {
    type Edit<'a> = &'a [(&'a str, &'a str, Value)];
    let index = "model_index.json";
    let unet = "unet/config.json";
    let none = json!([null, null]);
    let cases: [(Edit<'_>, &str); 14] = [
        (&[(index, "text_encoder", none.clone()), (index, "tokenizer", none)], "it is an SDXL refiner"),
        (&[(index, "requires_aesthetics_score", json!(true))], "it is an SDXL refiner"),
        (&[(unet, "in_channels", json!(9))], "`in_channels` is 9; this is an inpainting model"),
        (&[(unet, "in_channels", json!(8))], "`in_channels` is 8; this is an editing model"),
        (&[(unet, "out_channels", json!(8))], "`out_channels` is 8; this is a model that also predicts"),
        (&[(unet, "time_cond_proj_dim", json!(256))], "this is an LCM model"),
        (&[(index, "_class_name", json!("StableDiffusionPipeline"))], "it is Stable Diffusion 1 or 2"),
        (&[(index, "_class_name", json!("StableDiffusion3Pipeline"))], "it is Stable Diffusion 3"),
        (&[(index, "_class_name", json!("FluxPipeline"))], "it is FLUX"),
        (&[(index, "_class_name", json!(["pipeline_x", "FluxPipeline"]))], "it is FLUX"),
        (&[(index, "_class_name", json!("StableDiffusionXLControlNetPipeline"))], "it is a ControlNet"),
        (&[(index, "controlnet", json!(["diffusers", "ControlNetModel"]))], "a ControlNet's pipeline"),
        (&[("vae/config.json", "latents_mean", json!([1.0, 2.0, 3.0, 4.0]))], "Playground v2.5"),
        (&[("vae/config.json", "shift_factor", json!(0.1159))], "`shift_factor` is 0.1159"),
    ];
    for (edit, words) in cases {
        let folder = model();
        edit.iter().for_each(|(file, key, value)| set(folder.path(), file, key, value.clone()));
        let error = message(folder.path());
        assert!(error.contains(words), "{words}: {error}");
    }
    let folder = model();
    for (key, value) in
        [("shift_factor", json!(0.0)), ("latents_mean", Value::Null), ("latents_std", Value::Null)]
    {
        set(folder.path(), "vae/config.json", key, value);
    }
    open(folder.path()).unwrap();
}

#[test]
fn middle_blocks_are_whole_single_or_absent() {
    let name = "mid_block_type";
    for (kind, kept) in [(json!("UNetMidBlock2D"), "mid_block.resnets.0."), (Value::Null, "no tensor at all")]
    {
        let folder = model();
        set(folder.path(), "unet/config.json", name, kind.clone());
        // Weights of another middle block are no match.
        assert!(message(folder.path()).contains("tensor `mid_block."), "{kind}");
        change_tensors(folder.path(), UNET, |tensors| {
            tensors.into_iter().filter(|(n, _)| !n.starts_with("mid_block.") || n.starts_with(kept)).collect()
        });
        let opened = open(folder.path()).unwrap();
        let names = &opened.describe().pag_blocks;
        assert!(!names.iter().any(|n| n.starts_with('m')) && names.iter().any(|n| n == "u0"), "{names:?}");
    }
    let folder = model();
    set(folder.path(), "unet/config.json", name, json!("UNetMidBlock2DSimpleCrossAttn"));
    let error = message(folder.path());
    assert!(
        error.contains("UNetMidBlock2DSimpleCrossAttn") && error.contains("UNetMidBlock2D\" or null"),
        "{error}"
    );
    // A missing key is not null.
    let folder = model();
    let before = fingerprints(folder.path());
    remove(folder.path(), "unet/config.json", name);
    assert_eq!(fingerprints(folder.path()), before);
}

#[test]
fn configurations_can_neither_take_all_memory_nor_fail_later() {
    let (unet, vae, text) = ("unet/config.json", "vae/config.json", "text_encoder_2/config.json");
    let huge = json!(1_000_000_000_000_u64);
    for (file, key, value) in [
        (unet, "transformer_layers_per_block", huge.clone()),
        (unet, "transformer_layers_per_block", json!(40_000_000)),
        (unet, "transformer_layers_per_block", json!([1, 1, [1, 40_000_000]])),
        (unet, "layers_per_block", json!(1_000_000)),
        (unet, "sample_size", json!(1_000_000)),
        (unet, "block_out_channels", json!([8, 16, 1_048_576])),
        (unet, "block_out_channels", json!(vec![8; 40])),
        (unet, "attention_head_dim", json!([2, 4, 0])),
        (unet, "conv_in_kernel", json!(1_000_001)),
        (unet, "freq_shift", json!(4)),
        (unet, "freq_shift", json!(-1)),
        (unet, "mid_block_scale_factor", json!(0)),
        (unet, "mid_block_scale_factor", json!(1e-60)),
        (unet, "norm_eps", json!(0)),
        (unet, "norm_eps", json!(-1e-5)),
        (unet, "norm_num_groups", json!(0)),
        (unet, "in_channels", json!(0)),
        (vae, "layers_per_block", json!(0)),
        (vae, "layers_per_block", json!(1_000_000)),
        (vae, "block_out_channels", json!(vec![8; 40])),
        (vae, "latent_channels", json!(0)),
        (vae, "sample_size", json!(0)),
        (vae, "scaling_factor", json!(0)),
        (vae, "scaling_factor", json!(1e-60)),
        (text, "num_hidden_layers", huge),
        (text, "layer_norm_eps", json!(0)),
        (text, "eos_token_id", json!(5000)),
        (text, "max_position_embeddings", json!(2)),
        (SCHEDULER, "num_train_timesteps", json!(1_000_000)),
    ] {
        let folder = model();
        set(folder.path(), file, key, value.clone());
        let error = message(folder.path());
        // A network with other inputs than outputs is refused as such.
        assert!(error.contains(file) && error.contains(&format!("`{key}` is {value}")), "{error}");
    }
    // Deep, but within the limits: the weights are missed before anything is made for all the layers.
    let folder = model();
    set(folder.path(), unet, "transformer_layers_per_block", json!(256));
    assert!(
        message(folder.path()).contains("has no tensor `down_blocks.0.attentions.0.transformer_blocks.1.")
    );
    // Python's NaN.
    let folder = model();
    let path = folder.path().join(unet);
    let config = std::fs::read_to_string(&path).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    std::fs::write(&path, config.to_string().replace("\"norm_eps\":0.0001", "\"norm_eps\":NaN")).unwrap();
    assert!(message(folder.path()).contains("`norm_eps` is \"NaN\"; a number is needed"));
}

#[test]
fn another_exporter_makes_no_other_model() {
    let folder = model();
    let before = fingerprints(folder.path());
    for (file, key, value) in [
        ("unet/config.json", "conv_in_kernel", json!(3)),
        ("unet/config.json", "a_new_key", Value::Null),
        ("vae/config.json", "use_quant_conv", json!(true)),
        ("vae/config.json", "latents_mean", Value::Null),
        ("vae/config.json", "shift_factor", Value::Null),
        ("text_encoder/config.json", "dtype", json!("float32")),
        ("text_encoder/config.json", "eos_token_id", json!(49407)),
    ] {
        set(folder.path(), file, key, value);
        assert_eq!(fingerprints(folder.path()), before, "{key}");
    }
    set(folder.path(), "vae/config.json", "scaling_factor", json!(0.5));
    assert_ne!(fingerprints(folder.path()), before);
}

#[test]
fn presets_follow_what_the_files_say_of_the_training() {
    let preset = |folder: &Path| open(folder).unwrap().describe().preset;
    assert_eq!(preset(model().path()).steps, 50);
    let lcm = preset(scheduled("LCMScheduler", &[]).path());
    assert!(matches!(lcm, Preset { steps: 8, guidance_scale: 1.0, .. }), "{lcm:?}");
    let turbo = scheduled("EulerAncestralDiscreteScheduler", &[("timestep_spacing", json!("trailing"))]);
    set(turbo.path(), "unet/config.json", "sample_size", json!(256));
    let preset = preset(turbo.path());
    assert!(matches!(preset, Preset { steps: 4, guidance_scale: 0.0, .. }), "{preset:?}");
}
