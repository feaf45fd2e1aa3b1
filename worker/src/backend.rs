//! What a worker can compute: a few questions about plain arrays.
//!
//! [`Backend`] is the line between the worker's bookkeeping and its networks. No tensor type
//! crosses it, so a fake is a few lines and nothing outside [`crate::model`] can touch a device.
//! A backend holds no state that decides a result: the same question always has the same answer,
//! to the bit, within one [`NumericClass`](gigasmith_proto::domain::NumericClass).

use std::any::Any;

use gigasmith_proto::domain::{Array, Conditioning, ModelDescription, NoiseTask, Rect, TextEncoding};

use crate::model::LoadError;

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A name in [`NoiseTask::pag`] that the model does not have.
    #[error("unknown attention block `{name}` for perturbed-attention guidance; use {available}")]
    UnknownPagBlock {
        /// The name given.
        name: String,
        /// What would be accepted, as a phrase.
        available: String,
    },
    /// Guidance above 1 without anything to guide away from.
    #[error(
        "guidance scale {guidance_scale} needs a negative conditioning, and none was given; send one, \
         or a guidance scale of at most 1"
    )]
    MissingNegative {
        /// The scale asked for.
        guidance_scale: f32,
    },
    /// A prompt that no tokens can be made of.
    #[error("the prompt cannot be encoded: {reason}")]
    Prompt {
        /// What is wrong with it.
        reason: String,
    },
    /// An array of a shape that the model cannot take.
    #[error("{what} has shape {actual:?}; this model needs {expected}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Its shape.
        actual: Vec<usize>,
        /// What was expected, as a phrase.
        expected: String,
    },
    /// A component's files failed to load when they were first needed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed (out of memory, a driver error).
    #[error("the device failed while computing {what}: {message}")]
    Device {
        /// Which answer was being computed.
        what: &'static str,
        /// What the tensor library said.
        message: String,
    },
}

impl BackendError {
    /// Whether the question itself is at fault, so that asking another worker of the same model is
    /// no use.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::UnknownPagBlock { .. }
                | Self::MissingNegative { .. }
                | Self::Prompt { .. }
                | Self::Shape { .. }
        )
    }
}

/// A patch, and the conditioning that it names.
pub type Patch<'a> = (&'a NoiseTask, &'a Conditioning);

/// Patches on their way: whatever the backend that started them needs to finish them.
pub struct Started(Box<dyn Any + Send>);

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Started")
    }
}

impl Started {
    /// With what is needed to finish them.
    pub fn new<T: Send + 'static>(state: T) -> Self {
        Self(Box::new(state))
    }

    /// What it was made with.
    ///
    /// # Panics
    /// Where it was made by another backend.
    pub fn get<T: 'static>(&self) -> &T {
        self.0.downcast_ref().expect("asked of the backend that started it")
    }

    /// What it was made with, back.
    ///
    /// # Panics
    /// Where it was made by another backend.
    pub fn into<T: 'static>(self) -> T {
        *self.0.downcast().expect("finished by the backend that started it")
    }
}

/// One model on one device.
pub trait Backend: Send {
    /// The model: sizes, schedule, fingerprints, numeric class.
    fn describe(&self) -> &ModelDescription;

    /// Encodes a prompt with both text encoders.
    fn encode_text(&mut self, prompt: &str) -> Result<TextEncoding, BackendError>;

    /// The network's guided output for a window, shaped as the window (epsilon or v, as the model
    /// predicts). `conditioning` is the one that `task.conditioning` names.
    fn predict_noise(&mut self, task: &NoiseTask, conditioning: &Conditioning)
    -> Result<Array, BackendError>;

    /// Patches that are best asked for together.
    fn batch(&self) -> usize {
        1
    }

    /// [`Self::predict_noise`] of several patches, which may differ in everything: every one's answer, the
    /// same that it has alone.
    fn predict_noises(&mut self, patches: &[Patch<'_>]) -> Vec<Result<Array, BackendError>> {
        patches.iter().map(|(task, conditioning)| self.predict_noise(task, conditioning)).collect()
    }

    /// Starts [`Self::predict_noises`]. A device that computes on its own is still at it when this is done, so that
    /// the next can be started meanwhile.
    fn start_noises(&mut self, patches: &[Patch<'_>]) -> Started {
        Started::new(self.predict_noises(patches))
    }

    /// Whether [`Self::finish_noises`] would not have to wait.
    fn is_done(&self, _started: &Started) -> bool {
        true
    }

    /// Waits for what was started with the same patches.
    fn finish_noises(&mut self, started: Started, patches: &[Patch<'_>]) -> Vec<Result<Array, BackendError>> {
        let answers: Vec<_> = started.into();
        debug_assert_eq!(answers.len(), patches.len(), "started with other patches");
        answers
    }

    /// Mean and log-variance, in that order, of an image tile (3, h, w) with values in [-1, 1]:
    /// (2 C, h / f, w / f) for a VAE of C channels and factor f. The log-variance is clamped to
    /// [-30, 20]. `h` and `w` are multiples of f. `norms`: mean and variance of every group of the network's
    /// normalisations, (groups, 2), instead of the tile's own.
    fn encode_tile(&mut self, image: &Array, norms: Option<&Array>) -> Result<Array, BackendError>;

    /// The image (3, f h, f w) of a latent tile (C, h, w) already divided by the scaling factor;
    /// nominally in [-1, 1], not clamped. `norms` as for encoding.
    fn decode_tile(&mut self, latent: &Array, norms: Option<&Array>) -> Result<Array, BackendError>;

    /// Mean and variance of every group of the encoder's normalisations, (groups, 2), over `part` of the
    /// tile (in latent pixels, inside the tile), when it is encoded with `norms`.
    fn encoder_norms(
        &mut self,
        image: &Array,
        norms: Option<&Array>,
        part: Rect,
    ) -> Result<Array, BackendError>;

    /// The same of the decoder.
    fn decoder_norms(
        &mut self,
        latent: &Array,
        norms: Option<&Array>,
        part: Rect,
    ) -> Result<Array, BackendError>;
}
