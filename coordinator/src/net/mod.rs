//! The coordinator's door: who may come in, and how much of them.
//!
//! One port serves workers, people and probes. [`serve`] sets the limits of every connection, [`auth`]
//! asks for the shared token, [`doorman`] counts connections, [`certs`] makes certificates for a farm of
//! one's own.

pub mod auth;
pub mod certs;
pub mod doorman;
mod tasks;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Server, ServerTlsConfig};

pub use tasks::{Tasks, Until};

/// Bytes in flight per stream: several of the largest patches, so that none waits for a window update.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A connection that does not answer a ping for so long is broken.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// Streams at a time on one connection: a worker needs two, a person a few.
const STREAMS: u32 = 64;
/// Bytes of request headers.
const HEADERS: u32 = 16 << 10;
/// Bytes of one frame: fewer, larger ones than the default cost less.
const FRAME: u32 = 1 << 20;

/// A server with its limits set. Fails when the certificate or its key cannot be used.
pub fn server(tls: Option<ServerTlsConfig>) -> Result<Server, tonic::transport::Error> {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .max_frame_size(FRAME)
        // Browsers and scrapers without encryption.
        .accept_http1(true);
    match tls {
        Some(tls) => server.tls_config(tls),
        None => Ok(server),
    }
}

/// Serves `routes` to the connections that `incoming` yields, until `closing`: then it accepts nothing new, lets
/// what is in flight end, and returns.
pub async fn serve<IO, E>(
    mut server: Server,
    routes: Routes,
    incoming: impl Stream<Item = Result<IO, E>> + Send + 'static,
    closing: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IO::ConnectInfo: Clone + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    server.add_routes(routes).serve_with_incoming_shutdown(incoming, closing.cancelled_owned()).await
}
