//! Downloads arrive whole, whatever the connection and the servers do.

use std::time::Duration;

use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::HubOptions;

use crate::stand_in::{COMMIT, Habits, Hub, Ranges, tag};
use crate::{check, error, offline, open, options, root, snapshot};

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    let first = open("farm/tiny", online.clone()).unwrap();
    assert_eq!(first.describe().name, "farm/tiny");
    let asked = hub.asked();
    assert!(asked.iter().any(|a| a.is_cdn && a.path.contains("unet/diffusion_pytorch_model.safetensors")));
    assert!(!asked.iter().any(|a| a.path.ends_with(".bin") || a.path.ends_with("README.md")), "{asked:?}");
    assert!(asked.iter().all(|a| a.coding == "identity"), "{asked:?}");
    check(cache.path(), hub.files());

    // A second time only asks whether the branch has moved.
    open("farm/tiny", online.clone()).unwrap();
    assert_eq!(hub.paths(), ["/api/models/farm/tiny/revision/main?blobs=true"]);

    let second = open("farm/tiny", offline(&online)).unwrap();
    assert_eq!(first.describe().fingerprints, second.describe().fingerprints);
    // A commit cannot move, so it is not asked for even with a connection.
    open(&format!("farm/tiny@{COMMIT}"), online.clone()).unwrap();
    open(&format!("farm/tiny@{COMMIT}"), offline(&online)).unwrap();
    assert!(hub.asked().is_empty());
}

#[test]
fn the_cache_is_laid_out_as_the_hubs_clients_have_it() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
    let root = root(cache.path());
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    for file in ["model_index.json", "unet/diffusion_pytorch_model.safetensors"] {
        let name = tag(file, &hub.files()[file]);
        let up = "../".repeat(file.split('/').count() + 1);
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(snapshot(cache.path()).join(file)).unwrap(),
            std::path::PathBuf::from(format!("{up}blobs/{name}"))
        );
        assert!(root.join("blobs").join(&name).is_file(), "{up}");
        assert!(cache.path().join(".locks/models--farm--tiny").join(format!("{name}.lock")).is_file());
    }
}

#[test]
fn a_gated_model_needs_the_token_and_nobody_else_sees_it() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let without = options(cache.path(), &hub.address);
    let message = error("farm/gated", without.clone()).to_string();
    assert!(message.contains("`farm/gated` is refused (401)") && message.contains("HF_TOKEN"), "{message}");
    hub.asked();
    let with = HubOptions { token: Some("secret".into()), ..without };
    assert!(!format!("{with:?}").contains("secret"));
    open("farm/gated", with).unwrap();
    let asked = hub.asked();
    // The content network of the stand-in refuses requests with a token.
    assert!(asked.iter().any(|a| a.is_cdn));
    assert!(asked.iter().all(|a| a.token.is_some() != a.is_cdn), "{asked:?}");
}

#[test]
fn a_download_that_breaks_off_goes_on_whatever_servers_make_of_ranges() {
    for ranges in [Ranges::Honoured, Ranges::Ignored, Ranges::Refused, Ranges::Wrong] {
        for is_chunked in [false, true] {
            let hub = Hub::start();
            *hub.habits() = Habits { ranges, is_chunked, cut: Some((30_000, 4)), ..Habits::default() };
            let cache = tempfile::tempdir().unwrap();
            open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
            check(cache.path(), hub.files());
            let resumed = hub.asked().iter().any(|a| a.range.is_some());
            assert!(resumed, "{ranges:?}");
        }
    }
}

#[test]
fn connections_may_end_at_every_byte() {
    let hub = Hub::start();
    for (at, times) in [(1, 150), (7, 600), (1999, 4000), (64 << 10, 4000)] {
        *hub.habits() = Habits { cut: Some((at, times)), ..Habits::default() };
        let cache = tempfile::tempdir().unwrap();
        open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
        check(cache.path(), hub.files());
    }
}

#[test]
fn a_server_that_always_breaks_off_at_the_same_byte_is_given_up() {
    let hub = Hub::start();
    *hub.habits() = Habits { ranges: Ranges::Ignored, cut: Some((1000, usize::MAX)), ..Habits::default() };
    let cache = tempfile::tempdir().unwrap();
    let message = error("farm/tiny", options(cache.path(), &hub.address)).to_string();
    assert!(message.contains("it broke off at byte 1000") && message.contains("(5 tries)"), "{message}");
}

#[test]
fn what_was_there_before_is_continued_and_never_anothers() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let content = &hub.files()[file];
    let blobs = root(cache.path()).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let name = tag(file, content);
    std::fs::write(blobs.join(format!("{name}.incomplete")), &content[..200_000]).unwrap();
    // Of another version; and of this one, but damaged, or longer than it should be.
    std::fs::write(blobs.join(format!("{}.incomplete", "0".repeat(64))), b"other").unwrap();
    let vae = "vae/diffusion_pytorch_model.safetensors";
    let vae_name = tag(vae, &hub.files()[vae]);
    std::fs::write(blobs.join(format!("{vae_name}.incomplete")), [0; 100]).unwrap();
    let text = "text_encoder/model.safetensors";
    let text_name = tag(text, &hub.files()[text]);
    std::fs::write(blobs.join(format!("{text_name}.incomplete")), vec![0; 1 << 20]).unwrap();
    open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
    let ranges: Vec<_> =
        hub.asked().into_iter().filter(|a| a.is_cdn && a.path.contains(file)).map(|a| a.range).collect();
    assert_eq!(ranges, [Some("bytes=200000-".to_owned())]);
    std::fs::remove_file(blobs.join(format!("{}.incomplete", "0".repeat(64)))).unwrap();
    check(cache.path(), hub.files());
}

#[test]
fn what_comes_packed_is_unpacked_and_what_cannot_be_is_refused() {
    for cut in [None, Some((2000, 3))] {
        let hub = Hub::start();
        *hub.habits() = Habits { coding: Some("gzip"), cut, ..Habits::default() };
        let cache = tempfile::tempdir().unwrap();
        open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
        check(cache.path(), hub.files());
    }
    let hub = Hub::start();
    *hub.habits() = Habits { coding: Some("br"), ..Habits::default() };
    let cache = tempfile::tempdir().unwrap();
    let message = error("farm/tiny", options(cache.path(), &hub.address)).to_string();
    assert!(message.contains("it comes as \"br\""), "{message}");
    assert!(!snapshot(cache.path()).exists());
}

#[test]
fn content_that_is_not_what_its_hash_says_never_gets_a_name() {
    for file in ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"] {
        let hub = Hub::start();
        let cache = tempfile::tempdir().unwrap();
        let online = options(cache.path(), &hub.address);
        hub.habits().spoilt = Some((file, usize::MAX));
        let message = error("farm/tiny", online.clone()).to_string();
        assert!(message.contains(file) && message.contains("not what its hash says"), "{message}");
        assert!(!root(cache.path()).join("blobs").join(tag(file, &hub.files()[file])).exists());
        // Once is an accident.
        hub.habits().spoilt = Some((file, 1));
        open("farm/tiny", online).unwrap();
        check(cache.path(), hub.files());
    }
}

#[test]
fn too_much_and_too_little_are_not_enough() {
    let hub = Hub::start();
    for is_chunked in [false, true] {
        *hub.habits() = Habits { longer: 3, is_chunked, cut: Some((500, 3)), ..Habits::default() };
        let cache = tempfile::tempdir().unwrap();
        open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
        check(cache.path(), hub.files());
    }
}

#[test]
fn mirrors_that_pass_little_on_will_do() {
    for habits in [
        Habits { tells_hashes: false, ..Habits::default() },
        Habits { has_no_head: true, ..Habits::default() },
        Habits { tag: Some("tag-"), tells_hashes: false, is_chunked: true, ..Habits::default() },
    ] {
        let hub = Hub::start();
        *hub.habits() = habits;
        let cache = tempfile::tempdir().unwrap();
        let online = options(cache.path(), &hub.address);
        open("farm/tiny", online.clone()).unwrap();
        check(cache.path(), hub.files());
        hub.asked();
        open("farm/tiny", offline(&online)).unwrap();
        open("farm/tiny", online).unwrap();
        assert_eq!(hub.asked().len(), 1);
    }
}

#[test]
fn a_stall_ends_and_a_busy_hub_is_asked_again() {
    let hub = Hub::start();
    hub.habits().failures = 3;
    let cache = tempfile::tempdir().unwrap();
    open("farm/tiny", options(cache.path(), &hub.address)).unwrap();
    hub.habits().pause = Duration::from_secs(3600);
    let other = tempfile::tempdir().unwrap();
    let mut hasty = options(other.path(), &hub.address);
    hasty.network.data_timeout = Duration::from_millis(300);
    let message = error("farm/tiny", hasty).to_string();
    assert!(message.contains("no data for 0.3 s (5 tries)"), "{message}");
}
