//! Going on with a render to its end: its last checkpoint, its files, its result in the store.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_stream::StreamExt;

use super::{Keeping, TakenUp, quoted};
use crate::cli::download::Download;
use crate::cli::failure::Failure;
use crate::cli::files::{FileArgs, check_kind};
use crate::cli::progress::Display;
use crate::cli::render::{no_latents, write};
use crate::cli::tell;
use crate::embedded::EmbeddedFarm;
use crate::farm::Lane;
use crate::metrics::Metrics;
use crate::output::Format;
use crate::render::{Course, Progress, Start, render_from};
use crate::spec::{RenderSpec, StagePlans};
use crate::store::{Closed, Keeper, KeeperStart, Outputs, Part, Piece, Restored, StateRecord, StoredState};

/// How long the last checkpoint may take.
const LAST_CHECKPOINT: Duration = Duration::from_secs(20);
/// Between two attempts to write what was made.
const RETRY: Duration = Duration::from_secs(5);

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
        let id = taken.record.id.clone();
        if taken.state == StoredState::Done {
            // A crash may have left them.
            self.discard(&taken).await;
            return self.fetch(&taken.record.id, &taken.spec, &files, display).await;
        }
        display.say(&format!("render {id} in {}: `{}` goes on with it", self.url, self.resume(&id, &files)));
        let (outputs, keeper) = self.render(&taken, &files, (embedded, lane), display).await?;
        self.hand_over(&taken, &files, &outputs, display, keeper).await?;
        let (seed, seconds) = (taken.spec.seed, started.elapsed().as_secs_f64());
        display.say(&format!("wrote {} (render {id}, seed {seed}, {seconds:.1} s)", files.output.display()));
        Ok(())
    }

    /// Writes what was made, to its files and to the store. As long as neither takes it there is nothing to
    /// end for: both are tried again.
    async fn hand_over(
        &self,
        taken: &TakenUp,
        files: &FileArgs,
        outputs: &Outputs,
        display: &mut Display,
        keeper: Keeper,
    ) -> Result<(), Failure> {
        let (id, resume) = (taken.record.id.as_str(), self.resume(&taken.record.id, files));
        let mut told = false;
        loop {
            let written = write(files, outputs, display, &self.stop);
            display.phase("storing the picture");
            let kept = self.unless_stopped(self.keep_result(taken, outputs)).await;
            match (written, kept) {
                (_, Err(superseded @ Failure::Superseded(_))) => return Err(superseded),
                (written, Ok(())) => {
                    // Nobody will go on from its checkpoints.
                    drop(keeper);
                    self.discard(taken).await;
                    let Err(error) = written else { return Ok(()) };
                    return Err(Failure::output(format!(
                        "{error}; nothing is lost, the store has it: `{}` with a place to write to",
                        self.command("resume", id)
                    )));
                }
                (Ok(()), Err(Failure::Interrupted)) => {
                    return Err(Failure::Left(format!(
                        "interrupted: {} is written, but the store does not have it yet: `{resume}` keeps it",
                        files.output.display()
                    )));
                }
                (Err(_), Err(Failure::Interrupted)) => {
                    return Err(self.left(keeper, Failure::Interrupted, &resume).await);
                }
                (Ok(()), Err(error)) => {
                    display.warn(&format!(
                        "the picture is written, but could not be kept in the store: {error}; when that is \
                         mended, `{resume}` keeps it"
                    ));
                    return Ok(());
                }
                (Err(error), Err(kept)) => {
                    if !std::mem::replace(&mut told, true) {
                        display
                            .warn(&format!("{error}; {kept}; both are tried again until one of them works"));
                    }
                    let pause = async {
                        tokio::time::sleep(RETRY).await;
                        Ok(())
                    };
                    if self.unless_stopped(pause).await.is_err() {
                        return Err(self.left(keeper, Failure::Interrupted, &resume).await);
                    }
                }
            }
        }
    }

    /// Renders from the newest checkpoint, leaving new ones. The keeper is to be let go once what was made is
    /// in safety.
    async fn render(
        &self,
        taken: &TakenUp,
        files: &FileArgs,
        (embedded, lane): (&mut EmbeddedFarm, &Arc<Lane>),
        display: &mut Display,
    ) -> Result<(Outputs, Keeper), Failure> {
        let TakenUp { record, spec, claim, .. } = taken;
        let id = record.id.as_str();
        display.phase("reading the checkpoint");
        let read = async {
            let restored = self.store.restore(id, spec, lane.model()).await.map_err(|e| self.failure(e))?;
            let from_start = restored.start.position.is_beginning();
            let inputs = self.store.inputs(record, from_start).await.map_err(|e| self.failure(e))?;
            Ok((restored, inputs))
        };
        let (Restored { mut start, found, damage }, inputs) = self.unless_stopped(read).await?;
        display.finish();
        damage.iter().for_each(|damage| display.warn(damage));
        if start.position.is_beginning() {
            start = Start::beginning(inputs.picture);
        }
        let plans = StagePlans::new(spec, lane.model(), inputs.plan.as_deref()).map_err(Failure::usage)?;
        let stop = self.stop.child_token();
        let mut keeper = Keeper::start(KeeperStart {
            metrics: Metrics::default(),
            store: self.store.clone(),
            id: id.to_owned(),
            claim: claim.clone(),
            spec: spec.hash(),
            found,
            options: self.options,
            stop: stop.clone(),
        });
        let course = Course::new(display, &mut keeper, stop.clone());
        let mut course = course.with_scratch(self.store.scratch().clone());
        let rendered = {
            let work = render_from(lane.clone(), (spec, plans), start, &mut course);
            let mut work = std::pin::pin!(work);
            tokio::select! {
                done = &mut work => done.map_err(Failure::from),
                ended = embedded.worker_ends() => {
                    // It leaves its last point.
                    stop.cancel();
                    let _ = work.await;
                    Err(Failure::from(ended))
                }
            }
        };
        let failure = match rendered {
            Ok(rendered) => {
                let spec = spec.clone();
                let (format, scratch) = (files.format()?, self.store.scratch().clone());
                let encoded =
                    tokio::task::spawn_blocking(move || Outputs::of(&rendered, &spec, (format, &scratch)))
                        .await;
                let encoded = encoded.map_err(|e| e.to_string()).flatten();
                let failed = |e| Failure::output(format!("the picture cannot be encoded: {e}"));
                return Ok((encoded.map_err(failed)?, keeper));
            }
            Err(failure) => failure,
        };
        let why = if self.stop.is_cancelled() { "" } else { "the render broke off: " };
        let seconds = LAST_CHECKPOINT.as_secs();
        display.say(&format!("{why}taking a last checkpoint, for up to {seconds} s (Ctrl-C ends at once)"));
        display.finish();
        Err(self.left(keeper, failure, &self.resume(id, files)).await)
    }

    /// Leaves a render that goes on with the command `resume`: after a last checkpoint, if there is time.
    async fn left(&self, keeper: Keeper, failure: Failure, resume: &str) -> Failure {
        let any = keeper.tally().checkpoints > 0;
        let from = if any { "goes on from the one before" } else { "goes on from what was there before" };
        match (failure, keeper.close(LAST_CHECKPOINT).await) {
            (_, Closed::Lost(error)) => self.failure(error),
            (Failure::Interrupted, Closed::Kept) => {
                Failure::Left(format!("interrupted: `{resume}` goes on from here"))
            }
            (Failure::Interrupted, Closed::Late(reason)) => Failure::Left(format!(
                "interrupted, but the last checkpoint is missing ({reason}): `{resume}` {from}"
            )),
            (Failure::Render(reason), _) => Failure::Render(format!("{reason}; `{resume}` tries again")),
            (Failure::Output(reason), _) => Failure::Output(format!("{reason}; `{resume}` goes on")),
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

    /// Stores what a render made, then that it is done.
    async fn keep_result(&self, taken: &TakenUp, outputs: &Outputs) -> Result<(), Failure> {
        let (id, claim) = (taken.record.id.as_str(), &taken.claim);
        let keep = async {
            self.store.put_result(id, claim, outputs, Arc::new(|_, _| true)).await?;
            // It may have been removed while that took its time.
            self.store.check(claim).await?;
            let done = StateRecord { state: StoredState::Done, ..StateRecord::queued(taken.record.priority) };
            self.store.set_state(id, &done).await
        };
        keep.await.map_err(|e| self.failure(e))
    }

    /// Removes the checkpoints of a render that is done.
    async fn discard(&self, taken: &TakenUp) {
        let id = &taken.record.id;
        if let Err(error) = self.store.discard_checkpoints(id, &taken.claim).await {
            tell(&format!("warning: the checkpoints of {id} are left behind: {error}"));
        }
    }

    /// Writes the results of a finished render.
    pub(in crate::cli) async fn fetch(
        &self,
        id: &str,
        spec: &RenderSpec,
        files: &FileArgs,
        display: &mut Display,
    ) -> Result<(), Failure> {
        let stages = spec.upscales.len() as u32;
        let named = [
            (Part::Picture, Some(&files.output)),
            (Part::Latents, files.save_latents.as_ref()),
            (Part::Plan, files.save_plan.as_ref()),
        ];
        for (part, path) in named {
            let Some(path) = path else { continue };
            let found = self.store.result(id, part, stages).await.map_err(|e| self.failure(e))?;
            let mut found = found.ok_or_else(|| match part {
                Part::Latents => no_latents(),
                _ => Failure::output(format!("the result of render {id} is no longer in the store")),
            })?;
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
