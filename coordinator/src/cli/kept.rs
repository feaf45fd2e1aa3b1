//! Renders with checkpoints on this machine: what `render --store` and `resume` share.

mod finish;

use std::path::Path;
use std::time::Duration;

use clap::Args;
use gigasmith_proto::domain::{Identifier, ModelDescription};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::seeds::Seeds;
use super::tell;
use crate::jobs::{JobError, is_name};
use crate::raster::Scratch;
use crate::request::{RenderRequest, RequestInputs, resolve};
use crate::sampler::tiles::VaeMode;
use crate::spec::{ModelSpec, RenderSpec};
use crate::store::{
    self, Conditions, KeepOptions, NewRender, Owner, RenderRecord, RenderStore, StateRecord, StoreError,
    Stored, StoredState,
};

/// The store of this machine's renders unless another is given. Not that of `serve`, which runs what lies in its.
pub(super) const DEFAULT_STORE: &str = "gigasmith-renders";

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
}

impl TakenUp {
    /// Its id and its settings.
    pub(super) fn about(&self) -> (String, RenderSpec) {
        (self.record.id.clone(), self.spec.clone())
    }
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
        if url.starts_with("memory:") {
            return Err(Failure::usage(format!(
                "the store {url} ends with the program, so nothing could go on from it: give a folder, file://, s3://, \
                 gs:// or az://"
            )));
        }
        let store = store::open(url).map_err(Failure::output)?.with_scratch(scratch);
        let flags = format!("{flags}{}", keep.flags());
        Ok(Self { store, url: url.to_owned(), options: keep.options(), owner: owner(), flags, stop })
    }

    /// Fails when the store cannot be used: before a model is loaded.
    pub(super) async fn probe(&self) -> Result<(), Failure> {
        warn_of(self.store.probe().await.map_err(|e| self.failure(e))?, &self.url);
        Ok(())
    }

    /// Its folder, where it has one.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.store.folder()
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

    /// One id per seed, `None` for the next free one. A name that stands for several seeds in the store stands
    /// for one of them too.
    pub(super) async fn names(
        &self,
        name: Option<&str>,
        seeds: &Seeds,
    ) -> Result<Vec<Option<String>>, Failure> {
        let Some(name) = name else { return Ok(vec![None; seeds.0.len()]) };
        let of = |seed: &u64| format!("{name}-{seed}");
        let mut names = match &seeds.0[..] {
            [_] => vec![name.to_owned()],
            seeds => seeds.iter().map(of).collect(),
        };
        if let Some(wrong) = names.iter().find(|name| !is_name(name)) {
            return Err(Failure::usage(JobError::Name(wrong.clone())));
        }
        if let [seed] = &seeds.0[..] {
            let ids = self.store.ids().await.map_err(|e| self.failure(e))?;
            if !ids.iter().any(|id| id == name) && ids.contains(&of(seed)) {
                names = vec![of(seed)];
            }
        }
        Ok(names.into_iter().map(Some).collect())
    }

    /// How many of these renders are to be worked on: those that are not done already.
    pub(super) async fn pending(&self, names: &[Option<String>]) -> Result<usize, Failure> {
        let mut pending = names.len();
        for name in names.iter().flatten() {
            let there = self.store.read(name).await.map_err(|e| self.failure(e))?;
            pending -= usize::from(there.is_some_and(|stored| stored.state.state == StoredState::Done));
        }
        Ok(pending)
    }

    /// The renders that a name stands for: its own, or those of several seeds, in the order of these.
    pub(super) async fn ids_of(&self, name: &str) -> Result<Vec<String>, Failure> {
        let ids = self.store.ids().await.map_err(|e| self.failure(e))?;
        let seed = |id: &str| id.strip_prefix(name)?.strip_prefix('-')?.parse::<u64>().ok();
        let mut seeds: Vec<(u64, String)> =
            ids.iter().filter_map(|id| Some((seed(id)?, id.clone()))).collect();
        if seeds.is_empty() || ids.iter().any(|id| id == name) {
            return Ok(vec![name.to_owned()]);
        }
        seeds.sort_unstable();
        Ok(seeds.into_iter().map(|(_, id)| id).collect())
    }

    /// The render of an id.
    pub(super) async fn read(&self, id: &str) -> Result<Stored, Failure> {
        let found = self.store.read(id).await.map_err(|e| self.failure(e))?;
        let (url, list) = (&self.url, self.command("renders", ""));
        let elsewhere = elsewhere(url);
        found.ok_or_else(|| {
            Failure::Input(format!("there is no render `{id}` in {url}: `{list}` lists them{elsewhere}"))
        })
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
                let (order, key) = (store::order_now(), Identifier::random());
                let new = NewRender { id: name, order, request, priority: 0, key };
                let record = self.store.add(new, inputs).await.map_err(fail)?;
                Stored { record, spec: None, state: StateRecord::queued(0) }
            }
        };
        self.settled(stored, Some(spec), model).await
    }

    /// Takes up a render that the store has. `asked`: the settings that it must have; else it must only be of
    /// this model.
    pub(super) async fn settled(
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
                let facts = self.store.facts(&record).await.map_err(fail)?;
                let resolved = resolve(&record.request, &facts, model).map_err(Failure::usage)?;
                self.store.settle(id, &resolved.spec).await.map_err(fail)?
            }
        };
        let mut now = RenderSpec { model: ModelSpec::of(model), ..asked.unwrap_or_else(|| before.clone()) };
        if before.vae == VaeMode::Auto && now.vae == VaeMode::Seamless {
            // What was the default when it was begun.
            now.vae = before.vae;
        }
        self.check_settings(id, &before, &now)?;
        Ok(TakenUp { spec: before, record })
    }

    /// Why a render that was given up does not go on.
    fn cancelled(&self, id: &str) -> Failure {
        Failure::usage(format!(
            "render `{id}` was cancelled, and its checkpoints are gone: choose another name, or remove it: {}",
            self.command("renders rm", id)
        ))
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
}

/// Opens a store that is there: looking makes none.
pub(super) fn open_existing(url: &str) -> Result<RenderStore, Failure> {
    let folder = match url.strip_prefix("file://") {
        Some(path) => Some(path),
        None => (!url.contains("://")).then_some(url),
    };
    match folder.filter(|folder| !Path::new(folder).is_dir()) {
        Some(folder) => {
            let elsewhere = elsewhere(url);
            Err(Failure::Input(format!("there is no store in the folder {folder}: pass --store{elsewhere}")))
        }
        None => store::open(url).map_err(Failure::output),
    }
}

/// Where else to look, when it is not in the default store: in that of a farm, and of earlier releases.
fn elsewhere(url: &str) -> &'static str {
    match url == DEFAULT_STORE && Path::new("gigasmith-store/renders").is_dir() {
        true => "; or look in the other store that is here: --store gigasmith-store",
        false => "",
    }
}

/// Says what a store does not keep to.
pub(super) fn warn_of(conditions: Conditions, url: &str) {
    if conditions == Conditions::Ignored {
        tell(&format!(
            "warning: the store {url} overwrites objects that are to be created only once (it ignores `If-None-Match: \
             *`): never let two programs work on one render at a time"
        ));
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
