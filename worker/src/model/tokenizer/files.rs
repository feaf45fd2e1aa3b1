//! The files of a tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json`; and which tokens
//! are added or special, from `tokenizer_config.json` and `special_tokens_map.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::AddedToken;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;
use crate::model::fingerprint::Content;

/// The reference implementation reads no more merges than CLIP's own vocabulary has.
const MOST_MERGES: usize = 49152 - 256 - 2;

/// Everything that the files say.
pub(super) struct Parts {
    pub(super) vocab: BTreeMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) added: Vec<AddedToken>,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) unk: String,
    pub(super) pad: String,
    /// Longest text, start and end tokens included.
    pub(super) max_length: Option<usize>,
}

impl Parts {
    /// A hash of everything that decides the ids of a text.
    pub(super) fn digest(&self, length: usize) -> String {
        let mut content = Content::default();
        for (token, id) in &self.vocab {
            content.add_text(token, &id.to_string());
        }
        for (left, right) in &self.merges {
            content.add_text(left, right);
        }
        let mut added: Vec<String> = self.added.iter().map(|token| format!("{token:?}")).collect();
        added.sort();
        content.add_text("added", &added.concat());
        for token in [&self.bos, &self.eos, &self.unk, &self.pad] {
            content.add_text("special", token);
        }
        content.add_text("length", &length.to_string());
        content.finish().to_string()
    }
}

/// Reads the files in `folder`.
pub(super) fn read(files: &ModelFiles, folder: &str) -> Result<Parts, LoadError> {
    let path = |name: &str| format!("{folder}/{name}");
    let slow = files.exists(&path("vocab.json"));
    let ((vocab, merges), fast_added) = if slow {
        (read_slow(files, &path("vocab.json"), &path("merges.txt"))?, Vec::new())
    } else {
        read_fast(files, &path("tokenizer.json"))?
    };
    let object = |name: &str| -> Result<Map<String, Value>, LoadError> {
        if !files.exists(&path(name)) {
            return Ok(Map::new());
        }
        match files.json(&path(name))? {
            Value::Object(map) => Ok(map),
            _ => {
                Err(LoadError::Json { file: files.name(&path(name)), reason: "it must be an object".into() })
            }
        }
    };
    let config = object("tokenizer_config.json")?;
    let map = object("special_tokens_map.json")?;
    let role = |key: &str, default: &str| {
        let found = [&config, &map].into_iter().find_map(|m| m.get(key).and_then(content));
        found.unwrap_or_else(|| default.to_owned())
    };
    let (bos, eos) = (role("bos_token", "<|startoftext|>"), role("eos_token", "<|endoftext|>"));
    let (unk, pad) = (role("unk_token", "<|endoftext|>"), role("pad_token", "<|endoftext|>"));
    let mut added = decoder(&config);
    if added.is_empty() {
        added = fast_added;
    }
    // Special tokens are added tokens even where no file lists them.
    for (key, token) in [("bos_token", &bos), ("eos_token", &eos), ("unk_token", &unk), ("pad_token", &pad)] {
        if added.iter().any(|t| &t.content == token) || token.is_empty() {
            continue;
        }
        if let Some(id) = vocab.get(token) {
            let flags = [&config, &map].into_iter().find_map(|m| m.get(key).filter(|v| v.is_object()));
            added.push(added_token(token.clone(), *id, flags.unwrap_or(&Value::Null)));
        }
    }
    let max_length = config.get("model_max_length").and_then(Value::as_f64).map(|n| n as usize);
    Ok(Parts { vocab, merges, added, bos, eos, unk, pad, max_length })
}

type VocabAndMerges = (BTreeMap<String, u32>, Vec<(String, String)>);

fn read_slow(files: &ModelFiles, vocab: &str, merges: &str) -> Result<VocabAndMerges, LoadError> {
    let ids = serde_json::from_str(&files.text(vocab)?)
        .map_err(|e| LoadError::Json { file: files.name(vocab), reason: e.to_string() })?;
    let text = files.text(merges)?;
    // The first line is a version, whatever it says.
    let lines = text.trim().split('\n').skip(1).take(MOST_MERGES);
    let pairs = lines.map(|line| pair(line.trim_end_matches('\r'))).collect::<Option<_>>();
    let pairs = pairs.ok_or_else(|| LoadError::Tokenizer {
        file: files.name(merges),
        reason: "every line after the first must be two tokens with a space between".into(),
    })?;
    Ok((ids, pairs))
}

fn read_fast(files: &ModelFiles, path: &str) -> Result<(VocabAndMerges, Vec<AddedToken>), LoadError> {
    let json = files.json(path)?;
    let bad = |reason: &str| LoadError::Tokenizer { file: files.name(path), reason: reason.to_owned() };
    let model = json.get("model").ok_or_else(|| bad("it has no `model`"))?;
    if model.get("type").and_then(Value::as_str).is_some_and(|t| t != "BPE") {
        return Err(bad("only models of type BPE are supported"));
    }
    let vocab = model.get("vocab").cloned().unwrap_or_default();
    let vocab = serde_json::from_value(vocab).map_err(|e| bad(&format!("`vocab`: {e}")))?;
    let merges = model.get("merges").and_then(Value::as_array).ok_or_else(|| bad("it has no `merges`"))?;
    let merges = merges
        .iter()
        .map(|m| match m {
            Value::String(line) => pair(line),
            Value::Array(two) if two.len() == 2 => {
                Some((two[0].as_str()?.to_owned(), two[1].as_str()?.to_owned()))
            }
            _ => None,
        })
        .collect::<Option<_>>()
        .ok_or_else(|| bad("every merge must be two tokens"))?;
    let added = json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let added = added
        .filter_map(|t| Some(added_token(content(t)?, u32::try_from(t.get("id")?.as_u64()?).ok()?, t)))
        .collect();
    Ok(((vocab, merges), added))
}

fn pair(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let pair = (words.next()?.to_owned(), words.next()?.to_owned());
    words.next().is_none().then_some(pair)
}

/// The tokens of `added_tokens_decoder`: id -> properties.
fn decoder(config: &Map<String, Value>) -> Vec<AddedToken> {
    let entries = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(id, token)| Some(added_token(content(token)?, id.parse().ok()?, token))).collect()
}

fn added_token(content: String, id: u32, flags: &Value) -> AddedToken {
    let flag = |key: &str| flags.get(key).and_then(Value::as_bool).unwrap_or(false);
    AddedToken { content, id, lstrip: flag("lstrip"), rstrip: flag("rstrip") }
}

/// A token written as a text or as an object with `content`.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}
