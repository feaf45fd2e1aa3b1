//! Renders with checkpoints, living the life that a coordinator lives for them, on any store.

use std::sync::Arc;
use std::time::Duration;

use gigasmith_coordinator::farm::{Lane, TaskError};
use gigasmith_coordinator::lifecycle::{Ended, Failed, Host, Left, Lifecycle};
use gigasmith_coordinator::output::Format;
use gigasmith_coordinator::render::{Progress, RenderError, Rendered};
use gigasmith_coordinator::request::{RenderRequest, RequestInputs};
use gigasmith_coordinator::spec::{RenderSpec, StagePlans};
use gigasmith_coordinator::store::{
    Claim, Closed, KeepOptions, NewRender, Outputs, Owner, RenderStore, StoreError, Stored, Tallied, Tally,
};
use gigasmith_proto::domain::Identifier;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub(crate) fn owner(name: &str) -> Owner {
    Owner { incarnation: format!("{name}, one of a kind"), name: name.into() }
}

/// Stores a render under an id.
pub(crate) async fn add(store: &RenderStore, id: &str, order: u64) -> Result<(), StoreError> {
    let request = RenderRequest { prompt: "a fox".into(), model: "fake".into(), ..RenderRequest::default() };
    let new = NewRender { id: Some(id.into()), order, request, priority: 0, key: Identifier::random() };
    store.add(new, &RequestInputs::default()).await.map(drop)
}

/// How an attempt ended.
pub(crate) enum Attempt {
    Done(Box<Rendered>, Claim),
    /// Another had done it.
    Already,
    /// Told to stop; how its last checkpoint went.
    Stopped(Closed),
    /// The store failed before it began.
    Store(StoreError),
    /// It was started so often without getting further.
    Stuck(u32),
    Render(RenderError),
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Not its pixels.
            Self::Done(_, claim) => write!(f, "done in epoch {}", claim.epoch),
            Self::Already => write!(f, "done before"),
            Self::Stopped(closed) => write!(f, "stopped: {closed:?}"),
            Self::Stuck(count) => write!(f, "stuck after {count} starts"),
            Self::Store(error) => write!(f, "{error}"),
            Self::Render(error) => write!(f, "{error}"),
        }
    }
}

/// Stops a render after so many patches, or patches and tiles, and tells when it has done some.
struct Watch<'a> {
    given: &'a Given,
    stop: CancellationToken,
    left: usize,
    seen: usize,
    failures: usize,
    claim: Option<Claim>,
    tallied: Option<Tallied>,
    rendered: Option<Box<Rendered>>,
}

impl Progress for Watch<'_> {
    fn patches(&mut self, _: usize) {
        self.seen += 1;
        if self.seen == SOME {
            self.given.some.notify_one();
        }
        self.count();
    }

    fn tiles(&mut self, _: usize, _: usize) {
        if self.given.counts_tiles {
            self.count();
        }
    }
}

impl Watch<'_> {
    fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.stop.cancel();
        }
    }
}

impl Host for Watch<'_> {
    type Failure = String;

    fn claimed(&mut self, claim: &Claim, _: &Stored) -> Result<(), String> {
        self.claim = Some(claim.clone());
        Ok(())
    }

    async fn lane(&mut self, _: &RenderSpec) -> Result<Arc<Lane>, TaskError> {
        Ok(self.given.lane.clone())
    }

    fn begun(&mut self, tallied: Tallied, _: &StagePlans) {
        self.tallied = Some(tallied);
    }

    /// As a coordinator tries, with shorter pauses.
    fn retry(&mut self, _: &StoreError) -> Option<Duration> {
        self.failures += 1;
        (self.failures < 200).then_some(Duration::from_millis(5))
    }

    fn recovered(&mut self) {
        self.failures = 0;
    }

    fn made(&mut self, rendered: &Rendered) {
        let Rendered { picture, latent, plans } = rendered;
        let (picture, latent, plans) = (picture.clone(), latent.clone(), plans.clone());
        self.rendered = Some(Box::new(Rendered { picture, latent, plans }));
    }

    fn outputs(&self, rendered: &Rendered, _: &Stored) -> Result<Outputs, String> {
        Outputs::of(rendered, &self.given.spec, (self.given.format, self.given.store.scratch()))
    }
}

/// Patches after which a render is well under way.
const SOME: usize = 10;

/// What an attempt is given.
pub(crate) struct Given {
    pub(crate) store: RenderStore,
    pub(crate) lane: Arc<Lane>,
    pub(crate) spec: RenderSpec,
    pub(crate) format: Format,
    pub(crate) id: String,
    pub(crate) owner: Owner,
    pub(crate) options: KeepOptions,
    pub(crate) stop: CancellationToken,
    /// Stops itself after so many patches.
    pub(crate) stop_after: usize,
    /// Whether tiles count too.
    pub(crate) counts_tiles: bool,
    /// Told when it is well under way.
    pub(crate) some: Arc<Notify>,
    /// Starts from one point after which it is stuck.
    pub(crate) most_starts: Option<u32>,
}

impl Given {
    /// Takes the render up and goes on to its end.
    pub(crate) async fn attempt(&self) -> (Attempt, Tally) {
        let stop = self.stop.child_token();
        let life = Lifecycle {
            store: self.store.clone(),
            id: self.id.clone(),
            owner: self.owner.clone(),
            spec: self.spec.clone(),
            model: self.lane.model().clone(),
            keep: self.options,
            metrics: Default::default(),
            stop: stop.clone(),
            farewell: Duration::from_secs(30),
            most_starts: self.most_starts,
        };
        let mut watch = Watch {
            given: self,
            stop,
            left: self.stop_after,
            seen: 0,
            failures: 0,
            claim: None,
            tallied: None,
            rendered: None,
        };
        let ended = life.live(&mut watch).await;
        let tally = watch.tallied.map(|t| t.tally()).unwrap_or_default();
        let attempt = match ended {
            Ended::Done(_) => {
                let rendered = watch.rendered.expect("what is done was made");
                Attempt::Done(rendered, watch.claim.expect("what is done was claimed"))
            }
            Ended::Already(_) => Attempt::Already,
            Ended::Stopped(Left { last, .. }) => Attempt::Stopped(last.unwrap_or(Closed::Kept)),
            Ended::Lost(error) => Attempt::Stopped(Closed::Lost(error)),
            Ended::Failed(Failed::Store(error), _) => Attempt::Store(error),
            Ended::Failed(Failed::Render(error), _) => Attempt::Render(error),
            Ended::Stuck(count) => Attempt::Stuck(count),
            other => panic!("nothing here asks for {other:?}"),
        };
        (attempt, tally)
    }
}
