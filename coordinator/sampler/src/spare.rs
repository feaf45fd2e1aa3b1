//! Memory that patches are done with, for those that come after.
//!
//! A patch passes through half a dozen arrays of its window's size on several threads. Windows of a stage are all of
//! one size, so that after the first few patches nothing large is allocated here any more.

use std::sync::Mutex;

use gigasmith_types::Array;

use super::blend::{Cell, Marks};

/// Pieces of a kind that are kept, at most: what a few threads need at a time.
const KEPT: usize = 32;

/// Pieces that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Spare {
    values: Pieces<Vec<f32>>,
    cells: Pieces<Vec<Cell>>,
    marks: Pieces<Marks>,
}

impl Spare {
    /// An empty vector.
    pub(super) fn values(&self) -> Vec<f32> {
        let mut values = self.values.take();
        values.clear();
        values
    }

    /// Takes back an array.
    pub(super) fn give(&self, array: Array) {
        self.values.give(array.into_data());
    }

    /// A vector to write cells to, with anything in it.
    pub(super) fn cells(&self) -> Vec<Cell> {
        self.cells.take()
    }

    /// Takes back cells.
    pub(super) fn give_cells(&self, cells: Vec<Cell>) {
        self.cells.give(cells);
    }

    /// Room to find cells in.
    pub(super) fn with_marks<T>(&self, work: impl FnOnce(&mut Marks) -> T) -> T {
        let mut marks = self.marks.take();
        let result = work(&mut marks);
        self.marks.give(marks);
        result
    }
}

#[derive(Debug)]
struct Pieces<T>(Mutex<Vec<T>>);

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Pieces<T> {
    fn take(&self) -> T {
        self.0.lock().expect("no holder panics").pop().unwrap_or_default()
    }

    fn give(&self, piece: T) {
        let mut pieces = self.0.lock().expect("no holder panics");
        if pieces.len() < KEPT {
            pieces.push(piece);
        }
    }
}
