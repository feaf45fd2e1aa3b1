//! Which versions of the control service work together: a client and a coordinator that are one apart.
//!
//! `control.proto` says how the version travels.

use axum::extract::Request as HttpRequest;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The version of the control service that this program speaks.
pub const CONTROL: u32 = 1;

/// The metadata that carries it.
const NAME: &str = "gigasmith-control";

/// Refuses clients that are too old or too new.
#[derive(Debug, Clone, Copy)]
pub struct Taken;

impl Interceptor for Taken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        check(request.metadata()).map(|()| request)
    }
}

fn check(metadata: &MetadataMap) -> Result<(), Status> {
    let Some(stated) = metadata.get(NAME) else { return Ok(()) };
    let stated = String::from_utf8_lossy(stated.as_encoded_bytes());
    match stated.parse::<u32>() {
        Ok(version) if version.abs_diff(CONTROL) <= 1 => Ok(()),
        _ => Err(Status::failed_precondition(format!(
            "the client speaks version {stated} of the control service, this coordinator version {CONTROL}: use \
             releases of gigasmith that are at most one version apart"
        ))),
    }
}

/// States our version with every request, beside what another interceptor adds.
#[derive(Debug, Clone)]
pub struct Stated<I>(pub I);

impl<I: Interceptor> Interceptor for Stated<I> {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = self.0.call(request)?;
        request.metadata_mut().insert(NAME, MetadataValue::from(CONTROL));
        Ok(request)
    }
}

/// States our version with every answer.
pub(super) async fn tell(request: HttpRequest, next: Next) -> Response {
    let mut answer = next.run(request).await;
    answer.headers_mut().insert(NAME, HeaderValue::from(CONTROL));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_apart_works_and_more_is_refused_with_both_numbers() {
        let says = |version: Option<&'static str>| {
            let mut metadata = MetadataMap::new();
            if let Some(version) = version {
                metadata.insert(NAME, MetadataValue::from_static(version));
            }
            check(&metadata).map_err(|status| (status.code(), status.message().to_owned()))
        };
        assert_eq!((says(None), says(Some("1")), says(Some("2"))), (Ok(()), Ok(()), Ok(())));
        for other in ["3", "x", "-1"] {
            let (code, message) = says(Some(other)).unwrap_err();
            assert_eq!(code, tonic::Code::FailedPrecondition);
            assert!(
                message.contains(&format!("version {other} ")) && message.contains("version 1:"),
                "{message}"
            );
        }
        let stated = Stated(Ok).call(Request::new(())).unwrap();
        assert!(check(stated.metadata()).is_ok() && stated.metadata().contains_key(NAME));
    }
}
