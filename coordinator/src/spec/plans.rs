//! The plans of a render's stages: given in a file or drawn, one at a time, when somebody needs it.
//!
//! The engine, the estimate, the budget and the progress of a farm all ask the same [`StagePlans`], so that they
//! speak of the same patches. A plan is not kept after its stage: that of a gigapixel stage has millions of
//! windows. How many patches each stage has is counted once.

use std::sync::{Arc, OnceLock};

use gigasmith_proto::domain::ModelDescription;

use super::{RenderSpec, UpscaleSpec};
use crate::request::RequestError;
use crate::sampler::blocks::BlockGrid;
use crate::sampler::plan::{Geometry, Plan, PlanFile, PlanFileError, StagePlanFile};
use crate::versions::{self, Stated, VersionError, Versioned};

/// The plans of all stages of a render, 0 for the base. Clones share what was counted.
#[derive(Debug, Clone)]
pub struct StagePlans {
    spec: Arc<RenderSpec>,
    patch_side: usize,
    latent_factor: u32,
    /// Those of the upscale stages, where they were given.
    given: Option<Arc<Vec<Plan>>>,
    counts: Arc<OnceLock<Vec<u64>>>,
}

impl StagePlans {
    /// The plans that follow from a spec and the sizes of its model.
    pub fn drawn(spec: &RenderSpec, model: &ModelDescription) -> Self {
        Self {
            spec: Arc::new(spec.clone()),
            patch_side: model.patch_side as usize,
            latent_factor: model.latent_factor,
            given: None,
            counts: Arc::default(),
        }
    }

    /// The same, with a plan file's JSON for the upscale stages where there is one.
    ///
    /// # Errors
    /// The file is damaged, of a later version, or of another render's sizes or steps.
    pub fn new(
        spec: &RenderSpec,
        model: &ModelDescription,
        file: Option<&str>,
    ) -> Result<Self, RequestError> {
        let drawn = Self::drawn(spec, model);
        let given = file.map(|json| drawn.read(&read_plan_file(json)?)).transpose()?;
        Ok(Self { given: given.map(Arc::new), ..drawn })
    }

    fn read(&self, file: &PlanFile) -> Result<Vec<Plan>, RequestError> {
        let (found, wanted) = (file.stages.len(), self.spec.upscales.len());
        if found != wanted {
            return Err(PlanFileError::Stages { found, wanted }.into());
        }
        let plan = |(stage, (file, upscale)): (usize, (&StagePlanFile, &UpscaleSpec))| {
            let canvas = upscale.size.latent(self.latent_factor);
            file.to_plan(stage, canvas, self.patch_side, self.spec.steps as usize)
        };
        let stages = (1..).zip(file.stages.iter().zip(&self.spec.upscales));
        Ok(stages.map(plan).collect::<Result<_, PlanFileError>>()?)
    }

    /// The same render with another seed. Plans that were given stay.
    pub fn with_seed(&self, seed: u64) -> Self {
        let spec = Arc::new(RenderSpec { seed, ..(*self.spec).clone() });
        Self { spec, counts: Arc::default(), ..self.clone() }
    }

    fn given(&self, stage: u32) -> Option<&Plan> {
        self.given.as_ref()?.get(stage.checked_sub(1)? as usize)
    }

    /// The plan of a stage. Drawing takes seconds for a gigapixel.
    pub fn plan(&self, stage: u32) -> Plan {
        if let Some(plan) = self.given(stage) {
            return plan.clone();
        }
        let (geometry, steps) = (self.geometry(stage), self.spec.steps as usize);
        match self.is_whole(stage) {
            true => Plan::whole(geometry.canvas, steps),
            false => Plan::draw(self.spec.plan, geometry, steps, self.spec.seed, stage),
        }
    }

    /// Whether a stage is the base, seen by the model at once.
    fn is_whole(&self, stage: u32) -> bool {
        stage == 0 && !self.spec.base_in_windows
    }

    /// Canvas, window and zone of a stage, without drawing its plan.
    pub fn geometry(&self, stage: u32) -> Geometry {
        if let Some(plan) = self.given(stage) {
            return plan.geometry();
        }
        let canvas = self.spec.stage_size(stage).expect("a stage of the spec").latent(self.latent_factor);
        match self.is_whole(stage) {
            true => Geometry::whole(canvas),
            false => Geometry::new(canvas, self.patch_side),
        }
    }

    /// How the canvas of a stage is cut into blocks.
    pub fn grid(&self, stage: u32) -> BlockGrid {
        BlockGrid::of_geometry(self.geometry(stage))
    }

    /// Patches of every stage, the base first, which has none where a picture takes its place. The first call
    /// draws each plan once.
    pub fn counts(&self) -> &[u64] {
        self.counts.get_or_init(|| {
            let patches = |stage| match stage {
                0 if self.spec.image_hash.is_some() => 0,
                _ => self.plan(stage).len() as u64,
            };
            (0..=self.spec.upscales.len() as u32).map(patches).collect()
        })
    }

    /// The plan file of the upscale stages, JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let stage = |stage| StagePlanFile::from_plan(&self.plan(stage), self.patch_side);
        let stages = (1..=self.spec.upscales.len() as u32).map(stage).collect();
        PlanFile { version: 1, stages }.to_json()
    }
}

/// Reads a plan file.
///
/// # Errors
/// It is damaged, or of a later version.
pub fn read_plan_file(json: &str) -> Result<PlanFile, RequestError> {
    versions::read(json.as_bytes()).map_err(|e| RequestError::Other(format!("the plan file: {e}")))
}

impl Versioned for PlanFile {
    fn check_versions(stated: &Stated) -> Result<(), VersionError> {
        stated.check("the plan", 1)
    }
}
