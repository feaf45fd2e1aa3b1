//! How a render scales over workers: the synthetic model at a fixed latency, over TCP on this machine.
//!
//! `cargo bench -p gigasmith-tests --bench scaling -- [LATENCY_MS] [SIZE] [STEPS] [WORKERS,...]` (250, 8192,
//! 50 and 8,64 when nothing is given) renders one upscale stage from a flat picture and prints, per plan
//! and worker count, wall time, speed-up against one worker, the ideal, and what a barrier after every
//! step would allow. One worker's time is calls x latency.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gigasmith_coordinator::farm::{Farm, service};
use gigasmith_coordinator::render::{RenderInputs, render};
use gigasmith_coordinator::sampler::plan::{Geometry, Plan, PlanKind};
use gigasmith_coordinator::sampler::resize::Picture;
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::{ImageSize, Step};
use gigasmith_coordinator::spec::{Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, UpscaleSpec};
use gigasmith_proto::domain::ModelDescription;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::session::{self, SessionOptions};
use gigasmith_worker::synthetic::Synthetic;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

const SEED: u64 = 1;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |s| s.parse());
    let (latency, size, steps) =
        (Duration::from_millis(number(0, 250)?), number(1, 8192)? as u32, number(2, 50)? as u32);
    let counts = args
        .get(3)
        .map_or("8,64", String::as_str)
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()?;
    println!("{size}x{size}, {steps} steps, {latency:?} a patch\n");
    println!(
        "{:<9} {:>7} {:>6} {:>9} {:>9} {:>6} {:>13}",
        "plan", "workers", "calls", "wall s", "speed-up", "ideal", "with barrier"
    );
    for kind in [PlanKind::Balanced, PlanKind::Paper] {
        for &workers in &counts {
            let (calls, barrier) = plan_figures(kind, size, steps, workers);
            let wall = run(kind, size, steps, workers, latency).await?;
            let speed_up = calls as f64 * latency.as_secs_f64() / wall.as_secs_f64();
            let name = format!("{kind:?}").to_lowercase();
            println!(
                "{name:<9} {workers:>7} {calls:>6} {:>9.1} {speed_up:>8.1}x {workers:>5}x {barrier:>12.1}x",
                wall.as_secs_f64()
            );
        }
    }
    Ok(())
}

fn spec(model: &ModelDescription, kind: PlanKind, size: u32, steps: u32) -> RenderSpec {
    let square = |side| ImageSize { width: side, height: side };
    // The publication's slider for later stages: 30 of 50 steps.
    let upscales = vec![UpscaleSpec { size: square(size), slider: steps * 3 / 5 }];
    RenderSpec {
        version: SPEC_VERSION,
        prompt: "scaling".into(),
        negative_prompt: None,
        model: ModelSpec::of(model),
        base: square(64),
        upscales,
        steps,
        guidance_scale: 7.5,
        pag: None,
        seed: SEED,
        plan: kind,
        plan_hash: None,
        rng: Rng::Philox,
        crops: Crops::True,
        vae: VaeMode::Tiled,
        image_hash: Some("flat".into()),
    }
}

/// Network calls of the stage, and the speed-up that waiting for every step to end would allow.
fn plan_figures(kind: PlanKind, size: u32, steps: u32, workers: usize) -> (usize, f64) {
    let canvas = ImageSize { width: size, height: size }.latent(8);
    let plan = Plan::draw(kind, Geometry::new(canvas, 128), steps as usize, SEED, 1);
    let rounds: usize = (0..steps).map(|s| plan.step(Step(s)).count().div_ceil(workers)).sum();
    (plan.len(), plan.len() as f64 / rounds as f64)
}

/// Wall time of the stage's patches, from the first handed out to the last committed.
async fn run(
    kind: PlanKind,
    size: u32,
    steps: u32,
    workers: usize,
    latency: Duration,
) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let (farm, shutdown) = (Farm::start(), CancellationToken::new());
    let server = tokio::spawn(service::serve(
        farm.clone(),
        TcpListenerStream::new(listener),
        shutdown.clone().cancelled_owned(),
    ));
    for i in 0..workers {
        let device = DeviceThread::start(move || {
            Ok::<_, std::convert::Infallible>(Box::new(Synthetic::new(latency)) as Box<dyn Backend>)
        })?;
        let channel = Endpoint::from_shared(address.clone())?.connect().await?;
        let options = SessionOptions { name: format!("w{i}"), device: "synthetic".into(), slots: 2 };
        tokio::spawn(session::serve(channel, Arc::new(device), options, shutdown.clone()));
    }
    let model = farm.model().await?;
    while farm.roster().workers < workers {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let side = ImageSize { width: 64, height: 64 };
    let picture = Picture::new(side, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect());
    let inputs = RenderInputs { picture: Some(picture), plans: None };
    let mut clock = Clock::default();
    render(&farm, &spec(&model, kind, size, steps), inputs, &mut clock).await?;
    shutdown.cancel();
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
    fn stage(&mut self, _: u32, _: u32, _: ImageSize, _: usize) {
        self.started = Some(Instant::now());
    }

    fn patches(&mut self, _: usize) {
        self.ended = Some(Instant::now());
    }
}
