//! The hub's own client and this one share a cache. Needs Python with `huggingface_hub`: `GIGASMITH_TEST_PYTHON` names
//! the interpreter, else `python3` is tried and the tests skipped where it has not got it.

use std::path::Path;
use std::process::Command;

use crate::stand_in::{COMMIT, Hub};
use crate::{check, listing, offline, open, options, root, snapshot};

/// What the model needs, as the other client is told.
const PATTERNS: &str = "['model_index.json', 'scheduler/*', 'text_encoder*/config.json', 'unet/config.json', \
                        'vae/config.json', 'tokenizer*/*', 'text_encoder*/*.safetensors', 'unet/*.safetensors', \
                        'vae/*.safetensors']";

fn python(cache: &Path, hub: &str, script: &str) -> Option<String> {
    let program = std::env::var("GIGASMITH_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(program);
    for variable in ["HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(variable);
    }
    command.env("HF_HUB_CACHE", cache).env("HF_ENDPOINT", hub).env("HF_HUB_DISABLE_XET", "1");
    command.env("HF_HUB_DISABLE_PROGRESS_BARS", "1").env("HF_HUB_DISABLE_TELEMETRY", "1");
    let script = format!(
        "import sys\ntry:\n import huggingface_hub as h\nexcept ImportError:\n sys.exit(42)\n{script}"
    );
    let output = match command.args(["-c", &script]).output() {
        Ok(output) => output,
        Err(error) if std::env::var_os("GIGASMITH_TEST_PYTHON").is_some() => panic!("{error}"),
        Err(_) => return None,
    };
    match output.status.code() {
        // Whoever names one means it.
        Some(42) if std::env::var_os("GIGASMITH_TEST_PYTHON").is_some() => panic!("no huggingface_hub there"),
        Some(42) => None,
        Some(0) => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn skip() {
    eprintln!("skipped: no Python with huggingface_hub (GIGASMITH_TEST_PYTHON)");
}

/// Blobs and links below a cache, by their paths in it.
fn layout(cache: &Path) -> Vec<String> {
    let all = listing(&root(cache)).into_keys().filter(|p| p.is_symlink() || p.is_file());
    let named = all.map(|p| {
        let to = std::fs::read_link(&p).map_or(String::new(), |t| format!(" -> {}", t.display()));
        format!("{}{to}", p.strip_prefix(root(cache)).unwrap().display())
    });
    named.filter(|p| !p.starts_with(".gigasmith") && !p.starts_with("trees")).collect()
}

#[test]
fn both_make_the_same_cache() {
    let hub = Hub::start();
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = format!("print(h.snapshot_download('farm/tiny', allow_patterns={PATTERNS}))");
    let Some(_) = python(theirs.path(), &hub.address, &script) else { return skip() };
    open("farm/tiny", options(ours.path(), &hub.address)).unwrap();
    assert_eq!(layout(ours.path()), layout(theirs.path()));
}

#[test]
fn what_the_other_made_is_complete_here() {
    let hub = Hub::start();
    for has_list in [true, false] {
        let cache = tempfile::tempdir().unwrap();
        let script = format!("h.snapshot_download('farm/tiny', allow_patterns={PATTERNS})");
        let Some(_) = python(cache.path(), &hub.address, &script) else { return skip() };
        if !has_list {
            // As older releases leave it.
            let _ = std::fs::remove_dir_all(root(cache.path()).join("trees"));
        }
        let here = options(cache.path(), &hub.address);
        hub.asked();
        open("farm/tiny", offline(&here)).unwrap();
        open(&format!("farm/tiny@{COMMIT}"), offline(&here)).unwrap();
        assert!(hub.asked().is_empty());
        // One file at a time, as libraries fetch them.
        open("farm/tiny", here).unwrap();
        assert_eq!(hub.asked().len(), 1);
        check(cache.path(), hub.files());
    }
}

#[test]
fn what_was_made_here_is_complete_for_the_other() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
    hub.asked();
    let script =
        format!("print(h.snapshot_download('farm/tiny', allow_patterns={PATTERNS}, local_files_only=True))");
    let Some(folder) = python(cache.path(), &hub.address, &script) else { return skip() };
    let same = |a: &Path, b: &Path| a.canonicalize().unwrap() == b.canonicalize().unwrap();
    assert!(same(Path::new(&folder), &snapshot(cache.path())), "{folder}");
    let script = "print(h.hf_hub_download('farm/tiny', 'unet/config.json', local_files_only=True))";
    python(cache.path(), &hub.address, script).unwrap();
    let script = "c = h.scan_cache_dir(); assert not c.warnings, c.warnings; print(len(c.repos))";
    assert_eq!(python(cache.path(), &hub.address, script).unwrap(), "1");
    assert!(hub.asked().is_empty());
    // With a connection it fetches nothing that is here.
    let script = format!("h.snapshot_download('farm/tiny', allow_patterns={PATTERNS})");
    python(cache.path(), &hub.address, &script).unwrap();
    assert!(!hub.asked().iter().any(|a| a.method == "GET" && a.is_cdn));
}

#[test]
fn each_waits_for_the_others_lock() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    hub.habits().pause = std::time::Duration::from_millis(200);
    let script = format!("h.snapshot_download('farm/tiny', allow_patterns={PATTERNS})");
    let (done, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| python(cache.path(), &hub.address, &script));
        // It needs a moment to begin.
        let unet = "unet/diffusion_pytorch_model.safetensors";
        while !theirs.is_finished() && !hub.asked().iter().any(|a| a.is_cdn && a.path.contains(unet)) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let ours = open("farm/tiny", options(cache.path(), &hub.address)).map(drop);
        (ours, theirs.join().unwrap())
    });
    done.unwrap();
    if theirs.is_none() {
        return skip();
    }
    let unet = hub.asked().iter().filter(|a| a.is_cdn && a.path.contains("unet/")).count();
    assert_eq!(unet, 0, "what the other was fetching is not fetched again");
    check(cache.path(), hub.files());
}
