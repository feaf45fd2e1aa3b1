//! The noise predictor on its device: groups of patches in, the network's guided outputs out.

use std::collections::VecDeque;

use candle_core::{DType, Device, Result, Tensor};
use gigasmith_proto::domain::{Array, ConditioningId, NoiseTask};

use super::guidance::combine;
use super::kernels::{Download, Replay, Staging};
use super::sdxl::on_pool;
use super::unet::{Perturbed, Rows, Text, Unet};

/// Texts of groups of patches of which keys and values are kept: as many renders can take turns.
const TEXTS: usize = 2;
/// Shapes of calls with them that are kept.
const CALLS: usize = 2;

/// A patch that fits the model.
#[derive(Debug)]
pub(super) struct Checked<'a> {
    pub(super) task: &'a NoiseTask,
    /// Of the negative (where it is needed), of the prompt, of the perturbed prompt.
    pub(super) rows: Vec<Row<'a>>,
    /// Self-attentions that are the identity in its last row.
    pub(super) perturbed: Vec<String>,
}

/// The text of a row of the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) states: &'a Array,
    pub(super) pooled: &'a Array,
    pub(super) is_negative: bool,
}

impl Checked<'_> {
    /// Whether both can go through the network in one call: in one batch of tensors, perturbed alike.
    pub(super) fn goes_with(&self, other: &Self) -> bool {
        self.task.latent.shape() == other.task.latent.shape()
            && self.rows.len() == other.rows.len()
            && self.task.pag.is_some() == other.task.pag.is_some()
            && self.perturbed == other.perturbed
            && self.rows[0].states.shape() == other.rows[0].states.shape()
    }
}

/// The texts of a group's rows, by name.
type Texts = Vec<(ConditioningId, bool)>;

/// What was read for a group's rows.
#[derive(Debug)]
struct Read {
    texts: Texts,
    text: Text,
    /// The latest first.
    calls: VecDeque<Call>,
}

/// Calls with those texts.
#[derive(Debug)]
struct Call {
    /// Of a latent.
    shape: Vec<usize>,
    perturbed: Vec<String>,
    replay: Replay,
}

/// The network, and what it has read.
#[derive(Debug)]
pub(super) struct Predictor {
    unet: Unet,
    device: Device,
    /// The latest first.
    read: VecDeque<Read>,
    staging: Staging,
}

/// A group of patches on its way through the network.
#[derive(Debug)]
pub(super) struct Running(Download);

impl Running {
    /// Whether the outputs are here.
    pub(super) fn is_done(&self) -> bool {
        self.0.is_here()
    }
}

impl Predictor {
    pub(super) fn new(unet: Unet, device: &Device) -> Self {
        Self { unet, device: device.clone(), read: VecDeque::new(), staging: Staging::default() }
    }

    /// Starts a group of patches that go together. A GPU is still computing when this is done.
    pub(super) fn start(&mut self, patches: &[&Checked<'_>]) -> Result<Running> {
        let device = self.device.clone();
        on_pool(&device, || self.enqueue(patches)).map(Running)
    }

    fn enqueue(&mut self, patches: &[&Checked<'_>]) -> Result<Download> {
        // A row of every patch for the negative (where it is needed), then for the prompt, then for the
        // perturbed prompt.
        let rows = || (0..patches[0].rows.len()).flat_map(|i| patches.iter().map(move |p| (*p, p.rows[i])));
        self.read_texts(rows().collect())?;
        let (latents, shape) = stack(rows().map(|(p, _)| &*p.task.latent).collect());
        let inputs = self.unet.inputs(Rows {
            latents,
            shape,
            timesteps: rows().map(|(p, _)| p.task.timestep as f32).collect(),
            pooled: rows().map(|(_, row)| row.pooled.data()).collect(),
            time_ids: rows().map(|(p, _)| p.task.time_ids).collect(),
        });
        let Read { text, calls, .. } = &mut self.read[0];
        let (shape, names) = (patches[0].task.latent.shape(), &patches[0].perturbed);
        let known = calls.iter().position(|call| call.shape == shape && call.perturbed == *names);
        let call = known.and_then(|at| calls.remove(at)).unwrap_or_else(|| Call {
            shape: shape.to_vec(),
            perturbed: names.clone(),
            replay: Replay::default(),
        });
        calls.truncate(CALLS - 1);
        calls.push_front(call);
        let unet = &self.unet;
        let network =
            |inputs: &[Tensor]| unet.forward(inputs, text, Perturbed { names, rows: patches.len() });
        let out = calls[0].replay.run(&mut self.staging, inputs, &self.device, network)?;
        self.staging.download(&out)
    }

    /// Brings what the network reads of the rows' texts to the front.
    fn read_texts(&mut self, rows: Vec<(&Checked<'_>, Row<'_>)>) -> Result<()> {
        let texts: Texts = rows.iter().map(|(p, row)| (p.task.conditioning, row.is_negative)).collect();
        let known = self.read.iter().position(|read| read.texts == texts);
        let read = match known.and_then(|at| self.read.remove(at)) {
            Some(read) => read,
            None => {
                self.read.truncate(TEXTS - 1);
                let (states, shape) = stack(rows.iter().map(|(_, row)| row.states).collect());
                let text = self.unet.read(&Tensor::from_vec(states, shape, &self.device)?)?;
                Read { texts, text, calls: VecDeque::new() }
            }
        };
        self.read.push_front(read);
        Ok(())
    }

    /// Waits for a group's outputs and guides each of `tasks`, which are its patches' (some may have been added to
    /// fill it, and are missing here).
    pub(super) fn finish(
        &mut self,
        Running(download): Running,
        group: usize,
        tasks: &[&NoiseTask],
    ) -> Result<Vec<Array>> {
        let outputs = self.staging.finish(download)?;
        let length = tasks[0].latent.data().len();
        let outputs: Vec<&[f32]> = outputs.chunks_exact(length).collect();
        let guided = tasks.iter().enumerate().map(|(i, task)| {
            let rows: Vec<&[f32]> = outputs.iter().skip(i).step_by(group).copied().collect();
            let shape = task.latent.shape().to_vec();
            Array::new(shape, combine(task, &rows)).expect("guidance keeps the size of a row")
        });
        Ok(guided.collect())
    }

    /// Bytes beside weights and activations: what is kept of texts of so many rows and tokens.
    pub(super) fn text_bytes(
        config: &super::config::UnetConfig,
        (rows, tokens): (usize, usize),
        dtype: DType,
    ) -> u64 {
        (TEXTS * rows * Unet::text_bytes(config, tokens, dtype)) as u64
    }
}

/// The values of arrays of one shape, one after the other, and the shape of them all.
fn stack(arrays: Vec<&Array>) -> (Vec<f32>, Vec<usize>) {
    let shape = [arrays.len()].iter().chain(arrays[0].shape()).copied().collect();
    (arrays.iter().flat_map(|a| a.data()).copied().collect(), shape)
}
