//! Small pictures with their pyramids, for tests.

use std::io;

use crate::output::Embedded;
use crate::raster::Levels;
use crate::sampler::units::{ImageSize, PixelRect};

/// A picture in memory; its smaller levels are box averages.
pub(crate) struct Memory {
    levels: Vec<(ImageSize, Vec<u8>)>,
}

impl Memory {
    /// From a colour for every column and row.
    pub(crate) fn new(width: u32, height: u32, colour: impl Fn(u32, u32) -> [u8; 3]) -> Self {
        let rgb = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y));
        let mut levels: Vec<(ImageSize, Vec<u8>)> = vec![(ImageSize { width, height }, rgb.collect())];
        while let Some((size, rgb)) = levels.last().filter(|(s, _)| s.width.max(s.height) > 1) {
            let smaller = half(*size, rgb);
            levels.push(smaller);
        }
        Self { levels }
    }

    /// Smooth colours with some structure: kind to JPEG.
    pub(crate) fn smooth(width: u32, height: u32) -> Self {
        Self::new(width, height, |x, y| {
            let wave = |v: f32| (128.0 + 100.0 * v.sin()) as u8;
            let (x, y) = (x as f32, y as f32);
            [wave(x / 40.0), wave(y / 30.0), wave((x + y) / 50.0)]
        })
    }

    /// Every pixel unrelated to its neighbours.
    pub(crate) fn noise(width: u32, height: u32) -> Self {
        Self::new(width, height, |x, y| {
            let mixed =
                (u64::from(x) << 32 | u64::from(y)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let [a, b, c, ..] = (mixed ^ mixed >> 32).to_le_bytes();
            [a, b, c]
        })
    }

    /// All of a level.
    pub(crate) fn rgb(&self, level: usize) -> &[u8] {
        &self.levels[level].1
    }
}

fn half(size: ImageSize, rgb: &[u8]) -> (ImageSize, Vec<u8>) {
    let small = ImageSize { width: size.width.div_ceil(2), height: size.height.div_ceil(2) };
    let mut out = Vec::new();
    for y in 0..small.height {
        for x in 0..small.width {
            for c in 0..3 {
                let at = |x: u32, y: u32| {
                    let (x, y) = (x.min(size.width - 1), y.min(size.height - 1));
                    u32::from(rgb[(y as usize * size.width as usize + x as usize) * 3 + c])
                };
                let sum =
                    at(2 * x, 2 * y) + at(2 * x + 1, 2 * y) + at(2 * x, 2 * y + 1) + at(2 * x + 1, 2 * y + 1);
                out.push(((sum + 2) / 4) as u8);
            }
        }
    }
    (small, out)
}

impl Levels for Memory {
    fn levels(&self) -> usize {
        self.levels.len()
    }

    fn size(&self, level: usize) -> ImageSize {
        self.levels[level].0
    }

    fn read(&self, level: usize, rect: PixelRect) -> io::Result<Vec<u8>> {
        let (size, rgb) = &self.levels[level];
        assert!(rect.left + rect.width <= size.width && rect.top + rect.height <= size.height);
        let rows =
            rgb.chunks_exact(size.width as usize * 3).skip(rect.top as usize).take(rect.height as usize);
        let bytes = rect.left as usize * 3..(rect.left + rect.width) as usize * 3;
        Ok(rows.flat_map(|row| &row[bytes.clone()]).copied().collect())
    }
}

/// Texts with everything that formats stumble over.
pub(crate) fn embedded() -> Embedded {
    Embedded {
        parameters: "富士山 <at> night & \"day\"\r\nNegative prompt: détail\t🦊\nSteps: 30, Version: x"
            .into(),
        json: r#"{"spec":{"version":1,"prompt":"富士山 <a> & ]]> \"q\" \u0001 🦊","guidance":7.5}}"#.into(),
        software: "gigasmith 0.1.0".into(),
    }
}

/// The largest difference of two pictures' values.
pub(crate) fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// Runs with so many rayon threads.
pub(crate) fn with_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had").install(run)
}
