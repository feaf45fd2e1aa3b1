//! What is written, under which names, and what is left alone.

use crate::{gigasmith, refused, rendered};

const QUICK: [&str; 8] = ["render", "-p", "x", "--scale", "1", "--steps", "1", "-q"];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn names_that_mean_no_file_are_refused_by_every_command_alike() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for command in [
        &["render", "-p", "x", "-o", "-"][..],
        &["submit", "-p", "x", "-o", "-"],
        &["fetch", "r1", "-o", "-"],
        &["fetch", "r1", "--part", "plan", "-o", "-"],
        &["estimate", "-o", "-"],
        &["render", "-p", "x", "--save-latents", "-"],
        &["submit", "-p", "x", "--save-plan", "-"],
    ] {
        refused(at, command, 2, &["`-` names no file"]);
    }
    refused(at, &quick(&["--save-latents", "l.txt"]), 2, &["l.txt", "name it l.safetensors"]);
    refused(at, &quick(&["--save-plan", "p.txt"]), 2, &["p.txt", "name it p.json"]);
    refused(at, &["fetch", "r1", "--part", "latents", "-o", "l.png"], 2, &["name it l.safetensors"]);
    refused(at, &quick(&["-o", "x.jpg"]), 2, &["name it x.png", "--quality"]);
    refused(at, &quick(&["-o", "~/x.png"]), 5, &["there is no folder ~", "write it out"]);
    refused(at, &quick(&["-o", "nodir/x.png"]), 5, &["cannot write nodir/x.png: there is no folder nodir"]);
    #[cfg(unix)]
    refused(at, &quick(&["-o", "/dev/null"]), 5, &["/dev/null", "no regular file"]);
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0, "nothing is left behind");
}

/// A plan file counts as what will be drawn, wherever patches are counted.
#[test]
fn a_plan_file_is_what_is_estimated_and_budgeted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let settings = ["-p", "x", "--model", "synthetic:side=16", "--steps", "8", "--stages", "2,4"];
    let run = |args: &[&str]| {
        let output = gigasmith(at, &[args, &settings[..]].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let save = ["render", "-q", "--plan", "paper", "--save-plan", "p.json", "-o", "a.png"];
    assert_eq!(run(&save).0, Some(0));
    let plan: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.join("p.json")).unwrap()).expect("it is JSON");
    let stages = plan["stages"].as_array().unwrap();
    let patches = 8 + stages.iter().map(|s| s["patches"].as_array().unwrap().len()).sum::<usize>();
    let other_seed = ["--plan-file", "p.json", "--seed", "9"];
    let (code, json) = run(&[&["estimate", "--json"][..], &other_seed].concat());
    let estimate: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!((code, estimate["patches"].as_u64()), (Some(0), Some(patches as u64)));
    let budget = |calls: usize| {
        let budget = format!("calls={calls}");
        run(&[&["render", "-q", "-o", "b.png", "--budget", &budget][..], &other_seed].concat()).0
    };
    assert_eq!((budget(patches), budget(patches - 1)), (Some(0), Some(2)));
}

#[test]
fn what_is_there_is_left_alone_where_that_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out-2.png");
    std::fs::write(&file, "old").unwrap();
    let several = quick(&["--seed", "1,2", "--no-clobber"]);
    refused(folder.path(), &several, 5, &["out-2.png", "--no-clobber"]);
    assert!(!folder.path().join("out-1.png").exists(), "before the first picture, not between two");
    assert_eq!(std::fs::read(&file).unwrap(), b"old");
    let mut permissions = file.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&file, permissions).unwrap();
    refused(folder.path(), &quick(&["-o", "out-2.png"]), 5, &["out-2.png", "read-only"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("disk")).unwrap();
    for ending in ["png", "tif", "dzi"] {
        let (link, target) = (format!("link.{ending}"), format!("disk/real.{ending}"));
        std::os::unix::fs::symlink(&target, at(&link)).unwrap();
        // Once to nothing, once to what is there.
        for _ in 0..2 {
            rendered(folder.path(), &quick(&["-o", &link]));
            assert!(at(&link).is_symlink() && at(&target).is_file(), "{link}");
        }
    }
    assert!(at("disk/real_files").is_dir() && !at("link_files").exists());
}

#[test]
fn the_longest_names_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a".repeat(251) + ".png";
    rendered(folder.path(), &quick(&["-o", &name]));
    assert!(folder.path().join(name).exists());
    let name = "a".repeat(251) + ".dzi";
    refused(folder.path(), &quick(&["-o", &name]), 5, &["too long"]);
}

#[test]
fn a_picture_that_is_done_is_fetched_in_its_own_format_only() {
    let folder = tempfile::tempdir().unwrap();
    rendered(folder.path(), &quick(&["--name", "n", "-o", "n.png"]));
    refused(folder.path(), &["resume", "n", "-o", "n.tif"], 2, &["kept as .png", "name the output n.png"]);
    assert!(gigasmith(folder.path(), &["resume", "n", "-q", "-o", "m.png"]).status.success());
}
