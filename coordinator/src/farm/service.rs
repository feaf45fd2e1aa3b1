//! The gRPC edge: streams and messages on one side, the farm's commands on the other.

use std::future::Future;

use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::convert::{
    conditioning_id_from_wire, conditioning_to_wire, model_from_wire, report_from_wire,
};
use gigasmith_proto::v1;
use gigasmith_proto::v1::farm_server::{Farm as FarmRpc, FarmServer};
use gigasmith_proto::v1::worker_message::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::owner::Command;
use super::table::{LeaseId, WorkerId};
use super::{Farm, TaskError};

/// The most tasks a worker may ask to have in flight.
const MAX_SLOTS: u32 = 64;

/// Serves a farm to the connections that `incoming` yields until `shutdown` resolves.
pub async fn serve<IO, E>(
    farm: Farm,
    incoming: impl Stream<Item = Result<IO, E>> + Send + 'static,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IO::ConnectInfo: Clone + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let service = FarmServer::new(Service { farm })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
}

struct Service {
    farm: Farm,
}

#[tonic::async_trait]
impl FarmRpc for Service {
    type WorkStream = ReceiverStream<Result<v1::CoordinatorMessage, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(v1::WorkerMessage { message: Some(Message::Hello(hello)) }) = inbound.message().await?
        else {
            return Err(Status::invalid_argument("the first message of a stream is Hello"));
        };
        if !(1..=MAX_SLOTS).contains(&hello.slots) {
            let message = format!("slots is {}: give 1 to {MAX_SLOTS}", hello.slots);
            return Err(Status::invalid_argument(message));
        }
        let model = hello.model.ok_or_else(|| Status::invalid_argument("Hello lacks `model`"))?;
        let model = model_from_wire(model).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (stream, outbound) = mpsc::channel(hello.slots as usize + 1);
        let (reply, joined) = oneshot::channel();
        let join =
            Command::Join { name: hello.name, slots: hello.slots, model: Box::new(model), stream, reply };
        let closed = || Status::unavailable(TaskError::Closed.to_string());
        self.farm.commands.send(join).map_err(|_| closed())?;
        let worker = joined.await.map_err(|_| closed())?;
        tokio::spawn(listen(inbound, worker, self.farm.commands.clone()));
        Ok(Response::new(ReceiverStream::new(outbound)))
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

/// Passes a worker's reports on until its stream ends.
async fn listen(
    mut inbound: Streaming<v1::WorkerMessage>,
    worker: WorkerId,
    commands: mpsc::UnboundedSender<Command>,
) {
    let reason = loop {
        let message = match inbound.next().await {
            Some(Ok(v1::WorkerMessage { message: Some(message) })) => message,
            Some(Ok(v1::WorkerMessage { message: None })) => break "it sent an empty message".to_owned(),
            Some(Err(status)) => break status.message().to_owned(),
            None => break "it closed its stream".to_owned(),
        };
        let report = match message {
            Message::Report(report) => report,
            Message::Heartbeat(_) if commands.send(Command::Heartbeat { worker }).is_ok() => continue,
            Message::Heartbeat(_) => return,
            Message::Hello(_) => break "it said Hello twice".to_owned(),
        };
        match report_from_wire(report) {
            Ok((lease, outcome)) => {
                let command = Command::Report { worker, lease: LeaseId(lease), outcome: Box::new(outcome) };
                if commands.send(command).is_err() {
                    return;
                }
            }
            Err(error) => break format!("it sent a malformed report: {error}"),
        }
    };
    // A farm that has shut down needs no notice.
    let _ = commands.send(Command::Leave { worker, reason });
}
