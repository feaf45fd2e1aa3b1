//! Borrowing a CPU tensor's values as a slice, and making a tensor of a vector.
//!
//! Images are kept channels-last on a CPU: their tensors are (batch, channels, h, w) like everywhere, with
//! strides that put a pixel's channels side by side.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};

use super::product::Source;

/// The values of an f32 tensor on the CPU, borrowed.
pub(super) struct Host<'a> {
    storage: candle_core::StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Host<'a> {
    /// Borrows `tensor`, which must be contiguous.
    pub(super) fn contiguous(tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() != DType::F32 {
            bail!("a CPU kernel was given {:?} values", tensor.dtype());
        }
        if !tensor.is_contiguous() {
            bail!("a CPU kernel was given a strided tensor {:?}", tensor.layout());
        }
        let (storage, layout) = tensor.storage_and_layout();
        Ok(Self { storage, layout })
    }

    /// Borrows a tensor, if there is one.
    pub(super) fn optional(tensor: Option<&'a Tensor>) -> Result<Option<Self>> {
        tensor.map(Self::contiguous).transpose()
    }

    /// The values of a tensor, if there is one.
    pub(super) fn some(host: &Option<Self>) -> Result<Option<&[f32]>> {
        host.as_ref().map(Self::values).transpose()
    }

    /// The values.
    pub(super) fn values(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => {
                let start = self.layout.start_offset();
                Ok(&values[start..start + self.layout.shape().elem_count()])
            }
            _ => bail!("a CPU kernel was given values that are elsewhere"),
        }
    }
}

/// A tensor of `values`, without copying.
pub(super) fn tensor(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// An image (batch, channels, h, w) of values that lie (batch, h, w, channels).
pub(super) fn image(values: Vec<f32>, [batch, channels, h, w]: [usize; 4]) -> Result<Tensor> {
    tensor(values, &[batch, h, w, channels])?.permute((0, 3, 1, 2))
}

/// An image's values as (batch, h, w, channels): a view where it is kept that way.
pub(super) fn channels_last(image: &Tensor) -> Result<Tensor> {
    image.permute((0, 2, 3, 1))?.contiguous()
}

/// Runs `f` on the values of contiguous weights.
pub(super) fn source<T>(weight: &Tensor, f: impl FnOnce(Source<'_>) -> T) -> Result<T> {
    let (storage, layout) = weight.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(f(Source::F32(&values[range]))),
        Storage::Cpu(CpuStorage::F16(values)) => Ok(f(Source::F16(&values[range]))),
        Storage::Cpu(CpuStorage::BF16(values)) => Ok(f(Source::Bf16(&values[range]))),
        _ => bail!("a CPU kernel was given {:?} weights", weight.dtype()),
    }
}
