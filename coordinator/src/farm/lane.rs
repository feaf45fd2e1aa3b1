//! What one render holds of the farm.

use std::sync::Arc;

use gigasmith_proto::convert::task_to_wire;
use gigasmith_proto::domain::{Conditioning, ConditioningId, ModelDescription, Task, TaskResult};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::owner::{Command, Submission};
use super::table::JobId;
use super::{Farm, TaskError, TaskOrder, Underway};

/// How a lane's tasks are handled.
#[derive(Debug, Clone)]
pub struct LaneOptions {
    /// The model: only workers that hold it do the tasks.
    pub model: Arc<ModelDescription>,
    /// Whether workers of any numeric class may, whose canary lies close to the first class's.
    pub mix: bool,
    /// Higher goes first.
    pub priority: i32,
    /// Told why when a task fails everywhere: the lane is then paused. Without it such a task ends with
    /// its error.
    pub on_failure: Option<mpsc::UnboundedSender<String>>,
}

impl LaneOptions {
    /// Everything as a single render wants it.
    pub fn new(model: Arc<ModelDescription>) -> Self {
        Self { model, mix: false, priority: 0, on_failure: None }
    }
}

/// A render's way to the farm. Dropping it withdraws all its tasks.
#[derive(Debug)]
pub struct Lane {
    farm: Farm,
    job: JobId,
    model: Arc<ModelDescription>,
    mix: bool,
}

impl Lane {
    pub(super) async fn open(farm: Farm, options: LaneOptions) -> Result<Self, TaskError> {
        let (reply, answer) = oneshot::channel();
        let (model, mix) = (options.model.clone(), options.mix);
        farm.commands.send(Command::OpenLane { options, reply }).await.map_err(|_| TaskError::Closed)?;
        let job = answer.await.map_err(|_| TaskError::Closed)?;
        Ok(Self { farm, job, model, mix })
    }

    /// The model its workers hold.
    pub fn model(&self) -> &Arc<ModelDescription> {
        &self.model
    }

    /// Tasks that may be in flight to the workers that may do this lane's.
    pub fn slots(&self) -> usize {
        self.farm.roster.borrow().capacity(&self.model, self.mix).1
    }

    /// Makes conditioning available to workers under its hash, for as long as the result lives.
    pub fn shelve(&self, conditioning: Conditioning) -> (ConditioningId, Arc<Conditioning>) {
        self.farm.shelve(conditioning)
    }

    /// Runs a task on some worker, again after failures that another attempt may mend. Dropping the
    /// future withdraws the task. Tasks with the lowest order are handed out first.
    pub async fn run(&self, order: TaskOrder, task: Task) -> Result<TaskResult, TaskError> {
        let span =
            tracing::debug_span!("task", kind = task.kind(), stage = order.stage, position = order.position);
        self.run_task(order, task).instrument(span).await
    }

    async fn run_task(&self, order: TaskOrder, task: Task) -> Result<TaskResult, TaskError> {
        let (reply, answer) = oneshot::channel();
        let wire = task_to_wire(&task);
        let submission = Box::new(Submission { job: self.job, order, task, wire, reply });
        self.farm.commands.send(Command::Submit(submission)).await.map_err(|_| TaskError::Closed)?;
        answer.await.map_err(|_| TaskError::Closed)?
    }

    /// Holds tasks back, or hands them out again. What is in flight goes on.
    pub async fn pause(&self, paused: bool) {
        // A farm that has shut down hands nothing out.
        let _ = self.farm.commands.send(Command::PauseLane { job: self.job, paused }).await;
    }

    /// Gives the lane another priority.
    pub async fn prioritise(&self, priority: i32) {
        // A farm that has shut down hands nothing out.
        let _ = self.farm.commands.send(Command::Prioritise { job: self.job, priority }).await;
    }

    /// The tasks that workers have now.
    pub async fn underway(&self) -> Vec<Underway> {
        let (reply, answer) = oneshot::channel();
        if self.farm.commands.send(Command::Underway { job: self.job, reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// (tasks that wait for a worker, tasks in all).
    pub async fn depth(&self) -> (usize, usize) {
        let (reply, answer) = oneshot::channel();
        if self.farm.commands.send(Command::LaneDepth { job: self.job, reply }).await.is_err() {
            return (0, 0);
        }
        answer.await.unwrap_or_default()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let close = Command::CloseLane { job: self.job };
        if let Err(mpsc::error::TrySendError::Full(close)) = self.farm.commands.try_send(close) {
            // The queue is full for a moment: wait for room elsewhere, if there is a runtime to wait in.
            let commands = self.farm.commands.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    let _ = commands.send(close).await;
                });
            }
        }
    }
}
