//! A person's connection to a coordinator.

use std::time::Duration;

use gigasmith_proto::convert::{render_status_from_wire, worker_status_from_wire};
use gigasmith_proto::domain::{RenderStatus, WorkerStatus};
use gigasmith_proto::v1;
use gigasmith_proto::v1::change_render_request::Change;
use gigasmith_proto::v1::control_client::ControlClient;
use gigasmith_proto::v1::submit_request::Part;
use gigasmith_worker::connect::{ConnectArgs, Token, describe};
use tokio_stream::{Stream, StreamExt};
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::download::Download;
use super::failure::Failure;
use super::tell;
use crate::control::version::Stated;
use crate::sampler::resize::Picture;

/// Bytes of an answer: the list of many thousand renders.
const ANSWER: usize = 256 << 20;
/// Bytes of pixels in one message.
const PIECE: usize = 1 << 20;
/// How often a render is submitted whose answer is lost, and the pause before the next time.
const SUBMISSIONS: u32 = 5;
const RESUBMIT: Duration = Duration::from_secs(1);

/// The coordinator, as people see it.
#[derive(Debug)]
pub(super) struct Client {
    control: ControlClient<InterceptedService<Channel, Stated<Token>>>,
    args: ConnectArgs,
}

/// A page of a farm's renders.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) renders: Vec<RenderStatus>,
    /// The token of the next page; empty where there is none.
    pub(super) next: String,
    /// How many renders have ended, in all.
    pub(super) ended: u64,
}

/// A submission in pieces; they share the picture's pixels.
fn parts(
    submission: v1::Submission,
    picture: Option<&Picture>,
) -> impl Stream<Item = v1::SubmitRequest> + Send + 'static {
    let first = v1::SubmitRequest { part: Some(Part::Submission(submission)) };
    let pixels = picture.map(Picture::bytes).unwrap_or_default();
    let pieces = (0..pixels.len()).step_by(PIECE).map(move |at| {
        let end = (at + PIECE).min(pixels.len());
        v1::SubmitRequest { part: Some(Part::Pixels(pixels.slice(at..end))) }
    });
    tokio_stream::iter(std::iter::once(first).chain(pieces))
}

/// Whether it is the connection that failed, and nobody has answered.
fn is_broken(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// How the coordinator says no, or how the connection to it broke.
fn refused(args: &ConnectArgs) -> impl Fn(tonic::Status) -> Failure {
    move |status| {
        let message = status.message().to_owned();
        match status.code() {
            _ if is_broken(&status) => args.unreachable(&describe(&status)).into(),
            tonic::Code::InvalidArgument => Failure::Usage(message),
            tonic::Code::Unimplemented => Failure::Farm(format!(
                "the coordinator does not know this call ({message}): use the same release of gigasmith on both \
                 sides"
            )),
            _ => Failure::Farm(message),
        }
    }
}

fn render(wire: v1::Render) -> Result<RenderStatus, Failure> {
    render_status_from_wire(wire).map_err(Failure::farm)
}

impl Client {
    pub(super) async fn connect(args: &ConnectArgs) -> Result<Self, Failure> {
        let token = args.token()?;
        if args.shows_token() {
            tell("warning: the connection is not encrypted: the token can be read on the way; use https://");
        }
        let channel = args.connect().await?;
        let control =
            ControlClient::with_interceptor(channel, Stated(token)).max_decoding_message_size(ANSWER);
        Ok(Self { control, args: args.clone() })
    }

    /// Submits a render; returns it and what the user should know. When the connection breaks before the answer is
    /// there it is submitted again, under the same key: it is accepted once.
    pub(super) async fn submit(
        &mut self,
        submission: v1::Submission,
        picture: Option<&Picture>,
    ) -> Result<(RenderStatus, Vec<String>), Failure> {
        let mut attempts = 1..SUBMISSIONS;
        let answer = loop {
            let answered = self.control.submit(parts(submission.clone(), picture)).await;
            match answered {
                Err(status) if is_broken(&status) && attempts.next().is_some() => {
                    tell("the connection broke before the answer came: submitting again, as the same render");
                    tokio::time::sleep(RESUBMIT).await;
                }
                answered => break answered.map_err(refused(&self.args))?.into_inner(),
            }
        };
        let accepted = answer.render.ok_or_else(|| Failure::farm("the coordinator's answer is empty"))?;
        Ok((render(accepted)?, answer.warnings))
    }

    /// Unfinished renders and at most so many ended ones; with the token of the page before those that follow.
    pub(super) async fn renders(&mut self, page_size: u32, token: &str) -> Result<Page, Failure> {
        let request =
            v1::ListRendersRequest { page_size, page_token: token.to_owned(), ..Default::default() };
        let answer = self.control.list_renders(request).await.map_err(refused(&self.args))?.into_inner();
        let v1::ListRendersResponse { renders, next_page_token: next, ended } = answer;
        Ok(Page { renders: renders.into_iter().map(render).collect::<Result<_, _>>()?, next, ended })
    }

    /// One render.
    pub(super) async fn render(&mut self, id: &str) -> Result<RenderStatus, Failure> {
        let request = v1::ListRendersRequest { id: id.to_owned(), ..Default::default() };
        let answer = self.control.list_renders(request).await.map_err(refused(&self.args))?.into_inner();
        let found = answer.renders.into_iter().next();
        render(found.ok_or_else(|| Failure::farm(format!("the coordinator says nothing of render `{id}`")))?)
    }

    /// Removes an ended render.
    pub(super) async fn remove(&mut self, id: &str) -> Result<(), Failure> {
        let request = v1::RemoveRenderRequest { id: id.to_owned() };
        self.control.remove_render(request).await.map(drop).map_err(refused(&self.args))
    }

    /// The next status of a render that is followed; `None` when it has ended.
    pub(super) async fn next(
        &self,
        stream: &mut Streaming<v1::Render>,
    ) -> Result<Option<RenderStatus>, Failure> {
        stream.message().await.map_err(refused(&self.args))?.map(render).transpose()
    }

    /// Follows a render; [`Self::next`] reads it.
    pub(super) async fn watch(&mut self, id: &str) -> Result<Streaming<v1::Render>, Failure> {
        let request = v1::WatchRenderRequest { id: id.to_owned() };
        Ok(self.control.watch_render(request).await.map_err(refused(&self.args))?.into_inner())
    }

    pub(super) async fn change(&mut self, id: &str, change: Change) -> Result<RenderStatus, Failure> {
        let request = v1::ChangeRenderRequest { id: id.to_owned(), change: Some(change) };
        render(self.control.change_render(request).await.map_err(refused(&self.args))?.into_inner())
    }

    /// A part of a finished render, piece by piece into `save`.
    pub(super) async fn fetch(
        &mut self,
        id: &str,
        part: v1::FetchedPart,
        save: &mut Download,
    ) -> Result<(), Failure> {
        let request = v1::FetchRequest { id: id.to_owned(), part: part.into() };
        let mut pieces = self.control.fetch(request).await.map_err(refused(&self.args))?.into_inner();
        let (mut got, mut total) = (0, 0);
        while let Some(piece) = pieces.next().await {
            let v1::FetchResponse { total: all, data, file } = piece.map_err(refused(&self.args))?;
            (got, total) = (got + data.len() as u64, all);
            save.take(&file, &data)?;
        }
        match got {
            0 => Err(Failure::farm("the coordinator sent nothing")),
            got if got != total => {
                Err(Failure::farm(format!("only {got} of {total} bytes arrived: try again")))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn workers(&mut self) -> Result<Vec<WorkerStatus>, Failure> {
        let answer = self
            .control
            .list_workers(v1::ListWorkersRequest {})
            .await
            .map_err(refused(&self.args))?
            .into_inner();
        answer.workers.into_iter().map(|w| worker_status_from_wire(w).map_err(Failure::farm)).collect()
    }

    pub(super) async fn change_worker(
        &mut self,
        name: &str,
        change: v1::WorkerChange,
    ) -> Result<WorkerStatus, Failure> {
        let request = v1::ChangeWorkerRequest { name: name.to_owned(), change: change.into() };
        let answer = self.control.change_worker(request).await.map_err(refused(&self.args))?.into_inner();
        worker_status_from_wire(answer).map_err(Failure::farm)
    }
}
