//! Checkpoints on every kind of store: one suite for a folder, memory and S3 over HTTP, and thousands of
//! faults. Whatever happens, the picture and the latents are those of an undisturbed run, to the bit.
#![allow(clippy::print_stdout)]

mod common;
#[path = "checkpoints/late.rs"]
mod late;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::Fake;
use common::faulty::{Draws, Faults, Faulty};
use common::kept::{Attempt, Given, add, owner};
use common::s3::{self, Server};
use futures::TryStreamExt;
use gigasmith_coordinator::digest::Digest;
use gigasmith_coordinator::embedded::EmbeddedFarm;
use gigasmith_coordinator::farm::{Lane, LaneOptions};
use gigasmith_coordinator::output::{Embedded, Format, Kind};
use gigasmith_coordinator::raster::{Raster, Scratch};
use gigasmith_coordinator::render::{Course, Position, Rendered, Start, render, render_from};
use gigasmith_coordinator::sampler::plan::PlanKind;
use gigasmith_coordinator::sampler::resize::Picture;
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::ImageSize;
use gigasmith_coordinator::spec::{Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, StagePlans, UpscaleSpec};
use gigasmith_coordinator::store::manifest::{Manifest, ManifestAt};
use gigasmith_coordinator::store::{
    Closed, KeepOptions, Outputs, Part, RenderStore, StateRecord, StoreError, StoredState,
};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio_util::sync::CancellationToken;

/// Three stages, the last of some dozens of patches and some dozens of tiles.
fn spec(plan: PlanKind) -> RenderSpec {
    let size = |width, height| ImageSize { width, height };
    RenderSpec {
        version: SPEC_VERSION,
        prompt: "a fox".into(),
        negative_prompt: None,
        model: ModelSpec::of(&common::description()),
        base: size(64, 64),
        base_in_windows: false,
        upscales: vec![
            UpscaleSpec { size: size(128, 128), slider: 2 },
            UpscaleSpec { size: size(260, 196), slider: 3 },
        ],
        steps: 4,
        guidance_scale: 5.0,
        pag: None,
        seed: 7,
        plan,
        plan_hash: None,
        rng: Rng::Torch,
        crops: Crops::True,
        vae: VaeMode::Tiled,
        image_hash: None,
        wire: Default::default(),
        mix: false,
    }
}

/// A fake that takes a moment for every answer, so that there is time to be interrupted.
fn farm() -> EmbeddedFarm {
    common::farm_with(|| {
        let spoil = Box::new(|_: &'static str, array| {
            std::thread::sleep(Duration::from_micros(400));
            Ok(array)
        });
        Ok(Box::new(Fake { spoil, ..Fake::new() }))
    })
}

async fn lane_of(farm: &EmbeddedFarm) -> Arc<Lane> {
    let model = farm.farm().model().await.expect("the worker stays");
    Arc::new(farm.farm().lane(LaneOptions::new(model)).await.expect("the farm is there"))
}

async fn undisturbed(lane: Arc<Lane>, spec: &RenderSpec) -> Rendered {
    render(lane, spec, None, &mut ()).await.expect("it renders")
}

fn assert_same(a: &Rendered, b: &Rendered, what: &str) {
    let pixels = |r: &Rendered| r.picture.to_picture().unwrap();
    assert!(pixels(a) == pixels(b), "{what}: another picture");
    assert!(a.latent == b.latent, "{what}: other latents");
}

/// An object store, and where in it renders are kept.
#[derive(Clone)]
struct Place {
    objects: Arc<dyn ObjectStore>,
    root: Path,
}

impl Place {
    fn store(&self) -> RenderStore {
        RenderStore::new(self.objects.clone(), self.root.clone())
    }

    async fn names(&self, folder: &str) -> Vec<Path> {
        let prefix = Path::from(format!("{}/renders/{folder}", self.root));
        let listed: Vec<_> = self.objects.list(Some(&prefix)).try_collect().await.expect("it lists");
        let mut names: Vec<Path> = listed.into_iter().map(|o| o.location).collect();
        names.sort();
        names
    }

    async fn manifest(&self, path: &Path) -> Manifest {
        Manifest::parse(&self.objects.get(path).await.unwrap().bytes().await.unwrap()).unwrap()
    }

    /// Blobs that only the last of these manifests needs.
    async fn own_blobs(&self, manifests: &[Path]) -> BTreeSet<Digest> {
        let (newest, others) = manifests.split_last().expect("there is one");
        let mut own = self.manifest(newest).await.blobs();
        for other in others {
            let needed = self.manifest(other).await.blobs();
            own.retain(|blob| !needed.contains(blob));
        }
        own
    }
}

/// What every store must do.
async fn conformance(place: Place) {
    let farm = farm();
    renders_have_one_owner(&place).await;
    for plan in [PlanKind::Balanced, PlanKind::Paper] {
        let undisturbed = undisturbed(lane_of(&farm).await, &spec(plan)).await;
        interrupted(&place, &farm, plan, &undisturbed).await;
        taken_over(&place, &farm, plan, &undisturbed).await;
        damaged(&place, &farm, plan, &undisturbed).await;
    }
    outdated(&place, &farm).await;
    removed(&place, &farm).await;
    results(&place).await;
    farm.stop().await;
}

async fn renders_have_one_owner(place: &Place) {
    let store = place.store();
    let adding = (0..20).map(|order| {
        let store = store.clone();
        tokio::spawn(async move { add(&store, "raced", order).await })
    });
    let mut won = 0;
    for added in adding.collect::<Vec<_>>() {
        match added.await.expect("no panic") {
            Ok(()) => won += 1,
            Err(StoreError::Taken(id)) => assert_eq!(id, "raced"),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1, "an id is taken once");
    let claiming = (0..20).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.claim("raced", &owner(&format!("c{i}"))).await })
    });
    let mut claims = Vec::new();
    for claim in claiming.collect::<Vec<_>>() {
        claims.push(claim.await.expect("no panic").expect("the store is there"));
    }
    claims.sort_by_key(|c| c.epoch);
    let epochs: Vec<u64> = claims.iter().map(|c| c.epoch).collect();
    assert_eq!(epochs, (1..=20).collect::<Vec<_>>(), "epochs have no gaps and one owner each");
    let newest = claims.pop().expect("there are twenty");
    store.check(&newest).await.expect("the newest has it");
    for claim in claims {
        let lost = store.check(&claim).await.expect_err("somebody newer has it");
        assert!(lost.to_string().contains("another coordinator has taken over render raced"), "{lost}");
    }
    // The same coordinator may ask again.
    let again = store.claim("raced", &owner("c0")).await.expect("the store is there");
    assert_eq!(again.epoch, 21);
}

fn given(place: &Place, lane: Arc<Lane>, plan: PlanKind, id: &str, who: &str) -> Given {
    let options = KeepOptions { every: Duration::from_millis(10), keep: 2 };
    let stop = CancellationToken::new();
    let (store, id, owner) = (place.store(), id.into(), owner(who));
    let (stop_after, some, format) = (usize::MAX, Arc::default(), Format::default());
    let (spec, counts_tiles, most_starts) = (spec(plan), false, None);
    Given { store, lane, spec, format, id, owner, options, stop, stop_after, counts_tiles, some, most_starts }
}

/// Stopped again and again, each time with a last checkpoint.
async fn interrupted(place: &Place, farm: &EmbeddedFarm, plan: PlanKind, expected: &Rendered) {
    let id = format!("stopped-{plan:?}");
    add(&place.store(), &id, 1).await.expect("the id is free");
    let (mut stops, mut draws) = (0, Draws(3));
    let (rendered, claim) = loop {
        let mut given = given(place, lane_of(farm).await, plan, &id, &format!("run {stops}"));
        given.stop_after = 1 + draws.below(40) as usize;
        let (attempt, _) = given.attempt().await;
        match attempt {
            Attempt::Done(rendered, claim) => break (rendered, claim),
            Attempt::Stopped(Closed::Kept) => stops += 1,
            other => panic!("{other:?}"),
        }
        let manifests = place.names(&format!("{id}/checkpoints")).await;
        assert!(manifests.len() <= 3, "two are kept, and one of the stage before: {manifests:?}");
        assert!(stops < 200, "it goes on");
    };
    assert!(stops > 0, "it was interrupted");
    assert_same(&rendered, expected, &id);
    place.store().check(&claim).await.expect("it is ours");
    assert_eq!(place.names(&format!("{id}/blobs")).await, []);
    assert_eq!(place.names(&format!("{id}/checkpoints")).await, []);
}

/// Two coordinators at once: the newer goes on from where the older was, and the older stops.
async fn taken_over(place: &Place, farm: &EmbeddedFarm, plan: PlanKind, expected: &Rendered) {
    let id = format!("both-{plan:?}");
    add(&place.store(), &id, 1).await.expect("the id is free");
    let older = given(place, lane_of(farm).await, plan, &id, "the older");
    let some = older.some.clone();
    let older = tokio::spawn(async move { older.attempt().await.0 });
    some.notified().await;
    let newer = given(place, lane_of(farm).await, plan, &id, "the newer");
    let (newer, older) = tokio::join!(newer.attempt(), older);
    let Attempt::Done(rendered, _) = newer.0 else { panic!("{:?}", newer.0) };
    assert_same(&rendered, expected, &id);
    match older.expect("no panic") {
        Attempt::Stopped(Closed::Lost(StoreError::Superseded { owner, .. })) => {
            assert_eq!(owner, "the newer");
        }
        other => panic!("{other:?}"),
    }
}

/// From the moment that somebody newer has it, an older coordinator writes no manifest any more.
async fn outdated(place: &Place, farm: &EmbeddedFarm) {
    let id = "outdated";
    add(&place.store(), id, 1).await.expect("the id is free");
    let mut older = given(place, lane_of(farm).await, PlanKind::Balanced, id, "the older");
    older.options.every = Duration::from_secs(3600);
    older.stop_after = 60;
    let some = older.some.clone();
    let older = tokio::spawn(async move { older.attempt().await.0 });
    some.notified().await;
    let newer = place.store().claim(id, &owner("the newer")).await.expect("the store is there");
    let before = place.names(&format!("{id}/checkpoints")).await;
    match older.await.expect("no panic") {
        Attempt::Stopped(Closed::Lost(StoreError::Superseded { epoch, .. })) => {
            assert_eq!(epoch, newer.epoch);
        }
        other => panic!("{other:?}"),
    }
    // The one that was on its way, after its look, may come; no other.
    let after = place.names(&format!("{id}/checkpoints")).await;
    assert!(after.len() <= before.len() + 1, "{before:?}, then {after:?}");
}

/// Runs a render until it has checkpoints of the last stage, and leaves it.
async fn left(place: &Place, farm: &EmbeddedFarm, plan: PlanKind, id: &str) {
    add(&place.store(), id, 1).await.expect("the id is free");
    for run in 0.. {
        let mut given = given(place, lane_of(farm).await, plan, id, &format!("run {run}"));
        given.stop_after = 9;
        let (attempt, _) = given.attempt().await;
        assert!(matches!(attempt, Attempt::Stopped(Closed::Kept)), "it is not done yet: {attempt:?}");
        let manifests = place.names(&format!("{id}/checkpoints")).await;
        let newest = place.manifest(manifests.last().expect("it has checkpoints")).await;
        if newest.stage == 2 && !place.own_blobs(&manifests).await.is_empty() {
            return;
        }
    }
}

/// Damage is named, and the checkpoint before is used; without any, the stage before, or the beginning.
async fn damaged(place: &Place, farm: &EmbeddedFarm, plan: PlanKind, expected: &Rendered) {
    let id = format!("damaged-{plan:?}");
    left(place, farm, plan, &id).await;
    let (store, model) = (place.store(), farm.farm().model().await.expect("the worker stays"));
    let restore = async || store.restore(&id, &spec(plan), &model).await.expect("the store is there");
    let manifests = place.names(&format!("{id}/checkpoints")).await;
    let newest = manifests.last().expect("it has checkpoints").clone();
    let whole = place.objects.get(&newest).await.unwrap().bytes().await.unwrap();
    // A torn manifest.
    place.objects.put(&newest, whole.slice(..whole.len() / 2).into()).await.unwrap();
    let restored = restore().await;
    assert!(!restored.start.position.is_beginning(), "the one before is used");
    assert!(restored.damage[0].contains(newest.filename().unwrap()), "{:?}", restored.damage);
    place.objects.put(&newest, whole.clone().into()).await.unwrap();
    assert!(restore().await.damage.is_empty());
    // A blob that only the newest needs: missing, then changed in one bit.
    let only = place.own_blobs(&manifests).await;
    let blob = only.first().expect("it has one of its own");
    let path = place.names(&format!("{id}/blobs")).await;
    let path = path.iter().find(|p| p.filename() == Some(&blob.to_string())).expect("it is there").clone();
    let mut bytes = place.objects.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    place.objects.delete(&path).await.unwrap();
    let restored = restore().await;
    assert!(restored.damage[0].contains(&blob.to_string()) && restored.damage[0].contains("missing"));
    assert!(!restored.start.position.is_beginning(), "the one before is used");
    bytes[5] ^= 1;
    place.objects.put(&path, bytes.into()).await.unwrap();
    let restored = restore().await;
    assert!(restored.damage[0].contains(&blob.to_string()), "{:?}", restored.damage);
    // Other settings have no checkpoints here.
    let other = RenderSpec { seed: 8, ..spec(plan) };
    let foreign = store.restore(&id, &other, &model).await.expect("the store is there");
    assert!(foreign.start.position.is_beginning() && foreign.damage[0].contains("other settings"));
    // Nothing but damage: from the beginning.
    let mut whole = Vec::new();
    for path in place.names(&format!("{id}/checkpoints")).await {
        whole.push((path.clone(), place.objects.get(&path).await.unwrap().bytes().await.unwrap()));
        place.objects.put(&path, b"{}".to_vec().into()).await.unwrap();
    }
    let restored = restore().await;
    assert!(restored.start.position.is_beginning() && !restored.damage.is_empty());
    for (path, bytes) in whole {
        place.objects.put(&path, bytes.into()).await.unwrap();
    }
    let (attempt, _) = given(place, lane_of(farm).await, plan, &id, "the mender").attempt().await;
    let Attempt::Done(rendered, _) = attempt else { panic!("{attempt:?}") };
    assert_same(&rendered, expected, &id);
}

/// A render that is removed while it is worked on.
async fn removed(place: &Place, farm: &EmbeddedFarm) {
    let (id, plan) = ("removed", PlanKind::Balanced);
    add(&place.store(), id, 1).await.expect("the id is free");
    let working = given(place, lane_of(farm).await, plan, id, "the worker");
    let some = working.some.clone();
    let working = tokio::spawn(async move { working.attempt().await.0 });
    some.notified().await;
    place.store().remove(id).await.expect("it can be removed");
    match working.await.expect("no panic") {
        Attempt::Stopped(Closed::Lost(StoreError::Removed(gone))) => assert_eq!(gone, format!("render {id}")),
        Attempt::Done(_, claim) => assert!(place.store().check(&claim).await.is_err()),
        other => panic!("{other:?}"),
    }
    assert!(place.store().read(id).await.expect("the store is there").is_none());
    place.store().remove(id).await.expect("what was still on its way can be removed too");
    assert_eq!(place.names(id).await, []);
    add(&place.store(), id, 2).await.expect("the id is free again");
}

/// A picture that no format makes smaller.
fn noise_outputs(side: u32) -> Outputs {
    let noise = |i: u32| (u64::from(i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
    let picture =
        Picture::new(ImageSize { width: side, height: side }, (0..side * side * 3).map(noise).collect());
    let scratch = Scratch::default();
    let raster = Raster::of(&picture, &scratch).expect("there is room");
    let embedded = Embedded { parameters: "a fox".into(), json: "{}".into(), software: "tests".into() };
    Outputs::new(Arc::new(raster), embedded, (Format::default(), &scratch)).with_latents(vec![5, 6].into())
}

/// Results, small and larger than one request, and the inventory.
async fn results(place: &Place) {
    use tokio_stream::StreamExt;
    let store = place.store();
    add(&store, "results", 9).await.expect("the id is free");
    let claim = store.claim("results", &owner("somebody")).await.expect("the store is there");
    let outputs = noise_outputs(2400);
    let result = store.put_result("results", &claim, &outputs, Arc::new(|_, _| true)).await;
    let result = Some(result.expect("it is ours"));
    let done = StateRecord { state: StoredState::Done, result, ..StateRecord::queued(0) };
    store.set_state("results", &claim, &done).await.expect("the store is there");
    let place = store.result_place("results", &done, 2).await.unwrap().expect("its state names it");
    let mut found = store.result(&place, Part::Picture).await.unwrap().expect("it was stored");
    let mut bytes = Vec::new();
    while let Some(piece) = found.pieces.next().await {
        bytes.extend_from_slice(&piece.expect("the store is there").bytes);
    }
    let folder = tempfile::tempdir().unwrap();
    outputs.write(&folder.path().join("a.png"), &mut |_, _| Ok(())).expect("there is room");
    assert!(bytes == std::fs::read(folder.path().join("a.png")).unwrap());
    assert_eq!(found.total, bytes.len() as u64);
    assert_eq!(store.result(&place, Part::Latents).await.unwrap().expect("it was stored").total, 2);
    let inventory = store.inventory("results").await.expect("the store is there");
    assert!(inventory.bytes > bytes.len() as u64 && inventory.standing.is_none());
    assert_eq!(inventory.stored.unwrap().state, done);
    assert!(store.ids().await.unwrap().contains(&"results".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let objects = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    conformance(Place { objects: Arc::new(objects), root: Path::from("a/b") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conformance(Place { objects: Arc::new(InMemory::new()), root: Path::from("a/b") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_over_http_conforms() {
    // Another test of this process may have done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("renders")).unwrap();
    let server = Server::start(folder.path()).await;
    let objects = AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", server.address))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name("renders")
        .with_access_key_id(s3::KEY)
        .with_secret_access_key(s3::SECRET)
        .build()
        .unwrap();
    conformance(Place { objects: Arc::new(objects), root: Path::from("a/b") }).await;
}

/// How many schedules of faults are run; `GIGASMITH_FAULTS=500` for more.
fn schedules() -> u64 {
    std::env::var("GIGASMITH_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(16)
}

/// Every file of a result, by part and name.
type Files = Vec<(String, Vec<u8>)>;

/// What the store has of a finished render.
async fn results_of(place: &Place, id: &str) -> Files {
    use tokio_stream::StreamExt;
    let store = place.store();
    let stored = store.read(id).await.unwrap().expect("it is there");
    let found = store.result_place(id, &stored.state, 2).await.unwrap().expect("it is done");
    let mut files: Files = Vec::new();
    for part in [Part::Picture, Part::Latents, Part::Plan] {
        let fetched = store.result(&found, part).await.unwrap();
        let mut fetched =
            fetched.unwrap_or_else(|| panic!("{part:?} is not there: {found:?} of {:?}", stored.state));
        while let Some(piece) = fetched.pieces.next().await {
            let piece = piece.expect("the store is there");
            let name = format!("{part:?} {}", piece.file);
            if files.last().is_none_or(|(last, _)| *last != name) {
                files.push((name.clone(), Vec::new()));
            }
            files.last_mut().expect("it was pushed").1.extend_from_slice(&piece.bytes);
        }
    }
    files
}

/// What must come of a render, in every format.
struct Expected {
    plan: PlanKind,
    rendered: Rendered,
    results: Vec<(Kind, Files)>,
}

impl Expected {
    async fn of(farm: &EmbeddedFarm, lane: Arc<Lane>, plan: PlanKind) -> Self {
        let mut results = Vec::new();
        for kind in [Kind::Png, Kind::Tif, Kind::Dzi] {
            let place = Place { objects: Arc::new(InMemory::new()), root: Path::from("x") };
            add(&place.store(), "r", 1).await.expect("the id is free");
            let mut given = given(&place, lane_of(farm).await, plan, "r", "undisturbed");
            given.format = Format::new(kind, None).expect("each kind has a usual quality");
            let ended = given.attempt().await.0;
            assert!(matches!(ended, Attempt::Done(..)), "{ended:?}");
            results.push((kind, results_of(&place, "r").await));
        }
        Self { plan, rendered: undisturbed(lane, &spec(plan)).await, results }
    }
}

/// One schedule: coordinators that crash, are stopped, or run beside each other, on a store that misbehaves.
async fn faults(seed: u64, farm: &EmbeddedFarm, expected: &[Expected; 2]) -> common::faulty::Counts {
    let mut draws = Draws(seed);
    let errors = [0, 10, 50, 120][draws.below(4) as usize];
    let faults =
        Faults { errors, stale: draws.below(300), storms: draws.below(8), latency: draws.below(1500) };
    let Expected { plan, rendered: undisturbed, results } = &expected[draws.below(2) as usize];
    let (kind, wanted) = &results[draws.below(3) as usize];
    let faulty = Faulty::new(seed, faults);
    let place = Place { objects: Arc::new(faulty.clone()), root: Path::from("x") };
    let whole = Place { objects: faulty.inner.clone(), root: Path::from("x") };
    add(&whole.store(), "r", 1).await.expect("nothing fails yet");
    let mut beside = tokio::task::JoinSet::new();
    for run in 0..400 {
        let mut given = given(&place, lane_of(farm).await, *plan, "r", &format!("run {run}"));
        given.format = Format::new(*kind, None).expect("each kind has a usual quality");
        let (stop, after) = (given.stop.clone(), Duration::from_millis(15 + draws.below(300)));
        let what = draws.below(3);
        let attempt = async move { given.attempt().await.0 };
        let ended = match what {
            // It crashes: whatever it was doing is cut off, its requests included.
            0 => tokio::time::timeout(after, attempt).await.ok(),
            // It is stopped, and may leave a last checkpoint.
            1 => {
                let timer = async {
                    tokio::time::sleep(after).await;
                    stop.cancel();
                    std::future::pending::<()>().await;
                };
                tokio::select! { ended = attempt => Some(ended), () = timer => None }
            }
            // It goes on while the next one takes over.
            _ => {
                beside.spawn(attempt);
                tokio::time::sleep(after).await;
                beside.try_join_next().map(|ended| ended.expect("no panic"))
            }
        };
        match ended {
            None
            | Some(Attempt::Stopped(
                Closed::Kept | Closed::Late(_) | Closed::Lost(StoreError::Superseded { .. }),
            ))
            | Some(Attempt::Store(StoreError::Store { .. })) => {}
            Some(Attempt::Done(rendered, _)) => {
                assert_same(&rendered, undisturbed, &format!("seed {seed}, run {run}"));
            }
            // Whoever made it, everything of it is there, to the byte.
            Some(Attempt::Already) => {
                beside.shutdown().await;
                let made = results_of(&whole, "r").await;
                let other =
                    made.iter().zip(wanted).find(|(a, b)| a != b).map(|(a, b)| (&a.0, a.1.len(), b.1.len()));
                assert!(made == *wanted, "seed {seed}, run {run}: another result: {other:?}");
                return faulty.counts();
            }
            Some(other) => panic!("seed {seed}, run {run}: {other:?}"),
        }
    }
    panic!("seed {seed}: it never ends: {:?} {faults:?}", faulty.counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_store_does_no_manifest_is_wrong_and_the_bytes_are_right() {
    let farm = farm();
    let lane = lane_of(&farm).await;
    let expected = [
        Expected::of(&farm, lane.clone(), PlanKind::Balanced).await,
        Expected::of(&farm, lane, PlanKind::Paper).await,
    ];
    let seed = std::env::var("GIGASMITH_FAULT_SEED").ok().and_then(|s| s.parse().ok());
    let seeds = seed.map_or(0..schedules(), |seed: u64| seed..seed + 1);
    let mut total = common::faulty::Counts::default();
    for seed in seeds {
        // Shown with a failure; GIGASMITH_FAULT_SEED replays it.
        println!("seed {seed}");
        let counts = faults(seed, &farm, &expected).await;
        total.manifests += counts.manifests;
        total.torn += counts.torn;
        total.lost_answers += counts.lost_answers;
        total.refused += counts.refused;
        total.stale += counts.stale;
        total.deleted += counts.deleted;
    }
    println!("{total:?}");
    if seed.is_none() {
        let came =
            [total.manifests, total.torn, total.lost_answers, total.refused, total.stale, total.deleted];
        assert!(came.iter().all(|n| *n > 10), "every kind of fault came: {total:?}");
    }
    farm.stop().await;
}

/// What kills its process again and again from the same point is held back; what gets further is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_render_that_never_gets_further_is_stuck_after_three_starts() {
    let farm = farm();
    let place = Place { objects: Arc::new(InMemory::new()), root: Path::from("x") };
    add(&place.store(), "r", 1).await.expect("the id is free");
    let start = async |stop_after| {
        let mut given = given(&place, lane_of(&farm).await, PlanKind::Balanced, "r", "again");
        (given.most_starts, given.stop_after) = (Some(3), stop_after);
        // No checkpoint but the first of a stage.
        given.options.every = Duration::from_secs(3600);
        given
    };
    let crash = async || {
        let given = start(usize::MAX).await;
        let some = given.some.clone();
        // Dropped in the middle, as a crash leaves it.
        tokio::select! {
            ended = given.attempt() => panic!("{:?}", ended.0),
            () = some.notified() => {}
        }
    };
    let mut stuck = None;
    for crashes in 1..20 {
        crash().await;
        let state = place.store().read("r").await.unwrap().expect("it is there").state;
        if state.starts.count >= 3 {
            stuck = Some(crashes);
            break;
        }
    }
    assert!(stuck.is_some_and(|crashes| crashes >= 3), "{stuck:?}");
    assert!(matches!(start(usize::MAX).await.attempt().await.0, Attempt::Stuck(3)));
    // A start that a person makes is not counted, and one that ends by itself clears the count.
    let mut given = start(30).await;
    given.most_starts = None;
    assert!(matches!(given.attempt().await.0, Attempt::Stopped(Closed::Kept)));
    let ended = start(usize::MAX).await.attempt().await.0;
    assert!(matches!(ended, Attempt::Done(..)), "{ended:?}");
    farm.stop().await;
}

/// The text is the same in every checkpoint: should it be damaged, it is encoded again.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_text_costs_no_patches() {
    let (farm, plan) = (farm(), PlanKind::Balanced);
    let expected = undisturbed(lane_of(&farm).await, &spec(plan)).await;
    let place = Place { objects: Arc::new(InMemory::new()), root: Path::from("x") };
    left(&place, &farm, plan, "r").await;
    let manifests = place.names("r/checkpoints").await;
    let text = place.manifest(manifests.last().unwrap()).await.conditioning;
    let path = Path::from(format!("x/renders/r/blobs/{text}"));
    place.objects.put(&path, b"damage".to_vec().into()).await.unwrap();
    let model = farm.farm().model().await.unwrap();
    let restored = place.store().restore("r", &spec(plan), &model).await.unwrap();
    assert!(restored.damage[0].contains(&text.to_string()), "{:?}", restored.damage);
    assert!(restored.start.conditioning.is_none() && restored.start.position.stage() == Some(2));
    let (attempt, _) = given(&place, lane_of(&farm).await, plan, "r", "b").attempt().await;
    let Attempt::Done(rendered, _) = attempt else { panic!("{attempt:?}") };
    assert_same(&rendered, &expected, "with its text encoded again");
    farm.stop().await;
}

/// Pictures above a megapixel, which are decoded and encoded in seamless tiles: two stages of them.
fn large_spec() -> RenderSpec {
    let large = |width, height, slider| UpscaleSpec { size: ImageSize { width, height }, slider };
    RenderSpec {
        upscales: vec![large(1040, 1012, 1), large(1064, 1104, 2)],
        steps: 2,
        vae: VaeMode::Seamless,
        ..spec(PlanKind::Balanced)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seamless_pictures_come_out_alike_wherever_they_were_interrupted() {
    let farm = common::farm_with(|| Ok(Box::new(Fake::new())));
    let spec = large_spec();
    let expected = undisturbed(lane_of(&farm).await, &spec).await;
    // The statistics that tiles share are in every pixel.
    let published = RenderSpec { vae: VaeMode::Auto, ..spec.clone() };
    let other = undisturbed(lane_of(&farm).await, &published).await;
    assert!(other.picture.to_picture().unwrap() != expected.picture.to_picture().unwrap());
    let place = Place { objects: Arc::new(InMemory::new()), root: Path::default() };
    add(&place.store(), "large", 1).await.expect("the id is free");
    let (mut stops, mut decodings, mut draws) = (0, BTreeSet::new(), Draws(5));
    let rendered = loop {
        let mut given =
            given(&place, lane_of(&farm).await, PlanKind::Balanced, "large", &format!("run {stops}"));
        (given.spec, given.counts_tiles) = (spec.clone(), true);
        // Enough to measure and to encode, which is begun again.
        given.stop_after = 40 + draws.below(460) as usize;
        match given.attempt().await.0 {
            Attempt::Done(rendered, _) => break rendered,
            Attempt::Stopped(Closed::Kept) => stops += 1,
            other => panic!("{other:?}"),
        }
        let newest = place.names("large/checkpoints").await.into_iter().max().expect("there is one");
        let manifest = place.manifest(&newest).await;
        if let ManifestAt::Decoding { bands, norms, .. } = &manifest.at {
            assert!(norms.is_some() || manifest.stage == 0, "a large picture has shared statistics");
            decodings.insert((manifest.stage, bands.len()));
        }
        assert!(stops < 100, "it goes on");
    };
    assert_same(&rendered, &expected, "large");
    assert!(decodings.len() > 1 && stops > 4, "{stops} stops, in decodings {decodings:?}");
}

/// A panorama, whose base is larger than a window: left inside the base's steps, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_in_windows_is_gone_on_with_inside_a_step() {
    let farm = farm();
    for plan in [PlanKind::Balanced, PlanKind::Paper] {
        let size = |width, height| ImageSize { width, height };
        let upscales = vec![UpscaleSpec { size: size(512, 128), slider: 2 }];
        let spec = RenderSpec { base: size(256, 64), base_in_windows: true, upscales, ..spec(plan) };
        let model = lane_of(&farm).await.model().clone();
        assert!(
            StagePlans::drawn(&spec, &model).counts()[0] > 2 * u64::from(spec.steps),
            "several windows a step"
        );
        let expected = undisturbed(lane_of(&farm).await, &spec).await;
        let at_once = RenderSpec { base_in_windows: false, ..spec.clone() };
        let other = undisturbed(lane_of(&farm).await, &at_once).await;
        assert!(other.picture.to_picture().unwrap() != expected.picture.to_picture().unwrap());
        let place = Place { objects: Arc::new(InMemory::new()), root: Path::default() };
        add(&place.store(), "wide", 1).await.expect("the id is free");
        let (mut stops, mut inside) = (0, 0);
        let rendered = loop {
            let mut given = given(&place, lane_of(&farm).await, plan, "wide", &format!("run {stops}"));
            (given.spec, given.stop_after) = (spec.clone(), 3);
            match given.attempt().await.0 {
                Attempt::Done(rendered, _) => break rendered,
                Attempt::Stopped(Closed::Kept) => stops += 1,
                other => panic!("{other:?}"),
            }
            let newest = place.names("wide/checkpoints").await.into_iter().max().expect("there is one");
            let manifest = place.manifest(&newest).await;
            inside += u32::from(manifest.stage == 0 && matches!(manifest.at, ManifestAt::Sampling { .. }));
            assert!(stops < 100, "it goes on");
        };
        assert_same(&rendered, &expected, "wide");
        assert!(inside > 2, "{inside} of {stops} stops inside the base");
    }
    farm.stop().await;
}

/// A picture for a base, and a first stage without guided steps.
#[tokio::test(flavor = "multi_thread")]
async fn every_stage_is_guided_by_the_one_before_after_an_interruption_too() {
    let farm = farm();
    let size = ImageSize { width: 64, height: 64 };
    let picture = Picture::new(size, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect());
    let mut spec = RenderSpec { image_hash: Some("a picture".into()), ..spec(PlanKind::Balanced) };
    spec.upscales[0].slider = 0;
    let lane = lane_of(&farm).await;
    let whole = render(lane.clone(), &spec, Some(picture.clone()), &mut ()).await.expect("it renders");
    // By hand: the first stage alone, and the second from its latent.
    let first = RenderSpec { upscales: spec.upscales[..1].to_vec(), ..spec.clone() };
    let first = render(lane.clone(), &first, Some(picture.clone()), &mut ()).await.expect("it renders");
    let latent = first.latent.clone().expect("a stage ran");
    let position = Position::Decoding { stage: 1, latent, decoded: Default::default() };
    let start = Start { conditioning: None, position };
    let (mut progress, mut journal) = ((), ());
    let mut course = Course::new(&mut progress, &mut journal, CancellationToken::new());
    let second =
        render_from(lane.clone(), (&spec, StagePlans::drawn(&spec, lane.model())), start, &mut course).await;
    assert_same(&whole, &second.expect("it renders"), "the second stage");
    farm.stop().await;
}

/// A stage that an earlier program had finished, before there were checkpoints.
#[tokio::test(flavor = "multi_thread")]
async fn stages_kept_by_earlier_programs_are_gone_on_from() {
    let farm = farm();
    let (lane, spec) = (lane_of(&farm).await, spec(PlanKind::Balanced));
    let model = lane.model().clone();
    let place = Place { objects: Arc::new(InMemory::new()), root: Path::from("x") };
    add(&place.store(), "r", 1).await.unwrap();
    let base = RenderSpec { upscales: vec![], ..spec.clone() };
    let latent = undisturbed(lane.clone(), &base).await.latent.expect("a stage ran");
    let settings = gigasmith_coordinator::output::Settings::new(spec.clone());
    let bytes = gigasmith_coordinator::output::encode_latents(&latent, &settings).unwrap();
    place.objects.put(&Path::from("x/renders/r/stages/0.safetensors"), bytes.into()).await.unwrap();
    let restored = place.store().restore("r", &spec, &model).await.unwrap();
    assert!(matches!(restored.start.position, Position::Decoding { stage: 0, .. }));
    let (attempt, _) = given(&place, lane.clone(), PlanKind::Balanced, "r", "a").attempt().await;
    let Attempt::Done(rendered, _) = attempt else { panic!("{attempt:?}") };
    assert_same(&rendered, &undisturbed(lane, &spec).await, "from an old stage");
    farm.stop().await;
}
