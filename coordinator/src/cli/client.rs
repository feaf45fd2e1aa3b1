//! A person's connection to a coordinator.

use gigasmith_proto::convert::{render_status_from_wire, worker_status_from_wire};
use gigasmith_proto::domain::{RenderStatus, WorkerStatus};
use gigasmith_proto::v1;
use gigasmith_proto::v1::change_render_request::Change;
use gigasmith_proto::v1::control_client::ControlClient;
use gigasmith_worker::connect::{ConnectArgs, Token};
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::failure::Failure;
use crate::sampler::resize::Picture;

/// Bytes of pixels in one message.
const PIECE: usize = 1 << 20;

/// The coordinator, as people see it.
#[derive(Debug)]
pub(super) struct Client(ControlClient<InterceptedService<Channel, Token>>);

/// What the coordinator says to no.
fn refused(status: tonic::Status) -> Failure {
    let message = status.message().to_owned();
    match status.code() {
        tonic::Code::InvalidArgument => Failure::Usage(message),
        tonic::Code::Unimplemented => Failure::Farm(format!(
            "the coordinator does not know this call ({message}): use the same release of gigasmith on both sides"
        )),
        tonic::Code::Unavailable | tonic::Code::Unknown if message.contains("transport") => {
            Failure::Farm(format!("the connection to the coordinator broke: {message}"))
        }
        _ => Failure::Farm(message),
    }
}

fn render(wire: v1::Render) -> Result<RenderStatus, Failure> {
    render_status_from_wire(wire).map_err(Failure::farm)
}

impl Client {
    pub(super) async fn connect(args: &ConnectArgs) -> Result<Self, Failure> {
        let token = args.token()?;
        let channel = args.connect().await?;
        Ok(Self(ControlClient::with_interceptor(channel, token)))
    }

    /// Submits a render; returns it and what the user should know.
    pub(super) async fn submit(
        &mut self,
        submission: v1::Submission,
        picture: Option<Picture>,
    ) -> Result<(RenderStatus, Vec<String>), Failure> {
        use v1::submit_request::Part;
        let first = v1::SubmitRequest { part: Some(Part::Submission(submission)) };
        let pixels = picture.map(|p| bytes::Bytes::from(p.rgb().to_vec())).unwrap_or_default();
        let pieces = (0..pixels.len()).step_by(PIECE).map(move |at| {
            let end = (at + PIECE).min(pixels.len());
            v1::SubmitRequest { part: Some(Part::Pixels(pixels.slice(at..end))) }
        });
        let parts = tokio_stream::iter(std::iter::once(first).chain(pieces));
        let answer = self.0.submit(parts).await.map_err(refused)?.into_inner();
        let accepted = answer.render.ok_or_else(|| Failure::farm("the coordinator's answer is empty"))?;
        Ok((render(accepted)?, answer.warnings))
    }

    pub(super) async fn renders(&mut self, id: Option<&str>) -> Result<Vec<RenderStatus>, Failure> {
        let request = v1::ListRendersRequest { id: id.unwrap_or_default().to_owned() };
        let answer = self.0.list_renders(request).await.map_err(refused)?.into_inner();
        answer.renders.into_iter().map(render).collect()
    }

    /// Follows a render; [`next`] reads it.
    pub(super) async fn watch(&mut self, id: &str) -> Result<Streaming<v1::Render>, Failure> {
        let request = v1::WatchRenderRequest { id: id.to_owned() };
        Ok(self.0.watch_render(request).await.map_err(refused)?.into_inner())
    }

    pub(super) async fn change(&mut self, id: &str, change: Change) -> Result<RenderStatus, Failure> {
        let request = v1::ChangeRenderRequest { id: id.to_owned(), change: Some(change) };
        render(self.0.change_render(request).await.map_err(refused)?.into_inner())
    }

    /// A part of a finished render.
    pub(super) async fn fetch(&mut self, id: &str, part: v1::FetchedPart) -> Result<Vec<u8>, Failure> {
        let request = v1::FetchRequest { id: id.to_owned(), part: part.into() };
        let mut pieces = self.0.fetch(request).await.map_err(refused)?.into_inner();
        let (mut bytes, mut total) = (Vec::new(), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(refused)?;
            total = piece.total;
            bytes.extend_from_slice(&piece.data);
        }
        match bytes.len() as u64 {
            0 => Err(Failure::farm("the coordinator sent nothing")),
            got if got != total => {
                Err(Failure::farm(format!("only {got} of {total} bytes arrived: try again")))
            }
            _ => Ok(bytes),
        }
    }

    pub(super) async fn workers(&mut self) -> Result<Vec<WorkerStatus>, Failure> {
        let answer = self.0.list_workers(v1::ListWorkersRequest {}).await.map_err(refused)?.into_inner();
        answer.workers.into_iter().map(|w| worker_status_from_wire(w).map_err(Failure::farm)).collect()
    }

    pub(super) async fn change_worker(
        &mut self,
        name: &str,
        change: v1::WorkerChange,
    ) -> Result<WorkerStatus, Failure> {
        let request = v1::ChangeWorkerRequest { name: name.to_owned(), change: change.into() };
        let answer = self.0.change_worker(request).await.map_err(refused)?.into_inner();
        worker_status_from_wire(answer).map_err(Failure::farm)
    }
}

/// The next status of a render that is followed; `None` when it has ended.
pub(super) async fn next(stream: &mut Streaming<v1::Render>) -> Result<Option<RenderStatus>, Failure> {
    match stream.message().await.map_err(refused)? {
        Some(wire) => render(wire).map(Some),
        None => Ok(None),
    }
}
