//! Cutting a level of a picture into tiles and encoding them on all cores.
//!
//! Tiles come out in row order whatever the number of threads, so what is made of them has the same
//! bytes. Only a bounded batch is in memory, never a level.

use std::io;

use rayon::prelude::*;

use crate::raster::Levels;
use crate::sampler::units::{ImageSize, PixelRect};

/// The widest strip that is read at once, in pixels: neighbouring tiles come from one read, because the
/// blocks a picture is stored in rarely end where its tiles do.
const RUN_WIDTH: u32 = 2048;
/// The most runs in memory at once, on machines with many cores: 200 MB of tiles of 512 pixels.
const MOST_RUNS: usize = 64;

/// A level cut into tiles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Of the level.
    pub(crate) size: ImageSize,
    /// A tile's side without overlap, in pixels.
    pub(crate) tile: u32,
    /// What a tile shows of its neighbours, in pixels on each side that has one.
    pub(crate) overlap: u32,
}

/// One tile's pixels, cut at the level's edges.
pub(crate) struct Tile {
    /// Of this tile; at most tile + 2 * overlap.
    pub(crate) size: ImageSize,
    /// 8-bit RGB, row by row.
    pub(crate) rgb: Vec<u8>,
}

/// Neighbouring tiles of one row.
#[derive(Clone, Copy)]
struct Run {
    row: u32,
    first: u32,
    count: u32,
}

impl Grid {
    /// Tiles from left to right.
    pub(crate) fn columns(&self) -> u32 {
        self.size.width.div_ceil(self.tile)
    }

    /// Tiles from top to bottom.
    pub(crate) fn rows(&self) -> u32 {
        self.size.height.div_ceil(self.tile)
    }

    /// All tiles.
    pub(crate) fn tiles(&self) -> u64 {
        u64::from(self.columns()) * u64::from(self.rows())
    }

    /// The pixels of a tile, overlap included.
    pub(crate) fn rect(&self, column: u32, row: u32) -> PixelRect {
        self.run_rect(Run { row, first: column, count: 1 })
    }

    fn run_rect(&self, run: Run) -> PixelRect {
        let (left, width) = self.span(run.first, run.count, self.size.width);
        let (top, height) = self.span(run.row, 1, self.size.height);
        PixelRect { left, top, width, height }
    }

    fn span(&self, first: u32, count: u32, length: u32) -> (u32, u32) {
        let start = (first * self.tile).saturating_sub(self.overlap);
        let end = u64::from(first + count) * u64::from(self.tile) + u64::from(self.overlap);
        (start, end.min(u64::from(length)) as u32 - start)
    }

    fn runs(&self) -> impl Iterator<Item = Run> {
        let (columns, step) = (self.columns(), (RUN_WIDTH / self.tile).max(1));
        (0..self.rows()).flat_map(move |row| {
            (0..columns).step_by(step as usize).map(move |first| Run {
                row,
                first,
                count: step.min(columns - first),
            })
        })
    }
}

/// Encodes every tile of a level in parallel and hands the results on in row order: (column, row, result).
/// An error of `each` ends it after the tiles in flight.
pub(crate) fn encode_in_order<T: Send>(
    levels: &dyn Levels,
    level: usize,
    grid: Grid,
    encode: impl Fn(Tile) -> io::Result<T> + Sync,
    mut each: impl FnMut(u32, u32, T) -> io::Result<()>,
) -> io::Result<()> {
    let at_once = (2 * rayon::current_num_threads()).min(MOST_RUNS);
    let mut runs = grid.runs();
    loop {
        let batch: Vec<Run> = runs.by_ref().take(at_once).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let encoded: Vec<io::Result<Vec<T>>> =
            batch.par_iter().map(|run| encode_run(levels, level, &grid, *run, &encode)).collect();
        for (run, tiles) in batch.iter().zip(encoded) {
            for (column, tile) in (run.first..).zip(tiles?) {
                each(column, run.row, tile)?;
            }
        }
    }
}

fn encode_run<T: Send>(
    levels: &dyn Levels,
    level: usize,
    grid: &Grid,
    run: Run,
    encode: &(impl Fn(Tile) -> io::Result<T> + Sync),
) -> io::Result<Vec<T>> {
    let rect = grid.run_rect(run);
    let strip = read_exactly(levels, level, rect)?;
    let columns: Vec<u32> = (run.first..run.first + run.count).collect();
    columns
        .par_iter()
        .map(|column| {
            let own = grid.rect(*column, run.row);
            let from = (own.left - rect.left) as usize * 3;
            let bytes = own.width as usize * 3;
            let rows = strip.chunks_exact(rect.width as usize * 3);
            let rgb = rows.flat_map(|row| &row[from..from + bytes]).copied().collect();
            encode(Tile { size: ImageSize { width: own.width, height: own.height }, rgb })
        })
        .collect()
}

/// As [`Levels::read`], with its promise checked: a short answer would shift all that follows.
pub(crate) fn read_exactly(levels: &dyn Levels, level: usize, rect: PixelRect) -> io::Result<Vec<u8>> {
    let rgb = levels.read(level, rect)?;
    let expected = rect.width as usize * rect.height as usize * 3;
    if rgb.len() != expected {
        let PixelRect { left, top, width, height } = rect;
        return Err(io::Error::other(format!(
            "{width}x{height} pixels at {left},{top} of level {level} have {} bytes instead of {expected}; \
             the picture is damaged, render it again",
            rgb.len()
        )));
    }
    Ok(rgb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::Memory;

    #[test]
    fn tiles_overlap_inside_and_end_at_the_edges() {
        let grid = Grid { size: ImageSize { width: 600, height: 255 }, tile: 254, overlap: 1 };
        assert_eq!((grid.columns(), grid.rows(), grid.tiles()), (3, 2, 6));
        assert_eq!(grid.rect(0, 0), PixelRect { left: 0, top: 0, width: 255, height: 255 });
        assert_eq!(grid.rect(1, 0), PixelRect { left: 253, top: 0, width: 256, height: 255 });
        assert_eq!(grid.rect(2, 1), PixelRect { left: 507, top: 253, width: 93, height: 2 });
    }

    #[test]
    fn tiles_are_what_a_read_of_their_own_gives_in_row_order() {
        let picture = Memory::noise(4500, 40);
        let grid = Grid { size: picture.size(0), tile: 16, overlap: 1 };
        let mut seen = Vec::new();
        encode_in_order(
            &picture,
            0,
            grid,
            |tile| Ok(tile.rgb),
            |column, row, rgb| {
                assert_eq!(rgb, picture.read(0, grid.rect(column, row))?);
                seen.push((row, column));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen.len() as u64, grid.tiles());
        assert!(seen.is_sorted());
    }

    #[test]
    fn a_short_read_is_an_error() {
        struct Short;
        impl Levels for Short {
            fn levels(&self) -> usize {
                1
            }
            fn size(&self, _: usize) -> ImageSize {
                ImageSize { width: 9, height: 9 }
            }
            fn read(&self, _: usize, _: PixelRect) -> io::Result<Vec<u8>> {
                Ok(vec![0; 5])
            }
        }
        let rect = PixelRect { left: 1, top: 2, width: 3, height: 4 };
        let error = read_exactly(&Short, 0, rect).unwrap_err().to_string();
        assert!(error.contains("3x4 pixels at 1,2") && error.contains("5 bytes instead of 36"), "{error}");
    }
}
