//! The files of a tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json`; and which tokens
//! are added or special, from `tokenizer_config.json` and `special_tokens_map.json`.
//!
//! Which file decides is what transformers 5 does: where `tokenizer_config.json` lists the added tokens
//! (`added_tokens_decoder`), it alone is read; otherwise `special_tokens_map.json` names the special
//! tokens, and `tokenizer.json` the added ones. Added tokens have the ids of the vocabulary; those that
//! are not in it come after it, in the order of the files.
//!
//! Everything is bounded before anything is built of it: file sizes by [`ModelFiles`], the number and length
//! of added tokens here, ids by the text encoder's vocabulary.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::model::error::LoadError;
use crate::model::files::ModelFiles;
use crate::model::fingerprint::Content;

/// Added tokens of a tokenizer, at most, and bytes of one: finding them takes memory for every byte.
const MOST_ADDED: usize = 4096;
const LONGEST_ADDED: usize = 1024;

/// Special tokens with a role, in the order in which those that are not in the vocabulary get ids, and what they are
/// where no file says.
const ROLES: [(&str, Option<&str>); 7] = [
    ("bos_token", Some("<|startoftext|>")),
    ("eos_token", Some("<|endoftext|>")),
    ("unk_token", Some("<|endoftext|>")),
    ("sep_token", None),
    ("pad_token", Some("<|endoftext|>")),
    ("cls_token", None),
    ("mask_token", None),
];

/// Settings that change ids, and the only value of each that is followed.
const FIXED: [(&str, &str); 3] =
    [("padding_side", "\"right\""), ("truncation_side", "\"right\""), ("split_special_tokens", "false")];

/// Everything that the files say.
pub(super) struct Parts {
    pub(super) vocab: BTreeMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    /// None is empty, and no two have the same content.
    pub(super) added: Vec<AddedToken>,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) unk: String,
    pub(super) pad: String,
    /// Longest text, start and end tokens included.
    pub(super) max_length: Option<usize>,
}

impl Parts {
    /// A hash of everything that decides the ids of a text. `rules` names how they are made of it.
    pub(super) fn digest(&self, rules: &str, length: usize) -> String {
        let mut content = Content::default();
        content.add_text("rules", rules);
        for (token, id) in &self.vocab {
            content.add_text(token, &id.to_string());
        }
        for (left, right) in &self.merges {
            content.add_text(left, right);
        }
        for token in &self.added {
            let AddedToken { content: text, single_word, lstrip, rstrip, normalized, special: _ } = token;
            content.add_text("added", text);
            content.add_text("flags", &format!("{single_word} {lstrip} {rstrip} {normalized}"));
        }
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
    let ((vocab, merges), of_file) = if files.exists(&path("vocab.json")) {
        (read_slow(files, &path("vocab.json"), &path("merges.txt"))?, BTreeMap::new())
    } else {
        read_fast(files, &path("tokenizer.json"))?
    };
    let mut config = object("tokenizer_config.json")?;
    let bad = |reason: String| LoadError::Tokenizer { file: files.name(folder), reason };
    for (key, wanted) in FIXED {
        let value = config.get(key).filter(|v| !v.is_null()).map(Value::to_string);
        if let Some(value) = value.filter(|v| v != wanted) {
            return Err(bad(format!("`{key}` is {value}; only {wanted} is supported")));
        }
    }
    let mut added = Added::default();
    match config.get("added_tokens_decoder").and_then(Value::as_object) {
        Some(listed) => added.listed(listed).map_err(bad)?,
        None => {
            config.extend(object("special_tokens_map.json")?);
            of_file.into_values().try_for_each(|token| added.add(token)).map_err(bad)?;
        }
    }
    let mut roles = BTreeMap::new();
    for (role, default) in ROLES {
        let said = config.get(role).and_then(special);
        if let Some(token) = said.or_else(|| default.map(|token| AddedToken::from(token, true))) {
            roles.insert(role, token.content.clone());
            added.add(token).map_err(bad)?;
        }
    }
    for list in ["extra_special_tokens", "additional_special_tokens"] {
        let list = config.get(list).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(special).try_for_each(|token| added.add(token)).map_err(bad)?;
    }
    let [bos, eos, unk, pad] = ["bos_token", "eos_token", "unk_token", "pad_token"]
        .map(|role| roles.remove(role).expect("it has a default"));
    let max_length = config.get("model_max_length").and_then(Value::as_f64).map(|n| n as usize);
    Ok(Parts { vocab, merges, added: added.tokens, bos, eos, unk, pad, max_length })
}

type VocabAndMerges = (BTreeMap<String, u32>, Vec<(String, String)>);

fn read_slow(files: &ModelFiles, vocab: &str, merges: &str) -> Result<VocabAndMerges, LoadError> {
    let ids = serde_json::from_str(&files.text(vocab)?)
        .map_err(|e| LoadError::Json { file: files.name(vocab), reason: e.to_string() })?;
    let text = files.text(merges)?;
    let lines = text.trim().lines().filter(|line| !line.starts_with("#version"));
    let pairs = lines.map(pair).collect::<Option<_>>();
    let pairs = pairs.ok_or_else(|| LoadError::Tokenizer {
        file: files.name(merges),
        reason: "every line but `#version` must be two tokens with a space between".into(),
    })?;
    Ok((ids, pairs))
}

fn read_fast(
    files: &ModelFiles,
    path: &str,
) -> Result<(VocabAndMerges, BTreeMap<u64, AddedToken>), LoadError> {
    let json = files.json(path)?;
    let bad = |reason: &str| LoadError::Tokenizer { file: files.name(path), reason: reason.to_owned() };
    let model = json.get("model").ok_or_else(|| bad("it has no `model`"))?;
    if model.get("type").and_then(Value::as_str).is_some_and(|t| t != "BPE") {
        return Err(bad("only models of type BPE are supported"));
    }
    let vocab = model.get("vocab").and_then(Value::as_object).ok_or_else(|| bad("it has no `vocab`"))?;
    let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
    let vocab = vocab.iter().map(|(token, value)| Some((token.clone(), id(value)?))).collect::<Option<_>>();
    let vocab = vocab.ok_or_else(|| bad("every id of `vocab` must be a whole number"))?;
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
    let added = added.filter_map(|token| Some((token.get("id")?.as_u64()?, flagged(token)?)));
    Ok(((vocab, merges), added.collect()))
}

fn pair(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let pair = (words.next()?.to_owned(), words.next()?.to_owned());
    words.next().is_none().then_some(pair)
}

/// Added tokens as they are collected: of each content the first.
#[derive(Default)]
struct Added {
    tokens: Vec<AddedToken>,
    seen: BTreeSet<String>,
}

impl Added {
    /// The tokens of `added_tokens_decoder`: id -> properties.
    fn listed(&mut self, listed: &Map<String, Value>) -> Result<(), String> {
        let mut tokens = BTreeMap::new();
        for (id, token) in listed {
            let number: u32 = id.parse().map_err(|_| format!("the id {id:?} of an added token is no id"))?;
            let token = flagged(token).ok_or_else(|| format!("the added token {id} has no `content`"))?;
            tokens.insert(number, token);
        }
        tokens.into_values().try_for_each(|token| self.add(token))
    }

    fn add(&mut self, token: AddedToken) -> Result<(), String> {
        let content = &token.content;
        // An empty token is nowhere to be found.
        if content.is_empty() || self.seen.contains(content) {
            return Ok(());
        }
        if content.len() > LONGEST_ADDED {
            return Err(format!(
                "an added token has {} bytes; at most {LONGEST_ADDED} are supported",
                content.len()
            ));
        }
        if self.tokens.len() == MOST_ADDED {
            return Err(format!("it has more than {MOST_ADDED} added tokens"));
        }
        // White space that takes the white space beside it along can claim what another token has.
        if content.trim().is_empty() && (token.lstrip || token.rstrip) {
            return Err(format!("the added token {content:?} is white space; it cannot strip any"));
        }
        self.seen.insert(content.clone());
        self.tokens.push(token);
        Ok(())
    }
}

/// A token written as an object: what is not said of it is false.
fn flagged(token: &Value) -> Option<AddedToken> {
    let flag = |key: &str, default| token.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", false);
    let content = token.get("content")?.as_str()?;
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// A special token, written as a text or as an object.
fn special(token: &Value) -> Option<AddedToken> {
    match token {
        Value::String(content) => Some(AddedToken::from(content.as_str(), true)),
        object => {
            let is_normalized = object.get("normalized").and_then(Value::as_bool).unwrap_or(false);
            flagged(object).map(|token| token.special(true).normalized(is_normalized))
        }
    }
}
