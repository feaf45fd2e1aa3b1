//! Requests to the hub: redirects, the token, patience. One thread; every call blocks it.
//!
//! Invariants: the token goes to the hub's own origin and nowhere else; nothing that was sent under TLS goes on
//! without; answers are asked for uncompressed.

use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Method, NoProxy, Proxy, Response, Url, redirect};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::error::{FILE_LIST, HubError, Problem, Subject};
use super::names;
use super::options::{HubOptions, Network, shown};
use super::remote::{FileMeta, RepoInfo, read_info, read_meta};
use super::tls;

const MOST_REDIRECTS: usize = 10;
/// A file list may be so long.
const MOST_JSON: usize = 64 << 20;
/// What a server may ask us to wait before the next try.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often a thing is asked for before it is given up.
pub(super) const TRIES: u32 = 5;

/// What a request is for.
enum Ask {
    /// What the hub says of a file, asked for in this way.
    Description(Method),
    /// What it has, or a part of it.
    Content(Option<String>),
}

/// A connection to the hub, for one model.
pub(super) struct Client<'a> {
    runtime: Runtime,
    http: reqwest::Client,
    hub: Url,
    token: Option<HeaderValue>,
    pub(super) network: &'a Network,
    pub(super) subject: Subject<'a>,
}

impl<'a> Client<'a> {
    pub(super) fn new(options: &'a HubOptions, id: &'a str, revision: &'a str) -> Result<Self, HubError> {
        let wrong = |what: &str| {
            let address = shown(&options.endpoint);
            HubError::setting(
                "HF_ENDPOINT",
                format!("`{address}` {what}; an address is like https://huggingface.co"),
            )
        };
        let hub = Url::parse(&options.endpoint).map_err(|e| wrong(&format!("is no address: {e}")))?;
        if !matches!(hub.scheme(), "http" | "https") || hub.cannot_be_a_base() {
            return Err(wrong("is no address that begins with http:// or https://"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| HubError::Unreachable {
            endpoint: shown(&options.endpoint),
            reason: format!("no connection can be made: {e}"),
        })?;
        Ok(Self {
            runtime,
            http: http(&options.network)?,
            token: header(options, &hub)?,
            hub,
            network: &options.network,
            subject: Subject { endpoint: &options.endpoint, id, revision },
        })
    }

    /// What the repository holds at the revision. With `tries` of one, an outage is noticed at once.
    pub(super) fn info(&self, tries: u32) -> Result<RepoInfo, HubError> {
        let mut url = self.hub.clone();
        let parts = ["api", "models"].into_iter().chain(self.subject.id.split('/'));
        let parts = parts.chain(["revision", self.subject.revision]);
        url.path_segments_mut().expect("checked in `new`").pop_if_empty().extend(parts);
        url.set_query(Some("blobs=true"));
        self.retried(FILE_LIST, tries, || {
            self.block_on(async {
                let response = succeed(self.send(&Ask::Content(None), &url).await?)?;
                read_info(&self.body(response).await?).map_err(Problem::Garbled)
            })
        })
    }

    /// Where a file of a commit is asked for.
    pub(super) fn file_url(&self, commit: &str, file: &str) -> Url {
        let mut url = self.hub.clone();
        let parts = self.subject.id.split('/').chain(["resolve", commit]).chain(file.split('/'));
        url.path_segments_mut().expect("checked in `new`").pop_if_empty().extend(parts);
        url
    }

    /// What the hub says of a file without sending it.
    pub(super) fn meta(&self, commit: &str, file: &str) -> Result<FileMeta, HubError> {
        let url = self.file_url(commit, file);
        self.retried(file, TRIES, || {
            self.block_on(async {
                let mut response = self.send(&Ask::Description(Method::HEAD), &url).await?;
                if matches!(response.status().as_u16(), 405 | 501) {
                    // A mirror that knows no HEAD. What it begins to send is left unread.
                    response = self.send(&Ask::Description(Method::GET), &url).await?;
                }
                let meta = read_meta(response.status(), response.headers(), commit).map_err(Problem::Garbled);
                if response.status().is_redirection() { meta } else { succeed(response).and(meta) }
            })
        })
    }

    /// Begins to download: from byte `from` on, where it is above 0 and the server can.
    pub(super) fn open(&self, url: &Url, from: u64) -> Result<Response, Problem> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = self.block_on(self.send(&Ask::Content(range), url))?;
        if response.status().as_u16() == 416 { Ok(response) } else { succeed(response) }
    }

    /// The next piece of a body; `None` at its end.
    pub(super) fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, Problem> {
        self.block_on(self.next(response))
    }

    async fn next(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, Problem> {
        let patience = self.network.data_timeout;
        match timeout(patience, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|e| Problem::Transport(chain(e))),
            Err(_) => Err(Problem::Transport(format!("no data for {} s", patience.as_secs_f64()))),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Problem> {
        let is_packed =
            response.headers().get(reqwest::header::CONTENT_ENCODING).is_some_and(|e| e == "gzip");
        let mut body = Vec::new();
        while let Some(chunk) = self.next(&mut response).await? {
            body.extend_from_slice(&chunk);
            if body.len() > MOST_JSON {
                return Err(Problem::Garbled(format!("more than {MOST_JSON} bytes")));
            }
        }
        if !is_packed {
            return Ok(body);
        }
        let mut plain = Vec::new();
        let decoder = flate2::read::MultiGzDecoder::new(body.as_slice());
        std::io::Read::read_to_end(&mut std::io::Read::take(decoder, MOST_JSON as u64), &mut plain)
            .map_err(|e| Problem::Garbled(format!("not the gzip it says it is: {e}")))?;
        Ok(plain)
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Waits before try number `tries` + 1 of something: as the server asks, or twice as long as last time.
    pub(super) fn pause(&self, problem: &Problem, tries: u32) {
        let asked = match problem {
            Problem::Status(_, asked) => asked.map(Duration::from_secs),
            _ => None,
        };
        let pause = self.network.retry_pause * (1 << tries.saturating_sub(1).min(6));
        std::thread::sleep(asked.unwrap_or(pause).max(pause).min(LONGEST_WAIT));
    }

    fn retried<T>(
        &self,
        what: &str,
        tries: u32,
        ask: impl Fn() -> Result<T, Problem>,
    ) -> Result<T, HubError> {
        let mut done = 0;
        loop {
            done += 1;
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(problem) if problem.passes() && done < tries => {
                    tracing::debug!(?problem, what, "trying again");
                    self.pause(&problem, done);
                }
                Err(problem) => return Err(problem.explain(self.subject, what, done)),
            }
        }
    }

    /// Sends a request and follows where the answers point. Who wants a description stops at an answer that has one of
    /// a file which lies elsewhere: what it says counts.
    async fn send(&self, ask: &Ask, url: &Url) -> Result<Response, Problem> {
        let (method, range) = match ask {
            Ask::Description(method) => (method, &None),
            Ask::Content(range) => (&Method::GET, range),
        };
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request =
                self.http.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.hub.origin()) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            let patience = self.network.answer_timeout;
            let response = match timeout(patience, request.send()).await {
                Ok(answer) => answer.map_err(|e| Problem::Transport(chain(e)))?,
                Err(_) => {
                    return Err(Problem::Transport(format!("no answer for {} s", patience.as_secs_f64())));
                }
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next = target(&url, response.headers())?;
            let describes = |name: &str| response.headers().contains_key(name);
            let is_elsewhere = next.origin() != url.origin();
            if matches!(ask, Ask::Description(_))
                && (describes("x-linked-etag") || (is_elsewhere && describes("etag")))
            {
                return Ok(response);
            }
            url = next;
        }
        Err(Problem::Garbled(format!("more than {MOST_REDIRECTS} redirects")))
    }
}

/// Where a redirect points.
fn target(url: &Url, headers: &HeaderMap) -> Result<Url, Problem> {
    let location = headers.get(LOCATION).map(|l| String::from_utf8_lossy(l.as_bytes()).into_owned());
    let location =
        location.ok_or_else(|| Problem::Garbled("a redirect that does not say where to".into()))?;
    let bad = |why: &str| Problem::Garbled(format!("a redirect to {:?}, {why}", shown(&location)));
    let mut next = url.join(&location).map_err(|_| bad("which is no address"))?;
    if !matches!(next.scheme(), "http" | "https") {
        return Err(bad("which is no web address"));
    }
    if url.scheme() == "https" && next.scheme() == "http" && !is_loopback(&next) {
        return Err(bad("which gives TLS up"));
    }
    // Names and passwords are ours to send, not a server's to make us send.
    if next.origin() != url.origin() {
        let _ = next.set_username("").and_then(|()| next.set_password(None));
    }
    Ok(next)
}

/// What a portal or a mirror sends in the place of a file.
const WEB_PAGE: &str =
    "a web page came in its place: does a network's login page or a proxy stand in between?";

/// An answer of success that is no web page: no file that a model needs is one.
fn succeed(response: Response) -> Result<Response, Problem> {
    if response.status().is_success() {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_page =
            kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"));
        return if is_page { Err(Problem::Garbled(WEB_PAGE.into())) } else { Ok(response) };
    }
    let wait = response.headers().get(RETRY_AFTER).and_then(|w| w.to_str().ok()?.trim().parse().ok());
    Err(Problem::Status(response.status().as_u16(), wait))
}

fn http(network: &Network) -> Result<reqwest::Client, HubError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::config(&network.certificates)?)
        .user_agent(concat!("gigasmith/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(network.answer_timeout)
        .http1_only()
        // Whatever the crate was built with elsewhere.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .no_proxy();
    for (is_tls, proxy) in [(false, &network.http_proxy), (true, &network.https_proxy)] {
        let Some((variable, address)) = proxy else { continue };
        let address = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        let scheme = address.split("://").next().unwrap_or_default();
        let is_known = matches!(scheme, "http" | "https" | "socks4" | "socks4a" | "socks5" | "socks5h");
        let made = if is_tls { Proxy::https(&address) } else { Proxy::http(&address) };
        let made = made.ok().filter(|_| is_known).ok_or_else(|| {
            HubError::setting(*variable, "it is no address of a proxy; one is like http://proxy.example:3128")
        })?;
        builder = builder.proxy(made.no_proxy(network.no_proxy.as_deref().and_then(NoProxy::from_string)));
    }
    builder
        .build()
        .map_err(|e| HubError::setting("the network", format!("no client can be made: {}", chain(e))))
}

/// The header with the token, and a word where anybody on the way can read it.
fn header(options: &HubOptions, hub: &Url) -> Result<Option<HeaderValue>, HubError> {
    let Some(token) = &options.token else { return Ok(None) };
    let value = HeaderValue::from_str(&format!("Bearer {token}")).ok();
    let is_plain = token.chars().all(|c| c.is_ascii_graphic());
    let mut value = value.filter(|_| is_plain).ok_or_else(|| {
        HubError::setting(
            "HF_TOKEN (or the file of the stored token)",
            "the token has characters that cannot be sent; a token is letters, digits and `_`: copy it again",
        )
    })?;
    value.set_sensitive(true);
    if hub.scheme() == "http" && !is_loopback(hub) {
        tracing::warn!(
            endpoint = shown(&options.endpoint),
            "the token is sent without TLS, because HF_ENDPOINT says so: anybody on the way can read it"
        );
    }
    Ok(Some(value))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// All that an error of the transport has to say, without addresses: they may be signed.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut parts = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = inner.source();
    }
    let mut said = parts.join(": ");
    if said.contains("UnknownIssuer") || said.contains("invalid peer certificate") {
        said += "; behind a company's proxy, set SSL_CERT_FILE to the certificates of its authority (PEM)";
    }
    said
}

/// Whether a revision is a commit, which cannot move.
pub(super) fn is_commit(revision: &str) -> bool {
    names::is_commit(revision)
}
