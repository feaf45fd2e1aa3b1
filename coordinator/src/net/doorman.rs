//! Counts connections, so that a flood of them costs the farm neither memory nor its workers.
//!
//! A connection over the limit is accepted and closed at once: the caller sees an end instead of a hang.
//! Half of the places are kept for addresses that have none yet, so that one caller cannot take all.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Between two words about refused connections.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// How many connections there are, and from where.
#[derive(Debug, Default)]
struct Places {
    taken: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    /// Takes a place for an address, where there is one: any of the first half, later only an address's
    /// first.
    fn take(&mut self, address: IpAddr, limit: usize) -> bool {
        let own = self.by_address.get(&address).copied().unwrap_or(0);
        if self.taken >= limit || (own > 0 && self.taken >= limit / 2) {
            return false;
        }
        self.taken += 1;
        self.by_address.insert(address, own + 1);
        true
    }

    fn give_back(&mut self, address: IpAddr) {
        self.taken -= 1;
        if let Some(own) = self.by_address.get_mut(&address) {
            *own -= 1;
            if *own == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// A connection and the place it takes.
#[derive(Debug)]
pub struct Guest {
    stream: TcpStream,
    address: IpAddr,
    places: Arc<Mutex<Places>>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.places.lock().expect("no holder panics").give_back(self.address);
    }
}

/// The connections of a listener, `limit` of them at a time.
pub fn incoming(listener: TcpListener, limit: usize) -> impl Stream<Item = io::Result<Guest>> + Send {
    Doorman { listener, limit, places: Arc::default(), refused: 0, complained: None }
}

struct Doorman {
    listener: TcpListener,
    limit: usize,
    places: Arc<Mutex<Places>>,
    refused: u64,
    complained: Option<Instant>,
}

impl Doorman {
    fn refuse(&mut self, address: IpAddr) {
        self.refused += 1;
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            tracing::warn!(%address, refused = self.refused, limit = self.limit, "too many connections: some are closed at once");
            self.complained = Some(Instant::now());
        }
    }
}

impl Stream for Doorman {
    type Item = io::Result<Guest>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let (stream, peer) = match self.listener.poll_accept(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(accepted)) => accepted,
                // Out of file descriptors, or a caller that has gone already: the next one may do better.
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            let address = peer.ip().to_canonical();
            let limit = self.limit;
            if !self.places.lock().expect("no holder panics").take(address, limit) {
                self.refuse(address);
                continue;
            }
            // Small messages travel at once; a socket that cannot is as good otherwise.
            let _ = stream.set_nodelay(true);
            return Poll::Ready(Some(Ok(Guest { stream, address, places: self.places.clone() })));
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Guest {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let mut places = Places::default();
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        assert_eq!((0..10).filter(|_| places.take(address(1), 8)).count(), 4);
        assert!(places.take(address(2), 8) && !places.take(address(2), 8));
        assert_eq!((3..20).filter(|&a| places.take(address(a), 8)).count(), 3, "the last places");
        places.give_back(address(1));
        assert!(places.take(address(30), 8));
        assert!(!places.take(address(31), 8));
    }
}
