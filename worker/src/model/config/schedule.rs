//! `scheduler/scheduler_config.json`: the noise schedule the model was trained with. A key that means another
//! process is refused by name; what is not in the file is what the scheduler's class has for it in diffusers, but
//! for the betas: those of the classes are no SDXL model's.

use gigasmith_proto::domain::{BetaSchedule, PredictionType, ScheduleConfig, TimestepSpacing};
use serde_json::Value;

use super::Reader;
use super::schedulers::{self, Class, Key};
use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// More than any model is trained on.
const MAX_TIMESTEPS: u32 = 65_535;
/// What must be left of the signal's power at the last timestep: predictions are divided by its root.
const LEAST_SIGNAL: f64 = 1e-10;

/// Reads the schedule. `class`: the scheduler's, by the model's index, which wins over the file's own word as it
/// does in diffusers.
pub(crate) fn read_schedule(files: &ModelFiles, class: Class) -> Result<ScheduleConfig, LoadError> {
    let r = Reader::open(files, "scheduler/scheduler_config.json")?;
    if let Some(own) = r.get("_class_name").and_then(Value::as_str).filter(|own| *own != class.name) {
        tracing::warn!(
            "model_index.json names the scheduler {}, its own file {own:?}: the index is followed",
            class.name
        );
    }
    refuse_other_processes(&r, class)?;
    let schedule = ScheduleConfig {
        beta_start: beta(&r, "beta_start")?,
        beta_end: beta(&r, "beta_end")?,
        beta_schedule: match r.get("beta_schedule").and_then(Value::as_str) {
            Some("linear") => BetaSchedule::Linear,
            Some("scaled_linear") => BetaSchedule::ScaledLinear,
            _ => return Err(r.error("beta_schedule", "only \"linear\" or \"scaled_linear\" is supported")),
        },
        num_train_timesteps: r.usize_or("num_train_timesteps", 1000)? as u32,
        steps_offset: r.usize_or("steps_offset", 0)? as u32,
        timestep_spacing: spacing(&r, class)?,
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
    if signal_left(&schedule) < LEAST_SIGNAL {
        let expected = "no signal is left at the last timestep with betas up to that; SDXL has 0.012";
        return Err(r.error("beta_end", expected));
    }
    r.warn_unread();
    Ok(schedule)
}

/// Fails on every key that means another process than the betas say.
fn refuse_other_processes(r: &Reader, class: Class) -> Result<(), LoadError> {
    for key in r.keys() {
        match schedulers::key(key) {
            Some(Key::Harmless) => r.ignore(&[key]),
            Some(Key::Process(same))
                if r.get(key).is_some_and(|v| !same.contains(&v.to_string().as_str())) =>
            {
                let same = if same.is_empty() { "null".into() } else { same.join(" or ") };
                return Err(r.error(key, format!("it means another process; only {same} is supported")));
            }
            Some(Key::Process(_)) | None => {}
        }
    }
    // Keys that only some classes read; others carry them along.
    for (key, reads) in [("clip_sample", class.clips), ("thresholding", class.thresholds)] {
        if r.bool_or(key, false)? && reads {
            return Err(r.error(key, format!("{} would clip latents; only false is supported", class.name)));
        }
    }
    Ok(())
}

fn spacing(r: &Reader, class: Class) -> Result<TimestepSpacing, LoadError> {
    match r.get("timestep_spacing").map(Value::as_str) {
        None => Ok(class.spacing),
        Some(Some("leading")) => Ok(TimestepSpacing::Leading),
        Some(Some("trailing")) => Ok(TimestepSpacing::Trailing),
        Some(Some("linspace")) => Ok(TimestepSpacing::Linspace),
        Some(_) => {
            Err(r.error("timestep_spacing", "only \"leading\", \"trailing\" or \"linspace\" is supported"))
        }
    }
}

fn beta(r: &Reader, key: &str) -> Result<f64, LoadError> {
    match r.get(key).and_then(Value::as_f64) {
        Some(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err(r.error(key, "a number between 0 and 1 is needed, the one the model was trained with")),
    }
}

/// abar at the last timestep.
fn signal_left(schedule: &ScheduleConfig) -> f64 {
    let n = schedule.num_train_timesteps;
    let share = |i: u32| f64::from(i) / f64::from(n.max(2) - 1);
    let between = |from: f64, to: f64, i: u32| from + (to - from) * share(i);
    let (start, end) = (schedule.beta_start, schedule.beta_end);
    let beta = |i: u32| match schedule.beta_schedule {
        BetaSchedule::Linear => between(start, end, i),
        BetaSchedule::ScaledLinear => between(start.sqrt(), end.sqrt(), i).powi(2),
    };
    (0..n).map(|i| 1.0 - beta(i)).product()
}
