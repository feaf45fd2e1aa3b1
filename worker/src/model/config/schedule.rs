//! `scheduler/scheduler_config.json`: the noise schedule the model was trained with. Any
//! scheduler's file will do; what is missing takes the DDIM scheduler's defaults.

use gigasmith_proto::domain::{BetaSchedule, PredictionType, ScheduleConfig, TimestepSpacing};
use serde_json::json;

use super::Reader;
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// More than any model is trained on.
const MAX_TIMESTEPS: u32 = 65_535;

/// Reads the schedule.
pub(crate) fn read_schedule(files: &ModelFiles) -> Result<ScheduleConfig, LoadError> {
    let r = Reader::open(files, "scheduler/scheduler_config.json")?;
    r.require("trained_betas", &[])?;
    r.require("rescale_betas_zero_snr", &[json!(false)])?;
    let schedule = ScheduleConfig {
        beta_start: beta(&r, "beta_start", 0.0001)?,
        beta_end: beta(&r, "beta_end", 0.02)?,
        beta_schedule: match r.str_or("beta_schedule", "linear")? {
            "linear" => BetaSchedule::Linear,
            "scaled_linear" => BetaSchedule::ScaledLinear,
            _ => return Err(r.error("beta_schedule", "only \"linear\" or \"scaled_linear\" is supported")),
        },
        num_train_timesteps: r.usize_or("num_train_timesteps", 1000)? as u32,
        steps_offset: r.usize_or("steps_offset", 0)? as u32,
        timestep_spacing: match r.str_or("timestep_spacing", "leading")? {
            "leading" => TimestepSpacing::Leading,
            "trailing" => TimestepSpacing::Trailing,
            "linspace" => TimestepSpacing::Linspace,
            _ => {
                let known = "only \"leading\", \"trailing\" or \"linspace\" is supported";
                return Err(r.error("timestep_spacing", known));
            }
        },
        prediction_type: match r.str_or("prediction_type", "epsilon")? {
            "epsilon" => PredictionType::Epsilon,
            "v_prediction" => PredictionType::VPrediction,
            _ => {
                return Err(r.error("prediction_type", "only \"epsilon\" or \"v_prediction\" is supported"));
            }
        },
    };
    if !(1..=MAX_TIMESTEPS).contains(&schedule.num_train_timesteps) {
        return Err(r.error("num_train_timesteps", format!("1 to {MAX_TIMESTEPS} is needed")));
    }
    if schedule.steps_offset >= schedule.num_train_timesteps {
        return Err(r.error("steps_offset", "a number below num_train_timesteps is needed"));
    }
    Ok(schedule)
}

fn beta(r: &Reader, key: &str, default: f64) -> Result<f64, LoadError> {
    let value = r.f64_or(key, default)?;
    if value > 0.0 && value < 1.0 {
        Ok(value)
    } else {
        Err(r.error(key, "a number between 0 and 1 is needed"))
    }
}
