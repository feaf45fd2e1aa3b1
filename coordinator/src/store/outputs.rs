//! What a finished render leaves: its picture in any format, its latents, its plans.
//!
//! Pictures are large: nothing here holds one in memory. A format of one file is written to the scratch
//! folder once, and sent from there to wherever it is wanted; Deep Zoom's tiles go to the store one by one,
//! the descriptor last, so that one who finds it finds everything.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gigasmith_proto::domain::Array;

use super::SMALL;
use crate::output::{
    DziSink, Embedded, Format, Kind, Settings, WriteError, encode_latents, write_atomically, write_dzi,
    write_file, write_picture,
};
use crate::raster::{Levels, Positioned, Scratch};
use crate::render::Rendered;
use crate::spec::RenderSpec;

/// Told how far writing is: parts done, and all. Whether it goes on.
pub type Told = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Ends writing when nobody wants it any more.
pub(super) fn goes_on(told: &Told, done: u64, all: u64) -> io::Result<()> {
    match told(done, all) {
        true => Ok(()),
        false => Err(io::Error::other("nobody wants it any more")),
    }
}

/// What a render made.
#[derive(Clone)]
pub struct Outputs {
    picture: Arc<dyn Levels>,
    embedded: Embedded,
    format: Format,
    /// The last stage's latents as a safetensors file; `None` when no stage ran.
    latents: Option<Bytes>,
    /// The plans of the upscale stages, JSON.
    plans: Bytes,
    scratch: Scratch,
    /// The picture's file, once it was needed.
    file: Arc<Mutex<Option<Arc<Whole>>>>,
}

/// A file that is complete.
#[derive(Debug)]
pub(super) struct Whole {
    file: Positioned,
    pub(super) length: u64,
}

impl Whole {
    pub(super) fn part(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (self.length - at).min(SMALL as u64) as usize];
        self.file.read(at, &mut bytes)?;
        Ok(bytes)
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outputs").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Outputs {
    /// What a render made. Takes a moment, for the latents and for the plans, which are drawn again.
    pub fn of(
        rendered: &Rendered,
        spec: &RenderSpec,
        (format, scratch): (Format, &Scratch),
    ) -> Result<Self, String> {
        let settings = Settings::new(spec.clone());
        let latents = rendered.latent.as_ref().map(|latent: &Arc<Array>| {
            let bytes = encode_latents(latent, &settings).map_err(|e| e.to_string())?;
            Ok::<_, String>(Bytes::from(bytes))
        });
        let plans = rendered.plans.to_json().into();
        let outputs = Self::new(rendered.picture.clone(), settings.embedded(), (format, scratch));
        Ok(Self { latents: latents.transpose()?, plans, ..outputs })
    }

    /// A picture alone.
    pub fn new(picture: Arc<dyn Levels>, embedded: Embedded, (format, scratch): (Format, &Scratch)) -> Self {
        Self {
            picture,
            embedded,
            format,
            latents: None,
            plans: Bytes::new(),
            scratch: scratch.clone(),
            file: Arc::default(),
        }
    }

    /// With latents, a safetensors file.
    pub fn with_latents(self, latents: Bytes) -> Self {
        Self { latents: Some(latents), ..self }
    }

    /// The picture's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The latents, a safetensors file; `None` when no stage ran.
    pub fn latents(&self) -> Option<&Bytes> {
        self.latents.as_ref()
    }

    /// The plans of the upscale stages, JSON.
    pub fn plans(&self) -> &Bytes {
        &self.plans
    }

    /// Writes the picture under its final name. Takes its time. An error of `written` ends it.
    pub fn write(
        &self,
        path: &Path,
        written: &mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        if self.format.kind == Kind::Dzi {
            return write_picture(path, &*self.picture, &self.embedded, self.format, written);
        }
        let file = self.file(written).map_err(|e| WriteError::new(path, self.scratch.explain(&e)))?;
        write_atomically(path, |out| {
            let parts = file.length.div_ceil(SMALL as u64);
            for part in 0..parts {
                out.write_all(&file.part(part * SMALL as u64)?)?;
                written(part + 1, parts)?;
            }
            Ok(())
        })
    }

    /// Makes the tiles of a Deep Zoom picture, one after the other, the descriptor last.
    pub(super) fn tiles(&self, sink: &mut dyn DziSink, name: &str, told: &Told) -> io::Result<()> {
        let mut written = |done, total| goes_on(told, done, total);
        write_dzi(sink, name, &*self.picture, &self.embedded, self.format.dzi(), &mut written)
    }

    /// The picture as a file, written once.
    pub(super) fn file(&self, written: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<Arc<Whole>> {
        let mut known = self.file.lock().expect("no holder panics");
        if let Some(file) = &*known {
            return Ok(file.clone());
        }
        let file = self.scratch.file()?;
        let mut buffered = io::BufWriter::with_capacity(1 << 20, &file);
        write_file(&mut buffered, &*self.picture, &self.embedded, self.format, written)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        let length = file.metadata()?.len();
        Ok(known.insert(Arc::new(Whole { file: Positioned::new(file), length })).clone())
    }
}
