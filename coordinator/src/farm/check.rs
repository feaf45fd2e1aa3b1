//! Whether a result can be one of its task: the right kind, the right shape, only finite numbers.

use gigasmith_proto::domain::{Array, ModelDescription, Task, TaskResult};

/// What is wrong with a result's kind or shape; `Ok` when nothing is. Cheap.
pub(super) fn shape(task: &Task, result: &TaskResult, model: &ModelDescription) -> Result<(), String> {
    let factor = model.latent_factor as usize;
    let sides = |a: &Array| a.chw().map_or((0, 0), |(_, h, w)| (h, w));
    let (array, expected) = match (task, result) {
        (Task::PredictNoise(task), TaskResult::Noise(noise)) => (noise, task.latent.shape().to_vec()),
        (Task::EncodeTile { image }, TaskResult::Moments(moments)) => {
            let (h, w) = sides(image);
            (moments, vec![2 * model.latent_channels as usize, h / factor, w / factor])
        }
        (Task::DecodeTile { latent }, TaskResult::Image(image)) => {
            let (h, w) = sides(latent);
            (image, vec![3, h * factor, w * factor])
        }
        (Task::EncodeText { .. }, TaskResult::Text(text)) => (&text.states, text.states.shape().to_vec()),
        _ => return Err(format!("the answer to a {} task is of another kind", task.kind())),
    };
    if array.shape() != expected {
        return Err(format!("the answer has shape {:?}, not {expected:?}", array.shape()));
    }
    Ok(())
}

/// Whether every number of a result is finite. Reads all of it: done beside the owner, not in it.
pub(super) fn is_finite(result: &TaskResult) -> bool {
    match result {
        TaskResult::Noise(array) | TaskResult::Moments(array) | TaskResult::Image(array) => array.is_finite(),
        TaskResult::Text(text) => text.states.is_finite() && text.pooled.is_finite(),
    }
}
