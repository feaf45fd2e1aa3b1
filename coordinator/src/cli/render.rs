//! `gigasmith render`: arguments, and one picture after the other.

use std::io;
use std::time::Instant;

use clap::Args;
use gigasmith_proto::domain::ModelDescription;
use gigasmith_worker::cli::DeviceArgs;
use gigasmith_worker::model::ModelSource;
use tokio_util::sync::CancellationToken;

use super::estimate;
use super::failure::Failure;
use super::files::{FileArgs, Room, ScratchArgs, final_size, known_size};
use super::kept::{DEFAULT_STORE, KeepArgs, Keeping};
use super::print;
use super::progress::Display;
use super::settings::{Asked, PictureArgs};
use super::worker;
use crate::estimate::Budget;
use crate::output::write_bytes;
use crate::render::{Course, Progress, Start, render_from};
use crate::request::{RenderRequest, Resolved, resolve};
use crate::spec::{RenderSpec, StagePlans};
use crate::store::Outputs;

/// Arguments of `gigasmith render`.
#[derive(Debug, Args)]
pub(super) struct RenderArgs {
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    files: FileArgs,
    /// Keep checkpoints in this store, so that the render can go on after whatever stops it: a folder, file://,
    /// s3://, gs:// or az://. Only typed, or from the table [render].
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The render's id in the store, gigasmith-renders unless --store says otherwise. If it is there and
    /// unfinished, it goes on; without a name it is a new one every time. Several seeds make several renders,
    /// NAME-SEED. Only typed, or from the table [render].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    /// Do not begin what takes more: calls=5000,memory=8GB,worker-memory=12GB,disk=20GB, any of them
    /// (`gigasmith estimate` says what it takes).
    #[arg(long, value_name = "LIMITS")]
    budget: Option<Budget>,
    /// Print a line of JSON for each picture that was written.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(short, long)]
    quiet: bool,
}

impl RenderArgs {
    /// What was written, as JSON, where that is asked for. `id`: of a render that is kept.
    fn report(&self, files: &FileArgs, spec: &RenderSpec, id: Option<&str>) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let size = final_size(spec);
        let report = serde_json::json!({
            "output": files.output,
            "latents": files.save_latents,
            "plan": files.save_plan,
            "width": size.width,
            "height": size.height,
            "seed": spec.seed,
            "model": spec.model.name,
            "id": id,
        });
        print(&report.to_string())
    }

    /// Fails when it takes more than it may.
    fn check_budget(
        &self,
        spec: &RenderSpec,
        model: &ModelDescription,
        plans: &StagePlans,
    ) -> Result<(), Failure> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let keeps = self.store.is_some() || self.name.is_some();
        estimate::check_render(spec, model, plans, (&self.files, keeps), budget)
    }
}

/// Renders one picture per seed.
pub(super) async fn run(args: RenderArgs, stop: CancellationToken) -> Result<(), Failure> {
    let asked = args.picture.read()?;
    args.files.check(&asked.seeds)?;
    if args.store.is_some() || args.name.is_some() {
        return Box::pin(run_kept(args, asked, stop)).await;
    }
    tokio::select! {
        done = run_unkept(args, asked, &stop) => done,
        () = stop.cancelled() => Err(Failure::Interrupted),
    }
}

async fn run_unkept(args: RenderArgs, asked: Asked, stop: &CancellationToken) -> Result<(), Failure> {
    let scratch = args.scratch.of(&args.files.output)?;
    let room = Room { files: &args.files, scratch: &scratch, store: None, pictures: asked.seeds.0.len() };
    let known = known_size(&asked);
    known.map_or(Ok(()), |size| room.check(size))?;
    let mut display = Display::new(args.quiet);
    let mut embedded = worker::start(source(&asked)?, &args.device).await?;
    let lane = embedded.lane().await?;
    let model = lane.model().clone();
    let Resolved { spec, plans, warnings } =
        resolve(&asked.request, &asked.inputs.facts(), &model).map_err(Failure::usage)?;
    display.finish();
    warnings.iter().for_each(|w| display.warn(w));
    args.check_budget(&spec, &model, &plans)?;
    if known.is_none() {
        room.check(final_size(&spec))?;
    }
    for &seed in &asked.seeds.0 {
        let started = Instant::now();
        let spec = RenderSpec { seed, ..spec.clone() };
        let plans = plans.with_seed(seed);
        let start = Start::beginning(asked.inputs.picture.clone());
        let rendered = {
            let mut nothing = ();
            let course = Course::new(&mut display, &mut nothing, CancellationToken::new());
            let mut course = course.with_scratch(scratch.clone());
            let work = render_from(lane.clone(), (&spec, plans), start, &mut course);
            embedded.until_worker_ends(work).await??
        };
        let files = args.files.of(&asked.seeds, seed);
        let outputs =
            Outputs::of(&rendered, &spec, (args.files.format()?, &scratch)).map_err(Failure::output)?;
        drop(rendered);
        write(&files, &outputs, &mut display, stop)?;
        let seconds = started.elapsed().as_secs_f64();
        display.say(&format!("wrote {} (seed {seed}, {seconds:.1} s)", files.output.display()));
        args.report(&files, &spec, None)?;
    }
    drop(lane);
    embedded.stop().await;
    Ok(())
}

/// The same with checkpoints in a store: what is there already goes on from where it was.
async fn run_kept(args: RenderArgs, asked: Asked, stop: CancellationToken) -> Result<(), Failure> {
    let url = args.store.as_deref().unwrap_or(DEFAULT_STORE);
    let scratch = args.scratch.of(&args.files.output)?;
    let flags = worker::flags(&args.device) + &args.scratch.flag();
    let keeping = Keeping::open(url, &args.keep, (flags, scratch.clone()), stop)?;
    let room = |pictures| Room { files: &args.files, scratch: &scratch, store: keeping.folder(), pictures };
    let known = known_size(&asked);
    let format = args.files.format()?;
    let mut display = Display::new(args.quiet);
    let prepare = async {
        keeping.probe().await?;
        let names = keeping.names(args.name.as_deref(), &asked.seeds).await?;
        let pending = keeping.pending(&names).await?;
        known.map_or(Ok(()), |size| room(pending).check(size))?;
        let mut embedded = worker::start(source(&asked)?, &args.device).await?;
        let lane = embedded.lane().await?;
        Ok::<_, Failure>((embedded, lane, names, pending))
    };
    let (mut embedded, lane, names, pending) = keeping.unless_stopped(prepare).await?;
    let Resolved { spec, plans, warnings } =
        resolve(&asked.request, &asked.inputs.facts(), lane.model()).map_err(Failure::usage)?;
    display.finish();
    warnings.iter().for_each(|w| display.warn(w));
    args.check_budget(&spec, lane.model(), &plans)?;
    if known.is_none() {
        room(pending).check(final_size(&spec))?;
    }
    for (&seed, name) in asked.seeds.0.iter().zip(names) {
        let spec = RenderSpec { seed, ..spec.clone() };
        let request = RenderRequest { seed, format, ..asked.request.clone() };
        let taking = keeping.take_up(name, request, &asked.inputs, (spec, lane.model()));
        let taken = keeping.unless_stopped(Box::pin(taking)).await?;
        let files = args.files.of(&asked.seeds, seed);
        let (id, spec) = taken.about();
        keeping.finish(taken, files.clone(), (&mut embedded, &lane), &mut display).await?;
        args.report(&files, &spec, Some(&id))?;
    }
    drop(lane);
    embedded.stop().await;
    Ok(())
}

/// Where the model comes from.
pub(super) fn source(asked: &Asked) -> Result<ModelSource, Failure> {
    let name = &asked.request.model;
    ModelSource::parse(name).map_err(|error| match asked.model_is_from_picture {
        true => Failure::Model(format!(
            "the picture was made with the model `{name}`, which is no known name here: pass --model with its folder"
        )),
        false => error.into(),
    })
}

/// Writes what was asked for. Ends when it is to stop; nothing half-written stays.
pub(super) fn write(
    files: &FileArgs,
    outputs: &Outputs,
    display: &mut Display,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    display.phase("writing");
    let mut written = |done: u64, total: u64| {
        display.tiles(done as usize, total as usize);
        match stop.is_cancelled() {
            true => Err(io::Error::other("interrupted")),
            false => Ok(()),
        }
    };
    // Beside the runtime's other tasks, which hear the signals.
    tokio::task::block_in_place(|| {
        let done = outputs.write(&files.output, &mut written);
        done.map_err(|e| if stop.is_cancelled() { Failure::Interrupted } else { e.into() })?;
        if let Some(path) = &files.save_latents {
            write_bytes(path, outputs.latents().ok_or_else(no_latents)?)?;
        }
        if let Some(path) = &files.save_plan {
            write_bytes(path, outputs.plans())?;
        }
        Ok(())
    })
}

pub(super) fn no_latents() -> Failure {
    Failure::output("no stage ran, so there are no latents to save")
}
