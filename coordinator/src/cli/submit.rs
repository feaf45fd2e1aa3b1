//! `gigasmith submit`: a render for a farm.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use gigasmith_proto::v1;
use gigasmith_worker::cli::DtypeArg;
use gigasmith_worker::connect::ConnectArgs;
use gigasmith_worker::model::DeviceChoice;

use super::client::Client;
use super::download::Download;
use super::failure::Failure;
use super::follow::{ended, follow};
use super::manage;
use super::print;
use super::render::{FileArgs, QualityArgs};
use super::settings::PictureArgs;
use super::tell;
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
    #[arg(long, value_enum, value_name = "DTYPE")]
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
    /// Print what was accepted as JSON instead of the id alone.
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
            Some(output) => Format::of(output, self.quality.quality),
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

/// Submits one render per seed.
pub(super) async fn run(args: SubmitArgs) -> Result<(), Failure> {
    let asked = args.picture.read()?;
    let output = args.output.clone().unwrap_or_else(|| "out.png".into());
    let files = FileArgs {
        output,
        quality: args.quality,
        save_latents: args.save_latents.clone(),
        save_plan: args.save_plan.clone(),
    };
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
    let mut client = Client::connect(&args.connect).await?;
    let mut accepted = Vec::new();
    for &seed in &asked.seeds.0 {
        let id = match (&args.name, asked.seeds.0.len()) {
            (None, _) => String::new(),
            (Some(name), 1) => name.clone(),
            (Some(name), _) => format!("{name}-{seed}"),
        };
        let settings = RenderRequest { seed, ..request.clone() };
        let submission = v1::Submission {
            id,
            priority: args.priority,
            settings: serde_json::to_string(&settings).expect("a request is plain data"),
            plan: asked.inputs.plan.clone().unwrap_or_default(),
            picture: asked
                .inputs
                .picture
                .as_ref()
                .map(|p| v1::Size { width: p.size().width, height: p.size().height }),
        };
        let (render, warnings) = client.submit(submission, asked.inputs.picture.clone()).await?;
        warnings.iter().for_each(|w| tell(&format!("warning: {w}")));
        match args.json {
            true => print(&manage::json(&render).to_string())?,
            false => print(&render.id)?,
        }
        if !render.reason.is_empty() && !args.quiet {
            tell(&format!("{} waits: {}", render.id, render.reason));
        }
        accepted.push((seed, render.id));
    }
    if !args.wait && args.files().is_empty() {
        return Ok(());
    }
    let mut failed = None;
    for (seed, id) in accepted {
        // The others may still come out well.
        if let Err(failure) = ended(&follow(&mut client, &id, args.quiet).await?) {
            tell(&format!("gigasmith: {failure}"));
            failed = Some(failure);
            continue;
        }
        for (part, path) in args.files() {
            let path = asked.seeds.file(path, seed);
            save(&mut client, &id, part, &path, args.quiet).await?;
        }
    }
    failed.map_or(Ok(()), Err)
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
