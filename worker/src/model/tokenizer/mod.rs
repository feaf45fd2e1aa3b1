//! CLIP's tokenizer, as the reference implementation's slow `CLIPTokenizer` behaves without the
//! optional text-repair package: added tokens are cut out of the raw text first (`!` is one where it
//! is the padding token); each remaining piece is cleaned ([`clean`]), split into words by CLIP's
//! pattern, and each word into byte-pair tokens.

mod clean;
mod files;

use regex::Regex;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::error::LoadError;
use super::files::ModelFiles;
use super::fingerprint::Content;

/// Words: CLIP's special tokens, English contractions, runs of letters, single digits, runs of
/// anything else.
const WORDS: &str =
    r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

/// A token that is cut out of the raw text before anything else happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AddedToken {
    content: String,
    id: u32,
    /// White space before it belongs to it.
    lstrip: bool,
    /// White space after it belongs to it.
    rstrip: bool,
}

/// One tokenizer.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    bpe: BPE,
    words: Regex,
    controls: Regex,
    /// Longest first.
    added: Vec<AddedToken>,
    /// CLIP's two special tokens where they are single words (in any case) of a cleaned text.
    special_words: [(&'static str, Option<u32>); 2],
    bos: u32,
    eos: u32,
    pad: u32,
    length: usize,
    /// Hash of everything above.
    digest: String,
}

/// A tokenized prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// Start token, text, end token, padding: always the same length.
    pub(crate) ids: Vec<u32>,
    /// Tokens of the text that found no room.
    pub(crate) dropped: usize,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder`, for a model of `max_positions` tokens and `vocab_size` ids.
    pub(crate) fn load(
        files: &ModelFiles,
        folder: &str,
        max_positions: usize,
        vocab_size: usize,
    ) -> Result<Self, LoadError> {
        let parts = files::read(files, folder)?;
        let name = files.name(folder);
        let bad = |reason: String| LoadError::Tokenizer { file: name.clone(), reason };
        let id = |role: &str, content: &str| {
            let added = parts.added.iter().find(|t| t.content == content).map(|t| t.id);
            added
                .or_else(|| parts.vocab.get(content).copied())
                .ok_or_else(|| bad(format!("its {role} token `{content}` is not in the vocabulary")))
        };
        let (bos, eos) = (id("start", &parts.bos)?, id("end", &parts.eos)?);
        let (pad, unknown) = (id("padding", &parts.pad)?, id("unknown", &parts.unk)?);
        let largest = parts.vocab.values().chain(parts.added.iter().map(|t| &t.id)).max().copied();
        if largest.is_some_and(|l| l as usize >= vocab_size) {
            return Err(bad(format!(
                "it has ids up to {}, but the text encoder knows only {vocab_size}",
                largest.unwrap_or(0)
            )));
        }
        let length = parts.max_length.map_or(max_positions, |m| m.min(max_positions));
        if length < 3 {
            return Err(bad(format!("a text of {length} tokens has no room for any")));
        }
        let digest = parts.digest(length);
        let mut added = parts.added;
        added.sort_by_key(|t| std::cmp::Reverse(t.content.len()));
        let special = ["<|startoftext|>", "<|endoftext|>"];
        let special_words =
            special.map(|word| (word, Some(parts.vocab.get(word).copied().unwrap_or(unknown))));
        let bpe = BPE::builder()
            .vocab_and_merges(parts.vocab.into_iter().collect::<Vocab>(), parts.merges)
            .unk_token(parts.unk)
            .end_of_word_suffix("</w>".to_owned())
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let regex = |pattern: &str| Regex::new(pattern).map_err(|e| bad(e.to_string()));
        Ok(Self {
            bpe,
            words: regex(WORDS)?,
            controls: regex(clean::CONTROLS)?,
            added,
            special_words,
            bos,
            eos,
            pad,
            length,
            digest,
        })
    }

    /// The prompt's ids between start and end token, cut or padded to the model's length.
    pub(crate) fn encode(&self, prompt: &str) -> Tokens {
        let mut text = self.text_ids(prompt);
        let room = self.length - 2;
        let dropped = text.len().saturating_sub(room);
        text.truncate(room);
        let mut ids = vec![self.bos];
        ids.append(&mut text);
        ids.push(self.eos);
        ids.resize(self.length, self.pad);
        Tokens { ids, dropped }
    }

    /// Adds what decides the ids to a fingerprint.
    pub(crate) fn describe(&self, content: &mut Content) {
        content.add_text("tokenizer", &self.digest);
    }

    fn text_ids(&self, prompt: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut strip_next = false;
        let mut rest = prompt;
        loop {
            let next = self.find_added(rest);
            let mut piece = &rest[..next.map_or(rest.len(), |(start, _)| start)];
            if strip_next {
                piece = piece.trim_start();
            }
            if next.is_some_and(|(_, token)| token.lstrip) {
                piece = piece.trim_end();
            }
            self.piece_ids(piece, &mut ids);
            let Some((start, token)) = next else { return ids };
            ids.push(token.id);
            strip_next = token.rstrip;
            rest = &rest[start + token.content.len()..];
        }
    }

    /// The first added token in `text`, the longest where several begin there.
    fn find_added(&self, text: &str) -> Option<(usize, &AddedToken)> {
        self.added
            .iter()
            .filter_map(|token| text.find(&token.content).map(|start| (start, token)))
            .min_by_key(|(start, token)| (*start, std::cmp::Reverse(token.content.len())))
    }

    fn piece_ids(&self, piece: &str, ids: &mut Vec<u32>) {
        let text = clean::clean(piece, &self.controls);
        for word in self.words.find_iter(&text) {
            let word = word.as_str();
            if let Some((_, Some(id))) = self.special_words.iter().find(|(special, _)| *special == word) {
                ids.push(*id);
                continue;
            }
            let symbols: String = word.bytes().map(clean::byte_symbol).collect();
            // Byte-pair merging cannot fail: every byte has a symbol, and unknown symbols have the
            // unknown token.
            let tokens = self.bpe.tokenize(&symbols).unwrap_or_default();
            ids.extend(tokens.into_iter().map(|t| t.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn golden(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
    }

    fn tiny(folder: &str) -> Tokenizer {
        Tokenizer::load(&ModelFiles::Folder(golden("tiny-sdxl")), folder, 77, 2014).unwrap()
    }

    /// Recorded from the reference implementation: scripts, accents, controls, added tokens (the
    /// second tokenizer's `!` among them), odd spaces, truncation.
    #[test]
    fn ids_are_those_of_the_reference() {
        let rows: Value = serde_json::from_slice(&std::fs::read(golden("tokenizer.json")).unwrap()).unwrap();
        let tokenizers = [(tiny("tokenizer"), "ids"), (tiny("tokenizer_2"), "ids_2")];
        let mut wrong = Vec::new();
        for row in rows.as_array().unwrap() {
            let prompt = row["prompt"].as_str().unwrap();
            for (i, (tokenizer, key)) in tokenizers.iter().enumerate() {
                let got = tokenizer.encode(prompt);
                let ids: Vec<u32> = serde_json::from_value(row[*key].clone()).unwrap();
                if got.ids != ids || got.dropped as u64 != row["dropped"][i].as_u64().unwrap() {
                    wrong.push(format!("{prompt:?} ({key})\n got {:?}\nwant {ids:?}", got.ids));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_fast_tokenizer_file_gives_the_same_ids() {
        let folder = tempfile::tempdir().unwrap();
        let source = golden("tiny-sdxl/tokenizer_2");
        let text = |name: &str| std::fs::read_to_string(source.join(name)).unwrap();
        let vocab: Value = serde_json::from_str(&text("vocab.json")).unwrap();
        let merges: Vec<String> = text("merges.txt").lines().skip(1).map(str::to_owned).collect();
        let pairs: Vec<Vec<&str>> = merges.iter().map(|m| m.split(' ').collect()).collect();
        let path = folder.path().join("t");
        std::fs::create_dir(&path).unwrap();
        std::fs::copy(source.join("tokenizer_config.json"), path.join("tokenizer_config.json")).unwrap();
        for merges in [serde_json::json!(merges), serde_json::json!(pairs)] {
            let json = serde_json::json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}});
            std::fs::write(path.join("tokenizer.json"), json.to_string()).unwrap();
            let files = ModelFiles::Folder(folder.path().to_owned());
            let fast = Tokenizer::load(&files, "t", 77, 2014).unwrap();
            let slow = tiny("tokenizer_2");
            assert_eq!(fast.encode("A castle, on a hill!"), slow.encode("A castle, on a hill!"));
            assert_eq!(fast.digest, slow.digest);
        }
    }

    #[test]
    fn ids_beyond_the_encoder_are_refused() {
        let files = ModelFiles::Folder(golden("tiny-sdxl"));
        let error = Tokenizer::load(&files, "tokenizer", 77, 2000).unwrap_err().to_string();
        assert!(error.contains("ids up to 2013") && error.contains("knows only 2000"), "{error}");
    }
}
