//! The service behind `submit`, `status`, `watch`, `fetch`, `workers` and the rest.

use std::time::Duration;

use gigasmith_proto::convert::{render_status_to_wire, worker_status_to_wire};
use gigasmith_proto::domain::{Identifier, WorkerChange};
use gigasmith_proto::v1;
use gigasmith_proto::v1::change_render_request::Change;
use gigasmith_proto::v1::control_server::{Control, ControlServer};
use gigasmith_proto::v1::submit_request::Part;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::farm::{Farm, WorkerError};
use crate::jobs::{JobChange, JobError, JobSubmission, Jobs};
use crate::net::Tasks;
use crate::request::{RenderRequest, RequestInputs};
use crate::sampler::cascade::MAX_AREA;
use crate::sampler::resize::Picture;
use crate::sampler::units::ImageSize;
use crate::store::{Fetched, Part as StoredPart, Piece, StoreError, bytes_of};
use crate::versions::{self, Unreadable};

/// Bytes of a piece of a file.
const PIECE: usize = 1 << 20;
/// Bytes of one message from a person: a plan file of a large render and a piece of a picture fit.
const MAX_MESSAGE: usize = 64 << 20;
/// Between two messages to one who watches, at least and at most.
const WATCH: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));

/// The service that people speak to.
pub fn server(jobs: Jobs, tasks: Tasks) -> ControlServer<impl Control> {
    ControlServer::new(Service { farm: jobs.farm().clone(), jobs, tasks, pictures: Semaphore::new(PICTURES) })
        .max_decoding_message_size(MAX_MESSAGE)
}

struct Service {
    jobs: Jobs,
    farm: Farm,
    tasks: Tasks,
    /// Pictures taken in at a time: each is held in memory until it is stored.
    pictures: Semaphore,
}

/// How slowly a picture's pixels may come: slower ones would keep others from their place.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// What the first may take, and what the rest may be late by.
    grace: Duration,
    bytes_per_second: f64,
}

const PACE: Pace = Pace { grace: Duration::from_secs(60), bytes_per_second: 65_536.0 };

/// See [`Service::pictures`].
const PICTURES: usize = 2;

fn status(error: JobError) -> Status {
    let message = error.to_string();
    match error {
        JobError::Unknown(_) => Status::not_found(message),
        JobError::State { .. } => Status::failed_precondition(message),
        JobError::Request(_) | JobError::Name(_) => Status::invalid_argument(message),
        JobError::Store(StoreError::Taken(_) | StoreError::Remains(_)) => Status::already_exists(message),
        JobError::Store(StoreError::Damaged { .. } | StoreError::Version { .. }) => {
            Status::data_loss(message)
        }
        JobError::Store(StoreError::Superseded { .. } | StoreError::Removed(_)) => Status::aborted(message),
        JobError::Store(
            StoreError::Store { .. }
            | StoreError::Scratch(_)
            | StoreError::Silent(_)
            | StoreError::Unconditional { .. }
            | StoreError::Undeletable(_),
        )
        | JobError::NotStored(_) => Status::unavailable(message),
        JobError::Bug(_) => Status::internal(message),
    }
}

/// Reads a submission: its settings, then the pixels of its picture.
async fn read<'a>(
    mut parts: Streaming<v1::SubmitRequest>,
    pictures: &'a Semaphore,
) -> Result<(JobSubmission, Option<SemaphorePermit<'a>>), Status> {
    let Some(v1::SubmitRequest { part: Some(Part::Submission(first)) }) = parts.message().await? else {
        return Err(Status::invalid_argument("the first message of a submission holds its settings"));
    };
    let request: RenderRequest = versions::read(first.settings.as_bytes()).map_err(|e| {
        let newer = if matches!(e, Unreadable::Version(_)) { " on the coordinator" } else { "" };
        Status::invalid_argument(format!("the settings cannot be read: {e}{newer}"))
    })?;
    let mut place = None;
    let picture = match first.picture {
        None => None,
        Some(v1::Size { width, height }) => {
            let area = u64::from(width) * u64::from(height);
            if area == 0 || area > MAX_AREA {
                let message = format!("a picture of {width}x{height} pixels is empty or too large");
                return Err(Status::invalid_argument(message));
            }
            place = Some(pictures.acquire().await.expect("the semaphore is never closed"));
            Some(read_pixels(ImageSize { width, height }, &mut parts, PACE).await?)
        }
    };
    let key = match &first.key[..] {
        [] => None,
        key => Some(Identifier(key.try_into().map_err(|_| {
            Status::invalid_argument(format!("the submission's key has {} bytes: give 16", key.len()))
        })?)),
    };
    let submission = JobSubmission {
        key,
        id: Some(first.id).filter(|id| !id.is_empty()),
        priority: first.priority,
        request,
        inputs: RequestInputs { picture, plan: Some(first.plan).filter(|p| !p.is_empty()) },
    };
    Ok((submission, place))
}

async fn read_pixels(
    size: ImageSize,
    parts: &mut (impl Stream<Item = Result<v1::SubmitRequest, Status>> + Unpin),
    pace: Pace,
) -> Result<Picture, Status> {
    let wanted = bytes_of(size);
    // One buffer, handed on as it is; its pages are taken as pixels fill them.
    let mut pixels = Vec::new();
    let too_large = |_| Status::resource_exhausted(format!("no memory for a picture of {size}"));
    pixels.try_reserve_exact(wanted).map_err(too_large)?;
    let begun = Instant::now();
    while pixels.len() < wanted {
        let earned = Duration::from_secs_f64(pixels.len() as f64 / pace.bytes_per_second);
        let next = timeout_at(begun + pace.grace + earned, parts.next()).await;
        let next = next.map_err(|_| {
            Status::deadline_exceeded(format!(
                "the picture's pixels come too slowly: {} of {wanted} bytes in {} s, at least {} KiB/s are needed",
                pixels.len(),
                begun.elapsed().as_secs(),
                pace.bytes_per_second / 1024.0
            ))
        })?;
        match next.transpose()? {
            Some(v1::SubmitRequest { part: Some(Part::Pixels(piece)) })
                if pixels.len() + piece.len() <= wanted =>
            {
                pixels.extend_from_slice(&piece);
            }
            _ => {
                let message =
                    format!("the picture of {size} needs {wanted} bytes of pixels, other than came");
                return Err(Status::invalid_argument(message));
            }
        }
    }
    Ok(Picture::new(size, pixels))
}

#[tonic::async_trait]
impl Control for Service {
    type WatchRenderStream = ReceiverStream<Result<v1::Render, Status>>;
    type FetchStream = ReceiverStream<Result<v1::FetchResponse, Status>>;

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let (submission, _place) = read(request.into_inner(), &self.pictures).await?;
        let accepted = self.jobs.submit(submission).await.map_err(status)?;
        let warnings = accepted.warnings.clone();
        Ok(Response::new(v1::SubmitResponse { render: Some(render_status_to_wire(accepted)), warnings }))
    }

    async fn list_renders(
        &self,
        request: Request<v1::ListRendersRequest>,
    ) -> Result<Response<v1::ListRendersResponse>, Status> {
        let request = request.into_inner();
        let shown = request.filter();
        let v1::ListRendersRequest { id, page_size, page_token, .. } = request;
        if !id.is_empty() {
            let found = self.jobs.status(&id).await.ok_or_else(|| status(JobError::Unknown(id)))?;
            let renders = vec![render_status_to_wire(found)];
            return Ok(Response::new(v1::ListRendersResponse { renders, ..Default::default() }));
        }
        let mut found = match (shown, page_token.is_empty()) {
            // They are few, and come with the first page.
            (v1::RenderFilter::Unspecified | v1::RenderFilter::Unfinished, true) => {
                self.jobs.unfinished().await
            }
            _ => Vec::new(),
        };
        let mut next = None;
        if shown != v1::RenderFilter::Unfinished {
            let limit = if page_size == 0 { usize::MAX } else { page_size as usize };
            let page =
                self.jobs.ended(Some(page_token).filter(|t| !t.is_empty()), limit).await.map_err(status)?;
            found.extend(page.0);
            next = page.1;
        }
        Ok(Response::new(v1::ListRendersResponse {
            renders: found.into_iter().map(render_status_to_wire).collect(),
            next_page_token: next.unwrap_or_default(),
            ended: self.jobs.ended_count() as u64,
        }))
    }

    async fn remove_render(
        &self,
        request: Request<v1::RemoveRenderRequest>,
    ) -> Result<Response<v1::RemoveRenderResponse>, Status> {
        self.jobs.remove(&request.into_inner().id).await.map_err(status)?;
        Ok(Response::new(v1::RemoveRenderResponse {}))
    }

    async fn watch_render(
        &self,
        request: Request<v1::WatchRenderRequest>,
    ) -> Result<Response<Self::WatchRenderStream>, Status> {
        let id = request.into_inner().id;
        self.jobs.status(&id).await.ok_or_else(|| status(JobError::Unknown(id.clone())))?;
        let mut changed = self.jobs.versions();
        let (sender, receiver) = mpsc::channel(4);
        let jobs = self.jobs.clone();
        self.tasks.spawn_until_stop(async move {
            let mut last = None;
            // It ends with the render, or when nobody listens any more.
            while let Some(now) = jobs.status(&id).await {
                let is_final = now.state.is_final();
                if last.as_ref() != Some(&now) {
                    last = Some(now.clone());
                    if sender.send(Ok(render_status_to_wire(now))).await.is_err() {
                        return;
                    }
                }
                if is_final || sender.is_closed() {
                    return;
                }
                tokio::time::sleep(WATCH.0).await;
                // The reason and the rate change with time, even if the render does not.
                let _ = timeout(WATCH.1, changed.changed()).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn change_render(
        &self,
        request: Request<v1::ChangeRenderRequest>,
    ) -> Result<Response<v1::Render>, Status> {
        let v1::ChangeRenderRequest { id, change } = request.into_inner();
        let change = match change {
            Some(Change::Paused(true)) => JobChange::Pause,
            Some(Change::Paused(false)) => JobChange::Continue,
            Some(Change::Cancel(true)) => JobChange::Cancel,
            Some(Change::Priority(priority)) => JobChange::Priority(priority),
            Some(Change::Cancel(false)) | None => {
                return Err(Status::invalid_argument("the request names no change"));
            }
        };
        self.jobs.change(&id, change).await.map(|s| Response::new(render_status_to_wire(s))).map_err(status)
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let part = match request.part() {
            v1::FetchedPart::Picture => StoredPart::Picture,
            v1::FetchedPart::Latents => StoredPart::Latents,
            v1::FetchedPart::Plan => StoredPart::Plan,
            v1::FetchedPart::Unspecified => {
                return Err(Status::invalid_argument("the request names no part"));
            }
        };
        let Fetched { total, mut pieces, .. } = self.jobs.fetch(&request.id, part).await.map_err(status)?;
        let (sender, receiver) = mpsc::channel(2);
        self.tasks.spawn(async move {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|e| Status::unavailable(format!("the store failed: {e}")));
                let Piece { file, bytes } = match piece {
                    Ok(piece) => piece,
                    // Nobody listens any more, or they hear why it ends.
                    Err(status) => return drop(sender.send(Err(status)).await),
                };
                for at in (0..bytes.len()).step_by(PIECE) {
                    let (data, file) = (bytes.slice(at..(at + PIECE).min(bytes.len())), file.clone());
                    if sender.send(Ok(v1::FetchResponse { total, data, file })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let workers = self.farm.workers().await.into_iter().map(worker_status_to_wire).collect();
        Ok(Response::new(v1::ListWorkersResponse { workers }))
    }

    async fn change_worker(
        &self,
        request: Request<v1::ChangeWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        let request = request.into_inner();
        let change = match request.change() {
            v1::WorkerChange::Enable => WorkerChange::Enable,
            v1::WorkerChange::Disable => WorkerChange::Disable,
            v1::WorkerChange::Drain => WorkerChange::Drain,
            v1::WorkerChange::Unspecified => {
                return Err(Status::invalid_argument("the request names no change"));
            }
        };
        match self.farm.change_worker(&request.name, change).await {
            Ok(worker) => Ok(Response::new(worker_status_to_wire(worker))),
            Err(error @ WorkerError::Unknown { .. }) => Err(Status::not_found(error.to_string())),
            Err(error @ WorkerError::Closed) => Err(Status::unavailable(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of so many bytes, each after a pause.
    fn pieces(
        bytes: usize,
        pause: Duration,
    ) -> impl Stream<Item = Result<v1::SubmitRequest, Status>> + Unpin {
        let part = move || Some(Part::Pixels(vec![7; bytes].into()));
        Box::pin(tokio_stream::iter(0..).then(move |_: u32| async move {
            tokio::time::sleep(pause).await;
            Ok(v1::SubmitRequest { part: part() })
        }))
    }

    #[tokio::test]
    async fn pixels_must_come_at_some_rate() {
        let size = ImageSize { width: 64, height: 64 };
        let pace = Pace { grace: Duration::from_millis(100), bytes_per_second: 1000.0 };
        // Each piece in time, and all of them never.
        let status = read_pixels(size, &mut pieces(1, Duration::from_millis(60)), pace).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("too slowly"), "{status:?}");
        // Later than the grace, at a fair rate.
        let picture = read_pixels(size, &mut pieces(3072, Duration::from_millis(60)), pace).await.unwrap();
        assert!(picture.size() == size && picture.rgb().iter().all(|&v| v == 7));
    }

    #[tokio::test]
    async fn pixels_that_do_not_fit_are_refused() {
        let size = ImageSize { width: 2, height: 1 };
        for bytes in [4, 7] {
            let status = read_pixels(size, &mut pieces(bytes, Duration::ZERO), PACE).await.unwrap_err();
            assert!(status.message().contains("needs 6 bytes"), "{status:?}");
        }
    }
}
