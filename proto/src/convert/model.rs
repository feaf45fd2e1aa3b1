//! Model descriptions.

use super::{WireError, hash, required};
use crate::domain::{
    BetaSchedule, Component, Dtype, Fingerprint, ModelDescription, NumericClass, PredictionType, Preset,
    ScheduleConfig, TimestepSpacing, VaePair,
};
use crate::text::Shown;
use crate::v1;

/// More training timesteps than any model has; steps are counted in 16 bits.
const MAX_TIMESTEPS: u32 = 65_535;

/// Puts a description on the wire.
pub fn model_to_wire(model: &ModelDescription) -> v1::Model {
    v1::Model {
        name: model.name.clone(),
        fingerprints: model
            .fingerprints
            .iter()
            .map(|(component, fingerprint)| v1::ComponentFingerprint {
                component: match component {
                    Component::Text => v1::ComponentKind::Text,
                    Component::Unet => v1::ComponentKind::Unet,
                    Component::Vae => v1::ComponentKind::Vae,
                }
                .into(),
                hash: fingerprint.0.to_vec().into(),
            })
            .collect(),
        numeric_class: Some(class_to_wire(&model.numeric_class)),
        patch_side: model.patch_side,
        latent_channels: model.latent_channels,
        latent_factor: model.latent_factor,
        scaling_factor: model.scaling_factor,
        vae_tile: model.vae_tile,
        vae_reach: Some(pair_to_wire(model.vae_reach)),
        vae_norms: Some(pair_to_wire(model.vae_norms)),
        device_bytes: model.device_bytes,
        force_zeros_for_empty_prompt: model.force_zeros_for_empty_prompt,
        schedule: Some(schedule_to_wire(&model.schedule)),
        pag_blocks: model.pag_blocks.clone(),
        native_sizes: model.native_sizes.iter().map(|&(width, height)| v1::Size { width, height }).collect(),
        preset: Some(v1::Preset {
            steps: model.preset.steps,
            guidance_scale: model.preset.guidance_scale,
            scale: model.preset.scale,
            slider_shares: model.preset.slider_shares.to_vec(),
        }),
    }
}

fn pair_to_wire(pair: VaePair) -> v1::VaePair {
    v1::VaePair { encoder: pair.encoder, decoder: pair.decoder }
}

fn pair_from_wire(pair: Option<v1::VaePair>, field: &'static str, most: u32) -> Result<VaePair, WireError> {
    let v1::VaePair { encoder, decoder } = required(pair, field)?;
    if encoder.max(decoder) > most {
        return Err(WireError::invalid(field, format!("{encoder} and {decoder}"), "no VAE has so many"));
    }
    Ok(VaePair { encoder, decoder })
}

fn class_to_wire(class: &NumericClass) -> v1::NumericClass {
    v1::NumericClass {
        backend: class.backend.clone(),
        kernels: class.kernels.clone(),
        dtype: match class.dtype {
            Dtype::F32 => v1::DtypeKind::F32,
            Dtype::F16 => v1::DtypeKind::F16,
            Dtype::Bf16 => v1::DtypeKind::Bf16,
        }
        .into(),
        algorithm: class.algorithm,
    }
}

fn schedule_to_wire(schedule: &ScheduleConfig) -> v1::Schedule {
    v1::Schedule {
        beta_start: schedule.beta_start,
        beta_end: schedule.beta_end,
        beta_schedule: match schedule.beta_schedule {
            BetaSchedule::Linear => v1::BetaScheduleKind::Linear,
            BetaSchedule::ScaledLinear => v1::BetaScheduleKind::ScaledLinear,
        }
        .into(),
        num_train_timesteps: schedule.num_train_timesteps,
        steps_offset: schedule.steps_offset,
        timestep_spacing: match schedule.timestep_spacing {
            TimestepSpacing::Leading => v1::TimestepSpacingKind::Leading,
            TimestepSpacing::Trailing => v1::TimestepSpacingKind::Trailing,
            TimestepSpacing::Linspace => v1::TimestepSpacingKind::Linspace,
        }
        .into(),
        prediction_type: match schedule.prediction_type {
            PredictionType::Epsilon => v1::PredictionKind::Epsilon,
            PredictionType::VPrediction => v1::PredictionKind::V,
        }
        .into(),
    }
}

/// Reads a description and checks that a canvas can be planned with it.
pub fn model_from_wire(model: v1::Model) -> Result<ModelDescription, WireError> {
    let fingerprints = model.fingerprints.iter().map(fingerprint_from_wire).collect::<Result<_, _>>()?;
    let preset = required(model.preset, "model.preset")?;
    let native_sizes: Vec<_> = model.native_sizes.iter().map(|s| (s.width, s.height)).collect();
    for (field, value, most, expected) in [
        ("model.patch_side", model.patch_side, 4096, "1 to 4096"),
        ("model.latent_channels", model.latent_channels, 64, "1 to 64"),
        ("model.latent_factor", model.latent_factor, 64, "1 to 64"),
        ("model.vae_tile", model.vae_tile, 1 << 16, "1 to 65536"),
        ("model.native_sizes", native_sizes.len() as u32, 1024, "1 to 1024 sizes"),
    ] {
        if !(1..=most).contains(&value) {
            return Err(WireError::invalid(field, value, expected));
        }
    }
    if model.vae_tile < model.latent_factor {
        return Err(WireError::invalid("model.vae_tile", model.vae_tile, "at least one latent pixel"));
    }
    if native_sizes.iter().any(|&(w, h)| w < model.latent_factor || h < model.latent_factor) {
        return Err(WireError::invalid(
            "model.native_sizes",
            format!("{native_sizes:?}"),
            "at least one latent pixel",
        ));
    }
    if !(model.scaling_factor.is_finite() && model.scaling_factor > 0.0) {
        return Err(WireError::invalid("model.scaling_factor", model.scaling_factor, "a number above 0"));
    }
    Ok(ModelDescription {
        name: Shown(&model.name).to_string(),
        fingerprints,
        numeric_class: class_from_wire(required(model.numeric_class, "model.numeric_class")?)?,
        patch_side: model.patch_side,
        latent_channels: model.latent_channels,
        latent_factor: model.latent_factor,
        scaling_factor: model.scaling_factor,
        vae_tile: model.vae_tile,
        vae_reach: pair_from_wire(model.vae_reach, "model.vae_reach", 1 << 10)?,
        vae_norms: pair_from_wire(model.vae_norms, "model.vae_norms", 1 << 16)?,
        device_bytes: model.device_bytes,
        force_zeros_for_empty_prompt: model.force_zeros_for_empty_prompt,
        schedule: schedule_from_wire(&required(model.schedule, "model.schedule")?)?,
        pag_blocks: model.pag_blocks,
        native_sizes,
        preset: preset_from_wire(&preset)?,
    })
}

fn preset_from_wire(preset: &v1::Preset) -> Result<Preset, WireError> {
    let v1::Preset { steps, guidance_scale, scale, ref slider_shares } = *preset;
    let shares =
        || WireError::invalid("preset.slider_shares", format!("{slider_shares:?}"), "two shares in [0, 1]");
    let slider_shares: [f32; 2] = slider_shares[..].try_into().map_err(|_| shares())?;
    if !slider_shares.iter().all(|s| (0.0..=1.0).contains(s)) {
        return Err(shares());
    }
    Ok(Preset { steps, guidance_scale, scale, slider_shares })
}

fn fingerprint_from_wire(f: &v1::ComponentFingerprint) -> Result<(Component, Fingerprint), WireError> {
    let component = match f.component() {
        v1::ComponentKind::Text => Component::Text,
        v1::ComponentKind::Unet => Component::Unet,
        v1::ComponentKind::Vae => Component::Vae,
        v1::ComponentKind::Unspecified => {
            return Err(WireError::invalid("fingerprint.component", f.component, "a known component"));
        }
    };
    Ok((component, Fingerprint(hash(&f.hash, "fingerprint.hash")?)))
}

fn class_from_wire(class: v1::NumericClass) -> Result<NumericClass, WireError> {
    let dtype = match class.dtype() {
        v1::DtypeKind::F32 => Dtype::F32,
        v1::DtypeKind::F16 => Dtype::F16,
        v1::DtypeKind::Bf16 => Dtype::Bf16,
        v1::DtypeKind::Unspecified => {
            return Err(WireError::invalid("numeric_class.dtype", class.dtype, "a known dtype"));
        }
    };
    Ok(NumericClass { backend: class.backend, kernels: class.kernels, dtype, algorithm: class.algorithm })
}

fn schedule_from_wire(schedule: &v1::Schedule) -> Result<ScheduleConfig, WireError> {
    let beta_schedule = match schedule.beta_schedule() {
        v1::BetaScheduleKind::Linear => BetaSchedule::Linear,
        v1::BetaScheduleKind::ScaledLinear => BetaSchedule::ScaledLinear,
        v1::BetaScheduleKind::Unspecified => {
            return Err(WireError::invalid(
                "schedule.beta_schedule",
                schedule.beta_schedule,
                "a known schedule",
            ));
        }
    };
    let timestep_spacing = match schedule.timestep_spacing() {
        v1::TimestepSpacingKind::Leading => TimestepSpacing::Leading,
        v1::TimestepSpacingKind::Trailing => TimestepSpacing::Trailing,
        v1::TimestepSpacingKind::Linspace => TimestepSpacing::Linspace,
        v1::TimestepSpacingKind::Unspecified => {
            let value = schedule.timestep_spacing;
            return Err(WireError::invalid("schedule.timestep_spacing", value, "a known spacing"));
        }
    };
    let prediction_type = match schedule.prediction_type() {
        v1::PredictionKind::Epsilon => PredictionType::Epsilon,
        v1::PredictionKind::V => PredictionType::VPrediction,
        v1::PredictionKind::Unspecified => {
            let value = schedule.prediction_type;
            return Err(WireError::invalid("schedule.prediction_type", value, "a known prediction type"));
        }
    };
    let (first, last) = (schedule.beta_start, schedule.beta_end);
    let (train, offset) = (schedule.num_train_timesteps, schedule.steps_offset);
    let rising = first > 0.0 && first <= last && last < 1.0;
    if !rising || !(1..=MAX_TIMESTEPS).contains(&train) || offset >= train {
        let value = format!("{first}..{last} over {train} timesteps, offset {offset}");
        let expected = "betas rise within (0, 1) over 1 to 65535 timesteps, the offset below them";
        return Err(WireError::invalid("schedule", value, expected));
    }
    Ok(ScheduleConfig {
        beta_start: first,
        beta_end: last,
        beta_schedule,
        num_train_timesteps: schedule.num_train_timesteps,
        steps_offset: schedule.steps_offset,
        timestep_spacing,
        prediction_type,
    })
}
