//! What people, their scripts and autoscalers ask of a coordinator: over gRPC, and on the same port over plain
//! HTTP ([`crate::web`]).

mod scaler;
mod service;
pub mod version;

pub use scaler::server as scaler;
pub use service::server;

use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Version};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;

use crate::farm::{Farm, service as farm_service};
use crate::jobs::Jobs;
use crate::net::Tasks;
use crate::net::auth::Gate;
use crate::web::{self, FarmPages};

/// Lets only gRPC clients make calls. A page of another site may post to us in a browser, but neither over
/// HTTP/2 without encryption nor with this content type, unless we allowed it, which we never do.
async fn only_grpc(request: Request, next: Next) -> Response {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if request.version() == Version::HTTP_2 && kind.starts_with("application/grpc") {
        return next.run(request).await;
    }
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, "this is a gRPC call: HTTP/2 and application/grpc are needed\n")
        .into_response()
}

/// Everything a coordinator serves on its port. Workers and people show the token; probes, reflection and
/// autoscalers, which learn nothing of the renders, need none.
pub async fn routes(farm: Farm, jobs: Jobs, gate: Gate, tasks: Tasks) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    tasks.before_closing(async move {
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(gigasmith_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("our own descriptors are well formed");
    let pages = web::farm_routes(FarmPages::new(farm.clone(), jobs.clone(), tasks.clone()), gate.clone());
    let mut routes =
        Routes::new(InterceptedService::new(farm_service::server(farm, tasks.clone()), gate.clone()))
            .add_service(InterceptedService::new(
                InterceptedService::new(server(jobs.clone(), tasks), version::Taken),
                gate,
            ))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(scaler(jobs));
    let calls = std::mem::take(routes.axum_router_mut());
    let calls = calls.layer(from_fn(version::tell)).layer(from_fn(only_grpc));
    *routes.axum_router_mut() = calls.merge(pages).fallback(web::fallback);
    routes
}
