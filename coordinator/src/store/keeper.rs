//! The task that keeps a render's checkpoints.
//!
//! The render gives points and never waits ([`Keeper`] is its journal); the task writes the newest one: blobs
//! that are not there yet, then a look whether somebody newer has taken over, then the manifest, created
//! once. Then it gives up what no kept manifest needs.
//!
//! What can go wrong: *the store fails or is slow*: the same point, or a newer one that has come meanwhile,
//! is tried again, with growing pauses, for as long as it takes; blobs that arrived are not sent again.
//! *Somebody newer took over, or removed the render*: nothing more is written, and the render is stopped.
//! *The process dies*: what was not in a manifest yet is lost; blobs without one are swept by whoever takes
//! the render up. *The answer to a manifest's creation is lost*: it is there under its name with our bytes,
//! or it is torn, and the next number is taken.

mod draft;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::blobs::Known;
use super::claim::Claim;
use super::manifest::{Kept, MANIFEST_VERSION, Manifest, superseded};
use super::{RenderStore, StoreError};
use crate::digest::Digest;
use crate::metrics::Metrics;
use crate::render::{Journal, Point};
use draft::{Current, Draft, Slot};

/// How often it is looked whether somebody newer has taken over, when no checkpoint is due sooner.
const WATCH: Duration = Duration::from_secs(10);
/// While a checkpoint is being written: how soon to ask again.
const BUSY: Duration = Duration::from_millis(200);
/// Pauses between attempts grow from here ...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... to here.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A checkpoint that takes longer than this, and longer than the interval, is late.
const LATE: Duration = Duration::from_secs(30);
/// One whose writing fails is late after this.
const LATE_BY_FAILURE: Duration = Duration::from_secs(5);
/// When it is to end: how soon to look again whether all is written, and how long garbage may take then.
const SETTLING: Duration = Duration::from_millis(20);
const COLLECTING: Duration = Duration::from_secs(3);
/// Blobs younger than this are not swept, even if no manifest needs them: an older coordinator may still be
/// about to write one that does.
const SPARE: Duration = Duration::from_secs(3600);

/// How often, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepOptions {
    /// Between two checkpoints.
    pub every: Duration,
    /// Newest checkpoints that are kept, at least 2: a coordinator that takes over may be reading the last
    /// but one.
    pub keep: usize,
}

impl Default for KeepOptions {
    fn default() -> Self {
        Self { every: Duration::from_secs(60), keep: 2 }
    }
}

/// What a keeper starts from.
#[derive(Debug)]
pub struct KeeperStart {
    /// Where.
    pub store: RenderStore,
    /// Which render.
    pub id: String,
    /// The right to write.
    pub claim: Claim,
    /// The hash of its spec.
    pub spec: Digest,
    /// What lies there already.
    pub found: Found,
    /// How often, and how many.
    pub options: KeepOptions,
    /// Stops the render when somebody newer has taken over.
    pub stop: CancellationToken,
    /// Where checkpoints are counted.
    pub metrics: Metrics,
}

/// What was found in the store when a render was taken up.
#[derive(Debug, Default)]
pub struct Found {
    /// Its manifests.
    pub(super) manifests: Vec<Kept>,
    /// Blobs that were read and checked.
    pub(super) blobs: Known,
}

/// How a keeper ended.
#[derive(Debug)]
pub enum Closed {
    /// The newest point is in the store.
    Kept,
    /// It is not: the store did not take it in time.
    Late(String),
    /// Somebody newer has taken over, or the render was removed.
    Lost(StoreError),
}

/// What has been written so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checkpoints.
    pub checkpoints: u64,
    /// Bytes of blobs and manifests.
    pub bytes: u64,
    /// Bytes that were written for the last one.
    pub last: u64,
    /// When that was.
    pub at: Option<Instant>,
}

/// Lets others see what a keeper has written.
#[derive(Debug, Clone)]
pub struct Tallied(Arc<Shared>);

impl Tallied {
    /// What has been written so far.
    pub fn tally(&self) -> Tally {
        self.0.state().tally
    }
}

#[derive(Debug, Default)]
struct State {
    /// The newest point that is not being written yet.
    next: Option<Point>,
    /// Since when one is being written.
    busy: Option<Instant>,
    /// When the last one was taken.
    taken: Option<Instant>,
    error: Option<String>,
    lost: Option<StoreError>,
    tally: Tally,
    /// Bytes up to the last checkpoint.
    counted: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
    every: Duration,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Whether every point that was given is written.
    fn is_settled(&self) -> bool {
        let state = self.state();
        state.next.is_none() && state.busy.is_none()
    }
}

/// A render's journal in the store.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts keeping. Must be called within a tokio runtime.
    pub fn start(start: KeeperStart) -> Self {
        let KeeperStart { store, id, claim, spec, found, options, stop, metrics } = start;
        let state = Mutex::default();
        let shared = Arc::new(Shared { state, wake: Notify::new(), every: options.every });
        let closing = CancellationToken::new();
        let task = Task {
            shared: shared.clone(),
            closing: closing.clone(),
            stop,
            metrics,
            store,
            id,
            claim,
            spec,
            keep: options.keep.max(2),
            sequence: 0,
            manifests: found.manifests,
            known: found.blobs,
            current: Current::default(),
            doomed: BTreeSet::new(),
            swept: false,
        };
        Self { shared, closing, task: tokio::spawn(task.run()) }
    }

    /// What has been written so far.
    pub fn tally(&self) -> Tally {
        self.shared.state().tally
    }

    /// Lets others see that.
    pub fn tallied(&self) -> Tallied {
        Tallied(self.shared.clone())
    }

    /// Waits until the newest point is in the store, for so long at most, and ends.
    pub async fn close(mut self, limit: Duration) -> Closed {
        self.closing.cancel();
        let deadline = Instant::now() + limit;
        let mut ended = None;
        while ended.is_none() && Instant::now() < deadline && !self.shared.is_settled() {
            ended = tokio::time::timeout(SETTLING, &mut self.task).await.ok();
        }
        if ended.is_none() && self.shared.is_settled() {
            // It collects garbage: there is a moment for that.
            ended = tokio::time::timeout(COLLECTING, &mut self.task).await.ok();
        }
        self.task.abort();
        let settled = self.shared.is_settled();
        let mut state = self.shared.state();
        match (state.lost.take(), ended) {
            (Some(lost), _) => Closed::Lost(lost),
            (None, Some(Err(error))) => {
                Closed::Late(format!("a bug in gigasmith, please report it: {error}"))
            }
            (None, _) if settled => Closed::Kept,
            (None, _) => {
                let slow = || format!("the store did not take it within {} s", limit.as_secs());
                Closed::Late(state.error.take().unwrap_or_else(slow))
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Journal for Keeper {
    fn wait(&self) -> Duration {
        let state = self.shared.state();
        // While the store fails, newer points take the place of the one that it does not take.
        if state.next.is_some() || state.busy.is_some() && state.error.is_none() {
            return BUSY;
        }
        state.taken.map_or(Duration::ZERO, |taken| self.shared.every.saturating_sub(taken.elapsed()))
    }

    fn note(&mut self, point: Point) {
        let mut state = self.shared.state();
        (state.next, state.taken) = (Some(point), Some(Instant::now()));
        drop(state);
        self.shared.wake.notify_one();
    }

    fn trouble(&self) -> Option<String> {
        let state = self.shared.state();
        if self.task.is_finished() && state.lost.is_none() && !self.closing.is_cancelled() {
            return Some("a bug in gigasmith, please report it: the keeper of checkpoints has ended".into());
        }
        let since = state.busy?.elapsed();
        let late = since > LATE.max(self.shared.every);
        let seconds = since.as_secs();
        match &state.error {
            Some(error) => (since > LATE_BY_FAILURE).then(|| error.clone()),
            None if late => {
                Some(format!("the store is slow: a checkpoint has been on its way for {seconds} s"))
            }
            None => None,
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    closing: CancellationToken,
    stop: CancellationToken,
    metrics: Metrics,
    store: RenderStore,
    id: String,
    claim: Claim,
    spec: Digest,
    keep: usize,
    sequence: u64,
    manifests: Vec<Kept>,
    known: Known,
    current: Current,
    /// Blobs of manifests that were given up.
    doomed: BTreeSet<Digest>,
    /// Whether what earlier coordinators left is swept.
    swept: bool,
}

impl Task {
    async fn run(mut self) {
        let watch = WATCH.min(self.shared.every).max(BUSY);
        loop {
            let point = {
                let mut state = self.shared.state();
                let point = state.next.take();
                state.busy = point.is_some().then(Instant::now);
                point
            };
            let done = match point {
                Some(point) => self.keep_point(point).await,
                None if self.closing.is_cancelled() => return,
                None => {
                    tokio::select! {
                        () = self.shared.wake.notified() => Ok(()),
                        () = self.closing.cancelled() => Ok(()),
                        () = tokio::time::sleep(watch) => self.look().await,
                    }
                }
            };
            if let Err(lost) = done {
                self.shared.state().lost = Some(lost);
                self.stop.cancel();
                return;
            }
        }
    }

    /// Whether it is still ours, as far as the store can tell now.
    async fn look(&self) -> Result<(), StoreError> {
        match self.store.check(&self.claim).await {
            Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) => Err(lost),
            // The store is away: nothing can be written either.
            _ => Ok(()),
        }
    }

    /// Writes a point, or a newer one that comes meanwhile, however long it takes. Fails only when the right
    /// to write is lost.
    async fn keep_point(&mut self, point: Point) -> Result<(), StoreError> {
        let mut draft = self.current.draft(point).await;
        let mut pause = FIRST_PAUSE.min(self.shared.every);
        loop {
            match self.attempt(&mut draft).await {
                Ok(()) => break,
                Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) => return Err(lost),
                Err(error) => {
                    tracing::debug!(id = self.id, %error, retry_in = ?pause, "a checkpoint is late");
                    self.shared.state().error = Some(error.to_string());
                }
            }
            // Perhaps it can still be read.
            self.look().await?;
            self.rest(pause, &mut draft).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        {
            let mut state = self.shared.state();
            (state.error, state.busy) = (None, None);
        }
        self.collect().await
    }

    /// Waits before another attempt; a newer point takes the draft's place at once. When we are to end there
    /// is no time for long pauses.
    async fn rest(&mut self, pause: Duration, draft: &mut Draft) {
        let until = Instant::now() + pause;
        loop {
            let newer = self.shared.state().next.take();
            if let Some(point) = newer {
                *draft = self.current.draft(point).await;
            }
            let closing = self.closing.is_cancelled();
            let until = if closing { until.min(Instant::now() + FIRST_PAUSE) } else { until };
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = self.shared.wake.notified() => {}
                () = self.closing.cancelled(), if !closing => {}
            }
        }
    }

    async fn attempt(&mut self, draft: &mut Draft) -> Result<(), StoreError> {
        let written = self.store.write_blobs(&self.id, &self.known, std::mem::take(&mut draft.left)).await;
        self.shared.state().tally.bytes += written.bytes;
        draft.ids.extend(written.ids);
        draft.left = written.left;
        self.current.remember(draft);
        if let Some(error) = written.error {
            return Err(error);
        }
        self.store.check(&self.claim).await?;
        self.create_manifest(draft).await
    }

    async fn create_manifest(&mut self, draft: &Draft) -> Result<(), StoreError> {
        loop {
            let manifest = Manifest {
                version: MANIFEST_VERSION,
                epoch: self.claim.epoch,
                sequence: self.sequence + 1,
                spec: self.spec,
                conditioning: draft.ids[&Slot::Conditioning],
                stage: draft.stage,
                at: draft.at(),
            };
            let path = self.store.manifest_path(&self.id, manifest.name());
            let bytes = manifest.to_bytes();
            let ours = self.store.create(&path, bytes.clone()).await?
                || self.store.get(&path).await?.as_ref() == Some(&bytes);
            self.sequence += 1;
            // One that is not ours is torn: whoever reads it sees that.
            let stage = ours.then_some(manifest.stage);
            let blobs = if ours { manifest.blobs() } else { BTreeSet::new() };
            self.manifests.push(Kept { name: manifest.name(), stage, blobs });
            if ours {
                let mut state = self.shared.state();
                state.tally.checkpoints += 1;
                state.tally.bytes += bytes.len() as u64;
                state.tally.last = state.tally.bytes - state.counted;
                state.counted = state.tally.bytes;
                state.tally.at = Some(Instant::now());
                self.metrics.checkpoint(state.tally.last);
                return Ok(());
            }
        }
    }

    /// Gives up manifests, then blobs that none of the others needs. What cannot be deleted now is later.
    async fn collect(&mut self) -> Result<(), StoreError> {
        self.look().await?;
        for name in superseded(&self.manifests, self.keep) {
            if self.store.delete(&self.store.manifest_path(&self.id, name)).await.is_err() {
                return Ok(());
            }
            let (gone, kept) = std::mem::take(&mut self.manifests).into_iter().partition(|m| m.name == name);
            self.manifests = kept;
            self.doomed.extend(Vec::<Kept>::into_iter(gone).flat_map(|m| m.blobs));
        }
        self.sweep().await;
        let needed: BTreeSet<Digest> =
            self.manifests.iter().flat_map(|m| m.blobs.iter().copied()).chain(self.current.blobs()).collect();
        let mut garbage = self.known.all();
        garbage.append(&mut self.doomed);
        let garbage: Vec<Digest> = garbage.difference(&needed).copied().collect();
        for chunk in garbage.chunks(16) {
            if self.closing.is_cancelled() && self.shared.state().next.is_some() {
                // There is a newer point to write, and little time. The rest goes with the next collection.
                self.doomed.extend(garbage);
                return Ok(());
            }
            self.look().await?;
            let mut deleting = tokio::task::JoinSet::new();
            for &blob in chunk {
                // Forgotten first: from here on nobody may take it for stored.
                self.known.remove(&blob);
                let (store, path) = (self.store.clone(), self.store.blob_path(&self.id, &blob));
                deleting.spawn(async move { (blob, store.delete(&path).await.is_ok()) });
            }
            let left = deleting.join_all().await.into_iter().filter(|(_, deleted)| !deleted);
            self.doomed.extend(left.map(|(blob, _)| blob));
        }
        Ok(())
    }

    /// Once: looks for what earlier coordinators left without a manifest.
    async fn sweep(&mut self) {
        if self.swept {
            return;
        }
        match self.find_left().await {
            Ok(()) => self.swept = true,
            Err(error) => tracing::debug!(id = self.id, %error, "what was left is swept later"),
        }
    }

    async fn find_left(&mut self) -> Result<(), StoreError> {
        // Manifests that an older coordinator has written since we took over.
        for name in self.store.manifests(&self.id).await? {
            if name.epoch < self.claim.epoch && self.manifests.iter().all(|m| m.name != name) {
                self.store.delete(&self.store.manifest_path(&self.id, name)).await?;
            }
        }
        self.doomed.extend(self.store.old_blobs(&self.id, SPARE).await?);
        Ok(())
    }
}
