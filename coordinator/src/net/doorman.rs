//! Counts connections, so that a flood of them costs the farm neither memory nor its workers.
//!
//! One that says nothing at first is closed after a while, and so is one over which nothing travels for long:
//! workers and people are pinged, and pages hear something now and then. A connection over the limit is accepted and closed at once: the caller sees an end instead of a hang.
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
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long a connection may say nothing at first.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long nothing may travel later.
const QUIET: Duration = Duration::from_secs(120);
/// Between two attempts to accept while the system cannot, for want of file descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(200);
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
    /// When the first word must have come; later, when to look again whether anything travelled.
    deadline: Pin<Box<Sleep>>,
    /// When something travelled last; `None` before the first word.
    travelled: Option<tokio::time::Instant>,
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
    Doorman { listener, limit, places: Arc::default(), refused: 0, complained: None, pause: None }
}

struct Doorman {
    listener: TcpListener,
    limit: usize,
    places: Arc<Mutex<Places>>,
    refused: u64,
    complained: Option<Instant>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Doorman {
    fn refuse(&mut self, address: IpAddr) {
        self.refused += 1;
        let (refused, limit) = (self.refused, self.limit);
        if self.may_complain() {
            tracing::warn!(%address, refused, limit, "too many connections: some are closed at once");
        }
    }

    fn may_complain(&mut self) -> bool {
        let is_time = self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if is_time {
            self.complained = Some(Instant::now());
        }
        is_time
    }
}

impl Stream for Doorman {
    type Item = io::Result<Guest>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let (stream, peer) = match self.listener.poll_accept(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(accepted)) => accepted,
                // Out of file descriptors, or a caller that has gone already: the next one may do better.
                Poll::Ready(Err(error)) => {
                    if self.may_complain() {
                        tracing::warn!(%error, "a connection could not be accepted; `ulimit -n` may be too low");
                    }
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                    continue;
                }
            };
            let address = peer.ip().to_canonical();
            let limit = self.limit;
            if !self.places.lock().expect("no holder panics").take(address, limit) {
                self.refuse(address);
                continue;
            }
            // Small messages travel at once; a socket that cannot is as good otherwise.
            let _ = stream.set_nodelay(true);
            let deadline = Box::pin(tokio::time::sleep(FIRST_WORD));
            let places = self.places.clone();
            return Poll::Ready(Some(Ok(Guest { stream, deadline, travelled: None, address, places })));
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.travelled = Some(tokio::time::Instant::now());
        }
        while polled.is_pending() && self.deadline.as_mut().poll(context).is_ready() {
            let until =
                self.travelled.map(|at| at + QUIET).filter(|until| *until > tokio::time::Instant::now());
            match until {
                Some(until) => self.deadline.as_mut().reset(until),
                None => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            }
        }
        polled
    }
}

impl Guest {
    /// Something was sent.
    fn sent(&mut self, polled: &Poll<io::Result<usize>>) {
        if self.travelled.is_some() && matches!(polled, Poll::Ready(Ok(1..))) {
            self.travelled = Some(tokio::time::Instant::now());
        }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.sent(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.sent(&polled);
        polled
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
