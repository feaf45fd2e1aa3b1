//! The thread that owns the device and the model.
//!
//! Plain arrays go in, plain arrays come out; no asynchronous code ever touches the device. Jobs run one
//! at a time in the order they arrive. A job whose asker has gone is skipped. Dropping the handle ends
//! the thread after the job it is in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use gigasmith_proto::convert::{Outcome, TaskFailure};
use gigasmith_proto::domain::{Array, Conditioning, ModelDescription, Task, TaskResult, TileRules, Wanted};
use tokio::sync::oneshot;

use crate::backend::{Backend, BackendError};

struct Job {
    task: Task,
    conditioning: Option<Arc<Conditioning>>,
    reply: oneshot::Sender<Outcome>,
}

/// Why a device thread could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E> {
    /// The model could not be loaded.
    #[error(transparent)]
    Load(E),
    /// Loading panicked: a bug, or no memory.
    #[error("loading the model broke off; the panic above says where")]
    Panicked,
}

/// A handle on the device thread.
#[derive(Debug)]
pub struct DeviceThread {
    description: ModelDescription,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts the thread and loads the model on it. Blocks until the model is ready.
    pub fn start<E: Send + 'static>(
        load: impl FnOnce() -> Result<Box<dyn Backend>, E> + Send + 'static,
    ) -> Result<Self, StartError<E>> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, loaded) = mpsc::channel();
        let run = move || match load() {
            Ok(mut backend) => {
                // The other side waits for this message, so it cannot be gone.
                let _ = ready.send(Ok(backend.describe().clone()));
                drop(ready);
                queue.into_iter().for_each(|job| run_job(&mut *backend, job));
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread =
            std::thread::Builder::new().name("device".into()).spawn(run).expect("a thread can be started");
        let description = loaded.recv().map_err(|_| StartError::Panicked)?.map_err(StartError::Load)?;
        Ok(Self { description, jobs: Some(jobs), thread: Some(thread) })
    }

    /// What the model is.
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Runs a task. Patches need their conditioning.
    pub async fn run(&self, task: Task, conditioning: Option<Arc<Conditioning>>) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let gone = || TaskFailure { message: "the device thread has ended".into(), permanent: false };
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Job { task, conditioning, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the job it ended.
            let _ = thread.join();
        }
    }
}

fn run_job(backend: &mut dyn Backend, job: Job) {
    let Job { task, conditioning, reply } = job;
    if reply.is_closed() {
        return;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| compute(backend, task, conditioning.as_deref())))
        .unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(TaskFailure { message: format!("the model panicked: {message}"), permanent: false })
        });
    // The asker may have gone meanwhile: then nobody wants the answer.
    let _ = reply.send(outcome);
}

fn compute(backend: &mut dyn Backend, task: Task, conditioning: Option<&Conditioning>) -> Outcome {
    let failed =
        |error: BackendError| TaskFailure { permanent: error.is_permanent(), message: error.to_string() };
    match task {
        Task::PredictNoise(task) => {
            let conditioning = conditioning.ok_or_else(|| TaskFailure {
                message: "the patch came without its conditioning".into(),
                permanent: true,
            })?;
            backend.predict_noise(&task, conditioning).map(TaskResult::Noise).map_err(failed)
        }
        Task::EncodeText { prompt } => backend.encode_text(&prompt).map(TaskResult::Text).map_err(failed),
        Task::EncodeTile { image, rules } => {
            let factor = backend.describe().latent_factor as usize;
            let size = (image.height() / factor, image.width() / factor);
            check_part(&rules, size)?;
            let (image, norms) = (image.to_array(), rules.norms.as_deref());
            match rules.wanted {
                Wanted::Values => {
                    let moments = backend.encode_tile(&image, norms).map_err(failed)?;
                    Ok(TaskResult::Moments(part_of(&moments, &rules, size, 1)?))
                }
                Wanted::Norms => {
                    let found = backend.encoder_norms(&image, norms, rules.part);
                    found.map(TaskResult::Norms).map_err(failed)
                }
            }
        }
        Task::DecodeTile { latent, rules } => {
            let factor = backend.describe().latent_factor as usize;
            let size = latent.chw().map_or((0, 0), |(_, height, width)| (height, width));
            check_part(&rules, size)?;
            let norms = rules.norms.as_deref();
            match rules.wanted {
                Wanted::Values => {
                    let image = backend.decode_tile(&latent, norms).map_err(failed)?;
                    Ok(TaskResult::Image(part_of(&image, &rules, size, factor)?))
                }
                Wanted::Norms => {
                    let found = backend.decoder_norms(&latent, norms, rules.part);
                    found.map(TaskResult::Norms).map_err(failed)
                }
            }
        }
    }
}

/// The wanted part of what a network made of a tile of some size in latent pixels.
fn part_of(
    made: &Array,
    rules: &TileRules,
    (height, width): (usize, usize),
    scale: usize,
) -> Result<Array, TaskFailure> {
    match made.chw() {
        Some((_, h, w)) if (h, w) == (height * scale, width * scale) => Ok(rules.part.of(made, scale)),
        _ => {
            let message = format!(
                "the model made {:?} of a tile of {height}x{width} latent pixels, {scale} times as large is due",
                made.shape()
            );
            Err(TaskFailure { message, permanent: false })
        }
    }
}

/// The part that is wanted must lie inside the tile.
fn check_part(rules: &TileRules, (height, width): (usize, usize)) -> Result<(), TaskFailure> {
    if rules.part.is_within(height, width) {
        return Ok(());
    }
    let message = format!("{:?} is not inside a tile of {height}x{width} latent pixels", rules.part);
    Err(TaskFailure { message, permanent: true })
}
