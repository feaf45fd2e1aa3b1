//! Models that are distilled to a few steps: what says that a model is one, and what such a model is not made for.
//! Pure.

use gigasmith_proto::domain::{ModelDescription, TimestepSpacing};

use crate::sampler::schedule::Schedule;
use crate::sampler::units::Step;
use crate::spec::RenderSpec;

/// More steps than any such model is made for.
const MOST_STEPS: u32 = 12;
/// More guidance than any such model is made for.
const MOST_GUIDANCE: f32 = 2.5;
/// A model whose preset has so many steps, and no more guidance than that, is one.
const PRESET_STEPS: u32 = 8;

/// What such a model wants.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    /// Why it is taken for one, as a clause.
    evidence: String,
    steps: u32,
    guidance_scale: f32,
}

/// What the methods' names are, and what they want. Only whole words of a model's name count.
const METHODS: [(&str, u32, f32); 8] = [
    ("turbo", 4, 0.0),
    ("lightning", 8, 0.0),
    ("hypersd", 8, 0.0),
    ("hyper", 8, 0.0),
    ("lcm", 8, 1.0),
    ("tcd", 8, 0.0),
    ("dmd", 4, 0.0),
    ("dmd2", 4, 0.0),
];

/// What the model wants, where its files or its name say that it is made for few steps. Files come first: they
/// are the preset.
fn wanted(model: &ModelDescription) -> Option<Wanted> {
    if model.preset.steps <= PRESET_STEPS && model.preset.guidance_scale <= MOST_GUIDANCE {
        let (steps, guidance_scale) = (model.preset.steps, model.preset.guidance_scale);
        return Some(Wanted { evidence: "its files say so".into(), steps, guidance_scale });
    }
    let name = model.name.to_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).collect();
    let method = METHODS.into_iter().find(|(method, ..)| words.contains(method));
    method.map(|(method, steps, guidance_scale)| Wanted {
        evidence: format!("its name says `{method}`"),
        steps,
        guidance_scale,
    })
}

/// What works, but may not be what was meant.
pub(super) fn remarks(spec: &RenderSpec, model: &ModelDescription) -> Vec<String> {
    let Some(wanted) = wanted(model) else { return Vec::new() };
    let mut remarks = Vec::new();
    let (steps, guidance) = (spec.steps, spec.guidance_scale);
    let name = &model.name;
    let few = format!("`{name}` seems to be made for few steps ({})", wanted.evidence);
    if steps > MOST_STEPS || guidance > MOST_GUIDANCE {
        remarks.push(format!(
            "{few}: {steps} steps at guidance scale {guidance} may burn its pictures; try --steps {} \
             --guidance-scale {}",
            wanted.steps, wanted.guidance_scale
        ));
    }
    let first = Schedule::new(&model.schedule, steps).map(|s| s.at(Step(0)).timestep.0);
    let last = model.schedule.num_train_timesteps - 1;
    let early = model.schedule.timestep_spacing == TimestepSpacing::Leading && steps <= MOST_STEPS;
    if let (Ok(first), true) = (first, early) {
        remarks.push(format!(
            "{few}, but begins at timestep {first}, not {last}: `timestep_spacing` in its scheduler_config.json is \
             \"leading\", and such models are made for \"trailing\""
        ));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use gigasmith_proto::domain::Preset;
    use gigasmith_worker::backend::Backend;
    use gigasmith_worker::synthetic::{Synthetic, SyntheticOptions};

    use super::super::{InputFacts, RenderRequest, resolve};
    use super::*;

    fn warnings(name: &str, change: impl Fn(&mut ModelDescription), request: &RenderRequest) -> Vec<String> {
        let mut model = Synthetic::new(SyntheticOptions::default()).describe().clone();
        model.name = name.into();
        change(&mut model);
        resolve(request, &InputFacts::default(), &model).unwrap().warnings
    }

    #[test]
    fn a_model_of_few_steps_is_told_from_others() {
        let request = RenderRequest { prompt: "hills".into(), scale: Some(1.0), ..RenderRequest::default() };
        for name in
            ["org/sdxl-turbo", "DreamShaperXL_Lightning", "my-lcm@main", "model-dmd2-4step", "Hyper-SD"]
        {
            let said = warnings(name, |_| {}, &request);
            assert!(
                said.len() == 1 && said[0].contains("50 steps at guidance scale 7.5"),
                "{name}: {said:?}"
            );
            assert!(said[0].contains("--guidance-scale"), "{said:?}");
        }
        for name in ["org/stable-diffusion-xl-base-1.0", "hyperrealism-xl", "turbocharged", "pocket"] {
            assert_eq!(warnings(name, |_| {}, &request), [""; 0], "{name}");
        }
    }

    #[test]
    fn settings_that_fit_are_not_warned_of() {
        let request = RenderRequest {
            prompt: "hills".into(),
            scale: Some(1.0),
            steps: Some(4),
            guidance_scale: Some(0.0),
            ..RenderRequest::default()
        };
        let trailing = |model: &mut ModelDescription| {
            model.schedule.timestep_spacing = TimestepSpacing::Trailing;
        };
        assert_eq!(warnings("sdxl-turbo", trailing, &request), [""; 0]);
        let said = warnings("sdxl-turbo", |_| {}, &request);
        assert!(said.len() == 1 && said[0].contains("begins at timestep 751, not 999"), "{said:?}");
    }

    #[test]
    fn the_preset_tells_and_is_the_remedy() {
        let preset = |model: &mut ModelDescription| {
            model.preset = Preset { steps: 4, guidance_scale: 0.0, ..model.preset };
            model.schedule.timestep_spacing = TimestepSpacing::Trailing;
        };
        let mut request =
            RenderRequest { prompt: "hills".into(), scale: Some(1.0), ..RenderRequest::default() };
        assert_eq!(warnings("unnamed", preset, &request), [""; 0]);
        request.guidance_scale = Some(7.5);
        let said = warnings("unnamed", preset, &request);
        assert!(
            said[0].contains("its files say so") && said[0].contains("try --steps 4 --guidance-scale 0"),
            "{said:?}"
        );
    }
}
