//! diffusers' scheduler classes: whose process this program samples, and what their keys mean for it. Pure.
//!
//! A class stands for a process (how noise is added, which the model was trained with) and a way to integrate it
//! backwards. The process must be ours: variance-preserving, with betas. The way is DDIM's, whatever the class.

use gigasmith_proto::domain::TimestepSpacing;

/// A class with a variance-preserving process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    /// Which timesteps it visits where its file does not say.
    pub(crate) spacing: TimestepSpacing,
    /// It can clip the clean latent to a range (`clip_sample`).
    pub(crate) clips: bool,
    /// It can clip it to a quantile (`thresholding`).
    pub(crate) thresholds: bool,
    /// It belongs to models that are distilled to a few steps.
    pub(crate) few_steps: bool,
}

impl Class {
    /// Tells people what becomes of a scheduler that is another than the sampler used.
    pub(crate) fn say(self) {
        if self.few_steps {
            tracing::warn!(
                scheduler = self.name,
                "this scheduler is for models of few steps; steps are DDIM's, which such models take less well"
            );
        } else if !self.name.starts_with("DDIM") {
            tracing::info!(scheduler = self.name, "steps are DDIM's; the scheduler's file gives the process");
        }
    }
}

const fn class(name: &'static str, spacing: TimestepSpacing, clips: bool, thresholds: bool) -> Class {
    Class { name, spacing, clips, thresholds, few_steps: false }
}

use TimestepSpacing::{Leading, Linspace};

/// The classes, with their defaults in diffusers.
const CLASSES: [Class; 19] = [
    class("DDIMScheduler", Leading, true, true),
    class("DDIMParallelScheduler", Leading, true, true),
    class("DDPMScheduler", Leading, true, true),
    class("DDPMParallelScheduler", Leading, true, true),
    class("PNDMScheduler", Leading, false, false),
    class("LMSDiscreteScheduler", Linspace, false, false),
    class("EulerDiscreteScheduler", Linspace, false, false),
    class("EulerAncestralDiscreteScheduler", Linspace, false, false),
    class("HeunDiscreteScheduler", Linspace, true, false),
    class("KDPM2DiscreteScheduler", Linspace, false, false),
    class("KDPM2AncestralDiscreteScheduler", Linspace, false, false),
    class("DPMSolverMultistepScheduler", Linspace, false, true),
    class("DPMSolverSinglestepScheduler", Linspace, false, true),
    class("DPMSolverSDEScheduler", Linspace, false, false),
    class("DEISMultistepScheduler", Linspace, false, true),
    class("UniPCMultistepScheduler", Linspace, false, true),
    class("SASolverScheduler", Linspace, false, true),
    Class { few_steps: true, ..class("LCMScheduler", Leading, true, true) },
    Class { few_steps: true, ..class("TCDScheduler", Leading, true, true) },
];

/// The class of that name.
pub(crate) fn find(name: &str) -> Option<Class> {
    CLASSES.into_iter().find(|class| class.name == name)
}

/// Why a class is not among them.
pub(crate) fn refusal(name: &str) -> String {
    let process = [
        ("EDM", "the EDM process (as of Playground v2.5 and CosXL)"),
        ("FlowMatch", "flow matching"),
        ("FlowMap", "flow matching"),
        ("LTXEuler", "flow matching"),
        ("Inverse", "inversion: from pictures to noise"),
        ("CosineDPM", "the EDM process"),
        ("SCM", "the TrigFlow process"),
        ("CMStochastic", "consistency models in the EDM process"),
        ("ScoreSdeVe", "the variance-exploding process"),
        ("CogVideoX", "CogVideoX's shifted process"),
    ];
    let known = process.into_iter().find(|(part, _)| name.contains(part));
    let meaning =
        known.map_or_else(|| "it is not known".to_owned(), |(_, process)| format!("it is for {process}"));
    format!(
        "{meaning}; only schedulers of the variance-preserving process with betas are supported, such as \
         EulerDiscreteScheduler or DDIMScheduler"
    )
}

/// What a key of a scheduler's file does to the process, besides those that are read as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// Nothing: it chooses how the process is integrated, which is DDIM's matter here.
    Harmless,
    /// Another process, unless it has one of these values (or is null).
    Process(&'static [&'static str]),
}

const FALSE: Key = Key::Process(&["false"]);
const NULL: Key = Key::Process(&[]);

/// What `key` does; `None` where it is not known.
pub(crate) fn key(key: &str) -> Option<Key> {
    Some(match key {
        // Another process, or other betas.
        "trained_betas" | "sigma_data" | "sigma_schedule" | "sigma_min" | "sigma_max" | "rho"
        | "shift_terminal" | "alpha_cum_start" | "alpha_cum_end" => NULL,
        "use_flow_sigmas" | "use_dynamic_shifting" | "invert_sigmas" | "stochastic_sampling" => FALSE,
        "shift" | "snr_shift_scale" => Key::Process(&["1.0", "1"]),
        // Zero terminal SNR: the last timestep is noise alone.
        "rescale_betas_zero_snr" => FALSE,
        "timestep_type" => Key::Process(&["\"discrete\""]),
        // `learned` means a network with twice the outputs.
        "variance_type" => Key::Process(&[
            "\"fixed_small\"",
            "\"fixed_small_log\"",
            "\"fixed_large\"",
            "\"fixed_large_log\"",
        ]),
        // How another sampler takes its steps.
        "algorithm_type"
        | "solver_type"
        | "solver_order"
        | "solver_p"
        | "predictor_order"
        | "corrector_order"
        | "disable_corrector"
        | "lower_order_final"
        | "euler_at_final"
        | "predict_x0"
        | "tau_func"
        | "skip_prk_steps"
        | "lambda_min_clipped"
        | "noise_sampler_seed"
        | "use_karras_sigmas"
        | "use_exponential_sigmas"
        | "use_beta_sigmas"
        | "use_lu_lambdas"
        | "interpolation_type"
        | "final_sigmas_type"
        | "original_inference_steps"
        | "timestep_scaling"
        | "eta" => Key::Harmless,
        // Where the last step ends: here at the clean latent, as diffusers' pipelines for SDXL do.
        "set_alpha_to_one" => Key::Harmless,
        // They mean something together with keys that are refused.
        "sample_max_value"
        | "dynamic_thresholding_ratio"
        | "clip_sample_range"
        | "flow_shift"
        | "time_shift_type"
        | "base_shift"
        | "max_shift"
        | "base_image_seq_len"
        | "max_image_seq_len" => Key::Harmless,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_their_own_defaults() {
        assert_eq!(find("EulerDiscreteScheduler").unwrap().spacing, Linspace);
        assert_eq!(find("DDIMScheduler").unwrap().spacing, Leading);
        assert!(find("LCMScheduler").unwrap().few_steps && !find("DDIMScheduler").unwrap().few_steps);
        assert_eq!(find("FlowMatchEulerDiscreteScheduler"), None);
        assert_eq!(find("EDMEulerScheduler"), None);
    }

    #[test]
    fn other_processes_are_named() {
        for (name, process) in [
            ("EDMDPMSolverMultistepScheduler", "EDM process"),
            ("FlowMatchHeunDiscreteScheduler", "flow matching"),
            ("DPMSolverMultistepInverseScheduler", "inversion"),
            ("MyScheduler", "it is not known"),
        ] {
            assert!(refusal(name).contains(process), "{name}");
        }
    }
}
