//! An object store that misbehaves as stores may, and tells when a manifest points at what is not there.
//!
//! From a seed: requests fail before or after they took effect, writes are torn, listings are out of date,
//! storms of 503 come and go, everything takes a while. After every change that took effect, the manifests
//! that count are checked against the blobs that are there.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use gigasmith_coordinator::digest::Digest;
use gigasmith_coordinator::store::manifest::{Manifest, ManifestName};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Numbers that look random (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Of a thousand requests, so many fail.
    pub(crate) errors: u64,
    /// Of a thousand listings, so many are out of date.
    pub(crate) stale: u64,
    /// Of a thousand requests, so many begin a storm of failures.
    pub(crate) storms: u64,
    /// Requests take up to so many microseconds.
    pub(crate) latency: u64,
}

#[derive(Debug)]
struct State {
    draws: Draws,
    faults: Faults,
    /// Requests that are still to fail.
    storm: u64,
    /// What was created last.
    created: Vec<Path>,
    /// Manifests that an outdated coordinator has written.
    exempt: BTreeSet<Path>,
    /// Faults that came.
    counts: Counts,
    /// What must never be and was: a panic would be lost in whatever task it happens in.
    broken: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) refused: u64,
    pub(crate) lost_answers: u64,
    pub(crate) torn: u64,
    pub(crate) stale: u64,
    pub(crate) manifests: u64,
    pub(crate) deleted: u64,
}

/// What a write comes to.
enum Fate {
    Done,
    Refused,
    AnswerLost,
    Torn,
}

#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<InMemory>,
    state: Arc<Mutex<State>>,
    /// One change at a time, so that what is there can be checked after each.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a faulty store")
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "faulty", source: "503 Slow Down".into() }
}

impl Faulty {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let state = State {
            draws: Draws(seed),
            faults,
            storm: 0,
            created: Vec::new(),
            exempt: BTreeSet::new(),
            counts: Counts::default(),
            broken: None,
        };
        Self { inner: Arc::default(), state: Arc::new(Mutex::new(state)), changing: Arc::default() }
    }

    /// The faults that came. Fails if ever a manifest pointed at what was not there.
    pub(crate) fn counts(&self) -> Counts {
        assert_eq!(self.with(|s| s.broken.clone()), None);
        self.with(|s| s.counts)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().expect("no holder panics"))
    }

    async fn wait(&self) {
        let micros = self.with(|s| s.draws.below(s.faults.latency + 1));
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    fn fate(&self) -> Fate {
        self.with(|s| {
            if s.storm > 0 {
                s.storm -= 1;
                s.counts.refused += 1;
                return Fate::Refused;
            }
            if s.draws.below(1000) < s.faults.storms {
                s.storm = s.draws.below(30);
            }
            if s.draws.below(1000) >= s.faults.errors {
                return Fate::Done;
            }
            match s.draws.below(3) {
                0 => {
                    s.counts.refused += 1;
                    Fate::Refused
                }
                1 => {
                    s.counts.lost_answers += 1;
                    Fate::AnswerLost
                }
                _ => {
                    s.counts.torn += 1;
                    Fate::Torn
                }
            }
        })
    }

    /// A request that only reads.
    async fn read(&self) -> Result<()> {
        self.wait().await;
        match self.fate() {
            Fate::Done => Ok(()),
            _ => Err(unavailable()),
        }
    }

    /// What a listing hides for being out of date.
    fn hidden(&self) -> BTreeSet<Path> {
        self.with(|s| {
            if s.draws.below(1000) >= s.faults.stale {
                return BTreeSet::new();
            }
            s.counts.stale += 1;
            s.created.iter().rev().take(12).cloned().collect()
        })
    }

    async fn names(&self, folder: &str, prefix: &Path) -> Vec<Path> {
        let listed: Vec<ObjectMeta> = self
            .inner
            .list(Some(&folder.split('/').fold(prefix.clone(), |path, part| path.join(part))))
            .try_collect()
            .await
            .unwrap();
        listed.into_iter().map(|o| o.location).collect()
    }

    /// Whether some state of a render says that it is done. `folder`: the render's, as its parts.
    async fn is_done(&self, folder: &[String]) -> bool {
        let (id, above) = folder.split_last().expect("a render has a folder");
        let root = Path::from(above[..above.len() - 1].join("/"));
        for path in self.names(&format!("states/{id}"), &root).await {
            let bytes = self.inner.get(&path).await.unwrap().bytes().await.unwrap();
            let state: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            if state["state"] == "done" {
                return true;
            }
        }
        false
    }

    /// Every manifest that counts must find all its blobs. Those that an outdated coordinator writes after
    /// somebody newer took over do not count, nor do those of older epochs once the newest has one.
    pub(crate) async fn check(&self, changed: &Path) {
        let parts: Vec<String> = changed.parts().map(|p| p.as_ref().to_owned()).collect();
        let Some(at) = parts.iter().position(|p| p == "checkpoints" || p == "blobs") else { return };
        let folder = Path::from(parts[..at].join("/"));
        if self.is_done(&parts[..at]).await {
            // Nobody goes on from its checkpoints, and they are being removed.
            return;
        }
        let mut manifests: Vec<(ManifestName, Manifest)> = Vec::new();
        let epochs = self.names("epochs", &folder).await.len() as u64;
        for path in self.names("checkpoints", &folder).await {
            let name: ManifestName = path.filename().unwrap().parse().unwrap();
            if path == *changed && name.epoch < epochs {
                self.with(|s| s.exempt.insert(path.clone()));
            }
            let bytes = self.inner.get(&path).await.unwrap().bytes().await.unwrap();
            let exempt = self.with(|s| s.exempt.contains(&path));
            if let Ok(manifest) = Manifest::parse(&bytes)
                && !exempt
            {
                manifests.push((name, manifest));
            }
        }
        let newest = manifests.iter().map(|(name, _)| name.epoch).max();
        for (name, manifest) in manifests.iter().filter(|(name, _)| Some(name.epoch) == newest) {
            for blob in manifest.blobs() {
                let path = folder.clone().join("blobs").join(blob.to_string());
                let whole = match self.inner.get(&path).await {
                    Ok(found) => Digest::of(&found.bytes().await.unwrap()) == blob,
                    Err(_) => false,
                };
                if !whole {
                    let what = format!("after {changed}: {name} misses {blob}, or finds it damaged");
                    self.with(|s| s.broken.get_or_insert(what).len());
                }
            }
        }
    }

    async fn write(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.wait().await;
        let fate = self.fate();
        let _one_at_a_time = self.changing.lock().await;
        let payload = match fate {
            Fate::Refused => return Err(unavailable()),
            Fate::Torn => {
                let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
                let keep = self.with(|s| s.draws.below(bytes.len().max(1) as u64)) as usize;
                bytes[..keep].to_vec().into()
            }
            _ => payload,
        };
        let is_new = options.mode == PutMode::Create;
        let done = self.inner.put_opts(path, payload, options).await?;
        self.with(|s| {
            s.created.push(path.clone());
            s.counts.manifests += u64::from(is_new && path.as_ref().contains("/checkpoints/"));
        });
        self.check(path).await;
        match fate {
            Fate::Done => Ok(done),
            _ => Err(unavailable()),
        }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.write(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.read().await?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.read().await?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |path: Result<Path>| {
            let store = store.clone();
            async move {
                let path = path?;
                store.wait().await;
                let fate = store.fate();
                let _one_at_a_time = store.changing.lock().await;
                if matches!(fate, Fate::Refused | Fate::Torn) {
                    return Err(unavailable());
                }
                store.inner.delete(&path).await?;
                store.with(|s| s.counts.deleted += 1);
                store.check(&path).await;
                if matches!(fate, Fate::AnswerLost) { Err(unavailable()) } else { Ok(path) }
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            store.read().await?;
            let hidden = store.hidden();
            let all: Vec<ObjectMeta> = store.inner.list(prefix.as_ref()).try_collect().await?;
            let shown = all.into_iter().filter(move |o| !hidden.contains(&o.location));
            Ok::<_, Error>(stream::iter(shown.map(Ok)))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.read().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
