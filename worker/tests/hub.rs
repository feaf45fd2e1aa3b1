//! Fetching from a hub: a small server with the public hub's addresses and headers, a cache in a
//! temporary folder, and every way it can go wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubError, HubOptions, LoadError, LoadOptions, ModelSource, SdxlModel, load,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that has one model, `farm/tiny`, and one that wants a token, `farm/gated`.
struct Hub {
    address: String,
    /// Paths asked for, in order.
    log: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (files, seen) = (Arc::new(repository()), log.clone());
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, seen) = (files.clone(), seen.clone());
                std::thread::spawn(move || answer(&stream, &files, &seen));
            }
        });
        Self { address, log }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// The files of the model, and some that nobody needs.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut add = |root: PathBuf, prefix: &str| {
        for entry in std::fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                files.insert(format!("{prefix}{name}"), std::fs::read(path).unwrap());
            }
        }
    };
    let model = golden().join("exotic/mixed");
    add(model.clone(), "");
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "scheduler"] {
        add(model.join(part), &format!("{part}/"));
    }
    for part in ["tokenizer", "tokenizer_2"] {
        add(golden().join("tiny-sdxl").join(part), &format!("{part}/"));
    }
    files.insert("unet/diffusion_pytorch_model.bin".into(), b"never fetched".to_vec());
    files.insert("README.md".into(), b"never fetched".to_vec());
    files
}

fn answer(stream: &TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
    let Some(request) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .filter_map(|l| l.split_once(':').map(|(k, v)| (k.to_lowercase(), v.trim().to_owned())))
        .collect();
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    log.lock().unwrap().push(path.clone());
    let reply = |status: &str, extra: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
            body.len()
        );
        let mut out = stream;
        let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body));
    };
    if path.contains("farm/gated")
        && headers.get("authorization").map(String::as_str) != Some("Bearer secret")
    {
        return reply("401 Unauthorized", "", b"");
    }
    let known = ["farm/tiny", "farm/gated"].iter().any(|id| path.contains(id));
    if known && path.starts_with("/api/models/") && path.contains("/revision/") && !path.ends_with("/nope") {
        let siblings: Vec<_> = files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return reply("200 OK", "Content-Type: application/json\r\n", body.as_bytes());
    }
    let file = path.split_once(&format!("/resolve/{COMMIT}/")).and_then(|(_, f)| files.get(f));
    let Some(content) = file.filter(|_| known) else { return reply("404 Not Found", "", b"") };
    let range = headers.get("range").and_then(|r| r.strip_prefix("bytes=")).unwrap_or("0-");
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let end = to.parse().map_or(content.len(), |t: usize| (t + 1).min(content.len()));
    let extra = format!(
        "ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        blake3::hash(content).to_hex(),
        end.saturating_sub(1),
        content.len()
    );
    reply("206 Partial Content", &extra, &content[from.min(end)..end]);
}

fn options(cache: &Path, endpoint: &str) -> HubOptions {
    HubOptions {
        cache: cache.to_owned(),
        endpoint: endpoint.to_owned(),
        token: None,
        offline: false,
        progress: false,
    }
}

fn open(id: &str, hub: HubOptions) -> Result<SdxlModel, LoadError> {
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype: None, batch: BatchChoice::Auto, hub };
    load(&ModelSource::parse(id).unwrap(), &options)
}

fn error(id: &str, hub: HubOptions) -> HubError {
    match open(id, hub) {
        Err(LoadError::Hub(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("the model loaded"),
    }
}

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    let first = open("farm/tiny", online.clone()).unwrap();
    assert_eq!(first.describe().name, "farm/tiny");
    let asked = hub.asked();
    assert!(asked.iter().any(|p| p.ends_with("unet/diffusion_pytorch_model.safetensors")));
    assert!(!asked.iter().any(|p| p.ends_with(".bin") || p.ends_with("README.md")), "{asked:?}");

    // A second time only asks whether the branch has moved.
    open("farm/tiny", online.clone()).unwrap();
    assert_eq!(hub.asked(), ["/api/models/farm/tiny/revision/main"]);

    let offline = HubOptions { offline: true, ..online.clone() };
    let second = open("farm/tiny", offline.clone()).unwrap();
    assert_eq!(first.describe().fingerprints, second.describe().fingerprints);
    // A commit cannot move, so it is not asked for even with a connection.
    open(&format!("farm/tiny@{COMMIT}"), online).unwrap();
    open(&format!("farm/tiny@{COMMIT}"), offline).unwrap();
    assert!(hub.asked().is_empty());

    // A hub that cannot be reached is as good as none, once the cache is complete.
    open("farm/tiny", options(cache.path(), "http://127.0.0.1:9")).unwrap();
}

#[test]
fn an_interrupted_download_is_completed() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    open("farm/tiny", online.clone()).unwrap();
    hub.asked();
    let snapshot = cache.path().join("models--farm--tiny/snapshots").join(COMMIT);
    std::fs::remove_file(snapshot.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let offline = HubOptions { offline: true, ..online.clone() };
    let message = error("farm/tiny", offline).to_string();
    assert!(message.contains("HF_HUB_OFFLINE is set; vae's weights is missing"), "{message}");
    open("farm/tiny", online).unwrap();
    let asked = hub.asked();
    assert!(
        asked.iter().skip(1).all(|p| p.ends_with("vae/diffusion_pytorch_model.safetensors")),
        "{asked:?}"
    );
}

#[test]
fn a_gated_model_needs_the_token() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let without = options(cache.path(), &hub.address);
    let refused = error("farm/gated", without.clone());
    assert!(matches!(refused, HubError::Refused { status: 401, .. }));
    let message = refused.to_string();
    assert!(message.contains("`farm/gated`") && message.contains("HF_TOKEN"), "{message}");
    open("farm/gated", HubOptions { token: Some("secret".into()), ..without }).unwrap();
}

#[test]
fn every_failure_says_what_to_do() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let online = options(cache.path(), &hub.address);
    for id in ["farm/none", "farm/tiny@nope"] {
        let message = error(id, online.clone()).to_string();
        assert!(message.contains("has no model") && message.contains("check the spelling"), "{message}");
    }
    let message = error("farm/tiny", HubOptions { offline: true, ..online }).to_string();
    assert!(message.contains("`farm/tiny` (revision main) is not complete in the cache"), "{message}");
    // Port 9 is the discard service, which nobody runs.
    let message = error("farm/tiny", options(cache.path(), "http://127.0.0.1:9")).to_string();
    assert!(message.contains("http://127.0.0.1:9 cannot be reached"), "{message}");
    let file = cache.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let message = error("farm/tiny", options(&file, &hub.address)).to_string();
    assert!(message.contains("a-file cannot be used") && message.contains("HF_HOME"), "{message}");
}

#[test]
fn the_environment_is_that_of_the_hubs_own_clients() {
    let from = |pairs: &[(&str, &str)]| {
        let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        HubOptions::from_lookup(move |key| map.get(key).cloned())
    };
    let plain = from(&[("HOME", "/home/a")]);
    assert_eq!(plain.cache, Path::new("/home/a/.cache/huggingface/hub"));
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline && plain.token.is_none() && plain.progress);
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "stored\n").unwrap();
    let home = home.path().to_str().unwrap();
    let set = from(&[("HF_HOME", home), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "true")]);
    assert_eq!(set.cache, Path::new(home).join("hub"));
    assert_eq!((set.endpoint.as_str(), set.token.as_deref()), ("http://mirror", Some("stored")));
    assert!(set.offline);
    let set = from(&[("HF_HOME", home), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "t")]);
    assert_eq!((set.cache.as_path(), set.token.as_deref()), (Path::new("/c"), Some("t")));
}
