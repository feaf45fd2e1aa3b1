//! Settings from files and variables, as the program reads them.

use std::path::Path;

use crate::{command, ended, gigasmith, refused, rendered};

/// A folder with a `gigasmith.toml`.
fn with(toml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("gigasmith.toml"), toml).unwrap();
    folder
}

#[test]
fn a_broken_file_breaks_no_help_and_is_pointed_at() {
    let folder = with("prompt = \"x\"\nsteps = \n");
    for words in [
        &["--help"][..],
        &["--version"],
        &["renders", "--help"],
        &["help", "render"],
        &["completions", "bash"],
    ] {
        let output = gigasmith(folder.path(), words);
        assert!(output.status.success() && !output.stdout.is_empty(), "{words:?}");
    }
    let (code, said) = ended(gigasmith(folder.path(), &["render"]));
    let lines: Vec<&str> = said.lines().collect();
    let line = lines.iter().position(|l| l.contains("steps =")).expect("the line is shown");
    assert!(code == Some(2) && lines[line + 1].contains('^'), "{said}");
}

#[test]
fn a_list_means_all_its_values_or_is_refused() {
    let folder = with("[render]\nprompt = \"x\"\nscale = 1\nsteps = 1\nseed = [1, 2]\n");
    rendered(folder.path(), &["render", "-q"]);
    assert!(folder.path().join("out-1.png").exists() && folder.path().join("out-2.png").exists());
    for setting in
        ["steps = [1, 2]", "scale = [2, 4]", "prompt = ['a', 'b']", "output = ['a.png']", "paper = [true]"]
    {
        let folder = with(&format!("[render]\n{setting}\n"));
        let name = setting.split(' ').next().unwrap();
        refused(folder.path(), &["render", "-p", "x"], 2, &[&format!("`{name}` takes one value")]);
    }
}

#[test]
fn a_variable_that_sets_nothing_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["render", "-p", "x", "--scale", "1", "-q"];
    let output =
        command(folder.path(), &args).env("GIGASMITH_STEPZ", "2").env("GIGASMITH_STEPS", "1").output();
    let (code, said) = ended(output.unwrap());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.trim(), "warning: GIGASMITH_STEPZ sets nothing: is GIGASMITH_STEPS meant?");
    let output =
        command(folder.path(), &args[..]).env("GIGASMITH_STEPS", "1").env("GIGASMITH_ISA", "").output();
    assert_eq!(ended(output.unwrap()).1, "");
}

/// Nobody listens at that port.
const FARM: &str = "coordinator = 'http://127.0.0.1:9'\n";

fn status(folder: &Path, more: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let args = [&["status"], more].concat();
    ended(command(folder, &args).envs(variables.iter().copied()).output().unwrap())
}

#[test]
fn a_found_file_names_no_secrets_of_ours() {
    let secret = tempfile::tempdir().unwrap();
    let secret = secret.path().join("token");
    std::fs::create_dir_all(secret.parent().unwrap()).unwrap();
    std::fs::write(&secret, "0123456789abcdef\n").unwrap();
    let toml = format!("{FARM}token-file = '{}'\n", secret.display());
    let folder = with(&toml);
    let (code, said) = status(folder.path(), &[], &[]);
    assert!(code == Some(2) && said.contains("--config") && said.contains("token-file"), "{said}");
    // It is the user's word then.
    for (args, variables) in
        [(&["--config", "gigasmith.toml"][..], &[][..]), (&[], &[("GIGASMITH_CONFIG", "gigasmith.toml")])]
    {
        let (code, said) = status(folder.path(), args, variables);
        assert!(code == Some(7) && said.contains("cannot reach"), "{said}");
    }
    // What talks to nobody is not concerned.
    let (code, said) =
        ended(gigasmith(folder.path(), &["render", "-p", "x", "--scale", "1", "--steps", "1"]));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_token_beside_a_found_file_is_used_and_one_from_elsewhere_is_not_shown_to_its_coordinator() {
    let folder = with(&format!("{FARM}token-file = 'token'\n"));
    std::fs::write(folder.path().join("token"), "0123456789abcdef\n").unwrap();
    let (code, said) = status(folder.path(), &[], &[]);
    assert!(code == Some(7) && said.contains("cannot reach the coordinator at http://127.0.0.1:9"), "{said}");
    let folder = with(FARM);
    let (code, said) = status(folder.path(), &[], &[("GIGASMITH_TOKEN_FILE", "/some/token")]);
    assert!(code == Some(2) && said.contains("is not shown to the coordinator http://127.0.0.1:9"), "{said}");
    let typed = ["--coordinator", "http://127.0.0.1:9"];
    let (code, said) = status(folder.path(), &typed, &[("GIGASMITH_TOKEN_FILE", "/no/such/token")]);
    assert!(code == Some(4) && said.contains("/no/such/token"), "{said}");
}
