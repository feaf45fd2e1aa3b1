//! Who holds a place on a farm, and what is said twice.

use crate::process::{Coordinator, program};

const SLOW: &str = "synthetic:side=16,latency=100";

/// Long enough to be looked at while it runs.
fn long(coordinator: &Coordinator, name: &str, more: &[&str]) {
    let settings = ["-p", "x", "--model", "synthetic", "--steps", "50", "--stages", "2,4", "--name", name];
    coordinator.told(&[&["submit", "-q"][..], &settings, more].concat());
}

fn running(coordinator: &Coordinator) -> Vec<String> {
    let listed = coordinator.json(&["status"]);
    let listed = listed.as_array().expect("a list").iter();
    let running = listed.filter(|r| r["state"] == "running").map(|r| r["id"].as_str().unwrap().to_owned());
    running.collect()
}

fn until_running(coordinator: &Coordinator, id: &str) {
    coordinator.until(&["status", id], |s| s["state"] == "running" && s["patches_done"].as_u64() > Some(0));
}

#[test]
fn paused_renders_hold_no_place_and_there_are_never_more_than_asked() {
    let coordinator = Coordinator::start(&[]);
    let _worker = coordinator.worker(SLOW, "w");
    for name in ["a", "b", "c", "d", "e"] {
        long(&coordinator, name, &[]);
    }
    for pair in [["a", "b"], ["c", "d"]] {
        pair.iter().for_each(|id| until_running(&coordinator, id));
        assert_eq!(running(&coordinator), pair);
        coordinator.told(&["pause", pair[0], pair[1]]);
    }
    until_running(&coordinator, "e");
    // One that outranks them takes a place, and is not beside them.
    coordinator.told(&["continue", "a"]);
    until_running(&coordinator, "a");
    long(&coordinator, "first", &["--priority", "9"]);
    until_running(&coordinator, "first");
    let now = running(&coordinator);
    assert!(now.len() <= 2 && now.contains(&"first".to_owned()), "{now:?}");
}

#[test]
fn renders_whose_workers_have_gone_make_room_for_those_whose_are_there() {
    let coordinator = Coordinator::start(&["--active", "1"]);
    let gone = coordinator.worker(SLOW, "gone");
    long(&coordinator, "stranded", &[]);
    until_running(&coordinator, "stranded");
    drop(gone);
    let _other = coordinator.worker("pocket", "other");
    let pocket = ["submit", "-q", "-p", "x", "--model", "pocket", "--steps", "2", "--scale", "1"];
    coordinator.told(&[&pocket[..], &["--name", "served"]].concat());
    coordinator.until_done("served");
    // It goes on from where it was when they are back.
    assert_eq!(coordinator.json(&["status", "stranded"])["state"], "queued");
    let _back = coordinator.worker(SLOW, "back");
    until_running(&coordinator, "stranded");
}

#[test]
fn a_cancelled_render_stays_cancelled_whoever_cancels_again() {
    let coordinator = Coordinator::start(&[]);
    let _worker = coordinator.worker(SLOW, "w");
    long(&coordinator, "x", &[]);
    until_running(&coordinator, "x");
    for _ in 0..3 {
        coordinator.told(&["cancel", "x"]);
        let status = coordinator.json(&["status", "x"]);
        assert_eq!((&status["state"], &status["reason"]), (&"cancelled".into(), &"".into()));
    }
    // Nobody goes on from its checkpoints: they go.
    let store = coordinator.folder.path().join("store/renders/x/checkpoints");
    coordinator.until(&["status", "x"], |_| !store.read_dir().is_ok_and(|mut files| files.next().is_some()));
    assert!(!coordinator.ask(&["continue", "x"]).status.success());
}

#[test]
fn what_is_rendered_here_is_not_taken_up_by_a_farm_in_the_same_folder() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        ["render", "-q", "--name", "mine", "-p", "x", "--model", "synthetic:side=16", "--steps", "2"];
    let rendered =
        program().current_dir(folder.path()).args(settings).args(["--scale", "1"]).output().unwrap();
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let names = |store: &str| folder.path().join(store).join("renders/mine").exists();
    assert!(names("gigasmith-renders") && !names("gigasmith-store"), "the default of `serve` is another");
    let help = program().args(["serve", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("gigasmith-store"));
}
