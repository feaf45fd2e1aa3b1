//! Tasks under way, and arithmetic beside the loop that sends them.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::RenderError;
use crate::estimate::PER_SLOT;
use crate::farm::Lane;

/// Runs arithmetic in place, and lets the runtime's other tasks go on elsewhere meanwhile.
pub(crate) fn at_leisure<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        // There is no other thread.
        _ => work(),
    }
}

/// A place for each core.
pub(super) fn all_cores() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)))
}

/// Runs arithmetic on a thread for it, no more at a time than there are cores.
pub(super) async fn on_a_core<T: Send + 'static>(
    cores: &Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let _core = cores.acquire().await.expect("the semaphore is never closed");
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Tasks under way on the farm, with what is done before and after.
pub(super) struct Flight<'a, T> {
    lane: &'a Lane,
    tasks: JoinSet<Result<T, RenderError>>,
}

impl<'a, T: Send + 'static> Flight<'a, T> {
    pub(super) fn new(lane: &'a Lane) -> Self {
        Self { lane, tasks: JoinSet::new() }
    }

    /// Whether another task is worth preparing: enough for every worker to find its next ones waiting,
    /// and no more, because a prepared task takes memory.
    pub(super) fn has_room(&self) -> bool {
        self.tasks.len() < self.room()
    }

    /// Tasks that are prepared or under way at most.
    pub(super) fn room(&self) -> usize {
        PER_SLOT as usize * self.lane.slots().max(1)
    }

    pub(super) fn send(&mut self, task: impl Future<Output = Result<T, RenderError>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// The next result in the order they come in; `None` when nothing is under way. Dropping the future loses
    /// no result.
    pub(super) async fn next(&mut self) -> Result<Option<T>, RenderError> {
        match self.tasks.join_next().await {
            None => Ok(None),
            Some(Ok(done)) => done.map(Some),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
