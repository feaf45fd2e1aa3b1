//! The wire of gigasmith: generated messages ([`v1`]), the plain [`domain`] types that the rest of
//! the program uses, and the conversions between them ([`convert`]), which are the only validation
//! of what comes off the wire.
//!
//! Invariant: a value of a domain type that came through [`convert`] is well formed (shapes fit their
//! data, hashes have 32 bytes, enumerations are known); nobody checks again.

pub mod convert;
pub mod text;

pub use gigasmith_types as domain;

/// Messages and services of the package `gigasmith.v1`, generated from `gigasmith/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod v1 {
    tonic::include_proto!("gigasmith.v1");
}

/// KEDA's external scaler protocol, generated from `keda/externalscaler.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod keda {
    tonic::include_proto!("externalscaler");
}

/// The descriptors of `gigasmith.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gigasmith.bin"));

/// Largest message either side accepts, in bytes: a decoded 2048 x 2048 tile in f32 with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 128 << 20;
