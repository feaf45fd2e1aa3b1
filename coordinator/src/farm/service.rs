//! The gRPC edge of the farm: streams and messages on one side, the farm's commands on the other.

use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::convert::{
    Outcome, TaskFailure, conditioning_id_from_wire, conditioning_to_wire, hello_from_wire, report_from_wire,
};
use gigasmith_proto::v1;
use gigasmith_proto::v1::farm_server::{Farm as FarmRpc, FarmServer};
use gigasmith_proto::v1::worker_message::Message;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::owner::{Command, Connection};
use super::table::LeaseId;
use super::{Farm, TaskError, check};
use crate::metrics::{Direction, Metrics};
use crate::net::{Tasks, Until};

/// The service that workers speak to.
pub fn server(farm: Farm, tasks: Tasks) -> FarmServer<impl FarmRpc> {
    FarmServer::new(Service { farm, tasks })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

struct Service {
    farm: Farm,
    tasks: Tasks,
}

#[tonic::async_trait]
impl FarmRpc for Service {
    type WorkStream = Until<ReceiverStream<Result<v1::CoordinatorMessage, Status>>>;

    async fn work(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(v1::WorkerMessage { message: Some(Message::Hello(hello)) }) = inbound.message().await?
        else {
            return Err(Status::invalid_argument("the first message of a stream is Hello"));
        };
        let hello = hello_from_wire(hello).map_err(|e| Status::failed_precondition(e.to_string()))?;
        // Room for every slot's assignment, acknowledgement and withdrawal, an examination and a notice.
        let (stream, outbound) = mpsc::channel(4 * hello.slots as usize + 8);
        let (reply, joined) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let join = Command::Join { hello: Box::new(hello), stream, reply };
        let closed = || Status::unavailable(TaskError::Closed.to_string());
        self.farm.commands.send(join).await.map_err(|_| closed())?;
        let (commands, metrics) = (self.farm.commands.clone(), self.farm.metrics.clone());
        // On its own, so that a call that is given up here still ends in a Leave.
        tokio::spawn(async move {
            let Ok(answer) = joined.await else { return };
            // Whether anybody still listens shows on the stream.
            let _ = tell.send(answer.as_ref().map(|_| ()).map_err(Clone::clone));
            if let Ok(from) = answer {
                listen(inbound, from, (commands, metrics)).await;
            }
        });
        told.await.map_err(|_| closed())?.map_err(Status::failed_precondition)?;
        Ok(Response::new(self.tasks.until_stop(ReceiverStream::new(outbound))))
    }

    async fn get_conditioning(
        &self,
        request: Request<v1::GetConditioningRequest>,
    ) -> Result<Response<v1::Conditioning>, Status> {
        let id = conditioning_id_from_wire(&request.get_ref().id);
        let id = id.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let found =
            self.farm.conditioning(id).ok_or_else(|| Status::not_found(format!("no conditioning {id:?}")))?;
        Ok(Response::new(conditioning_to_wire(&found)))
    }
}

/// Passes a worker's reports on until its stream ends. The queue is bounded: a worker that says more
/// than the owner can take in has to wait.
async fn listen(
    mut inbound: Streaming<v1::WorkerMessage>,
    from: Connection,
    (commands, metrics): (mpsc::Sender<Command>, Metrics),
) {
    let reason = loop {
        let message = match inbound.next().await {
            Some(Ok(v1::WorkerMessage { message: Some(message) })) => message,
            Some(Ok(v1::WorkerMessage { message: None })) => break "it sent an empty message".to_owned(),
            Some(Err(status)) => break status.message().to_owned(),
            None => break "it closed its stream".to_owned(),
        };
        let command = match message {
            Message::Report(report) => {
                metrics.bytes(Direction::received, report.encoded_len() as u64);
                let lease = LeaseId(report.lease);
                let outcome = outcome(report);
                // Reads all of the result: here, so that the owner need not.
                let is_finite = outcome.as_ref().map_or(true, check::is_finite);
                Command::Report { from, lease, outcome: Box::new(outcome), is_finite }
            }
            Message::Heartbeat(_) => Command::Heartbeat { from },
            Message::Draining(_) => Command::Draining { from },
            Message::Hello(_) => break "it said Hello twice".to_owned(),
        };
        if commands.send(command).await.is_err() {
            return;
        }
    };
    // A farm that has shut down needs no notice.
    let _ = commands.send(Command::Leave { from, reason }).await;
}

/// A report's outcome; one that is damaged is a failure of the worker.
fn outcome(report: v1::Report) -> Outcome {
    let failure = |message: String| TaskFailure { message, permanent: false };
    let (_, outcome) = report_from_wire(report).map_err(|e| failure(format!("a bad report: {e}")))?;
    outcome
}
