//! Recording a network's call as a CUDA graph. A recording is used when it has given what the call gives that it is
//! of, to the bit.

use std::sync::Arc;

use candle_core::cuda::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus,
};
use candle_core::cuda::cudarc::driver::{CudaGraph, CudaSlice, CudaStream, PinnedHostSlice, result};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, Error, InplaceOp1, InplaceOp2, Layout, Result,
    Tensor, bail,
};

use super::super::Staging;
use super::super::replay::Values;
use super::engine::Engine;
use super::give_back;

/// See [`super::super::replay`].
#[derive(Default)]
pub(in super::super) struct Replay {
    /// Where the graph reads them.
    inputs: Vec<Tensor>,
    recorded: Recorded,
}

#[derive(Default)]
enum Recorded {
    /// There was no call yet.
    #[default]
    Never,
    /// There was one, which found out how everything is computed, loaded it, and took memory for it.
    Prepared,
    Graph {
        graph: CudaGraph,
        /// Where it writes.
        output: Tensor,
        /// Where its libraries work.
        _workspace: Option<Arc<CudaSlice<u8>>>,
    },
    /// It can't be done here.
    Refused,
}

// SAFETY: a graph may be used by any thread, though not by two at a time; and it is owned.
unsafe impl Send for Replay {}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("inputs", &self.inputs.len()).finish_non_exhaustive()
    }
}

impl Replay {
    #[cfg(test)]
    pub(super) fn is_recorded(&self) -> bool {
        matches!(self.recorded, Recorded::Graph { .. })
    }

    pub(in super::super) fn run(
        &mut self,
        staging: &mut Staging,
        values: &[Values],
        device: &CudaDevice,
        network: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.inputs.is_empty() {
            let empty = |(_, shape): &Values| {
                Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cuda(device.clone()))
            };
            self.inputs = values.iter().map(empty).collect::<Result<_>>()?;
        }
        for (input, (values, _)) in self.inputs.iter().zip(values) {
            staging.fill(values, input, device)?;
        }
        // Sizes and strides that kernels are given as arrays: from memory that a graph can read again.
        let _kept = device.enable_cuda_graph_htod_cache();
        let failure = match &self.recorded {
            Recorded::Never => {
                let sent = network(&self.inputs)?;
                self.recorded = Recorded::Prepared;
                return Ok(sent);
            }
            Recorded::Prepared => match self.try_recording(device, &network) {
                Ok(sent) => return Ok(sent),
                Err(failure) => failure,
            },
            Recorded::Graph { graph, output, .. } => match graph.launch() {
                Ok(()) => return Ok(output.clone()),
                Err(failure) => Error::wrap(failure),
            },
            Recorded::Refused => return network(&self.inputs),
        };
        tracing::warn!(%failure, "calls can't be replayed on this GPU; each will be sent anew");
        self.recorded = Recorded::Refused;
        give_back(device)?;
        network(&self.inputs)
    }

    /// Records a call, and sends it as well: its result, and a graph if that gives the same.
    fn try_recording(
        &mut self,
        device: &CudaDevice,
        network: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (graph, output) = self.record(device, &network)?;
        // A graph has memory of its own: not both at a time.
        give_back(device)?;
        graph.launch().map_err(Error::wrap)?;
        let replayed = bits(&output)?;
        give_back(device)?;
        let sent = network(&self.inputs)?;
        if replayed != bits(&sent)? {
            bail!("a recorded call gave another result");
        }
        give_back(device)?;
        let _workspace = Engine::on(device)?.held_workspace();
        self.recorded = Recorded::Graph { graph, output, _workspace };
        Ok(sent)
    }

    fn record(
        &self,
        device: &CudaDevice,
        network: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<(CudaGraph, Tensor)> {
        let shape = self.inputs[0].dims();
        let output = Tensor::zeros(shape, DType::F32, &Device::Cuda(device.clone()))?;
        let stream = device.cuda_stream();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        stream.begin_capture(mode).map_err(Error::wrap)?;
        let recording = Recording(&stream);
        let run = network(&self.inputs).and_then(|made| output.inplace_op2(&made, &Copy));
        // What went wrong on the way is said below, and must not keep the recording from being ended.
        let _ = stream.context().check_err();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).map_err(Error::wrap);
        drop(recording);
        run?;
        let Some(graph) = graph? else { bail!("nothing was recorded") };
        Ok((graph, output))
    }
}

/// Ends the recording of a stream, however it is left.
struct Recording<'a>(&'a CudaStream);

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let over = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        if self.0.capture_status().is_ok_and(|status| status == over) {
            return;
        }
        // SAFETY: the stream is being recorded, and nobody has the graph.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(self.0.cu_stream())
                && !graph.is_null()
            {
                let _ = result::graph::destroy(graph);
            }
        }
    }
}

fn bits(values: &Tensor) -> Result<Vec<u32>> {
    Ok(super::super::values(values)?.into_iter().map(f32::to_bits).collect())
}

/// Writes a tensor's values over another's.
struct Copy;

impl InplaceOp2 for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("only on a GPU")
    }

    fn cuda_fwd(&self, to: &mut CudaStorage, l: &Layout, from: &CudaStorage, m: &Layout) -> Result<()> {
        let count = l.shape().elem_count();
        if !l.is_contiguous() || !m.is_contiguous() || count != m.shape().elem_count() {
            bail!("a copy of {m:?} to {l:?}");
        }
        let device = to.device.clone();
        let from = from.as_cuda_slice::<f32>()?.slice(m.start_offset()..m.start_offset() + count);
        let mut to = to.as_cuda_slice_mut::<f32>()?.slice_mut(l.start_offset()..l.start_offset() + count);
        device.memcpy_dtod(&from, &mut to)
    }
}

/// Writes values of the host over a tensor's.
pub(in super::super) struct Fill<'a>(pub(in super::super) &'a PinnedHostSlice<f32>);

impl InplaceOp1 for Fill<'_> {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("only on a GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let stream = storage.device.cuda_stream();
        let start = layout.start_offset();
        let to = storage.as_cuda_slice_mut::<f32>()?;
        let mut to = to.slice_mut(start..start + layout.shape().elem_count());
        stream.memcpy_htod(self.0, &mut to).map_err(Error::wrap)
    }
}
