//! The embedded worker as the command line configures it.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use gigasmith_proto::domain::Dtype;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::device::{DeviceThread, StartError};
use gigasmith_worker::model::{self, DeviceChoice, HubOptions, LoadError, LoadOptions, ModelSource};
use gigasmith_worker::session::SessionOptions;

use super::failure::Failure;
use crate::embedded::EmbeddedFarm;

/// Tasks in flight to the embedded worker: one computed, one waiting.
const SLOTS: u32 = 2;

/// Which device, and what it computes in.
#[derive(Debug, Clone, Args)]
pub(super) struct WorkerArgs {
    /// Device: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub(super) device: DeviceChoice,
    /// Number format of the noise predictor; f32 on a CPU and f16 on a GPU unless given.
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub(super) dtype: Option<DtypeArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DtypeArg {
    F32,
    F16,
    Bf16,
}

/// Loads a model, downloading it where need be, and starts a farm of one on it.
pub(super) async fn start(source: ModelSource, args: &WorkerArgs) -> Result<EmbeddedFarm, Failure> {
    let dtype = args.dtype.map(|d| match d {
        DtypeArg::F32 => Dtype::F32,
        DtypeArg::F16 => Dtype::F16,
        DtypeArg::Bf16 => Dtype::Bf16,
    });
    let options = LoadOptions { device: args.device, dtype, hub: HubOptions::from_env() };
    let load = move || model::load(&source, &options).map(|model| Box::new(model) as Box<dyn Backend>);
    // Minutes, where there is something to download: Ctrl-C must get through meanwhile.
    let loaded = tokio::task::spawn_blocking(|| DeviceThread::start(load)).await;
    let device = loaded.map_err(|e| Failure::render(format!("loading the model broke off: {e}")))?;
    let device = device.map_err(|e: StartError<LoadError>| Failure::Model(e.to_string()))?;
    let name = device.description().numeric_class.backend.clone();
    let session = SessionOptions { name: "embedded".into(), device: name, slots: SLOTS };
    Ok(EmbeddedFarm::start(Arc::new(device), session))
}
