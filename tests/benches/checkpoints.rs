//! What checkpoints cost, and how soon a render goes on.
//!
//! `cargo bench -p gigasmith-tests --bench checkpoints -- cost [SIZE] [STEPS] [LATENCY_MS] [WORKERS] [PAIRS]`
//! (8192, 50, 250, 8 and 2): a stage, then its decoding, without checkpoints and with them at the default
//! interval, in turns; wall time of each and their ratio. Ten minutes unless said otherwise.
//!
//! `... -- points [SIZE] [PATCHES,...]` (8192 and 240,1920): one process begins a stage with workers of no
//! latency and takes a checkpoint after so many patches, another goes on from the last one; the store is a
//! folder. Printed: bytes and time per checkpoint, time from `resume` to the first patch, and the
//! coordinator's peak memory as a multiple of the canvas in f32. Workers run in a process of their own.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gigasmith_coordinator::farm::{Farm, FarmOptions, LaneOptions, service};
use gigasmith_coordinator::net::{self, doorman};
use gigasmith_coordinator::render::{
    Course, Journal, Point, PointAt, Position, Progress, RenderError, StageBegin, StageFrom, Start,
    render_from,
};
use gigasmith_coordinator::request::{RenderRequest, RequestInputs};
use gigasmith_coordinator::sampler::blocks::BlockGrid;
use gigasmith_coordinator::sampler::noise::NoiseField;
use gigasmith_coordinator::sampler::patch_set::PatchSet;
use gigasmith_coordinator::sampler::philox::Purpose;
use gigasmith_coordinator::sampler::plan::{Geometry, Plan, PlanKind};
use gigasmith_coordinator::sampler::stage::SavedStage;
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::ImageSize;
use gigasmith_coordinator::spec::{Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, StagePlans, UpscaleSpec};
use gigasmith_coordinator::store::{
    self, Claim, Found, KeepOptions, Keeper, KeeperStart, NewRender, Owner, RenderStore, Tally,
};
use gigasmith_proto::domain::{Identifier, ModelDescription, WireDtype};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::connect::{ConnectArgs, Token};
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::session::{self, SessionOptions};
use gigasmith_worker::synthetic::{Synthetic, SyntheticOptions};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

const ID: &str = "bench";
/// Checkpoints that each process of `points` takes.
const CHECKPOINTS: usize = 6;
/// Denoising steps; enough that no process of `points` comes to the stage's end.
const STEPS: u32 = 250;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |s| s.parse());
    let runtime = tokio::runtime::Runtime::new()?;
    match args.first().map_or("", String::as_str) {
        "workers" => runtime.block_on(work(&args[1], number(2, 0)?, number(3, 4)? as usize)),
        "cost" => {
            let size = number(1, 8192)? as u32;
            let case = Case { size, steps: number(2, 50)? as u32 };
            let latency = number(3, 250)?;
            runtime.block_on(cost(case, latency, number(4, 8)? as usize, number(5, 2)? as usize))
        }
        "points" => {
            let size = number(1, 8192)? as u32;
            let every = args.get(2).map_or("240,1920", String::as_str);
            every.split(',').try_for_each(|every| points(size, every))
        }
        // The two processes of `points`.
        "begin" => runtime.block_on(begin(Path::new(&args[1]), number(2, 0)? as u32, number(3, 0)? as usize)),
        "resume" => {
            runtime.block_on(resume(Path::new(&args[1]), number(2, 0)? as u32, number(3, 0)? as usize))
        }
        _ => anyhow::bail!("say what to measure: `cost` or `points`"),
    }
}

/// One upscale stage of a square picture.
#[derive(Clone, Copy)]
struct Case {
    size: u32,
    steps: u32,
}

impl Case {
    fn spec(self, model: &ModelDescription) -> RenderSpec {
        let square = |side| ImageSize { width: side, height: side };
        RenderSpec {
            version: SPEC_VERSION,
            prompt: "checkpoints".into(),
            negative_prompt: None,
            model: ModelSpec::of(model),
            base: square(64),
            base_in_windows: false,
            upscales: vec![UpscaleSpec { size: square(self.size), slider: self.steps * 3 / 5 }],
            steps: self.steps,
            guidance_scale: 7.5,
            pag: None,
            seed: 1,
            plan: PlanKind::Balanced,
            plan_hash: None,
            rng: Rng::Philox,
            crops: Crops::True,
            vae: VaeMode::Tiled,
            image_hash: Some("flat".into()),
            wire: WireDtype::F32,
            mix: false,
        }
    }

    /// The beginning of the stage, with noise for a guide: no picture is ever in memory.
    fn beginning(self, model: &ModelDescription) -> Start {
        let canvas = ImageSize { width: self.size, height: self.size }.latent(model.latent_factor);
        let geometry = Geometry::new(canvas, model.patch_side as usize);
        let plan = Plan::draw(PlanKind::Balanced, geometry, self.steps as usize, 1, 1);
        let channels = model.latent_channels as usize;
        let guide = NoiseField::from_seed(1, 1, Purpose::Encode, channels).whole(canvas);
        let saved =
            SavedStage { grid: BlockGrid::of(&plan), committed: PatchSet::default(), blocks: Vec::new() };
        let from = StageFrom::Left { plan: plan.hash().into(), guide: Some(guide), saved };
        Start { conditioning: None, position: Position::Stage { stage: 1, from } }
    }
}

/// Workers in a process of their own.
struct Workers(Child);

impl Drop for Workers {
    fn drop(&mut self) {
        // They may have ended with the coordinator already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn work(coordinator: &str, latency: u64, count: usize) -> anyhow::Result<()> {
    let mut sessions = tokio::task::JoinSet::new();
    for i in 0..count {
        let options =
            SyntheticOptions { latency: Duration::from_millis(latency), ..SyntheticOptions::default() };
        let device = DeviceThread::start(move || {
            Ok::<_, std::convert::Infallible>(Box::new(Synthetic::new(options)) as Box<dyn Backend>)
        })?;
        let connect = ConnectArgs {
            coordinator: coordinator.to_owned(),
            token_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        };
        let options = SessionOptions {
            name: format!("w{i}"),
            device: "synthetic".into(),
            slots: 2,
            coordinator: coordinator.to_owned(),
            reconnects: false,
        };
        let (asks, asked) = mpsc::unbounded_channel();
        let channel = connect.connect().await?;
        sessions.spawn(async move {
            let _asks = asks;
            session::serve(channel, Token::default(), Arc::new(device), options, asked).await
        });
    }
    while sessions.join_next().await.is_some() {}
    Ok(())
}

/// A farm over TCP, with its workers.
struct Bench {
    farm: Farm,
    model: Arc<ModelDescription>,
    _workers: Workers,
}

impl Bench {
    async fn start(latency: u64, count: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let coordinator = format!("http://{}", listener.local_addr()?);
        let farm = Farm::start(FarmOptions::default());
        let routes = Routes::new(service::server(farm.clone(), net::Tasks::default()));
        tokio::spawn(net::serve(
            net::server(None)?,
            routes,
            doorman::incoming(listener, 64),
            CancellationToken::new(),
        ));
        let workers = Command::new(std::env::current_exe()?)
            .args(["workers", &coordinator, &latency.to_string(), &count.to_string()])
            .spawn()?;
        let workers = Workers(workers);
        farm.watch_roster().wait_for(|r| r.workers() == count).await?;
        let model = farm.model().await?;
        Ok(Self { farm, model, _workers: workers })
    }

    async fn run(
        &self,
        spec: &RenderSpec,
        start: Start,
        progress: &mut dyn Progress,
        journal: &mut dyn Journal,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let lane = Arc::new(self.farm.lane(LaneOptions::new(self.model.clone())).await?);
        let mut course = Course::new(progress, journal, stop);
        match render_from(lane, (spec, StagePlans::drawn(spec, &self.model)), start, &mut course).await {
            Ok(_) | Err(RenderError::Stopped) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A store in a folder, the render in it, and the right to write.
async fn taken_up(folder: &Path, who: &str) -> anyhow::Result<(RenderStore, Claim)> {
    let store = store::open(folder.to_str().expect("a plain path"))?;
    if store.read(ID).await?.is_none() {
        let new = NewRender {
            id: Some(ID.into()),
            order: 1,
            request: RenderRequest::default(),
            priority: 0,
            key: Identifier::random(),
        };
        store.add(new, &RequestInputs::default()).await?;
    }
    let claim = store.claim(ID, &Owner { incarnation: who.into(), name: who.into() }).await?;
    Ok((store, claim))
}

fn keeper(store: &RenderStore, claim: Claim, spec: &RenderSpec, found: Found, every: Duration) -> Keeper {
    Keeper::start(KeeperStart {
        metrics: Default::default(),
        store: store.clone(),
        id: ID.into(),
        claim,
        spec: spec.hash(),
        found,
        options: KeepOptions { every, ..KeepOptions::default() },
        stop: CancellationToken::new(),
    })
}

async fn cost(case: Case, latency: u64, count: usize, pairs: usize) -> anyhow::Result<()> {
    let bench = Bench::start(latency, count).await?;
    let spec = case.spec(&bench.model);
    let every = KeepOptions::default().every;
    println!(
        "{0}x{0}, {1} steps, {count} workers of {latency} ms, checkpoints every {every:?}",
        case.size, case.steps
    );
    let (mut without, mut with) = (0.0, 0.0);
    for pair in 0..pairs {
        let folder = tempfile::tempdir()?;
        let plain = async || -> anyhow::Result<f64> {
            let (start, started) = (case.beginning(&bench.model), Instant::now());
            bench.run(&spec, start, &mut (), &mut (), CancellationToken::new()).await?;
            Ok(started.elapsed().as_secs_f64())
        };
        let kept = async || -> anyhow::Result<(f64, Tally)> {
            let (store, claim) = taken_up(folder.path(), "cost").await?;
            let (start, started) = (case.beginning(&bench.model), Instant::now());
            let mut keeper = keeper(&store, claim, &spec, Found::default(), every);
            bench.run(&spec, start, &mut (), &mut keeper, CancellationToken::new()).await?;
            Ok((started.elapsed().as_secs_f64(), keeper.tally()))
        };
        // In turns, so that neither is always first.
        let (a, (b, tally)) = match pair % 2 {
            0 => (plain().await?, kept().await?),
            _ => {
                let kept = kept().await?;
                (plain().await?, kept)
            }
        };
        println!(
            "  without {a:.2} s, with {b:.2} s: {:.4} ({} checkpoints, {:.1} MB)",
            b / a,
            tally.checkpoints,
            tally.bytes as f64 / 1e6
        );
        (without, with) = (without + a, with + b);
    }
    println!("  in all: {:.4}", with / without);
    Ok(())
}

/// Runs the two processes.
fn points(size: u32, every: &str) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    println!("{size}x{size}, {STEPS} steps, a checkpoint every {every} patches");
    for phase in ["begin", "resume"] {
        let folder = folder.path().join("store");
        let status = Command::new(std::env::current_exe()?)
            .args([phase, folder.to_str().expect("a plain path"), &size.to_string(), every])
            .status()?;
        anyhow::ensure!(status.success(), "{phase} failed: {status}");
    }
    Ok(())
}

async fn begin(folder: &Path, size: u32, every: usize) -> anyhow::Result<()> {
    let bench = Bench::start(0, 4).await?;
    let case = Case { size, steps: STEPS };
    let (spec, base) = (case.spec(&bench.model), peak_memory());
    let (store, claim) = taken_up(folder, "begin").await?;
    let stop = CancellationToken::new();
    let keeper = keeper(&store, claim, &spec, Found::default(), Duration::ZERO);
    let mut journal = Counted::new(keeper, every, stop.clone());
    bench.run(&spec, case.beginning(&bench.model), &mut (), &mut journal, stop).await?;
    journal.close().await?;
    println!("  peak memory {}", peak(case, &bench.model, base));
    Ok(())
}

async fn resume(folder: &Path, size: u32, every: usize) -> anyhow::Result<()> {
    let bench = Bench::start(0, 4).await?;
    let case = Case { size, steps: STEPS };
    let (spec, base) = (case.spec(&bench.model), peak_memory());
    let started = Instant::now();
    let (store, claim) = taken_up(folder, "resume").await?;
    let restored = store.restore(ID, &spec, &bench.model).await?;
    let read = started.elapsed();
    anyhow::ensure!(restored.damage.is_empty(), "{:?}", restored.damage);
    let stop = CancellationToken::new();
    let keeper = keeper(&store, claim, &spec, restored.found, Duration::ZERO);
    let mut journal = Counted::new(keeper, every, stop.clone());
    let mut first = First { started, before: 0, first: None };
    bench.run(&spec, restored.start, &mut first, &mut journal, stop).await?;
    journal.close().await?;
    println!(
        "  resumed after {} patches: read and checked in {:.2} s, first patch after {:.2} s",
        first.before,
        read.as_secs_f64(),
        first.first.unwrap_or_default().as_secs_f64()
    );
    println!("  peak memory {}", peak(case, &bench.model, base));
    Ok(())
}

/// Notes when the first patch is done.
struct First {
    started: Instant,
    before: usize,
    first: Option<Duration>,
}

impl Progress for First {
    fn stage(&mut self, begin: StageBegin) {
        self.before = begin.done;
    }

    fn patches(&mut self, _: usize) {
        self.first.get_or_insert_with(|| self.started.elapsed());
    }
}

/// Takes a checkpoint after so many patches, and stops after some checkpoints.
struct Counted {
    keeper: Keeper,
    every: usize,
    /// Patches committed at the last checkpoint, and when it was taken.
    taken: Option<(usize, Instant)>,
    tally: Tally,
    done: usize,
    stop: CancellationToken,
}

impl Counted {
    fn new(keeper: Keeper, every: usize, stop: CancellationToken) -> Self {
        Self { keeper, every, taken: None, tally: Tally::default(), done: 0, stop }
    }

    async fn close(self) -> anyhow::Result<()> {
        let closed = self.keeper.close(Duration::from_secs(60)).await;
        anyhow::ensure!(matches!(closed, store::Closed::Kept), "{closed:?}");
        Ok(())
    }
}

impl Journal for Counted {
    fn wait(&self) -> Duration {
        self.keeper.wait()
    }

    fn note(&mut self, point: Point) {
        let PointAt::Sampling { saved, .. } = &point.at else { return };
        let committed = saved.committed.len();
        let before = self.taken.map_or(0, |(patches, _)| patches);
        if self.taken.is_some() && committed < before + self.every && !self.stop.is_cancelled() {
            return;
        }
        let tally = self.keeper.tally();
        if tally.checkpoints > self.tally.checkpoints {
            let bytes = (tally.bytes - self.tally.bytes) as f64 / 1e6;
            println!("  checkpoint of {before} patches: {bytes:.1} MB");
            (self.tally, self.done) = (tally, self.done + 1);
        }
        if self.done == CHECKPOINTS {
            self.stop.cancel();
        }
        self.taken = Some((committed, Instant::now()));
        self.keeper.note(point);
    }

    fn trouble(&self) -> Option<String> {
        self.keeper.trouble()
    }
}

/// The most memory that this process has had, in MiB.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    peak.split_whitespace().next().and_then(|k| k.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The same beside the canvas in f32. `base`: before the stage.
fn peak(case: Case, model: &ModelDescription, base: f64) -> String {
    let peak = peak_memory();
    let canvas = ImageSize { width: case.size, height: case.size }.latent(model.latent_factor);
    let canvas = (canvas.area() * model.latent_channels as usize * 4) as f64 / f64::from(1 << 20);
    format!(
        "{peak:.0} MiB, {:.2} times the canvas in f32 ({canvas:.0} MiB); {:.2} times without the {base:.0} MiB \
         that the process had before",
        peak / canvas,
        (peak - base) / canvas
    )
}
