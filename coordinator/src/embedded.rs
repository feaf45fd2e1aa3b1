//! A farm of one: an embedded worker that speaks to the coordinator over an in-memory connection.
//!
//! The same service, session and messages as over a network; only the bytes never leave the process.

use std::sync::Arc;

use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::session::{self, SessionError, SessionOptions};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::farm::{Farm, service};

/// Bytes in flight between the two ends: several patches.
const PIPE_BYTES: usize = 4 << 20;

/// Why an embedded worker is gone.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The in-memory connection could not be made.
    #[error("the embedded worker could not connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// The session broke.
    #[error("the embedded worker stopped: {0}")]
    Session(#[from] SessionError),
    /// It ended without being asked to.
    #[error("the embedded worker stopped without a reason")]
    Ended,
}

/// A farm and the worker inside this process.
#[derive(Debug)]
pub struct EmbeddedFarm {
    farm: Farm,
    worker: JoinHandle<Result<(), EmbeddedError>>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    shutdown: CancellationToken,
}

impl EmbeddedFarm {
    /// Starts a farm whose only worker owns `device`. Must be called within a tokio runtime.
    pub fn start(device: Arc<DeviceThread>, options: SessionOptions) -> Self {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let (farm, shutdown) = (Farm::start(), CancellationToken::new());
        // One connection, and no second one: the server must not take the end of the list for its own end.
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(near)).chain(tokio_stream::pending());
        let server = tokio::spawn(service::serve(farm.clone(), incoming, shutdown.clone().cancelled_owned()));
        let worker = tokio::spawn(run_worker(far, device, options, shutdown.clone()));
        Self { farm, worker, server, shutdown }
    }

    /// The farm to render on.
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// Runs `work` to its end, or until the worker is gone.
    pub async fn until_worker_ends<T>(&mut self, work: impl Future<Output = T>) -> Result<T, EmbeddedError> {
        tokio::select! {
            done = work => Ok(done),
            ended = &mut self.worker => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(EmbeddedError::Ended),
            },
        }
    }

    /// Ends worker and server, and waits for both.
    pub async fn stop(self) {
        self.shutdown.cancel();
        // Both were asked to end: how they did is of no interest any more.
        let _ = self.worker.await;
        self.server.abort();
        let _ = self.server.await;
    }
}

async fn run_worker(
    pipe: DuplexStream,
    device: Arc<DeviceThread>,
    options: SessionOptions,
    shutdown: CancellationToken,
) -> Result<(), EmbeddedError> {
    session::serve(connect(pipe).await?, device, options, shutdown).await?;
    Ok(())
}

async fn connect(pipe: DuplexStream) -> Result<Channel, tonic::transport::Error> {
    let mut pipe = Some(TokioIo::new(pipe));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let pipe = pipe.take().ok_or_else(|| std::io::Error::other("the in-memory connection is used up"));
        std::future::ready(pipe)
    });
    // The address is never looked up.
    Endpoint::from_static("http://embedded").connect_with_connector(connector).await
}
