//! Server-sent events: a value as JSON, at once and whenever it has changed.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Sends what `next` gives under a name: it is asked again when it has answered, at most so often. `None`
/// ends the stream; the same value is not sent twice.
pub(super) fn stream<F: Future<Output = Option<Value>> + Send>(
    name: &'static str,
    pause: Duration,
    mut next: impl FnMut() -> F + Send + 'static,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut last = String::new();
        loop {
            let value = tokio::select! {
                value = next() => value,
                // Nobody listens any more.
                () = sender.closed() => return,
            };
            let Some(value) = value else { return };
            let text = value.to_string();
            if !value.is_null() && text != last {
                last.clone_from(&text);
                if sender.send(Ok(Event::default().event(name).data(text))).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = sender.closed() => return,
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
