//! A farm of one: an embedded worker that speaks to the coordinator over an in-memory connection.
//!
//! The same service, session and messages as over a network; only the bytes never leave the process.

use std::sync::Arc;

use gigasmith_worker::connect::Token;
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::lifecycle::Ask;
use gigasmith_worker::session::{self, Asks, SessionError, SessionOptions};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use crate::farm::{Farm, FarmOptions, Lane, LaneOptions, TaskError, service};
use crate::net::Tasks;

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
    asks: mpsc::UnboundedSender<Ask>,
}

impl EmbeddedFarm {
    /// Starts a farm whose only worker owns `device`. Must be called within a tokio runtime.
    pub fn start(device: Arc<DeviceThread>, options: SessionOptions) -> Self {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let farm = Farm::start(FarmOptions::default());
        // One connection, and no second one: the server must not take the end of the list for its own end.
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(near)).chain(tokio_stream::pending());
        let service = service::server(farm.clone(), Tasks::default());
        let server = tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
        let (asks, asked) = mpsc::unbounded_channel();
        let worker = tokio::spawn(run_worker(far, device, options, asked));
        Self { farm, worker, server, asks }
    }

    /// The farm to render on.
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// A lane on the embedded worker's model.
    pub async fn lane(&mut self) -> Result<Arc<Lane>, EmbeddedError> {
        let farm = self.farm.clone();
        let open = async { farm.lane(LaneOptions::new(farm.model().await?)).await };
        let lane: Result<Lane, TaskError> = self.until_worker_ends(open).await?;
        lane.map(Arc::new).map_err(|_| EmbeddedError::Ended)
    }

    /// Runs `work` to its end, or until the worker is gone.
    pub async fn until_worker_ends<T>(&mut self, work: impl Future<Output = T>) -> Result<T, EmbeddedError> {
        tokio::select! {
            done = work => Ok(done),
            ended = self.worker_ends() => Err(ended),
        }
    }

    /// Resolves when the worker is gone, which it is not before it is asked to.
    pub async fn worker_ends(&mut self) -> EmbeddedError {
        match (&mut self.worker).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => EmbeddedError::Ended,
        }
    }

    /// Ends worker and server, and waits for both.
    pub async fn stop(self) {
        // The first ask drains; the second does not wait. A worker that has ended hears neither.
        let _ = self.asks.send(Ask::Interrupt);
        let _ = self.asks.send(Ask::Interrupt);
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
    asks: Asks,
) -> Result<(), EmbeddedError> {
    session::serve(connect(pipe).await?, Token::default(), device, options, asks).await?;
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
