//! Renders with checkpoints, as a coordinator does them, on any store.

use std::sync::Arc;
use std::time::Duration;

use gigasmith_coordinator::farm::Lane;
use gigasmith_coordinator::render::{Course, Progress, RenderError, RenderInputs, Rendered, render_from};
use gigasmith_coordinator::request::{RenderRequest, RequestInputs};
use gigasmith_coordinator::spec::RenderSpec;
use gigasmith_coordinator::store::{
    Claim, Closed, KeepOptions, Keeper, KeeperStart, NewRender, Owner, RenderStore, StoreError, Tally,
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
    /// Told to stop; how its last checkpoint went.
    Stopped(Closed),
    /// The store failed before it began.
    Store(StoreError),
    Render(RenderError),
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Not its pixels.
            Self::Done(_, claim) => write!(f, "done in epoch {}", claim.epoch),
            Self::Stopped(closed) => write!(f, "stopped: {closed:?}"),
            Self::Store(error) => write!(f, "{error}"),
            Self::Render(error) => write!(f, "{error}"),
        }
    }
}

/// Stops a render after so many patches, or patches and tiles, and tells when it has done some.
struct Watch {
    stop: CancellationToken,
    left: usize,
    counts_tiles: bool,
    some: Arc<Notify>,
    seen: usize,
}

impl Progress for Watch {
    fn patches(&mut self, _: usize) {
        self.seen += 1;
        if self.seen == SOME {
            self.some.notify_one();
        }
        self.count();
    }

    fn tiles(&mut self, _: usize, _: usize) {
        if self.counts_tiles {
            self.count();
        }
    }
}

impl Watch {
    fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.stop.cancel();
        }
    }
}

/// Patches after which a render is well under way.
const SOME: usize = 10;

/// What an attempt is given.
pub(crate) struct Given {
    pub(crate) store: RenderStore,
    pub(crate) lane: Arc<Lane>,
    pub(crate) spec: RenderSpec,
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
}

impl Given {
    /// Takes the render up and goes on to its end.
    pub(crate) async fn attempt(&self) -> (Attempt, Tally) {
        match self.run().await {
            Ok(done) => done,
            Err(error) => (Attempt::Store(error), Tally::default()),
        }
    }

    async fn run(&self) -> Result<(Attempt, Tally), StoreError> {
        let Self { store, lane, spec, id, owner, options, stop, stop_after, counts_tiles, some } = self;
        let claim = patiently(|| store.claim(id, owner)).await?;
        let restored = patiently(|| store.restore(id, spec, lane.model())).await?;
        let stop = stop.child_token();
        let mut keeper = Keeper::start(KeeperStart {
            metrics: Default::default(),
            store: store.clone(),
            id: id.clone(),
            claim: claim.clone(),
            spec: spec.hash(),
            found: restored.found,
            options: *options,
            stop: stop.clone(),
        });
        let mut progress = Watch {
            stop: stop.clone(),
            left: *stop_after,
            counts_tiles: *counts_tiles,
            some: some.clone(),
            seen: 0,
        };
        let mut course = Course::new(&mut progress, &mut keeper, stop);
        let inputs = RenderInputs::default();
        let rendered = render_from(lane.clone(), spec, inputs, restored.resumed, &mut course).await;
        let tally = keeper.tally();
        Ok(match rendered {
            Ok(rendered) => (Attempt::Done(Box::new(rendered), claim), tally),
            Err(RenderError::Stopped) => {
                (Attempt::Stopped(keeper.close(Duration::from_secs(30)).await), tally)
            }
            Err(error) => (Attempt::Render(error), tally),
        })
    }
}

/// As a coordinator tries, with shorter pauses.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    attempt: impl Fn() -> F,
) -> Result<T, StoreError> {
    for _ in 0..20 {
        match attempt().await {
            Err(StoreError::Store { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return other,
        }
    }
    attempt().await
}
