//! Whether a result can be one of its task: the right kind, the right shape, only finite numbers.

use gigasmith_proto::domain::{ModelDescription, Task, TaskResult, TextEncoding, Wanted};

/// Shapes of text states and pooled state.
type TextShapes = (Vec<usize>, Vec<usize>);

/// What is wrong with a result's kind or shape; `Ok` when nothing is. Cheap. `text`: how the model's
/// workers shape their texts, once that is known.
pub(super) fn shape(
    task: &Task,
    result: &TaskResult,
    model: &ModelDescription,
    text: Option<&TextShapes>,
) -> Result<(), String> {
    let factor = model.latent_factor as usize;
    let (array, expected) = match (task, result) {
        (Task::PredictNoise(task), TaskResult::Noise(noise)) => (noise, task.latent.shape().to_vec()),
        (Task::EncodeTile { rules, .. }, TaskResult::Moments(moments)) if rules.wanted == Wanted::Values => {
            (moments, vec![2 * model.latent_channels as usize, rules.part.height, rules.part.width])
        }
        (Task::DecodeTile { rules, .. }, TaskResult::Image(image)) if rules.wanted == Wanted::Values => {
            (image, vec![3, rules.part.height * factor, rules.part.width * factor])
        }
        (Task::EncodeTile { rules, .. }, TaskResult::Norms(norms)) if rules.wanted == Wanted::Norms => {
            (norms, vec![model.vae_norms.encoder as usize, 2])
        }
        (Task::DecodeTile { rules, .. }, TaskResult::Norms(norms)) if rules.wanted == Wanted::Norms => {
            (norms, vec![model.vae_norms.decoder as usize, 2])
        }
        (Task::EncodeText { .. }, TaskResult::Text(answer)) => return text_shape(answer, text),
        _ => return Err(format!("the answer to a {} task is of another kind", task.kind())),
    };
    if array.shape() != expected {
        return Err(format!("the answer has shape {:?}, not {expected:?}", array.shape()));
    }
    Ok(())
}

fn text_shape(answer: &TextEncoding, known: Option<&TextShapes>) -> Result<(), String> {
    let (states, pooled) = (answer.states.shape(), answer.pooled.shape());
    let fits = match known {
        Some((known_states, known_pooled)) => states == known_states && pooled == known_pooled,
        None => states.len() == 2 && pooled.len() == 1 && !states.contains(&0) && !pooled.contains(&0),
    };
    match (fits, known) {
        (true, _) => Ok(()),
        (false, Some(known)) => Err(format!("the text has shapes {states:?} and {pooled:?}, not {known:?}")),
        (false, None) => {
            Err(format!("the text has shapes {states:?} and {pooled:?}: two axes and one are needed"))
        }
    }
}

/// Whether every number of a result is finite. Reads all of it: done beside the owner, not in it.
pub(super) fn is_finite(result: &TaskResult) -> bool {
    match result {
        TaskResult::Noise(array)
        | TaskResult::Moments(array)
        | TaskResult::Image(array)
        | TaskResult::Norms(array) => array.is_finite(),
        TaskResult::Text(text) => text.states.is_finite() && text.pooled.is_finite(),
    }
}
