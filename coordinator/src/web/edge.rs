//! What every answer over plain HTTP has in common, whatever made it.
//!
//! Nothing may be framed, sniffed, embedded by another site's page, or kept by a cache, unless its handler says
//! otherwise. Every error is JSON of one shape, `{"error": "..."}`: also those of the router and its
//! extractors, whose own texts tell of our insides.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;

/// Bytes of request headers: those of a browser with many cookies are a few thousand.
const HEADERS: usize = 32 << 10;

/// What an answer has unless its handler set another.
const DEFAULTS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Around every route.
pub(super) async fn edge(request: Request, next: Next) -> Response {
    let size: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > HEADERS {
        let message = format!("the request's headers have {size} bytes: at most {HEADERS} are read");
        return finish(Problem(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message).into_response());
    }
    finish(next.run(request).await)
}

/// Gives an answer what all have.
pub(super) fn finish(answer: Response) -> Response {
    let mut answer = shaped(answer);
    let headers = answer.headers_mut();
    for (name, value) in DEFAULTS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

/// Errors that are not ours get our shape, and keep their status and headers.
fn shaped(answer: Response) -> Response {
    let status = answer.status();
    let kind = answer.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || kind.is_some_and(|kind| kind.starts_with(b"application/json")) {
        return answer;
    }
    let mut said = Problem(status, meaning(status).to_owned()).into_response();
    for (name, value) in answer.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            said.headers_mut().append(name, value.clone());
        }
    }
    said
}

fn meaning(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "the request is malformed: see its address, its numbers and its body",
        StatusCode::NOT_FOUND => "there is no such page",
        StatusCode::METHOD_NOT_ALLOWED => "this address does not take this method",
        StatusCode::REQUEST_TIMEOUT => "the request did not come in time",
        StatusCode::PAYLOAD_TOO_LARGE => "the request's body is too large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "the body must be of the type application/json",
        StatusCode::UNPROCESSABLE_ENTITY => "the body is not what this address takes",
        status if status.is_server_error() => "the coordinator failed at this; its log says why",
        _ => "the request is refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_error_has_one_shape_and_tells_nothing_of_the_inside() {
        let inner = "error reading a body from connection: hyper::Error(Body, Kind(TimedOut))";
        for code in [400, 404, 405, 408, 413, 415, 422, 500, 502] {
            let status = StatusCode::from_u16(code).unwrap();
            let answer = finish((status, [(header::ALLOW, "GET,HEAD")], inner).into_response());
            assert_eq!(
                (answer.status(), &answer.headers()[header::ALLOW]),
                (status, &"GET,HEAD".parse().unwrap())
            );
            let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert!(!said["error"].as_str().unwrap().contains("hyper"), "{said}");
        }
    }

    #[test]
    fn what_a_handler_says_stands() {
        let answer = finish(([(header::CACHE_CONTROL, "private, max-age=86400")], "text").into_response());
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "private, max-age=86400");
        assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(answer.headers()["cross-origin-resource-policy"], "same-origin");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    }
}
