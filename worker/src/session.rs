//! One connection to a coordinator: say who we are, take tasks, report results.
//!
//! The worker opens the stream and keeps several tasks in flight, so that the device finds the next
//! one waiting when it ends a task. A heartbeat goes out every few seconds, however long a task takes,
//! so that its leases stand on. Text conditioning is fetched once and kept while it is in use. The
//! session ends when the coordinator closes the stream, or when `shutdown` is cancelled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::convert::{
    Outcome, TaskFailure, WireError, assignment_from_wire, conditioning_from_wire, model_to_wire,
    report_to_wire,
};
use gigasmith_proto::domain::{Conditioning, ConditioningId, Task};
use gigasmith_proto::v1;
use gigasmith_proto::v1::farm_client::FarmClient;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::device::DeviceThread;

/// Conditionings kept: more than the renders a worker meets at a time.
const KEPT_CONDITIONINGS: usize = 8;

/// Between two heartbeats: a third of what a coordinator waits for.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How a worker presents itself.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Name to show people.
    pub name: String,
    /// What it computes on, to show people.
    pub device: String,
    /// Tasks in flight, at least 1.
    pub slots: u32,
}

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The coordinator refused or broke off.
    #[error("the coordinator ended the session: {0}")]
    Refused(#[from] tonic::Status),
    /// The coordinator sent something without meaning.
    #[error("the coordinator sent a malformed message: {0}")]
    Malformed(#[from] WireError),
}

/// Works for a coordinator until it closes the stream or `shutdown` is cancelled.
pub async fn serve(
    channel: Channel,
    device: Arc<DeviceThread>,
    options: SessionOptions,
    shutdown: CancellationToken,
) -> Result<(), SessionError> {
    let client = FarmClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let slots = options.slots.max(1);
    let (outbound, messages) = mpsc::channel(slots as usize + 1);
    let hello = v1::Hello {
        name: options.name,
        device: options.device,
        slots,
        model: Some(model_to_wire(device.description())),
    };
    // The channel is new and empty: the send cannot fail or wait.
    let _ = outbound.send(message(v1::worker_message::Message::Hello(hello))).await;
    let mut inbound = client.clone().work(ReceiverStream::new(messages)).await?.into_inner();
    let library = Arc::new(Library { client, kept: Mutex::default() });
    let mut tasks = JoinSet::new();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        let next = tokio::select! {
            next = inbound.message() => next?,
            Some(_) = tasks.join_next() => continue,
            _ = heartbeat.tick() => {
                // A full queue holds reports, which say the same.
                let _ = outbound.try_send(message(v1::worker_message::Message::Heartbeat(v1::Heartbeat {})));
                continue;
            }
            () = shutdown.cancelled() => return Ok(()),
        };
        let Some(next) = next else { return Ok(()) };
        let Some(v1::coordinator_message::Message::Assignment(assignment)) = next.message else { continue };
        let (lease, task) = assignment_from_wire(assignment)?;
        let (device, library, outbound) = (device.clone(), library.clone(), outbound.clone());
        tasks.spawn(async move {
            let outcome = work(&device, &library, task).await;
            let report = v1::worker_message::Message::Report(report_to_wire(lease, outcome));
            // A closed stream ends the session in the loop above.
            let _ = outbound.send(message(report)).await;
        });
    }
}

fn message(message: v1::worker_message::Message) -> v1::WorkerMessage {
    v1::WorkerMessage { message: Some(message) }
}

async fn work(device: &DeviceThread, library: &Library, task: Task) -> Outcome {
    let conditioning = match &task {
        Task::PredictNoise(task) => Some(library.get(task.conditioning).await?),
        _ => None,
    };
    device.run(task, conditioning).await
}

/// The conditionings in use, newest last.
struct Library {
    client: FarmClient<Channel>,
    kept: Mutex<VecDeque<(ConditioningId, Arc<Conditioning>)>>,
}

impl Library {
    /// A conditioning, fetched at its first use: tasks that need the same one wait for that fetch.
    async fn get(&self, id: ConditioningId) -> Result<Arc<Conditioning>, TaskFailure> {
        let mut kept = self.kept.lock().await;
        if let Some(at) = kept.iter().position(|(k, _)| *k == id) {
            let entry = kept.remove(at).expect("found above");
            let conditioning = entry.1.clone();
            kept.push_back(entry);
            return Ok(conditioning);
        }
        let failure = |message: String| TaskFailure { message, permanent: false };
        let request = v1::GetConditioningRequest { id: id.0.to_vec().into() };
        let answer = self.client.clone().get_conditioning(request).await;
        let answer = answer.map_err(|e| failure(format!("fetching conditioning {id:?}: {}", e.message())))?;
        let conditioning = conditioning_from_wire(answer.into_inner()).map_err(|e| failure(e.to_string()))?;
        if conditioning.id() != id {
            return Err(failure(format!("conditioning {id:?} arrived damaged")));
        }
        let conditioning = Arc::new(conditioning);
        if kept.len() == KEPT_CONDITIONINGS {
            kept.pop_front();
        }
        kept.push_back((id, conditioning.clone()));
        Ok(conditioning)
    }
}
