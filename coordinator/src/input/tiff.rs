//! A TIFF as one picture: its largest image, decoded piece by piece on all cores.

use rayon::prelude::*;

use super::{Decoded, check_size};
use crate::sampler::units::ImageSize;
use crate::view::ViewError;
use crate::view::tiff_levels::{Bytes, FileLevel, Shared, find_levels};

/// Reads all of it.
pub(crate) fn read(file: impl Bytes + 'static) -> Result<Decoded, String> {
    let plain = |e: ViewError| e.to_string();
    let levels = find_levels(&Shared::new(Box::new(file))).map_err(plain)?;
    let whole = levels.into_iter().next().flatten().ok_or("the TIFF has no image")?;
    let size = check_size(whole.size.width, whole.size.height)?;
    let row_bytes = size.width as usize * 3;
    let mut rgb = vec![0; row_bytes * size.height as usize];
    let bands = rgb.par_chunks_mut(row_bytes * whole.chunk.height as usize).enumerate();
    bands.try_for_each(|(row, band)| {
        (0..whole.columns()).try_for_each(|column| place(&whole, column, row as u32, band, row_bytes))
    })?;
    let (orientation, warnings) = (whole.orientation, whole.warnings());
    Ok(Decoded { size, rgb, orientation, warnings })
}

/// Decodes a piece into its place in a row of pieces.
fn place(image: &FileLevel, column: u32, row: u32, band: &mut [u8], row_bytes: usize) -> Result<(), String> {
    let piece = image.decode(column, row).map_err(|e| e.to_string())?;
    let ImageSize { width, .. } = piece.size;
    let (left, bytes) = (column as usize * image.chunk.width as usize * 3, width as usize * 3);
    for (out, pixels) in band.chunks_exact_mut(row_bytes).zip(piece.rgb.chunks_exact(bytes)) {
        out[left..left + bytes].copy_from_slice(pixels);
    }
    Ok(())
}
