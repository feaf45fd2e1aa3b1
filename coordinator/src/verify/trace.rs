//! A recorded trace on disk: `case.json`, `trace.safetensors`, and the pictures on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gigasmith_proto::domain::{Array, ModelDescription};
use gigasmith_proto::text::Shown;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::input::read_picture;
use crate::sampler::cascade::Cascade;
use crate::sampler::plan::{Geometry, Plan, PlanError, PlanKind, PlannedPatch};
use crate::sampler::resize::Picture;
use crate::sampler::schedule::Schedule;
use crate::sampler::units::{ImageSize, LatentSize};
use crate::spec::check_pag_blocks;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file cannot be read.
    #[error(
        "cannot read {path}: {}; a trace is a folder with case.json and trace.safetensors",
        Shown(reason)
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A row of the plan is short.
    #[error("the plan's columns are {0:?}: step, top, left, shift_down and shift_left are needed")]
    Columns(Vec<String>),
    /// The plan does not cover the canvas.
    #[error("the recorded plan: {0}")]
    Plan(#[from] PlanError),
    /// The plan has steps that the schedule has not.
    #[error("the recorded plan reaches step {step}, but the case has {steps} steps")]
    Step {
        /// The step in the plan.
        step: usize,
        /// The number of steps of the case.
        steps: u32,
    },
    /// A setting of the case that makes no sense.
    #[error("case.json: {}", Shown(.0))]
    Case(String),
    /// The trace was recorded with another kind of model.
    #[error(
        "`{name}` has shape {found:?} in the trace, but {expected:?} belongs to this model and case: is it the model the trace was recorded with?"
    )]
    Shape {
        /// Which tensor.
        name: String,
        /// In the trace.
        found: Vec<usize>,
        /// By model and case.
        expected: Vec<usize>,
    },
}

/// The settings of a trace, `case.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// What was drawn.
    pub prompt: String,
    /// What was steered away from.
    pub negative_prompt: Option<String>,
    /// Final height in image pixels.
    pub height: u32,
    /// Final width in image pixels.
    pub width: u32,
    /// Height of the base.
    pub base_height: u32,
    /// Width of the base.
    pub base_width: u32,
    /// S.
    pub steps: u32,
    /// Number of guided steps.
    pub slider: u32,
    /// Classifier-free guidance scale.
    pub guidance_scale: f32,
    /// Perturbed-attention guidance scale, 0 for none.
    #[serde(default)]
    pub pag_scale: f32,
    /// Its blocks.
    #[serde(default)]
    pub pag_applied_layers: Vec<String>,
    /// P.
    pub patch_size: usize,
    /// z.
    pub transition_width: usize,
    /// t of every step.
    pub timesteps: Vec<u32>,
    /// abar at them.
    pub alphas_cumprod: Vec<f64>,
    /// Names of the plan's columns.
    pub plan_columns: Vec<String>,
    /// One row per patch, in the order they ran.
    pub plan: Vec<Vec<usize>>,
}

impl Case {
    /// The final size.
    pub fn size(&self) -> ImageSize {
        ImageSize { width: self.width, height: self.height }
    }

    /// The size of the base.
    pub fn base_size(&self) -> ImageSize {
        ImageSize { width: self.base_width, height: self.base_height }
    }

    /// Whether the settings make sense for a model.
    fn check(&self, model: &ModelDescription) -> Result<(), TraceError> {
        let case = |e: &dyn std::fmt::Display| TraceError::Case(e.to_string());
        Schedule::new(&model.schedule, self.steps).map_err(|e| case(&e))?;
        for size in [self.size(), self.base_size()] {
            Cascade::check(size, model.latent_factor).map_err(|e| case(&e))?;
        }
        check_pag_blocks(&self.pag_applied_layers, model).map_err(|e| case(&e))?;
        if self.slider > self.steps {
            return Err(case(&format!("slider {} is above the {} steps", self.slider, self.steps)));
        }
        if !(1..=1 << 16).contains(&self.patch_size) {
            return Err(case(&format!("patch_size {} makes no sense: 1 to 65536 do", self.patch_size)));
        }
        for (name, scale) in [("guidance_scale", self.guidance_scale), ("pag_scale", self.pag_scale)] {
            if !(0.0..=1000.0).contains(&scale) {
                return Err(case(&format!("{name} {scale} makes no sense: 0 to 1000 do")));
            }
        }
        Ok(())
    }
}

/// A tensor of a trace.
#[derive(Debug, Clone)]
pub struct TraceTensor {
    /// The values, without a leading batch axis of 1 where there are more axes than the value needs.
    pub array: Array,
    /// Whether it was stored in half precision.
    pub half: bool,
}

/// A trace, read.
#[derive(Debug)]
pub struct Trace {
    case: Case,
    tensors: BTreeMap<String, TraceTensor>,
    pictures: BTreeMap<&'static str, Picture>,
}

impl Trace {
    /// Reads a trace folder.
    pub fn read(folder: &Path) -> Result<Self, TraceError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|e| TraceError::Unreadable { path, reason: e.to_string() })
        };
        let unreadable =
            |name: &str, reason: String| TraceError::Unreadable { path: folder.join(name), reason };
        let case = read("case.json")?;
        let case: Case = serde_json::from_slice(&case).map_err(|e| unreadable("case.json", e.to_string()))?;
        let file = read("trace.safetensors")?;
        let tensors = tensors(&file).map_err(|reason| unreadable("trace.safetensors", reason))?;
        let mut pictures = BTreeMap::new();
        for name in ["base.png", "upsampled.png", "image.png"] {
            let path = folder.join(name);
            if path.exists() {
                let loaded = read_picture(&path).map_err(|e| unreadable(name, e.to_string()))?;
                pictures.insert(name, loaded.picture);
            }
        }
        Ok(Self { case, tensors, pictures })
    }

    /// The settings.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// A recorded tensor.
    pub fn tensor(&self, name: &str) -> Option<&TraceTensor> {
        self.tensors.get(name)
    }

    /// A recorded picture: `base.png`, `upsampled.png`, `image.png`.
    pub fn picture(&self, name: &str) -> Option<&Picture> {
        self.pictures.get(name)
    }

    /// Whether the trace's settings and inputs fit the model.
    pub fn check_model(&self, model: &ModelDescription) -> Result<(), TraceError> {
        self.case.check(model)?;
        let shape = |size: ImageSize| {
            let LatentSize { height, width } = size.latent(model.latent_factor);
            vec![model.latent_channels as usize, height, width]
        };
        let (base, last) = (shape(self.case.base_size()), shape(self.case.size()));
        let latents =
            ["encoded_mean", "encoded_std", "encode_noise", "guide", "guidance_noise", "final_latents"];
        let expected =
            ["base_noise", "base_latents"].map(|n| (n, &base)).into_iter().chain(latents.map(|n| (n, &last)));
        for (name, expected) in expected {
            let Some(tensor) = self.tensor(name) else { continue };
            if tensor.array.shape() != expected {
                let found = tensor.array.shape().to_vec();
                return Err(TraceError::Shape { name: name.into(), found, expected: expected.clone() });
            }
        }
        Ok(())
    }

    /// The recorded plan on a canvas.
    pub fn plan(&self, canvas: LatentSize) -> Result<Plan, TraceError> {
        let Case { steps, patch_size, transition_width, plan_columns, plan, .. } = &self.case;
        let bad_columns = || TraceError::Columns(plan_columns.clone());
        let column = |name: &str| plan_columns.iter().position(|c| c == name).ok_or_else(bad_columns);
        let (step, top, left) = (column("step")?, column("top")?, column("left")?);
        let (down, across) = (column("shift_down")?, column("shift_left")?);
        let mut per_step = vec![Vec::new(); *steps as usize];
        for row in plan {
            let value = |column: usize| row.get(column).copied().ok_or_else(bad_columns);
            let bit = (value(down)? ^ value(across)?) & 1 == 1;
            let patch = PlannedPatch { top: value(top)?, left: value(left)?, bit };
            let step = value(step)?;
            per_step.get_mut(step).ok_or(TraceError::Step { step, steps: *steps })?.push(patch);
        }
        let geometry = Geometry { zone: *transition_width, ..Geometry::new(canvas, *patch_size) };
        Ok(Plan::from_patches(PlanKind::Paper, geometry, per_step)?)
    }
}

fn tensors(file: &[u8]) -> Result<BTreeMap<String, TraceTensor>, String> {
    let file = SafeTensors::deserialize(file).map_err(|e| e.to_string())?;
    file.iter()
        .map(|(name, view)| {
            let bytes = view.data();
            let data: Vec<f32> = match view.dtype() {
                Dtype::F32 => {
                    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
                }
                Dtype::F16 => {
                    bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
                other => return Err(format!("tensor `{name}` is stored as {other:?}: F32 or F16 are read")),
            };
            // Rows of time ids are the batch itself; everything else has a batch axis of 1.
            let shape = match view.shape() {
                [1, rest @ ..] if !name.ends_with(".time_ids") => rest.to_vec(),
                shape => shape.to_vec(),
            };
            let array = Array::new(shape, data).map_err(|e| format!("tensor `{name}`: {e}"))?;
            Ok((name.to_owned(), TraceTensor { array, half: view.dtype() == Dtype::F16 }))
        })
        .collect()
}
