//! The embedded worker as the command line configures it.

use std::sync::Arc;

use gigasmith_proto::domain::Dtype;
use gigasmith_worker::cli::{DeviceArgs, start_device};
use gigasmith_worker::model::{BatchChoice, DeviceChoice, ModelSource, Variant};
use gigasmith_worker::session::SessionOptions;

use super::failure::Failure;
use crate::embedded::EmbeddedFarm;

/// The arguments as flags, where they are not the defaults.
pub(super) fn flags(args: &DeviceArgs) -> String {
    let device = match args.device {
        DeviceChoice::Auto => String::new(),
        device => format!(" --device {device}"),
    };
    let dtype = args.dtype.map(|d| format!(" --dtype {}", Dtype::from(d)));
    let batch = match args.batch {
        BatchChoice::Auto => String::new(),
        batch => format!(" --batch {batch}"),
    };
    let variant = match args.variant {
        Variant::Auto => String::new(),
        variant => format!(" --variant {}", variant.as_str()),
    };
    device + &dtype.unwrap_or_default() + &batch + &variant
}

/// Loads a model, downloading it where need be, and starts a farm of one on it.
pub(super) async fn start(source: ModelSource, args: &DeviceArgs) -> Result<EmbeddedFarm, Failure> {
    let device = start_device(source, args).await?;
    let name = device.description().numeric_class.backend.clone();
    let session = SessionOptions {
        name: "embedded".into(),
        device: name,
        slots: device.slots(),
        coordinator: "embedded".into(),
        reconnects: false,
    };
    Ok(EmbeddedFarm::start(Arc::new(device), session))
}
