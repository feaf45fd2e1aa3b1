//! `gigasmith render`: arguments, and one picture after the other.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use gigasmith_worker::cli::DeviceArgs;
use gigasmith_worker::model::ModelSource;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::kept::{DEFAULT_STORE, KeepArgs, Keeping};
use super::progress::Display;
use super::seeds::Seeds;
use super::settings::{Asked, PictureArgs};
use super::worker;
use crate::output::{Settings, check_writable, write_atomically, write_latents, write_png};
use crate::render::{Progress, RenderInputs, Rendered, render};
use crate::request::{RenderRequest, Resolved, resolve};
use crate::sampler::plan::PlanFile;
use crate::spec::RenderSpec;

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
    /// The render's id in the store, gigasmith-store unless --store says otherwise. If it is there and
    /// unfinished, it goes on; without a name it is a new one every time. Several seeds make several renders,
    /// NAME-SEED. Only typed, or from the table [render].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    keep: KeepArgs,
    /// No progress.
    #[arg(short, long)]
    quiet: bool,
}

/// Which files to write.
#[derive(Debug, Clone, Args)]
pub(super) struct FileArgs {
    /// The picture to write.
    #[arg(short, long, value_name = "FILE.png", default_value = "out.png")]
    pub(super) output: PathBuf,
    /// Write the last stage's latents.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(super) save_latents: Option<PathBuf>,
    /// Write the plan of the upscale stages.
    #[arg(long, value_name = "FILE.json")]
    pub(super) save_plan: Option<PathBuf>,
}

impl FileArgs {
    /// The files of one of the seeds.
    fn of(&self, seeds: &Seeds, seed: u64) -> Self {
        let named = |path: &Option<PathBuf>| path.as_ref().map(|p| seeds.file(p, seed));
        Self {
            output: seeds.file(&self.output, seed),
            save_latents: named(&self.save_latents),
            save_plan: named(&self.save_plan),
        }
    }

    /// Fails when a file could not be written, or two have one name: before hours of work, not after.
    pub(super) fn check(&self, seeds: &Seeds) -> Result<(), Failure> {
        if self.output.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) {
            let name = self.output.display();
            return Err(Failure::usage(format!(
                "output {name} does not end in .png: only PNG is written; name it {name}.png"
            )));
        }
        let named = [Some(&self.output), self.save_latents.as_ref(), self.save_plan.as_ref()];
        let named: Vec<&PathBuf> = named.into_iter().flatten().collect();
        if let Some(i) = (1..named.len()).find(|&i| named[..i].contains(&named[i])) {
            return Err(Failure::usage(format!(
                "two outputs are called {}: name them apart",
                named[i].display()
            )));
        }
        for &seed in &seeds.0 {
            named.iter().try_for_each(|path| check_writable(&seeds.file(path, seed)))?;
        }
        Ok(())
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
        done = run_unkept(args, asked) => done,
        () = stop.cancelled() => Err(Failure::Interrupted),
    }
}

async fn run_unkept(args: RenderArgs, asked: Asked) -> Result<(), Failure> {
    let mut display = Display::new(args.quiet);
    let mut embedded = worker::start(source(&asked)?, &args.device).await?;
    let lane = embedded.lane().await?;
    let model = lane.model().clone();
    let Resolved { spec, plans, warnings } =
        resolve(&asked.request, &asked.inputs, &model).map_err(Failure::usage)?;
    display.finish();
    warnings.iter().for_each(|w| display.warn(w));
    for &seed in &asked.seeds.0 {
        let started = Instant::now();
        let spec = RenderSpec { seed, ..spec.clone() };
        let inputs = RenderInputs { picture: asked.inputs.picture.clone(), plans: plans.clone() };
        let rendered =
            embedded.until_worker_ends(render(lane.clone(), &spec, inputs, &mut display)).await??;
        display.phase("writing");
        let files = args.files.of(&asked.seeds, seed);
        write(&files, &rendered, spec, model.patch_side as usize)?;
        let seconds = started.elapsed().as_secs_f64();
        display.say(&format!("wrote {} (seed {seed}, {seconds:.1} s)", files.output.display()));
    }
    drop(lane);
    embedded.stop().await;
    Ok(())
}

/// The same with checkpoints in a store: what is there already goes on from where it was.
async fn run_kept(args: RenderArgs, asked: Asked, stop: CancellationToken) -> Result<(), Failure> {
    let url = args.store.as_deref().unwrap_or(DEFAULT_STORE);
    let keeping = Keeping::open(url, &args.keep, worker::flags(&args.device), stop)?;
    let names = keeping.names(args.name.as_deref(), &asked.seeds)?;
    let mut display = Display::new(args.quiet);
    let prepare = async {
        keeping.probe().await?;
        let mut embedded = worker::start(source(&asked)?, &args.device).await?;
        let lane = embedded.lane().await?;
        Ok::<_, Failure>((embedded, lane))
    };
    let (mut embedded, lane) = keeping.unless_stopped(prepare).await?;
    let Resolved { spec, warnings, .. } =
        resolve(&asked.request, &asked.inputs, lane.model()).map_err(Failure::usage)?;
    display.finish();
    warnings.iter().for_each(|w| display.warn(w));
    for (&seed, name) in asked.seeds.0.iter().zip(names) {
        let spec = RenderSpec { seed, ..spec.clone() };
        let request = RenderRequest { seed, ..asked.request.clone() };
        let taking = keeping.take_up(name, request, &asked.inputs, (spec, lane.model()));
        let taken = keeping.unless_stopped(Box::pin(taking)).await?;
        let files = args.files.of(&asked.seeds, seed);
        keeping.finish(taken, files, (&mut embedded, &lane), &mut display).await?;
    }
    drop(lane);
    embedded.stop().await;
    Ok(())
}

/// Where the model comes from.
fn source(asked: &Asked) -> Result<ModelSource, Failure> {
    let name = &asked.request.model;
    ModelSource::parse(name).map_err(|error| match asked.model_is_from_picture {
        true => Failure::Model(format!(
            "the picture was made with the model `{name}`, which is no known name here: pass --model with its folder"
        )),
        false => error.into(),
    })
}

/// Writes what was asked for.
fn write(files: &FileArgs, rendered: &Rendered, spec: RenderSpec, patch_side: usize) -> Result<(), Failure> {
    let settings = Settings::new(spec);
    write_png(&files.output, &rendered.picture, &settings)?;
    if let Some(path) = &files.save_latents {
        let latent = rendered.latent.as_ref().ok_or_else(no_latents)?;
        write_latents(path, latent, &settings)?;
    }
    if let Some(path) = &files.save_plan {
        let json = PlanFile::of(&rendered.plans, patch_side).to_json();
        write_atomically(path, |file| file.write_all(&json))?;
    }
    Ok(())
}

pub(super) fn no_latents() -> Failure {
    Failure::output("no stage ran, so there are no latents to save")
}
