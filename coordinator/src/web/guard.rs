//! Who may look and change things over HTTP.
//!
//! A farm with a token asks for it: as a bearer, as everywhere, or once in a form, after which a cookie
//! shows it. The cookie is a hash of the token, no script can read it, and no other site's page makes a
//! browser send it. A farm without a token listens on this machine only; what could still reach it is a page
//! of another site in a browser here. So changes need a header that such a page may not send, and the name
//! by which we are called must be this machine's, which no other site's page can make it. Browsers also say
//! when a page of another site embeds something of ours, and get nothing then.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use super::Problem;
use crate::net::auth::Gate;

const COOKIE: &str = "gigasmith";
/// The header that changes need.
const HEADER: &str = "x-gigasmith";

/// Tokens that are looked at, at a time: guessing in parallel gains nothing beyond it.
const GUESSES: usize = 8;

/// Places for those who show a token in the form.
#[derive(Debug, Clone)]
pub(super) struct Guesses(Arc<Semaphore>);

impl Default for Guesses {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(GUESSES)))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Login {
    token: String,
}

/// Whether a request shows the token.
pub(super) fn shows_token(gate: &Gate, headers: &HeaderMap) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    let bearer = bearer.and_then(|h| h.strip_prefix("Bearer "));
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|h| h.to_str().ok());
    let pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut sessions = pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value);
    gate.opens_to(bearer) || sessions.any(|session| gate.knows_session(session))
}

/// Takes the token from a form, and answers with the cookie that shows it.
pub(super) async fn login(
    State(gate): State<Gate>,
    Extension(guesses): Extension<Guesses>,
    connection: Extensions,
    headers: HeaderMap,
    Json(login): Json<Login>,
) -> Result<Response, Problem> {
    check_change(&headers)?;
    let _place = guesses.0.acquire().await.expect("nobody closes it");
    let Some(session) = gate.session(login.token.trim()) else {
        // Guessing takes its time.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let wrong = "this is not the farm's token: it is in the file that --token-file names";
        return Err(Problem(StatusCode::UNAUTHORIZED, wrong.into()));
    };
    let cookie = cookie(&session, is_encrypted(&connection, &headers));
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

fn cookie(session: &str, is_encrypted: bool) -> String {
    let secure = if is_encrypted { "; Secure" } else { "" };
    format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000{secure}")
}

/// Whether the browser reached us over TLS: ours, or that of a proxy, for which the page's own address speaks.
fn is_encrypted(connection: &Extensions, headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|h| h.to_str().ok()).unwrap_or_default();
    connection.get::<TlsConnectInfo<TcpConnectInfo>>().is_some() || origin.starts_with("https://")
}

/// Lets requests in that may come in.
pub(super) async fn check(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (headers, uri) = (request.headers(), request.uri());
    let change = request.method() != axum::http::Method::GET && request.method() != axum::http::Method::HEAD;
    let checked = if change { check_change(headers) } else { Ok(()) };
    let checked = checked.and_then(|()| check_site(headers)).and_then(|()| {
        match (gate.is_open(), shows_token(&gate, headers)) {
            (true, _) => check_name(headers, uri),
            (false, true) => Ok(()),
            (false, false) => {
                Err(Problem(StatusCode::UNAUTHORIZED, "this farm asks for its token".to_owned()))
            }
        }
    });
    match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// A change must come from a page of ours, or a program.
fn check_change(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.contains_key(HEADER) {
        true => Ok(()),
        false => Err(Problem(StatusCode::FORBIDDEN, format!("changes need the header {HEADER}: 1"))),
    }
}

/// A page of another site may lead here, and embed nothing of ours. Programs say nothing of the kind.
fn check_site(headers: &HeaderMap) -> Result<(), Problem> {
    let said = |name| headers.get(name).map_or(&b""[..], |value| value.as_bytes());
    match (said("sec-fetch-site"), said("sec-fetch-mode")) {
        (b"" | b"none" | b"same-origin", _) | (_, b"navigate") => Ok(()),
        _ => Err(Problem(StatusCode::FORBIDDEN, "a page of another site asks: it gets nothing".to_owned())),
    }
}

/// Whoever asks must call us by a name of this machine, and by one.
fn check_name(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let given = headers.get_all(header::HOST).into_iter().map(|h| h.to_str().unwrap_or_default().to_owned());
    let given: Vec<String> = given.chain(uri.authority().map(ToString::to_string)).collect();
    if !given.is_empty() && given.iter().all(|host| is_local(host)) {
        return Ok(());
    }
    let host = given.iter().find(|host| !is_local(host)).map_or("", String::as_str);
    let message = format!(
        "a farm without a token is for this machine only, and `{host}` is no name of it: use 127.0.0.1, or \
         `gigasmith serve --token-file`"
    );
    Err(Problem(StatusCode::FORBIDDEN, message))
}

/// `NAME` or `NAME:PORT` of this machine, and nothing more.
fn is_local(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return false;
    }
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Whether a form must be filled in.
pub(super) async fn mode(State(gate): State<Gate>, headers: HeaderMap) -> Json<serde_json::Value> {
    let login = !gate.is_open() && !shows_token(&gate, &headers);
    Json(json!({ "mode": "farm", "version": super::version(), "login": login }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_known() {
        for local in ["localhost", "LOCALHOST:7464", "127.0.0.1:7464", "127.8.0.1", "[::1]:7464", "[::1]"] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "evil.example",
            "evil.example:7464",
            "127.0.0.1.evil.example",
            "",
            "[",
            "10.0.0.7:7464",
            "localhost:80@evil.example",
            "localhost@evil.example",
            "localhost:",
            "localhost:80:90",
            "localhost, evil.example",
            "[::1]evil.example",
            "[::1]:80@evil.example",
            "localhost/",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }

    #[test]
    fn every_name_that_is_given_must_be_local() {
        let check = |hosts: &[&str], uri: &str| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().unwrap());
            }
            check_name(&headers, &uri.parse().unwrap()).is_ok()
        };
        assert!(check(&["localhost"], "/") && check(&[], "http://localhost/"));
        assert!(!check(&[], "/") && !check(&["localhost"], "http://evil.example/"));
        assert!(!check(&["localhost", "evil.example"], "/"));
    }

    #[test]
    fn other_sites_may_lead_here_and_embed_nothing() {
        let check = |site: &str, mode: &str| {
            let name = header::HeaderName::from_static;
            let pairs = [("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
            check_site(&given.map(|(n, value)| (name(n), value.parse().unwrap())).collect()).is_ok()
        };
        assert!(check("", "") && check("same-origin", "cors") && check("none", "navigate"));
        assert!(check("cross-site", "navigate"));
        assert!(
            !check("cross-site", "no-cors") && !check("same-site", "no-cors") && !check("cross-site", "")
        );
    }

    #[test]
    fn an_encrypted_connection_makes_a_cookie_that_stays_encrypted() {
        let origin = |text: &str| HeaderMap::from_iter([(header::ORIGIN, text.parse().unwrap())]);
        assert!(is_encrypted(&Extensions::new(), &origin("https://farm.example")));
        assert!(!is_encrypted(&Extensions::new(), &origin("http://127.0.0.1:7464")));
        assert!(!is_encrypted(&Extensions::new(), &HeaderMap::new()));
        assert!(cookie("a", true).ends_with("; Secure") && !cookie("a", false).contains("Secure"));
    }

    #[test]
    fn bearer_and_cookie_show_the_token() {
        let gate = Gate::new(Some("secret"));
        let shows = |name: header::HeaderName, value: String| {
            let headers = HeaderMap::from_iter([(name, value.parse().unwrap())]);
            shows_token(&gate, &headers)
        };
        let session = gate.session("secret").unwrap();
        assert!(shows(header::AUTHORIZATION, "Bearer secret".into()));
        assert!(shows(header::COOKIE, format!("a=b; gigasmith={session}")));
        assert!(!shows(header::COOKIE, "gigasmith=secret".into()));
        assert!(!shows(header::AUTHORIZATION, format!("Bearer {session}")));
        assert!(!shows(header::COOKIE, format!("other={session}")));
        assert_eq!(gate.session("wrong"), None);
        assert!(!session.contains("secret"));
    }
}
