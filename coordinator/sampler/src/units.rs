//! Words of the method as types: a step is not a timestep, a latent pixel is not an image pixel.

use std::fmt;

/// Position in the schedule, 0 first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step(pub u32);

impl Step {
    /// The step as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// t: training timestep, in 0..T.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestep(pub u32);

/// Position of a patch among all patches of a stage, in plan order: by step, then by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchId(pub u32);

impl PatchId {
    /// The patch as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A size in latent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatentSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl LatentSize {
    /// Number of latent pixels.
    pub fn area(self) -> usize {
        self.height * self.width
    }

    /// The rectangle that covers everything.
    pub fn rect(self) -> Window {
        Window { top: 0, left: 0, height: self.height, width: self.width }
    }
}

/// A size in image pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSize {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl ImageSize {
    /// The latent that stands for a picture of this size; `factor` image pixels per latent pixel.
    pub fn latent(self, factor: u32) -> LatentSize {
        LatentSize { height: (self.height / factor) as usize, width: (self.width / factor) as usize }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A rectangle of a picture, in image pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PixelRect {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl PixelRect {
    /// All of a picture.
    pub fn all(size: ImageSize) -> Self {
        Self { top: 0, left: 0, height: size.height, width: size.width }
    }

    /// Number of pixels.
    pub fn area(self) -> usize {
        self.height as usize * self.width as usize
    }

    /// Whether it has an inside and lies within a picture of some size.
    pub fn is_within(self, size: ImageSize) -> bool {
        let fits = |start: u32, length: u32, all: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= all)
        };
        fits(self.top, self.height, size.height) && fits(self.left, self.width, size.width)
    }
}

/// A rectangle of the canvas, in latent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Window {
    /// What it stands for in a picture; `factor` image pixels per latent pixel.
    pub fn pixels(self, factor: usize) -> PixelRect {
        let [top, left, height, width] =
            [self.top, self.left, self.height, self.width].map(|n| (n * factor) as u32);
        PixelRect { top, left, height, width }
    }

    /// One past the last row.
    pub fn bottom(self) -> usize {
        self.top + self.height
    }

    /// One past the last column.
    pub fn right(self) -> usize {
        self.left + self.width
    }

    /// Number of latent pixels.
    pub fn area(self) -> usize {
        self.height * self.width
    }

    /// The part of `other` inside this window, in coordinates of the canvas; `None` when they are apart.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (top, left) = (self.top.max(other.top), self.left.max(other.left));
        let (bottom, right) = (self.bottom().min(other.bottom()), self.right().min(other.right()));
        (top < bottom && left < right).then(|| Self { top, left, height: bottom - top, width: right - left })
    }
}
