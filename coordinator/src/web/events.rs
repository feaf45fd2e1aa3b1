//! Server-sent events: a value as JSON, at once and whenever it has changed, and a `ping` now and then.
//!
//! A page cannot see comments, which would keep a connection alive as well: what it hears it can wait for, so that
//! it knows a silent coordinator from one that has nothing to tell.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use crate::net::Tasks;

/// How often a page hears something at least; it counts on three times that.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Sends what `next` gives under a name: it is asked again when it has answered, at most so often. `None`
/// ends the stream, and so does the server's; the same value is not sent twice.
pub(super) fn stream<F: Future<Output = Option<Value>> + Send>(
    tasks: Tasks,
    name: &'static str,
    pause: Duration,
    mut next: impl FnMut() -> F + Send + 'static,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (sender, receiver) = mpsc::channel(1);
    tasks.spawn_until_stop(async move {
        let mut pings = tokio::time::interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = String::new();
        loop {
            let value = until(next(), &mut pings, &sender).await;
            let Some(value) = value.flatten() else { return };
            let text = value.to_string();
            if !value.is_null() && text != last {
                last.clone_from(&text);
                if sender.send(Ok(Event::default().event(name).data(text))).await.is_err() {
                    return;
                }
            }
            if until(tokio::time::sleep(pause), &mut pings, &sender).await.is_none() {
                return;
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver))
}

/// Waits for `work`, and pings meanwhile. `None`: nobody listens any more.
async fn until<T>(
    work: impl Future<Output = T>,
    pings: &mut Interval,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = sender.closed() => return None,
            _ = pings.tick() => {
                // Events need data, or browsers drop them.
                sender.send(Ok(Event::default().event("ping").data("{}"))).await.ok()?;
            }
        }
    }
}
