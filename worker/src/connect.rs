//! How a process reaches a coordinator: address, encryption, token. Workers and people alike.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use gigasmith_proto::text::Shown;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// Where a coordinator listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:7464";
/// Bytes in flight per stream: several of the largest tiles, so that no patch waits for a window update.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that does not answer a ping for so long is broken. An answer may have to wait behind a
/// large result on a slow line.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// How to reach the coordinator.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// The coordinator's address: http://HOST:PORT, or https:// where it speaks TLS.
    #[arg(long, value_name = "URL", default_value = DEFAULT_ADDRESS, global = true)]
    pub coordinator: String,
    /// A file with the farm's shared token.
    #[arg(long, value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// Certificate of the authority that signed the coordinator's certificate, for https://.
    #[arg(long, value_name = "FILE.pem", global = true)]
    pub tls_ca: Option<PathBuf>,
    /// Our own certificate, where the coordinator asks for one.
    #[arg(long, value_name = "FILE.pem", requires = "tls_key", global = true)]
    pub tls_cert: Option<PathBuf>,
    /// The key of our own certificate.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert", global = true)]
    pub tls_key: Option<PathBuf>,
}

/// Why a coordinator cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address makes no sense.
    #[error("coordinator {0} is no address: give http://HOST:PORT or https://HOST:PORT")]
    Address(String),
    /// A file cannot be read or used.
    #[error("cannot use {path}: {reason}")]
    File {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A certificate without its key, or the reverse.
    #[error("--tls-cert and --tls-key belong together: give both")]
    HalfIdentity,
    /// Nobody answers, or not in our language.
    #[error("cannot reach the coordinator at {address}: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why not, and what to try.
        reason: String,
    },
}

/// The farm's shared token, put on every request.
#[derive(Clone, Default)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Token(hidden)" } else { "Token(none)" })
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Reads a token file: one line, trimmed, at least 16 characters.
pub fn read_token(path: &Path) -> Result<String, ConnectError> {
    let fail = |reason: String| ConnectError::File { path: path.display().to_string(), reason };
    let token = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    let token = token.trim();
    let is_plain = token.bytes().all(|b| b.is_ascii_graphic());
    if token.len() < 16 || !is_plain {
        let remedy = "make one with `openssl rand -hex 32`";
        return Err(fail(format!("a token is one line of at least 16 printable characters; {remedy}")));
    }
    Ok(token.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path)
        .map_err(|e| ConnectError::File { path: path.display().to_string(), reason: e.to_string() })
}

impl ConnectArgs {
    /// The token to show.
    pub fn token(&self) -> Result<Token, ConnectError> {
        let Some(path) = &self.token_file else { return Ok(Token(None)) };
        let header = format!("Bearer {}", read_token(path)?);
        let header = header.parse().expect("a token is printable");
        Ok(Token(Some(header)))
    }

    /// Whether the token can be read on its way: it is sent unencrypted, and not to this machine itself.
    pub fn shows_token(&self) -> bool {
        self.token_file.is_some() && is_plain_and_remote(&self.coordinator)
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let address = || ConnectError::Address(self.coordinator.clone());
        let endpoint = Endpoint::from_shared(self.coordinator.clone()).map_err(|_| address())?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true);
        match endpoint.uri().scheme_str() {
            Some("http") => Ok(endpoint),
            Some("https") => {
                let mut tls = ClientTlsConfig::new().with_webpki_roots();
                if let Some(path) = &self.tls_ca {
                    tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?));
                }
                match (&self.tls_cert, &self.tls_key) {
                    (None, None) => {}
                    (Some(cert), Some(key)) => {
                        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
                    }
                    // Also from a settings file.
                    _ => return Err(ConnectError::HalfIdentity),
                }
                endpoint
                    .tls_config(tls)
                    .map_err(|e| ConnectError::File { path: "the TLS files".into(), reason: explain(&e) })
            }
            _ => Err(address()),
        }
    }

    /// A channel that connects when it is first used, and again whenever it has to.
    pub fn lazy(&self) -> Result<Channel, ConnectError> {
        Ok(self.endpoint()?.connect_lazy())
    }

    /// Connects now.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        self.endpoint()?.connect().await.map_err(|e| self.unreachable(&explain(&e)))
    }

    /// What to say when the coordinator cannot be reached.
    pub fn unreachable(&self, reason: &str) -> ConnectError {
        let reason = format!("{reason}{}", hint(&self.coordinator, reason));
        ConnectError::Unreachable { address: self.coordinator.clone(), reason }
    }
}

/// Whether an address is reached without encryption, and through a network.
fn is_plain_and_remote(address: &str) -> bool {
    let Ok(uri) = address.parse::<tonic::transport::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    uri.scheme_str() == Some("http") && !is_here
}

/// What to try when a coordinator that never answered cannot be reached for a reason; empty when nothing comes to
/// mind.
pub fn hint(address: &str, reason: &str) -> &'static str {
    let is_plain = address.starts_with("http://");
    match () {
        () if reason.contains("refused") => "; is `gigasmith serve` running there?",
        // How the other side hangs up depends on who is faster.
        () if is_plain
            && ["http2 error", "canceled", "reset", "roken pipe", "closed"]
                .iter()
                .any(|w| reason.contains(w)) =>
        {
            "; if it speaks TLS, use https:// and --tls-ca"
        }
        () if reason.contains("UnknownIssuer") => "; pass its authority with --tls-ca",
        () if reason.contains("InvalidContentType") => "; it seems to speak no TLS: use http://",
        () if reason.contains("CertificateRequired") || reason.contains("canceled") => {
            "; it wants a certificate: --tls-cert and --tls-key"
        }
        () if reason.contains("NotValidForName") => {
            "; its certificate is for other names: issue one with `gigasmith certs issue --host`"
        }
        () => "",
    }
}

/// The same for one that answered before: it speaks what we do, so that a connection that breaks is just that.
pub(crate) fn hint_again(reason: &str) -> &'static str {
    if reason.contains("refused") { "; is it being restarted?" } else { "" }
}

/// What a status says, with the causes of one that arose on our side of the connection.
pub fn describe(status: &Status) -> String {
    chain(status, status.message())
}

/// An error and its causes in one line.
pub fn explain(error: &dyn std::error::Error) -> String {
    chain(error, &error.to_string())
}

/// The same with another first part, without what says nothing.
fn chain(error: &dyn std::error::Error, text: &str) -> String {
    let mut parts = vec![text.to_owned()];
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !parts.iter().any(|p| p.contains(&cause_text)) {
            parts.push(cause_text);
        }
        source = cause.source();
    }
    let says_nothing = |p: &String| ["transport error", "h2 protocol error", ""].contains(&p.as_str());
    if parts.iter().any(|p| !says_nothing(p)) {
        parts.retain(|p| !says_nothing(p));
    }
    // The other side may have written it.
    Shown(&parts.join(": ")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_safe_on_this_machine_and_in_tls() {
        for remote in [
            "http://10.0.0.1:7464",
            "http://farm.example:7464",
            "http://[2001:db8::1]:7464",
            "http://0.0.0.0",
        ] {
            assert!(is_plain_and_remote(remote), "{remote}");
        }
        for safe in [
            DEFAULT_ADDRESS,
            "http://localhost:1",
            "http://LOCALHOST:1",
            "http://127.8.9.1:1",
            "http://[::1]:7464",
            "http://[::ffff:127.0.0.1]:7464",
            "https://10.0.0.1:7464",
            "nonsense",
        ] {
            assert!(!is_plain_and_remote(safe), "{safe}");
        }
    }

    #[test]
    fn only_a_coordinator_that_never_answered_may_speak_tls() {
        for broken in ["broken pipe", "connection reset by peer", "http2 error", "operation was canceled"] {
            assert!(hint("http://farm:1", broken).contains("--tls-ca"), "{broken}");
            assert_eq!(hint_again(broken), "");
        }
        assert!(hint("http://farm:1", "connection refused").contains("gigasmith serve"));
        assert!(hint_again("connection refused").contains("restarted"));
        assert_eq!(hint("https://farm:1", "broken pipe"), "");
    }

    #[test]
    fn what_a_server_says_has_no_effect_on_a_terminal() {
        assert_eq!(describe(&Status::aborted("\x1b[2Jgone")), "\\u{1b}[2Jgone");
    }
}
