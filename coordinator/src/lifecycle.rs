//! The life of a render that is kept in a store: claimed, restored, rendered, delivered, stored, done, discarded.
//!
//! The only one there is: `serve` lives it for every render of a farm, `render --store` and `resume` on one machine,
//! and the tests drive it through stores that fail. What differs is behind [`Host`]: who is told, where workers come
//! from, what is written besides the store, and how long a store that is away is waited for.
//!
//! *Order.* A render is claimed before anything is read that decides what to do, so that what is read is not older
//! than the claim. Its result is stored before the state that says `done`, and that before its checkpoints go.
//! *Cancellation.* [`Lifecycle::stop`] ends it at any time, with a last checkpoint; dropping the future ends it
//! without. *Crash.* Whatever is cut off, another life of the same render goes on from the newest checkpoint.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::domain::ModelDescription;
use tokio_util::sync::CancellationToken;

use crate::farm::{Lane, TaskError};
use crate::metrics::Metrics;
use crate::render::{
    Course, Live, Position, Progress, RenderError, Rendered, Start, at_leisure, render_from,
};
use crate::request::RequestError;
use crate::spec::{RenderSpec, StagePlans};
use crate::store::{
    Claim, Closed, KeepOptions, Keeper, KeeperStart, Outputs, Owner, RenderStore, Restored, ResultRecord,
    Starts, StateRecord, StoreError, Stored, StoredState, Summary, Tallied, Told,
};

/// Between two attempts to write what was made.
const RETRY: Duration = Duration::from_secs(5);
/// How long storing may take that a render left.
const LAST_STATE: Duration = Duration::from_secs(3);

/// What a life takes.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Where the render is kept.
    pub store: RenderStore,
    /// Its id.
    pub id: String,
    /// Who claims it.
    pub owner: Owner,
    /// What decides its bytes.
    pub spec: RenderSpec,
    /// The model of its workers.
    pub model: Arc<ModelDescription>,
    /// Checkpoints: how often, and how many.
    pub keep: KeepOptions,
    /// Where checkpoints are counted.
    pub metrics: Metrics,
    /// Ends it, after a last checkpoint.
    pub stop: CancellationToken,
    /// How long the last checkpoint may take.
    pub farewell: Duration,
    /// Starts from one and the same point after which it is stuck; `None`: a person decides.
    pub most_starts: Option<u32>,
}

/// What came of the files that a host writes besides the store.
#[derive(Debug)]
pub enum Delivery<E> {
    /// It writes none.
    Nothing,
    /// They are written.
    Written,
    /// They could not be.
    Failed(E),
}

/// Where a life is lived. Progress is told all along.
pub trait Host: Progress + Sized {
    /// Why files could not be written.
    type Failure: Display + Send;

    /// The render is ours, and this is how it stands. An error: it is not to be rendered, and why.
    fn claimed(&mut self, claim: &Claim, stored: &Stored) -> Result<(), String> {
        let _ = (claim, stored);
        Ok(())
    }

    /// A way to workers with the render's model.
    fn lane(&mut self, spec: &RenderSpec) -> impl Future<Output = Result<Arc<Lane>, TaskError>> + Send;

    /// Patches are about to be drawn: what is kept of them, and all there will be.
    fn begun(&mut self, tallied: Tallied, plans: &StagePlans) {
        let _ = (tallied, plans);
    }

    /// Where others look at it.
    fn live(&self) -> Option<Arc<Live>> {
        None
    }

    /// The store or the scratch folder fails: how long to wait before another attempt; `None`: not at all.
    fn retry(&mut self, error: &StoreError) -> Option<Duration>;

    /// What failed works again.
    fn recovered(&mut self) {}

    /// The picture is made.
    fn made(&mut self, rendered: &Rendered) {
        let _ = rendered;
    }

    /// How it is made into files.
    fn outputs(&self, rendered: &Rendered, stored: &Stored) -> Result<Outputs, String>;

    /// Writes files. Called again after a failure, until files or store have the result.
    fn deliver(&mut self, outputs: &Outputs) -> Delivery<Self::Failure> {
        let _ = outputs;
        Delivery::Nothing
    }

    /// Neither files nor store take what was made, and both are tried again.
    fn given_up(&mut self, message: &str) {
        self.warn(message);
    }

    /// The state to store; what was stored before is given.
    fn state(&self, before: &StateRecord) -> StateRecord {
        before.clone()
    }

    /// A state is stored.
    fn stored(&mut self, state: &StateRecord) {
        let _ = state;
    }

    /// Told of parts of the picture that are stored; whether it goes on.
    fn told(&self) -> Told {
        Arc::new(|_, _| true)
    }
}

/// How a life ended.
#[derive(Debug)]
pub enum Ended<E> {
    /// The result is in the store. What came of the files.
    Done(Delivery<E>),
    /// It had been done before.
    Already(Box<Stored>),
    /// It had been given up before.
    Cancelled,
    /// The files are written, and the store does not have the result: stopped, or what it said.
    NotKept(Option<StoreError>),
    /// Told to stop.
    Stopped(Left),
    /// Somebody newer has it, or it was removed.
    Lost(StoreError),
    /// It was started so often from one point that something must be wrong.
    Stuck(u32),
    /// It cannot be done, as far as can be told here.
    Failed(Failed, Left),
}

/// What is left to go on from.
#[derive(Debug)]
pub struct Left {
    /// The last checkpoint; `None`: nothing had begun.
    pub last: Option<Closed>,
    /// Whether this life wrote any checkpoint.
    pub any: bool,
}

const NOTHING: Left = Left { last: None, any: false };

/// Why a render cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// In the making.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The store, where it is not waited for.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its plan file.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The picture cannot be made into a file.
    #[error("the picture cannot be encoded: {0}")]
    Encode(String),
    /// The host said no.
    #[error("{0}")]
    Refused(String),
}

impl<E> From<Failed> for Ended<E> {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed, NOTHING)
    }
}

/// Whether another attempt may help.
fn is_transient(error: &StoreError) -> bool {
    match error {
        StoreError::Store { .. } => true,
        StoreError::Scratch(error) => error.raw_os_error().is_some(),
        _ => false,
    }
}

impl Lifecycle {
    /// Lives it to its end.
    pub async fn live<H: Host>(&self, host: &mut H) -> Ended<H::Failure> {
        match self.claim(host).await {
            Ok((claim, stored)) => match self.live_claimed(host, &claim, &stored).await {
                Ok(ended) | Err(ended) => ended,
            },
            Err(ended) => ended,
        }
    }

    /// Takes the render up, unless there is nothing to do.
    async fn claim<H: Host>(&self, host: &mut H) -> Result<(Claim, Stored), Ended<H::Failure>> {
        let Self { store, id, owner, .. } = self;
        let removed = || Ended::Lost(StoreError::Removed(format!("render {id}")));
        // Before anything is written to what may be gone.
        self.retried(host, || store.read(id)).await?.ok_or_else(removed)?;
        let claim = self.retried(host, || store.claim(id, owner)).await?;
        // Whoever had it may have come to an end meanwhile.
        let stored = self.retried(host, || store.read(id)).await?.ok_or_else(removed)?;
        match stored.state.state {
            StoredState::Done => {
                if !stored.state.tidied {
                    self.tidy(host, &claim, stored.state.clone()).await;
                }
                return Err(Ended::Already(Box::new(stored)));
            }
            StoredState::Cancelled => return Err(Ended::Cancelled),
            StoredState::Queued | StoredState::Paused | StoredState::Failed => {}
        }
        host.claimed(&claim, &stored).map_err(Failed::Refused)?;
        Ok((claim, stored))
    }

    async fn live_claimed<H: Host>(
        &self,
        host: &mut H,
        claim: &Claim,
        stored: &Stored,
    ) -> Result<Ended<H::Failure>, Ended<H::Failure>> {
        let Self { store, id, spec, model, .. } = self;
        host.phase("reading the checkpoint");
        let Restored { mut start, found, damage } =
            self.retried(host, || store.restore(id, spec, model)).await?;
        damage.iter().for_each(|damage| host.warn(damage));
        self.count_start(host, claim, (stored, &start.position)).await?;
        let is_beginning = start.position.is_beginning();
        let inputs = self.retried(host, || store.inputs(&stored.record, is_beginning)).await?;
        if is_beginning {
            start = Start { conditioning: start.conditioning, ..Start::beginning(inputs.picture) };
        }
        let plans = StagePlans::new(spec, model, inputs.plan.as_deref()).map_err(Failed::from)?;
        let lane = host.lane(spec).await.map_err(|e| Failed::from(RenderError::from(e)))?;
        let stop = self.stop.child_token();
        let mut keeper = Keeper::start(KeeperStart {
            metrics: self.metrics.clone(),
            store: store.clone(),
            id: id.clone(),
            claim: claim.clone(),
            spec: spec.hash(),
            found,
            options: self.keep,
            stop: stop.clone(),
        });
        host.begun(keeper.tallied(), &plans);
        let live = host.live();
        let rendered = {
            let course = Course::new(host, &mut keeper, stop).with_scratch(store.scratch().clone());
            let mut course = match live {
                Some(live) => course.with_live(live),
                None => course,
            };
            render_from(lane, (spec, plans), start, &mut course).await
        };
        match rendered {
            Ok(rendered) => self.keep(host, (claim, stored), rendered, keeper).await,
            Err(RenderError::Stopped) => Ok(self.left(host, (claim, stored), keeper).await),
            Err(error) => Ok(match self.left(host, (claim, stored), keeper).await {
                Ended::Stopped(left) => Ended::Failed(error.into(), left),
                lost => lost,
            }),
        }
    }

    /// Counts starts from one and the same point: what kills its process again and again must not do so for ever.
    async fn count_start<H: Host>(
        &self,
        host: &mut H,
        claim: &Claim,
        (stored, position): (&Stored, &Position),
    ) -> Result<(), Ended<H::Failure>> {
        let Some(most) = self.most_starts else { return Ok(()) };
        let (mark, before) = (position.mark(), stored.state.starts);
        let count = if before.mark == mark { before.count + 1 } else { 1 };
        if before.count >= most && before.mark == mark {
            return Err(Ended::Stuck(before.count));
        }
        let state = StateRecord { starts: Starts { count, mark }, ..host.state(&stored.state) };
        let state = state.with_summary(self.summary(stored));
        self.retried(host, || self.store.set_state(&self.id, claim, &state)).await
    }

    /// A state of the render as it stands now.
    fn stored_state<H: Host>(&self, host: &H, stored: &Stored, state: StoredState) -> StateRecord {
        let (version, starts) = (crate::store::VERSION, Starts::default());
        let reason = String::new();
        StateRecord { version, state, reason, starts, ..host.state(&stored.state) }
            .with_summary(self.summary(stored))
    }

    /// Delivers and stores what was made. As long as neither files nor store take it there is nothing to end for:
    /// both are tried again.
    async fn keep<H: Host>(
        &self,
        host: &mut H,
        (claim, stored): (&Claim, &Stored),
        rendered: Rendered,
        keeper: Keeper,
    ) -> Result<Ended<H::Failure>, Ended<H::Failure>> {
        host.made(&rendered);
        let outputs = at_leisure(|| host.outputs(&rendered, stored));
        drop(rendered);
        let outputs = outputs.map_err(Failed::Encode)?;
        let mut result = None;
        loop {
            let delivery = host.deliver(&outputs);
            let is_written = matches!(delivery, Delivery::Written);
            host.phase("storing the picture");
            let kept = tokio::select! {
                kept = self.store_result(host, (claim, stored), &outputs, &mut result) => Some(kept),
                () = self.stop.cancelled() => None,
            };
            match kept {
                Some(Ok(done)) => {
                    drop(keeper);
                    self.tidy(host, claim, done).await;
                    return Ok(Ended::Done(delivery));
                }
                Some(Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_)))) => {
                    return Ok(Ended::Lost(lost));
                }
                Some(Err(error)) if is_written => return Ok(Ended::NotKept(Some(error))),
                None if is_written => return Ok(Ended::NotKept(None)),
                None => return Ok(self.left(host, (claim, stored), keeper).await),
                Some(Err(error)) if !is_transient(&error) => {
                    return Ok(match self.left(host, (claim, stored), keeper).await {
                        Ended::Stopped(left) => Ended::Failed(error.into(), left),
                        lost => lost,
                    });
                }
                Some(Err(error)) => {
                    let pause = host.retry(&error).unwrap_or(RETRY);
                    if let Delivery::Failed(failure) = delivery {
                        host.given_up(&format!(
                            "{failure}; {error}; both are tried again until one of them works"
                        ));
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.cancelled() => return Ok(self.left(host, (claim, stored), keeper).await),
                    }
                }
            }
        }
    }

    /// Stores what was made, then that it is done.
    async fn store_result<H: Host>(
        &self,
        host: &mut H,
        (claim, stored): (&Claim, &Stored),
        outputs: &Outputs,
        stored_result: &mut Option<ResultRecord>,
    ) -> Result<StateRecord, StoreError> {
        // What makes files beside us ends when we do.
        let ending = CancellationToken::new();
        let _ends = ending.clone().drop_guard();
        let shown = host.told();
        let told: Told = Arc::new(move |done, all| !ending.is_cancelled() && shown(done, all));
        // Once it is whole it is not written again: a state may name it already, though the answer was lost.
        if stored_result.is_none() {
            *stored_result = Some(self.store.put_result(&self.id, claim, outputs, told).await?);
        }
        let done = self.stored_state(host, stored, StoredState::Done);
        let done = StateRecord { result: *stored_result, ..done };
        self.store.set_state(&self.id, claim, &done).await?;
        host.stored(&done);
        Ok(done)
    }

    /// Removes what nobody goes on from, once the state is stored. What stays behind takes room and does no harm.
    async fn tidy<H: Host>(&self, host: &mut H, claim: &Claim, state: StateRecord) {
        if let Err(error) = self.store.tidy(&self.id, claim, state).await {
            host.warn(&format!("the checkpoints of {} are left behind: {error}", self.id));
        }
    }

    /// After a last checkpoint, if there is time.
    async fn left<H: Host>(
        &self,
        host: &mut H,
        (claim, stored): (&Claim, &Stored),
        keeper: Keeper,
    ) -> Ended<H::Failure> {
        let any = keeper.tally().checkpoints > 0;
        match keeper.close(self.farewell).await {
            Closed::Lost(error) => Ended::Lost(error),
            last => {
                if self.most_starts.is_some() {
                    // It did not end by itself: the next start is not counted. If that cannot be stored, it is.
                    let state = host.state(&stored.state).with_summary(self.summary(stored));
                    let storing = self.store.set_state(&self.id, claim, &state);
                    let _ = tokio::time::timeout(LAST_STATE, storing).await;
                }
                Ended::Stopped(Left { last: Some(last), any })
            }
        }
    }

    fn summary(&self, stored: &Stored) -> Summary {
        Summary::of(&stored.record, Some(&self.spec))
    }

    /// Tries for as long as the host wants to wait, or until it is told to stop.
    async fn retried<H: Host, T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        host: &mut H,
        attempt: impl Fn() -> F,
    ) -> Result<T, Ended<H::Failure>> {
        let mut failed = false;
        loop {
            let tried = tokio::select! {
                tried = attempt() => tried,
                () = self.stop.cancelled() => return Err(Ended::Stopped(NOTHING)),
            };
            let error = match tried {
                Ok(done) => {
                    if failed {
                        host.recovered();
                    }
                    return Ok(done);
                }
                Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) => {
                    return Err(Ended::Lost(lost));
                }
                Err(error) => error,
            };
            let pause = if is_transient(&error) { host.retry(&error) } else { None };
            let Some(pause) = pause else { return Err(Failed::from(error).into()) };
            failed = true;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return Err(Ended::Stopped(NOTHING)),
            }
        }
    }
}
