//! `gigasmith verify`.

use std::path::PathBuf;

use clap::Args;
use gigasmith_worker::cli::{DeviceArgs, DtypeArg};
use gigasmith_worker::model::ModelSource;

use super::failure::Failure;
use super::files::{LATENTS, check_ending};
use super::progress::Display;
use super::worker;
use super::{print, tell};
use crate::output::{WriteError, check_writable, write_bytes};
use crate::verify::{Trace, verify};

/// Arguments of `gigasmith verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The model the trace was recorded with: a folder in the diffusers layout, a hub id, or pocket.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The trace: a folder with case.json, trace.safetensors and pictures.
    #[arg(long, value_name = "DIR")]
    trace: PathBuf,
    /// Write every tensor as computed here.
    #[arg(long, value_name = "FILE.safetensors")]
    dump: Option<PathBuf>,
    /// Print every comparison as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Replays the trace and prints how it compares.
pub(super) async fn run(args: VerifyArgs) -> Result<(), Failure> {
    let trace = Trace::read(&args.trace)?;
    if let Some(path) = &args.dump {
        check_ending(path, LATENTS)?;
        check_writable(path)?;
        let record = args.trace.join("trace.safetensors").canonicalize().ok();
        if path.canonicalize().ok().is_some_and(|p| Some(p) == record) {
            return Err(Failure::usage(format!(
                "{} is the trace itself: dump to another file",
                path.display()
            )));
        }
    }
    let source = ModelSource::parse(&args.model)?;
    let mut display = Display::new(args.quiet);
    // Tolerances are those of f32, whatever a device would choose by itself.
    let device = DeviceArgs { dtype: args.device.dtype.or(Some(DtypeArg::F32)), ..args.device };
    let mut embedded = worker::start(source, &device).await?;
    let lane = embedded.lane().await?;
    let report = embedded.until_worker_ends(verify(lane, &trace, &mut display)).await??;
    display.finish();
    embedded.stop().await;
    match args.json {
        true => print(&format!("{:#}", report.json()))?,
        false => print(&report.table())?,
    }
    if let Some(path) = &args.dump {
        let dump = report.dump().map_err(|e| WriteError::new(path, e))?;
        write_bytes(path, &dump)?;
        if !args.quiet {
            tell(&format!("wrote {}", path.display()));
        }
    }
    if report.passed() { Ok(()) } else { Err(Failure::Deviation) }
}
