//! Renders with checkpoints on this machine: what `render --store` and `resume` share.

use std::time::{Duration, Instant};

use clap::Args;
use gigasmith_proto::domain::{Identifier, ModelDescription};
use tokio_util::sync::CancellationToken;

use super::download::Download;
use super::failure::Failure;
use super::progress::Display;
use super::render::{FileArgs, no_latents, write};
use super::seeds::Seeds;
use super::tell;
use crate::embedded::EmbeddedFarm;
use crate::farm::Lane;
use crate::jobs::{JobError, is_name};
use crate::metrics::Metrics;
use crate::output::Format;
use crate::raster::Scratch;
use crate::render::{Course, Progress, RenderInputs, render_from};
use crate::request::{RenderRequest, RequestInputs, given_plans, resolve};
use crate::sampler::tiles::VaeMode;
use crate::spec::{ModelSpec, RenderSpec};
use crate::store::{
    self, Claim, Closed, KeepOptions, Keeper, KeeperStart, NewRender, Outputs, Owner, Part, Piece,
    RenderRecord, RenderStore, Restored, StateRecord, StoreError, Stored, StoredState,
};

use std::path::Path;
use std::sync::Arc;
use tokio_stream::StreamExt;

/// The store unless another is given.
pub(super) const DEFAULT_STORE: &str = "gigasmith-store";
/// How long the last checkpoint may take.
const LAST_CHECKPOINT: Duration = Duration::from_secs(20);
/// Between two attempts to write what was made.
const RETRY: Duration = Duration::from_secs(5);

/// How checkpoints are kept.
#[derive(Debug, Clone, Args)]
pub(super) struct KeepArgs {
    /// Between two checkpoints of a render that has a store, for example 30s or 5m.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = interval)]
    checkpoint_every: Duration,
    /// Newest checkpoints of a render that are kept, at least 2. When it is done, all of them go.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=1000))]
    keep: u16,
}

fn interval(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|e| format!("{e}; give for example 60s or 5m"))?;
    let range = Duration::from_millis(10)..=Duration::from_secs(7 * 86_400);
    range.contains(&every).then_some(every).ok_or_else(|| "give 10ms to 7days".to_owned())
}

impl KeepArgs {
    /// As flags, where they are not the defaults.
    fn flags(&self) -> String {
        let mut flags = String::new();
        if self.checkpoint_every != KeepOptions::default().every {
            let every = humantime::format_duration(self.checkpoint_every).to_string().replace(' ', "");
            flags.push_str(&format!(" --checkpoint-every {every}"));
        }
        if usize::from(self.keep) != KeepOptions::default().keep {
            flags.push_str(&format!(" --keep {}", self.keep));
        }
        flags
    }

    pub(super) fn options(&self) -> KeepOptions {
        KeepOptions { every: self.checkpoint_every, keep: self.keep.into() }
    }
}

/// This process, as others that reach for a render see it.
pub(super) fn owner() -> Owner {
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let Identifier(bytes) = Identifier::random();
    Owner {
        incarnation: bytes.iter().map(|b| format!("{b:02x}")).collect(),
        name: format!("process {} on {host}", std::process::id()),
    }
}

/// A store to keep renders in.
#[derive(Debug)]
pub(super) struct Keeping {
    store: RenderStore,
    url: String,
    options: KeepOptions,
    owner: Owner,
    /// Flags that the command which goes on needs too.
    flags: String,
    stop: CancellationToken,
}

/// A render that was taken up.
#[derive(Debug)]
pub(super) struct TakenUp {
    record: RenderRecord,
    spec: RenderSpec,
    state: StoredState,
    claim: Claim,
}

impl Keeping {
    /// Opens a store.
    /// `flags`: those that the command which goes on needs too, beside the ones for files and store.
    pub(super) fn open(
        url: &str,
        keep: &KeepArgs,
        (flags, scratch): (String, Scratch),
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        let store = store::open(url).map_err(Failure::output)?.with_scratch(scratch);
        let flags = format!("{flags}{}", keep.flags());
        Ok(Self { store, url: url.to_owned(), options: keep.options(), owner: owner(), flags, stop })
    }

    /// Fails when the store cannot be used: before a model is loaded.
    pub(super) async fn probe(&self) -> Result<(), Failure> {
        self.store.probe(&self.owner).await.map_err(|e| self.failure(e))
    }

    /// The same for a failure of the store.
    pub(super) fn failure(&self, error: StoreError) -> Failure {
        match error {
            StoreError::Superseded { .. } | StoreError::Removed(_) => Failure::Superseded(error.to_string()),
            error => Failure::output(format!("the store {} cannot be used: {error}", self.url)),
        }
    }

    /// Runs what comes before there is anything to lose.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            () = self.stop.cancelled() => Err(Failure::Interrupted),
        }
    }

    /// One id per seed, `None` for the next free one.
    pub(super) fn names(&self, name: Option<&str>, seeds: &Seeds) -> Result<Vec<Option<String>>, Failure> {
        let named = |&seed: &u64| match (name, &seeds.0[..]) {
            (None, _) => None,
            (Some(name), [_]) => Some(name.to_owned()),
            (Some(name), _) => Some(format!("{name}-{seed}")),
        };
        let names: Vec<Option<String>> = seeds.0.iter().map(named).collect();
        match names.iter().flatten().find(|name| !is_name(name)) {
            Some(name) => Err(Failure::usage(JobError::Name(name.clone()))),
            None => Ok(names),
        }
    }

    /// The render of an id.
    pub(super) async fn read(&self, id: &str) -> Result<Stored, Failure> {
        let found = self.store.read(id).await.map_err(|e| self.failure(e))?;
        let (url, list) = (&self.url, self.command("renders", ""));
        found
            .ok_or_else(|| Failure::Input(format!("there is no render `{id}` in {url}: `{list}` lists them")))
    }

    fn command(&self, verb: &str, id: &str) -> String {
        let store =
            if self.url == DEFAULT_STORE { String::new() } else { format!("--store {}", quoted(&self.url)) };
        let words = ["gigasmith", verb, id, &store];
        words.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Takes up the render of this name, or stores a new one: everything that it needs, before its first
    /// patch.
    pub(super) async fn take_up(
        &self,
        name: Option<String>,
        request: RenderRequest,
        inputs: &RequestInputs,
        (spec, model): (RenderSpec, &ModelDescription),
    ) -> Result<TakenUp, Failure> {
        let fail = |e| self.failure(e);
        let there = match &name {
            Some(id) => self.store.read(id).await.map_err(fail)?,
            None => None,
        };
        let stored = match there {
            Some(stored) => stored,
            None => {
                let order = self.store.list().await.map_err(fail)?.iter().map(|s| s.record.order).max();
                let new = NewRender { id: name, order: order.unwrap_or(0) + 1, request, priority: 0 };
                let record = self.store.add(new, inputs).await.map_err(fail)?;
                Stored { record, spec: None, state: StateRecord::queued(0) }
            }
        };
        self.claim(stored, Some(spec), model).await
    }

    /// Takes up a render that the store has. `asked`: the settings that it must have; else it must only be of
    /// this model.
    pub(super) async fn claim(
        &self,
        stored: Stored,
        asked: Option<RenderSpec>,
        model: &ModelDescription,
    ) -> Result<TakenUp, Failure> {
        let fail = |e| self.failure(e);
        let Stored { record, spec, .. } = stored;
        let id = &record.id;
        let before = match spec {
            Some(before) => before,
            // It was stored, and never settled on a model.
            None => {
                let inputs = self.store.inputs(&record, true).await.map_err(fail)?;
                let resolved = resolve(&record.request, &inputs, model).map_err(Failure::usage)?;
                self.store.settle(id, &resolved.spec).await.map_err(fail)?
            }
        };
        let mut now = RenderSpec { model: ModelSpec::of(model), ..asked.unwrap_or_else(|| before.clone()) };
        if before.vae == VaeMode::Auto && now.vae == VaeMode::Seamless {
            // What was the default when it was begun.
            now.vae = before.vae;
        }
        self.check_settings(id, &before, &now)?;
        let claim = self.store.claim(id, &self.owner).await.map_err(fail)?;
        // Whoever had it may have come to an end meanwhile.
        let stored = self.store.read(id).await.map_err(fail)?;
        let stored = stored.ok_or_else(|| self.failure(StoreError::Removed(format!("render {id}"))))?;
        if stored.state.state == StoredState::Cancelled {
            return Err(Failure::usage(format!(
                "render `{id}` was cancelled, and its checkpoints are gone: choose another name, or remove it: {}",
                self.command("renders rm", id)
            )));
        }
        Ok(TakenUp { spec: before, state: stored.state.state, claim, record })
    }

    /// Fails with what differs from the settings that a render was begun with.
    fn check_settings(&self, id: &str, before: &RenderSpec, now: &RenderSpec) -> Result<(), Failure> {
        let mut now = now.clone();
        if before.mix && now.model.fingerprints == before.model.fingerprints {
            // Any class may take part.
            now.model = before.model.clone();
        }
        now.model.name.clone_from(&before.model.name);
        let differences = before.differences(&now);
        if differences.is_empty() {
            return Ok(());
        }
        let is_model = differences.iter().all(|d| d.starts_with("model."));
        let differences = differences.join("; ");
        let remove = self.command("renders rm", id);
        Err(match is_model {
            true => Failure::Model(format!(
                "render `{id}` was begun with another model, variant, device or dtype: {differences}; go on with those \
                 it was begun with, or remove it: {remove}"
            )),
            false => Failure::usage(format!(
                "render `{id}` was begun with other settings: {differences}; choose another --name, or remove it: \
                 {remove}"
            )),
        })
    }

    /// Goes on with a render to its end, and writes what it made.
    pub(super) async fn finish(
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
            let from_start = restored.resumed.at.is_none();
            let inputs = self.store.inputs(record, from_start).await.map_err(|e| self.failure(e))?;
            Ok((restored, inputs))
        };
        let (Restored { resumed, found, damage }, inputs) = self.unless_stopped(read).await?;
        display.finish();
        damage.iter().for_each(|damage| display.warn(damage));
        let plans = inputs.plan.as_deref().map(|json| given_plans(json, spec, lane.model())).transpose();
        let inputs = RenderInputs { picture: inputs.picture, plans: plans.map_err(Failure::usage)? };
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
            let work = render_from(lane.clone(), spec, inputs, resumed, &mut course);
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
                let (patch_side, spec) = (lane.model().patch_side as usize, spec.clone());
                let (format, scratch) = (files.format()?, self.store.scratch().clone());
                let encoded = tokio::task::spawn_blocking(move || {
                    Outputs::of(&rendered, &spec, patch_side, (format, &scratch))
                })
                .await;
                let encoded = encoded.map_err(|e| e.to_string()).flatten();
                let failed = |e| Failure::output(format!("the picture cannot be encoded: {e}"));
                return Ok((encoded.map_err(failed)?, keeper));
            }
            Err(failure) => failure,
        };
        if self.stop.is_cancelled() {
            display.say("taking a last checkpoint (Ctrl-C again ends at once)");
        }
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
        if let Some(quality) = files.quality.quality {
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
    pub(super) async fn fetch(
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
            if let Some(kind) =
                found.kind.filter(|kind| Format::of(path, None).is_ok_and(|f| f.kind != *kind))
            {
                let kind = kind.extension();
                return Err(Failure::usage(format!(
                    "render {id} is done and kept as .{kind}: name the output {}",
                    path.with_extension(kind).display()
                )));
            }
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

/// Opens a store that is there: looking makes none.
pub(super) fn open_existing(url: &str) -> Result<RenderStore, Failure> {
    let folder = match url.strip_prefix("file://") {
        Some(path) => Some(path),
        None => (!url.contains("://")).then_some(url),
    };
    match folder.filter(|folder| !Path::new(folder).is_dir()) {
        Some(folder) => {
            Err(Failure::Input(format!("there is no store in the folder {folder}: pass --store")))
        }
        None => store::open(url).map_err(Failure::output),
    }
}

/// As a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    match word.chars().all(plain) && !word.is_empty() {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
