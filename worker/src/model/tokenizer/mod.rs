//! CLIP's tokenizer, as today's reference has it: the `CLIPTokenizer` of transformers 5, which is the only
//! one since, and which transformers 4's fast one equals. The pieces are the same library's (`tokenizers`), put
//! together in the same way:
//!
//! 1. Added tokens that are not `normalized` are cut out of the raw text (`!` is one where it is the padding
//!    token).
//! 2. The rest is composed (NFC), runs of white space become one space, and letters lower case, one by one.
//! 3. Added tokens that are `normalized` are cut out of that (CLIP's two special tokens, in any case).
//! 4. What remains is split into words by CLIP's pattern, and each word into byte-pair tokens.
//!
//! So ideographs are not set apart, and format characters (joiners, soft hyphens, byte order marks) and control
//! characters stay. The slow tokenizer of transformers 4 did otherwise where the package `ftfy` was missing;
//! with it, it agreed with the above for what people write. Nothing repairs text or unescapes HTML here.
//!
//! A prompt of up to [`LONGEST_PROMPT`] bytes takes time in proportion to its length.

mod files;
#[cfg(test)]
mod tests;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::error::LoadError;
use super::files::ModelFiles;
use super::fingerprint::Content;

/// Names the rules above in fingerprints: other ids from the same files are another model.
const RULES: &str = "clip, transformers 5";

/// Words: CLIP's special tokens, English contractions, runs of letters, single digits, runs of
/// anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The longest prompt, in bytes.
pub(crate) const LONGEST_PROMPT: usize = 1 << 20;

/// One tokenizer.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    pipeline: tokenizers::Tokenizer,
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
        let bad = |reason: String| LoadError::Tokenizer { file: files.name(folder), reason };
        let known = |largest: u64| {
            let reason =
                || format!("it has ids up to {largest}, but the text encoder knows only {vocab_size}");
            if largest >= vocab_size as u64 { Err(bad(reason())) } else { Ok(()) }
        };
        known(parts.vocab.values().max().copied().map_or(0, u64::from))?;
        if !parts.vocab.contains_key(&parts.unk) {
            return Err(bad(format!("its unknown token {:?} is not in the vocabulary", parts.unk)));
        }
        let length = parts.max_length.map_or(max_positions, |m| m.min(max_positions));
        if length < 3 {
            return Err(bad(format!("a text of {length} tokens has no room for any")));
        }
        let digest = parts.digest(RULES, length);
        let vocab = parts.vocab.into_iter().collect::<Vocab>();
        let pipeline = pipeline(vocab, parts.merges, parts.unk).map_err(|e| bad(e.to_string()))?;
        let mut pipeline = pipeline;
        pipeline.add_tokens(&parts.added);
        known(pipeline.get_added_tokens_decoder().keys().max().copied().map_or(0, u64::from))?;
        let id = |role: &str, content: &str| {
            let id = pipeline.token_to_id(content);
            id.ok_or_else(|| bad(format!("its {role} token {content:?} is not in the vocabulary")))
        };
        let (bos, eos) = (id("start", &parts.bos)?, id("end", &parts.eos)?);
        let pad = id("padding", &parts.pad)?;
        Ok(Self { bos, eos, pad, length, digest, pipeline })
    }

    /// The prompt's ids between start and end token, cut or padded to the model's length. What is wrong with a
    /// prompt that has none, as a phrase.
    pub(crate) fn encode(&self, prompt: &str) -> Result<Tokens, String> {
        if prompt.len() > LONGEST_PROMPT {
            let length = prompt.len();
            return Err(format!("it has {length} bytes; at most {LONGEST_PROMPT} are supported"));
        }
        let text = self.pipeline.encode_fast(prompt, false).map_err(|e| e.to_string())?;
        let (text, room) = (text.get_ids(), self.length - 2);
        let mut ids = vec![self.bos];
        ids.extend(text.iter().take(room));
        ids.push(self.eos);
        ids.resize(self.length, self.pad);
        Ok(Tokens { ids, dropped: text.len().saturating_sub(room) })
    }

    /// Two tokenizers whose texts are used side by side must make equally long ones.
    pub(crate) fn check_pair(files: &ModelFiles, [first, second]: &[Self; 2]) -> Result<(), LoadError> {
        if first.length == second.length {
            return Ok(());
        }
        let reason = format!(
            "its texts have {} tokens and those of the first tokenizer {}: they are used side by side",
            second.length, first.length
        );
        Err(LoadError::Tokenizer { file: files.name("tokenizer_2"), reason })
    }

    /// Adds what decides the ids to a fingerprint.
    pub(crate) fn describe(&self, content: &mut Content) {
        content.add_text("tokenizer", &self.digest);
    }
}

/// From raw text to ids; see the rules above.
fn pipeline(
    vocab: Vocab,
    merges: Vec<(String, String)>,
    unknown: String,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unknown)
        .end_of_word_suffix("</w>".to_owned())
        .build()?;
    let mut pipeline = tokenizers::Tokenizer::new(model);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    pipeline.with_normalizer(Some(Normalizers::new(vec![
        NormalizerWrapper::NFC(NFC),
        NormalizerWrapper::Replace(spaces),
        NormalizerWrapper::Lowercase(Lowercase),
    ])));
    let pattern = SplitPattern::Regex(WORDS.to_owned());
    pipeline.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        PreTokenizerWrapper::Split(Split::new(pattern, SplitDelimiterBehavior::Removed, true)?),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ])));
    Ok(pipeline)
}
