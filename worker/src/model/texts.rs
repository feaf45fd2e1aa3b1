//! What stands in a file where something else was meant: byte order marks, pointers of git-lfs, web pages that
//! were saved in a file's place, and Python's numbers in JSON. Pure: bytes in, text or a reason out.

use std::borrow::Cow;

use serde_json::Value;

/// Pointers are a few lines; nothing larger is one.
const POINTER_BYTES: usize = 1024;
/// So many bytes of a file's start tell what it is.
pub(crate) const TELLING_BYTES: u64 = POINTER_BYTES as u64 + 1;

/// Something that lies in the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StandIn {
    /// What it is, as a phrase.
    pub(crate) what: &'static str,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

/// What `bytes` are where they only stand for the file they are named after.
pub(crate) fn stand_in(bytes: &[u8]) -> Option<StandIn> {
    let start = &bytes[..bytes.len().min(POINTER_BYTES)];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let pointer = bytes.len() <= POINTER_BYTES;
    if pointer && start.starts_with(b"version https://") && contains(start, b"git-lfs") {
        return Some(StandIn {
            what: "a git-lfs pointer",
            remedy: "run `git lfs install` and `git lfs pull` in the model's folder, or give the model's hub id",
        });
    }
    if pointer && start.starts_with(b"# xet version") {
        return Some(StandIn {
            what: "a Xet pointer",
            remedy: "run `git xet install` and `git lfs pull` in the model's folder, or give the model's hub id",
        });
    }
    let page = |tag: &[u8]| start.len() >= tag.len() && start[..tag.len()].eq_ignore_ascii_case(tag);
    if page(b"<!doctype html") || page(b"<html") {
        return Some(StandIn {
            what: "a web page",
            remedy: "download the file itself, not the page that shows it",
        });
    }
    None
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// The text of a file, without its byte order mark.
pub(crate) fn decode(bytes: &[u8]) -> Result<&str, String> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("it is UTF-16; save it as UTF-8".into());
    }
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A JSON document. Python writes `NaN`, `Infinity` and `-Infinity`, which JSON does not have (diffusers'
/// `lambda_min_clipped` is one): they become texts, so that whoever wants a number there says so.
pub(crate) fn json(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| match quoted(text) {
        Cow::Owned(text) => serde_json::from_str(&text).map_err(|_| error),
        Cow::Borrowed(_) => Err(error),
    })
}

/// The document with quotes around Python's numbers.
fn quoted(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while let Some(&byte) = text.as_bytes().get(at) {
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|w| text.as_bytes()[at..].starts_with(w.as_bytes()));
        match (byte, word) {
            (b'\\', _) if in_string => at += 2,
            (b'"', _) => {
                in_string = !in_string;
                at += 1;
            }
            (_, Some(word)) if !in_string => {
                out.push_str(&text[copied..at]);
                out.push_str(&format!("\"{word}\""));
                at += word.len();
                copied = at;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pointers_and_pages_are_recognised() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:31e3\nsize 10270077736\n";
        for text in [pointer.to_owned(), format!("\u{feff}{pointer}"), pointer.replace('\n', "\r\n")] {
            assert_eq!(stand_in(text.as_bytes()).unwrap().what, "a git-lfs pointer");
        }
        assert!(stand_in(b"# xet version 0\nfilesize = 1\n").unwrap().what.contains("Xet"));
        assert!(stand_in(b"\n<!DOCTYPE HTML><html>").unwrap().what.contains("web page"));
        let vocabulary = format!("{{\"version https://git-lfs\": 0{}}}", " ".repeat(2000));
        for file in [vocabulary.as_bytes(), b"", b"#version: 0.2\ni n\n", b"{\"a\": 1}"] {
            assert_eq!(stand_in(file), None);
        }
    }

    #[test]
    fn marks_are_skipped_and_other_encodings_named() {
        assert_eq!(decode("\u{feff}{}".as_bytes()), Ok("{}"));
        assert_eq!(decode("é".as_bytes()), Ok("é"));
        assert!(decode(b"\xff\xfe{\x00}\x00").unwrap_err().contains("UTF-16"));
        assert!(decode(b"\xe9").unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn numbers_of_python_are_read_as_texts() {
        let text =
            r#"{"a": -Infinity, "b": [NaN, Infinity, 1.5], "c": "NaN \" Infinity", "d\\": NaN, "é": NaN}"#;
        let expected = json!({"a": "-Infinity", "b": ["NaN", "Infinity", 1.5], "c": "NaN \" Infinity", "d\\": "NaN",
            "é": "NaN"});
        assert_eq!(json(text).unwrap(), expected);
        for bad in ["{", "{\"a\": Nan}", "", "\"\\", "{NaN}"] {
            assert!(json(bad).is_err(), "{bad}");
        }
    }
}
