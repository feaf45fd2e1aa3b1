//! The renders of a coordinator: accepted, queued, run, paused, finished.
//!
//! `queue.rs` and `reason.rs` decide (pure); [`Jobs`] performs: it keeps every render's state, starts the
//! ones whose turn it is, and writes changes to the store. A render is stored before it is acknowledged;
//! after a restart every unfinished one is taken up again from its newest checkpoint, to the same bytes.
//!
//! Invariants: the state's lock is never held across an await; changes to one render, its lane's and its
//! stored state follow one another; a render is started once at a time; what a person changes is stored
//! before they are told so, and if it cannot be, goes on being tried.

mod entry;
mod keys;
mod look;
mod pages;
mod queue;
mod reason;
mod run;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use gigasmith_proto::domain::{Identifier, ModelDescription, RenderState, RenderStatus};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::farm::{Farm, Roster, Underway};
use crate::raster::Scratch;
use crate::render::Live;
use crate::request::{RenderRequest, RequestError, RequestInputs, resolve};
use crate::spec::{ModelSpec, RenderSpec};
use crate::store::{
    Claim, Fetched, KeepOptions, NewRender, Owner, Part, RenderRecord, RenderStore, StateRecord, StoreError,
    Stored,
};
use crate::view::StoredPicture;
use entry::Entry;
use keys::Keys;
pub use look::Beside;
pub use pages::Changes;

/// How often the queue is looked at even if nothing is heard.
const TICK: Duration = Duration::from_secs(1);

/// Why something asked of a render is refused.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No such render.
    #[error("there is no render `{0}`: `gigasmith status` lists them")]
    Unknown(String),
    /// The change makes no sense now.
    #[error("render {id} is {state}: {reason}")]
    State {
        /// Which render.
        id: String,
        /// Where it stands.
        state: RenderState,
        /// Why that forbids the change.
        reason: &'static str,
    },
    /// The request makes no render.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An id that cannot be one.
    #[error("`{0}` is no name for a render: use 1 to 64 letters, digits, `-`, `_` and `.`, not a dot first")]
    Name(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change is made, but a restart would forget it.
    #[error("the change is made, but could not be stored yet, which goes on being tried: {0}")]
    NotStored(StoreError),
    /// A panic.
    #[error("a bug in gigasmith, please report it: {0}")]
    Bug(String),
}

/// What a person submits.
#[derive(Debug, Clone, Default)]
pub struct JobSubmission {
    /// The id wanted; `None` for the next free one.
    pub id: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// What is asked for.
    pub request: RenderRequest,
    /// What comes along.
    pub inputs: RequestInputs,
    /// The client's key: a submission that is repeated with it is the same render.
    pub key: Option<Identifier>,
}

/// A change to a render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobChange {
    /// Hold its tasks back.
    Pause,
    /// Hand them out again.
    Continue,
    /// Give it up.
    Cancel,
    /// Give it another priority.
    Priority(i32),
}

/// How a coordinator handles its renders.
#[derive(Debug, Clone)]
pub struct JobsOptions {
    /// Renders that are started at a time.
    pub active: usize,
    /// Checkpoints: how often, and how many.
    pub keep: KeepOptions,
    /// Who takes renders up.
    pub owner: Owner,
    /// The right to the store; what is not a render's own is written only while it lasts.
    pub claim: Option<Claim>,
}

#[derive(Debug)]
struct Shared {
    farm: Farm,
    store: RenderStore,
    options: JobsOptions,
    /// Ends all runners, each after a last checkpoint.
    stopping: CancellationToken,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Keys of submissions under way.
    keys: Keys,
    /// What changed lately.
    log: pages::Log,
    /// Something changed that may let a render start.
    changed: Notify,
}

/// A handle on all renders.
#[derive(Debug, Clone)]
pub struct Jobs(Arc<Shared>);

impl Jobs {
    /// Takes up the renders of a store.
    pub async fn open(farm: Farm, store: RenderStore, options: JobsOptions) -> Result<Self, StoreError> {
        let entries = store.list().await?.into_iter().map(|s| (s.record.id.clone(), Entry::stored(s)));
        let entries: BTreeMap<String, Entry> = entries.collect();
        let unfinished = entries.values().filter(|e| !e.state.is_final()).count();
        if unfinished > 0 {
            tracing::info!(unfinished, "renders are taken up from the store");
        }
        Ok(Self(Arc::new(Shared {
            farm,
            store,
            options: JobsOptions { active: options.active.max(1), ..options },
            stopping: CancellationToken::new(),
            entries: Mutex::new(entries),
            keys: Keys::default(),
            log: pages::Log::default(),
            changed: Notify::new(),
        })))
    }

    /// The farm that the renders run on.
    pub fn farm(&self) -> &Farm {
        &self.0.farm
    }

    /// Starts renders whose turn it is, until `shutdown`; then ends those that run, each after a last
    /// checkpoint: they are taken up again at the next start.
    pub async fn run(self, shutdown: CancellationToken) {
        let work = async {
            let mut roster = self.0.farm.watch_roster();
            loop {
                self.settle_queued().await;
                self.start_next().await;
                tokio::select! {
                    () = self.0.changed.notified() => {}
                    changed = roster.changed() => if changed.is_err() { break },
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        };
        let jobs = self.clone();
        let tidying = tokio::spawn(async move { jobs.tidy().await });
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
        tidying.abort();
        self.0.stopping.cancel();
        let runners: Vec<_> = self.entries().values_mut().filter_map(|e| e.runner.take()).collect();
        for runner in runners {
            // It was told to end: how it did is of no interest any more.
            let _ = runner.await;
        }
    }

    /// Removes checkpoints of renders that have ended, should a crash have left some.
    async fn tidy(&self) {
        let ended = |e: &&Entry| matches!(e.state, RenderState::Done | RenderState::Cancelled);
        let ended: Vec<String> = self.entries().values().filter(ended).map(|e| e.record.id.clone()).collect();
        for id in ended {
            if self.0.store.has_checkpoints(&id).await.unwrap_or(false) {
                run::discard(self, &id).await;
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.entries.lock().expect("no holder panics")
    }

    /// Changes an entry and tells those who watch.
    fn update<T>(&self, id: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.entries();
        let entry = entries.get_mut(id)?;
        let done = change(entry);
        entry.touch();
        self.0.log.note(id);
        Some(done)
    }

    /// Accepts a render. Where a worker with its model is there the settings are checked at once,
    /// otherwise when one comes. Goes on to its end even if the caller leaves.
    pub async fn submit(&self, submission: JobSubmission) -> Result<RenderStatus, JobError> {
        let jobs = self.clone();
        let accepted = tokio::spawn(async move { jobs.accept(submission).await }).await;
        accepted.unwrap_or_else(|e| Err(JobError::Bug(e.to_string())))
    }

    /// Accepts a submission once: with a key that was seen, the render that was accepted is the answer.
    async fn accept(&self, submission: JobSubmission) -> Result<RenderStatus, JobError> {
        let key = submission.key.unwrap_or_else(Identifier::random);
        let _alone = self.0.keys.alone(key).await;
        let nonce = crate::store::nonce(key);
        let accepted = self.entries().values().find(|e| e.record.nonce == nonce).map(|e| e.record.id.clone());
        match accepted {
            Some(id) => self.status(&id).await.ok_or(JobError::Unknown(id)),
            None => self.accept_new(submission, key).await,
        }
    }

    async fn accept_new(&self, submission: JobSubmission, key: Identifier) -> Result<RenderStatus, JobError> {
        let JobSubmission { id, priority, request, inputs, key: _ } = submission;
        if let Some(id) = &id
            && !is_name(id)
        {
            return Err(JobError::Name(id.clone()));
        }
        request.check()?;
        if let Some(claim) = &self.0.options.claim {
            // What we accepted now, nobody would run.
            self.0.store.check(claim).await?;
        }
        let resolved = match choose_model(&self.0.farm.roster(), &request) {
            Some(model) => Some(resolve(&request, &inputs, &model)?),
            None => None,
        };
        let order = self.entries().values().map(|e| e.record.order).max().unwrap_or(0) + 1;
        let record = self.0.store.add(NewRender { id, order, request, priority, key }, &inputs).await?;
        // From here on it exists: whatever fails is tried again.
        let id = record.id.clone();
        let state = StateRecord::queued(priority);
        let mut entry = Entry::stored(Stored { record, spec: None, state });
        if let Some(resolved) = resolved {
            match self.0.store.settle(&id, &resolved.spec).await {
                Ok(spec) => entry.settle(spec, resolved.warnings),
                Err(error) => tracing::warn!(id, %error, "a render is settled later"),
            }
        }
        let removed = self.entries().insert(id.clone(), entry);
        self.0.log.note(&id);
        if let Some(runner) = removed.and_then(|mut entry| entry.runner.take()) {
            // It works on a render of that name that was removed from the store.
            runner.abort();
            let _ = runner.await;
        }
        self.0.changed.notify_one();
        tracing::info!(id, "a render was submitted");
        self.status(&id).await.ok_or(JobError::Unknown(id))
    }

    /// Writes a render's state to the store. One writer at a time, so that the last state written is the
    /// last one.
    /// Fails with `Superseded` or `Removed`, and gives the render up here, when somebody else decides what
    /// becomes of it.
    async fn persist(&self, id: &str) -> Result<(), StoreError> {
        let Some(writing) = self.entries().get(id).map(|e| e.writing.clone()) else { return Ok(()) };
        let _one_at_a_time = writing.lock().await;
        let Some((record, claim)) = self.entries().get(id).map(|e| (e.state_record(), e.claim.clone()))
        else {
            return Ok(());
        };
        if let Some(right) = claim.as_ref().or(self.0.options.claim.as_ref()) {
            let checked = self.0.store.check(right).await;
            if let Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) = &checked {
                tracing::error!(id, error = %lost, "a state is not stored any more");
                let reason = lost.to_string();
                let runner = self.update(id, |entry| entry.lose(claim.as_ref(), reason)).flatten();
                runner.iter().for_each(tokio::task::JoinHandle::abort);
            }
            checked?;
        }
        self.0.store.set_state(id, &record).await
    }

    /// The same where nobody waits to hear of a failure: tried until it is done.
    async fn persist_surely(&self, id: &str) {
        for pause in [1, 5, 20].into_iter().chain(std::iter::repeat(60)) {
            match self.persist(id).await {
                Ok(()) | Err(StoreError::Superseded { .. } | StoreError::Removed(_)) => return,
                Err(error) => {
                    tracing::warn!(id, %error, retry_in = pause, "a state could not be stored");
                }
            }
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }

    /// One render's status.
    pub async fn status(&self, id: &str) -> Option<RenderStatus> {
        let all = self.statuses().await;
        all.into_iter().find(|s| s.id == id)
    }

    /// Every render's status, in the order they are served.
    pub async fn statuses(&self) -> Vec<RenderStatus> {
        let workers = self.0.farm.workers().await;
        let roster = self.0.farm.roster();
        let lanes: Vec<_> =
            self.entries().iter().filter_map(|(id, e)| Some((id.clone(), e.lane.clone()?))).collect();
        let mut depths = BTreeMap::new();
        for (id, lane) in lanes {
            depths.insert(id, lane.depth().await);
        }
        let entries = self.entries();
        let ranks = queue::ranks(entries.values());
        let mut statuses: Vec<(usize, RenderStatus)> = Vec::new();
        for (id, entry) in entries.iter() {
            let scene = reason::Scene {
                workers: &workers,
                roster: &roster,
                depth: depths.get(id).copied(),
                ahead: ranks.get(id).copied().unwrap_or(0),
                active: self.0.options.active,
            };
            let rank = ranks.get(id).copied().unwrap_or(usize::MAX);
            statuses
                .push((rank, entry.status(reason::reason(entry, &scene), reason::capacity(entry, &roster))));
        }
        statuses.sort_by_key(|(rank, status)| (*rank, entries[&status.id].record.order));
        statuses.into_iter().map(|(_, status)| status).collect()
    }

    /// Is told when a render changes; `None` for an unknown one.
    pub fn watch(&self, id: &str) -> Option<tokio::sync::watch::Receiver<u64>> {
        self.entries().get(id).map(Entry::watch)
    }

    /// Changes a render. Goes on to its end even if the caller leaves.
    pub async fn change(&self, id: &str, change: JobChange) -> Result<RenderStatus, JobError> {
        let (jobs, id) = (self.clone(), id.to_owned());
        let changed = tokio::spawn(async move { jobs.make_change(&id, change).await }).await;
        changed.unwrap_or_else(|e| Err(JobError::Bug(e.to_string())))
    }

    async fn make_change(&self, id: &str, change: JobChange) -> Result<RenderStatus, JobError> {
        let unknown = || JobError::Unknown(id.to_owned());
        let changing = self.entries().get(id).map(|e| e.changing.clone()).ok_or_else(unknown)?;
        let one_at_a_time = changing.lock().await;
        if let Some(runner) = self.update(id, |entry| entry.change(change)).ok_or_else(unknown)?? {
            runner.abort();
            // It was told to end: how it did is of no interest any more.
            let _ = runner.await;
        }
        self.tell_lane(id).await;
        drop(one_at_a_time);
        let stored = self.persist(id).await;
        if let Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) = stored {
            return Err(lost.into());
        }
        if let Err(error) = stored {
            let (jobs, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move { jobs.persist_surely(&id).await });
            return Err(JobError::NotStored(error));
        }
        if change == JobChange::Cancel {
            // Only now that it is known to be given up.
            let (jobs, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move { run::discard(&jobs, &id).await });
        }
        self.0.changed.notify_one();
        self.status(id).await.ok_or_else(unknown)
    }

    /// Lets a render's lane know what the state says now.
    async fn tell_lane(&self, id: &str) {
        let wanted = self.entries().get(id).map(|e| (e.lane.clone(), e.state, e.priority));
        if let Some((Some(lane), state, priority)) = wanted {
            lane.prioritise(priority).await;
            lane.pause(state == RenderState::Paused).await;
        }
    }

    /// Whether there is work, and how many tasks: what an autoscaler asks.
    pub async fn load(&self) -> (bool, usize) {
        let (waiting, in_flight) = self.0.farm.depth().await;
        let wanted = |e: &Entry| matches!(e.state, RenderState::Queued | RenderState::Running);
        let unfinished = self.entries().values().any(wanted);
        // Renders that wait for their first worker have no tasks yet.
        (unfinished, (waiting + in_flight).max(usize::from(unfinished)))
    }

    /// A part of a finished render.
    pub async fn fetch(&self, id: &str, part: Part) -> Result<Fetched, JobError> {
        let state = RenderState::Done;
        let stages = self.done(id, |e| e.spec.as_ref().map_or(0, |s| s.upscales.len() as u32))?;
        let reason = match part {
            Part::Latents => "its latents are not in the store: no stage ran, or they could not be kept",
            _ => "its result is no longer in the store",
        };
        let found = self.0.store.result(id, part, stages).await?;
        found.ok_or(JobError::State { id: id.to_owned(), state, reason })
    }

    /// What can be seen of a render, and which of its tasks are under way. An error: there is no such render.
    pub async fn look(&self, id: &str) -> Result<(Option<Arc<Live>>, Vec<Underway>), JobError> {
        let unknown = || JobError::Unknown(id.to_owned());
        let (live, lane) =
            self.entries().get(id).map(|e| (e.live.clone(), e.lane.clone())).ok_or_else(unknown)?;
        let underway = match lane {
            Some(lane) => lane.underway().await,
            None => Vec::new(),
        };
        Ok((live, underway))
    }

    /// What is unique about a render that is done: two of one name, one after the other, differ in it.
    pub fn finished(&self, id: &str) -> Option<String> {
        let entries = self.entries();
        let entry = entries.get(id).filter(|e| e.state == RenderState::Done)?;
        Some(look::unique(&entry.record))
    }

    /// Where a finished render's picture lies, and where one may be read into; `None` while there is none.
    pub async fn result_object(&self, id: &str) -> Result<Option<(StoredPicture, Scratch)>, JobError> {
        let is_done = self.entries().get(id).is_some_and(|e| e.state == RenderState::Done);
        if !is_done {
            return Ok(None);
        }
        let found = self.0.store.result_object(id).await?;
        Ok(found.map(|picture| (picture, self.0.store.scratch().clone())))
    }

    /// Settles renders whose model has come.
    async fn settle_queued(&self) {
        let roster = self.0.farm.roster();
        let unsettled = |e: &&Entry| e.spec.is_none() && e.state == RenderState::Queued;
        let due: Vec<RenderRecord> =
            self.entries().values().filter(unsettled).map(|e| e.record.clone()).collect();
        for record in due {
            let Some(model) = choose_model(&roster, &record.request) else { continue };
            // In a task of its own: whatever a request does to us, the others go on.
            let (jobs, named) = (self.clone(), record.clone());
            let settled = tokio::spawn(async move { jobs.settle(&named, &model).await }).await;
            match settled.unwrap_or_else(|e| Err(JobError::Bug(e.to_string()))) {
                Ok((spec, warnings)) => {
                    self.update(&record.id, |entry| entry.settle(spec, warnings));
                }
                Err(JobError::Store(error @ StoreError::Store { .. })) => {
                    // The store may come back: the render waits.
                    tracing::warn!(id = record.id, %error, "a render cannot be settled yet");
                    self.update(&record.id, |entry| entry.troubled(&error));
                    continue;
                }
                Err(error) => {
                    self.update(&record.id, |entry| {
                        // A person may have cancelled it meanwhile.
                        if !entry.state.is_final() {
                            entry.end(RenderState::Failed, error.to_string());
                        }
                    });
                }
            }
            let (jobs, id) = (self.clone(), record.id.clone());
            tokio::spawn(async move { jobs.persist_surely(&id).await });
        }
    }

    async fn settle(
        &self,
        record: &RenderRecord,
        model: &ModelDescription,
    ) -> Result<(RenderSpec, Vec<String>), JobError> {
        let inputs = self.0.store.inputs(record, true).await?;
        let resolved = resolve(&record.request, &inputs, model)?;
        Ok((self.0.store.settle(&record.id, &resolved.spec).await?, resolved.warnings))
    }

    /// Starts the renders whose turn it is.
    async fn start_next(&self) {
        let roster = self.0.farm.roster();
        let due = queue::due(self.entries().values(), self.0.options.active, |spec| {
            model_of(&roster, spec).is_some()
        });
        for id in due {
            let jobs = self.clone();
            let Some(spec) = self.entries().get(&id).and_then(|e| e.spec.clone()) else { continue };
            let Some(model) = model_of(&roster, &spec) else { continue };
            let named = id.clone();
            self.update(&id, move |entry| {
                // A person may have paused or cancelled it a moment ago.
                if entry.state == RenderState::Queued {
                    entry.state = RenderState::Running;
                    entry.runner = Some(tokio::spawn(run::run(jobs, named, spec, model)));
                }
            });
        }
    }
}

/// Whether a text can be a render's id.
pub fn is_name(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&id.len()) && !id.starts_with('.') && id.chars().all(plain)
}

/// The model that a request gets: of the kinds it wants the one with the most workers.
fn choose_model(roster: &Roster, request: &RenderRequest) -> Option<Arc<ModelDescription>> {
    let wanted = roster.kinds.iter().rev().filter(|k| request.wants(&k.model));
    wanted.max_by_key(|k| (k.able, k.workers)).map(|k| k.model.clone())
}

/// The model a spec was settled on, if a worker that holds it is connected.
fn model_of(roster: &Roster, spec: &RenderSpec) -> Option<Arc<ModelDescription>> {
    let suits = |model: &ModelDescription| {
        let model = ModelSpec::of(model);
        model.fingerprints == spec.model.fingerprints
            && (spec.mix || model.numeric_class == spec.model.numeric_class)
    };
    let same_class = |k: &&crate::farm::Kind| k.model.numeric_class == spec.model.numeric_class;
    let suited = || roster.kinds.iter().filter(|k| suits(&k.model));
    suited().find(same_class).or_else(|| suited().next()).map(|k| k.model.clone())
}
