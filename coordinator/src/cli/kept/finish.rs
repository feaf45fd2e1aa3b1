//! Going on with a render to its end on this machine: who is told, which files are written.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gigasmith_proto::domain::ModelDescription;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Keeping, TakenUp, quoted};
use crate::cli::download::Download;
use crate::cli::failure::Failure;
use crate::cli::files::{FileArgs, check_kind};
use crate::cli::progress::Display;
use crate::cli::render::{no_latents, write};
use crate::embedded::EmbeddedFarm;
use crate::farm::{Lane, TaskError};
use crate::lifecycle::{Delivery, Ended, Host, Left, Lifecycle};
use crate::metrics::Metrics;
use crate::output::Format;
use crate::render::{Progress, Rendered, StageBegin};
use crate::spec::RenderSpec;
use crate::store::{Closed, Outputs, Part, Piece, StoreError, Stored};

/// How long the last checkpoint may take.
const LAST_CHECKPOINT: Duration = Duration::from_secs(20);

/// A terminal, and the files that its person wants.
struct Terminal<'a> {
    display: &'a mut Display,
    files: &'a FileArgs,
    lane: Arc<Lane>,
    keeping: &'a Keeping,
    /// Whether it was said that a result is tried to be kept again.
    warned: bool,
}

impl Progress for Terminal<'_> {
    fn stage(&mut self, begin: StageBegin) {
        self.display.stage(begin);
    }
    fn taken_up(&mut self, begin: StageBegin) {
        self.display.taken_up(begin);
    }
    fn patches(&mut self, done: usize) {
        self.display.patches(done);
    }
    fn phase(&mut self, what: &'static str) {
        self.display.phase(what);
    }
    fn tiles(&mut self, done: usize, total: usize) {
        self.display.tiles(done, total);
    }
    fn warn(&mut self, message: &str) {
        self.display.warn(message);
    }
    fn late(&mut self, reason: Option<&str>) {
        self.display.late(reason);
    }
}

impl Host for Terminal<'_> {
    type Failure = Failure;

    async fn lane(&mut self, _: &RenderSpec) -> Result<Arc<Lane>, TaskError> {
        self.display.finish();
        Ok(self.lane.clone())
    }

    /// A person is here, who sees what is wrong.
    fn retry(&mut self, _: &StoreError) -> Option<Duration> {
        None
    }

    fn outputs(&self, rendered: &Rendered, stored: &Stored) -> Result<Outputs, String> {
        let format = self.files.format().map_err(|e| e.to_string())?;
        let spec = stored.spec.as_ref().expect("it is settled before it is taken up");
        Outputs::of(rendered, spec, (format, self.keeping.store.scratch()))
    }

    fn deliver(&mut self, outputs: &Outputs) -> Delivery<Failure> {
        match write(self.files, outputs, self.display, &self.keeping.stop) {
            Ok(()) => Delivery::Written,
            Err(failure) => Delivery::Failed(failure),
        }
    }

    fn given_up(&mut self, message: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            self.display.warn(message);
        }
    }
}

impl Keeping {
    /// Goes on with a render to its end, and writes what it made.
    pub(in crate::cli) async fn finish(
        &self,
        taken: TakenUp,
        files: FileArgs,
        (embedded, lane): (&mut EmbeddedFarm, &Arc<Lane>),
        display: &mut Display,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let (id, spec) = taken.about();
        let resume = self.resume(&id, &files);
        display.say(&format!("render {id} in {}: `{resume}` goes on with it", self.url));
        let (life, stop) = self.life(&taken, lane.model().clone());
        let ended = {
            let (lane, warned) = (lane.clone(), false);
            let mut terminal = Terminal { display, files: &files, lane, keeping: self, warned };
            let mut living = std::pin::pin!(life.live(&mut terminal));
            tokio::select! {
                ended = &mut living => Ok(ended),
                ended = embedded.worker_ends() => {
                    // It leaves its last point.
                    stop.cancel();
                    let _ = living.await;
                    Err(Failure::from(ended))
                }
            }
        };
        match ended? {
            Ended::Done(Delivery::Failed(error)) => Err(Failure::output(format!(
                "{error}; nothing is lost, the store has it: `{}` with a place to write to",
                self.command("resume", &id)
            ))),
            Ended::Done(_) => {
                let seconds = started.elapsed().as_secs_f64();
                let (output, seed) = (files.output.display(), spec.seed);
                display.say(&format!("wrote {output} (render {id}, seed {seed}, {seconds:.1} s)"));
                Ok(())
            }
            Ended::Already(stored) => self.fetch(&stored, &files, display).await,
            Ended::Cancelled => Err(self.cancelled(&id)),
            Ended::NotKept(None) => Err(Failure::Left(format!(
                "interrupted: {} is written, but the store does not have it yet: `{resume}` keeps it",
                files.output.display()
            ))),
            Ended::NotKept(Some(error)) => {
                let error = self.failure(error);
                display.warn(&format!(
                    "the picture is written, but could not be kept in the store: {error}; once that is fixed, \
                     `{resume}` keeps it"
                ));
                Ok(())
            }
            Ended::Stopped(left) => Err(self.left(&left, Failure::Interrupted, &resume)),
            Ended::Lost(error) => Err(self.failure(error)),
            Ended::Stuck(_) => unreachable!("a person decides how often it is started"),
            Ended::Failed(failed, left) => Err(self.left(&left, self.failed(failed), &resume)),
        }
    }

    /// A life of a render, and what stops it.
    fn life(&self, taken: &TakenUp, model: Arc<ModelDescription>) -> (Lifecycle, CancellationToken) {
        let stop = self.stop.child_token();
        let (id, spec) = taken.about();
        let life = Lifecycle {
            store: self.store.clone(),
            id,
            owner: self.owner.clone(),
            spec,
            model,
            keep: self.options,
            metrics: Metrics::default(),
            stop: stop.clone(),
            farewell: LAST_CHECKPOINT,
            most_starts: None,
        };
        (life, stop)
    }

    fn failed(&self, failed: crate::lifecycle::Failed) -> Failure {
        use crate::lifecycle::Failed;
        match failed {
            Failed::Render(error) => error.into(),
            Failed::Store(error) => self.failure(error),
            Failed::Request(error) => Failure::usage(error),
            failed @ (Failed::Encode(_) | Failed::Refused(_)) => Failure::output(failed),
        }
    }

    /// What to say of a render that goes on with the command `resume`.
    fn left(&self, left: &Left, failure: Failure, resume: &str) -> Failure {
        let from =
            if left.any { "goes on from the one before" } else { "goes on from what was there before" };
        match (failure, &left.last) {
            (Failure::Interrupted, Some(Closed::Late(reason))) => Failure::Left(format!(
                "interrupted, but the last checkpoint is missing ({reason}): `{resume}` {from}"
            )),
            (Failure::Interrupted, Some(_)) => {
                Failure::Left(format!("interrupted: `{resume}` goes on from here"))
            }
            (Failure::Render(reason), _) => Failure::Render(format!("{reason}; `{resume}` tries again")),
            (Failure::Output(reason), Some(_)) => Failure::Output(format!("{reason}; `{resume}` goes on")),
            (other, _) => other,
        }
    }

    /// The command that goes on with a render.
    fn resume(&self, id: &str, files: &FileArgs) -> String {
        let mut command = self.command("resume", id);
        let mut add = |flag: &str, path: &Path| {
            command.push_str(&format!(" {flag} {}", quoted(&path.display().to_string())));
        };
        add("-o", &files.output);
        files.save_latents.iter().for_each(|path| add("--save-latents", path));
        files.save_plan.iter().for_each(|path| add("--save-plan", path));
        let usual = Format::of(&files.output, None).ok().map(|format| format.quality);
        if let Some(quality) = files.quality.quality.filter(|q| Some(*q) != usual) {
            command.push_str(&format!(" --quality {quality}"));
        }
        command + &self.flags
    }

    /// Writes the results of a finished render.
    pub(in crate::cli) async fn fetch(
        &self,
        stored: &Stored,
        files: &FileArgs,
        display: &mut Display,
    ) -> Result<(), Failure> {
        let id = stored.record.id.as_str();
        let stages = stored.spec.as_ref().map_or(0, |s| s.upscales.len() as u32);
        let gone = || Failure::output(format!("the result of render {id} is no longer in the store"));
        let place = self.store.result_place(id, &stored.state, stages).await.map_err(|e| self.failure(e))?;
        let place = place.ok_or_else(gone)?;
        let named = [
            (Part::Picture, Some(&files.output)),
            (Part::Latents, files.save_latents.as_ref()),
            (Part::Plan, files.save_plan.as_ref()),
        ];
        for (part, path) in named {
            let Some(path) = path else { continue };
            let found = self.store.result(&place, part).await.map_err(|e| self.failure(e))?;
            let mut found = found.ok_or_else(|| if part == Part::Latents { no_latents() } else { gone() })?;
            found.kind.map_or(Ok(()), |kind| check_kind(id, kind, path))?;
            let mut download = Download::to(path);
            while let Some(piece) = found.pieces.next().await {
                let Piece { file, bytes } = piece.map_err(|e| self.failure(e))?;
                download.take(&file, &bytes)?;
            }
            download.finish()?;
        }
        display.say(&format!("wrote {} (render {id} was done already)", files.output.display()));
        Ok(())
    }
}
