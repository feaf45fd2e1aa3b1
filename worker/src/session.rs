//! A worker's life: connect, say who we are, take tasks, report results, and reconnect.
//!
//! The worker opens the stream and keeps several tasks in flight, so that the device finds the next
//! one waiting when it ends a task. A heartbeat goes out every few seconds, however long a task takes,
//! so that its leases stand on. When the connection breaks, tasks go on, and their results are handed in
//! after the reconnection (see `desk.rs`). Asked to end, the worker drains (see `lifecycle.rs`).
//!
//! Nothing is ever lost by ending at any point: the coordinator gives the tasks to another worker.

use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::convert::{
    Outcome, TaskFailure, WireError, assignment_from_wire, hello_to_wire, report_to_wire, welcome_from_wire,
};
use gigasmith_proto::domain::{Hello, Identifier, OLDEST_PROTOCOL, PROTOCOL, Task, WireDtype};
use gigasmith_proto::text::Shown;
use gigasmith_proto::v1;
use gigasmith_proto::v1::coordinator_message::Message;
use gigasmith_proto::v1::farm_client::FarmClient;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tracing::Instrument;

use crate::connect::{Token, describe, hint, hint_again};
use crate::desk::Desk;
use crate::device::DeviceThread;
use crate::library::Library;
use crate::lifecycle::{Ask, Lifecycle};

/// How long a coordinator may take to answer before the model is loaded.
const GREETING: Duration = Duration::from_secs(5);
/// Between two heartbeats: a third of what a coordinator waits for.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the coordinator may take to say Welcome.
const WELCOME: Duration = Duration::from_secs(30);
/// How long the end of a drained worker waits for the coordinator to notice.
const GOODBYE: Duration = Duration::from_secs(2);
/// Between attempts to reconnect, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
/// A worker that drains and finds no coordinator for so long has nothing left that anybody wants: its
/// leases have ended.
const GIVE_UP: Duration = Duration::from_secs(20);

pub(crate) type Client = FarmClient<InterceptedService<Channel, Token>>;

/// How a worker presents itself.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Name to show people.
    pub name: String,
    /// What it computes on, to show people.
    pub device: String,
    /// Tasks in flight, at least 1.
    pub slots: u32,
    /// The coordinator's address, to show people.
    pub coordinator: String,
    /// Whether to connect again when a connection breaks.
    pub reconnects: bool,
}

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The coordinator refused or broke off.
    #[error("{}", describe(.0))]
    Refused(tonic::Status),
    /// The coordinator sent something without meaning.
    #[error("the coordinator sent a malformed message: {0}")]
    Malformed(#[from] WireError),
    /// The thread that computes is gone: nothing this process could do is of any use.
    #[error("the device's thread has ended by a panic; the message above says where: start the worker again")]
    NoDevice,
    /// The coordinator did not answer.
    #[error("the coordinator did not answer within {} s", WELCOME.as_secs())]
    Silent,
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(status)
    }
}

impl SessionError {
    /// Whether another attempt could not go better: a wrong token, another version.
    pub fn is_final(&self) -> bool {
        use tonic::Code;
        match self {
            Self::NoDevice => true,
            Self::Refused(status) => matches!(
                status.code(),
                Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::FailedPrecondition
                    | Code::InvalidArgument
                    | Code::Unimplemented
            ),
            Self::Malformed(_) | Self::Silent => false,
        }
    }
}

impl SessionError {
    /// Whether the coordinator does not understand our version of the conversation. In a `Hello` nothing else is
    /// called so, in any release.
    fn is_of_protocol(&self) -> bool {
        matches!(self, Self::Refused(status)
            if status.code() == tonic::Code::FailedPrecondition && status.message().starts_with("`protocol` is "))
    }
}

/// Where asks to end come from. The session ends when it is drained.
pub type Asks = mpsc::UnboundedReceiver<Ask>;

/// How a session ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything is handed in.
    Drained,
    /// A person did not want to wait: the device may be in the middle of a task.
    Interrupted,
}

/// Finds out whether a coordinator would refuse us, before a model is loaded for it. One that is away, or
/// slow, may be there later: it is only warned of.
pub(crate) async fn greet(channel: Channel, token: Token, coordinator: &str) -> Result<(), SessionError> {
    // A question that costs nothing, and that a coordinator answers only to those who show the token: there is
    // no such conditioning.
    let nothing = v1::GetConditioningRequest { id: vec![0; 32].into() };
    let mut client = FarmClient::with_interceptor(channel, token);
    let status = match timeout(GREETING, client.get_conditioning(nothing)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(status)) if status.code() == tonic::Code::NotFound => return Ok(()),
        Ok(Err(status)) => status,
        Err(_) => tonic::Status::unavailable("it does not answer"),
    };
    let error = SessionError::Refused(status);
    if error.is_final() {
        return Err(error);
    }
    let hint = hint(coordinator, &error.to_string());
    tracing::warn!("the coordinator is away: {error}{hint}; the model is loaded meanwhile");
    Ok(())
}

/// Works for a coordinator until it is drained, or until the connection is of no more use. `asks` must
/// stay open.
pub async fn serve(
    channel: Channel,
    token: Token,
    device: Arc<DeviceThread>,
    options: SessionOptions,
    asks: Asks,
) -> Result<Ended, SessionError> {
    let client = FarmClient::with_interceptor(channel, token)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut worker = Worker {
        client,
        device,
        slots: options.slots.max(1),
        options,
        instance: Identifier::random(),
        protocol: PROTOCOL,
        desk: Desk::default(),
        library: Arc::default(),
        work: JoinSet::new(),
        lifecycle: Lifecycle::Ready,
        welcomed: false,
        is_known: false,
        last_heard: Instant::now(),
        asks,
    };
    let mut pause = RETRY.0;
    loop {
        worker.welcomed = false;
        let ended = worker.connection().await;
        if worker.lifecycle == Lifecycle::Drained {
            return Ok(worker.ended());
        }
        match ended {
            Err(error) if worker.protocol > OLDEST_PROTOCOL && error.is_of_protocol() => {
                worker.protocol -= 1;
                tracing::info!("the coordinator is of an earlier release: {error}; speaking its version");
                continue;
            }
            Err(error) if error.is_final() || !worker.options.reconnects => return Err(error),
            Ok(()) if !worker.options.reconnects => return Ok(worker.ended()),
            _ if worker.lifecycle == Lifecycle::Draining && worker.last_heard.elapsed() > GIVE_UP => {
                tracing::warn!("drained without the coordinator: it is away");
                return Ok(worker.ended());
            }
            ended => {
                // A coordinator that was there a moment ago is soon back, as a rule.
                pause = if worker.welcomed { RETRY.0 } else { (pause * 2).min(RETRY.1) };
                let reason = ended.err().map_or("it closed the stream".to_owned(), |e| e.to_string());
                let hint = match worker.is_known {
                    true => hint_again(&reason),
                    false => hint(&worker.options.coordinator, &reason),
                };
                tracing::warn!(retry_in = ?pause, "the coordinator is away: {reason}{hint}");
            }
        }
        if worker.away(pause).await {
            return Ok(worker.ended());
        }
    }
}

type Outbound = mpsc::Sender<v1::WorkerMessage>;

struct Worker {
    client: Client,
    device: Arc<DeviceThread>,
    options: SessionOptions,
    slots: u32,
    instance: Identifier,
    /// What we speak: less than we could with a coordinator of the release before.
    protocol: u32,
    desk: Desk,
    library: Arc<Library>,
    work: JoinSet<v1::Report>,
    lifecycle: Lifecycle,
    /// Whether the present connection, or the last one, was answered.
    welcomed: bool,
    /// Whether any connection was answered.
    is_known: bool,
    /// When the coordinator was last there.
    last_heard: Instant,
    asks: Asks,
}

impl Worker {
    fn ended(&self) -> Ended {
        if self.desk.is_under_way() { Ended::Interrupted } else { Ended::Drained }
    }

    /// One connection, from Hello until it breaks, or the worker is drained.
    async fn connection(&mut self) -> Result<(), SessionError> {
        let (outbound, messages) = mpsc::channel(2 * self.slots as usize + 4);
        let hello = Hello {
            name: self.options.name.clone(),
            device: self.options.device.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: self.slots,
            model: self.device.description().clone(),
            instance: self.instance,
            incarnation: self.desk.incarnation(),
            leases: self.desk.leases(),
        };
        // The channel is new and empty: the send cannot fail or wait.
        let hello = v1::Hello { protocol: self.protocol, ..hello_to_wire(&hello) };
        let _ = outbound.send(message(v1::worker_message::Message::Hello(hello))).await;
        let mut client = self.client.clone();
        let greeting = async {
            let mut inbound = client.work(ReceiverStream::new(messages)).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, SessionError>((inbound, first))
        };
        let (inbound, first) = tokio::select! {
            greeted = timeout(WELCOME, greeting) => greeted.map_err(|_| SessionError::Silent)??,
            // While nobody has answered there is nothing to hand in to.
            Some(ask) = self.asks.recv() => {
                self.lifecycle = self.lifecycle.asked(ask, self.desk.len());
                return Ok(());
            }
        };
        let Some(v1::CoordinatorMessage { message: Some(Message::Welcome(welcome)) }) = first else {
            return Err(SessionError::Refused(tonic::Status::aborted("it did not say Welcome")));
        };
        let welcome = welcome_from_wire(welcome)?;
        (self.welcomed, self.is_known) = (true, true);
        tracing::info!(name = %Shown(&welcome.name), "joined the farm");
        self.desk.welcome(&welcome);
        self.last_heard = Instant::now();
        if self.lifecycle == Lifecycle::Draining {
            self.say_draining(&outbound);
        }
        self.settle();
        self.converse(inbound, outbound).await
    }

    async fn converse(
        &mut self,
        mut inbound: Streaming<v1::CoordinatorMessage>,
        outbound: Outbound,
    ) -> Result<(), SessionError> {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.lifecycle != Lifecycle::Drained {
            // What a full queue does not take now is sent when the loop wakes next.
            self.desk.send(|report| {
                outbound.try_send(message(v1::worker_message::Message::Report(report))).is_ok()
            });
            tokio::select! {
                next = inbound.message() => match next? {
                    Some(v1::CoordinatorMessage { message: Some(content) }) => {
                        self.last_heard = Instant::now();
                        self.hear(content, &outbound)?;
                    }
                    Some(v1::CoordinatorMessage { message: None }) => {}
                    None => return Ok(()),
                },
                Some(done) = self.work.join_next_with_id() => self.finished(done),
                _ = heartbeat.tick() => {
                    if !self.device.is_alive() {
                        return Err(SessionError::NoDevice);
                    }
                    // Behind a queue that does not move a heartbeat says nothing, and takes a report's place.
                    if outbound.capacity() > self.slots as usize + 1 {
                        let heartbeat = v1::worker_message::Message::Heartbeat(v1::Heartbeat {});
                        let _ = outbound.try_send(message(heartbeat));
                    }
                }
                Some(ask) = self.asks.recv() => self.asked(ask, &outbound),
            }
            self.settle();
        }
        // The other side closes its end once it has read everything: then it knows that we drained.
        drop(outbound);
        let _ = timeout(GOODBYE, async { while let Ok(Some(_)) = inbound.message().await {} }).await;
        Ok(())
    }

    fn hear(&mut self, content: Message, outbound: &Outbound) -> Result<(), SessionError> {
        match content {
            Message::Assignment(assignment) => {
                let lease = assignment.lease;
                let work = self.work.spawn(work(
                    self.client.clone(),
                    self.device.clone(),
                    self.library.clone(),
                    assignment,
                ));
                self.desk.begin(lease, work);
            }
            Message::Acknowledge(v1::Acknowledge { lease }) => self.desk.acknowledge(lease),
            Message::Withdraw(v1::Withdraw { lease }) => self.desk.withdraw(lease),
            Message::Drain(_) => {
                tracing::info!("the coordinator asks to drain");
                self.asked(Ask::Drain, outbound);
            }
            Message::Notice(v1::Notice { text }) => tracing::warn!("the coordinator says: {}", Shown(&text)),
            Message::Welcome(_) => {
                return Err(SessionError::Refused(tonic::Status::aborted("it said Welcome twice")));
            }
        }
        Ok(())
    }

    /// A task of the runtime has ended. One that panicked is a failure of the coordinator's task: its lease must
    /// not stand for ever.
    fn finished(&mut self, done: Result<(tokio::task::Id, v1::Report), JoinError>) {
        match done {
            Ok((_, report)) => self.desk.finish(report),
            // Withdrawn.
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                if let Some(report) = failed(&self.desk, &error) {
                    self.desk.finish(report);
                }
            }
        }
    }

    fn asked(&mut self, ask: Ask, outbound: &Outbound) {
        if self.lifecycle == Lifecycle::Ready {
            self.say_draining(outbound);
            let tasks = self.desk.len();
            tracing::info!(tasks, "draining: no new tasks are taken; Ctrl-C ends at once");
        }
        self.lifecycle = self.lifecycle.asked(ask, self.desk.len());
    }

    fn say_draining(&self, outbound: &Outbound) {
        let draining = v1::worker_message::Message::Draining(v1::Draining {});
        let _ = outbound.try_send(message(draining));
    }

    fn settle(&mut self) {
        self.lifecycle = self.lifecycle.settled(self.desk.len());
    }

    /// Waits out a pause between two connections while tasks go on. True when the worker should end.
    async fn away(&mut self, pause: Duration) -> bool {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return false,
                Some(done) = self.work.join_next_with_id() => self.finished(done),
                Some(ask) = self.asks.recv() => {
                    self.lifecycle = self.lifecycle.asked(ask, self.desk.len());
                    if self.lifecycle == Lifecycle::Drained {
                        return true;
                    }
                }
            }
        }
    }
}

/// What to report of work that panicked, if anybody still wants to know.
fn failed(desk: &Desk, error: &JoinError) -> Option<v1::Report> {
    let lease = desk.lease_of(error.id())?;
    tracing::error!(lease, "a bug in gigasmith, please report it: {error}");
    let message = format!("the worker panicked: {error}");
    Some(report_to_wire(lease, Err(TaskFailure { message, permanent: false }), WireDtype::F32))
}

fn message(message: v1::worker_message::Message) -> v1::WorkerMessage {
    v1::WorkerMessage { message: Some(message) }
}

/// Does one task. What is malformed or damaged is reported as a failure: the worker goes on.
async fn work(
    client: Client,
    device: Arc<DeviceThread>,
    library: Arc<Library>,
    assignment: v1::Assignment,
) -> v1::Report {
    let lease = assignment.lease;
    let compute = async || -> (WireDtype, Outcome) {
        let task = match assignment_from_wire(assignment) {
            Ok((_, task)) => task,
            Err(error) => {
                let message = format!("the task cannot be read: {error}");
                return (WireDtype::F32, Err(TaskFailure { message, permanent: false }));
            }
        };
        let (wire, conditioning) = match &task {
            Task::PredictNoise(task) => match library.get(&client, task.conditioning).await {
                Ok(conditioning) => (task.wire, Some(conditioning)),
                Err(failure) => return (task.wire, Err(failure)),
            },
            Task::DecodeTile { rules, .. } | Task::EncodeTile { rules, .. } => (rules.wire, None),
            Task::EncodeText { .. } => (WireDtype::F32, None),
        };
        let span = tracing::debug_span!("compute", kind = task.kind(), lease);
        (wire, device.run(task, conditioning).instrument(span).await)
    };
    let (wire, outcome) = compute().await;
    report_to_wire(lease, outcome, wire)
}

#[cfg(test)]
mod tests {
    use gigasmith_proto::convert::report_from_wire;

    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_reported_under_its_lease() {
        let mut desk = Desk::default();
        let mut work: JoinSet<v1::Report> = JoinSet::new();
        desk.begin(7, work.spawn(async { panic!("a bug") }));
        desk.begin(8, work.spawn(std::future::pending()));
        let error = work.join_next_with_id().await.unwrap().unwrap_err();
        let report = failed(&desk, &error).expect("somebody waits for it");
        assert_eq!(report.lease, 7);
        desk.finish(report.clone());
        let (_, outcome) = report_from_wire(report).unwrap();
        let failure = outcome.unwrap_err();
        assert!(failure.message.contains("panicked") && !failure.permanent, "{failure:?}");
        // It has a report now; a worker that drains waits for nothing but its acknowledgement.
        assert!(failed(&desk, &error).is_none());
        desk.acknowledge(7);
        desk.withdraw(8);
        assert!(work.join_next_with_id().await.unwrap().unwrap_err().is_cancelled());
        assert_eq!(Lifecycle::Draining.settled(desk.len()), Lifecycle::Drained);
    }
}
