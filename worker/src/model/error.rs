//! Why a model could not be loaded. Every message names the file, the key or tensor, what was
//! expected and what was found.

use std::path::PathBuf;

/// A model that could not be found, fetched, read or understood.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source is none of the three things a source can be.
    #[error(
        "`{0}` is no model: neither `pocket`, nor an existing folder, nor a hub id such as \
         `stabilityai/stable-diffusion-xl-base-1.0`"
    )]
    UnknownSource(String),
    /// The synthetic model's options make no sense.
    #[error("{0}: write `synthetic:latency=MILLISECONDS,tile=MILLISECONDS,side=LATENT_PIXELS`, all optional")]
    SyntheticOption(String),
    /// A file that the model must have is missing.
    #[error("{file} is missing; {remedy}")]
    MissingFile {
        /// The file, relative to the model.
        file: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file could not be read.
    #[error("{file} cannot be read: {source}")]
    Read {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{file} is not the JSON expected: {reason}")]
    Json {
        /// The file.
        file: String,
        /// The parser's reason.
        reason: String,
    },
    /// A configuration value that this program cannot honour.
    #[error("{file}: `{key}` is {value}; {expected}")]
    Config {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// Its value, as JSON (or `missing`).
        value: String,
        /// What would be accepted, as a phrase.
        expected: String,
    },
    /// A weight file that is cut short or damaged.
    #[error("{file} is damaged: {reason}; fetch it again")]
    DamagedWeights {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the configuration calls for is not in the files.
    #[error("{file} has no tensor `{tensor}` (shape {expected:?}), which the configuration calls for")]
    MissingTensor {
        /// The file, or the folder of a sharded model.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape that was wanted.
        expected: Vec<usize>,
    },
    /// A tensor of the wrong shape.
    #[error("{file}: tensor `{tensor}` has shape {actual:?}, but the configuration calls for {expected:?}")]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape that was wanted.
        expected: Vec<usize>,
        /// The shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor of a number format that weights don't come in.
    #[error("{file}: tensor `{tensor}` holds {dtype} values; only F64, F32, F16 and BF16 are supported")]
    WrongDtype {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its number format.
        dtype: String,
    },
    /// Weights that the configuration has no place for: a different network than it says.
    #[error(
        "{file}: tensor `{tensor}` (shape {shape:?}) has no place in the network that the configuration \
         describes{more}; the weights belong to another configuration"
    )]
    UnusedTensor {
        /// The file.
        file: String,
        /// The first such tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many more there are, as a phrase (empty for none).
        more: String,
    },
    /// A tokenizer's files contradict themselves.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A device that is unknown, absent, or not built in.
    #[error("device `{device}`: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The hub did not deliver.
    #[error(transparent)]
    Hub(#[from] super::hub::HubError),
    /// The weights asked for are not there.
    #[error("{model}: {error}")]
    Variant {
        /// The model's name.
        model: String,
        /// What there is, and what to do.
        error: super::layout::VariantError,
    },
    /// The tensor library failed while weights were put on the device.
    #[error("placing weights on the device failed: {0}")]
    Placement(String),
    /// A folder that is not a model.
    #[error("{} is not a model folder: it has no model_index.json", .0.display())]
    NotAModel(PathBuf),
}

impl From<candle_core::Error> for LoadError {
    fn from(error: candle_core::Error) -> Self {
        Self::Placement(explained(&error))
    }
}

/// What the tensor library said; where that is that memory ran out, with what to do.
pub(super) fn explained(error: &candle_core::Error) -> String {
    let said = error.to_string();
    // The driver's words, and those of its libraries.
    if ["OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|word| said.contains(word)) {
        return format!(
            "{said}: the GPU's memory is full; end what else uses it (`nvidia-smi` lists it), or use a smaller \
             `--batch`, `--dtype f16`, or a GPU with more"
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_memory_comes_with_a_remedy() {
        let full = candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY)".into());
        assert!(LoadError::from(full).to_string().contains("smaller `--batch`"));
        let other = candle_core::Error::Msg("a stride".into());
        assert_eq!(explained(&other), "a stride");
    }
}
