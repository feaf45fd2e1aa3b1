//! The same pictures as diffusers, of models as people have them: saved by other releases, with other schedulers,
//! and with other networks than SDXL's own.
//!
//! Needs Python with torch, diffusers, transformers and safetensors: `GIGASMITH_TEST_PYTHON` names the interpreter,
//! else `python3` is tried and the test skipped where it has not got them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// A model and how diffusers rendered it.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    settings: Vec<String>,
    /// The case of which the picture must be the same to the byte.
    same_as: Option<String>,
}

/// Rounding to 8 bits.
const TOLERANCE: u8 = 1;

/// An interpreter with what the reference needs.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("GIGASMITH_TEST_PYTHON").map(PathBuf::from);
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let imports = "import torch, diffusers, transformers, safetensors";
    let there = Command::new(&python).args(["-c", imports]).output().is_ok_and(|o| o.status.success());
    // Whoever names one means it.
    assert!(
        there || named.is_none(),
        "{} has no torch, diffusers, transformers and safetensors",
        python.display()
    );
    there.then_some(python)
}

/// The models and diffusers' pictures of them.
fn reference(python: &Path, folder: &Path) -> Vec<Case> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python)
        .arg(here.join("tests/diffusers/reference.py"))
        .arg(here.join("../tests/golden/tiny-sdxl"))
        .arg(folder)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("the interpreter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases = std::fs::read(folder.join("cases.json")).expect("it lists its cases");
    serde_json::from_slice(&cases).expect("the list is of cases")
}

/// Our picture of a case, row by row.
fn picture(folder: &Path, case: &Case) -> Vec<u8> {
    let output = format!("{}.png", case.name);
    let output = Command::new(env!("CARGO_BIN_EXE_gigasmith"))
        .current_dir(folder)
        .args(["render", "--model", &format!("./{}", case.name), "--scale", "1", "--rng", "torch"])
        .args(["--vae", "whole", "--device", "cpu", "--dtype", "f32", "-q", "-o", &output])
        .args(&case.settings)
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
    image::open(folder.join(format!("{}.png", case.name))).expect("a picture").into_rgb8().into_raw()
}

#[test]
#[allow(clippy::print_stdout)]
fn pictures_are_those_of_diffusers() {
    let Some(python) = python() else {
        // What a test prints is shown where it is asked for.
        println!("skipped: python3 has no torch, diffusers, transformers and safetensors");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let cases = reference(&python, folder.path());
    assert!(cases.len() > 10);
    for case in &cases {
        let ours = picture(folder.path(), case);
        let theirs = std::fs::read(folder.path().join(format!("{}.rgb", case.name))).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{}", case.name);
        let worst = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(TOLERANCE), "{}: {worst:?} levels off", case.name);
        // A picture of one colour would be equal whatever the network does.
        let range = ours.iter().max().zip(ours.iter().min()).map(|(a, b)| a - b);
        assert!(range > Some(60), "{}: a picture with {range:?} levels", case.name);
        if let Some(other) = &case.same_as {
            let other = std::fs::read(folder.path().join(format!("{other}.png"))).unwrap();
            let file = std::fs::read(folder.path().join(format!("{}.png", case.name))).unwrap();
            let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_rgb8();
            assert!(pixels(&other) == pixels(&file), "{}: another picture", case.name);
        }
    }
}
