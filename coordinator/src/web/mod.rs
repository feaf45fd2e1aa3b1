//! Pages for people and numbers for machines, over plain HTTP: a coordinator's on the port that it has for
//! gRPC, and those of `gigasmith view` on one of their own.
//!
//! The pages are files inside the binary (`coordinator/web`). They ask for JSON, listen to server-sent
//! events, and never poll. Nothing here decides anything: what is shown and changed is the jobs' and the
//! farm's.

mod assets;
mod canvas;
mod conditional;
mod download;
mod edge;
mod events;
mod farm;
mod guard;
mod picture;
mod pictures;
mod status;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

pub use farm::{FarmPages, fallback, routes as farm_routes};
pub use picture::routes as picture_routes;

/// Side of the tiles of a canvas, in pixels.
const TILE: u32 = 256;

/// What went wrong, for people.
#[derive(Debug)]
struct Problem(StatusCode, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl Problem {
    fn missing(what: impl ToString) -> Self {
        Self(StatusCode::NOT_FOUND, what.to_string())
    }
}

/// What the pages are told of the program.
fn version() -> String {
    format!("gigasmith {}", env!("CARGO_PKG_VERSION"))
}

/// `X_Y`, with or without an ending.
fn tile_position(name: &str) -> Option<(u32, u32)> {
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    let (x, y) = name.split_once('_')?;
    Some((x.parse().ok()?, y.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_named_by_column_and_row() {
        assert_eq!(tile_position("3_14"), Some((3, 14)));
        assert_eq!(tile_position("3_14.jpg"), Some((3, 14)));
        for wrong in ["3", "_", "3_", "-1_2", "3_4_5", "../3_4"] {
            assert_eq!(tile_position(wrong), None, "{wrong}");
        }
    }
}
