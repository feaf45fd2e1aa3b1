//! How to reach the hub and where its cache is: the variables of the hub's own clients.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";
const SECONDS: Duration = Duration::from_secs(10);

/// How to reach the hub and where its cache is.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The cache folder (`.../huggingface/hub`).
    pub cache: PathBuf,
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// A token for models that want a permission.
    pub token: Option<String>,
    /// Don't touch the network.
    pub offline: bool,
    /// Show progress on standard error: bars on a terminal, else a line now and then.
    pub progress: bool,
    /// Whether files of a snapshot are links to what the cache has once; copies otherwise.
    pub links: bool,
    /// What lies between here and the hub.
    pub network: Network,
}

/// What lies between here and the hub.
#[derive(Clone, PartialEq, Eq)]
pub struct Network {
    /// Proxies, as (variable, address).
    pub(super) http_proxy: Option<(&'static str, String)>,
    pub(super) https_proxy: Option<(&'static str, String)>,
    /// Hosts that are reached without.
    pub(super) no_proxy: Option<String>,
    /// Files and folders of certificates to trust instead of the usual ones, as (variable, path).
    pub(super) certificates: Vec<(&'static str, PathBuf)>,
    /// How long an answer may take.
    pub answer_timeout: Duration,
    /// How long a download may stand still.
    pub data_timeout: Duration,
    /// How long to wait before the first retry; each one after waits twice as long.
    pub retry_pause: Duration,
}

/// Neither the token nor what an address may hold of a password.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &shown(&self.endpoint))
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("progress", &self.progress)
            .field("links", &self.links)
            .field("network", &self.network)
            .finish()
    }
}

/// Addresses of proxies may hold passwords.
impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables =
            [&self.http_proxy, &self.https_proxy].map(|p| p.as_ref().map(|(variable, _)| variable));
        f.debug_struct("Network")
            .field("proxies_of", &variables)
            .field("no_proxy", &self.no_proxy)
            .field("certificates", &self.certificates)
            .field("answer_timeout", &self.answer_timeout)
            .field("data_timeout", &self.data_timeout)
            .field("retry_pause", &self.retry_pause)
            .finish()
    }
}

impl HubOptions {
    /// The options that the variables of the hub's own clients ask for. `lookup` gives a variable's value.
    ///
    /// Where: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`; in paths `~` and
    /// `$VARIABLES` are resolved. Who: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`. How: `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`, `HF_HUB_ETAG_TIMEOUT`,
    /// `HF_HUB_DOWNLOAD_TIMEOUT` (seconds), `HF_HUB_DISABLE_PROGRESS_BARS`, `HF_HUB_DISABLE_SYMLINKS`. Between:
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in small letters too; `SSL_CERT_FILE`, `SSL_CERT_DIR`,
    /// `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let variables = Variables(&lookup);
        let home = variables.path("HF_HOME").unwrap_or_else(|| {
            let caches = variables.get("XDG_CACHE_HOME").unwrap_or_else(|| "~/.cache".to_owned());
            variables.resolved(&caches).join("huggingface")
        });
        let cache = variables.path("HF_HUB_CACHE").or_else(|| variables.path("HUGGINGFACE_HUB_CACHE"));
        let endpoint = variables.get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let offline = variables.get("HF_HUB_OFFLINE").or_else(|| variables.get("TRANSFORMERS_OFFLINE"));
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            token: variables.token(&home),
            offline: offline.is_some_and(|v| is_true(&v)),
            progress: !variables.on("HF_HUB_DISABLE_PROGRESS_BARS"),
            links: !variables.on("HF_HUB_DISABLE_SYMLINKS"),
            network: variables.network(),
        }
    }

    /// [`Self::from_lookup`] with the process's own environment.
    pub fn from_env() -> Self {
        Self::from_lookup(|key| std::env::var(key).ok())
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// Variables by name; empty ones count as unset.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, key: &str) -> Option<String> {
        (self.0)(key).filter(|v| !v.is_empty())
    }

    fn on(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| is_true(&v))
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.get(key).map(|v| self.resolved(&v))
    }

    /// A path with `~` at its beginning and `$NAME` and `${NAME}` anywhere resolved; unknown ones stay.
    fn resolved(&self, path: &str) -> PathBuf {
        let home = || self.get("HOME").or_else(|| self.get("USERPROFILE")).unwrap_or_default();
        let path = match path.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with(['/', std::path::MAIN_SEPARATOR]) => {
                home() + rest
            }
            _ => path.to_owned(),
        };
        let (mut done, mut rest) = (String::new(), path.as_str());
        while let Some((before, after)) = rest.split_once('$') {
            done += before;
            let (name, end) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
                Some((name, end)) => (name, end),
                None => {
                    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len()))
                }
            };
            match (self.0)(name).filter(|_| !name.is_empty()) {
                Some(value) => done += &value,
                None => {
                    done.push('$');
                    done += &after[..after.len() - end.len()];
                }
            }
            rest = end;
        }
        PathBuf::from(done + rest)
    }

    fn token(&self, home: &Path) -> Option<String> {
        if self.on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        // A token that was copied with the end of its line, or in two lines.
        let clean = |token: String| token.replace(['\r', '\n'], "").trim().to_owned();
        let stored = || {
            let path = self.path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            std::fs::read_to_string(&path)
                .inspect_err(|error| {
                    if error.kind() != std::io::ErrorKind::NotFound {
                        tracing::warn!(path = %path.display(), %error, "the stored token cannot be read");
                    }
                })
                .ok()
        };
        let given = self.get("HF_TOKEN").or_else(|| self.get("HUGGING_FACE_HUB_TOKEN"));
        // As elsewhere, a variable of nothing but white space is none; then the stored token counts.
        given.map(clean).filter(|t| !t.is_empty()).or_else(|| stored().map(clean).filter(|t| !t.is_empty()))
    }

    fn network(&self) -> Network {
        let first = |names: &[&'static str]| names.iter().find_map(|n| Some((*n, self.get(n)?)));
        let all = || first(&["all_proxy", "ALL_PROXY"]);
        // In a CGI program the request's header `Proxy` would be HTTP_PROXY.
        let is_cgi = self.get("REQUEST_METHOD").is_some();
        let http: &[_] = if is_cgi { &["http_proxy"] } else { &["http_proxy", "HTTP_PROXY"] };
        let mut certificates: Vec<(&'static str, PathBuf)> =
            ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
                .into_iter()
                .filter_map(|name| Some((name, self.path(name)?)))
                .collect();
        if let Some(folders) = self.get("SSL_CERT_DIR") {
            certificates.extend(std::env::split_paths(&folders).map(|folder| ("SSL_CERT_DIR", folder)));
        }
        let seconds = |name: &str| {
            let number =
                self.get(name)?.trim().parse::<f64>().ok().filter(|n| (0.001..=86_400.0).contains(n));
            if number.is_none() {
                tracing::warn!(
                    "{name} is no number of seconds above 0 and up to a day; using {}",
                    SECONDS.as_secs()
                );
            }
            number.map(Duration::from_secs_f64)
        };
        Network {
            http_proxy: first(http).or_else(all),
            https_proxy: first(&["https_proxy", "HTTPS_PROXY"]).or_else(all),
            no_proxy: first(&["no_proxy", "NO_PROXY"]).map(|(_, hosts)| hosts),
            certificates,
            answer_timeout: seconds("HF_HUB_ETAG_TIMEOUT").unwrap_or(SECONDS),
            data_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT").unwrap_or(SECONDS),
            retry_pause: Duration::from_secs(1),
        }
    }
}

/// An address without the name and password it may hold.
pub(super) fn shown(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
            format!("{scheme}://{host}{}", &rest[end..])
        }
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_passwords() {
        assert_eq!(shown("https://a:b@host:1/x@y"), "https://host:1/x@y");
        assert_eq!(shown("https://host"), "https://host");
    }
}
