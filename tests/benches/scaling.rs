//! How a render scales over workers: the synthetic model at a fixed latency, over TCP on this machine.
//!
//! `cargo bench -p gigasmith-tests --bench scaling -- [LATENCY_MS] [SIZE] [STEPS] [WORKERS,...] [PLANS,...]`
//! (250, 8192, 50, 8,64 and balanced,paper when nothing is given) renders one upscale stage from a flat
//! picture and prints, per plan and worker count, wall time, speed-up against one worker, the ideal, what
//! the plan's dependencies allow (the same decisions, simulated without any cost of the coordinator), and
//! what a barrier after every step would allow. One worker's time is calls x latency, which
//! `... -- 250 4096 2 1` checks. A worker count of the form `1+1+1+4` is an uneven farm: one worker
//! for each number, so many times as fast as LATENCY_MS says.
#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gigasmith_coordinator::estimate::AHEAD;
use gigasmith_coordinator::farm::table::{
    ClassKey, JobOptions, LeaseId, Millis, ModelKey, Requirement, Skills, TaskId, TaskTable, WorkerId,
};
use gigasmith_coordinator::farm::{Farm, FarmOptions, LaneOptions, TaskOrder, service};
use gigasmith_coordinator::net;
use gigasmith_coordinator::net::doorman;
use gigasmith_coordinator::render::render;
use gigasmith_coordinator::sampler::graph::{Frontier, Graph};
use gigasmith_coordinator::sampler::plan::{Geometry, Plan, PlanKind};
use gigasmith_coordinator::sampler::resize::Picture;
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::{ImageSize, PatchId, Step};
use gigasmith_coordinator::spec::{Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, UpscaleSpec};
use gigasmith_proto::domain::ModelDescription;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::connect::{ConnectArgs, Token};
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::lifecycle::Ask;
use gigasmith_worker::session::{self, SessionOptions};
use gigasmith_worker::synthetic::{Synthetic, SyntheticOptions};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

const SEED: u64 = 1;

/// What one run of the benchmark is given.
struct Case {
    kind: PlanKind,
    size: u32,
    steps: u32,
    latency: Duration,
    /// The speed of each worker.
    speeds: Vec<u32>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |s| s.parse());
    let (latency, size, steps) =
        (Duration::from_millis(number(0, 250)?), number(1, 8192)? as u32, number(2, 50)? as u32);
    let farms: Vec<&str> = args.get(3).map_or("8,64", String::as_str).split(',').collect();
    let plans = args.get(4).map_or("balanced,paper", String::as_str);
    println!("{size}x{size}, {steps} steps, {latency:?} a patch\n");
    println!(
        "{:<9} {:>7} {:>6} {:>9} {:>9} {:>6} {:>9} {:>13}",
        "plan", "workers", "calls", "wall s", "speed-up", "ideal", "simulated", "with barrier"
    );
    for name in plans.split(',') {
        let kind = match name {
            "balanced" => PlanKind::Balanced,
            "paper" => PlanKind::Paper,
            _ => anyhow::bail!("`{name}` is no plan: balanced or paper"),
        };
        for farm in &farms {
            let speeds = match farm.contains('+') {
                true => farm.split('+').map(str::parse).collect::<Result<Vec<u32>, _>>()?,
                false => vec![1; farm.parse()?],
            };
            let ideal: u32 = speeds.iter().sum();
            let case = Case { kind, size, steps, latency, speeds };
            let (calls, barrier) = plan_figures(&case, ideal as usize);
            let simulated = simulate(&case);
            let wall = run(&case).await?;
            let speed_up = calls as f64 * latency.as_secs_f64() / wall.as_secs_f64();
            println!(
                "{name:<9} {farm:>7} {calls:>6} {:>9.1} {speed_up:>8.2}x {ideal:>5}x {simulated:>8.2}x {barrier:>12.1}x",
                wall.as_secs_f64()
            );
        }
    }
    Ok(())
}

/// Speed-up of the same decisions where nothing but the patches takes time.
fn simulate(case: &Case) -> f64 {
    // In microseconds where the table counts milliseconds: it only compares them.
    let latency = case.latency.as_micros() as u64;
    let canvas = ImageSize { width: case.size, height: case.size }.latent(8);
    let plan = Plan::draw(case.kind, Geometry::new(canvas, 128), case.steps as usize, SEED, 1);
    let calls = plan.len();
    let mut frontier: Frontier<()> = Frontier::new(Arc::new(Graph::new(&plan, case.steps as usize * 3 / 5)));
    let mut table = TaskTable::default();
    let (model, class) = (ModelKey(0), ClassKey(0));
    let requirement = Requirement { model, class: Some(class) };
    let job = table.open_job(JobOptions { requirement, priority: 0, pause_on_failure: false });
    // Per worker: how long a patch takes it, its queue, and when the first of it ends.
    let mut workers: BTreeMap<WorkerId, (u64, VecDeque<LeaseId>, u64)> = BTreeMap::new();
    for speed in &case.speeds {
        let worker = table.join(Millis(0), Skills { model, class }, 2);
        table.set_open(worker, true, true);
        workers.insert(worker, (latency / u64::from(*speed), VecDeque::new(), 0));
    }
    let mut patches: HashMap<TaskId, PatchId> = HashMap::new();
    let (mut now, mut prepared) = (0u64, 0usize);
    let room = 4 * case.speeds.len();
    while !frontier.is_done() {
        while prepared < room {
            let Some(id) = frontier.next_ready(AHEAD as usize * room) else { break };
            let order = TaskOrder { stage: 1, position: id.0 };
            patches.insert(table.submit(job, order, "patch").expect("the job is open"), id);
            prepared += 1;
        }
        // Nobody is ever silent here.
        workers.keys().for_each(|&worker| table.hear(Millis(now), worker));
        while let Some((worker, lease, _)) = table.assign(Millis(now)) {
            let (pace, queue, ends) = workers.get_mut(&worker).expect("it joined");
            if queue.is_empty() {
                *ends = now + *pace;
            }
            queue.push_back(lease);
        }
        for (worker, lease) in table.take_withdrawn() {
            // What the device has begun runs to its end, in vain.
            let (_, queue, _) = workers.get_mut(&worker).expect("it joined");
            let first = queue.front().copied();
            queue.retain(|l| *l != lease || Some(*l) == first);
        }
        let busy = workers.iter().filter(|(_, (_, queue, _))| !queue.is_empty());
        let (&worker, _) = busy.min_by_key(|(_, (_, _, ends))| *ends).expect("somebody works");
        let (pace, queue, ends) = workers.get_mut(&worker).expect("just seen");
        now = *ends;
        let lease = queue.pop_front().expect("it is busy");
        *ends = now + *pace;
        if let Some(task) = table.leased(worker, lease) {
            table.succeed(Millis(now), worker, lease);
            frontier.complete(patches[&task], (), |_, ()| {});
            prepared -= 1;
        }
    }
    calls as f64 * latency as f64 / now as f64
}

fn spec(model: &ModelDescription, case: &Case) -> RenderSpec {
    let square = |side| ImageSize { width: side, height: side };
    // The publication's slider for later stages: 30 of 50 steps.
    let upscales = vec![UpscaleSpec { size: square(case.size), slider: case.steps * 3 / 5 }];
    RenderSpec {
        version: SPEC_VERSION,
        prompt: "scaling".into(),
        negative_prompt: None,
        model: ModelSpec::of(model),
        base: square(64),
        base_in_windows: false,
        upscales,
        steps: case.steps,
        guidance_scale: 7.5,
        pag: None,
        seed: SEED,
        plan: case.kind,
        plan_hash: None,
        rng: Rng::Philox,
        crops: Crops::True,
        vae: VaeMode::Tiled,
        image_hash: Some("flat".into()),
        wire: Default::default(),
        mix: false,
    }
}

/// Network calls of the stage, and the speed-up that waiting for every step to end would allow.
fn plan_figures(case: &Case, workers: usize) -> (usize, f64) {
    let canvas = ImageSize { width: case.size, height: case.size }.latent(8);
    let plan = Plan::draw(case.kind, Geometry::new(canvas, 128), case.steps as usize, SEED, 1);
    let rounds: usize = (0..case.steps).map(|s| plan.step(Step(s)).count().div_ceil(workers)).sum();
    (plan.len(), plan.len() as f64 / rounds as f64)
}

/// Wall time of the stage's patches, from the first handed out to the last committed.
async fn run(case: &Case) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let coordinator = format!("http://{}", listener.local_addr()?);
    // Workers are examined elsewhere: here every call counts.
    let farm = Farm::start(FarmOptions::default());
    let routes = Routes::new(service::server(farm.clone(), net::Tasks::default()));
    let incoming = doorman::incoming(listener, 4096);
    let server = tokio::spawn(net::serve(net::server(None)?, routes, incoming, CancellationToken::new()));
    let mut workers = Vec::new();
    for (i, speed) in case.speeds.iter().enumerate() {
        let options = SyntheticOptions { latency: case.latency / *speed, ..SyntheticOptions::default() };
        let device = DeviceThread::start(move || {
            Ok::<_, std::convert::Infallible>(Box::new(Synthetic::new(options)) as Box<dyn Backend>)
        })?;
        let connect = ConnectArgs {
            coordinator: coordinator.clone(),
            token_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        };
        let options = SessionOptions {
            name: format!("w{i}"),
            device: "synthetic".into(),
            slots: 2,
            coordinator: coordinator.clone(),
            reconnects: false,
        };
        let (asks, asked) = mpsc::unbounded_channel();
        let channel = connect.connect().await?;
        let session = session::serve(channel, Token::default(), Arc::new(device), options, asked);
        workers.push((asks, tokio::spawn(session)));
    }
    let model = farm.model().await?;
    farm.watch_roster().wait_for(|r| r.workers() == case.speeds.len()).await?;
    let side = ImageSize { width: 64, height: 64 };
    let picture = Picture::new(side, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect());
    let inputs = Some(picture);
    let mut clock = Clock::default();
    let lane = Arc::new(farm.lane(LaneOptions::new(model.clone())).await?);
    render(lane, &spec(&model, case), inputs, &mut clock).await?;
    for (asks, worker) in workers {
        asks.send(Ask::Drain)?;
        worker.await??;
    }
    server.abort();
    Ok(clock.ended.zip(clock.started).map(|(end, start)| end - start).unwrap_or_default())
}

/// Times the stage itself, from its first patch to its last.
#[derive(Default)]
struct Clock {
    started: Option<Instant>,
    ended: Option<Instant>,
}

impl gigasmith_coordinator::render::Progress for Clock {
    fn stage(&mut self, _: gigasmith_coordinator::render::StageBegin) {
        self.started = Some(Instant::now());
    }

    fn patches(&mut self, _: usize) {
        self.ended = Some(Instant::now());
    }
}
