//! The diffusers folder layout: what the weight files of a component may be called, which of several a model is read
//! from, and which files of a repository it needs. PURE: names in, names out.
//!
//! Which weights are taken follows from what there is and what was asked for: never from the device or the number
//! format, so that workers of all kinds hold the same model.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;

/// The components that have weights, as (folder, stem of the weight files).
pub(crate) const WEIGHTED: [(&str, &str); 4] = [
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
    ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
];

/// Which weight files to take where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Variant {
    /// Each component's fp16 files, else its full ones, else its bf16 ones.
    #[default]
    Auto,
    /// The fp16 files of components that have them, and the full ones of the others.
    Fp16,
    /// The bf16 files of components that have them, and the full ones of the others.
    Bf16,
    /// The files without a variant's name.
    Full,
}

/// Names of variants, `None` for the full files, the most wanted first.
type Kinds = &'static [Option<&'static str>];

impl Variant {
    /// As it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Full => "full",
        }
    }

    fn kinds(self) -> Kinds {
        match self {
            Self::Auto => &[Some("fp16"), None, Some("bf16")],
            Self::Fp16 => &[Some("fp16"), None],
            Self::Bf16 => &[Some("bf16"), None],
            Self::Full => &[None],
        }
    }
}

/// Weights that were asked for and are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariantError {
    /// No component has files of the variant.
    #[error("there are no {variant} weights; what there is: {there}; {remedy}")]
    NoneOfIt {
        /// The variant.
        variant: &'static str,
        /// What there is instead.
        there: String,
        /// What to do.
        remedy: String,
    },
    /// A component has no weights at all.
    #[error("{file} is missing; a model has the layout of the public SDXL repositories, with safetensors")]
    Missing {
        /// What they would be called.
        file: String,
    },
    /// A component has no weights that can be used.
    #[error("{component} has no {wanted} weights; what there is: {there}; {remedy}")]
    Component {
        /// The component's folder.
        component: &'static str,
        /// What they should have been.
        wanted: &'static str,
        /// What there is instead.
        there: String,
        /// What to do.
        remedy: String,
    },
}

/// The weight files that a component's variant may consist of: an index of shards, or one file.
fn names(folder: &str, stem: &str, kind: Option<&str>) -> Vec<String> {
    let files = match kind {
        None => vec![format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")],
        Some(v) => vec![
            format!("{stem}.safetensors.index.{v}.json"),
            format!("{stem}.{v}.safetensors.index.json"),
            format!("{stem}.{v}.safetensors"),
        ],
    };
    files.into_iter().map(|file| format!("{folder}/{file}")).collect()
}

/// The file that a component's weights are read from, or the index of its shards.
pub(crate) fn weights(
    exists: &dyn Fn(&str) -> bool,
    (folder, stem): (&str, &str),
    variant: Variant,
) -> Option<String> {
    variant.kinds().iter().flat_map(|kind| names(folder, stem, *kind)).find(|path| exists(path))
}

/// Whether there are weights as they are asked for.
pub(crate) fn check(exists: &dyn Fn(&str) -> bool, variant: Variant) -> Result<(), VariantError> {
    let has = |(folder, stem), kind| names(folder, stem, kind).iter().any(|path| exists(path));
    if let Variant::Fp16 | Variant::Bf16 = variant
        && !WEIGHTED.iter().any(|part| has(*part, Some(variant.as_str())))
    {
        let there = WEIGHTED.map(|part| others(exists, part)).concat();
        return Err(VariantError::NoneOfIt {
            variant: variant.as_str(),
            remedy: remedy(&there),
            there: listed(&there),
        });
    }
    for part in WEIGHTED {
        if weights(exists, part, variant).is_none() {
            let there = others(exists, part);
            if there.is_empty() {
                return Err(VariantError::Missing { file: format!("{}/{}.safetensors", part.0, part.1) });
            }
            let wanted = if variant == Variant::Full { "full" } else { "safetensors" };
            return Err(VariantError::Component {
                component: part.0,
                wanted,
                remedy: remedy(&there),
                there: listed(&there),
            });
        }
    }
    Ok(())
}

/// Weights that a component has, of any kind, as (what to call them, the flag's value that takes them).
fn others(
    exists: &dyn Fn(&str) -> bool,
    (folder, stem): (&str, &str),
) -> Vec<(&'static str, Option<Variant>)> {
    let safe = [
        ("full", None, Some(Variant::Full)),
        ("fp16", Some("fp16"), Some(Variant::Fp16)),
        ("bf16", Some("bf16"), Some(Variant::Bf16)),
        ("non_ema", Some("non_ema"), None),
        ("ema", Some("ema"), None),
    ];
    let safe = safe.into_iter().filter(|(_, kind, _)| names(folder, stem, *kind).iter().any(|p| exists(p)));
    let unsafe_stem = if stem == "model" { "pytorch_model" } else { stem };
    let unsafe_names = [
        (".bin", vec![format!("{unsafe_stem}.bin"), format!("{unsafe_stem}.bin.index.json")]),
        ("fp16 .bin", vec![format!("{unsafe_stem}.fp16.bin"), format!("{unsafe_stem}.bin.index.fp16.json")]),
        (".ckpt", vec![format!("{stem}.ckpt")]),
        ("Flax", vec!["flax_model.msgpack".into(), "diffusion_flax_model.msgpack".into()]),
        ("ONNX", vec!["model.onnx".into()]),
        ("OpenVINO", vec!["openvino_model.xml".into()]),
    ];
    let unsafe_names = unsafe_names
        .into_iter()
        .filter(|(_, files)| files.iter().any(|file| exists(&format!("{folder}/{file}"))))
        .map(|(name, _)| (name, None));
    safe.map(|(name, _, flag)| (name, flag)).chain(unsafe_names).collect()
}

fn listed(there: &[(&'static str, Option<Variant>)]) -> String {
    let mut names = Vec::new();
    for (name, _) in there {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn remedy(there: &[(&'static str, Option<Variant>)]) -> String {
    if there.iter().any(|(_, flag)| flag.is_some()) {
        return "use --variant auto".into();
    }
    if there.iter().any(|(name, _)| *name == "non_ema" || *name == "ema") {
        return "rename the files to the names without the variant to use them".into();
    }
    if !there.is_empty() {
        return "convert them: load the model with diffusers and `save_pretrained(FOLDER, safe_serialization=True)`"
            .into();
    }
    "a model has the layout of the public SDXL repositories, with safetensors".into()
}

/// Whether a file is an index of shards.
pub(crate) fn is_index(file: &str) -> bool {
    file.contains(".safetensors.index.") && file.ends_with(".json")
}

/// The `weight_map` of a shard index: tensor name -> file name.
pub(crate) fn weight_map(index: &serde_json::Value) -> Result<BTreeMap<String, String>, String> {
    let map = index
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or("a shard index needs an object `weight_map`")?;
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().ok_or(format!("`weight_map` of {tensor:?} is not a file name"))?;
            if !is_plain_name(file) {
                return Err(format!("`weight_map` of {tensor:?} leaves the folder: {file:?}"));
            }
            Ok((tensor.clone(), file.to_owned()))
        })
        .collect()
}

/// Whether a name is that of a file in the folder that it is looked up in, on every system.
fn is_plain_name(name: &str) -> bool {
    let leaves = name.contains(['/', '\\', ':']) || name.chars().any(char::is_control);
    !leaves && !name.trim_matches(['.', ' ']).is_empty()
}

/// The shards that an index lists, by their paths inside the model.
pub(crate) fn shards(index: &str, json: &serde_json::Value) -> Result<BTreeSet<String>, String> {
    let part = index.split_once('/').map_or("", |(part, _)| part);
    Ok(weight_map(json)?.into_values().map(|file| format!("{part}/{file}")).collect())
}

/// The words of a tokenizer: two files, or everything in one where those are not both there.
fn tokenizer(has: &dyn Fn(&str) -> bool, folder: &str) -> Vec<String> {
    let path = |name: &str| format!("{folder}/{name}");
    let slow = [path("vocab.json"), path("merges.txt")];
    let fast = path("tokenizer.json");
    if !slow.iter().all(|p| has(p)) && has(&fast) { vec![fast] } else { slow.into() }
}

/// Which of a repository's `files` a model needs besides shards (which the chosen index lists):
/// configurations, tokenizers, and for each component the most wanted weights.
pub(crate) fn needed(files: &BTreeSet<&str>, variant: Variant) -> Vec<String> {
    let has = |path: &str| files.contains(path);
    let small = ["model_index.json", "gigasmith.json", "scheduler/scheduler_config.json"].map(str::to_owned);
    let configs = WEIGHTED.map(|(folder, _)| format!("{folder}/config.json"));
    let mut needed: Vec<String> = small.into_iter().chain(configs).collect();
    for folder in ["tokenizer", "tokenizer_2"] {
        needed.extend(tokenizer(&has, folder));
        needed.extend(
            ["tokenizer_config.json", "special_tokens_map.json"].map(|name| format!("{folder}/{name}")),
        );
    }
    needed.retain(|path| has(path));
    needed.extend(WEIGHTED.iter().filter_map(|part| weights(&has, *part, variant)));
    needed
}

/// What a folder that has only `files` lacks to be a model, where nobody knows what its repository has: everything that
/// `index` (its `model_index.json`) calls for. Shards are looked for elsewhere.
pub(crate) fn lacking(
    files: &BTreeSet<&str>,
    index: Option<&serde_json::Value>,
    variant: Variant,
) -> Option<String> {
    let has = |path: &str| files.contains(path);
    let Some(index) = index else { return Some("model_index.json".into()) };
    // A component that a pipeline does without is `[null, null]`.
    let calls_for =
        |part: &str| index.get(part).and_then(|p| p.get(0)).is_some_and(|library| !library.is_null());
    let mut must = Vec::new();
    if calls_for("scheduler") {
        must.push("scheduler/scheduler_config.json".to_owned());
    }
    for (folder, _) in WEIGHTED.iter().filter(|(folder, _)| calls_for(folder)) {
        must.push(format!("{folder}/config.json"));
    }
    for folder in ["tokenizer", "tokenizer_2"].into_iter().filter(|folder| calls_for(folder)) {
        // As they are read: words in two files before words in one.
        let slow = format!("{folder}/vocab.json");
        must.extend(if has(&slow) {
            vec![slow, format!("{folder}/merges.txt")]
        } else {
            tokenizer(&has, folder)
        });
    }
    let file = must.into_iter().find(|path| !has(path));
    let no_weights = || {
        let parts = WEIGHTED.iter().filter(|(folder, _)| calls_for(folder));
        let mut without = parts.filter(|part| weights(&has, **part, variant).is_none());
        without.next().map(|(folder, _)| format!("{folder}'s weights"))
    };
    let wrong_variant = || check(&has, variant).err().map(|_| format!("{} weights", variant.as_str()));
    let is_whole = WEIGHTED.iter().all(|(folder, _)| calls_for(folder));
    file.or_else(no_weights).or_else(|| if is_whole { wrong_variant() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNET: &str = "unet/diffusion_pytorch_model";

    fn set<'a>(list: &[&'a str]) -> BTreeSet<&'a str> {
        list.iter().copied().collect()
    }

    /// Weights of all components with these endings.
    fn model(endings: &[&str]) -> Vec<String> {
        let names = |(folder, stem): &(&str, &str)| -> Vec<String> {
            endings.iter().map(|end| format!("{folder}/{stem}{end}")).collect()
        };
        WEIGHTED.iter().flat_map(names).collect()
    }

    fn checked(files: &[String], variant: Variant) -> Result<(), String> {
        check(&|path| files.iter().any(|f| f == path), variant).map_err(|e| e.to_string())
    }

    #[test]
    fn one_rule_chooses_the_variant_and_each_component_falls_back_by_itself() {
        let taken = |endings: &[&str], variant| {
            let files: Vec<String> = endings.iter().map(|end| format!("{UNET}{end}")).collect();
            let has = |path: &str| files.iter().any(|f| f == path);
            weights(&has, WEIGHTED[2], variant).map(|path| path.strip_prefix(UNET).unwrap().to_owned())
        };
        let (full, fp16, bf16) = (".safetensors", ".fp16.safetensors", ".bf16.safetensors");
        let (index, half_index) = (".safetensors.index.json", ".safetensors.index.fp16.json");
        let table: [(&[&str], [Option<&str>; 4]); 6] = [
            (&[full, fp16, bf16], [Some(fp16), Some(fp16), Some(bf16), Some(full)]),
            (&[full], [Some(full); 4]),
            (&[fp16], [Some(fp16), Some(fp16), None, None]),
            (&[bf16], [Some(bf16), None, Some(bf16), None]),
            (&[full, index, half_index], [Some(half_index), Some(half_index), Some(index), Some(index)]),
            (&[".non_ema.safetensors", ".bin"], [None; 4]),
        ];
        for (files, expected) in table {
            let all = [Variant::Auto, Variant::Fp16, Variant::Bf16, Variant::Full];
            assert_eq!(all.map(|v| taken(files, v)), expected.map(|e| e.map(str::to_owned)), "{files:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is_and_the_remedy() {
        let said = |endings: &[&str], variant| checked(&model(endings), variant).unwrap_err();
        assert_eq!(
            said(&[".safetensors"], Variant::Fp16),
            "there are no fp16 weights; what there is: full; use --variant auto"
        );
        assert_eq!(
            said(&[".fp16.safetensors", ".bf16.safetensors"], Variant::Full),
            "text_encoder has no full weights; what there is: fp16, bf16; use --variant auto"
        );
        let other = said(&[".non_ema.safetensors"], Variant::Auto);
        assert!(other.contains("what there is: non_ema; rename the files"), "{other}");
        let bin = ["text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin"].map(str::to_owned);
        let other = checked(&bin, Variant::Auto).unwrap_err();
        assert!(
            other.contains("text_encoder has no safetensors weights; what there is: .bin; convert them"),
            "{other}"
        );
        assert!(
            checked(&[], Variant::Auto).unwrap_err().starts_with("text_encoder/model.safetensors is missing")
        );
        for (endings, variant) in [(".bf16.safetensors", Variant::Auto), (".bf16.safetensors", Variant::Bf16)]
        {
            checked(&model(&[endings]), variant).unwrap();
        }
    }

    #[test]
    fn a_variant_of_some_components_is_taken_where_it_is() {
        let mut files = model(&[".safetensors"]);
        files.push(format!("{UNET}.fp16.safetensors"));
        checked(&files, Variant::Fp16).unwrap();
        let files: BTreeSet<&str> = files.iter().map(String::as_str).collect();
        let taken = needed(&files, Variant::Fp16);
        assert_eq!(taken[2], format!("{UNET}.fp16.safetensors"));
        assert_eq!(taken[3], "vae/diffusion_pytorch_model.safetensors");
    }

    #[test]
    fn nothing_else_is_fetched() {
        let files = set(&[
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "unet/config.json",
            "unet/model.onnx",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer.json",
            "tokenizer_2/vocab.json",
            "tokenizer_2/tokenizer.json",
        ]);
        let expected = [
            "model_index.json",
            "unet/config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer_2/tokenizer.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ];
        assert_eq!(needed(&files, Variant::Auto), expected);
    }

    #[test]
    fn a_folder_of_unknown_origin_needs_what_its_index_calls_for() {
        let index = serde_json::json!({
            "scheduler": ["diffusers", "S"], "text_encoder": [null, null], "tokenizer": [null, null],
            "text_encoder_2": ["t", "C"], "tokenizer_2": ["t", "T"], "unet": ["d", "U"], "vae": ["d", "V"],
        });
        let all = [
            "scheduler/scheduler_config.json",
            "text_encoder_2/config.json",
            "unet/config.json",
            "vae/config.json",
            "tokenizer_2/vocab.json",
            "tokenizer_2/merges.txt",
            "text_encoder_2/model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(lacking(&set(&all), Some(&index), Variant::Auto), None);
        for gone in all {
            let rest: BTreeSet<&str> = all.into_iter().filter(|f| *f != gone).collect();
            let said = lacking(&rest, Some(&index), Variant::Auto).unwrap();
            let weights = gone.split_once('/').map(|(part, _)| format!("{part}'s weights"));
            assert!(said == gone || Some(&said) == weights.as_ref(), "{gone}: {said}");
        }
        assert_eq!(lacking(&set(&all), None, Variant::Auto).unwrap(), "model_index.json");
    }

    #[test]
    fn an_index_cannot_leave_its_folder() {
        for outside in ["../../secret.safetensors", "..", ".", "", "/etc/passwd", "C:x", "a\\b", "a\0b"] {
            let index = serde_json::json!({"weight_map": {"a": outside}});
            assert!(weight_map(&index).unwrap_err().contains("leaves the folder"), "{outside:?}");
        }
        assert!(weight_map(&serde_json::json!({})).is_err());
    }
}
