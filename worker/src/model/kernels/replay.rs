//! A network's calls of one shape, which are the same operations again and again.
//!
//! An NVIDIA GPU is told of every operation by the host, which costs more time than small operations take. So the
//! second call is recorded, as a CUDA graph, and later ones replay it whole. Operations, their order and their memory
//! are those of the first call, and so are the bytes.

use candle_core::{Device, Result, Tensor};

use super::Staging;

/// The values of an input, and its shape.
pub(crate) type Values = (Vec<f32>, Vec<usize>);

/// Calls of one network with inputs of the same shapes, and the same everything else.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    #[cfg(feature = "cuda")]
    cuda: super::cuda::Replay,
}

impl Replay {
    /// What `network` makes of the inputs, f32 and contiguous. The next call writes over it.
    pub(crate) fn run(
        &mut self,
        staging: &mut Staging,
        values: Vec<Values>,
        device: &Device,
        network: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return self.cuda.run(staging, &values, device, network);
        }
        let _ = staging;
        let inputs = values.into_iter().map(|(values, shape)| Tensor::from_vec(values, shape, device));
        network(&inputs.collect::<Result<Vec<_>>>()?)
    }
}
