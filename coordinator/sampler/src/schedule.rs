//! The noise schedule and the DDIM step.
//!
//! Formulas: Song et al., "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equation 12 with
//! eta = 0. Values follow diffusers' f32 arithmetic, so that recorded renders are matched.

use gigasmith_types::{BetaSchedule, PredictionType, ScheduleConfig, TimestepSpacing};

use super::units::{Step, Timestep};

/// A number of steps that the model's schedule cannot be cut into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// No steps at all.
    #[error("steps is 0: at least 1 step is needed")]
    NoSteps,
    /// More steps than timesteps, or steps that reach beyond the last one.
    #[error("steps is {steps}: the model was trained on {train} timesteps, so at most {most} steps fit")]
    TooMany {
        /// What was asked for.
        steps: u32,
        /// T.
        train: u32,
        /// The most that fit.
        most: u32,
    },
}

/// The coefficients of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepScale {
    /// t of the step.
    pub timestep: Timestep,
    /// abar(t): product of the alphas up to t.
    pub alphas_cumprod: f32,
    /// abar at the timestep the step leads to; exactly 1 after the last step.
    pub alphas_cumprod_prev: f32,
}

/// S steps through the model's training timesteps, noisiest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    steps: Vec<StepScale>,
    prediction_type: PredictionType,
}

impl Schedule {
    /// Cuts the model's schedule into `steps` steps.
    pub fn new(config: &ScheduleConfig, steps: u32) -> Result<Self, ScheduleError> {
        let train = config.num_train_timesteps;
        let timesteps = timesteps(config, steps)?;
        let alphas_cumprod = alphas_cumprod(config);
        let ratio = train / steps;
        // A step leads to the timestep of the next. (diffusers takes t - T/S, which is the same for `leading`, but
        // not where the timesteps lie unevenly or farther apart.)
        let after = timesteps.iter().skip(1).copied().map(Some);
        // Whatever the scheduler file says, the last step ends at exactly 1, but for so many steps that `leading`
        // ones begin above the first timestep.
        let end = timesteps.last().and_then(|t| match config.timestep_spacing {
            TimestepSpacing::Leading => t.checked_sub(ratio),
            TimestepSpacing::Trailing | TimestepSpacing::Linspace => None,
        });
        let steps = timesteps
            .iter()
            .zip(after.chain([end]))
            .map(|(&t, next)| StepScale {
                timestep: Timestep(t),
                alphas_cumprod: alphas_cumprod[t as usize],
                alphas_cumprod_prev: next.map_or(1.0, |p| alphas_cumprod[p as usize]),
            })
            .collect();
        Ok(Self { steps, prediction_type: config.prediction_type })
    }

    /// S.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Never true: a schedule has at least one step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The coefficients of a step.
    pub fn at(&self, step: Step) -> StepScale {
        self.steps[step.index()]
    }

    /// One DDIM step in place: `latent` holds x at the step's timestep and receives x at the next;
    /// `prediction` is the network's guided output for it. Any shape, the same for both.
    pub fn advance(&self, step: Step, latent: &mut [f32], prediction: &[f32]) {
        assert_eq!(latent.len(), prediction.len(), "a prediction is shaped as its latent");
        let StepScale { alphas_cumprod: a, alphas_cumprod_prev: prev, .. } = self.at(step);
        let (signal, noise) = (a.sqrt(), (1.0 - a).sqrt());
        let (next_signal, next_noise) = (prev.sqrt(), (1.0 - prev).sqrt());
        match self.prediction_type {
            PredictionType::Epsilon => {
                for (x, &e) in latent.iter_mut().zip(prediction) {
                    let x0 = (*x - noise * e) / signal;
                    *x = next_signal * x0 + next_noise * e;
                }
            }
            PredictionType::VPrediction => {
                for (x, &v) in latent.iter_mut().zip(prediction) {
                    let x0 = signal * *x - noise * v;
                    let e = signal * v + noise * *x;
                    *x = next_signal * x0 + next_noise * e;
                }
            }
        }
    }
}

fn timesteps(config: &ScheduleConfig, steps: u32) -> Result<Vec<u32>, ScheduleError> {
    let (train, offset) = (config.num_train_timesteps, config.steps_offset);
    if steps == 0 {
        return Err(ScheduleError::NoSteps);
    }
    let spaced = |s: u32| -> Vec<u32> {
        let ratio = train / s;
        match config.timestep_spacing {
            TimestepSpacing::Leading => (0..s).rev().map(|i| i * ratio + offset).collect(),
            TimestepSpacing::Trailing => {
                let ratio = f64::from(train) / f64::from(s);
                (0..s)
                    .map(|i| (f64::from(train) - f64::from(i) * ratio).round_ties_even() as u32 - 1)
                    .collect()
            }
            TimestepSpacing::Linspace => {
                let ratio = f64::from(train - 1) / f64::from((s - 1).max(1));
                (0..s).rev().map(|i| (f64::from(i) * ratio).round_ties_even() as u32).collect()
            }
        }
    };
    let fits = |s: u32| s <= train && spaced(s).iter().all(|&t| t < train);
    if !fits(steps) {
        let most = (1..steps.min(train + 1)).rev().find(|&s| fits(s)).unwrap_or(1);
        return Err(ScheduleError::TooMany { steps, train, most });
    }
    Ok(spaced(steps))
}

/// abar(t) for every training timestep, rounded as PyTorch rounds it.
pub fn alphas_cumprod(config: &ScheduleConfig) -> Vec<f32> {
    let n = config.num_train_timesteps as usize;
    let betas: Vec<f32> = match config.beta_schedule {
        BetaSchedule::Linear => linspace(config.beta_start as f32, config.beta_end as f32, n),
        BetaSchedule::ScaledLinear => {
            linspace(config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32, n)
                .into_iter()
                .map(|b| b * b)
                .collect()
        }
    };
    // PyTorch accumulates the product in f64 and stores each value as f32.
    betas
        .into_iter()
        .scan(1.0f64, |product, beta| {
            *product *= f64::from(1.0 - beta);
            Some(*product as f32)
        })
        .collect()
}

/// `n` evenly spaced values; from both ends towards the middle, as PyTorch computes them.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n.max(2) - 1) as f32;
    (0..n)
        .map(|i| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SDXL: ScheduleConfig = ScheduleConfig::SDXL;

    fn visited(steps: u32) -> Vec<u32> {
        let schedule = Schedule::new(&SDXL, steps).unwrap();
        (0..steps).map(|s| schedule.at(Step(s)).timestep.0).collect()
    }

    #[test]
    fn timesteps_and_alphas_are_those_of_the_published_program() {
        assert_eq!(visited(6), [831, 665, 499, 333, 167, 1]);
        let recorded = [
            0.02786589227616787,
            0.10580485314130783,
            0.27766942977905273,
            0.5349618792533875,
            0.8033900260925293,
            0.9982960224151611,
        ];
        let schedule = Schedule::new(&SDXL, 6).unwrap();
        for (step, abar) in recorded.into_iter().enumerate() {
            let ours = f64::from(schedule.at(Step(step as u32)).alphas_cumprod);
            assert!((ours - abar).abs() <= 1.2e-7 * abar, "step {step}: {ours} against {abar}");
        }
        assert_eq!(schedule.at(Step(5)).alphas_cumprod_prev, 1.0);
    }

    #[test]
    fn every_step_leads_to_the_next() {
        for timestep_spacing in
            [TimestepSpacing::Leading, TimestepSpacing::Trailing, TimestepSpacing::Linspace]
        {
            for steps in [1, 2, 3, 4, 7, 33, 50, 300] {
                let schedule = Schedule::new(&ScheduleConfig { timestep_spacing, ..SDXL }, steps).unwrap();
                let at = |s: u32| schedule.at(Step(s));
                for s in 1..steps {
                    assert_eq!(
                        at(s - 1).alphas_cumprod_prev,
                        at(s).alphas_cumprod,
                        "{timestep_spacing:?} {steps}"
                    );
                }
                assert_eq!(at(steps - 1).alphas_cumprod_prev, 1.0, "{timestep_spacing:?} {steps}");
            }
        }
    }

    #[test]
    fn leading_steps_are_those_of_the_published_program() {
        let alphas = alphas_cumprod(&SDXL);
        for steps in [1, 3, 7, 33, 50, 499, 501, 999] {
            let schedule = Schedule::new(&SDXL, steps).unwrap();
            for s in 0..steps {
                let step = schedule.at(Step(s));
                let published = step.timestep.0.checked_sub(1000 / steps).map_or(1.0, |t| alphas[t as usize]);
                assert_eq!(step.alphas_cumprod_prev, published, "step {s} of {steps}");
            }
        }
    }

    #[test]
    fn impossible_step_counts_are_refused() {
        assert_eq!(Schedule::new(&SDXL, 0), Err(ScheduleError::NoSteps));
        let too_many = |steps| ScheduleError::TooMany { steps, train: 1000, most: 999 };
        assert_eq!(Schedule::new(&SDXL, 1000), Err(too_many(1000)));
        assert_eq!(Schedule::new(&SDXL, 4_000_000_000), Err(too_many(4_000_000_000)));
        assert_eq!(visited(999).len(), 999);
    }

    #[test]
    fn a_perfect_prediction_leads_to_the_clean_latent() {
        let (x0, noise) = ([0.3f32, -1.2, 2.0], [0.9f32, -0.4, 0.1]);
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let schedule = Schedule::new(&ScheduleConfig { prediction_type, ..SDXL }, 7).unwrap();
            let a = schedule.at(Step(0)).alphas_cumprod;
            let mut x: Vec<f32> =
                x0.iter().zip(noise).map(|(x, n)| a.sqrt() * x + (1.0 - a).sqrt() * n).collect();
            for s in 0..7 {
                let a = schedule.at(Step(s)).alphas_cumprod;
                let output: Vec<f32> = match prediction_type {
                    PredictionType::Epsilon => noise.to_vec(),
                    PredictionType::VPrediction => {
                        noise.iter().zip(x0).map(|(n, x)| a.sqrt() * n - (1.0 - a).sqrt() * x).collect()
                    }
                };
                schedule.advance(Step(s), &mut x, &output);
            }
            x.iter().zip(x0).for_each(|(x, x0)| assert!((x - x0).abs() < 1e-4, "{x} {x0}"));
        }
    }
}
