//! Plans as JSON, to be replayed here or by another program that implements the method.
//!
//! Format version 1:
//! `{"version": 1, "stages": [{"kind": "paper", "canvas": [height, width], "patch_side": P,
//! "transition_width": z, "patches": [[step, top, left, bit], ...]}]}`: one entry per upscale stage,
//! all sizes in latent pixels, patches in the order they run. The base stage has one window and no entry.

use serde::{Deserialize, Serialize};

use super::{Geometry, LatentSize, Plan, PlanError, PlanKind, PlannedPatch, Step};

/// The plans of a render's upscale stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// Format version: 1.
    pub version: u32,
    /// One plan per upscale stage, in order.
    pub stages: Vec<StagePlanFile>,
}

/// The plan of one upscale stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlanFile {
    /// What windows read: `paper` or `balanced`.
    pub kind: PlanKind,
    /// Height and width of the canvas in latent pixels.
    pub canvas: (usize, usize),
    /// Side of a window in latent pixels.
    pub patch_side: usize,
    /// z in latent pixels.
    pub transition_width: usize,
    /// Rows of (step, top, left, bit).
    pub patches: Vec<(usize, usize, usize, u8)>,
}

/// Why a plan file does not fit a render.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanFileError {
    /// Wrong number of stages.
    #[error(
        "the plan has {found} upscale stages, the render has {wanted}: choose the sizes it was saved with"
    )]
    Stages {
        /// In the file.
        found: usize,
        /// In the render.
        wanted: usize,
    },
    /// Another canvas, patch side or step count.
    #[error(
        "stage {stage} of the plan has {what} {found}, the render {wanted}: choose what it was saved with"
    )]
    Differs {
        /// 1 for the first upscale stage.
        stage: usize,
        /// Which property.
        what: &'static str,
        /// In the file.
        found: String,
        /// In the render.
        wanted: String,
    },
    /// Windows that do not make a plan.
    #[error("stage {stage} of the plan: {source}")]
    Plan {
        /// 1 for the first upscale stage.
        stage: usize,
        /// What is wrong.
        source: PlanError,
    },
}

impl PlanFile {
    /// Writes the plans of a render's upscale stages down.
    pub fn of(plans: &[Plan], patch_side: usize) -> Self {
        let stages = plans.iter().map(|p| StagePlanFile::from_plan(p, patch_side)).collect();
        Self { version: 1, stages }
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan is plain data")
    }
}

impl StagePlanFile {
    /// Writes a plan down.
    pub fn from_plan(plan: &Plan, patch_side: usize) -> Self {
        let Geometry { canvas, zone, .. } = plan.geometry();
        let rows = |step: usize| {
            plan.step(Step(step as u32)).map(move |(_, p)| (step, p.top, p.left, u8::from(p.bit)))
        };
        Self {
            kind: plan.kind(),
            canvas: (canvas.height, canvas.width),
            patch_side,
            transition_width: zone,
            patches: (0..plan.steps()).flat_map(rows).collect(),
        }
    }

    /// Reads a plan for a canvas and a number of steps; `stage` (1 for the first upscale stage) names
    /// it in errors.
    pub fn to_plan(
        &self,
        stage: usize,
        canvas: LatentSize,
        patch_side: usize,
        steps: usize,
    ) -> Result<Plan, PlanFileError> {
        let differs = |what, found: String, wanted: String| {
            if found == wanted { Ok(()) } else { Err(PlanFileError::Differs { stage, what, found, wanted }) }
        };
        let size = |(h, w): (usize, usize)| format!("{h}x{w} (rows x columns)");
        differs("a canvas of", size(self.canvas), size((canvas.height, canvas.width)))?;
        differs("patch side", self.patch_side.to_string(), patch_side.to_string())?;
        let last = self.patches.iter().map(|p| p.0.saturating_add(1)).max().unwrap_or(0);
        differs("steps", last.to_string(), steps.to_string())?;
        let mut per_step = vec![Vec::new(); steps];
        for &(step, top, left, bit) in &self.patches {
            per_step[step].push(PlannedPatch { top, left, bit: bit != 0 });
        }
        let geometry = Geometry { zone: self.transition_width, ..Geometry::new(canvas, patch_side) };
        Plan::from_patches(self.kind, geometry, per_step)
            .map_err(|source| PlanFileError::Plan { stage, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_plan_comes_back_and_a_foreign_one_is_refused() {
        let canvas = LatentSize { height: 40, width: 56 };
        let plan = Plan::draw(PlanKind::Paper, Geometry::new(canvas, 16), 4, 3, 1);
        let file = PlanFile { version: 1, stages: vec![StagePlanFile::from_plan(&plan, 16)] };
        let json = serde_json::to_string(&file).unwrap();
        let read: PlanFile = serde_json::from_str(&json).unwrap();
        assert_eq!(read.stages[0].to_plan(1, canvas, 16, 4), Ok(plan));
        let other = LatentSize { height: 56, width: 56 };
        assert!(matches!(read.stages[0].to_plan(1, other, 16, 4), Err(PlanFileError::Differs { .. })));
        assert!(matches!(read.stages[0].to_plan(1, canvas, 16, 5), Err(PlanFileError::Differs { .. })));
        let mut absurd = read.stages[0].clone();
        absurd.transition_width = usize::MAX;
        assert!(matches!(absurd.to_plan(1, canvas, 16, 4), Err(PlanFileError::Plan { .. })));
        absurd.patches.push((usize::MAX, 0, 0, 0));
        assert!(matches!(absurd.to_plan(1, canvas, 16, 4), Err(PlanFileError::Differs { .. })));
    }
}
