//! Ids against those of transformers 5 (`worker/tests/tokens.py` makes `tokens.json`), and files that are odd.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokens.py")
}

fn tiny(folder: &str) -> Tokenizer {
    Tokenizer::load(&ModelFiles::Folder(golden("tiny-sdxl")), folder, 77, 2014).unwrap()
}

/// The rows of the table whose ids differ from those of a tokenizer, which are in a column of the rows, and how many
/// tokens found no room in another.
fn differing(tokenizer: &Tokenizer, key: &str, dropped: usize) -> Vec<String> {
    let table = std::fs::read(script().with_extension("json")).unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&table).unwrap();
    assert!(rows.len() > 60);
    let mut wrong = Vec::new();
    for row in rows {
        let prompt = row["prompt"].as_str().unwrap();
        let mut ids: Vec<u32> = serde_json::from_value(row[key].clone()).unwrap();
        ids.resize(77, *ids.last().unwrap());
        let got = tokenizer.encode(prompt).unwrap();
        if got.ids != ids || got.dropped as u64 != row["dropped"][dropped].as_u64().unwrap() {
            wrong.push(format!("{prompt:?} ({key})\n got {:?}\nwant {ids:?}", got.ids));
        }
    }
    wrong
}

/// Scripts, accents, marks, emoji, format and control characters, added tokens (the second tokenizer's `!` among
/// them), odd spaces, truncation.
#[test]
fn ids_are_those_of_the_reference() {
    let mut wrong = differing(&tiny("tokenizer"), "ids", 0);
    wrong.extend(differing(&tiny("tokenizer_2"), "ids_2", 1));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same of CLIP's own vocabulary, which is too large to be kept here: `tokens.py clip` makes its folder, which
/// `GIGASMITH_TEST_CLIP` names.
#[test]
#[allow(clippy::print_stdout)]
fn ids_are_those_of_the_reference_with_clips_vocabulary() {
    let Some(folder) = std::env::var_os("GIGASMITH_TEST_CLIP") else {
        println!("skipped: GIGASMITH_TEST_CLIP names no folder with CLIP's vocabulary");
        return;
    };
    let files = ModelFiles::Folder(folder.into());
    let load = |name: &str| Tokenizer::load(&files, name, 77, 49408).unwrap();
    let mut wrong = differing(&load("tokenizer"), "clip", 2);
    wrong.extend(differing(&load("tokenizer_2"), "clip_2", 3));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Prompts of characters of all kinds, in any order: the seed is fixed, so that what differs can be looked at.
fn random_prompts(count: usize) -> Vec<String> {
    const PIECES: [&str; 24] = [
        "a",
        "The",
        "'s",
        "'LL",
        "9",
        " ",
        "  ",
        "\t",
        "\u{a0}",
        "!",
        "<|endoftext|>",
        "<|StartOfText|>",
        "<|",
        "日",
        "، ",
        "e\u{301}",
        "\u{200d}",
        "\u{fe0f}",
        "👩",
        "\u{ad}",
        "Σ",
        "İ",
        "가",
        "\u{1b}",
    ];
    // Knuth's MMIX congruence: its high bits.
    let mut state = 7u64;
    let mut next = |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as u32) % below
    };
    let ranges =
        [0..0x80, 0..0x250, 0x300..0x370, 0x370..0x700, 0x900..0x2000, 0x2000..0x2100, 0x3000..0xa000];
    let ranges: Vec<std::ops::Range<u32>> =
        ranges.into_iter().chain([0x1f000..0x1fb00, 0..0x11_0000]).collect();
    let prompt = |_| {
        let mut prompt = String::new();
        for _ in 0..next(40) {
            if next(3) == 0 {
                prompt.push_str(PIECES[next(PIECES.len() as u32) as usize]);
                continue;
            }
            let range = &ranges[next(ranges.len() as u32) as usize];
            prompt.extend(char::from_u32(range.start + next(range.end - range.start)));
        }
        prompt
    };
    (0..count).map(prompt).collect()
}

/// Ids from transformers 5 itself, by the Python that `GIGASMITH_TEST_PYTHON` names, else `python3`.
#[test]
#[allow(clippy::print_stdout)]
fn random_prompts_have_the_ids_of_the_reference() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let named = std::env::var("GIGASMITH_TEST_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let version = "import transformers; print(transformers.__version__)";
    let version = Command::new(&python).args(["-c", version]).output();
    let is_there = version.is_ok_and(|out| out.status.success() && out.stdout.starts_with(b"5."));
    if !is_there {
        // Whoever names one means it.
        assert!(named.is_none(), "{python} has no transformers 5");
        println!("skipped: {python} has no transformers 5");
        return;
    }
    let prompts = random_prompts(500);
    for folder in ["tokenizer", "tokenizer_2"] {
        let mut command = Command::new(&python);
        command.arg(script()).arg("ids").arg(golden("tiny-sdxl").join(folder));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(json!(prompts).to_string().as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let wanted: Vec<Vec<u32>> = serde_json::from_slice(&out.stdout).unwrap();
        let tokenizer = tiny(folder);
        for (prompt, ids) in prompts.iter().zip(wanted) {
            assert_eq!(tokenizer.encode(prompt).unwrap().ids, ids, "{prompt:?} ({folder})");
        }
    }
}

/// A folder with the small tokenizer's files, of which some are changed.
struct Odd(tempfile::TempDir);

impl Odd {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("t")).unwrap();
        for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
            let from = golden("tiny-sdxl/tokenizer_2").join(name);
            std::fs::copy(from, folder.path().join("t").join(name)).unwrap();
        }
        Self(folder)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.path().join("t").join(name), content).unwrap();
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join("t").join(name);
        let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(path, json.to_string()).unwrap();
    }

    fn load(&self) -> Result<Tokenizer, LoadError> {
        Tokenizer::load(&ModelFiles::Folder(self.0.path().to_owned()), "t", 77, 2014)
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

#[test]
fn a_fast_tokenizer_file_gives_the_same_ids() {
    let slow = tiny("tokenizer_2");
    let source = golden("tiny-sdxl/tokenizer_2");
    let text = |name: &str| std::fs::read_to_string(source.join(name)).unwrap();
    let vocab: Value = serde_json::from_str(&text("vocab.json")).unwrap();
    let merges: Vec<String> = text("merges.txt").lines().skip(1).map(str::to_owned).collect();
    let pairs: Vec<Vec<&str>> = merges.iter().map(|m| m.split(' ').collect()).collect();
    for merges in [json!(merges), json!(pairs)] {
        let odd = Odd::new();
        std::fs::remove_file(odd.0.path().join("t/vocab.json")).unwrap();
        let model = json!({"type": "BPE", "vocab": vocab, "merges": merges});
        odd.write("tokenizer.json", json!({"model": model}).to_string());
        let fast = odd.load().unwrap();
        assert_eq!(fast.encode("A castle, on a hill!"), slow.encode("A castle, on a hill!"));
        assert_eq!(fast.digest, slow.digest);
    }
}

#[test]
fn the_length_is_the_models_where_the_file_says_none() {
    for (said, length) in [(json!(1e30), 77), (json!(null), 77), (json!(78), 77), (json!(12), 12)] {
        let odd = Odd::new();
        odd.change("tokenizer_config.json", |config| config["model_max_length"] = said);
        let tokenizer = odd.load().unwrap();
        assert_eq!(tokenizer.encode("a").unwrap().ids.len(), length);
    }
    for said in [json!(0), json!(-1), json!(2)] {
        let odd = Odd::new();
        odd.change("tokenizer_config.json", |config| config["model_max_length"] = said);
        assert!(odd.error().contains("no room for any"));
    }
}

#[test]
fn texts_of_two_lengths_cannot_lie_side_by_side() {
    let odd = Odd::new();
    odd.change("tokenizer_config.json", |config| config["model_max_length"] = json!(50));
    let files = ModelFiles::Folder(odd.0.path().to_owned());
    let error = Tokenizer::check_pair(&files, &[tiny("tokenizer"), odd.load().unwrap()]);
    assert!(error.unwrap_err().to_string().contains("50 tokens and those of the first tokenizer 77"));
    Tokenizer::check_pair(&files, &[tiny("tokenizer"), tiny("tokenizer_2")]).unwrap();
}

/// Ids that do not exist, or that many: refused, with the reason, before anything is built of them.
#[test]
fn odd_ids_are_refused() {
    let files = ModelFiles::Folder(golden("tiny-sdxl"));
    let error = Tokenizer::load(&files, "tokenizer", 77, 2000).unwrap_err().to_string();
    assert!(error.contains("ids up to 2013") && error.contains("knows only 2000"), "{error}");
    for id in [json!(-1), json!(1.5), json!(4_294_967_296u64), json!("1"), json!(null)] {
        let odd = Odd::new();
        odd.change("vocab.json", |vocab| vocab["a"] = id);
        let error = odd.error();
        assert!(error.contains("vocab.json"), "{error}");
    }
    let odd = Odd::new();
    odd.change("vocab.json", |vocab| vocab["a"] = json!(u32::MAX));
    assert!(odd.error().contains("ids up to 4294967295"));
    // Two tokens of one id are odd, but mean something.
    let odd = Odd::new();
    odd.change("vocab.json", |vocab| vocab["a"] = json!(7));
    assert_eq!(odd.load().unwrap().encode("?").unwrap().ids.len(), 77);
}

/// Whatever added tokens a file lists, a prompt has ids, or the file is refused.
#[test]
fn added_tokens_cannot_hang_or_break_an_encoding() {
    let token = |content: &str, strips: bool| json!({"content": content, "lstrip": strips, "rstrip": strips, "normalized": false, "special": true});
    let with = |tokens: Value| {
        let odd = Odd::new();
        odd.change("tokenizer_config.json", |config| config["added_tokens_decoder"] = tokens);
        odd
    };
    let encode = |odd: &Odd| odd.load().unwrap().encode(" a cat ! x <|endoftext|>  b").unwrap().ids;
    let plain = encode(&Odd::new());
    // An empty token is nowhere to be found, wherever it is listed.
    let listed = json!({"0": token("!", false), "5": token("", false), "2012": token("<|startoftext|>", false),
        "2013": token("<|endoftext|>", false)});
    assert_eq!(encode(&with(listed)), plain);
    let odd = Odd::new();
    odd.change("tokenizer_config.json", |config| config["mask_token"] = json!(""));
    odd.change("tokenizer_config.json", |config| {
        config["extra_special_tokens"] = json!(["", {"content": ""}, 3]);
    });
    assert_eq!(encode(&odd), plain);
    // Ids of added tokens are those of the vocabulary, whatever is said of them.
    let listed = json!({"4294967295": token("!", false), "7": token("a", false), "8": token("a", true)});
    let vocab = std::fs::read(golden("tiny-sdxl/tokenizer_2/vocab.json")).unwrap();
    let vocab: Value = serde_json::from_slice(&vocab).unwrap();
    let a = vocab["a"].as_u64().unwrap() as u32;
    assert!(encode(&with(listed)).contains(&a));
    for (tokens, wanted) in [
        (json!({"-1": token("!", false)}), "is no id"),
        (json!({"99999999999": token("!", false)}), "is no id"),
        (json!({"x\u{1b}[2J": token("!", false)}), "\\u{1b}"),
        (json!({"1": 5}), "no `content`"),
        (json!({"1": token(" ", true)}), "cannot strip any"),
        (json!({"1": token(&"x".repeat(2000), true)}), "2000 bytes"),
        (json!({"1": token("not in the vocabulary", false)}), "ids up to 2014"),
    ] {
        let error = with(tokens).error();
        assert!(error.contains(wanted) && error.contains("/t"), "{error}");
    }
    let many: serde_json::Map<_, _> =
        (0..5000).map(|i| (i.to_string(), token(&format!("token {i}"), false))).collect();
    assert!(with(json!(many)).error().contains("more than 4096 added tokens"));
    // White space around white space, which the vocabulary does not have.
    let spaces = json!({"1": token(" ", false), "2": token("a", true), "3": token("  ", false)});
    assert!(with(spaces).error().contains("ids up to 2015"));
}

#[test]
fn odd_merges_and_settings_are_refused() {
    for (merges, wanted) in [
        ("#version: 0.2\na b c\n", "two tokens"),
        ("#version: 0.2\nabc\n", "two tokens"),
        ("#version: 0.2\nin th\nnowhere known\n", "`inth` out of vocabulary"),
    ] {
        let odd = Odd::new();
        odd.write("merges.txt", merges);
        let error = odd.error();
        assert!(error.contains("/t") && error.contains(wanted), "{error}");
    }
    for (key, value) in [
        ("padding_side", json!("left")),
        ("truncation_side", json!("left")),
        ("split_special_tokens", json!(true)),
    ] {
        let odd = Odd::new();
        odd.change("tokenizer_config.json", |config| config[key] = value);
        assert!(odd.error().contains(&format!("`{key}` is")));
    }
    let odd = Odd::new();
    odd.change("tokenizer_config.json", |config| config["unk_token"] = json!("nobody"));
    assert!(odd.error().contains("unknown token \"nobody\""));
    for nested in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        let odd = Odd::new();
        odd.write("tokenizer_config.json", nested);
        assert!(odd.error().contains("recursion limit"));
    }
}

/// Megabytes take seconds, however they are made; more is refused.
#[test]
fn long_prompts_have_ids_and_longer_ones_an_error() {
    let tokenizer = tiny("tokenizer_2");
    for piece in ["a", "a ", " ", "'s", "e\u{301}", "<|endoftext|>"] {
        let prompt = piece.repeat(LONGEST_PROMPT / piece.len());
        let tokens = tokenizer.encode(&prompt).unwrap();
        assert_eq!(tokens.ids.len(), 77);
        assert!(piece == " " || tokens.dropped > 1000, "{piece:?} {}", tokens.dropped);
    }
    let error = tokenizer.encode(&"a".repeat(LONGEST_PROMPT + 1)).unwrap_err();
    assert!(error.contains("1048577 bytes; at most 1048576"), "{error}");
}
