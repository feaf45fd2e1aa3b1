//! The built program, killed, stopped and raced: whatever happens on the way, picture and latents are those
//! of an undisturbed run, to the byte.
#![cfg(unix)]

#[path = "../farm/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../../../tests/tests/common/s3.rs"]
#[allow(dead_code)]
mod s3;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use process::{Coordinator, Draws, Running, program, reference};

/// Times that a coordinator is killed; `GIGASMITH_KILLS=100` for more.
fn kills() -> u32 {
    std::env::var("GIGASMITH_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

/// A cascade of three stages with some hundred patches, and a VAE in tiles; some seconds.
fn settings<'a>(plan: &'a str, model: &'a str) -> Vec<&'a str> {
    vec![
        "-p", "a fox", "--model", model, "--steps", "6", "--slider", "4,3", "--stages", "2,4", "--vae",
        "tiled", "--plan", plan,
    ]
}

const QUICK: &str = "synthetic:side=16";
const SLOW: &str = "synthetic:side=16,latency=8";

fn kept<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["-q", "--checkpoint-every", "50ms", "-o", "a.png", "--save-latents", "a.safetensors"], more].concat()
}

fn spawn(folder: &Path, args: &[&str]) -> Running {
    let child = program()
        .current_dir(folder)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    Running(child)
}

fn run(folder: &Path, args: &[&str]) -> Output {
    program().current_dir(folder).args(args).output().expect("it starts")
}

/// What a command says on its way to an exit code.
fn said(folder: &Path, args: &[&str], code: i32) -> String {
    let output = run(folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

fn listed(folder: &Path, id: &str) -> serde_json::Value {
    let output = run(folder, &["renders", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let found = all.as_array().expect("a list").iter().find(|r| r["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} in {all:#}")).clone()
}

/// Waits until a listing shows what is wanted.
fn until(folder: &Path, id: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
    let started = Instant::now();
    while !folder.join(format!("gigasmith-renders/renders/{id}/render.json")).exists()
        || !wanted(&listed(folder, id))
    {
        assert!(started.elapsed() < process::PATIENCE, "it never comes");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn results(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("it was written");
    (read("a.png"), read("a.safetensors"))
}

#[test]
fn a_render_that_is_killed_at_any_instant_gives_the_same_bytes() {
    let mut draws = Draws(11);
    for plan in ["balanced", "paper"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let expected = reference(folder, &settings(plan, QUICK));
        let (mut killed, mut render) = (0, 0);
        while killed < kills() {
            // A render that has ended makes room for another.
            render += 1;
            let id = format!("r{render}");
            let begin = [&["render", "--name", &id][..], &settings(plan, SLOW), &kept(&[])].concat();
            let resume = [&["resume", &id, "--model", SLOW][..], &kept(&[])].concat();
            loop {
                let known = folder.join(format!("gigasmith-renders/renders/{id}/spec.json")).exists();
                // `render` goes on as well as `resume` does.
                let args = if known && draws.below(2) == 0 { &resume } else { &begin };
                let mut child = spawn(folder, args);
                std::thread::sleep(Duration::from_millis(draws.below(900)));
                match child.0.try_wait().expect("it can be waited for") {
                    Some(status) => {
                        assert!(status.success(), "{plan} {id} after {killed} kills: {status}");
                        break;
                    }
                    // Dropping it is SIGKILL.
                    None => killed += 1,
                }
                if killed > kills() + 30 {
                    break;
                }
            }
            assert!(results(folder) == expected, "{plan} {id} after {killed} kills");
            assert_eq!(listed(folder, &id)["state"], "done");
        }
    }
}

#[test]
fn a_signal_leaves_a_last_checkpoint_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let expected = reference(folder, &settings("balanced", QUICK));
    // Only a last checkpoint can be one inside a stage.
    let slow = settings("balanced", SLOW);
    let files = ["-q", "--checkpoint-every", "1h", "-o", "a.png", "--save-latents", "a.safetensors"];
    let mut child = spawn(folder, &[&["render", "--name", "one"][..], &slow, &files].concat());
    until(folder, "one", |r| r["stage"] == 2);
    std::thread::sleep(Duration::from_millis(400));
    child.signal("TERM");
    assert_eq!(child.end(), Some(130));
    let mut words = String::new();
    std::io::Read::read_to_string(child.0.stderr.as_mut().unwrap(), &mut words).unwrap();
    let command = words.split('`').nth(1).unwrap_or_else(|| panic!("no command in {words}"));
    assert_eq!(
        command, "gigasmith resume one -o a.png --save-latents a.safetensors --checkpoint-every 1h",
        "{words}"
    );
    let left = listed(folder, "one");
    assert_eq!(
        (&left["state"], &left["resumable"], &left["stage"]),
        (&"begun".into(), &true.into(), &2.into())
    );
    assert!(left["patches_done"].as_u64() > Some(0), "{left:#}");
    let args: Vec<&str> = command.split(' ').skip(1).collect();
    let words = said(folder, &args, 0);
    assert!(words.contains("of them done"), "it goes on inside the stage: {words}");
    assert!(results(folder) == expected);
    // Once more: what is done is taken from the store.
    std::fs::remove_file(folder.join("a.png")).unwrap();
    assert!(said(folder, &args, 0).contains("done already"));
    assert!(results(folder) == expected);
    assert!(said(folder, &["resume", "two"], 4).contains("gigasmith renders"));
}

#[test]
fn what_was_begun_without_its_settings_is_held_to_what_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let expected = reference(folder, &settings("balanced", QUICK));
    let begin = [&["render", "--name", "x"][..], &settings("balanced", SLOW), &kept(&[])].concat();
    let mut child = spawn(folder, &begin);
    until(folder, "x", |r| r["stage"].as_u64() >= Some(1));
    child.signal("INT");
    assert_eq!(child.end(), Some(130));
    // As a crash between the two would leave it.
    std::fs::remove_file(folder.join("gigasmith-renders/renders/x/spec.json")).unwrap();
    let other =
        [&["render", "--name", "x", "--seed", "3"][..], &settings("balanced", SLOW), &kept(&[])].concat();
    assert!(said(folder, &other, 2).contains("seed is 3, was 0"));
    said(folder, &begin, 0);
    assert!(results(folder) == expected);
}

#[test]
fn of_two_coordinators_the_newer_wins_and_the_older_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let expected = reference(folder, &settings("paper", QUICK));
    let begin = [&["render", "--name", "both"][..], &settings("paper", SLOW), &kept(&[])].concat();
    let mut older = spawn(folder, &begin);
    until(folder, "both", |r| r["stage"].as_u64() >= Some(1));
    let newer = run(folder, &[&["resume", "both", "--model", SLOW][..], &kept(&[])].concat());
    assert!(newer.status.success(), "{}", String::from_utf8_lossy(&newer.stderr));
    assert_eq!(older.end(), Some(8));
    let mut words = String::new();
    std::io::Read::read_to_string(older.0.stderr.as_mut().unwrap(), &mut words).unwrap();
    assert!(words.contains("another coordinator has taken over render both (epoch 2, process "), "{words}");
    assert!(results(folder) == expected);
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_damaged_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let expected = reference(folder, &settings("balanced", QUICK));
    let slow = settings("balanced", SLOW);
    let mut child = spawn(folder, &[&["render", "--name", "x"][..], &slow, &kept(&[])].concat());
    until(folder, "x", |r| r["stage"] == 2 && r["patches_done"].as_u64() > Some(20));
    child.signal("INT");
    assert_eq!(child.end(), Some(130));
    let again = |more: &[&str], code| {
        said(folder, &[&["render", "--name", "x"][..], &slow, &kept(more)].concat(), code)
    };
    let words = again(&["--seed", "5"], 2);
    assert!(words.contains("seed is 5, was 0") && words.contains("renders rm x"), "{words}");
    let words = said(folder, &["resume", "x", "--model", "synthetic:side=32"], 3);
    assert!(words.contains("model.fingerprints is ") && words.contains(", was "), "{words}");
    let words = said(folder, &["resume", "x", "--model", "pocket", "--dtype", "f32"], 3);
    assert!(words.contains("numeric class"), "{words}");
    assert!(said(folder, &["render", "--name", "../x", "-p", "a"], 2).contains("no name for a render"));
    // A torn manifest and a blob that is gone: both are named.
    let store = folder.join("gigasmith-renders/renders/x");
    let mut manifests: Vec<_> =
        store.join("checkpoints").read_dir().unwrap().map(|f| f.unwrap().path()).collect();
    manifests.sort();
    let newest = manifests.last().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    std::fs::write(newest, &bytes[..bytes.len() / 3]).unwrap();
    let output = run(folder, &[&["resume", "x", "--model", SLOW][..], &kept(&[])].concat());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && words.contains(newest.file_name().unwrap().to_str().unwrap()),
        "{words}"
    );
    assert!(results(folder) == expected);
    // Removing.
    assert!(said(folder, &["renders", "rm", "x", "y"], 4).contains("`y`"));
    assert!(store.exists(), "nothing was removed");
    assert!(said(folder, &["renders", "--store", "gigasmith-renders", "rm", "x"], 0).contains("removed x"));
    assert!(!store.exists());
    // What a removal that broke off would leave must not be taken for a new render's.
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("spec.json"), "{}").unwrap();
    assert!(again(&[], 5).contains("not all of it is gone"));
    said(folder, &["renders", "rm", "x"], 0);
    let mut child = spawn(folder, &[&["render", "--name", "x"][..], &slow, &kept(&[])].concat());
    until(folder, "x", |r| r["stage"].as_u64() >= Some(1));
    said(folder, &["renders", "rm", "x"], 0);
    assert_eq!(child.end(), Some(8));
    let mut words = String::new();
    std::io::Read::read_to_string(child.0.stderr.as_mut().unwrap(), &mut words).unwrap();
    assert!(words.contains("x was removed from the store"), "{words}");
}

#[test]
fn a_farm_whose_coordinator_and_workers_are_killed_gives_the_same_bytes() {
    let mut draws = Draws(5);
    let mut coordinator = Coordinator::start(&["--checkpoint-every", "50ms"]);
    for plan in ["balanced", "paper"] {
        let expected = reference(coordinator.folder.path(), &settings(plan, QUICK));
        let id = coordinator.told(&[&["submit", "-q"][..], &settings(plan, QUICK)].concat());
        let mut workers: Vec<Running> = Vec::new();
        let (mut killed, mut born) = (0, 0);
        while coordinator.json(&["status", &id])["state"] != "done" {
            assert!(born < 400, "it does not end");
            // One to four workers: another number after every restart.
            let wanted = 1 + draws.below(4) as usize;
            workers.truncate(wanted);
            while workers.len() < wanted {
                born += 1;
                let model = format!("synthetic:side=16,latency={}", 4 + draws.below(12));
                workers.push(coordinator.worker(&model, &format!("w{born}")));
            }
            std::thread::sleep(Duration::from_millis(draws.below(1200)));
            if killed < kills() {
                killed += 1;
                if draws.below(3) == 0 {
                    let dying = draws.below(workers.len() as u64) as usize;
                    workers.swap_remove(dying);
                }
                coordinator.kill();
                coordinator.restart();
            }
        }
        assert!(killed > 0);
        assert!(coordinator.results(&id) == expected, "{plan} after {killed} kills");
    }
}

#[test]
fn the_newer_of_two_farms_on_one_store_wins() {
    let older = Coordinator::start(&["--checkpoint-every", "50ms"]);
    let expected = reference(older.folder.path(), &settings("balanced", QUICK));
    let _worker = older.worker(SLOW, "old");
    let id = older.told(&[&["submit", "-q"][..], &settings("balanced", QUICK)].concat());
    older.until(&["status", &id], |s| s["stage"].as_u64() >= Some(1));
    // On this machine, from the farm's store: the farm notices, and lets go.
    let store = older.folder.path().join("store").to_str().unwrap().to_owned();
    let resume = [&["resume", &id, "--model", SLOW, "--store", &store][..], &kept(&[])].concat();
    let newer = run(older.folder.path(), &resume);
    assert!(newer.status.success(), "{}", String::from_utf8_lossy(&newer.stderr));
    assert!(results(older.folder.path()) == expected);
    let status = older.until(&["status", &id], |s| s["state"] == "paused" || s["state"] == "done");
    assert!(status["reason"].as_str().unwrap().contains("another coordinator has taken over"), "{status:#}");
    // It is done in the store, and asked to go on the farm finds that out.
    older.told(&["continue", &id]);
    older.until_done(&id);
    assert!(older.results(&id) == expected);
}

#[test]
fn what_another_coordinator_has_is_left_alone() {
    let farm = Coordinator::start(&["--checkpoint-every", "50ms"]);
    let folder = farm.folder.path();
    let _worker = farm.worker("synthetic:side=16,latency=60", "slow");
    let slow = settings("balanced", QUICK);
    let store = folder.join("store");
    // Taken over by another, and cancelled on the farm before it has noticed.
    farm.told(&[&["submit", "-q", "--name", "x"][..], &slow].concat());
    farm.until(&["status", "x"], |s| s["patches_done"].as_u64() > Some(2));
    let path = store.to_str().unwrap();
    let mut resume =
        spawn(folder, &[&["resume", "x", "--model", SLOW, "--store", path][..], &kept(&[])].concat());
    let claimed = store.join("renders/x/epochs/00000002.json");
    let started = Instant::now();
    while !claimed.exists() {
        assert!(started.elapsed() < process::PATIENCE, "it never takes over");
        std::thread::sleep(Duration::from_millis(2));
    }
    let cancelled = farm.ask(&["cancel", "x"]);
    assert!(!cancelled.status.success(), "{}", String::from_utf8_lossy(&cancelled.stdout));
    assert_eq!(resume.end(), Some(0), "nobody took its checkpoints away");
    assert!(results(folder) == reference(folder, &slow));
    // Removed from the store, and submitted again under its name with other settings.
    farm.told(&[&["submit", "-q", "--name", "y"][..], &slow].concat());
    farm.until(&["status", "y"], |s| s["patches_done"].as_u64() > Some(2));
    said(folder, &["renders", "rm", "y", "--store", path], 0);
    let other = settings("paper", QUICK);
    farm.told(&[&["submit", "-q", "--name", "y"][..], &other].concat());
    let _quick = farm.worker(QUICK, "quick");
    farm.until_done("y");
    assert!(farm.results("y") == reference(folder, &other));
}

#[test]
fn a_second_coordinator_on_a_store_ends_the_first_and_goes_on() {
    let mut older = Coordinator::start(&["--checkpoint-every", "50ms"]);
    let expected = reference(older.folder.path(), &settings("paper", QUICK));
    let _worker = older.worker(SLOW, "old");
    let id = older.told(&[&["submit", "-q"][..], &settings("paper", QUICK)].concat());
    older.until(&["status", &id], |s| s["stage"].as_u64() >= Some(1));
    let newer = older.beside();
    let _other = newer.worker(QUICK, "new");
    assert_eq!(older.end(), Some(8));
    newer.until_done(&id);
    assert!(newer.results(&id) == expected);
}

/// S3 with what can be wrong about it.
mod on_s3 {
    use super::*;

    fn command(server: &s3::Server, folder: &Path, args: &[&str]) -> Command {
        let mut command = program();
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
            .current_dir(folder)
            .args(args)
            .env("AWS_ENDPOINT", format!("http://{}", server.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", s3::KEY)
            .env("AWS_SECRET_ACCESS_KEY", s3::SECRET)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn ended(child: std::process::Child) -> (Option<i32>, String) {
        let output = child.wait_with_output().expect("it ends");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_render_goes_on_elsewhere_and_outlives_expired_credentials() {
        let (bucket, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(bucket.path().join("renders")).unwrap();
        let server = s3::Server::start(bucket.path()).await;
        let folder = folder.path();
        let expected = tokio::task::block_in_place(|| reference(folder, &settings("balanced", QUICK)));
        let slow = settings("balanced", "synthetic:side=16,latency=80");
        let store = ["--store", "s3://renders/some/where"];
        let begin = [&["render", "--name", "x"][..], &store, &slow, &kept(&[])].concat();
        let mut child = command(&server, folder, &begin).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let manifests = bucket.path().join("renders/some/where/renders/x/checkpoints");
        assert!(manifests.read_dir().is_ok_and(|mut d| d.next().is_some()), "it has checkpoints");
        let resume =
            [&["resume", "x", "--model", "synthetic:side=16,latency=80"][..], &store, &kept(&[])].concat();
        let resume: Vec<&str> = resume.into_iter().filter(|a| *a != "-q").collect();
        let child = command(&server, folder, &resume).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(800)).await;
        server.expire(true);
        tokio::time::sleep(Duration::from_secs(7)).await;
        server.expire(false);
        let (code, words) = tokio::task::spawn_blocking(|| ended(child)).await.unwrap();
        assert_eq!(code, Some(0), "{words}");
        assert!(words.contains("checkpoints are late") && words.contains("expired: renew them"), "{words}");
        assert!(words.contains("on time again"), "{words}");
        assert!(results(folder) == expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_cannot_be_used_is_refused_before_any_work() {
        let (bucket, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(bucket.path().join("renders")).unwrap();
        let server = s3::Server::start(bucket.path()).await;
        let quick = settings("balanced", QUICK);
        let refused = |url: &str, set: &[(&str, &str)], words: &[&str]| {
            let args = [&["render", "--name", "x", "--store", url][..], &quick, &kept(&[])].concat();
            let mut command = command(&server, folder.path(), &args);
            command.envs(set.iter().copied());
            let (code, said) = ended(command.spawn().unwrap());
            assert_eq!(code, Some(5), "{said}");
            words.iter().for_each(|w| assert!(said.contains(w), "`{w}` is missing in: {said}"));
        };
        tokio::task::block_in_place(|| {
            refused("s3://wrong", &[], &["s3://wrong", "make the bucket"]);
            let wrong = [("AWS_SECRET_ACCESS_KEY", "no")];
            refused("s3://renders", &wrong, &["SignatureDoesNotMatch", "credentials are wrong"]);
            let unreachable = [("AWS_ENDPOINT", "http://127.0.0.1:1")];
            refused("s3://renders", &unreachable, &["s3://renders", "error sending request"]);
        });
    }
}

#[test]
fn folders_that_cannot_be_used_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("file"), "x").unwrap();
    let quick = settings("balanced", QUICK);
    let args = [&["render", "--name", "x", "--store", "file/store"][..], &quick, &kept(&[])].concat();
    assert!(said(folder, &args, 5).contains("file/store"));
    assert!(said(folder, &["renders", "--store", "nowhere"], 4).contains("no store in the folder nowhere"));
    assert!(!folder.join("nowhere").exists(), "looking makes none");
    let args = ["render", "-p", "x", "--name", "x", "--checkpoint-every", "soon"];
    assert!(said(folder, &args, 2).contains("60s or 5m"));
}
