//! Why a model could not be loaded. Every message names the file, the key or tensor, what was
//! expected and what was found. What files say is shown without effect on a terminal.

use std::path::PathBuf;

use gigasmith_proto::text::Shown;

/// A model that could not be found, fetched, read or understood.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source is none of the three things a source can be.
    #[error(
        "`{}` is no model: neither `pocket`, nor an existing folder, nor a hub id such as \
         `stabilityai/stable-diffusion-xl-base-1.0`",
        Shown(.0)
    )]
    UnknownSource(String),
    /// The synthetic model's options make no sense.
    #[error("{0}: write `synthetic:latency=MILLISECONDS,tile=MILLISECONDS,side=LATENT_PIXELS`, all optional")]
    SyntheticOption(String),
    /// A file that the model must have is missing.
    #[error("{} is missing; {remedy}", Shown(.file))]
    MissingFile {
        /// The file, relative to the model.
        file: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file could not be read.
    #[error("{} cannot be read: {source}", Shown(.file))]
    Read {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not the JSON expected: {}", Shown(.file), Shown(.reason))]
    Json {
        /// The file.
        file: String,
        /// The parser's reason.
        reason: String,
    },
    /// A configuration value that this program cannot honour.
    #[error("{}: `{key}` is {}; {expected}", Shown(.file), Shown(.value))]
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
    #[error("{} is damaged: {}; delete it and fetch it again", Shown(.file), Shown(.reason))]
    DamagedWeights {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Weights that were written to after they were read.
    #[error(
        "{} changed while this worker used it ({what}): start the worker again, to work with what it is now",
        Shown(.file)
    )]
    Changed {
        /// The file.
        file: String,
        /// How it shows, as a phrase.
        what: String,
    },
    /// Something that only stands for a file.
    #[error("{} is {what}, not the file itself: {remedy}", Shown(.file))]
    StandIn {
        /// The file.
        file: String,
        /// What it is, as a phrase.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A tensor that the configuration calls for is not in the files.
    #[error(
        "{} has no tensor `{}` (shape {expected:?}), which the configuration calls for",
        Shown(.file),
        Shown(.tensor)
    )]
    MissingTensor {
        /// The file, or the folder of a sharded model.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape that was wanted.
        expected: Vec<usize>,
    },
    /// A tensor of the wrong shape.
    #[error(
        "{}: tensor `{}` has shape {actual:?}, but the configuration calls for {expected:?}",
        Shown(.file),
        Shown(.tensor)
    )]
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
    #[error(
        "{}: tensor `{}` holds {dtype} values; only F64, F32, F16 and BF16 are supported",
        Shown(.file),
        Shown(.tensor)
    )]
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
        "{}: tensor `{}` (shape {shape:?}) has no place in the network that the configuration describes{more}; \
         the weights belong to another configuration",
        Shown(.file),
        Shown(.tensor)
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
    #[error("{}: {}", Shown(.file), Shown(.reason))]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A device that is unknown, absent, or not built in.
    #[error("device `{}`: {reason}", Shown(.device))]
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
    /// Something that exists and is no model folder.
    #[error("{} is not a model folder: it is {what}; {remedy}", path.display())]
    NotAModel {
        /// Where it is.
        path: PathBuf,
        /// What it is, as a phrase.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A path to a file that does not exist.
    #[error(
        "`{0}` does not exist; a model is `pocket`, a folder, or a hub id such as `stabilityai/stable-diffusion-xl-base-1.0`"
    )]
    NoSuchFile(String),
    /// A web address.
    #[error(
        "`{0}` is a web address; give a hub model's id, such as `stabilityai/stable-diffusion-xl-base-1.0`, or a folder"
    )]
    Address(String),
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
