//! Fingerprints: one BLAKE3 hash per component over what decides its results, however the files are
//! named or split.

use blake3::Hasher;
use gigasmith_proto::domain::Fingerprint;

use super::error::LoadError;
use super::weights::Weights;

/// Collects a component's content.
#[derive(Debug, Default)]
pub(crate) struct Content(Hasher);

impl Content {
    /// Named values, in the order given.
    pub(crate) fn add_text(&mut self, name: &str, text: &str) {
        self.field(name.as_bytes());
        self.field(text.as_bytes());
    }

    /// Every tensor's name, number format, shape and bytes, by name.
    pub(crate) fn add_weights(&mut self, weights: &Weights) -> Result<(), LoadError> {
        for (name, dtype, shape, length) in weights.iter() {
            self.field(name.as_bytes());
            self.field(dtype.as_bytes());
            self.0.update(&(shape.len() as u64).to_le_bytes());
            for n in shape {
                self.0.update(&(*n as u64).to_le_bytes());
            }
            self.0.update(&length.to_le_bytes());
            weights.read(name, |piece| {
                self.0.update(piece);
            })?;
        }
        weights.check()
    }

    /// The hash.
    pub(crate) fn finish(&self) -> Fingerprint {
        Fingerprint(*self.0.finalize().as_bytes())
    }

    /// Length first, so that no two sequences of fields are the same bytes.
    fn field(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}
