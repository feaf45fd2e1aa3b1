//! What the coordinator itself costs: patches per second with workers that take no time, and where the
//! time goes.
//!
//! `cargo bench -p gigasmith-tests --bench coordinator -- [CORES] [SIZE] [STEPS]` (1, 8192 and 20 when
//! nothing is given). First the parts of one patch (4 x 128 x 128, plan `balanced`, guided) on one thread.
//! Then a whole stage over TCP: synthetic workers of no latency in a second process, the coordinator
//! in this one on CORES processors, the workers on the others where there are any (`taskset`). Printed:
//! patches per second of wall time, patches per second of the coordinator's own processor time, and its
//! resident memory along the way, which must stay flat.
#![allow(clippy::print_stdout)]

use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gigasmith_coordinator::farm::{Farm, FarmOptions, LaneOptions, service};
use gigasmith_coordinator::net::{self, doorman};
use gigasmith_coordinator::render::render;
use gigasmith_coordinator::sampler::guidance::Guide;
use gigasmith_coordinator::sampler::noise::NoiseField;
use gigasmith_coordinator::sampler::philox::Purpose;
use gigasmith_coordinator::sampler::plan::{Geometry, Plan, PlanKind};
use gigasmith_coordinator::sampler::resize::Picture;
use gigasmith_coordinator::sampler::schedule::Schedule;
use gigasmith_coordinator::sampler::stage::{StageRun, Start};
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::ImageSize;
use gigasmith_coordinator::spec::{Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, UpscaleSpec};
use gigasmith_proto::convert::{report_from_wire, report_to_wire, task_to_wire};
use gigasmith_proto::domain::{ConditioningId, ModelDescription, NoiseTask, Task, TaskResult, WireDtype};
use gigasmith_proto::v1;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::connect::{ConnectArgs, Token};
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::session::{self, SessionOptions};
use gigasmith_worker::synthetic::{Synthetic, SyntheticOptions};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Set for the second process: where the coordinator listens.
const WORKERS_FOR: &str = "GIGASMITH_BENCH_WORKERS_FOR";
const WORKERS: usize = 4;
const SLOTS: u32 = 8;

fn main() -> anyhow::Result<()> {
    if let Ok(coordinator) = std::env::var(WORKERS_FOR) {
        return tokio::runtime::Runtime::new()?.block_on(work(coordinator));
    }
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default: u32| args.get(i).map_or(Ok(default), |s| s.parse());
    let (cores, size, steps) = (number(0, 1)? as usize, number(1, 8192)?, number(2, 20)?);
    parts(size)?;
    let all = std::thread::available_parallelism()?.get();
    pin(&std::process::id().to_string(), 0..cores.min(all));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()?;
    runtime.block_on(stage(cores, all, size, steps))
}

/// Asks the system to keep a process to some processors; where that cannot be, the figures say less.
fn pin(process: &str, cores: std::ops::Range<usize>) {
    let list = cores.map(|c| c.to_string()).collect::<Vec<_>>().join(",");
    let pinned = Command::new("taskset").args(["-a", "-p", "-c", &list, process]).output();
    if !pinned.is_ok_and(|o| o.status.success()) {
        println!("(not pinned: `taskset` is missing)");
    }
}

async fn work(coordinator: String) -> anyhow::Result<()> {
    let mut sessions = tokio::task::JoinSet::new();
    for i in 0..WORKERS {
        let device = DeviceThread::start(|| {
            let model = Synthetic::new(SyntheticOptions::default());
            Ok::<_, std::convert::Infallible>(Box::new(model) as Box<dyn Backend>)
        })?;
        let connect = ConnectArgs {
            coordinator: coordinator.clone(),
            token_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        };
        let channel = connect.connect().await?;
        let options = SessionOptions {
            name: format!("w{i}"),
            device: "synthetic".into(),
            slots: SLOTS,
            coordinator: coordinator.clone(),
            reconnects: false,
        };
        sessions.spawn(async move {
            let (_asks, asked) = mpsc::unbounded_channel();
            session::serve(channel, Token::default(), Arc::new(device), options, asked).await
        });
    }
    while sessions.join_next().await.is_some() {}
    Ok(())
}

/// Times the parts of a patch, one after the other, on this thread.
fn parts(size: u32) -> anyhow::Result<()> {
    const STEPS: u32 = 3;
    let mut synthetic = Synthetic::new(SyntheticOptions::default());
    let model = synthetic.describe().clone();
    let canvas = ImageSize { width: size, height: size }.latent(8);
    let plan = Plan::draw(PlanKind::Balanced, Geometry::new(canvas, 128), STEPS as usize, 1, 1);
    let field = |purpose| NoiseField::from_seed(1, 1, purpose, 4);
    let guide = Guide::new(field(Purpose::Encode).whole(canvas), field(Purpose::Noise));
    let start = Start::Guided { guide, slider: STEPS as usize };
    let mut run = StageRun::new(plan, Schedule::new(&model.schedule, STEPS)?, start);
    let conditioning = conditioning(&mut synthetic)?;
    let names = [
        "copying the window",
        "guidance noise, phase mixing",
        "checksum",
        "encoding",
        "decoding, checksum",
        "DDIM, chessboard, zones",
        "blending",
    ];
    let mut spent = [Duration::ZERO; 7];
    let mut patches = 0u32;
    loop {
        let mut clock = Instant::now();
        let mut lap = |i: usize, clock: &mut Instant| {
            spent[i] += clock.elapsed();
            *clock = Instant::now();
        };
        let Some(patch) = run.next_patch(1) else { break };
        lap(0, &mut clock);
        let input = run.rules().input(patch);
        // Step 0 mixes nothing: the others are what a stage consists of.
        let counts = input.step.index() > 0;
        if counts {
            lap(1, &mut clock);
        }
        let task = Task::PredictNoise(NoiseTask {
            latent: input.latent.clone(),
            wire: WireDtype::F32,
            timestep: 1,
            time_ids: [0.0; 6],
            conditioning: ConditioningId([0; 32]),
            guidance_scale: 7.5,
            pag: None,
        });
        clock = Instant::now();
        let wire = v1::Assignment { lease: 1, task: Some(task_to_wire(&task)) };
        lap(2, &mut clock);
        let sent = wire.encode_to_vec();
        lap(3, &mut clock);
        let Task::PredictNoise(task) = &task else { unreachable!("made above") };
        let noise = synthetic.predict_noise(task, &conditioning)?;
        let report = report_to_wire(1, Ok(TaskResult::Noise(noise)), WireDtype::F32).encode_to_vec();
        clock = Instant::now();
        let report = v1::Report::decode(bytes::Bytes::from(report))?;
        let (_, outcome) = report_from_wire(report)?;
        let Ok(TaskResult::Noise(noise)) = outcome else { anyhow::bail!("noise answers a patch") };
        lap(4, &mut clock);
        let outcome = run.rules().outcome(input, noise);
        if counts {
            lap(5, &mut clock);
        }
        clock = Instant::now();
        run.complete(outcome, &mut ());
        lap(6, &mut clock);
        patches += 1;
        std::hint::black_box(sent);
    }
    let guided = patches * (STEPS - 1) / STEPS;
    println!("one patch of 4 x 128 x 128 on one thread, mean of {patches}:");
    let mut total = 0.0;
    for (i, (name, spent)) in names.iter().zip(spent).enumerate() {
        let count = if matches!(i, 1 | 5) { guided } else { patches };
        let micros = spent.as_secs_f64() * 1e6 / f64::from(count);
        total += micros;
        println!("  {name:<30} {micros:>7.0} us");
    }
    println!("  {:<30} {total:>7.0} us\n", "together");
    Ok(())
}

fn conditioning(model: &mut Synthetic) -> anyhow::Result<gigasmith_proto::domain::Conditioning> {
    let text = model.encode_text("parts")?;
    Ok(gigasmith_proto::domain::Conditioning { prompt: text.states, pooled: text.pooled, negative: None })
}

/// A process that is ended with its handle.
struct Workers(Child);

impl Drop for Workers {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn stage(cores: usize, all: usize, size: u32, steps: u32) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let coordinator = format!("http://{}", listener.local_addr()?);
    let farm = Farm::start(FarmOptions::default());
    let routes = Routes::new(service::server(farm.clone(), net::Tasks::default()));
    let server = tokio::spawn(net::serve(
        net::server(None)?,
        routes,
        doorman::incoming(listener, 64),
        CancellationToken::new(),
    ));
    let workers = Command::new(std::env::current_exe()?).env(WORKERS_FOR, coordinator).spawn()?;
    let others = if cores < all { cores..all } else { 0..all };
    pin(&workers.id().to_string(), others.clone());
    let workers = Workers(workers);
    farm.watch_roster().wait_for(|r| r.workers() == WORKERS).await?;
    let model = farm.model().await?;
    let side = ImageSize { width: 64, height: 64 };
    let picture = Picture::new(side, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect());
    let inputs = Some(picture);
    let mut clock = Clock::default();
    let lane = Arc::new(farm.lane(LaneOptions::new(model.clone())).await?);
    render(lane, &spec(&model, size, steps), inputs, &mut clock).await?;
    drop(workers);
    server.abort();
    let (first, last) = (&clock.marks[0], clock.marks.last().expect("patches were done"));
    let patches = (last.done - first.done) as f64;
    let (wall, own) = ((last.at - first.at).as_secs_f64(), last.cpu - first.cpu);
    println!(
        "a stage of {size}x{size}, {steps} steps, over TCP; the coordinator on {cores} of {all} processors:"
    );
    println!("  {:.0} patches/s of wall time, {wall:.1} s in all", patches / wall);
    println!("  {:.0} patches/s of its own processor time, {:.1} processors busy", patches / own, own / wall);
    let every = (clock.marks.len() / 8).max(1);
    let memory: Vec<String> =
        clock.marks.iter().step_by(every).map(|m| format!("{:.0}", m.resident)).collect();
    println!("  resident MiB along the way: {}", memory.join(", "));
    Ok(())
}

fn spec(model: &ModelDescription, size: u32, steps: u32) -> RenderSpec {
    let square = |side| ImageSize { width: side, height: side };
    RenderSpec {
        version: SPEC_VERSION,
        prompt: "coordinator".into(),
        negative_prompt: None,
        model: ModelSpec::of(model),
        base: square(64),
        base_in_windows: false,
        upscales: vec![UpscaleSpec { size: square(size), slider: steps * 3 / 5 }],
        steps,
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

struct Mark {
    at: Instant,
    done: usize,
    cpu: f64,
    resident: f64,
}

/// Notes time, processor time and memory while patches are done.
#[derive(Default)]
struct Clock {
    marks: Vec<Mark>,
}

impl gigasmith_coordinator::render::Progress for Clock {
    fn stage(&mut self, _: gigasmith_coordinator::render::StageBegin) {
        self.marks = vec![mark(0)];
    }

    fn patches(&mut self, done: usize) {
        if self.marks.last().is_some_and(|m| m.at.elapsed() > Duration::from_millis(250)) {
            self.marks.push(mark(done));
        }
    }

    fn phase(&mut self, _: &'static str) {}
}

/// This process's processor time in seconds and resident memory in MiB, as Linux tells them.
fn mark(done: usize) -> Mark {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // Fields 14 and 15, counted after the name in parentheses, in ticks of 10 ms.
    let stat = text("/proc/self/stat");
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    let status = text("/proc/self/status");
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    let resident: f64 = resident.split_whitespace().next().and_then(|k| k.parse().ok()).unwrap_or(0.0);
    Mark { at: Instant::now(), done, cpu: ticks / 100.0, resident: resident / 1024.0 }
}
