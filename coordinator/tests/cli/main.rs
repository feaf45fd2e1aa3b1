//! The program as a user meets it: the built binary, its files, its messages and exit codes.

mod bucket;
mod files;
mod settings;
mod stores;
mod typed;

use std::path::Path;
use std::process::{Command, Output};

/// The program in a folder, without variables of the one who runs the tests.
fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gigasmith"));
    let ours = |name: &str| ["GIGASMITH_", "AWS_", "GOOGLE_", "AZURE_"].iter().any(|p| name.starts_with(p));
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name) && name != "GIGASMITH_ISA") {
        command.env_remove(name);
    }
    command.current_dir(folder).args(args);
    command
}

fn gigasmith(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("the binary starts")
}

/// Exit code, and what was said on standard error.
fn ended(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn rendered(folder: &Path, args: &[&str]) -> String {
    let output = gigasmith(folder, args);
    let said = String::from_utf8(output.stderr).expect("messages are text");
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

fn refused(folder: &Path, args: &[&str], code: i32, words: &[&str]) {
    let (ended, said) = ended(gigasmith(folder, args));
    assert_eq!(ended, Some(code), "{args:?}: {said}");
    words.iter().for_each(|w| assert!(said.contains(w), "{args:?}: `{w}` is missing in: {said}"));
}

/// As cheap as a whole cascade gets.
const QUICK: [&str; 5] = ["render", "--prompt", "mountains at sunset", "--steps", "2"];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn the_same_command_gives_the_same_file_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    for (name, threads) in [("a.png", "1"), ("b.png", "2"), ("c.png", "3")] {
        let status = Command::new(env!("CARGO_BIN_EXE_gigasmith"))
            .current_dir(folder.path())
            .env("RAYON_NUM_THREADS", threads)
            .args(quick(&["--scale", "2", "-q", "-o", name]))
            .status();
        assert!(status.unwrap().success());
    }
    assert!(read("a.png") == read("b.png") && read("b.png") == read("c.png"));
    rendered(folder.path(), &quick(&["--scale", "2", "--seed", "9", "-o", "d.png"]));
    assert_ne!(read("a.png"), read("d.png"));
}

#[test]
fn a_picture_can_be_rendered_again_from_itself_and_varied() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let settings = [
        "--width",
        "256",
        "--height",
        "192",
        "--slider",
        "1",
        "--pag-scale",
        "2",
        "--pag-blocks",
        "m0",
        "--seed",
        "3",
    ];
    rendered(
        folder.path(),
        &quick(&[&settings[..], &["-n", "fog", "-o", "a.png", "--plan", "paper"]].concat()),
    );
    rendered(folder.path(), &["render", "--from", "a.png", "-o", "b.png"]);
    assert!(read("a.png") == read("b.png"));
    rendered(folder.path(), &["render", "--from", "a.png", "-o", "c.png", "--seed", "4..5"]);
    assert_ne!(read("c-4.png"), read("c-5.png"));
    refused(folder.path(), &["render", "--from", "missing.png"], 4, &["missing.png"]);
}

#[test]
fn plans_latents_and_existing_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    rendered(folder.path(), &quick(&["--scale", "1", "-o", "base.png"]));
    let files = ["--save-plan", "plan.json", "--save-latents", "l.safetensors", "-o", "a.png"];
    rendered(
        folder.path(),
        &quick(&[&["--image", "base.png", "--scale", "2", "--plan", "paper"], &files[..]].concat()),
    );
    let plan: serde_json::Value = serde_json::from_slice(&read("plan.json")).unwrap();
    assert_eq!((&plan["version"], &plan["stages"][0]["canvas"]), (&1.into(), &serde_json::json!([32, 32])));
    let latents = read("l.safetensors");
    let latents = safetensors::SafeTensors::deserialize(&latents).unwrap();
    assert_eq!(latents.tensor("latents").unwrap().shape(), [1, 4, 32, 32]);
    // A plan replayed gives the same pixels; with another seed it is still the same plan.
    rendered(
        folder.path(),
        &quick(&["--image", "base.png", "--scale", "2", "--plan-file", "plan.json", "-o", "b.png"]),
    );
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().into_rgb8().into_raw();
    assert_ne!(pixels("a.png"), pixels("base.png"));
    assert!(pixels("a.png") == pixels("b.png"));
    refused(folder.path(), &quick(&["--plan-file", "plan.json"]), 2, &["plan", "save"]);
}

/// The words of a prompt cost nothing.
#[test]
fn an_estimate_needs_no_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let estimate = |more: &[&str]| {
        let output = gigasmith(folder.path(), &[&["estimate", "--scale", "4"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let without = estimate(&[]);
    assert!(without.contains("network calls"), "{without}");
    assert_eq!(without, estimate(&["--prompt", "a harbour at dawn"]));
}

#[test]
fn bad_input_is_named_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("noise.png"), b"this is no picture").unwrap();
    std::fs::create_dir(at.join("empty-model")).unwrap();
    refused(at, &["render"], 2, &["--prompt"]);
    refused(at, &quick(&["--width", "1000", "--height", "1001"]), 2, &["1001", "1000 and 1008"]);
    refused(at, &quick(&["--width", "0", "--height", "64"]), 2, &["width 0"]);
    refused(at, &quick(&["--width", "4000000000", "--height", "4000000000"]), 2, &["too large"]);
    refused(at, &quick(&["--scale", "0.5"]), 2, &["0.5", "at least 1"]);
    refused(at, &quick(&["--scale", "nan"]), 2, &["scale"]);
    refused(at, &quick(&["--stages", "4,2"]), 2, &["rise"]);
    refused(at, &quick(&["--slider", "3"]), 2, &["slider 3", "0 to 2"]);
    refused(at, &quick(&["--slider", "1,1,1"]), 2, &["3 sliders for 2"]);
    refused(at, &["render", "-p", "x", "--steps", "0"], 2, &["steps is 0"]);
    refused(at, &["render", "-p", "x", "--steps", "1000"], 2, &["steps is 1000", "999"]);
    refused(at, &quick(&["--guidance-scale", "-1"]), 2, &["guidance scale -1"]);
    refused(at, &quick(&["--pag-scale", "2", "--pag-blocks", "d99"]), 2, &["d99", "mid"]);
    refused(at, &quick(&["--model", "no-such-model"]), 3, &["no-such-model", "pocket"]);
    refused(at, &quick(&["--model", "empty-model"]), 3, &["model_index.json"]);
    refused(at, &quick(&["--device", "abacus"]), 2, &["abacus", "cuda"]);
    refused(at, &quick(&["--image", "noise.png"]), 4, &["noise.png"]);
    refused(at, &quick(&["--image", "missing.png"]), 4, &["missing.png"]);
    refused(at, &quick(&["--from", "noise.png"]), 4, &["noise.png"]);
    refused(at, &quick(&["-o", "no/such/folder/a.png"]), 5, &["no/such/folder"]);
    refused(at, &quick(&["-o", "a.jpg"]), 2, &["a.jpg", ".png"]);
    refused(at, &quick(&["--seed", "1..x"]), 2, &["seed"]);
    refused(at, &quick(&["--save-latents", "out.png"]), 2, &["two outputs", "out.png"]);
    refused(at, &quick(&["--vae", "whole", "--scale", "32"]), 2, &["4096x4096", "--vae tiled"]);
    refused(at, &quick(&["--pag-scale", "0", "--pag-blocks", "mid"]), 2, &["above 0"]);
    refused(at, &["verify", "--model", "pocket", "--trace", "nowhere"], 4, &["case.json"]);
    let left: Vec<_> = std::fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing is left behind: {left:?}");
}

#[test]
fn a_prompt_of_ten_thousand_words_is_cut_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = "mountain ".repeat(10_000);
    let said = rendered(folder.path(), &["render", "-p", &prompt, "--steps", "1", "--scale", "1"]);
    assert!(said.contains("longer than 77 tokens"), "{said}");
    assert!(folder.path().join("out.png").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_cleanly_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gigasmith"))
        .current_dir(folder.path())
        .args(["render", "-p", "hills", "--steps", "900", "-o", "never.png"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The first line of progress says that sampling has begun.
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("stage 1/3"), "{line}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    std::io::Read::read_to_string(&mut said, &mut line).unwrap();
    assert!(line.contains("interrupted"), "{line}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
