//! A coordinator that is stopped while it finishes a render, at every request it makes of its store; a newer one that
//! passes meanwhile; and the older that wakes up. Whatever it then does, the newer one's result is whole.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use gigasmith_coordinator::output::{Format, Kind};
use gigasmith_coordinator::sampler::plan::PlanKind;
use gigasmith_coordinator::store::StoredState;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{Notify, watch};

use super::common::{self, Fake};
use super::{Attempt, Place, add, given, lane_of, results_of};

/// Lets requests pass until the `at`-th after the first write of a result, then none before it is opened: as when
/// the process is stopped there.
#[derive(Debug)]
struct Gate {
    at: usize,
    armed: AtomicBool,
    seen: AtomicUsize,
    reached: Notify,
    open: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
struct Stopped {
    inner: Arc<InMemory>,
    gate: Arc<Gate>,
}

impl Stopped {
    fn new(inner: Arc<InMemory>, at: usize) -> Self {
        let gate = Gate {
            at,
            armed: AtomicBool::new(false),
            seen: AtomicUsize::new(0),
            reached: Notify::new(),
            open: watch::Sender::new(false),
        };
        Self { inner, gate: Arc::new(gate) }
    }

    async fn pass(&self, path: Option<&Path>) {
        if path.is_some_and(|p| p.as_ref().contains("/results/")) {
            self.gate.armed.store(true, Ordering::SeqCst);
        }
        if !self.gate.armed.load(Ordering::SeqCst) {
            return;
        }
        if self.gate.seen.fetch_add(1, Ordering::SeqCst) >= self.gate.at {
            self.gate.reached.notify_one();
            let _ = self.gate.open.subscribe().wait_for(|open| *open).await;
        }
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store whose client is stopped")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Stopped {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.pass(Some(path)).await;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.pass(Some(path)).await;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass(None).await;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |path: Result<Path>| {
            let store = store.clone();
            async move {
                store.pass(None).await;
                let paths = stream::once(async { path }).boxed();
                store.inner.delete_stream(paths).next().await.expect("one path, one answer")
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            store.pass(None).await;
            store.inner.list(prefix.as_ref())
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pass(None).await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_wakes_up_late_spoils_nothing() {
    let farm = common::farm_with(|| Ok(Box::new(Fake::new())));
    let root = || Path::from("x");
    let undisturbed = Place { objects: Arc::new(InMemory::new()), root: root() };
    add(&undisturbed.store(), "r", 1).await.expect("the id is free");
    let alone = given(&undisturbed, lane_of(&farm).await, PlanKind::Balanced, "r", "alone").attempt().await.0;
    assert!(matches!(alone, Attempt::Done(..)), "{alone:?}");
    let png = results_of(&undisturbed, "r").await;
    let submitted = Arc::new(InMemory::new());
    let place = Place { objects: submitted.clone(), root: root() };
    add(&place.store(), "r", 1).await.expect("the id is free");
    for kind in [Kind::Png, Kind::Tif, Kind::Dzi] {
        let format = Format::new(kind, None).expect("each kind has a usual quality");
        let mut stops = 0;
        for at in 0.. {
            let objects = Arc::new(submitted.fork());
            let stopped = Stopped::new(objects.clone(), at);
            let gate = stopped.gate.clone();
            let behind = Place { objects: Arc::new(stopped), root: root() };
            let mut older = given(&behind, lane_of(&farm).await, PlanKind::Balanced, "r", "the older");
            older.format = format;
            let mut older = tokio::spawn(async move { older.attempt().await.0 });
            let ended = tokio::select! {
                ended = &mut older => Some(ended),
                () = gate.reached.notified() => None,
            };
            if let Some(ended) = ended {
                assert!(matches!(ended, Ok(Attempt::Done(..))), "{ended:?}");
                break;
            }
            stops += 1;
            let place = Place { objects, root: root() };
            let mut newer = given(&place, lane_of(&farm).await, PlanKind::Balanced, "r", "the newer");
            newer.format = format;
            let newer = newer.attempt().await.0;
            assert!(matches!(newer, Attempt::Done(..) | Attempt::Already), "{kind:?} at {at}: {newer:?}");
            let made = results_of(&place, "r").await;
            assert!(kind != Kind::Png || made == png, "at {at}: another picture");
            gate.open.send_replace(true);
            let older = older.await.expect("no panic");
            let what = format!("{kind:?}, stopped at request {at}, then {older:?}");
            let state = place.store().read("r").await.unwrap().expect("it is there").state;
            assert_eq!(state.state, StoredState::Done, "{what}");
            assert!(results_of(&place, "r").await == made, "{what}: the result is another, or not whole");
        }
        assert!(stops > 8, "{kind:?}: only {stops} requests were stopped at");
    }
    farm.stop().await;
}
