//! Who may look and change things over HTTP.
//!
//! A farm with a token asks for it: as a bearer, as everywhere, or once in a form, after which a cookie
//! shows it. The cookie is a hash of the token, no script can read it, and no other site's page makes a
//! browser send it. A farm without a token listens on this machine only; what could still reach it is a page
//! of another site in a browser here. So changes need a header that such a page may not send, and the name
//! by which we are called must be this machine's, which no other site's page can make it.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::Problem;
use crate::net::auth::Gate;

const COOKIE: &str = "gigasmith";
/// The header that changes need.
const HEADER: &str = "x-gigasmith";

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
    headers: HeaderMap,
    Json(login): Json<Login>,
) -> Result<Response, Problem> {
    check_change(&headers)?;
    let Some(session) = gate.session(login.token.trim()) else {
        // Guessing takes its time.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let wrong = "this is not the farm's token: it is in the file that --token-file names";
        return Err(Problem(StatusCode::UNAUTHORIZED, wrong.into()));
    };
    let cookie = format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000");
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Lets requests in that may come in.
pub(super) async fn check(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (headers, uri) = (request.headers(), request.uri());
    let change = request.method() != axum::http::Method::GET && request.method() != axum::http::Method::HEAD;
    let checked = if change { check_change(headers) } else { Ok(()) };
    let checked = checked.and_then(|()| match (gate.is_open(), shows_token(&gate, headers)) {
        (true, _) => check_name(headers, uri),
        (false, true) => Ok(()),
        (false, false) => Err(Problem(StatusCode::UNAUTHORIZED, "this farm asks for its token".to_owned())),
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

/// Whoever asks must call us by a name of this machine.
fn check_name(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let host = host.or_else(|| uri.authority().map(ToString::to_string)).unwrap_or_default();
    if is_local(&host) {
        return Ok(());
    }
    let message = format!(
        "a farm without a token is for this machine only, and `{host}` is no name of it: use 127.0.0.1, or \
         `gigasmith serve --token-file`"
    );
    Err(Problem(StatusCode::FORBIDDEN, message))
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
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
        for foreign in
            ["evil.example", "evil.example:7464", "127.0.0.1.evil.example", "", "[", "10.0.0.7:7464"]
        {
            assert!(!is_local(foreign), "{foreign}");
        }
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
