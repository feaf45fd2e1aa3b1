//! The pages of `gigasmith view`: one finished picture.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::canvas::blocking;
use super::{Problem, assets, edge, guard, tile_position, version};
use crate::net::auth::Gate;
use crate::view::{TileSource, ViewError};

#[derive(Clone)]
struct Shown {
    picture: Arc<dyn TileSource>,
    bytes: Option<u64>,
}

/// The pages of a picture. `bytes`: the file's, where that is known.
pub fn routes(picture: Arc<dyn TileSource>, bytes: Option<u64>) -> Router {
    let guarded = Router::new()
        .route("/api/picture", get(describe))
        .route("/api/picture/tiles/{level}/{name}", get(tile))
        .layer(from_fn_with_state(Gate::new(None), guard::check))
        .with_state(Shown { picture, bytes });
    let mode = json!({ "mode": "picture", "version": version(), "login": false });
    Router::new()
        .route("/", get(assets::index))
        .route("/assets/{*name}", get(assets::asset))
        .route("/api/mode", get(async move || Json(mode)))
        .route("/healthz", get(async || "ok\n"))
        .merge(guarded)
        .fallback(async || Problem::missing("there is no such page"))
        .layer(from_fn(edge::edge))
}

async fn describe(State(shown): State<Shown>) -> Json<Value> {
    let described = shown.picture.describe();
    let settings = described.settings.as_deref().and_then(|json| serde_json::from_str::<Value>(json).ok());
    Json(json!({
        "name": described.name, "width": described.width, "height": described.height,
        "tile_size": described.tile_size, "max_level": described.max_level, "overlap": described.overlap,
        "tiles": "/api/picture/tiles/{level}/{x}_{y}",
        "format": described.format, "bytes": shown.bytes,
        "parameters": described.parameters.unwrap_or_default(), "settings": settings,
    }))
}

async fn tile(
    State(shown): State<Shown>,
    Path((level, name)): Path<(u32, String)>,
) -> Result<Response, Problem> {
    let position = tile_position(&name).ok_or_else(|| Problem::missing(format!("{name} names no tile")))?;
    match blocking(move || shown.picture.tile(level, position.0, position.1)).await {
        Ok((bytes, kind)) => {
            let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
            Ok((headers, bytes).into_response())
        }
        Err(error @ ViewError::NoSuchTile { .. }) => Err(Problem::missing(error)),
        Err(error) => Err(Problem(StatusCode::BAD_GATEWAY, error.to_string())),
    }
}
