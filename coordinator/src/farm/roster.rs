//! Which workers there are, counted by kind: what decides how much work is worth preparing.

use std::sync::Arc;

use gigasmith_proto::domain::ModelDescription;

/// Workers of the same weights and numeric class.
#[derive(Debug, Clone, PartialEq)]
pub struct Kind {
    /// What they hold, as the first of them described it.
    pub model: Arc<ModelDescription>,
    /// How many are connected.
    pub workers: usize,
    /// How many of them may get tasks, now or once they are examined.
    pub able: usize,
    /// How many of them may get tasks now.
    pub open: usize,
    /// How many of them may also work on renders that allow any class.
    pub mixing: usize,
    /// Tasks that may be in flight to those that may get tasks.
    pub slots: usize,
}

impl Kind {
    /// Whether its workers can do the tasks of a render on `model`.
    pub fn suits(&self, model: &ModelDescription, mix: bool) -> bool {
        self.model.fingerprints == model.fingerprints
            && (self.model.numeric_class == model.numeric_class || (mix && self.mixing > 0))
    }
}

/// What is known of the workers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    /// Every kind of which a worker is connected, in the order the kinds came.
    pub kinds: Vec<Kind>,
}

impl Roster {
    /// Workers connected.
    pub fn workers(&self) -> usize {
        self.kinds.iter().map(|k| k.workers).sum()
    }

    /// (workers that may get tasks, their slots) for a render on `model`.
    pub fn capacity(&self, model: &ModelDescription, mix: bool) -> (usize, usize) {
        let suited = self.kinds.iter().filter(|k| k.suits(model, mix));
        suited.fold((0, 0), |(open, slots), k| (open + k.open, slots + k.slots))
    }
}
