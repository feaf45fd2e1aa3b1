//! The farm: tasks on one side, workers on the other.
//!
//! [`table`] and [`admission`] decide (pure, no I/O, no clock); one task owns them and performs their
//! decisions; [`service`] is the gRPC edge. A [`Farm`] is the handle on all of it; a [`Lane`] is what one
//! render holds: it submits tasks and waits for their results, and does not know who computes them or
//! how often they were tried.

pub mod admission;
mod check;
mod lane;
mod owner;
mod roster;
pub mod service;
pub mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use crate::metrics::Metrics;
use gigasmith_proto::domain::{Conditioning, ConditioningId, ModelDescription, WorkerChange, WorkerStatus};
use tokio::sync::{mpsc, oneshot, watch};

pub use lane::{Lane, LaneOptions};
use owner::Command;
pub use roster::{Kind, Roster};
pub use table::TaskOrder;

/// Commands that may wait for the owner: enough that nobody stalls, few enough that memory is bounded.
const COMMANDS: usize = 1024;

/// Why a task has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Workers tried and failed.
    #[error("the {kind} task failed, attempt {attempts} was the last: {message}")]
    Failed {
        /// `patch`, `text`, `encode` or `decode`.
        kind: &'static str,
        /// How often it was tried.
        attempts: u32,
        /// What the last worker said.
        message: String,
    },
    /// The farm was shut down.
    #[error("the farm has shut down")]
    Closed,
}

/// A change to a worker that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// No such worker.
    #[error("no worker is called `{name}`: {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// The names there are, as a phrase.
        known: String,
    },
    /// The farm was shut down.
    #[error("the farm has shut down")]
    Closed,
}

/// How a farm treats its workers.
#[derive(Debug, Clone, Default)]
pub struct FarmOptions {
    /// Whether workers are examined before their results count. Off inside one process, where there is
    /// nothing to compare with.
    pub examines: bool,
    /// Where things are counted.
    pub metrics: Metrics,
}

/// A task under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Underway {
    /// Which one of its render.
    pub order: TaskOrder,
    /// What it is: `patch`, `decode`, ...
    pub kind: &'static str,
    /// Who has it.
    pub worker: String,
    /// For how long.
    pub seconds: f64,
}

type Shelf = Arc<Mutex<HashMap<ConditioningId, Weak<Conditioning>>>>;

/// A handle on the farm. The farm ends when every handle, lane and connection is gone.
#[derive(Debug, Clone)]
pub struct Farm {
    commands: mpsc::Sender<Command>,
    roster: watch::Receiver<Roster>,
    shelf: Shelf,
    metrics: Metrics,
}

impl Farm {
    /// Where things are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Starts a farm without workers. Must be called within a tokio runtime.
    pub fn start(options: FarmOptions) -> Self {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (publish, roster) = watch::channel(Roster::default());
        let shelf = Shelf::default();
        let metrics = options.metrics.clone();
        tokio::spawn(owner::run(queue, publish, options, shelf.clone()));
        Self { commands, roster, shelf, metrics }
    }

    /// Makes conditioning available to workers under its hash, for as long as the result lives.
    fn shelve(&self, conditioning: Conditioning) -> (ConditioningId, Arc<Conditioning>) {
        let (id, conditioning) = (conditioning.id(), Arc::new(conditioning));
        let mut shelf = self.shelf.lock().expect("no holder panics");
        shelf.retain(|_, kept| kept.strong_count() > 0);
        let shelved = shelf.get(&id).and_then(Weak::upgrade).unwrap_or(conditioning);
        shelf.insert(id, Arc::downgrade(&shelved));
        (id, shelved)
    }

    fn conditioning(&self, id: ConditioningId) -> Option<Arc<Conditioning>> {
        self.shelf.lock().expect("no holder panics").get(&id).and_then(Weak::upgrade)
    }

    /// What is known of the workers now.
    pub fn roster(&self) -> Roster {
        self.roster.borrow().clone()
    }

    /// Follows what is known of the workers.
    pub fn watch_roster(&self) -> watch::Receiver<Roster> {
        self.roster.clone()
    }

    /// Waits for the first worker and returns its model.
    pub async fn model(&self) -> Result<Arc<ModelDescription>, TaskError> {
        let mut roster = self.roster.clone();
        let known = roster.wait_for(|r| !r.kinds.is_empty()).await.map_err(|_| TaskError::Closed)?;
        Ok(known.kinds[0].model.clone())
    }

    /// Opens a lane for a render on workers that hold `model`.
    pub async fn lane(&self, options: LaneOptions) -> Result<Lane, TaskError> {
        Lane::open(self.clone(), options).await
    }

    /// Every worker that is here or was lately, by name.
    pub async fn workers(&self) -> Vec<WorkerStatus> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Workers { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Tasks that wait and tasks in flight, of all renders.
    pub async fn depth(&self) -> (usize, usize) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Depth { reply }).await.is_err() {
            return (0, 0);
        }
        answer.await.unwrap_or_default()
    }

    /// Enables, disables or drains a worker.
    pub async fn change_worker(&self, name: &str, change: WorkerChange) -> Result<WorkerStatus, WorkerError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::ChangeWorker { name: name.to_owned(), change, reply };
        self.commands.send(command).await.map_err(|_| WorkerError::Closed)?;
        answer.await.map_err(|_| WorkerError::Closed)?
    }
}
