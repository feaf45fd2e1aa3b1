//! The pages' own files, inside the binary.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use include_dir::{Dir, include_dir};

use super::Problem;
use super::conditional::is_known;

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/web");

/// What a page may load: its own files, and pictures that it makes. The hash is that of the one style that
/// OpenSeadragon adds; another version of it may need another.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; \
                      style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; \
                      object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

pub(super) async fn index(headers: HeaderMap) -> Result<Response, Problem> {
    file("index.html", &headers)
}

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    file(&name, &headers)
}

fn file(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let file = FILES.get_file(name).ok_or_else(|| Problem::missing(format!("there is no file {name}")))?;
    let tag = format!("\"{}\"", &blake3::hash(file.contents()).to_hex()[..16]);
    let constant = |text: &'static str| HeaderValue::from_static(text);
    let mut answer = match is_known(headers, &tag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => file.contents().into_response(),
    };
    let set = answer.headers_mut();
    set.insert(header::CONTENT_TYPE, constant(media_type(name)));
    set.insert(header::CACHE_CONTROL, constant("no-cache"));
    set.insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits"));
    set.insert(header::CONTENT_SECURITY_POLICY, constant(POLICY));
    Ok(answer)
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        _ => "text/plain; charset=utf-8",
    }
}
