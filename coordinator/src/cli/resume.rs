//! `gigasmith resume`: an interrupted render goes on, on this machine.

use std::path::{Path, PathBuf};

use clap::Args;
use gigasmith_proto::domain::Dtype;
use gigasmith_worker::cli::{DeviceArgs, DtypeArg};
use gigasmith_worker::model::{BatchChoice, DeviceChoice, ModelSource, Variant};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::files::{ClobberArgs, FileArgs, QualityArgs, Room, ScratchArgs, final_size};
use super::kept::{DEFAULT_STORE, KeepArgs, Keeping, open_existing, quoted};
use super::progress::Display;
use super::seeds::Seeds;
use super::worker;
use crate::output::Format;
use crate::spec::RenderSpec;
use crate::store::{Stored, StoredState};

/// Arguments of `gigasmith resume`.
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// The render; NAME of several seeds, NAME-1, NAME-2 and so on, means all of them.
    id: String,
    /// The store that has it: a folder, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "URL", default_value = DEFAULT_STORE)]
    store: String,
    /// The picture to write, .png, .tif or .dzi. ID.png unless given, or .tif or .dzi as the render was begun.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    quality: QualityArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    /// Write the last stage's latents.
    #[arg(long, value_name = "FILE.safetensors")]
    save_latents: Option<PathBuf>,
    /// Write the plan of the upscale stages.
    #[arg(long, value_name = "FILE.json")]
    save_plan: Option<PathBuf>,
    #[command(flatten)]
    clobber: ClobberArgs,
    /// Where its model is, if the name that the render has for it means nothing here. It must be the same.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Device: auto, cpu, cuda, cuda:N or metal; of the kind that the render was begun on unless given.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Number format of the noise predictor: the one that the render was begun in unless given.
    #[arg(long, value_enum, value_name = "DTYPE", ignore_case = true)]
    dtype: Option<DtypeArg>,
    /// Patches of one call through the network: a number, or auto; on a GPU the number that the render was
    /// begun with unless given.
    #[arg(long, value_name = "N")]
    batch: Option<BatchChoice>,
    /// Which weights to take where the model has several: auto, fp16, bf16 or full. They must be those that the render
    /// was begun with.
    #[arg(long, value_enum, default_value_t, value_name = "VARIANT")]
    variant: Variant,
    #[command(flatten)]
    keep: KeepArgs,
    /// No progress.
    #[arg(short, long)]
    quiet: bool,
}

/// Goes on with a render to its end; or with those of several seeds, one after the other.
pub(super) async fn run(args: ResumeArgs, stop: CancellationToken) -> Result<(), Failure> {
    let flags = args.flags();
    open_existing(&args.store)?;
    let scratch = args.scratch.of(args.output.as_deref().unwrap_or(Path::new(".")))?;
    let keeping = Keeping::open(&args.store, &args.keep, (flags, scratch.clone()), stop)?;
    let ids = keeping.unless_stopped(keeping.ids_of(&args.id)).await?;
    let mut display = Display::new(args.quiet);
    for id in &ids {
        let stored = keeping.unless_stopped(keeping.read(id)).await?;
        let files = args.files(id, ids.len() > 1, &stored);
        files.check(&Seeds(vec![stored.record.request.seed]))?;
        if stored.state.state == StoredState::Done {
            // Needs no model.
            keeping.unless_stopped(keeping.fetch(&stored, &files, &mut display)).await?;
            continue;
        }
        if let Some(spec) = &stored.spec {
            let room = Room { files: &files, scratch: &scratch, store: keeping.folder(), pictures: 1 };
            room.check(final_size(spec))?;
        }
        Box::pin(args.go_on(&keeping, stored, files, &mut display)).await?;
    }
    Ok(())
}

impl ResumeArgs {
    /// Goes on with one render.
    async fn go_on(
        &self,
        keeping: &Keeping,
        stored: Stored,
        files: FileArgs,
        display: &mut Display,
    ) -> Result<(), Failure> {
        let prepare = async {
            keeping.probe().await?;
            let source = self.source(&stored.record.request.model)?;
            let mut embedded = worker::start(source, &self.device(&stored.spec)).await?;
            let lane = embedded.lane().await?;
            // Its settings are what they were; what may differ is what it would go on with.
            let taken = keeping.settled(stored, None, lane.model()).await?;
            Ok((embedded, lane, taken))
        };
        let (mut embedded, lane, taken) = keeping.unless_stopped(prepare).await?;
        keeping.finish(taken, files, (&mut embedded, &lane), display).await?;
        drop(lane);
        embedded.stop().await;
        Ok(())
    }

    /// What to write of a render. `several`: with its seed in the names that were given.
    fn files(&self, id: &str, several: bool, stored: &Stored) -> FileArgs {
        let request = &stored.record.request;
        // A second seed, so that each has a name of its own.
        let seeds = Seeds(if several { vec![request.seed, request.seed] } else { vec![request.seed] });
        let named = |path: &Option<PathBuf>| path.as_ref().map(|p| seeds.file(p, request.seed));
        let asked = request.format;
        let usual = || PathBuf::from(format!("{id}.{}", asked.kind.extension()));
        let output = named(&self.output).unwrap_or_else(usual);
        let is_as_asked = Format::of(&output, None).is_ok_and(|f| f.kind == asked.kind);
        FileArgs {
            output,
            quality: QualityArgs { quality: self.quality.quality.or(is_as_asked.then_some(asked.quality)) },
            save_latents: named(&self.save_latents),
            save_plan: named(&self.save_plan),
            clobber: self.clobber,
        }
    }

    /// Flags that the command which goes on needs too.
    fn flags(&self) -> String {
        let model = self.model.as_ref().map(|m| format!(" --model {}", quoted(m)));
        let given = DeviceArgs {
            device: self.device.unwrap_or(DeviceChoice::Auto),
            dtype: self.dtype,
            batch: self.batch.unwrap_or_default(),
            variant: self.variant,
        };
        model.unwrap_or_default() + &worker::flags(&given) + &self.scratch.flag()
    }

    fn source(&self, before: &str) -> Result<ModelSource, Failure> {
        let name = self.model.as_deref().unwrap_or(before);
        ModelSource::parse(name).map_err(|error| match self.model {
            None => Failure::Model(format!(
                "the render was begun with the model `{name}`, which is no known name here: pass --model with \
                 its folder"
            )),
            Some(_) => error.into(),
        })
    }

    /// Device and number format are those that the render was begun on, unless others are given.
    fn device(&self, spec: &Option<RenderSpec>) -> DeviceArgs {
        let class = spec.as_ref().map(|s| &s.model.numeric_class);
        let dtype = class.map(|c| match c.dtype {
            Dtype::F32 => DtypeArg::F32,
            Dtype::F16 => DtypeArg::F16,
            Dtype::Bf16 => DtypeArg::Bf16,
        });
        // A stand-in is of no kind that could be asked for.
        let device = self.device.or_else(|| class?.backend.parse().ok());
        let batch = self.batch.or_else(|| Some(BatchChoice::of_class(class?)));
        DeviceArgs {
            device: device.unwrap_or(DeviceChoice::Auto),
            dtype: self.dtype.or(dtype),
            batch: batch.unwrap_or_default(),
            variant: self.variant,
        }
    }
}
