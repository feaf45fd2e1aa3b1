//! Tasks, results and conditioning.

use std::sync::Arc;

use super::{WireError, array_from_wire, array_to_wire, hash, pixels_from_wire, pixels_to_wire, required};
use crate::domain::{
    Array, Conditioning, ConditioningId, NoiseTask, PagScale, Rect, Task, TaskResult, TextEncoding,
    TileRules, Wanted, WireDtype,
};
use crate::text::Shown;
use crate::v1;

/// Why a worker could not do a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// What went wrong, in the worker's words.
    pub message: String,
    /// Whether the task itself is at fault, so that no other worker should try it.
    pub permanent: bool,
}

/// How a task ended on a worker.
pub type Outcome = Result<TaskResult, TaskFailure>;

/// Puts a task on the wire: what an assignment carries under its lease. The result is cheap to clone.
pub fn task_to_wire(task: &Task) -> v1::assignment::Task {
    use v1::assignment::Task as Wire;
    let exact = |a: &Arc<Array>| Some(array_to_wire(a.clone(), WireDtype::F32));
    match task {
        Task::PredictNoise(task) => Wire::PredictNoise(noise_to_wire(task)),
        Task::EncodeText { prompt } => Wire::EncodeText(v1::EncodeText { prompt: prompt.clone() }),
        Task::EncodeTile { image, rules } => Wire::EncodeTile(v1::EncodeTile {
            image: Some(pixels_to_wire(image.clone())),
            rules: Some(rules_to_wire(rules)),
        }),
        Task::DecodeTile { latent, rules } => {
            Wire::DecodeTile(v1::DecodeTile { latent: exact(latent), rules: Some(rules_to_wire(rules)) })
        }
    }
}

fn rules_to_wire(rules: &TileRules) -> v1::TileRules {
    let Rect { top, left, height, width } = rules.part;
    let [top, left, height, width] = [top, left, height, width].map(|n| n as u32);
    let wire = match rules.wire {
        WireDtype::F32 => v1::Element::F32,
        WireDtype::F16 => v1::Element::F16,
    };
    v1::TileRules {
        norms: rules.norms.as_ref().map(|norms| array_to_wire(norms.clone(), WireDtype::F32)),
        measure: rules.wanted == Wanted::Norms,
        part: Some(v1::Rect { top, left, height, width }),
        wire: wire.into(),
    }
}

fn rules_from_wire(rules: Option<v1::TileRules>) -> Result<TileRules, WireError> {
    let rules = required(rules, "rules")?;
    let wire = match rules.wire() {
        v1::Element::F16 => WireDtype::F16,
        v1::Element::F32 => WireDtype::F32,
        other => {
            return Err(WireError::invalid(
                "rules.wire",
                format!("{other:?}"),
                "values travel as f32 or f16",
            ));
        }
    };
    let norms = rules.norms.map(|norms| array_from_wire(Some(norms), "rules.norms")).transpose()?;
    if let Some(norms) = norms.as_ref().filter(|n| !matches!(n.shape(), [_, 2])) {
        let found = format!("{:?}", norms.shape());
        return Err(WireError::invalid("rules.norms", found, "two axes: groups, then mean and variance"));
    }
    let v1::Rect { top, left, height, width } = required(rules.part, "rules.part")?;
    let [top, left, height, width] = [top, left, height, width].map(|n| n as usize);
    Ok(TileRules {
        norms: norms.map(Arc::new),
        wanted: if rules.measure { Wanted::Norms } else { Wanted::Values },
        part: Rect { top, left, height, width },
        wire,
    })
}

fn noise_to_wire(task: &NoiseTask) -> v1::PredictNoise {
    let (pag_scale, pag_blocks) =
        task.pag.as_ref().map_or((0.0, Vec::new()), |p| (p.scale, p.blocks.clone()));
    v1::PredictNoise {
        latent: Some(array_to_wire(task.latent.clone(), task.wire)),
        timestep: task.timestep,
        time_ids: task.time_ids.to_vec(),
        conditioning: task.conditioning.0.to_vec().into(),
        guidance_scale: task.guidance_scale,
        pag_scale,
        pag_blocks,
    }
}

/// Reads a lease and its task.
pub fn assignment_from_wire(assignment: v1::Assignment) -> Result<(u64, Task), WireError> {
    use v1::assignment::Task as Wire;
    let task = match required(assignment.task, "assignment.task")? {
        Wire::PredictNoise(task) => Task::PredictNoise(noise_from_wire(task)?),
        Wire::EncodeText(text) => Task::EncodeText { prompt: text.prompt },
        Wire::EncodeTile(tile) => Task::EncodeTile {
            image: Arc::new(pixels_from_wire(tile.image, "image")?),
            rules: rules_from_wire(tile.rules)?,
        },
        Wire::DecodeTile(tile) => Task::DecodeTile {
            latent: Arc::new(three_axes(array_from_wire(tile.latent, "latent")?, "latent")?),
            rules: rules_from_wire(tile.rules)?,
        },
    };
    Ok((assignment.lease, task))
}

fn three_axes(array: Array, field: &'static str) -> Result<Array, WireError> {
    match array.chw() {
        Some((c, h, w)) if c > 0 && h > 0 && w > 0 => Ok(array),
        _ => Err(WireError::invalid(field, format!("{:?}", array.shape()), "three axes, none of them 0")),
    }
}

fn noise_from_wire(task: v1::PredictNoise) -> Result<NoiseTask, WireError> {
    let time_ids = task.time_ids[..].try_into().map_err(|_| {
        WireError::invalid("time_ids", format!("{:?}", task.time_ids), "six values: H, W, top, left, H, W")
    })?;
    for (field, value) in [("guidance_scale", task.guidance_scale), ("pag_scale", task.pag_scale)] {
        if !value.is_finite() {
            return Err(WireError::invalid(field, value, "a finite number"));
        }
    }
    let wire = match task.latent.as_ref().map(v1::Array::element) {
        Some(v1::Element::F16) => WireDtype::F16,
        _ => WireDtype::F32,
    };
    Ok(NoiseTask {
        wire,
        latent: Arc::new(three_axes(array_from_wire(task.latent, "latent")?, "latent")?),
        timestep: task.timestep,
        time_ids,
        conditioning: conditioning_id_from_wire(&task.conditioning)?,
        guidance_scale: task.guidance_scale,
        pag: (task.pag_scale > 0.0).then_some(PagScale { scale: task.pag_scale, blocks: task.pag_blocks }),
    })
}

/// Puts a lease and its outcome on the wire; noise and images travel as `wire`, everything else as f32.
pub fn report_to_wire(lease: u64, outcome: Outcome, wire: WireDtype) -> v1::Report {
    use v1::report::Outcome as Wire;
    let outcome = match outcome {
        Ok(TaskResult::Noise(noise)) => Wire::Noise(array_to_wire(noise, wire)),
        Ok(TaskResult::Text(text)) => Wire::Text(v1::TextEncoding {
            states: Some(array_to_wire(text.states, WireDtype::F32)),
            pooled: Some(array_to_wire(text.pooled, WireDtype::F32)),
            dropped_tokens: text.dropped_tokens,
        }),
        Ok(TaskResult::Moments(moments)) => Wire::Moments(array_to_wire(moments, WireDtype::F32)),
        Ok(TaskResult::Image(image)) => Wire::Image(array_to_wire(image, wire)),
        Ok(TaskResult::Norms(norms)) => Wire::Norms(array_to_wire(norms, WireDtype::F32)),
        Err(failure) => Wire::Failure(v1::Failure { message: failure.message, permanent: failure.permanent }),
    };
    v1::Report { lease, outcome: Some(outcome) }
}

/// Reads a lease and its outcome.
pub fn report_from_wire(report: v1::Report) -> Result<(u64, Outcome), WireError> {
    use v1::report::Outcome as Wire;
    let outcome = match required(report.outcome, "report.outcome")? {
        Wire::Noise(noise) => Ok(TaskResult::Noise(array_from_wire(Some(noise), "noise")?)),
        Wire::Text(text) => Ok(TaskResult::Text(TextEncoding {
            states: array_from_wire(text.states, "text.states")?,
            pooled: array_from_wire(text.pooled, "text.pooled")?,
            dropped_tokens: text.dropped_tokens,
        })),
        Wire::Moments(moments) => Ok(TaskResult::Moments(array_from_wire(Some(moments), "moments")?)),
        Wire::Image(image) => Ok(TaskResult::Image(array_from_wire(Some(image), "image")?)),
        Wire::Norms(norms) => Ok(TaskResult::Norms(array_from_wire(Some(norms), "norms")?)),
        // It ends up on terminals and pages.
        Wire::Failure(failure) => {
            let message = Shown(&failure.message).to_string();
            Err(TaskFailure { message, permanent: failure.permanent })
        }
    };
    Ok((report.lease, outcome))
}

/// Puts conditioning on the wire.
pub fn conditioning_to_wire(conditioning: &Conditioning) -> v1::Conditioning {
    let (negative, negative_pooled) = match &conditioning.negative {
        Some((states, pooled)) => (
            Some(array_to_wire(states.clone(), WireDtype::F32)),
            Some(array_to_wire(pooled.clone(), WireDtype::F32)),
        ),
        None => (None, None),
    };
    v1::Conditioning {
        prompt: Some(array_to_wire(conditioning.prompt.clone(), WireDtype::F32)),
        pooled: Some(array_to_wire(conditioning.pooled.clone(), WireDtype::F32)),
        negative,
        negative_pooled,
    }
}

/// Reads conditioning.
pub fn conditioning_from_wire(conditioning: v1::Conditioning) -> Result<Conditioning, WireError> {
    let prompt = array_from_wire(conditioning.prompt, "prompt")?;
    let pooled = array_from_wire(conditioning.pooled, "pooled")?;
    let negative = match (conditioning.negative, conditioning.negative_pooled) {
        (None, None) => None,
        (states, negative_pooled) => {
            let states = array_from_wire(states, "negative")?;
            let negative_pooled = array_from_wire(negative_pooled, "negative_pooled")?;
            if states.shape() != prompt.shape() || negative_pooled.shape() != pooled.shape() {
                let value = format!("{:?} and {:?}", states.shape(), negative_pooled.shape());
                return Err(WireError::invalid("negative", value, "shaped as the prompt's"));
            }
            Some((states, negative_pooled))
        }
    };
    Ok(Conditioning { prompt, pooled, negative })
}

/// Reads the hash that names a conditioning.
pub fn conditioning_id_from_wire(id: &[u8]) -> Result<ConditioningId, WireError> {
    hash(id, "conditioning").map(ConditioningId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Pixels;

    fn noise_task() -> NoiseTask {
        NoiseTask {
            latent: Array::zeros([4, 3, 5]).into(),
            wire: WireDtype::F16,
            timestep: 981,
            time_ids: [64.0, 40.0, 8.0, 16.0, 64.0, 40.0],
            conditioning: ConditioningId([7; 32]),
            guidance_scale: 7.5,
            pag: Some(PagScale { scale: 3.0, blocks: vec!["mid".into()] }),
        }
    }

    #[test]
    fn tasks_and_outcomes_survive_the_wire() {
        for task in [
            Task::PredictNoise(noise_task()),
            Task::EncodeText { prompt: "a fox".into() },
            Task::EncodeTile {
                image: Arc::new(Pixels::new(8, 16, (0..=255).chain(0..=127).collect()).unwrap()),
                rules: TileRules::plain(1, 2),
            },
            Task::DecodeTile {
                latent: Arc::new(Array::zeros([4, 3, 5])),
                rules: TileRules {
                    norms: Some(Arc::new(Array::zeros([6, 2]))),
                    wanted: Wanted::Norms,
                    part: Rect { top: 1, left: 2, height: 2, width: 3 },
                    wire: WireDtype::F16,
                },
            },
        ] {
            let wire = v1::Assignment { lease: 3, task: Some(task_to_wire(&task)) };
            assert_eq!(assignment_from_wire(wire), Ok((3, task)));
        }
        let text =
            TextEncoding { states: Array::zeros([77, 4]), pooled: Array::zeros([2]), dropped_tokens: 5 };
        let failure = TaskFailure { message: "out of memory".into(), permanent: false };
        for outcome in [
            Ok(TaskResult::Noise(Array::zeros([4, 3, 5]))),
            Ok(TaskResult::Text(text)),
            Ok(TaskResult::Moments(Array::zeros([8, 1, 1]))),
            Ok(TaskResult::Image(Array::zeros([3, 8, 8]))),
            Ok(TaskResult::Norms(Array::zeros([6, 2]))),
            Err(failure),
        ] {
            assert_eq!(
                report_from_wire(report_to_wire(9, outcome.clone(), WireDtype::F32)),
                Ok((9, outcome))
            );
        }
        let failure = TaskFailure { message: "\u{1b}[2Jgone".into(), permanent: true };
        let (_, outcome) = report_from_wire(report_to_wire(9, Err(failure), WireDtype::F32)).unwrap();
        assert_eq!(outcome.unwrap_err().message, "\\u{1b}[2Jgone", "it is printed as it is");
    }

    #[test]
    fn malformed_tasks_name_the_field() {
        let wire = |change: fn(&mut v1::PredictNoise)| {
            let mut task = noise_to_wire(&noise_task());
            change(&mut task);
            noise_from_wire(task).unwrap_err().to_string()
        };
        assert!(wire(|t| t.time_ids.truncate(5)).contains("time_ids"));
        assert!(wire(|t| t.conditioning.truncate(31)).contains("31 bytes"));
        assert!(wire(|t| t.guidance_scale = f32::NAN).contains("guidance_scale"));
        assert!(wire(|t| t.latent = None).contains("latent"));
        assert!(
            wire(|t| t.latent = Some(array_to_wire(Array::zeros([4, 0, 5]), WireDtype::F32)))
                .contains("three axes")
        );
    }
}
