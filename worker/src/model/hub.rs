//! Fetching a model from the hub, into the cache that all of the hub's clients share. Only the files
//! a model needs are fetched. What the cache holds is not asked for again, and with `offline` the
//! network is not touched.
//!
//! The environment is read once, by [`HubOptions::from_lookup`], at the caller's bidding.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

use super::layout;

const ENDPOINT: &str = "https://huggingface.co";

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub does not know the repository or the revision.
    #[error(
        "the hub at {endpoint} has no model `{id}` (revision {revision}); check the spelling, and set \
         HF_TOKEN if it is private"
    )]
    Unknown {
        /// Address of the hub.
        endpoint: String,
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
    },
    /// The repository wants a permission.
    #[error(
        "access to `{id}` is refused ({status}): it wants a permission, or does not exist; check the \
         spelling, accept its conditions at {endpoint}/{id}, and set HF_TOKEN to a token that may read it"
    )]
    Refused {
        /// Address of the hub.
        endpoint: String,
        /// The repository.
        id: String,
        /// The HTTP status.
        status: u16,
    },
    /// The network is not to be touched, and the cache does not have the model.
    #[error(
        "`{id}` (revision {revision}) is not complete in the cache {cache} and HF_HUB_OFFLINE is set; \
         {missing} is missing; fetch it once with a connection"
    )]
    Offline {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The cache folder.
        cache: String,
        /// What is missing.
        missing: String,
    },
    /// No answer.
    #[error(
        "the hub at {endpoint} cannot be reached: {reason}; check the connection, or set HF_HUB_OFFLINE=1 to \
         use what the cache has"
    )]
    Unreachable {
        /// Address of the hub.
        endpoint: String,
        /// What the transport said.
        reason: String,
    },
    /// The cache folder cannot be used.
    #[error("the cache {cache} cannot be used: {reason}; set HF_HOME to a folder you can write to")]
    Cache {
        /// The cache folder.
        cache: String,
        /// What the system said.
        reason: String,
    },
    /// The hub's answer makes no sense.
    #[error("fetching {file} of `{id}` failed: {reason}")]
    Transfer {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

/// How to reach the hub and where its cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The cache folder (`.../huggingface/hub`).
    pub cache: PathBuf,
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// A token for models that want a permission.
    pub token: Option<String>,
    /// Don't touch the network.
    pub offline: bool,
    /// Show progress bars on standard error.
    pub progress: bool,
}

impl HubOptions {
    /// The options that the variables of the hub's own clients ask for: `HF_HUB_CACHE`, `HF_HOME`,
    /// `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DISABLE_PROGRESS_BARS`. `lookup` gives a variable's value.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |key: &str| lookup(key).filter(|v| !v.is_empty());
        let on = |key: &str| {
            get(key).is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let home = get("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let user = get("HOME").or_else(|| get("USERPROFILE")).unwrap_or_default();
            let caches = get("XDG_CACHE_HOME").map_or_else(|| Path::new(&user).join(".cache"), PathBuf::from);
            caches.join("huggingface")
        });
        let token_file = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let stored = || std::fs::read_to_string(token_file).ok().map(|t| t.trim().to_owned());
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            cache: get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: get("HF_TOKEN").or_else(stored).filter(|t| !t.is_empty()),
            offline: on("HF_HUB_OFFLINE"),
            progress: !on("HF_HUB_DISABLE_PROGRESS_BARS"),
        }
    }

    /// [`Self::from_lookup`] with the process's own environment.
    pub fn from_env() -> Self {
        Self::from_lookup(|key| std::env::var(key).ok())
    }
}

/// Makes sure that the cache has the model, and returns its folder. `prefer_half` chooses the weight
/// files. A cached model of a fixed name (a commit) is never asked for again; of a moving one (a
/// branch) only with a connection, to see whether it has moved.
pub(crate) fn fetch(
    options: &HubOptions,
    id: &str,
    revision: Option<&str>,
    prefer_half: bool,
) -> Result<PathBuf, HubError> {
    let fetch = Fetch { options, id, revision: revision.unwrap_or("main"), prefer_half };
    let cached = fetch.cached_folder();
    if let Some(folder) = &cached
        && (options.offline || is_commit(fetch.revision))
        && fetch.missing(folder).is_none()
    {
        return Ok(folder.clone());
    }
    if options.offline {
        let missing =
            cached.as_deref().and_then(|folder| fetch.missing(folder)).unwrap_or_else(|| "the model".into());
        return Err(HubError::Offline {
            id: id.to_owned(),
            revision: fetch.revision.to_owned(),
            cache: options.cache.display().to_string(),
            missing,
        });
    }
    match (fetch.download(), cached) {
        (Err(HubError::Unreachable { endpoint, reason }), Some(folder))
            if fetch.missing(&folder).is_none() =>
        {
            tracing::warn!(%endpoint, %reason, model = id, "the hub cannot be reached; using the cache");
            Ok(folder)
        }
        (result, _) => result,
    }
}

/// One model wanted.
struct Fetch<'a> {
    options: &'a HubOptions,
    id: &'a str,
    revision: &'a str,
    prefer_half: bool,
}

impl Fetch<'_> {
    fn repo(&self) -> Repo {
        Repo::with_revision(self.id.to_owned(), RepoType::Model, self.revision.to_owned())
    }

    fn root(&self) -> PathBuf {
        self.options.cache.join(self.repo().folder_name())
    }

    /// The snapshot that the cache has for the revision, if any.
    fn cached_folder(&self) -> Option<PathBuf> {
        let root = self.root();
        let named = std::fs::read_to_string(root.join("refs").join(self.revision));
        let commit = named.map_or_else(|_| self.revision.to_owned(), |c| c.trim().to_owned());
        Some(root.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
    }

    /// A file that the cached snapshot lacks, if any.
    fn missing(&self, folder: &Path) -> Option<String> {
        let files = list(folder);
        let needed = layout::needed(&files, self.prefer_half);
        let required = ["model_index.json", "unet/config.json", "vae/config.json"];
        if let Some(file) = required.iter().find(|f| !files.iter().any(|have| have == *f)) {
            return Some((*file).to_owned());
        }
        for (part, _) in layout::WEIGHTED {
            if !needed.iter().any(|f| f.starts_with(&format!("{part}/")) && f.contains(".safetensors")) {
                return Some(format!("{part}'s weights"));
            }
        }
        let shards =
            needed.iter().filter(|f| is_index(f)).flat_map(|f| shards(folder, f).unwrap_or_default());
        shards.into_iter().find(|shard| !files.contains(shard))
    }

    fn download(&self) -> Result<PathBuf, HubError> {
        let cache = &self.options.cache;
        std::fs::create_dir_all(cache).map_err(|e| self.cache_error(&e.to_string()))?;
        let api = ApiBuilder::new()
            .with_endpoint(self.options.endpoint.clone())
            .with_cache_dir(cache.clone())
            .with_token(self.options.token.clone())
            .with_progress(self.options.progress)
            .with_retries(3)
            .with_user_agent("gigasmith", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| self.explain("the connection", e))?;
        let info = api.repo(self.repo()).info().map_err(|e| self.explain("the file list", e))?;
        // From here on by commit, so that a branch that moves meanwhile gives no mixture.
        let pinned = api.repo(Repo::with_revision(self.id.to_owned(), RepoType::Model, info.sha.clone()));
        let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        let folder = self.root().join("snapshots").join(&info.sha);
        let mut needed: BTreeSet<String> = layout::needed(&files, self.prefer_half).into_iter().collect();
        if !needed.contains("model_index.json") {
            return Err(HubError::Transfer {
                id: self.id.to_owned(),
                file: "model_index.json".into(),
                reason: "the repository is not in the diffusers layout: it has no such file".into(),
            });
        }
        for file in needed.clone() {
            self.get(&pinned, &folder, &file)?;
            if is_index(&file) {
                let shards = shards(&folder, &file).map_err(|reason| HubError::Transfer {
                    id: self.id.to_owned(),
                    file,
                    reason,
                })?;
                needed.extend(shards);
            }
        }
        for file in &needed {
            self.get(&pinned, &folder, file)?;
        }
        self.remember(&info.sha)?;
        Ok(folder)
    }

    /// Fetches one file unless the snapshot has it.
    fn get(&self, repo: &ApiRepo, folder: &Path, file: &str) -> Result<(), HubError> {
        if folder.join(file).is_file() {
            return Ok(());
        }
        repo.download(file).map(drop).map_err(|e| self.explain(file, e))
    }

    /// Notes which commit the revision is.
    fn remember(&self, commit: &str) -> Result<(), HubError> {
        if is_commit(self.revision) {
            return Ok(());
        }
        let path = self.root().join("refs").join(self.revision);
        let write = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(&path, commit)
        };
        write().map_err(|e| self.cache_error(&e.to_string()))
    }

    fn cache_error(&self, reason: &str) -> HubError {
        HubError::Cache { cache: self.options.cache.display().to_string(), reason: reason.to_owned() }
    }

    /// What an error means for the user.
    fn explain(&self, file: &str, error: ApiError) -> HubError {
        let endpoint = self.options.endpoint.clone();
        let id = self.id.to_owned();
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(status @ (401 | 403)) => HubError::Refused { endpoint, id, status },
                ureq::Error::StatusCode(404) => {
                    HubError::Unknown { endpoint, id, revision: self.revision.to_owned() }
                }
                ureq::Error::StatusCode(status) => {
                    let reason = format!("the hub answered with status {status}; try again later");
                    HubError::Transfer { id, file: file.to_owned(), reason }
                }
                ureq::Error::Json(e) => HubError::Transfer {
                    id,
                    file: file.to_owned(),
                    reason: format!("not the JSON expected: {e}"),
                },
                other => HubError::Unreachable { endpoint, reason: other.to_string() },
            },
            ApiError::TooManyRetries(error) => self.explain(file, *error),
            ApiError::IoError(error) => self.cache_error(&error.to_string()),
            ApiError::LockAcquisition(path) => {
                let reason = format!(
                    "another program is fetching it (lock {}); wait, or remove the lock",
                    path.display()
                );
                HubError::Transfer { id, file: file.to_owned(), reason }
            }
            other => HubError::Transfer { id, file: file.to_owned(), reason: other.to_string() },
        }
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_index(file: &str) -> bool {
    file.contains(".safetensors.index.") && file.ends_with(".json")
}

/// The shards that an index in `folder` lists, by their paths inside the model.
fn shards(folder: &Path, index: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(folder.join(index)).map_err(|e| e.to_string())?;
    let json = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let files: BTreeSet<String> = layout::weight_map(&json)?.into_values().collect();
    let part = index.split_once('/').map_or("", |(part, _)| part);
    Ok(files.into_iter().map(|f| format!("{part}/{f}")).collect())
}

/// The files of a snapshot, two levels deep, as `part/file`.
fn list(folder: &Path) -> Vec<String> {
    let names = |dir: &Path| -> Vec<(PathBuf, String)> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| (e.path(), e.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut files = Vec::new();
    for (path, name) in names(folder) {
        if path.is_dir() {
            files.extend(
                names(&path).into_iter().filter(|(p, _)| p.is_file()).map(|(_, n)| format!("{name}/{n}")),
            );
        } else if path.is_file() {
            files.push(name);
        }
    }
    files
}
