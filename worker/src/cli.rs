//! What a user types to start a worker: the same for `gigasmith worker` and the slim `gigasmith-worker`.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use gigasmith_proto::domain::Dtype;
use gigasmith_proto::text::check_name;

use crate::connect::{ConnectArgs, ConnectError};
use crate::device::{DeviceThread, StartError};
use crate::model::{
    self, BatchChoice, DeviceChoice, HubOptions, LoadError, LoadOptions, ModelSource, Variant,
};
use crate::session::{self, Asks, Ended, SessionError, SessionOptions};

/// Which device, and what it computes in.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Device: auto, cpu, cuda, cuda:N or metal; gpu is the one this build is for.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Number format of the noise predictor; f32 on a CPU and f16 on a GPU unless given.
    #[arg(long, value_enum, value_name = "DTYPE", ignore_case = true)]
    pub dtype: Option<DtypeArg>,
    /// Patches in one call through the network: a number, or auto, for as many as a CPU can use. On a GPU the
    /// number changes the result slightly: auto is 1 there, and a resumed render keeps its own.
    #[arg(long, default_value = "auto", value_name = "N")]
    pub batch: BatchChoice,
    /// Which weights to take where a model has several: auto takes fp16 ones where there are any, else the full
    /// ones. The same on every device, so that all workers with a model hold the same one.
    #[arg(long, value_enum, default_value_t, value_name = "VARIANT")]
    pub variant: Variant,
}

/// A number format as it is typed; also by the names that PyTorch has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// 32-bit floats.
    #[value(aliases = ["fp32", "float32", "float", "full", "torch.float32"])]
    F32,
    /// Half precision.
    #[value(aliases = ["fp16", "float16", "half", "torch.float16"])]
    F16,
    /// Half precision with the range of f32.
    #[value(aliases = ["bfloat16", "torch.bfloat16"])]
    Bf16,
}

impl From<DtypeArg> for Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::Bf16,
        }
    }
}

/// Arguments of a worker.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// Where to find the coordinator.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// The model: pocket, a folder in the diffusers layout, a hub id such as
    /// stabilityai/stable-diffusion-xl-base-1.0, or synthetic, a stand-in for tests and benchmarks.
    #[arg(short, long, value_name = "MODEL", default_value = "pocket")]
    pub model: String,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// What to call this worker; made unique by the coordinator. The machine's name and the device
    /// unless given.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,
    /// Tasks held at once, computing or waiting. Two batches unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub slots: Option<u32>,
}

/// A name that coordinators accept: better refused now than when the model is loaded.
fn parse_name(name: &str) -> Result<String, String> {
    check_name(name).map(|()| name.trim().to_owned())
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerFailure {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Loading broke off.
    #[error("{0}")]
    Start(String),
    /// The coordinator cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator does not want us.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl WorkerFailure {
    /// The process's exit code: the same as `gigasmith`'s.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Load(_) | Self::Start(_) | Self::Session(SessionError::NoDevice) => 3,
            Self::Connect(ConnectError::Address(_) | ConnectError::HalfIdentity) => 2,
            Self::Connect(ConnectError::File { .. }) => 4,
            Self::Connect(ConnectError::Unreachable { .. }) | Self::Session(_) => 7,
        }
    }
}

/// Loads a model and starts the thread that owns it. Minutes, where there is something to download.
pub async fn start_device(source: ModelSource, args: &DeviceArgs) -> Result<DeviceThread, WorkerFailure> {
    let options = LoadOptions {
        device: args.device,
        dtype: args.dtype.map(Dtype::from),
        batch: args.batch,
        variant: args.variant,
        hub: HubOptions::from_env(),
    };
    let load = move || model::open(&source, &options);
    // A blocking thread of its own, so that signals get through meanwhile.
    let loaded = tokio::task::spawn_blocking(|| DeviceThread::start(load)).await;
    let loaded = loaded.map_err(|e| WorkerFailure::Start(format!("loading the model broke off: {e}")))?;
    loaded.map_err(|error| match error {
        StartError::Load(error) => WorkerFailure::Load(error),
        error @ StartError::Panicked => WorkerFailure::Start(error.to_string()),
    })
}

/// Runs a worker until it is drained. `asks` must stay open. After [`Ended::Interrupted`] the device, or a
/// download, may still be busy: the process should end without waiting for it.
pub async fn run(args: WorkerArgs, mut asks: Asks) -> Result<Ended, WorkerFailure> {
    let source = ModelSource::parse(&args.model)?;
    let (token, channel) = (args.connect.token()?, args.connect.lazy()?);
    if args.connect.shows_token() {
        tracing::warn!("the connection is not encrypted: the token can be read on the way; use https://");
    }
    tokio::select! {
        greeted = session::greet(channel.clone(), token.clone(), &args.connect.coordinator) => greeted?,
        Some(_) = asks.recv() => return Ok(Ended::Interrupted),
    }
    let device = tokio::select! {
        started = start_device(source, &args.device) => Arc::new(started?),
        Some(_) = asks.recv() => return Ok(Ended::Interrupted),
    };
    let backend = device.description().numeric_class.to_string();
    let options = SessionOptions {
        name: args.name.unwrap_or_else(|| default_name(&args.device.device.to_string(), &backend)),
        device: backend,
        slots: args.slots.unwrap_or(device.slots()),
        coordinator: args.connect.coordinator,
        reconnects: true,
    };
    tracing::info!(model = args.model, class = options.device, "the model is ready");
    let ended = session::serve(channel, token, device.clone(), options, asks).await?;
    if ended == Ended::Interrupted {
        // Dropping the last handle would wait for the device.
        std::mem::forget(device);
    } else {
        tracing::info!("drained");
    }
    Ok(ended)
}

/// The machine's name and the device.
fn default_name(device: &str, backend: &str) -> String {
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let device = if device == "auto" { backend.split('/').next().unwrap_or("device") } else { device };
    // What the system calls the machine may be no name for a worker.
    let named = format!("{host}-{}", device.replace(':', ""));
    if check_name(&named).is_ok() { named } else { format!("worker-{}", device.replace(':', "")) }
}
