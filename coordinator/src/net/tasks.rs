//! What a server does beside answering, and how it ends: in order, and with everything that was begun.
//!
//! When the server is told to stop, probes hear of it first, then it accepts nothing new. What has no end of its own
//! (a worker's stream, a page that listens) is cut off; what has one (a submission, a download) goes on to it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// The tasks of a server.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    closing: CancellationToken,
}

impl Tasks {
    /// Runs a task that ends by itself; [`Self::ended`] waits for it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    /// Runs a task until the server stops.
    pub fn spawn_until_stop(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tracker.spawn(async move {
            let _ = stopping.run_until_cancelled(work).await;
        });
    }

    /// Ends a stream that has no end of its own when the server stops.
    pub fn until_stop<S>(&self, stream: S) -> Until<S> {
        Until { stream, stopped: Box::pin(self.stopping.clone().cancelled_owned()) }
    }

    /// Tells the server to stop.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Does something between being told to stop and closing the door.
    pub fn before_closing(&self, say: impl Future<Output = ()> + Send + 'static) {
        let (stopping, closing) = (self.stopping.clone(), self.closing.clone());
        self.tracker.spawn(async move {
            stopping.cancelled().await;
            say.await;
            closing.cancel();
        });
    }

    /// The door is to be closed: what [`super::serve`] waits for.
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Waits until all tasks have ended.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// See [`Tasks::until_stop`].
#[derive(Debug)]
pub struct Until<S> {
    stream: S,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S: Stream + Unpin> Stream for Until<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        match self.stopped.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut self.stream).poll_next(context),
        }
    }
}
