//! The diffusers folder layout: what the weight files of a component may be called, and which
//! files of a repository a model needs. Pure: names in, names out.

use std::collections::BTreeMap;

/// The components that have weights, as (folder, stem of the weight files).
pub(crate) const WEIGHTED: [(&str, &str); 4] = [
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
    ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
];

/// Possible weight files of a component, the most wanted first: the plain files hold what was
/// published at full precision, so f32 prefers them; half precision prefers the smaller variant.
pub(crate) fn candidates(stem: &str, prefer_half: bool) -> impl Iterator<Item = String> {
    let plain = [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")];
    let half = [
        format!("{stem}.safetensors.index.fp16.json"),
        format!("{stem}.fp16.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
    ];
    let (first, second) =
        if prefer_half { (half.to_vec(), plain.to_vec()) } else { (plain.to_vec(), half.to_vec()) };
    first.into_iter().chain(second)
}

/// The `weight_map` of a shard index: tensor name -> file name.
pub(crate) fn weight_map(index: &serde_json::Value) -> Result<BTreeMap<String, String>, String> {
    let map = index
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or("a shard index needs an object `weight_map`")?;
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().ok_or(format!("`weight_map` of `{tensor}` is not a file name"))?;
            if !is_plain_name(file) {
                return Err(format!("`weight_map` of `{tensor}` leaves the folder: `{file}`"));
            }
            Ok((tensor.clone(), file.to_owned()))
        })
        .collect()
}

/// Whether a name is that of a file in the folder that it is looked up in, on every system.
fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', ':', '\0'])
}

/// Which of a repository's `files` a model needs besides shards (which the chosen index lists):
/// configurations, tokenizers, and for each component the most wanted weights.
pub(crate) fn needed(files: &[String], prefer_half: bool) -> Vec<String> {
    const SMALL: [&str; 15] = [
        "model_index.json",
        "gigasmith.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "unet/config.json",
        "vae/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer_2/vocab.json",
        "tokenizer_2/merges.txt",
        "tokenizer_2/tokenizer_config.json",
        "tokenizer_2/special_tokens_map.json",
    ];
    let has = |path: &str| files.iter().any(|f| f == path);
    let mut needed: Vec<String> = SMALL.iter().filter(|p| has(p)).map(|p| (*p).to_owned()).collect();
    for folder in ["tokenizer", "tokenizer_2"] {
        let fast = format!("{folder}/tokenizer.json");
        if !has(&format!("{folder}/vocab.json")) && has(&fast) {
            needed.push(fast);
        }
    }
    for (folder, stem) in WEIGHTED {
        needed.extend(candidates(stem, prefer_half).map(|name| format!("{folder}/{name}")).find(|p| has(p)));
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn the_variant_follows_the_dtype_and_falls_back() {
        let both = names(&[
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
        ]);
        assert_eq!(needed(&both, false), both[..1]);
        assert_eq!(needed(&both, true), both[1..]);
        assert_eq!(needed(&both[1..], false), both[1..]);
    }

    #[test]
    fn nothing_else_is_fetched() {
        let files = names(&[
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "unet/config.json",
            "unet/model.onnx",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "tokenizer/vocab.json",
            "tokenizer/tokenizer.json",
            "tokenizer_2/tokenizer.json",
        ]);
        let expected = [
            "model_index.json",
            "unet/config.json",
            "tokenizer/vocab.json",
            "tokenizer_2/tokenizer.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ];
        assert_eq!(needed(&files, true), expected);
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
