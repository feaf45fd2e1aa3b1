//! The thread that owns the device and the model.
//!
//! Plain arrays go in, plain arrays come out; no asynchronous code ever touches the device. Jobs run in the
//! order they arrive: one at a time, but for patches, of which the backend gets as many together as it likes
//! and as are there, and the next while a device that computes on its own is still at them. A job whose asker has gone is
//! skipped. Dropping the handle ends the thread after the job it is in.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use gigasmith_proto::convert::{Outcome, TaskFailure};
use gigasmith_proto::domain::{Array, Conditioning, ModelDescription, Task, TaskResult, TileRules, Wanted};
use tokio::sync::oneshot;

use crate::backend::{Backend, BackendError, Patch, Started};

struct Job {
    task: Task,
    conditioning: Option<Arc<Conditioning>>,
    reply: oneshot::Sender<Outcome>,
}

impl Job {
    /// The patch that it is of, with what goes with it.
    fn patch(&self) -> Option<Patch<'_>> {
        match &self.task {
            Task::PredictNoise(task) => Some((task, self.conditioning.as_deref()?)),
            _ => None,
        }
    }
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
    batch: usize,
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
                let _ = ready.send(Ok((backend.describe().clone(), backend.batch())));
                drop(ready);
                work_off(&mut *backend, &queue);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread =
            std::thread::Builder::new().name("device".into()).spawn(run).expect("a thread can be started");
        let (description, batch) =
            loaded.recv().map_err(|_| StartError::Panicked)?.map_err(StartError::Load)?;
        Ok(Self { description, batch, jobs: Some(jobs), thread: Some(thread) })
    }

    /// What the model is.
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Whether the thread still answers. One that ended without being told to has panicked.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tasks in flight that keep the device busy: one call's patches computed, as many waiting.
    pub fn slots(&self) -> u32 {
        2 * self.batch as u32
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

/// How often a device that computes on its own is asked whether it is done.
const POLL: Duration = Duration::from_micros(500);

/// Answers jobs until nobody can ask any more.
fn work_off(backend: &mut dyn Backend, queue: &mpsc::Receiver<Job>) {
    let mut waiting = VecDeque::new();
    // Patches that the device computes on its own, while the next are prepared.
    let mut running: Option<Patches> = None;
    loop {
        waiting.extend(queue.try_iter());
        waiting.retain(|job: &Job| !job.reply.is_closed());
        let Some(job) = waiting.pop_front() else {
            let is_done = running.as_ref().is_none_or(|patches| patches.is_done(backend));
            let next = match &running {
                Some(_) if is_done => Err(RecvTimeoutError::Disconnected),
                Some(_) => queue.recv_timeout(POLL),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match (next, running.take()) {
                (Ok(job), patches) => {
                    waiting.push_back(job);
                    running = patches;
                }
                (Err(RecvTimeoutError::Timeout), patches) => running = patches,
                (Err(RecvTimeoutError::Disconnected), Some(patches)) => patches.finish(backend),
                (Err(RecvTimeoutError::Disconnected), None) => return,
            }
            continue;
        };
        if job.patch().is_none() {
            if let Some(patches) = running.take() {
                patches.finish(backend);
            }
            run_job(backend, job);
            continue;
        }
        // Whoever waits for what is done gets it before more is started.
        if running.as_ref().is_some_and(|patches| patches.is_done(backend))
            && let Some(patches) = running.take()
        {
            patches.finish(backend);
        }
        let patches = waiting.iter().take_while(|next| next.patch().is_some()).count();
        let others = waiting.drain(..patches.min(backend.batch().saturating_sub(1)));
        let next = Patches::start(backend, [job].into_iter().chain(others).collect());
        if let Some(patches) = std::mem::replace(&mut running, next) {
            patches.finish(backend);
        }
    }
}

/// Patches that were started together.
struct Patches {
    jobs: Vec<Job>,
    started: Started,
}

impl Patches {
    /// `None` where starting panicked: then they are answered.
    fn start(backend: &mut dyn Backend, jobs: Vec<Job>) -> Option<Self> {
        let start = AssertUnwindSafe(|| backend.start_noises(&patches(&jobs)));
        match catch_unwind(start) {
            Ok(started) => Some(Self { jobs, started }),
            Err(panic) => {
                reply_all(jobs, &panicked(&*panic));
                None
            }
        }
    }

    /// A backend that panics when it is asked has to be waited for: then it is known what is wrong.
    fn is_done(&self, backend: &dyn Backend) -> bool {
        catch_unwind(AssertUnwindSafe(|| backend.is_done(&self.started))).unwrap_or(true)
    }

    /// Waits for their answers, and gives them to who asked.
    fn finish(self, backend: &mut dyn Backend) {
        let Self { jobs, started } = self;
        let finish = AssertUnwindSafe(|| backend.finish_noises(started, &patches(&jobs)));
        match catch_unwind(finish) {
            Ok(answers) => {
                debug_assert_eq!(jobs.len(), answers.len(), "an answer to every patch");
                for (job, answer) in jobs.into_iter().zip(answers) {
                    // The asker may have gone meanwhile: then nobody wants the answer.
                    let _ = job.reply.send(answer.map(TaskResult::Noise).map_err(failed));
                }
            }
            Err(panic) => reply_all(jobs, &panicked(&*panic)),
        }
    }
}

fn patches(jobs: &[Job]) -> Vec<Patch<'_>> {
    jobs.iter().map(|job| job.patch().expect("only patches are started together")).collect()
}

/// A job that is not a patch with its conditioning.
fn run_job(backend: &mut dyn Backend, job: Job) {
    let answer = catch_unwind(AssertUnwindSafe(|| compute(backend, &job.task)));
    let answer = answer.unwrap_or_else(|panic| Err(panicked(&*panic)));
    // As above.
    let _ = job.reply.send(answer);
}

fn reply_all(jobs: Vec<Job>, failure: &TaskFailure) {
    for job in jobs {
        // As above.
        let _ = job.reply.send(Err(failure.clone()));
    }
}

fn panicked(panic: &(dyn Any + Send)) -> TaskFailure {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    TaskFailure { message: format!("the model panicked: {message}"), permanent: false }
}

fn failed(error: BackendError) -> TaskFailure {
    TaskFailure { permanent: error.is_permanent(), message: error.to_string() }
}

fn compute(backend: &mut dyn Backend, task: &Task) -> Outcome {
    match task {
        Task::PredictNoise(_) => {
            let message = "the patch came without its conditioning".into();
            Err(TaskFailure { message, permanent: true })
        }
        Task::EncodeText { prompt } => backend.encode_text(prompt).map(TaskResult::Text).map_err(failed),
        Task::EncodeTile { image, rules } => {
            let factor = backend.describe().latent_factor as usize;
            let size = (image.height() / factor, image.width() / factor);
            check_part(rules, size)?;
            let (image, norms) = (image.to_array(), rules.norms.as_deref());
            match rules.wanted {
                Wanted::Values => {
                    let moments = backend.encode_tile(&image, norms).map_err(failed)?;
                    Ok(TaskResult::Moments(part_of(&moments, rules, size, 1)?))
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
            check_part(rules, size)?;
            let norms = rules.norms.as_deref();
            match rules.wanted {
                Wanted::Values => {
                    let image = backend.decode_tile(latent, norms).map_err(failed)?;
                    Ok(TaskResult::Image(part_of(&image, rules, size, factor)?))
                }
                Wanted::Norms => {
                    let found = backend.decoder_norms(latent, norms, rules.part);
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

#[cfg(test)]
mod tests;
