//! The farm: tasks on one side, workers on the other.
//!
//! [`table`] decides (pure, no I/O, no clock); one task owns it and performs its decisions; [`service`]
//! is the gRPC edge. A [`Farm`] is the handle that a render holds: it submits tasks and waits for their
//! results, and does not know who computes them or how often they were tried.

mod check;
mod owner;
pub mod service;
pub mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use gigasmith_proto::domain::{Conditioning, ConditioningId, ModelDescription, Task, TaskResult};
use tokio::sync::{mpsc, oneshot, watch};

use owner::Command;
pub use table::TaskOrder;

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

/// What is known of the workers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    /// Workers connected.
    pub workers: usize,
    /// Tasks that may be in flight to all of them together.
    pub slots: usize,
    /// The model of the first worker that came.
    pub model: Option<Arc<ModelDescription>>,
}

type Shelf = Arc<Mutex<HashMap<ConditioningId, Arc<Conditioning>>>>;

/// A handle on the farm. The farm ends when every handle and every connection is gone.
#[derive(Debug, Clone)]
pub struct Farm {
    commands: mpsc::UnboundedSender<Command>,
    roster: watch::Receiver<Roster>,
    shelf: Shelf,
}

impl Farm {
    /// Starts a farm without workers. Must be called within a tokio runtime.
    pub fn start() -> Self {
        let (commands, queue) = mpsc::unbounded_channel();
        let (publish, roster) = watch::channel(Roster::default());
        tokio::spawn(owner::run(queue, publish));
        Self { commands, roster, shelf: Shelf::default() }
    }

    /// Runs a task on some worker, again after failures that another attempt may mend. Dropping the
    /// future withdraws the task. Tasks with the lowest order are handed out first.
    pub async fn run(&self, order: TaskOrder, task: Task) -> Result<TaskResult, TaskError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Submit { order, task, reply }).map_err(|_| TaskError::Closed)?;
        answer.await.map_err(|_| TaskError::Closed)?
    }

    /// Makes conditioning available to workers under its hash.
    pub fn add_conditioning(&self, conditioning: Conditioning) -> ConditioningId {
        let id = conditioning.id();
        self.shelf.lock().expect("no holder panics").insert(id, Arc::new(conditioning));
        id
    }

    fn conditioning(&self, id: ConditioningId) -> Option<Arc<Conditioning>> {
        self.shelf.lock().expect("no holder panics").get(&id).cloned()
    }

    /// What is known of the workers now.
    pub fn roster(&self) -> Roster {
        self.roster.borrow().clone()
    }

    /// Waits for the first worker and returns its model.
    pub async fn model(&self) -> Result<Arc<ModelDescription>, TaskError> {
        let mut roster = self.roster.clone();
        let known = roster.wait_for(|r| r.model.is_some()).await.map_err(|_| TaskError::Closed)?;
        Ok(known.model.clone().expect("waited for it"))
    }
}
