//! Several processes on one cache, and processes that are killed.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::stand_in::{Habits, Hub, tag};
use crate::{check, open, options, root};

const CACHE: &str = "GIGASMITH_TEST_CACHE";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// What [`child`] runs: not a test of its own.
#[test]
fn fetches_in_a_process_of_its_own() {
    let (Ok(cache), Ok(hub)) = (std::env::var(CACHE), std::env::var("GIGASMITH_TEST_HUB")) else { return };
    open("farm/tiny", options(cache.as_ref(), &hub)).unwrap();
}

fn child(hub: &Hub, cache: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::fetches_in_a_process_of_its_own"])
        .env(CACHE, cache)
        .env("GIGASMITH_TEST_HUB", &hub.address)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// How often the noise predictor's weights were sent, or begun to be.
fn sent(hub: &Hub) -> usize {
    hub.asked().iter().filter(|a| a.is_cdn && a.method == "GET" && a.path.contains(UNET)).count()
}

#[test]
fn who_comes_second_waits_and_downloads_nothing() {
    let hub = Hub::start();
    hub.habits().pause = Duration::from_millis(150);
    let cache = tempfile::tempdir().unwrap();
    let mut others: Vec<Child> = (0..2).map(|_| child(&hub, cache.path())).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| open("farm/tiny", options(cache.path(), &hub.address)).unwrap());
        }
    });
    assert!(others.iter_mut().all(|other| other.wait().unwrap().success()));
    assert_eq!(sent(&hub), 1);
    check(cache.path(), hub.files());
}

#[test]
fn a_killed_process_leaves_what_it_has_and_no_lock() {
    let hub = Hub::start();
    *hub.habits() = Habits { pause: Duration::from_millis(100), ..Habits::default() };
    let cache = tempfile::tempdir().unwrap();
    let blob = root(cache.path()).join("blobs").join(tag(UNET, &hub.files()[UNET]));
    let partial = blob.with_extension("incomplete");
    let mut reached = 0;
    for _ in 0..2 {
        let mut process = child(&hub, cache.path());
        let length = || std::fs::metadata(&partial).map_or(0, |m| m.len());
        while length() <= reached {
            assert!(process.try_wait().unwrap().is_none(), "it ended too soon");
            std::thread::sleep(Duration::from_millis(5));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        reached = length();
    }
    assert!(!blob.exists());
    hub.habits().pause = Duration::ZERO;
    hub.asked();
    open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
    let ranges: Vec<_> =
        hub.asked().into_iter().filter(|a| a.is_cdn && a.path.contains(UNET)).map(|a| a.range).collect();
    assert_eq!(ranges, [Some(format!("bytes={reached}-"))]);
    check(cache.path(), hub.files());
}
