//! What a cache holds is used, what it lacks is fetched, and nothing else is touched.

use gigasmith_worker::model::HubOptions;

use crate::stand_in::{COMMIT, Habits, Hub, tag};
use crate::{check, error, filled, listing, offline, open, options, root, snapshot};

/// Every file that a complete snapshot has.
fn fetched(cache: &std::path::Path) -> Vec<String> {
    let snapshot = snapshot(cache);
    let all = listing(&snapshot).into_keys().filter(|p| p.is_file());
    all.map(|p| p.strip_prefix(&snapshot).unwrap().to_string_lossy().replace('\\', "/")).collect()
}

#[test]
fn a_snapshot_that_lacks_any_file_is_completed() {
    let (hub, cache, online) = filled();
    let files = fetched(cache.path());
    assert!(files.len() >= 18, "{files:?}");
    let pinned = format!("farm/tiny@{COMMIT}");
    for file in &files {
        for is_listed in [true, false] {
            std::fs::remove_file(snapshot(cache.path()).join(file)).unwrap();
            if !is_listed {
                // As a snapshot that another program made.
                std::fs::remove_dir_all(root(cache.path()).join(".gigasmith")).unwrap();
            }
            let is_optional =
                file.ends_with("tokenizer_config.json") || file.ends_with("special_tokens_map.json");
            if is_listed || !is_optional {
                let message = error(&pinned, offline(&online)).to_string();
                let part = file.split_once('/').map_or("", |(part, _)| part);
                assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
                assert!(
                    message.contains(file) || message.contains(&format!("{part}'s weights")),
                    "{file}: {message}"
                );
            }
            open(&pinned, online.clone()).unwrap();
            assert!(snapshot(cache.path()).join(file).is_file(), "{file}");
            // What the cache has as a blob is linked again and not sent again.
            assert!(!hub.asked().iter().any(|a| a.is_cdn), "{file}");
        }
    }
    check(cache.path(), hub.files());
}

#[test]
fn files_of_the_wrong_size_and_links_to_nothing_are_fetched_again() {
    let (hub, cache, online) = filled();
    let file = "vae/diffusion_pytorch_model.safetensors";
    let blob = root(cache.path()).join("blobs").join(tag(file, &hub.files()[file]));
    std::fs::write(&blob, b"cut short").unwrap();
    assert!(error("farm/tiny", offline(&online)).to_string().contains(file));
    open("farm/tiny", online.clone()).unwrap();
    check(cache.path(), hub.files());
    std::fs::remove_file(&blob).unwrap();
    open(&format!("farm/tiny@{COMMIT}"), online).unwrap();
    check(cache.path(), hub.files());
}

#[test]
fn a_complete_cache_is_only_read() {
    let (_hub, cache, online) = filled();
    std::fs::remove_dir_all(cache.path().join(".locks")).unwrap();
    let before = listing(cache.path());
    for id in ["farm/tiny".to_owned(), "farm/tiny@main".to_owned(), format!("farm/tiny@{COMMIT}")] {
        open(&id, online.clone()).unwrap();
        open(&id, offline(&online)).unwrap();
    }
    assert_eq!(listing(cache.path()), before);
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_to_serves_what_it_has() {
    use std::os::unix::fs::PermissionsExt;
    let (_hub, cache, online) = filled();
    // As another program leaves it.
    std::fs::remove_dir_all(root(cache.path()).join(".gigasmith")).unwrap();
    let allow = |mode| {
        for (path, _) in
            listing(cache.path()).into_iter().chain([(cache.path().to_owned(), (0, std::time::UNIX_EPOCH))])
        {
            if path.is_dir() && !path.is_symlink() {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    };
    std::fs::remove_file(snapshot(cache.path()).join("vae/config.json")).unwrap();
    allow(0o555);
    let is_root = std::fs::write(cache.path().join("probe"), "").is_ok();
    if is_root {
        let _ = std::fs::remove_file(cache.path().join("probe"));
        eprintln!("skipped: this user may write everywhere");
    } else {
        let message = error("farm/tiny", online.clone()).to_string();
        assert!(
            message.contains("lacks vae/config.json") && message.contains("cannot be written to"),
            "{message}"
        );
    }
    allow(0o755);
    open("farm/tiny", online.clone()).unwrap();
    std::fs::remove_dir_all(root(cache.path()).join(".gigasmith")).unwrap();
    allow(0o555);
    open("farm/tiny", online).unwrap();
    allow(0o755);
}

#[test]
fn a_branch_that_moved_takes_the_cache_along() {
    let (hub, cache, online) = filled();
    let next = "f".repeat(40);
    *hub.habits() = Habits { commit: next.clone(), status: None, ..Habits::default() };
    open("farm/tiny", online.clone()).unwrap();
    let refs = root(cache.path()).join("refs/main");
    assert_eq!(std::fs::read_to_string(&refs).unwrap(), next);
    // The same content is the same blobs.
    assert!(!hub.asked().iter().any(|a| a.is_cdn));
    // The old commit is still there.
    open(&format!("farm/tiny@{COMMIT}"), offline(&online)).unwrap();
}

#[test]
fn a_branch_moves_only_when_all_is_there() {
    let (hub, cache, online) = filled();
    let next = "f".repeat(40);
    std::fs::remove_dir_all(root(cache.path()).join("blobs")).unwrap();
    let content = &hub.files()["model_index.json"];
    // The old snapshot is whole, in files of its own; of the new one a file never comes right.
    for (file, content) in hub.files() {
        let path = snapshot(cache.path()).join(file);
        if path.is_symlink() {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, content).unwrap();
        }
    }
    *hub.habits() =
        Habits { commit: next, spoilt: Some(("model_index.json", usize::MAX)), ..Habits::default() };
    open("farm/tiny", online).unwrap();
    assert_eq!(std::fs::read_to_string(root(cache.path()).join("refs/main")).unwrap(), COMMIT);
    assert!(!content.is_empty());
}

#[test]
fn copies_will_do_where_links_cannot_be() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let online = HubOptions { links: false, ..options(cache.path(), &hub.address) };
    open("farm/tiny", online.clone()).unwrap();
    check(cache.path(), hub.files());
    let snapshot = snapshot(cache.path());
    assert!(listing(&snapshot).into_keys().all(|path| !path.is_symlink()));
    hub.asked();
    open("farm/tiny", online).unwrap();
    assert_eq!(hub.asked().len(), 1);
}

#[test]
fn a_cache_that_is_no_folder_is_named() {
    let hub = Hub::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let message = error("farm/tiny", options(&file, &hub.address)).to_string();
    assert!(message.contains("a-file cannot be used") && message.contains("HF_HOME"), "{message}");
}
