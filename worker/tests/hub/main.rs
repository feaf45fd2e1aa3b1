//! Fetching from a hub: a stand-in with the public hub's addresses, headers and, where wanted, bad habits; caches in
//! temporary folders; and every way it can go wrong.

#![allow(clippy::print_stderr)] // what is skipped is said

mod cache;
mod download;
mod environment;
mod hostile;
mod outage;
mod processes;
mod python;
mod stand_in;
mod variants;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubError, HubOptions, LoadError, LoadOptions, ModelSource, SdxlModel, Variant,
    load,
};

use stand_in::{COMMIT, Files, Hub};

/// Options for a stand-in, with little patience.
fn options(cache: &Path, endpoint: &str) -> HubOptions {
    let mut options = HubOptions::from_lookup(|_| None);
    options.cache = cache.to_owned();
    options.endpoint = endpoint.to_owned();
    options.progress = false;
    options.network.retry_pause = Duration::from_millis(1);
    options.network.answer_timeout = Duration::from_secs(20);
    options.network.data_timeout = Duration::from_secs(20);
    options
}

fn offline(options: &HubOptions) -> HubOptions {
    HubOptions { offline: true, ..options.clone() }
}

fn open_as(id: &str, variant: Variant, hub: HubOptions) -> Result<SdxlModel, LoadError> {
    let options =
        LoadOptions { device: DeviceChoice::Cpu, dtype: None, batch: BatchChoice::Auto, variant, hub };
    load(&ModelSource::parse(id).unwrap(), &options)
}

fn open(id: &str, hub: HubOptions) -> Result<SdxlModel, LoadError> {
    open_as(id, Variant::Auto, hub)
}

fn error(id: &str, hub: HubOptions) -> HubError {
    match open(id, hub) {
        Err(LoadError::Hub(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("the model loaded"),
    }
}

fn root(cache: &Path) -> PathBuf {
    cache.join("models--farm--tiny")
}

fn snapshot(cache: &Path) -> PathBuf {
    root(cache).join("snapshots").join(COMMIT)
}

/// Files below a folder, links followed, by their paths, with their sizes and times.
fn listing(folder: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            all.insert(path, (metadata.len(), metadata.modified().unwrap()));
        }
    }
    all
}

/// Every file of the snapshot is what the hub has, every blob is whole, and nothing half-written is left.
fn check(cache: &Path, files: &Files) {
    let snapshot = snapshot(cache);
    let mut count = 0;
    for (file, content) in files {
        if let Ok(there) = std::fs::read(snapshot.join(file)) {
            assert!(there == *content, "{file}");
            count += 1;
        }
    }
    assert!(count >= 15, "{count} files");
    for path in listing(&root(cache)).into_keys() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.ends_with(".incomplete") && !name.ends_with(".tmp"), "{}", path.display());
    }
}

/// A hub and a cache that holds its model.
fn filled() -> (Hub, tempfile::TempDir, HubOptions) {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    open("farm/tiny", online.clone()).unwrap();
    hub.asked();
    (hub, cache, online)
}
