//! Fetching a model from the hub, into the cache that all of the hub's clients share. Only the files a model needs are
//! fetched. What the cache holds is not asked for again, and with `offline` the network is not touched.
//!
//! *Which files* follows from what the repository holds and from the variant asked for, never from what the cache
//! happens to have; so the list of the repository's files is kept beside a snapshot. *A complete cache serves*
//! whatever the hub does: it is read without being written to, and a hub that is away, refuses or talks rubbish is
//! worth a warning. *A reference moves last*, when everything it needs is there.
//!
//! The environment is read once, by [`HubOptions::from_lookup`], at the caller's bidding.

mod cache;
mod checksum;
mod client;
mod download;
mod error;
mod lock;
mod names;
mod options;
mod progress;
mod remote;
mod tls;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use self::cache::{Cache, free_bytes, is_whole};
use self::checksum::Checksum;
use self::client::{Client, TRIES, is_commit};
use self::download::Wanted;
pub use self::error::HubError;
use self::lock::Lock;
pub use self::options::{HubOptions, Network};
use self::remote::{FileMeta, Files, Listed, RepoInfo};
use super::layout::{self, Variant};

/// Makes sure that the cache has the model, and returns its folder. A cached model of a fixed name (a commit) is not
/// asked for again; of a moving one (a branch) only with a connection, to see whether it has moved. Blocks the calling
/// thread, any thread.
pub(crate) fn fetch(
    options: &HubOptions,
    id: &str,
    revision: Option<&str>,
    variant: Variant,
) -> Result<PathBuf, HubError> {
    let cache = Cache::new(&options.cache, id, options.links);
    let fetch = Fetch { options, cache, id, revision: revision.unwrap_or("main"), variant };
    // The client's runtime must not be inside another, which the caller may well be.
    std::thread::scope(|scope| scope.spawn(|| fetch.run()).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// One model wanted.
struct Fetch<'a> {
    options: &'a HubOptions,
    cache: Cache,
    id: &'a str,
    revision: &'a str,
    variant: Variant,
}

/// A snapshot in the cache.
struct Cached {
    commit: String,
    folder: PathBuf,
    /// What the repository holds, if that is known.
    files: Option<Files>,
    /// What it lacks.
    missing: Option<String>,
}

/// A file that the snapshot lacks, and what the hub says of it.
struct Part {
    file: String,
    tag: String,
    size: Option<u64>,
    checksum: Checksum,
}

impl Fetch<'_> {
    fn run(&self) -> Result<PathBuf, HubError> {
        let cached = self.cached();
        if self.options.offline {
            return self.offline(cached);
        }
        let complete = cached.filter(|cached| cached.missing.is_none());
        if let Some(cached) = &complete
            && is_commit(self.revision)
            && cached.files.is_some()
        {
            return Ok(cached.folder.clone());
        }
        match (self.online(complete.is_some()), complete) {
            (Err(error), Some(cached)) if error.leaves_the_cache() => {
                tracing::warn!("{error}; using commit {} from the cache", cached.commit);
                self.warn_of_a_guess(&cached);
                Ok(cached.folder)
            }
            (result, _) => result,
        }
    }

    /// The snapshot that the cache has for the revision, if any.
    fn cached(&self) -> Option<Cached> {
        let commit = self.cache.commit(self.revision)?;
        let folder = self.cache.snapshot(&commit);
        if !folder.is_dir() {
            return None;
        }
        let files = self.cache.files(&commit);
        let missing = self.cache.missing(&commit, files.as_ref(), self.variant);
        Some(Cached { commit, folder, files, missing })
    }

    fn offline(&self, cached: Option<Cached>) -> Result<PathBuf, HubError> {
        let missing = match cached {
            Some(cached) => match &cached.missing {
                None => {
                    self.warn_of_a_guess(&cached);
                    return Ok(cached.folder);
                }
                Some(missing) => (missing.clone(), self.other_variant(&cached)),
            },
            None => ("the model".to_owned(), None),
        };
        Err(HubError::Offline {
            id: self.id.to_owned(),
            revision: self.revision.to_owned(),
            cache: self.options.cache.display().to_string(),
            missing: missing.0,
            here: missing.1,
        })
    }

    /// Another variant that the cache has.
    fn other_variant(&self, cached: &Cached) -> Option<Variant> {
        let all = [Variant::Full, Variant::Fp16, Variant::Bf16];
        let is_here = |v: &Variant| self.cache.missing(&cached.commit, cached.files.as_ref(), *v).is_none();
        all.into_iter().find(|v| *v != self.variant && is_here(v))
    }

    /// Where nobody wrote down what the repository holds, the choice of weights may not be what it will be elsewhere.
    fn warn_of_a_guess(&self, cached: &Cached) {
        if cached.files.is_none() && !self.cache.has_first_choice(&cached.commit, self.variant) {
            tracing::warn!(
                "the cache does not say which weights `{}` has besides those here: other workers may choose fp16 ones; \
                 start once with a connection, or give every worker the same --variant",
                self.id
            );
        }
    }

    /// Asks the hub. Where the cache is complete nobody needs to wait for an outage to end.
    fn online(&self, is_complete: bool) -> Result<PathBuf, HubError> {
        let client = Client::new(self.options, self.id, self.revision)?;
        let info = client.info(if is_complete { 1 } else { TRIES })?;
        let known: BTreeSet<&str> = info.files.keys().map(String::as_str).collect();
        if !known.contains("model_index.json") {
            return Err(HubError::Transfer {
                id: self.id.to_owned(),
                file: "model_index.json".into(),
                reason: "the repository is not in the diffusers layout: it has no such file".into(),
            });
        }
        layout::check(&|path| known.contains(path), self.variant)
            .map_err(|error| HubError::Variant { id: self.id.to_owned(), error })?;
        let (weights, small): (Vec<String>, Vec<String>) =
            layout::needed(&known, self.variant).into_iter().partition(|file| file.ends_with(".safetensors"));
        self.get_all(&client, &info, small.clone())?;
        let mut large: BTreeSet<String> = weights.into_iter().collect();
        for index in small.iter().filter(|file| layout::is_index(file)) {
            large.extend(self.shards(&info, index)?);
        }
        self.get_all(&client, &info, large.into_iter().collect())?;
        // A cache that cannot be written to serves all the same.
        let kept = self.cache.keep_files(&info.commit, &info.files);
        let kept = kept.and_then(|()| self.cache.remember(self.revision, &info.commit));
        if let Err(error) = kept {
            tracing::debug!(%error, "the cache cannot be written to");
        }
        Ok(self.cache.snapshot(&info.commit))
    }

    fn shards(&self, info: &RepoInfo, index: &str) -> Result<BTreeSet<String>, HubError> {
        let fail = |reason| HubError::Transfer { id: self.id.to_owned(), file: index.to_owned(), reason };
        let shards = self.cache.shards(&info.commit, index).map_err(fail)?;
        match shards.iter().find(|shard| !info.files.contains_key(*shard)) {
            Some(gone) => Err(fail(format!("it lists {gone:?}, which the repository does not have"))),
            None => Ok(shards),
        }
    }

    /// Fetches what the snapshot lacks of these files.
    fn get_all(&self, client: &Client<'_>, info: &RepoInfo, files: Vec<String>) -> Result<(), HubError> {
        let folder = self.cache.snapshot(&info.commit);
        let lacks = |file: &String| !is_whole(&folder.join(file), &info.files[file]);
        let mut parts = Vec::new();
        for file in files.into_iter().filter(lacks) {
            let meta = client.meta(&info.commit, &file)?;
            parts.extend(self.part(info, file, meta)?);
        }
        self.check_space(&parts)?;
        for part in &parts {
            self.get(client, info, part)?;
        }
        Ok(())
    }

    /// What is to be done for a file; nothing, where the list of files and the file's own headers disagree on its size
    /// and it is as its headers say.
    fn part(&self, info: &RepoInfo, file: String, meta: FileMeta) -> Result<Option<Part>, HubError> {
        let listed = &info.files[&file];
        let Some(tag) = meta.etag.or_else(|| listed.sha256.clone()).or_else(|| listed.git.clone()) else {
            let reason =
                "the hub does not say which version of it there is (no ETag); a mirror must pass it on"
                    .into();
            return Err(HubError::Transfer { id: self.id.to_owned(), file, reason });
        };
        let size = meta.size.or(listed.size);
        let path = self.cache.snapshot(&info.commit).join(&file);
        if size.is_some() && size != listed.size && is_whole(&path, &Listed { size, ..Listed::default() }) {
            return Ok(None);
        }
        let checksum = Checksum::of(&tag, listed);
        Ok(Some(Part { file, tag, size, checksum }))
    }

    fn check_space(&self, parts: &[Part]) -> Result<(), HubError> {
        let to_come = |part: &Part| {
            let blob = self.cache.blob(&part.tag);
            let there = [&blob, &Wanted::partial(&blob)].map(|p| std::fs::metadata(p).map_or(0, |m| m.len()));
            part.size.unwrap_or(0).saturating_sub(there[0].max(there[1]))
        };
        let needed: u64 = parts.iter().map(to_come).sum();
        let cache = &self.options.cache;
        match free_bytes(cache) {
            // A system that has nothing to write to is told of elsewhere.
            Some(free) if needed > free => Err(HubError::NoSpace {
                id: self.id.to_owned(),
                cache: cache.display().to_string(),
                needed,
                free,
            }),
            _ => Ok(()),
        }
    }

    /// Fetches one file, unless another process has done so meanwhile.
    fn get(&self, client: &Client<'_>, info: &RepoInfo, part: &Part) -> Result<(), HubError> {
        let file = &part.file;
        let fail = |e: io::Error| self.disk(file, &e);
        let what = format!("{file} of `{}`", self.id);
        self.cache.make_room().map_err(fail)?;
        let _lock = Lock::take(&self.cache.lock(&part.tag), &what).map_err(fail)?;
        let expected = Listed { size: part.size, ..Listed::default() };
        if is_whole(&self.cache.snapshot(&info.commit).join(file), &expected) {
            return Ok(());
        }
        let blob = self.cache.blob(&part.tag);
        let is_new = !is_whole(&blob, &expected);
        if is_new {
            Wanted {
                file,
                url: client.file_url(&info.commit, file),
                blob: &blob,
                size: part.size,
                checksum: part.checksum.clone(),
                is_shown: self.options.progress,
            }
            .fetch(client)?;
        }
        self.cache.place(&blob, &info.commit, file, is_new).map_err(fail)
    }

    /// What a failure of the disk means.
    fn disk(&self, file: &str, error: &io::Error) -> HubError {
        let cache = self.options.cache.display().to_string();
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => HubError::ReadOnly {
                cache,
                id: self.id.to_owned(),
                file: file.to_owned(),
                reason: error.to_string(),
            },
            _ => HubError::Cache { cache, reason: error.to_string() },
        }
    }
}
