//! The renders of a coordinator: accepted, queued, run, paused, finished.
//!
//! `phase.rs`, `queue.rs` and `reason.rs` decide (pure); [`Jobs`] performs: it keeps every render's entry, starts the
//! ones whose turn it is, and writes changes to the store. A render is stored before it is acknowledged; after a
//! restart every unfinished one is taken up again from its newest checkpoint, to the same bytes.
//!
//! Invariants: the entries' lock is never held across an await; changes to one render follow one another; a session
//! lives exactly for a render that holds a place; what a person changes is stored before they are told so; nothing
//! waits for the store but those who asked. What an ended render costs is its entry: its request and settings are read
//! when somebody asks.

mod book;
mod change;
mod entry;
mod keys;
mod load;
mod look;
mod phase;
mod queue;
mod reason;
mod run;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use gigasmith_proto::domain::{Identifier, ModelDescription, RenderState, RenderStatus};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::farm::{Farm, Roster};
use crate::request::{RenderRequest, RequestError, RequestInputs, resolve};
use crate::spec::{ModelSpec, RenderSpec};
use crate::store::{
    Claim, Indexed, KeepOptions, NewRender, Owner, RenderStore, StateRecord, StoreError, Summary, order_now,
};
use book::Book;
pub use book::Changes;
use entry::Entry;
use keys::Keys;
pub use look::Beside;
use phase::{Next, Phase};
use queue::Decision;

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
    #[error(
        "the change is made, but could not be stored yet; this is tried again while the coordinator runs: {0}"
    )]
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
    /// Drawn by whoever submits, once for each render: a second submission with it is the first again.
    pub key: Option<Identifier>,
}

/// A change to a render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobChange {
    /// Hold it back: it leaves a checkpoint, and its place.
    Pause,
    /// Let it wait for its turn again.
    Continue,
    /// Give it up.
    Cancel,
    /// Give it another priority.
    Priority(i32),
}

/// How a coordinator handles its renders.
#[derive(Debug, Clone)]
pub struct JobsOptions {
    /// Renders that hold memory at a time.
    pub active: usize,
    /// Checkpoints: how often, and how many.
    pub keep: KeepOptions,
    /// Who takes renders up.
    pub owner: Owner,
    /// The right to the store: renders are accepted only while it lasts.
    pub claim: Option<Claim>,
}

#[derive(Debug)]
struct Shared {
    farm: Farm,
    store: RenderStore,
    options: JobsOptions,
    /// Ends all sessions, each after a last checkpoint.
    stopping: CancellationToken,
    book: Mutex<Book>,
    /// Keys of submissions under way.
    keys: Keys,
    /// Something changed that may let a render start.
    changed: Notify,
    /// Whether the store's renders are known.
    loaded: watch::Sender<bool>,
    /// Everything that runs beside; awaited at the end.
    tasks: TaskTracker,
}

/// A handle on all renders.
#[derive(Debug, Clone)]
pub struct Jobs(Arc<Shared>);

impl Jobs {
    /// The renders of a store, which are read once [`Self::run`] runs.
    pub fn new(farm: Farm, store: RenderStore, options: JobsOptions) -> Self {
        Self(Arc::new(Shared {
            farm,
            store,
            options: JobsOptions { active: options.active.max(1), ..options },
            stopping: CancellationToken::new(),
            book: Mutex::default(),
            keys: Keys::default(),
            changed: Notify::new(),
            loaded: watch::Sender::new(false),
            tasks: TaskTracker::new(),
        }))
    }

    /// The farm that the renders run on.
    pub fn farm(&self) -> &Farm {
        &self.0.farm
    }

    /// Starts renders whose turn it is, until `shutdown`; then ends those that run, each after a last
    /// checkpoint: they are taken up again at the next start.
    pub async fn run(self, shutdown: CancellationToken) {
        let jobs = self.clone();
        self.0.tasks.spawn(async move { jobs.load().await });
        let mut roster = self.0.farm.watch_roster();
        loop {
            self.prepare_queued();
            self.place();
            tokio::select! {
                () = self.0.changed.notified() => {}
                changed = roster.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(TICK) => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().expect("no holder panics")
    }

    /// Looks at an entry.
    fn with<T>(&self, id: &str, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.book().get(id).map(look)
    }

    /// Changes an entry and tells those who watch.
    fn update<T>(&self, id: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.book().update(id, change)
    }

    /// Accepts a render. Where a worker with its model is there the settings are checked at once,
    /// otherwise when one comes. Goes on to its end even if the caller leaves.
    pub async fn submit(&self, submission: JobSubmission) -> Result<RenderStatus, JobError> {
        let jobs = self.clone();
        self.to_its_end(async move { jobs.accept(submission).await }).await
    }

    /// Runs something to its end even if the caller leaves; the coordinator's end waits for it.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, JobError>> + Send + 'static,
    ) -> Result<T, JobError> {
        self.0.tasks.spawn(work).await.unwrap_or_else(|e| Err(JobError::Bug(e.to_string())))
    }

    /// Accepts a submission once: with a key that was seen, the render that was accepted is the answer.
    async fn accept(&self, submission: JobSubmission) -> Result<RenderStatus, JobError> {
        self.loaded().await;
        let key = submission.key.unwrap_or_else(Identifier::random);
        let _alone = self.0.keys.alone(key).await;
        let accepted = self.book().of_nonce(&crate::store::nonce(key));
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
            Some(model) => Some(resolve(&request, &inputs.facts(), &model)?),
            None => None,
        };
        let new = NewRender { id, order: self.next_order(), request, priority, key };
        let record = self.0.store.add(new, &inputs).await?;
        // From here on it exists: whatever fails is tried again.
        let id = record.id.clone();
        let (state, summary) = (StateRecord::queued(priority), Summary::of(&record, None));
        let mut entry = Entry::indexed(Indexed { id: id.clone(), state, summary });
        entry.record = Some(Arc::new(record));
        if let Some(resolved) = resolved {
            match self.0.store.settle(&id, &resolved.spec).await {
                Ok(spec) => entry.settle(spec, resolved.warnings),
                Err(error) => tracing::warn!(id, %error, "a render is settled later"),
            }
        }
        // It works on a render of that name that was removed from the store.
        let removed = self.book().insert(entry);
        removed.and_then(|entry| entry.session).iter().for_each(|session| session.abort.abort());
        self.0.changed.notify_one();
        tracing::info!(id, "a render was submitted");
        self.status(&id).await.ok_or(JobError::Unknown(id))
    }

    /// The position of a render that comes now: after all others.
    fn next_order(&self) -> u64 {
        self.book().next_order(order_now())
    }

    /// Gives places to the renders whose turn it is.
    fn place(&self) {
        let roster = self.0.farm.roster();
        let now = Instant::now();
        let mut starts = Vec::new();
        {
            let mut book = self.book();
            book.for_unfinished(|entry| {
                let model = entry.spec.as_ref().and_then(|spec| model_of(&roster, spec));
                entry.unfit = if model.is_some() { None } else { entry.unfit.or(Some(now)) };
            });
            let candidates: Vec<_> = book.unfinished().filter_map(Entry::candidate).collect();
            let decided = queue::decide(&candidates, self.0.options.active, now);
            let mut leaves = Vec::new();
            for decision in decided {
                match decision {
                    Decision::Start(id) => starts.push(id.to_owned()),
                    Decision::Leave(id) => leaves.push(id.to_owned()),
                }
            }
            for id in leaves {
                book.update(&id, |entry| {
                    tracing::info!(id = entry.id, "a render leaves its place to another");
                    entry.phase = Phase::Leaving(Next::Queue);
                    entry.session.iter().for_each(|s| s.stop.cancel());
                });
            }
        }
        for id in starts {
            let spec = self.with(&id, |entry| entry.spec.clone()).flatten();
            if let Some(model) = spec.and_then(|spec| model_of(&roster, &spec)) {
                run::start(self, &id, model);
            }
        }
    }

    /// Whether there is work, and how many tasks: what an autoscaler asks.
    pub async fn load_now(&self) -> (bool, usize) {
        let (waiting, in_flight) = self.0.farm.depth().await;
        let wanted = |e: &Entry| matches!(e.phase.state(), RenderState::Queued | RenderState::Running);
        let unfinished = self.book().unfinished().any(wanted);
        // Renders that wait for their first worker have no tasks yet.
        (unfinished, (waiting + in_flight).max(usize::from(unfinished)))
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

/// The model a spec was settled on, if a worker that holds it may get tasks.
fn model_of(roster: &Roster, spec: &RenderSpec) -> Option<Arc<ModelDescription>> {
    let suits = |model: &ModelDescription| {
        let model = ModelSpec::of(model);
        model.fingerprints == spec.model.fingerprints
            && (spec.mix || model.numeric_class == spec.model.numeric_class)
    };
    let same_class = |k: &&crate::farm::Kind| k.model.numeric_class == spec.model.numeric_class;
    let suited = || roster.kinds.iter().filter(|k| k.able > 0 && suits(&k.model));
    suited().find(same_class).or_else(|| suited().next()).map(|k| k.model.clone())
}
