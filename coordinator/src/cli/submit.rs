//! `gigasmith submit`: a render for a farm.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::{Args, ValueEnum};
use gigasmith_proto::domain::Identifier;
use gigasmith_proto::v1;
use gigasmith_worker::cli::DtypeArg;
use gigasmith_worker::connect::ConnectArgs;
use gigasmith_worker::model::DeviceChoice;

use super::client::Client;
use super::download::Download;
use super::failure::Failure;
use super::files::{ClobberArgs, FileArgs, QualityArgs, format_of};
use super::follow::{ended, follow, goes_on};
use super::kept::quoted;
use super::settings::{Asked, PictureArgs};
use super::{interrupted, manage, print, tell};
use crate::jobs::{JobError, is_name};
use crate::output::{Format, Kind};
use crate::request::RenderRequest;

/// Arguments of `gigasmith submit`.
#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// What to call the render: its id. The next free one unless given; with several seeds each is
    /// appended.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Renders of higher priority go first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Only workers that compute on this kind of device: cpu, cuda or metal; auto is any.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Only workers whose noise predictor computes in this format.
    #[arg(long, value_enum, value_name = "DTYPE", ignore_case = true)]
    dtype: Option<DtypeArg>,
    /// Let workers of any numeric class take part whose results lie close: faster, but the bytes then
    /// depend on who computed what.
    #[arg(long)]
    mix: bool,
    /// Follow the render until it ends.
    #[arg(short, long)]
    wait: bool,
    /// The picture to write when it is done, .png, .tif or .dzi; implies --wait.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The picture's format, where no --output says it.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "output")]
    format: Option<FormatArg>,
    #[command(flatten)]
    quality: QualityArgs,
    /// Write the last stage's latents when it is done; implies --wait.
    #[arg(long, value_name = "FILE.safetensors")]
    save_latents: Option<PathBuf>,
    /// Write the plan of the upscale stages when it is done; implies --wait.
    #[arg(long, value_name = "FILE.json")]
    save_plan: Option<PathBuf>,
    #[command(flatten)]
    clobber: ClobberArgs,
    /// Print a line of JSON for each render that was accepted, instead of its id.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    Png,
    Tif,
    Dzi,
}

impl SubmitArgs {
    fn format(&self) -> Result<Format, Failure> {
        let kind = match self.format {
            None | Some(FormatArg::Png) => Kind::Png,
            Some(FormatArg::Tif) => Kind::Tif,
            Some(FormatArg::Dzi) => Kind::Dzi,
        };
        let format = match &self.output {
            Some(output) => return format_of(output, self.quality.quality),
            None => Format::new(kind, self.quality.quality),
        };
        format.map_err(Failure::usage)
    }

    /// Which files to write, and which part of the render each of them is.
    fn files(&self) -> Vec<(v1::FetchedPart, &PathBuf)> {
        use v1::FetchedPart::{Latents, Picture, Plan};
        let files = [(Picture, &self.output), (Latents, &self.save_latents), (Plan, &self.save_plan)];
        files.into_iter().filter_map(|(part, path)| Some((part, path.as_ref()?))).collect()
    }
}

/// A render that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Accepted {
    seed: u64,
    id: String,
}

/// Submits one render per seed.
pub(super) async fn run(args: SubmitArgs) -> Result<(), Failure> {
    let asked = args.picture.read()?;
    let output = args.output.clone().unwrap_or_else(|| "out.png".into());
    let files = FileArgs {
        output,
        quality: args.quality,
        save_latents: args.save_latents.clone(),
        save_plan: args.save_plan.clone(),
        clobber: args.clobber,
    };
    if let Some(name) = args.name.as_ref().filter(|name| !is_name(name)) {
        return Err(Failure::usage(JobError::Name(name.clone())));
    }
    let format = args.format()?;
    if !args.files().is_empty() {
        files.check(&asked.seeds)?;
    }
    let request = RenderRequest {
        backend: match args.device {
            DeviceChoice::Auto => None,
            DeviceChoice::Cpu => Some("cpu".to_owned()),
            DeviceChoice::Cuda(_) => Some("cuda".to_owned()),
            DeviceChoice::Metal => Some("metal".to_owned()),
        },
        dtype: args.dtype.map(Into::into),
        mix: args.mix,
        format,
        model: farm_model(&asked.request.model),
        ..asked.request.clone()
    };
    let accepted = Mutex::new(Vec::new());
    let work = async {
        let mut client = Client::connect(&args.connect).await?;
        args.submit(&mut client, &asked, &request, &accepted).await?;
        if !args.wait && args.files().is_empty() {
            return Ok(());
        }
        let accepted = accepted.lock().expect("no holder panics").clone();
        args.follow(&mut client, &asked, accepted).await
    };
    tokio::select! {
        done = work => done,
        signal = interrupted() => {
            signal.map_err(|e| Failure::render(format!("cannot listen for signals: {e}")))?;
            let accepted = accepted.lock().expect("no holder panics").clone();
            Err(args.left(&asked, &accepted))
        }
    }
}

impl SubmitArgs {
    /// Gives the farm a render for each seed, and notes which it has accepted.
    async fn submit(
        &self,
        client: &mut Client,
        asked: &Asked,
        request: &RenderRequest,
        accepted: &Mutex<Vec<Accepted>>,
    ) -> Result<(), Failure> {
        for &seed in &asked.seeds.0 {
            let id = match (&self.name, asked.seeds.0.len()) {
                (None, _) => String::new(),
                (Some(name), 1) => name.clone(),
                (Some(name), _) => format!("{name}-{seed}"),
            };
            let settings = RenderRequest { seed, ..request.clone() };
            let picture = asked.inputs.picture.as_ref();
            let submission = v1::Submission {
                id,
                priority: self.priority,
                settings: serde_json::to_string(&settings).expect("a request is plain data"),
                plan: asked.inputs.plan.clone().unwrap_or_default(),
                picture: picture.map(|p| v1::Size { width: p.size().width, height: p.size().height }),
                key: Identifier::random().0.to_vec().into(),
            };
            let (render, warnings) = client.submit(submission, picture).await?;
            accepted.lock().expect("no holder panics").push(Accepted { seed, id: render.id.clone() });
            warnings.iter().for_each(|w| tell(&format!("warning: {w}")));
            match self.json {
                true => print(&manage::json(&render).to_string())?,
                false => print(&render.id)?,
            }
            if !render.reason.is_empty() && !self.quiet {
                tell(&format!("{} waits: {}", render.id, render.reason));
            }
        }
        Ok(())
    }

    /// Follows the renders to their ends, and writes what they made.
    async fn follow(
        &self,
        client: &mut Client,
        asked: &Asked,
        accepted: Vec<Accepted>,
    ) -> Result<(), Failure> {
        let mut failed: Option<Failure> = None;
        for Accepted { seed, id } in accepted {
            // The others may still come out well.
            if let Err(failure) = ended(&follow(client, &id, self.quiet).await?) {
                if let Some(earlier) = failed.replace(failure) {
                    tell(&format!("gigasmith: {earlier}"));
                }
                continue;
            }
            for (part, path) in self.files() {
                let path = asked.seeds.file(path, seed);
                save(client, &id, part, &path, self.quiet).await?;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What to say to somebody who waits no longer: how to get what was asked for.
    fn left(&self, asked: &Asked, accepted: &[Accepted]) -> Failure {
        let commands: Vec<String> = accepted
            .iter()
            .flat_map(|Accepted { seed, id }| {
                self.files().into_iter().map(move |(part, path)| {
                    let part = match part {
                        v1::FetchedPart::Latents => " --part latents",
                        v1::FetchedPart::Plan => " --part plan",
                        _ => "",
                    };
                    let path = asked.seeds.file(path, *seed);
                    format!("`gigasmith fetch {id}{part} -o {}`", quoted(&path.display().to_string()))
                })
            })
            .collect();
        let ids: Vec<&str> = accepted.iter().map(|a| a.id.as_str()).collect();
        goes_on(&ids, &commands)
    }
}

/// What workers call a model: a folder by its last name.
fn farm_model(name: &str) -> String {
    use gigasmith_worker::model::ModelSource;
    ModelSource::parse(name).map_or_else(|_| name.to_owned(), |source| source.name())
}

/// Fetches a part of a finished render into a file.
pub(super) async fn save(
    client: &mut Client,
    id: &str,
    part: v1::FetchedPart,
    path: &Path,
    quiet: bool,
) -> Result<(), Failure> {
    let mut download = Download::to(path);
    client.fetch(id, part, &mut download).await?;
    download.finish()?;
    if !quiet {
        tell(&format!("wrote {} ({id})", path.display()));
    }
    Ok(())
}
