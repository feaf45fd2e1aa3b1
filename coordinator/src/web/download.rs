//! A finished picture's file, whole or in part, so that a download that broke goes on where it was.
//!
//! Bytes come from the store as they are sent; a part is read as a part.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_stream::StreamExt;

use super::Problem;
use super::conditional::{Wanted, is_known, is_refused, wanted};
use crate::output::Kind;
use crate::store::{PictureFile, StoreError};

/// Answers a request for `file`, the picture of the render `id`.
pub(super) async fn answer(
    id: &str,
    file: &PictureFile,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let tag = format!("\"{}\"", file.version);
    if is_refused(headers, &tag) {
        return Err(Problem(
            StatusCode::PRECONDITION_FAILED,
            format!("the picture of {id} is another by now"),
        ));
    }
    let mut answer = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match wanted(headers, &tag, file.size) {
            Wanted::All => sent(file, 0..file.size, method).await?,
            Wanted::Part(bytes) => {
                let range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, file.size);
                let mut part = sent(file, bytes, method).await?;
                *part.status_mut() = StatusCode::PARTIAL_CONTENT;
                part.headers_mut().insert(header::CONTENT_RANGE, text(&range));
                part
            }
            Wanted::Nothing => {
                let reason = format!("the picture of {id} has {} bytes", file.size);
                let mut none = Problem(StatusCode::RANGE_NOT_SATISFIABLE, reason).into_response();
                none.headers_mut().insert(header::CONTENT_RANGE, text(&format!("bytes */{}", file.size)));
                return Ok(none);
            }
        }
    };
    let set = answer.headers_mut();
    let name = format!("attachment; filename=\"{id}.{}\"", file.kind.extension());
    set.insert(header::CONTENT_DISPOSITION, text(&name));
    set.insert(header::ETAG, text(&tag));
    set.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Whoever has it asks whether it is still the same.
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(answer)
}

async fn sent(file: &PictureFile, bytes: std::ops::Range<u64>, method: &Method) -> Result<Response, Problem> {
    let length = bytes.end - bytes.start;
    let body = match *method {
        Method::HEAD => Body::empty(),
        _ => Body::from_stream(file.read(bytes).await.map_err(|e| away(&e))?.map(logged)),
    };
    let kind = if file.kind == Kind::Tif { "image/tiff" } else { "image/png" };
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    Ok((headers, body).into_response())
}

/// A download that the store breaks off ends early, which the browser notices; why is in the log.
fn logged<T>(piece: Result<T, StoreError>) -> Result<T, StoreError> {
    piece.inspect_err(|error| tracing::warn!(%error, "a download breaks off"))
}

/// The store's own words are for the log.
pub(super) fn away(error: &StoreError) -> Problem {
    tracing::warn!(%error, "the store did not give what was asked for");
    let said = "the store does not give it now; the coordinator's log says why";
    Problem(StatusCode::SERVICE_UNAVAILABLE, said.to_owned())
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("ids, digits and endings are plain text")
}
