//! What goes along with a render: who is told of it, who keeps its progress, who may stop it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::domain::{Array, Conditioning};
use tokio_util::sync::CancellationToken;

use super::live::Live;
use crate::raster::{Raster, Scratch};
use crate::sampler::blocks::BlockGrid;
use crate::sampler::stage::{SavedStage, StageRules};
use crate::sampler::units::{ImageSize, PixelRect};

/// A stage that begins, or is taken up.
#[derive(Debug, Clone, Copy)]
pub struct StageBegin {
    /// Which one; 0 is the base.
    pub stage: u32,
    /// How many there are.
    pub total: u32,
    /// The size of its picture.
    pub size: ImageSize,
    /// Its patches.
    pub patches: usize,
    /// Those that an earlier run has committed.
    pub done: usize,
}

/// What a render tells while it runs. All methods have a default that says nothing.
pub trait Progress: Send {
    /// A stage begins.
    fn stage(&mut self, begin: StageBegin) {
        let _ = begin;
    }
    /// A stage is taken up whose patches are all done: it is decoded next.
    fn taken_up(&mut self, begin: StageBegin) {
        let _ = begin;
    }
    /// So many of the stage's patches are done.
    fn patches(&mut self, done: usize) {
        let _ = done;
    }
    /// Something happens between stages: `encoding text`, `measuring`, `decoding`, `encoding`.
    fn phase(&mut self, what: &'static str) {
        let _ = what;
    }
    /// So many of the phase's tiles are done.
    fn tiles(&mut self, done: usize, total: usize) {
        let _ = (done, total);
    }
    /// Something the user should know.
    fn warn(&mut self, message: &str) {
        let _ = message;
    }
    /// Checkpoints are late, and why; `None`: they are on time again.
    fn late(&mut self, reason: Option<&str>) {
        let _ = reason;
    }
}

/// Says nothing.
impl Progress for () {}

/// Keeps the points that a render could go on from. Nothing here waits: what takes time happens beside the
/// render.
pub trait Journal: Send {
    /// How long until a new point is worth giving; zero: now.
    fn wait(&self) -> Duration;
    /// Takes a point. Only the newest counts.
    fn note(&mut self, point: Point);
    /// Why the newest point that was given is not kept yet, when that takes longer than it should.
    fn trouble(&self) -> Option<String>;
}

/// Keeps nothing.
impl Journal for () {
    fn wait(&self) -> Duration {
        Duration::MAX
    }

    fn note(&mut self, _: Point) {}

    fn trouble(&self) -> Option<String> {
        None
    }
}

/// A point that a render could go on from.
#[derive(Debug, Clone)]
pub struct Point {
    /// The encoded text.
    pub conditioning: Arc<Conditioning>,
    /// Which stage; 0 is the base.
    pub stage: u32,
    /// Where in the stage.
    pub at: PointAt,
}

/// Where in a stage a point lies.
#[derive(Debug, Clone)]
pub enum PointAt {
    /// Among its patches.
    Sampling {
        /// Plan and guidance.
        rules: Arc<StageRules>,
        /// The canvas.
        saved: SavedStage,
    },
    /// Among the tiles that its latent is decoded in.
    Decoding {
        /// The denoised latent, (channels, height, width).
        latent: Arc<Array>,
        /// How the stage's canvas was cut.
        grid: BlockGrid,
        /// The tiles.
        decoded: SavedDecoding,
    },
}

/// A picture of which some tiles are decoded.
#[derive(Debug, Clone, Default)]
pub struct SavedDecoding {
    /// The picture as far as it is finished; `None`: nothing is.
    pub raster: Option<Arc<Raster>>,
    /// Its finished rows from the top, one part per joined row of tiles.
    pub bands: Vec<PixelRect>,
    /// What the last joined row of tiles leaves for the next.
    pub tails: Vec<Array>,
    /// Tiles of rows that are not joined yet, by position.
    pub waiting: BTreeMap<usize, Arc<Array>>,
    /// The normalisation statistics that all tiles share, (groups, 2).
    pub norms: Option<Arc<Array>>,
}

/// What goes along with a render.
pub struct Course<'a> {
    /// Is told of it.
    pub progress: &'a mut dyn Progress,
    /// Keeps its progress.
    pub journal: &'a mut dyn Journal,
    /// Stops it: it leaves a last point and ends.
    pub stop: CancellationToken,
    /// Where pictures under way lie.
    pub scratch: Scratch,
    /// Where others look at it.
    pub live: Option<Arc<Live>>,
    late: bool,
}

impl std::fmt::Debug for Course<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Course").field("stop", &self.stop).finish_non_exhaustive()
    }
}

impl<'a> Course<'a> {
    /// A course with all three; pictures under way lie in the system's folder.
    pub fn new(
        progress: &'a mut dyn Progress,
        journal: &'a mut dyn Journal,
        stop: CancellationToken,
    ) -> Self {
        Self { progress, journal, stop, scratch: Scratch::default(), live: None, late: false }
    }

    /// Pictures under way lie elsewhere.
    pub fn with_scratch(self, scratch: Scratch) -> Self {
        Self { scratch, ..self }
    }

    /// Others may look at it.
    pub fn with_live(self, live: Arc<Live>) -> Self {
        Self { live: Some(live), ..self }
    }

    /// Gives a point to the journal if it is time for one, and tells when points are late. Returns whether
    /// it took it.
    pub(super) fn offer(&mut self, point: impl FnOnce() -> Point) -> bool {
        let trouble = self.journal.trouble();
        if trouble.is_some() != self.late {
            self.late = trouble.is_some();
            self.progress.late(trouble.as_deref());
        }
        let due = self.journal.wait().is_zero();
        if due {
            self.journal.note(point());
        }
        due
    }

    /// Resolves when the journal wants a new point; never, when there is `nothing_new`.
    pub(super) fn due(&self, nothing_new: bool) -> impl Future<Output = ()> + Send + use<> {
        let wait = self.journal.wait();
        async move {
            match wait {
                wait if !nothing_new && wait < Duration::MAX => tokio::time::sleep(wait).await,
                _ => std::future::pending().await,
            }
        }
    }
}
