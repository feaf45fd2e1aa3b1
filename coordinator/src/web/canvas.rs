//! The canvas of a render, as the pages are told of it, and its tiles.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pictures::{Pictures, unusable};
use super::{Problem, TILE};
use crate::farm::Underway;
use crate::jobs::Jobs;
use crate::output::{encode_jpeg, max_level};
use crate::render::{Glance, Live, Shown};
use crate::sampler::units::{ImageSize, PixelRect};
use crate::view::{TileSource, ViewError};

/// Of tiles on their way to the page: it shows them once.
const QUALITY: u8 = 88;

/// The canvas now; `Null`: there is nothing to see yet. `seen`: version and change that the asker knows.
pub(super) async fn canvas(
    jobs: &Jobs,
    pictures: &Pictures,
    id: &str,
    seen: &mut Option<(u64, u64)>,
) -> Result<Value, Problem> {
    let (live, underway) = jobs.look(id).await.map_err(Problem::missing)?;
    let glance = live.as_ref().and_then(|live| live.glance().map(|glance| (live, glance)));
    let Some((live, glance)) = glance else {
        return match pictures.get(jobs, id).await? {
            None => Ok(Value::Null),
            Some((version, picture)) => Ok(finished(id, version, &*picture)),
        };
    };
    let dirty = match *seen {
        Some((version, changed)) if version == glance.version => live.dirty(changed),
        _ => None,
    };
    *seen = Some((glance.version, glance.changed));
    Ok(under_way(id, live, &glance, dirty, &underway))
}

fn under_way(
    id: &str,
    live: &Live,
    glance: &Glance,
    dirty: Option<Vec<PixelRect>>,
    underway: &[Underway],
) -> Value {
    let Glance { version, changed, shown, stage, stages, size, steps, cells } = glance;
    let dirty = dirty
        .map(|rects| rects.iter().map(|r| json!([r.left, r.top, r.width, r.height])).collect::<Vec<_>>());
    let kind = match shown {
        Shown::Latents => "latents",
        Shown::Tiles => "tiles",
        Shown::Picture => "picture",
    };
    let cells = cells
        .as_ref()
        .map(|c| json!({ "columns": c.columns, "rows": c.rows, "side": c.side, "done": c.done }));
    let in_flight: Vec<Value> = underway.iter().filter_map(|task| place(live, task)).collect();
    json!({
        "version": version, "kind": kind, "stage": stage, "stages": stages,
        "width": size.width, "height": size.height,
        "tile_size": TILE, "max_level": max_level(*size), "overlap": 0,
        "tiles": format!("/api/renders/{id}/tiles/{version}/{{level}}/{{x}}_{{y}}"),
        "changed": changed, "dirty": dirty, "steps": steps, "cells": cells, "in_flight": in_flight,
    })
}

/// Where a task under way lies on the canvas.
fn place(live: &Live, task: &Underway) -> Option<Value> {
    let (stage, position) = (task.order.stage, task.order.position);
    let (rect, step) = match task.kind {
        "patch" => live.patch(stage, position).map(|(rect, step)| (rect, step.0))?,
        "decode" => (live.tile(stage, position)?, 0),
        _ => return None,
    };
    let seconds = task.seconds.round();
    Some(json!({
        "left": rect.left, "top": rect.top, "width": rect.width, "height": rect.height,
        "step": step, "worker": task.worker, "seconds": seconds,
    }))
}

/// Versions of finished pictures, which stand for one render and no later one of its name: numbers that every
/// browser counts exactly, beyond those of renders under way.
const FINISHED: u64 = 1 << 52;

/// Whether a version is a finished picture's.
pub(super) fn is_finished(version: u64) -> bool {
    version >= FINISHED
}

/// The version of a finished picture, from what is unique about its render.
pub(super) fn finished_version(unique: &str) -> u64 {
    let hash = blake3::hash(unique.as_bytes());
    let number = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
    FINISHED | (number >> 13)
}

/// A finished picture that lies in the store.
fn finished(id: &str, version: u64, picture: &dyn TileSource) -> Value {
    let described = picture.describe();
    json!({
        "version": version, "kind": "picture", "stage": 0, "stages": 0,
        "width": described.width, "height": described.height,
        "tile_size": described.tile_size, "max_level": described.max_level, "overlap": described.overlap,
        "tiles": format!("/api/renders/{id}/tiles/{version}/{{level}}/{{x}}_{{y}}"),
        "changed": 0, "dirty": null, "steps": 0, "cells": null, "in_flight": [],
    })
}

/// A tile, as a JPEG or PNG file with its media type.
pub(super) async fn tile(
    jobs: &Jobs,
    pictures: &Pictures,
    id: &str,
    (version, level): (u64, u32),
    (column, row): (u32, u32),
) -> Result<(Vec<u8>, &'static str), Problem> {
    let missing = || Problem::missing(format!("there is no tile {column},{row} in level {level}"));
    if !is_finished(version) {
        let (live, _) = jobs.look(id).await.map_err(Problem::missing)?;
        let live = live.ok_or_else(missing)?;
        return blocking(move || live_tile(&live, version, level, (column, row))).await.ok_or_else(missing);
    }
    let picture = pictures.get(jobs, id).await?;
    let (_, picture) = picture.filter(|(known, _)| *known == version).ok_or_else(missing)?;
    match blocking(move || picture.tile(level, column, row)).await {
        Ok(tile) => Ok(tile),
        Err(ViewError::NoSuchTile { .. }) => Err(missing()),
        Err(error) => Err(unusable(id, error)),
    }
}

fn live_tile(
    live: &Arc<Live>,
    version: u64,
    level: u32,
    (column, row): (u32, u32),
) -> Option<(Vec<u8>, &'static str)> {
    let size = live.glance().filter(|g| g.version == version)?.size;
    let halvings = max_level(size).checked_sub(level)?;
    let side = |length: u32| u64::from(length).div_ceil(1 << halvings) as u32;
    let rect = tile_rect(ImageSize { width: side(size.width), height: side(size.height) }, column, row)?;
    let rgb = live.read(version, halvings as usize, rect)?;
    let size = ImageSize { width: rect.width, height: rect.height };
    Some((encode_jpeg(&rgb, size, QUALITY).ok()?, "image/jpeg"))
}

/// Where a tile lies in a level of some size; `None` outside.
pub(super) fn tile_rect(size: ImageSize, column: u32, row: u32) -> Option<PixelRect> {
    let place = |at: u32, length: u32| {
        let start = at.checked_mul(TILE).filter(|start| *start < length)?;
        Some((start, TILE.min(length - start)))
    };
    let ((left, width), (top, height)) = (place(column, size.width)?, place(row, size.height)?);
    Some(PixelRect { top, left, height, width })
}

/// Runs what takes a moment beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_at_the_edge_are_cut() {
        let size = ImageSize { width: 700, height: 256 };
        assert_eq!(tile_rect(size, 2, 0), Some(PixelRect { top: 0, left: 512, height: 256, width: 188 }));
        assert_eq!(tile_rect(size, 3, 0), None);
        assert_eq!(tile_rect(size, 0, 1), None);
        assert_eq!(tile_rect(size, u32::MAX, 0), None);
    }
}
