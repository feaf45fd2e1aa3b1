//! A Deep Zoom picture as one: the tiles of its last level, put together.

use std::io::Cursor;
use std::path::Path;

use rayon::prelude::*;

use super::{Decoded, check_size, read_bytes};
use crate::view::dzi::DziSource;
use crate::view::{Description, TileSource, ViewError};

/// Reads all of it.
pub(crate) fn read(path: &Path) -> Result<Decoded, String> {
    let source = DziSource::open(path).map_err(|e| e.to_string())?;
    let described = source.describe();
    let Description { width, height, tile_size, .. } = described;
    let size = check_size(width, height)?;
    let row_bytes = width as usize * 3;
    let mut rgb = vec![0; row_bytes * height as usize];
    let bands = rgb.par_chunks_mut(row_bytes * tile_size as usize).enumerate();
    bands.try_for_each(|(row, band)| {
        (0..width.div_ceil(tile_size)).try_for_each(|column| place(&source, (column, row as u32), band))
    })?;
    Ok(Decoded { size, rgb, orientation: 1, warnings: Vec::new() })
}

/// Decodes a tile into its place in a row of tiles, without what it shows of its neighbours.
fn place(source: &DziSource, (column, row): (u32, u32), band: &mut [u8]) -> Result<(), String> {
    let Description { width, height, tile_size, overlap, max_level, .. } = source.describe();
    let name = source.tile_path(max_level, column, row);
    let (bytes, _) = source.tile(max_level, column, row).map_err(|e| match e {
        ViewError::NoSuchTile { .. } => format!("its tile {name} is missing"),
        other => format!("its tile {name}: {other}"),
    })?;
    let tile = read_bytes(Cursor::new(bytes)).map_err(|e| format!("its tile {name}: {e}"))?;
    // What of a tile is its own, and what comes before.
    let own = |at: u32, side: u32| {
        let before = if at == 0 { 0 } else { overlap };
        let start = at * tile_size;
        (before, tile_size.min(side - start))
    };
    let ((left, columns), (top, rows)) = (own(column, width), own(row, height));
    if tile.size.width < left + columns || tile.size.height < top + rows {
        return Err(format!("its tile {name} is {}, too small for its place", tile.size));
    }
    let (from, bytes) = (left as usize * 3, columns as usize * 3);
    let to = column as usize * tile_size as usize * 3;
    let tile_rows = tile.rgb.chunks_exact(tile.size.width as usize * 3).skip(top as usize);
    for (out, pixels) in band.chunks_exact_mut(width as usize * 3).zip(tile_rows) {
        out[to..to + bytes].copy_from_slice(&pixels[from..from + bytes]);
    }
    Ok(())
}
