//! What people type: seeds, devices and formats by other names, JSON, scripts for shells, signals.

use std::path::Path;

use crate::{ended, gigasmith, refused, rendered};

const QUICK: [&str; 8] = ["render", "-p", "x", "--scale", "1", "--steps", "1", "-q"];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.into_iter().chain(more.iter().copied()).collect()
}

fn json(folder: &Path, args: &[&str]) -> serde_json::Value {
    let output = gigasmith(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[test]
fn a_drawn_seed_is_said_and_gives_the_same_picture_again() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let drawn = json(folder.path(), &quick(&["--seed", "-1", "--json", "-o", "a.png"]));
    let seed = drawn["seed"].as_u64().expect("a number");
    assert_eq!((&drawn["output"], &drawn["id"]), (&"a.png".into(), &serde_json::Value::Null));
    let other = json(folder.path(), &quick(&["--seed", "random", "--json", "-o", "b.png"]));
    assert_ne!(other["seed"].as_u64(), Some(seed), "one in four thousand million");
    rendered(folder.path(), &quick(&["--seed", &seed.to_string(), "-o", "c.png"]));
    assert!(read("a.png") == read("c.png") && read("a.png") != read("b.png"));
    let said = rendered(folder.path(), &quick(&["--seed=-1"]));
    assert!(said.starts_with("seed ") && said.contains(" was drawn"), "{said}");
    refused(folder.path(), &quick(&["--seed", "-2"]), 2, &["`-2` is no seed", "random"]);
}

#[test]
fn formats_and_devices_have_the_names_that_people_know() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    for (name, of) in [("fp16", "f16"), ("Half", "f16"), ("bfloat16", "bf16"), ("float32", "f32")] {
        rendered(folder.path(), &quick(&["--dtype", name, "-o", "a.png"]));
        rendered(folder.path(), &quick(&["--dtype", of, "-o", "b.png"]));
        assert!(read("a.png") == read("b.png"), "{name}");
    }
    refused(folder.path(), &quick(&["--dtype", "f64"]), 2, &["f64", "bf16"]);
    refused(folder.path(), &quick(&["--device", "nvidia"]), 3, &["cuda:0", "built without it"]);
    refused(folder.path(), &quick(&["--device", "mps"]), 3, &["metal"]);
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for (args, code) in [
        (&["status", "--json", "--coordinator", "http://127.0.0.1:9"][..], 7),
        (&["renders", "--json", "--store", "nowhere"], 4),
        (&["estimate", "--json", "--width", "1001", "--height", "64"], 2),
        (&["estimate", "--json", "--no-such-flag"], 2),
        (&["render", "--json"], 2),
    ] {
        let output = gigasmith(folder.path(), args);
        let (ended, said) = ended(output);
        let error: serde_json::Value =
            serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"));
        assert_eq!((ended, error["exit_code"].as_i64()), (Some(code), Some(code.into())), "{said}");
        assert!(error["error"].as_str().is_some_and(|e| !e.is_empty()), "{said}");
    }
}

#[test]
fn shells_get_what_they_complete_with() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = gigasmith(folder.path(), &["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("guidance-scale"), "{shell}");
    }
}

#[test]
fn a_budget_that_is_exceeded_names_what_would_help() {
    let folder = tempfile::tempdir().unwrap();
    let over = |limit: &str| quick(&["--budget", limit]).iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    for (limit, remedy) in
        [("calls=0", "fewer steps"), ("memory=1MB", "a smaller size"), ("disk=1kB", "--quality")]
    {
        let args = over(limit);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(folder.path(), &args, 2, &[limit.split('=').next().unwrap(), remedy, "--budget"]);
    }
    let (_, said) = ended(gigasmith(folder.path(), &quick(&["--budget", "memory=1MB"])));
    assert!(!said.contains("workers"), "more of them lower no memory: {said}");
}

/// A closed terminal is a signal like others, unless the program is to ignore it.
#[cfg(unix)]
#[test]
fn a_hangup_leaves_a_last_checkpoint_and_nohup_keeps_it_away() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let begin = |folder: &Path, shell: &str, steps: &str| {
        let render = format!(
            "{shell} exec {} render -p hills --scale 1 --steps {steps} --name n --checkpoint-every 1h -o n.png",
            env!("CARGO_BIN_EXE_gigasmith")
        );
        let mut child = Command::new("sh")
            .current_dir(folder)
            .args(["-c", &render])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("stage 1/") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended early");
        }
        let hang_up = ["-HUP".to_owned(), child.id().to_string()];
        assert!(Command::new("kill").args(hang_up).status().unwrap().success());
        (child, said)
    };
    let folder = tempfile::tempdir().unwrap();
    let (mut child, mut said) = begin(folder.path(), "", "900");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("`gigasmith resume n -o n.png") && rest.contains("goes on from here"), "{rest}");

    let folder = tempfile::tempdir().unwrap();
    let (mut child, mut said) = begin(folder.path(), "trap '' HUP;", "8");
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
    assert!(folder.path().join("n.png").exists());
}
